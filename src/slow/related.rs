//! Related events of other probes: the latest events are remembered, and searched when a slow event arrives.

use std::collections::VecDeque;

use super::event::{EventRecord, Related, RelatedRow};

/// Events that are remembered.
const MAX_EVENTS: usize = 4096;

/// Related events that are stored with one slow event, and how long before it they may have happened, in nanoseconds.
const MAX_RELATED: usize = 32;
const MAX_AGE: i64 = 600_000_000_000;

/// The latest events, whatever their keys.
#[derive(Debug, Default)]
pub(super) struct RecentEvents {
    events: VecDeque<Related>,
}

impl RecentEvents {
    pub(super) fn add(&mut self, event: Related) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Attaches the related events to a slow event: the latest ones, in order.
    pub(super) fn complete(&self, event: &mut EventRecord) {
        let Some(wanted) = event.wanted.take() else { return };
        let belongs = |other: &&Related| {
            other.target == event.target
                && other.process == wanted.process
                && other.keys.contains(&wanted.key)
                && wanted.with.contains(&other.point)
                && event.time.saturating_sub(other.time) <= MAX_AGE
                // Not the slow event itself.
                && (other.time, &other.probe) != (event.time, &event.probe)
        };
        let mut found: Vec<_> = self.events.iter().rev().filter(belongs).take(MAX_RELATED).collect();
        // Events of different engines arrive independently.
        found.sort_by_key(|other| other.time);
        let row = |other: &Related| RelatedRow {
            after: other.time.saturating_sub(event.time) as f64 / 1e9,
            probe: other.probe.clone(),
            fields: other.fields.clone(),
        };
        event.related = found.into_iter().map(row).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{EventFields, RelatedCriteria};
    use super::super::store::tests::event;
    use super::*;
    use crate::config::model::Point;

    fn point(name: &str) -> Point {
        Point::Function(name.into())
    }

    fn related(time: i64, process: &str, name: &str, height: &str) -> Related {
        Related {
            time,
            target: "t".into(),
            process: process.into(),
            point: point(name),
            probe: name.into(),
            keys: vec![("hash".into(), "x".into()), ("height".into(), height.into())],
            fields: EventFields(vec![("n".into(), time.to_string())]),
        }
    }

    #[test]
    fn related_events_share_process_key_and_probe() {
        let second = 1_000_000_000;
        let time = 1000 * second;
        let mut memory = RecentEvents::default();
        memory.add(related(time + second, "1", "b", "7"));
        memory.add(related(time - second / 2, "1", "a", "7"));
        for other in [
            related(time, "2", "a", "7"),
            related(time, "1", "a", "8"),
            related(time, "1", "c", "7"),
            related(time - MAX_AGE - 1, "1", "a", "7"),
            Related { target: "u".into(), ..related(time, "1", "a", "7") },
        ] {
            memory.add(other);
        }
        let mut slow = event(time, 1.0, "");
        memory.complete(&mut slow);
        assert_eq!(slow.related, []);
        slow.wanted = Some(RelatedCriteria {
            process: "1".into(),
            key: ("height".into(), "7".into()),
            with: vec![point("a"), point("b")],
        });
        memory.complete(&mut slow);
        let found: Vec<_> = slow.related.iter().map(|row| (row.after, row.probe.as_str())).collect();
        assert_eq!(found, [(-0.5, "a"), (1.0, "b")]);
    }

    #[test]
    fn keeps_the_latest_related_events() {
        let mut memory = RecentEvents::default();
        for n in 0..MAX_EVENTS as i64 + 10 {
            memory.add(related(n, "1", "a", if n < 20 { "7" } else { "8" }));
        }
        let wanted = |height: &str| {
            Some(RelatedCriteria {
                process: "1".into(),
                key: ("height".into(), height.into()),
                with: vec![point("a")],
            })
        };
        let mut slow = event(5000, 1.0, "");
        slow.wanted = wanted("7");
        memory.complete(&mut slow);
        assert_eq!(slow.related.len(), 10);
        slow.wanted = wanted("8");
        memory.complete(&mut slow);
        assert_eq!(slow.related.len(), MAX_RELATED);
        assert_eq!(slow.related[MAX_RELATED - 1].fields.get("n"), Some("4105"));
    }
}
