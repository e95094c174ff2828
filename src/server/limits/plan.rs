//! Plans as people write them: `["10/s", "1000 images/month", "24 active"]`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::server::clock::SECOND;

/// The unit that a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Requests that were accepted.
    Requests,
    /// Images of those requests.
    Images,
    /// Pixels of those images.
    Pixels,
    /// Jobs that wait or run.
    Active,
}

/// One limit of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The name in headers: the window, with the unit if that is not requests.
    pub name: String,
    /// The most that may count.
    pub quota: u64,
    /// The unit.
    pub unit: Unit,
    /// The length of the window in nanoseconds; `None` for [`Unit::Active`].
    pub window: Option<i64>,
}

/// The limits of the owner of a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// All of them count at the same time.
    pub limits: Vec<Limit>,
    /// The most pixels of one image.
    pub max_pixels: Option<u64>,
    /// The names of models that may be used; `None` for all.
    pub models: Option<Vec<String>>,
}

/// Windows by name, in seconds. A month has 30 days.
const WINDOWS: [(&str, i64); 13] = [
    ("s", 1),
    ("sec", 1),
    ("second", 1),
    ("min", 60),
    ("minute", 60),
    ("h", 3600),
    ("hour", 3600),
    ("d", 86_400),
    ("day", 86_400),
    ("week", 604_800),
    ("mo", 2_592_000),
    ("month", 2_592_000),
    ("30d", 2_592_000),
];
/// The pixels of a megapixel.
const MEGA: u64 = 1_000_000;
/// The longest window in seconds: jobs are remembered for 31 days.
const LONGEST: i64 = 2_592_000;

impl Limit {
    /// A limit from text: `10/s`, `40/5h`, `1000 images/month`, `50 megapixels/day`, `24 active`.
    ///
    /// # Errors
    /// [`Kind::Argument`](crate::error::Kind::Argument) if it is something else.
    pub fn parse(text: &str) -> Result<Limit> {
        read(text.trim()).ok_or_else(|| {
            Error::argument("not a limit").found(text).expected(
                "such as 10/s, 60/min, 40/5h, 1000 images/month, 50 megapixels/day or 24 active",
            )
        })
    }
}

/// As people write it: `10/s`, `1/10s`, `200 images/day`, `24 active`.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (quota, unit, suffix) = match self.unit {
            Unit::Active => return write!(f, "{} {}", self.quota, self.name),
            Unit::Requests => (self.quota, "", ""),
            Unit::Images => (self.quota, " images", "-images"),
            Unit::Pixels => (self.quota / MEGA, " megapixels", "-megapixels"),
        };
        let window = self.name.strip_suffix(suffix).unwrap_or(&self.name);
        let one = window.strip_prefix('1').filter(|unit| unit.starts_with(char::is_alphabetic));
        write!(f, "{quota}{unit}/{}", one.unwrap_or(window))
    }
}

fn read(text: &str) -> Option<Limit> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let quota: u64 = text[..digits].parse().ok().filter(|quota| *quota > 0)?;
    let rest = text[digits..].trim();
    if rest == "active" {
        let name = "active".to_string();
        return Some(Limit { name, quota, unit: Unit::Active, window: None });
    }
    let (unit, window) = rest.split_once('/')?;
    let (unit, factor, suffix) = match unit.trim() {
        "" | "request" | "requests" => (Unit::Requests, 1, ""),
        "image" | "images" => (Unit::Images, 1, "-images"),
        "megapixel" | "megapixels" | "mp" | "MP" => (Unit::Pixels, MEGA, "-megapixels"),
        _ => return None,
    };
    let window = window.trim();
    let digits = window.find(|c: char| !c.is_ascii_digit())?;
    let times: i64 = match &window[..digits] {
        "" => 1,
        times => times.parse().ok()?,
    };
    let (_, seconds) = WINDOWS.iter().find(|(name, _)| *name == window[digits..].trim())?;
    let seconds = seconds.checked_mul(times).filter(|s| (1..=LONGEST).contains(s))?;
    let name = match digits {
        0 if matches!(window, "s" | "sec" | "second" | "h" | "hour") => {
            format!("1{}", &window[..1])
        }
        _ => window.replace(' ', ""),
    };
    Some(Limit {
        name: name + suffix,
        quota: quota.checked_mul(factor)?,
        unit,
        window: Some(seconds * SECOND),
    })
}

impl Plan {
    /// A plan of `limits`, as [`Limit::parse`] reads them.
    ///
    /// # Errors
    /// Those of [`Limit::parse`].
    pub fn of<T: AsRef<str>>(limits: &[T]) -> Result<Plan> {
        let limits = limits.iter().map(|text| Limit::parse(text.as_ref()));
        Ok(Plan { limits: limits.collect::<Result<_>>()?, ..Plan::default() })
    }

    /// The longest window, in nanoseconds; 0 without any.
    pub fn longest(&self) -> i64 {
        self.limits.iter().filter_map(|limit| limit.window).max().unwrap_or(0)
    }
}

/// The predefined plans, with the limits that services of these names publish.
pub fn presets() -> Vec<(&'static str, Plan)> {
    let plan = |limits: &[&str]| Plan::of(limits).unwrap_or_default();
    let of_size =
        |limits: &[&str], side: u64| Plan { max_pixels: Some(side * side), ..plan(limits) };
    vec![
        // Black Forest Labs.
        ("bfl-free", of_size(&["1/s", "24 active"], 1024)),
        ("bfl-paid", of_size(&["10/s", "24 active"], 2048)),
        ("replicate", plan(&["10/min"])),
        ("fal-free", plan(&["5/min"])),
        ("fal-paid", plan(&["60/min"])),
        // Rolling windows of several lengths, as consumer subscriptions have them.
        ("consumer", plan(&["40/5h", "200/day", "1000 images/month"])),
        ("enterprise", plan(&[])),
    ]
}
