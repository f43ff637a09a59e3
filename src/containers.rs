//! What containers and pods are called, as their engines keep it on disk: no engine is asked, and no API server.
//!
//! - Docker: `/var/lib/docker/containers/ID/config.v2.json` (or where `data-root` of its daemon.json says), keys `Name` and
//!   `Config.Image`; without root below `~/.local/share/docker`.
//! - Podman and CRI-O: `/var/lib/containers/storage/*-containers/containers.json` (and `volatile-containers.json`; or where
//!   `graphroot` of storage.conf says), a list with `id`, `names` and, as JSON in a text, `metadata`. Podman without root has the
//!   same below `~/.local/share`.
//! - containerd: `/run/containerd/io.containerd.runtime.v2.task/NAMESPACE/ID/config.json`, whose annotations are the kubelet's;
//!   those that k3s, k0s and MicroK8s bring have other directories.
//! - Kubernetes: directories `/var/log/pods/NAMESPACE_POD_UID`, and links `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`.
//!
//! Containers in a container, as with kind, k3d or Docker in LXC, are looked up in the files that processes of the outer one see.
//!
//! All are internal to these, and have been the same for years; where they cannot be read, a container is its id.

use std::cell::LazyCell;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::hierarchy::{cgroup_root, host};
use crate::procfs::text;
use crate::regular;
use crate::selectors::{Belongs, Container, Pod, is_container};

/// The directories of the engines' containers, and a cache of what was found there.
#[derive(Debug, Clone)]
pub struct Containers {
    docker: Vec<PathBuf>,
    storages: Vec<PathBuf>,
    bundles: Vec<PathBuf>,
    pods: PathBuf,
    logs: PathBuf,
    known: HashMap<String, Container>,
    known_pods: HashMap<String, Pod>,
}

/// The parent directories of containerd's state.
const CONTAINERDS: [&str; 4] =
    ["run/containerd", "run/k3s/containerd", "run/k0s/containerd", "var/snap/microk8s/common/run/containerd"];

/// Bytes of an engine's file that are read at most.
const MAX_BYTES: u64 = 16 << 20;

/// Cached containers and pods; when full, the cache is cleared.
const CACHE_SIZE: usize = 4096;

impl Default for Containers {
    fn default() -> Self {
        Self::below(&host())
    }
}

/// A process in this cgroup or below it, but not in a container there.
fn first_process(cgroup: &Path) -> Option<u32> {
    let members = text(cgroup.join("cgroup.procs")).unwrap_or_default();
    if let Some(first) = members.lines().find_map(|line| line.parse().ok().filter(|pid| *pid > 0)) {
        return Some(first);
    }
    let inside = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let directories = inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let others = directories.filter(|entry| !is_container(&entry.file_name().to_string_lossy()));
    others.map(|entry| entry.path()).find_map(|below| first_process(&below))
}

impl Containers {
    fn below(root: &Path) -> Self {
        let within = |path: &str| root.join(path.trim_start_matches('/'));
        let moved = docker_directory(root).into_iter().map(|path| within(&path).join("containers"));
        let mut docker = vec![root.join("var/lib/docker/containers")];
        docker.extend(moved);
        let mut storages = vec![root.join("var/lib/containers/storage")];
        storages.extend(storage_directory(root).map(|path| within(&path)));
        for home in homes(root) {
            docker.push(home.join(".local/share/docker/containers"));
            storages.push(home.join(".local/share/containers/storage"));
        }
        Self {
            docker,
            storages,
            bundles: CONTAINERDS.map(|of| root.join(of).join("io.containerd.runtime.v2.task")).to_vec(),
            pods: root.join("var/log/pods"),
            logs: root.join("var/log/containers"),
            known: HashMap::new(),
            known_pods: HashMap::new(),
        }
    }

    /// The full id of the container that is called `name` or whose id starts with it.
    pub fn id(&self, name: &str) -> Option<String> {
        let is_it = |container: &Container| container.name.as_deref() == Some(name) || container.has_id(name);
        self.list().find(is_it).map(|container| container.id)
    }

