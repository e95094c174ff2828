//! How the limits of the owner of a request stand, from where that is decided to the headers of its
//! answer.

use std::cell::RefCell;

use super::Standing;

tokio::task_local! {
    static LIMITS: RefCell<Vec<Standing>>;
}

/// Remembers how limits stand: the answer to the request that runs in this task says so.
pub fn note_limits(standings: Vec<Standing>) {
    // Jobs that are submitted outside a request have no answer.
    LIMITS.try_with(|limits| *limits.borrow_mut() = standings).ok();
}

/// Runs `answer`, and returns what was noted meanwhile too.
pub async fn with_limits<T>(answer: impl Future<Output = T>) -> (T, Vec<Standing>) {
    LIMITS
        .scope(RefCell::default(), async {
            let answer = answer.await;
            (answer, LIMITS.with(RefCell::take))
        })
        .await
}
