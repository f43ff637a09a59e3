//! Names of cgroups.
//!
//! They are looked up when a traced program starts in one, because the cgroup may no longer exist when its series are
//! shown.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::containers::Containers;
use crate::hierarchy::{cgroup_root, cgroups};
use crate::plan::CgroupName;
use crate::selectors::Belongs;

/// One table for the process, because cgroups are global to the machine: names are recorded where programs start, and
/// read by everything that shows their series.
static CGROUPS: LazyLock<Mutex<Cgroups>> = LazyLock::new(Mutex::default);

fn all() -> MutexGuard<'static, Cgroups> {
    CGROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Appends the name of the cgroup with this id (in version 2, the inode of its directory). Returns false if it is not
/// known, because the cgroup was removed before it was looked up.
pub fn push(id: u64, what: CgroupName, to: &mut String) -> bool {
    all().push(id, what, to)
}

/// Looks up the name of the cgroup, unless it is known; `path` is that of a process in it.
pub fn resolve(id: u64, path: impl FnOnce() -> Option<String>) {
    all().resolve(id, path);
}

/// Looks up names, and caches them.
#[derive(Debug, Default)]
struct Cgroups {
    /// `None` for a cgroup that did not exist when it was looked up.
    known: HashMap<u64, Option<Belongs>>,
    containers: Containers,
}

/// Cached cgroups; when full, the cache is cleared.
const CACHE_SIZE: usize = 4096;

impl Cgroups {
    fn push(&mut self, id: u64, what: CgroupName, to: &mut String) -> bool {
        if !self.known.contains_key(&id) {
            self.look_up(id, None);
        }
        match self.known.get(&id).and_then(Option::as_ref) {
            Some(belongs) => to.push_str(&display(belongs, what)),
            None if what == CgroupName::Path => to.push_str(&id.to_string()),
            None => return false,
        }
        true
    }

    fn resolve(&mut self, id: u64, path: impl FnOnce() -> Option<String>) {
        if !matches!(self.known.get(&id), Some(Some(_))) {
            self.look_up(id, path());
        }
    }

    /// Checks the path that a process in it reports, or else, once, among all cgroups.
    fn look_up(&mut self, id: u64, path: Option<String>) {
        let Some(root) = cgroup_root() else { return };
        let is_it = |path: &String| {
            fs::metadata(root.join(path.trim_start_matches('/'))).is_ok_and(|meta| meta.ino() == id)
        };
        let was_gone = self.known.contains_key(&id);
        let among_all = || cgroups(&root).find(|(found, _)| *found == id).map(|(_, path)| path);
        let path = path.filter(is_it).or_else(|| if was_gone { None } else { among_all() });
        let found = path.map(|path| {
            let mut belongs = Belongs::parse(&path);
            self.containers.describe(&mut belongs);
            belongs
        });
        if !was_gone && self.known.len() >= CACHE_SIZE {
            self.known.clear();
        }
        self.known.insert(id, found);
    }
}

/// The path of a pod's cgroup has the pod's uid and the container's full id; for other containers, it is the
/// container's name, or its id truncated to twelve digits.
fn display(belongs: &Belongs, what: CgroupName) -> String {
    let container = belongs.containers.last();
    let pod = belongs.pod.as_ref();
    let display = match what {
        CgroupName::Path => match container {
            Some(container) if pod.is_none() => {
                Some(container.name.clone().unwrap_or_else(|| container.id[..12].to_string()))
            }
            _ => Some(belongs.path.clone()),
        },
        CgroupName::Container => container.map(ToString::to_string),
        CgroupName::ContainerId => container.map(|container| container.id.clone()),
        CgroupName::Image => container.and_then(|container| container.image.clone()),
        CgroupName::Pod => pod.map(ToString::to_string),
        CgroupName::Namespace => pod.map(|pod| pod.namespace.clone()),
        CgroupName::Unit => belongs.unit().map(str::to_owned),
    };
    display.unwrap_or_default().replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_display_names() {
        let id = "0123456789abcdef".repeat(4);
        let of = |path: &str, what| display(&Belongs::parse(path), what);
        let path = |text: &str| of(text, CgroupName::Path);
        let docker = format!("/system.slice/docker-{id}.scope");
        assert_eq!(path(&docker), "0123456789ab");
        assert_eq!(of(&docker, CgroupName::Container), id);
        assert_eq!(path("/user.slice/a.scope"), "/user.slice/a.scope");
        assert_eq!((path("/"), of("/", CgroupName::Pod)), ("/".into(), String::new()));
        let uid = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
        let pod =
            format!("/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{id}.scope", uid.replace('-', "_"));
        assert_eq!((path(&pod), of(&pod, CgroupName::Pod)), (pod.clone(), uid.to_owned()));
        assert_eq!(of(&pod, CgroupName::ContainerId), id);
        assert_eq!(of("/user@1.service/a.service/x", CgroupName::Unit), "a.service");
        // A user can name cgroups below its own as it likes.
        assert_eq!(of("/a\x1b[31m.service", CgroupName::Unit), "a\u{fffd}[31m.service");
    }

    #[test]
    fn cgroup_cache_is_bounded() {
        let mut cgroups = Cgroups::default();
        cgroups.known.extend((0..CACHE_SIZE as u64).map(|n| (u64::MAX - n, None)));
        let (id, _) = super::cgroups(&cgroup_root().unwrap()).next().unwrap();
        let mut text = String::new();
        assert!(cgroups.push(id, CgroupName::Path, &mut text));
        assert_eq!(text, "/");
        assert_eq!(cgroups.known.len(), 1);
    }

    #[test]
    fn missing_cgroup_is_shown_by_id() {
        let mut text = String::new();
        assert!(!push(u64::MAX, CgroupName::Pod, &mut text));
        assert!(push(u64::MAX, CgroupName::Path, &mut text));
        assert_eq!(text, u64::MAX.to_string());
    }
}
