//! Puts the programs on an interface, beside what others have there and never instead of it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_rs::{ProgramHandle, TC_EGRESS, TcHook, TcHookBuilder, Xdp, XdpFlags};

use super::config::Mode;
use super::links::Interface;
use super::sys::create_link;

/// The largest MTU whose frames native XDP takes in one piece with common drivers: a page less 256 bytes of headroom,
/// the kernel's 320 bytes of bookkeeping, an Ethernet header and two VLAN tags.
pub(crate) const ONE_PIECE_MTU: u32 = 4096 - 256 - 320 - 22;

/// How the XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    Native,
    Generic,
    /// In the card. The configuration refuses it (`decode`); here for the label.
    Offload,
}

impl XdpMode {
    pub const ALL: [Self; 3] = [Self::Native, Self::Generic, Self::Offload];

    /// As it is shown in labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
        }
    }
}

/// Why a program is not on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// One of a few words, for a label: `busy`, `mtu`, `unsupported`, `permission`, `other`.
    pub reason: &'static str,
    /// What failed, on what, why, and what to do next.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A program in its place; dropping it takes it away.
#[derive(Debug)]
pub(crate) enum Attached {
    /// The kernel detaches when the descriptor is closed, even if this process is killed.
    Link { _link: OwnedFd },
    /// A filter of the `clsact` queue discipline, for kernels before 6.6.
    Filter { _filter: Filter },
}

/// A TC filter of ours, which would outlive the process; dropping this detaches it.
#[derive(Debug)]
pub(crate) struct Filter {
    ifindex: i32,
    program: OwnedFd,
}

impl Drop for Filter {
    fn drop(&mut self) {
        // It fails only if the interface or the filter is gone already.
        let _ = filter_hook(self.program.as_fd(), self.ifindex).detach();
    }
}

fn filter_hook(program: BorrowedFd<'_>, ifindex: i32) -> TcHook {
    TcHookBuilder::new(program)
        .ifindex(ifindex)
        .handle(FILTER_HANDLE)
        .priority(FILTER_PRIORITY)
        .hook(TC_EGRESS)
}

/// Attaches XDP. On success says in which mode.
///
/// # Errors
/// Why not; nothing is then changed.
pub(crate) fn attach_xdp(
    program: BorrowedFd<'_>,
    on: &Interface,
    mode: Mode,
) -> Result<(Attached, XdpMode), Refusal> {
    let modes: &[XdpMode] = match mode {
        Mode::Native => &[XdpMode::Native],
        Mode::Generic => &[XdpMode::Generic],
        Mode::Auto => &[XdpMode::Native, XdpMode::Generic],
    };
    let mut refusals = Vec::new();
    for mode in modes {
        let flags = match mode {
            XdpMode::Generic => XdpFlags::SKB_MODE,
            _ => XdpFlags::DRV_MODE,
        };
        // A link never takes another program's place: the kernel answers EBUSY or EEXIST.
        match create_link(program, on.index, libbpf_sys::BPF_XDP, flags.bits()) {
            Ok(link) => return Ok((Attached::Link { _link: link }, *mode)),
            Err(error) => {
                let refusal = xdp_refusal(program, on, *mode, &error);
                if refusal.reason == "busy" {
                    return Err(refusal);
                }
                refusals.push(refusal);
            }
        }
    }
    refusals.pop().map_or_else(|| unreachable!("there is always a mode to try"), Err)
}

