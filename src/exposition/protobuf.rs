//! Protocol buffers: each family is a length-delimited `io.prometheus.client.MetricFamily` message.
//!
//! Format: <https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto>.

use super::Head;
use super::exemplar::Exemplar;
use super::labels::labels;
use super::native::NativeBuckets;
use super::sample::{Kind, Sample, SampleValue};

/// Field numbers from the `.proto` definition.
mod field {
    pub const FAMILY_NAME: u32 = 1;
    pub const FAMILY_HELP: u32 = 2;
    pub const FAMILY_TYPE: u32 = 3;
    pub const FAMILY_METRIC: u32 = 4;
    pub const METRIC_LABEL: u32 = 1;
    pub const METRIC_GAUGE: u32 = 2;
    pub const METRIC_COUNTER: u32 = 3;
    pub const METRIC_HISTOGRAM: u32 = 7;
    pub const LABEL_NAME: u32 = 1;
    pub const LABEL_VALUE: u32 = 2;
    /// The value of a gauge or counter.
    pub const NUMBER: u32 = 1;
    pub const COUNTER_CREATED: u32 = 3;
    pub const HISTOGRAM_COUNT: u32 = 1;
    pub const HISTOGRAM_SUM: u32 = 2;
    pub const HISTOGRAM_BUCKET: u32 = 3;
    pub const HISTOGRAM_CREATED: u32 = 15;
    pub const HISTOGRAM_SCHEMA: u32 = 5;
    pub const HISTOGRAM_ZERO_THRESHOLD: u32 = 6;
    pub const HISTOGRAM_ZERO_COUNT: u32 = 7;
    pub const HISTOGRAM_SPAN: u32 = 12;
    pub const HISTOGRAM_DELTA: u32 = 13;
    pub const SPAN_OFFSET: u32 = 1;
    pub const SPAN_LENGTH: u32 = 2;
    pub const BUCKET_COUNT: u32 = 1;
    pub const BUCKET_BOUND: u32 = 2;
    pub const BUCKET_EXEMPLAR: u32 = 3;
    pub const EXEMPLAR_LABEL: u32 = 1;
    pub const EXEMPLAR_VALUE: u32 = 2;
    pub const EXEMPLAR_TIME: u32 = 3;
    pub const TIME_SECONDS: u32 = 1;
    pub const TIME_NANOSECONDS: u32 = 2;
}

/// Appends a family; a family without samples is omitted. `created` is in seconds since 1970.
pub fn write<'a>(head: &Head, samples: impl Iterator<Item = Sample<'a>>, created: f64, to: &mut Vec<u8>) {
    let mut family = Message::default();
    family.text(field::FAMILY_NAME, &head.name);
    family.text(field::FAMILY_HELP, head.help.trim());
    family.integer(
        field::FAMILY_TYPE,
        match head.kind {
            Kind::Counter => 0,
            Kind::Gauge => 1,
            Kind::Histogram(_) => 4,
        },
    );
    let created = head.is_counted_here.then(|| time(created));
    let mut any = false;
    for sample in samples {
        any = true;
        family.message(field::FAMILY_METRIC, &metric(head, &sample, created.as_ref()));
    }
    if any {
        varint(family.0.len() as u64, to);
        to.extend_from_slice(&family.0);
    }
}

