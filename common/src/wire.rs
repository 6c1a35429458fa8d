//! Bounded cursors over received bytes and a writer for sent ones.
//!
//! Lengths inside a message come from the peer: a [`Cursor`] never reads past the bytes it was
//! given and never adds two lengths, so no length can wrap around (CVE-2022-26495 and its kin).

use crate::proto::STRING_MAX;

/// A message ended early, or a string in it broke the spec's rules for strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A field reaches past the end of its message.
    #[error("a field reaches past the end of the message")]
    Short,
    /// Bytes are left over after the last field.
    #[error("bytes are left over after the last field")]
    Long,
    /// A string is longer than 4096 bytes, holds a NUL or is not UTF-8.
    #[error("a string is too long, holds a NUL or is not UTF-8")]
    String,
}

/// Reads big-endian fields from the front of a message.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// Starts at the front of `message`.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Cursor<'a> {
        Cursor(message)
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(head)
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A 16-bit field.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// A 32-bit field.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// A 64-bit field.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind its 32-bit length.
    pub fn string(&mut self) -> Result<&'a str, Malformed> {
        let len = usize::try_from(self.u32()?).map_err(|_| Malformed::Short)?;
        string(self.bytes(len)?)
    }

    /// Ends the message: nothing may be left.
    pub fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::Long) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed::Short)
    }
}

/// Checks the spec's rules for strings: UTF-8, no NUL, at most 4096 bytes.
pub fn string(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > STRING_MAX || bytes.contains(&0) {
        return Err(Malformed::String);
    }
    std::str::from_utf8(bytes).map_err(|_| Malformed::String)
}

/// Appends big-endian fields to a message.
pub trait Put {
    /// Appends a 16-bit field.
    fn put_u16(&mut self, value: u16);
    /// Appends a 32-bit field.
    fn put_u32(&mut self, value: u32);
    /// Appends a 64-bit field.
    fn put_u64(&mut self, value: u64);
    /// Appends a string behind its 32-bit length. Strings of ours are at most
    /// [`STRING_MAX`] bytes; a longer one is cut at a character boundary.
    fn put_string(&mut self, value: &str);
}

impl Put for Vec<u8> {
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_string(&mut self, value: &str) {
        let value = &value[..value.floor_char_boundary(STRING_MAX)];
        self.put_u32(u32::try_from(value.len()).expect("STRING_MAX fits in 32 bits"));
        self.extend_from_slice(value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_past_the_end_is_short_not_a_panic() {
        let mut message = Vec::new();
        message.put_u32(u32::MAX);
        message.extend_from_slice(b"abc");
        assert_eq!(Cursor::new(&message).string(), Err(Malformed::Short));
    }

    #[test]
    fn strings_obey_the_spec() {
        assert_eq!(string(b"a\0b"), Err(Malformed::String));
        assert_eq!(string(&[0xff]), Err(Malformed::String));
        assert_eq!(string(&[b'x'; STRING_MAX + 1]), Err(Malformed::String));
        assert_eq!(string("é".as_bytes()), Ok("é"));
    }

    #[test]
    fn our_own_strings_are_cut_at_a_character() {
        let mut message = Vec::new();
        message.put_string(&"é".repeat(STRING_MAX));
        let text = Cursor::new(&message).string().unwrap();
        assert_eq!(text.len(), STRING_MAX);
    }
}