/// What the kernel's refusal means. Links bring no text with them, so it is told from the number and the circumstances.
fn xdp_refusal(program: BorrowedFd<'_>, on: &Interface, mode: XdpMode, error: &io::Error) -> Refusal {
    let (name, label) = (&on.name, mode.label());
    let refusal =
        |reason, why: String| Refusal { reason, text: format!("{name}: {label} XDP is not attached: {why}") };
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            let holder = holder(program, on).unwrap_or_else(|| "another program".to_string());
            refusal(
                "busy",
                format!(
                    "{holder} is there, and is left alone; to count here, have its owner take it away (`ip link set dev \
                     {name} xdp off` shows and removes it), or leave {name} out of network.interfaces"
                ),
            )
        }
        Some(libc::EPERM | libc::EACCES) => refusal(
            "permission",
            format!("{error}; run with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON, or as root"),
        ),
        Some(libc::ERANGE | libc::EMSGSIZE | libc::EINVAL | libc::E2BIG | libc::EOPNOTSUPP)
            if mode == XdpMode::Native && on.mtu > ONE_PIECE_MTU =>
        {
            refusal(
                "mtu",
                format!(
                    "the MTU of {} is too large for the driver ({error}); set it to {ONE_PIECE_MTU} or less (`ip link set \
                     dev {name} mtu {ONE_PIECE_MTU}`), on a veth pair at both ends, or use `mode: generic`",
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
                XdpMode::Generic => format!("the interface does not take it ({error})"),
                _ => format!("the driver does not do XDP ({error}); use `mode: generic` or `mode: auto`"),
            },
        ),
        Some(libc::ENOSPC) => refusal(
            "unsupported",
            format!(
                "the interface has too few queues for it ({error}); see `ethtool -l {name}`, or use `mode: generic`"
            ),
        ),
        _ => refusal("other", format!("{error}; the kernel log may say more (`dmesg`)")),
    }
}

/// Who has XDP on the interface, in words.
fn holder(program: BorrowedFd<'_>, on: &Interface) -> Option<String> {
    let found = Xdp::new(program).query(on.index, XdpFlags::NONE).ok()?;
    let (id, mode) = [
        (found.drv_prog_id, "native"),
        (found.skb_prog_id, "generic"),
        (found.hw_prog_id, "offload"),
        // With one program only, some kernels fill in this alone.
        (
            found.prog_id,
            if u32::from(found.attach_mode) == libbpf_sys::XDP_ATTACHED_SKB { "generic" } else { "native" },
        ),
    ]
    .into_iter()
    .find(|(id, _)| *id != 0)?;
    let name =
        ProgramHandle::from_prog_id(id).ok().map(|program| program.name().to_string_lossy().into_owned());
    let known = name.as_deref().map(|name| format!(" {name:?}")).unwrap_or_default();
    let dispatcher = match name.as_deref() {
        Some("xdp_dispatcher") => " (the dispatcher of libxdp, which this program does not join)",
        _ => "",
    };
    Some(format!("program{known}, id {id}, in {mode} mode{dispatcher}"))
}

/// The priority and handle of our TC filter: numbers that nothing else is likely to choose.
const FILTER_PRIORITY: u32 = 49_531;
const FILTER_HANDLE: u32 = 0x4558;
/// The name the kernel knows our egress program by.
const EGRESS_NAME: &str = "net_egress";

/// Attaches to what leaves the interface: after other TCX programs, or as a filter where there is no TCX.
///
/// # Errors
/// Why not; nothing is then changed.
pub(crate) fn attach_egress(program: BorrowedFd<'_>, on: &Interface) -> Result<Attached, Refusal> {
    match create_link(program, on.index, libbpf_sys::BPF_TCX_EGRESS, 0) {
        Ok(link) => Ok(Attached::Link { _link: link }),
        // Before 6.6: an attach type that the kernel has not heard of.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => attach_filter(program, on),
        Err(error) => Err(egress_refusal(on, &error)),
    }
}

/// Attaches as a `clsact` filter. The queue discipline is made if it is missing, and is left there: another may have
/// come to use it.
///
/// # Errors
/// Why not.
pub(crate) fn attach_filter(program: BorrowedFd<'_>, on: &Interface) -> Result<Attached, Refusal> {
    let program = program.try_clone_to_owned().map_err(|error| egress_refusal(on, &error))?;
    let mut hook = filter_hook(program.as_fd(), on.index);
    let other = |error: libbpf_rs::Error| Refusal {
        reason: "other",
        text: format!("{}: the TC egress filter is not attached: {error:#}", on.name),
    };
    hook.create().map_err(other)?;
    if let Ok(id) = hook.query() {
        let name = ProgramHandle::from_prog_id(id).ok().map(|program| program.name().to_os_string());
        if name.as_deref() != Some(std::ffi::OsStr::new(EGRESS_NAME)) {
            return Err(Refusal {
                reason: "busy",
                text: format!(
                    "{}: the TC egress filter is not attached: program {name:?}, id {id}, has its priority \
                     {FILTER_PRIORITY}; see `tc filter show dev {} egress`",
                    on.name, on.name
                ),
            });
        }
        // Left by a run that was killed: filters have no owner that they end with.
        hook.replace(true);
    }
    hook.attach().map_err(other)?;
    Ok(Attached::Filter { _filter: Filter { ifindex: on.index, program } })
}

