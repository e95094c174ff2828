//! The response headers that describe a file.

use ureq::http::HeaderMap;

/// The value of the header `name`, if it is plain text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What the hub reports about a file, collected over the redirects to it.
#[derive(Debug, Clone, Default)]
pub(super) struct FileFacts {
    /// The commit that the file belongs to.
    pub commit: Option<String>,
    /// The size of the file.
    pub bytes: Option<u64>,
    linked_etag: Option<String>,
    plain_etag: Option<String>,
}

impl FileFacts {
    /// The ETag, which is the name of the file's blob. The ETag of the stored file
    /// (`X-Linked-Etag`) takes precedence over the one of the response.
    pub fn etag(&self) -> Option<&str> {
        self.linked_etag.as_deref().or(self.plain_etag.as_deref())
    }

    /// Adds the headers of one response. `is_body` says that `Content-Length` is the size of the
    /// whole file.
    pub fn add(&mut self, headers: &HeaderMap, is_body: bool) {
        let etag = |name| {
            header(headers, name).map(|e| e.trim_start_matches("W/").trim_matches('"').to_string())
        };
        self.commit = header(headers, "x-repo-commit").map(str::to_string).or(self.commit.take());
        self.linked_etag = etag("x-linked-etag").or(self.linked_etag.take());
        self.plain_etag = etag("etag").or(self.plain_etag.take());
        let length = header(headers, "content-length").filter(|_| is_body);
        let bytes = header(headers, "x-linked-size").or(length);
        self.bytes = bytes.and_then(|b| b.parse().ok()).or(self.bytes);
    }
}
