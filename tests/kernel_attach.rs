//! "Attached" means that a hit can come: what the kernel takes, what it refuses, and what is said of it, in both ways to
//! attach.

#[path = "common/exporter.rs"]
mod exporter_process;
#[path = "common/exposition.rs"]
mod exposition;
#[path = "attach/forms.rs"]
mod forms;
#[path = "attach/others.rs"]
mod others;
#[path = "attach/passing.rs"]
mod passing;
#[path = "attach/sites.rs"]
mod sites;
#[path = "common/tracer.rs"]
mod tracer;
