//! What will be done, with every name resolved and every error found, before the kernel is asked for anything.
//!
//! A [`Plan`] comes from a configuration alone: whether the target's file exists, and which arguments its notes
//! carry, is the business of the sites that are resolved later, perhaps much later.

mod ban;
mod build;
mod carried;
mod computed_in;
mod lint;
mod log;
mod part;
mod profiles;
mod saved;
mod scope;
mod slow;

pub use ban::BanPlan;
pub use build::{plan, plan_draft};
pub use lint::lint;
pub use profiles::{profile, profiles};
pub use saved::{InconsistentPlan, SavedPlan};
pub(crate) use slow::STACK;
pub use slow::{RelatedBy, RelatedPlan, SlowPlan};

use serde::{Deserialize, Serialize};

use crate::abi::MAX_BYTES;
use crate::config::model::{
    Arg, ArgKind, ArgOf, IntType, MetricKind, Op, Operand, Pattern, Point, ReturnsBy, Selector, Settings,
    Unit,
};
use crate::config::place::Place;
pub use crate::kinds::Scale;
use crate::net::NetworkConfig;

/// Everything the later stages need.
#[derive(Debug, Clone)]
pub struct Plan {
    pub settings: Settings,
    pub targets: Vec<TargetPlan>,
    pub probes: Vec<ProbePlan>,
    pub metrics: Vec<MetricPlan>,
    /// Spans there are.
    pub spans: u32,
    /// Packet statistics, where they are asked for.
    pub network: Option<NetworkConfig>,
    /// What is likely a slip, though not wrong. One line each.
    pub warnings: Vec<String>,
}

impl Plan {
    /// What ends the span that this probe starts, or starts the one that it ends; nothing for the two ends of a call.
    pub fn other_ends(&self, probe: usize) -> impl Iterator<Item = &ProbePlan> {
        let this = self.probes[probe].span.filter(|span| span.by != Pairing::Frame);
        self.probes.iter().filter(move |other| {
            let both = this.zip(other.span);
            both.is_some_and(|(this, other)| this.number == other.number && this.end != other.end)
        })
    }
}

/// An application and the probes to set on its file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TargetPlan {
    #[serde(skip, default = "Place::none")]
    pub at: Place,
    pub name: String,
    pub selector: Selector,
    /// Indices into [`Plan::probes`].
    pub probes: Vec<usize>,
}

/// One probe, the values that are read when it is hit, and what is done with them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbePlan {
    #[serde(skip, default = "Place::none")]
    pub at: Place,
    pub target: usize,
    /// Probes of one unit are attached and detached together: those of one entry, and where there are many entries of several.
    pub unit: usize,
    /// As it is shown: `udp:block_race_winner`, `SSL_write`.
    pub name: String,
    pub point: Point,
    pub hook: Hook,
    /// How a function's return is traced; of other probes it says nothing.
    pub returns_by: ReturnsBy,
    /// Its part in a span, if it has one.
    pub span: Option<SpanPlan>,
    /// It is never taken out, whatever it costs: asked for, or because what it counts goes up and down by two probes.
    pub keep: bool,
    /// Its absence from the file is reported, but is no reason not to be ready.
    pub optional: bool,
    pub event_type: String,
    pub values: Vec<ValuePlan>,
    pub actions: Vec<ActionPlan>,
    /// The line that `verbose` logs; without a template, name and values.
    pub log: Vec<LogPart>,
    /// Which hits are kept whole.
    pub slow: Vec<SlowPlan>,
    /// What is kept of hits with slow ones of other probes.
    pub related: Option<RelatedPlan>,
    /// Whose addresses are banned.
    pub bans: Vec<BanPlan>,
    /// Why all hits must reach user space, if they must.
    pub emit: Option<String>,
}

/// Where in a function a probe is set. A USDT probe is an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    Entry,
    Return,
}

/// One end of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanPlan {
    /// Number of the span; both ends have the same.
    pub number: u32,
    pub end: SpanEnd,
    pub by: Pairing,
    /// From a function's entry to its return, and the end needs nothing of the start but its time.
    pub only_time: bool,
    /// Values that the start keeps, and whether text is among them.
    pub carried: usize,
    pub texts: bool,
    /// Of a function: something is read when it returns, which is not known before.
    pub reads_result: bool,
}

