//! Which kind of link attaches probes.

use serde::{Deserialize, Serialize};

use libbpf_rs::btf::{self, Btf};

use crate::config::model::AttachMode;

/// Which kind of link is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attach {
    /// One link for all sites of a file.
    Multi,
    /// One perf event for each site, for kernels before 6.6.
    Perf,
}

/// The kernel's own type information tells whether it has the link (6.6, or a distribution's backport).
pub fn choose(mode: AttachMode) -> Attach {
    let has_multi = || {
        Btf::from_vmlinux()
            .is_ok_and(|btf| btf.type_by_name::<btf::types::Struct<'_>>("bpf_uprobe_multi_link").is_some())
    };
    match mode {
        AttachMode::Perf => Attach::Perf,
        AttachMode::Multi => Attach::Multi,
        AttachMode::Auto if has_multi() => Attach::Multi,
        AttachMode::Auto => Attach::Perf,
    }
}
