//! What will be done, with every name resolved and every error found, before anything is requested from the kernel.
//!
//! A [`Plan`] depends only on a configuration: whether the target's file exists, and which arguments its notes
//! describe, is determined later when sites are resolved, perhaps much later.

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
    Arg, ArgKind, ArgOf, IntType, LabelPattern, MetricKind, Op, Operand, Point, ReturnsBy, Selector,
    Settings, Unit,
};
use crate::config::place::Place;
pub use crate::kinds::Scale;
use crate::net::NetworkConfig;

/// Everything that the later stages need.
#[derive(Debug, Clone)]
pub struct Plan {
    pub settings: Settings,
    pub targets: Vec<TargetPlan>,
    pub probes: Vec<ProbePlan>,
    pub metrics: Vec<MetricPlan>,
    /// Number of spans.
    pub spans: u32,
    /// Packet statistics, if configured.
    pub network: Option<NetworkConfig>,
    /// Likely mistakes that are not errors. One line each.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The ends of the span that this probe starts, or the starts of the one that it ends; nothing for the two ends of
    /// a call.
    pub fn other_ends(&self, probe: usize) -> impl Iterator<Item = &ProbePlan> {
        let this = self.probes[probe].span.filter(|span| span.by != Pairing::Frame);
        self.probes.iter().filter(move |other| {
            let both = this.zip(other.span);
            both.is_some_and(|(this, other)| this.number == other.number && this.end != other.end)
        })
    }
}

/// An application and the probes for its file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TargetPlan {
    #[serde(skip, default = "Place::none")]
    pub at: Place,
    pub name: String,
    pub selector: Selector,
    /// The program may be absent.
    #[serde(default)]
    pub optional: bool,
    /// Indices into [`Plan::probes`].
    pub probes: Vec<usize>,
}

/// One probe, the values that are read when it is hit, and how they are used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbePlan {
    #[serde(skip, default = "Place::none")]
    pub at: Place,
    pub target: usize,
    /// Probes of one unit are attached and detached together: those of one entry, or of several where there are many
    /// entries.
    pub unit: usize,
    /// As displayed: `udp:block_race_winner`, `SSL_write`.
    pub name: String,
    pub point: Point,
    pub hook: ProbeHook,
    /// How a function's return is traced; meaningless for other probes.
    pub returns_by: ReturnsBy,
    /// Its part in a span, if it has one.
    pub span: Option<SpanPlan>,
    /// Never shed, whatever it costs: configured so, or because its metric is raised and lowered by two probes.
    pub keep: bool,
    /// Its absence from the file is reported, but does not prevent readiness.
    pub optional: bool,
    pub event_type: String,
    pub values: Vec<ValuePlan>,
    pub actions: Vec<ActionPlan>,
    /// The line that `verbose` logs; without a template, name and values.
    pub log: Vec<LogPart>,
    /// Which hits are recorded as slow events.
    pub slow: Vec<SlowPlan>,
    /// What is recorded of hits that belong to slow ones of other probes.
    pub related: Option<RelatedPlan>,
    /// Which addresses are banned.
    pub bans: Vec<BanPlan>,
    /// Why all hits must be sent to user space, if they must.
    pub emit: Option<String>,
}

/// Where in a function a probe is placed. A USDT probe is an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeHook {
    Entry,
    Return,
}

/// One end of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanPlan {
    /// Number of the span; the same at both ends.
    pub number: u32,
    pub end: SpanEnd,
    pub by: Pairing,
    /// The span is a function's call, and the end needs only the time of its start.
    pub only_time: bool,
    /// Number of carried values, and whether text is among them.
    pub carried: usize,
    pub texts: bool,
    /// For a function: something is read at its return that is not known earlier.
    pub reads_result: bool,
}

/// What the two ends of a span have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pairing {
    /// The call's place on the stack.
    Frame,
    Thread,
    /// Value 0, which both ends read.
    Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpanEnd {
    /// Stores the time, and its first values (after the key) for the end.
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
    /// The argument at this position.
    Arg(usize),
    /// The data at this offset in the structure that the argument at this position points to.
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
    /// When the probe was hit, in the kernel's clock.
    Time,
    /// What the function returns; `None` if debug information must tell its type.
    Retval(Option<IntType>),
    /// The data at this offset in the structure that the function returns a pointer to.
    ResultField {
        offset: i32,
    },
    /// Nanoseconds since the span's start.
    Duration,
    /// A value that the span's start carried, by index.
    Carried(usize),
    /// The address that the start carried under this number, or the data at this offset from it, read at the end.
    CarriedAddress {
        number: usize,
        offset: Option<i32>,
    },
    /// The function's return address.
    Caller,
    /// The same, available also at the return.
    ReturnAddress,
    /// The addresses of [`ValueKind::Stack`].
    Stack,
    /// Which of the functions matching the pattern it is.
    Function,
}

