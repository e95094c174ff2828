//! The rows of a JPEG one after another, for images that are made much smaller: a large photo need
//! not be in memory as a whole.
//!
//! Only what nearly all cameras write is read here: one scan, gray or YCbCr. Colours are not
//! interpolated between the pixels that share them, which shows only in larger images. So other
//! JPEGs, and those that keep more than half of their size, are left to the decoder of whole
//! images.

use super::complete::jpeg_segments;
use super::decoder::ends_early;
use super::resize::Resizer;
use super::scan::{Bits, Scan, State, Table};
use crate::error::{Error, Result};
use crate::pipeline::request::Image;

/// Where each coefficient of a block is, in the order in which they are stored.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// The tables of codes, in bytes.
const TABLE_BYTES: u64 = 8 * (1 << 16) * 2;

/// A JPEG whose rows can be decoded one after another.
pub struct JpegRows<'a> {
    state: State,
    scan: Scan,
    bits: Bits<'a>,
    /// The factors of the coefficients of each component, in the order in which they are stored.
    factors: Vec<[f32; 64]>,
    /// The last mean of each component.
    means: Vec<i32>,
    /// Eight rows of pixels of each component, times its blocks in an MCU.
    planes: Vec<Plane>,
    size: (usize, usize),
    waves: [[f32; 8]; 8],
}

/// The pixels of one component in a row of MCUs.
struct Plane {
    /// Blocks of an MCU across and down.
    h: usize,
    v: usize,
    /// Pixels in a row.
    stride: usize,
    pixels: Vec<u8>,
}

impl Plane {
    /// The pixels of row `y` of the image in this row of MCUs, where the component with the most
    /// blocks has `most_v` of them down.
    fn line(&self, y: usize, most_v: usize) -> &[u8] {
        &self.pixels[y * self.v / most_v * self.stride..]
    }
}

impl<'a> JpegRows<'a> {
    /// Reads the headers of the JPEG in `bytes`; `None` if it is of another kind.
    pub fn open(bytes: &'a [u8]) -> Option<JpegRows<'a>> {
        let mut state = State::default();
        let mut quantisation: [Option<[f32; 64]>; 4] = [None; 4];
        let mut frame: Option<&[u8]> = None;
        for segment in jpeg_segments(bytes) {
            let content = segment.content;
            match segment.marker {
                0xdb => read_quantisation(content, &mut quantisation)?,
                0xc4 => state.read_tables(content)?,
                0xc0 | 0xc1 => {
                    state.read_frame(content, false)?;
                    frame = Some(content);
                }
                0xc2..=0xcf => return None,
                0xdd => state.read_restart(content)?,
                // Adobe's marker: its last byte tells whether the colours are YCbCr.
                0xee if content.starts_with(b"Adobe") && content.get(11) != Some(&1) => {
                    return None;
                }
                0xda => {
                    let frame = frame?;
                    let scan = state.read_scan(content)?;
                    // Where the content lies in the file.
                    let end = content.as_ptr_range().end as usize - bytes.as_ptr() as usize;
                    return JpegRows::of(state, scan, &quantisation, frame, Bits::new(bytes, end));
                }
                _ => {}
            }
        }
        None
    }

    fn of(
        state: State,
        scan: Scan,
        quantisation: &[Option<[f32; 64]>; 4],
        frame: &[u8],
        bits: Bits<'a>,
    ) -> Option<JpegRows<'a>> {
        let count = state.components.len();
        let is_rgb = count == 3 && state.components.iter().map(|c| c.id).eq(*b"RGB");
        let in_order = scan.parts.iter().map(|part| part.0).eq(0..count);
        if !matches!(count, 1 | 3) || is_rgb || !in_order {
            return None;
        }
        let side = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        let size = (side(3), side(1));
        let table = |i: usize| *quantisation.get(usize::from(*frame.get(6 + 3 * i + 2)?))?;
        let factors: Vec<[f32; 64]> = (0..count).map(table).collect::<Option<_>>()?;
        let across = state.mcus_across;
        let plane = |c: &super::scan::Component| {
            // A single component is stored block by block.
            let (h, v, across) = if count == 1 { (1, 1, c.across) } else { (c.h, c.v, across) };
            let stride = 8 * h * across;
            Plane { h, v, stride, pixels: vec![0; 8 * v * stride] }
        };
        let planes: Vec<Plane> = state.components.iter().map(plane).collect();
        let (most_h, most_v) = most(&planes);
        // At most two pixels in each direction share a colour.
        let is_close = |most: usize, own: usize| most == own || most == 2 * own;
        if !planes.iter().all(|p| is_close(most_h, p.h) && is_close(most_v, p.v)) {
            return None;
        }
        let wave = |x: usize, u: usize| {
            let angle = ((2 * x + 1) * u) as f64 * std::f64::consts::PI / 16.0;
            let scale = if u == 0 { 0.5f64.sqrt() / 2.0 } else { 0.5 };
            (scale * angle.cos()) as f32
        };
        let waves = std::array::from_fn(|u| std::array::from_fn(|x| wave(x, u)));
        Some(JpegRows { state, scan, bits, factors, means: vec![0; count], planes, size, waves })
    }

