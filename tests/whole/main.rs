//! The built exporter from the outside: what a user starts, what a Prometheus scrapes, what an operator reads. Its
//! numbers are compared with those of the programs that it traces. It needs root.

#[path = "../support/mod.rs"]
mod support;

mod access;
mod bans;
mod blocklist;
mod command_line;
mod commands;
mod documented;
mod fail2ban;
mod formats;
mod healthy;
mod hostile;
mod list_url;
mod page;
mod pinned;
mod privileges;
mod process;
mod reload;
mod siege;
mod siege_http2;
mod slow;
mod soak;
mod start;
mod stopped;
mod targets;
mod totals;
mod web;
mod webhook;
