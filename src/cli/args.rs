//! The arguments of every command, with their help texts.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use super::components::ComponentArgs;
use super::values::{self, Budget, Seed, Size};
use crate::backend::{Compute, Device, KernelChoice};
use crate::library::similar::edit_distance;
use crate::pipeline::images::{DEFAULT_QUALITY, Format};
use crate::pipeline::request::{
    LoraChoice, MAX_COUNT, MAX_MASK_BLUR, MAX_SCALE, MAX_SHIFT, MAX_SIDE, MAX_STEPS, MIN_SHIFT,
    Margins, Options, Request,
};

const EXAMPLES: &str = "\
Examples:
  flux-fast \"a fox, 3D style, on a blue background\"
  flux-fast -p \"a lighthouse\" --model flux1-dev.safetensors --vram 8G --size 1024x768 -o light.png
  flux-fast again light.png --steps 30 -o better.png
  flux-fast pull black-forest-labs/FLUX.1-schnell
  flux-fast \"a lighthouse\" --model black-forest-labs/FLUX.1-schnell
  flux-fast \"make it snow\" --reference photo.jpg --model black-forest-labs/FLUX.2-klein-4B

Environment variables:
  FLUX_FAST_CONFIG  the configuration file; empty: none
  FLUX_FAST_CACHE   folder for text embeddings, measured speeds and synthetic models
  COMFYUI_PATH      ComfyUI's folder, where models are looked for
  HF_HUB_CACHE, HF_HOME   the Hugging Face cache; `flux-fast pull --help` lists those of downloads
  FLUX_FAST_KEY     the key that `remote` sends
  NO_COLOR, CLICOLOR      colours in help and errors

Exit codes: 0 done, 2 bad argument, 3 bad model file, 4 missing file, 5 memory or budget,
  6 device, 7 output not written, 8 numbers not finite, 130 and 143 stopped by a signal.";

/// The heading of the options that describe the image.
pub const IMAGE_HEADING: &str = "Image";

/// Whether `word` is the name of a subcommand. As a lone prompt it is more likely a command in
/// the wrong place.
pub fn is_command(word: &str) -> bool {
    word == "help" || Cli::command().find_subcommand(word).is_some()
}

/// Commands of other programs, with what does the same here.
const OTHER_COMMANDS: [(&str, &str); 18] = [
    ("version", "--version"),
    ("usage", "help"),
    ("list", "models"),
    ("ls", "models"),
    ("loras", "models"),
    ("download", "pull"),
    ("fetch", "pull"),
    ("get", "pull"),
    ("install", "pull"),
    ("info", "inspect"),
    ("show", "inspect"),
    ("server", "serve"),
    ("quantize", "convert"),
    ("quantise", "convert"),
    ("benchmark", "bench"),
    ("txt2img", "generate"),
    ("run", "generate"),
    ("redo", "again"),
];

/// The command, or option, that `word` probably means: a misspelling, or what another program calls
/// it. Short names of commands are one letter away from many words, so that only longer ones are
/// compared.
pub fn similar_command(word: &str) -> Option<String> {
    let word = word.trim_end_matches(['.', ',', ';', ':', '!', '?']).to_lowercase();
    if let Some((_, own)) = OTHER_COMMANDS.iter().find(|(other, _)| *other == word) {
        return Some(own.to_string());
    }
    let most = if word.chars().count() < 6 { 1 } else { 2 };
    let command = Cli::command();
    let names = command.get_subcommands().map(|c| c.get_name()).chain(["help"]);
    let near = names.filter(|name| name.len() >= 4).map(|name| (edit_distance(&word, name), name));
    let (distance, name) = near.min()?;
    (distance <= most).then(|| name.to_string())
}

