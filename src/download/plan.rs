//! Which bytes of a file are here, which somebody is fetching, and which nobody is at. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// A part that one connection has taken upon itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Claim(u64);

#[derive(Debug, Default)]
pub struct Plan {
    /// How long the file is, once that is known.
    pub total: Option<u64>,
    /// Start to end of what is here; neighbours are one.
    here: BTreeMap<u64, u64>,
    claims: BTreeMap<Claim, Range<u64>>,
    next: u64,
}

impl Plan {
    pub fn new(total: Option<u64>) -> Self {
        Plan { total, ..Plan::default() }
    }

    /// Bytes that are here.
    pub fn bytes(&self) -> u64 {
        self.here.iter().map(|(start, end)| end - start).sum()
    }

    /// Takes the first bytes that nobody is at, `most` of them at most.
    pub fn claim(&mut self, most: u64) -> Option<(Claim, Range<u64>)> {
        let free = self.first_free()?;
        Some(self.enter(free.start..free.end.min(free.start.saturating_add(most))))
    }

    /// Takes the file as one piece, if nobody is at it and nothing of it is here.
    pub fn claim_whole(&mut self, end: u64) -> Option<(Claim, Range<u64>)> {
        (self.claims.is_empty() && self.here.is_empty()).then(|| self.enter(0..end))
    }

    fn enter(&mut self, range: Range<u64>) -> (Claim, Range<u64>) {
        let claim = Claim(self.next);
        self.next += 1;
        self.claims.insert(claim, range.clone());
        (claim, range)
    }

    /// What was not brought is free again.
    pub fn release(&mut self, claim: Claim) {
        self.claims.remove(&claim);
    }

    /// A claim that turns out to reach to `end`. False if others are in the way.
    pub fn stretch(&mut self, claim: Claim, end: u64) -> bool {
        if self.claims.len() != 1 || !self.here.is_empty() {
            return false;
        }
        match self.claims.get_mut(&claim) {
            Some(range) if range.start == 0 => {
                range.end = end;
                true
            }
            _ => false,
        }
    }

    pub fn has_free(&self) -> bool {
        self.first_free().is_some()
    }

    /// While the length is not known, one connection finds it out.
    fn first_free(&self) -> Option<Range<u64>> {
        if self.total.is_none() && !self.claims.is_empty() {
            return None;
        }
        let total = self.total.unwrap_or(u64::MAX);
        let mut at = 0;
        loop {
            let before = at;
            if let Some((_, end)) = self.here.range(..=at).next_back() {
                at = at.max(*end);
            }
            if let Some(claim) = self.claims.values().find(|claim| claim.contains(&at)) {
                at = claim.end;
            }
            if at >= total {
                return None;
            }
            if at == before {
                break;
            }
        }
        let next_here = self.here.range(at..).next().map_or(total, |(start, _)| *start);
        let next_claim = self.claims.values().map(|claim| claim.start).filter(|start| *start > at).min();
        Some(at..total.min(next_here).min(next_claim.unwrap_or(u64::MAX)))
    }

    /// Bytes that have come. Those that were here already are told by false, and nothing changes.
    pub fn add(&mut self, range: Range<u64>) -> bool {
        let before = self.here.range(..=range.start).next_back().map(|(start, end)| (*start, *end));
        let after = self.here.range(range.start..).next().map(|(start, end)| (*start, *end));
        let overlaps = before.is_some_and(|(_, end)| end > range.start)
            || after.is_some_and(|(start, _)| start < range.end);
        if overlaps || range.is_empty() {
            return false;
        }
        let mut merged = range.clone();
        if let Some((start, _)) = before.filter(|(_, end)| *end == range.start) {
            merged.start = start;
        }
        if let Some((start, end)) = after.filter(|(start, _)| *start == range.end) {
            self.here.remove(&start);
            merged.end = end;
        }
        self.here.insert(merged.start, merged.end);
        true
    }

    /// Bytes that turned out not to be here.
    pub fn lose(&mut self, range: Range<u64>) {
        let touched: Vec<(u64, u64)> = self
            .here
            .range(..range.end)
            .filter(|(_, end)| **end > range.start)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in touched {
            self.here.remove(&start);
            if start < range.start {
                self.here.insert(start, range.start);
            }
            if end > range.end {
                self.here.insert(range.end, end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Plan {
        fn is_whole(&self) -> bool {
            self.total == Some(self.bytes())
        }
    }

    #[test]
    fn parts_are_claimed_in_order_and_what_was_not_brought_is_free_again() {
        let mut plan = Plan::new(Some(100));
        let (first, range) = plan.claim(40).unwrap();
        assert_eq!(range, 0..40);
        let (second, range) = plan.claim(40).unwrap();
        assert_eq!(range, 40..80);
        assert!(plan.add(0..10) && plan.add(40..80));
        plan.release(first);
        plan.release(second);
        assert_eq!(plan.claim(100).unwrap().1, 10..40);
        assert_eq!(plan.claim(100).unwrap().1, 80..100);
        assert!(plan.claim(100).is_none() && !plan.is_whole());
        assert!(plan.add(10..40) && plan.add(80..100) && plan.is_whole());
    }

    #[test]
    fn what_is_here_stays_and_what_is_lost_is_wanted_again() {
        let mut plan = Plan::new(Some(100));
        assert!(plan.add(0..100));
        assert!(!plan.add(5..6), "never twice");
        plan.lose(20..30);
        assert_eq!((plan.bytes(), plan.is_whole()), (90, false));
        assert_eq!(plan.claim(100).unwrap().1, 20..30);
        assert!(plan.add(20..30) && plan.is_whole());
    }

    #[test]
    fn one_connection_finds_out_how_long_the_file_is() {
        let mut plan = Plan::new(None);
        let (claim, range) = plan.claim(10).unwrap();
        assert_eq!(range, 0..10);
        assert!(plan.claim(10).is_none());
        assert!(plan.stretch(claim, 50));
        plan.total = Some(50);
        assert!(plan.claim(10).is_none());
        assert!(plan.add(0..25));
        plan.release(claim);
        assert_eq!(plan.claim(10).unwrap().1, 25..35);
        assert!(!plan.stretch(claim, 60), "there is something already");
    }

    #[test]
    fn any_order_of_arrival_makes_the_file_whole() {
        // Every tenth first, then the ones between, from behind.
        let mut plan = Plan::new(Some(1_000));
        let parts = (0..100u64).map(|n| n * 37 % 100 * 10);
        for start in parts {
            assert!(plan.add(start..start + 10));
        }
        assert!(plan.is_whole() && !plan.has_free());
    }
}
