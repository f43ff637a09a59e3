//! Native histograms: the buckets of a classic one whose bounds are those of a schema.
//!
//! Model: <https://prometheus.io/docs/specs/native_histograms/>.

/// Which schema it is. Bucket number `index` has values up to 2^(index / 2^schema).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Native {
    schema: i32,
    /// The number of the bucket that the first bound ends.
    first: i32,
    /// Values up to here are in the bucket of zero.
    zero_threshold: f64,
}

/// The buckets of one series, as the format has them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NativeBuckets {
    pub schema: i32,
    pub zero_threshold: f64,
    pub zero_count: u64,
    /// Of runs of buckets: how many there are between it and the last one, or 0; and how many it has.
    pub spans: Vec<(i32, u32)>,
    /// Of each bucket, what it has more than the last one.
    pub deltas: Vec<i64>,
}

impl Native {
    /// `None` of bounds that no schema has.
    pub fn of(bounds: &[f64]) -> Option<Self> {
        let [first, second, ..] = bounds else { return None };
        let schema = -(second / first).log2().log2();
        let parts = schema.round().exp2();
        let index = (first.log2() * parts).round();
        let is_its = |(n, bound): (usize, &f64)| {
            let exact = ((index + n as f64) / parts).exp2();
            (bound - exact).abs() <= exact * 1e-12
        };
        let fits = (0.0..=8.0).contains(&schema.round()) && bounds.iter().enumerate().all(is_its);
        fits.then(|| Self { schema: schema.round() as i32, first: index as i32, zero_threshold: *first })
    }

    /// What these counts are, of each bucket alone, the last one beyond all bounds: those are taken for infinite.
    pub fn read(&self, counts: &[u64]) -> NativeBuckets {
        let (beyond, within) = counts.split_last().unwrap_or((&0, &[]));
        let (zero, within) = within.split_first().unwrap_or((&0, &[]));
        let mut all = within.to_vec();
        let mut spans = Vec::new();
        // Without the ends that are empty.
        let filled = |count: &u64| *count > 0;
        if let (Some(from), Some(to)) = (all.iter().position(filled), all.iter().rposition(filled)) {
            all = within[from..=to].to_vec();
            spans.push((self.first + 1 + from as i32, all.len() as u32));
        } else {
            all.clear();
        }
        if *beyond > 0 {
            // Behind the bucket that ends with the largest number.
            let infinite = (1024 << self.schema) + 1;
            let next = spans.first().map_or(0, |(offset, length)| offset + *length as i32);
            spans.push((infinite - next, 1));
            all.push(*beyond);
        }
        let mut last = 0i64;
        let delta = |count: &u64| {
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            count - std::mem::replace(&mut last, count)
        };
        let deltas = all.iter().map(delta).collect();
        NativeBuckets {
            schema: self.schema,
            zero_threshold: self.zero_threshold,
            zero_count: *zero,
            spans,
            deltas,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_a_schema_or_of_none() {
        let schema = |bounds: &[f64]| Native::of(bounds).map(|native| (native.schema, native.first));
        assert_eq!(schema(&[1.0, 2.0, 4.0]), Some((0, 0)));
        assert_eq!(schema(&[0.25, 0.5]), Some((0, -2)));
        let root = 2f64.sqrt();
        assert_eq!(schema(&[root, 2.0, 2.0 * root]), Some((1, 1)));
        let fine: Vec<f64> = (-700..-640).map(|n| (f64::from(n) / 256.0).exp2()).collect();
        assert_eq!(schema(&fine), Some((8, -700)));
        for others in
            [&[1.0, 3.0][..], &[1.0, 2.0, 5.0], &[1.0], &[3.0, 6.0], &[1.0, 4.0], &[0.0, 1.0], &[-1.0, 1.0]]
        {
            assert_eq!(schema(others), None, "{others:?}");
        }
    }

    #[test]
    fn counts_are_runs_of_differences() {
        let native = Native::of(&[1.0, 2.0, 4.0, 8.0]).unwrap();
        let read = |counts: &[u64]| {
            let NativeBuckets { zero_count, spans, deltas, .. } = native.read(counts);
            (zero_count, spans, deltas)
        };
        assert_eq!(read(&[0, 0, 0, 0, 0]), (0, vec![], vec![]));
        // Bucket 1 is up to 2, bucket 3 up to 8.
        assert_eq!(read(&[7, 5, 0, 2, 0]), (7, vec![(1, 3)], vec![5, -5, 2]));
        assert_eq!(read(&[0, 0, 3, 0, 0]), (0, vec![(2, 1)], vec![3]));
        // What is beyond is infinite: bucket 1024 ends with the largest number.
        assert_eq!(read(&[0, 0, 3, 0, 4]), (0, vec![(2, 1), (1025 - 3, 1)], vec![3, 1]));
        assert_eq!(read(&[0, 0, 0, 0, 4]), (0, vec![(1025, 1)], vec![4]));
    }
}
