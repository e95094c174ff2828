//! The two halves of the autoencoder as lists of stages.

use super::VaeConfig;
use crate::dtype::DType;

/// An image of activations between two stages: `height*width x channels`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// Rows of pixels.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Columns of the matrix.
    pub channels: usize,
    /// F32 for what the network reads and returns; otherwise what the device computes in.
    pub dtype: DType,
}

impl Plane {
    /// Bytes of one row of pixels.
    pub fn row_bytes(&self) -> usize {
        self.width * self.channels * self.dtype.size()
    }

    /// Bytes of the whole plane.
    pub fn bytes(&self) -> usize {
        self.height * self.row_bytes()
    }

    /// Number of pixels.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }
}

/// An index into [`Network::planes`].
pub type PlaneId = usize;

/// Group norm with the weights `name`, followed by SiLU if `silu` is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Norm {
    /// The label of the step in listings, after the scope of the stage.
    pub label: String,
    /// Name of the weights, without the half of the network and `.weight`.
    pub name: String,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// The kernel of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// 1 x 1.
    Point,
    /// 3 x 3, with zeros around the image.
    Same,
    /// 3 x 3 over the image enlarged to twice its size.
    Up,
    /// 3 x 3 with stride 2, with zeros below and to the right.
    Down,
}

/// A convolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conv {
    /// The label of the step in listings, after the scope of the stage.
    pub label: String,
    /// Name of the weights, without the half of the network and `.weight`.
    pub name: String,
    /// The kernel.
    pub kernel: Kernel,
    /// Added to the result.
    pub residual: Option<PlaneId>,
    /// The result.
    pub out: PlaneId,
}

/// What a stage does.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// `tokens * scale + shift`, from packed tokens to the first plane.
    Unpack {
        /// Factor of the values.
        scale: f32,
        /// Added to the values.
        shift: f32,
        /// The result.
        out: PlaneId,
    },
    /// A norm, if there is one, and convolutions of its result.
    Convs {
        /// What is normalised.
        x: PlaneId,
        /// The norm.
        norm: Option<Norm>,
        /// The convolutions, which all read the same.
        convs: Vec<Conv>,
    },
    /// Attention with one head over all pixels.
    Attend {
        /// Queries.
        q: PlaneId,
        /// Keys.
        k: PlaneId,
        /// Values.
        v: PlaneId,
        /// The result.
        out: PlaneId,
    },
    /// The first `channels` columns of a plane as packed tokens.
    Pack {
        /// What is packed.
        x: PlaneId,
        /// Columns that are packed.
        channels: usize,
    },
}

/// One stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// The part of the network: `up.0`, `mid`.
    pub scope: String,
    /// What it does.
    pub work: Work,
}

/// One half of the autoencoder for images of one size.
#[derive(Debug, Clone)]
pub struct Network {
    /// `encoder` or `decoder`: the first part of the names of its tensors.
    pub half: &'static str,
    /// The planes. The encoder reads the first one; the decoder returns the last one.
    pub planes: Vec<Plane>,
    /// The stages, in order.
    pub stages: Vec<Stage>,
    /// Groups of the norms.
    pub groups: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// The element type of activations.
    pub act: DType,
    scope: String,
}

