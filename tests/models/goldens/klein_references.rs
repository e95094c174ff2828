//! Reference images of FLUX.2 [klein] besides those of the goldens: in bands, with an image to
//! start from, their memory, and those that are refused.

use super::f32_options;
use super::klein::{MODELS, plain, request};
use crate::common::{Golden, limit_to_least};
use flux_fast::error::Kind;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Image, Request};

fn gradient(width: usize, height: usize) -> Image {
    let value = |i: usize| (i / 3 % width * 255 / width + i % 3 * 20 + i * 7919 % 31) as u8 / 2;
    Image { width, height, rgb: (0..3 * width * height).map(value).collect() }
}

/// Where the encoder does not fit in one piece, references of every size are encoded in bands of
/// rows, to the same bits.
#[test]
fn references_in_bands_give_the_same_latents() {
    let golden = Golden::read("klein_distilled");
    let mut engine = plain(&golden).engine(&f32_options().no_cache(true));
    let base = request(&golden).reference(gradient(384, 256)).reference(gradient(100, 70));
    let bands = |engine: &Engine| {
        let plan = engine.plan(&base).unwrap();
        plan.phases.iter().filter(|p| p.phase == "image").map(|p| p.bands).sum::<usize>()
    };
    let want = engine.generate(&base).unwrap().latents;
    assert_eq!(bands(&engine), 0);
    limit_to_least(&mut engine, &base, 1 << 16);
    assert!(bands(&engine) > 0, "{}", engine.plan(&base).unwrap());
    assert!(engine.generate(&base).unwrap().latents == want);
}

/// References next to an image to start from: it sets where the noise ends, they are looked at.
#[test]
fn references_and_image_to_image_go_together() {
    for golden in MODELS.map(Golden::read) {
        let mut engine = plain(&golden).engine(&f32_options());
        let base = request(&golden).reference(gradient(100, 70));
        let alone = engine.generate(&base).unwrap();
        let from = |strength| base.clone().init(gradient(96, 64)).strength(strength);
        assert_eq!(engine.generate(&from(1.0)).unwrap().latents, alone.latents);
        let half = engine.generate(&from(0.5)).unwrap();
        assert_ne!(half.latents, alone.latents);
        let mut without = from(0.5);
        without.references.clear();
        assert_ne!(engine.generate(&without).unwrap().latents, half.latents);
    }
}

#[test]
fn references_count_against_the_memory_of_the_host() {
    let golden = Golden::read("klein_distilled");
    let engine = plain(&golden).engine(&f32_options());
    let host = |request: &Request| engine.plan(request).unwrap().host_bytes;
    let base = request(&golden);
    let plain = host(&base);
    let large = gradient(3000, 2000);
    let (one, two) = (
        host(&base.clone().reference(large.clone())),
        host(&base.reference(large.clone()).reference(large)),
    );
    assert!(one >= plain + 3 * 6_000_000 && two >= one + 3 * 6_000_000, "{plain} {one} {two}");
}

#[test]
fn references_that_cannot_be_used_are_refused_with_what_to_do() {
    let golden = Golden::read("klein_distilled");
    let mut engine = plain(&golden).engine(&f32_options());
    let mut refused = |request: Request| {
        let e = engine.generate(&request).map(drop).unwrap_err();
        assert_eq!(e.kind(), Kind::Argument, "{e}");
        assert!(e.hint().is_some() || e.to_string().contains("expected"), "{e}");
        e.to_string()
    };
    let base = request(&golden);
    let tiny = refused(base.clone().reference(gradient(1, 1)));
    assert!(tiny.contains("too small") && tiny.contains("1x1"), "{tiny}");
    let narrow = refused(base.clone().reference(gradient(640, 64)));
    assert!(narrow.contains("too narrow"), "{narrow}");
    let many = (0..11).fold(base, |request, _| request.reference(gradient(64, 64)));
    assert!(refused(many).contains("too many"));
}
