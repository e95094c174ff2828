//! Every kind of deliberate bug is reported, and the same kernel without it has no findings.

use crate::common::{Lab, kernel};
use ptx_machine::{FaultKind, FindingKind, Report};

/// Two warps: each thread stores a word and reads that of the thread 32 further.
fn exchange(barrier: &str) -> Report {
    let body = format!(
        "mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 2; add.u32 %r1, %r1, 1024; st.shared.u32 [%r1], %r0;
         {barrier}
         xor.b32 %r2, %r1, 128; ld.shared.u32 %r3, [%r2];
         mul.wide.u32 %d0, %r0, 4; add.u64 %d1, %p0, %d0; st.global.u32 [%d1], %r3;"
    );
    let mut lab = Lab::new();
    let o = lab.words([0; 64]);
    lab.run(&kernel(1, "", &body), 3, 64, 256, &[o]).unwrap()
}

#[test]
fn a_missing_barrier_is_a_race() {
    assert!(exchange("bar.sync 0;").clean());
    let report = exchange("");
    // The first warp reads words that are not written yet; then the second warp writes them, and
    // reads the words that the first has written.
    assert_eq!((report.uninitialised, report.races), (3 * 32, 3 * 2 * 32));
    let race = report.findings.iter().find(|f| f.kind == FindingKind::Race).unwrap();
    assert!(
        race.text.contains("shared") && race.other.is_some() && race.block == [0, 0, 0],
        "{race}"
    );
    assert!(format!("{report}").contains("Race"));
    // A barrier within a warp does not order two warps, and neither does a fence.
    assert!(!exchange("bar.warp.sync -1; membar.cta;").clean());
}

#[test]
fn writing_again_before_all_have_read_is_a_race() {
    let body = |second: &str| {
        format!(
            "mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 2; add.u32 %r1, %r1, 1024; st.shared.u32 [%r1], %r0; bar.sync 0;
             xor.b32 %r2, %r1, 128; ld.shared.u32 %r3, [%r2]; {second} st.shared.u32 [%r1], %r3;"
        )
    };
    let run =
        |second: &str| Lab::new().run(&kernel(0, "", &body(second)), 1, 64, 256, &[]).unwrap();
    assert!(run("bar.sync 0;").clean());
    assert_eq!(run("").races, 64);
}

#[test]
fn lanes_that_store_different_values_to_one_word_race() {
    let run = |value: &str| {
        Lab::new()
            .run(
                &kernel(0, "", &format!("mov.u32 %r0, %tid.x; st.shared.u32 [1024], {value};")),
                1,
                32,
                16,
                &[],
            )
            .unwrap()
    };
    assert!(run("7").clean());
    assert_eq!(run("%r0").races, 31);
}

#[test]
fn smaller_stores_of_neighbours_are_not_a_race() {
    // Warp w stores bytes w, w + 2, ... of words that all read afterwards.
    let body = "mov.u32 %r0, %tid.x; shr.u32 %r1, %r0, 5; and.b32 %r2, %r0, 31; shl.b32 %r2, %r2, 1; add.u32 %r3, %r1, %r2; add.u32 %r3, %r3, 1024;
        st.shared.u8 [%r3], %r0; bar.sync 0; ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [1024]; st.shared.u8 [%r3+64], %r0;";
    let report = Lab::new().run(&kernel(0, "", body), 2, 64, 128, &[]).unwrap();
    assert!(report.clean(), "{report}");
}

#[test]
fn a_missing_bounds_check_is_out_of_bounds() {
    let run = |guard: &str| {
        let body = format!(
            "mov.u32 %r0, %tid.x; setp.lt.u32 %q0, %r0, 20; mul.wide.u32 %d0, %r0, 4; add.u64 %d1, %p0, %d0; add.u64 %d2, %p1, %d0;
             {guard} ld.global.u32 %r1, [%d1]; {guard} st.global.u32 [%d2], %r1;"
        );
        let mut lab = Lab::new();
        let (a, o) = (lab.words(0..20), lab.words([0; 20]));
        let report = lab.run(&kernel(2, "", &body), 1, 32, 0, &[a, o]).unwrap();
        assert_eq!(lab.read(o), (0..20).collect::<Vec<u32>>());
        report
    };
    assert!(run("@%q0").clean());
    let report = run("");
    assert_eq!(report.out_of_bounds, 24);
    assert_eq!(
        (report.findings.len(), report.findings[0].thread, report.findings[0].line > 0),
        (8, 20, true)
    );
    // Beyond the shared memory.
    let report = Lab::new()
        .run(&kernel(0, "", "st.shared.u32 [1088], 1; ld.shared.u32 %r0, [0];"), 1, 1, 64, &[])
        .unwrap();
    assert_eq!(report.out_of_bounds, 2);
}

