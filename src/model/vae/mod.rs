//! The autoencoder, after `flux/modules/autoencoder.py`. Pixels are rows, channels last. Heights
//! and widths are those of one tile.

mod config;

pub use config::VaeConfig;

use crate::dtype::DType;
use crate::model::config::TensorSpec;
use crate::op::{
    Attention, Cast, Conv2d, ConvShape, Epilogue, GroupNorm, Linear, Pack, Program, Recorder,
    Unpack,
};
use crate::tensor::Tensor;

/// Decodes one tile of `height x width` latent pixels.
///
/// Input: `latents`, packed tokens ((h/2) * (w/2) x 4 * latent, f32, as the transformer returns
/// them). Output: `pixels` ((h*f) * (w*f) x 3, f32, usually between -1 and 1), where f is
/// `factor()`.
pub fn decode(c: &VaeConfig, height: usize, width: usize, act: DType) -> Program {
    let mut r = Recorder::new("decode");
    let tokens = r.input("latents", height * width / 4, 4 * c.latent, DType::F32);
    let (h, w) = (height * c.factor(), width * c.factor());
    let pixels = r.output("pixels", h * w, 3, DType::F32);
    r.scope("latents");
    let z = r.temp(height * width, c.latent, act);
    r.push(
        "unpack",
        Unpack {
            x: tokens,
            batch: 1,
            height,
            width,
            scale: 1.0 / c.scaling,
            shift: c.shift,
            out: z,
        },
    );
    let mut net = Net { r, c, act, half: "decoder", h: height, w: width };
    let top = *c.channels.last().expect("a level");
    net.scope("in");
    let mut x = net.conv3("conv_in", "conv_in", z, top, None);
    x = net.mid(x);
    for level in (0..c.channels.len()).rev() {
        for block in 0..=c.blocks {
            net.scope(&format!("up.{level}"));
            x = net.res_block(
                &format!("up.{level}.block.{block}"),
                &format!("block.{block}"),
                x,
                c.channels[level],
            );
        }
        if level > 0 {
            let name = format!("up.{level}.upsample.conv");
            x = net.conv(
                "upsample",
                &name,
                x,
                c.channels[level],
                Kernel { stride: 1, upsample: true, ..Kernel::SAME3 },
                None,
                None,
            );
            (net.h, net.w) = (2 * net.h, 2 * net.w);
        }
    }
    net.scope("out");
    x = net.group_norm("norm_out", "norm_out", x, true);
    net.conv("conv_out", "conv_out", x, 3, Kernel::SAME3, None, Some(pixels));
    net.r.finish()
}

/// Encodes pixels to the mean of the latents.
///
/// Input: `pixels` (height * width x 3, f32, from -1 to 1); height and width are multiples of twice
/// `factor()`. Output: `latents`, packed tokens of the mean, not yet shifted and scaled.
pub fn encode(c: &VaeConfig, height: usize, width: usize, act: DType) -> Program {
    let mut r = Recorder::new("encode");
    let pixels = r.input("pixels", height * width, 3, DType::F32);
    let (h, w) = (height / c.factor(), width / c.factor());
    let tokens = r.output("latents", h * w / 4, 4 * c.latent, DType::F32);
    let mut net = Net { r, c, act, half: "encoder", h: height, w: width };
    net.scope("in");
    let mut x = pixels;
    if act != DType::F32 {
        let cast = net.r.temp(x.rows, x.cols, act);
        net.r.push("cast", Cast { x: x.all(), out: cast.all() });
        x = cast;
    }
    x = net.conv3("conv_in", "conv_in", x, c.channels[0], None);
    let levels = c.channels.len();
    for level in 0..levels {
        for block in 0..c.blocks {
            net.scope(&format!("down.{level}"));
            x = net.res_block(
                &format!("down.{level}.block.{block}"),
                &format!("block.{block}"),
                x,
                c.channels[level],
            );
        }
        if level + 1 < levels {
            let name = format!("down.{level}.downsample.conv");
            let kernel =
                Kernel { size: 3, stride: 2, pad_before: 0, pad_after: 1, upsample: false };
            x = net.conv("downsample", &name, x, c.channels[level], kernel, None, None);
            (net.h, net.w) = (net.h / 2, net.w / 2);
        }
    }
    x = net.mid(x);
    net.scope("out");
    x = net.group_norm("norm_out", "norm_out", x, true);
    let moments = net.conv3("conv_out", "conv_out", x, 2 * c.latent, None);
    let mean = net.r.temp(h * w, c.latent, DType::F32);
    net.r.push("mean", Cast { x: moments.columns(0, c.latent), out: mean.all() });
    net.r.push("pack", Pack { x: mean, batch: 1, height: h, width: w, out: tokens });
    net.r.finish()
}

