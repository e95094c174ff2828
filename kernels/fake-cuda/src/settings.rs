//! The devices and their behaviour: `key=value` pairs, separated by commas or lines.

use crate::status::*;

/// One kind of device. `key.N=value` changes the N-th of the presets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    pub capability: (u32, u32),
    /// Memory in bytes.
    pub memory: u64,
    /// How many of these bytes other programs use.
    pub taken: u64,
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Shared memory that one block may opt in to, in bytes.
    pub shared: u32,
    /// L2 cache in bytes.
    pub l2: u64,
}

/// When queued operations run; see `stream.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Only when something waits for them, kernels before copies.
    Late,
    /// Copies as soon as possible, kernels as in `Late`.
    Early,
    /// In any order that the program allows, by this seed.
    Random(u64),
    /// Within the call that queues them.
    Blocking,
}

/// The kind of call that an injected error affects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Init,
    Context,
    Alloc,
    Host,
    Copy,
    Launch,
    Module,
}

/// Counts down to an injected error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    /// How many more calls until the error; zero after it.
    pub left: u64,
    pub code: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub specs: Vec<Spec>,
    /// The presets that exist, in the order of their ordinals.
    pub visible: Vec<usize>,
    /// The result of `cuDriverGetVersion`; it decides which PTX versions load.
    pub driver: i32,
    /// Device memory that a context uses, in bytes.
    pub context: u64,
    /// How many bytes of host memory may be pinned.
    pub pinned: u64,
    pub order: Order,
    /// How often an event or a stream is polled before its operations are run.
    pub polls: u32,
    /// Whether kernels run or are only counted.
    pub kernels: bool,
    /// Whether copies of 1 MiB and more to and within the device run or are only counted.
    pub copies: bool,
    /// Whether the PTX machine looks for races, bank conflicts and the like.
    pub checks: bool,
    /// Whether tensor cores add as those of the device do, or exactly but for each rounding.
    pub hardware_sums: bool,
    pub log: bool,
    /// Whether new memory reads as NaN; otherwise as zero.
    pub poison: bool,
    /// The file that the report is written to when the last context of a device is released.
    pub report: Option<String>,
    pub fail: Vec<Failure>,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Default for Settings {
    fn default() -> Settings {
        let spec = |name: &str, capability, memory, processors, shared, l2| {
            let name = name.to_string();
            Spec { name, capability, memory, taken: 0, processors, shared, l2 }
        };
        Settings {
            specs: vec![
                spec("Fake RTX 3060", (8, 6), 12 * GIB, 28, 101_376, 3 * MIB),
                spec("Fake RTX 4060", (8, 9), 8 * GIB, 24, 101_376, 24 * MIB),
                spec("Fake H100", (9, 0), 80 * GIB, 132, 232_448, 50 * MIB),
                spec("Fake RTX 2060", (7, 5), 6 * GIB, 30, 65_536, 3 * MIB),
            ],
            visible: vec![0, 1, 2, 3],
            driver: 12080,
            context: 300 * MIB,
            pinned: 64 * GIB,
            order: Order::Late,
            polls: 3,
            kernels: true,
            copies: true,
            checks: true,
            hardware_sums: false,
            log: false,
            poison: true,
            report: None,
            fail: Vec::new(),
        }
    }
}

impl Settings {
    /// Applies `text` in addition to the current settings. If any part is wrong, nothing changes.
    /// `default` resets everything.
    pub fn apply(&mut self, text: &str) -> Result<(), String> {
        let mut new = self.clone();
        for word in text.split([',', '\n']).map(str::trim).filter(|w| !w.is_empty()) {
            if word == "default" {
                new = Settings::default();
                continue;
            }
            let (key, value) =
                word.split_once('=').ok_or_else(|| format!("{word:?} is not key=value"))?;
            new.set(key.trim(), value.trim()).map_err(|e| format!("{word}: {e}"))?;
        }
        *self = new;
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        if let Some((key, index)) = key.split_once('.') {
            let index = number(index)? as usize;
            let spec = self.specs.get_mut(index).ok_or("no such preset")?;
            return spec.set(key, value);
        }
        match key {
            "visible" => {
                let numbers: Result<Vec<u64>, String> =
                    value.split('+').filter(|v| !v.is_empty()).map(number).collect();
                let visible: Vec<usize> = numbers?.into_iter().map(|n| n as usize).collect();
                if visible.iter().any(|&n| n >= self.specs.len()) {
                    return Err("no such preset".into());
                }
                self.visible = visible;
            }
            "driver" => self.driver = number(value)? as i32,
            "context" => self.context = size(value)?,
            "pinned" => self.pinned = size(value)?,
            "order" => self.order = order(value)?,
            "late" => self.order = if switch(value)? { Order::Late } else { Order::Blocking },
            "polls" => self.polls = number(value)? as u32,
            "kernels" => self.kernels = run_or_skip(value)?,
            "copies" => self.copies = run_or_skip(value)?,
            "checks" => self.checks = switch(value)?,
            "sums" => {
                self.hardware_sums = match value {
                    "hardware" => true,
                    "nearest" => false,
                    _ => return Err("must be hardware or nearest".into()),
                }
            }
            "log" => self.log = switch(value)?,
            "poison" => self.poison = switch(value)?,
            "report" => self.report = Some(value.to_string()),
            "fail" => self.fail.push(failure(value)?),
            _ => return Err("no such setting".into()),
        }
        Ok(())
    }

