//! The doors of `fuzz/` in every test run: the seeds, and seeded mutations of them. None may panic, hang, or ask for memory that a file of this size cannot mean.

use std::time::{Duration, Instant};

use flux_fast::pipeline::tokenizers::panic_is_caught;

use crate::common::in_own_process;

#[path = "../../fuzz/entries.rs"]
mod entries;

/// The names and entries of the fuzz targets.
/// What a fuzz target calls.
type Entry = fn(&[u8]);

const TARGETS: [(&str, Entry); 4] = [
    ("safetensors", entries::model),
    ("gguf", entries::gguf),
    ("lora_keys", entries::lora_keys),
    ("tokenizer_json", entries::tokenizer_json),
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

/// One to four changes of the kinds that damage and malice make.
fn mutate(bytes: &mut Vec<u8>, others: &[(String, Vec<u8>)], random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        // Most of a file is data; what is read closely stands at its start.
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
fn seeds_are_read_and_written_where_a_fuzzer_wants_them() {
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
    // Panics of the tokenizers' crate are caught and told as errors: no news.
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !panic_is_caught() {
            told(info);
        }
    }));
    for (target, entry) in TARGETS {
        let seeds = entries::seeds(target);
        let mut random = Random(11);
        let start = Instant::now();
        let before = address_space();
        let mut runs = 0;
        // The time is a bound for slow machines; the order is the same everywhere.
        while runs < 4000 && start.elapsed() < Duration::from_millis(1500) {
            let mut bytes = seeds[runs % seeds.len()].1.clone();
            mutate(&mut bytes, &seeds, &mut random);
            let begun = Instant::now();
            entry(&bytes);
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "{target}, run {runs}: {:?}",
                begun.elapsed()
            );
            runs += 1;
        }
        assert!(runs >= 20, "{target}: only {runs} runs");
        println!("{target}: {runs} runs");
        // Address space, not memory: also what was asked for and never touched counts. Threads' arenas reserve some hundred megabytes.
        let grown = address_space().saturating_sub(before);
        assert!(grown < 1 << 30, "{target}: {grown} bytes of address space");
    }
}

/// The most address space that this process ever had, in bytes.
fn address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmPeak:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
