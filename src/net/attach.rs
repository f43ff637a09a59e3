//! Attaches the programs to an interface, beside programs of others and never in their place.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use libbpf_rs::{ProgramHandle, TC_EGRESS, TcHook, TcHookBuilder, Xdp, XdpFlags};

use crate::pins::Pin;

use super::abi::Direction;
use super::hook::Hook;
use super::links::Interface;
use super::refusal::{AttachRefusal, is_unknown, tcx_refusal, xdp_refusal};
use super::sys::{chain, create_link, detach_link, link_target, pin as pin_at, program_id, update_link};

/// An attached program; dropping it detaches it.
#[derive(Debug)]
pub(crate) enum Attached {
    /// The kernel detaches when the last descriptor is closed, even if this process is killed, unless the link is
    /// pinned.
    Link { link: OwnLink, chain: Option<u32> },
    /// A filter of the `clsact` queue discipline, for kernels before 6.6.
    Filter { filter: Filter },
}

/// A link of this exporter; dropping it detaches explicitly. A child process that is being started holds a copy of the
/// descriptor for a moment; without the explicit detach, packets would be counted twice if another program is attached
/// meanwhile.
#[derive(Debug)]
pub(crate) struct OwnLink {
    fd: OwnedFd,
    pin: Pin,
}

impl Drop for OwnLink {
    fn drop(&mut self) {
        if !self.pin.is_kept() {
            // Fails only if it is detached already.
            let _ = detach_link(self.fd.as_fd());
        }
    }
}

/// A TC filter of this exporter, which would outlive the process; dropping it detaches it.
#[derive(Debug)]
pub(crate) struct Filter {
    ifindex: i32,
    program: OwnedFd,
    pin: Pin,
}

impl Drop for Filter {
    fn drop(&mut self) {
        if !self.pin.is_kept() {
            // Fails only if the interface or the filter no longer exists.
            let _ = filter_hook(self.program.as_fd(), self.ifindex).detach();
        }
    }
}

/// Whether a program is attached to the interface as a filter of an exporter.
pub(crate) fn has_filter(program: BorrowedFd<'_>, ifindex: i32) -> bool {
    filter_hook(program, ifindex).query().is_ok_and(|id| program_id(program) == Some(id))
}

/// Detaches an exporter's filter, if it is still attached.
pub(crate) fn detach_filter(program: OwnedFd, ifindex: i32) {
    if has_filter(program.as_fd(), ifindex) {
        drop(Filter { ifindex, program, pin: Pin::default() });
    }
}

fn filter_hook(program: BorrowedFd<'_>, ifindex: i32) -> TcHook {
    TcHookBuilder::new(program)
        .ifindex(ifindex)
        .handle(FILTER_HANDLE)
        .priority(FILTER_PRIORITY)
        .hook(TC_EGRESS)
}

/// A link of a previous exporter.
#[derive(Debug)]
pub(crate) struct HeldLink {
    pub direction: Direction,
    pub hook: Hook,
    pub link: OwnedFd,
    pub pin: Pin,
}

impl Attached {
    fn link(link: OwnedFd, chain: Option<u32>) -> Self {
        Self::Link { link: OwnLink { fd: link, pin: Pin::default() }, chain }
    }

    /// Replaces the program of a previous exporter's link by this one.
    ///
    /// # Errors
    /// If the program does not fit the link.
    pub fn take_over(held: HeldLink, program: BorrowedFd<'_>) -> io::Result<Self> {
        update_link(held.link.as_fd(), program)?;
        let link = OwnLink { fd: held.link, pin: held.pin };
        Ok(Self::Link { link, chain: tcx_kind(held.direction, held.hook) })
    }

    /// Pins it at a path, for the lifetime given by `as_long_as`.
    ///
    /// # Errors
    /// From the kernel.
    pub fn pin(&mut self, path: &Path, as_long_as: Pin) -> io::Result<()> {
        let (object, pin) = match self {
            Self::Link { link, .. } => (&mut link.fd, &mut link.pin),
            Self::Filter { filter } => (&mut filter.program, &mut filter.pin),
        };
        pin_at(object.as_fd(), path)?;
        *pin = as_long_as;
        Ok(())
    }

