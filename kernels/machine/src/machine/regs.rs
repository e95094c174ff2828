//! The registers of one warp, with 32 lanes each, and operations on whole registers.

use crate::machine::sums::Sums;
use half::{bf16, f16};
use std::marker::PhantomData;

/// A register of 32 lanes.
pub(crate) type Lanes<T> = [T; 32];

/// Banks of registers. 16-bit registers are zero-extended in `words`; a predicate is a mask of
/// lanes.
#[derive(Default)]
pub(crate) struct Regs {
    pub words: Vec<Lanes<u32>>,
    pub doubles: Vec<Lanes<u64>>,
    pub preds: Vec<u32>,
    /// How products of matrices are added.
    pub sums: Sums,
}

impl Regs {
    #[inline(always)]
    pub(crate) fn put_word(&mut self, slot: u32, value: Lanes<u32>, mask: u32) {
        let to = &mut self.words[slot as usize];
        if mask == !0 {
            *to = value;
        } else {
            for l in 0..32 {
                to[l] = if mask >> l & 1 == 1 { value[l] } else { to[l] };
            }
        }
    }

    #[inline(always)]
    pub(crate) fn put_double(&mut self, slot: u32, value: Lanes<u64>, mask: u32) {
        let to = &mut self.doubles[slot as usize];
        if mask == !0 {
            *to = value;
        } else {
            for l in 0..32 {
                to[l] = if mask >> l & 1 == 1 { value[l] } else { to[l] };
            }
        }
    }

    #[inline(always)]
    pub(crate) fn put_pred(&mut self, slot: u32, value: u32, mask: u32) {
        let to = &mut self.preds[slot as usize];
        *to = *to & !mask | value & mask;
    }
}

/// A type that a lane of a register can be read as.
pub(crate) trait Lane: Copy + 'static {
    /// Whether it is in the bank of 64-bit registers.
    const WIDE: bool;
    fn from_bits(bits: u64) -> Self;
    fn bits(self) -> u64;
}

macro_rules! lane {
    ($t:ty, $wide:expr, |$b:ident| $from:expr, |$v:ident| $to:expr) => {
        impl Lane for $t {
            const WIDE: bool = $wide;
            #[inline(always)]
            fn from_bits($b: u64) -> Self {
                $from
            }
            #[inline(always)]
            fn bits(self) -> u64 {
                let $v = self;
                $to
            }
        }
    };
}
lane!(u8, false, |b| b as u8, |v| v as u64);
lane!(i8, false, |b| b as i8, |v| v as u8 as u64);
lane!(u16, false, |b| b as u16, |v| v as u64);
lane!(i16, false, |b| b as i16, |v| v as u16 as u64);
lane!(u32, false, |b| b as u32, |v| v as u64);
lane!(i32, false, |b| b as i32, |v| v as u32 as u64);
lane!(f32, false, |b| f32::from_bits(b as u32), |v| v.to_bits() as u64);
lane!(f16, false, |b| f16::from_bits(b as u16), |v| v.to_bits() as u64);
lane!(bf16, false, |b| bf16::from_bits(b as u16), |v| v.to_bits() as u64);
lane!(u64, true, |b| b, |v| v);
lane!(i64, true, |b| b as i64, |v| v as u64);
lane!(f64, true, |b| f64::from_bits(b), |v| v.to_bits());

#[inline(always)]
fn get<T: Lane>(regs: &Regs, slot: u32) -> Lanes<T> {
    let mut out = [T::from_bits(0); 32];
    if T::WIDE {
        let x = &regs.doubles[slot as usize];
        for l in 0..32 {
            out[l] = T::from_bits(x[l]);
        }
    } else {
        let x = &regs.words[slot as usize];
        for l in 0..32 {
            out[l] = T::from_bits(x[l] as u64);
        }
    }
    out
}

#[inline(always)]
fn put<T: Lane>(regs: &mut Regs, slot: u32, value: Lanes<T>, mask: u32) {
    if T::WIDE {
        let mut out = [0u64; 32];
        for l in 0..32 {
            out[l] = value[l].bits();
        }
        regs.put_double(slot, out, mask);
    } else {
        let mut out = [0u32; 32];
        for l in 0..32 {
            out[l] = value[l].bits() as u32;
        }
        regs.put_word(slot, out, mask);
    }
}

