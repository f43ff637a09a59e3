//! One interface with its programs.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::pins::PinDir;

use super::abi::{Direction, Link};
use super::attach::HeldLink;
use super::attach::{Attached, Place, attach_egress, attach_ingress};
use super::comparison::{Comparison, max_rounds};
use super::config::Mode;
use super::hook::{Hook, choose, crosses_hooks};
use super::interface_table::Entry;
use super::links::{Interface, KernelCount};
use super::pinned::keep;
use super::programs::{Program, Programs};
use super::refusal::{AttachRefusal, ONE_PIECE_MTU, described};
use super::sys::program_id;

/// Programs of others that are remembered for each direction.
const MAX_OVERTAKEN: usize = 16;

/// An interface with its attached programs. Dropping it detaches them.
#[derive(Debug)]
pub(crate) struct Port {
    pub on: Interface,
    // Programs must be dropped before the entry through which they find the interface.
    ingress: Side,
    egress: Side,
    entry: Arc<Entry>,
    pins: PinDir,
}

/// One direction.
#[derive(Debug)]
struct Side {
    state: Result<AttachedProgram, AttachRefusal>,
    comparison: Comparison,
    /// The last programs, by id, that it was moved ahead of.
    overtaken: VecDeque<u32>,
    /// One of them that insists on being first.
    insists: Option<u32>,
}

/// An attached program.
#[derive(Debug)]
struct AttachedProgram {
    attached: Attached,
    program: Arc<OwnedFd>,
    /// The kernel's id of the program.
    id: Option<u32>,
    hook: Hook,
    reason: String,
}

/// A change of a direction since the last check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is attached now, for the first time or again; with the reason for the hook.
    Attached {
        direction: Direction,
        hook: Hook,
        reason: String,
    },
    /// It is not attached, or no longer.
    Refused {
        direction: Direction,
        refusal: AttachRefusal,
    },
    /// It is first in its chain again.
    Moved {
        direction: Direction,
        before: String,
    },
    /// Another program insists on being first.
    Behind {
        direction: Direction,
        before: String,
    },
    /// It is attached but does not see what the kernel counts, or sees it again.
    Hidden {
        direction: Direction,
        packets: u64,
    },
    Seen {
        direction: Direction,
    },
}

impl Port {
    /// Loads and attaches both directions independently.
    ///
    /// # Errors
    /// If the kernel creates no counters.
    pub fn open(on: Interface, mode: Mode, programs: &Programs) -> libbpf_rs::Result<Self> {
        let (entry, mut held) = programs.enter(on.index, on.link, may_use_fast_path(&on, mode, programs))?;
        let entry = Arc::new(entry);
        let ingress = Side::new(open_ingress(&on, mode, programs, &entry, &mut held));
        let egress = Side::new(open_egress(&on, programs, &mut held));
        Ok(Self { on, ingress, egress, entry, pins: programs.pins().clone() })
    }

    /// Looks where the attached programs are now.
    pub fn look(&self) -> Places {
        Places([&self.ingress, &self.egress].map(|side| side.place(&self.on)))
    }

    /// Retries failed attachments and those that the kernel has lost.
    pub fn retry(&mut self, mode: Mode, programs: &Programs, places: &Places) -> Vec<Change> {
        let mut changes = Vec::new();
        for direction in Direction::ALL {
            let on = self.on.clone();
            let entry = Arc::clone(&self.entry);
            let side = self.side(*direction);
            if side.state.is_ok() && places.of(*direction) != Place::Lost {
                continue;
            }
            // The lost attachment is dropped first, so that it does not remove the pin of the new one.
            let before = std::mem::replace(&mut side.state, Err(unattached())).err();
            let again = match direction {
                Direction::Ingress => open_ingress(&on, mode, programs, &entry, &mut Vec::new()),
                Direction::Egress => open_egress(&on, programs, &mut Vec::new()),
            };
            let same = matches!((&before, &again), (Some(before), Err(now)) if before == now);
            *side = Side::new(again);
            if !same {
                changes.push(side.reported(*direction));
            }
        }
        changes
    }

    /// Moves programs before those that were attached before them later. Each is overtaken once: one that is first again
    /// does the same, such as another exporter, and packets are missed at every move.
    pub fn lead(&mut self, places: &Places) -> Vec<Change> {
        let mut changes = Vec::new();
        for direction in Direction::ALL {
            let Place::Behind(first) = places.of(*direction) else { continue };
            let (on, pins) = (self.on.clone(), self.pins.clone());
            let side = self.side(*direction);
            let Ok(placed) = &side.state else { continue };
            if side.overtaken.contains(&first) {
                if side.insists.replace(first) != Some(first) {
                    changes.push(Change::Behind { direction: *direction, before: described(first) });
                }
                continue;
            }
            side.overtaken.truncate(MAX_OVERTAKEN - 1);
            side.overtaken.push_front(first);
            let (program, id) = (Arc::clone(&placed.program), placed.id);
            let (hook, reason) = (placed.hook, placed.reason.clone());
            // Detached before it is attached again: in the other order, a packet in between would be counted twice.
            side.state = Err(unattached());
            let again = match direction {
                Direction::Ingress => attach_ingress(program.as_fd(), &on, hook, &|_| false),
                Direction::Egress => attach_egress(program.as_fd(), &on),
            };
            side.state = again.map(|mut attached| {
                keep(&pins, &mut attached, on.index, *direction, hook);
                AttachedProgram { attached, program, id, hook, reason }
            });
            changes.push(match &side.state {
                Ok(_) => Change::Moved { direction: *direction, before: described(first) },
                Err(_) => side.reported(*direction),
            });
        }
        changes
    }

