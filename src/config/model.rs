//! The configuration after its syntax has been checked and before anything has been resolved.
//!
//! Everything here is plain data. Names are unresolved (an argument that a metric refers to may not exist, a profile
//! may be unknown): resolving them is the job of the plan, which reports errors at the [`Place`] that every part
//! carries.

mod metric;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::metric::{Condition, Label, LabelPattern, LabelValue, Metric, Op, Operand};
use super::endpoint::{Listen, Web};
use super::place::Place;
use crate::http_client::Url;
pub use crate::kinds::{GaugeKind, MetricKind};
pub use crate::selectors::Selector;
use crate::webhook::shown;

/// The whole configuration, merged from file, environment and flags.
#[derive(Debug, Clone)]
pub struct Config {
    pub settings: Settings,
    pub targets: Vec<Target>,
    /// The value of `network:`, undecoded: its decoder reads it with [`super::Node`] and [`super::Fields`].
    pub network: Option<(Place, super::tree::Tree)>,
}

/// Settings that do not belong to a target.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The value of the label `node` on every measured series.
    pub node_name: String,
    /// The address that both endpoints listen on, unless overridden by [`Settings::listen`].
    pub bind: IpAddr,
    pub metrics_port: u16,
    pub health_port: u16,
    /// Log every event on one line.
    pub verbose: bool,
    pub log_level: LogLevel,
    pub log_file: Option<PathBuf>,
    pub listen: Listen,
    pub web: Web,
    pub limits: Limits,
    pub attach: AttachMode,
    pub keep_privileges: KeepPrivileges,
    /// Where programs, links and maps are pinned when the exporter ends; `None` if they are not.
    pub pinned: Option<PathBuf>,
    pub slow_events: SlowEvents,
}

/// Where and how events of metrics with [`Metric::slow`] are stored.
#[derive(Debug, Clone)]
pub struct SlowEvents {
    pub file: PathBuf,
    /// The maximum number of events.
    pub rows: u32,
    /// The maximum size of the file.
    pub bytes: u64,
    pub age: Duration,
    /// [`Metric::slow`] by histogram name, for histograms that do not set it themselves.
    pub metrics: Vec<(Named, Slow)>,
    /// The webhook that also receives the events.
    pub webhook: Option<WebhookSettings>,
}

/// A receiver of slow events. The secret is never printed: `Debug` hides it.
#[derive(Clone)]
pub struct WebhookSettings {
    pub at: Place,
    pub(crate) url: Url,
    pub secret: String,
    /// The authority that issues the receiver's certificate; the system's authorities if `None`.
    pub authority: Option<PathBuf>,
}

impl WebhookSettings {
    /// Formats the non-secret part of the URL.
    pub(crate) fn shown(&self) -> String {
        shown(&self.url)
    }
}

impl fmt::Debug for WebhookSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSettings").field("url", &self.shown()).finish_non_exhaustive()
    }
}

/// Which hits of a histogram are slow, and what is recorded of them.
#[derive(Debug, Clone)]
pub struct Slow {
    pub at: Place,
    /// Hits with a value above this, in the metric's unit; all hits if `None`.
    pub over: Option<f64>,
    /// Of these, only this many per hour, those with the largest values.
    pub worst: Option<u32>,
    /// Arguments and built-in values to record; `None` for all arguments and the process.
    pub fields: Option<Vec<Named>>,
    /// The argument by which related events of other probes are matched.
    pub key: Option<Named>,
    /// The probes of related events, which belong to the same target.
    pub with: Vec<(Place, Point)>,
    /// Whether the call stack is recorded.
    pub stack: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
}

/// Resource limits of the exporter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// The size of the ring buffer in bytes, a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// How long a batch of events may grow before it is drained, in milliseconds.
    pub ring_poll_ms: u32,
    /// The default maximum number of values per label.
    pub label_values: u32,
    /// The maximum number of attached probe sites.
    pub sites: u32,
    /// The maximum number of open spans and calls.
    pub starts: u32,
    /// How much of a target's CPU time tracing may take before probes are detached; None if they never are.
    pub overhead: Option<Overhead>,
}

/// See [`Limits::overhead`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// A fraction of the target's CPU time.
    pub share: f64,
    /// The default, not an explicit setting: probes are detached only if the overhead is sustained and significant.
    pub is_default: bool,
}

/// How uprobes are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// One uprobe_multi link per file if the kernel supports it, otherwise one perf event per site.
    Auto,
    Multi,
    Perf,
}

/// The privileges that the exporter retains once everything is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepPrivileges {
    /// Those needed to attach again.
    Needed,
    /// None: replacing a file, or adding a probe by a reload, requires a restart.
    None,
}

/// An application to trace.
#[derive(Debug, Clone)]
pub struct Target {
    pub at: Place,
    pub name: String,
    pub selector: Selector,
    /// The program may be absent.
    pub optional: bool,
    /// Constant labels on every series of this target.
    pub labels: Vec<(String, String)>,
    /// Whether some labels could not be read; the metrics are then not compared with those of other targets.
    pub unread_labels: bool,
    pub profiles: Vec<Named>,
    pub probes: Vec<Probe>,
}