/// What is the same at both ends of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pairing {
    /// A call's place on the stack.
    Frame,
    Thread,
    /// Value 0, which both ends read.
    Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpanEnd {
    /// Keeps the time, and its first values (after the key) for the end.
    Start,
    End,
}

/// A value that is read at every site of a probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValuePlan {
    #[serde(skip, default = "Place::none")]
    pub at: Place,
    pub name: String,
    pub source: ValueSource,
    pub kind: ValueKind,
    pub unit: Unit,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueSource {
    /// Argument by position.
    Arg(usize),
    /// What lies this many bytes into the structure whose address is the argument at this position.
    Field {
        index: usize,
        offset: i32,
    },
    Pid,
    Tid,
    Cpu,
    Cgroup,
    Comm,
    /// The executable's path.
    Exe,
    Cmdline,
    /// When the probe was hit, by the kernel's clock.
    Time,
    /// What the function returns; None if that is for debug information to say.
    Retval(Option<IntType>),
    /// What lies this many bytes into the structure whose address the function returns.
    ResultField {
        offset: i32,
    },
    /// Nanoseconds since the span's start.
    Duration,
    /// What the span's start kept, by number.
    Carried(usize),
    /// The address that the start kept under this number, or what lies, at the end, this many bytes from it.
    CarriedAddress {
        number: usize,
        offset: Option<i32>,
    },
    /// The address that the function returns to.
    Caller,
    /// The same, at its return too.
    ReturnAddress,
    /// The addresses of [`ValueKind::Stack`].
    Stack,
    /// Which of the functions that the pattern names it is.
    Function,
}

/// What a value is: as in the configuration, with the length of a `string_len` being another value of the probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueKind {
    Arg(ArgKind),
    /// Text with its length in the value with this index.
    StrLen {
        len: usize,
        max: u32,
    },
    /// The thread's name.
    Comm,
    /// The number of a function's name.
    Function,
    /// The number of a cgroup, of which this is shown.
    Cgroup(CgroupName),
    /// The number of a text that the kernel keeps of a process.
    ProcessText,
    /// Addresses of code: where the thread is, and what its calls return to.
    Stack,
}

/// What is shown of a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupName {
    Path,
    Container,
    ContainerId,
    Image,
    Pod,
    Namespace,
    Unit,
}

impl ValueSource {
    /// Whether the value means something only when the function has done its work.
    pub(crate) fn is_result(&self) -> bool {
        matches!(
            self,
            ValueSource::Retval(_) | ValueSource::ResultField { .. } | ValueSource::CarriedAddress { .. }
        )
    }

    /// The argument, or what it leads to, when this is what it is read from.
    pub(crate) fn of(arg: &Arg, of: ArgOf) -> Self {
        match (of, arg.offset) {
            (ArgOf::Call(index), Some(offset)) => ValueSource::Field { index, offset },
            (ArgOf::Call(index), None) => ValueSource::Arg(index),
            (ArgOf::Result, Some(offset)) => ValueSource::ResultField { offset },
            (ArgOf::Result, None) => ValueSource::Retval(match arg.kind {
                ArgKind::Int(asked) => asked,
                ArgKind::Bool => Some(IntType { bytes: 1, signed: false }),
                _ => Some(IntType { bytes: 8, signed: false }),
            }),
        }
    }
}

impl ValueKind {
    /// Whether the value is read as bytes from the application's memory, else it is an integer.
    pub fn is_text(&self) -> bool {
        self.max_bytes() > 0
    }

    /// Whether the value is an address in the application that is shown by name, which only user space can tell.
    pub fn is_symbol(&self) -> bool {
        *self == ValueKind::Arg(ArgKind::Symbol)
    }

    /// Whether it is a number that nothing can be compared with: labels show what it stands for.
    pub(crate) fn is_only_shown(&self) -> bool {
        matches!(self, ValueKind::Function | ValueKind::ProcessText)
    }

