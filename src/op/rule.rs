//! The macro in which shape rules are written.

/// Returns an error with the formatted text unless the condition is true.
macro_rules! rule {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            return Err(format!($($why)*));
        }
    };
}
pub(super) use rule;