    /// Where it is now: an administrator can detach it by force, and an interface can be recreated with the same name
    /// and index. `program` is the id of its program.
    pub fn place(&self, program: Option<u32>, on: &Interface) -> Place {
        // The filter disappears with the interface. Before 6.6 it is not checked whether somebody detached it.
        let Self::Link { link, chain: kind } = self else { return Place::First };
        // The chain says both; every query takes the lock for network configuration.
        if let (Some(kind), Some(program)) = (kind, program)
            && let Ok(ids) = chain(on.index, *kind)
        {
            return match ids.first() {
                Some(first) if *first == program => Place::First,
                Some(first) if ids.contains(&program) => Place::Behind(*first),
                _ => Place::Lost,
            };
        }
        match link_target(link.fd.as_fd()) {
            Ok((index, _)) if index == on.index as u32 => Place::First,
            _ => Place::Lost,
        }
    }
}

/// Where an attached program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It sees all packets of its hook.
    First,
    /// The program with this id runs before it in the chain, and may end the chain.
    Behind(u32),
    /// It is no longer attached.
    Lost,
}

/// The attach type of the chain that a hook is part of.
fn tcx_kind(direction: Direction, hook: Hook) -> Option<u32> {
    (hook == Hook::Tcx).then_some(match direction {
        Direction::Ingress => libbpf_sys::BPF_TCX_INGRESS,
        Direction::Egress => libbpf_sys::BPF_TCX_EGRESS,
    })
}

/// Whether the interface with this index, in the calling thread's network namespace, runs the program with this id. An
/// interface that moved to another namespace can leave a link with the same index.
pub(crate) fn is_on(
    any: BorrowedFd<'_>,
    ifindex: i32,
    direction: Direction,
    hook: Hook,
    program: u32,
) -> bool {
    match tcx_kind(direction, hook) {
        Some(kind) => chain(ifindex, kind).is_ok_and(|ids| ids.contains(&program)),
        None => Xdp::new(any).query(ifindex, XdpFlags::NONE).is_ok_and(|found| {
            [found.prog_id, found.drv_prog_id, found.skb_prog_id, found.hw_prog_id].contains(&program)
        }),
    }
}

/// Attaches for received packets.
///
/// # Errors
/// Why it failed; nothing is changed then.
pub(crate) fn attach_ingress(
    program: BorrowedFd<'_>,
    on: &Interface,
    hook: Hook,
    ours: &dyn Fn(u32) -> bool,
) -> Result<Attached, AttachRefusal> {
    let flags = match hook {
        Hook::Generic => XdpFlags::SKB_MODE,
        Hook::Native => XdpFlags::DRV_MODE,
        Hook::Offload => XdpFlags::HW_MODE,
        Hook::Tcx => {
            let attached = attach_tcx(program, on, libbpf_sys::BPF_TCX_INGRESS);
            return attached.map_err(|error| tcx_refusal(on, "ingress", &error));
        }
    };
    // A link never replaces another program: the kernel returns EBUSY or EEXIST.
    match create_link(program, on.index, libbpf_sys::BPF_XDP, flags.bits()) {
        Ok(link) => Ok(Attached::link(link, None)),
        Err(error) => Err(xdp_refusal(program, on, hook, &error, ours)),
    }
}

/// First in the chain, because any other program may end it.
fn attach_tcx(program: BorrowedFd<'_>, on: &Interface, kind: u32) -> io::Result<Attached> {
    let link = create_link(program, on.index, kind, libbpf_sys::BPF_F_BEFORE)?;
    Ok(Attached::link(link, Some(kind)))
}

/// Priority and handle of the TC filter: values that nothing else is likely to use.
const FILTER_PRIORITY: u32 = 49_531;
const FILTER_HANDLE: u32 = 0x4558;
/// The name of the egress program in the kernel.
const EGRESS_NAME: &str = "net_egress";

/// Attaches for sent packets: before other TCX programs, or as a filter where there is no TCX.
///
/// # Errors
/// Why it failed; nothing is changed then.
pub(crate) fn attach_egress(program: BorrowedFd<'_>, on: &Interface) -> Result<Attached, AttachRefusal> {
    match attach_tcx(program, on, libbpf_sys::BPF_TCX_EGRESS) {
        Ok(attached) => Ok(attached),
        Err(error) if is_unknown(&error) => attach_filter(program, on),
        Err(error) => Err(tcx_refusal(on, "egress", &error)),
    }
}