impl Network {
    /// The decoder for `height x width` latent pixels.
    pub fn decoder(c: &VaeConfig, height: usize, width: usize, act: DType) -> Network {
        let mut net = Network::empty("decoder", c, act);
        let top = *c.channels.last().expect("a level");
        net.scope("latents");
        let z = net.plane(height, width, c.latent, act);
        net.push(Work::Unpack { scale: 1.0 / c.scaling, shift: c.shift, out: z });
        net.scope("in");
        let mut x = z;
        if c.quant {
            let name = "post_quant_conv";
            x = net.conv(name, name, x, None, c.latent, Kernel::Point, None);
        }
        x = net.conv("conv_in", "conv_in", x, None, top, Kernel::Same, None);
        x = net.mid(x);
        for level in (0..c.channels.len()).rev() {
            net.scope(&format!("up.{level}"));
            for block in 0..=c.blocks {
                let name = format!("up.{level}.block.{block}");
                x = net.res_block(&name, &format!("block.{block}"), x, c.channels[level]);
            }
            if level > 0 {
                let name = format!("up.{level}.upsample.conv");
                x = net.conv("upsample", &name, x, None, c.channels[level], Kernel::Up, None);
            }
        }
        net.scope("out");
        let norm = Some(Norm { label: "norm_out".into(), name: "norm_out".into(), silu: true });
        let pixels = net.conv("conv_out", "conv_out", x, norm, 3, Kernel::Same, None);
        net.planes[pixels].dtype = DType::F32;
        net
    }

    /// The encoder for `height x width` pixels, which are multiples of twice `factor()`.
    pub fn encoder(c: &VaeConfig, height: usize, width: usize, act: DType) -> Network {
        let mut net = Network::empty("encoder", c, act);
        let pixels = net.plane(height, width, 3, DType::F32);
        net.scope("in");
        let channels = c.encoder_channels();
        let mut x = net.conv("conv_in", "conv_in", pixels, None, channels[0], Kernel::Same, None);
        let levels = channels.len();
        for (level, &channels_of_level) in channels.iter().enumerate() {
            net.scope(&format!("down.{level}"));
            for block in 0..c.blocks {
                let name = format!("down.{level}.block.{block}");
                x = net.res_block(&name, &format!("block.{block}"), x, channels_of_level);
            }
            if level + 1 < levels {
                let name = format!("down.{level}.downsample.conv");
                x = net.conv("downsample", &name, x, None, channels_of_level, Kernel::Down, None);
            }
        }
        x = net.mid(x);
        net.scope("out");
        let norm = Some(Norm { label: "norm_out".into(), name: "norm_out".into(), silu: true });
        let moments = 2 * c.latent;
        let mut x = net.conv("conv_out", "conv_out", x, norm, moments, Kernel::Same, None);
        if c.quant {
            x = net.conv("quant_conv", "quant_conv", x, None, moments, Kernel::Point, None);
        }
        net.push(Work::Pack { x, channels: c.latent });
        net
    }

    fn empty(half: &'static str, c: &VaeConfig, act: DType) -> Network {
        let (planes, stages) = (Vec::new(), Vec::new());
        Network { half, planes, stages, groups: c.groups, eps: c.eps, act, scope: String::new() }
    }

    fn scope(&mut self, scope: &str) {
        self.scope = scope.into();
    }

    fn push(&mut self, work: Work) {
        self.stages.push(Stage { scope: self.scope.clone(), work });
    }

    fn plane(&mut self, height: usize, width: usize, channels: usize, dtype: DType) -> PlaneId {
        self.planes.push(Plane { height, width, channels, dtype });
        self.planes.len() - 1
    }

    /// The plane of what `kernel` makes of `x`.
    fn result(&mut self, x: PlaneId, channels: usize, kernel: Kernel) -> PlaneId {
        let Plane { height, width, .. } = self.planes[x];
        let (height, width) = match kernel {
            Kernel::Point | Kernel::Same => (height, width),
            Kernel::Up => (2 * height, 2 * width),
            Kernel::Down => (height / 2, width / 2),
        };
        self.plane(height, width, channels, self.act)
    }

    /// A stage of one convolution.
    #[allow(clippy::too_many_arguments, reason = "the parts of a stage")]
    fn conv(
        &mut self,
        label: &str,
        name: &str,
        x: PlaneId,
        norm: Option<Norm>,
        channels: usize,
        kernel: Kernel,
        residual: Option<PlaneId>,
    ) -> PlaneId {
        let out = self.result(x, channels, kernel);
        let conv = Conv { label: label.into(), name: name.into(), kernel, residual, out };
        self.push(Work::Convs { x, norm, convs: vec![conv] });
        out
    }

