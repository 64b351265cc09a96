//! The lines of a log as they come: the latest are kept, numbered, and followed by any number of readers. Writing never
//! waits; a reader that falls further behind than what is kept is told how many lines it missed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// Lines kept of one log, and their bytes.
pub const LINES_KEPT_MAX: usize = 1_000;
pub const LINES_BYTES_KEPT_MAX: usize = 256 << 10;

#[derive(Debug)]
pub struct Lines {
    kept: Mutex<Kept>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
    /// The number of the next line.
    next: u64,
    closed: bool,
}

impl Kept {
    fn trim(&mut self) {
        while self.lines.len() > LINES_KEPT_MAX || self.bytes > LINES_BYTES_KEPT_MAX {
            let Some(line) = self.lines.pop_front() else { return };
            self.bytes -= line.len();
        }
    }

    fn first(&self) -> u64 {
        self.next - self.lines.len() as u64
    }
}

/// What a reader sees next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Line(String),
    Missed(u64),
}

impl Default for Lines {
    fn default() -> Self {
        Lines { kept: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Lines {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no holder of the lines panics")
    }

    pub fn push(&self, line: String) {
        let mut kept = self.kept();
        kept.bytes += line.len();
        kept.lines.push_back(line);
        kept.next += 1;
        kept.trim();
        drop(kept);
        self.changed.send_replace(());
    }

    /// Lines of an earlier life, before those that are there. For a log that nobody reads yet.
    pub fn precede(&self, earlier: Vec<String>) {
        let mut kept = self.kept();
        kept.bytes += earlier.iter().map(String::len).sum::<usize>();
        kept.next += earlier.len() as u64;
        for line in earlier.into_iter().rev() {
            kept.lines.push_front(line);
        }
        kept.trim();
    }

    /// No line follows: readers end.
    pub fn close(&self) {
        self.kept().closed = true;
        self.changed.send_replace(());
    }

    pub fn all(&self) -> Vec<String> {
        self.kept().lines.iter().cloned().collect()
    }

    /// The last `tail` lines, and with `follow` all to come. Without, it ends with the last one there is now: telling
    /// lines may itself be logged, and would never end.
    pub fn reader(self: &Arc<Self>, tail: usize, follow: bool) -> Reader {
        let kept = self.kept();
        let at = kept.first().max(kept.next.saturating_sub(tail as u64));
        let until = if follow { u64::MAX } else { kept.next };
        drop(kept);
        Reader { lines: self.clone(), changed: self.changed.subscribe(), at, until }
    }
}

#[derive(Debug)]
pub struct Reader {
    lines: Arc<Lines>,
    changed: watch::Receiver<()>,
    at: u64,
    /// The number of the first line that is not told.
    until: u64,
}

impl Reader {
    /// The next step, waiting for it; none when the log is closed and all was read.
    pub async fn next(&mut self) -> Option<Step> {
        loop {
            self.changed.mark_unchanged();
            if let Some(step) = self.ready() {
                return Some(step);
            }
            // The sender lives in the lines, which this reader holds.
            let is_over = self.at >= self.until || self.lines.kept().closed;
            if is_over || self.changed.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The next step, if there is one yet.
    pub fn ready(&mut self) -> Option<Step> {
        if self.at >= self.until {
            return None;
        }
        let kept = self.lines.kept();
        let first = kept.first();
        if self.at < first {
            let missed = first - self.at;
            self.at = first;
            return Some(Step::Missed(missed));
        }
        let line = kept.lines.get(usize::try_from(self.at - first).ok()?)?.clone();
        self.at += 1;
        Some(Step::Line(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> Step {
        Step::Line(number.to_string())
    }

    #[tokio::test]
    async fn a_reader_begins_at_the_tail_follows_and_ends_with_the_log() {
        let lines = Arc::new(Lines::default());
        (0..5).for_each(|number| lines.push(number.to_string()));
        let mut reader = lines.reader(2, true);
        assert_eq!((reader.next().await, reader.next().await), (Some(line(3)), Some(line(4))));
        assert_eq!(reader.ready(), None);
        let following = tokio::spawn(async move { (reader.next().await, reader.next().await) });
        lines.push("5".into());
        lines.close();
        assert_eq!(following.await.unwrap(), (Some(line(5)), None));
        let mut whole = lines.reader(99, false);
        lines.push("6".into());
        for number in 0..6 {
            assert_eq!(whole.next().await, Some(line(number)));
        }
        assert_eq!(whole.next().await, None, "what came later is not told");
    }

    #[test]
    fn what_is_kept_is_bounded_and_a_slow_reader_is_told_what_it_missed() {
        let lines = Arc::new(Lines::default());
        let mut reader = lines.reader(0, true);
        (0..LINES_KEPT_MAX + 7).for_each(|number| lines.push(number.to_string()));
        assert_eq!(reader.ready(), Some(Step::Missed(7)));
        assert_eq!(reader.ready(), Some(line(7)));
        for _ in 0..40 {
            lines.push("x".repeat(16 << 10));
        }
        assert!(lines.all().iter().map(String::len).sum::<usize>() <= LINES_BYTES_KEPT_MAX);
    }

    #[test]
    fn lines_of_an_earlier_life_come_first() {
        let lines = Arc::new(Lines::default());
        lines.push("2".into());
        lines.precede(vec!["0".into(), "1".into()]);
        let mut reader = lines.reader(9, true);
        for number in 0..3 {
            assert_eq!(reader.ready(), Some(line(number)));
        }
        assert_eq!(reader.ready(), None);
    }
}
