//! A slow event, on its way to the file and as stored there.

use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::worst::Ranked;
use crate::config::model::Point;
use crate::layout::{SLOW_DISPLACED, SLOW_KEPT, SLOW_OUTDONE, SLOW_REFUSED, SLOW_SEEN, SLOW_UNWRITTEN};
use crate::store::UserStore;

/// The recorded data of an event.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRecord {
    /// When the probe was hit, in nanoseconds since 1970.
    pub time: i64,
    pub target: String,
    pub probe: String,
    /// The name of the histogram.
    pub metric: String,
    /// In the metric's unit, like `over`, which it exceeds.
    pub value: f64,
    pub over: Option<f64>,
    /// If set, it is one of this many worst events of its hour.
    pub worst: Option<u32>,
    pub fields: EventFields,
    /// Related events of other probes, in order.
    pub related: Vec<RelatedRow>,
    /// The criteria for related events, until these have been looked up.
    pub(crate) wanted: Option<RelatedCriteria>,
    /// Its rank among the worst, while it can still be displaced.
    pub(crate) ranked: Option<Ranked>,
}

/// The criteria for related events of other probes: same process, same key, one of these probes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RelatedCriteria {
    pub process: String,
    pub key: (String, String),
    pub with: Vec<Point>,
}

/// An event that may be related to slow ones.
#[derive(Debug)]
pub(crate) struct Related {
    pub time: i64,
    pub target: String,
    pub process: String,
    pub point: Point,
    pub probe: String,
    pub keys: Vec<(String, String)>,
    pub fields: EventFields,
}

/// A related event as stored with the slow one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelatedRow {
    /// Seconds after the slow event; negative if before it.
    pub after: f64,
    pub probe: String,
    pub fields: EventFields,
}

/// An event as stored in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Increases from event to event.
    pub id: i64,
    /// The label `node` of the exporter that stored it.
    pub node: String,
    pub event: EventRecord,
}

/// Values by name, as text, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFields(pub Vec<(String, String)>);

impl EventFields {
    /// Returns the value with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Formats a time in nanoseconds since 1970 per RFC 3339, in UTC.
pub(super) fn shown_time(nanoseconds: i64) -> String {
    DateTime::from_timestamp_nanos(nanoseconds).to_rfc3339_opts(SecondsFormat::Micros, true)
}

impl Serialize for StoredEvent {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let EventRecord { time, target, probe, metric, value, over, worst, fields, related, .. } =
            &self.event;
        let mut row = to.serialize_struct("event", 11)?;
        row.serialize_field("id", &self.id)?;
        row.serialize_field("time", &shown_time(*time))?;
        row.serialize_field("node", &self.node)?;
        row.serialize_field("target", target)?;
        row.serialize_field("probe", probe)?;
        row.serialize_field("metric", metric)?;
        row.serialize_field("value", value)?;
        row.serialize_field("over", over)?;
        row.serialize_field("worst", worst)?;
        row.serialize_field("fields", fields)?;
        row.serialize_field("related", related)?;
        row.end()
    }
}

impl Serialize for EventFields {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de> Deserialize<'de> for EventFields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = EventFields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EventFields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(EventFields(fields))
            }
        }
        from.deserialize_map(InOrder)
    }
}

/// The outcome counters of a probe's slow events.
#[derive(Debug, Clone)]
pub struct SlowCounters {
    pub(crate) store: Arc<UserStore>,
    /// The first of the slots described at [`crate::layout::SlowLayout::user`].
    pub(crate) slots: u32,
}

impl SlowCounters {
    pub(crate) fn seen(&self) {
        self.store.add(self.slots + SLOW_SEEN, 1);
    }

    /// Called by the thread that drains the ring, like [`Self::seen`].
    pub(super) fn rejected(&self) {
        self.store.add(self.slots + SLOW_REFUSED, 1);
    }

    /// Likewise: the event is not among the worst, but the kernel did not know that yet.
    pub(crate) fn outdone(&self) {
        self.store.add(self.slots + SLOW_OUTDONE, 1);
    }

    /// Called by the writer thread, like [`Self::unwritten`].
    pub(super) fn written(&self) {
        self.store.add(self.slots + SLOW_KEPT, 1);
    }

    pub(super) fn displaced(&self) {
        self.store.add(self.slots + SLOW_DISPLACED, 1);
    }

    pub(super) fn unwritten(&self) {
        self.store.add(self.slots + SLOW_UNWRITTEN, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_round_trip_in_order() {
        let fields = EventFields(vec![
            ("z".into(), "1".into()),
            ("a".into(), "\"\\\u{7}é\n".into()),
            ("m".into(), String::new()),
        ]);
        let text = serde_json::to_string(&fields).unwrap();
        assert!(text.starts_with(r#"{"z":"1","a":"#), "{text}");
        assert_eq!(serde_json::from_str::<EventFields>(&text).unwrap(), fields);
        assert_eq!(fields.get("a"), Some("\"\\\u{7}é\n"));
        assert_eq!(fields.get("b"), None);
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(shown_time(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(shown_time(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123456Z");
        assert_eq!(shown_time(-1), "1969-12-31T23:59:59.999999Z");
    }
}
