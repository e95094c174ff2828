//! How much products in few bits lose: for single products, with random numbers that have outlier
//! channels and with the activations of the embedded model, and for its images.
//!
//! `cargo test --test models accuracy -- --include-ignored --nocapture` prints the numbers of
//! `docs/accuracy.md`. A scheme is a function of the rows of both operands that rounds them as the
//! scheme does; the products of the rounded operands are computed in f32. Integer and FP8 products
//! are exact but for the last sums, so this is what such kernels compute.

mod attention;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use flux_fast::backend::cpu::CpuBackend;
use flux_fast::backend::{Backend, Compute, Device, Layout, Place, Places, WeightKey};
use flux_fast::dtype::DType;
use flux_fast::dtype::blocks::FORMATS;
use flux_fast::dtype::int8::{Int8, Rotation};
use flux_fast::error::Result;
use flux_fast::op::{Linear, Op, Step, Use};
use flux_fast::pipeline::Engine;
use flux_fast::pipeline::request::{Options, Request};
use flux_fast::tensor::{HostPart, HostWeight, Scale, Tensor};

use attention::Heads;

use crate::common::forward::forward;
use crate::common::{cpu, psnr, relative_error};

/// Rounds a row in place.
type Round = Arc<dyn Fn(&mut [f32]) + Send + Sync>;

/// What a scheme does to the rows of x and of the weight; nothing where there is none.
#[derive(Clone)]
struct Scheme {
    name: &'static str,
    x: Option<Round>,
    w: Option<Round>,
    /// Attention in the blocks is computed in 8-bit integers.
    attention: bool,
}

fn scheme(
    name: &'static str,
    x: Option<fn(&mut [f32])>,
    w: impl Fn(&mut [f32]) + Send + Sync + 'static,
) -> Scheme {
    let x = x.map(|x| Arc::new(x) as Round);
    Scheme { name, x, w: Some(Arc::new(w)), attention: false }
}

fn e4m3(row: &mut [f32]) {
    let scale = row.iter().fold(0f32, |m, v| m.max(v.abs())) / 448.0;
    if scale == 0.0 {
        return;
    }
    let mut bytes = vec![];
    row.iter().for_each(|v| DType::F8E4M3.encode(v / scale, &mut bytes));
    row.iter_mut().zip(&bytes).for_each(|(v, b)| *v = DType::F8E4M3.decode(&[*b]) * scale);
}

fn bf16(row: &mut [f32]) {
    let mut bytes = vec![];
    row.iter().for_each(|v| DType::BF16.encode(*v, &mut bytes));
    row.iter_mut().zip(bytes.chunks(2)).for_each(|(v, b)| *v = DType::BF16.decode(b));
}

/// Integers of the whole row, and back.
fn integers(rotation: Option<Rotation>, row: &mut [f32]) {
    let mut q = vec![0; row.len()];
    let scale = Int8 { rotation }.quantise(row, &mut q);
    row.iter_mut().zip(&q).for_each(|(v, q)| *v = f32::from(*q) * scale);
    if let Some(rotation) = rotation {
        rotation.apply(row);
    }
}

fn rotated(row: &mut [f32]) {
    integers(Rotation::of_columns(row.len()), row);
}

fn plain(row: &mut [f32]) {
    integers(None, row);
}

fn groups_of_128(row: &mut [f32]) {
    row.chunks_mut(128).for_each(plain);
}

/// Rotated in groups of 256, with scales for 128 columns of the result.
fn rotated_groups_of_128(row: &mut [f32]) {
    let rotation = Rotation::of_columns(row.len()).unwrap();
    rotation.apply(row);
    groups_of_128(row);
    rotation.apply(row);
}

fn block(dtype: DType) -> impl Fn(&mut [f32]) + Send + Sync {
    let format = FORMATS.iter().find(|f| f.dtype == dtype).unwrap();
    move |row| {
        let (mut bytes, mut scales) = (vec![], vec![]);
        format.encode(row, 0.0, &mut bytes, &mut scales);
        let scales: Vec<f32> = scales.chunks_exact(4).map(|b| DType::F32.decode(b)).collect();
        format.decode(&bytes, &scales, 0, row);
    }
}