    /// `ResnetBlock`: x + conv2(silu(norm2(conv1(silu(norm1(x)))))), with a 1x1 shortcut where the
    /// width changes.
    ///
    /// The shortcut comes first: then the first norm can replace x, and at most two planes of the
    /// larger width are in use at one time.
    fn res_block(&mut self, name: &str, label: &str, x: PlaneId, channels: usize) -> PlaneId {
        let norm = |n: &str| {
            let (label, name) = (format!("{label}.{n}"), format!("{name}.{n}"));
            Some(Norm { label, name, silu: true })
        };
        let of = |part: &str| (format!("{label}.{part}"), format!("{name}.{part}"));
        let mut residual = x;
        if self.planes[x].channels != channels {
            let weights = format!("{name}.nin_shortcut");
            let label = format!("{label}.shortcut");
            residual = self.conv(&label, &weights, x, None, channels, Kernel::Point, None);
        }
        let (label, weights) = of("conv1");
        let h = self.conv(&label, &weights, x, norm("norm1"), channels, Kernel::Same, None);
        let (label, weights) = of("conv2");
        self.conv(&label, &weights, h, norm("norm2"), channels, Kernel::Same, Some(residual))
    }

    fn mid(&mut self, x: PlaneId) -> PlaneId {
        self.scope("mid");
        let channels = self.planes[x].channels;
        let x = self.res_block("mid.block_1", "block_1", x, channels);
        let x = self.attention(x);
        self.res_block("mid.block_2", "block_2", x, channels)
    }

    /// `AttnBlock`: one head over all pixels of the image.
    fn attention(&mut self, x: PlaneId) -> PlaneId {
        let channels = self.planes[x].channels;
        let convs = ["q", "k", "v"].map(|part| Conv {
            label: format!("attn.{part}"),
            name: format!("mid.attn_1.{part}"),
            kernel: Kernel::Point,
            residual: None,
            out: self.result(x, channels, Kernel::Point),
        });
        let [q, k, v] = [0, 1, 2].map(|i| convs[i].out);
        let norm =
            Some(Norm { label: "attn.norm".into(), name: "mid.attn_1.norm".into(), silu: false });
        self.push(Work::Convs { x, norm, convs: convs.to_vec() });
        let out = self.result(x, channels, Kernel::Point);
        self.push(Work::Attend { q, k, v, out });
        let (label, name) = ("attn.proj_out", "mid.attn_1.proj_out");
        self.conv(label, name, out, None, channels, Kernel::Point, Some(x))
    }

    /// Whether a later stage normalises `plane`, which therefore needs statistics.
    pub fn normalised(&self, plane: PlaneId) -> bool {
        self.stages.iter().any(|stage| match &stage.work {
            Work::Convs { x, norm: Some(_), .. } => *x == plane,
            _ => false,
        })
    }

    /// The last stage that reads `plane`; `None` if none does.
    pub fn last_reader(&self, plane: PlaneId) -> Option<usize> {
        let reads = |stage: &Stage| stage.work.reads().contains(&plane);
        self.stages.iter().rposition(reads)
    }
}

impl Work {
    /// The planes that the stage reads.
    pub fn reads(&self) -> Vec<PlaneId> {
        match self {
            Work::Unpack { .. } => vec![],
            Work::Convs { x, convs, .. } => {
                std::iter::once(*x).chain(convs.iter().filter_map(|conv| conv.residual)).collect()
            }
            Work::Attend { q, k, v, .. } => vec![*q, *k, *v],
            Work::Pack { x, .. } => vec![*x],
        }
    }

    /// The planes that the stage writes.
    pub fn writes(&self) -> Vec<PlaneId> {
        match self {
            Work::Unpack { out, .. } | Work::Attend { out, .. } => vec![*out],
            Work::Convs { convs, .. } => convs.iter().map(|conv| conv.out).collect(),
            Work::Pack { .. } => vec![],
        }
    }
}