    /// Compares with the kernel's own counters.
    pub fn compare(&mut self, kernel: KernelCount) -> Vec<Change> {
        let mut changes = Vec::new();
        let rounds = max_rounds(self.on.kind.as_deref());
        for (direction, kernel) in [(Direction::Ingress, kernel.received), (Direction::Egress, kernel.sent)] {
            let ours = self.entry.counters(direction).total_packets();
            let side = self.side(direction);
            if side.state.is_err() {
                continue;
            }
            let was_hidden = side.comparison.is_hidden();
            let packets = side.comparison.compare(kernel, ours, rounds);
            match (was_hidden, side.comparison.is_hidden()) {
                (false, true) => changes.push(Change::Hidden { direction, packets }),
                (true, false) => changes.push(Change::Seen { direction }),
                _ => {}
            }
        }
        changes
    }

    /// The current state of both directions, as changes.
    pub fn reported(&self) -> Vec<Change> {
        vec![self.ingress.reported(Direction::Ingress), self.egress.reported(Direction::Egress)]
    }

    /// The hook for received packets.
    pub fn hook(&self) -> Option<Hook> {
        self.ingress.state.as_ref().ok().map(|placed| placed.hook)
    }

    /// Why a direction is not counted.
    pub fn refusal(&self, direction: Direction) -> Option<AttachRefusal> {
        let side = if direction == Direction::Ingress { &self.ingress } else { &self.egress };
        match &side.state {
            Err(refusal) => Some(refusal.clone()),
            Ok(placed) => side.comparison.is_hidden().then(|| AttachRefusal {
                reason: "hidden",
                text: format!(
                    "{}: {} is attached but sees less than half of the packets that the kernel counts; see \
                     `bpftool net show dev {}`",
                    self.on.name,
                    if direction == Direction::Ingress { placed.hook.phrase() } else { "TC egress" },
                    self.on.name
                ),
            }),
        }
    }

    /// Whether sent packets are counted.
    pub fn is_sending(&self) -> bool {
        self.egress.state.is_ok()
    }

    pub fn entry(&self) -> Arc<Entry> {
        Arc::clone(&self.entry)
    }