fn metric(head: &Head, sample: &Sample<'_>, created: Option<&Message>) -> Message {
    let mut metric = Message::default();
    metric.labels(field::METRIC_LABEL, head.labels(sample.key));
    let mut content = Message::default();
    let number = match (&head.kind, sample.value) {
        (Kind::Counter, SampleValue::Number(number)) => {
            content.double(field::NUMBER, number.as_real());
            created.into_iter().for_each(|time| content.message(field::COUNTER_CREATED, time));
            field::METRIC_COUNTER
        }
        (_, SampleValue::Number(number)) => {
            content.double(field::NUMBER, number.as_real());
            field::METRIC_GAUGE
        }
        (kind, SampleValue::Histogram { counts, sum, exemplars }) => {
            let total = counts.iter().fold(0u64, |total, count| total.wrapping_add(*count));
            content.integer(field::HISTOGRAM_COUNT, total);
            content.double(field::HISTOGRAM_SUM, sum.as_real());
            let bounds = match kind {
                Kind::Histogram(bounds) => &bounds[..],
                Kind::Counter | Kind::Gauge => &[],
            };
            let mut below = 0u64;
            let exemplars = exemplars.iter().map(Option::as_ref).chain(std::iter::repeat(None));
            let buckets = counts.iter().zip(bounds.iter().chain([&f64::INFINITY]));
            for ((count, bound), exemplar) in buckets.zip(exemplars) {
                below = below.wrapping_add(*count);
                let mut bucket = Message::default();
                bucket.integer(field::BUCKET_COUNT, below);
                bucket.double(field::BUCKET_BOUND, *bound);
                if let Some(Exemplar { labels, value, time: at }) = exemplar.filter(|_| *count > 0) {
                    let mut exemplar = Message::default();
                    exemplar.labels(field::EXEMPLAR_LABEL, labels);
                    exemplar.double(field::EXEMPLAR_VALUE, *value);
                    exemplar.message(field::EXEMPLAR_TIME, &time(*at));
                    bucket.message(field::BUCKET_EXEMPLAR, &exemplar);
                }
                content.message(field::HISTOGRAM_BUCKET, &bucket);
            }
            created.into_iter().for_each(|time| content.message(field::HISTOGRAM_CREATED, time));
            if let Some(native) = &head.native {
                content.native(&native.read(counts));
            }
            field::METRIC_HISTOGRAM
        }
    };
    metric.message(number, &content);
    metric
}

fn time(seconds: f64) -> Message {
    let mut time = Message::default();
    time.integer(field::TIME_SECONDS, seconds as u64);
    time.integer(field::TIME_NANOSECONDS, (seconds.fract() * 1e9) as u64);
    time
}

/// The encoded fields of a message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u32, kind: u32) {
        varint(u64::from(field << 3 | kind), &mut self.0);
    }

    fn integer(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        varint(value, &mut self.0);
    }

    fn double(&mut self, field: u32, value: f64) {
        self.key(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, 2);
        varint(bytes.len() as u64, &mut self.0);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn native(&mut self, read: &NativeBuckets) {
        self.signed(field::HISTOGRAM_SCHEMA, read.schema.into());
        self.double(field::HISTOGRAM_ZERO_THRESHOLD, read.zero_threshold);
        self.integer(field::HISTOGRAM_ZERO_COUNT, read.zero_count);
        for (offset, length) in &read.spans {
            let mut span = Message::default();
            span.signed(field::SPAN_OFFSET, (*offset).into());
            span.integer(field::SPAN_LENGTH, (*length).into());
            self.message(field::HISTOGRAM_SPAN, &span);
        }
        for delta in &read.deltas {
            self.signed(field::HISTOGRAM_DELTA, *delta);
        }
    }

    /// Appends a signed integer in zigzag encoding.
    fn signed(&mut self, field: u32, value: i64) {
        self.integer(field, ((value << 1) ^ (value >> 63)).cast_unsigned());
    }

    /// Appends the labels of a key.
    fn labels(&mut self, field: u32, all: &str) {
        for (name, value) in labels(all) {
            let mut label = Message::default();
            label.text(field::LABEL_NAME, name);
            label.text(field::LABEL_VALUE, &value);
            self.message(field, &label);
        }
    }

    fn message(&mut self, field: u32, message: &Message) {
        self.bytes(field, &message.0);
    }
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn family_is_one_length_delimited_message() {
        let head = Head::new("g", "", Kind::Gauge);
        let (mut none, mut one) = (Vec::new(), Vec::new());
        write(&head, std::iter::empty(), 0.0, &mut none);
        assert!(none.is_empty());
        let key = head.key("");
        let sample = Sample { key: &key, value: SampleValue::Number(1u64.into()) };
        write(&head, std::iter::once(sample), 0.0, &mut one);
        let expected = [
            &[22, 0x0a, 1, b'g', 0x12, 0, 0x18, 1, 0x22, 13][..],
            &[0x12, 11 - 2, 0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f],
        ]
        .concat();
        assert_eq!(one.len(), usize::from(one[0]) + 1);
        assert_eq!(one[1..8], expected[1..8]);
        assert_eq!(one[one.len() - 9..], expected[expected.len() - 9..]);
    }
}
