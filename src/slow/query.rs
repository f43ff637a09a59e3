//! `exporter events`: queries a file of slow events.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::event::{RelatedRow, StoredEvent, shown_time};
use super::store::{SlowError, scan};
use crate::clock::wall;
use crate::database::read_only;
use crate::plan::STACK;
use crate::table::TextTable;

/// A filter for events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventQuery {
    /// Only events within this period before now.
    pub since: Option<Duration>,
    pub probe: Option<String>,
    pub metric: Option<String>,
    /// Only events whose fields have these values.
    pub fields: Vec<(String, String)>,
    /// The maximum number of events; the latest are returned.
    pub limit: usize,
}

impl EventQuery {
    fn means(&self, row: &StoredEvent) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        let event = &row.event;
        is(&self.probe, &event.probe)
            && is(&self.metric, &event.metric)
            && self.fields.iter().all(|(name, value)| event.fields.get(name) == Some(value))
    }
}

/// Returns the matching events, latest last. Requires only read permission for the file.
///
/// # Errors
/// If the file cannot be read or contains no slow events.
pub fn read(path: &Path, query: &EventQuery) -> Result<Vec<StoredEvent>, SlowError> {
    read_at(path, query, wall())
}

fn read_at(path: &Path, query: &EventQuery, now: i64) -> Result<Vec<StoredEvent>, SlowError> {
    // The system's message about the file itself is clearer.
    if let Err(err) = std::fs::File::open(path) {
        let next = "`exporter events --file FILE` reads another file";
        return Err(SlowError::without_source(format!("failed to open {}: {err}", path.display()), next));
    }
    let since = query
        .since
        .map_or(i64::MIN, |since| now.saturating_sub(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)));
    let mut found = Vec::new();
    let mut select = |db: Connection| {
        found.clear();
        scan(&db, since, |row| {
            if query.means(&row) {
                found.push(row);
            }
            found.len() < query.limit
        })
    };
    // If no exporter is writing and the directory is not ours, SQLite must be told that nothing modifies the file.
    let err = match read_only(path, false).and_then(&mut select) {
        Err(err) => match read_only(path, true).and_then(&mut select) {
            Err(_) => Err(err),
            Ok(()) => Ok(()),
        },
        Ok(()) => Ok(()),
    };
    err.map_err(|err| {
        SlowError::new(format!("failed to read slow events from {}", path.display()), err, "")
    })?;
    found.reverse();
    Ok(found)
}

/// Formats events as a table, with the fields of each event below it.
///
/// Rows wider than `screen` become blocks.
pub fn table(rows: &[StoredEvent], screen: Option<usize>) -> String {
    if rows.is_empty() {
        return "no slow events\n".to_owned();
    }
    let mut table = TextTable::new(0, &["TIME", "TARGET", "METRIC", "VALUE", "OVER"]).named_by(3);
    for StoredEvent { event, .. } in rows {
        let shown = |value: f64| shown_value(&event.metric, value);
        table.row([
            shown_time(event.time),
            event.target.clone(),
            event.metric.clone(),
            shown(event.value),
            shown_reason(&event.metric, event.over, event.worst),
        ]);
        let (stacks, fields): (Vec<_>, Vec<_>) = event.fields.0.iter().partition(|(name, _)| name == STACK);
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        table.line(format!("{}: {}", event.probe, fields.join(" ")));
        for (_, stack) in stacks {
            table.line(format!("in {stack}"));
        }
        for RelatedRow { after, probe, fields } in &event.related {
            let sign = if *after < 0.0 { "" } else { "+" };
            let fields: Vec<_> = fields.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
            table.line(format!("{sign}{} {probe}: {}", shown_seconds(*after), fields.join(" ")));
        }
    }
    table.fitted(screen)
}

/// Formats why an event was recorded: the bound that it exceeds, and that it is one of the worst of its hour.
pub(crate) fn shown_reason(metric: &str, over: Option<f64>, worst: Option<u32>) -> String {
    let over = over.map(|over| shown_value(metric, over));
    let worst = worst.map(|worst| format!("worst {worst}"));
    over.into_iter().chain(worst).collect::<Vec<_>>().join(", ")
}

/// Formats a value of this metric; times get a human-readable unit.
pub(crate) fn shown_value(metric: &str, value: f64) -> String {
    if !metric.ends_with("_seconds") {
        return value.to_string();
    }
    shown_seconds(value)
}

