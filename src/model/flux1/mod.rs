//! The FLUX.1 transformer (MMDiT), after `flux/model.py` and `flux/modules/layers.py`.
//!
//! Split in two programs. `modulate` computes the shift, scale and gate vectors of every block for
//! every step at once: they depend only on (timestep, guidance, pooled text), and they take 27 % of
//! FLUX's weights. `denoise` is one step of everything else.

use super::{FluxConfig, TensorSpec};
use crate::dtype::DType;
use crate::op::{
    Attention, Cast, CopyRows, Epilogue, EulerStep, LayerNormModulate, Linear, Program, QkNormRope,
    Recorder, Silu, TimestepEmbed,
};
use crate::tensor::{Tensor, View};

const NORM_EPS: f32 = 1e-6;

/// How much one run of `denoise` works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DenoiseShape {
    /// Pictures.
    pub images: usize,
    /// Whether each picture runs twice, with the prompt and with the negative prompt (true CFG):
    /// all conditional ones first.
    pub cfg: bool,
    pub text_tokens: usize,
    /// Height and width of the grid of packed latent tokens (16 pixels each with FLUX's
    /// autoencoder).
    pub height: usize,
    pub width: usize,
}

impl DenoiseShape {
    /// Sequences that pass through the transformer.
    pub fn batch(&self) -> usize {
        self.images * self.prompts()
    }

    /// Prompts: the rows of one step's modulation.
    pub fn prompts(&self) -> usize {
        if self.cfg { 2 } else { 1 }
    }

    /// Image tokens of one picture.
    pub fn image_tokens(&self) -> usize {
        self.height * self.width
    }

    /// Text and image tokens of one sequence.
    pub fn tokens(&self) -> usize {
        self.text_tokens + self.image_tokens()
    }
}

/// Hands out consecutive vectors of `hidden` columns of the modulation matrix, in the order in
/// which `modulate` writes them.
struct Modulation {
    tensor: Tensor,
    hidden: usize,
    next: usize,
}

impl Modulation {
    fn take<const N: usize>(&mut self) -> [View; N] {
        std::array::from_fn(|_| {
            let view = self.tensor.columns(self.next, self.hidden);
            self.next += self.hidden;
            view
        })
    }
}

/// Every step's modulation. Inputs: `timestep` (rows x 1, in 0..1), `guidance` (rows x 1, if the
/// model has it), `pooled` (rows x pooled); rows = steps x prompts, step slowest. Output
/// `modulation`: rows x `modulation_cols()`, in block order: image (6 vectors) and text (6) of each
/// double block, 3 of each single block, shift and scale of the final layer.
pub fn modulate(c: &FluxConfig, rows: usize, act: DType) -> Program {
    let h = c.hidden;
    let mut r = Recorder::new("modulate");
    let timestep = r.input("timestep", rows, 1, DType::F32);
    let guidance = c.guidance.then(|| r.input("guidance", rows, 1, DType::F32));
    let pooled = r.input("pooled", rows, c.pooled, act);
    let out = r.output("modulation", rows, c.modulation_cols(), act);

    let mlp = |r: &mut Recorder, scope: &str, x: Tensor, sum: Option<Tensor>| {
        r.scope(scope);
        let hidden = r.temp(rows, h, act);
        linear(
            r,
            "in_layer",
            x.all(),
            &format!("{scope}.in_layer"),
            0,
            h,
            Epilogue::Silu,
            hidden.all(),
        );
        let vec = sum.unwrap_or_else(|| r.temp(rows, h, act));
        let epilogue = sum.map_or(Epilogue::None, |residual| Epilogue::Add { residual });
        linear(
            r,
            "out_layer",
            hidden.all(),
            &format!("{scope}.out_layer"),
            0,
            h,
            epilogue,
            vec.all(),
        );
        vec
    };
    let embed = |r: &mut Recorder, scope: &str, t: Tensor| {
        r.scope(scope);
        let sinusoids = r.temp(rows, c.time_dim, act);
        r.push("embed", TimestepEmbed { t, out: sinusoids });
        sinusoids
    };
    let t = embed(&mut r, "time_in", timestep);
    let vec = mlp(&mut r, "time_in", t, None);
    if let Some(guidance) = guidance {
        let g = embed(&mut r, "guidance_in", guidance);
        mlp(&mut r, "guidance_in", g, Some(vec));
    }
    mlp(&mut r, "vector_in", pooled, Some(vec));
    r.scope("vec");
    r.push("silu", Silu { x: vec, out: vec });

    let mut col = 0;
    let mut lin = |r: &mut Recorder, scope: String, label: &str, name: String, vectors: usize| {
        r.scope(scope);
        linear(
            r,
            label,
            vec.all(),
            &name,
            0,
            vectors * h,
            Epilogue::None,
            out.columns(col, vectors * h),
        );
        col += vectors * h;
    };
    for i in 0..c.depth_double {
        for stream in ["img", "txt"] {
            lin(
                &mut r,
                format!("double.{i}"),
                &format!("{stream}.mod"),
                format!("double_blocks.{i}.{stream}_mod.lin"),
                6,
            );
        }
    }
    for i in 0..c.depth_single {
        lin(&mut r, format!("single.{i}"), "mod", format!("single_blocks.{i}.modulation.lin"), 3);
    }
    lin(&mut r, "final".into(), "mod", "final_layer.adaLN_modulation.1".into(), 2);
    r.finish()
}

