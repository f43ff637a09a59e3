//! Discards the starts of spans and calls whose end cannot come any more.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags};

use super::bytes::{long, word};
use crate::abi::{abi_id, goroutine_key, start, start_key, text_key, thread_key};
use crate::plan::Pairing;

/// How long a start without an end is kept: of a span by an argument, and of a call whose thread has ended, because
/// another thread may resume it, as with coroutines.
const STALE_AFTER: u64 = Duration::from_secs(600).as_nanos() as u64;

/// A text without a start is younger than this only while its start is being created or ended.
const TEXT_AGE: u64 = Duration::from_secs(10).as_nanos() as u64;

/// Entries that one system call reads.
const BATCH_ENTRIES: u32 = 1024;

/// The result of sweeping a span's starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Started and not ended.
    pub open: u64,
    /// Discarded: their process or thread has ended, they are too old, or room was needed.
    pub expired: u64,
}

/// The maps with open starts of spans and calls.
pub(super) struct StartMaps<'a, M> {
    pub starts: &'a M,
    pub nestings: &'a M,
    pub texts: &'a M,
}

/// One entry of `starts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OpenSpan {
    span: u32,
    tgid: u32,
    key: u64,
    frame: u64,
    time: u64,
    tid: u32,
}

impl<M: MapCore> StartMaps<'_, M> {
    /// Discards starts whose end cannot come any more, and, when there is little room left, those whose end is least
    /// likely.
    pub(super) fn sweep(&self, spans: &[Pairing], limit: u32, now: u64) -> Vec<Sweep> {
        let open: Vec<OpenSpan> =
            read(self.starts).iter().filter_map(|(key, value)| OpenSpan::decode(key, value)).collect();
        let pairing = |open: &OpenSpan| spans.get(open.span as usize).copied();
        let mut ended = EndedTasks::default();
        let dead = choose(&open, limit as usize, now, pairing, |id| ended.look(id));
        let mut swept = vec![Sweep::default(); spans.len()];
        for (open, dead) in open.iter().zip(&dead) {
            let Some(of) = swept.get_mut(open.span as usize) else { continue };
            if !dead {
                of.open += 1;
            } else if self.starts.delete(&open.key_bytes()).is_ok() {
                of.expired += 1;
            }
        }
        for (key, _) in read(self.nestings) {
            let at = std::mem::offset_of!(thread_key, tid);
            if word(&key, at).is_some_and(|tid| ended.look(tid)) {
                let _ = self.nestings.delete(&key);
            }
        }
        let alive = open.iter().zip(&dead).filter(|(_, dead)| !**dead);
        let kept: HashSet<(u64, u64)> = alive.map(|(open, _)| (open.time, u64::from(open.tid))).collect();
        for key in self.texts.keys() {
            let (Some(time), Some(tid)) = (long(&key, 0), long(&key, std::mem::offset_of!(text_key, tid)))
            else {
                continue;
            };
            if !kept.contains(&(time, tid)) && now.saturating_sub(time) > TEXT_AGE {
                let _ = self.texts.delete(&key);
            }
        }
        swept
    }
}

impl<M: MapCore> StartMaps<'_, M> {
    /// Discards all starts of these spans, which nothing ends any more; returns how many, by span.
    pub(super) fn forget(&self, spans: &BTreeSet<u32>, all: u32) -> Vec<u64> {
        let mut forgotten = vec![0; all as usize];
        for (key, value) in read(self.starts) {
            let Some(open) = OpenSpan::decode(&key, &value).filter(|open| spans.contains(&open.span)) else {
                continue;
            };
            let text = [open.time, u64::from(open.tid)].map(u64::to_ne_bytes).concat();
            let _ = self.texts.delete(&text);
            if self.starts.delete(&key).is_ok()
                && let Some(of) = forgotten.get_mut(open.span as usize)
            {
                *of += 1;
            }
        }
        for key in self.nestings.keys() {
            let at = std::mem::offset_of!(thread_key, span);
            if word(&key, at).is_some_and(|span| spans.contains(&span)) {
                let _ = self.nestings.delete(&key);
            }
        }
        forgotten
    }
}

