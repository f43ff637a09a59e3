//! Why nothing can be counted at all.

use std::error::Error;
use std::{fmt, io};

/// Why the packet counters cannot start. Its text is a sentence for the operator.
#[derive(Debug)]
#[non_exhaustive]
pub enum NetworkError {
    /// The kernel does not create the tables of counters, talkers and flows, which take this many bytes.
    Tables { bytes: u64, source: libbpf_rs::Error },
    /// The kernel does not create the tables of the blocklist.
    Blocklist(libbpf_rs::Error),
    /// There is no descriptor by which the threads are stopped.
    Eventfd(io::Error),
    /// The programs on the network stack's tracepoints are not attached.
    Stack(libbpf_rs::Error),
    /// The programs on the sockets' packets are not attached.
    Attribution(libbpf_rs::Error),
    /// The kernel starts no thread.
    Thread(io::Error),
    /// The exporter's own network namespace cannot be counted in.
    Begin(BeginError),
}

/// Why counting does not begin in a network namespace.
#[derive(Debug)]
#[non_exhaustive]
pub enum BeginError {
    /// The kernel does not report changes of interfaces.
    Changes(io::Error),
    /// The kernel does not list the interfaces.
    Interfaces(io::Error),
    /// The kernel does not create the tables of the packet programs.
    Programs(libbpf_rs::Error),
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tables { bytes, source } => write!(
                f,
                "failed to create the tables of counters, talkers and flows ({bytes} bytes of kernel memory): {source:#}; \
                 lower network.count.talkers.entries and flows.entries, or run with CAP_BPF"
            ),
            Self::Blocklist(source) => write!(
                f,
                "failed to create the tables of network.block: {source:#}; list fewer entries, or run with CAP_BPF"
            ),
            Self::Eventfd(source) => write!(f, "failed to create an eventfd: {source}"),
            Self::Stack(source) => write!(
                f,
                "failed to attach the programs for network.count.drop_reasons and tcp: {source:#}; they need CAP_BPF and \
                 CAP_PERFMON"
            ),
            Self::Attribution(source) => write!(
                f,
                "failed to attach the programs for network.count.cgroups, processes and dns: {source:#}; they need CAP_BPF, \
                 CAP_NET_ADMIN and CAP_PERFMON, and a mounted cgroup2 file system"
            ),
            Self::Thread(source) => write!(f, "failed to start a thread: {source}"),
            Self::Begin(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for BeginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changes(source) => write!(f, "failed to subscribe to interface changes: {source}"),
            Self::Interfaces(source) => write!(f, "failed to list the interfaces: {source}"),
            Self::Programs(source) => {
                write!(f, "failed to create the tables of the packet programs: {source:#}")
            }
        }
    }
}

impl Error for NetworkError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Tables { source, .. }
            | Self::Stack(source)
            | Self::Attribution(source)
            | Self::Blocklist(source) => Some(source),
            Self::Eventfd(source) | Self::Thread(source) => Some(source),
            Self::Begin(error) => error.source(),
        }
    }
}

impl Error for BeginError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Changes(source) | Self::Interfaces(source) => Some(source),
            Self::Programs(source) => Some(source),
        }
    }
}