/// The schemes of the tables.
fn schemes() -> Vec<Scheme> {
    let mut all = vec![
        scheme("bf16", Some(bf16), bf16),
        scheme("fp8 weights", Some(bf16), e4m3),
        scheme("fp8 weights and activations", Some(e4m3), e4m3),
        scheme("int8, rotated (`--compute int8`)", Some(rotated), rotated),
        Scheme {
            attention: true,
            ..scheme(
                "int8 + attention (`--compute int8` on most NVIDIA GPUs)",
                Some(rotated),
                rotated,
            )
        },
        scheme("int8, not rotated", Some(plain), plain),
        scheme("int8, groups of 128, not rotated", Some(groups_of_128), groups_of_128),
        scheme("int8, groups of 128, rotated", Some(rotated_groups_of_128), rotated_groups_of_128),
    ];
    for (name, dtype) in [
        ("Q8_0", DType::Q8_0),
        ("Q6_K", DType::Q6K),
        ("Q5_K", DType::Q5K),
        ("Q5_1", DType::Q5_1),
        ("Q5_0", DType::Q5_0),
        ("Q4_K", DType::Q4K),
        ("Q4_1", DType::Q4_1),
        ("Q4_0", DType::Q4_0),
        ("Q3_K", DType::Q3K),
        ("Q2_K", DType::Q2K),
    ] {
        all.push(scheme(name, Some(bf16), block(dtype)));
    }
    all
}

fn named(name: &str) -> Scheme {
    schemes().into_iter().find(|s| s.name.starts_with(name)).unwrap()
}

/// A product: x `rows x k`, w `n x k`.
struct Product {
    k: usize,
    x: Vec<f32>,
    w: Vec<f32>,
}

impl Product {
    fn result(&self) -> Vec<f32> {
        let dot = |x: &[f32], w: &[f32]| {
            x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32
        };
        let rows = self.x.chunks(self.k);
        rows.flat_map(|x| self.w.chunks(self.k).map(move |w| dot(x, w))).collect()
    }

    /// The relative error of `scheme`.
    fn error(&self, scheme: &Scheme) -> f64 {
        let round = |values: &[f32], round: &Option<Round>| {
            let mut values = values.to_vec();
            if let Some(round) = round {
                values.chunks_mut(self.k).for_each(|row| round(row));
            }
            values
        };
        let (x, w) = (round(&self.x, &scheme.x), round(&self.w, &scheme.w));
        relative_error(&Product { k: self.k, x, w }.result(), &self.result())
    }
}

/// Normally distributed numbers of a fixed seed.
fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    };
    let next = |_| {
        let (a, b) = (uniform().max(1e-300), uniform());
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    };
    (0..n).map(next).collect()
}

/// A product of random numbers in which `outliers` columns of x are `size` times as large.
fn random(k: usize, outliers: usize, size: f32) -> Product {
    let (mut x, w) = (normal(1, 48 * k), normal(2, 64 * k));
    for row in x.chunks_mut(k) {
        for i in 0..outliers {
            row[(i * 2_654_435_761usize) % k] *= size;
        }
    }
    Product { k, x, w }
}

/// Products that were recorded, in the order in which they were computed.
type Recorded = Arc<Mutex<Vec<Product>>>;

/// Changes the large products of the embedded model's blocks as a scheme does, and attention where
/// the scheme includes it, or records both.
struct Changed {
    inner: CpuBackend,
    scheme: Option<Scheme>,
    weights: HashMap<WeightKey, (Place, HostWeight)>,
    /// The weights that were replaced.
    changed: HashSet<WeightKey>,
    recorded: Recorded,
    /// q, k and v of heads.
    heads: Heads,
}

impl Changed {
    /// The elements of `tensor`.
    fn tensor(&mut self, tensor: &Tensor, places: &Places) -> Result<Vec<u8>> {
        let mut bytes = vec![0; tensor.bytes()];
        self.inner.read(places.of(tensor), &mut bytes)?;
        Ok(bytes)
    }

