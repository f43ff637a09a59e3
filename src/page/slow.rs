//! The latest recorded slow events.

use std::sync::Arc;

use super::families::cut;
use super::measured::unit_of;
use super::model::{RelatedEvent, SlowEvent};
use crate::slow::{EventFields, StoredEvent};

/// Related events that are shown with one event.
const MAX_RELATED: usize = 16;

/// The events as shown.
pub(super) fn slow(rows: &[Arc<StoredEvent>]) -> Vec<SlowEvent> {
    rows.iter().map(|row| event(row)).collect()
}

fn event(row: &StoredEvent) -> SlowEvent {
    let event = &row.event;
    let related = event.related.iter().take(MAX_RELATED).map(|other| RelatedEvent {
        after: other.after,
        probe: other.probe.clone(),
        fields: fields(&other.fields),
    });
    SlowEvent {
        time: event.time as f64 / 1e9,
        target: event.target.clone(),
        probe: event.probe.clone(),
        metric: event.metric.clone(),
        unit: unit_of(&event.metric),
        value: event.value,
        over: event.over,
        worst: event.worst,
        fields: fields(&event.fields),
        related: related.collect(),
    }
}

fn fields(fields: &EventFields) -> Vec<(String, String)> {
    fields.0.iter().map(|(name, value)| (name.clone(), cut(value))).collect()
}
