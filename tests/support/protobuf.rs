//! Metrics in protocol buffers.

use std::collections::BTreeMap;

use super::exposition::{Labels, Metrics, with_plain_bound};

/// The content of a message's field.
enum Field<'a> {
    Integer(u64),
    Double(f64),
    Bytes(&'a [u8]),
}

/// Decodes protocol buffers according to their documentation; returns the fields with their numbers.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Integer(varint(&mut bytes)),
            1 => Field::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().expect("8 bytes"))),
            2 => {
                let length = varint(&mut bytes) as usize;
                Field::Bytes(take(&mut bytes, length))
            }
            other => panic!("a field of type {other}"),
        };
        all.push((key >> 3, field));
    }
    all
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return value;
        }
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Returns the series that messages of the type `MetricFamily` represent.
pub fn of_protobuf(mut body: &[u8]) -> Metrics {
    let mut series = BTreeMap::new();
    while !body.is_empty() {
        let length = varint(&mut body) as usize;
        let (mut name, mut metrics) = (String::new(), Vec::new());
        for (number, field) in fields(take(&mut body, length)) {
            match (number, field) {
                (1, Field::Bytes(bytes)) => name = text(bytes),
                (4, Field::Bytes(bytes)) => metrics.push(bytes),
                _ => {}
            }
        }
        for metric in metrics {
            let mut labels = Labels::new();
            for (number, field) in fields(metric) {
                let Field::Bytes(bytes) = field else { panic!("{name}: field {number}") };
                let inner = fields(bytes);
                match number {
                    1 => {
                        let [(1, Field::Bytes(name)), (2, Field::Bytes(value))] = &inner[..] else {
                            panic!("{name}: a label")
                        };
                        labels.insert(text(name), text(value));
                    }
                    2 | 3 => {
                        let Some((1, Field::Double(value))) = inner.first() else {
                            panic!("{name}: a number")
                        };
                        series.insert((name.clone(), labels.clone()), *value);
                    }
                    7 => histogram(&name, &labels, &inner, &mut series),
                    other => panic!("{name}: field {other}"),
                }
            }
        }
    }
    Metrics(series)
}

fn histogram(
    name: &str,
    labels: &Labels,
    inner: &[(u64, Field<'_>)],
    series: &mut BTreeMap<(String, Labels), f64>,
) {
    for (number, field) in inner {
        match (number, field) {
            (1, Field::Integer(count)) => {
                series.insert((format!("{name}_count"), labels.clone()), *count as f64);
            }
            (2, Field::Double(sum)) => {
                series.insert((format!("{name}_sum"), labels.clone()), *sum);
            }
            (3, Field::Bytes(bucket)) => {
                let bucket = fields(bucket);
                let [(1, Field::Integer(count)), (2, Field::Double(bound))] = &bucket[..] else {
                    panic!("{name}: a bucket")
                };
                let mut labels = labels.clone();
                labels.insert("le".into(), bound.to_string());
                series.insert((format!("{name}_bucket"), with_plain_bound(labels)), *count as f64);
            }
            (15, Field::Bytes(_)) => {}
            _ => panic!("{name}: field {number}"),
        }
    }
}
