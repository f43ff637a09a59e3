//! Explains why the kernel did not attach, by error number, and what to do about it.

use std::fmt;
use std::io;

use caps::{CapSet, Capability};

use super::link_kind::Attach;
use crate::privileges::given_up;

/// `ENOTSUPP`, which is internal to the kernel and not defined in user space.
const ENOTSUPP: i32 = 524;

/// Why a site, or all sites of a file, could not be attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    /// The reason and the next step, as a sentence.
    pub text: String,
}

/// The kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalKind {
    /// The instruction cannot be probed.
    Instruction,
    /// Another tracer holds the site in a way that excludes ours.
    Held,
    /// A process has other code there than the file.
    Patched,
    /// Attached according to the kernel, but without a breakpoint.
    Unarmed,
    /// Not permitted.
    Capabilities,
    /// Out of memory.
    Memory,
    /// Out of file descriptors.
    Descriptors,
    /// Out of site numbers.
    Sites,
    /// The file, or its file system, cannot be probed.
    File,
    /// A process that maps the file was in the way.
    Busy,
    /// The kernel lacks a feature.
    Missing,
    Other,
}

impl RefusalKind {
    /// Whether it concerns a single site, so that others of the same file may succeed.
    pub fn is_of_a_site(self) -> bool {
        matches!(
            self,
            RefusalKind::Instruction | RefusalKind::Held | RefusalKind::Patched | RefusalKind::Unarmed
        )
    }

