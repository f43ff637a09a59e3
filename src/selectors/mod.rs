//! How a target is selected: by a file, and by conditions on its processes. Pure.
//!
//! A selector is a conjunction of [`Predicate`]s. Each is defined in one place, here: its key in the configuration, how
//! it is evaluated on the facts about a process ([`ProcessFacts`]), and how the kernel evaluates it ([`KernelTest`]).
//! Both must agree.

mod belongs;
mod pattern;

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::abi;
pub(crate) use belongs::is_container;
pub use belongs::{Belongs, Container, Pod};
pub(crate) use pattern::Automaton;
pub use pattern::{Pattern, PatternError};

/// A selection of processes, and of their files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    pub file: FileSelector,
    pub processes: ProcessSelector,
}

/// Which file is probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileSelector {
    /// The file at this path, or one that replaces it.
    Path(PathBuf),
    /// The executables of the processes.
    Executable,
    /// Libraries with this name or soname that the processes have loaded.
    Library(Pattern),
}

/// The selected processes: those that fulfill every predicate, and, if `children` is set, the processes that they have
/// started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSelector {
    pub predicates: Vec<Predicate>,
    pub children: bool,
}

/// A condition on a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Predicate {
    /// It has this process id.
    Pid(u32),
    /// Its thread group leader, or the base name of its executable, has this name.
    Process(Pattern),
    /// Its command line matches, as formatted by [`command_line`].
    Cmdline(Pattern),
    /// It is in a container with this id, id prefix, or name.
    Container(Pattern),
    /// It is in a container created from this image.
    Image(Pattern),
    /// It is in a systemd unit with this name.
    Unit(Pattern),
    /// It is in a Kubernetes pod with this name.
    Pod(Pattern),
    /// It is in a pod of this namespace.
    Namespace(Pattern),
}

/// The facts about a process that predicates need.
#[derive(Debug, Clone, Copy)]
pub struct ProcessFacts<'a> {
    pub pid: u32,
    /// The name of the leader; the kernel truncates it to 15 bytes.
    pub comm: &'a str,
    /// Base name of its executable.
    pub exe: Option<&'a str>,
    pub cmdline: &'a str,
    /// From its version 2 cgroup, which the kernel uses.
    pub belongs: &'a Belongs,
}

impl<'a> ProcessFacts<'a> {
    /// The names of the process: that of its leader, unless it is only the truncated name of its executable, and that
    /// of the executable.
    pub fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let is_cut = self.comm.len() == COMM_BYTES
            && self.exe.is_some_and(|exe| exe.len() > COMM_BYTES && exe.starts_with(self.comm));
        [Some(self.comm).filter(|_| !is_cut), self.exe].into_iter().flatten()
    }
}

/// Bytes of a thread name that the kernel stores.
const COMM_BYTES: usize = 15;

