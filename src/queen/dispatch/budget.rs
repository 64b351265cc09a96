//! How many requests may be tried again: a share of all, and a few besides. When workers die one after the other, trying
//! everything twice would only double the load on those that are left.

use std::time::Duration;
use tokio::time::Instant;

/// Of requests, in percent.
pub const RETRY_PERCENT: u64 = 20;
/// Retries that are allowed however few requests there are, a second.
pub const RETRIES_PER_SECOND_MIN: u64 = 10;
/// What is saved up at most, in retries.
const SAVED_MAX: u64 = 50;
const SAVED_OVER_MAX: Duration = Duration::from_secs(SAVED_MAX);
/// What the first request finds saved up.
const FIRST: Duration = Duration::from_secs(1);
/// Counted in hundredths of a retry.
const WHOLE: u64 = 100;

#[derive(Debug, Default)]
pub struct Budget {
    saved: u64,
    /// When time was last counted.
    since: Option<Instant>,
}

impl Budget {
    pub fn request(&mut self) {
        self.save(RETRY_PERCENT);
    }

    /// Whether one more request may be tried again.
    pub fn retry(&mut self, now: Instant) -> bool {
        let passed = self.since.map_or(FIRST, |since| now.duration_since(since)).min(SAVED_OVER_MAX);
        self.save(passed.as_millis() as u64 * RETRIES_PER_SECOND_MIN * WHOLE / 1_000);
        self.since = Some(now);
        let has = self.saved >= WHOLE;
        if has {
            self.saved -= WHOLE;
        }
        has
    }

    fn save(&mut self, hundredths: u64) {
        self.saved = (self.saved + hundredths).min(SAVED_MAX * WHOLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_losses_is_not_doubled() {
        let now = Instant::now();
        let mut budget = Budget::default();
        let try_again = |budget: &mut Budget| {
            budget.request();
            budget.retry(now)
        };
        let first = (0..1_000).filter(|_| try_again(&mut budget)).count();
        assert!((200..=220).contains(&first), "{first}");
        let later = now + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| budget.retry(later)).count(), RETRIES_PER_SECOND_MIN as usize);
        let much_later = later + Duration::from_secs(3_600);
        assert_eq!((0..1_000).filter(|_| budget.retry(much_later)).count(), SAVED_MAX as usize);
    }
}
