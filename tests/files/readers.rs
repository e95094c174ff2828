//! The entry points of `fuzz/` in every test run: the seeds, and a fixed number of seeded mutations
//! of them. No input may cause a panic, or an allocation far larger than a file of this size can
//! need.

use flux_fast::pipeline::tokenizers::panic_is_caught;

use crate::common::in_own_process;

#[path = "../../fuzz/entries.rs"]
mod entries;

/// What a fuzz target calls.
type Entry = fn(&[u8]);

/// The fuzz targets by name.
const TARGETS: [(&str, Entry); 5] = [
    ("safetensors", entries::model),
    ("gguf", entries::gguf),
    ("lora_keys", entries::lora_keys),
    ("tokenizer_json", entries::tokenizer_json),
    ("image_settings", entries::image_settings),
];

/// Splitmix64: the same mutations in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Makes one to four changes, of the kinds that damage and attacks make.
fn mutate(bytes: &mut Vec<u8>, others: &[(String, Vec<u8>)], random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        // Most of a file is data; the parsed part is at its start.
        let near = if random.below(4) > 0 { bytes.len().min(2048) } else { bytes.len() };
        let at = random.below(near);
        let run = (1 + random.below(16)).min(bytes.len().saturating_sub(at));
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + run)),
            2 => bytes.splice(at..at, std::iter::repeat_n(b'0', run)).for_each(drop),
            3 => {
                let number = [0, 1, 1 << 30, 1 << 62, u64::MAX, u64::from(u32::MAX), 9, 255]
                    [random.below(8)]
                .to_le_bytes();
                bytes.iter_mut().skip(at).zip(number).for_each(|(b, n)| *b = n);
            }
            4 => bytes
                .iter_mut()
                .skip(at)
                .take(run)
                .for_each(|b| *b = b"0123456789-,:[]{}\"\\e."[usize::from(*b) % 21]),
            5 => {
                let other = &others[random.below(others.len())].1;
                let from = random.below(other.len());
                let piece = other[from..other.len().min(from + 4 * run)].to_vec();
                bytes.splice(at..at, piece).for_each(drop);
            }
            _ => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << random.below(8)),
        }
    }
}

#[test]
fn seeds_are_read_and_written_for_the_fuzzer() {
    let folder = std::env::var_os("FLUX_FAST_SEEDS").map(std::path::PathBuf::from);
    for (target, entry) in TARGETS {
        let seeds = entries::seeds(target);
        assert!(seeds.len() >= 3, "{target}");
        for (name, bytes) in seeds {
            entry(&bytes);
            if let Some(folder) = folder.as_ref().map(|f| f.join(target)) {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join(name), bytes).unwrap();
            }
        }
    }
}

#[test]
fn mutated_files_never_panic() {
    if !in_own_process("readers::mutated_files_never_panic") {
        return;
    }
    // Panics of the `tokenizers` crate are caught and become errors: do not print them.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !panic_is_caught() {
            print(info);
        }
    }));
    for (target, entry) in TARGETS {
        let seeds = entries::seeds(target);
        let mut random = Random(11);
        let before = address_space();
        for run in 0..4000 {
            let mut bytes = seeds[run % seeds.len()].1.clone();
            mutate(&mut bytes, &seeds, &mut random);
            entry(&bytes);
        }
        // Address space, not memory: allocations that are never touched count, too. The arenas of
        // threads reserve some hundred megabytes.
        let grown = address_space().saturating_sub(before);
        assert!(grown < 1 << 30, "{target}: {grown} bytes of address space");
    }
}

/// Peak address space of this process, in bytes.
fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmPeak:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
