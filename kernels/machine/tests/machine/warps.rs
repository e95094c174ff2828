//! Operations among lanes, and barriers of warps and blocks.

use crate::common::{Lab, Random, eval, kernel};
use ptx_machine::FaultKind;

fn lanes() -> Vec<u64> {
    (0..32).map(|l| 1000 + l).collect()
}

#[test]
fn shuffles() {
    let go = |code: &str, f: &dyn Fn(usize) -> usize| {
        for (l, y) in eval(code, "b32", &[("b32", lanes())]).into_iter().enumerate() {
            assert_eq!(y, 1000 + f(l) as u64, "{code} in lane {l}");
        }
    };
    go("shfl.sync.bfly.b32 %o, %a, 5, 31, -1;", &|l| l ^ 5);
    go("shfl.sync.idx.b32 %o, %a, 7, 31, 0xffffffff;", &|_| 7);
    go("shfl.sync.down.b32 %o, %a, 3, 31, -1;", &|l| if l + 3 < 32 { l + 3 } else { l });
    go("shfl.sync.up.b32 %o, %a, 3, 0, -1;", &|l| if l >= 3 { l - 3 } else { l });
    // Segments of 8 lanes: the mask of a width w is (32 - w) << 8, with 31 for all modes but up.
    go("shfl.sync.down.b32 %o, %a, 3, 0x181f, -1;", &|l| if l % 8 + 3 < 8 { l + 3 } else { l });
    go("shfl.sync.up.b32 %o, %a, 2, 0x1800, -1;", &|l| if l % 8 >= 2 { l - 2 } else { l });
    go("shfl.sync.idx.b32 %o, %a, 5, 0x181f, -1;", &|l| l / 8 * 8 + 5);
    go("shfl.sync.bfly.b32 %o, %a, 4, 0x181f, -1;", &|l| l ^ 4);
    // A lane-dependent source, and the predicate.
    go(
        "mov.u32 %r1, %laneid; xor.b32 %r1, %r1, 31; shfl.sync.idx.b32 %o, %a, %r1, 31, -1;",
        &|l| 31 - l,
    );
    go("shfl.sync.down.b32 %r1|%q0, %a, 20, 31, -1; selp.b32 %o, %r1, 1099, %q0;", &|l| {
        if l < 12 { l + 20 } else { 99 }
    });
}

#[test]
fn votes_matches_and_reductions() {
    let mut r = Random(1);
    let a: Vec<u64> = (0..32).map(|_| r.next() % 5).collect();
    let go = |code: &str, f: &dyn Fn(usize) -> u64| {
        for (l, y) in eval(code, "b32", &[("b32", a.clone())]).into_iter().enumerate() {
            assert_eq!(y, f(l), "{code} in lane {l}");
        }
    };
    let where_ = |f: &dyn Fn(u64) -> bool| (0..32).fold(0u64, |m, l| m | (f(a[l]) as u64) << l);
    go("setp.eq.u32 %q0, %a, 2; vote.sync.ballot.b32 %o, %q0, -1;", &|_| where_(&|x| x == 2));
    go("setp.lt.u32 %q0, %a, 5; vote.sync.all.pred %q1, %q0, -1; selp.u32 %o, 1, 0, %q1;", &|_| 1);
    go("setp.lt.u32 %q0, %a, 5; vote.sync.any.pred %q1, !%q0, -1; selp.u32 %o, 1, 0, %q1;", &|_| 0);
    go("match.any.sync.b32 %o, %a, -1;", &|l| where_(&|x| x == a[l]));
    go("match.all.sync.b32 %o|%q0, %a, -1;", &|_| 0);
    go("redux.sync.add.s32 %o, %a, -1;", &|_| a.iter().sum());
    go("redux.sync.max.u32 %o, %a, -1;", &|_| *a.iter().max().unwrap());
    go("sub.s32 %r1, %a, 3; redux.sync.min.s32 %o, %r1, -1;", &|_| {
        (*a.iter().min().unwrap()).wrapping_sub(3) & 0xffff_ffff
    });
    go("elect.sync %r1|%q0, -1; selp.u32 %o, 1, 0, %q0;", &|l| (l == 0) as u64);
    // Only lanes that take part are counted.
    go(
        "mov.u32 %o, 0; setp.lt.u32 %q2, %a, 3; vote.sync.ballot.b32 %r2, %q2, -1; @%q2 vote.sync.ballot.b32 %o, %q2, %r2;",
        &|l| if a[l] < 3 { where_(&|x| x < 3) } else { 0 },
    );
}