#[test]
fn misaligned_vectors_are_reported() {
    let mut lab = Lab::new();
    let a = lab.words(0..8);
    let run = |offset: u32| {
        let body = format!(
            "ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%p0+{offset}]; st.shared.v2.u32 [1024+{offset}], {{%r0, %r1}};
             cp.async.cg.shared.global [1040], [%p0+{offset}], 16; cp.async.wait_all;"
        );
        lab.run(&kernel(1, "", &body), 1, 1, 64, &[a]).unwrap()
    };
    assert!(run(0).clean());
    assert_eq!(run(8).misaligned, 2);
    assert_eq!(run(4).misaligned, 3);
}

#[test]
fn uninitialised_shared_memory_is_reported() {
    let body =
        "st.shared.u32 [1024], 1; ld.shared.v2.u32 {%r0, %r1}, [1024]; ld.shared.u32 %r2, [1024];";
    let report = Lab::new().run(&kernel(0, "", body), 5, 1, 64, &[]).unwrap();
    assert_eq!((report.uninitialised, report.races), (5, 0));
    // Every block begins with uninitialised memory.
    let body = "mov.u32 %r0, %ctaid.x; setp.eq.u32 %q0, %r0, 0; @%q0 st.shared.v4.u32 [1024], {%r0, %r0, %r0, %r0}; ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [1024];";
    assert_eq!(Lab::new().run(&kernel(0, "", body), 9, 1, 64, &[]).unwrap().uninitialised, 8);
}

/// Warp 0 copies 16 bytes for each of its lanes; both warps read them after a barrier.
fn copied(wait: &str, barrier: &str) -> Report {
    let body = format!(
        "mov.u32 %r0, %tid.x; setp.ge.u32 %q0, %r0, 32; and.b32 %r1, %r0, 31; shl.b32 %r1, %r1, 4; cvt.u64.u32 %d0, %r1; add.u64 %d1, %p0, %d0;
         add.u32 %r1, %r1, 1024; @%q0 bra $wait; cp.async.cg.shared.global [%r1], [%d1], 16; cp.async.commit_group;
         $wait: {wait} {barrier} ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r1];"
    );
    let mut lab = Lab::new();
    let a = lab.words(0..128);
    lab.run(&kernel(1, "", &body), 2, 64, 512, &[a]).unwrap()
}

#[test]
fn copies_without_a_wait_are_a_race() {
    let (wait, barrier) = ("cp.async.wait_group 0;", "bar.sync 0;");
    assert!(copied(wait, barrier).clean());
    // Without the wait, even the threads that copied race with their copies.
    assert_eq!(copied("", barrier).races, 2 * 64);
    assert_eq!(copied("cp.async.wait_group 1;", barrier).races, 2 * 64);
    // Without the barrier, the others do.
    assert_eq!(copied(wait, "").races, 2 * 32);
}

#[test]
fn copies_to_bytes_that_others_still_read_are_a_race() {
    let run = |barrier: &str| {
        let body = format!(
            "mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 4; add.u32 %r1, %r1, 1024; st.shared.v4.u32 [%r1], {{%r0, %r0, %r0, %r0}}; bar.sync 0;
             xor.b32 %r2, %r1, 512; ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r2]; {barrier}
             cp.async.cg.shared.global [%r1], [%p0], 16; cp.async.wait_all;"
        );
        let mut lab = Lab::new();
        let a = lab.words(0..4);
        lab.run(&kernel(1, "", &body), 1, 64, 1024, &[a]).unwrap()
    };
    assert!(run("bar.sync 0;").clean());
    // One warp copies to bytes that the other reads later, the other to bytes that were read
    // before.
    assert_eq!(run("").races, 64);
}

#[test]
fn missing_threads_and_deadlocks_are_faults() {
    let run = |body: &str, threads: u32| Lab::new().run(&kernel(0, "", body), 1, threads, 64, &[]);
    let kind = |body: &str, threads: u32| run(body, threads).unwrap_err().kind;
    let half = "mov.u32 %r0, %tid.x; setp.lt.u32 %q0, %r0, 16; @%q0 bra $end; bar.sync 0; $end:";
    assert_eq!(kind(half, 32), FaultKind::Divergence);
    assert_eq!(
        kind("mov.u32 %r0, %tid.x; setp.lt.u32 %q0, %r0, 16; @%q0 exit; bar.sync 0;", 32),
        FaultKind::Divergence
    );
    assert_eq!(
        kind("mov.u32 %r0, %tid.x; setp.lt.u32 %q0, %r0, 32; @%q0 exit; bar.sync 0;", 64),
        FaultKind::Deadlock
    );
    let fault = run("mov.u32 %r0, %tid.x; setp.lt.u32 %q0, %r0, 32; @%q0 bra $other; bar.sync 1; bra $end; $other: bar.sync 2; $end:", 64).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Deadlock);
    assert!(
        fault.message.contains("warp 1 waits at line") && fault.message.contains("bar.sync 1"),
        "{fault}"
    );
    assert_eq!(kind("trap;", 1), FaultKind::Trap);
    assert_eq!(
        kind(
            "mov.u32 %r0, %tid.x; setp.lt.u32 %q0, %r0, 9; @%q0 mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f0, %f1, %f2, %f3}, {%r1, %r2}, {%r3}, {%f0, %f1, %f2, %f3};",
            32
        ),
        FaultKind::Divergence
    );
    assert!(run("bar.sync 0; bar.sync 0;", 64).is_ok());
}

