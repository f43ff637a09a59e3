//! Names of containers, as their engines keep them on disk: no engine is asked.
//!
//! Docker: `/var/lib/docker/containers/ID/config.v2.json`, key `Name`. Podman:
//! `/var/lib/containers/storage/overlay-containers/containers.json`, a list with `id` and `names`. Both are internal to their
//! engines, and have been the same for years; where they cannot be read, a container is its id.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Where the engines keep their containers.
#[derive(Debug, Clone)]
pub struct Containers {
    docker: PathBuf,
    podman: PathBuf,
}

impl Default for Containers {
    fn default() -> Self {
        Self {
            docker: "/var/lib/docker/containers".into(),
            podman: "/var/lib/containers/storage/overlay-containers/containers.json".into(),
        }
    }
}

impl Containers {
    /// The name of the container with this whole id, if an engine knows one.
    pub fn name(&self, id: &str) -> Option<String> {
        self.docker_name(id)
            .or_else(|| self.podman_names().find(|(known, _)| known == id).map(|(_, name)| name))
    }

    /// The whole id of the container that is called `name` or whose id begins with it.
    pub fn id(&self, name: &str) -> Option<String> {
        let ids = fs::read_dir(&self.docker).into_iter().flatten().flatten();
        let mut docker = ids.filter_map(|entry| entry.file_name().into_string().ok());
        let is_it = |id: &str, known: &str| known == name || (name.len() >= 8 && id.starts_with(name));
        docker
            .find(|id| is_it(id, &self.docker_name(id).unwrap_or_default()))
            .or_else(|| self.podman_names().find(|(id, known)| is_it(id, known)).map(|(id, _)| id))
    }

    fn docker_name(&self, id: &str) -> Option<String> {
        let described = read(&self.docker.join(id).join("config.v2.json"))?;
        Some(described.get("Name")?.as_str()?.trim_start_matches('/').to_string())
    }

    fn podman_names(&self) -> impl Iterator<Item = (String, String)> {
        let listed = read(&self.podman).and_then(|list| list.as_array().cloned()).unwrap_or_default();
        listed.into_iter().filter_map(|container| {
            let id = container.get("id")?.as_str()?.to_string();
            Some((id, container.get("names")?.get(0)?.as_str()?.to_string()))
        })
    }
}

/// Whether the process is in the container with this id, or one that begins so. Docker, Podman, containerd and CRI-O all put
/// the whole id into the name of its cgroup.
pub fn is_in_container(pid: u32, id: &str) -> bool {
    id.len() >= 8
        && fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| {
            cgroups
                .split(|c: char| !c.is_ascii_alphanumeric())
                .any(|part| part.len() == 64 && part.starts_with(id))
        })
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_docker_and_of_podman() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = ("0123456789abcdef".repeat(4), "fedcba9876543210".repeat(4));
        let containers = Containers {
            docker: folder.path().join("docker"),
            podman: folder.path().join("containers.json"),
        };
        assert_eq!((containers.name(&first), containers.id("bitcoin")), (None, None), "no engine at all");
        fs::create_dir_all(containers.docker.join(&first)).unwrap();
        fs::write(containers.docker.join(&first).join("config.v2.json"), r#"{"ID":"x","Name":"/bitcoin"}"#)
            .unwrap();
        fs::write(&containers.podman, format!(r#"[{{"id":"{second}","names":["relay"],"layer":"x"}}]"#))
            .unwrap();
        assert_eq!(containers.name(&first).as_deref(), Some("bitcoin"));
        assert_eq!(containers.name(&second).as_deref(), Some("relay"));
        assert_eq!(containers.id("bitcoin"), Some(first.clone()));
        assert_eq!(containers.id("relay"), Some(second.clone()));
        assert_eq!(containers.id(&second[..12]), Some(second));
        assert_eq!(containers.id("nobody"), None);
        fs::write(&containers.podman, "not JSON").unwrap();
        assert_eq!(containers.id("relay"), None);
    }
}
