//! What the machine has: memory, folders, the environment.

/// Where this program keeps what it can make again: `FLUX_FAST_CACHE`, else `flux-fast` in the user's cache folder.
pub fn cache_folder() -> std::path::PathBuf {
    let set =
        |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(std::path::PathBuf::from);
    let user = || {
        set("XDG_CACHE_HOME")
            .or_else(|| Some(set("HOME")?.join(".cache")))
            .or_else(|| set("LOCALAPPDATA"))
    };
    set("FLUX_FAST_CACHE")
        .or_else(|| Some(user()?.join("flux-fast")))
        .unwrap_or_else(|| std::env::temp_dir().join("flux-fast"))
}
