//! Medians, spreads and ratios.

use serde::Serialize;

/// A median with the smallest and the largest of what it is the median of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of some numbers; nothing has no median.
    pub(crate) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Spread { median, min, max })
    }

    /// Of what each number is in units of its partner; pairs without both, or with nothing to divide by, do not count.
    pub(crate) fn of_ratios(pairs: impl IntoIterator<Item = (Option<f64>, Option<f64>)>) -> Option<Spread> {
        let ratio =
            |(number, unit): (Option<f64>, Option<f64>)| Some(number? / unit.filter(|unit| *unit > 0.0)?);
        Spread::of(pairs.into_iter().filter_map(ratio))
    }
}

/// A number as people read it: three digits that matter.
pub(crate) fn short(number: f64) -> String {
    match number.abs() {
        0.0 => "0".into(),
        size if size >= 9_999.5 => format!("{:.0} k", number / 1000.0),
        size if size >= 99.95 => format!("{number:.0}"),
        size if size >= 9.995 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_their_spread() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn ratios_are_taken_pair_by_pair() {
        let pairs =
            [(Some(2.0), Some(1.0)), (Some(30.0), Some(10.0)), (None, Some(1.0)), (Some(1.0), Some(0.0))];
        assert_eq!(Spread::of_ratios(pairs), Some(Spread { median: 2.5, min: 2.0, max: 3.0 }));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 1.234, 12.34, 123.4, 1234.0, 12345.0].map(short),
            ["0", "1.23", "12.3", "123", "1234", "12 k"]
        );
    }
}
