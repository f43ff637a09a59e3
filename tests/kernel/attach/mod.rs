//! "Attached" means that a hit can arrive: what the kernel accepts, what it refuses, and how that is reported, with
//! both ways to attach.

mod forms;
mod others;
mod passing;
mod sites;