/// All entries of a map, as far as they do not change meanwhile.
fn read(map: &impl MapCore) -> Vec<(Vec<u8>, Vec<u8>)> {
    map.lookup_batch(BATCH_ENTRIES, MapFlags::ANY, MapFlags::ANY).map(Iterator::collect).unwrap_or_default()
}

/// Chooses the starts to discard. `ended` tells whether the process or thread with this number has ended.
fn choose(
    open: &[OpenSpan],
    limit: usize,
    now: u64,
    pairing: impl Fn(&OpenSpan) -> Option<Pairing>,
    mut ended: impl FnMut(u32) -> bool,
) -> Vec<bool> {
    let old = |open: &OpenSpan| now.saturating_sub(open.time) > STALE_AFTER;
    let mut dead: Vec<bool> = open
        .iter()
        .map(|open| match pairing(open) {
            Some(Pairing::Thread) => ended(open.tid),
            Some(Pairing::Value) => old(open) || ended(open.tgid),
            Some(Pairing::Frame) => {
                ended(open.tgid) || (old(open) && !open.is_goroutine() && ended(open.tid))
            }
            None => true,
        })
        .collect();
    // The likelier an end is, the later its start is sacrificed.
    let calls = |n: &usize| pairing(&open[*n]) == Some(Pairing::Frame);
    if left(&dead) > limit / 2 {
        for n in (0..open.len()).filter(calls) {
            dead[n] |= !open[n].is_goroutine() && ended(open[n].tid);
        }
    }
    if left(&dead) > limit / 2 {
        let overtaken = overtaken(open);
        sacrifice(open, &mut dead, limit / 2, |n| calls(n) && overtaken[*n]);
    }
    if left(&dead) > limit / 16 * 15 {
        sacrifice(open, &mut dead, limit / 4 * 3, |_| true);
    }
    dead
}

fn left(dead: &[bool]) -> usize {
    dead.iter().filter(|dead| !**dead).count()
}

/// Marks the oldest discardable starts until no more than `most` are left.
fn sacrifice(open: &[OpenSpan], dead: &mut [bool], most: usize, may: impl Fn(&usize) -> bool) {
    let mut victims: Vec<usize> = (0..open.len()).filter(|n| !dead[*n]).filter(may).collect();
    victims.sort_by_key(|n| open[*n].time);
    let excess = left(dead).saturating_sub(most);
    victims.into_iter().take(excess).for_each(|n| dead[n] = true);
}

/// Calls that were open when the same thread or goroutine started another one above them. On one stack that means that
/// they were left by an exception; with coroutines, whose stacks lie anywhere, it may be another stack.
fn overtaken(open: &[OpenSpan]) -> Vec<bool> {
    let mut latest_first: Vec<usize> = (0..open.len()).collect();
    latest_first.sort_by_key(|n| std::cmp::Reverse(open[*n].time));
    let mut highest: HashMap<(u32, u64), u64> = HashMap::new();
    let mut found = vec![false; open.len()];
    for n in latest_first {
        let highest = highest.entry((open[n].tgid, open[n].stack())).or_default();
        found[n] = open[n].frame < *highest;
        *highest = open[n].frame.max(*highest);
    }
    found
}

/// Caches which processes and threads have ended.
#[derive(Default)]
struct EndedTasks(HashMap<u32, bool>);

impl EndedTasks {
    /// Those outside of the exporter's pid namespace cannot be seen; their starts are discarded when room is needed.
    fn look(&mut self, id: u32) -> bool {
        if id & abi_id::ID_OUTSIDE.0 != 0 {
            return false;
        }
        *self.0.entry(id).or_insert_with(|| !Path::new("/proc").join(id.to_string()).exists())
    }
}

impl OpenSpan {
    /// From `struct start_key` and `struct start`.
    fn decode(key: &[u8], value: &[u8]) -> Option<Self> {
        Some(Self {
            span: word(key, std::mem::offset_of!(start_key, span))?,
            tgid: word(key, std::mem::offset_of!(start_key, tgid))?,
            key: long(key, std::mem::offset_of!(start_key, key))?,
            frame: long(key, std::mem::offset_of!(start_key, frame))?,
            time: long(value, std::mem::offset_of!(start, time))?,
            tid: word(value, std::mem::offset_of!(start, tid))?,
        })
    }

