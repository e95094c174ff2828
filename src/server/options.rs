//! The options of a server.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::access::ServerKey;
use super::limits::Plan;
use crate::library::file_names::without_ending;
use crate::pipeline::request::Options;

/// The options of [`serve`](super::serve).
#[non_exhaustive]
pub struct ServerOptions {
    /// The default model and the device.
    pub engine: Options,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Keys, one of which every request must carry. Without any, everybody may use the server.
    pub keys: Vec<ServerKey>,
    /// The limits of keys without a plan, and of everybody on a server without keys.
    pub default_plan: Option<Plan>,
    /// How long a model stays in memory after its last job; `None` for as long as the server runs.
    pub keep_alive: Option<Duration>,
    /// Options of single models, by name.
    pub models: HashMap<String, ModelOptions>,
    /// The folder for the list of jobs and for results. One server at a time uses it.
    pub data: PathBuf,
    /// Other names of models: name, or start of a name and `*`; and model.
    pub aliases: Vec<(String, String)>,
    /// The address under which clients reach the server, for links.
    pub public_url: Option<String>,
    /// Origins of web pages that may use the server.
    pub origins: Vec<String>,
    /// Origins of addresses that may be called when a job is over, such as `https://hooks.example`.
    pub webhooks: Vec<String>,
    /// The most jobs that may wait.
    pub max_queued: usize,
    /// How long results are kept.
    pub result_ttl: Duration,
    /// After how long without a sign of life a worker is killed.
    pub hang_after: Duration,
    /// How long the running job may take after `stop` before it is put back into the queue.
    pub grace: Duration,
    /// The program, and the arguments with which it runs [`worker()`](super::worker()).
    pub worker: (PathBuf, Vec<OsString>),
    /// Whether the server is to end.
    pub stop: Arc<dyn Fn() -> bool + Send + Sync>,
    /// The cluster whose queue it uses, in place of one of its own.
    pub cluster: Option<ClusterOptions>,
}

/// How a process reaches the other processes of its cluster.
#[derive(Clone)]
pub struct ClusterOptions {
    /// Addresses of the brokers, separated by commas, each `nats://` or `tls://`, with or without
    /// `USER:PASSWORD@` or `TOKEN@`, and after the last one `/NAME` if several clusters share the
    /// brokers.
    pub broker: String,
    /// A file of NATS credentials: a JWT and the seed of its key.
    pub credentials: Option<PathBuf>,
    /// A file with the seed of a NATS key.
    pub nkey: Option<PathBuf>,
    /// A file of certificates (PEM) of the authorities that sign those of the brokers, in place of
    /// those of the system.
    pub ca_certificates: Option<PathBuf>,
    /// Files (PEM) of the certificate of this process, if the brokers ask for one, and of its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The least number of brokers that keep a copy of everything.
    pub replicas: usize,
    /// The time without a sign of life after which a worker has lost its job.
    pub lost_after: Duration,
}

impl ClusterOptions {
    /// The defaults for a cluster at `broker`.
    pub fn new(broker: String) -> Self {
        ClusterOptions {
            broker,
            credentials: None,
            nkey: None,
            ca_certificates: None,
            certificate: None,
            replicas: 1,
            lost_after: Duration::from_secs(30),
        }
    }

    /// The brokers without passwords.
    pub fn shown_broker(&self) -> String {
        // A comma that no scheme follows may be one of a password.
        let mut parts: Vec<String> = Vec::new();
        for part in self.broker.split(',') {
            match parts.last_mut() {
                Some(last) if !part.contains("://") => *last += &format!(",{part}"),
                _ => parts.push(part.into()),
            }
        }
        let shown = parts.iter().map(|part| match part.split_once("://") {
            Some((scheme, rest)) if !scheme.contains('@') => {
                let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                format!("{}://{host}", scheme.trim())
            }
            _ => String::new(),
        });
        shown.collect::<Vec<_>>().join(",")
    }
}

impl fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cluster at {}, {} copies", self.shown_broker(), self.replicas)
    }
}

/// Options of one model, which replace those of the server.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// How long it stays in memory after its last job, in place of [`ServerOptions::keep_alive`].
    pub keep_alive: Option<Option<Duration>>,
    /// The most steps of requests through APIs whose clients send the same steps to every model.
    pub max_steps: Option<usize>,
}

impl ServerOptions {
    /// The options of the model called `name`. An entry may have the extension of its file.
    pub fn of_model(&self, name: &str) -> Option<&ModelOptions> {
        let of = |name: &str| self.models.get(name);
        of(name).or_else(|| {
            self.models.iter().find(|(key, _)| without_ending(key) == name).map(|(_, m)| m)
        })
    }

    /// The defaults for a server of `engine` that runs `worker`, keeps its files in `data`, and
    /// ends when `stop` says so.
    pub fn new(
        engine: Options,
        data: PathBuf,
        worker: (PathBuf, Vec<OsString>),
        stop: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> Self {
        ServerOptions {
            engine,
            listen: ([127, 0, 0, 1], 8188).into(),
            keys: Vec::new(),
            default_plan: None,
            keep_alive: None,
            models: HashMap::new(),
            data,
            aliases: Vec::new(),
            public_url: None,
            origins: Vec::new(),
            webhooks: Vec::new(),
            max_queued: 256,
            result_ttl: Duration::from_secs(3600),
            hang_after: Duration::from_secs(300),
            grace: Duration::from_secs(8),
            worker,
            stop,
            cluster: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_brokers_are_not_shown() {
        for (broker, shown) in [
            ("nats://a:4222", "nats://a:4222"),
            ("nats://u:word@a, tls://u:word@b/x", "nats://a,tls://b/x"),
            ("nats://u:wo/word@a", "nats://a"),
            ("nats://u:wo,word@a,nats://b", "nats://a,nats://b"),
            ("u:word@a", ""),
            ("u:word@nats://a", ""),
        ] {
            let options = ClusterOptions::new(broker.into());
            assert_eq!(options.shown_broker(), shown);
            assert!(!format!("{options:?}").contains("word"));
        }
    }
}