/// What a value is: as in the configuration, but the length of a `string_len` is another value of the probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueKind {
    Arg(ArgKind),
    /// Text whose length is the value with this index.
    StrLen {
        len: usize,
        max: u32,
    },
    /// The thread's name.
    Comm,
    /// The number of a function's name.
    Function,
    /// The number of a cgroup, shown as this.
    Cgroup(CgroupName),
    /// The number of a process text that the kernel stores.
    ProcessText,
    /// Code addresses: the thread's position, and the return addresses of its calls.
    Stack,
}

/// What is shown for a cgroup.
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
    /// Whether the value is meaningful only after the function has done its work.
    pub(crate) fn is_result(&self) -> bool {
        matches!(
            self,
            ValueSource::Retval(_) | ValueSource::ResultField { .. } | ValueSource::CarriedAddress { .. }
        )
    }

    /// The source of an argument, or of what it points to, that is read from `of`.
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
    /// Whether the value is read as bytes from the application's memory; otherwise it is an integer.
    pub fn is_text(&self) -> bool {
        self.max_bytes() > 0
    }

    /// Whether the value is an address in the application that is shown by name, which only user space can resolve.
    pub fn is_symbol(&self) -> bool {
        *self == ValueKind::Arg(ArgKind::Symbol)
    }

    /// Whether it is a number that cannot be compared with anything: labels show what it stands for.
    pub(crate) fn is_only_shown(&self) -> bool {
        matches!(self, ValueKind::Function | ValueKind::ProcessText)
    }

    /// Whether its 64 bits are unsigned, so that it can be 2^63 or more, which no sum of signed numbers can hold.
    pub fn is_unsigned_word(&self) -> bool {
        *self == ValueKind::Arg(ArgKind::Int(Some(IntType { bytes: 8, signed: false })))
    }

    /// Whether it is text that ends at the first NUL within its length, if any.
    pub fn is_characters(&self) -> bool {
        matches!(
            self,
            ValueKind::Arg(ArgKind::Str { .. } | ArgKind::StrLen { .. })
                | ValueKind::StrLen { .. }
                | ValueKind::Comm
        )
    }

    /// The number in its 64 bits.
    pub fn integer(&self, word: i64) -> i128 {
        if self.is_unsigned_word() { i128::from(word as u64) } else { i128::from(word) }
    }

    /// Whether patterns and conditions apply to the displayed text, which differs from the value in memory.
    pub fn is_compared_as_displayed(&self) -> bool {
        matches!(
            self,
            ValueKind::Arg(
                ArgKind::Hex { .. } | ArgKind::Ipv4 | ArgKind::Ipv6 | ArgKind::SockAddr | ArgKind::Symbol
            )
        )
    }

    /// The maximum length of the value in bytes; 0 for integers.
    pub fn max_bytes(&self) -> u32 {
        match self {
            ValueKind::Arg(ArgKind::Str { max } | ArgKind::StrLen { max, .. })
            | ValueKind::StrLen { max, .. } => *max,
            ValueKind::Arg(ArgKind::Hex { len, .. }) => *len,
            ValueKind::Arg(ArgKind::Ipv4) => 4,
            ValueKind::Arg(ArgKind::Ipv6) | ValueKind::Comm => 16,
            // A sockaddr_in6; for a shorter one, the rest is ignored.
            ValueKind::Arg(ArgKind::SockAddr) => 28,
            ValueKind::Stack => MAX_BYTES as u32,
            ValueKind::Function
            | ValueKind::Cgroup(_)
            | ValueKind::ProcessText
            | ValueKind::Arg(ArgKind::Int(_) | ArgKind::Bool | ArgKind::Symbol) => 0,
        }
    }
}

/// One metric as exposed by a scrape.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricPlan {
    pub name: String,
    pub help: String,
    pub kind: MetricKind,
    /// A histogram that is also exposed as a native one: it rejects negative values.
    pub native: bool,
    /// In display order; every action that feeds the metric has a [`LabelPlan`] for each.
    pub labels: Vec<String>,
}

/// The name of a label that tells slots apart but not series: several runs of slots add up to one series.
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
    /// Negative values, or unsigned ones of 2^63 and more, are rejected and reported: the metric cannot hold them.
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
    /// From events on the ring buffer, for this reason.
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
        mapping: Vec<(LabelPattern, String)>,
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