/// FLUX.1 and FLUX.2 [klein] for small GPUs and plain CPUs: images from text and from images.
///
/// `flux-fast PROMPT` is `flux-fast generate -p PROMPT`. Progress goes to stderr, results to
/// stdout.
#[derive(Debug, Parser)]
#[command(name = "flux-fast", version, max_term_width = 110, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
#[command(args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub generate: GenerateArgs,
    #[command(flatten)]
    pub how: How,
    #[command(flatten)]
    pub config: ConfigArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Generate images from a prompt
    Generate(GenerateArgs),
    /// Print what a request would use (memory, phases, where weights stay), without running it
    Plan(GenerateArgs),
    /// Generate an image again from the settings in its file; options given here replace them
    Again(AgainArgs),
    /// Measure a request: seconds per step, and memory
    Bench(BenchArgs),
    #[cfg(feature = "hub")]
    /// Download a model from the Hugging Face hub into its cache, where --model finds it
    Pull(PullArgs),
    #[cfg(feature = "server")]
    /// Serve images over HTTP: OpenAI's and AUTOMATIC1111's APIs, and jobs with progress
    Serve(Box<ServeArgs>),
    #[cfg(feature = "server")]
    /// Generate images on another machine, which runs `serve`
    Remote(Box<RemoteArgs>),
    #[cfg(feature = "server")]
    /// What `serve` starts: draws the jobs that arrive on stdin
    #[command(hide = true)]
    Worker,
    /// List the models, components and LoRAs on this machine, with the names to use for them
    Models,
    /// Write a model's weights in a smaller type: FP8, int8, NF4 or GGUF
    Convert(ConvertArgs),
    /// Show devices, memory, the configuration file, and the models on this machine
    Doctor,
    /// Show what an image or a model file contains
    Inspect(InspectArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write one page per command
    Man(ManArgs),
}

/// How results are printed, for every command.
#[derive(Debug, Clone, Copy, Args)]
pub struct How {
    /// Print one JSON object on stdout; errors too
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no notes on stderr; warnings and errors stay
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Progress, notes, warnings and errors on stderr as JSON objects, one per line
    #[arg(long, global = true, conflicts_with = "quiet")]
    pub json_events: bool,
}

/// Where defaults come from; `config` reads these two by hand, before everything else.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// A file of defaults for these options [default: FLUX_FAST_CONFIG, or flux-fast/config.toml in
    /// the user's configuration folder]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "no_config")]
    pub config: Option<PathBuf>,
    /// Read no configuration file
    #[arg(long, global = true)]
    pub no_config: bool,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What the image shows; `-` reads it from stdin
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    pub words: Option<String>,
    /// A text file with one prompt per line (`-`: stdin), drawn one after another with one load of
    /// the model; with --json one JSON object per prompt
    #[arg(long, value_name = "FILE", conflicts_with_all = ["words", "prompt"])]
    pub prompt_file: Option<PathBuf>,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct AgainArgs {
    /// A PNG, JPEG, WebP or TIFF file (`-`: stdin) with its settings inside: this program's, or
    /// those of AUTOMATIC1111, Forge, ComfyUI, InvokeAI, SwarmUI or stable-diffusion.cpp. The model
    /// and the LoRAs are looked up by their names and hashes; --model gives another model. Of a
    /// batch only this image is drawn, unless --count is given
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// Draw it even if the file asks for more than 100 times the usual work
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What the image shows, which has no effect on the time [default: a fox, 3D style, on a blue
    /// background]
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    pub words: Option<String>,
    /// Number of timed runs, 1 to 1000, after one that is not timed
    #[arg(
        long,
        value_parser = values::whole(1..=1000usize),
        default_value = "3",
        allow_hyphen_values = true,
    )]
    pub runs: usize,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Debug, Args)]
#[command(after_help = CONVERT_HELP)]
pub struct ConvertArgs {
    /// A file, a folder (its transformer), a name that --model would take, or `embedded`
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// fp8, fp8-rows, int8, nf4, or GGUF's q8_0, q6_k, q5_k, q4_k, q5_0, q4_0; without it
    /// `embedded` is written as it is
    #[arg(long, value_name = "TYPE")]
    pub to: Option<String>,
    /// A file that does not exist yet, or a folder [default: MODEL-TYPE.safetensors or .gguf here;
    /// flux-tiny.safetensors for `embedded` without a type]
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
}

const CONVERT_HELP: &str = "\
The matrices of the transformer's blocks, of T5 and of Qwen3 get the new type, everything else \
keeps its own. fp8 is the format of ComfyUI's \"scaled fp8\" files. A GGUF file contains only the \
transformer (or only a text encoder), as usual.

Examples:
  flux-fast convert flux1-dev.safetensors --to fp8
  flux-fast convert flux1-dev.safetensors --to q4_k -o flux1-dev-Q4_K.gguf
  flux-fast convert embedded -o flux-tiny.safetensors";

