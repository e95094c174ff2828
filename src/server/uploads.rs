//! Images that clients leave for later requests: in the [`Store`] of a single machine, or in a
//! cluster where every front finds them.

use axum::body::Bytes;
use serde_json::Value;

use super::fault::Fault;
use super::store::{Kind, Store};

/// The result of storing an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upload {
    /// It is stored under a new name.
    New,
    /// It is stored under a name that had an image before.
    Known,
    /// It is not stored: its name has another image.
    Taken,
}

/// A place for images. Each owner sees only its own. They are kept for the [`life`](Kind::life) of
/// [`Kind::Image`].
pub trait Uploads {
    /// Stores an image durably. Another image of the same name is replaced only with `overwrite`.
    ///
    /// # Errors
    /// 507 if the owner has too many already, 503 if the broker cannot be reached, 500 if it cannot
    /// be written.
    fn put(&self, owner: &str, name: &str, bytes: &[u8], overwrite: bool) -> Result<Upload, Fault>;

    /// The image of this name.
    ///
    /// # Errors
    /// 503 if the broker cannot be reached.
    fn get(&self, owner: &str, name: &str) -> Result<Option<Bytes>, Fault>;

    /// The names of all images of `owner`, the newest first.
    ///
    /// # Errors
    /// 503 if the broker cannot be reached.
    fn names(&self, owner: &str) -> Result<Vec<String>, Fault>;

    /// Deletes the images of these names.
    ///
    /// # Errors
    /// 503 if the broker cannot be reached.
    fn remove(&self, owner: &str, names: &[String]) -> Result<(), Fault>;
}

impl Uploads for Store {
    fn put(&self, owner: &str, name: &str, bytes: &[u8], overwrite: bool) -> Result<Upload, Fault> {
        let known = Store::get(self, owner, Kind::Image, name);
        if known.as_ref().is_some_and(|(_, known)| !overwrite && known != bytes) {
            return Ok(Upload::Taken);
        }
        Store::put(self, owner, Kind::Image, name, Value::Null, bytes)?;
        Ok(if known.is_some() { Upload::Known } else { Upload::New })
    }

    fn get(&self, owner: &str, name: &str) -> Result<Option<Bytes>, Fault> {
        Ok(Store::get(self, owner, Kind::Image, name).map(|(_, bytes)| bytes))
    }

    fn names(&self, owner: &str) -> Result<Vec<String>, Fault> {
        Ok(self.list(owner, Kind::Image).into_iter().map(|facts| facts.name).collect())
    }

    fn remove(&self, owner: &str, names: &[String]) -> Result<(), Fault> {
        for name in names {
            Store::remove(self, owner, Kind::Image, name);
        }
        Ok(())
    }
}
