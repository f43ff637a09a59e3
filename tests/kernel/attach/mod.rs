//! "Attached" means that a hit can come: what the kernel takes, what it refuses, and what is said of it, in both ways to
//! attach.

mod forms;
mod others;
mod passing;
mod sites;
