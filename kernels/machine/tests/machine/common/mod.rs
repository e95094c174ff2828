//! Small kernels, and device memory to run them on.
#![allow(dead_code)]

use ptx_machine::{Fault, Launch, Memory, Module, Options, Report, run};

/// A PTX file with one kernel `k` with this many addresses as parameters, `%p0`, `%p1` and so on,
/// and has the registers that tests use.
pub fn kernel(addresses: usize, directives: &str, body: &str) -> String {
    let params: Vec<String> = (0..addresses).map(|i| format!(".param .u64 k_param_{i}")).collect();
    let loads: String =
        (0..addresses).map(|i| format!("ld.param.u64 %p{i}, [k_param_{i}];\n")).collect();
    format!(
        ".version 8.4\n.target sm_90a\n.address_size 64\n{directives}\n.visible .entry k(\n{}\n)\n{{\n\
         .reg .pred %q<16>;\n.reg .b16 %h<32>;\n.reg .b32 %r<64>;\n.reg .f32 %f<300>;\n.reg .b64 %d<32>;\n.reg .f64 %g<8>;\n.reg .b64 %p<8>;\n\
         {loads}{body}\nret;\n}}\n",
        params.join(",\n")
    )
}

/// Buffers in device memory with red zones between them.
pub struct Lab {
    pub memory: Memory,
    held: Vec<(u64, Vec<u8>)>,
    next: u64,
}

impl Lab {
    pub fn new() -> Lab {
        Lab { memory: Memory::new(), held: vec![], next: 0x7f00_0000_0000 }
    }

    pub fn buffer(&mut self, bytes: Vec<u8>) -> u64 {
        let address = self.next;
        self.next += (bytes.len() as u64 + 4096).next_multiple_of(1024);
        self.held.push((address, bytes));
        let held = &mut self.held.last_mut().unwrap().1;
        // SAFETY: the bytes live as long as the memory and are not moved.
        unsafe { self.memory.map(address, held.as_mut_ptr(), held.len()) };
        address
    }

    pub fn words(&mut self, words: impl IntoIterator<Item = u32>) -> u64 {
        self.buffer(words.into_iter().flat_map(u32::to_le_bytes).collect())
    }

    pub fn bytes(&self, address: u64) -> &[u8] {
        &self.held.iter().find(|h| h.0 == address).unwrap().1
    }

    pub fn read(&self, address: u64) -> Vec<u32> {
        self.bytes(address)
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    /// Runs a kernel made by `kernel`, whose dynamic shared memory is `shared` bytes.
    pub fn run(
        &self,
        text: &str,
        grid: u32,
        threads: u32,
        shared: usize,
        addresses: &[u64],
    ) -> Result<Report, Fault> {
        let params: Vec<u8> = addresses.iter().flat_map(|a| a.to_le_bytes()).collect();
        self.run_with(text, grid, threads, shared, &params)
    }

    pub fn run_with(
        &self,
        text: &str,
        grid: u32,
        threads: u32,
        shared: usize,
        params: &[u8],
    ) -> Result<Report, Fault> {
        let module = Module::parse(text).unwrap_or_else(|e| panic!("{e}"));
        let entry = module.entry("k").unwrap();
        let launch = Launch { entry, grid: [grid, 1, 1], block: [threads, 1, 1], shared, params };
        run(&launch, &self.memory, &Options::default())
    }
}

/// Executes instructions with a warp: `%a`, `%b`, `%c`, `%e` are the inputs of lanes, of these
/// types; the result is `%o`.
pub fn eval(code: &str, out: &str, inputs: &[(&str, Vec<u64>)]) -> Vec<u64> {
    let mut lab = Lab::new();
    let mut body = String::new();
    let mut addresses = vec![];
    let lane = "mov.u32 %r60, %laneid; mul.wide.u32 %d30, %r60, 8;\n";
    body.push_str(lane);
    for (i, ((ty, values), name)) in inputs.iter().zip(["%a", "%b", "%c", "%e"]).enumerate() {
        assert_eq!(values.len(), 32);
        addresses.push(lab.buffer(values.iter().flat_map(|v| v.to_le_bytes()).collect()));
        body.push_str(&format!(
            ".reg .{ty} {name};\nadd.u64 %d31, %p{i}, %d30;\nld.global.{ty} {name}, [%d31];\n"
        ));
    }
    let n = inputs.len();
    let result = lab.buffer(vec![0; 256]);
    addresses.push(result);
    body.push_str(&format!(
        ".reg .{out} %o;\n{code}\nadd.u64 %d31, %p{n}, %d30;\nst.global.{out} [%d31], %o;\n"
    ));
    let report =
        lab.run(&kernel(n + 1, "", &body), 1, 32, 0, &addresses).unwrap_or_else(|f| panic!("{f}"));
    assert!(report.clean(), "{report}");
    lab.bytes(result).chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Pseudo-random numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let x = self.0 ^ self.0 >> 29;
        x.wrapping_mul(0xbf58476d1ce4e5b9) ^ x >> 32
    }

    pub fn words(&mut self) -> Vec<u64> {
        (0..32).map(|_| self.next() & 0xffff_ffff).collect()
    }

    /// In -1 .. 1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
