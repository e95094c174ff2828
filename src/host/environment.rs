//! Environment variables, and the folders that they name.

use std::ffi::OsString;
use std::path::PathBuf;

/// Reads an environment variable by its name. Code that depends on the environment takes this as a
/// parameter, so that tests can supply their own; [`process_environment`] is the real one.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The environment of this process, as an [`Environment`].
pub fn process_environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The value of the variable `name` if it is set and not empty.
pub fn variable(env: Environment, name: &str) -> Option<OsString> {
    env(name).filter(|v| !v.is_empty())
}

/// Whether the variable `name` is set to 1, ON, YES or TRUE, in any case. These are the values that
/// the tools of Hugging Face accept.
pub fn flag(env: Environment, name: &str) -> bool {
    variable(env, name).is_some_and(|v| {
        matches!(v.to_string_lossy().to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
    })
}

/// The user's home folder: `HOME`, else `USERPROFILE`.
pub fn home_folder(env: Environment) -> Option<PathBuf> {
    variable(env, "HOME").or_else(|| variable(env, "USERPROFILE")).map(PathBuf::from)
}

/// The folder for files that this program can make again: `FLUX_FAST_CACHE`, else `flux-fast` in
/// the user's cache folder (`XDG_CACHE_HOME`, `.cache` in the home folder, or `LOCALAPPDATA`), else
/// in the folder for temporary files.
pub fn cache_folder() -> PathBuf {
    cache_folder_of(&process_environment).unwrap_or_else(|| std::env::temp_dir().join("flux-fast"))
}

fn cache_folder_of(env: Environment) -> Option<PathBuf> {
    let path = |name| variable(env, name).map(PathBuf::from);
    let user = || {
        path("XDG_CACHE_HOME")
            .or_else(|| Some(path("HOME")?.join(".cache")))
            .or_else(|| path("LOCALAPPDATA"))
    };
    path("FLUX_FAST_CACHE").or_else(|| Some(user()?.join("flux-fast")))
}

/// The folder for this program's configuration: `flux-fast` in the user's configuration folder
/// (`XDG_CONFIG_HOME`, `APPDATA`, or `.config` in `HOME`). `None` if no variable names one.
pub fn config_folder() -> Option<PathBuf> {
    let env: Environment = &process_environment;
    let path = |name| variable(env, name).map(PathBuf::from);
    let user = path("XDG_CONFIG_HOME")
        .or_else(|| path("APPDATA"))
        .or_else(|| Some(path("HOME")?.join(".config")))?;
    Some(user.join("flux-fast"))
}

/// The folder for files that this program must not lose: `flux-fast` in the user's data folder
/// (`XDG_DATA_HOME`, `.local/share` in the home folder, or `LOCALAPPDATA`), else in the folder for
/// temporary files.
pub fn data_folder() -> PathBuf {
    let path = |name| variable(&process_environment, name).map(PathBuf::from);
    let user = path("XDG_DATA_HOME")
        .or_else(|| Some(path("HOME")?.join(".local/share")))
        .or_else(|| path("LOCALAPPDATA"));
    user.unwrap_or_else(std::env::temp_dir).join("flux-fast")
}

/// The current folder of this process; `.` if it cannot be read.
pub fn current_folder() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."))
}

/// Replaces a leading `~`, and `$NAME`, `${NAME}` and `%NAME%` anywhere, in a path that a person
/// wrote. Variables that are not set are left as they are.
pub fn expand(env: Environment, text: &str) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    if let (Some(after), Some(home)) = (text.strip_prefix('~'), home_folder(env))
        && (after.is_empty() || after.starts_with(['/', '\\']))
    {
        out.push_str(&home.to_string_lossy());
        rest = after;
    }
    while let Some(at) = rest.find(['$', '%']) {
        out.push_str(&rest[..at]);
        let (name, length) = variable_at_start(&rest[at..]);
        match variable(env, name).filter(|_| !name.is_empty()) {
            Some(value) => out.push_str(&value.to_string_lossy()),
            None => out.push_str(&rest[at..at + length]),
        }
        rest = &rest[at + length..];
    }
    out.push_str(rest);
    PathBuf::from(out)
}

/// The name of the variable at the start of `text`, and the length of its whole notation in bytes.
/// The name is empty if there is no variable.
fn variable_at_start(text: &str) -> (&str, usize) {
    let word = |s: &str| s.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
    let (open, close) = match text {
        t if t.starts_with("${") => (2, "}"),
        t if t.starts_with('%') => (1, "%"),
        _ => (1, ""),
    };
    let name = &text[open..open + word(&text[open..])];
    match text[open + name.len()..].starts_with(close) {
        true if !name.is_empty() => (name, open + name.len() + close.len()),
        _ => ("", 1),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn variables_and_home_are_replaced_and_unknown_variables_stay() {
        let env = |name: &str| match name {
            "HOME" => Some("/home/u".into()),
            "DISK" => Some("/mnt/d".into()),
            _ => None,
        };
        let cases = [
            ("~", "/home/u"),
            ("~/x/~", "/home/u/x/~"),
            ("~other/x", "~other/x"),
            ("$DISK/a", "/mnt/d/a"),
            ("${DISK}a", "/mnt/da"),
            ("%DISK%/b", "/mnt/d/b"),
            ("$NOT/%NOT%/${DISK/5%/$", "$NOT/%NOT%/${DISK/5%/$"),
            ("ä$DISKö", "ä/mnt/dö"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(&env, text), Path::new(expected), "{text}");
        }
    }

    #[test]
    fn the_first_variable_that_is_set_names_the_cache_folder() {
        let folder = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(n, _)| *n == name);
            cache_folder_of(&|name| find(name).map(|(_, value)| value.into()))
        };
        let all = [
            ("FLUX_FAST_CACHE", "/c", "/c"),
            ("XDG_CACHE_HOME", "/x", "/x/flux-fast"),
            ("HOME", "/h", "/h/.cache/flux-fast"),
            ("LOCALAPPDATA", "/l", "/l/flux-fast"),
        ];
        for skip in 0..all.len() {
            let set: Vec<_> = all[skip..].iter().map(|(name, value, _)| (*name, *value)).collect();
            assert_eq!(folder(&set), Some(PathBuf::from(all[skip].2)));
        }
        assert_eq!(folder(&[("XDG_CACHE_HOME", "")]), None, "an empty value counts as not set");
    }
}
