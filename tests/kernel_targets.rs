//! Which file and which processes a target means, held against exact counts: overlay mounts of one image, processes of other
//! names and containers that run the same file, upgrades of all kinds, pid namespaces and files without a path. Needs root.

#[path = "common/tracer.rs"]
mod tracer;

#[path = "targets/files.rs"]
mod files;
#[path = "targets/meant.rs"]
mod meant;
#[path = "targets/namespaces.rs"]
mod namespaces;
#[path = "targets/support.rs"]
mod support;
#[path = "targets/upgrades.rs"]
mod upgrades;
