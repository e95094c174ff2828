//! The cost of an access of a whole warp: wavefronts of shared memory, sectors of global memory.

/// Wavefronts that shared memory needs for lanes reading or writing `bytes` each, and the least
/// possible number. Accesses of 4 bytes or less are made by the whole warp together, those of 8
/// bytes by half warps, those of 16 bytes by quarter warps; equal words are read once.
pub(crate) fn wavefronts(addresses: &[u32; 32], mask: u32, bytes: usize) -> (u64, u64) {
    let group = match bytes {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    let (mut actual, mut ideal) = (0, 0);
    for first in (0..32).step_by(group) {
        let lanes = mask >> first & (u32::MAX >> (32 - group));
        if lanes == 0 {
            continue;
        }
        ideal += 1;
        actual += group_wavefronts(&addresses[first..first + group], lanes, bytes);
    }
    (actual, ideal)
}

fn group_wavefronts(addresses: &[u32], lanes: u32, bytes: usize) -> u64 {
    // If all lanes use different banks, one wavefront is enough.
    let words = bytes.div_ceil(4) as u32;
    let pattern = u32::MAX >> (32 - words);
    let (mut seen, mut clash) = (0u32, false);
    for (l, a) in addresses.iter().enumerate() {
        if lanes >> l & 1 == 1 {
            let banks = pattern.rotate_left(a / 4 % 32);
            clash |= seen & banks != 0;
            seen |= banks;
        }
    }
    if !clash {
        return 1;
    }
    let mut touched: Vec<u32> = vec![];
    for (l, a) in addresses.iter().enumerate() {
        if lanes >> l & 1 == 1 {
            touched.extend((0..words).map(|w| a / 4 + w));
        }
    }
    touched.sort_unstable();
    touched.dedup();
    let mut counts = [0u64; 32];
    touched.iter().for_each(|w| counts[(w % 32) as usize] += 1);
    counts.into_iter().max().unwrap_or(1)
}

/// Sectors of 32 bytes that lanes access in global memory, and how many would be enough for as many
/// bytes.
pub(crate) fn sectors(addresses: &[u64; 32], mask: u32, bytes: u64) -> (u64, u64) {
    let mut sorted = [0u64; 32];
    let mut n = 0;
    let mut in_order = true;
    for l in 0..32 {
        if mask >> l & 1 == 1 {
            sorted[n] = addresses[l];
            in_order &= n == 0 || sorted[n - 1] <= sorted[n];
            n += 1;
        }
    }
    let sorted = &mut sorted[..n];
    if !in_order {
        sorted.sort_unstable();
    }
    // `next` is the first sector that is not counted yet, `end` the first byte that is not accessed
    // yet.
    let (mut count, mut next, mut wanted, mut end) = (0, 0, 0, 0);
    for &a in sorted.iter() {
        let (first, last) = (a / 32, (a + bytes - 1) / 32);
        let from = first.max(next);
        if last + 1 > from {
            count += last + 1 - from;
            next = last + 1;
        }
        let from = a.max(end);
        if a + bytes > from {
            wanted += a + bytes - from;
            end = a + bytes;
        }
    }
    (count, wanted.div_ceil(32))
}
