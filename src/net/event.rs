//! Events that are logged.

use std::fmt;

use super::hook::Hook;
use super::refusal::AttachRefusal;

/// An event that is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An interface is counted; `hook` is `None` if only sent packets are. `reason` explains the choice of the hook.
    Attached { interface: String, hook: Option<Hook>, reason: String },
    /// One direction of an interface is not counted.
    Refused { interface: String, direction: &'static str, refusal: AttachRefusal },
    /// A program that was detached by force is attached again.
    Restored { interface: String, direction: &'static str },
    /// A program that was attached later and ran before ours runs after it again.
    Moved { interface: String, direction: &'static str, before: String },
    /// Another program insists on running before ours.
    Behind { interface: String, direction: &'static str, before: String },
    /// A program is attached but does not see what the kernel counts.
    Hidden { interface: String, direction: &'static str, packets: u64 },
    /// It sees it again.
    Seen { interface: String, direction: &'static str },
    /// An interface was renamed.
    Renamed { from: String, to: String },
    /// An interface and its counters no longer exist.
    Gone { interface: String },
    /// The interface is no longer configured; its counters are removed.
    Unwanted { interface: String },
    /// An exact name without an interface.
    Missing { interface: String },
    /// A configured network namespace does not exist, or no longer, and why.
    Absent { space: String, error: String },
    /// The kernel does not list the interfaces.
    Unlisted { error: String },
    /// There is no memory for the counters of an interface, or of all new ones.
    NoCounters { interface: Option<String>, error: String },
}

impl Event {
    /// Whether it reports a deviation from the configuration.
    pub fn is_problem(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::Restored { .. }
                | Self::Moved { .. }
                | Self::Behind { .. }
                | Self::Hidden { .. }
                | Self::Missing { .. }
                | Self::Absent { .. }
                | Self::Unlisted { .. }
                | Self::NoCounters { .. }
        )
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attached { interface, hook: Some(hook), reason } => {
                write!(f, "{interface}: counting packets, {} ({reason})", hook.phrase())
            }
            Self::Attached { interface, hook: None, .. } => {
                write!(f, "{interface}: counting sent packets only")
            }
            Self::Refused { refusal, .. } => refusal.fmt(f),
            Self::Restored { interface, direction } => write!(
                f,
                "{interface}: the {direction} program was detached by another program and is attached again; \
                 packets in between are not counted"
            ),
            Self::Moved { interface, direction, before } => write!(
                f,
                "{interface}: the {direction} program is ahead of {before} now, which used to run first; packets \
                 that it consumed until then are not counted"
            ),
            Self::Behind { interface, direction, before } => write!(
                f,
                "{interface}: {before} is ahead of the {direction} program again, and is left there; packets that \
                 it consumes are not counted"
            ),
            Self::Hidden { interface, direction, packets } => write!(
                f,
                "{interface}: the {direction} program is attached but missed {packets} packets that the \
                 kernel counted; another program consumes them first (see `bpftool net show dev {interface}`), \
                 or they bypass this hook"
            ),
            Self::Seen { interface, direction } => {
                write!(f, "{interface}: the {direction} program sees all packets again")
            }
            Self::Renamed { from, to } => write!(f, "{from}: interface renamed to {to}"),
            Self::Gone { interface } => write!(f, "{interface}: interface removed"),
            Self::Unwanted { interface } => write!(f, "{interface}: no longer counted"),
            Self::Missing { interface } => {
                write!(f, "{interface}: no such interface (yet); it is attached when it appears")
            }
            Self::Absent { space, error } => {
                write!(f, "{space}: {error}; its interfaces are attached when it appears")
            }
            Self::Unlisted { error } => write!(f, "failed to list the interfaces: {error}"),
            Self::NoCounters { interface: Some(interface), error } => {
                write!(f, "{interface}: failed to create counters: {error}; its packets are not counted")
            }
            Self::NoCounters { interface: None, error } => {
                write!(f, "failed to create counters for new interfaces: {error}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_interfaces_without_counters() {
        let text = |interface: Option<&str>| {
            let interface = interface.map(str::to_string);
            Event::NoCounters { interface, error: "out of memory".to_string() }.to_string()
        };
        assert_eq!(
            text(Some("eth0")),
            "eth0: failed to create counters: out of memory; its packets are not counted"
        );
        assert_eq!(text(None), "failed to create counters for new interfaces: out of memory");
    }
}
