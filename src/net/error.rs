//! Errors that prevent packet counting.

use std::error::Error;
use std::{fmt, io};

/// Why packet counting cannot start. Its text is a sentence for the operator.
#[derive(Debug)]
#[non_exhaustive]
pub enum NetworkError {
    /// The kernel did not create the tables of counters, talkers and flows, which need this many bytes.
    Tables { bytes: u64, source: libbpf_rs::Error },
    /// The kernel did not create the tables of the blocklist.
    Blocklist(libbpf_rs::Error),
    /// The event descriptor that stops the threads could not be created.
    Eventfd(io::Error),
    /// The programs on the network stack's tracepoints could not be attached.
    Stack(libbpf_rs::Error),
    /// The programs on packets of sockets could not be attached.
    Attribution(libbpf_rs::Error),
    /// A thread could not be started.
    Thread(io::Error),
    /// Counting could not start in the exporter's own network namespace.
    Begin(BeginError),
}

/// Why counting could not start in a network namespace.
#[derive(Debug)]
#[non_exhaustive]
pub enum BeginError {
    /// The kernel does not report changes of interfaces.
    Changes(io::Error),
    /// The kernel does not list the interfaces.
    Interfaces(io::Error),
    /// The kernel did not create the tables of the packet programs.
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
