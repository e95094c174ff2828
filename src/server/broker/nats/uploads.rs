//! Images that clients leave for later requests, so that every front finds them: the content is an
//! object of the bucket of images that never changes, and one value per owner, changed by
//! compare-and-set, says which names mean which objects.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::front::FrontBroker;
use super::hub::lock;
use super::link::{Link, get, set, unreachable};
use crate::server::access::hash;
use crate::server::broker::Broker;
use crate::server::fault::Fault;
use crate::server::job::{hex, random_hex};
use crate::server::store::{Kind, MAX_BYTES, storage_full};
use crate::server::uploads::{Upload, Uploads};

/// What the names of the files begin with.
pub const UPLOAD: &str = "upload-";
/// What the keys of lists begin with.
const LISTS: &str = "uploads.";
/// The longest list of one owner, in bytes.
const MAX_LIST: usize = 512 << 10;
/// How often a change is tried while other fronts change the same list.
const ATTEMPTS: usize = 50;
/// The time between searches for expired images: their owners may never send another one.
const SWEEP: Duration = Duration::from_secs(600);
/// How long such a search may take.
const SWEEPING: Duration = Duration::from_secs(30);

/// An image of an owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    /// The name that the client gave it.
    name: String,
    /// Its name in the bucket of images.
    object: String,
    /// Its size, in bytes.
    size: u64,
    /// The SHA-256 of its content.
    hash: String,
    /// When it was stored, in seconds since 1970.
    at: f64,
}

/// The images of an owner, the oldest first.
type List = Vec<Entry>;

fn key(owner: &str) -> String {
    format!("{LISTS}{}", hex(&hash(owner)))
}

/// Removes the entries that have expired at `now` (seconds since 1970), and returns them.
fn take_expired(list: &mut List, now: f64) -> List {
    let life = Kind::Image.life().as_secs_f64();
    list.extract_if(.., |entry| now - entry.at > life).collect()
}

/// Adds `new`. Returns the result, and the entries that were removed, whose objects can be deleted.
/// The list is unchanged for [`Upload::Taken`]. It may have `max_list` bytes as JSON.
///
/// # Errors
/// 507 if the list, or the images in it, would be too large.
fn add(
    list: &mut List,
    new: &Entry,
    overwrite: bool,
    max_list: usize,
) -> Result<(Upload, List), Fault> {
    let known = list.iter().position(|entry| entry.name == new.name);
    if known.is_some_and(|at| !overwrite && list[at].hash != new.hash) {
        return Ok((Upload::Taken, Vec::new()));
    }
    let mut unused = take_expired(list, new.at);
    let known = list.iter().position(|entry| entry.name == new.name);
    unused.extend(known.map(|at| list.remove(at)));
    list.push(new.clone());
    let length = serde_json::to_vec(list).map_or(usize::MAX, |bytes| bytes.len());
    if length > max_list || list.iter().map(|entry| entry.size).sum::<u64>() > MAX_BYTES {
        return Err(storage_full());
    }
    Ok((if known.is_some() { Upload::Known } else { Upload::New }, unused))
}

impl Link {
    /// The images of `owner` that have not expired at `now`.
    async fn list(&self, owner: &str, now: f64) -> Result<List, Fault> {
        let known = get::<List>(&self.shared, &key(owner)).await?;
        let mut list = known.map(|(list, _)| list).unwrap_or_default();
        take_expired(&mut list, now);
        Ok(list)
    }

    async fn delete_objects(&self, entries: &[Entry]) {
        for entry in entries {
            // An object that stays is deleted after `max_age` of the bucket.
            self.images.delete(&entry.object).await.ok();
        }
    }

