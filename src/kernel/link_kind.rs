//! The kind of link that attaches probes.

use serde::{Deserialize, Serialize};

use libbpf_rs::btf::{self, Btf};

use crate::config::model::AttachMode;

/// The kind of link that attaches probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attach {
    /// One link for all sites of a file.
    Multi,
    /// One perf event for each site, for kernels before 6.6.
    Perf,
}

/// Whether the kernel has the multi link (6.6, or a backport) is determined from its BTF.
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