/// How the kernel evaluates a predicate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelTest<'a> {
    Pid(u32),
    /// The leader or the executable has this name.
    Name(&'a Pattern),
    Cmdline(&'a Pattern),
    /// It is in a cgroup with this name.
    Cgroup(&'a Pattern),
    /// It is in the cgroup of a container or pod whose id has been passed to the kernel as it became known, or of a
    /// container whose id starts with `begin`.
    Members {
        begin: Option<&'a str>,
    },
}

/// Bytes of a command line that are compared.
pub const CMDLINE_BYTES: usize = abi::MAX_LINE;

/// A configuration key of a selector.
pub struct SelectorKey {
    pub name: &'static str,
    /// The meaning of its value, for messages.
    pub what: &'static str,
    make: fn(Pattern) -> Predicate,
}

// One predicate for each of these, and one for `pid`.
const _: () = assert!(KEYS.len() < abi::MAX_PREDICATES);

/// The keys whose values are patterns.
pub const KEYS: [SelectorKey; 7] = [
    SelectorKey { name: "process", what: "the name of a process", make: Predicate::Process },
    SelectorKey { name: "cmdline", what: "a command line", make: Predicate::Cmdline },
    SelectorKey { name: "container", what: "the name or id of a container", make: Predicate::Container },
    SelectorKey { name: "image", what: "the name of an image", make: Predicate::Image },
    SelectorKey { name: "unit", what: "the name of a unit", make: unit },
    SelectorKey { name: "pod", what: "the name of a pod", make: Predicate::Pod },
    SelectorKey { name: "namespace", what: "a namespace of Kubernetes", make: Predicate::Namespace },
];

impl SelectorKey {
    /// Parses the predicate's value.
    ///
    /// # Errors
    /// If the text is not a valid pattern.
    pub fn read(&self, text: &str) -> Result<Predicate, PatternError> {
        let predicate = Pattern::new(text).map(self.make)?;
        // The kernel has no other way to compare these.
        if let KernelTest::Cmdline(pattern) | KernelTest::Cgroup(pattern) = predicate.test() {
            pattern.check_parts()?;
        }
        Ok(predicate)
    }
}

/// Without a suffix it is a service, as for systemctl; a template matches all of its instances.
fn unit(written: Pattern) -> Predicate {
    let text = written.text();
    let has_suffix = belongs::UNIT_SUFFIXES.iter().any(|suffix| text.ends_with(suffix));
    let whole = if has_suffix || text.ends_with('*') { text.to_owned() } else { format!("{text}.service") };
    let whole = whole.replacen("@.", "@*.", 1);
    Predicate::Unit(Pattern::new(&whole).unwrap_or(written))
}

impl Selector {
    /// This file, in all processes.
    pub fn binary(path: impl Into<PathBuf>) -> Self {
        Self { file: FileSelector::Path(path.into()), processes: ProcessSelector::default() }
    }

    /// The executables of processes with this name.
    pub fn process(name: &str) -> Self {
        Self::of(Predicate::Process(Pattern::literal(name)))
    }

    /// The executable of this process.
    pub fn pid(pid: u32) -> Self {
        Self::of(Predicate::Pid(pid))
    }

    /// The executables of processes that fulfill this predicate.
    pub fn of(predicate: Predicate) -> Self {
        Self {
            file: FileSelector::Executable,
            processes: ProcessSelector { predicates: vec![predicate], children: false },
        }
    }

    /// The path, if the file is selected by path.
    pub fn path(&self) -> Option<&Path> {
        match &self.file {
            FileSelector::Path(path) => Some(path),
            FileSelector::Executable | FileSelector::Library(_) => None,
        }
    }

    /// The name of its executables, if nothing else selects them, so that checking paths of this name is worthwhile.
    pub fn executable_name(&self) -> Option<&Pattern> {
        if self.file != FileSelector::Executable || self.processes.children {
            return None;
        }
        match self.processes.predicates.as_slice() {
            [Predicate::Process(name)] | [Predicate::Process(name), Predicate::Cmdline(_)] => Some(name),
            _ => None,
        }
    }

    /// Whether it selects everything that runs in a cgroup, under any name: including a container engine's helpers and
    /// shells.
    pub fn matches_any_program(&self) -> bool {
        let processes = &self.processes;
        let is_named = processes.name_glob().is_some() || processes.line_glob().is_some();
        self.file == FileSelector::Executable && processes.is_by_cgroup() && !is_named
    }

    /// Whether its files are those that processes execute or load.
    pub fn is_by_process(&self) -> bool {
        self.path().is_none()
    }

    /// Whether it selects only some of the processes that run its files.
    pub fn needs_filter(&self) -> bool {
        !self.processes.predicates.is_empty()
    }
}

impl ProcessSelector {
    /// The process, if it is selected by id.
    pub fn pid(&self) -> Option<u32> {
        self.predicates.iter().find_map(|predicate| match predicate {
            Predicate::Pid(pid) => Some(*pid),
            _ => None,
        })
    }

    /// The same, if no process has this id now.
    pub fn absent_pid(&self) -> Option<u32> {
        let is_absent = |pid: &u32| {
            let number = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            number.is_some_and(|pid| pidfd_open(pid, PidfdFlags::empty()).err() == Some(Errno::SRCH))
        };
        self.pid().filter(is_absent)
    }

    /// The exact name that the process must have, if there is one.
    pub fn name(&self) -> Option<&str> {
        self.predicates.iter().find_map(|predicate| match predicate {
            Predicate::Process(name) => name.as_literal(),
            _ => None,
        })
    }

    /// A pattern that the process's name must match.
    pub fn name_glob(&self) -> Option<&Pattern> {
        self.predicates.iter().find_map(|predicate| match predicate {
            Predicate::Process(name) => Some(name),
            _ => None,
        })
    }

    /// A pattern that its command line must match.
    pub fn line_glob(&self) -> Option<&Pattern> {
        self.predicates.iter().find_map(|predicate| match predicate {
            Predicate::Cmdline(line) => Some(line),
            _ => None,
        })
    }

    /// Whether all predicates hold; without any, no process is selected.
    pub fn fits(&self, facts: &ProcessFacts<'_>) -> bool {
        !self.predicates.is_empty() && self.predicates.iter().all(|predicate| predicate.fits(facts))
    }

    /// Whether all predicates hold except those on the command line, which a process can overwrite at any time: good
    /// enough to find files, as the kernel checks again at each hit. If there are no others, they must hold too.
    pub fn may_fit(&self, facts: &ProcessFacts<'_>) -> bool {
        let mut others = self.predicates.iter().filter(|predicate| !predicate.is_line()).peekable();
        if others.peek().is_none() {
            return self.fits(facts);
        }
        others.all(|predicate| predicate.fits(facts))
    }

    pub fn uses_cmdline(&self) -> bool {
        self.predicates.iter().any(Predicate::is_line)
    }

    /// Whether processes are selected only by command line.
    pub fn is_by_line(&self) -> bool {
        !self.predicates.is_empty() && self.predicates.iter().all(Predicate::is_line)
    }

    /// Whether processes are selected by cgroup.
    pub fn is_by_cgroup(&self) -> bool {
        self.predicates.iter().any(Predicate::is_by_cgroup)
    }

    /// Whether processes in this cgroup may be selected.
    pub fn matches_cgroup(&self, belongs: &Belongs) -> bool {
        let facts = ProcessFacts { pid: 0, comm: "", exe: None, cmdline: "", belongs };
        let mut by_cgroup = self.predicates.iter().filter(|of| of.is_by_cgroup()).peekable();
        by_cgroup.peek().is_some() && by_cgroup.all(|of| of.fits(&facts))
    }
}

impl Predicate {
    fn is_line(&self) -> bool {
        matches!(self, Predicate::Cmdline(_))
    }

    /// Whether it holds.
    pub fn fits(&self, facts: &ProcessFacts<'_>) -> bool {
        let belongs = facts.belongs;
        match self {
            Predicate::Pid(pid) => facts.pid == *pid,
            Predicate::Process(name) => facts.names().any(|called| name.matches(called)),
            Predicate::Cmdline(pattern) => pattern.matches(facts.cmdline),
            Predicate::Container(_) | Predicate::Image(_) => {
                belongs.containers.iter().any(|container| self.fits_container(container))
            }
            Predicate::Unit(pattern) => belongs.cgroups().any(|cgroup| pattern.matches(cgroup)),
            Predicate::Pod(_) | Predicate::Namespace(_) => {
                belongs.pod.as_ref().is_some_and(|pod| self.fits_pod(pod))
            }
        }
    }

    fn fits_container(&self, container: &Container) -> bool {
        match self {
            Predicate::Container(pattern) => {
                pattern.as_literal().is_some_and(|id| container.has_id(id))
                    || container.name.as_ref().is_some_and(|name| pattern.matches(name))
            }
            Predicate::Image(pattern) => {
                container.image.as_ref().is_some_and(|image| is_image(pattern, image))
            }
            _ => false,
        }
    }

    fn fits_pod(&self, pod: &Pod) -> bool {
        match self {
            Predicate::Pod(pattern) => pattern.matches(&pod.name),
            Predicate::Namespace(pattern) => pattern.matches(&pod.namespace),
            _ => false,
        }
    }

    /// How the kernel evaluates it.
    pub fn test(&self) -> KernelTest<'_> {
        match self {
            Predicate::Pid(pid) => KernelTest::Pid(*pid),
            Predicate::Process(name) => KernelTest::Name(name),
            Predicate::Cmdline(pattern) => KernelTest::Cmdline(pattern),
            Predicate::Container(pattern) => {
                KernelTest::Members { begin: pattern.as_literal().filter(|id| is_id(id)) }
            }
            Predicate::Unit(pattern) => KernelTest::Cgroup(pattern),
            Predicate::Image(_) | Predicate::Pod(_) | Predicate::Namespace(_) => {
                KernelTest::Members { begin: None }
            }
        }
    }

    /// The ids that the kernel needs for [`KernelTest::Members`]: those of matching containers and pods.
    pub fn members<'a>(&self, belongs: &'a Belongs) -> Vec<&'a str> {
        let containers = belongs.containers.iter().filter(|of| self.fits_container(of)).map(|of| &of.id);
        let pods = belongs.pod.iter().filter(|pod| self.fits_pod(pod)).map(|pod| &pod.uid);
        containers.chain(pods).map(String::as_str).collect()
    }

    fn is_by_cgroup(&self) -> bool {
        matches!(self.test(), KernelTest::Cgroup(_) | KernelTest::Members { .. })
    }
}

