//! How processes log in to the broker: passwords, tokens, keys, credentials and TLS, each accepted
//! and refused.

use std::path::{Path, PathBuf};
use std::process::Output;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::super::nats::Broker;
use super::super::{Server, command, program};
use super::{Worker, front, ready, wait_for};

/// No message and no log may contain this text.
const SECRET: &str = "s3same";

/// A front and a worker that have drawn together.
struct Cluster {
    front: Server,
    worker: Worker,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// `serve`, `worker` and `cluster status` with these options.
    fn draws(url: &str, options: &[&str]) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let front = front(url, &folder.path().join("front"), options);
        let mut command = Worker::command(url, &folder.path().join("worker"));
        command.args(options);
        let cluster = Cluster { front, worker: Worker::of(command), _folder: folder };
        cluster.worker.wait();
        ready(&cluster.front);
        cluster.draw();
        let output = status(url, options);
        assert!(output.status.success(), "{}", errors(&output));
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(status["workers"].as_array().unwrap().len(), 1, "{status}");
        for text in [&status.to_string(), &cluster.front.log(), &cluster.worker.log()] {
            assert!(!text.contains(SECRET) && !text.contains("the broker says"), "{text}");
        }
        cluster
    }

    fn draw(&self) {
        let request = json!({"prompt": "a", "steps": 1, "width": 64, "height": 64, "seed": 1});
        self.front.image(&self.front.submit(request));
    }
}

fn status(url: &str, options: &[&str]) -> Output {
    let mut command = program();
    command.args(["cluster", "status", "--json", "--broker", url]).args(options);
    command.output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// All three programs end with `code`, and their messages contain each of `parts`.
fn refused(url: &str, options: &[&str], code: i32, parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let all_options = [&["--broker", url], options].concat();
    let serve = command(&folder.path().join("front"), &all_options).output().unwrap();
    let mut worker = Worker::command(url, &folder.path().join("worker"));
    let worker = worker.args(options).output().unwrap();
    for output in [serve, worker, status(url, options)] {
        let text = errors(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
        assert!(!text.contains(SECRET), "{text}");
    }
}

/// The address with a user and password, or a token.
fn with(login: &str, url: &str) -> String {
    url.replace("://", &format!("://{login}@"))
}

fn certificate(name: &str) -> String {
    format!("{}/tests/data/tls/{name}.pem", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn users_and_tokens_in_the_address() {
    // The permissions of docs/deploy/cluster.md.
    let users = format!(
        "authorization {{ users: [{{ user: flux, password: \"{SECRET},/@\", permissions: {{\n\
         publish: [\"ff-password.>\", \"_INBOX.>\", \"$JS.API.>\", \"$JS.FC.>\", \
         \"$KV.FF_password_STATE.>\", \"$KV.FF_password_LIMITS.>\", \"$O.FF_password_IMG.>\"]\n\
         subscribe: [\"ff-password.>\", \"_INBOX.>\"] }} }}] }}"
    );
    let Some(mut broker) = Broker::with(&users) else { return };
    let url = broker.url("password");
    let cluster = Cluster::draws(&with(&format!("flux:{SECRET}%2C%2F%40"), &url), &[]);
    let hint = ["refuses this user", "--broker"];
    refused(&with(&format!("flux:{SECRET}"), &url), &[], 6, &hint);
    refused(&url, &[], 6, &hint);
    // A password and a file with a key: it is not clear which is meant.
    let both = ["--nats-nkey", "none"];
    refused(&with(&format!("flux:{SECRET}"), &url), &both, 2, &["--nats-nkey"]);
    drop(cluster);
    broker.restart_with(&format!("authorization {{ token: \"{SECRET}-token\" }}"));
    assert!(status(&with(&format!("{SECRET}-token"), &url), &[]).status.success());
    refused(&with(SECRET, &url), &[], 6, &hint);
}

#[test]
fn tls_with_an_authority_of_its_own() {
    let tls = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\" }}",
        certificate("server"),
        certificate("server-key")
    );
    let Some(broker) = Broker::with(&tls) else { return };
    let (url, ca) = (broker.url("tls").replace("nats://", "tls://"), certificate("ca"));
    Cluster::draws(&url, &["--nats-ca", &ca]);
    refused(&url, &[], 6, &["UnknownIssuer", "--nats-ca with"]);
    let other = certificate("other-ca");
    refused(&url, &["--nats-ca", &other], 6, &["UnknownIssuer", "check --nats-ca"]);
    // The broker requires TLS, even if the address does not ask for it.
    assert!(status(&broker.url("tls"), &["--nats-ca", &ca]).status.success());
    let key = certificate("server-key");
    refused(&url, &["--nats-ca", &key], 2, &[&key, "-----BEGIN CERTIFICATE-----"]);
    refused(&url, &["--nats-ca", "missing"], 2, &["missing"]);
    let Some(plain) = Broker::start() else { return };
    let url = plain.url("tls").replace("nats://", "tls://");
    refused(&url, &["--nats-ca", &ca], 6, &["does not use TLS"]);
}

#[test]
fn tls_with_certificates_of_clients() {
    let tls = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: true }}",
        certificate("server"),
        certificate("server-key"),
        certificate("ca")
    );
    let Some(broker) = Broker::with(&tls) else { return };
    let url = broker.url("tls").replace("nats://", "tls://");
    let files = ["ca", "client", "client-key", "server", "server-key"].map(certificate);
    let [ca, client, client_key, server, server_key] = files.each_ref().map(String::as_str);
    let of = |certificate, key| ["--nats-ca", ca, "--nats-cert", certificate, "--nats-key", key];
    Cluster::draws(&url, &of(client, client_key));
    refused(&url, &["--nats-ca", ca], 6, &["asks for a certificate", "--nats-cert"]);
    // A certificate of a server is not one of a client.
    refused(&url, &of(server, server_key), 6, &["--nats-cert"]);
    refused(&url, &of(client, server_key), 6, &["--nats-key is the key"]);
    refused(&url, &of(client_key, client_key), 2, &["-----BEGIN CERTIFICATE-----"]);
    refused(&url, &of(client, client), 2, &["PRIVATE KEY-----"]);
    refused(&url, &["--nats-ca", ca, "--nats-cert", client], 2, &["--nats-key"]);
}

