//! What the configuration file says about the server: plans, keys, other names, single models.
//!
//! ```toml
//! broker = "nats://flux:password@broker:4222"
//! default-plan = "bfl-free"
//! plans.family = { limits = ["10/min", "200 images/day", "4 active"], max_pixels = 1048576 }
//! aliases.house = "flux1-dev"
//! models.flux1-schnell = { keep_alive = "5m", max_steps = 8 }
//! [keys."sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"]
//! plan = "family"
//! ```

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::config::Config;
use super::values;
use crate::error::{Error, Result};
use crate::server::{ModelOptions, Plan, ServerKey, presets};

/// The content of the file, checked.
#[derive(Debug, Default)]
pub struct ServerConfig {
    /// Keys with their plans.
    pub keys: Vec<ServerKey>,
    /// The plan of keys without one.
    pub default_plan: Option<Plan>,
    /// Other names of models.
    pub aliases: Vec<(String, String)>,
    /// Options of single models.
    pub models: HashMap<String, ModelOptions>,
    /// The address of a cluster, used without `--broker`. It may contain a password.
    pub broker: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    broker: Option<String>,
    default_plan: Option<String>,
    #[serde(default)]
    plans: BTreeMap<String, PlanEntry>,
    #[serde(default)]
    keys: BTreeMap<String, KeyEntry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(default)]
    models: BTreeMap<String, ModelEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanEntry {
    #[serde(default)]
    limits: Vec<String>,
    max_pixels: Option<u64>,
    models: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    plan: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelEntry {
    keep_alive: Option<String>,
    max_steps: Option<usize>,
}

/// Reads the server's part of `config`.
///
/// # Errors
/// [`Kind::Argument`](crate::error::Kind::Argument) with the key at which it is wrong.
pub fn read(config: &Config) -> Result<ServerConfig> {
    parse(config.server.clone()).map_err(|e| match &config.path {
        Some(path) => e.at_path(path),
        None => e,
    })
}

fn parse(table: toml::Table) -> Result<ServerConfig> {
    if table.get("keys").is_some_and(|keys| !keys.is_table()) {
        // It may be a key itself, which the error of the next line would repeat.
        return Err(Error::argument("the keys are not a table")
            .at("keys")
            .expected("keys.\"sha256:...\" = { plan = \"...\" }"));
    }
    let file: File = table.try_into().map_err(|e: toml::de::Error| {
        Error::argument(format!("the configuration of the server: {}", e.message()))
    })?;
    let mut plans: HashMap<String, Plan> =
        presets().into_iter().map(|(name, plan)| (name.to_string(), plan)).collect();
    for (name, entry) in file.plans {
        let mut plan = Plan::of(&entry.limits).map_err(|e| e.at(format!("plans.{name}")))?;
        plan.max_pixels = entry.max_pixels;
        plan.models = entry.models;
        plans.insert(name, plan);
    }
    let find = |name: &str| {
        plans.get(name).cloned().ok_or_else(|| {
            let mut known: Vec<&str> = plans.keys().map(String::as_str).collect();
            known.sort_unstable();
            Error::argument("there is no plan of this name").found(name).expected(known.join(", "))
        })
    };
    let default_plan = file.default_plan.as_deref().map(find).transpose()?;
    let mut keys = Vec::new();
    for (number, (hash, entry)) in file.keys.into_iter().enumerate() {
        let mut key =
            ServerKey::hashed(&hash).map_err(|e| e.at(format!("number {} of keys", number + 1)))?;
        key.name = entry.name;
        key.plan = entry.plan.as_deref().map(find).transpose()?;
        keys.push(key);
    }
    let mut models = HashMap::new();
    for (name, entry) in file.models {
        let refused = |text: String| Error::argument(text).at(format!("models.{name}"));
        let keep_alive = match entry.keep_alive.as_deref().map(values::keep_alive) {
            None => None,
            Some(read) => Some(read.map_err(refused)?.0),
        };
        if entry.max_steps == Some(0) {
            return Err(refused("max_steps: expected at least 1".into()));
        }
        models.insert(name, ModelOptions { keep_alive, max_steps: entry.max_steps });
    }
    let aliases = file.aliases.into_iter().collect();
    Ok(ServerConfig { keys, default_plan, aliases, models, broker: file.broker })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HASH: &str = "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

    #[test]
    fn keys_have_plans_of_the_file_or_presets() {
        let text = format!(
            "default-plan = \"fal-free\"
             plans.family = {{ limits = [\"10/min\", \"4 active\"], max_pixels = 1048576 }}
             keys.\"{HASH}\" = {{ plan = \"family\", name = \"anna\" }}
             aliases.house = \"flux1-dev\"
             models.\"a b\" = {{ keep_alive = \"5m\", max_steps = 8 }}
             models.c = {{ keep_alive = \"forever\" }}
             broker = \"nats://u:p@a\""
        );
        let config = parse(text.parse().unwrap()).unwrap();
        assert_eq!(config.broker.as_deref(), Some("nats://u:p@a"));
        assert_eq!(config.keys[0].name.as_deref(), Some("anna"));
        let plan = config.keys[0].plan.as_ref().unwrap();
        assert_eq!((plan.limits.len(), plan.max_pixels), (2, Some(1_048_576)));
        assert_eq!(config.default_plan.unwrap().limits[0].name, "min");
        assert_eq!(config.aliases, [("house".to_string(), "flux1-dev".to_string())]);
        let five = Some(Some(Duration::from_secs(300)));
        assert_eq!(config.models["a b"].keep_alive, five);
        assert_eq!(config.models["c"].keep_alive, Some(None));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("plans.x = { limits = [\"10/fortnight\"] }", "plans.x"),
            ("plans.x = { limit = [] }", "limit"),
            ("default-plan = \"gold\"", "fal-paid"),
            ("keys = \"word\"", "not a table"),
            ("keys.foo = {}", "number 1 of keys"),
            ("keys.\"sha256:zz\" = {}", "64 hexadecimal"),
            ("models.x = { keep_alive = \"long\" }", "models.x"),
            ("models.x = { max_steps = 0 }", "models.x"),
        ] {
            let error = parse(text.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("word"), "{text}: {error}");
        }
    }
}
