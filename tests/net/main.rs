//! Tests the packet programs in network namespaces of their own. Needs root.

#[path = "../support/mod.rs"]
mod support;

mod cable;
mod counting;
mod frames;
mod model;
mod namespace;

mod attach;
mod attribution;
mod bans;
mod block;
mod block_model;
mod block_ports;
mod crowdsec;
mod dashboard;
mod detect;
mod devices;
mod flood;
mod fuzz;
mod link_types;
mod old_kernel;
mod pinned;
mod protected;
mod stack;
mod throughput;
mod veth;
