//! Which metrics a client asks for: `?name[]=a&name[]=b`.

use super::Head;

/// Names of families or of their series; all are meant if there are none.
#[derive(Debug, Default)]
pub struct Names(Vec<String>);

impl Names {
    /// Those in the query of an URL; other parts of it have no meaning here.
    pub fn of_query(query: &str) -> Self {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let names = pairs.filter(|(key, _)| decoded(key) == "name[]").map(|(_, name)| decoded(name));
        Self(names.collect())
    }

    /// Whether a family is meant.
    pub fn want(&self, head: &Head) -> bool {
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

/// Without percent signs and pluses.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| *first == b'%');
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    #[test]
    fn families_are_found_by_their_names_and_those_of_their_series() {
        let counter = Head::new("c_total", "", Kind::Counter);
        let histogram = Head::new("h", "", Kind::Histogram(vec![1.0]));
        let wants = |query: &str| {
            let names = Names::of_query(query);
            (names.want(&counter), names.want(&histogram))
        };
        for (query, wanted) in [
            ("", (true, true)),
            ("x=1", (true, true)),
            ("name[]=c_total", (true, false)),
            ("name%5B%5D=h_bucket", (false, true)),
            ("name[]=h&name%5b%5d=c%5ftotal", (true, true)),
            ("name[]=c_total_sum&name[]=c", (false, false)),
            ("name[]=%", (false, false)),
        ] {
            assert_eq!(wants(query), wanted, "{query}");
        }
    }
}
