//! The size of the tests that show that tracing does no harm.

/// Returns how many traced calls such a test makes: `normally` in the test command, where a single-stepped exit costs
/// some 10 microseconds, and a million with `HARM_CALLS=1000000` in the environment.
pub fn calls(normally: u64) -> u64 {
    std::env::var("HARM_CALLS").map_or(normally, |calls| calls.parse().expect("HARM_CALLS is a number"))
}