fn is_id(text: &str) -> bool {
    (belongs::ID_DIGITS..=64).contains(&text.len())
        && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}

/// `nginx` also matches `docker.io/library/nginx:1.27`: omitted parts match anything.
fn is_image(pattern: &Pattern, image: &str) -> bool {
    let without_digest = image.split('@').next().unwrap_or(image);
    let after_slash = without_digest.rfind('/').map_or(0, |at| at + 1);
    let tag = without_digest[after_slash..].find(':').map_or(without_digest.len(), |at| after_slash + at);
    let ends = [image.len(), without_digest.len(), tag];
    let begins = std::iter::once(0).chain(image.match_indices('/').map(|(at, _)| at + 1));
    begins
        .into_iter()
        .any(|begin| ends.iter().any(|end| begin < *end && pattern.matches(&image[begin..*end])))
}

/// A command line as predicates see it: arguments separated by one space, without empty ones, of limited length.
pub fn command_line(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(CMDLINE_BYTES)];
    let mut words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let mut line = words.next().unwrap_or_default().to_vec();
    for word in words {
        line.push(b' ');
        line.extend_from_slice(word);
    }
    // A character may have been truncated.
    String::from_utf8_lossy(&line).into_owned()
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Predicate::Pid(pid) => write!(f, "with the id {pid}"),
            Predicate::Process(name) => write!(f, "named {name}"),
            Predicate::Cmdline(line) => write!(f, "with a command line like {line}"),
            Predicate::Container(name) => {
                write!(f, "in a container with the name or id {name}")
            }
            Predicate::Image(image) => write!(f, "in a container of the image {image}"),
            Predicate::Unit(unit) => write!(f, "in the unit {unit}"),
            Predicate::Pod(pod) => write!(f, "in the pod {pod}"),
            Predicate::Namespace(namespace) => write!(f, "in the namespace {namespace}"),
        }
    }
}

impl fmt::Display for ProcessSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.predicates.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(" and "))?;
        f.write_str(if self.children { ", or started by one" } else { "" })
    }
}

#[cfg(test)]
mod tests;
