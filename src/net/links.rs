//! Lists network interfaces by rtnetlink, in the calling thread's network namespace.
//!
//! Format: `man 7 rtnetlink`, RTM_GETLINK.

use std::io;

use std::collections::BTreeSet;

use netlink_sys::{Socket, SocketAddr};

use super::abi::Link;
use super::netlink::{NETLINK_ROUTE, attributes, dump, each_message, u16_at, u32_at};
use super::sys::link_speed;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTMGRP_LINK: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_VRF_TABLE: u16 = 1;
const IPVLAN_MODE_L3S: u16 = 2;
const IFLA_STATS64: u16 = 23;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// `struct ifinfomsg`.
const INFO: usize = 16;

/// The kind of an ipvlan that takes its packets from the lower device in the firewall's input hook.
pub(crate) const IPVLAN_L3S: &str = "ipvlan in mode l3s";

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub name: String,
    /// Alternative names.
    pub altnames: Vec<String>,
    pub index: i32,
    /// The largest IP packet in bytes.
    pub mtu: u32,
    /// The link layer.
    pub link: Link,
    pub loopback: bool,
    /// The kind of a software device: `veth`, `bridge`, ..., or [`IPVLAN_L3S`].
    pub kind: Option<String>,
    /// The bus of a hardware device: `pci`, `usb`, `virtio`, ...
    pub bus: Option<String>,
    /// The bridge, bond or VRF that it belongs to.
    pub master: Option<i32>,
    /// Whether an administrator has set it up.
    pub is_up: bool,
}

impl Interface {
    /// Whether this is its name or one of its alternative names.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.altnames.iter().any(|other| other == name)
    }

    /// The link speed in bytes per second; `None` for veth and tun, whose drivers make it up.
    pub fn speed(&self) -> Option<u64> {
        let is_virtual = matches!(self.kind.as_deref(), Some("veth" | "tun"));
        (!is_virtual).then(|| link_speed(&self.name)).flatten().map(|megabits| u64::from(megabits) * 125_000)
    }
}

/// The kernel's own packet counters of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct KernelCount {
    pub received: u64,
    pub sent: u64,
}

/// Lists all interfaces.
///
/// # Errors
/// If the kernel does not list them.
pub(crate) fn interfaces() -> io::Result<Vec<Interface>> {
    list(RTEXT_FILTER_SKIP_STATS, interface)
}

/// Lists all interfaces with the kernel's own counters.
///
/// # Errors
/// If the kernel does not list them.
pub(crate) fn interfaces_and_counts() -> io::Result<Vec<(Interface, Option<KernelCount>)>> {
    list(0, |message| Some((interface(message)?, kernel_count(message))))
}

fn list<T>(filter: u32, read: impl Fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    let mut body = vec![0u8; INFO];
    body.extend_from_slice(&8u16.to_ne_bytes());
    body.extend_from_slice(&IFLA_EXT_MASK.to_ne_bytes());
    body.extend_from_slice(&filter.to_ne_bytes());
    // A list that changed while it was read is requested again, a bounded number of times: the change is reported
    // anyway.
    let mut found = Vec::new();
    for _ in 0..3 {
        found.clear();
        let changed = dump(NETLINK_ROUTE, RTM_GETLINK, &body, |kind, message| {
            if kind == RTM_NEWLINK {
                found.extend(read(message));
            }
        })?;
        if !changed {
            break;
        }
    }
    Ok(found)
}

/// The routing tables of all VRFs.
///
/// # Errors
/// If the kernel does not list the interfaces.
pub(crate) fn vrf_tables() -> io::Result<BTreeSet<u32>> {
    list(RTEXT_FILTER_SKIP_STATS, vrf_table).map(BTreeSet::from_iter)
}

fn vrf_table(message: &[u8]) -> Option<u32> {
    let (_, info) = attributes(message.get(INFO..)?).find(|(kind, _)| *kind == IFLA_LINKINFO)?;
    let find = |wanted| attributes(info).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let is_vrf = find(IFLA_INFO_KIND).map(text).as_deref() == Some("vrf");
    let (_, table) = attributes(find(IFLA_INFO_DATA)?).find(|(kind, _)| *kind == IFLA_VRF_TABLE)?;
    u32_at(table, 0).filter(|_| is_vrf)
}

/// The names of the interfaces in a datagram.
///
/// # Errors
/// If it is not valid netlink, or reports an error.
pub(crate) fn interfaces_in(datagram: &[u8]) -> io::Result<Vec<String>> {
    let (mut names, mut changed) = (Vec::new(), Changed::default());
    each_message(datagram, |kind, message| {
        changed.record(kind, message);
        kernel_count(message);
        vrf_table(message);
        names.extend(interface(message).map(|found| found.name));
    })?;
    Ok(names)
}

