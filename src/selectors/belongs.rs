//! What the path of a cgroup tells about its members: containers, pods and units.

use std::fmt;

/// What a process belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Belongs {
    /// The cgroup's path.
    pub path: String,
    /// From the outermost to the innermost.
    pub containers: Vec<Container>,
    pub pod: Option<Pod>,
}

/// A container of Docker, Podman, containerd or CRI-O, or of LXC or systemd-nspawn, which do not assign ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// All 64 digits of the id; if it has none, the name of its cgroup.
    pub id: String,
    pub name: Option<String>,
    pub image: Option<String>,
}

/// A Kubernetes pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    pub uid: String,
    /// Empty if unknown.
    pub name: String,
    pub namespace: String,
}

/// The number of digits of a container's id.
const DIGITS: usize = 64;

/// Minimum number of digits of a container id or its prefix.
pub(super) const ID_DIGITS: usize = 8;

pub(super) const UNIT_SUFFIXES: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

impl Belongs {
    /// Parses what the path alone tells.
    pub fn parse(path: &str) -> Self {
        let cgroups = || path.split('/');
        let container = |id: &str| Container { id: id.to_owned(), ..Container::default() };
        let numbered = |cgroup| container_of(cgroup).map(container);
        let pod = |uid| Pod { uid, ..Pod::default() };
        Self {
            path: path.to_owned(),
            containers: cgroups().filter_map(|cgroup| numbered(cgroup).or_else(|| named(cgroup))).collect(),
            pod: cgroups().rev().find_map(pod_of).map(pod),
        }
    }

    /// The names of its cgroups, outermost first, without the prefix that systemd adds to names reserved by the kernel.
    pub fn cgroups(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.path
            .split('/')
            .filter(|name| !name.is_empty())
            .map(|name| name.strip_prefix('_').unwrap_or(name))
    }

    /// The path of the outermost container's cgroup, if there is another container in it, as on a machine that is a
    /// container itself (kind, k3d, LXC with Docker).
    pub fn outer_container(&self) -> Option<&str> {
        if self.containers.len() < 2 {
            return None;
        }
        let ends = self.path.match_indices('/').map(|(at, _)| at).chain([self.path.len()]);
        let mut paths = ends.filter_map(|end| self.path.get(..end));
        paths.find(|path| is_container(path.rsplit('/').next().unwrap_or_default()))
    }

    /// Whether the name of a container or pod is not known yet from its engine.
    pub fn is_unnamed(&self) -> bool {
        self.containers.iter().any(|container| container.name.is_none())
            || self.pod.as_ref().is_some_and(|pod| pod.name.is_empty())
    }

    /// The innermost systemd unit, preferring services and scopes to slices.
    pub fn unit(&self) -> Option<&str> {
        let units =
            || self.cgroups().rev().filter(|name| UNIT_SUFFIXES.iter().any(|end| name.ends_with(end)));
        units().find(|unit| !unit.ends_with(".slice")).or_else(|| units().next())
    }
}

impl Container {
    /// Whether its id is this one, or starts with it.
    pub fn has_id(&self, id: &str) -> bool {
        self.id == id || self.has_number() && id.len() >= ID_DIGITS && self.id.starts_with(id)
    }

    /// Returns whether an engine has assigned an id to it.
    pub fn has_number(&self) -> bool {
        self.id.len() == DIGITS
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_deref().unwrap_or(&self.id))
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.name.is_empty() { &self.uid } else { &self.name })
    }
}

/// Whether a cgroup of this name was created for a container.
pub(crate) fn is_container(cgroup: &str) -> bool {
    container_of(cgroup).is_some() || named(cgroup).is_some()
}

/// The id of the container for which the cgroup of this name was created, determined as by `is_container` in
/// `bpf/cgroup.bpf.h`.
fn container_of(cgroup: &str) -> Option<&str> {
    let name = cgroup.strip_suffix(".scope").unwrap_or(cgroup);
    let (before, id) = name.split_at_checked(name.len().checked_sub(DIGITS)?)?;
    let is_id = id.bytes().all(|c| c.is_ascii_alphanumeric());
    let is_apart = before.is_empty() || before.ends_with(['-', ':']);
    (is_id && is_apart && !before.ends_with("conmon-")).then_some(id)
}

/// Returns the container of the cgroup with this name, for engines that have no other ids: LXC and Incus
/// (`lxc.payload.NAME`), and systemd-nspawn or anything else that registers with systemd-machined
/// (`machine-NAME.scope`, and `systemd-nspawn@NAME.service` if it is started as a service). `has_member` of
/// `bpf/cgroup.bpf.h` compares the whole name.
fn named(cgroup: &str) -> Option<Container> {
    let within = |before: &str, after: &str| cgroup.strip_prefix(before)?.strip_suffix(after);
    let name = within("lxc.payload.", "")
        .map(str::to_owned)
        .or_else(|| within("machine-", ".scope").map(unescaped))
        .or_else(|| within("systemd-nspawn@", ".service").map(unescaped))
        .filter(|name| !name.is_empty() && cgroup.len() < DIGITS)?;
    Some(Container { id: cgroup.to_owned(), name: Some(name), image: None })
}

