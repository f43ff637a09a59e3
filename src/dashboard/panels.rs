//! Panels in Grafana's JSON model, laid out from left to right.

use serde_json::{Value, json};

use crate::kinds::panel::Query;

/// Width of a dashboard, in columns.
pub(super) const WIDTH: usize = 24;
/// Labels with long values, and the minimum width of their columns.
const WIDE: [(&str, usize); 4] = [("probe", 220), ("reason", 340), ("node", 140), ("instance", 170)];
/// Units whose values are words ("a few seconds ago"), and the minimum width of their columns.
const WORDY: [&str; 2] = ["dateTimeFromNow", "dtdurations"];
const WORDY_WIDTH: usize = 140;
/// The width of a letter in a table, the padding around a text, and the minimum width of a column of numbers.
const LETTER: usize = 8;
const PADDING: usize = 24;
const LEAST: usize = 78;
const PANEL_WIDTH: usize = 8;
const PANEL_HEIGHT: usize = 8;
/// How many panels with a single number a line has, and how many if all fit into one.
const STATS: usize = 6;
const STATS_OF_ONE_LINE: usize = 8;
const STAT_HEIGHT: usize = 4;

/// The panels so far.
#[derive(Default)]
pub(super) struct Grid {
    pub panels: Vec<Value>,
    /// Panels of the last row, if it is collapsed and so holds them itself.
    inside: Option<usize>,
    id: usize,
    x: usize,
    y: usize,
    /// Height of the current line.
    height: usize,
}

/// A panel with a single number.
pub(super) struct Stat<'a> {
    pub title: &'a str,
    pub description: &'a str,
    pub unit: &'a str,
    pub expr: String,
    /// The number from which on it is bad; `None` if it cannot be.
    pub bad_from: Option<f64>,
}

/// A column of a table.
pub(super) struct Column<'a> {
    /// If empty, the column is hidden, and only its labels are shown.
    pub name: &'a str,
    pub expr: String,
    pub unit: &'a str,
    /// Colors and the values at which they start; the first has none.
    pub steps: &'a [(&'a str, Option<f64>)],
    /// Words shown instead of numbers: the first for 0.
    pub words: &'a [&'a str],
}

impl Grid {
    /// Starts a row below the existing panels. A collapsed one shows only its title until it is expanded.
    pub fn row(&mut self, title: &str, collapsed: bool) {
        self.end_line();
        self.inside = None;
        let row = json!({
            "type": "row",
            "title": title,
            "collapsed": collapsed,
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": self.y},
            "panels": [],
        });
        self.push(row);
        self.y += 1;
        self.inside = collapsed.then(|| self.panels.len() - 1);
    }

