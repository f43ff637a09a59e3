//! The tests' only HTTP client: curl, as users have it.

use std::process::{Command, Stdio};

/// Returns a curl command for a URL. It times out, so that a missing response is a failure.
pub fn curl(url: &str) -> Command {
    let mut command = Command::new("curl");
    // --disable: ignore the user's own configuration.
    command.args(["--disable", "--silent", "--show-error", "--noproxy", "*", "--max-time", "30"]);
    command.arg(url).stdin(Stdio::null());
    command
}

/// Runs such a command; returns the status and the body, whatever the status is.
///
/// # Errors
/// If there is no response.
pub fn answer(curl: &mut Command) -> Result<(u16, String), String> {
    let output = curl.args(["--write-out", "\n%{http_code}"]).output().expect("run curl");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, status) = text.rsplit_once('\n').expect("what --write-out adds");
    Ok((status.parse().expect("a status"), body.to_owned()))
}
