//! Explains the kernel's errors when a program is attached to an interface.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use libbpf_rs::{ProgramHandle, Xdp, XdpFlags};

use super::hook::Hook;
use super::links::Interface;

/// The largest MTU for which native XDP needs no multi-buffer support with common drivers: a page without 256 bytes of
/// headroom, the kernel's 320 bytes of bookkeeping, an Ethernet header and two VLAN tags.
pub(crate) const ONE_PIECE_MTU: u32 = 4096 - 256 - 320 - 22;

/// Why a program is not attached to an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRefusal {
    /// The label value: `busy`, `mtu`, `unsupported`, `no_hook`, `hidden`, `permission`, `other`.
    pub reason: &'static str,
    /// What failed, on what, why, and what to do next.
    pub text: String,
}

impl fmt::Display for AttachRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The kernel's error for an unknown attach type.
pub(super) fn is_unknown(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// Explains an XDP error. Links report no text, so it is derived from the error number and the circumstances.
pub(super) fn xdp_refusal(
    program: BorrowedFd<'_>,
    on: &Interface,
    mode: Hook,
    error: &io::Error,
    ours: &dyn Fn(u32) -> bool,
) -> AttachRefusal {
    let (name, label) = (&on.name, mode.label());
    let refusal = |reason, text: String| AttachRefusal {
        reason,
        text: format!("{name}: failed to attach {label} XDP: {text}"),
    };
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            refusal(
                "busy",
                match holder(program, on) {
                    Some((id, _)) if ours(id) => "a program of this exporter is already attached".to_string(),
                    Some((_, holder)) => format!(
                        "{holder} is already attached; detach it (`ip link set dev {name} xdp off`), use \
                         `mode: tcx`, or remove {name} from network.interfaces"
                    ),
                    // The kernel requires lower devices to be attached first.
                    None => format!(
                        "a device on top of {name} (a bridge, bond or VLAN) already has an XDP program; use \
                         `mode: auto` or `mode: tcx`"
                    ),
                },
            )
        }
        Some(libc::EPERM | libc::EACCES) => refusal(
            "permission",
            format!("{error}; run with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON, or as root"),
        ),
        Some(libc::ERANGE | libc::EMSGSIZE | libc::EINVAL | libc::E2BIG | libc::EOPNOTSUPP)
            if mode == Hook::Native && on.mtu > ONE_PIECE_MTU =>
        {
            refusal(
                "mtu",
                format!(
                    "the MTU of {} is too large for the driver ({error}); set it to {ONE_PIECE_MTU} or less \
                     (`ip link set dev {name} mtu {ONE_PIECE_MTU}`; at both ends of a veth pair), or use \
                     `mode: generic`",
                    on.mtu
                ),
            )
        }
        Some(libc::ERANGE) => refusal(
            "mtu",
            format!(
                "the MTU of the other end is too large ({error}); set it to {ONE_PIECE_MTU} or less, or use `mode: generic`"
            ),
        ),
        Some(libc::EOPNOTSUPP | libc::EINVAL) => refusal(
            "unsupported",
            match mode {
                Hook::Generic => format!("the interface does not support it ({error})"),
                _ => {
                    format!("the driver does not support XDP ({error}); use `mode: generic` or `mode: auto`")
                }
            },
        ),
        Some(libc::ENOSPC) => refusal(
            "unsupported",
            format!(
                "the interface has too few queues for it ({error}); see `ethtool -l {name}`, or use `mode: generic`"
            ),
        ),
        _ => refusal("other", format!("{error}; the kernel log may have details (`dmesg`)")),
    }
}

/// Explains an error of a TCX link.
pub(super) fn tcx_refusal(on: &Interface, direction: &str, error: &io::Error) -> AttachRefusal {
    let (reason, next) = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            ("permission", "run with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON, or as root")
        }
        Some(libc::ERANGE | libc::ENOSPC) => (
            "busy",
            "the maximum number of programs is attached; see \
             `bpftool net`",
        ),
        _ if is_unknown(error) => ("unsupported", "TCX needs Linux 6.6 or later; use `mode: auto`"),
        _ => ("other", "see `bpftool net` for attached programs"),
    };
    AttachRefusal { reason, text: format!("{}: failed to attach TC {direction}: {error}; {next}", on.name) }
}

/// The program that holds XDP on the interface: its id and description.
fn holder(program: BorrowedFd<'_>, on: &Interface) -> Option<(u32, String)> {
    let found = Xdp::new(program).query(on.index, XdpFlags::NONE).ok()?;
    let (id, mode) = [
        (found.drv_prog_id, "native"),
        (found.skb_prog_id, "generic"),
        (found.hw_prog_id, "offload"),
        // With a single program, some kernels set only this field.
        (
            found.prog_id,
            if u32::from(found.attach_mode) == libbpf_sys::XDP_ATTACHED_SKB { "generic" } else { "native" },
        ),
    ]
    .into_iter()
    .find(|(id, _)| *id != 0)?;
    let described = described(id);
    let dispatcher = if described.contains("\"xdp_dispatcher\"") {
        " (the libxdp dispatcher, which is not supported)"
    } else {
        ""
    };
    Some((id, format!("{described}, in {mode} mode{dispatcher}")))
}

/// Describes a program of any owner. Without CAP_SYS_ADMIN, which is dropped after the start, only its id is known.
pub(crate) fn described(id: u32) -> String {
    let name = ProgramHandle::from_prog_id(id).ok().map(|found| found.name().to_string_lossy().into_owned());
    match name.filter(|name| !name.is_empty()) {
        Some(name) => format!("program {name:?}, id {id}"),
        None => format!("program {id} (`bpftool prog show id {id}` shows its name)"),
    }
}
