//! The page at `/`: the files of `web/`, which are inside the program.
//!
//! They are served as they are: there is no build step. The one inline script is the import map;
//! the content security policy has its hash, and allows nothing from elsewhere.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::fault::Fault;
use super::job::hex;

/// Where the files are.
pub const FOLDER: &str = "/page/";
const INDEX: &str = "index.html";
/// The text before and after the import map in the page.
const IMPORT_MAP: (&str, &str) = ("<script type=\"importmap\">", "</script>");

macro_rules! files {
    ($($name:literal)+) => {
        [$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/", $name)) as &[u8])),+]
    };
}

const FILES: &[(&str, &[u8])] = &files! {
    "api.js"
    "app.js"
    "controls.js"
    "dialogs.js"
    "form.js"
    "history.js"
    "html.js"
    "icon.svg"
    "index.html"
    "inputs.js"
    "jobs.js"
    "mask.js"
    "nets.js"
    "stage.js"
    "store.js"
    "style.css"
    "text.js"
    "vendor/LICENSE-htm"
    "vendor/LICENSE-preact"
    "vendor/hooks.mjs"
    "vendor/htm.mjs"
    "vendor/preact.mjs"
};

/// A file with what its answer says about it.
struct WebFile {
    bytes: &'static [u8],
    content_type: &'static str,
    etag: String,
}

static BY_NAME: LazyLock<HashMap<&str, WebFile>> = LazyLock::new(|| {
    let files = FILES.iter().map(|(name, bytes)| {
        let content_type = match name.rsplit_once('.') {
            Some((_, "html")) => "text/html; charset=utf-8",
            Some((_, "css")) => "text/css; charset=utf-8",
            Some((_, "js" | "mjs")) => "text/javascript; charset=utf-8",
            Some((_, "svg")) => "image/svg+xml",
            _ => "text/plain; charset=utf-8",
        };
        let etag = format!("\"{}\"", hex(&Sha256::digest(bytes)[..16]));
        (*name, WebFile { bytes, content_type, etag })
    });
    files.collect()
});

/// The content security policy of the page.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let index = FILES.iter().find(|(name, _)| *name == INDEX).map_or(&[][..], |(_, bytes)| bytes);
    let index = String::from_utf8_lossy(index);
    let (before, after) = IMPORT_MAP;
    let map = index.split_once(before).and_then(|(_, rest)| rest.split_once(after));
    let hash = BASE64_STANDARD.encode(Sha256::digest(map.map_or("", |(map, _)| map).as_bytes()));
    format!(
        "default-src 'none'; script-src 'self' 'sha256-{hash}'; style-src 'self'; \
         img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
});

/// Whether a request for `/` is that of a browser that shows pages.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    accept.is_some_and(|types| types.contains("text/html"))
}

/// Whether the page or a file of it is asked for. It contains nothing that needs a key.
pub fn is_page(path: &str, headers: &HeaderMap) -> bool {
    path.starts_with(FOLDER) || path == "/" && is_wanted(headers)
}

/// The page itself.
pub fn index(headers: &HeaderMap) -> Response {
    let mut response = answer(INDEX, headers);
    let set = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        set.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    set.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    set.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    set.insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// One of its files.
pub async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    answer(&name, &headers)
}

