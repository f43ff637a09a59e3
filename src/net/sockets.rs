//! TCP connections by state, from the kernel's socket diagnostics.
//!
//! Format: `man 7 sock_diag`; states: include/net/tcp_states.h.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::netlink::{dump, u32_at};

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `struct inet_diag_req_v2`: four bytes, the mask of states, and 48 bytes of socket identity.
const REQUEST: usize = 56;

/// Names of the states; the index is the kernel's number minus one.
pub(crate) const STATES: [&str; 12] = [
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
    "new_syn_recv",
];

/// The number of IPv4 and IPv6 TCP sockets of the network namespace in each of [`STATES`].
///
/// # Errors
/// If the kernel has no socket diagnostics (`CONFIG_INET_DIAG`, module `tcp_diag`) or refuses.
pub(crate) fn tcp_connections() -> io::Result<[u64; STATES.len()]> {
    let mut counts = [0; STATES.len()];
    each_socket(u32::MAX, 0, |message| {
        // struct inet_diag_msg: family, state, ...
        if let Some(count) =
            message.get(1).and_then(|state| counts.get_mut(usize::from(*state).wrapping_sub(1)))
        {
            *count += 1;
        }
    })?;
    Ok(counts)
}

const ESTABLISHED: u32 = 1 << 1;
const LISTEN: u32 = 1 << 10;

/// Local ports, and the inodes of their sockets as in `/proc/PID/fd`.
pub(crate) type LocalPorts = Vec<(u16, u32)>;

/// The local ports of listening sockets, and those of established connections.
///
/// # Errors
/// As [`tcp_connections`].
pub(crate) fn local_ports() -> io::Result<(LocalPorts, LocalPorts)> {
    let (mut listening, mut established) = (Vec::new(), Vec::new());
    each_socket(ESTABLISHED | LISTEN, 0, |message| {
        let all = if message.get(1) == Some(&10) { &mut listening } else { &mut established };
        // The inode is the last member of struct inet_diag_msg.
        let of = ends(message).map(|ends| ends.local.port()).zip(u32_at(message, 68));
        all.extend(of);
    })?;
    Ok((listening, established))
}

/// The addresses of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ends {
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// Established connections to a local port.
///
/// # Errors
/// As [`tcp_connections`].
pub(crate) fn established(port: u16) -> io::Result<BTreeSet<Ends>> {
    let mut found = BTreeSet::new();
    each_socket(ESTABLISHED, port, |message| {
        found.extend(ends(message).filter(|ends| ends.local.port() == port));
    })?;
    Ok(found)
}

/// Calls `take` for every IPv4 and IPv6 TCP socket in one of these states, a bit mask, and with this local port,
/// unless it is zero.
fn each_socket(states: u32, port: u16, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0u8; REQUEST];
        request[0] = family as u8;
        request[1] = libc::IPPROTO_TCP as u8;
        request[4..8].copy_from_slice(&states.to_ne_bytes());
        request[8..10].copy_from_slice(&port.to_be_bytes());
        // An interrupted dump does not matter: the number of connections is never exact.
        dump(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, &request, |_, message| take(message))?;
    }
    Ok(())
}

/// The addresses in a `struct inet_diag_msg`: four bytes, then `struct inet_diag_sockid` with ports and addresses in
/// network byte order.
fn ends(message: &[u8]) -> Option<Ends> {
    let port = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| {
        let octets = message.get(at..at + 16)?;
        if i32::from(message[0]) == libc::AF_INET {
            Some(IpAddr::from(<[u8; 4]>::try_from(&octets[..4]).ok()?))
        } else {
            Some(IpAddr::from(<[u8; 16]>::try_from(octets).ok()?).to_canonical())
        }
    };
    let (local, peer) = ((address(8)?, port(4)?), (address(24)?, port(6)?));
    Some(Ends { local: local.into(), peer: peer.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn connection_is_counted_at_both_ends() {
        let state = |name: &str| {
            let at = STATES.iter().position(|state| *state == name).unwrap();
            tcp_connections().unwrap()[at]
        };
        // Other tests of this process open connections, too: only those held open here are certain.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let streams: Vec<_> =
            (0..40).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
        let accepted: Vec<_> = (0..40).map(|_| listener.accept().unwrap()).collect();
        assert!(state("listen") >= 1);
        assert!(state("established") >= (streams.len() + accepted.len()) as u64);
    }
}
