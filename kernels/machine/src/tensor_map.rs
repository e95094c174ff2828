//! Descriptors of matrices for copies of boxes by TMA.

/// A matrix in device memory, and the box that TMA copies. For the machine a descriptor is these
/// fields, not the format of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap {
    /// A multiple of 16.
    pub address: u64,
    pub rows: u64,
    pub cols: u64,
    /// Bytes from row to row, a multiple of 16.
    pub pitch: u64,
    pub element_bytes: u32,
    pub box_rows: u32,
    pub box_cols: u32,
    /// Bytes of the swizzle: 0 (none), 32, 64 or 128.
    pub swizzle: u32,
}

const MAGIC: u64 = 0x70614d726f736e54;

impl TensorMap {
    /// The 128 bytes that a kernel receives.
    pub fn encode(&self) -> [u8; 128] {
        let mut out = [0; 128];
        let doubles = [MAGIC, self.address, self.rows, self.cols, self.pitch];
        let words = [self.element_bytes, self.box_rows, self.box_cols, self.swizzle];
        for (to, x) in out.chunks_exact_mut(8).zip(doubles) {
            to.copy_from_slice(&x.to_le_bytes());
        }
        for (to, x) in out[40..].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&x.to_le_bytes());
        }
        out
    }

    /// Reads the bytes that `encode` wrote; `None` for other bytes.
    pub fn decode(bytes: &[u8; 128]) -> Option<TensorMap> {
        let double = |i: usize| u64::from_le_bytes(std::array::from_fn(|j| bytes[8 * i + j]));
        let word = |i: usize| u32::from_le_bytes(std::array::from_fn(|j| bytes[40 + 4 * i + j]));
        (double(0) == MAGIC).then(|| TensorMap {
            address: double(1),
            rows: double(2),
            cols: double(3),
            pitch: double(4),
            element_bytes: word(0),
            box_rows: word(1),
            box_cols: word(2),
            swizzle: word(3),
        })
    }
}