    /// Replaces the weight by its rounded one, once.
    fn change_weight(&mut self, key: WeightKey, round: &Round) -> Result<()> {
        if !self.changed.insert(key) {
            return Ok(());
        }
        let (place, weight) = self.weights[&key].clone();
        let mut values = weight.to_f32();
        values.chunks_mut(weight.cols).for_each(|row| round(row));
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let part = HostPart {
            source: Arc::new(bytes),
            offset: 0,
            dtype: DType::F32,
            rows: weight.rows,
            cols: weight.cols,
            scale: Scale::One,
            rotation: None,
        };
        let rounded = HostWeight { parts: vec![part], ..weight };
        self.inner.forget(key)?;
        self.inner.load(key, place, &rounded, Use::Matrix)
    }

    fn product(&mut self, step: &Step, linear: &Linear, places: &Places) -> Result<()> {
        let key = places.key(linear.w);
        let tensor = linear.x.tensor;
        let before = self.tensor(&tensor, places)?;
        let mut x: Vec<f32> = before.chunks_exact(4).map(|b| DType::F32.decode(b)).collect();
        let window = linear.x.col..linear.x.col + linear.x.cols;
        let Some(scheme) = self.scheme.clone() else {
            let weight = &self.weights[&key].1;
            let mut product = Product { k: linear.x.cols, x: vec![], w: weight.to_f32() };
            x.chunks(tensor.cols).for_each(|row| product.x.extend(&row[window.clone()]));
            self.recorded.lock().unwrap().push(product);
            return self.inner.run(step, places);
        };
        if let Some(round) = &scheme.w {
            self.change_weight(key, round)?;
        }
        if let Some(round) = &scheme.x {
            x.chunks_mut(tensor.cols).for_each(|row| round(&mut row[window.clone()]));
        }
        let changed: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.inner.write(places.of(&tensor), &changed)?;
        self.inner.run(step, places)?;
        // Other operations read the input as it was; none of these writes over its input.
        self.inner.write(places.of(&tensor), &before)
    }
}

impl Backend for Changed {
    forward!(caps, weight_bytes, scratch_bytes, forget, write, read, sync);

    fn reserve(&mut self, layout: Layout, peak_bytes: u64) -> Result<()> {
        self.changed.clear();
        self.inner.reserve(layout, peak_bytes)
    }

    fn load(&mut self, key: WeightKey, place: Place, weight: &HostWeight, how: Use) -> Result<()> {
        self.weights.insert(key, (place, weight.clone()));
        self.changed.remove(&key);
        self.inner.load(key, place, weight, how)
    }

    fn run(&mut self, step: &Step, places: &Places) -> Result<()> {
        let in_block = step.label.starts_with("double.") || step.label.starts_with("single.");
        match &step.op {
            Op::Linear(linear) if in_block && linear.x.cols % 256 == 0 => {
                self.product(step, &linear.clone(), places)
            }
            Op::Attention(op)
                if in_block && self.scheme.as_ref().is_none_or(|scheme| scheme.attention) =>
            {
                self.attention(step, &op.clone(), places)
            }
            _ => self.inner.run(step, places),
        }
    }
}

const PROMPTS: [&str; 6] = [
    "a fox, 3D style, on a blue background",
    "a hamburger, flat style, on a purple background",
    "flat mushroom, green background",
    "a penguin on a white background",
    "pizza, classic style, on a red background",
    "a tiger, 3D style, on a yellow background",
];

/// The images of the first prompts, as values from 0 to 255.
fn draw(engine: &mut Engine, count: usize) -> Vec<Vec<f32>> {
    let image = |(seed, prompt): (usize, &&str)| {
        let request = Request::new(*prompt).seed(seed as u64);
        let image = engine.generate(&request).unwrap().images.remove(0);
        image.rgb.iter().map(|v| f32::from(*v)).collect()
    };
    PROMPTS.iter().take(count).enumerate().map(image).collect()
}

fn engine(compute: Compute) -> Engine {
    Engine::open(Options::default().device(Device::Cpu).compute(compute)).unwrap()
}

/// An engine in f32 whose products are changed as `scheme` does, and what it records without one.
fn changed(scheme: Option<Scheme>) -> (Engine, Recorded, Heads) {
    let mut engine = engine(Compute::F32);
    let (recorded, heads) = (Recorded::default(), Heads::default());
    engine.replace_backend(Box::new(Changed {
        inner: cpu(Compute::F32),
        scheme,
        weights: HashMap::new(),
        changed: HashSet::new(),
        recorded: recorded.clone(),
        heads: heads.clone(),
    }));
    (engine, recorded, heads)
}

