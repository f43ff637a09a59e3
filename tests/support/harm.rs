//! How much the tests do that show that tracing does no harm.

/// How many traced calls each of them makes: so many in the test command, where an exit that is single-stepped costs
/// some 10 microseconds, and with `HARM_CALLS=1000000` in the environment a million.
pub fn calls(normally: u64) -> u64 {
    std::env::var("HARM_CALLS").map_or(normally, |calls| calls.parse().expect("HARM_CALLS is a number"))
}
