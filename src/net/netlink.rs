//! A netlink dump: one request, and all messages of the response.
//!
//! Format: <https://docs.kernel.org/userspace-api/netlink/intro.html>.

use std::io;

use netlink_sys::{Socket, SocketAddr};

/// The protocol of links, addresses, routes and rules: rtnetlink(7).
pub(super) const NETLINK_ROUTE: isize = 0;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

/// Requests all objects of a kind and passes each message's body to `each`. Returns true if the list changed while it
/// was read and may be incomplete.
///
/// # Errors
/// If the socket or the kernel fails, or the response is not valid netlink.
pub(crate) fn dump(
    protocol: isize,
    kind: u16,
    body: &[u8],
    mut each: impl FnMut(u16, &[u8]),
) -> io::Result<bool> {
    dump_while(protocol, kind, body, |kind, body| {
        each(kind, body);
        true
    })
}

/// As [`dump`], until `each` returns false. The kernel filters by the request's header and attributes, if it can (Linux 4.20).
///
/// # Errors
/// As [`dump`].
pub(crate) fn dump_while(
    protocol: isize,
    kind: u16,
    body: &[u8],
    each: impl FnMut(u16, &[u8]) -> bool,
) -> io::Result<bool> {
    request_while(protocol, kind, NLM_F_DUMP, body, each)
}

/// Requests one object; returns the body of the response.
///
/// # Errors
/// As [`dump`], or if there is no such object.
pub(crate) fn get(protocol: isize, kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut found = Vec::new();
    request_while(protocol, kind, 0, body, |_, body| {
        found = body.to_vec();
        false
    })?;
    Ok(found)
}

fn request_while(
    protocol: isize,
    kind: u16,
    flags: u16,
    body: &[u8],
    mut each: impl FnMut(u16, &[u8]) -> bool,
) -> io::Result<bool> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    // Older kernels ignore what is to be filtered by, and the caller sees more.
    let _ = socket.set_netlink_get_strict_chk(true);
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    request.extend_from_slice(&[0; 8]); // sequence, port
    request.extend_from_slice(body);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let mut interrupted = false;
    loop {
        let (datagram, from) = socket.recv_from_full()?;
        if from.port_number() != 0 {
            continue; // not from the kernel
        }
        let mut is_enough = false;
        let mut take = |kind: u16, body: &[u8]| is_enough = is_enough || !each(kind, body);
        if messages(&datagram, &mut interrupted, &mut take)? || is_enough {
            return Ok(interrupted);
        }
    }
}

/// Iterates over the messages of a datagram; returns true at the end of the dump.
fn messages(mut rest: &[u8], interrupted: &mut bool, each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "truncated netlink message");
    while !rest.is_empty() {
        let length = u32_at(rest, 0).ok_or_else(broken)? as usize;
        if length < HEADER || length > rest.len() {
            return Err(broken());
        }
        let (message, body) = (&rest[..length], &rest[HEADER..length]);
        *interrupted |= u16_at(message, 6).is_some_and(|flags| flags & NLM_F_DUMP_INTR != 0);
        match u16_at(message, 4).ok_or_else(broken)? {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = u32_at(body, 0).ok_or_else(broken)? as i32;
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            kind => each(kind, body),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Passes the messages of an unsolicited datagram to `each`.
///
/// # Errors
/// If it is not valid netlink, or reports an error.
pub(crate) fn each_message(datagram: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    messages(datagram, &mut false, &mut each).map(drop)
}

/// The attributes of a message: type and value.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)?;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, value))
    })
}

/// Encodes an attribute, padded to the alignment of the next one.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10]);
        bytes.extend_from_slice(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn reads_messages_until_done_or_error() {
        let mut seen = Vec::new();
        let bytes =
            [message(20, b"abc"), message(21, b""), message(NLMSG_DONE, &[0; 4]), message(22, b"")].concat();
        assert!(messages(&bytes, &mut false, &mut |kind, body| seen.push((kind, body.to_vec()))).unwrap());
        assert_eq!(seen, [(20, b"abc".to_vec()), (21, Vec::new())]);
        let refused = message(NLMSG_ERROR, &(-1i32).to_ne_bytes());
        assert_eq!(messages(&refused, &mut false, &mut |_, _| {}).unwrap_err().raw_os_error(), Some(1));
        for cut in [1, 7, 15, 17] {
            assert!(messages(&bytes[..cut], &mut false, &mut |_, _| {}).is_err(), "{cut}");
        }
    }

    #[test]
    fn malformed_attributes_end_the_iteration() {
        let good = [&[6u8, 0, 3, 0][..], b"ab\0\0", &[4, 0, 9, 0]].concat();
        assert_eq!(attributes(&good).collect::<Vec<_>>(), [(3, &b"ab"[..]), (9, &b""[..])]);
        assert_eq!(attributes(&[200, 0, 3, 0, 1]).count(), 0);
        assert_eq!(attributes(&[2, 0, 3, 0]).count(), 0);
    }
}