#[cfg(feature = "hub")]
#[derive(Debug, Args)]
#[command(after_help = PULL_HELP)]
pub struct PullArgs {
    /// ORG/REPO, ORG/REPO@REVISION, ORG/REPO/FILE, or an address of huggingface.co
    #[arg(value_name = "ORG/REPO")]
    pub repo: String,
    /// Files of the repository, with all their shards [default: the parts of a diffusers model, or
    /// the only model there is]
    #[arg(value_name = "FILE")]
    pub files: Vec<String>,
    /// A branch, a tag or a commit [default: main]
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
}

#[cfg(feature = "hub")]
const PULL_HELP: &str = "\
A stopped download keeps what it has, and the next one continues there. The environment variables \
are those of Hugging Face's own tools: HF_TOKEN (or `hf auth login`) for gated models, HF_HOME or \
HF_HUB_CACHE for the folder, HF_ENDPOINT, HF_HUB_OFFLINE, HTTPS_PROXY.

Examples:
  flux-fast pull black-forest-labs/FLUX.1-schnell
  flux-fast pull black-forest-labs/FLUX.2-klein-4B
  flux-fast pull black-forest-labs/FLUX.1-dev flux1-dev.safetensors ae.safetensors
  flux-fast pull comfyanonymous/flux_text_encoders clip_l.safetensors t5xxl_fp8_e4m3fn.safetensors";

#[cfg(feature = "server")]
#[derive(Debug, Args)]
#[command(after_help = SERVE_HELP)]
pub struct ServeArgs {
    /// Address and port; an address that other machines can reach needs a key
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8188")]
    pub listen: std::net::SocketAddr,
    /// A key that clients must send; may be given several times. Other users of this machine can
    /// see it: prefer --key-file
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// A file with one key per line
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// The folder for the list of jobs and for results, which are kept for an hour [default:
    /// flux-fast/server in the user's data folder]
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// Another name for a model, or the start of a name and `*`; may be given several times.
    /// Names such as gpt-image-1, dall-e-3 and flux-pro-1.1 mean the default model already
    #[arg(long = "alias", value_name = "NAME=MODEL", value_parser = values::alias)]
    pub aliases: Vec<(String, String)>,
    /// The address under which clients reach the server, for links to images
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// The origin of a web page that may use the server from a browser, such as
    /// `https://lite.koboldai.net`; may be given several times
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    pub cors_origins: Vec<String>,
    /// An origin (scheme, host, port) whose addresses clients may have called when a job is over;
    /// may be given several times
    #[arg(long = "webhook-origin", value_name = "ORIGIN")]
    pub webhook_origins: Vec<String>,
    /// The most jobs that may wait, 1 to 100000; more are refused until there is room
    #[arg(
        long,
        value_name = "N",
        value_parser = values::whole(1..=100_000usize),
        default_value = "256",
        allow_hyphen_values = true,
    )]
    pub max_queue: usize,
    /// How long a model stays in memory after its last job: a time such as 5m, 90s or 2h, 0, or
    /// forever
    #[arg(
        long,
        value_name = "TIME",
        value_parser = values::keep_alive,
        default_value = "forever",
        allow_hyphen_values = true,
    )]
    pub keep_alive: values::KeepAlive,
    /// How lines of the log on stderr are written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Seconds without a sign of life after which the process that draws is replaced, 1 to 86400
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = values::whole(1..=86_400u64),
        default_value = "300",
        allow_hyphen_values = true,
    )]
    pub hang_after: u64,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// How the log of the server is written.
#[cfg(feature = "server")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

#[cfg(feature = "server")]
const SERVE_HELP: &str = "\
Keys with plans (limits on requests, images, megapixels and active jobs), aliases and options of
single models stand in the configuration file (--config): see the README.

Examples:
  flux-fast serve
  flux-fast serve --model flux1-schnell.safetensors --vram 8G
  flux-fast serve --listen 0.0.0.0:8188 --key-file keys.txt --public-url http://draw.example:8188

  curl http://127.0.0.1:8188/v1/images/generations -d '{\"prompt\": \"a fox\"}'";