    /// Stores `bytes` as the content of `new`, and adds `new` to the list of `owner`.
    ///
    /// # Errors
    /// 507 if the owner has too many images already, 503.
    async fn upload(
        &self,
        owner: &str,
        new: Entry,
        bytes: &[u8],
        overwrite: bool,
    ) -> Result<Upload, Fault> {
        let max_list = MAX_LIST.min(self.max_value());
        let mut is_stored = false;
        let busy = Fault::new(503, "busy", "too many uploads of this key at the same time");
        let mut refused = Err(busy.retry_after(1));
        for _ in 0..ATTEMPTS {
            let known = get::<List>(&self.shared, &key(owner)).await?;
            let (mut list, revision) = known.unwrap_or_default();
            let (upload, unused) = match add(&mut list, &new, overwrite, max_list) {
                Ok((Upload::Taken, _)) => {
                    refused = Ok(Upload::Taken);
                    break;
                }
                Err(fault) => {
                    refused = Err(fault);
                    break;
                }
                Ok(added) => added,
            };
            // The content is stored first, so that the list has only objects that exist.
            if !is_stored {
                self.put_bytes(&new.object, bytes).await?;
                is_stored = true;
            }
            // After an error the list may have been changed, so the new object stays.
            if set(&self.shared, &key(owner), &list, revision).await?.is_some() {
                self.delete_objects(&unused).await;
                return Ok(upload);
            }
        }
        if is_stored {
            self.delete_objects(&[new]).await;
        }
        refused
    }

    /// Deletes the images of `owner` that have these names.
    ///
    /// # Errors
    /// 503.
    async fn remove_uploads(&self, owner: &str, names: &[String]) -> Result<(), Fault> {
        for _ in 0..ATTEMPTS {
            let known = get::<List>(&self.shared, &key(owner)).await?;
            let Some((mut list, revision)) = known else { return Ok(()) };
            let is_meant = |entry: &mut Entry| names.contains(&entry.name);
            let unused: List = list.extract_if(.., is_meant).collect();
            if unused.is_empty() {
                return Ok(());
            }
            if set(&self.shared, &key(owner), &list, revision).await?.is_some() {
                self.delete_objects(&unused).await;
                return Ok(());
            }
        }
        Err(Fault::new(503, "busy", "too many uploads of this key at the same time").retry_after(1))
    }

    /// Deletes the images of all owners that have expired at `now`. Returns the files of the
    /// others.
    ///
    /// # Errors
    /// 503.
    async fn sweep_uploads(&self, now: f64) -> Result<HashSet<String>, Fault> {
        let keys = self.shared.keys().await.map_err(|e| unreachable(&e))?;
        let keys: Vec<String> = keys.try_collect().await.map_err(|e| unreachable(&e))?;
        let mut used = HashSet::new();
        for key in keys.iter().filter(|key| key.starts_with(LISTS)) {
            let Some((mut list, revision)) = get::<List>(&self.shared, key).await? else {
                continue;
            };
            let unused = take_expired(&mut list, now);
            // If another front has changed the list meanwhile, that front deletes them.
            if !unused.is_empty() && set(&self.shared, key, &list, revision).await?.is_some() {
                self.delete_objects(&unused).await;
            }
            used.extend(list.into_iter().map(|entry| entry.object));
        }
        Ok(used)
    }
}

impl FrontBroker {
    /// Deletes the images that have expired, and those that are left over, at most every [`SWEEP`].
    pub(super) fn sweep_uploads(&self) {
        let is_due = {
            let mut swept = lock(&self.swept);
            let is_due = swept.is_none_or(|swept| swept.elapsed() > SWEEP);
            if is_due {
                *swept = Some(Instant::now());
            }
            is_due
        };
        if is_due {
            let (link, now) = (&self.hub.link, self.clock().seconds());
            let is_job = |id: &str| lock(&self.hub.mirror).get(id).is_some();
            let sweep = async {
                let uploads = link.sweep_uploads(now).await?;
                link.sweep_files(now, is_job, &uploads).await
            };
            // The next search continues with the lists that are left.
            link.wait(async { tokio::time::timeout(SWEEPING, sweep).await.ok() });
        }
    }
}

