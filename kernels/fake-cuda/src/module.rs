//! Modules, functions, and whether a launch is allowed.

use crate::device::Processor;
use crate::driver::{Driver, Id};
use crate::settings::Kind;
use crate::status::*;
use std::collections::HashMap;
use std::sync::Arc;

/// Shared memory that a block may use without opting in, in bytes.
pub const SHARED_DEFAULT: u32 = 48 << 10;

pub struct Module {
    pub context: Id,
    image: Arc<Image>,
    /// Functions that were looked up.
    functions: HashMap<String, Id>,
}

/// PTX that a device has accepted.
pub struct Image {
    ptx: ptx_machine::Module,
    /// The value of `.minnctapersm`, by kernel.
    min_blocks: HashMap<String, u32>,
}

pub struct Function {
    pub context: Id,
    pub name: Arc<str>,
    image: Arc<Image>,
    /// Dynamic shared memory that a launch may have, in bytes.
    pub dynamic: u32,
    pub carveout: i32,
}

/// A launch that has been checked.
pub struct Launch {
    pub name: Arc<str>,
    image: Arc<Image>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
    /// Bytes of the parameters, as they were at the call.
    pub params: Vec<u8>,
}

impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "{} grid={:?} block={:?} shared={}",
            self.name, self.grid, self.block, self.shared
        )
    }
}

impl Launch {
    pub fn entry(&self) -> &ptx_machine::Entry {
        self.image.entry(&self.name)
    }
}

impl Image {
    fn entry(&self, name: &str) -> &ptx_machine::Entry {
        self.ptx.entry(name).expect("functions are looked up before they are stored")
    }
}

/// The newest PTX that a driver reads, such as (8, 7), by its CUDA version.
fn newest_ptx(driver: i32) -> (u32, u32) {
    match driver {
        ..11080 => (7, 0),
        11080..12000 => (7, 8),
        12000..12050 => (8, (driver as u32 - 12000) / 10),
        12050..12080 => (8, 5),
        12080..12090 => (8, 7),
        12090..13000 => (8, 8),
        _ => (9, 0),
    }
}

/// `sm_90a` as ((9, 0), true).
fn target(text: &str) -> Option<((u32, u32), bool)> {
    let digits = text.split(',').next()?.trim().strip_prefix("sm_")?;
    let exact = digits.ends_with(['a', 'f']);
    let number: u32 = digits.trim_end_matches(['a', 'f']).parse().ok()?;
    Some(((number / 10, number % 10), exact))
}

/// Finds `.minnctapersm` between the names of kernels and their bodies.
fn min_blocks(text: &str) -> HashMap<String, u32> {
    let mut found = HashMap::new();
    for part in text.split(".entry").skip(1) {
        let head = part.split('{').next().unwrap_or_default();
        let name = head
            .trim_start()
            .split(|c: char| c == '(' || c.is_whitespace())
            .next()
            .unwrap_or_default();
        if let Some((_, after)) = head.split_once(".minnctapersm") {
            let number: String =
                after.trim_start().chars().take_while(char::is_ascii_digit).collect();
            found.extend(number.parse().ok().map(|n| (name.to_string(), n)));
        }
    }
    found
}

impl Image {
    /// Compiles PTX for a device, or returns the reason why that is not possible.
    fn compile(text: &str, capability: (u32, u32), driver: i32) -> Result<Image, (Code, String)> {
        let ptx = ptx_machine::Module::parse(text).map_err(|e| (INVALID_PTX, e.to_string()))?;
        let newest = newest_ptx(driver);
        let version = ptx
            .version()
            .split_once('.')
            .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let version: (u32, u32) =
            version.ok_or_else(|| (INVALID_PTX, "no .version".to_string()))?;
        if version > newest {
            let why = format!(
                ".version {}.{} is newer than {}.{}",
                version.0, version.1, newest.0, newest.1
            );
            return Err((UNSUPPORTED_PTX_VERSION, why));
        }
        let (wanted, exact) =
            target(ptx.target()).ok_or_else(|| (INVALID_PTX, "no .target".to_string()))?;
        if capability < wanted || (exact && capability != wanted) {
            let why = format!(
                ".target {} does not run on sm_{}{}",
                ptx.target(),
                capability.0,
                capability.1
            );
            return Err((NO_BINARY_FOR_GPU, why));
        }
        Ok(Image { ptx, min_blocks: min_blocks(text) })
    }
}

impl Driver {
    /// Loads PTX. If that fails, the second part of the error goes into the JIT compiler's log.
    pub fn load(&mut self, context: Id, text: &str) -> Result<Id, (Code, String)> {
        self.forbid_capture().map_err(|code| (code, String::new()))?;
        if let Some(code) = self.settings.strike(Kind::Module) {
            return Err((Code(code), "an injected error".to_string()));
        }
        let driver = self.settings.driver;
        let image = Image::compile(text, self.device_of(context).spec.capability, driver)?;
        let id = self.new_id();
        self.modules
            .insert(id, Module { context, image: Arc::new(image), functions: HashMap::new() });
        Ok(id)
    }

    pub fn unload(&mut self, module: Id) -> Outcome {
        let module = self.modules.remove(&module).ok_or(INVALID_HANDLE)?;
        for function in module.functions.values() {
            self.functions.remove(function);
        }
        Ok(())
    }

