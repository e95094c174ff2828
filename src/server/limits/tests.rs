use super::*;
use crate::server::clock::{Clock, SECOND};

fn image(images: u64) -> Charge {
    Charge { images, pixels: images * 1_000_000 }
}

/// Numbers that only look random.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[test]
fn limits_are_read_as_people_write_them() {
    for (text, name, quota, unit, seconds) in [
        ("10/s", "1s", 10, Unit::Requests, Some(1)),
        ("60/min", "min", 60, Unit::Requests, Some(60)),
        ("40/5h", "5h", 40, Unit::Requests, Some(18_000)),
        ("200 requests / day", "day", 200, Unit::Requests, Some(86_400)),
        ("1000 images/month", "month-images", 1000, Unit::Images, Some(2_592_000)),
        ("50 megapixels/hour", "1h-megapixels", 50_000_000, Unit::Pixels, Some(3600)),
        ("24 active", "active", 24, Unit::Active, None),
    ] {
        let window = seconds.map(|s: i64| s * SECOND);
        let limit = Limit { name: name.into(), quota, unit, window };
        assert_eq!(Limit::parse(text).unwrap(), limit);
        // What it says of itself means the same.
        assert_eq!(Limit::parse(&limit.to_string()).unwrap(), limit, "{limit}");
    }
    for (text, shown) in [
        ("1/10s", "1/10s"),
        ("10/second", "10/s"),
        ("40/5h", "40/5h"),
        ("50 megapixels/hour", "50 megapixels/h"),
        ("1000 images/month", "1000 images/month"),
        ("24 active", "24 active"),
    ] {
        assert_eq!(Limit::parse(text).unwrap().to_string(), shown);
    }
    for bad in [
        "",
        "10",
        "0/s",
        "10/",
        "/s",
        "-1/s",
        "10/fortnight",
        "10 cats/s",
        "1/2month",
        "99999999999999999999/s",
        "1/0s",
        "1.5/s",
        "active",
    ] {
        let error = Limit::parse(bad).unwrap_err().to_string();
        assert!(error.contains("24 active"), "{bad}: {error}");
    }
    assert_eq!(presets().len(), 7);
    assert!(presets().iter().all(|(name, plan)| *name == "enterprise" || !plan.limits.is_empty()));
}

#[test]
fn a_window_rolls_and_all_limits_count_together_or_not_at_all() {
    let plan = Plan::of(&["2/s", "3 images/min"]).unwrap();
    let mut admitted = Admitted::new(&plan);
    let at = |ms: i64| ms * 1_000_000;
    let mut ask = |ms: i64, images: u64| {
        let verdict = decide(&plan, &admitted, at(ms), image(images), 0);
        if matches!(verdict, Verdict::Admit(_)) {
            admitted.add(&plan, at(ms), image(images));
        }
        verdict
    };
    assert!(matches!(ask(0, 1), Verdict::Admit(_)));
    assert!(matches!(ask(900, 1), Verdict::Admit(_)));
    // 1 image fits, but two requests are in (999 - 1000, 999]. The refusal counts nowhere.
    let Verdict::Wait { wait, violated, .. } = ask(999, 1) else { panic!() };
    assert_eq!((wait, violated[0].to_string().as_str()), (Some(at(1)), "2/s"));
    assert!(matches!(ask(1000, 1), Verdict::Admit(_)));
    // The longest wait of both: the first image leaves at 60 s.
    let Verdict::Wait { wait, violated, standings } = ask(1001, 1) else { panic!() };
    assert_eq!((wait, violated.len()), (Some(at(58_999)), 2));
    assert_eq!(standings.iter().map(|s| s.remaining).collect::<Vec<_>>(), [0, 0]);
    // Two images need the first two to leave.
    let Verdict::Wait { wait, .. } = ask(3000, 2) else { panic!() };
    assert_eq!(wait, Some(at(57_900)));
    assert!(matches!(ask(60_899, 2), Verdict::Wait { .. }));
    assert!(matches!(ask(60_900, 2), Verdict::Admit(_)));
    let Verdict::Never(limit, amount) = ask(200_000, 4) else { panic!() };
    assert_eq!((limit.name.as_str(), amount), ("min-images", 4));
    assert_eq!(too_much(&limit, amount).status, 422);
}

#[test]
fn active_jobs_are_counted_by_the_queue_and_have_no_time() {
    let plan = Plan::of(&["2 active"]).unwrap();
    let admitted = Admitted::new(&plan);
    assert!(matches!(decide(&plan, &admitted, 0, image(1), 1), Verdict::Admit(_)));
    let Verdict::Wait { wait, .. } = decide(&plan, &admitted, 0, image(1), 2) else { panic!() };
    assert_eq!(wait, None);
}

#[test]
fn images_of_a_failed_job_come_back_and_requests_do_not() {
    let plan = Plan::of(&["2/min", "2 images/min"]).unwrap();
    let mut admitted = Admitted::new(&plan);
    admitted.add(&plan, 5, image(2));
    assert!(matches!(decide(&plan, &admitted, 6, image(1), 0), Verdict::Wait { .. }));
    admitted.refund(&plan, 5, image(2));
    let Verdict::Admit(standings) = decide(&plan, &admitted, 6, image(2), 0) else { panic!() };
    assert_eq!(standings.iter().map(|s| s.remaining).collect::<Vec<_>>(), [0, 0]);
}

