//! The plan as a table for people.

use std::fmt::Write;

use super::{Plan, Route, Source};
use crate::config::model::Selector;

/// One block for each probe: where it is, what is read, and where each of its metrics is computed.
pub fn table(plan: &Plan) -> String {
    let mut to = String::new();
    for target in &plan.targets {
        let what = match &target.selector {
            Selector::Binary(path) => path.display().to_string(),
            Selector::Process(name) => format!("processes called {name}"),
            Selector::Pid(pid) => format!("process {pid}"),
            Selector::Container(name) => format!("container {name}"),
        };
        let _ = writeln!(to, "{}: {what}", target.name);
        for probe in target.probes.iter().map(|number| &plan.probes[*number]) {
            let values: Vec<_> = probe
                .values
                .iter()
                .map(|value| match value.source {
                    Source::Arg(index) => format!("{}=arg{index}", value.name),
                    _ => value.name.clone(),
                })
                .collect();
            let _ = writeln!(
                to,
                "  {}  reads: {}",
                probe.name,
                if values.is_empty() { "nothing".to_string() } else { values.join(" ") }
            );
            for action in &probe.actions {
                let place = match &action.route {
                    Route::Hits => "kernel (the number of hits)".to_string(),
                    Route::Kernel => "kernel".to_string(),
                    Route::Ring(why) => format!("user space: {why}"),
                };
                let _ = writeln!(to, "    {:<52} {place}", plan.metrics[action.metric].name);
            }
        }
    }
    to
}
