//! Entries with ports, and packets that hide them.
//!
//! Needs root and `ip`.

use exporter::net::{BlockEntry, BlockProtocol, BlockRule, BlockScope, Mode};

use crate::block::{block, blocking, dropped, enforcing, prefix};
use crate::counting::{attached, start, until};
use crate::namespace::{pair, send_raw, up};

/// The first 8 bytes of a SYN to this port in an IPv4 fragment, behind options, or an IPv6 one behind headers.
fn first_fragment(is_v4: bool, port: u16) -> Vec<u8> {
    let segment = [&1000u16.to_be_bytes()[..], &port.to_be_bytes(), &[0; 4]].concat();
    let mut frame = vec![2, 0, 0, 0, 0x99, 1, 2, 0, 0, 0, 0x99, 2];
    if is_v4 {
        frame.extend([
            8, 0, 0x46, 0, 0, 32, 0, 1, 0x20, 0, 64, 6, 0, 0, 10, 99, 0, 2, 10, 99, 0, 1, 1, 1, 1, 0,
        ]);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 60, 64, 0xfd, 0x99]);
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xfd, 0x99]);
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend([44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 1]);
    }
    frame.extend(segment);
    frame.resize(60.max(frame.len()), 0);
    frame
}

/// A receiver accepts a TCP header in several fragments, of which the first has the ports.
#[test]
fn ports_are_found_in_tiny_fragments() {
    for mode in [Mode::Auto, Mode::Native] {
        let (here, there) = pair();
        let (network, events) = start(&here, blocking(mode, enforcing()));
        attached(&events);
        up(&here, &there);
        let scope = Some(BlockScope { protocol: BlockProtocol::Tcp, ports: (7000, 7000) });
        for address in ["10.99.0.2", "fd99::2"] {
            let rule = BlockRule { scope, ..BlockRule::default() };
            block(&here, &network, BlockEntry { prefix: prefix(address), rule });
        }
        let send = |is_v4, port, times| {
            let frame = first_fragment(is_v4, port);
            there.run(move || send_raw("exn1", &frame, times));
        };
        send(true, 7001, 3);
        send(false, 7001, 3);
        send(true, 7000, 5);
        until("all are dropped", || dropped(&network, "blocklist") == 5);
        send(false, 7000, 7);
        until("all are dropped", || dropped(&network, "blocklist") == 12);
    }
}