/// A configuration that allows only the user with `key`.
fn of_key(key: &KeyPair) -> String {
    format!("authorization {{ users: [{{ nkey: {} }}] }}", key.public_key())
}

#[test]
fn keys_that_are_replaced_while_everything_runs() {
    let (first, second) = (KeyPair::new_user(), KeyPair::new_user());
    let Some(mut broker) = Broker::with(&of_key(&first)) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    let options = ["--nats-nkey", file.to_str().unwrap()];
    let url = broker.url("keys");
    let hint = ["refuses this user", "--nats-nkey"];
    write(&file, &second);
    refused(&url, &options, 6, &hint);
    refused(&url, &[], 6, &hint);
    std::fs::write(&file, KeyPair::new_account().seed().unwrap()).unwrap();
    refused(&url, &options, 2, &["SU"]);
    write(&file, &first);
    let cluster = Cluster::draws(&url, &options);
    write(&file, &second);
    broker.restart_with(&of_key(&second));
    wait_for("the broker", || {
        let request = json!({"request": {"prompt": "a", "steps": 1, "seed": 1}});
        (cluster.front.post("/api/v2/jobs", &request).status == 201).then_some(())
    });
    cluster.draw();
}

fn write(path: &Path, key: &KeyPair) {
    std::fs::write(path, format!("{}\n", key.seed().unwrap())).unwrap();
}

