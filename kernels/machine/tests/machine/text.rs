//! Reading PTX.

use crate::common::{Lab, kernel};
use ptx_machine::{Fault, FaultKind, Launch, Memory, Module, Options, run};

#[test]
fn modules_list_their_contents() {
    let text = "
        // A comment.
        .version 7.8
        .target sm_80
        .address_size 64
        .extern .shared .align 128 .b8 dynamic[];
        .visible .entry first(
            .param .u64 first_param_0,
            .param .u32 first_param_1,
            .param .align 64 .b8 first_param_2[128],
            .param .align 4 .b8 first_param_3[20]
        )
        .maxntid 128, 2, 1
        .minnctapersm 2
        {
            .reg .b32 %r<5>; /* registers
            of a kernel */
            .shared .align 8 .b8 fixed[24];
            mov.u32 %r1, dynamic; mov.u32 %r2, fixed;
            ret;
        }
        .entry second() { ret; }";
    let module = Module::parse(text).unwrap();
    assert_eq!((module.version(), module.target(), module.entries().len()), ("7.8", "sm_80", 2));
    let first = module.entry("first").unwrap();
    let layout: Vec<_> = first.params().iter().map(|p| (p.offset, p.bytes, p.align)).collect();
    assert_eq!(layout, [(0, 8, 8), (8, 4, 4), (64, 128, 64), (192, 20, 4)]);
    assert_eq!(
        (first.params_bytes(), first.max_threads(), first.shared_bytes()),
        (212, Some(256), 128)
    );
    assert!(module.entry("third").is_none() && module.entry("second").unwrap().params().is_empty());
}

#[test]
fn errors_name_the_line_and_the_instruction() {
    let error = |body: &str| Module::parse(&kernel(0, "", body)).err().unwrap();
    let e = error("mov.u32 %r0, 1;\nfrobnicate.b32 %r0, %r1;");
    assert!(format!("{e}").contains("frobnicate.b32 %r0, %r1"), "{e}");
    assert_eq!(
        kernel(0, "", "mov.u32 %r0, 1;\nfrobnicate;").lines().nth(e.line as usize - 1).unwrap(),
        "frobnicate;"
    );
    assert!(error("add.s32 %r0, %r1;").message.contains("too few operands"));
    assert!(error("add.s32 %r0, %r1, %x1;").message.contains("%x1"));
    assert!(error("add.s32 %r0, %r1, %d1;").message.contains("%d1"));
    assert!(error("bra $nowhere;").message.contains("$nowhere"));
    assert!(
        error("mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32 {%f0}, {%r0}, {%r1}, {%f0};")
            .line
            > 0
    );
    assert!(error("ld.global.u32 %r0, %r1;").message.contains("address"));
}

#[test]
fn names_have_scopes() {
    // Inline assembly repeats its registers and labels.
    let block = |n: u32| {
        format!(
            "{{ .reg .pred p; .reg .b32 x; mov.u32 x, {n}; setp.gt.u32 p, x, 5; @p bra skip; add.u32 %r1, %r1, x; skip: }}"
        )
    };
    let body =
        format!("mov.u32 %r1, 0; {}{}{} st.global.u32 [%p0], %r1;", block(3), block(9), block(4));
    let mut lab = Lab::new();
    let o = lab.words([0]);
    assert!(lab.run(&kernel(1, "", &body), 1, 1, 0, &[o]).unwrap().clean());
    assert_eq!(lab.read(o), [7]);
}

#[test]
fn launches_are_checked() {
    let module =
        Module::parse(&kernel(1, "", "").replace("\n)\n{", "\n)\n.maxntid 64, 1, 1\n{")).unwrap();
    let entry = module.entry("k").unwrap();
    let go = |grid: u32, threads: u32, shared: usize, params: &[u8]| -> Result<(), Fault> {
        let launch = Launch { entry, grid: [grid, 1, 1], block: [threads, 1, 1], shared, params };
        run(&launch, &Memory::new(), &Options::default()).map(|_| ())
    };
    assert!(go(1, 64, 1024, &[0; 8]).is_ok());
    for wrong in [
        go(1, 65, 0, &[0; 8]),
        go(0, 1, 0, &[0; 8]),
        go(1, 1, 300_000, &[0; 8]),
        go(1, 1, 0, &[0; 4]),
    ] {
        assert_eq!(wrong.unwrap_err().kind, FaultKind::Launch);
    }
}

#[test]
fn ranges_of_memory_are_separate() {
    let mut memory = Memory::new();
    let mut bytes = vec![1u8; 64];
    // SAFETY: `bytes` outlives the memory.
    unsafe {
        memory.map(0x1000, bytes.as_mut_ptr(), 32);
        memory.map(bytes.as_ptr() as u64 + 32, bytes.as_mut_ptr().wrapping_add(32), 32);
    }
    let body = "ld.global.u32 %r0, [%p0]; ld.global.u32 %r1, [%p1+28]; ld.global.u32 %r2, [%p0+32]; ld.global.u64 %d0, [%p1+32];";
    let module = Module::parse(&kernel(2, "", body)).unwrap();
    let mut params = 0x1000u64.to_le_bytes().to_vec();
    params.extend((bytes.as_ptr() as u64 + 32).to_le_bytes());
    let entry = module.entry("k").unwrap();
    let launch = Launch { entry, grid: [1; 3], block: [1; 3], shared: 0, params: &params };
    assert_eq!(run(&launch, &memory, &Options::default()).unwrap().out_of_bounds, 2);
    memory.unmap(0x1000);
    assert_eq!(
        run(&launch, &memory, &Options { checks: false, ..Options::default() })
            .unwrap()
            .out_of_bounds,
        3
    );
}