fn interface(message: &[u8]) -> Option<Interface> {
    let index = u32_at(message, 4)? as i32;
    let hardware = u16_at(message, 2)?;
    let mut found = Interface {
        name: String::new(),
        altnames: Vec::new(),
        index,
        mtu: 0,
        link: Link::of_hardware(hardware),
        loopback: hardware == libc::ARPHRD_LOOPBACK,
        kind: None,
        bus: None,
        master: None,
        is_up: u32_at(message, 8)? & libc::IFF_UP as u32 != 0,
    };
    for (kind, value) in attributes(message.get(INFO..)?) {
        match kind {
            IFLA_IFNAME => found.name = text(value),
            IFLA_MTU => found.mtu = u32_at(value, 0)?,
            IFLA_MASTER => found.master = u32_at(value, 0).map(|index| index as i32),
            IFLA_PARENT_DEV_BUS_NAME => found.bus = Some(text(value)),
            IFLA_LINKINFO => {
                let find =
                    |wanted| attributes(value).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
                found.kind = find(IFLA_INFO_KIND).map(text);
                let mode = find(IFLA_INFO_DATA)
                    .and_then(|data| attributes(data).find(|(kind, _)| *kind == IFLA_IPVLAN_MODE))
                    .and_then(|(_, mode)| u16_at(mode, 0));
                if found.kind.as_deref() == Some("ipvlan") && mode == Some(IPVLAN_MODE_L3S) {
                    found.kind = Some(IPVLAN_L3S.to_string());
                }
            }
            IFLA_PROP_LIST => {
                let names = attributes(value).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
                found.altnames = names.map(|(_, value)| text(value)).collect();
            }
            _ => {}
        }
    }
    Some(found).filter(|found| !found.name.is_empty())
}

fn kernel_count(message: &[u8]) -> Option<KernelCount> {
    let (_, stats) = attributes(message.get(INFO..)?).find(|(kind, _)| *kind == IFLA_STATS64)?;
    // struct rtnl_link_stats64: rx_packets, tx_packets, ...
    let word = |at: usize| Some(u64::from_ne_bytes(stats.get(at..at + 8)?.try_into().ok()?));
    Some(KernelCount { received: word(0)?, sent: word(8)? })
}

/// Names may contain any bytes; those that are not UTF-8 are shown as `\xff`, so that names stay distinct.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    let mut text = String::new();
    for chunk in value[..end].utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// A subscription to changes of interfaces.
#[derive(Debug)]
pub(crate) struct Changes {
    socket: Socket,
}

/// The reported changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Indexes of deleted interfaces; another interface may have the same index by now.
    pub gone: BTreeSet<i32>,
    pub touched: BTreeSet<i32>,
    /// Whether messages were lost, so that any interface may have changed.
    pub overrun: bool,
}

impl Changes {
    /// Subscribes in the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel creates no socket.
    pub fn listen() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, RTMGRP_LINK))?;
        socket.set_non_blocking(true)?;
        // If this is not permitted, messages may be lost, which is reported; the list is read in any case.
        let _ = socket.set_rx_buf_sz(1u32 << 20);
        Ok(Self { socket })
    }

    /// Drains all reports.
    pub fn take(&self) -> Changed {
        let mut changed = Changed::default();
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, from)) if from.port_number() == 0 => {
                    // A truncated message counts as well: the list is read after any message.
                    let _ = each_message(&datagram, |kind, body| changed.record(kind, body));
                }
                Ok(_) => {}
                // Messages were lost; the list of interfaces has the result.
                Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => changed.overrun = true,
                // Ends with EAGAIN.
                Err(_) => return changed,
            }
        }
    }
}

impl Changed {
    fn record(&mut self, kind: u16, body: &[u8]) {
        let Some(index) = u32_at(body, 4).map(|index| index as i32) else { return };
        self.touched.insert(index);
        // A bridge reports ports that leave it by the same message, but with its own family.
        if kind == RTM_DELLINK && body.first() == Some(&(libc::AF_UNSPEC as u8)) {
            self.gone.insert(index);
        }
    }
}

impl std::os::fd::AsFd for Changes {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed() {
        let all = interfaces().unwrap();
        let lo = all.iter().find(|interface| interface.name == "lo").expect("every namespace has a loopback");
        assert_eq!(lo.index, 1);
        assert!(lo.mtu >= 1280);
    }

    /// As root: interfaces are created and deleted in a namespace of this thread's own.
    #[test]
    fn lost_messages_are_reported_as_root() {
        let inside = std::thread::spawn(|| {
            // SAFETY: a system call without pointers; the new namespace belongs to this thread and ends with it.
            #[allow(unsafe_code)]
            let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(made, 0, "no network namespace: {}; this test needs root", io::Error::last_os_error());
            let changes = Changes::listen().unwrap();
            changes.socket.set_rx_buf_sz(1u32).unwrap();
            let batch: String = (1400..1600).map(|mtu| format!("link set lo mtu {mtu}\n")).collect();
            let mut ip = std::process::Command::new("ip")
                .args(["-batch", "-"])
                .stdin(std::process::Stdio::piped())
                .spawn()
                .expect("ip runs");
            io::Write::write_all(&mut ip.stdin.take().unwrap(), batch.as_bytes()).unwrap();
            assert!(ip.wait().unwrap().success());
            assert!(changes.take().overrun, "two hundred messages fit into the smallest buffer");
            assert_eq!(changes.take(), Changed::default());
        });
        inside.join().expect("see the panic above");
    }

    #[test]
    fn non_utf8_names_stay_distinct() {
        assert_eq!(text(b"wan\xfc0\0"), "wan\\xfc0");
        assert_eq!(text("büro0".as_bytes()), "büro0");
        assert_ne!(text(b"\xff"), text(b"\xfe"));
    }

    #[test]
    fn message_without_a_name_is_ignored() {
        assert_eq!(interface(&[0; INFO]), None);
        assert_eq!(interface(&[0; 3]), None);
    }
}
