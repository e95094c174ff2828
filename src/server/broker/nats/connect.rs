//! How a process connects to the brokers, and the buckets that it makes and checks there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, kv, object_store};
use tokio::runtime::Handle;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;

use super::address::Address;
use super::link::{Link, MARKERS_KEPT};
use super::login::{TIMEOUT, login, refusal};
use crate::error::{Error, Result};
use crate::server::options::ClusterOptions;

/// Everything in the bucket of images is deleted after this time, if not before.
const IMAGES_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Messages of this many bytes must be possible: pieces of images, and previews.
const MESSAGE: usize = 256 << 10;
/// The oldest version of the brokers.
const VERSION: (i64, i64, i64) = (2, 12, 0);

/// What a process does with the buckets at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buckets {
    /// It makes those that do not exist, and checks the others.
    Kept,
    /// It only reads them.
    Read,
}

impl Link {
    /// Connects as `name`, and makes the buckets that do not exist, unless they are only read.
    ///
    /// # Errors
    /// [`Kind::Missing`](crate::error::Kind::Missing) if they are only read and do not exist,
    /// [`Kind::Argument`](crate::error::Kind::Argument) for an invalid address and files that
    /// cannot be used, [`Kind::Device`](crate::error::Kind::Device) if no broker answers or it is
    /// of no use.
    pub async fn connect(
        options: &ClusterOptions,
        name: &str,
        buckets: Buckets,
    ) -> Result<Arc<Link>> {
        let address = Address::parse(&options.broker)?;
        let connected = watch::Sender::new(Instant::now());
        let client = login(options, address.secret, name, connected.clone())?
            .connect(&address.servers)
            .await
            .map_err(|e| refusal(&e, options))?;
        if !client.is_server_compatible(VERSION.0, VERSION.1, VERSION.2) {
            return Err(Error::device("the broker is too old")
                .found(client.server_info().version)
                .expected(format!("nats-server {}.{} or later", VERSION.0, VERSION.1)));
        }
        if client.max_payload() < MESSAGE {
            return Err(Error::device("the broker takes only short messages")
                .found(format!("max_payload {}", client.max_payload()))
                .expected(format!("{MESSAGE} or more")));
        }
        let mut context = jetstream::new(client.clone());
        context.set_timeout(TIMEOUT);
        let bucket = |what: &str| match &address.name {
            Some(name) => format!("FF_{name}_{what}"),
            None => format!("FF_{what}"),
        };
        let replicas = options.replicas;
        let jobs = "jobs, one key each";
        let common = "limits, and what all processes share";
        if buckets == Buckets::Kept {
            make_key_values(&context, bucket("STATE"), jobs, replicas).await?;
            make_key_values(&context, bucket("LIMITS"), common, replicas).await?;
            make_objects(&context, bucket("IMG"), replicas).await?;
        }
        let [state, shared, images] = ["STATE", "LIMITS", "IMG"].map(bucket);
        let unopened = |e: &dyn std::error::Error, name: &str| match buckets {
            Buckets::Kept => setup_error(name, e),
            Buckets::Read => no_cluster(name, e),
        };
        let opened = async |name: String| {
            context.get_key_value(&name).await.map_err(|e| unopened(&e, &name))
        };
        let (state, shared) = (opened(state).await?, opened(shared).await?);
        let images = context.get_object_store(&images).await.map_err(|e| unopened(&e, &images))?;
        let prefix = address.name.map_or("ff".into(), |name| format!("ff-{name}"));
        let handle = Handle::current();
        let (outgoing, mut messages) = unbounded_channel::<(String, Vec<u8>)>();
        let sender = client.clone();
        tokio::spawn(async move {
            while let Some((subject, bytes)) = messages.recv().await {
                sender.publish(subject, bytes.into()).await.ok();
            }
        });
        Ok(Arc::new(Link {
            client,
            context,
            state,
            shared,
            images,
            connected,
            prefix,
            handle,
            outgoing,
        }))
    }
}

fn setup_error(name: &str, error: &dyn std::error::Error) -> Error {
    Error::device(format!("the bucket cannot be used: {error}"))
        .at(name)
        .try_("check that JetStream is on (nats-server -js) and that the account may use it")
}

fn creation_error(name: &str, replicas: usize, error: &dyn std::error::Error) -> Error {
    let text = error.to_string();
    // 10074: a broker without a cluster; 10005: not enough brokers in their cluster.
    if !text.contains("error code 10074") && !text.contains("error code 10005") {
        return setup_error(name, error);
    }
    Error::device(format!("the brokers cannot keep {replicas} copies: {text}"))
        .at(name)
        .try_("a cluster of at least as many nats-servers, or a smaller {nats_replicas}")
}