    /// Looks up the names of the containers and the pod, once for each.
    pub fn describe(&mut self, belongs: &mut Belongs) {
        if self.known.len() + self.known_pods.len() > CACHE_SIZE {
            self.forget();
        }
        let is_pod = belongs.pod.is_some();
        let outer = belongs.outer_container().map(str::to_owned);
        let inner = LazyCell::new(|| Self::inside(outer.as_deref()?));
        let numbered = belongs.containers.iter_mut().enumerate().filter(|(_, of)| of.has_number());
        for (depth, container) in numbered {
            if let Some(known) = self.known.get(&container.id) {
                *container = known.clone();
                continue;
            }
            let (mut found, mut pod) = self.find(&container.id, is_pod);
            if found.name.is_none()
                && depth > 0
                && let Some(inner) = &*inner
            {
                (found, pod) = inner.find(&container.id, is_pod);
            }
            if found.name.is_some() {
                self.known.insert(found.id.clone(), found.clone());
            }
            if let (Some(of), Some(pod)) = (&mut belongs.pod, pod) {
                (of.name, of.namespace) = (pod.name, pod.namespace);
            }
            *container = found;
        }
        let Some(pod) = &mut belongs.pod else { return };
        if let Some(known) = self.known_pods.get(&pod.uid) {
            *pod = known.clone();
            return;
        }
        let found = self.pod(&pod.uid).or_else(|| inner.as_ref()?.pod(&pod.uid));
        if let Some(found) = found {
            *pod = found;
        }
        if !pod.name.is_empty() {
            self.known_pods.insert(pod.uid.clone(), pod.clone());
        }
    }

    /// The engines in the container whose cgroup has this path.
    fn inside(outer: &str) -> Option<Self> {
        let pid = first_process(&cgroup_root()?.join(outer.trim_start_matches('/')))?;
        Some(Self::below(&PathBuf::from(format!("/proc/{pid}/root"))))
    }

    /// Clears the cache.
    pub fn forget(&mut self) {
        self.known.clear();
        self.known_pods.clear();
    }

    /// All containers and pods that the engines know, running or not.
    pub fn all(&self) -> Vec<Belongs> {
        let containers = self.list().map(|of| Belongs { containers: vec![of], ..Belongs::default() });
        let pods = self.list_pods().map(|pod| Belongs { pod: Some(pod), ..Belongs::default() });
        containers.chain(pods).collect()
    }

    fn list(&self) -> impl Iterator<Item = Container> {
        let ids = self.docker.iter().flat_map(|docker| fs::read_dir(docker).into_iter().flatten().flatten());
        let docker = ids.filter_map(|entry| self.of_docker(&entry.file_name().into_string().ok()?));
        docker.chain(self.of_storages())
    }

    fn list_pods(&self) -> impl Iterator<Item = Pod> {
        let directories = fs::read_dir(&self.pods).into_iter().flatten().flatten();
        directories.filter_map(|directory| {
            // None of the three contains an underscore.
            let name = directory.file_name().into_string().ok()?;
            let mut parts = name.split('_');
            let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
            Some(Pod { uid: uid.to_owned(), name: name.to_owned(), namespace: namespace.to_owned() })
        })
    }

    fn pod(&self, uid: &str) -> Option<Pod> {
        self.list_pods().find(|pod| pod.uid == uid)
    }

    fn find(&self, id: &str, is_pod: bool) -> (Container, Option<Pod>) {
        let found = self.of_docker(id).or_else(|| self.of_storages().find(|container| container.id == id));
        let (mut container, pod) = match found {
            Some(container) => (container, None),
            None => self.of_bundle(id),
        };
        if let Some(name) = is_pod.then(|| self.of_log(id)).flatten() {
            container.name = Some(name);
        }
        (container, pod)
    }

    fn of_docker(&self, id: &str) -> Option<Container> {
        let described =
            self.docker.iter().find_map(|docker| read(&docker.join(id).join("config.v2.json")))?;
        let name = described.get("Name")?.as_str()?.trim_start_matches('/').to_owned();
        let image = described.pointer("/Config/Image").and_then(Value::as_str).map(str::to_owned);
        Some(Container { id: id.to_owned(), name: Some(name), image })
    }

