//! How often, and after which pauses, a pinned worker that crashed is started again (B46). Pure.

use std::time::Duration;

/// In a row; then it is given up.
pub const RESTARTS_MAX: u32 = 3;
/// Before the first restart; it doubles with each that follows.
pub const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// A worker that served this long was a good one: what follows is not counted with what was before.
pub const SERVED_LONG: Duration = Duration::from_secs(5 * 60);

#[derive(Debug)]
pub struct Restarts {
    first_pause: Duration,
    count: u32,
}

impl Restarts {
    pub fn new(first_pause: Duration) -> Self {
        Restarts { first_pause, count: 0 }
    }

    /// After a crash: the pause before the next start, or none if there is to be no other.
    pub fn after(&mut self, served: Option<Duration>) -> Option<Duration> {
        if served.is_some_and(|served| served >= SERVED_LONG) {
            self.count = 0;
        }
        if self.count == RESTARTS_MAX {
            return None;
        }
        let pause = self.first_pause * 2_u32.pow(self.count);
        self.count += 1;
        Some(pause)
    }

    /// Restarts in a row, that after the last crash included.
    pub fn count(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_restarts_with_doubled_pauses_and_then_no_more() {
        let mut restarts = Restarts::new(RESTART_PAUSE);
        let seconds = |pause: Option<Duration>| pause.map(|pause| pause.as_secs());
        let brief = Some(Duration::from_secs(2));
        let pauses = [brief, None, brief, brief].map(|served| seconds(restarts.after(served)));
        assert_eq!(pauses, [Some(1), Some(2), Some(4), None]);
        assert_eq!(restarts.count(), RESTARTS_MAX);
    }

    #[test]
    fn a_worker_that_served_long_has_all_its_restarts_again() {
        let mut restarts = Restarts::new(RESTART_PAUSE);
        for _ in 0..RESTARTS_MAX {
            restarts.after(None);
        }
        assert_eq!(restarts.after(Some(SERVED_LONG)), Some(RESTART_PAUSE));
    }
}
