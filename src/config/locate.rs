//! Finds the line and column of a path in a YAML text.
//!
//! The YAML library gives no positions for what it accepts, but every error raised while a node is being
//! read carries that node's position. So the text is read again, down the path only, and an error is raised
//! on arrival.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::place::Step;

/// Line and column, from one, of what `path` leads to; of its nearest surviving ancestor if the text does
/// not hold it. `None` if the text is not YAML.
pub(super) fn locate(text: &str, path: &[Step]) -> Option<(usize, usize)> {
    (0..=path.len()).rev().find_map(|len| locate_exactly(text, &path[..len]))
}

fn locate_exactly(text: &str, path: &[Step]) -> Option<(usize, usize)> {
    let document = serde_yaml::Deserializer::from_str(text).next()?;
    let error = Descend { path }.deserialize(document).err()?;
    let location = error.location()?;
    Some((location.line(), location.column()))
}

/// Position of the second document of a text that has more than one.
pub(super) fn second_document(text: &str) -> Option<(usize, usize)> {
    let second = serde_yaml::Deserializer::from_str(text).nth(1)?;
    let location = Descend { path: &[] }.deserialize(second).err()?.location()?;
    Some((location.line(), location.column()))
}

fn arrived<E: de::Error>() -> E {
    E::custom("here")
}

/// A key as text. Paths name keys so, whatever their YAML type.
pub(super) struct KeyText;

impl<'de> DeserializeSeed<'de> for KeyText {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for KeyText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is text, a number or a boolean")
    }

    fn visit_str<E>(self, key: &str) -> Result<String, E> {
        Ok(key.to_owned())
    }

    fn visit_bool<E>(self, key: bool) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_i64<E>(self, key: i64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_u64<E>(self, key: u64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_f64<E>(self, key: f64) -> Result<String, E> {
        Ok(key.to_string())
    }
}

/// Goes down `path`, and raises an error at its end.
struct Descend<'p> {
    path: &'p [Step],
}

impl<'de> DeserializeSeed<'de> for Descend<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.path.is_empty() {
            deserializer.deserialize_any(Stop)
        } else {
            deserializer.deserialize_any(self)
        }
    }
}

/// Nothing is found where the path asks for a list or mapping and the text has something else.
impl<'de> Visitor<'de> for Descend<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if let Some((Step::Index(index), rest)) = self.path.split_first() {
            for _ in 0..*index {
                if list.next_element::<IgnoredAny>()?.is_none() {
                    return Ok(());
                }
            }
            list.next_element_seed(Descend { path: rest })?;
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (step, rest) = match self.path.split_first() {
            Some((step, rest)) => (step, rest),
            None => return Err(arrived()),
        };
        let (wanted, stop_at) = match step {
            Step::Key(key) => (key, None),
            Step::KeyName(key) => (key, Some(0)),
            Step::Repeated(key) => (key, Some(1)),
            Step::Index(_) | Step::Position { .. } => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                return Ok(());
            }
        };
        let mut seen = 0;
        while let Some(is_wanted) = map.next_key_seed(KeyIs { wanted, stop: stop_at == Some(seen) })? {
            if is_wanted && stop_at.is_none() && seen == 0 {
                map.next_value_seed(Descend { path: rest })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            seen += usize::from(is_wanted);
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Tells whether a key is the wanted one; at the one to stop at, raises an error instead.
struct KeyIs<'p> {
    wanted: &'p str,
    stop: bool,
}

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl KeyIs<'_> {
    fn check<E: de::Error>(self, key: Result<String, E>) -> Result<bool, E> {
        let is_wanted = key? == self.wanted;
        if is_wanted && self.stop { Err(arrived()) } else { Ok(is_wanted) }
    }
}

impl Visitor<'_> for KeyIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        KeyText.expecting(f)
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        self.check(KeyText.visit_str(key))
    }

    fn visit_bool<E: de::Error>(self, key: bool) -> Result<bool, E> {
        self.check(KeyText.visit_bool(key))
    }

    fn visit_i64<E: de::Error>(self, key: i64) -> Result<bool, E> {
        self.check(KeyText.visit_i64(key))
    }

    fn visit_u64<E: de::Error>(self, key: u64) -> Result<bool, E> {
        self.check(KeyText.visit_u64(key))
    }

    fn visit_f64<E: de::Error>(self, key: f64) -> Result<bool, E> {
        self.check(KeyText.visit_f64(key))
    }
}

/// Raises an error whatever the node is.
struct Stop;