/// One step. Inputs: `latents` (images*image_tokens x in_channels, f32, updated in place), `text`
/// (batch*text_tokens x context), `modulation` (prompts x `modulation_cols()`: one step's rows of
/// what `modulate` made), `rope` (tokens x head_dim, f32, see `rope`), `step` (1 x 2 f32: t_next -
/// t, true CFG scale). Output `velocity` (batch*image_tokens x out_channels).
pub fn denoise(c: &FluxConfig, s: &DenoiseShape, act: DType) -> Program {
    let (batch, h) = (s.batch(), c.hidden);
    let (text_rows, image_rows) = (batch * s.text_tokens, batch * s.image_tokens());
    let mut r = Recorder::new("denoise");
    let latents = r.input("latents", s.images * s.image_tokens(), c.in_channels, DType::F32);
    let text = r.input("text", text_rows, c.context, act);
    let modulation = r.input("modulation", s.prompts(), c.modulation_cols(), act);
    let rope = r.input("rope", s.tokens(), c.head_dim, DType::F32);
    let step = r.input("step", 1, 2, DType::F32);
    let velocity = r.output("velocity", image_rows, c.out_channels, DType::F32);
    let mut modulation = Modulation { tensor: modulation, hidden: h, next: 0 };

    r.scope("img_in");
    let mut x = latents;
    if act != DType::F32 {
        let cast = r.temp(x.rows, x.cols, act);
        r.push("cast", Cast { x: x.all(), out: cast.all() });
        x = cast;
    }
    if s.cfg {
        let twice = r.temp(2 * x.rows, x.cols, act);
        for (label, to) in [("cond", 0), ("uncond", x.rows)] {
            r.push(label, CopyRows { x, out: twice, batch: 1, from: 0, to, count: x.rows });
        }
        x = twice;
    }
    let img = r.temp(image_rows, h, act);
    linear(&mut r, "linear", x.all(), "img_in", 0, h, Epilogue::None, img.all());
    r.scope("txt_in");
    let txt = r.temp(text_rows, h, act);
    linear(&mut r, "linear", text.all(), "txt_in", 0, h, Epilogue::None, txt.all());

    let joint = Joint { c, s, rope, act };
    for i in 0..c.depth_double {
        joint.double_block(&mut r, i, img, txt, &mut modulation);
    }
    r.scope("join");
    let x = r.temp(batch * s.tokens(), h, act);
    r.push("txt", CopyRows { x: txt, out: x, batch, from: 0, to: 0, count: s.text_tokens });
    r.push(
        "img",
        CopyRows { x: img, out: x, batch, from: 0, to: s.text_tokens, count: s.image_tokens() },
    );
    for i in 0..c.depth_single {
        joint.single_block(&mut r, i, x, &mut modulation);
    }

    r.scope("final");
    let img = r.temp(image_rows, h, act);
    r.push(
        "img",
        CopyRows { x, out: img, batch, from: s.text_tokens, to: 0, count: s.image_tokens() },
    );
    let [shift, scale] = modulation.take();
    r.push("norm", LayerNormModulate { x: img, shift, scale, eps: NORM_EPS, out: img });
    linear(
        &mut r,
        "linear",
        img.all(),
        "final_layer.linear",
        0,
        c.out_channels,
        Epilogue::None,
        velocity.all(),
    );
    r.scope("sampler");
    r.push("euler", EulerStep { x: latents, v: velocity, params: step, cfg: s.cfg });
    r.finish()
}

/// What the blocks share.
struct Joint<'a> {
    c: &'a FluxConfig,
    s: &'a DenoiseShape,
    rope: Tensor,
    act: DType,
}

