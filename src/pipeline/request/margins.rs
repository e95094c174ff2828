//! How far an image is extended on each side.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Pixels that are added on each side of an image. Text and JSON are `LEFT,TOP,RIGHT,BOTTOM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Margins {
    /// Columns on the left.
    pub left: usize,
    /// Rows above.
    pub top: usize,
    /// Columns on the right.
    pub right: usize,
    /// Rows below.
    pub bottom: usize,
}

impl Margins {
    /// The four numbers, in the order of the text.
    pub fn sides(&self) -> [usize; 4] {
        [self.left, self.top, self.right, self.bottom]
    }
}

impl fmt::Display for Margins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [left, top, right, bottom] = self.sides();
        write!(f, "{left},{top},{right},{bottom}")
    }
}

impl FromStr for Margins {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split(',').map(|n| n.trim().parse::<usize>().ok());
        let numbers: Option<Vec<usize>> = numbers.collect();
        match numbers.as_deref() {
            Some(&[left, top, right, bottom]) => Ok(Margins { left, top, right, bottom }),
            _ => Err(Error::argument("not four numbers of pixels")
                .at_parameter("outpaint")
                .found(text)
                .expected("LEFT,TOP,RIGHT,BOTTOM, such as 0,0,256,0")),
        }
    }
}

impl TryFrom<String> for Margins {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Margins> for String {
    fn from(margins: Margins) -> String {
        margins.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_are_four_numbers() {
        let margins = Margins { left: 1, top: 2, right: 3, bottom: 4 };
        assert_eq!("1, 2,3,4".parse::<Margins>().unwrap(), margins);
        assert_eq!(serde_json::to_string(&margins).unwrap(), "\"1,2,3,4\"");
        for text in ["", "1", "1,2,3", "1,2,3,4,5", "1,2,3,-4", "a,b,c,d"] {
            assert!(text.parse::<Margins>().is_err(), "{text}");
        }
    }
}
