//! Which file and which processes a target selects, checked against exact counts: overlay mounts of one image,
//! processes with other names and containers that run the same file, upgrades of all kinds, pid namespaces and files
//! without a path. Needs root.

mod confined;
mod events;
mod file_systems;
mod files;
mod first_starts;
mod large;
mod loaded;
mod meant;
mod moments;
mod moved_code;
mod namespaces;
mod process_labels;
mod readers;
mod selectors;
mod semaphores;
mod support;
mod upgrades;
mod versions;
