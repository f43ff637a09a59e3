//! Sockets that are open when counting by process starts.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsRawFd;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::procfs::processes;

/// Stores in each open Internet socket a process that has it open, which may be one of several. Processes that the
/// exporter may not inspect are skipped.
pub(super) fn name_open_sockets(users: &MapHandle) {
    let mut seen = HashSet::new();
    for pid in processes() {
        let Ok(mut name) = fs::read(format!("/proc/{pid}/comm")) else { continue };
        // It ends with a newline.
        name.truncate(name.len().saturating_sub(1));
        name.resize(16, 0);
        let mut process = None;
        for open in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(open.path()) else { continue };
            if !target.as_os_str().as_encoded_bytes().starts_with(b"socket:") || !seen.insert(target) {
                continue;
            }
            let Some(number) = open.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if process.is_none() {
                let pid = Pid::from_raw(pid.cast_signed());
                process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            }
            let Some(process) = &process else { break };
            // A duplicate of the same socket, closed at once.
            let Ok(socket) = pidfd_getfd(process, number, PidfdGetfdFlags::empty()) else { continue };
            // A socket that was used meanwhile has a name already. Other kinds of sockets are rejected, or harmless.
            let _ = users.update(&socket.as_raw_fd().to_ne_bytes(), &name, MapFlags::NO_EXIST);
        }
    }
}
