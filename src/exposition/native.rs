//! Native histograms, derived from a classic histogram whose bounds match a schema.
//!
//! Model: <https://prometheus.io/docs/specs/native_histograms/>.

/// The schema of a native histogram. Bucket `index` holds values up to 2^(index / 2^schema).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Native {
    schema: i32,
    /// The index of the bucket whose upper bound is the first bound.
    first: i32,
    /// Values up to this count towards the zero bucket.
    zero_threshold: f64,
}

/// The buckets of one series, as encoded in the format.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NativeBuckets {
    pub schema: i32,
    pub zero_threshold: f64,
    pub zero_count: u64,
    /// Runs of consecutive buckets: the gap since the previous run (for the first run, its starting index), and the
    /// run's length.
    pub spans: Vec<(i32, u32)>,
    /// The difference of each bucket's count to the previous bucket's.
    pub deltas: Vec<i64>,
}

impl Native {
    /// Returns `None` if the bounds match no schema.
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

    /// Converts per-bucket counts. The last count is of values above all bounds, which are taken to be infinite.
    pub fn read(&self, counts: &[u64]) -> NativeBuckets {
        let (beyond, within) = counts.split_last().unwrap_or((&0, &[]));
        let (zero, within) = within.split_first().unwrap_or((&0, &[]));
        let mut all = within.to_vec();
        let mut spans = Vec::new();
        // Empty buckets at either end are trimmed.
        let filled = |count: &u64| *count > 0;
        if let (Some(from), Some(to)) = (all.iter().position(filled), all.iter().rposition(filled)) {
            all = within[from..=to].to_vec();
            spans.push((self.first + 1 + from as i32, all.len() as u32));
        } else {
            all.clear();
        }
        if *beyond > 0 {
            // The bucket after the one whose upper bound is the largest finite number.
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
    fn detects_the_schema_of_bounds() {
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
    fn counts_are_delta_encoded_spans() {
        let native = Native::of(&[1.0, 2.0, 4.0, 8.0]).unwrap();
        let read = |counts: &[u64]| {
            let NativeBuckets { zero_count, spans, deltas, .. } = native.read(counts);
            (zero_count, spans, deltas)
        };
        assert_eq!(read(&[0, 0, 0, 0, 0]), (0, vec![], vec![]));
        // Bucket 1 ends at 2, bucket 3 at 8.
        assert_eq!(read(&[7, 5, 0, 2, 0]), (7, vec![(1, 3)], vec![5, -5, 2]));
        assert_eq!(read(&[0, 0, 3, 0, 0]), (0, vec![(2, 1)], vec![3]));
        // Values above all bounds count as infinite: bucket 1024 ends at the largest finite number.
        assert_eq!(read(&[0, 0, 3, 0, 4]), (0, vec![(2, 1), (1025 - 3, 1)], vec![3, 1]));
        assert_eq!(read(&[0, 0, 0, 0, 4]), (0, vec![(1025, 1)], vec![4]));
    }
}