impl<'de> Visitor<'de> for Stop {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }

    // Every other kind of node is an "invalid type" error already; these two have no such default that the
    // library would mark with the node's own position.
    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(arrived())
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(arrived())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key: &str) -> Step {
        Step::Key(key.to_owned())
    }

    const TEXT: &str = "\
# a comment
node_name: mynode
targets:
  - name: one
    probes:
    - on: usdt:a:b
      args: { height: { index: 1 }, winner: {index: 2, type: string} }
      metrics:
        - counter: x_total
          labels: {a: [1, 2,
                   33], b: &anchor {deep: yes}}
          help: |
            two
            lines
  -
    name: two
    again: *anchor
    empty:
    \"quoted key\": 'x'
    5: five
    true: t
";

    #[test]
    fn finds_values_of_every_style() {
        let probe = [key("targets"), Step::Index(0), key("probes"), Step::Index(0)];
        let metric = [&probe[..], &[key("metrics"), Step::Index(0)]].concat();
        let in_metric = |rest: &[Step]| locate_exactly(TEXT, &[&metric[..], rest].concat());
        let two = |rest: Step| locate_exactly(TEXT, &[key("targets"), Step::Index(1), rest]);

        assert_eq!(locate_exactly(TEXT, &[]), Some((2, 1)));
        assert_eq!(locate_exactly(TEXT, &[key("node_name")]), Some((2, 12)));
        assert_eq!(locate_exactly(TEXT, &[key("targets")]), Some((4, 3)));
        assert_eq!(locate_exactly(TEXT, &probe), Some((6, 7)));
        let winner = [&probe[..], &[key("args"), key("winner"), key("type")]].concat();
        assert_eq!(locate_exactly(TEXT, &winner), Some((7, 62)));
        assert_eq!(in_metric(&[]), Some((9, 11)));
        assert_eq!(in_metric(&[key("labels"), key("a"), Step::Index(1)]), Some((10, 27)));
        assert_eq!(in_metric(&[key("labels"), key("a"), Step::Index(2)]), Some((11, 20)));
        assert_eq!(in_metric(&[key("help")]), Some((12, 17)));
        assert_eq!(two(key("name")), Some((16, 11)));
        assert_eq!(two(key("quoted key")), Some((19, 19)));
        assert_eq!(two(key("5")), Some((20, 8)));
        assert_eq!(two(key("true")), Some((21, 11)));
        // An alias is where its anchor is: that is the text to mend.
        assert_eq!(two(key("again")), Some((11, 28)));
        let deep = [key("targets"), Step::Index(1), key("again"), key("deep")];
        assert_eq!(locate_exactly(TEXT, &deep), Some((11, 43)));
        // A value that was left out is where it would stand.
        assert_eq!(two(key("empty")).map(|(line, _)| line), Some(18));
    }

    #[test]
    fn finds_keys() {
        let in_two = |step: Step| locate_exactly(TEXT, &[key("targets"), Step::Index(1), step]);
        assert_eq!(in_two(Step::KeyName("again".into())), Some((17, 5)));
        assert_eq!(in_two(Step::KeyName("quoted key".into())), Some((19, 5)));
        assert_eq!(in_two(Step::KeyName("5".into())), Some((20, 5)));
        let flow = [key("targets"), Step::Index(0), key("probes"), Step::Index(0), key("args")];
        let flow = [&flow[..], &[Step::KeyName("winner".into())]].concat();
        assert_eq!(locate_exactly(TEXT, &flow), Some((7, 37)));
        let repeated = "a: 1\nb: 2\na: 3\n";
        assert_eq!(locate_exactly(repeated, &[Step::KeyName("a".into())]), Some((1, 1)));
        assert_eq!(locate_exactly(repeated, &[Step::Repeated("a".into())]), Some((3, 1)));
        assert_eq!(locate_exactly(repeated, &[key("a")]), Some((1, 4)));
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(locate_exactly("{é: x, b: y}", &[key("b")]), Some((1, 11)));
    }

    #[test]
    fn what_is_not_there_is_found_at_its_nearest_ancestor() {
        assert_eq!(locate_exactly(TEXT, &[key("nothing")]), None);
        assert_eq!(locate_exactly(TEXT, &[key("targets"), Step::Index(7)]), None);
        assert_eq!(locate_exactly(TEXT, &[key("node_name"), key("deeper")]), None);
        assert_eq!(locate(TEXT, &[key("node_name"), key("deeper")]), Some((2, 12)));
        assert_eq!(locate(TEXT, &[key("nothing")]), Some((2, 1)));
        assert_eq!(locate("{", &[key("nothing")]), Some((2, 1)), "of the syntax error itself");
    }

    #[test]
    fn finds_the_second_document() {
        assert_eq!(second_document("a: 1\n---\nb: 2\n"), Some((3, 1)));
        assert_eq!(second_document("a: 1\n"), None);
    }
}