impl Joint<'_> {
    /// `DoubleStreamBlock`: image and text have their own weights and meet in one attention, text
    /// first.
    fn double_block(
        &self,
        r: &mut Recorder,
        i: usize,
        img: Tensor,
        txt: Tensor,
        modulation: &mut Modulation,
    ) {
        let Joint { c, s, rope, act } = *self;
        let (h, batch) = (c.hidden, s.batch());
        r.scope(format!("double.{i}"));
        let img_mod: [View; 6] = modulation.take();
        let txt_mod: [View; 6] = modulation.take();
        let qkv = r.temp(batch * s.tokens(), 3 * h, act);
        for (name, x, m, first) in [("img", img, img_mod, s.text_tokens), ("txt", txt, txt_mod, 0)]
        {
            let block = format!("double_blocks.{i}.{name}_attn");
            let norm = r.temp(x.rows, h, act);
            r.push(
                &format!("{name}.norm1"),
                LayerNormModulate { x, shift: m[0], scale: m[1], eps: NORM_EPS, out: norm },
            );
            let own = r.temp(x.rows, 3 * h, act);
            linear(
                r,
                &format!("{name}.qkv"),
                norm.all(),
                &format!("{block}.qkv"),
                0,
                3 * h,
                Epilogue::None,
                own.all(),
            );
            let q_gain = r.weight(format!("{block}.norm.query_norm.scale"), 1, c.head_dim);
            let k_gain = r.weight(format!("{block}.norm.key_norm.scale"), 1, c.head_dim);
            let op = QkNormRope {
                qkv: own,
                q_gain,
                k_gain,
                rope,
                batch,
                heads: c.heads,
                tokens: s.tokens(),
                first,
                eps: NORM_EPS,
                out: qkv,
            };
            r.push(&format!("{name}.rope"), op);
        }
        let (txt_attn, img_attn) = (r.temp(txt.rows, h, act), r.temp(img.rows, h, act));
        r.push("attn", self.attention(qkv, Some((s.text_tokens, txt_attn)), img_attn.all()));
        for (name, x, attn, m) in [("img", img, img_attn, img_mod), ("txt", txt, txt_attn, txt_mod)]
        {
            let block = format!("double_blocks.{i}.{name}");
            let gated = |gate| Epilogue::GatedAdd { residual: x, gate };
            linear(
                r,
                &format!("{name}.proj"),
                attn.all(),
                &format!("{block}_attn.proj"),
                0,
                h,
                gated(m[2]),
                x.all(),
            );
            let norm = r.temp(x.rows, h, act);
            r.push(
                &format!("{name}.norm2"),
                LayerNormModulate { x, shift: m[3], scale: m[4], eps: NORM_EPS, out: norm },
            );
            let hidden = r.temp(x.rows, c.mlp_hidden, act);
            linear(
                r,
                &format!("{name}.mlp.0"),
                norm.all(),
                &format!("{block}_mlp.0"),
                0,
                c.mlp_hidden,
                Epilogue::GeluTanh,
                hidden.all(),
            );
            linear(
                r,
                &format!("{name}.mlp.2"),
                hidden.all(),
                &format!("{block}_mlp.2"),
                0,
                h,
                gated(m[5]),
                x.all(),
            );
        }
    }

    /// `SingleStreamBlock`: attention and MLP side by side; `linear1` is recorded as its two halves
    /// so that each lands where it is used.
    fn single_block(&self, r: &mut Recorder, i: usize, x: Tensor, modulation: &mut Modulation) {
        let Joint { c, s, rope, act } = *self;
        let h = c.hidden;
        r.scope(format!("single.{i}"));
        let [shift, scale, gate] = modulation.take();
        let block = format!("single_blocks.{i}");
        let norm = r.temp(x.rows, h, act);
        r.push("norm", LayerNormModulate { x, shift, scale, eps: NORM_EPS, out: norm });
        let qkv = r.temp(x.rows, 3 * h, act);
        linear(
            r,
            "qkv",
            norm.all(),
            &format!("{block}.linear1"),
            0,
            3 * h,
            Epilogue::None,
            qkv.all(),
        );
        let q_gain = r.weight(format!("{block}.norm.query_norm.scale"), 1, c.head_dim);
        let k_gain = r.weight(format!("{block}.norm.key_norm.scale"), 1, c.head_dim);
        let (batch, tokens) = (s.batch(), s.tokens());
        r.push(
            "rope",
            QkNormRope {
                qkv,
                q_gain,
                k_gain,
                rope,
                batch,
                heads: c.heads,
                tokens,
                first: 0,
                eps: NORM_EPS,
                out: qkv,
            },
        );
        let both = r.temp(x.rows, h + c.mlp_hidden, act);
        r.push("attn", self.attention(qkv, None, both.columns(0, h)));
        let mlp = both.columns(h, c.mlp_hidden);
        linear(
            r,
            "mlp",
            norm.all(),
            &format!("{block}.linear1"),
            3 * h,
            c.mlp_hidden,
            Epilogue::GeluTanh,
            mlp,
        );
        linear(
            r,
            "linear2",
            both.all(),
            &format!("{block}.linear2"),
            0,
            h,
            Epilogue::GatedAdd { residual: x, gate },
            x.all(),
        );
    }

    fn attention(&self, qkv: Tensor, first: Option<(usize, Tensor)>, out: View) -> Attention {
        let (h, heads) = (self.c.hidden, self.c.heads);
        let [q, k, v] = [0, 1, 2].map(|i| qkv.columns(i * h, h));
        let scale = 1.0 / (self.c.head_dim as f32).sqrt();
        Attention {
            q,
            k,
            v,
            batch: self.s.batch(),
            heads,
            scale,
            causal: false,
            bias: None,
            first,
            out,
        }
    }
}

