//! Devices of every link type, to which a tun device can be set.

use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use exporter::net::{Hook, Mode};

use crate::counting::{attached, config, number, start, until};
use crate::namespace::Namespace;

const IFF_TUN: i16 = 1;
const IFF_NO_PI: i16 = 0x1000;
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETLINK: libc::Ioctl = 0x4004_54cd;

/// Creates a device `exn0` of a link type (`ARPHRD_*`) in the calling thread's network namespace; packets written to
/// the file are received by it.
fn device(link: u16) -> File {
    let file =
        File::options().read(true).write(true).open("/dev/net/tun").expect("this kernel has tun devices");
    // SAFETY: the structure outlives the call, and its name is NUL-terminated.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[..4].copy_from_slice(&b"exn0".map(|byte| byte as libc::c_char));
        request.ifr_ifru.ifru_flags = IFF_TUN | IFF_NO_PI;
        let made = libc::ioctl(file.as_raw_fd(), TUNSETIFF, &request);
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        let set = libc::ioctl(file.as_raw_fd(), TUNSETLINK, libc::c_ulong::from(link));
        assert_eq!(set, 0, "link type {link}: {}", std::io::Error::last_os_error());
    }
    file
}

/// Returns an IP packet with a UDP datagram of 12 bytes.
fn packet(version: u8) -> Vec<u8> {
    let mut packet = match version {
        4 => vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 98, 0, 2, 10, 98, 0, 1],
        _ => [&[0x60, 0, 0, 0, 0, 12, 17, 64][..], &[0xfd; 16], &[0xfe; 16]].concat(),
    };
    packet.extend([0, 7, 0, 8, 0, 12, 0, 0, 1, 2, 3, 4]);
    packet
}

/// Devices whose frames begin with the IP header are known; for all others, the packet type comes from the network
/// stack.
#[test]
fn packets_are_parsed_on_every_link_type() {
    for (name, link) in [
        ("none", libc::ARPHRD_NONE),
        ("slip", libc::ARPHRD_SLIP),
        ("cslip6", libc::ARPHRD_CSLIP6),
        ("ppp", libc::ARPHRD_PPP),
        ("ipgre", libc::ARPHRD_IPGRE),
        ("sit", libc::ARPHRD_SIT),
        ("x25", libc::ARPHRD_X25),
        ("infiniband", libc::ARPHRD_INFINIBAND),
        ("fddi", libc::ARPHRD_FDDI),
    ] {
        let here = Namespace::new();
        let mut tun = here.run(move || device(link));
        here.command("ip addr add 10.98.0.1/24 dev exn0");
        let (network, events) = start(&here, config(Mode::Auto));
        assert_eq!(attached(&events), ("exn0".into(), Some(Hook::Tcx)), "{name}");
        here.command("ip link set exn0 up");
        for (version, times) in [(4, 5), (6, 7)] {
            for _ in 0..times {
                assert_eq!(tun.write(&packet(version)).unwrap(), packet(version).len(), "{name}");
            }
        }
        here.run(|| {
            let socket = UdpSocket::bind(("10.98.0.1", 0)).unwrap();
            for _ in 0..3 {
                socket.send_to(&[0; 100], ("10.98.0.2", 9)).unwrap();
            }
        });
        let udp = |name: &str, family: &str| {
            number(&network.collect(), name, &[("family", family), ("protocol", "udp")])
        };
        let counted = || {
            let received = ["ipv4", "ipv6"].map(|family| udp("xdp_packets_total", family));
            (received, udp("tc_egress_packets_total", "ipv4"), udp("xdp_bytes_total", "ipv4"))
        };
        until(&format!("{name}: {:?}", counted()), || counted() == ([5, 7], 3, 5 * 32));
        let families = network.collect();
        assert_eq!(number(&families, "xdp_malformed_packets_total", &[]), 0, "{name}");
        // Sent packets can be read from the file, with the length that was counted.
        let mut sent = 0;
        while sent < 3 {
            let mut buffer = [0; 200];
            let length = tun.read(&mut buffer).unwrap();
            sent += u64::from(buffer[0] == 0x45 && buffer[9] == 17 && length == 128);
        }
        assert_eq!(udp("tc_egress_bytes_total", "ipv4"), 3 * 128, "{name}");
    }
}
