//! What is stored where: runs of data and holes.

use std::ops::Range;

/// Extents in one answer: enough for a fragmented gigabyte, and a bound for memory.
pub const EXTENTS_MAX: usize = 1024;

/// What some bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// Data, as far as anybody knows.
    Data,
    /// Nothing was stored, and zero is read.
    Hole,
}

/// Bytes in a row with the same kind of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, at least one.
    pub len: u64,
    /// What they are.
    pub content: Content,
}

/// Appends an extent, or makes the last one longer; one of no bytes is nothing.
pub fn push_extent(extents: &mut Vec<Extent>, content: Content, len: u64) {
    match extents.last_mut() {
        _ if len == 0 => {}
        Some(last) if last.content == content => last.len += len,
        _ => extents.push(Extent { len, content }),
    }
}

/// The extents from byte `at` on when `data` lies over them; its ranges may overlap.
#[must_use]
pub fn overlaid(at: u64, extents: &[Extent], data: Vec<Range<u64>>) -> Vec<Extent> {
    let data = merged(data);
    let (mut over, mut start, mut next) = (Vec::new(), at, 0);
    for extent in extents {
        let end = start + extent.len;
        while extent.content == Content::Hole && start < end {
            while data.get(next).is_some_and(|range| range.end <= start) {
                next += 1;
            }
            let range =
                data.get(next).map_or(end..end, |range| range.start.clamp(start, end)..range.end.min(end));
            push_extent(&mut over, Content::Hole, range.start - start);
            push_extent(&mut over, Content::Data, range.end.saturating_sub(range.start));
            start = range.end.max(range.start);
        }
        push_extent(&mut over, extent.content, end - start);
        start = end;
    }
    over.truncate(EXTENTS_MAX);
    over
}

/// The same bytes in ranges that neither overlap nor touch, in order.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(text: &str) -> Vec<Extent> {
        let mut extents = Vec::new();
        for letter in text.chars() {
            push_extent(&mut extents, if letter == '.' { Content::Hole } else { Content::Data }, 1);
        }
        extents
    }

    #[test]
    #[expect(clippy::single_range_in_vec_init, reason = "one range is a case")]
    fn data_lies_over_holes() {
        for (below, data, expected) in [
            ("....dd....", vec![], "....dd...."),
            ("....dd....", vec![12..13], "..d.dd...."),
            ("....dd....", vec![10..14, 19..20], "dddddd...d"),
            ("....dd....", vec![13..17], "...dddd..."),
            ("..........", vec![15..18, 11..14, 12..16], ".ddddddd.."),
            ("dd......dd", vec![10..20], "dddddddddd"),
            ("..........", vec![0..11, 19..30], "d........d"),
        ] {
            assert_eq!(overlaid(10, &drawn(below), data.clone()), drawn(expected), "{below} {data:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn each_byte_is_a_hole_only_if_nothing_lies_over_it(
            below in "[.d]{1,40}", data in proptest::collection::vec((0_u64..60, 1_u64..20), 0..9),
        ) {
            let data: Vec<Range<u64>> = data.into_iter().map(|(at, len)| at..at + len).collect();
            let is_data = |place: usize| data.iter().any(|range| range.contains(&(10 + place as u64)));
            let over = below.chars().enumerate();
            let over = over.map(|(place, letter)| if is_data(place) { 'd' } else { letter });
            let expected = drawn(&over.collect::<String>());
            proptest::prop_assert_eq!(overlaid(10, &drawn(&below), data.clone()), expected);
        }
    }
}
