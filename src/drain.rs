//! The one thread that owns the ring buffer: it drains it in batches, computes what the kernel could not, and writes
//! the verbose log.
//!
//! It sleeps until the kernel wakes it. It asks to be woken by the next event when there is nothing to do, then lets a
//! batch grow for a while, asking to be woken earlier only if the ring fills up. So nothing runs when nothing happens,
//! and a busy program pays for a wake-up a hundred times a second at the most, not once for every event.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use libbpf_rs::RingBufferBuilder;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::time::{ClockId, clock_gettime};

use crate::abi::wake;
use crate::config::model::Settings;
use crate::decode::{Event, EventValue};
use crate::kernel::Shared;
use crate::layout::{ActionLayout, Layout};
use crate::metrics::evaluate::{Outcome, evaluate, fitting, found_slow};
use crate::metrics::show::{show, show_exactly, show_with_unit};
use crate::plan::{LabelPlan, LogPart, Plan, ProbePlan, SlowPlan, ValueSource};
use crate::slow::{self, Fields, Related, SlowCounters, SlowRecorder, Wanted};
use crate::store::{DRAIN_NUMBERS, UserStore};
use crate::symbols::Symbols;

/// How long an event may wait that nobody was woken for.
const LONGEST: Duration = Duration::from_secs(1);

/// Counts of the drain thread.
#[derive(Debug, Default)]
pub struct DrainStats {
    pub events: AtomicU64,
    /// Records that were no events.
    pub undecodable: AtomicU64,
    /// Metric updates lost to unreadable values, and to negative amounts.
    pub unreadable: AtomicU64,
    pub negative: AtomicU64,
    pub batches: AtomicU64,
}

impl DrainStats {
    fn all(&self) -> [&AtomicU64; DRAIN_NUMBERS] {
        [&self.events, &self.undecodable, &self.unreadable, &self.negative, &self.batches]
    }
}

/// The running thread. Dropping it stops the thread after a last drain.
#[derive(Debug)]
pub struct Drain {
    requests: SyncSender<SyncSender<()>>,
    bell: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    stats: Arc<DrainStats>,
    thread: Option<JoinHandle<()>>,
}