/// A token of NATS about `subject`, signed by `issuer`.
fn token(issuer: &KeyPair, subject: &KeyPair, expires: Option<u64>, mut says: Value) -> String {
    says["version"] = json!(2);
    let mut claims = json!({
        "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(),
        "name": "test", "sub": subject.public_key(), "nats": says,
    });
    if let Some(expires) = expires {
        claims["exp"] = json!(expires);
    }
    let encoded = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let text =
        format!("{}.{}", encoded(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), encoded(&claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(issuer.sign(text.as_bytes()).unwrap());
    format!("{text}.{signature}")
}

/// A file of credentials, as `nsc` writes it.
fn credentials(folder: &Path, token: &str, key: &KeyPair) -> PathBuf {
    let path = folder.join("user.creds");
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        key.seed().unwrap()
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn files_of_credentials_of_an_operator() {
    let operator = KeyPair::new_operator();
    let (system, account) = (KeyPair::new_account(), KeyPair::new_account());
    let limits = json!({
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1, "subs": -1,
        "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
        "leaf": -1,
    });
    let of_account = |key: &KeyPair, limits: &Value| {
        token(&operator, key, None, json!({"type": "account", "limits": limits}))
    };
    let config = format!(
        "operator: \"{}\"\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload: {{ {system}: \"{}\", {account}: \"{}\" }}",
        token(&operator, &operator, None, json!({"type": "operator"})),
        of_account(&system, &json!({})),
        of_account(&account, &limits),
        system = system.public_key(),
        account = account.public_key(),
    );
    let Some(broker) = Broker::with(&config) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (user, url) = (KeyPair::new_user(), broker.url("jwt"));
    let says = json!({"type": "user", "subs": -1, "data": -1, "payload": -1});
    let file = |issuer: &KeyPair, expires, key: &KeyPair| {
        credentials(folder.path(), &token(issuer, &user, expires, says.clone()), key)
    };
    let path = file(&account, None, &user);
    let options = ["--nats-creds", path.to_str().unwrap()];
    Cluster::draws(&url, &options);
    let hint = ["refuses this user", "--nats-creds"];
    // A token that has expired, one for another key, and one of another account.
    file(&account, Some(1_700_000_001), &user);
    refused(&url, &options, 6, &hint);
    file(&account, None, &KeyPair::new_user());
    refused(&url, &options, 6, &hint);
    file(&KeyPair::new_account(), None, &user);
    refused(&url, &options, 6, &hint);
    refused(&url, &[], 6, &hint);
    std::fs::write(&path, "nothing").unwrap();
    refused(&url, &options, 2, &["NATS USER JWT"]);
    refused(&url, &["--nats-creds", "missing"], 2, &["missing"]);
}

#[test]
fn options_for_a_broker_need_one_and_files_of_keys_have_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x\n".repeat(600_000)).unwrap();
    let file = file.to_str().unwrap();
    let serve = |options: &[&str]| {
        let output = command(&folder.path().join("data"), options).output().unwrap();
        (output.status.code(), errors(&output))
    };
    for options in [
        &["--nats-creds", file][..],
        &["--nats-nkey", file],
        &["--nats-ca", file],
        &["--nats-cert", file, "--nats-key", file],
        &["--nats-replicas", "3"],
    ] {
        let (code, text) = serve(options);
        assert_eq!(code, Some(2), "{options:?}: {text}");
        assert!(text.contains(options[0]) && text.contains("no broker is named"), "{text}");
    }
    let (code, text) = serve(&["--key-file", file]);
    assert!(code == Some(4) && text.contains("more than"), "{code:?}: {text}");
}

#[test]
fn the_status_of_a_cluster_only_reads() {
    let Some(broker) = Broker::start() else { return };
    let url = broker.url("nobody");
    let output = status(&url, &[]);
    assert_eq!(output.status.code(), Some(4), "{}", errors(&output));
    assert!(errors(&output).contains("no front and no worker"), "{}", errors(&output));
    assert_eq!(broker.ask("$JS.API.STREAM.NAMES")["total"], 0);
}