#[derive(Clone, Copy)]
struct Kernel {
    size: usize,
    stride: usize,
    pad_before: usize,
    pad_after: usize,
    upsample: bool,
}

impl Kernel {
    const SAME3: Kernel =
        Kernel { size: 3, stride: 1, pad_before: 1, pad_after: 1, upsample: false };
    const POINT: Kernel =
        Kernel { size: 1, stride: 1, pad_before: 0, pad_after: 0, upsample: false };
}

struct Net<'a> {
    r: Recorder,
    c: &'a VaeConfig,
    act: DType,
    half: &'static str,
    /// The current height and width.
    h: usize,
    w: usize,
}

impl Net<'_> {
    fn scope(&mut self, scope: &str) {
        self.r.scope(scope);
    }

    #[allow(clippy::too_many_arguments, reason = "the parameters of a convolution")]
    fn conv(
        &mut self,
        label: &str,
        name: &str,
        x: Tensor,
        out_channels: usize,
        k: Kernel,
        residual: Option<Tensor>,
        out: Option<Tensor>,
    ) -> Tensor {
        let shape = ConvShape {
            batch: 1,
            height: self.h,
            width: self.w,
            in_channels: x.cols,
            out_channels,
            kernel: k.size,
            stride: k.stride,
            pad_before: k.pad_before,
            pad_after: k.pad_after,
            upsample: k.upsample,
        };
        let w = self.r.weight(
            format!("{}.{name}.weight", self.half),
            out_channels,
            x.cols * k.size * k.size,
        );
        let bias = Some(self.r.weight(format!("{}.{name}.bias", self.half), 1, out_channels));
        let (h, wd) = shape.output();
        let out = out.unwrap_or_else(|| self.r.temp(h * wd, out_channels, self.act));
        self.r.push(label, Conv2d { x, w, bias, shape, residual, out });
        out
    }

    fn conv3(
        &mut self,
        label: &str,
        name: &str,
        x: Tensor,
        out_channels: usize,
        residual: Option<Tensor>,
    ) -> Tensor {
        self.conv(label, name, x, out_channels, Kernel::SAME3, residual, None)
    }

    fn group_norm(&mut self, label: &str, name: &str, x: Tensor, silu: bool) -> Tensor {
        let weight = self.r.weight(format!("{}.{name}.weight", self.half), 1, x.cols);
        let bias = self.r.weight(format!("{}.{name}.bias", self.half), 1, x.cols);
        let out = self.r.temp(x.rows, x.cols, self.act);
        self.r.push(
            label,
            GroupNorm {
                x,
                weight,
                bias,
                batch: 1,
                groups: self.c.groups,
                eps: self.c.eps,
                silu,
                out,
            },
        );
        out
    }

    /// `ResnetBlock`: x + conv2(silu(norm2(conv1(silu(norm1(x)))))), with a 1x1 shortcut where the
    /// width changes.
    fn res_block(&mut self, name: &str, label: &str, x: Tensor, channels: usize) -> Tensor {
        let n = self.group_norm(&format!("{label}.norm1"), &format!("{name}.norm1"), x, true);
        let n = self.conv3(&format!("{label}.conv1"), &format!("{name}.conv1"), n, channels, None);
        let n = self.group_norm(&format!("{label}.norm2"), &format!("{name}.norm2"), n, true);
        let short = if x.cols == channels {
            x
        } else {
            self.conv(
                &format!("{label}.shortcut"),
                &format!("{name}.nin_shortcut"),
                x,
                channels,
                Kernel::POINT,
                None,
                None,
            )
        };
        self.conv3(&format!("{label}.conv2"), &format!("{name}.conv2"), n, channels, Some(short))
    }

    fn mid(&mut self, x: Tensor) -> Tensor {
        self.scope("mid");
        let channels = x.cols;
        let x = self.res_block("mid.block_1", "block_1", x, channels);
        let x = self.attention(x);
        self.res_block("mid.block_2", "block_2", x, channels)
    }

    /// `AttnBlock`: one head over all pixels of the tile.
    fn attention(&mut self, x: Tensor) -> Tensor {
        let channels = x.cols;
        let n = self.group_norm("attn.norm", "mid.attn_1.norm", x, false);
        let qkv = self.r.temp(x.rows, 3 * channels, self.act);
        let views = [0, 1, 2].map(|i| qkv.columns(i * channels, channels));
        for (name, view) in ["q", "k", "v"].into_iter().zip(views) {
            self.point(&format!("attn.{name}"), name, n, Epilogue::None, view);
        }
        let attn = self.r.temp(x.rows, channels, self.act);
        let [q, k, v] = views;
        let scale = 1.0 / (channels as f32).sqrt();
        self.r.push(
            "attn",
            Attention {
                q,
                k,
                v,
                batch: 1,
                heads: 1,
                scale,
                causal: false,
                bias: None,
                first: None,
                out: attn.all(),
            },
        );
        let out = self.r.temp(x.rows, channels, self.act);
        self.point("attn.proj_out", "proj_out", attn, Epilogue::Add { residual: x }, out.all());
        out
    }

    fn point(
        &mut self,
        label: &str,
        name: &str,
        x: Tensor,
        epilogue: Epilogue,
        out: crate::tensor::View,
    ) {
        let w = self.r.weight(format!("{}.mid.attn_1.{name}.weight", self.half), x.cols, x.cols);
        let bias = Some(self.r.weight(format!("{}.mid.attn_1.{name}.bias", self.half), 1, x.cols));
        self.r.push(label, Linear { x: x.all(), w, bias, side: None, epilogue, out });
    }
}

