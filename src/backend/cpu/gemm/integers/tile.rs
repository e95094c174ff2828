//! The tile of products of integers, for every width of vectors.

/// Defines a function for `IntegerMicro::tile` with tiles of `MR` rows of two vectors: `$load`,
/// `$store` and `$splat` are those of the vectors, and `$add` returns `$sum` plus the products of a
/// word of w (`$w`) and one of x (`$x`).
macro_rules! vector_tile {
    (
        $name:ident, $features:literal, ($load:ident, $store:ident, $splat:ident),
        |$sum:ident, $w:ident, $x:ident| $add:expr
    ) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(
            words: usize,
            a: *const u32,
            b: *const u32,
            c: *mut i32,
            start: Option<&[i32]>,
        ) {
            const VECTOR: usize = NR / 2;
            let mut sums = [[$splat(0); 2]; MR];
            // SAFETY: the caller of `IntegerMicro::tile` guarantees panels of `words` words, a tile
            // of MR x NR, and MR starts.
            unsafe {
                for (i, s) in sums.iter_mut().enumerate() {
                    *s = match start {
                        Some(start) => [$splat(start[i]); 2],
                        None => {
                            let row = c.add(i * NR);
                            [$load(row.cast()), $load(row.add(VECTOR).cast())]
                        }
                    };
                }
                for k in 0..words {
                    let w0 = $load(b.add(k * NR).cast());
                    let w1 = $load(b.add(k * NR + VECTOR).cast());
                    for (i, s) in sums.iter_mut().enumerate() {
                        let $x = $splat(a.add(k * MR + i).cast::<i32>().read());
                        let ($sum, $w) = (s[0], w0);
                        s[0] = $add;
                        let ($sum, $w) = (s[1], w1);
                        s[1] = $add;
                    }
                }
                for (i, s) in sums.iter().enumerate() {
                    $store(c.add(i * NR).cast(), s[0]);
                    $store(c.add(i * NR + VECTOR).cast(), s[1]);
                }
            }
        }
    };
}
pub(super) use vector_tile;
