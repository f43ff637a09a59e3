//! Giving up every right that is not needed, before anything else is done.

use caps::{CapSet, Capability, CapsHashSet};

/// What remains, and why.
const KEPT: &[Capability] = &[
    // Load programs, make maps, and attach again when a target is replaced.
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    // Read /proc/PID/exe and maps of other users' processes.
    Capability::CAP_SYS_PTRACE,
    // Read executables and keys of other users.
    Capability::CAP_DAC_READ_SEARCH,
    // Be told before a traced file of another user is written over: leases.
    Capability::CAP_LEASE,
    // Open what a process maps and no path leads to: /proc/PID/map_files.
    Capability::CAP_CHECKPOINT_RESTORE,
];

/// Keeps [`KEPT`] and `more`, as far as the process has them, and drops everything else for good: also from the
/// bounding set, so that no program that is started could get it back. Call it before threads are made, since each
/// thread has rights of its own.
///
/// # Errors
/// What the kernel refuses.
pub fn drop_all_but(more: &[Capability]) -> Result<(), caps::errors::CapsError> {
    let has = caps::read(None, CapSet::Permitted)?;
    let wanted: CapsHashSet = KEPT.iter().chain(more).copied().collect();
    let keep: CapsHashSet = has.intersection(&wanted).copied().collect();
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
