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
pub fn overlaid(at: u64, extents: &[Extent], mut data: Vec<Range<u64>>) -> Vec<Extent> {
    data.sort_by_key(|range| range.start);
    let (mut over, mut start) = (Vec::new(), at);
    for extent in extents {
        let end = start + extent.len;
        if extent.content == Content::Hole {
            for range in &data {
                if range.start >= end || range.end <= start {
                    continue;
                }
                push_extent(&mut over, Content::Hole, range.start.saturating_sub(start));
                let from = start.max(range.start);
                start = end.min(range.end);
                push_extent(&mut over, Content::Data, start - from);
            }
        }
        push_extent(&mut over, extent.content, end - start);
        start = end;
    }
    over.truncate(EXTENTS_MAX);
    over
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
}
