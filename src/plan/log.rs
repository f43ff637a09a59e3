//! An event's line in the verbose log, from the template of its probe.

use super::LogPart;
use super::scope::Scope;
use crate::config::model::BUILT_INS;

impl Scope<'_> {
    /// `{name}` in a template is the value of that name, or else the label of that name as a metric here shows it;
    /// without a template, all named arguments are shown.
    pub(super) fn log(&mut self) {
        let template = self.probe.log.clone().unwrap_or_else(|| {
            let display: Vec<_> =
                self.probe.args.iter().map(|arg| format!(" {0}={{{0}}}", arg.name)).collect();
            format!("{}{}", self.plan.name, display.concat())
        });
        let mut rest = template.as_str();
        let mut text = String::new();
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            let close = rest[at..].find('}').map(|close| at + close);
            if rest[at + 1..].starts_with(&rest[at..=at]) {
                text.push_str(&rest[at..=at]);
                rest = &rest[at + 2..];
            } else if let (true, Some(close)) = (rest[at..].starts_with('{'), close) {
                self.plan.log.push(LogPart::Text(std::mem::take(&mut text)));
                let part = self.logged(&rest[at + 1..close]);
                self.plan.log.extend(part);
                rest = &rest[close + 1..];
            } else {
                rest = &rest[at + 1..];
            }
        }
        text.push_str(rest);
        self.plan.log.push(LogPart::Text(text));
    }

    fn logged(&mut self, name: &str) -> Option<LogPart> {
        if self.probe.unread.metrics {
            // It may be one of the labels that were not read.
            return None;
        }
        let is_value = self.probe.args.iter().any(|arg| arg.name == name) || BUILT_INS.contains(&name);
        let mut labels = self.probe.metrics.iter().flat_map(|metric| &metric.labels);
        match labels.find(|label| label.name == name) {
            Some(label) if !is_value => self.label(label).map(LogPart::Label),
            _ => self.shown(&self.probe.at.clone(), name).map(LogPart::Value),
        }
    }
}
