//! The network interfaces there are, from rtnetlink: those of the namespace that the thread is in.
//!
//! Format: `man 7 rtnetlink`, RTM_GETLINK.

use std::io;

use super::netlink::{attributes, dump, u32_at};

const NETLINK_ROUTE: isize = 0;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// `struct ifinfomsg`.
const INFO: usize = 16;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub name: String,
    pub index: i32,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
}

/// All interfaces.
///
/// # Errors
/// If the kernel does not say.
pub(crate) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut body = vec![0u8; INFO];
    body.extend_from_slice(&8u16.to_ne_bytes());
    body.extend_from_slice(&IFLA_EXT_MASK.to_ne_bytes());
    body.extend_from_slice(&RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    // A list that changed while it was read is asked for again, but not for ever: the next poll does so anyway.
    for _ in 0..3 {
        let mut found = Vec::new();
        let changed = dump(NETLINK_ROUTE, RTM_GETLINK, &body, |kind, message| {
            if kind == RTM_NEWLINK {
                found.extend(interface(message));
            }
        })?;
        if !changed {
            return Ok(found);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::Interrupted,
        "the list of interfaces changed three times while it was read",
    ))
}

fn interface(message: &[u8]) -> Option<Interface> {
    let index = u32_at(message, 4)? as i32;
    let (mut name, mut mtu) = (None, 0);
    for (kind, value) in attributes(message.get(INFO..)?) {
        match kind {
            IFLA_IFNAME => {
                let text = value.split(|byte| *byte == 0).next()?;
                name = Some(String::from_utf8_lossy(text).into_owned());
            }
            IFLA_MTU => mtu = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(Interface { name: name?, index, mtu })
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

    #[test]
    fn a_message_without_a_name_is_no_interface() {
        assert_eq!(interface(&[0; INFO]), None);
        assert_eq!(interface(&[0; 3]), None);
    }
}
