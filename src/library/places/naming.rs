//! From a name to a file: a path, an id in the Hugging Face cache, or the name of an [`Entry`].

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::describe::describe;
use super::entries::{Entry, ModelPlaces, snapshot_entries};
use super::roots::Role;
use crate::error::{Error, Kind, Result};
use crate::library::file_names::{FileName, is_weights, without_ending};
use crate::library::repo_id::{HUGGING_FACE, RepoRef, is_inside, is_repo_id};
use crate::library::similar::{edit_distance, no_such_path};
use crate::message::Message;

/// How many models a message lists.
const MAX_LISTED: usize = 8;

/// Returns the entries of all places. It is called only if they are needed: most names are paths.
type Entries<'f, 'a> = &'f dyn Fn() -> Cow<'a, [Entry]>;

impl ModelPlaces {
    /// The file or folder that `name` means to a user who may name any path: a path, or a name that
    /// [`named`](Self::named) finds. A model whose folder is for `role` takes precedence.
    ///
    /// Errors: `Missing` with similar names and the places that were searched; `Argument` if
    /// several models have this name, with a list of them.
    pub fn resolve(&self, name: &str, role: Role) -> Result<PathBuf> {
        self.resolve_among(name, role, &|| self.entries().into())
    }

    /// The model called `name`, for names from strangers: `org/name` or `org/name/file` in the
    /// Hugging Face cache, or a file in the places by its path there, or by its file name with or
    /// without the ending. No name leads out of the places.
    ///
    /// Errors: `Missing` and `Argument` as for [`resolve`](Self::resolve), without paths that are
    /// not in the places.
    pub fn named(&self, name: &str, role: Role) -> Result<PathBuf> {
        self.named_among(name, role, &|| self.entries().into())
    }

    /// What a user types for `entry`: its name, or its path if the name is not unique or means
    /// something else.
    pub(super) fn shortest_name(&self, entry: &Entry, role: Role, entries: &[Entry]) -> String {
        let found = self.resolve_among(&entry.name, role, &|| entries.into());
        let real = found.ok().and_then(|path| self.here().join(path).canonicalize().ok());
        match real {
            Some(real) if real == entry.real => entry.name.clone(),
            _ => entry.path.display().to_string(),
        }
    }

    fn resolve_among(&self, name: &str, role: Role, entries: Entries) -> Result<PathBuf> {
        if name.is_empty() || name.contains('\0') {
            return Err(not_a_name());
        }
        let path = match name.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                self.home.join(rest.trim_start_matches('/'))
            }
            _ => self.here().join(name),
        };
        if path.exists() {
            return Ok(if path == self.here().join(name) { PathBuf::from(name) } else { path });
        }
        let is_path = Path::new(name).is_absolute()
            || name.starts_with(['.', '~', '\\'])
            || name.contains("..");
        if is_path {
            return Err(no_such_path(&std::path::absolute(&path).unwrap_or(path)));
        }
        self.named_among(name, role, entries).map_err(|e| match e.kind() {
            // A user who may name any path may also see which places were searched.
            Kind::Missing => {
                e.expected(format!("a file or folder, or a name in {}", self.searched().join(", ")))
            }
            _ => e,
        })
    }

    pub(super) fn named_among(&self, name: &str, role: Role, entries: Entries) -> Result<PathBuf> {
        let lower = name.to_lowercase();
        let name = name.trim_end_matches('/');
        let is_encoded = ["%2e", "%2f", "%5c", "%00"].iter().any(|code| lower.contains(code));
        if !is_inside(name) || is_encoded {
            return Err(not_a_name());
        }
        if let Some(path) = self.cached(name, role)? {
            return Ok(path);
        }
        let entries = entries();
        let fits = |e: &&Entry| role == Role::Any || e.role == Role::Any || e.role == role;
        let fitting: Vec<&Entry> = entries.iter().filter(fits).collect();
        let all: Vec<&Entry> = entries.iter().collect();
        for among in [fitting, all] {
            match find_called(&among, |entry| &entry.name, name) {
                Called::None => {}
                Called::One(entry) => return Ok(entry.path.clone()),
                Called::Several(several) => {
                    let paths = several.iter().map(|e| e.path.display().to_string());
                    return Err(ambiguous(name, paths));
                }
            }
        }
        Err(Error::missing("no model of this name was found").at(name).try_(advice(name, &entries)))
    }

    /// The file or folder in the Hugging Face cache that an id means. If a repository has several
    /// files, the only one that fits `role`.
    fn cached(&self, name: &str, role: Role) -> Result<Option<PathBuf>> {
        let Ok(RepoRef { repo, revision, file }) = RepoRef::parse(name, HUGGING_FACE) else {
            return Ok(None);
        };
        let folder = self.cache.repo(&repo);
        let snapshot =
            if revision == "main" { folder.current() } else { folder.snapshot_of(&revision) };
        let Some(snapshot) = snapshot else { return Ok(None) };
        if let Some(file) = file {
            return Ok(Some(snapshot.join(file)).filter(|p| p.exists()));
        }
        if snapshot.join("model_index.json").is_file() {
            return Ok(Some(snapshot));
        }
        let entries = snapshot_entries(&repo, &snapshot, &mut HashSet::new());
        match entries.as_slice() {
            [] => Err(Error::missing("the Hugging Face cache contains no weights of this model")
                .at(name)
                .try_(pull(name))),
            [one] => Ok(Some(one.path.clone())),
            several => {
                let fits = |e: &Entry| describe(&e.path, self.families).0.role() == role;
                let fitting: Vec<&Entry> = several.iter().filter(|e| fits(e)).collect();
                match fitting.as_slice() {
                    [one] => Ok(Some(one.path.clone())),
                    _ => Err(ambiguous(name, several.iter().map(|e| e.name.clone()))),
                }
            }
        }
    }
}

