//! Tests the exporter's parts against the running kernel, on programs that the tests build. Needs root.

#[path = "../support/mod.rs"]
mod support;

mod accounting;
mod attach;
mod callers;
mod costs;
mod entries;
mod footprint;
mod forms;
mod functions;
mod golang;
mod harm;
mod lent_memory;
mod misses;
mod old_kernel;
mod operands;
mod parameters;
mod processes;
mod returns;
mod routes;
mod runtimes;
mod slow;
mod spans;
mod spans_left_open;
mod targets;
mod values;
