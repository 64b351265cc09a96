//! Bounded little-endian reads. Nothing is read, skipped or allocated that the file's length does not cover.

use super::{GgufError, HEADER_BYTES_MAX};
use std::io::{self, Read, Seek};

pub(super) struct Reader<S> {
    source: S,
    position: u64,
    /// The file's length, or the header's limit if that is nearer.
    end: u64,
    limited: bool,
    part: &'static str,
}

impl<S: Read + Seek> Reader<S> {
    pub fn new(source: S, length: u64) -> Self {
        Reader {
            source,
            position: 0,
            end: length.min(HEADER_BYTES_MAX),
            limited: length > HEADER_BYTES_MAX,
            part: "",
        }
    }

    /// Names what is read from here on, for the error that may come.
    pub fn part(&mut self, part: &'static str) {
        self.part = part;
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// Accounts for `count` bytes, before anything is allocated or read for them.
    fn take(&mut self, count: u64) -> Result<(), GgufError> {
        match self.position.checked_add(count) {
            Some(after) if after <= self.end => {
                self.position = after;
                Ok(())
            }
            Some(after) if self.limited => {
                Err(GgufError::Limit { what: "the header's length", value: after, max: HEADER_BYTES_MAX })
            }
            _ => Err(GgufError::Truncated(self.part)),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), GgufError> {
        self.source.read_exact(buffer).map_err(|e| match e.kind() {
            // The file shrank after its length was taken.
            io::ErrorKind::UnexpectedEof => GgufError::Truncated(self.part),
            _ => GgufError::Read(e),
        })
    }

    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.take(N as u64)?;
        let mut buffer = [0; N];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    pub fn u32(&mut self) -> Result<u32, GgufError> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, GgufError> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A length-prefixed string of at most `max` bytes.
    pub fn string(&mut self, what: &'static str, max: u64) -> Result<Vec<u8>, GgufError> {
        let mut buffer = Vec::new();
        self.string_into(&mut buffer, what, max)?;
        Ok(buffer)
    }

    /// The same, in place of what the buffer holds.
    pub fn string_into(
        &mut self,
        buffer: &mut Vec<u8>,
        what: &'static str,
        max: u64,
    ) -> Result<(), GgufError> {
        let length = self.u64()?;
        if length > max {
            return Err(GgufError::Limit { what, value: length, max });
        }
        self.take(length)?;
        // At most `max`, which fits any usize in use.
        buffer.resize(length as usize, 0);
        self.fill(buffer)
    }

    pub fn skip(&mut self, count: u64) -> Result<(), GgufError> {
        self.take(count)?;
        // `take` held it under HEADER_BYTES_MAX.
        self.source.seek_relative(count as i64).map_err(GgufError::Read)
    }

    pub fn skip_string(&mut self) -> Result<(), GgufError> {
        let length = self.u64()?;
        self.skip(length)
    }
}
