//! The metrics that a client selects.

use super::Head;

/// Names of families or of their series; an empty list selects all.
#[derive(Debug, Default)]
pub struct Names(Vec<String>);

impl Names {
    pub fn new(names: Vec<String>) -> Self {
        Self(names)
    }

    /// Whether a family is selected.
    pub fn matches(&self, head: &Head) -> bool {
        let is_meant = |name: &String| {
            name == head.name()
                || head
                    .kind()
                    .suffixes()
                    .iter()
                    .any(|suffix| name.strip_suffix(suffix).is_some_and(|family| family == head.name()))
        };
        self.0.is_empty() || self.0.iter().any(is_meant)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    #[test]
    fn families_match_by_family_or_series_name() {
        let counter = Head::new("c_total", "", Kind::Counter);
        let histogram = Head::new("h", "", Kind::Histogram(vec![1.0]));
        let wants = |names: &[&str]| {
            let names = Names::new(names.iter().map(ToString::to_string).collect());
            (names.matches(&counter), names.matches(&histogram))
        };
        for (names, wanted) in [
            (&[][..], (true, true)),
            (&["c_total"], (true, false)),
            (&["h_bucket"], (false, true)),
            (&["h", "c_total"], (true, true)),
            (&["c_total_sum", "c"], (false, false)),
            (&["%"], (false, false)),
        ] {
            assert_eq!(wants(names), wanted, "{names:?}");
        }
    }
}
