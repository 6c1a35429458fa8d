//! Sizes for people.

/// Exact where a unit fits exactly, else the two numbers that are wanted: about how much, and how many bytes.
#[must_use]
pub fn human_size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let exact = |(_, shift): &&(&str, u32)| bytes > 0 && bytes.trailing_zeros() >= *shift;
    match units.iter().find(exact) {
        // Beyond this nobody reads it.
        Some((unit, shift)) if bytes >> shift < 100_000 => format!("{} {unit}", bytes >> shift),
        _ => match units.iter().find(|(_, shift)| bytes >> shift > 0) {
            Some((unit, shift)) => {
                let tenths = (u128::from(bytes) * 10) >> shift;
                format!("{}.{} {unit} ({bytes} B)", tenths / 10, tenths % 10)
            }
            None => format!("{bytes} B"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_or_say_that_they_are_not() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (3 << 30, "3 GiB"),
            (1025, "1.0 KiB (1025 B)"),
            (20_000_000_000_000, "18.1 TiB (20000000000000 B)"),
            (u64::MAX, "16777215.9 TiB (18446744073709551615 B)"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }
}