    /// Whether its 64 bits have no sign, so that it can be 2^63 and more, which no sum of numbers with a sign can hold.
    pub fn is_unsigned_word(&self) -> bool {
        *self == ValueKind::Arg(ArgKind::Int(Some(IntType { bytes: 8, signed: false })))
    }

    /// Whether it is text that ends at a NUL, if there is one within its length.
    pub fn is_characters(&self) -> bool {
        matches!(
            self,
            ValueKind::Arg(ArgKind::Str { .. } | ArgKind::StrLen { .. })
                | ValueKind::StrLen { .. }
                | ValueKind::Comm
        )
    }

    /// The number that its 64 bits are.
    pub fn integer(&self, word: i64) -> i128 {
        if self.is_unsigned_word() { i128::from(word as u64) } else { i128::from(word) }
    }

    /// Whether patterns and conditions mean the text that is shown, which is not how the value lies in memory.
    pub fn is_compared_as_displayed(&self) -> bool {
        matches!(
            self,
            ValueKind::Arg(
                ArgKind::Hex { .. } | ArgKind::Ipv4 | ArgKind::Ipv6 | ArgKind::SockAddr | ArgKind::Symbol
            )
        )
    }

    /// Most bytes that the value can have; 0 for integers.
    pub fn max_bytes(&self) -> u32 {
        match self {
            ValueKind::Arg(ArgKind::Str { max } | ArgKind::StrLen { max, .. })
            | ValueKind::StrLen { max, .. } => *max,
            ValueKind::Arg(ArgKind::Hex { len, .. }) => *len,
            ValueKind::Arg(ArgKind::Ipv4) => 4,
            ValueKind::Arg(ArgKind::Ipv6) | ValueKind::Comm => 16,
            // A sockaddr_in6; of a shorter one the rest is ignored.
            ValueKind::Arg(ArgKind::SockAddr) => 28,
            ValueKind::Stack => MAX_BYTES as u32,
            ValueKind::Function
            | ValueKind::Cgroup(_)
            | ValueKind::ProcessText
            | ValueKind::Arg(ArgKind::Int(_) | ArgKind::Bool | ArgKind::Symbol) => 0,
        }
    }
}

/// One metric as the scrape shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricPlan {
    pub name: String,
    pub help: String,
    pub kind: MetricKind,
    /// A histogram that is a native one, too: nothing is negative in it.
    pub native: bool,
    /// In the order shown; every action that feeds the metric has a [`LabelPlan`] for each.
    pub labels: Vec<String>,
}

/// The name of a label that tells slots apart and no series: several runs of slots add up to one series.
pub const HIDDEN: &str = "";

impl MetricPlan {
    /// The labels that series show.
    pub fn displayed_labels(&self) -> impl Iterator<Item = &str> {
        self.labels.iter().map(String::as_str).filter(|name| *name != HIDDEN)
    }
}

/// One metric's update by one probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionPlan {
    #[serde(skip, default = "Place::none")]
    pub at: Place,
    /// Index into [`Plan::metrics`].
    pub metric: usize,
    /// Index into the probe's values; `None` counts.
    pub value: Option<usize>,
    pub scale: Scale,
    /// A value that is negative, or without a sign 2^63 and more, is refused and told: the metric cannot hold it.
    pub refuses_negative: bool,
    pub when: Vec<ConditionPlan>,
    pub labels: Vec<LabelPlan>,
    pub computed_in: ComputedIn,
}

/// Where a metric is computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ComputedIn {
    /// It equals the number of hits: nothing to compute.
    Hits,
    Kernel,
    /// From events on the ring buffer, because of this.
    Ring(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConditionPlan {
    pub value: usize,
    pub op: Op,
    pub with: Operand,
}

/// One label of one action.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum LabelPlan {
    Const(String),
    From {
        value: usize,
        mapping: Vec<(Pattern, String)>,
        default: Option<String>,
        /// Distinct free values before `other`.
        limit: u32,
    },
}

/// A piece of a log line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum LogPart {
    Text(String),
    /// Index into the probe's values.
    Value(usize),
    /// A value as a label shows it.
    Label(LabelPlan),
}