fn answer(name: &str, headers: &HeaderMap) -> Response {
    let Some(file) = BY_NAME.get(name) else {
        return Fault::not_found("there is nothing at this path").into_response();
    };
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let fresh = known.is_some_and(|tags| tags.split(',').any(|tag| is_same(tag, &file.etag)));
    // A browser asks each time, so that a newer program shows its own page at once.
    let described = [
        (header::CONTENT_TYPE, file.content_type),
        (header::ETAG, file.etag.as_str()),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    match fresh {
        true => (StatusCode::NOT_MODIFIED, described).into_response(),
        false => (described, file.bytes).into_response(),
    }
}

/// Whether a tag of `If-None-Match` names the file. Proxies that compress make it weak.
fn is_same(tag: &str, etag: &str) -> bool {
    let tag = tag.trim();
    tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in quotes that follow `before` in the modules of the page.
    fn quoted_after(text: &str, before: &str) -> Vec<String> {
        let parts = text.split(before).skip(1);
        parts.filter_map(|part| Some(part.split_once('"')?.0.to_string())).collect()
    }

    #[test]
    fn every_file_that_the_page_names_is_inside_the_program() {
        let is_there = |name: &str| assert!(BY_NAME.contains_key(name), "{name}");
        let mut count = 0;
        for (name, bytes) in FILES.iter().filter(|(name, _)| !name.starts_with("vendor/")) {
            let text = std::str::from_utf8(bytes).unwrap();
            for file in quoted_after(text, "from \"./").iter() {
                is_there(file);
                count += 1;
            }
            for file in ["src=\"page/", "href=\"page/", "\"./page/"] {
                quoted_after(text, file).iter().for_each(|file| is_there(file));
            }
            assert!(
                !text.contains("https://") && !text.contains("http://")
                    || *name == "icon.svg"
                    || text.matches("http").count() == text.matches("http://www.w3.org/").count(),
                "{name} names an address"
            );
        }
        assert!(count > 20, "only {count} imports found");
        // Nothing in the folder was forgotten.
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/web");
        for sub in ["", "vendor/"] {
            for entry in std::fs::read_dir(format!("{folder}/{sub}")).unwrap().flatten() {
                if entry.file_type().unwrap().is_file() && entry.file_name() != "README.md" {
                    is_there(&format!("{sub}{}", entry.file_name().to_str().unwrap()));
                }
            }
        }
    }

    #[test]
    fn libraries_are_as_published() {
        let readme = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/web/vendor/README.md"));
        for name in ["preact.mjs", "hooks.mjs", "htm.mjs"] {
            let hash = hex(&Sha256::digest(BY_NAME[format!("vendor/{name}").as_str()].bytes));
            let line = readme.lines().find(|l| l.starts_with(&format!("| `{name}`"))).unwrap();
            assert!(line.contains(&hash), "{name} is {hash}");
        }
    }

    #[test]
    fn the_policy_has_the_hash_of_the_import_map_and_no_inline_code_is_left() {
        let index = std::str::from_utf8(BY_NAME[INDEX].bytes).unwrap();
        assert_eq!(index.matches("<script").count(), 2);
        assert!(!index.contains("<style") && !index.contains(" style=") && !index.contains(" on"));
        assert!(POLICY.contains("'sha256-") && !POLICY.contains("unsafe"));
        let empty = BASE64_STANDARD.encode(Sha256::digest(b""));
        assert!(!POLICY.contains(&empty), "the import map was not found");
    }

    #[test]
    fn only_browsers_get_the_page_and_unchanged_files_are_not_sent_again() {
        let with = |name, value: &str| HeaderMap::from_iter([(name, value.parse().unwrap())]);
        let browser = with(header::ACCEPT, "text/html,application/xhtml+xml,*/*;q=0.8");
        assert!(is_page("/", &browser) && is_page("/page/app.js", &HeaderMap::new()));
        assert!(!is_page("/", &with(header::ACCEPT, "*/*")) && !is_page("/api/v2/jobs", &browser));
        let first = answer("app.js", &HeaderMap::new());
        let etag = first.headers()[header::ETAG].to_str().unwrap().to_string();
        assert_eq!(first.status(), 200);
        for tags in [etag.clone(), format!("\"x\", W/{etag}"), "*".into()] {
            assert_eq!(answer("app.js", &with(header::IF_NONE_MATCH, &tags)).status(), 304);
        }
        assert_eq!(answer("app.js", &with(header::IF_NONE_MATCH, "\"x\"")).status(), 200);
        assert_eq!(answer("../Cargo.toml", &HeaderMap::new()).status(), 404);
    }
}