/// Records `Linear` with the weight `{name}.weight`, rows `first .. first + n`, and the same
/// elements of `{name}.bias`.
#[allow(clippy::too_many_arguments)] // one call per layer of the reference, read left to right like it
fn linear(
    r: &mut Recorder,
    label: &str,
    x: View,
    name: &str,
    first: usize,
    n: usize,
    epilogue: Epilogue,
    out: View,
) {
    let w = r.weight_rows(format!("{name}.weight"), first, n, x.cols);
    let bias = Some(r.weight_rows(format!("{name}.bias"), first, 1, n));
    r.push(label, Linear { x, w, bias, side: None, epilogue, out });
}

/// The rotation table of `EmbedND`: a row per token, text first (ids all zero), then the image grid
/// (0, row, column); columns (cos, sin) per pair, axis after axis. Frequencies theta^(-2i/d) and
/// angles in f64, as the reference has them. `tokens x head_dim`.
pub fn rope(c: &FluxConfig, s: &DenoiseShape) -> Vec<f32> {
    let mut table = Vec::with_capacity(s.tokens() * c.head_dim);
    let mut token = |ids: [usize; 3]| {
        for (&dim, id) in c.axes.iter().zip(ids) {
            for i in 0..dim / 2 {
                let angle = id as f64 * c.theta.powf(-((2 * i) as f64) / dim as f64);
                table.extend([angle.cos() as f32, angle.sin() as f32]);
            }
        }
    };
    (0..s.text_tokens).for_each(|_| token([0, 0, 0]));
    (0..s.height).for_each(|y| (0..s.width).for_each(|x| token([0, y, x])));
    table
}

/// Every tensor of the transformer with the shape in which BFL's files store it.
pub fn tensors(c: &FluxConfig) -> Vec<TensorSpec> {
    let h = c.hidden;
    let mut out = Vec::new();
    let mut lin = |name: String, n: usize, k: usize| {
        out.push((format!("{name}.weight"), vec![n, k]));
        out.push((format!("{name}.bias"), vec![n]));
    };
    lin("img_in".into(), h, c.in_channels);
    lin("txt_in".into(), h, c.context);
    let embedders = [("time_in", c.time_dim), ("guidance_in", c.time_dim), ("vector_in", c.pooled)];
    for (name, k) in embedders.into_iter().filter(|(name, _)| c.guidance || *name != "guidance_in")
    {
        lin(format!("{name}.in_layer"), h, k);
        lin(format!("{name}.out_layer"), h, h);
    }
    for i in 0..c.depth_double {
        for stream in ["img", "txt"] {
            let block = format!("double_blocks.{i}.{stream}");
            lin(format!("{block}_mod.lin"), 6 * h, h);
            lin(format!("{block}_attn.qkv"), 3 * h, h);
            lin(format!("{block}_attn.proj"), h, h);
            lin(format!("{block}_mlp.0"), c.mlp_hidden, h);
            lin(format!("{block}_mlp.2"), h, c.mlp_hidden);
        }
    }
    for i in 0..c.depth_single {
        let block = format!("single_blocks.{i}");
        lin(format!("{block}.modulation.lin"), 3 * h, h);
        lin(format!("{block}.linear1"), 3 * h + c.mlp_hidden, h);
        lin(format!("{block}.linear2"), h, h + c.mlp_hidden);
    }
    lin("final_layer.linear".into(), c.out_channels, h);
    lin("final_layer.adaLN_modulation.1".into(), 2 * h, h);
    for norm in ["query_norm", "key_norm"] {
        for i in 0..c.depth_double {
            for stream in ["img", "txt"] {
                out.push((
                    format!("double_blocks.{i}.{stream}_attn.norm.{norm}.scale"),
                    vec![c.head_dim],
                ));
            }
        }
        out.extend(
            (0..c.depth_single)
                .map(|i| (format!("single_blocks.{i}.norm.{norm}.scale"), vec![c.head_dim])),
        );
    }
    out
}
