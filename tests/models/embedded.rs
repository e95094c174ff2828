//! The embedded model's images show what the prompts say: the measure of `assets/tiny/evaluate.py`
//! on a few prompts. A wrong kernel gives wrong images.
//!
//! `data/thumbs.png` has the 852 training images at 16 x 16 (premultiplied RGBA, 32 per row),
//! `data/thumbs.txt` their names and styles.

use flux_fast::backend::Compute;
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Image, Options, Request};

const EDGE: usize = 16;
const COLOURS: [(&str, [f32; 3]); 9] = [
    ("white", [255.0, 255.0, 255.0]),
    ("black", [30.0, 30.0, 34.0]),
    ("red", [220.0, 60.0, 60.0]),
    ("green", [60.0, 160.0, 75.0]),
    ("blue", [60.0, 110.0, 220.0]),
    ("yellow", [245.0, 205.0, 70.0]),
    ("orange", [245.0, 150.0, 60.0]),
    ("pink", [240.0, 150.0, 190.0]),
    ("purple", [150.0, 90.0, 200.0]),
];

struct Thumbs {
    /// (name, style, EDGE * EDGE premultiplied RGBA values 0..=255)
    all: Vec<(String, String, Vec<f32>)>,
}

impl Thumbs {
    fn read() -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/");
        let sheet = image::open(format!("{folder}thumbs.png")).unwrap().to_rgba8();
        let names = std::fs::read_to_string(format!("{folder}thumbs.txt")).unwrap();
        let all = names.lines().enumerate().map(|(i, line)| {
            let (name, style) = line.split_once('\t').unwrap();
            let (top, left) = (i / 32 * EDGE, i % 32 * EDGE);
            let pixels = (0..EDGE * EDGE)
                .flat_map(|p| sheet.get_pixel((left + p % EDGE) as u32, (top + p / EDGE) as u32).0);
            (name.to_string(), style.to_string(), pixels.map(f32::from).collect())
        });
        let all: Vec<_> = all.collect();
        assert_eq!(all.len(), 852);
        Thumbs { all }
    }

    /// The name of the training image that is nearest to `picture` on a background of `colour`.
    fn nearest(&self, picture: &Image, colour: [f32; 3]) -> &str {
        let k = picture.width / EDGE;
        let mut small = vec![0f32; EDGE * EDGE * 3];
        for y in 0..picture.height {
            for x in 0..picture.width {
                for c in 0..3 {
                    small[(y / k * EDGE + x / k) * 3 + c] +=
                        f32::from(picture.rgb[(y * picture.width + x) * 3 + c]) / (k * k) as f32;
                }
            }
        }
        let distance = |rgba: &[f32]| {
            (0..EDGE * EDGE * 3)
                .map(|i| {
                    let (p, c) = (i / 3, i % 3);
                    (rgba[4 * p + c] + colour[c] * (1.0 - rgba[4 * p + 3] / 255.0) - small[i])
                        .powi(2)
                })
                .sum::<f32>()
        };
        let best =
            self.all.iter().map(|t| (distance(&t.2), &t.0)).min_by(|a, b| a.0.total_cmp(&b.0));
        best.unwrap().1
    }
}

fn right_background(picture: &Image, colour: [f32; 3]) -> bool {
    let corner = |c: usize| {
        let at = |x: usize, y: usize| f32::from(picture.rgb[(y * picture.width + x) * 3 + c]);
        (0..6)
            .flat_map(|y| (0..6).map(move |x| (x, y)))
            .map(|(x, y)| at(x, y) + at(picture.width - 1 - x, y))
            .sum::<f32>()
            / 72.0
    };
    (0..3).all(|c| (corner(c) - colour[c]).abs() < 0.15 * 255.0)
}

#[test]
fn images_show_the_subject_and_the_background_of_the_prompt() {
    let thumbs = Thumbs::read();
    let mut pipeline = Engine::open(Options::default()).unwrap();
    let (mut backgrounds, mut names) = (0, 0);
    for k in 0..24 {
        let (name, style, _) = &thumbs.all[(k * 53 + 7) % 852];
        let (colour, rgb) = COLOURS[k % 9];
        let prompt = format!("a {name}, {style} style, on a {colour} background");
        let request = Request::new(prompt.as_str()).seed(k as u64);
        let picture = pipeline.generate(&request).unwrap().images.remove(0);
        let nearest = thumbs.nearest(&picture, rgb);
        println!("{prompt}: background {}, nearest {nearest}", right_background(&picture, rgb));
        backgrounds += usize::from(right_background(&picture, rgb));
        names += usize::from(nearest == name);
    }
    println!("{backgrounds} backgrounds and {names} names right of 24");
    assert!(backgrounds >= 22, "only {backgrounds} of 24 backgrounds are right");
    assert!(names >= NAMES, "only {names} of 24 names are right");
}

/// The default arithmetic (bf16, if the processor has it) changes an image little.
/// `assets/tiny/results.md` compares the FP8 file with the weights that it was made from.
#[test]
fn the_default_arithmetic_stays_within_30_db_of_f32() {
    let open = |compute| {
        let options = Options::default().compute(compute);
        Engine::open(options).unwrap()
    };
    let (mut auto, mut exact) = (open(Compute::Auto), open(Compute::F32));
    for (seed, prompt) in
        ["a fox, 3D style, on a blue background", "a hamburger, flat style, on a purple background"]
            .iter()
            .enumerate()
    {
        let request = Request::new(*prompt).seed(seed as u64);
        let draw = |p: &mut Engine| p.generate(&request).unwrap().images.remove(0).rgb;
        let db = psnr(&draw(&mut auto), &draw(&mut exact));
        println!("{prompt}: {db:.1} dB");
        assert!(db >= 30.0, "{prompt}: {db:.1} dB");
    }
}

/// 10 log10(255^2 / mean squared difference).
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let float = |v: &[u8]| v.iter().map(|&b| f32::from(b)).collect::<Vec<_>>();
    crate::common::psnr(&float(a), &float(b), 255.0)
}

/// Less than the embedded weights achieve, so that another instruction set may change one or two
/// images by rounding. Guessing would give 0.1 of 24.
const NAMES: usize = 17;
