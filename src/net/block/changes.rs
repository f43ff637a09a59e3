//! Notifications of changes that affect which addresses are protected: routes, addresses, DNS servers.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use netlink_sys::{Socket, SocketAddr};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

use super::super::namespace::Namespace;
use super::super::netlink::{NETLINK_ROUTE, each_message};
use super::gateways::RTM_NEWROUTE;
use super::protect::ResolverFiles;

/// Multicast groups of addresses, routes and rules of IPv4 and IPv6, `man 7 rtnetlink`, and of nexthop objects.
const GROUPS: u32 = 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000 | 0x8000_0000;
const RTM_DELROUTE: u16 = 25;

/// The sources of these notifications.
#[derive(Debug)]
pub(in super::super) struct ProtectedChanges {
    netlink: Socket,
    inotify: OwnedFd,
    resolvers: Vec<PathBuf>,
}

impl ProtectedChanges {
    /// Subscribes in the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel creates no socket or no inotify instance.
    pub fn listen() -> io::Result<Self> {
        Self::listen_to(ResolverFiles::own().paths().collect())
    }

    /// The same for another namespace, in which the calling thread is.
    ///
    /// # Errors
    /// As [`Self::listen`].
    pub fn listen_in(namespace: &Namespace) -> io::Result<Self> {
        Self::listen_to(ResolverFiles::of(namespace).paths().collect())
    }

    fn listen_to(resolvers: Vec<PathBuf>) -> io::Result<Self> {
        let mut netlink = Socket::new(NETLINK_ROUTE)?;
        netlink.bind(&SocketAddr::new(0, GROUPS))?;
        netlink.set_non_blocking(true)?;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = Self { netlink, inotify, resolvers };
        changes.watch();
        Ok(changes)
    }

    /// Watches the directories of the files and those of the files that they link to, because files are replaced as a
    /// whole. Adding a watch twice has no effect.
    fn watch(&self) {
        let targets = self.resolvers.iter().filter_map(|file| file.canonicalize().ok());
        let files = self.resolvers.iter().cloned().chain(targets);
        for directory in files.filter_map(|file| file.parent().map(PathBuf::from)) {
            let flags =
                WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::DELETE;
            // Without a watch, the periodic check finds the change.
            let _ = inotify::add_watch(&self.inotify, &directory, flags);
        }
    }

    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.netlink.as_fd(), self.inotify.as_fd()]
    }

    /// Drains all notifications; returns whether any may affect protected addresses.
    pub fn take(&self) -> bool {
        let mut matters = false;
        loop {
            match self.netlink.recv_from_full() {
                Ok((datagram, from)) if from.port_number() == 0 => {
                    // A truncated message may have been any.
                    matters |=
                        each_message(&datagram, |kind, body| matters |= is_of_protected(kind, body)).is_err();
                }
                Ok(_) => {}
                Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => matters = true,
                // Ends with EAGAIN.
                Err(_) => break,
            }
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut is_file = false;
        // Ends with EAGAIN. The link's target has the same name nearly everywhere; the prefix `resolv` covers
        // resolvconf's, too.
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_bytes());
            is_file |= name.is_none_or(|name| name.starts_with(b"resolv") || name.ends_with(b"resolv.conf"));
        }
        if is_file {
            self.watch();
        }
        matters | is_file
    }
}

/// Any address, rule or nexthop object, but only default routes: a router may see a thousand changes of other routes a second.
fn is_of_protected(kind: u16, body: &[u8]) -> bool {
    // struct rtmsg: family, length of the destination, ...
    !matches!(kind, RTM_NEWROUTE | RTM_DELROUTE) || body.get(1) == Some(&0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn detects_every_way_of_replacing_resolv_conf() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir(at("etc")).unwrap();
        fs::create_dir(at("run")).unwrap();
        fs::write(at("etc/resolv.conf"), "").unwrap();
        let changes =
            ProtectedChanges::listen_to(vec![at("etc/resolv.conf"), at("run/upstream/resolv.conf")]).unwrap();
        // The machine's own routes may change meanwhile, so only the expected notification is checked.
        changes.take();
        fs::write(at("etc/resolv.conf"), "nameserver 192.0.2.1").unwrap();
        assert!(changes.take(), "written in place");
        fs::write(at("etc/other"), "").unwrap();
        fs::write(at("new"), "").unwrap();
        fs::rename(at("new"), at("etc/resolv.conf")).unwrap();
        assert!(changes.take(), "replaced");
        fs::remove_file(at("etc/resolv.conf")).unwrap();
        fs::write(at("run/stub-resolv.conf"), "").unwrap();
        symlink("../run/stub-resolv.conf", at("etc/resolv.conf")).unwrap();
        assert!(changes.take(), "a link");
        fs::write(at("new"), "").unwrap();
        fs::rename(at("new"), at("run/stub-resolv.conf")).unwrap();
        assert!(changes.take(), "what it leads to was replaced");
        // A local resolver that starts later makes its directory, whose appearance is not noticed but periodically.
        fs::create_dir(at("run/upstream")).unwrap();
        changes.watch();
        fs::write(at("run/upstream/resolv.conf"), "").unwrap();
        assert!(changes.take(), "a local resolver's");
    }

    #[test]
    fn only_default_routes_are_considered() {
        assert!(is_of_protected(RTM_NEWROUTE, &[2, 0, 0, 0]) && is_of_protected(RTM_DELROUTE, &[10, 0]));
        assert!(!is_of_protected(RTM_NEWROUTE, &[2, 24, 0, 0]) && !is_of_protected(RTM_DELROUTE, &[10]));
        assert!(is_of_protected(20, &[2, 24]), "an address");
    }
}
