//! How fast the weights of a block are read from a mapped file: with a warm and a cold page cache,
//! compared with a plain read and with memory.
//!
//! `FLUX_BENCH_BYTES` sets the size of the synthetic file (default 256 MB; at least 1000000000 for
//! numbers to publish). It consists of single blocks of FLUX.1's shapes in 8 bits, about 142 MB
//! each. Criterion prints bytes per second.

use std::hint::black_box;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flux_fast::library::{Files, open};
use flux_fast::spec::flux1::TRANSFORMER;
use flux_fast::tensor::{HostPart, HostWeight};
use flux_fast::weights::ComponentWeights;
use flux_fast::weights::synth::{Dialect, Grid, Storage, SynthSpec, write};

const HIDDEN: usize = 3072;

/// The matrices of a single block (canonical name's ending, rows, cols).
const BLOCK: [(&str, usize, usize); 3] = [
    ("linear1.weight", 7 * HIDDEN, HIDDEN),
    ("linear2.weight", HIDDEN, 5 * HIDDEN),
    ("modulation.lin.weight", 3 * HIDDEN, HIDDEN),
];

fn spec(blocks: usize) -> SynthSpec {
    let tensors = (0..blocks).flat_map(|i| {
        BLOCK.map(|(name, rows, cols)| {
            (TRANSFORMER, format!("single_blocks.{i}.{name}"), vec![rows, cols])
        })
    });
    SynthSpec {
        seed: 1,
        tensors: tensors.collect(),
        grid: Grid::F8,
        storage: Storage::F8ScaledNew,
        dialect: Dialect::Bfl,
        configs: serde_json::Value::Null,
    }
}

fn block(flux: &ComponentWeights, i: usize) -> Vec<HostWeight> {
    BLOCK
        .map(|(name, rows, cols)| {
            flux.get(&format!("single_blocks.{i}.{name}"), 0, rows, cols).unwrap()
        })
        .into()
}

fn parts(block: &[HostWeight]) -> impl Iterator<Item = &HostPart> {
    block.iter().flat_map(|w| &w.parts)
}

/// Copies a block's bytes to `staging`, as streaming does.
fn copy(block: &[HostWeight], staging: &mut [u8]) {
    let mut at = 0;
    for part in parts(block) {
        let bytes = part.bytes();
        staging[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    }
    black_box(staging);
}

/// Removes the file from the page cache.
#[cfg(target_os = "linux")]
fn evict(file: &std::fs::File, block: &[HostWeight]) {
    use std::os::fd::AsRawFd;
    for part in parts(block) {
        part.source.let_go(part.range());
    }
    // SAFETY: the descriptor is open, and the call is only advice.
    let refused = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(refused, 0);
}

#[cfg(not(target_os = "linux"))]
fn evict(_: &std::fs::File, block: &[HostWeight]) {
    parts(block).for_each(|p| p.source.let_go(p.range()));
}

fn stream(c: &mut Criterion) {
    let block_bytes: usize = BLOCK.iter().map(|(_, rows, cols)| rows * cols).sum();
    let wanted = std::env::var("FLUX_BENCH_BYTES")
        .ok()
        .and_then(|b| b.parse::<usize>().ok())
        .unwrap_or(256_000_000);
    let blocks = wanted.div_ceil(block_bytes);
    // In the build folder, because the system's temporary folder is often in memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("bench.safetensors");
    let start = Instant::now();
    write(&spec(blocks), &path).unwrap();
    let size = path.metadata().unwrap().len();
    eprintln!("made {size} bytes in {:.2} s", start.elapsed().as_secs_f64());
    let flux = open(&Files::model(&path)).unwrap().take(TRANSFORMER).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    file.sync_all().unwrap();

    let mut group = c.benchmark_group("stream");
    group
        .throughput(Throughput::Bytes(block_bytes as u64))
        .sample_size(10)
        .measurement_time(Duration::from_secs(3));
    let mut staging = vec![1u8; block_bytes];
    let source = vec![2u8; block_bytes];
    let mut turn = 0;
    let mut next = || {
        turn += 1;
        turn % blocks
    };

    group.bench_function("memcpy", |b| {
        b.iter(|| black_box(&mut staging).copy_from_slice(black_box(&source)))
    });
    for i in 0..blocks {
        copy(&block(&flux, i), &mut staging);
    }
    group.bench_function("map_hot", |b| b.iter(|| copy(&block(&flux, next()), &mut staging)));
    // The pages are cached but not mapped in this process: the cost of a block that was released.
    group.bench_function("map_let_go", |b| {
        b.iter_custom(|n| {
            timed(
                n,
                || {
                    let block = block(&flux, next());
                    parts(&block).for_each(|p| p.source.let_go(p.range()));
                    move |staging: &mut Vec<u8>| copy(&block, staging)
                },
                &mut staging,
            )
        })
    });
    group.bench_function("map_let_go_will_need", |b| {
        b.iter_custom(|n| {
            timed(
                n,
                || {
                    let block = block(&flux, next());
                    parts(&block).for_each(|p| p.source.let_go(p.range()));
                    move |staging: &mut Vec<u8>| {
                        parts(&block).for_each(|p| p.source.will_need(p.range()).unwrap());
                        copy(&block, staging);
                    }
                },
                &mut staging,
            )
        })
    });
    let read = |block: &[HostWeight], staging: &mut [u8]| {
        let mut at = 0;
        for part in parts(block) {
            let n = part.range().len();
            (&file).seek(SeekFrom::Start(part.offset as u64)).unwrap();
            (&file).read_exact(&mut staging[at..at + n]).unwrap();
            at += n;
        }
    };
    group.bench_function("read_hot", |b| b.iter(|| read(&block(&flux, next()), &mut staging)));
    group.bench_function("map_cold", |b| {
        b.iter_custom(|n| {
            timed(
                n,
                || {
                    let block = block(&flux, next());
                    evict(&file, &block);
                    move |staging: &mut Vec<u8>| copy(&block, staging)
                },
                &mut staging,
            )
        })
    });
    group.bench_function("map_cold_will_need", |b| {
        b.iter_custom(|n| {
            timed(
                n,
                || {
                    let block = block(&flux, next());
                    evict(&file, &block);
                    move |staging: &mut Vec<u8>| {
                        parts(&block).for_each(|p| p.source.will_need(p.range()).unwrap());
                        copy(&block, staging);
                    }
                },
                &mut staging,
            )
        })
    });
    group.bench_function("read_cold", |b| {
        b.iter_custom(|n| {
            timed(
                n,
                || {
                    let block = block(&flux, next());
                    evict(&file, &block);
                    let read = &read;
                    move |staging: &mut Vec<u8>| read(&block, staging)
                },
                &mut staging,
            )
        })
    });
    group.finish();
}

/// The time of `n` runs of the closure that `prepare` returns, without `prepare` itself.
fn timed<F: FnOnce(&mut Vec<u8>)>(
    n: u64,
    mut prepare: impl FnMut() -> F,
    staging: &mut Vec<u8>,
) -> Duration {
    (0..n)
        .map(|_| {
            let run = prepare();
            let start = Instant::now();
            run(staging);
            start.elapsed()
        })
        .sum()
}

criterion_group!(benches, stream);
criterion_main!(benches);
