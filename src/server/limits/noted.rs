//! Passes the state of an owner's limits from the broker, which decides, to the headers of the
//! answer to the request.

use std::cell::RefCell;

use super::Standing;

tokio::task_local! {
    static LIMITS: RefCell<Vec<Standing>>;
}

/// Notes how limits stand. The answer to the request that runs in this task will say so.
pub fn note_limits(standings: Vec<Standing>) {
    // Jobs that are submitted outside a request have no answer.
    LIMITS.try_with(|limits| *limits.borrow_mut() = standings).ok();
}

/// Runs `answer`. Returns its result, and the limits that were noted while it ran.
pub async fn with_limits<T>(answer: impl Future<Output = T>) -> (T, Vec<Standing>) {
    LIMITS
        .scope(RefCell::default(), async {
            let answer = answer.await;
            (answer, LIMITS.with(RefCell::take))
        })
        .await
}
