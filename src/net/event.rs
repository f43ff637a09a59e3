//! What is worth a line in the log.

use std::fmt;

use super::hook::Hook;
use super::refusal::Refusal;

/// Something worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An interface is counted on; `hook` is `None` if only what leaves it is. Why that hook.
    Attached { interface: String, hook: Option<Hook>, reason: String },
    /// One direction of an interface is not counted.
    Refused { interface: String, direction: &'static str, refusal: Refusal },
    /// A program was taken away by force, and is there again.
    Restored { interface: String, direction: &'static str },
    /// A program that came later ran before ours, and runs after it now.
    Moved { interface: String, direction: &'static str, before: String },
    /// A program is attached and does not see what the kernel counts.
    Hidden { interface: String, direction: &'static str, packets: u64 },
    /// It sees it again.
    Seen { interface: String, direction: &'static str },
    /// An interface has another name.
    Renamed { from: String, to: String },
    /// An interface is gone, and its counts with it.
    Gone { interface: String },
    /// The configuration does not name the interface any more, and its counts are gone.
    Unwanted { interface: String },
    /// A name of the configuration that no interface has yet.
    Missing { interface: String },
    /// A network namespace of the configuration that there is not, or not any more; and why not.
    Absent { space: String, error: String },
    /// The kernel does not list the interfaces.
    Unlisted { error: String },
    /// There is no memory for an interface's counters, or for those of all that are new.
    NoCounters { interface: Option<String>, error: String },
}

impl Event {
    /// Whether something is not as the configuration wants it.
    pub fn is_problem(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::Restored { .. }
                | Self::Moved { .. }
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
                "{interface}: {before}, ran before the {direction} program and is behind it now; packets that \
                 it consumed before are not counted"
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
    fn it_is_told_what_is_not_counted_without_counters() {
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
