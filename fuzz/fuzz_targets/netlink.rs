//! `cargo fuzz run netlink corpus/netlink seeds/netlink` from `fuzz/`.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|datagram: &[u8]| checks::netlink(datagram));