/// Every tensor of the autoencoder, without the encoder if `c.encoder` is false.
pub fn tensors(c: &VaeConfig) -> Vec<TensorSpec> {
    let mut out = Vec::new();
    let top = *c.channels.last().expect("a level");
    let levels = c.channels.len();
    let pair = |out: &mut Vec<TensorSpec>, name: String, shape: Vec<usize>| {
        out.push((format!("{name}.bias"), vec![shape[0]]));
        out.push((format!("{name}.weight"), shape));
    };
    let block = |out: &mut Vec<TensorSpec>, name: String, from: usize, to: usize| {
        pair(out, format!("{name}.norm1"), vec![from]);
        pair(out, format!("{name}.conv1"), vec![to, from, 3, 3]);
        pair(out, format!("{name}.norm2"), vec![to]);
        pair(out, format!("{name}.conv2"), vec![to, to, 3, 3]);
        if from != to {
            pair(out, format!("{name}.nin_shortcut"), vec![to, from, 1, 1]);
        }
    };
    for half in ["encoder", "decoder"] {
        if half == "encoder" && !c.encoder {
            continue;
        }
        let (input, first, last, output) = if half == "encoder" {
            (3, c.channels[0], top, 2 * c.latent)
        } else {
            (c.latent, top, c.channels[0], 3)
        };
        pair(&mut out, format!("{half}.conv_in"), vec![first, input, 3, 3]);
        for i in [1, 2] {
            block(&mut out, format!("{half}.mid.block_{i}"), top, top);
        }
        pair(&mut out, format!("{half}.mid.attn_1.norm"), vec![top]);
        for name in ["q", "k", "v", "proj_out"] {
            pair(&mut out, format!("{half}.mid.attn_1.{name}"), vec![top, top, 1, 1]);
        }
        let mut from = first;
        let order: Vec<usize> =
            if half == "encoder" { (0..levels).collect() } else { (0..levels).rev().collect() };
        for level in order {
            let to = c.channels[level];
            let (way, blocks) =
                if half == "encoder" { ("down", c.blocks) } else { ("up", c.blocks + 1) };
            for b in 0..blocks {
                block(&mut out, format!("{half}.{way}.{level}.block.{b}"), from, to);
                from = to;
            }
            if half == "encoder" && level + 1 < levels {
                pair(&mut out, format!("{half}.down.{level}.downsample.conv"), vec![to, to, 3, 3]);
            }
            if half == "decoder" && level > 0 {
                pair(&mut out, format!("{half}.up.{level}.upsample.conv"), vec![to, to, 3, 3]);
            }
        }
        pair(&mut out, format!("{half}.norm_out"), vec![last]);
        pair(&mut out, format!("{half}.conv_out"), vec![output, last, 3, 3]);
    }
    out
}