    /// The function of a module by its name; the same handle each time.
    pub fn function_of(&mut self, context: Id, module: Id, name: &str) -> Outcome<Id> {
        let id = self.new_id();
        let module =
            self.modules.get_mut(&module).filter(|m| m.context == context).ok_or(INVALID_HANDLE)?;
        if let Some(&known) = module.functions.get(name) {
            return Ok(known);
        }
        let fixed = module.image.ptx.entry(name).ok_or(NOT_FOUND)?.shared_bytes() as u32;
        let dynamic = SHARED_DEFAULT.saturating_sub(fixed);
        let image = module.image.clone();
        module.functions.insert(name.to_string(), id);
        self.functions
            .insert(id, Function { context, name: name.into(), image, dynamic, carveout: -1 });
        Ok(id)
    }

    pub fn function(&mut self, context: Id, handle: Id) -> Outcome<&mut Function> {
        self.functions.get_mut(&handle).filter(|f| f.context == context).ok_or(INVALID_HANDLE)
    }

    /// Sets a `CUfunction_attribute`.
    pub fn set_attribute(&mut self, context: Id, function: Id, which: i32, value: i32) -> Outcome {
        let limit = self.device_of(context).spec.shared;
        let f = self.function(context, function)?;
        match which {
            8 => {
                let value = u32::try_from(value).map_err(|_| INVALID_VALUE)?;
                if value.saturating_add(f.fixed()) > limit {
                    return Err(INVALID_VALUE);
                }
                f.dynamic = value;
            }
            9 if (-1..=100).contains(&value) => f.carveout = value,
            _ => return Err(INVALID_VALUE),
        }
        Ok(())
    }

    /// Checks a launch as the driver does and takes its parameters. `read` copies a parameter, by
    /// index and size.
    pub fn check_launch(
        &mut self,
        context: Id,
        function: Id,
        [grid, block]: [[u32; 3]; 2],
        shared: u32,
        read: impl Fn(usize, &mut [u8]) -> Outcome,
    ) -> Outcome<Launch> {
        let f = self.function(context, function)?;
        let entry = f.image.entry(&f.name);
        let refuse = |code: Code, why: &str| {
            eprintln!(
                "fake-cuda: a launch of {} is refused: {why} (grid {grid:?}, block {block:?})",
                f.name
            );
            Err(code)
        };
        if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1] > 65_535 || grid[2] > 65_535 {
            return refuse(INVALID_VALUE, "the grid must be within 1 to 2147483647, 65535, 65535");
        }
        let threads = block.iter().map(|&b| u64::from(b)).product::<u64>();
        if block.contains(&0)
            || block[0] > 1024
            || block[1] > 1024
            || block[2] > 64
            || threads > 1024
        {
            return refuse(
                INVALID_VALUE,
                "the block must be within 1 to 1024, 1024, 64 and have at most 1024 threads",
            );
        }
        if entry.max_threads().is_some_and(|m| threads > u64::from(m)) {
            return refuse(LAUNCH_OUT_OF_RESOURCES, "the kernel was compiled for smaller blocks");
        }
        if shared > f.dynamic {
            let why = format!(
                "{shared} bytes of dynamic shared memory, of which {} are allowed",
                f.dynamic
            );
            return refuse(INVALID_VALUE, &why);
        }
        let mut params = vec![0; entry.params_bytes()];
        for (i, p) in entry.params().iter().enumerate() {
            read(i, &mut params[p.offset..p.offset + p.bytes])?;
        }
        Ok(Launch { name: f.name.clone(), image: f.image.clone(), grid, block, shared, params })
    }
}

impl Function {
    fn entry(&self) -> &ptx_machine::Entry {
        self.image.entry(&self.name)
    }

    /// The offset of each parameter in the parameter bytes.
    pub fn offsets(&self) -> Vec<usize> {
        self.entry().params().iter().map(|p| p.offset).collect()
    }

    /// Static shared memory in bytes.
    pub fn fixed(&self) -> u32 {
        self.entry().shared_bytes() as u32
    }

    pub fn max_threads(&self) -> u32 {
        self.entry().max_threads().unwrap_or(1024)
    }

    /// PTX does not contain the number of registers per thread; this is how many the launch bounds
    /// allow.
    pub fn registers(&self) -> u32 {
        let blocks = self.image.min_blocks.get(&*self.name).copied().unwrap_or(1);
        (65_536 / (self.max_threads() * blocks.max(1)).max(1) / 8 * 8).min(255)
    }

    /// The capability in `.target`, as 86.
    pub fn version(&self) -> i32 {
        target(self.image.ptx.target()).map_or(0, |((major, minor), _)| (major * 10 + minor) as i32)
    }

    /// How many blocks share a multiprocessor.
    pub fn occupancy(&self, p: Processor, threads: u32, shared: u32) -> i32 {
        if threads == 0 || threads > self.max_threads() || shared > self.dynamic {
            return 0;
        }
        let threads = threads.next_multiple_of(32) as i32;
        let by_shared = p.shared / (self.fixed() + shared + 1024) as i32;
        let by_registers = p.registers / (self.registers() as i32 * threads);
        p.blocks.min(p.threads / threads).min(by_shared).min(by_registers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_versions_are_compared() {
        assert_eq!(target("sm_90a"), Some(((9, 0), true)));
        assert_eq!(target("sm_120, texmode_independent"), Some(((12, 0), false)));
        assert_eq!(target("compute"), None);
        let newest: Vec<_> = [11080, 12000, 12040, 12060, 12080, 13000].map(newest_ptx).into();
        assert_eq!(newest, [(7, 8), (8, 0), (8, 4), (8, 5), (8, 7), (9, 0)]);
        let text = ".visible .entry a(\n.param .u64 a_0\n)\n.maxntid 256, 1, 1\n.minnctapersm 2\n{ }\n.entry b() { }";
        assert_eq!(min_blocks(text), HashMap::from([("a".to_string(), 2)]));
    }
}
