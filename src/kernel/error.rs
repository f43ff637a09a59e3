//! Errors of the kernel, and what to do about them.

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use caps::{CapSet, Capability};

use super::refusal::{CAPABILITIES_DROPPED, error_number, lockdown};
use crate::privileges::given_up;

/// An operation that the kernel rejected.
#[derive(Debug)]
pub struct KernelError {
    /// The operation and its object.
    pub what: String,
    pub source: libbpf_rs::Error,
    /// What the user can do.
    pub next: String,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}: {:#}", self.what, self.source)?;
        if !self.next.is_empty() {
            write!(f, "; {}", self.next)?;
        }
        Ok(())
    }
}

impl std::error::Error for KernelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The most likely reason, given the process's capabilities and the kernel's release.
pub(super) fn loading(source: libbpf_rs::Error) -> KernelError {
    let has = |right| caps::has_cap(None, CapSet::Effective, right).unwrap_or(true);
    let machine = Machine {
        release: kernel_release(),
        has_types: Path::new("/sys/kernel/btf/vmlinux").exists(),
        has_rights: has(Capability::CAP_BPF) && has(Capability::CAP_PERFMON),
        given_up: given_up(),
        lockdown: lockdown(),
    };
    let next = machine.next_step(error_number(&source));
    KernelError { what: "load the BPF programs".to_string(), source, next }
}

/// What decides why programs are rejected.
#[derive(Debug)]
struct Machine {
    release: String,
    has_types: bool,
    has_rights: bool,
    given_up: bool,
    lockdown: Option<&'static str>,
}

impl Machine {
    /// What to do, by error number. Rejections by the verifier look like missing capabilities, too.
    fn next_step(&self, number: Option<i32>) -> String {
        let Self { release, .. } = self;
        match number {
            Some(libc::EMFILE | libc::ENFILE) => {
                "too many open files: raise the limit (LimitNOFILE= of the service, or ulimit -n)".to_string()
            }
            Some(libc::ENOMEM) => {
                "out of memory: free some, raise the service's limit (MemoryMax=), or lower `limits`"
                    .to_string()
            }
            Some(libc::EPERM | libc::EACCES) if self.given_up => CAPABILITIES_DROPPED.to_string(),
            Some(libc::EPERM | libc::EACCES) if !self.has_rights => {
                "run as root, or with CAP_BPF and CAP_PERFMON; in a container, also allow bpf(2)".to_string()
            }
            // For the verifier, a helper that lockdown forbids does not exist.
            Some(libc::EPERM | libc::EACCES | libc::EINVAL) if self.lockdown.is_some() => {
                "kernel lockdown (confidentiality mode) forbids tracing, even for root".to_string()
            }
            _ if version(release).is_none_or(|version| version < MIN_RELEASE) => {
                format!("Linux 6.1 or later with CONFIG_DEBUG_INFO_BTF is required; this is {release}")
            }
            _ if !self.has_types => format!(
                "the kernel has no BTF (/sys/kernel/btf/vmlinux): Linux {release} must be built with \
                 CONFIG_DEBUG_INFO_BTF, and a container needs /sys"
            ),
            _ => format!(
                "this is Linux {release}; the verifier's output is in the log with `log_level: DEBUG`; in a \
                 container, allow bpf(2)"
            ),
        }
    }
}

/// The oldest kernel that all programs are tested on.
const MIN_RELEASE: (u32, u32) = (6, 1);

/// The first two numbers of a release such as 6.1.0-56-cloud-amd64.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = numbers(release);
    Some((numbers.next()?, numbers.next()?))
}

fn numbers(release: &str) -> impl Iterator<Item = u32> {
    release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok())
}

/// Whether tracing a return by the kernel's trampoline kills processes with a seccomp filter: Linux 6.11 made it a
/// system call, which such filters do not know, and only later kernels hide it from them.
pub(super) fn has_filtered_trampoline(release: &str) -> bool {
    let mut numbers = numbers(release);
    match (numbers.next(), numbers.next(), numbers.next().unwrap_or(0)) {
        (Some(6), Some(11), _) => true,
        (Some(6), Some(12), patch) => patch < 14,
        (Some(6), Some(13), patch) => patch < 3,
        _ => false,
    }
}

/// The release, as printed by `uname -r`.
pub fn kernel_release() -> String {
    // It does not change during the process's life.
    static RELEASE: OnceLock<String> = OnceLock::new();
    let read = || {
        std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".to_string(), |s| s.trim().to_string())
    };
    RELEASE.get_or_init(read).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_privileges_are_reported_as_such() {
        let machine = |has_types, has_rights| Machine {
            release: "6.12.1".to_string(),
            has_types,
            has_rights,
            given_up: false,
            lockdown: None,
        };
        for (number, has_types, has_rights, says) in [
            (libc::EPERM, true, false, "as root"),
            (libc::EACCES, true, true, "log_level: DEBUG"),
            (libc::EMFILE, true, false, "LimitNOFILE"),
            (libc::ENOMEM, true, false, "MemoryMax"),
            (libc::ESRCH, false, true, "/sys/kernel/btf/vmlinux"),
            (libc::EINVAL, true, true, "log_level: DEBUG"),
        ] {
            let next = machine(has_types, has_rights).next_step(Some(number));
            assert!(next.contains(says), "{number}: {next}");
            assert_eq!(next.contains("as root"), says == "as root", "{next}");
        }
        let locked = Machine { lockdown: Some("confidentiality"), ..machine(true, true) };
        assert!(locked.next_step(Some(libc::EINVAL)).contains("kernel lockdown"));
        let given_up = Machine { given_up: true, ..machine(true, false) };
        assert!(given_up.next_step(Some(libc::EPERM)).contains("keep_privileges: none"));
        let old = Machine { release: "5.10.0".to_string(), ..machine(false, true) };
        assert!(old.next_step(Some(libc::EINVAL)).contains("Linux 6.1 or later"));
    }

    #[test]
    fn detects_kernels_whose_trampolines_seccomp_blocks() {
        for (release, expected) in [
            ("6.10.14", false),
            ("6.11.0-8-generic", true),
            ("6.12.13", true),
            ("6.12.14-amd64", false),
            ("6.12.117+deb12-amd64", false),
            ("6.13.2-arch1-1", true),
            ("6.13.3", false),
            ("6.18.44", false),
            ("7.0-rc1", false),
        ] {
            assert_eq!(has_filtered_trampoline(release), expected, "{release}");
        }
    }

    #[test]
    fn parses_distribution_kernel_releases() {
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
