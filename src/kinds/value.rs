//! Numbers on their way from slots to series.

use serde::{Deserialize, Serialize};

use crate::exposition::Number;

/// The conversion of a raw integer into the metric's unit: `value * mul / div`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    pub mul: f64,
    pub div: f64,
}

impl Scale {
    pub const ONE: Scale = Scale { mul: 1.0, div: 1.0 };
    const MINUS_ONE: Scale = Scale { mul: -1.0, div: 1.0 };

    /// Whether whole numbers stay whole.
    pub fn is_whole(self) -> bool {
        self == Self::ONE || self == Self::MINUS_ONE
    }

    /// The scale that lowers instead of raising.
    #[must_use]
    pub fn negated(self) -> Self {
        Self { mul: -self.mul, div: self.div }
    }

    /// The value in the metric's unit. Division by a power of ten keeps decimal fractions exact.
    pub fn apply(self, raw: f64) -> f64 {
        raw * self.mul / self.div
    }

    /// The largest raw integer whose scaled value is at most `bound`.
    pub fn raw_bound(self, bound: f64) -> i64 {
        let exact = bound * self.div / self.mul;
        let nearest = exact.round();
        // 0.005 s is 4999.999... us in binary; a bound is exact as written.
        if (exact - nearest).abs() <= 1e-9 * nearest.abs().max(1.0) {
            nearest as i64
        } else {
            exact.floor() as i64
        }
    }
}

/// The number of one series in one scrape, which several actions may feed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Total {
    /// The exact sum of actions without a scale.
    int: i128,
    real: f64,
    /// When a gauge was set, in the kernel's clock.
    pub time: u64,
    /// Whether anything has fed it.
    pub live: bool,
}

impl Total {
    pub fn add(&mut self, raw: impl Into<i128>, scale: Scale) {
        let raw = raw.into();
        if scale == Scale::ONE {
            self.int += raw;
        } else if scale == Scale::MINUS_ONE {
            self.int -= raw;
        } else {
            self.real += scale.apply(raw as f64);
        }
    }

    pub fn set(&mut self, raw: impl Into<i128>, scale: Scale) {
        (self.int, self.real) = (0, 0.0);
        self.add(raw, scale);
    }

    /// Whole numbers are compared exactly: beyond 2^53 different ones are equal as floats.
    pub fn compared(&self, with: &Self) -> std::cmp::Ordering {
        if self.real == 0.0 && with.real == 0.0 {
            return self.int.cmp(&with.int);
        }
        self.as_real().total_cmp(&with.as_real())
    }

    /// Adds another total.
    pub fn add_total(&mut self, other: &Total) {
        self.int += other.int;
        self.real += other.real;
    }

    /// The difference from another total.
    #[must_use]
    pub fn minus(&self, other: &Total) -> Total {
        Total { int: self.int - other.int, real: self.real - other.real, ..Total::default() }
    }

    pub fn as_real(&self) -> f64 {
        self.int as f64 + self.real
    }

    /// The number as it is exposed, as a float or an integer.
    pub fn displayed(&self, real: bool) -> Number {
        if real { Number::Real(self.as_real()) } else { Number::Int(self.int) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_bounds_convert_exactly() {
        let us = Scale { mul: 1.0, div: 1e6 };
        let ns = Scale { mul: 1.0, div: 1e9 };
        for (seconds, micros) in
            [(0.001, 1000), (0.005, 5000), (0.025, 25_000), (2.5, 2_500_000), (10.0, 10_000_000)]
        {
            assert_eq!(us.raw_bound(seconds), micros);
            assert_eq!(ns.raw_bound(seconds), micros * 1000);
        }
    }

    #[test]
    fn fractional_bound_rounds_down() {
        assert_eq!(Scale::ONE.raw_bound(2.5), 2);
        assert_eq!(Scale::ONE.raw_bound(-2.5), -3);
    }

    #[test]
    fn decrements_are_exact() {
        let mut total = Total::default();
        total.add(i64::MAX, Scale::ONE);
        total.add(i64::MAX - 3, Scale::ONE.negated());
        assert_eq!(total.displayed(!Scale::ONE.negated().is_whole()), Number::Int(3));
        let ms = Scale { mul: 1.0, div: 1e3 };
        let mut total = Total::default();
        total.add(2500, ms);
        total.add(500, ms.negated());
        assert_eq!(total.displayed(!ms.negated().is_whole()), Number::Real(2.0));
    }

    #[test]
    fn large_numbers_are_compared_exactly() {
        let total = |number: i64, scale| {
            let mut total = Total::default();
            total.set(number, scale);
            total
        };
        let (one, two) = (total(1 << 53, Scale::ONE), total((1 << 53) + 1, Scale::ONE));
        assert!(one.compared(&two).is_lt() && two.compared(&one).is_gt() && one.compared(&one).is_eq());
        let ms = Scale { mul: 1.0, div: 1e3 };
        assert!(total(1500, ms).compared(&total(1, Scale::ONE)).is_gt());
    }

    #[test]
    fn decimal_fractions_stay_exact() {
        assert_eq!(Scale { mul: 1.0, div: 1e6 }.apply(12_345.0), 0.012_345);
    }
}