#[cfg(feature = "server")]
#[derive(Debug, Args)]
#[command(after_help = REMOTE_HELP)]
pub struct RemoteArgs {
    /// The address of the server, such as `http://draw.example:8188`
    #[arg(value_name = "URL")]
    pub url: String,
    /// What the image shows; `-` reads it from stdin
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    pub words: Option<String>,
    /// A text file with one prompt per line (`-`: stdin), drawn one after another
    #[arg(long, value_name = "FILE", conflicts_with_all = ["words", "prompt"])]
    pub prompt_file: Option<PathBuf>,
    /// A model of the server, by the name that the server lists [default: the server's own]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// A key of the server; other users of this machine can see it: prefer the variable
    /// FLUX_FAST_KEY
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// A file of PEM certificates that the server's certificate is checked against, in place of the
    /// well-known ones
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
    /// Seconds, 0 to 86400, for which a request is sent again while the server is full or does not
    /// answer; an address that nobody answers at from the start is an error at once
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = values::whole(0..=86_400u64),
        default_value = "600",
        allow_hyphen_values = true,
    )]
    pub patience: u64,
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[cfg(feature = "server")]
const REMOTE_HELP: &str = "\
The image options are those of `generate`. LoRAs are named as the server lists them. Ctrl+C \
cancels the job.

