//! The arguments of `serve`, `worker`, `cluster` and `remote`.

use std::path::PathBuf;

use clap::Args;

use super::super::values;
use super::{EngineArgs, OutputArgs, RequestArgs};

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
    #[command(flatten)]
    pub drawing: DrawingArgs,
}

/// The options that `serve` and `worker` share: the process that draws, its model, and the log.
#[derive(Debug, Args)]
pub struct DrawingArgs {
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
    #[cfg(feature = "nats")]
    #[command(flatten)]
    pub cluster: BrokerArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// The heading of the options of clusters.
#[cfg(feature = "nats")]
const CLUSTER_HEADING: &str = "Cluster";

/// How to reach the brokers of a cluster.
#[cfg(feature = "nats")]
#[derive(Debug, Args)]
#[command(next_help_heading = CLUSTER_HEADING)]
pub struct BrokerArgs {
    /// The NATS servers whose queue is used, such as `nats://broker:4222` or, with `/NAME` at the
    /// end, one of several clusters there; `serve` then draws nothing itself. Other users of this
    /// machine can see a password in it: prefer --nats-creds, or a line `broker = "..."` in the
    /// configuration file [default: that line]
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// A file of NATS credentials (JWT and key)
    #[arg(long, value_name = "FILE")]
    pub nats_creds: Option<PathBuf>,
    /// A file with the seed of a NATS key
    #[arg(long, value_name = "FILE", conflicts_with = "nats_creds")]
    pub nats_nkey: Option<PathBuf>,
    /// A file of certificates (PEM) of the authorities that sign those of the brokers, in place of
    /// those of the system
    #[arg(long, value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
    /// The certificate (PEM) that the brokers ask for
    #[arg(long, value_name = "FILE", requires = "nats_key")]
    pub nats_cert: Option<PathBuf>,
    /// The key (PEM) of that certificate
    #[arg(long, value_name = "FILE", requires = "nats_cert")]
    pub nats_key: Option<PathBuf>,
    /// The least number of NATS servers that keep a copy of everything, 1 to 5
    #[arg(
        long,
        value_name = "N",
        value_parser = values::whole(1..=5usize),
        default_value = "1",
        allow_hyphen_values = true,
    )]
    pub nats_replicas: usize,
    /// Seconds without a sign of life after which a worker has lost its job to another, 3 to 3600
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = values::whole(3..=3600u64),
        default_value = "30",
        allow_hyphen_values = true,
    )]
    pub lost_after: u64,
}

#[cfg(feature = "nats")]
#[derive(Debug, Args)]
#[command(after_help = WORKER_HELP)]
pub struct WorkerArgs {
    /// The folder for files of the running job [default: a free one in the user's data folder]
    #[arg(long, value_name = "FOLDER")]
    pub data: Option<PathBuf>,
    /// Seconds that the running job may take after a signal before another worker gets it, 0 to
    /// 86400
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = values::whole(0..=86_400u64),
        default_value = "8",
        allow_hyphen_values = true,
    )]
    pub grace: u64,
    #[command(flatten)]
    pub drawing: DrawingArgs,
}

#[cfg(feature = "nats")]
const WORKER_HELP: &str = "\
One worker per GPU. Clients talk to `serve` on any machine with the same --broker.

Examples:
  flux-fast worker --broker nats://broker:4222 --model flux1-dev-Q4_0.gguf --vram 12G
  flux-fast serve --broker nats://broker:4222 --listen 0.0.0.0:8188 --key-file keys.txt
  flux-fast cluster status --broker nats://broker:4222";

#[cfg(feature = "nats")]
#[derive(Debug, Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    pub command: ClusterCommand,
}

#[cfg(feature = "nats")]
#[derive(Debug, clap::Subcommand)]
pub enum ClusterCommand {
    /// Show the workers, what they hold and draw, and how long the queue of each model is
    Status(Box<BrokerArgs>),
}

/// How the log of the server is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

const SERVE_HELP: &str = "\
Keys with plans (limits on requests, images, megapixels and active jobs), aliases and options of
single models are set in the configuration file (--config): see docs/server.md.

Examples:
  flux-fast serve
  flux-fast serve --model flux1-schnell.safetensors --vram 8G
  flux-fast serve --listen 0.0.0.0:8188 --key-file keys.txt --public-url http://draw.example:8188

  curl http://127.0.0.1:8188/v1/images/generations -d '{\"prompt\": \"a fox\"}'";

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

const REMOTE_HELP: &str = "\
The image options are those of `generate`. LoRAs are named as the server lists them. Ctrl+C \
cancels the job.

Examples:
  flux-fast remote http://127.0.0.1:8188 \"a fox\" -o fox.png
  FLUX_FAST_KEY=... flux-fast remote https://draw.example \"a lighthouse\" --size 16:9 --steps 30";