    fn of_storages(&self) -> impl Iterator<Item = Container> {
        let directories =
            self.storages.iter().flat_map(|storage| fs::read_dir(storage).into_iter().flatten().flatten());
        let directories =
            directories.filter(|directory| directory.file_name().to_string_lossy().ends_with("-containers"));
        let files = directories.flat_map(|directory| {
            ["containers.json", "volatile-containers.json"].map(|name| directory.path().join(name))
        });
        let listed =
            files.flat_map(|file| read(&file).and_then(|list| list.as_array().cloned()).unwrap_or_default());
        listed.filter_map(|container| {
            let metadata = container.get("metadata").and_then(Value::as_str).unwrap_or_default();
            let metadata: Option<Value> = serde_json::from_str(metadata).ok();
            let given = |key: &str| {
                let text = metadata.as_ref().and_then(|of| of.get(key)?.as_str());
                text.filter(|text| !text.is_empty()).map(str::to_owned)
            };
            let image = given("image-name");
            // CRI-O includes the pod in a container's name: `k8s_NAME_POD_NAMESPACE_UID_0`.
            let name = container.pointer("/names/0").and_then(Value::as_str).map(str::to_owned);
            let name = given("metadata-name").or(name);
            Some(Container { id: container.get("id")?.as_str()?.to_owned(), name, image })
        })
    }

    fn of_bundle(&self, id: &str) -> (Container, Option<Pod>) {
        let directories =
            self.bundles.iter().flat_map(|bundles| fs::read_dir(bundles).into_iter().flatten().flatten());
        let described = directories
            .into_iter()
            .find_map(|directory| read(&directory.path().join(id).join("config.json")));
        let annotation = |names: &[&str]| {
            let all = described.as_ref()?.get("annotations")?;
            names.iter().find_map(|name| all.get(*name)?.as_str()).map(str::to_owned)
        };
        let cri = |name: &str| annotation(&[&format!("io.kubernetes.cri.{name}")]);
        let name = annotation(&["io.kubernetes.cri.container-name", "nerdctl/name"]);
        let pod = cri("sandbox-name").zip(cri("sandbox-namespace")).map(|(name, namespace)| Pod {
            uid: String::new(),
            name,
            namespace,
        });
        (Container { id: id.to_owned(), name, image: cri("image-name") }, pod)
    }

    /// The kubelet's name for a container.
    fn of_log(&self, id: &str) -> Option<String> {
        let end = format!("-{id}.log");
        let links = fs::read_dir(&self.logs).ok()?.flatten();
        let found =
            links.filter_map(|link| link.file_name().into_string().ok()).find(|name| name.ends_with(&end))?;
        Some(found.strip_suffix(&end)?.rsplit('_').next()?.to_owned())
    }
}

/// Docker's configured data directory.
fn docker_directory(root: &Path) -> Option<String> {
    let settings = read(&root.join("etc/docker/daemon.json"))?;
    Some(settings.get("data-root").or_else(|| settings.get("graph"))?.as_str()?.to_owned())
}

/// The configured data directory of Podman and CRI-O: a line of TOML.
fn storage_directory(root: &Path) -> Option<String> {
    let settings = String::from_utf8(contents(&root.join("etc/containers/storage.conf"))?).ok()?;
    let mut values =
        settings.lines().filter_map(|line| line.trim().strip_prefix("graphroot")?.trim().strip_prefix('='));
    Some(values.next()?.split(['"', '\'']).nth(1)?.to_owned())
}

/// Home directories: those in /etc/passwd, and those in /home, whose users may be defined elsewhere.
fn homes(root: &Path) -> BTreeSet<PathBuf> {
    let users = contents(&root.join("etc/passwd")).unwrap_or_default();
    let users = String::from_utf8_lossy(&users);
    let of_users = users.lines().filter_map(|line| line.split(':').nth(5)).filter(|home| home.len() > 1);
    let mut homes: BTreeSet<PathBuf> = of_users.map(|home| root.join(home.trim_start_matches('/'))).collect();
    homes.extend(fs::read_dir(root.join("home")).into_iter().flatten().flatten().map(|home| home.path()));
    homes
}

/// Whether the process is in the container with this id, or id prefix.
pub fn is_in_container(pid: u32, id: &str) -> bool {
    text(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| are_in_container(&cgroups, id))
}

fn are_in_container(cgroups: &str, id: &str) -> bool {
    cgroups.lines().any(|path| Belongs::parse(path).containers.iter().any(|of| of.has_id(id)))
}

/// Users and containers can write what is read here: anything but a regular file of moderate size is ignored.
fn contents(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    regular::open(path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&contents(path)?).ok()
}

#[cfg(test)]
mod tests;
