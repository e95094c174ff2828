//! Turns panics of the `tokenizers` crate into errors: it panics on some malformed files.

use std::cell::Cell;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread runs code of another crate whose panic is caught and returned as an error. A
/// panic hook must not print it then.
pub fn panic_is_caught() -> bool {
    GUARDED.get()
}

/// Runs `work`; a panic in it becomes an error.
pub fn guard<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let before = GUARDED.replace(true);
    // Nothing that `work` could leave half done is used after a panic: the tokenizer under
    // construction is dropped, and an encoding changes only caches that the crate itself guards.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    GUARDED.set(before);
    outcome.unwrap_or_else(|_| {
        Err("the file is malformed (its tables contradict each other)".to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_another_crate_becomes_an_error() {
        assert_eq!(guard(|| Ok(1)), Ok(1));
        assert!(!panic_is_caught());
        let outcome: Result<(), String> = guard(|| {
            assert!(panic_is_caught());
            std::panic::resume_unwind(Box::new("malformed"))
        });
        assert!(outcome.unwrap_err().contains("malformed"));
        assert!(!panic_is_caught());
    }
}