impl Drain {
    /// Starts the thread, which hands slow events to the recorder.
    ///
    /// # Errors
    /// If the ring buffer, its descriptors or the thread cannot be made.
    pub fn start(
        plan: Arc<Plan>,
        layout: &Layout,
        store: Arc<UserStore>,
        shared: Shared,
        recorder: Option<Arc<SlowRecorder>>,
    ) -> io::Result<Self> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (requests, asked) = sync_channel(16);
        let stop = Arc::new(AtomicBool::new(false));
        let stats = Arc::new(DrainStats::default());
        for (number, stat) in stats.all().into_iter().enumerate() {
            stat.store(store.drain_number(number).load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let (ready, started) = sync_channel(1);
        let evaluations = evaluations(&plan, layout);
        let (thread_stats, thread_bell, thread_stop) = (stats.clone(), bell.clone(), stop.clone());
        let work = move || {
            // Made here: what looks up symbols stays on one thread.
            let handler = Handler::new(plan, evaluations, store, thread_stats, recorder);
            Worker { handler, shared, bell: thread_bell, asked, stop: thread_stop }.run(&ready);
        };
        let thread = std::thread::Builder::new().name("drain".to_string()).spawn(work)?;
        started.recv().map_err(|_| io::Error::other("the drain thread exited"))??;
        Ok(Self { requests, bell, stop, stats, thread: Some(thread) })
    }

    /// Waits until all events that are in the ring now have been counted, or for `patience`; whether they have been.
    pub fn catch_up(&self, limit: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        self.requests.try_send(done).is_ok() && ring(&self.bell).is_ok() && wait.recv_timeout(limit).is_ok()
    }

    /// Whether the thread works: it answers within `patience`, or is kept from answering by events that it counts.
    pub fn is_alive(&self, limit: Duration) -> bool {
        let before = self.stats.events.load(Ordering::Relaxed);
        self.catch_up(limit) || self.stats.events.load(Ordering::Relaxed) != before
    }

    pub fn stats(&self) -> &Arc<DrainStats> {
        &self.stats
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = ring(&self.bell);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ring(bell: &OwnedFd) -> io::Result<()> {
    rustix::io::write(bell, &1u64.to_ne_bytes())?;
    Ok(())
}

struct Worker {
    handler: Handler,
    shared: Shared,
    bell: Arc<OwnedFd>,
    asked: Receiver<SyncSender<()>>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    /// Reports through `ready` whether it could start.
    fn run(mut self, ready: &SyncSender<io::Result<()>>) {
        let plan = self.handler.plan.clone();
        let poll = Duration::from_millis(plan.settings.limits.ring_poll_ms.into());
        let fill = plan.settings.limits.ring_bytes / 4;
        let (stats, store) = (self.handler.stats.clone(), self.handler.store.clone());
        let handler = std::cell::RefCell::new(&mut self.handler);
        let mut builder = RingBufferBuilder::new();
        let made = builder
            .add(&*self.shared.ring, |record| {
                handler.borrow_mut().record(record);
                0
            })
            .map_err(io::Error::other)
            .map(drop)
            .and_then(|()| builder.build().map_err(io::Error::other))
            .and_then(|ring| Ok((ring, watch(&self.bell, &self.shared)?)));
        let (ring, epoll) = match made {
            Ok(made) => made,
            Err(err) => {
                let _ = ready.send(Err(err));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        let control = &self.shared.control;
        // A probe reads the request before it submits its event. One that read it just before it was made wakes nobody,
        // so where events can come, there is an end to the waiting.
        let emits = plan.probes.iter().any(|probe| probe.emit.is_some() || !probe.slow.is_empty());
        let longest = emits.then_some(LONGEST);
        let drain = || {
            let before = stats.events.load(Ordering::Relaxed);
            // It only fails if a callback does.
            let _ = ring.consume();
            for (number, stat) in stats.all().into_iter().enumerate() {
                store.drain_number(number).store(stat.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            stats.events.load(Ordering::Relaxed) - before
        };
        while !self.stop.load(Ordering::Relaxed) {
            let some = drain() > 0;
            while let Ok(done) = self.asked.try_recv() {
                drain();
                let _ = done.try_send(());
            }
            if !some {
                control.wake(wake::WAKE_FIRST, 0);
                // What came between the drain and the request woke nobody.
                if drain() == 0 && wait(&epoll, longest, &self.bell) {
                    continue;
                }
            }
            // A batch has begun: let it grow.
            stats.batches.fetch_add(1, Ordering::Relaxed);
            control.wake(wake::WAKE_FULL, fill);
            wait(&epoll, Some(poll), &self.bell);
        }
        drain();
    }
}

/// Edge-triggered: the ring counts as readable as long as anything is in it, and it is left to fill on purpose.
fn watch(bell: &OwnedFd, shared: &Shared) -> io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&epoll, bell, epoll::EventData::new_u64(0), edge)?;
    epoll::add(&epoll, shared.ring.as_fd(), epoll::EventData::new_u64(1), edge)?;
    Ok(epoll)
}

/// Waits for the ring or the bell; whether the bell was rung.
fn wait(epoll: &OwnedFd, timeout: Option<Duration>, bell: &OwnedFd) -> bool {
    let timeout = timeout.and_then(|timeout| rustix::event::Timespec::try_from(timeout).ok());
    let mut events = [const { std::mem::MaybeUninit::uninit() }; 2];
    // Interrupted or not, the caller looks at everything again.
    let _ = epoll::wait(epoll, &mut events, timeout.as_ref());
    rustix::io::read(bell, &mut [0u8; 8]).is_ok()
}

/// What is done with each record.
struct Handler {
    plan: Arc<Plan>,
    store: Arc<UserStore>,
    stats: Arc<DrainStats>,
    /// What each probe's events are for.
    evaluations: Vec<ProbeEvaluation>,
    verbose: bool,
    symbols: Symbols,
    /// Of the event at hand, the values that are shown by name.
    names: Vec<(usize, Arc<str>)>,
    scratch: String,
    line: String,
    /// Who keeps slow events.
    recorder: Option<Arc<SlowRecorder>>,
}

impl Handler {
    fn new(
        plan: Arc<Plan>,
        evaluations: Vec<ProbeEvaluation>,
        store: Arc<UserStore>,
        stats: Arc<DrainStats>,
        recorder: Option<Arc<SlowRecorder>>,
    ) -> Self {
        let Settings { verbose, .. } = plan.settings;
        Self {
            plan,
            store,
            stats,
            evaluations,
            verbose,
            symbols: Symbols::new(),
            names: Vec::new(),
            scratch: String::new(),
            line: String::new(),
            recorder,
        }
    }

    /// Called from libbpf's C code, through which no panic may pass: nothing in here panics on any input, and the
    /// crate that calls it aborts should it happen all the same.
    fn record(&mut self, record: &[u8]) {
        // This thread alone writes it.
        let events = self.stats.events.load(Ordering::Relaxed);
        self.stats.events.store(events + 1, Ordering::Relaxed);
        let event = match Event::decode(record) {
            Ok(event) => event,
            Err(_) => {
                self.stats.undecodable.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        let (Some(probe), Some(evaluation)) =
            (self.plan.probes.get(event.probe), self.evaluations.get(event.probe))
        else {
            self.stats.undecodable.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let number = |at: Option<usize>| at.and_then(|at| event.value(at, false).word()).unwrap_or(0);
        let time = number(evaluation.time);
        self.names.clear();
        for value in &evaluation.symbols {
            if let Some(address) = event.value(*value, false).word() {
                self.names.push((*value, self.symbols.name(number(evaluation.pid) as u32, address)));
            }
        }
        let names = &self.names;
        let read = |value: usize| match names.iter().find(|(named, _)| *named == value) {
            Some((_, name)) => EventValue::Text(name.as_bytes()),
            None => event.value(value, evaluation.texts & 1 << value != 0),
        };
        for layout in &evaluation.actions {
            let lost = match evaluate(&self.store, layout, probe, time, &read, &mut self.scratch) {
                Outcome::Done => continue,
                Outcome::Unreadable => &self.stats.unreadable,
                Outcome::Negative => &self.stats.negative,
            };
            lost.fetch_add(1, Ordering::Relaxed);
        }
        if let (Some(slots), Some(recorder)) = (evaluation.slow, &self.recorder) {
            let is_told = probe.is_slow_in_kernel();
            let mut found = || found_slow(probe, &read, &mut self.scratch);
            let slow = match is_told {
                false => found(),
                true if event.is_slow() => found().or_else(|| probe.slow.first().map(|slow| (slow, 0))),
                true => None,
            };
            if let Some((slow, value)) = slow {
                let counters = SlowCounters { store: self.store.clone(), slots };
                if !is_told {
                    counters.seen();
                }
                let target = &self.plan.targets[probe.target].name;
                recorder.offer(kept(probe, target, slow, value, time, &read), counters);
            }
        }
        if let (Some(related), Some(recorder)) = (&probe.related, &self.recorder) {
            recorder.offer_related(|| {
                let key = |at: &usize| (probe.values[*at].name.clone(), shown(probe, *at, &read));
                Related {
                    time: since_1970(time),
                    target: self.plan.targets[probe.target].name.clone(),
                    process: shown(probe, related.process, &read),
                    point: probe.point.clone(),
                    probe: probe.name.clone(),
                    keys: related.keys.iter().map(key).collect(),
                    fields: fields(probe, &related.kept, &read),
                }
            });
        }
        if self.verbose {
            self.line.clear();
            describe(probe, &read, &mut self.line);
            log::info!("{}", self.line);
        }
    }
}

/// What is known of a probe's events before the first one comes.
#[derive(Debug, Clone)]
struct ProbeEvaluation {
    /// The actions that are computed here.
    actions: Vec<ActionLayout>,
    /// Which values are the kernel's time and the process.
    time: Option<usize>,
    pid: Option<usize>,
    /// Values that are shown by the name of a function.
    symbols: Vec<usize>,
    /// Bit i: value i is text.
    texts: u32,
    /// Where its slow events are counted, if it has some.
    slow: Option<u32>,
}

/// Of all probes.
fn evaluations(plan: &Plan, layout: &Layout) -> Vec<ProbeEvaluation> {
    let evaluation = |(number, probe): (usize, &ProbePlan)| {
        let here = |action: &&ActionLayout| action.probe == number && !action.in_kernel;
        let place = |source| probe.values.iter().position(|value| value.source == source);
        let values = || probe.values.iter().enumerate();
        ProbeEvaluation {
            actions: layout.actions.iter().filter(here).cloned().collect(),
            time: place(ValueSource::Time),
            pid: place(ValueSource::Pid),
            symbols: values().filter(|(_, value)| value.kind.is_symbol()).map(|(at, _)| at).collect(),
            texts: values().map(|(at, value)| u32::from(value.kind.is_text()) << at).sum(),
            slow: layout.slow.iter().find(|slow| slow.probe == number).map(|slow| slow.user),
        }
    };
    plan.probes.iter().enumerate().map(evaluation).collect()
}

/// What is kept of a slow event; `time` is the kernel's.
fn kept<'a>(
    probe: &ProbePlan,
    target: &str,
    slow: &SlowPlan,
    value: i64,
    time: u64,
    read: &dyn Fn(usize) -> EventValue<'a>,
) -> slow::Event {
    let wanted = slow.related.as_ref().map(|by| Wanted {
        process: shown(probe, by.process, read),
        key: (probe.values[by.key].name.clone(), shown(probe, by.key, read)),
        with: by.with.clone(),
    });
    slow::Event {
        time: since_1970(time),
        target: target.to_owned(),
        probe: probe.name.clone(),
        metric: slow.metric.clone(),
        value: slow.scale.apply(value as f64),
        over: slow.over,
        fields: fields(probe, &slow.kept, read),
        related: Vec::new(),
        wanted,
    }
}

/// Values by name, as they are kept.
fn fields<'a>(probe: &ProbePlan, kept: &[usize], read: &dyn Fn(usize) -> EventValue<'a>) -> Fields {
    Fields(kept.iter().map(|at| (probe.values[*at].name.clone(), shown(probe, *at, read))).collect())
}

fn shown<'a>(probe: &ProbePlan, at: usize, read: &dyn Fn(usize) -> EventValue<'a>) -> String {
    let mut text = String::new();
    show_exactly(&probe.values[at].kind, probe.values[at].unit, read(at), &mut text);
    text
}

/// A time of the kernel's clock, in nanoseconds since 1970 as the clock is set now.
fn since_1970(time: u64) -> i64 {
    let nanoseconds = |clock| {
        let now = clock_gettime(clock);
        now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
    };
    let passed = nanoseconds(ClockId::Monotonic).saturating_sub(i64::try_from(time).unwrap_or(i64::MAX));
    nanoseconds(ClockId::Realtime).saturating_sub(passed)
}

/// The line that the verbose log has for an event.
fn describe<'a>(probe: &ProbePlan, read: &dyn Fn(usize) -> EventValue<'a>, to: &mut String) {
    for part in &probe.log {
        match part {
            LogPart::Text(text) => to.push_str(text),
            LogPart::Value(index) => {
                let Some(planned) = probe.values.get(*index) else { continue };
                let value = read(*index);
                // Appended to the end: the bound on a label's length must not cut what stands before.
                let mut text = String::new();
                show_with_unit(&planned.kind, planned.unit, value, &mut text);
                to.push_str(&text);
            }
            LogPart::Label(LabelPlan::Const(text)) => to.push_str(text),
            LogPart::Label(LabelPlan::From { value, mapping, default, .. }) => {
                let kind = &probe.values[*value].kind;
                let seen = read(*value);
                let mut text = String::new();
                let known = fitting(mapping, kind, seen, &mut text).map(|at| &mapping[at].1);
                text.clear();
                match known.or(default.as_ref()) {
                    Some(display) => to.push_str(display),
                    None => {
                        show(kind, seen, false, &mut text);
                        to.push_str(&text);
                    }
                }
            }
        }
    }
}