    /// Adds a panel with numbers over time.
    pub fn time_series(&mut self, title: &str, description: &str, unit: &str, queries: &[Query]) {
        let targets: Vec<Value> = ('A'..='Z')
            .zip(queries)
            .map(|(id, query)| {
                json!({
                    "refId": id.to_string(),
                    "datasource": data_source(),
                    "editorMode": "code",
                    "expr": query.expr,
                    "legendFormat": query.legend,
                    "range": true,
                })
            })
            .collect();
        let panel = json!({
            "type": "timeseries",
            "title": title,
            "description": description,
            "datasource": data_source(),
            "gridPos": self.place(PANEL_WIDTH, PANEL_HEIGHT),
            "targets": targets,
            "fieldConfig": {
                "defaults": {
                    "unit": unit,
                    "custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 0, "showPoints": "auto", "spanNulls": false},
                },
                "overrides": [],
            },
            "options": {
                // Of many series only the first ones are visible.
                "legend": {
                    "showLegend": true,
                    "displayMode": "table",
                    "placement": "bottom",
                    "calcs": ["last", "max"],
                    "sortBy": "Max",
                    "sortDesc": true,
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            },
        });
        self.push(panel);
    }

    /// Adds panels with current numbers: those of an exporter that has disappeared are not shown forever.
    pub fn stats(&mut self, stats: &[Stat<'_>]) {
        let lines = if stats.len() <= STATS_OF_ONE_LINE { 1 } else { stats.len().div_ceil(STATS) };
        for line in stats.chunks(stats.len().div_ceil(lines).max(1)) {
            let (width, wider) = (WIDTH / line.len(), WIDTH % line.len());
            line.iter().enumerate().for_each(|(at, stat)| self.stat(stat, width + usize::from(at < wider)));
        }
    }

    fn stat(&mut self, stat: &Stat<'_>, width: usize) {
        let mut steps =
            vec![json!({"color": if stat.bad_from.is_some() { "green" } else { "text" }, "value": null})];
        steps.extend(stat.bad_from.map(|from| json!({"color": "red", "value": from})));
        let panel = json!({
            "type": "stat",
            "title": stat.title,
            "description": stat.description,
            "datasource": data_source(),
            "gridPos": self.place(width, STAT_HEIGHT),
            "targets": [instant("A", &stat.expr)],
            "fieldConfig": {
                "defaults": {
                    "unit": stat.unit,
                    "decimals": decimals(stat.unit),
                    "noValue": "no data",
                    "thresholds": {"mode": "absolute", "steps": steps},
                },
                "overrides": [],
            },
            "options": {
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
                "colorMode": "value",
                "graphMode": "none",
                "textMode": "value",
                "justifyMode": "auto",
                "orientation": "auto",
            },
        });
        self.push(panel);
    }

    /// Adds a table with the current state of each exporter in a row. The first column, by which rows are sorted in
    /// descending order, is followed by the labels `by` under the names next to them. A label `instance` becomes a link
    /// to the exporter's own page, with `scheme`.
    pub fn table(
        &mut self,
        title: &str,
        description: &str,
        by: &[(&str, &str)],
        columns: &[Column<'_>],
        height: usize,
        scheme: &str,
    ) {
        let (mut targets, mut overrides) = (Vec::new(), Vec::new());
        let mut names = serde_json::Map::new();
        let mut order = serde_json::Map::new();
        let mut hidden = serde_json::Map::from_iter([("Time".to_string(), json!(true))]);
        for (at, (label, name)) in by.iter().enumerate() {
            names.insert((*label).to_string(), json!(name));
            order.insert((*label).to_string(), json!(at + 1));
            let mut properties = Vec::new();
            if let Some((_, width)) = WIDE.iter().find(|(wide, _)| wide == label) {
                properties.push(json!({"id": "custom.minWidth", "value": width}));
            }
            if *label == "instance" {
                let link = json!({
                    "title": "Status page of this exporter",
                    "url": format!("{scheme}://${{__value.text}}/"),
                    "targetBlank": true,
                });
                properties.push(json!({"id": "links", "value": [link]}));
            }
            if !properties.is_empty() {
                overrides
                    .push(json!({"matcher": {"id": "byName", "options": name}, "properties": properties}));
            }
        }
        for (at, (id, column)) in ('A'..='Z').zip(columns).enumerate() {
            let value = format!("Value #{id}");
            let mut target = instant(&id.to_string(), &column.expr);
            target["format"] = json!("table");
            targets.push(target);
            if column.name.is_empty() {
                hidden.insert(value, json!(true));
                continue;
            }
            names.insert(value.clone(), json!(column.name));
            order.insert(value, json!(if at == 0 { 0 } else { by.len() + at }));
            let mut properties = vec![json!({"id": "unit", "value": column.unit})];
            // With equal widths, numbers would have too much room and words too little.
            properties.push(if WORDY.contains(&column.unit) {
                json!({"id": "custom.minWidth", "value": WORDY_WIDTH})
            } else {
                let words = column.words.iter().chain([&column.name]).map(|word| word.len());
                let width = LETTER * words.max().unwrap_or(0) + PADDING;
                json!({"id": "custom.width", "value": width.max(LEAST)})
            });
            if let Some(number) = decimals(column.unit) {
                properties.push(json!({"id": "decimals", "value": number}));
            }
            if !column.steps.is_empty() {
                let steps: Vec<Value> = column
                    .steps
                    .iter()
                    .map(|(color, value)| json!({"color": color, "value": value}))
                    .collect();
                properties.push(json!({"id": "thresholds", "value": {"mode": "absolute", "steps": steps}}));
                properties.push(json!({"id": "custom.cellOptions", "value": {"type": "color-background", "mode": "basic"}}));
            }
            if !column.words.is_empty() {
                let words = column
                    .words
                    .iter()
                    .enumerate()
                    .map(|(number, word)| (number.to_string(), json!({"text": word, "index": number})));
                let words = json!([{"type": "value", "options": words.collect::<serde_json::Map<_, _>>()}]);
                properties.push(json!({"id": "mappings", "value": words}));
            }
            overrides
                .push(json!({"matcher": {"id": "byName", "options": column.name}, "properties": properties}));
        }
        let panel = json!({
            "type": "table",
            "title": title,
            "description": description,
            "datasource": data_source(),
            "gridPos": self.place(WIDTH, height),
            "targets": targets,
            "transformations": [
                {"id": "merge", "options": {}},
                {"id": "organize", "options": {"excludeByName": hidden, "indexByName": order, "renameByName": names}},
            ],
            "fieldConfig": {
                "defaults": {"noValue": "–", "custom": {"minWidth": 70, "align": "auto", "cellOptions": {"type": "auto"}, "filterable": false}},
                "overrides": overrides,
            },
            "options": {
                "showHeader": true,
                "cellHeight": "sm",
                "footer": {"show": false, "reducer": ["sum"], "fields": ""},
                "sortBy": columns.first().map(|column| json!({"displayName": column.name, "desc": true})).into_iter().collect::<Vec<_>>(),
            },
        });
        self.push(panel);
    }

    /// Returns the next position for a panel of this size.
    fn place(&mut self, width: usize, height: usize) -> Value {
        if self.x + width > WIDTH {
            self.end_line();
        }
        let place = json!({"h": height, "w": width, "x": self.x, "y": self.y});
        self.x += width;
        self.height = self.height.max(height);
        place
    }

    fn push(&mut self, mut panel: Value) {
        self.id += 1;
        panel["id"] = json!(self.id);
        let inside = self.inside.and_then(|row| self.panels[row]["panels"].as_array_mut());
        match inside {
            Some(panels) => panels.push(panel),
            None => self.panels.push(panel),
        }
    }

    fn end_line(&mut self) {
        if self.x > 0 {
            (self.x, self.y, self.height) = (0, self.y + self.height, 0);
        }
    }
}

/// Numbers without a unit count things; `increase` turns them into fractions.
fn decimals(unit: &str) -> Option<u8> {
    (unit == "short").then_some(0)
}

fn instant(id: &str, expr: &str) -> Value {
    json!({
        "refId": id,
        "datasource": data_source(),
        "editorMode": "code",
        "expr": expr,
        "legendFormat": "__auto",
        "instant": true,
        "range": false,
    })
}

pub(super) fn data_source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// The labels by which a metric's series are summed. Two exporters are never added up.
pub(super) fn by(labels: &[&str]) -> String {
    let mut all = vec!["instance"];
    all.extend(labels);
    all.join(", ")
}

/// The labels that tell series apart, and the exporter, since two may have the same name.
pub(super) fn legend(labels: &[&str]) -> String {
    let names = labels.iter().chain(&["instance"]).map(|label| format!("{{{{{label}}}}}"));
    names.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_grouped_by_instance_and_labels() {
        assert_eq!(by(&["node", "peer"]), "instance, node, peer");
        assert_eq!(legend(&["node", "peer"]), "{{node}} {{peer}} {{instance}}");
    }

    #[test]
    fn stats_fill_their_lines() {
        let widths = |number: usize| {
            let mut grid = Grid::default();
            let stat = |_| Stat {
                title: "a",
                description: "A.",
                unit: "short",
                expr: "1".to_string(),
                bad_from: None,
            };
            grid.stats(&(0..number).map(stat).collect::<Vec<_>>());
            let places = grid.panels.iter().map(|panel| &panel["gridPos"]);
            places.map(|at| (at["y"].as_u64().unwrap(), at["w"].as_u64().unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(widths(0), []);
        assert_eq!(widths(3), [(0, 8); 3]);
        assert_eq!(widths(7), [(0, 4), (0, 4), (0, 4), (0, 3), (0, 3), (0, 3), (0, 3)]);
        for (number, lines) in [(8, 1), (9, 2), (11, 2), (13, 3)] {
            let widths = widths(number);
            for line in 0..lines {
                let of_line = widths.iter().filter(|(y, _)| *y == 4 * line);
                assert_eq!(of_line.map(|(_, width)| width).sum::<u64>(), 24, "{number}: {widths:?}");
            }
        }
    }

    #[test]
    fn collapsed_row_nests_its_panels() {
        let mut grid = Grid::default();
        grid.row("One", false);
        grid.time_series("a", "A.", "short", &[]);
        for title in ["Two", "Three"] {
            grid.row(title, true);
            (0..4).for_each(|_| grid.time_series("b", "B.", "short", &[]));
        }
        let titles: Vec<_> = grid.panels.iter().map(|panel| panel["title"].as_str().unwrap()).collect();
        assert_eq!(titles, ["One", "a", "Two", "Three"]);
        let rows: Vec<_> = grid.panels.iter().map(|panel| panel["gridPos"]["y"].as_u64().unwrap()).collect();
        assert_eq!(rows, [0, 1, 9, 26]);
        assert_eq!(grid.panels[3]["panels"].as_array().unwrap().len(), 4);
    }
}
