//! The arguments of every command, with their help texts.

mod engine;
mod request;
#[cfg(feature = "server")]
mod server;

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use super::values;
use crate::library::similar::edit_distance;

pub use engine::{EngineArgs, OutputArgs};
pub use request::RequestArgs;
#[cfg(feature = "nats")]
pub use server::{BrokerArgs, ClusterArgs, ClusterCommand, WorkerArgs};
#[cfg(feature = "server")]
pub use server::{DrawingArgs, LogFormat, RemoteArgs, ServeArgs};

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
    /// Serve images over HTTP: the APIs of OpenAI, AUTOMATIC1111, ComfyUI and others, and a page
    Serve(Box<ServeArgs>),
    #[cfg(feature = "server")]
    /// Generate images on another machine, which runs `serve`
    Remote(Box<RemoteArgs>),
    #[cfg(feature = "nats")]
    /// Draw the jobs of a cluster, which `serve` accepts on other machines
    Worker(Box<WorkerArgs>),
    #[cfg(feature = "nats")]
    /// Look at a cluster: its workers and its queue
    Cluster(ClusterArgs),
    #[cfg(feature = "server")]
    /// Draws the jobs that arrive on stdin (started by `serve` and `worker`)
    #[command(hide = true)]
    DrawJobs,
    /// List the models, components and LoRAs on this machine, with the names to use for them
    Models,
    /// Write a model's weights in a smaller type: FP8, int8, NF4 or GGUF
    Convert(ConvertArgs),
    /// Show devices, memory, the configuration file, and the models on this machine
    Doctor(DoctorArgs),
    /// Show what an image or a model file contains
    Inspect(InspectArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write one page per command
    Man(ManArgs),
}

/// The options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Open each NVIDIA GPU, and print what its driver made of the kernels: registers, local memory
    /// (0 unless registers were spilled), shared memory, and blocks per multiprocessor
    #[arg(long)]
    pub kernels: bool,
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
    /// and the LoRAs are looked up by their names and hashes; --model gives another model.
    /// If it is one of a batch, only this image is drawn, unless --count is given
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
    /// fp8, fp8-rows, int8, int8-convrot, nf4, or GGUF's q8_0, q6_k, q5_k, q4_k, q5_0, q4_0;
    /// without it `embedded` is written as it is
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