#[test]
fn a_missing_swizzle_is_reported_as_bank_conflicts() {
    // Rows of 128 bytes: eight rows of one chunk are in the same banks unless the chunk is swizzled
    // by row.
    let run = |swizzle: bool| {
        let chunk = if swizzle { "and.b32 %r2, %r0, 7;" } else { "mov.u32 %r2, 0;" };
        let body = format!(
            "mov.u32 %r0, %laneid; {chunk} shl.b32 %r1, %r0, 7; shl.b32 %r2, %r2, 4; xor.b32 %r1, %r1, %r2; add.u32 %r1, %r1, 1024;
             mov.u32 %r9, 0; $again: st.shared.v4.u32 [%r1], {{%r0, %r0, %r0, %r0}}; bar.warp.sync -1;
             ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r1]; cp.async.cg.shared.global [%r1], [%p0], 16; cp.async.wait_all;
             add.u32 %r9, %r9, 1; setp.lt.u32 %q0, %r9, 3; @%q0 bra $again;"
        );
        let mut lab = Lab::new();
        let a = lab.words(0..4);
        lab.run(&kernel(1, "", &body), 1, 32, 4096, &[a]).unwrap()
    };
    let (good, bad) = (run(true), run(false));
    assert!(good.clean() && bad.clean(), "{good}\n{bad}");
    // Three times a store, a load and a copy of 4 quarter warps.
    assert_eq!(
        (good.counts.wavefronts, good.counts.ideal_wavefronts, good.loops.wavefronts),
        (36, 36, 36)
    );
    assert_eq!((bad.counts.wavefronts, bad.loops.ideal_wavefronts), (36 * 8, 36));
    assert_eq!(bad.loops.conflict_ratio(), 8.0);
    let hot: Vec<_> = bad.hot().iter().filter(|h| h.wavefronts > h.ideal_wavefronts).collect();
    assert_eq!(hot.len(), 3);
    assert!(
        hot.iter().all(|h| h.in_loop
            && h.executed == 3
            && h.wavefronts == 96
            && h.ideal_wavefronts == 12)
    );
    assert!(format!("{bad}").contains("bank conflicts"));
}

#[test]
fn wasted_sectors_are_counted() {
    let run = |stride: u32| {
        let body = format!(
            "mov.u32 %r0, %laneid; mul.wide.u32 %d0, %r0, {stride}; add.u64 %d1, %p0, %d0; ld.global.u32 %r1, [%d1]; st.global.u32 [%d1], %r1;"
        );
        let mut lab = Lab::new();
        let a = lab.words(0..1024);
        let report = lab.run(&kernel(1, "", &body), 1, 32, 0, &[a]).unwrap();
        let c = report.counts;
        (c.load_sectors, c.load_ideal, c.store_sectors, c.store_ideal)
    };
    assert_eq!(run(4), (4, 4, 4, 4));
    assert_eq!(run(32), (32, 4, 32, 4));
    assert_eq!(run(0), (1, 1, 1, 1));
}

#[test]
fn reports_add_up() {
    let (a, b) = (exchange("bar.sync 0;"), exchange(""));
    let mut sum = a.clone();
    sum.merge(&b);
    sum.merge(&a);
    assert_eq!(sum.blocks, 9);
    assert_eq!(sum.counts.instructions, 2 * a.counts.instructions + b.counts.instructions);
    assert_eq!(sum.races, b.races);
    assert!(!sum.clean() && sum.findings.len() == b.findings.len());
}

#[test]
fn blocks_that_overwrite_each_other_race() {
    // Blocks of 32 threads store tiles that begin every `step` words.
    let run = |step: u32, value: &str| {
        let body = format!(
            "mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, {step}, %r0; mul.wide.u32 %d0, %r2, 4;
             add.u64 %d1, %p0, %d0; st.global.u32 [%d1], {value};"
        );
        let mut lab = Lab::new();
        let o = lab.words([0; 128]);
        lab.run(&kernel(1, "", &body), 4, 32, 0, &[o]).unwrap()
    };
    assert!(run(32, "%r1").clean());
    // The same value is not an error.
    assert!(run(30, "7").clean());
    let report = run(30, "%r1");
    assert_eq!(report.races, 3 * 2, "{report}");
    assert!(report.findings.iter().all(|f| f.other_block.is_some() && f.other.is_none()));
    assert!(format!("{report}").contains("with block"));
}

#[test]
fn reports_are_the_same_in_every_run() {
    let text = |r: Report| format!("{r}");
    let first = text(exchange(""));
    for _ in 0..20 {
        assert_eq!(text(exchange("")), first);
    }
}