/// The error for a name that cannot be the name of a model. It contains no path, because the name
/// may come from a stranger.
fn not_a_name() -> Error {
    Error::argument("not the name of a model").try_("{:models} lists the names")
}

fn ambiguous(name: &str, paths: impl Iterator<Item = String>) -> Error {
    let paths: Vec<String> = paths.collect();
    let more = match paths.len().saturating_sub(MAX_LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let listed = &paths[..paths.len().min(MAX_LISTED)];
    Error::argument("several models have this name")
        .at(name)
        .found(paths.len())
        .try_(format!("one of {}{more}", listed.join(", ")))
}

/// The hint for a name that was not found: a pull if it looks like a repository, similar names, or
/// the list of models.
fn advice(name: &str, entries: &[Entry]) -> Message {
    // `models/x.safetensors` has the form of an id, but the user means a file.
    let repo = name.split('@').next().unwrap_or(name);
    let is_id = is_repo_id(repo) && repo.contains('/') && !is_weights(repo);
    let similar = similar_names(name, entries).join(" or ");
    match (is_id, similar.as_str()) {
        (true, "") => pull(name),
        (true, similar) => {
            Message::with("{}; or did you mean {}?", [pull(name), Message::plain(similar)])
        }
        (false, "") => "{:models} lists all models; {:pull org/name} downloads one".into(),
        (false, similar) => {
            Message::with("did you mean {}? {:models} lists all models", [Message::plain(similar)])
        }
    }
}

/// The command that downloads `name`.
fn pull(name: &str) -> Message {
    Message::with("{:pull {}}", [Message::plain(name)])
}

/// The three entries whose names are the most similar to `name`.
fn similar_names<'a>(name: &str, entries: &'a [Entry]) -> Vec<&'a str> {
    let lower = name.to_lowercase();
    let wanted = last_part(&lower);
    let start: String = wanted.chars().take(5).collect();
    let mut similar: Vec<(usize, &str)> = entries
        .iter()
        .filter_map(|e| {
            let entry = e.name.to_lowercase();
            let stem = last_part(without_ending(&entry));
            let distance = edit_distance(without_ending(wanted), stem);
            let is_near = distance <= 2.max(stem.len() / 4);
            let contains = entry.contains(&lower) || start.len() >= 4 && entry.contains(&start);
            let distance = if is_near { distance } else { usize::MAX };
            (is_near || contains).then_some((distance, e.name.as_str()))
        })
        .collect();
    similar.sort();
    similar.into_iter().map(|(_, name)| name).take(3).collect()
}

/// The part of a name after the last slash.
fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// What a name means among entries.
pub(crate) enum Called<'a, T> {
    /// None of them.
    None,
    /// This one.
    One(&'a T),
    /// All of these: it does not say which.
    Several(Vec<&'a T>),
}

/// The entry that `name` means among `all`, whose own names `name_of` returns: the one that has
/// this name, else the one that has it as a short form, else in any case.
pub(crate) fn find_called<'a, T>(
    all: &[&'a T],
    name_of: impl Fn(&T) -> &str,
    name: &str,
) -> Called<'a, T> {
    for is_match in [is_same, is_short_form, is_short_form_in_any_case] {
        let found: Vec<&T> = all.iter().copied().filter(|e| is_match(name_of(e), name)).collect();
        match found.as_slice() {
            [] => {}
            [one] => return Called::One(one),
            _ => return Called::Several(found),
        }
    }
    Called::None
}

/// Whether `name` may stand for the entry called `entry`: its name or a short form of it, in any
/// case.
pub(crate) fn is_called(entry: &str, name: &str) -> bool {
    is_same(entry, name) || is_short_form_in_any_case(entry, name)
}

fn is_same(entry: &str, name: &str) -> bool {
    entry == name
}

/// Whether `name` is the file name of `entry`, or one of its names without the ending or without
/// the number of a shard.
fn is_short_form(entry: &str, name: &str) -> bool {
    let last = last_part(entry);
    let parsed = FileName::parse(last);
    let is_model_of_shards = parsed.shards > 0 && parsed.stem == name;
    last == name
        || without_ending(last) == name
        || without_ending(entry) == name
        || is_model_of_shards
}

fn is_short_form_in_any_case(entry: &str, name: &str) -> bool {
    let (entry, name) = (entry.to_lowercase(), name.to_lowercase());
    entry == name || is_short_form(&entry, &name)
}
