//! Idempotency keys: one front at a time may accept the job of a key. It has a claim in the broker,
//! and renews it until the job is stored, however long the images take. The id of the job follows
//! from the key, so that even two fronts that believe they have the claim make one job.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::link::{Link, MARKERS_KEPT, claim, get, set_for};
use super::record::Record;
use crate::server::access::hash;
use crate::server::broker::NewJob;
use crate::server::fault::Fault;
use crate::server::job::{hex, random_hex};

/// How long idempotency keys are remembered.
const SAME_KEPT: Duration = Duration::from_secs(24 * 3600);
/// How often a front renews its claim.
const RENEWAL: Duration = Duration::from_secs(1);
/// After this time without a renewal the front of a claim has ended.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a request waits for another front that accepts the same job.
const WAITING: Duration = Duration::from_secs(30);
/// The time between looks at the claim of another front.
const LOOK: Duration = Duration::from_millis(50);

/// The value of an idempotency key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Claimed {
    /// The id of the job.
    job: String,
    /// A hash of what the client sent.
    sent: String,
    /// Differs from one claim to the next. Earlier versions stored the other two as a list.
    #[serde(default)]
    by: String,
}

/// The right to accept the job of an idempotency key.
pub struct Claim {
    key: String,
    claimed: Claimed,
    /// The revision of the key when the claim was made.
    revision: u64,
}

/// The result of looking at the idempotency key of a new job.
pub enum Claiming {
    /// The job was accepted before.
    Known(Box<Record>),
    /// It may be accepted; `None` for a job without a key.
    Free(Option<Claim>),
}

/// The fault of a key that comes with another request than before.
pub fn reused() -> Fault {
    Fault::new(422, "idempotency_key_reuse", "this idempotency key was used for another request")
        .hint("use a new key for every new request")
}

/// Where the idempotency key of a job is stored.
fn same_key(owner: &str, key: &str) -> String {
    format!("same.{}", hex(&hash(&format!("{owner}\0{key}"))))
}

impl Link {
    /// The job that was accepted with the idempotency key of `new`, or the right to accept it.
    ///
    /// # Errors
    /// 422 for a key that was used for another request, 503 if another front takes long to accept
    /// the job, or the broker is out of reach.
    pub async fn claim(&self, new: &NewJob) -> Result<Claiming, Fault> {
        let Some((key, sent)) = &new.idempotency else { return Ok(Claiming::Free(None)) };
        let key = same_key(&new.owner, key);
        let by = random_hex(8).map_err(|e| Fault::internal(e.to_string()))?;
        let claimed = Claimed { job: new.id.clone(), sent: sent.clone(), by };
        let held = |revision| {
            let (key, claimed) = (key.clone(), claimed.clone());
            Ok(Claiming::Free(Some(Claim { key, claimed, revision })))
        };
        let since = Instant::now();
        // The last revision of another front's claim, and when it was seen first.
        let mut seen: Option<(u64, Instant)> = None;
        loop {
            if let Some(revision) = claim(self, &self.shared, &key, &claimed, SAME_KEPT).await? {
                return held(revision);
            }
            // The request with the key may be refused meanwhile.
            let Some((other, revision)) = get::<Claimed>(&self.shared, &key).await? else {
                continue;
            };
            if other.sent != *sent {
                return Err(reused());
            }
            if let Some((record, _)) = self.job(&other.job).await? {
                return Ok(Claiming::Known(Box::new(record)));
            }
            match seen {
                Some((known, at)) if known == revision => {
                    if at.elapsed() > SILENCE {
                        let taken =
                            set_for(self, &self.shared, &key, &claimed, revision, SAME_KEPT);
                        if let Some(revision) = taken.await? {
                            return held(revision);
                        }
                    }
                }
                _ => seen = Some((revision, Instant::now())),
            }
            if since.elapsed() > WAITING {
                let message = "another front is accepting a request with this idempotency key";
                return Err(Fault::new(503, "busy", message).retry_after(1));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Claim {
    /// Renews the claim for ever, so that no other front takes it over.
    pub async fn keep(&self, link: &Link) -> Infallible {
        let mut revision = self.revision;
        loop {
            tokio::time::sleep(RENEWAL).await;
            let renewed =
                set_for(link, &link.shared, &self.key, &self.claimed, revision, SAME_KEPT);
            match renewed.await {
                Ok(Some(next)) => revision = next,
                // It may be this one, if the answer to an earlier renewal was lost.
                Ok(None) => match self.current(link).await {
                    Ok(Some(known)) => revision = known,
                    Ok(None) => std::future::pending().await,
                    Err(_) => {}
                },
                Err(_) => {}
            }
        }
    }

    /// The revision of the key, if it is still this claim.
    async fn current(&self, link: &Link) -> Result<Option<u64>, Fault> {
        let known = get::<Claimed>(&link.shared, &self.key).await?;
        Ok(known.filter(|(known, _)| *known == self.claimed).map(|(_, revision)| revision))
    }

    /// Whether no other front has taken it over, as far as the broker answers.
    pub async fn is_held(&self, link: &Link) -> bool {
        matches!(self.current(link).await, Ok(Some(_)))
    }

    /// Frees the key of a job that was refused: the client may send it again.
    pub async fn give_up(self, link: &Link) {
        if let Ok(Some(revision)) = self.current(link).await {
            let shared = &link.shared;
            shared.purge_expect_revision_with_ttl(&self.key, revision, MARKERS_KEPT).await.ok();
        }
    }
}