fn egress_refusal(on: &Interface, error: &io::Error) -> Refusal {
    let (reason, next) = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            ("permission", "run with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON, or as root")
        }
        Some(libc::ERANGE | libc::ENOSPC) => ("busy", "as many programs as fit are there; see `bpftool net`"),
        _ => ("other", "see `bpftool net` for what is there"),
    };
    Refusal { reason, text: format!("{}: TC egress is not attached: {error}; {next}", on.name) }
}

/// Whether the XDP program that was attached by a link is still there: an administrator can force it off.
pub(crate) fn xdp_is_there(program: BorrowedFd<'_>, on: i32) -> bool {
    let ours = libbpf_rs::ProgramImpl::<()>::id_from_fd(program).unwrap_or_default();
    Xdp::new(program).query(on, XdpFlags::NONE).is_ok_and(|found| {
        [found.prog_id, found.drv_prog_id, found.skb_prog_id, found.hw_prog_id].contains(&ours)
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::net::load::load_egress;

    /// Runs a command that must succeed, in the thread's network namespace, and gives what it printed.
    fn run(line: &str) -> String {
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As root. What kernels before 6.6 are given, which the others take too.
    #[test]
    fn a_filter_counts_replaces_its_own_and_goes() {
        let inside = std::thread::spawn(|| {
            // SAFETY: a system call without pointers; the namespace it makes is this thread's, and ends with it.
            #[allow(unsafe_code)]
            let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(made, 0, "no network namespace: {}; this test needs root", io::Error::last_os_error());
            run("ip link add exn0 type veth peer name exn1");
            let on =
                crate::net::links::interfaces().unwrap().into_iter().find(|one| one.name == "exn0").unwrap();
            let loaded = load_egress(on.index, None).unwrap();

            // One that was killed leaves its filter; the next takes that place.
            std::mem::forget(attach_filter(loaded.program.as_fd(), &on).unwrap());
            let attached = attach_filter(loaded.program.as_fd(), &on).unwrap();
            let filters = || run("tc filter show dev exn0 egress");
            assert_eq!(filters().matches("handle 0x4558").count(), 1, "{}", filters());

            // An interface that comes up looks for routers and groups: that is traffic enough.
            run("ip link set exn1 up");
            run("ip link set exn0 up");
            let sent = || loaded.counters().total_packets();
            for _ in 0..200 {
                if sent() > 0 {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            assert!(sent() > 0, "no frame was counted");
            drop(attached);
            assert_eq!(filters().matches("handle 0x4558").count(), 0, "{}", filters());

            // Somebody else's filter at our place stays.
            run("tc filter add dev exn0 egress prio 49531 u32 match u32 0 0 flowid 1:1");
            let refusal = attach_filter(loaded.program.as_fd(), &on).unwrap_err();
            assert!(refusal.text.starts_with("exn0: "), "{refusal}");
            assert!(filters().contains("u32"), "{}", filters());
        });
        inside.join().expect("see the panic above");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let on = Interface { name: "eth0".into(), index: 1, mtu: 9000 };
        for (number, mtu, reason, next) in [
            (libc::EPERM, 1500, "permission", "CAP_NET_ADMIN"),
            (libc::EOPNOTSUPP, 1500, "unsupported", "mode: generic"),
            (libc::EINVAL, 9000, "mtu", "ip link set dev eth0 mtu 3498"),
            (libc::ERANGE, 1500, "mtu", "other end"),
            (libc::ENOSPC, 1500, "unsupported", "ethtool -l eth0"),
            (libc::EIO, 1500, "other", "dmesg"),
        ] {
            let error = io::Error::from_raw_os_error(number);
            let refusal =
                xdp_refusal(null.as_fd(), &Interface { mtu, ..on.clone() }, XdpMode::Native, &error);
            assert_eq!(refusal.reason, reason, "{refusal}");
            assert!(refusal.text.contains(next), "{refusal}");
        }
    }
}
