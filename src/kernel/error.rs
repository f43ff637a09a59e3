//! What the kernel refuses, and what to do about it.

use std::fmt;

use caps::{CapSet, Capability};

/// What the kernel would not do.
#[derive(Debug)]
pub struct KernelError {
    /// What was being done, on what.
    pub what: String,
    pub why: libbpf_rs::Error,
    /// What to do next.
    pub next: String,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#}", self.what, self.why)?;
        if !self.next.is_empty() {
            write!(f, "; {}", self.next)?;
        }
        Ok(())
    }
}

impl std::error::Error for KernelError {}

/// The most likely reason, from what the process may do and which kernel it is. The verifier's refusals look like a lack of
/// rights, too.
pub(super) fn loading(why: libbpf_rs::Error) -> KernelError {
    let has = |right| caps::has_cap(None, CapSet::Effective, right).unwrap_or(true);
    let denied = why.kind() == libbpf_rs::ErrorKind::PermissionDenied;
    let release = kernel_release();
    let next = if denied && !(has(Capability::CAP_BPF) && has(Capability::CAP_PERFMON)) {
        "run it as root, or with CAP_BPF and CAP_PERFMON; in a container, add these and allow bpf(2)"
            .to_string()
    } else if version(&release).is_none_or(|version| version < OLDEST) {
        format!("Linux 6.1 or later with CONFIG_DEBUG_INFO_BTF is needed; this is {release}")
    } else {
        format!(
            "this is Linux {release}; the kernel's own words are in the log with `log_level: DEBUG`; in a container, bpf(2) \
             must be allowed"
        )
    };
    KernelError { what: "loading the probe programs into the kernel".to_string(), why, next }
}

/// The first kernel that all programs are tried on.
const OLDEST: (u32, u32) = (6, 1);

/// Of a release such as 6.1.0-56-cloud-amd64, the first two numbers.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// As uname(1) -r prints it.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_string(), |s| s.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_understood() {
        for (release, expected) in [
            ("6.1.0-56-cloud-amd64", Some((6, 1))),
            ("6.12.117+deb12-amd64", Some((6, 12))),
            ("5.10.0", Some((5, 10))),
            ("6.18-rc1", Some((6, 18))),
            ("unknown", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
