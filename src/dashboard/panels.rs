//! Panels in Grafana's JSON model, laid out from left to right.

use serde_json::{Value, json};

use crate::kinds::panel::Query;

/// Columns of a dashboard.
const WIDTH: usize = 24;
const PANEL_WIDTH: usize = 8;
const PANEL_HEIGHT: usize = 8;

/// The panels so far.
#[derive(Default)]
pub(super) struct Grid {
    pub panels: Vec<Value>,
    x: usize,
    y: usize,
}

impl Grid {
    /// Begins a row under what is there.
    pub fn row(&mut self, title: &str) {
        self.end_line();
        let id = self.panels.len() + 1;
        self.panels.push(json!({
            "id": id,
            "type": "row",
            "title": title,
            "collapsed": false,
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": self.y},
            "panels": [],
        }));
        self.y += 1;
    }

    pub fn time_series(&mut self, title: &str, description: &str, unit: &str, queries: &[Query]) {
        if self.x + PANEL_WIDTH > WIDTH {
            self.end_line();
        }
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
        let id = self.panels.len() + 1;
        self.panels.push(json!({
            "id": id,
            "type": "timeseries",
            "title": title,
            "description": description,
            "datasource": data_source(),
            "gridPos": {"h": PANEL_HEIGHT, "w": PANEL_WIDTH, "x": self.x, "y": self.y},
            "targets": targets,
            "fieldConfig": {
                "defaults": {
                    "unit": unit,
                    "custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10, "showPoints": "auto", "spanNulls": false},
                },
                "overrides": [],
            },
            "options": {
                "legend": {"showLegend": true, "displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            },
        }));
        self.x += PANEL_WIDTH;
    }

    fn end_line(&mut self) {
        if self.x > 0 {
            (self.x, self.y) = (0, self.y + PANEL_HEIGHT);
        }
    }
}

pub(super) fn data_source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// What a metric's series are summed by. Two exporters are never added up.
pub(super) fn by(labels: &[&str]) -> String {
    let mut all = vec!["instance"];
    all.extend(labels);
    all.join(", ")
}

pub(super) fn legend(labels: &[&str]) -> String {
    let names: Vec<_> = labels.iter().map(|label| format!("{{{{{label}}}}}")).collect();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_kept_apart() {
        assert_eq!(by(&["node", "peer"]), "instance, node, peer");
        assert_eq!(legend(&["node", "peer"]), "{{node}} {{peer}}");
    }
}