Examples:
  flux-fast remote http://127.0.0.1:8188 \"a fox\" -o fox.png
  FLUX_FAST_KEY=... flux-fast remote https://draw.example \"a lighthouse\" --size 16:9 --steps 30";

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// An image (`-`: from stdin), a .safetensors or .gguf file, or a model folder
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub struct CompletionsArgs {
    /// The shell to print a script for
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

const COMPLETIONS_HELP: &str = "\
Examples:
  flux-fast completions bash > ~/.local/share/bash-completion/completions/flux-fast
  flux-fast completions zsh > \"${fpath[1]}/_flux-fast\"
  flux-fast completions fish > ~/.config/fish/completions/flux-fast.fish";

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write flux-fast.1, flux-fast-plan.1, ... into this folder [default: print flux-fast.1]
    #[arg(short, long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = IMAGE_HEADING)]
pub struct RequestArgs {
    /// What the image shows; `-` reads it from stdin
    #[arg(short, long, value_name = "PROMPT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// What the image does not show; has an effect only with a --cfg-scale other than 1
    #[arg(long, value_name = "PROMPT", allow_hyphen_values = true)]
    pub negative: Option<String>,
    /// Number of images, 1 to 64, from one noise stream
    #[arg(
        short = 'n',
        long = "count",
        value_name = "N",
        value_parser = values::whole(1..=MAX_COUNT),
        allow_hyphen_values = true,
    )]
    pub count: Option<usize>,
    /// Denoising steps, 1 to 1000 [default: the model's own]
    #[arg(
        long,
        value_name = "N",
        value_parser = values::whole(1..=MAX_STEPS),
        allow_hyphen_values = true,
    )]
    pub steps: Option<usize>,
    /// A whole number up to 2^64 - 1, or `random` (or -1) [default: random]
    #[arg(short, long, value_parser = values::seed, allow_hyphen_values = true)]
    pub seed: Option<Seed>,
    /// Pixels, a multiple of 16 from 16 to 4096 (FLUX.1 was trained up to 2048x2048) [default: the
    /// model's own]
    #[arg(
        short = 'W',
        long,
        value_name = "PIXELS",
        value_parser = values::side,
        allow_hyphen_values = true,
    )]
    pub width: Option<usize>,
    /// Pixels, like --width
    #[arg(
        short = 'H',
        long,
        value_name = "PIXELS",
        value_parser = values::side,
        allow_hyphen_values = true,
    )]
    pub height: Option<usize>,
    /// Width and height together: 1024x768; 512 for a square; or an aspect ratio from 1:16 to 16:1,
    /// such as 16:9, at the model's own number of pixels. Sides are multiples of 16 from 16 to
    /// 4096; a later --width or --height wins
    #[arg(
        long,
        value_name = "WxH|N|W:H",
        value_parser = values::size,
        allow_hyphen_values = true,
    )]
    pub size: Option<Size>,
    /// How closely to follow the prompt, 0 to 100; models without guidance print that they ignore
    /// it [default: the model's own]
    #[arg(
        long,
        value_name = "X",
        value_parser = values::real(0.0..=MAX_SCALE),
        allow_hyphen_values = true,
    )]
    pub guidance: Option<f32>,
    /// True classifier-free guidance, 0 to 100; 1 is off, other values double the time [default: 1]
    #[arg(
        long,
        value_name = "X",
        value_parser = values::real(0.0..=MAX_SCALE),
        allow_hyphen_values = true,
    )]
    pub cfg_scale: Option<f32>,
    /// A fixed shift of the noise levels, 0.01 to 100, in place of the model's own: 1 is none, 3 is
    /// usual for a de-distilled FLUX.1 [dev]
    #[arg(
        long,
        value_name = "X",
        value_parser = values::real(MIN_SHIFT..=MAX_SHIFT),
        conflicts_with = "scheduler_config",
        allow_hyphen_values = true,
    )]
    pub shift: Option<f32>,
    /// A scheduler_config.json of diffusers (FlowMatchEulerDiscreteScheduler), or a model folder
    /// with one: its noise levels in place of the model's own
    #[arg(long, value_name = "FILE")]
    pub scheduler_config: Option<PathBuf>,
    /// A LoRA (.safetensors, or a folder of PEFT) or its name, and its strength, -100 to 100
    /// [default: 1]; may be given several times. A second strength is for the text encoders.
    /// `<lora:NAME:STRENGTH>` in the prompt does the same
    #[arg(long = "lora", value_name = "PATH[:STRENGTH[:TEXT]]", value_parser = values::lora)]
    pub loras: Vec<LoraChoice>,
    /// An image to start from (PNG, JPEG, WebP, BMP, TIFF), `-` reads it from stdin; it is cropped
    /// around the centre to the aspect ratio and resized
    #[arg(short, long, value_name = "IMAGE")]
    pub init_img: Option<PathBuf>,
    /// The image whose edges (FLUX.1 Canny) or depths (FLUX.1 Depth) the result has; Canny finds
    /// the edges of a photo itself
    #[arg(long, value_name = "IMAGE")]
    pub control: Option<PathBuf>,
    /// An image that the model looks at (FLUX.2, FLUX.1 Kontext): it is edited as the prompt says,
    /// or combined with the others; may be given several times. Without --size, the first one sets
    /// the size
    #[arg(long = "reference", value_name = "IMAGE")]
    pub references: Vec<PathBuf>,
    /// An image of the size of --init-img: only what is white in it is repainted, gray in the later
    /// steps only. If it has transparent pixels, these are. Without --mask, the transparent pixels
    /// of --init-img are repainted. The result has the size of --init-img
    #[arg(long, value_name = "IMAGE", requires = "init_img")]
    pub mask: Option<PathBuf>,
    /// Blurs the edges of the mask, 0 to 256 pixels [default: 0]
    #[arg(
        long,
        value_name = "PIXELS",
        value_parser = values::real(0.0..=MAX_MASK_BLUR),
        requires = "init_img",
        allow_hyphen_values = true,
    )]
    pub mask_blur: Option<f32>,
    /// Draws only the surroundings of the mask, with as many pixels around it, 0 to 4096, in the
    /// size that suits the model, and scales the result back: good for small masks
    #[arg(
        long,
        value_name = "PIXELS",
        value_parser = values::whole(0..=MAX_SIDE),
        requires = "init_img",
        allow_hyphen_values = true,
    )]
    pub mask_padding: Option<usize>,
    /// Adds pixels on the sides of --init-img and paints them
    #[arg(
        long,
        value_name = "LEFT,TOP,RIGHT,BOTTOM",
        value_parser = values::margins,
        requires = "init_img",
        allow_hyphen_values = true,
    )]
    pub outpaint: Option<Margins>,
    /// How much --init-img is changed: 0 keeps it, 1 ignores it [default: 0.75, and 1 where
    /// nothing of it is seen: with --outpaint, and for transparent pixels]
    #[arg(
        long,
        value_name = "X",
        value_parser = values::real(0.0..=1.0),
        requires = "init_img",
        allow_hyphen_values = true,
    )]
    pub strength: Option<f32>,
}

