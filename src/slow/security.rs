//! Recording of detections in the file of slow events.

use std::sync::Arc;

use super::SlowRecorder;
use super::event::{EventFields, EventRecord, SlowCounters};
use crate::clock::wall;
use crate::layout::SLOW_SLOTS;
use crate::net::{BanOutcome, Detection, Network};
use crate::store::UserStore;

/// The metric name of such events.
const METRIC: &str = "security_events_total";

impl SlowRecorder {
    /// Starts detection and the recording of detections.
    pub(crate) fn detect(self: &Arc<Self>, network: Option<&Network>) {
        let recorder = Arc::downgrade(self);
        let report = move |detection| {
            if let Some(recorder) = recorder.upgrade() {
                let store = || SlowCounters { store: Arc::new(UserStore::new(SLOW_SLOTS, [], 0)), slots: 0 };
                let counters = recorder.security.get_or_init(store).clone();
                recorder.offer(event(detection), counters);
            }
        };
        match network {
            Some(network) => network.detect(&self.detections, report),
            None => self.detections.start_without_network(report),
        }
    }
}

fn event(detection: Detection) -> EventRecord {
    let Detection { kind, target, probe, source, count, allowed, details, outcome } = detection;
    let source = source.map(|source| match source.is_single() {
        true => source.address().to_string(),
        false => source.to_string(),
    });
    let mut fields = vec![("kind", kind)];
    fields.extend(source.map(|source| ("address", source)));
    fields.extend(details);
    let (word, more) = match outcome {
        BanOutcome::Banned(time) => ("banned", Some(("ttl", format!("{}s", time.as_secs())))),
        BanOutcome::Observed(time) => ("observed", Some(("ttl", format!("{}s", time.as_secs())))),
        BanOutcome::Refused(_, why) => ("refused", Some(("why", why))),
        BanOutcome::Reported => ("reported", None),
    };
    fields.push(("outcome", word.to_string()));
    fields.extend(more);
    EventRecord {
        time: wall(),
        target,
        probe,
        metric: METRIC.to_string(),
        value: count,
        over: Some(allowed),
        worst: None,
        fields: EventFields(fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()),
        related: Vec::new(),
        wanted: None,
        ranked: None,
    }
}
