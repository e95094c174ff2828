//! AMX: tiles of 16 rows of 64 bytes, and instructions that multiply two of them.
//!
//! A tile of x has 16 rows of 32 bf16 or of 64 bytes. One of w has 16 words (two bf16, or four
//! bytes, that are neighbours along k) of 16 rows of w, which is how panels are packed anyway. The
//! product of both is a tile of 16 x 16 sums. Four tiles hold sums, two x and two w, so that every
//! loaded tile is used twice: a kernel computes 32 x 32 sums.
//!
//! Operating systems save tiles only of processes that have asked for them, and the state of a
//! thread is larger while tiles are configured: [`Tiles`] configures them for one task.

/// What this processor and its operating system offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amx {
    /// The processor has no AMX for bf16 and bytes.
    Absent,
    /// The processor has it, but the operating system does not let this process use it, or is not
    /// Linux.
    Refused,
    /// It can be used.
    Usable,
}

/// Finds out once, and asks the operating system for permission.
pub fn amx() -> Amx {
    static FOUND: std::sync::OnceLock<Amx> = std::sync::OnceLock::new();
    *FOUND.get_or_init(detect)
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Amx {
    Amx::Absent
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Amx {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    unsafe fn enabled_state() -> u64 {
        // SAFETY: the caller has checked that the system enabled the instruction.
        unsafe { _xgetbv(0) }
    }
    #[allow(unused_unsafe, reason = "the oldest Rust that builds this needs it")]
    // SAFETY: every x86-64 processor has the instruction, and leaf 7 is read only where it exists.
    let (features, extended) = unsafe {
        let most = __cpuid(0).eax;
        let extended = if most < 7 { 0 } else { __cpuid_count(7, 0).edx };
        (__cpuid(1).ecx, extended)
    };
    // amx-bf16, amx-tile and amx-int8.
    let needed = 1 << 22 | 1 << 24 | 1 << 25;
    if extended & needed != needed {
        return Amx::Absent;
    }
    let os_saves = std::is_x86_feature_detected!("xsave") && features & 1 << 27 != 0;
    // XTILECFG and XTILEDATA.
    let state = 1 << 17 | 1 << 18;
    // SAFETY: the processor and the system have the instruction.
    if os_saves && unsafe { enabled_state() } & state == state && permitted() {
        Amx::Usable
    } else {
        Amx::Refused
    }
}

/// Asks Linux to save the tiles of all threads of this process, once and for all.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call has two numbers as arguments and touches no memory of this process. Older
    // systems refuse it.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn permitted() -> bool {
    false
}

/// Rows and columns of the sums of one call of a kernel.
pub const SUMS: usize = 32;
/// Words of k of a tile.
pub const STEP: usize = 16;

/// While this exists, the tiles of this thread are configured: eight of 16 rows of 64 bytes. It
/// cannot be sent to another thread.
pub struct Tiles(std::marker::PhantomData<*const ()>);

impl Tiles {
    /// Configures the tiles of this thread.
    ///
    /// # Safety
    /// [`amx`] must have returned `Usable`, and nothing else may configure tiles of this thread
    /// while the result exists.
    pub unsafe fn configure() -> Tiles {
        #[cfg(target_arch = "x86_64")]
        {
            #[repr(C, align(64))]
            struct Config {
                palette: u8,
                start_row: u8,
                reserved: [u8; 14],
                row_bytes: [u16; 16],
                rows: [u8; 16],
            }
            static CONFIG: Config = Config {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
                rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
            };
            // SAFETY: the configuration is valid, and the caller guarantees that AMX can be used.
            unsafe {
                std::arch::asm!(
                    "ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                );
            }
        }
        Tiles(std::marker::PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `configure` could configure them, so they can be released.
        unsafe {
            std::arch::asm!(
                "tilerelease", options(nostack, nomem),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
        }
    }
}

/// 32 rows of x: where they start, and words from one row and from one step of k to the next.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// The first word.
    pub at: *const u32,
    /// Words from one row to the next.
    pub row: usize,
    /// Words from one step to the next.
    pub step: usize,
}

impl Rows {
    /// Packed rows: `[step][row][word]`.
    pub fn packed(at: *const u32) -> Rows {
        Rows { at, row: STEP, step: SUMS * STEP }
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! sums {
    ($(#[$doc:meta])* $name:ident, $multiply:literal) => {
        $(#[$doc])*
        ///
        /// w: `[step][word][row]` with 32 rows; `pitch` words from one row of c to the next.
        ///
        /// # Safety
        /// [`Tiles`] must exist in this thread, x and w must have `steps` steps, and c 32 rows of
        /// 32 words.
        #[inline]
        pub unsafe fn $name(
            steps: usize,
            x: Rows,
            w: *const u32,
            c: *mut u32,
            pitch: usize,
            more: bool,
        ) {
            // SAFETY: the addresses are those that the caller describes, and all tiles are listed.
            unsafe {
                std::arch::asm!(
                    "test {more:e}, {more:e}",
                    "jnz 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "tileloadd tmm0, [{c} + {pitch}]",
                    "tileloadd tmm1, [{c} + {pitch} + 64]",
                    "tileloadd tmm2, [{low} + {pitch}]",
                    "tileloadd tmm3, [{low} + {pitch} + 64]",
                    "3:",
                    "test {n}, {n}",
                    "jz 5f",
                    "4:",
                    "tileloadd tmm4, [{x} + {x_row}]",
                    "tileloadd tmm6, [{w} + {w_row}]",
                    concat!($multiply, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{w} + {w_row} + 64]",
                    concat!($multiply, " tmm1, tmm4, tmm7"),
                    "tileloadd tmm5, [{x_low} + {x_row}]",
                    concat!($multiply, " tmm2, tmm5, tmm6"),
                    concat!($multiply, " tmm3, tmm5, tmm7"),
                    "add {x}, {x_step}",
                    "add {x_low}, {x_step}",
                    "add {w}, 2048",
                    "dec {n}",
                    "jnz 4b",
                    "5:",
                    "tilestored [{c} + {pitch}], tmm0",
                    "tilestored [{c} + {pitch} + 64], tmm1",
                    "tilestored [{low} + {pitch}], tmm2",
                    "tilestored [{low} + {pitch} + 64], tmm3",
                    more = in(reg) u32::from(more),
                    n = inout(reg) steps => _,
                    x = inout(reg) x.at => _,
                    x_low = inout(reg) x.at.wrapping_add(16 * x.row) => _,
                    w = inout(reg) w => _,
                    c = in(reg) c,
                    low = in(reg) c.wrapping_add(16 * pitch),
                    pitch = in(reg) pitch * 4,
                    x_row = in(reg) x.row * 4,
                    x_step = in(reg) x.step * 4,
                    w_row = in(reg) 128usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
sums!(
    /// `c[32 x 32] (+)= x . w^T` of bf16 with sums in f32. Adds to c if `more`. Subnormals are
    /// zero, as for `vdpbf16ps`.
    sums_of_bf16, "tdpbf16ps"
);
#[cfg(target_arch = "x86_64")]
sums!(
    /// `c[32 x 32] (+)= x . w^T` of bytes with a sign, with sums in i32. Adds to c if `more`.
    sums_of_i8, "tdpbssd"
);
