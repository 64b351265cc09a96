//! How much an unpacking may bring forth: a few kilobytes can become petabytes.

use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::io::{self, Read};

/// Less than this is no bomb, however it is packed.
const RATIO_FREE_BYTES: u64 = 256 << 20;

/// The limits of one build's sources together; the ratio is each archive's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackLimits {
    pub bytes_max: u64,
    pub members_max: u64,
    pub depth_max: usize,
    /// Bytes that come out for one that went in, beyond the first quarter gigabyte. Text has 10, zeros 1000.
    pub ratio_max: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        UnpackLimits { bytes_max: 64 << 30, members_max: 2_000_000, depth_max: 128, ratio_max: 200 }
    }
}

#[derive(Debug, thiserror::Error)]
enum Spent {
    #[error("the sources have more than {0} bytes when they are unpacked")]
    Bytes(u64),
    #[error("more than {0} bytes come out for each byte of it, as a decompression bomb has it")]
    Ratio(u64),
}

pub struct Budget {
    limits: UnpackLimits,
    spent: Cell<u64>,
    /// Of the archive at hand: its length, and what came out of it.
    archive: Cell<(u64, u64)>,
}

impl Budget {
    pub fn new(limits: UnpackLimits) -> Self {
        Budget { limits, spent: Cell::new(0), archive: Cell::new((0, 0)) }
    }

    /// The next archive, so long.
    pub fn begin(&self, length: u64) {
        self.archive.set((length, 0));
    }

    pub fn spend(&self, bytes: u64) -> io::Result<()> {
        let spent = self.spent.get().saturating_add(bytes);
        self.spent.set(spent);
        let (length, before) = self.archive.get();
        let came = before.saturating_add(bytes);
        self.archive.set((length, came));
        if spent > self.limits.bytes_max {
            return Err(io::Error::other(Spent::Bytes(self.limits.bytes_max)));
        }
        if came > RATIO_FREE_BYTES.max(length.saturating_mul(self.limits.ratio_max)) {
            return Err(io::Error::other(Spent::Ratio(self.limits.ratio_max)));
        }
        Ok(())
    }
}

/// A reader whose every byte is paid for.
pub struct Metered<'a, R> {
    inner: R,
    budget: &'a Budget,
}

impl<'a, R> Metered<'a, R> {
    pub fn new(inner: R, budget: &'a Budget) -> Self {
        Metered { inner, budget }
    }
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.budget.spend(count as u64)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_bounded_by_what_went_in() {
        let budget = Budget::new(UnpackLimits { bytes_max: u64::MAX, ..UnpackLimits::default() });
        budget.begin(10 << 20);
        assert!(budget.spend(200 * (10 << 20)).is_ok());
        assert!(budget.spend(1).unwrap_err().to_string().contains("bomb"));
        budget.begin(1);
        assert!(budget.spend(RATIO_FREE_BYTES).is_ok() && budget.spend(1).is_err());
        let small = Budget::new(UnpackLimits { bytes_max: 10, ..UnpackLimits::default() });
        small.begin(1);
        assert!(small.spend(10).is_ok() && small.spend(1).is_err());
    }
}
