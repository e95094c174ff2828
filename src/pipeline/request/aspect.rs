//! The shape of an image without its size, such as 16:9.

use std::fmt;
use std::str::FromStr;

use super::limits::{MAX_SIDE, MIN_SIDE};
use crate::error::{Error, Result};

/// The longest shape: 16 times as wide as high, or as high as wide. With the area of any model it
/// has sides that a request may have.
const LONGEST: f64 = 16.0;

/// A ratio of width to height, written as `16:9` or `2.39:1`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AspectRatio {
    width: f64,
    height: f64,
}

impl AspectRatio {
    /// Width and height with this ratio and about `area` pixels, as multiples of `unit`.
    pub fn size(self, area: usize, unit: usize) -> (usize, usize) {
        let ratio = self.width / self.height;
        let side = |pixels: f64| {
            let units = (pixels / unit as f64).round() as usize;
            (units * unit).clamp(MIN_SIDE.next_multiple_of(unit), MAX_SIDE / unit * unit)
        };
        (side((area as f64 * ratio).sqrt()), side((area as f64 / ratio).sqrt()))
    }

    /// The height for `width` at this ratio, as a multiple of `unit` that a request may have.
    pub fn height_for(self, width: usize, unit: usize) -> usize {
        let units = (width as f64 * self.height / self.width / unit as f64).round() as usize;
        (units * unit).clamp(MIN_SIDE.next_multiple_of(unit), MAX_SIDE / unit * unit)
    }

    /// The width for `height` at this ratio, as a multiple of `unit` that a request may have.
    pub fn width_for(self, height: usize, unit: usize) -> usize {
        AspectRatio { width: self.height, height: self.width }.height_for(height, unit)
    }
}

impl FromStr for AspectRatio {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| *n > 0.0);
        let ratio = text.split_once(':').and_then(|(width, height)| {
            Some(AspectRatio { width: number(width)?, height: number(height)? })
        });
        let allowed = (1.0 / LONGEST)..=LONGEST;
        ratio.filter(|r| allowed.contains(&(r.width / r.height))).ok_or_else(|| {
            Error::argument("not an aspect ratio")
                .at_parameter("size")
                .found(text)
                .expected("WIDTH:HEIGHT such as 16:9, from 1:16 to 16:1")
        })
    }
}

impl fmt::Display for AspectRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_gives_multiples_of_the_unit_at_the_same_area() {
        let size = |text: &str, area| text.parse::<AspectRatio>().unwrap().size(area, 16);
        assert_eq!(size("1:1", 1024 * 1024), (1024, 1024));
        assert_eq!(size("16:9", 1024 * 1024), (1360, 768));
        assert_eq!(size("9:16", 1024 * 1024), (768, 1360));
        assert_eq!(size("3:2", 1024 * 1024), (1248, 832));
        assert_eq!(size("2.39:1", 1024 * 1024), (1584, 656));
        assert_eq!(size("16:9", 128 * 128), (176, 96));
        assert_eq!(size("16:1", 1024 * 1024), (4096, 256));
        assert_eq!(size("1:16", 128 * 128), (32, 512));
        let wide: AspectRatio = "16:9".parse().unwrap();
        assert_eq!((wide.height_for(1280, 16), wide.width_for(720, 16)), (720, 1280));
        assert_eq!((wide.height_for(16, 16), wide.width_for(4096, 16)), (16, 4096));
    }

    #[test]
    fn other_texts_and_extreme_shapes_are_refused() {
        for text in ["", ":", "16", "16:", "0:1", "-1:1", "17:1", "1:17", "nan:1", "inf:1", "a:b"] {
            assert!(text.parse::<AspectRatio>().is_err(), "{text}");
        }
    }
}