/// The mean PSNR of images against the exact ones, and the lowest.
fn quality(images: &[Vec<f32>], exact: &[Vec<f32>]) -> (f64, f64) {
    let all: Vec<f64> = images.iter().zip(exact).map(|(a, b)| psnr(a, b, 255.0)).collect();
    let lowest = all.iter().copied().fold(f64::INFINITY, f64::min);
    (all.iter().sum::<f64>() / all.len() as f64, lowest)
}

/// A few products of the second step of the first prompt, with fewer rows of the weight.
fn recorded() -> Vec<Product> {
    let (mut engine, recorded, _) = changed(None);
    engine.generate(&Request::new(PROMPTS[0]).steps(2)).unwrap();
    let all = std::mem::take(&mut *recorded.lock().unwrap());
    let half = all.len() / 2;
    let few = |p: Product| {
        let rows = (p.x.len() / p.k).min(24);
        Product {
            k: p.k,
            x: p.x[..rows * p.k].to_vec(),
            w: p.w[..(p.w.len() / p.k).min(64) * p.k].to_vec(),
        }
    };
    all.into_iter().skip(half).map(few).collect()
}

/// The square root of the mean square of the errors of all products.
fn mean_error(products: &[Product], scheme: &Scheme) -> f64 {
    let sum: f64 = products.iter().map(|p| p.error(scheme).powi(2)).sum();
    (sum / products.len() as f64).sqrt()
}

#[test]
fn int8_is_no_less_exact_than_fp8_weights_and_activations() {
    let (int8, fp8) = (named("int8, rotated"), named("fp8 weights and"));
    for product in [random(768, 0, 1.0), random(768, 6, 30.0), random(1024, 2, 100.0)] {
        let (int8, fp8) = (product.error(&int8), product.error(&fp8));
        assert!(int8 < 0.6 * fp8, "{int8:.4} and {fp8:.4}");
    }
    let recorded = recorded();
    assert!(recorded.len() >= 16, "{} products were recorded", recorded.len());
    let (of_int8, of_fp8) = (mean_error(&recorded, &int8), mean_error(&recorded, &fp8));
    println!("recorded: int8 {of_int8:.4}, fp8 {of_fp8:.4}");
    assert!(of_int8 < of_fp8);
    let exact = draw(&mut engine(Compute::F32), 2);
    let of_int8 = quality(&draw(&mut engine(Compute::Int8), 2), &exact);
    let of_fp8 = quality(&draw(&mut changed(Some(fp8)).0, 2), &exact);
    println!("images: int8 {of_int8:.1?} dB, fp8 {of_fp8:.1?} dB");
    assert!(of_int8.0 >= of_fp8.0 && of_int8.1 >= 27.0);
}

/// Prints the first table of `docs/accuracy.md`:
/// `cargo test --test models accuracy -- --include-ignored --nocapture`.
#[test]
#[ignore = "prints the first table of docs/accuracy.md; several minutes"]
fn tables() {
    let randoms = [random(3072, 0, 1.0), random(3072, 12, 30.0), random(3072, 2, 100.0)];
    let recorded = recorded();
    println!("| scheme | normal | 12 x 30 | 2 x 100 | recorded | PSNR, mean | PSNR, lowest |");
    println!("|---|---|---|---|---|---|---|");
    let exact = draw(&mut engine(Compute::F32), PROMPTS.len());
    for scheme in schemes() {
        let mut errors: Vec<f64> = randoms.iter().map(|p| p.error(&scheme)).collect();
        errors.push(mean_error(&recorded, &scheme));
        let cells: Vec<String> = errors.iter().map(|e| format!("{:.2} %", 100.0 * e)).collect();
        let images = draw(&mut changed(Some(scheme.clone())).0, PROMPTS.len());
        let (mean, lowest) = quality(&images, &exact);
        println!("| {} | {} | {mean:.1} dB | {lowest:.1} dB |", scheme.name, cells.join(" | "));
    }
    for compute in [Compute::BF16, Compute::Int8] {
        let (mean, lowest) = quality(&draw(&mut engine(compute), PROMPTS.len()), &exact);
        println!("| `--compute {compute}` itself | | | | | {mean:.1} dB | {lowest:.1} dB |");
    }
}
