//! mbarriers and the copy engine (TMA), with deliberate bugs.

use crate::common::{Lab, kernel};
use ptx_machine::{FaultKind, Report, TensorMap};

const BOX: &str = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes";

/// Waits for a parity of the barrier at an address.
fn wait(barrier: u32, parity: &str) -> String {
    format!(
        "{{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [{barrier}], {parity}; @!p bra again; }}"
    )
}

/// Code for all threads that copies `bytes` of shared memory from offset 2048 to `%p1`.
fn dump(bytes: u32, threads: u32) -> String {
    format!(
        "mov.u32 %r0, %tid.x; shl.b32 %r0, %r0, 2;
         $dump: setp.ge.u32 %q0, %r0, {bytes}; @%q0 bra $dumped; add.u32 %r1, %r0, 2048; ld.shared.u32 %r2, [%r1]; cvt.u64.u32 %d0, %r0;
         add.u64 %d1, %p1, %d0; st.global.u32 [%d1], %r2; add.u32 %r0, %r0, {}; bra $dump; $dumped:",
        threads * 4
    )
}

/// A matrix of 16-bit numbers `row * 256 + col`, with a gap after each row.
fn matrix(
    lab: &mut Lab,
    rows: u64,
    cols: u64,
    swizzle: u32,
    box_rows: u32,
    box_cols: u32,
) -> TensorMap {
    let pitch = (cols * 2 + 16).next_multiple_of(16);
    let mut bytes = vec![0xee; (rows * pitch) as usize];
    for r in 0..rows {
        for c in 0..cols {
            let at = (r * pitch + c * 2) as usize;
            bytes[at..at + 2].copy_from_slice(&((r * 256 + c) as u16).to_le_bytes());
        }
    }
    TensorMap {
        address: lab.buffer(bytes),
        rows,
        cols,
        pitch,
        element_bytes: 2,
        box_rows,
        box_cols,
        swizzle,
    }
}

/// The instructions of thread 0 to load a box.
fn load(column: i32, row: i32, bytes: u32, fence: &str) -> String {
    format!(
        "mov.u32 %r0, %tid.x; setp.ne.u32 %q0, %r0, 0; @%q0 bra $issued;
         mbarrier.init.shared::cta.b64 [1024], 1; {fence}
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [1024], {bytes};
         mov.u32 %r1, {column}; mov.u32 %r2, {row};
         {BOX} [2048], [%p0, {{%r1, %r2}}], [1024];
         $issued: bar.sync 0;"
    )
}

const FENCE: &str = "fence.proxy.async.shared::cta;";

