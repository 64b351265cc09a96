//! Log lines on a terminal. A build may tell thousands a second, and a terminal shows what a person can see: lines gather
//! and are drawn together, and of too many in one draw only the last are shown, with the number of the others.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Between two draws.
pub const DRAW_EVERY: Duration = Duration::from_millis(50);
/// Lines in one draw.
pub const DRAWN_MAX: usize = 40;

/// Lines that wait for the next draw.
#[derive(Debug, Default)]
pub struct Lines {
    waiting: VecDeque<String>,
    passed_over: u64,
    drawn: Option<Instant>,
}

impl Lines {
    /// Adds a line; gives what to draw if it is time.
    pub fn add(&mut self, line: String, now: Instant) -> Option<String> {
        if self.waiting.len() == DRAWN_MAX {
            self.waiting.pop_front();
            self.passed_over += 1;
        }
        self.waiting.push_back(line);
        let is_due = self.drawn.is_none_or(|drawn| now.duration_since(drawn) >= DRAW_EVERY);
        if is_due { self.take(now) } else { None }
    }

    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// What waits, drawn now.
    pub fn take(&mut self, now: Instant) -> Option<String> {
        if self.waiting.is_empty() {
            return None;
        }
        self.drawn = Some(now);
        let mut text = match std::mem::take(&mut self.passed_over) {
            0 => String::new(),
            1 => "  | … 1 line more\n".into(),
            count => format!("  | … {count} lines more\n"),
        };
        for line in self.waiting.drain(..) {
            text.push_str(&line);
            text.push('\n');
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_drawn_seldom_and_its_end_whole() {
        let mut lines = Lines::default();
        let begun = Instant::now();
        let mut drawn = Vec::new();
        // A million lines in a second.
        for n in 0..1_000_000_u64 {
            drawn.extend(lines.add(n.to_string(), begun + Duration::from_micros(n)));
        }
        assert!(lines.is_waiting());
        drawn.extend(lines.take(begun));
        assert!(drawn.len() <= 22, "{}", drawn.len());
        assert!(drawn.iter().all(|text| text.lines().count() <= DRAWN_MAX + 1));
        assert_eq!(drawn[0], "0\n", "the first at once");
        assert!(drawn.last().unwrap().ends_with("999998\n999999\n"));
        let shown: u64 =
            drawn.iter().flat_map(|text| text.lines()).filter(|line| !line.contains('…')).count() as u64;
        let told: u64 = drawn
            .iter()
            .filter_map(|text| text.split_once("… ")?.1.split_once(' ')?.0.parse::<u64>().ok())
            .sum();
        assert_eq!(shown + told, 1_000_000, "shown or counted");
        assert!(!lines.is_waiting() && lines.take(begun).is_none());
    }
}