impl Uploads for FrontBroker {
    fn put(&self, owner: &str, name: &str, bytes: &[u8], overwrite: bool) -> Result<Upload, Fault> {
        let random = random_hex(16).map_err(|e| Fault::internal(e.to_string()))?;
        let entry = Entry {
            name: name.into(),
            object: format!("{UPLOAD}{random}"),
            size: bytes.len() as u64,
            hash: hex(&Sha256::digest(bytes)),
            at: self.clock().seconds(),
        };
        let link = &self.hub.link;
        link.wait(async {
            link.ready().await?;
            link.upload(owner, entry, bytes, overwrite).await
        })
    }

    fn get(&self, owner: &str, name: &str) -> Result<Option<Bytes>, Fault> {
        let link = &self.hub.link;
        link.wait(async {
            link.ready().await?;
            let mut object = None;
            loop {
                let mut list = link.list(owner, self.clock().seconds()).await?;
                let Some(at) = list.iter().position(|entry| entry.name == name) else {
                    return Ok(None);
                };
                let found = list.swap_remove(at).object;
                // If the object is missing, the image may just have been replaced: the list is
                // read again.
                if object.as_ref() == Some(&found) {
                    return Ok(None);
                }
                match link.get_bytes(&found).await {
                    Err(fault) if fault.status == 410 => object = Some(found),
                    bytes => return bytes.map(|bytes| Some(Bytes::from(bytes))),
                }
            }
        })
    }

    fn names(&self, owner: &str) -> Result<Vec<String>, Fault> {
        let link = &self.hub.link;
        let list = link.wait(async {
            link.ready().await?;
            link.list(owner, self.clock().seconds()).await
        })?;
        Ok(list.into_iter().rev().map(|entry| entry.name).collect())
    }

    fn remove(&self, owner: &str, names: &[String]) -> Result<(), Fault> {
        let link = &self.hub.link;
        link.wait(async {
            link.ready().await?;
            link.remove_uploads(owner, names).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, content: &str, at: f64) -> Entry {
        let (object, hash) = (format!("{name}-{content}"), content.into());
        Entry { name: name.into(), object, size: 1, hash, at }
    }

    #[test]
    fn names_keep_their_image_until_it_is_overwritten_or_expires() {
        let mut list = List::new();
        let day = Kind::Image.life().as_secs_f64();
        let mut put = |name: &str, content: &str, at: f64, overwrite: bool| {
            let (upload, unused) =
                add(&mut list, &entry(name, content, at), overwrite, MAX_LIST).unwrap();
            let unused: Vec<String> = unused.into_iter().map(|entry| entry.object).collect();
            (upload, unused.join(" "), list.len())
        };
        assert_eq!(put("a", "1", 1.0, false), (Upload::New, String::new(), 1));
        assert_eq!(put("b", "1", 2.0, false), (Upload::New, String::new(), 2));
        assert_eq!(put("a", "2", 3.0, false), (Upload::Taken, String::new(), 2));
        assert_eq!(put("a", "2", 4.0, true), (Upload::Known, "a-1".into(), 2));
        assert_eq!(put("b", "1", day + 1.0, false), (Upload::Known, "b-1".into(), 2));
        assert_eq!(put("c", "1", day + 5.0, false), (Upload::New, "a-2".into(), 2));
        assert_eq!(take_expired(&mut list, 3.0 * day).len(), 2);
    }

    #[test]
    fn the_bytes_and_the_list_of_an_owner_are_limited() {
        let mut list = List::new();
        let mut large = entry("a", "1", 1.0);
        large.size = MAX_BYTES;
        add(&mut list, &large, false, MAX_LIST).unwrap();
        assert_eq!(
            add(&mut list.clone(), &entry("b", "1", 1.0), false, MAX_LIST).unwrap_err().status,
            507
        );
        // In place of the first one there is room.
        add(&mut list, &entry("a", "2", 1.0), true, MAX_LIST).unwrap();
        let name = "n".repeat(255);
        let full = (0..MAX_LIST).find(|n| {
            // Checking the length of each list takes long.
            list.extend((1..100).map(|m| entry(&format!("{name}{n}-{m}"), "1", 1.0)));
            add(&mut list, &entry(&format!("{name}{n}"), "1", 1.0), false, MAX_LIST).is_err()
        });
        assert!(full.is_some_and(|n| n > 5), "{full:?}");
    }
}
