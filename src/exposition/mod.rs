//! Metric families and the formats that they are served in.
//!
//! Everything that is exposed is a [`Head`] and its [`Sample`]s: measured series, the exporter's own, the network's. A
//! [`Format`] turns these into bytes, so a new format is one more module here and nothing elsewhere. Pure.

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

/// A format that Prometheus reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Format {
    /// The text format, version 0.0.4.
    Text,
    /// OpenMetrics 1.0. Counting began at `created`, in seconds since 1970.
    OpenMetrics { created: f64 },
    /// Protocol buffers, each with its length before it.
    Protobuf { created: f64 },
}

impl Format {
    /// Appends one family; one without samples is left out.
    pub fn write<'a>(self, head: &Head, samples: impl Iterator<Item = Sample<'a>>, to: &mut Vec<u8>) {
        match self {
            Format::Text => text::write(&head.text, samples, to),
            Format::OpenMetrics { created } => openmetrics::write(head.openmetrics(), samples, created, to),
            Format::Protobuf { created } => protobuf::write(head, samples, created, to),
        }
    }

    /// Whether it has room for exemplars.
    pub fn has_exemplars(self) -> bool {
        !matches!(self, Format::Text)
    }

    /// Appends what stands behind the last family.
    pub fn finish(self, to: &mut Vec<u8>) {
        match self {
            Format::Text | Format::Protobuf { .. } => {}
            Format::OpenMetrics { .. } => to.extend_from_slice(openmetrics::END),
        }
    }
}
