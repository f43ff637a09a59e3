//! Run from `fuzz/`: `cargo fuzz run netlink corpus/netlink seeds/netlink`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|datagram: &[u8]| checks::netlink(datagram));
