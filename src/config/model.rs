//! What a configuration says, after its shape has been checked and before anything has been looked up.
//!
//! Everything here is plain data. Names are still names (an argument that a metric mentions may not exist,
//! a profile may be unknown): resolving them is the plan's work, which reports against the [`Place`] that
//! every part carries.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::endpoint::{Listen, Web};
use super::place::Place;
use crate::http_client::Url;
pub use crate::kinds::{GaugeKind, MetricKind};
pub use crate::selectors::Selector;
use crate::webhook::shown;

/// A whole configuration: file, environment and flags merged.
#[derive(Debug, Clone)]
pub struct Config {
    pub settings: Settings,
    pub targets: Vec<Target>,
    /// What stands behind `network:`, undecoded: its decoder reads it with [`super::Node`] and
    /// [`super::Fields`].
    pub network: Option<(Place, super::tree::Tree)>,
}

/// What is not about a target.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The value of the label `node` on every measured series.
    pub node_name: String,
    /// Address that both endpoints listen on, unless [`Settings::listen`] says otherwise.
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
    /// Where programs, links and maps stay when the exporter ends; `None`: nowhere.
    pub pinned: Option<PathBuf>,
    pub slow_events: SlowEvents,
}

/// Where events of metrics with [`Metric::slow`] are kept.
#[derive(Debug, Clone)]
pub struct SlowEvents {
    pub file: PathBuf,
    /// Most events.
    pub rows: u32,
    /// Largest size of the file.
    pub bytes: u64,
    pub age: Duration,
    /// By the name of a histogram, what [`Metric::slow`] is where it is not written there.
    pub metrics: Vec<(Named, Slow)>,
    /// Who is told of them, too.
    pub webhook: Option<WebhookSettings>,
}

/// Who is told of slow events. The secret is never printed: `Debug` hides it.
#[derive(Clone)]
pub struct WebhookSettings {
    pub at: Place,
    pub(crate) url: Url,
    pub secret: String,
    /// Who issues the receiver's certificate; if there is nobody, all authorities that the system trusts.
    pub authority: Option<PathBuf>,
}

impl WebhookSettings {
    /// The URL, as far as it is no secret.
    pub(crate) fn shown(&self) -> String {
        shown(&self.url)
    }
}

impl fmt::Debug for WebhookSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSettings").field("url", &self.shown()).finish_non_exhaustive()
    }
}

/// Which hits a histogram takes for slow, and what is kept of them.
#[derive(Debug, Clone)]
pub struct Slow {
    pub at: Place,
    /// Those whose value is above this, in the metric's unit; all, if it is not said.
    pub over: Option<f64>,
    /// Of these, so many of each hour, the largest.
    pub worst: Option<u32>,
    /// Arguments and built-in values; `None`: all arguments, and the process.
    pub fields: Option<Vec<Named>>,
    /// The argument that events of other probes must have in common with it.
    pub key: Option<Named>,
    /// These probes, which are the target's.
    pub with: Vec<(Place, Point)>,
    /// Also the functions that were running.
    pub stack: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
}

/// Bounds on what the exporter may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of the ring buffer, a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// How long a batch of events is let grow before it is drained, in milliseconds.
    pub ring_poll_ms: u32,
    /// Series a label with free values may make when it does not say so itself.
    pub label_values: u32,
    /// Probe sites that can be attached at once.
    pub sites: u32,
    /// Spans and calls that can have begun and not ended.
    pub starts: u32,
    /// What tracing may take of a target before probes are taken out; None if they never are.
    pub overhead: Option<Overhead>,
}

/// See [`Limits::overhead`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// Of the target's CPU time, a part of one.
    pub share: f64,
    /// Nobody has asked for it: only what lasts, and what matters, is taken out.
    pub is_default: bool,
}

/// How uprobes are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// One uprobe_multi link per file where the kernel has it, else one perf event per site.
    Auto,
    Multi,
    Perf,
}

/// What is kept of the exporter's privileges once all is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepPrivileges {
    /// What attaching again needs.
    Needed,
    /// Nothing: a file that is replaced, or a probe that a reload adds, needs a restart.
    None,
}

/// An application to trace.
#[derive(Debug, Clone)]
pub struct Target {
    pub at: Place,
    pub name: String,
    pub selector: Selector,
    /// Constant labels of every series of this target.
    pub labels: Vec<(String, String)>,
    /// Whether some of the labels could not be read, so that the metrics are not compared with those of other targets.
    pub unread_labels: bool,
    pub profiles: Vec<Named>,
    pub probes: Vec<Probe>,
}

/// A name together with where it was written.
#[derive(Debug, Clone)]
pub struct Named {
    pub at: Place,
    pub name: String,
}

/// One entry of `probes:`.
#[derive(Debug, Clone)]
pub struct Probe {
    pub at: Place,
    pub on: On,
    pub args: Vec<Arg>,
    /// What a function returns; 64 bits with a sign if it is not said.
    pub returns: Option<IntType>,
    /// How a function's return is traced.
    pub returns_by: ReturnsBy,
    /// It is never taken out, whatever it costs.
    pub keep: bool,
    pub metrics: Vec<Metric>,
    /// Whose addresses are banned.
    pub bans: Vec<Ban>,
    /// Template of the line that `verbose` logs: text with `{argument}` in it, whose braces are known to
    /// match; `{{` and `}}` stand for braces themselves.
    pub log: Option<String>,
    /// Prefix under which the event is counted in `fibre_exporter_events_processed_total{event_type}`;
    /// without it the probe's own name is used.
    pub event_type: Option<String>,
    /// True if it came from a profile: its absence from the file is reported but is not an error.
    pub from_profile: bool,
    pub unread: Unread,
}

