//! Dropping every privilege that is not needed, before anything else is done.

mod calls;
mod threads;

use std::fmt;

use caps::{CapSet, Capability, CapsHashSet};

pub use threads::{drop_all_capabilities, given_up};

/// The capabilities that remain, and why.
const KEPT: &[Capability] = &[
    // Load programs, create maps, and attach again when a target is replaced.
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    // Read /proc/PID/exe and maps of other users' processes.
    Capability::CAP_SYS_PTRACE,
    // Read executables and keys of other users.
    Capability::CAP_DAC_READ_SEARCH,
    // Leases: be notified before a traced file of another user is overwritten.
    Capability::CAP_LEASE,
    // Open mapped files that have no path: /proc/PID/map_files.
    Capability::CAP_CHECKPOINT_RESTORE,
];

/// What a configuration needs in addition to what each of them needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Needs {
    /// Whether uprobes are perf events.
    pub perf_events: bool,
    /// Whether packets are counted.
    pub network: bool,
    /// Whether packets are counted in other network namespaces.
    pub namespaces: bool,
    /// Whether descriptors of other processes' sockets are borrowed, to find out who has them open.
    pub sockets: bool,
}

impl Needs {
    fn capabilities(self) -> Vec<Capability> {
        let mut more = Vec::new();
        // perf_event_open(2) requires it for uprobes, whatever else it accepts; setns(2) for network namespaces.
        more.extend((self.perf_events || self.namespaces).then_some(Capability::CAP_SYS_ADMIN));
        more.extend(self.network.then_some(Capability::CAP_NET_ADMIN));
        more
    }
}

/// What the kernel refused to drop.
#[derive(Debug)]
pub enum PrivilegeError {
    Capabilities(caps::errors::CapsError),
    Calls(seccompiler::Error),
}

impl fmt::Display for PrivilegeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capabilities(err) => write!(f, "failed to drop capabilities: {err}"),
            Self::Calls(err) => {
                write!(
                    f,
                    "failed to install a filter of system calls, so none is refused ({err}); allow \
                     seccomp(2), in a unit of systemd with `SystemCallFilter=seccomp`, or the kernel is built without \
                     CONFIG_SECCOMP_FILTER"
                )
            }
        }
    }
}

impl std::error::Error for PrivilegeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Capabilities(err) => Some(err),
            Self::Calls(err) => Some(err),
        }
    }
}

/// Keeps [`KEPT`] and what is needed in addition, as far as the process has them, and irreversibly drops everything
/// else: other capabilities, privileges gained by executing a program, and system calls that are never made. Must be
/// called before threads are created, since each thread has its own capabilities.
///
/// # Errors
/// What the kernel refuses. Everything else is dropped.
pub fn keep_only(needs: Needs) -> Result<(), PrivilegeError> {
    let dropped = drop_all_but(&needs.capabilities()).map_err(PrivilegeError::Capabilities);
    calls::confine(needs).map_err(PrivilegeError::Calls).and(dropped)
}

/// The subset of these capabilities that remains.
fn kept(has: &CapsHashSet, more: &[Capability]) -> CapsHashSet {
    let mut wanted: CapsHashSet = KEPT.iter().chain(more).copied().collect();
    // The kernel accepts it in their place, and container engines that do not know them grant nothing else (Docker
    // before 23).
    if !has.contains(&Capability::CAP_BPF) || !has.contains(&Capability::CAP_PERFMON) {
        wanted.insert(Capability::CAP_SYS_ADMIN);
    }
    has.intersection(&wanted).copied().collect()
}

/// Drops capabilities, also from the bounding set, so that no executed program could regain them.
fn drop_all_but(more: &[Capability]) -> Result<(), caps::errors::CapsError> {
    let has = caps::read(None, CapSet::Permitted)?;
    let keep = kept(&has, more);
    if has.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::all() {
            // An older kernel does not know all of them.
            if !keep.contains(&capability) {
                let _ = caps::drop(None, CapSet::Bounding, capability);
            }
        }
    }
    caps::clear(None, CapSet::Ambient).or_else(|error| if has.is_empty() { Ok(()) } else { Err(error) })?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use Capability::{CAP_BPF, CAP_CHOWN, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE};

    #[test]
    fn retains_fallbacks_for_missing_newer_capabilities() {
        let kept = |has: &[Capability], more: &[Capability]| {
            let mut kept: Vec<_> = kept(&has.iter().copied().collect(), more).into_iter().collect();
            kept.sort_by_key(|one| one.index());
            kept
        };
        let newer = [CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_CHOWN, CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF];
        assert_eq!(kept(&newer, &[]), [CAP_SYS_PTRACE, CAP_PERFMON, CAP_BPF]);
        assert_eq!(kept(&newer, &[CAP_SYS_ADMIN]), [CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF]);
        let older = [CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_CHOWN];
        assert_eq!(kept(&older, &[]), [CAP_SYS_PTRACE, CAP_SYS_ADMIN]);
        assert_eq!(kept(&[CAP_SYS_PTRACE, CAP_BPF], &[]), [CAP_SYS_PTRACE, CAP_BPF]);
    }
}
