//! The rates that kernels are compared with, measured on the device at hand.

use bytemuck::{Pod, Zeroable};

use super::backend::CudaBackend;
use super::driver::Buffer;
use super::launch::{Kernel, Launch};
use crate::error::Result;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rounds: u32,
    vectors: u32,
}

static MMA: Kernel = Kernel {
    module: "ceilings.sm80",
    entry: "ceiling_mma_bf16",
    buffers: 1,
    maps: 0,
    params: size_of::<Params>(),
    threads: 256,
    shared: 0,
};
static COPY: Kernel = Kernel {
    module: "ceilings.sm80",
    entry: "ceiling_copy",
    buffers: 2,
    maps: 0,
    params: size_of::<Params>(),
    threads: 256,
    shared: 0,
};

/// Every kernel of this family.
pub static KERNELS: [&Kernel; 2] = [&MMA, &COPY];

/// The highest rates of a device.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    /// BF16 multiply-adds with F32 accumulation by `mma.sync`, each counted as two operations, in
    /// 10^12 per second.
    pub teraflops: f64,
    /// Bytes read and written by a copy within device memory, in 10^9 per second.
    pub gigabytes: f64,
    /// Bytes copied from pinned host memory to the device, in 10^9 per second.
    pub upload_gigabytes: f64,
}

impl CudaBackend {
    /// Measures all three. Takes about a second, and 512 MB of device memory and 256 MB of pinned
    /// memory besides what is reserved.
    pub fn ceilings(&mut self) -> Result<Ceilings> {
        const BYTES: usize = 256 << 20;
        let from = Buffer::new(&self.context, BYTES)?;
        let to = Buffer::new(&self.context, BYTES)?;
        let blocks = self.choice.device.processors * 4;
        let rounds = 4096;
        let multiply = Launch {
            kernel: &MMA,
            grid: [blocks, 1, 1],
            buffers: vec![to.address],
            maps: vec![],
            params: bytemuck::bytes_of(&Params { rounds, vectors: 0 }).to_vec(),
        };
        let copy = Launch {
            kernel: &COPY,
            grid: [blocks * 2, 1, 1],
            buffers: vec![from.address, to.address],
            maps: vec![],
            params: bytemuck::bytes_of(&Params { rounds: 0, vectors: (BYTES / 16) as u32 })
                .to_vec(),
        };
        let flops = f64::from(blocks) * 8.0 * f64::from(rounds) * 16.0 * 4096.0;
        let teraflops = flops / self.fastest(&multiply)? / 1e12;
        let gigabytes = 2.0 * BYTES as f64 / self.fastest(&copy)? / 1e9;
        drop((from, to));
        let upload_gigabytes = BYTES as f64 / self.time_upload(BYTES)? / 1e9;
        Ok(Ceilings { teraflops, gigabytes, upload_gigabytes })
    }

    /// Seconds that the fastest of a few launches took.
    fn fastest(&mut self, launch: &Launch) -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = self.mark()?;
            self.launch(launch)?;
            let end = self.mark()?;
            best = best.min(self.seconds(&start, &end)?);
        }
        Ok(best)
    }
}
