//! Metric families and the formats they are served in.
//!
//! Everything exposed is a [`Head`] and its [`Sample`]s: probe metrics, the exporter's own metrics, network metrics. A
//! [`Format`] serializes these, so adding a format takes one more module here and no changes elsewhere. Pure.

mod exemplar;
mod family;
mod labels;
mod names;
mod native;
mod negotiate;
mod openmetrics;
mod protobuf;
mod sample;
mod text;

pub use exemplar::{Exemplar, Exemplars};
pub use family::{Families, Family, Head};
pub use labels::{labels, push_label};
pub use names::Names;
pub use negotiate::negotiate;
pub(crate) use openmetrics::{created_name, family_name};
pub use sample::{Kind, Number, Sample, SampleValue};

/// A format that Prometheus can scrape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Format {
    /// The text format, version 0.0.4.
    Text,
    /// OpenMetrics 1.0. `created` is when counting started, in seconds since 1970.
    OpenMetrics { created: f64 },
    /// Length-delimited protocol buffers.
    Protobuf { created: f64 },
}

impl Format {
    /// Appends one family; a family without samples is omitted.
    pub fn write<'a>(self, head: &Head, samples: impl Iterator<Item = Sample<'a>>, to: &mut Vec<u8>) {
        match self {
            Format::Text => text::write(&head.text, samples, to),
            Format::OpenMetrics { created } => openmetrics::write(head.openmetrics(), samples, created, to),
            Format::Protobuf { created } => protobuf::write(head, samples, created, to),
        }
    }

    /// Whether the format supports exemplars.
    pub fn has_exemplars(self) -> bool {
        !matches!(self, Format::Text)
    }

    /// Appends what follows the last family.
    pub fn finish(self, to: &mut Vec<u8>) {
        match self {
            Format::Text | Format::Protobuf { .. } => {}
            Format::OpenMetrics { .. } => to.extend_from_slice(openmetrics::END),
        }
    }
}