impl RequestArgs {
    /// What was typed, as a request; the prompt and the files of `--init-img` and
    /// `--scheduler-config` are read elsewhere.
    pub fn request(&self) -> Request {
        let RequestArgs { negative, count, steps, guidance, cfg_scale, shift, strength, .. } =
            self.clone();
        let mut request = Request::default().loras(self.loras.clone());
        request.negative = negative;
        request.count = count;
        request.steps = steps;
        request.seed = self.seed.and_then(Seed::number);
        // The size of an aspect ratio is known when the model is open. A side that is given next
        // to a size was given after it.
        let (width, height) = match self.size {
            Some(Size::Pixels(width, height)) => (Some(width), Some(height)),
            Some(Size::Ratio(_)) | None => (None, None),
        };
        (request.width, request.height) = (self.width.or(width), self.height.or(height));
        request.guidance = guidance;
        request.cfg_scale = cfg_scale;
        request.shift = shift;
        request.strength = strength;
        request.mask_blur = self.mask_blur;
        request.mask_padding = self.mask_padding;
        request.outpaint = self.outpaint;
        request
    }
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model and device")]
pub struct EngineArgs {
    /// A .safetensors or .gguf file, a folder, a name that `flux-fast models` lists,
    /// `synthetic:dev`, `synthetic:schnell` or `synthetic:klein` (seeded noise of full size), or
    /// `embedded` [default: embedded, a small model that draws emoji]
    #[arg(long, value_name = "PATH|NAME")]
    pub model: Option<String>,
    #[command(flatten)]
    pub components: ComponentArgs,
    /// auto (the best GPU that works, else the CPU), cpu, cuda[:N], or wgpu[:N] (Vulkan, Metal,
    /// DirectX 12)
    #[arg(long, value_parser = values::device, default_value = "auto")]
    pub device: Device,
    /// Limit of device memory: auto, 8G (8 * 10^9 bytes) or 8GiB (8 * 2^30); has no effect on the
    /// CPU
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = values::budget,
        default_value = "auto",
        allow_hyphen_values = true,
    )]
    pub vram: Budget,
    /// Limit of host memory, in the same form; a low limit costs time, not quality: see `plan`
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = values::budget,
        default_value = "auto",
        allow_hyphen_values = true,
    )]
    pub ram: Budget,
    /// Arithmetic: auto; f32 (CPU, wgpu); bf16; f16 (wgpu) and fp8 (CUDA from RTX 40 on, for FP8
    /// weights): faster products, less exact
    #[arg(long, value_parser = values::compute(), default_value = "auto")]
    pub compute: Compute,
    /// Use this kernel variant, such as linear=linear_f32_avx2; may be given several times
    #[arg(long = "kernel", value_name = "OP=NAME", value_parser = values::kernel)]
    pub kernels: Vec<KernelChoice>,
    /// Do not keep text embeddings and measured speeds in the cache folder
    #[arg(long)]
    pub no_cache: bool,
    /// Number of worker threads, 1 to 1024, at most one per core [default: one per core]
    #[arg(
        long,
        value_name = "N",
        value_parser = values::whole(1..=1024usize),
        allow_hyphen_values = true,
    )]
    pub threads: Option<usize>,
}

impl EngineArgs {
    /// What was typed, as the options of an engine.
    pub fn options(&self) -> Options {
        let mut options = Options::default().device(self.device).compute(self.compute);
        options.files.model = self.model.clone();
        for (component, path) in &self.components.0 {
            options = options.component(*component, path);
        }
        options.vram = self.vram.size();
        options.ram = self.ram.size();
        options.kernels = self.kernels.clone();
        options.threads = self.threads;
        options.no_cache(self.no_cache)
    }
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// A file (replaced if it exists), a folder, or `-` for stdout; {seed} and {i} are filled in
    /// [default: flux-{seed}.png, never replaced]
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// png, jpeg, webp (lossless), bmp or tiff [default: the output's extension, else png]
    #[arg(long, value_parser = values::format)]
    pub format: Option<Format>,
    /// JPEG quality, 1 to 100
    #[arg(
        long,
        value_parser = values::whole(1..=100u8),
        default_value_t = DEFAULT_QUALITY,
        allow_hyphen_values = true,
    )]
    pub quality: u8,
    /// Also show the image in the terminal
    #[arg(long)]
    pub preview: bool,
}