    /// Whether it may be temporary, so that a retry is worthwhile.
    pub fn passes(self) -> bool {
        !matches!(self, RefusalKind::Instruction | RefusalKind::Missing)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Refusal {
    pub fn new(kind: RefusalKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// For an error of opening or reading the file.
    pub fn of_file(err: &io::Error) -> Self {
        let kind = match err.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => RefusalKind::Descriptors,
            Some(libc::ENOMEM) => RefusalKind::Memory,
            _ => RefusalKind::File,
        };
        let next = match kind {
            RefusalKind::Descriptors => DESCRIPTORS,
            RefusalKind::Memory => MEMORY,
            _ if err.kind() == io::ErrorKind::PermissionDenied && given_up() => {
                return Self::new(kind, format!("{err}; {CAPABILITIES_DROPPED}"));
            }
            _ if err.kind() == io::ErrorKind::PermissionDenied => {
                "; run the exporter as a user that can read it, or with CAP_DAC_READ_SEARCH"
            }
            _ => "",
        };
        Self::new(kind, format!("{err}{next}"))
    }

    pub(super) fn of_instruction() -> Self {
        let text = "the kernel cannot probe its instruction; probe another place in the function";
        Self::new(RefusalKind::Instruction, text)
    }

    /// For an error of attaching, as reported by libbpf.
    pub fn of_attaching(err: &libbpf_rs::Error, attach: Attach) -> Self {
        let message = format!("{err:#}");
        let (kind, text) = match error_number(err) {
            Some(ENOTSUPP | libc::ENOEXEC) => return Self::of_instruction(),
            Some(libc::EINVAL) => (
                RefusalKind::Held,
                format!(
                    "another tracer has attached this place with a different semaphore, or the place is not \
                     in the file ({message}); retrying, attached once that tracer exits"
                ),
            ),
            Some(libc::EPERM | libc::EACCES) => {
                (RefusalKind::Capabilities, format!("{message}; {}", capabilities(attach)))
            }
            Some(libc::ENOMEM) => (RefusalKind::Memory, format!("{message}{MEMORY}")),
            Some(libc::EMFILE | libc::ENFILE) => {
                (RefusalKind::Descriptors, format!("{message}{DESCRIPTORS}"))
            }
            Some(libc::EIO) => (
                RefusalKind::File,
                format!("{message}; the kernel cannot probe files on this file system: use another"),
            ),
            Some(libc::ENOENT) if attach == Attach::Perf => {
                (RefusalKind::Missing, format!("{message}; uprobes by perf events need CONFIG_UPROBE_EVENTS"))
            }
            Some(libc::EBUSY | libc::EAGAIN | libc::EFAULT | libc::ESRCH | libc::EINTR) => (
                RefusalKind::Busy,
                format!("{message}; a process that runs the file was changing its mappings; retrying"),
            ),
            _ => (RefusalKind::Other, message),
        };
        Self { kind, text }
    }
}

const DESCRIPTORS: &str =
    "; raise the limit of open files (LimitNOFILE= of the service, or ulimit -n); retrying";
const MEMORY: &str = "; free memory, or raise the service's limit (MemoryMax=); retrying";

/// The system's error number in an error of libbpf-rs, which preserves it only in its text.
pub(super) fn error_number(err: &libbpf_rs::Error) -> Option<i32> {
    let text = format!("{err:#}");
    let (_, rest) = text.rsplit_once("(os error ")?;
    rest.split_once(')')?.0.parse().ok()
}

/// The missing requirements among those that may prevent attaching.
pub(super) fn capabilities(attach: Attach) -> String {
    let has = |right: &Capability| caps::has_cap(None, CapSet::Effective, *right).unwrap_or(true);
    CapabilityState {
        missing: wanted(attach).iter().copied().filter(|right| !has(right)).collect(),
        given_up: given_up(),
        lockdown: lockdown(),
        paranoid: paranoid(),
    }
    .missing_for(attach)
}

fn wanted(attach: Attach) -> &'static [Capability] {
    match attach {
        Attach::Multi => &[Capability::CAP_BPF, Capability::CAP_PERFMON],
        Attach::Perf => &[Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_SYS_ADMIN],
    }
}

/// What decides whether the kernel permits tracing.
#[derive(Debug)]
struct CapabilityState {
    missing: Vec<Capability>,
    given_up: bool,
    lockdown: Option<&'static str>,
    paranoid: i32,
}

impl CapabilityState {
    fn missing_for(&self, attach: Attach) -> String {
        if self.given_up {
            return CAPABILITIES_DROPPED.to_string();
        }
        if let Some(mode) = self.lockdown {
            return format!("kernel lockdown ({mode} mode) forbids tracing, even for root");
        }
        if self.missing.is_empty() {
            return "the capabilities are present, so a security module or a seccomp filter blocks it: in a container, \
                    allow bpf(2) and perf_event_open(2)"
                .to_string();
        }
        let names: Vec<String> = self.missing.iter().map(ToString::to_string).collect();
        let mut text =
            format!("{} is missing: run as root, or with {}", names.join(", "), list(wanted(attach)));
        if attach == Attach::Perf && self.missing.contains(&Capability::CAP_SYS_ADMIN) {
            text += " (uprobes by perf events need CAP_SYS_ADMIN since the fix of CVE-2025-38466; `attach: multi`, on Linux \
                     6.6 and later, does not)";
        }
        if attach == Attach::Perf && self.missing.contains(&Capability::CAP_PERFMON) && self.paranoid > 2 {
            text += &format!(
                " (kernel.perf_event_paranoid is {}, which refuses all perf events without CAP_PERFMON)",
                self.paranoid
            );
        }
        text
    }
}

/// The consequence of `keep_privileges: none`.
pub(super) const CAPABILITIES_DROPPED: &str = "all capabilities were dropped once everything was attached (`keep_privileges: none`): restart the exporter";

/// `kernel.perf_event_paranoid`; 3, and 4 on some distributions, forbids perf events altogether.
fn paranoid() -> i32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn list(capabilities: &[Capability]) -> String {
    let names: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
    names.split_last().map_or(String::new(), |(last, rest)| format!("{} and {last}", rest.join(", ")))
}

/// The mode of lockdown(7) that forbids programs to read kernel memory, if active.
pub(super) fn lockdown() -> Option<&'static str> {
    let modes = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    modes.contains("[confidentiality]").then_some("confidentiality")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: i32) -> Refusal {
        let err = libbpf_rs::Error::from(io::Error::from_raw_os_error(number));
        Refusal::of_attaching(&err, Attach::Multi)
    }

    #[test]
    fn refusals_are_classified_with_a_remedy() {
        use RefusalKind::{Busy, Capabilities, Descriptors, File, Held, Instruction, Memory, Other};
        for (number, kind, of_site, passes, says) in [
            (ENOTSUPP, Instruction, true, false, "cannot probe its instruction"),
            (libc::ENOEXEC, Instruction, true, false, "cannot probe its instruction"),
            (libc::EINVAL, Held, true, true, "another tracer"),
            (libc::EPERM, Capabilities, false, true, "(os error 1)"),
            (libc::EACCES, Capabilities, false, true, "(os error 13)"),
            (libc::ENOMEM, Memory, false, true, "MemoryMax"),
            (libc::EMFILE, Descriptors, false, true, "LimitNOFILE"),
            (libc::ENFILE, Descriptors, false, true, "LimitNOFILE"),
            (libc::EIO, File, false, true, "file system"),
            (libc::EBUSY, Busy, false, true, "retrying"),
            (libc::EXDEV, Other, false, true, "(os error 18)"),
        ] {
            let refusal = of(number);
            assert_eq!(
                (refusal.kind, kind.is_of_a_site(), kind.passes()),
                (kind, of_site, passes),
                "{number}"
            );
            assert!(refusal.text.contains(says), "{number}: {refusal}");
            assert_eq!(
                refusal.text.contains("as root"),
                kind == Capabilities && refusal.text.contains("missing"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn names_what_forbids_tracing() {
        let (perfmon, admin) = (Capability::CAP_PERFMON, Capability::CAP_SYS_ADMIN);
        let capabilities = |missing: &[Capability], given_up, lockdown, paranoid| CapabilityState {
            missing: missing.to_vec(),
            given_up,
            lockdown,
            paranoid,
        };
        let cases = [
            (
                capabilities(&[perfmon], false, None, 4),
                Attach::Multi,
                "CAP_PERFMON is missing: run as root",
                "paranoid",
            ),
            (capabilities(&[admin], false, None, 2), Attach::Perf, "CVE-2025-38466", "paranoid"),
            (
                capabilities(&[perfmon], false, None, 3),
                Attach::Perf,
                "kernel.perf_event_paranoid is 3",
                "CVE",
            ),
            (capabilities(&[perfmon], false, None, 2), Attach::Perf, "CAP_PERFMON is missing", "paranoid"),
            (
                capabilities(&[], false, Some("confidentiality"), 2),
                Attach::Multi,
                "kernel lockdown",
                "missing",
            ),
            (capabilities(&[perfmon], true, None, 2), Attach::Multi, "keep_privileges: none", "as root"),
            (
                capabilities(&[], false, None, 4),
                Attach::Perf,
                "a security module or a seccomp filter",
                "missing",
            ),
        ];
        for (capabilities, attach, says, not) in cases {
            let text = capabilities.missing_for(attach);
            assert!(text.contains(says) && !text.contains(not), "{capabilities:?}: {text}");
        }
    }

    #[test]
    fn error_number_is_found_below_its_context() {
        use libbpf_rs::ErrorExt as _;
        let err =
            libbpf_rs::Error::from(io::Error::from_raw_os_error(ENOTSUPP)).context("failed to attach (here)");
        assert_eq!(error_number(&err), Some(ENOTSUPP));
    }
}
