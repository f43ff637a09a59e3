//! Metric families and the formats that they are served in.
//!
//! Everything that is exposed is a [`Head`] and its [`Sample`]s: measured series, the exporter's own, the network's. A
//! [`Format`] turns these into bytes, so a new format is one more module here and nothing elsewhere. Pure.

mod family;
mod sample;
mod text;

pub use family::{Families, Family, Head, push_label};
pub use sample::{Kind, Number, Sample, Value};

/// A format that Prometheus reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The text format, version 0.0.4.
    Text,
}

impl Format {
    /// Appends one family; one without samples is left out.
    pub fn write<'a>(self, head: &Head, samples: impl Iterator<Item = Sample<'a>>, to: &mut Vec<u8>) {
        match self {
            Format::Text => text::write(&head.text, samples, to),
        }
    }
}
