//! The cgroups of processes, and the containers and pods that they are.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{ProcessFilter, Processes};
use crate::hierarchy::{cgroup_root, cgroups, version_2, whole_cgroup_path};
use crate::procfs::text;
use crate::selectors::{Belongs, ProcessSelector};

/// What a process belongs to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Membership {
    /// By its cgroup v2, which the kernel's filters use.
    pub(super) new: Belongs,
    /// By its cgroups v1.
    pub(super) old: Belongs,
}

impl Membership {
    /// Whether all members of the cgroup v2 belong to the same container. On a host with cgroup v1, containers can
    /// share one: the root, or that of the service that starts them.
    fn is_of_all_members(&self) -> bool {
        self.old.path.is_empty() || !self.new.containers.is_empty()
    }
}

/// Cached cgroups; when full, the cache is cleared.
const CACHE_SIZE: usize = 4096;

impl Processes {
    /// Records which predicates match the members of a cgroup.
    fn add_members(&mut self, belongs: &Belongs) {
        for (target, filters) in self.filters.iter().enumerate() {
            let Some(selector) = filters.as_ref().map(ProcessFilter::selector) else { continue };
            for (known, predicate) in self.members[target].iter_mut().zip(&selector.predicates) {
                for id in predicate.members(belongs) {
                    if known.insert(id.to_owned()) {
                        self.changed.insert(target);
                    }
                }
            }
        }
    }

    /// Asks container engines again for the names of containers and pods. Returns whether any predicate matches
    /// differently.
    pub fn refresh_names(&mut self) -> bool {
        if !self.filters.iter().flatten().any(|filters| filters.selector().is_by_cgroup()) {
            return false;
        }
        let before = self.members.clone();
        self.containers.forget();
        self.members.iter_mut().flatten().for_each(BTreeSet::clear);
        for belongs in self.containers.all() {
            self.add_members(&belongs);
        }
        let (mut memberships, mut all) =
            (std::mem::take(&mut self.memberships), std::mem::take(&mut self.all));
        let mut named: HashMap<(String, String), Arc<Membership>> = HashMap::new();
        for membership in memberships.values_mut().chain(all.values_mut().map(|of| &mut of.membership)) {
            let paths = (membership.new.path.clone(), membership.old.path.clone());
            let now =
                named.entry(paths).or_insert_with_key(|(new, old)| Arc::new(self.membership_at(new, old)));
            *membership = now.clone();
        }
        (self.memberships, self.all) = (memberships, all);
        let has_changed = before != self.members;
        if has_changed {
            self.forget();
        }
        has_changed
    }

    /// Its series may be shown after the cgroup was deleted.
    pub fn name_cgroup(&self, pid: u32, cgroup: u64) {
        if self.are_cgroups_shown {
            let of_process = || text(format!("/proc/{pid}/cgroup")).ok();
            crate::cgroups::resolve(cgroup, || of_process().map(|cgroups| paths_of(&cgroups).0));
        }
    }

    pub(super) fn membership(&mut self, pid: u32, cgroup: Option<u64>) -> Arc<Membership> {
        if !self.asks_for(ProcessSelector::is_by_cgroup) {
            return Arc::default();
        }
        let known = cgroup.and_then(|cgroup| self.memberships.get(&cgroup));
        let known = known.filter(|known| !known.new.is_unnamed()).cloned();
        if let Some(known) = known.as_ref().filter(|known| known.is_of_all_members()) {
            return known.clone();
        }
        let Ok(cgroups) = text(format!("/proc/{pid}/cgroup")) else { return known.unwrap_or_default() };
        let (new, old) = paths_of(&cgroups);
        let found = Arc::new(self.membership_at(&new, &old));
        if let Some(cgroup) = cgroup.filter(|_| found.old.containers.is_empty()) {
            if self.memberships.len() >= CACHE_SIZE {
                self.memberships.clear();
            }
            self.memberships.insert(cgroup, found.clone());
        }
        found
    }

    /// That of a cgroup in which no process can be examined any more; none if it is gone, too.
    pub(super) fn membership_of_cgroup(&mut self, cgroup: u64) -> Arc<Membership> {
        if !self.asks_for(ProcessSelector::is_by_cgroup) || self.memberships.contains_key(&cgroup) {
            return self.memberships.get(&cgroup).cloned().unwrap_or_default();
        }
        let path = cgroup_root().and_then(|root| cgroups(&root).find(|(id, _)| *id == cgroup));
        path.map(|(_, path)| Arc::new(self.membership_at(&path, ""))).unwrap_or_default()
    }

    fn membership_at(&mut self, new: &str, old: &str) -> Membership {
        let mut found = Membership { new: Belongs::parse(new), old: Belongs::parse(old) };
        self.containers.describe(&mut found.new);
        self.containers.describe(&mut found.old);
        self.add_members(&found.new);
        found
    }
}

/// The cgroups in `/proc/PID/cgroup`: v2, and those of v1 joined.
fn paths_of(text: &str) -> (String, String) {
    let new = version_2(text).map(whole_cgroup_path).unwrap_or_default();
    let old =
        text.lines().filter(|line| !line.starts_with("0::")).filter_map(|line| line.splitn(3, ':').nth(2));
    (new, old.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_containers_of_cgroup_v1_and_v2() {
        let id = "0123456789abcdef".repeat(4);
        let text = format!("1:cpu:/docker/{id}\n0::/system.slice/docker-{id}.scope/init\n");
        let (new, old) = paths_of(&text);
        assert_eq!(Belongs::parse(&new).containers[0].id, id);
        assert_eq!(Belongs::parse(&old).containers[0].id, id);
        assert_eq!(paths_of("0::/\n"), ("/".to_owned(), String::new()));
    }

    #[test]
    fn cgroup_v1_containers_share_one_v2_cgroup() {
        let id = "0123456789abcdef".repeat(4);
        let is_of_all_members = |text: &str| {
            let (new, old) = paths_of(text);
            Membership { new: Belongs::parse(&new), old: Belongs::parse(&old) }.is_of_all_members()
        };
        assert!(!is_of_all_members("1:cpu:/\n0::/\n"));
        assert!(!is_of_all_members("1:cpu:/system.slice\n0::/system.slice/containerd.service\n"));
        assert!(is_of_all_members(&format!("1:cpu:/\n0::/docker/{id}\n")));
        assert!(is_of_all_members("0::/\n"));
    }
}