/// Formats a time in the unit with the fewest zeros.
fn shown_seconds(seconds: f64) -> String {
    let units = [(1.0, "s"), (1e3, "ms"), (1e6, "us"), (1e9, "ns")];
    let fitting = units.iter().find(|(factor, _)| (seconds * factor).abs() >= 1.0);
    let (factor, unit) = fitting.unwrap_or(&(1.0, "s"));
    // The significant ones of six decimal places.
    let text = format!("{:.6}", seconds * factor);
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::super::store::tests::event;
    use super::super::store::{Bounds, EventStore};
    use super::*;

    fn all() -> EventQuery {
        EventQuery { limit: 100, ..EventQuery::default() }
    }

    #[test]
    fn finds_events_by_content() {
        let directory = tempfile::tempdir().unwrap();
        // A name with characters that are special in a URI.
        let path = directory.path().join("a b?c#d%20.db");
        let bounds = Bounds { rows: 100, bytes: 1 << 20, age: Duration::from_secs(1 << 40) };
        let mut store = EventStore::open(&path, bounds).unwrap();
        let second = 1_000_000_000;
        let events: Vec<_> =
            (0..4).map(|n| event(n * second, n as f64, ["x", "y"][n as usize % 2])).collect();
        store.write("n", &events.iter().collect::<Vec<_>>(), &[]).unwrap();
        let values = |query: EventQuery| -> Vec<f64> {
            read_at(&path, &query, 4 * second).unwrap().iter().map(|row| row.event.value).collect()
        };
        let field = |value: &str| EventQuery { fields: vec![("z".into(), value.into())], ..all() };
        // While it is open, and after it was closed.
        for _ in 0..2 {
            assert_eq!(values(all()), [0.0, 1.0, 2.0, 3.0]);
            assert_eq!(values(EventQuery { limit: 2, ..all() }), [2.0, 3.0]);
            assert_eq!(values(EventQuery { since: Some(Duration::from_secs(2)), ..all() }), [2.0, 3.0]);
            assert_eq!(values(field("y")), [1.0, 3.0]);
            assert_eq!(values(EventQuery { limit: 1, ..field("x") }), [2.0]);
            assert_eq!(values(EventQuery { probe: Some("p:q".into()), ..all() }).len(), 4);
            assert_eq!(values(EventQuery { probe: Some("p".into()), ..all() }).len(), 0);
            assert_eq!(values(EventQuery { metric: Some("m_seconds".into()), ..all() }).len(), 4);
            if store.rows().is_ok() {
                store = EventStore::open(&directory.path().join("other.db"), bounds).unwrap();
            }
        }
        let missing = read(&directory.path().join("none.db"), &all()).unwrap_err().to_string();
        assert!(missing.contains("none.db") && missing.contains("--file"), "{missing}");
        std::fs::write(directory.path().join("text.db"), "x".repeat(5000)).unwrap();
        assert!(read(&directory.path().join("text.db"), &all()).is_err());
    }

    #[test]
    fn table_describes_the_events() {
        let row = |value| StoredEvent {
            id: 1,
            node: "n".into(),
            event: event(1_700_000_000_000_000_000, value, "x y"),
        };
        assert_eq!(
            table(&[row(0.612), row(12.0)], None),
            "TIME                         TARGET  METRIC     VALUE  OVER\n\
             2023-11-14T22:13:20.000000Z  t       m_seconds  612ms  500ms\n    p:q: z=x y a=1\n\
             2023-11-14T22:13:20.000000Z  t       m_seconds  12s    500ms\n    p:q: z=x y a=1\n"
        );
        let reason = |over, worst| shown_reason("m_seconds", over, worst);
        assert_eq!(
            [reason(Some(0.5), None), reason(None, Some(20)), reason(Some(2.0), Some(5))],
            ["500ms", "worst 20", "2s, worst 5"]
        );
        assert_eq!(
            table(&[row(0.612)], Some(40)),
            "2023-11-14T22:13:20.000000Z t m_seconds\n  value 612ms\n  over 500ms\n    p:q: z=x y a=1\n"
        );
        assert_eq!(table(&[], None), "no slow events\n");
        for (seconds, shown) in [
            (0.0, "0s"),
            (1.5, "1.5s"),
            (0.000_012_3, "12.3us"),
            (3e-9, "3ns"),
            (-0.25, "-250ms"),
            (100.0, "100s"),
        ] {
            assert_eq!(shown_seconds(seconds), shown);
        }
        assert_eq!(shown_value("blocks", 12.0), "12");
    }
}