#[test]
fn lanes_wait_for_each_other_at_a_shuffle() {
    // Odd lanes get to the shuffle on another path; all take part in it.
    let out = eval(
        "mov.u32 %r1, %laneid; and.b32 %r2, %r1, 1; setp.eq.u32 %q0, %r2, 1; mov.u32 %r3, %a; @%q0 bra $odd; bra.uni $join;
         $odd: add.u32 %r3, %r3, 500;
         $join: shfl.sync.bfly.b32 %o, %r3, 1, 31, -1;",
        "b32",
        &[("b32", lanes())],
    );
    for (l, y) in out.into_iter().enumerate() {
        assert_eq!(y, 1000 + (l as u64 ^ 1) + if l % 2 == 0 { 500 } else { 0 });
    }
}

#[test]
fn lanes_at_different_shuffles_are_a_fault() {
    let text = kernel(
        1,
        "",
        "mov.u32 %r1, %tid.x; setp.lt.u32 %q0, %r1, 16; @%q0 bra $low;
         shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1; bra.uni $end;
         $low: shfl.sync.bfly.b32 %r2, %r1, 2, 31, -1;
         $end: st.global.u32 [%p0], 0;",
    );
    let mut lab = Lab::new();
    let o = lab.words([0]);
    assert_eq!(lab.run(&text, 1, 32, 0, &[o]).unwrap_err().kind, FaultKind::Divergence);
}

#[test]
fn numbered_barriers_order_the_warps_that_take_part() {
    // Warps 0 and 1 pass a word through barrier 3, while warp 2 never arrives.
    let handover = |arrive: &str| {
        kernel(
            1,
            "",
            &format!(
                "mov.u32 %r0, %tid.x; shr.u32 %r1, %r0, 5; setp.eq.u32 %q0, %r1, 2; @%q0 bra $end;
                 setp.eq.u32 %q1, %r1, 1; @%q1 bra $take;
                 st.shared.u32 [1024], %r0; {arrive} bra.uni $end;
                 $take: bar.sync 3, 64; ld.shared.u32 %r2, [1024]; st.global.u32 [%p0], %r2;
                 $end:"
            ),
        )
    };
    let mut lab = Lab::new();
    let o = lab.words([99]);
    // All lanes of warp 0 store different values to one word: one finding for each pair.
    let one = handover("bar.arrive 3, 64;")
        .replace("st.shared.u32 [1024], %r0", "st.shared.u32 [1024], 42");
    let report = lab.run(&one, 1, 96, 16, &[o]).unwrap();
    assert!(report.clean(), "{report}");
    assert_eq!(lab.read(o), [42]);
    let fault = lab.run(&handover(""), 1, 96, 16, &[o]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Deadlock);
    let report = lab.run(&handover("bar.arrive 3, 64;"), 1, 96, 16, &[o]).unwrap();
    assert!(report.races > 0);
}

#[test]
fn barriers_reduce() {
    let text = kernel(
        1,
        "",
        "mov.u32 %r0, %tid.x; setp.lt.u32 %q0, %r0, 40; barrier.red.popc.u32 %r1, 0, %q0; bar.red.and.pred %q1, 0, %q0;
         bar.red.or.pred %q2, 0, %q0; selp.u32 %r2, 1, 0, %q1; selp.u32 %r3, 1, 0, %q2;
         mul.wide.u32 %d0, %r0, 16; add.u64 %d1, %p0, %d0; st.global.v4.u32 [%d1], {%r1, %r2, %r3, %r0};",
    );
    let mut lab = Lab::new();
    let o = lab.words([0; 256]);
    assert!(lab.run(&text, 1, 64, 0, &[o]).unwrap().clean());
    for (t, x) in lab.read(o).chunks(4).enumerate() {
        assert_eq!(x, [40, 0, 1, t as u32]);
    }
}