    /// Whether the call is on a goroutine's stack, which belongs to no thread.
    fn is_goroutine(&self) -> bool {
        self.key >> goroutine_key::GOROUTINE_MARK.0 & 1 == 1
    }

    /// Distinguishes the stacks of a process.
    fn stack(&self) -> u64 {
        if self.is_goroutine() {
            self.key & ((1 << goroutine_key::GOROUTINE_FUNCTION.0) - 1)
        } else {
            u64::from(self.tid)
        }
    }

    fn key_bytes(&self) -> Vec<u8> {
        let mut bytes = [self.span.to_ne_bytes(), self.tgid.to_ne_bytes()].concat();
        [self.key, self.frame].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIVE: u32 = 1;
    const GONE: u32 = 2;
    const NOW: u64 = 10 * STALE_AFTER;

    fn call(tid: u32, frame: u64, time: u64) -> OpenSpan {
        OpenSpan { span: 0, tgid: ALIVE, key: 0, frame, time, tid }
    }

    fn chosen(open: &[OpenSpan], limit: usize, pairing: Pairing) -> Vec<bool> {
        choose(open, limit, NOW, |_| Some(pairing), |id| id == GONE)
    }

    #[test]
    fn evicts_only_dead_spans_while_there_is_room() {
        let young = NOW - 1;
        let of_gone_process = OpenSpan { tgid: GONE, ..call(ALIVE, 1, young) };
        let open = [call(ALIVE, 1, 0), call(GONE, 2, young), call(GONE, 3, 0), of_gone_process];
        assert_eq!(chosen(&open, 100, Pairing::Frame), [false, false, true, true]);
        assert_eq!(chosen(&open, 100, Pairing::Thread), [false, true, true, false]);
        assert_eq!(chosen(&open, 100, Pairing::Value), [true, false, true, true]);
    }

    #[test]
    fn evicts_abandoned_frames_first_under_pressure() {
        // A call waiting at the bottom of the stack, frames that exceptions left, and the current call.
        let mut open = vec![call(ALIVE, 1000, NOW - 100)];
        open.extend((0..8u64).map(|n| call(ALIVE, 500 + n, NOW - 90 + n)));
        open.push(call(ALIVE, 900, NOW - 1));
        let mut expected = vec![true; 10];
        (expected[0], expected[9]) = (false, false);
        assert_eq!(chosen(&open, 4, Pairing::Frame), expected);
        assert_eq!(chosen(&open, 20, Pairing::Frame), [false; 10]);
    }

    #[test]
    fn goroutine_calls_belong_to_no_thread() {
        let goroutine = |n: u64, tid, frame: i64, time| OpenSpan {
            key: 1 << goroutine_key::GOROUTINE_MARK.0 | n << 12,
            ..call(tid, frame as u64, time)
        };
        // The thread that it started on has ended; the goroutine has not.
        assert_eq!(chosen(&[goroutine(1, GONE, -80, 0)], 100, Pairing::Frame), [false]);
        // Two goroutines on one thread, the second with a shorter stack, and an abandoned call of the first.
        let mut open = vec![goroutine(1, ALIVE, -800, NOW - 9), goroutine(1, ALIVE, -900, NOW - 8)];
        open.extend([goroutine(2, ALIVE, -80, NOW - 7), goroutine(1, ALIVE, -850, NOW - 6)]);
        assert_eq!(overtaken(&open), [false, true, false, false]);
        assert_eq!(chosen(&open, 4, Pairing::Frame), [false, true, false, false]);
    }

    #[test]
    fn full_map_always_recovers() {
        let open: Vec<_> = (0..32u64).map(|n| call(ALIVE, 1000 - n, NOW - 100 + n)).collect();
        for pairing in [Pairing::Frame, Pairing::Thread, Pairing::Value] {
            let dead = chosen(&open, 32, pairing);
            assert_eq!(left(&dead), 24);
            assert!(dead[..8].iter().all(|dead| *dead), "the oldest go: {dead:?}");
        }
    }
}