/// A name and where it was written.
#[derive(Debug, Clone)]
pub struct Named {
    pub at: Place,
    pub name: String,
}

/// An entry of `probes:`.
#[derive(Debug, Clone)]
pub struct Probe {
    pub at: Place,
    pub on: On,
    pub args: Vec<Arg>,
    /// The type of the return value; if `None`, 64 bits, signed.
    pub returns: Option<IntType>,
    /// How returns of the function are traced.
    pub returns_by: ReturnsBy,
    /// Never detach the probe, whatever its overhead.
    pub keep: bool,
    pub metrics: Vec<Metric>,
    /// Bans for hits of the probe.
    pub bans: Vec<Ban>,
    /// Template of the line logged by `verbose`: text with `{argument}`, whose braces are known to match; `{{` and `}}`
    /// are literal braces.
    pub log: Option<String>,
    /// Prefix under which the event is counted in `fibre_exporter_events_processed_total{event_type}`; defaults to the
    /// probe's name.
    pub event_type: Option<String>,
    /// Whether it comes from a profile: if the file lacks the probe, that is reported but not an error.
    pub from_profile: bool,
    pub unread: Unread,
}

/// A ban for hits of a probe. Durations are as written, with their places.
#[derive(Debug, Clone)]
pub struct Ban {
    pub at: Place,
    /// The argument that holds the address.
    pub address: Named,
    pub when: Vec<Condition>,
    /// The number of hits from an address, within `within`.
    pub after: u32,
    pub within: Option<Named>,
    pub ttl: Option<Named>,
    pub max_ttl: Option<Named>,
    pub reason: Option<String>,
    /// Whether the address is put on the blocklist, rather than only reported.
    pub enforce: bool,
}

/// The parts of a probe that could not be read. Their errors have been reported; a name that may belong to one of them
/// is not reported as unknown. Without errors, nothing is unread.
#[derive(Debug, Clone, Default)]
pub struct Unread {
    /// The probe's `on:`.
    pub on: bool,
    /// Names of invalid arguments.
    pub args: Vec<String>,
    /// The argument names could not be read either.
    pub all_args: bool,
    pub metrics: bool,
}

/// How returns of a function are traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ReturnsBy {
    /// By probes on every instruction that leaves the function.
    #[default]
    Exits,
    /// By replacing the return address on the stack, which is faster but crashes a program that unwinds through it.
    Trampoline,
}

/// What triggers a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum On {
    /// `usdt:provider:name`.
    Usdt(Point),
    /// `function: name`, a glob (`SSL_*`), `name+0x10` or a file offset (`0x1234`). Traces the entry, and also the
    /// return if a metric uses `retval` or `duration`.
    Function(String),
    /// `span: metric` with `from`, `to` and `by`.
    Span { from: Point, to: Point, by: SpanKey },
}

/// One end of a span, or the point of a USDT probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Point {
    Usdt { provider: String, name: String },
    Function(String),
}

/// How the end of a span is matched with its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpanKey {
    Thread,
    /// By an argument that both ends have.
    Arg(String),
}

/// A named argument of a probe.
#[derive(Debug, Clone)]
pub struct Arg {
    pub at: Place,
    pub name: String,
    /// May differ between the ends of a span.
    pub of: ArgOf,
    /// The index at the end of a span, if it differs from `index`.
    pub to_index: Option<usize>,
    /// Whether the memory that the argument points to is read on return, rather than on entry.
    pub at_return: bool,
    /// The argument is the address of a structure, and the value is at this byte offset in it.
    pub offset: Option<i32>,
    pub kind: ArgKind,
    pub unit: Unit,
}

/// The value that a named argument refers to, or its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArgOf {
    /// The argument at this index, from 0.
    Call(usize),
    /// The return value of the function.
    Result,
}

/// How the bytes of an argument are interpreted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArgKind {
    /// An integer. `None`: width and sign are those in the note (functions: 64 bits, signed).
    Int(Option<IntType>),
    Bool,
    /// A C string, truncated to `max` bytes.
    Str {
        max: u32,
    },
    /// A pointer to text whose length is another argument or the return value.
    StrLen {
        length: ArgOf,
        max: u32,
    },
    /// `len` bytes, displayed in hexadecimal; `reverse` is for block hashes.
    Hex {
        len: u32,
        reverse: bool,
    },
    /// An address in memory, in network byte order.
    Ipv4,
    Ipv6,
    /// A `struct sockaddr`.
    SockAddr,
    /// A code address, displayed as the function's name.
    Symbol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntType {
    /// 1, 2, 4 or 8.
    pub bytes: u8,
    pub signed: bool,
}

/// The unit of an argument; metrics use seconds and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Unit {
    #[default]
    None,
    Nanoseconds,
    Microseconds,
    Milliseconds,
    Seconds,
    Bytes,
    Kibibytes,
    Mebibytes,
    Pages,
}

/// Values that need no argument; `retval` and `duration` are only available on return or at the end of a span.
pub const BUILT_INS: &[&str] =
    &["pid", "tid", "comm", "cgroup", "cpu", "retval", "duration", "function", "caller"];