    fn side(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

/// Where the programs of both directions are; a direction without a program is [`Place::First`].
#[derive(Debug)]
pub(crate) struct Places([Place; 2]);

impl Places {
    fn of(&self, direction: Direction) -> Place {
        self.0[direction as usize]
    }

    /// Whether an attachment no longer exists in the kernel.
    pub fn any_lost(&self) -> bool {
        self.0.contains(&Place::Lost)
    }
}

impl AttachedProgram {
    fn new(attached: Attached, program: Arc<OwnedFd>, hook: Hook, reason: String) -> Self {
        let id = program_id(program.as_fd());
        Self { attached, program, id, hook, reason }
    }
}

impl Side {
    fn new(state: Result<AttachedProgram, AttachRefusal>) -> Self {
        Self { state, comparison: Comparison::default(), overtaken: VecDeque::new(), insists: None }
    }

    fn place(&self, on: &Interface) -> Place {
        self.state.as_ref().map_or(Place::First, |placed| placed.attached.place(placed.id, on))
    }

    fn reported(&self, direction: Direction) -> Change {
        match &self.state {
            Ok(placed) => Change::Attached { direction, hook: placed.hook, reason: placed.reason.clone() },
            Err(refusal) => Change::Refused { direction, refusal: refusal.clone() },
        }
    }
}

/// The state while a program is detached and attached again.
fn unattached() -> AttachRefusal {
    AttachRefusal { reason: "other", text: String::new() }
}

fn refuse(on: &Interface, err: &str) -> AttachRefusal {
    AttachRefusal { reason: "no_hook", text: format!("{}: {err}", on.name) }
}

fn refuse_load(on: &Interface) -> impl Fn(libbpf_rs::Error) -> AttachRefusal + '_ {
    |error| {
        let denied = error.kind() == libbpf_rs::ErrorKind::PermissionDenied;
        let next = "loading needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and Linux 5.18 or later";
        AttachRefusal {
            reason: if denied { "permission" } else { "other" },
            text: format!("{}: failed to load the packet programs: {error:#}; {next}", on.name),
        }
    }
}

/// Whether the first hook to be tried is XDP with the fast path.
fn may_use_fast_path(on: &Interface, mode: Mode, programs: &Programs) -> bool {
    let first = choose(on, mode).ok().and_then(|choice| choice.hooks.first().copied());
    !programs.with_talkers() && matches!(first, Some(Hook::Native | Hook::Generic))
}

fn open_ingress(
    on: &Interface,
    mode: Mode,
    programs: &Programs,
    entry: &Entry,
    held: &mut Vec<HeldLink>,
) -> Result<AttachedProgram, AttachRefusal> {
    let choice = choose(on, mode).map_err(|err| refuse(on, &err))?;
    let mut reason = choice.reason;
    if let Some((attached, program, hook)) = take_over(
        Direction::Ingress,
        held,
        choice.hooks,
        |hook| candidates(on, hook, programs, entry),
        programs,
    ) {
        return Ok(AttachedProgram::new(attached, program, hook, reason));
    }
    let mut last = None;
    for hook in choice.hooks {
        match open_hook(on, *hook, programs, entry) {
            Ok((attached, program)) => return Ok(AttachedProgram::new(attached, program, *hook, reason)),
            Err(refusal) => {
                reason = match (hook, refusal.reason) {
                    (Hook::Tcx, "unsupported") => "TCX needs Linux 6.6 or later".to_string(),
                    _ => refusal.text.clone(),
                };
                last = Some(refusal);
            }
        }
    }
    Err(last.unwrap_or_else(|| refuse(on, "no hook to attach to")))
}

/// Takes over a previous exporter's link at one of these hooks; its links at other hooks are detached.
fn take_over(
    direction: Direction,
    held: &mut Vec<HeldLink>,
    hooks: &[Hook],
    candidates: impl Fn(Hook) -> &'static [Program],
    programs: &Programs,
) -> Option<(Attached, Arc<OwnedFd>, Hook)> {
    let (mut ours, others): (Vec<_>, Vec<_>) =
        std::mem::take(held).into_iter().partition(|link| link.direction == direction);
    *held = others;
    let at = ours.iter().position(|link| hooks.contains(&link.hook))?;
    let link = ours.swap_remove(at);
    let hook = link.hook;
    let program = candidates(hook).iter().find_map(|candidate| programs.get(*candidate).ok())?;
    match Attached::take_over(link, program.as_fd()) {
        Ok(attached) => Some((attached, program, hook)),
        Err(err) => {
            log::warn!("failed to take over a previous exporter's link, so it is attached again: {err}");
            None
        }
    }
}

/// Programs for a hook, best first.
fn candidates(on: &Interface, hook: Hook, programs: &Programs, entry: &Entry) -> &'static [Program] {
    match hook {
        Hook::Tcx => &[Program::TcIngress],
        // With a larger MTU, a driver accepts only programs that support multi-buffer frames, if it supports them
        // itself.
        Hook::Native if on.mtu > ONE_PIECE_MTU => &[Program::Pieces],
        _ if programs.with_talkers() => &[Program::Talkers],
        _ if programs.have_fast_path() && entry.has_fast_path() && on.link == Link::Ethernet => {
            if programs.with_blocklist() {
                &[Program::FastBlocklist, Program::Slow]
            } else {
                &[Program::Fast, Program::Slow]
            }
        }
        _ => &[Program::Slow],
    }
}

fn open_hook(
    on: &Interface,
    hook: Hook,
    programs: &Programs,
    entry: &Entry,
) -> Result<(Attached, Arc<OwnedFd>), AttachRefusal> {
    let mut error = None;
    for candidate in candidates(on, hook, programs, entry) {
        match programs.get(*candidate) {
            Ok(program) => {
                let mut attached = attach_ingress(program.as_fd(), on, hook, &|id| programs.are(id))?;
                keep(programs.pins(), &mut attached, on.index, Direction::Ingress, hook);
                return Ok((attached, program));
            }
            Err(err) => {
                log::debug!("{}: {err:#}", candidate.name());
                error = Some(err);
            }
        }
    }
    match error {
        Some(error) => Err(refuse_load(on)(error)),
        None => Err(refuse(on, "no program for it")),
    }
}

fn open_egress(
    on: &Interface,
    programs: &Programs,
    held: &mut Vec<HeldLink>,
) -> Result<AttachedProgram, AttachRefusal> {
    crosses_hooks(on).map_err(|err| refuse(on, &err))?;
    let reason = String::new();
    if let Some((attached, program, hook)) =
        take_over(Direction::Egress, held, &[Hook::Tcx], |_| &[Program::TcEgress], programs)
    {
        return Ok(AttachedProgram::new(attached, program, hook, reason));
    }
    let program = programs.get(Program::TcEgress).map_err(refuse_load(on))?;
    let mut attached = attach_egress(program.as_fd(), on)?;
    keep(programs.pins(), &mut attached, on.index, Direction::Egress, Hook::Tcx);
    Ok(AttachedProgram::new(attached, program, Hook::Tcx, reason))
}
