//! A job: a request that was accepted, and its result.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fault::Fault;
use super::webhook::Webhook;
use crate::error::{Error, Result};
use crate::pipeline::images::Format;
use crate::pipeline::request::Request;

/// What a worker needs to draw: complete, so that the job gives the same pixels whenever it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The request. Its seed is set: it was drawn when the job was accepted.
    pub request: Request,
    /// The name of the model as the server lists it.
    pub model: String,
    /// The name of the files' [`Format`].
    pub format: String,
    /// JPEG quality, 1 to 100.
    pub quality: u8,
    /// There is an image to start from, in the folder of inputs.
    pub has_input: bool,
    /// There is a mask of what is repainted of it, in the folder of inputs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub has_mask: bool,
    /// There is a control image, in the folder of inputs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub has_control: bool,
    /// Width and height of what is drawn, where its images determine them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drawn: Option<(usize, usize)>,
    /// How many reference images there are, in the folder of inputs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub references: usize,
    /// How many style images there are, in the folder of inputs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub styles: usize,
    /// The API through which it came.
    pub dialect: String,
    /// What that API needs of the request to describe the job later; null if nothing.
    #[serde(default)]
    pub echo: Value,
    /// The address to call when the job is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl JobSpec {
    /// For tests and simulations: a request to `model` by the native API that starts from no
    /// images, drawn to PNG files.
    #[cfg(any(test, feature = "nats"))]
    pub fn new(request: Request, model: impl Into<String>) -> JobSpec {
        JobSpec {
            request,
            model: model.into(),
            format: Format::Png.name().into(),
            quality: 90,
            has_input: false,
            has_mask: false,
            has_control: false,
            drawn: None,
            references: 0,
            styles: 0,
            dialect: "native".into(),
            echo: Value::Null,
            webhook: None,
        }
    }

    /// The names of the LoRAs that it needs.
    pub fn loras(&self) -> Vec<String> {
        let loras = self.request.prompt.loras().iter().chain(&self.request.loras);
        loras.map(|lora| lora.name.clone()).collect()
    }

    /// The names of the ControlNets that it needs. Each has an image in the folder of inputs.
    #[cfg(feature = "nats")]
    pub fn controlnets(&self) -> impl Iterator<Item = &str> {
        self.request.controlnets.iter().map(|choice| choice.name.as_str())
    }

    /// The format of the files.
    pub fn format(&self) -> Format {
        Format::parse(&self.format).unwrap_or(Format::Png)
    }
}

/// How urgent a job is. A job of the low lane runs only while none of the normal lane waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Somebody waits for it.
    #[default]
    Normal,
    /// Work for when there is nothing else to do.
    Low,
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Accepted, and waiting for a worker.
    Queued,
    /// A worker draws it.
    Running,
    /// It runs, and its worker was told to stop.
    Canceling,
    /// Its images are there.
    Succeeded,
    /// See its fault.
    Failed,
    /// Stopped before its end, on request.
    Canceled,
    /// It succeeded, and its images were deleted since.
    Expired,
}

impl State {
    /// All states.
    pub const ALL: [State; 7] = [
        State::Queued,
        State::Running,
        State::Canceling,
        State::Succeeded,
        State::Failed,
        State::Canceled,
        State::Expired,
    ];

    /// The word in JSON and in the database.
    pub fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Canceling => "canceling",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Canceled => "canceled",
            State::Expired => "expired",
        }
    }

    /// The state that `name` means.
    pub fn parse(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|s| s.name() == name)
    }

    /// Whether nothing will change any more, except that images expire.
    pub fn is_final(self) -> bool {
        !matches!(self, State::Queued | State::Running | State::Canceling)
    }
}

/// One image of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The name of the file in the folder of results.
    pub file: String,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The size of the file.
    pub bytes: u64,
}

/// A job as the broker knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// 32 hexadecimal digits that cannot be guessed.
    pub id: String,
    /// Whose job it is: see [`Owner`](super::access::Owner).
    pub owner: String,
    /// What to draw. `None` once the job's data has expired.
    pub spec: Option<JobSpec>,
    /// Where it is in its life.
    pub state: State,
    /// Seconds since 1970, as are the two others.
    pub created: f64,
    /// When a worker took it last.
    pub started: Option<f64>,
    /// When it became final.
    pub finished: Option<f64>,
    /// How often a worker took it.
    pub attempts: u32,
    /// Its images.
    pub outputs: Vec<Output>,
    /// The settings of its images, once they are there.
    pub settings: Option<Value>,
    /// Why it failed.
    pub fault: Option<Fault>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// With images.
    Succeeded {
        /// The images, in order.
        outputs: Vec<Output>,
        /// The settings that made them.
        settings: Value,
    },
    /// With an error.
    Failed(Fault),
    /// Because it was cancelled.
    Canceled,
}

impl Outcome {
    /// The state that a job with this outcome has.
    pub fn state(&self) -> State {
        match self {
            Outcome::Succeeded { .. } => State::Succeeded,
            Outcome::Failed(_) => State::Failed,
            Outcome::Canceled => State::Canceled,
        }
    }
}

/// `bytes` random bytes in hexadecimal.
pub fn random_hex(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random)
        .map_err(|e| Error::device(format!("the system gives no random numbers: {e}")))?;
    Ok(hex(&random))
}

/// `bytes` in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Year, month, day, hour, minute and second, in UTC, of seconds since 1970.
pub fn calendar(seconds: i64) -> [i64; 6] {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant's civil_from_days: years begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    [year, month, day, second / 3600, second / 60 % 60, second % 60]
}

/// `2026-11-29T15:25:00.123456Z` of seconds since 1970.
pub fn iso_time(seconds: f64) -> String {
    let micros = (seconds * 1e6).round() as i64;
    let [year, month, day, hour, minute, second] = calendar(micros.div_euclid(1_000_000));
    let micros = micros.rem_euclid(1_000_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0.0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400.5, "2000-02-29T00:00:00.500000Z"),
            (1_796_052_300.0, "2026-11-30T15:25:00.000000Z"),
        ] {
            assert_eq!(iso_time(seconds), text);
        }
    }
}