/// An operation on registers only, with fixed registers.
pub(crate) type Alu = Box<dyn Fn(&mut Regs, u32) + Send + Sync>;

/// Whether the code for AVX2 with FMA can run.
pub(crate) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The body of an operation. It is a trait so that it can always be inlined into the copy for AVX2,
/// where `mul_add` is one instruction.
trait Body: Send + Sync + 'static {
    fn run(&self, regs: &mut Regs, mask: u32);
}

/// Boxes a body compiled twice: for AVX2 with FMA, and for any processor.
fn boxed(body: impl Body) -> Alu {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn vector(body: &impl Body, regs: &mut Regs, mask: u32) {
            body.run(regs, mask)
        }
        return Box::new(move |regs: &mut Regs, mask: u32| {
            // SAFETY: the features were detected above.
            unsafe { vector(&body, regs, mask) }
        });
    }
    Box::new(move |regs: &mut Regs, mask: u32| body.run(regs, mask))
}

/// d = f(s), with the types of the arguments.
struct Apply<F, T, const N: usize> {
    d: u32,
    s: [u32; N],
    f: F,
    types: PhantomData<fn(T)>,
}

impl<A: Lane, D: Lane, F: Fn(A) -> D + Send + Sync + 'static> Body for Apply<F, (A, D), 1> {
    #[inline(always)]
    fn run(&self, regs: &mut Regs, mask: u32) {
        let a = get::<A>(regs, self.s[0]);
        let mut out = [D::from_bits(0); 32];
        for l in 0..32 {
            out[l] = (self.f)(a[l]);
        }
        put(regs, self.d, out, mask)
    }
}

impl<A: Lane, B: Lane, D: Lane, F: Fn(A, B) -> D + Send + Sync + 'static> Body
    for Apply<F, (A, B, D), 2>
{
    #[inline(always)]
    fn run(&self, regs: &mut Regs, mask: u32) {
        let (a, b) = (get::<A>(regs, self.s[0]), get::<B>(regs, self.s[1]));
        let mut out = [D::from_bits(0); 32];
        for l in 0..32 {
            out[l] = (self.f)(a[l], b[l]);
        }
        put(regs, self.d, out, mask)
    }
}

impl<A: Lane, B: Lane, C: Lane, D: Lane, F> Body for Apply<F, (A, B, C, D), 3>
where
    F: Fn(A, B, C) -> D + Send + Sync + 'static,
{
    #[inline(always)]
    fn run(&self, regs: &mut Regs, mask: u32) {
        let (a, b, c) =
            (get::<A>(regs, self.s[0]), get::<B>(regs, self.s[1]), get::<C>(regs, self.s[2]));
        let mut out = [D::from_bits(0); 32];
        for l in 0..32 {
            out[l] = (self.f)(a[l], b[l], c[l]);
        }
        put(regs, self.d, out, mask)
    }
}

/// d = f(a)
pub(crate) fn unary<A: Lane, D: Lane>(
    d: u32,
    a: u32,
    f: impl Fn(A) -> D + Send + Sync + 'static,
) -> Alu {
    boxed(Apply::<_, (A, D), 1> { d, s: [a], f, types: PhantomData })
}

/// d = f(a, b)
pub(crate) fn binary<A: Lane, B: Lane, D: Lane>(
    d: u32,
    s: [u32; 2],
    f: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Alu {
    boxed(Apply::<_, (A, B, D), 2> { d, s, f, types: PhantomData })
}

/// d = f(a, b, c)
pub(crate) fn ternary<A: Lane, B: Lane, C: Lane, D: Lane>(
    d: u32,
    s: [u32; 3],
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Alu {
    boxed(Apply::<_, (A, B, C, D), 3> { d, s, f, types: PhantomData })
}

/// The mask of lanes where f(a, b) is true.
pub(crate) fn compare<A: Lane>(
    [a, b]: [u32; 2],
    f: impl Fn(A, A) -> bool + Send + Sync + 'static,
) -> Box<dyn Fn(&Regs) -> u32 + Send + Sync> {
    Box::new(move |regs| {
        let (a, b) = (get::<A>(regs, a), get::<A>(regs, b));
        let mut holds = [0u32; 32];
        for l in 0..32 {
            holds[l] = (f(a[l], b[l]) as u32) << l;
        }
        holds.iter().fold(0, |m, h| m | h)
    })
}
