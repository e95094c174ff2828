//! Names of samplers in other programs.

/// Whether these names mean the sampler that this program has: Euler over FLUX.1's own schedule.
/// `sampler` may contain the schedule, too, as stable-diffusion.cpp writes it.
pub fn is_euler(sampler: &str, schedule: &str) -> bool {
    let words = format!("{sampler} {schedule}").to_lowercase().replace(['_', '-', '/'], " ");
    // `k_euler` and `FlowMatchEulerDiscreteScheduler` are Euler; `euler a` is not.
    let known = [
        "euler",
        "k",
        "flow",
        "match",
        "flowmatch",
        "flowmatching",
        "flowmatcheulerdiscretescheduler",
        "simple",
        "automatic",
        "default",
        "discrete",
        "undefined",
        "none",
    ];
    words.split_whitespace().all(|word| known.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn euler_has_many_names_and_ancestral_sampling_is_another() {
        for (sampler, schedule) in [
            ("Euler", "Simple"),
            ("euler", "simple"),
            ("euler simple", ""),
            ("k_euler", ""),
            ("", ""),
            ("Undefined", ""),
            ("FlowMatchEulerDiscreteScheduler", ""),
            ("Euler", "Automatic"),
        ] {
            assert!(is_euler(sampler, schedule), "{sampler} {schedule}");
        }
        for (sampler, schedule) in [
            ("Euler a", "Simple"),
            ("euler_ancestral", "simple"),
            ("Euler", "Beta"),
            ("euler", "karras"),
            ("DPM++ 2M", "SGM Uniform"),
            ("heun", "simple"),
        ] {
            assert!(!is_euler(sampler, schedule), "{sampler} {schedule}");
        }
    }
}