#[test]
fn sizes_and_models_of_a_plan_are_never_a_matter_of_time() {
    let mut plan = Plan { max_pixels: Some(1024 * 1024), ..Plan::default() };
    plan.models = Some(vec!["flux-schnell".into()]);
    let schnell = |name: &str| name == "flux-schnell";
    assert!(plan.check(schnell, 1024 * 1024).is_ok());
    assert_eq!(plan.check(schnell, 1024 * 1024 + 1).unwrap_err().status, 422);
    assert_eq!(plan.check(|name| name == "flux-dev", 1).unwrap_err().status, 403);
}

/// Random plans and traces, with restarts that rebuild the state from what was stored, and clocks
/// of the machine that are set back and forth: in every window, never more than the limit; and no
/// request that would fit is refused, except by what a shared cell may delay.
#[test]
fn f27_f43_no_window_ever_holds_more_than_its_limit() {
    let windows = ["s", "min", "h", "5h", "day", "month"];
    for trace in 0..400 {
        let mut random = Random(trace);
        let limits: Vec<String> = (0..1 + random.below(3))
            .map(|_| {
                let quota = 1 + random.below(if trace % 4 == 0 { 5000 } else { 60 });
                let unit = if random.below(3) == 0 { " images" } else { "" };
                format!("{quota}{unit}/{}", windows[random.below(6) as usize])
            })
            .collect();
        let plan = Plan::of(&limits).unwrap();
        let mut wall = 1_700_000_000 * SECOND;
        let mut clock = Clock::starting(wall, 0);
        let mut admitted = Admitted::new(&plan);
        // What the job rows would hold.
        let mut rows: Vec<(i64, Charge)> = Vec::new();
        let mut newest = 0;
        for _ in 0..1500 {
            let pause = match random.below(4) {
                0 => 0,
                1 => random.below(2_000_000) as i64,
                2 => random.below(3 * SECOND as u64) as i64,
                _ => random.below(plan.longest() as u64 / 20 + 1) as i64,
            };
            wall += pause;
            clock.advance(pause);
            if random.below(100) == 0 {
                // A restart after the clock of the machine was set: back by up to a month, or on.
                wall += random.below(60 * 86_400) as i64 * SECOND - 30 * 86_400 * SECOND;
                clock = Clock::starting(wall, newest);
                admitted = Admitted::new(&plan);
                rows.iter().for_each(|(at, charge)| admitted.add(&plan, *at, *charge));
            }
            let now = clock.nanoseconds();
            assert!(now >= newest, "time ran backwards");
            let charge = image(1 + random.below(2));
            match decide(&plan, &admitted, now, charge, 0) {
                Verdict::Admit(_) => {
                    admitted.add(&plan, now, charge);
                    rows.push((now, charge));
                    newest = now;
                }
                Verdict::Wait { wait, .. } => assert!(wait.is_some_and(|wait| wait > 0)),
                Verdict::Never(limit, amount) => assert!(amount > limit.quota),
            }
        }
        for (limit, window) in plan.limits.iter().zip(&admitted.windows) {
            assert!(window.cells() <= 1026, "{} cells", window.cells());
            let length = limit.window.unwrap();
            // A window is fullest when it ends at an instant.
            let (mut from, mut sum) = (0, 0);
            for (at, charge) in &rows {
                sum += charge.amount(limit.unit);
                while rows[from].0 <= at - length {
                    sum -= rows[from].1.amount(limit.unit);
                    from += 1;
                }
                assert!(sum <= limit.quota, "trace {trace}: {sum} in {limit:?}");
            }
        }
    }
}

/// The wait that is told is enough, and a nanosecond less is not, while every instant has a cell of
/// its own.
#[test]
fn the_wait_is_exact() {
    for trace in 0..200 {
        let mut random = Random(trace);
        let plan = Plan::of(&["7/min", "9 images/5min", "20/h"]).unwrap();
        let mut admitted = Admitted::new(&plan);
        let mut now = 0;
        for _ in 0..200 {
            now += random.below(20 * SECOND as u64) as i64;
            let charge = image(1 + random.below(3));
            if let Verdict::Wait { wait: Some(wait), .. } = decide(&plan, &admitted, now, charge, 0)
            {
                let ask = |at| decide(&plan, &admitted, at, charge, 0);
                assert!(matches!(ask(now + wait - 1), Verdict::Wait { .. }));
                now += wait;
                assert!(matches!(ask(now), Verdict::Admit(_)));
            }
            admitted.add(&plan, now, charge);
        }
    }
}

#[test]
fn crowded_windows_are_late_by_a_512th_at_most_and_never_too_generous() {
    let plan = Plan::of(&["5000/h"]).unwrap();
    let length = 3600 * SECOND;
    let mut admitted = Admitted::new(&plan);
    for i in 0..5000 {
        admitted.add(&plan, i * SECOND / 10, image(1));
    }
    let now = 500 * SECOND;
    let Verdict::Wait { wait: Some(wait), .. } = decide(&plan, &admitted, now, image(1), 0) else {
        panic!()
    };
    // The first instant is at 0, and has a cell of its own.
    assert_eq!(wait, length - now);
    let at = length + 300 * SECOND;
    let used = admitted.windows[0].used(at, length);
    let exact = 5000 - 3001;
    assert!(used >= exact && used <= exact + 71, "{used} against {exact}");
}
