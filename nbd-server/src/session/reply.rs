//! A reply as it leaves: its header, its data, and what it gives back once it is sent.

use std::collections::VecDeque;
use std::io::IoSlice;

use common::proto::EXTENDED_HEADER_LEN;

use crate::buf::{Grant, IoBuf};

/// Replies gathered into one `sendmsg`; each is one or two slices and the kernel takes 1024.
const GATHER_MAX: usize = 256;

/// A reply, or one chunk of it.
pub(super) struct Reply {
    pub(super) head: Head,
    pub(super) data: Data,
    /// With the last chunk.
    pub(super) hold: Option<Hold>,
}

/// A request's share of the connection's limits, given back when its reply is sent.
pub(super) struct Hold {
    pub(super) grant: Grant,
}

/// What comes before the data of a READ, or instead of it.
pub(super) enum Head {
    /// Few bytes, of this number.
    Short([u8; SHORT_MAX], usize),
    /// Many.
    Long(Vec<u8>),
}

/// Bytes of the longest header, an offset and a length.
const SHORT_MAX: usize = EXTENDED_HEADER_LEN + 8 + 4;

/// The data of a READ.
pub(super) enum Data {
    /// There is none.
    None,
    /// This.
    Held(IoBuf),
}

impl Data {
    pub(super) fn len(&self) -> usize {
        match self {
            Data::None => 0,
            Data::Held(data) => data.len(),
        }
    }
}

impl Head {
    pub(super) fn of(header: &[u8], payload: &[u8]) -> Head {
        let len = header.len() + payload.len();
        if len > SHORT_MAX {
            return Head::Long([header, payload].concat());
        }
        let mut bytes = [0; SHORT_MAX];
        bytes[..header.len()].copy_from_slice(header);
        bytes[header.len()..len].copy_from_slice(payload);
        Head::Short(bytes, len)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Head::Short(bytes, len) => &bytes[..*len],
            Head::Long(bytes) => bytes,
        }
    }
}

impl Reply {
    pub(super) fn len(&self) -> usize {
        self.head.bytes().len() + self.data.len()
    }

    /// Bytes of memory given back with it.
    pub(super) fn held(&self) -> usize {
        self.hold.as_ref().map_or(0, |hold| hold.grant.bytes())
    }
}

/// What can leave in one call.
pub(super) fn gather(queue: &VecDeque<Reply>) -> Vec<IoSlice<'_>> {
    let mut slices = Vec::with_capacity(2 * queue.len().min(GATHER_MAX));
    for reply in queue.iter().take(GATHER_MAX) {
        slices.push(IoSlice::new(reply.head.bytes()));
        if let Data::Held(data) = &reply.data {
            slices.push(IoSlice::new(data));
        }
    }
    slices
}
