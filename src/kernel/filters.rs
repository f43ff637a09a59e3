//! Which processes a target means, as the kernel is told.

use crate::abi::{FILTER_WORDS, filter, filter_kind};
use crate::config::model::Selector;
use crate::plan::TargetPlan;

/// Words of a container's whole id.
const ID_WORDS: usize = 8;

/// A row of the table of filters.
#[derive(Debug, Clone)]
pub(crate) struct Filter(filter);

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        let key = |of: &filter| (of.kind, of.tgid, of.began, of.length);
        key(&self.0) == key(&other.0) && self.0.name == other.0.name
    }
}

impl Filter {
    /// Whether the target means some of the processes that run its files, and not all.
    pub(crate) fn is_needed(target: &TargetPlan) -> bool {
        target.pid.is_some() || !matches!(target.selector, Selector::Binary(_))
    }

    pub(crate) fn is_by_cgroup(target: &TargetPlan) -> bool {
        target.pid.is_none() && matches!(target.selector, Selector::Container(_))
    }

    /// The process with this number that began at this time; 0 is the first one that hits a probe.
    pub(crate) fn process(pid: u32, began: u64) -> Self {
        Self(filter { kind: filter_kind::FILTER_PROCESS.0, tgid: pid, began, ..filter::default() })
    }

    /// When its one process began, if that is known.
    pub(crate) fn began(&self) -> u64 {
        self.0.began
    }

    /// Processes whose leader or executable is called so.
    pub(crate) fn name(name: &str) -> Self {
        Self(filter { kind: filter_kind::FILTER_NAME.0, ..named(name) })
    }

    /// Processes in the container whose id begins so; none for an empty one.
    pub(crate) fn container(id: &str) -> Self {
        let mut made = filter { kind: filter_kind::FILTER_CONTAINER.0, ..named(id) };
        let mask = words(&vec![0xff; id.len().min(8 * ID_WORDS)]);
        made.name[ID_WORDS..2 * ID_WORDS].copy_from_slice(&mask[..ID_WORDS]);
        Self(made)
    }

    /// The same, told apart from the one that it replaces.
    pub(crate) fn numbered(mut self, edition: u32) -> Self {
        self.0.edition = edition;
        self
    }

    pub(super) fn row(&self) -> &filter {
        &self.0
    }
}

fn named(name: &str) -> filter {
    filter { length: name.len() as u32, name: words(name.as_bytes()), ..filter::default() }
}

fn words(bytes: &[u8]) -> [u64; FILTER_WORDS] {
    let mut words = [0; FILTER_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut all = [0; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(all);
    }
    words
}

/// The id of the container that the cgroup of this name is made for, as `is_container` of `bpf/filter.bpf.h` finds it.
pub(crate) fn id_of_container(cgroup: &str) -> Option<&str> {
    let name = cgroup.strip_suffix(".scope").unwrap_or(cgroup);
    let (before, id) = name.split_at_checked(name.len().checked_sub(64)?)?;
    let is_id = id.bytes().all(|c| c.is_ascii_alphanumeric());
    let is_apart = before.is_empty() || before.ends_with(['-', ':']);
    (is_id && is_apart && !before.ends_with("conmon-")).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cgroups_of_containers() {
        let id = "0123456789abcdef".repeat(4);
        let known =
            ["docker-{}.scope", "{}", "libpod-{}.scope", "cri-containerd-{}.scope", "system.slice:docker:{}"];
        for form in known {
            assert_eq!(id_of_container(&form.replace("{}", &id)), Some(id.as_str()), "{form}");
        }
        for form in ["libpod-conmon-{}.scope", "x{}", "{}x", "{}.service", "docker-{}.scope.d", "", "a.scope"]
        {
            assert_eq!(id_of_container(&form.replace("{}", &id)), None, "{form}");
        }
    }

    #[test]
    fn an_id_that_is_cut_off_is_compared_as_far_as_it_goes() {
        let Filter(row) = Filter::container("0123456789");
        assert_eq!(row.name[ID_WORDS..ID_WORDS + 3], [u64::MAX, 0xffff, 0]);
        assert_eq!(row.length, 10);
        assert_eq!(row.name[0], u64::from_ne_bytes(*b"01234567"));
    }
}
