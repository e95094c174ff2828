//! How limits stand, as headers of an answer.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::{Limit, Standing, Unit};
use crate::server::clock::SECOND;

/// Adds `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11), the
/// `x-ratelimit-*-requests` of OpenAI, and the `X-RateLimit-*` of Black Forest Labs. `now` is in
/// nanoseconds since 1970; `retry_after` in seconds is that of the answer.
pub fn insert_headers(
    headers: &mut HeaderMap,
    standings: &[Standing],
    now: i64,
    retry_after: Option<u32>,
) {
    let policy: Vec<String> = standings.iter().map(|s| policy(&s.limit)).collect();
    let Some(closest) = standings.iter().min_by(|a, b| left(a).total_cmp(&left(b))) else { return };
    let seconds = |s: &Standing| (s.reset.max(0) as u64).div_ceil(SECOND as u64);
    // A client may obey either header: both give the same time.
    let wait = retry_after.map_or_else(|| seconds(closest), u64::from);
    insert(headers, "ratelimit-policy", &policy.join(","));
    insert(
        headers,
        "ratelimit",
        &format!("\"{}\";r={};t={wait}", closest.limit.name, scaled(closest)),
    );
    let requests = standings.iter().filter(|s| s.limit.unit == Unit::Requests);
    let Some(closest) = requests.min_by(|a, b| left(a).total_cmp(&left(b))) else { return };
    let (limit, remaining) = (closest.limit.quota.to_string(), closest.remaining.to_string());
    insert(headers, "x-ratelimit-limit-requests", &limit);
    insert(headers, "x-ratelimit-remaining-requests", &remaining);
    insert(headers, "x-ratelimit-reset-requests", &duration(closest.reset));
    insert(headers, "x-ratelimit-limit", &limit);
    insert(headers, "x-ratelimit-remaining", &remaining);
    let at = (now.saturating_add(closest.reset) as u64).div_ceil(SECOND as u64);
    insert(headers, "x-ratelimit-reset", &at.to_string());
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// The part of a limit that is left.
fn left(standing: &Standing) -> f64 {
    standing.remaining as f64 / standing.limit.quota as f64
}

/// What is left, in the unit of the policy. Megapixels are rounded to whole numbers.
fn scaled(standing: &Standing) -> u64 {
    match standing.limit.unit {
        Unit::Pixels => standing.remaining / 1_000_000,
        _ => standing.remaining,
    }
}

fn policy(limit: &Limit) -> String {
    let Limit { name, quota, unit, window } = limit;
    let window = window.map_or(String::new(), |w| format!(";w={}", w / SECOND));
    match unit {
        Unit::Requests => format!("\"{name}\";q={quota}{window}"),
        Unit::Images => format!("\"{name}\";q={quota}{window};ff-unit=\"images\""),
        Unit::Pixels => {
            format!("\"{name}\";q={}{window};ff-unit=\"megapixels\"", quota / 1_000_000)
        }
        Unit::Active => format!("\"{name}\";q={quota};qu=\"concurrent-requests\""),
    }
}

/// `6m0s`, `1s`, `12ms`: nanoseconds as OpenAI writes durations.
fn duration(nanoseconds: i64) -> String {
    let ms = (nanoseconds.max(0) as u64).div_ceil(1_000_000);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => match ms % 1000 {
            0 => format!("{s}s"),
            rest => format!("{s}.{rest:03}s"),
        },
        60_000..3_600_000 => format!("{m}m{s}s"),
        _ => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::limits::{Admitted, Charge, Plan, Verdict, decide};

    #[test]
    fn headers_have_every_policy_and_the_closest_limit() {
        let plan = Plan::of(&["1/s", "1000 images/month", "24 active"]).unwrap();
        let mut before = Admitted::new(&plan);
        let charge = Charge { images: 2, pixels: 100 };
        let now = 1_800_000_000 * SECOND;
        let Verdict::Admit(standings) = decide(&plan, &before, now, charge, 0) else { panic!() };
        let mut headers = HeaderMap::new();
        insert_headers(&mut headers, &standings, now, None);
        let of = |name: &str| headers.get(name).unwrap().to_str().unwrap();
        assert_eq!(
            of("ratelimit-policy"),
            "\"1s\";q=1;w=1,\"month-images\";q=1000;w=2592000;ff-unit=\"images\",\
             \"active\";q=24;qu=\"concurrent-requests\""
        );
        assert_eq!(of("ratelimit"), "\"1s\";r=0;t=1");
        assert_eq!(of("x-ratelimit-reset-requests"), "1s");
        assert_eq!((of("x-ratelimit-limit"), of("x-ratelimit-remaining")), ("1", "0"));
        assert_eq!(of("x-ratelimit-reset"), "1800000001");
        before.add(&plan, now, charge);
        let refused = decide(&plan, &before, now + SECOND / 2, charge, 0);
        let Verdict::Wait { standings, .. } = refused else { panic!("{refused:?}") };
        insert_headers(&mut headers, &standings, now, Some(3));
        assert_eq!(headers["ratelimit"], "\"1s\";r=0;t=3");
        assert_eq!(headers["x-ratelimit-reset-requests"], "500ms");
    }

    #[test]
    fn durations_are_those_of_openai() {
        for (ms, text) in
            [(12, "12ms"), (1000, "1s"), (1500, "1.500s"), (360_000, "6m0s"), (3_661_000, "1h1m1s")]
        {
            assert_eq!(duration(ms * 1_000_000), text);
        }
    }
}
