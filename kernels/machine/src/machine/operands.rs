//! Operands of `wgmma` in shared memory: the positions of their elements, according to a
//! descriptor.

use crate::machine::block::Env;
use crate::machine::mma::element;
use crate::machine::regs::Regs;
use crate::machine::wgmma::{Source, Wgmma};
use crate::read::parse::spaces::SHARED_START;
use crate::read::types::Type;

/// A matrix in shared memory, as a descriptor describes it.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    start: u32,
    /// Leading and stride offsets in bytes.
    leading: u32,
    stride: u32,
    base: u32,
    /// Bytes of the swizzle; 16 for none.
    swizzle: u32,
    /// Rows (or columns of B) are along the 16-byte chunks, instead of k.
    transposed: bool,
}

impl Matrix {
    pub(crate) fn new(bits: u64, transposed: bool) -> Matrix {
        let field = |at: u32| ((bits >> at & 0x3fff) << 4) as u32;
        Matrix {
            start: field(0),
            leading: field(16),
            stride: field(32),
            base: (bits >> 49 & 7) as u32,
            swizzle: [16, 128, 64, 32][(bits >> 62) as usize],
            transposed,
        }
    }

    /// Offset of a chunk of 16 bytes in shared memory. If k is contiguous, the chunk is a row and
    /// one half of the 32 bytes along k. If rows are contiguous, it is eight rows and one k.
    fn chunk(&self, row: u32, k: u32) -> u32 {
        let (s, per) = (self.swizzle, self.swizzle / 16);
        let a = match (self.transposed, per) {
            (false, 1) => row / 8 * self.stride + row % 8 * 16 + k * self.leading,
            (false, _) => row / 8 * self.stride + row % 8 * s + k * 16,
            (true, 1) => row * self.stride + k % 8 * 16 + k / 8 * self.leading,
            (true, _) => {
                row % per * 16 + row / per * self.leading + k % 8 * s + k / 8 * self.stride
            }
        };
        let a = self.start + a;
        let phase = (a >> 7).wrapping_sub(self.base) & (per - 1);
        (a ^ phase << 4).wrapping_sub(SHARED_START)
    }

    /// All chunks of this many rows, at most eight of which share a wavefront.
    pub(crate) fn chunks(&self, rows: u32) -> Vec<u32> {
        let mut out = Vec::with_capacity(rows as usize * 2);
        for group in 0..rows / 8 {
            for half in 0..2 {
                for i in 0..8 {
                    out.push(if self.transposed {
                        self.chunk(group, half * 8 + i)
                    } else {
                        self.chunk(group * 8 + i, half)
                    });
                }
            }
        }
        out
    }
}

impl Env<'_> {
    /// Elements of a chunk as f32, as many as its 16 bytes hold; poison beyond the memory.
    fn chunk_elements(&self, ty: Type, offset: u32, mut f: impl FnMut(usize, f32)) {
        let bytes = self.shared.bytes.get(offset as usize..offset as usize + 16);
        let each = 4 / ty.bytes().min(4);
        for i in 0..4 {
            let word = bytes.map_or(!0, |b| {
                u32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]])
            });
            for j in 0..each {
                f(i * each + j, element(ty, word, j));
            }
        }
    }

    /// All of B: for each 8 columns, k by k, even columns and then odd ones.
    pub(crate) fn tile_b(&self, w: &Wgmma, m: &Matrix) -> Vec<[f32; 8]> {
        let place = |n: usize| n / 2 + n % 2 * 4;
        let k_all = 32 / w.ty_b.bytes().min(4);
        let mut out = vec![[0f32; 8]; w.n / 8 * k_all];
        for (group, tile) in out.chunks_exact_mut(k_all).enumerate() {
            for i in 0..16 {
                let (row, half) = (i % 8, i / 8);
                if m.transposed {
                    self.chunk_elements(w.ty_b, m.chunk(group as u32, i as u32), |n, v| {
                        tile[i][place(n)] = v
                    });
                } else {
                    let per = k_all / 2;
                    let offset = m.chunk((group * 8 + row) as u32, half as u32);
                    self.chunk_elements(w.ty_b, offset, |k, v| {
                        tile[half * per + k][place(row)] = v
                    });
                }
            }
        }
        out
    }

    /// A warp's rows of A.
    pub(crate) fn tile_a(
        &self,
        w: &Wgmma,
        m: Option<&Matrix>,
        quarter: usize,
        regs: &Regs,
    ) -> [[f32; 32]; 16] {
        let mut out = [[0f32; 32]; 16];
        let each = 4 / w.ty_a.bytes().min(4);
        match (m, &w.a) {
            (Some(m), _) if m.transposed => {
                for k in 0..16 {
                    for g in 0..2 {
                        let offset = m.chunk((quarter * 2 + g) as u32, k as u32);
                        self.chunk_elements(w.ty_a, offset, |i, v| out[g * 8 + i][k] = v);
                    }
                }
            }
            (Some(m), _) => {
                for (r, row) in out.iter_mut().enumerate() {
                    for half in 0..2 {
                        let offset = m.chunk((quarter * 16 + r) as u32, half as u32);
                        self.chunk_elements(w.ty_a, offset, |k, v| row[half * 4 * each + k] = v);
                    }
                }
            }
            (None, Source::Registers(slots)) => {
                for (i, slot) in slots.iter().enumerate() {
                    for (l, x) in regs.words[*slot as usize].iter().enumerate() {
                        for j in 0..each {
                            out[i % 2 * 8 + l / 4][(i / 2 * 4 + l % 4) * each + j] =
                                element(w.ty_a, *x, j);
                        }
                    }
                }
            }
            _ => {}
        }
        if w.negate {
            out.iter_mut().flatten().for_each(|x| *x = -*x);
        }
        out
    }
}