/// Attaches as a `clsact` filter. The queueing discipline is created if missing and never removed, because others may
/// use it meanwhile.
///
/// # Errors
/// Why it failed.
pub(crate) fn attach_filter(program: BorrowedFd<'_>, on: &Interface) -> Result<Attached, AttachRefusal> {
    let program = program.try_clone_to_owned().map_err(|error| tcx_refusal(on, "egress", &error))?;
    let mut hook = filter_hook(program.as_fd(), on.index);
    let other = |error: libbpf_rs::Error| AttachRefusal {
        reason: "other",
        text: format!(
            "{}: failed to attach the TC egress filter: {error:#}; it needs the kernel modules sch_ingress \
             and cls_bpf",
            on.name
        ),
    };
    hook.create().map_err(other)?;
    if let Ok(id) = hook.query() {
        let name = ProgramHandle::from_prog_id(id).ok().map(|program| program.name().to_os_string());
        if name.as_deref() != Some(std::ffi::OsStr::new(EGRESS_NAME)) {
            return Err(AttachRefusal {
                reason: "busy",
                text: format!(
                    "{}: failed to attach the TC egress filter: program {name:?}, id {id}, already uses \
                     priority {FILTER_PRIORITY}; see `tc filter show dev {} egress`",
                    on.name, on.name
                ),
            });
        }
        // Replaces a filter left by a run that was killed: filters have no owner whose end removes them.
        hook.replace(true);
    }
    hook.attach().map_err(other)?;
    Ok(Attached::Filter { filter: Filter { ifindex: on.index, program, pin: Pin::default() } })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::net::abi::Link;
    use crate::net::config::Count;
    use crate::net::counter_maps::CounterMaps;
    use crate::net::programs::{Program, Programs};
    use crate::pins::PinDir;

    /// Runs a command that must succeed in the calling thread's network namespace; returns its output.
    fn run(line: &str) -> String {
        let mut words = line.split_whitespace();
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// As root. Uses what kernels before 6.6 require; newer ones accept it, too.
    #[test]
    fn filter_attaches_replaces_its_own_and_detaches_as_root() {
        let inside = std::thread::spawn(|| {
            // SAFETY: a system call without pointers; the new namespace belongs to this thread and ends with it.
            #[allow(unsafe_code)]
            let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(made, 0, "no network namespace: {}; this test needs root", io::Error::last_os_error());
            run("ip link add exn0 type veth peer name exn1");
            let on =
                crate::net::links::interfaces().unwrap().into_iter().find(|one| one.name == "exn0").unwrap();
            let counter_maps = CounterMaps::create(&Count::default(), None, PinDir::default()).unwrap();
            let programs = Programs::new(counter_maps, 0, 0, PinDir::default()).unwrap();
            let program = programs.get(Program::TcEgress).unwrap();
            let (entry, _) = programs.enter(on.index, on.link, false).unwrap();

            // A run that is killed leaves its filter; the next run replaces it.
            std::mem::forget(attach_filter(program.as_fd(), &on).unwrap());
            let attached = attach_filter(program.as_fd(), &on).unwrap();
            let filters = || run("tc filter show dev exn0 egress");
            assert_eq!(filters().matches("handle 0x4558").count(), 1, "{}", filters());

            // An interface that comes up sends router and group solicitations: enough traffic for the test.
            run("ip link set exn1 up");
            run("ip link set exn0 up");
            let sent = || entry.counters(Direction::Egress).total_packets();
            for _ in 0..1200 {
                if sent() > 0 {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            assert!(sent() > 0, "no frame was counted");
            drop(attached);
            assert_eq!(filters().matches("handle 0x4558").count(), 0, "{}", filters());

            // A foreign filter with the same priority and handle stays.
            run("tc filter add dev exn0 egress prio 49531 u32 match u32 0 0 flowid 1:1");
            let refusal = attach_filter(program.as_fd(), &on).unwrap_err();
            assert!(refusal.text.starts_with("exn0: "), "{refusal}");
            assert!(filters().contains("u32"), "{}", filters());
        });
        inside.join().expect("see the panic above");
    }

    #[test]
    fn refusals_suggest_a_remedy() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let on = Interface {
            name: "eth0".into(),
            altnames: vec![],
            index: 1,
            mtu: 9000,
            link: Link::Ethernet,
            loopback: false,
            kind: None,
            bus: None,
            master: None,
            is_up: false,
        };
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
                xdp_refusal(null.as_fd(), &Interface { mtu, ..on.clone() }, Hook::Native, &error, &|_| false);
            assert_eq!(refusal.reason, reason, "{refusal}");
            assert!(refusal.text.contains(next), "{refusal}");
        }
    }
}
