//! TCP connections by state, from the kernel's socket diagnostics.
//!
//! Format: `man 7 sock_diag`; states: include/net/tcp_states.h.

use std::io;

use super::netlink::dump;

const NETLINK_SOCK_DIAG: isize = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `struct inet_diag_req_v2`: four bytes, the wanted states, and 48 bytes of socket identity.
const REQUEST: usize = 56;

/// Names of the states, indexed by number less one.
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

/// IPv4 and IPv6 TCP sockets of the network namespace in each of [`STATES`].
///
/// # Errors
/// If the kernel has no socket diagnostics (`CONFIG_INET_DIAG`, module `tcp_diag`) or refuses.
pub(crate) fn tcp_connections() -> io::Result<[u64; STATES.len()]> {
    let mut counts = [0; STATES.len()];
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut request = [0u8; REQUEST];
        request[0] = family as u8;
        request[1] = libc::IPPROTO_TCP as u8;
        request[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        // Changed meanwhile or not: a number of connections is never exact.
        dump(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, &request, |_, message| {
            // struct inet_diag_msg: family, state, ...
            if let Some(count) =
                message.get(1).and_then(|state| counts.get_mut(usize::from(*state).wrapping_sub(1)))
            {
                *count += 1;
            }
        })?;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_is_counted_at_both_ends() {
        let state = |name: &str| {
            let at = STATES.iter().position(|state| *state == name).unwrap();
            tcp_connections().unwrap()[at]
        };
        // Other tests of this process open connections too: only what is held open here is certain.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let streams: Vec<_> =
            (0..40).map(|_| TcpStream::connect(listener.local_addr().unwrap()).unwrap()).collect();
        let accepted: Vec<_> = (0..40).map(|_| listener.accept().unwrap()).collect();
        assert!(state("listen") >= 1);
        assert!(state("established") >= (streams.len() + accepted.len()) as u64);
    }
}