/// The result of making the bucket called `name`, which another process may make at the same time.
fn is_made<E: std::error::Error>(
    name: &str,
    replicas: usize,
    made: std::result::Result<(), E>,
) -> Result<()> {
    match made {
        Ok(()) => Ok(()),
        // 10058: it exists with other settings. They are checked next.
        Err(e) if e.to_string().contains("error code 10058") => Ok(()),
        Err(e) => Err(creation_error(name, replicas, &e)),
    }
}

/// The error of a bucket that is only read and cannot be.
fn no_cluster(name: &str, error: &dyn std::error::Error) -> Error {
    let text = error.to_string();
    // 10059: there is no such stream.
    let is_missing = text.contains("error code 10059");
    if !is_missing {
        return setup_error(name, error);
    }
    Error::missing("no front and no worker has used this broker yet")
        .at(name)
        .try_("check the address of the broker, with the /NAME that `serve` has")
}

/// Makes a bucket of keys and values if there is none, and checks it.
async fn make_key_values(
    context: &jetstream::Context,
    bucket: String,
    what: &str,
    replicas: usize,
) -> Result<()> {
    if context.get_key_value(&bucket).await.is_err() {
        let config = kv::Config {
            bucket: bucket.clone(),
            description: format!("flux-fast: {what}"),
            history: 1,
            num_replicas: replicas,
            // The time for which a deleted key leaves a marker.
            limit_markers: Some(MARKERS_KEPT),
            ..kv::Config::default()
        };
        let made = context.create_key_value(config).await.map(drop);
        is_made(&bucket, replicas, made)?;
    }
    let config = checked(context, &format!("KV_{bucket}"), Duration::ZERO, replicas).await?;
    if config.max_messages_per_subject != 1 {
        return Err(Error::device("a bucket of the broker keeps another number of revisions")
            .at(&config.name)
            .found(config.max_messages_per_subject)
            .expected(1));
    }
    if !config.allow_message_ttl {
        return Err(Error::device("the keys of a bucket of the broker cannot expire one by one")
            .at(&config.name)
            .found("allow_msg_ttl: false")
            .expected("allow_msg_ttl: true"));
    }
    Ok(())
}

/// Makes a bucket of files if there is none, and checks it.
async fn make_objects(context: &jetstream::Context, bucket: String, replicas: usize) -> Result<()> {
    if context.get_object_store(&bucket).await.is_err() {
        let config = object_store::Config {
            bucket: bucket.clone(),
            description: Some("flux-fast: images to start from, and results".into()),
            max_age: IMAGES_KEPT,
            num_replicas: replicas,
            ..object_store::Config::default()
        };
        let made = context.create_object_store(config).await.map(drop);
        is_made(&bucket, replicas, made)?;
    }
    checked(context, &format!("OBJ_{bucket}"), IMAGES_KEPT, replicas).await.map(drop)
}

/// The settings of a stream. Checks that they are those that a cluster needs, since somebody may
/// have made it by hand. Gives it `replicas` copies if it has fewer: the process that made it may
/// have asked for fewer.
async fn checked(
    context: &jetstream::Context,
    name: &str,
    max_age: Duration,
    replicas: usize,
) -> Result<Config> {
    let stream = context.get_stream(name).await.map_err(|e| setup_error(name, &e))?;
    let mut config = stream.cached_info().config.clone();
    if config.storage != StorageType::File {
        return Err(Error::device("a bucket of the broker is not durable")
            .at(name)
            .found("storage in memory")
            .expected("storage in files"));
    }
    if config.max_age != max_age {
        return Err(Error::device("a bucket of the broker keeps its values for another time")
            .at(name)
            .found(format!("max_age {} s", config.max_age.as_secs()))
            .expected(format!("max_age {} s", max_age.as_secs())));
    }
    if config.discard != DiscardPolicy::New {
        return Err(Error::device("a bucket of the broker deletes old values when it is full")
            .at(name)
            .found("discard: old")
            .expected("discard: new"));
    }
    if config.num_replicas < replicas {
        config.num_replicas = replicas;
        let updated = context.update_stream(&config).await.map(drop);
        updated.map_err(|e| creation_error(name, replicas, &e))?;
        tracing::info!("{name} has {replicas} copies from now on");
    }
    Ok(config)
}