/// Restores a part of a unit's name, in which systemd wrote `\x2d` for hyphens.
fn unescaped(part: &str) -> String {
    let mut parts = part.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.split_at_checked(2).map(|(hex, after)| (u8::from_str_radix(hex, 16), after)) {
            Some((Ok(byte), after)) => {
                bytes.push(byte);
                bytes.extend_from_slice(after.as_bytes());
            }
            _ => {
                bytes.extend_from_slice(b"\\x");
                bytes.extend_from_slice(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The uid of the pod for which the cgroup of this name was created: `kubepods-burstable-podUID.slice` with
/// underscores, or `podUID`; for a static pod it is a hash. A runtime that uses no systemd below a kubelet that does
/// joins the pod's name and the container's: `kubepods-podUID.slice:cri-containerd:ID`. Determined as by `has_member`
/// in `bpf/cgroup.bpf.h`.
fn pod_of(cgroup: &str) -> Option<String> {
    let name =
        cgroup.strip_suffix(".slice").or_else(|| Some(cgroup.split_once(".slice:")?.0)).unwrap_or(cgroup);
    let of = |length: usize| {
        let (before, uid) = name.split_at_checked(name.len().checked_sub(length)?)?;
        let before = before.strip_suffix("pod")?;
        (before.is_empty() || before.ends_with('-')).then(|| uid.replace('_', "-"))
    };
    let is_hyphen = |(at, byte): (usize, u8)| (byte == b'-') == matches!(at, 8 | 13 | 18 | 23);
    let long = of(36).filter(|uid| uid.bytes().enumerate().all(is_hyphen));
    let short = || of(32).filter(|uid| uid.bytes().all(|c| c.is_ascii_alphanumeric()));
    long.or_else(short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_container_cgroups() {
        let id = "0123456789abcdef".repeat(4);
        let known =
            ["docker-{}.scope", "{}", "libpod-{}.scope", "cri-containerd-{}.scope", "system.slice:docker:{}"];
        for form in known {
            assert_eq!(container_of(&form.replace("{}", &id)), Some(id.as_str()), "{form}");
        }
        for form in ["libpod-conmon-{}.scope", "x{}", "{}x", "{}.service", "docker-{}.scope.d", "", "a.scope"]
        {
            assert_eq!(container_of(&form.replace("{}", &id)), None, "{form}");
        }
    }

    #[test]
    fn containers_without_ids_are_identified_by_name() {
        let of = |path: &str| Belongs::parse(path).containers;
        let name = |path: &str| of(path).into_iter().next().and_then(|container| container.name);
        assert_eq!(name("/lxc.payload.web/init.scope").as_deref(), Some("web"));
        assert_eq!(name(r"/machine.slice/machine-my\x2dweb.scope/payload").as_deref(), Some("my-web"));
        assert_eq!(name("/machine.slice/systemd-nspawn@web.service/supervisor").as_deref(), Some("web"));
        assert_eq!(name(r"/machine-a\xzz.scope").as_deref(), Some(r"a\xzz"));
        for none in
            ["/lxc.monitor.web", "/lxc.payload.", "/machine.slice", "/machine-.scope", "/xmachine-a.scope"]
        {
            assert_eq!(name(none), None, "{none}");
        }
        let [web] = &of("/machine.slice/machine-web.scope")[..] else { panic!("one container") };
        assert!(web.has_id("machine-web.scope") && !web.has_id("machine-") && !web.has_number());
        // A Docker container inside an LXC container belongs to both.
        let id = "0123456789abcdef".repeat(4);
        let both = of(&format!("/lxc.payload.web/system.slice/docker-{id}.scope"));
        assert_eq!(both.iter().map(ToString::to_string).collect::<Vec<_>>(), ["web".to_owned(), id]);
    }

    #[test]
    fn outer_container_is_that_of_a_machine() {
        let (node, pod, id) = ("a".repeat(64), "b".repeat(32), "c".repeat(64));
        let outer = |path: &str| Belongs::parse(path).outer_container().map(str::to_owned);
        let docker = format!("/system.slice/docker-{node}.scope");
        assert_eq!(outer(&format!("{docker}/kubelet/kubepods/pod{pod}/{id}")), Some(docker.clone()));
        assert_eq!(
            outer(&format!("/lxc.payload.web/docker-{id}.scope")).as_deref(),
            Some("/lxc.payload.web")
        );
        assert_eq!((outer(&docker), outer("/"), outer("")), (None, None, None));
    }

    #[test]
    fn recognizes_pod_cgroups() {
        let uid = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";
        let underscored = uid.replace('-', "_");
        for form in ["kubepods-burstable-pod{}.slice", "kubepods-pod{}.slice", "kubelet-kubepods-pod{}.slice"]
        {
            assert_eq!(pod_of(&form.replace("{}", &underscored)).as_deref(), Some(uid), "{form}");
        }
        for form in ["kubepods-burstable-pod{}.slice:cri-containerd:ID", "kubepods-pod{}.slice:crio:ID"] {
            assert_eq!(pod_of(&form.replace("{}", &underscored)).as_deref(), Some(uid), "{form}");
        }
        assert_eq!(pod_of(&format!("pod{uid}")).as_deref(), Some(uid));
        let hash = "0123456789abcdef".repeat(2);
        assert_eq!(pod_of(&format!("pod{hash}")), Some(hash.clone()));
        for no in
            [uid.to_owned(), format!("xpod{hash}"), "podman.service".into(), format!("libpod-{hash}{hash}")]
        {
            assert_eq!(pod_of(&no), None, "{no}");
        }
    }

    #[test]
    fn unit_is_the_innermost_service_or_scope() {
        let unit = |path: &str| Belongs::parse(path).unit().map(str::to_owned);
        assert_eq!(unit("/system.slice/ssh.service").as_deref(), Some("ssh.service"));
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service/x";
        assert_eq!(unit(user).as_deref(), Some("a.service"));
        assert_eq!(unit("/a.slice/b.slice").as_deref(), Some("b.slice"));
        assert_eq!(unit("/"), None);
        assert_eq!(Belongs::parse("/_cpu.service").unit(), Some("cpu.service"));
    }
}