/// Whose address is banned by hits of a probe. Times are as they are written, with their places.
#[derive(Debug, Clone)]
pub struct Ban {
    pub at: Place,
    /// The argument with the address.
    pub address: Named,
    pub when: Vec<Condition>,
    /// So many hits from an address within a time.
    pub after: u32,
    pub within: Option<Named>,
    pub ttl: Option<Named>,
    pub max_ttl: Option<Named>,
    pub reason: Option<String>,
    /// It is put on the blocklist, and not only told.
    pub enforce: bool,
}

/// The parts of a probe that could not be read. Their errors have been reported; a name that may be one of theirs is
/// not reported as unknown, too. Nothing is unread in a configuration without errors.
#[derive(Debug, Clone, Default)]
pub struct Unread {
    /// Which probe it is.
    pub on: bool,
    /// Names of arguments.
    pub args: Vec<String>,
    /// The names of the arguments, too.
    pub all_args: bool,
    pub metrics: bool,
}

/// How the return of a function is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ReturnsBy {
    /// Probes at every instruction that leaves the function.
    #[default]
    Exits,
    /// The kernel replaces the return address on the stack, which is quicker, and ends a program that unwinds through it.
    Trampoline,
}

/// What makes a probe fire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum On {
    /// `usdt:provider:name`.
    Usdt(Point),
    /// `function: name`, a glob (`SSL_*`), `name+0x10` or a file offset (`0x1234`). Entry, and return
    /// too when a metric asks for `retval` or `duration`.
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

/// What pairs a span's start with its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpanKey {
    Thread,
    /// An argument, by name, which both ends carry.
    Arg(String),
}

/// A named argument of a probe.
#[derive(Debug, Clone)]
pub struct Arg {
    pub at: Place,
    pub name: String,
    /// In a span it may differ between the ends.
    pub of: ArgOf,
    /// Position at the far end of a span, when not `index`.
    pub to_index: Option<usize>,
    /// What the argument points to is read when the function returns, else when it is entered.
    pub at_return: bool,
    /// The argument is the address of a structure; the value is what lies this many bytes into it.
    pub offset: Option<i32>,
    pub kind: ArgKind,
    pub unit: Unit,
}

/// What a named argument is, or is the address of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArgOf {
    /// The argument at this position, from 0.
    Call(usize),
    /// What the function returns.
    Result,
}

/// How the bytes of an argument are understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArgKind {
    /// An integer. `None`: width and sign from the note (functions: 64 bits, signed).
    Int(Option<IntType>),
    Bool,
    /// A C string of at most `max` bytes, the rest cut.
    Str {
        max: u32,
    },
    /// Pointer and a length in another argument, or in what the function returns.
    StrLen {
        length: ArgOf,
        max: u32,
    },
    /// `len` bytes, shown in hexadecimal; `reverse` for block hashes.
    Hex {
        len: u32,
        reverse: bool,
    },
    /// An address in memory, network byte order.
    Ipv4,
    Ipv6,
    /// A `struct sockaddr`.
    SockAddr,
    /// A code address shown as the function's name.
    Symbol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntType {
    /// 1, 2, 4 or 8.
    pub bytes: u8,
    pub signed: bool,
}

/// Unit of an argument; a metric shows seconds and bytes.
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

/// One metric fed by a probe.
#[derive(Debug, Clone)]
pub struct Metric {
    pub at: Place,
    pub name: String,
    /// One line, never empty: without a written one, the name as words.
    pub help: String,
    pub kind: MetricKind,
    /// `None` counts; otherwise the name of an argument or a built-in value.
    pub value: Option<Named>,
    /// Multiplies the value after its unit.
    pub scale: Option<f64>,
    /// Takes away instead of adding; only of [`MetricKind::UpDown`].
    pub lowers: bool,
    /// Computed when the function returns, even if nothing in it is known only then.
    pub at_return: bool,
    pub when: Vec<Condition>,
    pub labels: Vec<Label>,
    /// Which hits are kept whole.
    pub slow: Option<Slow>,
    /// A histogram that is a native one, too.
    pub native: bool,
    /// Whether a part of it could not be read. What can be is resolved for its errors' sake, and the rest is not
    /// compared with other descriptions of the metric.
    pub unread: bool,
}

/// One comparison; a metric's conditions must all hold.
#[derive(Debug, Clone)]
pub struct Condition {
    pub at: Place,
    /// Argument or built-in.
    pub value: String,
    pub op: Op,
    pub with: Operand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    StartsWith,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operand {
    Int(i128),
    Str(String),
}

/// One label of a metric.
#[derive(Debug, Clone)]
pub struct Label {
    pub at: Place,
    pub name: String,
    pub value: LabelValue,
    /// Tried in the order written; the first that fits names the label's value.
    pub mapping: Vec<(Pattern, String)>,
    /// The value when no pattern fits; without it the value itself is shown.
    pub default: Option<String>,
    /// Distinct values shown before the rest is counted under `other`.
    pub limit: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelValue {
    Const(String),
    /// Argument or built-in.
    From(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pattern {
    Int(i128),
    Exact(String),
    /// `F*`.
    Prefix(String),
    /// Anything with `*`, `?` or `[` elsewhere.
    Glob(String),
}

/// Values that need no argument; `retval` and `duration` only where a function returns or a span ends.
pub const BUILT_INS: &[&str] =
    &["pid", "tid", "comm", "cgroup", "cpu", "retval", "duration", "function", "caller"];