    /// Upper bound of the memory that decoding needs besides the file, in bytes.
    pub fn row_bytes(&self) -> u64 {
        let planes: usize = self.planes.iter().map(|p| p.pixels.len()).sum();
        (planes + 3 * self.size.0) as u64 + TABLE_BYTES
    }

    /// The image scaled by `resizer`, which must be one for the size of this image.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if the file is damaged.
    pub fn resized(mut self, mut resizer: Resizer) -> Result<Image> {
        let (columns, rows) = self.size;
        let (_, most_v) = most(&self.planes);
        let mut row = vec![0; 3 * columns];
        for first in (0..rows).step_by(8 * most_v) {
            let damaged = || {
                Error::argument("the image cannot be read: its data are damaged")
                    .at(format!("row {first} of {rows}"))
                    .try_("open it in another program and save it as PNG")
            };
            self.decode_mcus(first / (8 * most_v)).ok_or_else(damaged)?;
            if self.bits.lacks_more_than_padding() {
                return Err(ends_early());
            }
            for y in 0..(8 * most_v).min(rows - first) {
                self.write_row(y, &mut row);
                resizer.push(&row);
            }
        }
        Ok(resizer.finish())
    }

    /// Decodes row `down` of MCUs into the planes; `None` if the data are damaged.
    fn decode_mcus(&mut self, down: usize) -> Option<()> {
        let JpegRows { state, scan, bits, factors, means, planes, waves, .. } = self;
        let across = planes[0].stride / (8 * planes[0].h);
        for x in 0..across {
            let mcu = down * across + x;
            if state.restart > 0 && mcu > 0 && mcu.is_multiple_of(state.restart) {
                bits.restart()?;
                means.fill(0);
            }
            for &(index, dc, ac) in &scan.parts {
                let (dc, ac) = (state.dc.get(dc)?, state.ac.get(ac)?);
                let plane = &mut planes[index];
                for block in 0..plane.h * plane.v {
                    let coefficients =
                        read_block(bits, (dc, ac), &mut means[index], &factors[index])?;
                    let at =
                        block / plane.h * 8 * plane.stride + (x * plane.h + block % plane.h) * 8;
                    write_block(&coefficients, waves, &mut plane.pixels[at..], plane.stride);
                }
            }
        }
        Some(())
    }