    /// The code with which this call fails, if an injected error is due.
    pub fn strike(&mut self, kind: Kind) -> Option<i32> {
        let mut struck = None;
        for f in self.fail.iter_mut().filter(|f| f.kind == kind && f.left > 0) {
            f.left -= 1;
            if f.left == 0 {
                struck = Some(f.code);
            }
        }
        self.fail.retain(|f| f.left > 0);
        struck
    }
}

impl Spec {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "name" => self.name = value.to_string(),
            "capability" => {
                let (major, minor) =
                    value.split_once('.').ok_or("a capability must be written like 8.6")?;
                self.capability = (number(major)? as u32, number(minor)? as u32);
            }
            "memory" => self.memory = size(value)?,
            "taken" => self.taken = size(value)?,
            "sms" => self.processors = number(value)? as u32,
            "shared" => self.shared = size(value)? as u32,
            "l2" => self.l2 = size(value)?,
            _ => return Err("no such setting of a device".into()),
        }
        Ok(())
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

/// `300M`, `12G`, `64K` or bytes.
fn size(text: &str) -> Result<u64, String> {
    let unit = match text.as_bytes().last() {
        Some(b'K') => KIB,
        Some(b'M') => MIB,
        Some(b'G') => GIB,
        _ => return number(text),
    };
    number(&text[..text.len() - 1])?
        .checked_mul(unit)
        .ok_or_else(|| format!("{text:?} is too large"))
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err("must be 0 or 1".into()),
    }
}

fn run_or_skip(text: &str) -> Result<bool, String> {
    match text {
        "run" => Ok(true),
        "skip" => Ok(false),
        _ => Err("must be run or skip".into()),
    }
}

fn order(text: &str) -> Result<Order, String> {
    match text.split_once(':').unwrap_or((text, "1")) {
        ("late", _) => Ok(Order::Late),
        ("early", _) => Ok(Order::Early),
        ("blocking", _) => Ok(Order::Blocking),
        ("random", seed) => Ok(Order::Random(number(seed)?)),
        _ => Err("must be late, early, random:SEED or blocking".into()),
    }
}

/// `kind:count` or `kind:count:code`.
fn failure(text: &str) -> Result<Failure, String> {
    let mut parts = text.split(':');
    let (kind, code) = match parts.next().unwrap_or_default() {
        "init" => (Kind::Init, UNKNOWN.0),
        "context" => (Kind::Context, OUT_OF_MEMORY.0),
        "alloc" => (Kind::Alloc, OUT_OF_MEMORY.0),
        "host" => (Kind::Host, OUT_OF_MEMORY.0),
        "copy" => (Kind::Copy, ECC_UNCORRECTABLE.0),
        "launch" => (Kind::Launch, LAUNCH_FAILED.0),
        "module" => (Kind::Module, INVALID_PTX.0),
        other => return Err(format!("{other:?} cannot be made to fail")),
    };
    let left = number(parts.next().ok_or("must be kind:count or kind:count:code")?)?;
    let code = parts.next().map_or(Ok(code), |c| number(c).map(|c| c as i32))?;
    if left == 0 || describe(code).is_none() || code == 0 {
        return Err(
            "the count starts at 1, and the code must be one that the fake driver knows".into()
        );
    }
    Ok(Failure { kind, left, code })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_devices_and_failures_are_read() {
        let mut s = Settings::default();
        s.apply("memory.0=1G, name.0=My card,kernels=skip,late=1\ncontext=300M,fail=alloc:3,visible=2+0").unwrap();
        assert_eq!(
            (s.specs[0].memory, s.specs[0].name.as_str(), s.kernels),
            (GIB, "My card", false)
        );
        assert_eq!((s.visible.as_slice(), s.order), (&[2, 0][..], Order::Late));
        assert_eq!([s.strike(Kind::Alloc), s.strike(Kind::Copy), s.strike(Kind::Alloc)], [None; 3]);
        assert_eq!((s.strike(Kind::Alloc), s.strike(Kind::Alloc)), (Some(2), None));
        s.apply("default").unwrap();
        assert_eq!(s, Settings::default());
    }

    #[test]
    fn what_is_wrong_changes_nothing() {
        let mut s = Settings::default();
        for text in [
            "memory.0=1G,nonsense",
            "memory.9=1G",
            "order=soon",
            "fail=alloc:0",
            "fail=alloc:1:12345",
            "late=2",
        ] {
            assert!(s.apply(text).is_err(), "{text}");
            assert_eq!(s, Settings::default());
        }
    }
}