#[test]
fn boxes_arrive_swizzled_and_filled_with_zeros() {
    // The chunk of 16 bytes to which a swizzle moves chunk c of row r.
    for (swizzle, cols) in [(0u32, 64u32), (32, 16), (64, 32), (128, 64)] {
        for (column, row) in [(0i32, 0i32), (8, 3), (40, 10), (-8, -2), (37, 5), (200, 0)] {
            let mut lab = Lab::new();
            let map = matrix(&mut lab, 20, 75, swizzle, 16, cols);
            assert_eq!(TensorMap::decode(&map.encode()), Some(map));
            let bytes = 16 * cols * 2;
            let (m, o) = (lab.buffer(map.encode().to_vec()), lab.buffer(vec![9; bytes as usize]));
            let text = kernel(
                2,
                "",
                &format!(
                    "{}{}{}",
                    load(column, row, bytes, FENCE),
                    wait(1024, "0"),
                    dump(bytes, 64)
                ),
            );
            let report = lab.run(&text, 1, 64, 1024 + bytes as usize, &[m, o]).unwrap();
            assert!(report.clean(), "{report}");
            let got = lab.bytes(o);
            for r in 0..16u32 {
                for c in 0..cols {
                    let pattern = match swizzle {
                        // Rows of `swizzle` bytes; the pattern repeats every 8 lines of 128 bytes.
                        128 => r % 8,
                        64 => r / 2 % 4,
                        32 => r / 4 % 2,
                        _ => 0,
                    };
                    let chunk = (c / 8) ^ pattern;
                    let at = (r * cols * 2 + chunk * 16 + c % 8 * 2) as usize;
                    let (y, x) = (row + r as i32, column + c as i32);
                    let inside = (0..20).contains(&y) && (0..75).contains(&x);
                    let want = if inside { (y * 256 + x) as u16 } else { 0 };
                    assert_eq!(
                        u16::from_le_bytes([got[at], got[at + 1]]),
                        want,
                        "swizzle {swizzle}, {r}, {c} of {column}, {row}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_descriptor_may_be_a_parameter() {
    let mut lab = Lab::new();
    let map = matrix(&mut lab, 8, 64, 128, 8, 64);
    let o = lab.buffer(vec![9; 1024]);
    let text =
        kernel(2, "", &format!("{}{}{}", load(0, 0, 1024, FENCE), wait(1024, "0"), dump(1024, 32)))
            .replace(".param .u64 k_param_0", ".param .align 64 .b8 k_param_0[128]")
            .replace(
                "ld.param.u64 %p0, [k_param_0];",
                "mov.b64 %d9, k_param_0; cvta.param.u64 %p0, %d9;",
            );
    let mut params = map.encode().to_vec();
    params.extend(o.to_le_bytes());
    let report = lab.run_with(&text, 1, 32, 2048, &params).unwrap();
    assert!(report.clean(), "{report}");
    assert_eq!(lab.bytes(o)[16..20], [8, 0, 9, 0]);
    assert_eq!((report.counts.copy_sectors, report.counts.copy_ideal), (36, 32));
}

fn loaded(fence: &str, expected: u32, wait: &str) -> Result<Report, ptx_machine::Fault> {
    let mut lab = Lab::new();
    let map = matrix(&mut lab, 8, 64, 128, 8, 64);
    let (m, o) = (lab.buffer(map.encode().to_vec()), lab.buffer(vec![9; 1024]));
    let text = kernel(2, "", &format!("{}{wait}{}", load(0, 0, expected, fence), dump(1024, 64)));
    lab.run(&text, 1, 64, 2048, &[m, o])
}

#[test]
fn a_box_without_a_wait_is_a_race() {
    let right = wait(1024, "0");
    assert!(loaded(FENCE, 1024, &right).unwrap().clean());
    // No wait, or one for the phase before the first, which is complete: all 256 words race, and no
    // thread waits for the box.
    for wrong in [String::new(), wait(1024, "1")] {
        let report = loaded(FENCE, 1024, &wrong).unwrap();
        assert!(report.races >= 256, "{report}");
    }
    // One warp waits and the other does not.
    let half =
        format!("mov.u32 %r0, %tid.x; setp.lt.u32 %q0, %r0, 32; @%q0 bra $past; {right} $past:");
    let report = loaded(FENCE, 1024, &half).unwrap();
    assert_eq!(report.races, 128);
    // The initialisation of the barrier must be visible to the copy engine.
    assert_eq!(loaded("", 1024, &right).unwrap().asynchronous, 1);
    // More bytes are announced than copied.
    assert_eq!(loaded(FENCE, 1040, &right).unwrap_err().kind, FaultKind::Deadlock);
    assert_eq!(
        loaded(FENCE, 1024, &format!("{right}{}", wait(1024, "1"))).unwrap_err().kind,
        FaultKind::Deadlock
    );
}

#[test]
fn a_ring_passes_slots_between_warps() {
    // Warp 0 loads eight boxes into two slots; warp 1 adds them up and releases the slots.
    let run_early = |empty: &str, release: &str, early: &str| {
        let body = format!(
            "mov.u32 %r0, %tid.x; setp.ne.u32 %q0, %r0, 0; @%q0 bra $ready;
             mbarrier.init.shared::cta.b64 [1024], 1; mbarrier.init.shared::cta.b64 [1032], 1;
             mbarrier.init.shared::cta.b64 [1040], 32; mbarrier.init.shared::cta.b64 [1048], 32; fence.mbarrier_init.release.cluster;
             $ready: bar.sync 0; mov.u32 %r1, 0; mov.u32 %r20, 0; setp.ge.u32 %q1, %r0, 32; @%q1 bra $take;
             @%q0 bra $end;
             $give: and.b32 %r2, %r1, 1; shl.b32 %r3, %r2, 3; add.u32 %r3, %r3, 1024; shr.u32 %r4, %r1, 1; and.b32 %r4, %r4, 1; xor.b32 %r5, %r4, 1;
             {empty}
             mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 1024; shl.b32 %r6, %r2, 10; add.u32 %r6, %r6, 2048; shl.b32 %r7, %r1, 3; mov.u32 %r8, 0;
             {BOX} [%r6], [%p0, {{%r8, %r7}}], [%r3];
             add.u32 %r1, %r1, 1; setp.lt.u32 %q2, %r1, 8; @%q2 bra $give; bra $end;
             $take: and.b32 %r2, %r1, 1; shl.b32 %r3, %r2, 3; add.u32 %r3, %r3, 1024; shr.u32 %r4, %r1, 1; and.b32 %r4, %r4, 1;
             $wait: mbarrier.try_wait.parity.shared::cta.b64 %q3, [%r3], %r4; @!%q3 bra $wait;
             {early}
             shl.b32 %r6, %r2, 10; sub.u32 %r7, %r0, 32; shl.b32 %r7, %r7, 5; add.u32 %r6, %r6, %r7;
             ld.shared.v4.u32 {{%r8, %r9, %r10, %r11}}, [%r6+2048]; ld.shared.v4.u32 {{%r12, %r13, %r14, %r15}}, [%r6+2064];
             add.u32 %r20, %r20, %r8; add.u32 %r20, %r20, %r15;
             {release}
             add.u32 %r1, %r1, 1; setp.lt.u32 %q2, %r1, 8; @%q2 bra $take;
             mul.wide.u32 %d0, %r7, 1; add.u64 %d1, %p1, %d0; st.global.u32 [%d1], %r20;
             $end:"
        );
        let mut lab = Lab::new();
        let map = matrix(&mut lab, 64, 64, 0, 8, 64);
        let (m, o) = (lab.buffer(map.encode().to_vec()), lab.buffer(vec![0; 1024]));
        let report = lab.run(&kernel(2, "", &body), 4, 64, 1024 + 2048, &[m, o]);
        (report, lab.read(o))
    };
    let run = |empty: &str, release: &str| run_early(empty, release, "");
    let empty =
        "$empty: mbarrier.try_wait.parity.shared::cta.b64 %q3, [%r3+16], %r5; @!%q3 bra $empty;";
    let release = "mbarrier.arrive.shared::cta.b64 _, [%r3+16];";
    let (report, sums) = run(empty, release);
    let report = report.unwrap();
    assert!(report.clean(), "{report}");
    for l in 0..32u32 {
        // Two pairs of numbers of row l / 4, in eight boxes.
        let cell = |r: u32, c: u32| r * 256 + c;
        let pair = |r: u32, c: u32| cell(r, c) | cell(r, c + 1) << 16;
        let want = (0..8u32).fold(0u32, |s, i| {
            let (r, c) = (i * 8 + l / 4, l % 4 * 16);
            s.wrapping_add(pair(r, c)).wrapping_add(pair(r, c + 14))
        });
        assert_eq!(sums[l as usize * 8], want);
    }
    // Loads that do not wait for their slot: more arrivals than a phase has, or boxes that
    // overwrite data that is still read.
    let hasty = run("", release).0;
    assert!(hasty.is_err_and(|f| f.kind == FaultKind::Barrier));
    // Slots that are released before they were read.
    assert!(run_early(empty, "", release).0.unwrap().races > 0);
    // Slots that are never released.
    assert_eq!(run(empty, "").0.unwrap_err().kind, FaultKind::Deadlock);
    // The other parity lets the loads run ahead, or waits forever.
    let wrong = run(&empty.replace("%r5", "%r4"), release).0;
    assert!(wrong.is_err() || !wrong.unwrap().clean());
}

#[test]
fn barriers_count_arrivals_and_states() {
    let body = "
        .shared .align 8 .b64 box;
        mov.u32 %r0, %tid.x; setp.ne.u32 %q0, %r0, 0; @!%q0 mbarrier.init.shared.b64 [box], 64; bar.sync 0;
        st.shared.u32 [1032], 5; mbarrier.arrive.shared::cta.b64 %d0, [box];
        $wait: mbarrier.test_wait.shared::cta.b64 %q1, [box], %d0; @!%q1 bra $wait;
        ld.shared.u32 %r1, [1032]; mul.wide.u32 %d1, %r0, 4; add.u64 %d2, %p0, %d1; st.global.u32 [%d2], %r1;";
    let mut lab = Lab::new();
    let o = lab.words([0; 64]);
    let report = lab.run(&kernel(1, "", body), 1, 64, 64, &[o]).unwrap();
    // Both warps store the word: that is a race, but the loads are not.
    assert_eq!(report.races, 1, "{report}");
    assert_eq!(lab.read(o), [5; 64]);
    let over = "mbarrier.init.shared.b64 [1024], 1; mbarrier.arrive.shared.b64 _, [1024], 2;";
    assert_eq!(lab.run(&kernel(0, "", over), 1, 1, 64, &[]).unwrap_err().kind, FaultKind::Barrier);
    // The barrier is not initialised.
    assert!(
        lab.run(&kernel(0, "", "mbarrier.arrive.shared.b64 _, [1024];"), 1, 1, 64, &[]).is_err()
    );
}

#[test]
fn copies_of_threads_arrive_at_barriers() {
    let run = |wait: &str| {
        let body = format!(
            "mov.u32 %r0, %tid.x; setp.ne.u32 %q0, %r0, 0; @!%q0 mbarrier.init.shared.b64 [1024], 32; bar.sync 0;
             setp.ge.u32 %q1, %r0, 32; @%q1 bra $take;
             shl.b32 %r1, %r0, 4; cvt.u64.u32 %d0, %r1; add.u64 %d1, %p0, %d0; cp.async.cg.shared.global [%r1+2048], [%d1], 16;
             cp.async.mbarrier.arrive.noinc.shared::cta.b64 [1024]; bra $end;
             $take: {wait} sub.u32 %r1, %r0, 32; shl.b32 %r1, %r1, 4; ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r1+2048];
             $end:"
        );
        let mut lab = Lab::new();
        let a = lab.words(0..128);
        lab.run(&kernel(1, "", &body), 1, 64, 2048, &[a]).unwrap()
    };
    assert!(run(&wait(1024, "0")).clean());
    assert_eq!(run("").races, 32);
}

#[test]
fn boxes_are_stored() {
    let run = |fence: &str, wait: &str| {
        let body = format!(
            "mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 4; add.u32 %r1, %r1, 1024; st.shared.v4.u32 [%r1], {{%r0, %r0, %r0, %r0}}; {fence} bar.sync 0;
             setp.ne.u32 %q0, %r0, 0; @%q0 bra $end; mov.u32 %r2, 8; mov.u32 %r3, 3;
             cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%p0, {{%r2, %r3}}], [1024];
             cp.async.bulk.commit_group; {wait}
             st.shared.u32 [1024], 99; $end:"
        );
        let mut lab = Lab::new();
        let map = TensorMap { cols: 30, ..matrix(&mut lab, 6, 32, 0, 8, 64) };
        let m = lab.buffer(map.encode().to_vec());
        let report = lab.run(&kernel(1, "", &body), 1, 64, 1024, &[m]).unwrap();
        (report, lab.bytes(map.address).to_vec(), map.pitch as usize)
    };
    let (report, bytes, pitch) = run(FENCE, "cp.async.bulk.wait_group.read 0;");
    assert!(report.clean(), "{report}");
    let cell = |r: usize, c: usize| {
        u16::from_le_bytes([bytes[r * pitch + 2 * c], bytes[r * pitch + 2 * c + 1]])
    };
    // Thread t stored its number into chunk t % 8 of row t / 8, as 32-bit words.
    assert_eq!((cell(3, 8), cell(3, 9), cell(4, 24), cell(5, 28), cell(5, 29)), (0, 0, 10, 18, 0));
    assert_eq!((cell(3, 7), cell(2, 8), cell(5, 30)), (3 * 256 + 7, 2 * 256 + 8, 5 * 256 + 30));
    assert!(run("", "cp.async.bulk.wait_group.read 0;").0.asynchronous > 0);
    assert_eq!(run(FENCE, "").0.races, 1);
}