    /// Writes row `y` of the planes as RGB.
    fn write_row(&self, y: usize, rgb: &mut [u8]) {
        let (most_h, most_v) = most(&self.planes);
        let luma = self.planes[0].line(y, most_v);
        let wide = most_h / self.planes[0].h;
        let [_, blue, red] = &self.planes[..] else {
            rgb.as_chunks_mut::<3>().0.iter_mut().zip(luma).for_each(|(pixel, v)| *pixel = [*v; 3]);
            return;
        };
        let (blues, reds) = (blue.line(y, most_v), red.line(y, most_v));
        let (blue_wide, red_wide) = (most_h / blue.h, most_h / red.h);
        for (x, pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let luma = f32::from(luma[x / wide]);
            let blue = f32::from(blues[x / blue_wide]) - 128.0;
            let red = f32::from(reds[x / red_wide]) - 128.0;
            let channels = [
                luma + 1.402 * red,
                luma - 0.344_136 * blue - 0.714_136 * red,
                luma + 1.772 * blue,
            ];
            *pixel = channels.map(|v| (v + 0.5) as u8);
        }
    }
}

/// Blocks of an MCU across and down, of the component that has the most.
fn most(planes: &[Plane]) -> (usize, usize) {
    let most = |of: fn(&Plane) -> usize| planes.iter().map(of).max().unwrap_or(1);
    (most(|p| p.h), most(|p| p.v))
}

fn read_quantisation(mut rest: &[u8], tables: &mut [Option<[f32; 64]>; 4]) -> Option<()> {
    while let Some((&head, more)) = rest.split_first() {
        let width = 1 + usize::from(head >> 4);
        let (values, more) = more.split_at_checked(64 * width)?;
        let value = |i: usize| match width {
            1 => f32::from(values[i]),
            _ => f32::from(u16::from_be_bytes([values[2 * i], values[2 * i + 1]])),
        };
        *tables.get_mut(usize::from(head & 15))? = (width <= 2).then(|| std::array::from_fn(value));
        rest = more;
    }
    Some(())
}

/// The coefficients of a block, times their factors; `None` if the data are damaged.
fn read_block(
    bits: &mut Bits,
    (dc, ac): (&Table, &Table),
    mean: &mut i32,
    factors: &[f32; 64],
) -> Option<[f32; 64]> {
    let mut block = [0.0; 64];
    let size = u32::from(bits.symbol(dc)?);
    *mean = mean.wrapping_add(signed(bits.take(size)?, size));
    block[0] = *mean as f32 * factors[0];
    let mut k = 1;
    while k < 64 {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 && run < 15 {
            break;
        }
        k += run;
        if size > 0 {
            let value = signed(bits.take(size)?, size);
            *block.get_mut(usize::from(*ZIGZAG.get(k)?))? = value as f32 * factors[k];
        }
        k += 1;
    }
    Some(block)
}

/// The number that `size` bits stand for: those with a leading 0 are negative.
fn signed(bits: u32, size: u32) -> i32 {
    match size {
        0 => 0,
        _ if bits >> (size - 1) == 0 => bits as i32 - (1 << size) + 1,
        _ => bits as i32,
    }
}

/// The pixels of a block, by the inverse cosine transform.
fn write_block(block: &[f32; 64], waves: &[[f32; 8]; 8], out: &mut [u8], stride: usize) {
    let byte = |v: f32| (v + 128.5) as u8;
    if block[1..].iter().all(|v| *v == 0.0) {
        let value = byte(block[0] / 8.0);
        (0..8).for_each(|y| out[y * stride..][..8].fill(value));
        return;
    }
    for y in 0..8 {
        let mut columns = [0f32; 8];
        for (v, row) in block.as_chunks::<8>().0.iter().enumerate() {
            columns.iter_mut().zip(row).for_each(|(sum, c)| *sum += waves[v][y] * c);
        }
        let mut pixels = [0f32; 8];
        for (wave, c) in waves.iter().zip(columns) {
            pixels.iter_mut().zip(wave).for_each(|(sum, w)| *sum += w * c);
        }
        out[y * stride..][..8].copy_from_slice(&pixels.map(byte));
    }
}
