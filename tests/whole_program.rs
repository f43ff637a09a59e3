//! The built exporter from outside: what a user starts, what a Prometheus scrapes, what an operator reads. Its
//! numbers are held against those of the programs that it traces. It needs root.

#[path = "whole_program/access.rs"]
mod access;
#[path = "whole_program/command_line.rs"]
mod command_line;
#[path = "common/dashboard.rs"]
mod dashboard;
#[path = "common/demo.rs"]
mod demo;
#[path = "common/exporter.rs"]
mod exporter;
#[path = "common/exposition.rs"]
mod exposition;
#[path = "whole_program/process.rs"]
mod process;
#[path = "common/prometheus.rs"]
mod prometheus;
#[path = "whole_program/siege.rs"]
mod siege;
#[path = "whole_program/targets.rs"]
mod targets;
#[path = "whole_program/totals.rs"]
mod totals;
