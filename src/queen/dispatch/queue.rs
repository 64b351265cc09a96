//! Who waits for a slot, in order of arrival, and who may go first. Pure bookkeeping under the dispatcher's lock.
//!
//! Among those a worker suits, the first to come is the first to be served. A request that waits for other models' workers
//! to end has a claim on their memory after a while: from then on whoever came later is not let in there, so that a busy
//! model cannot keep another one out for ever.

use crate::queen::placement::{InFlight, Promise, Want};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a request waits for memory that others use before those who come later have to wait for it.
pub const CLAIM_AFTER: Duration = Duration::from_secs(5);

/// Memory that a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub hive: String,
    pub device: String,
    pub bytes: u64,
    /// The workers that hold it.
    pub by: Vec<String>,
}

#[derive(Debug)]
pub struct Waiting {
    pub want: Want,
    since: Instant,
    claim: Option<Claim>,
    /// It waits for a spawn of its own, and for nothing else: whoever comes later may go first meanwhile.
    is_away: bool,
}

#[derive(Debug, Default)]
pub struct Queue {
    pub in_flight: InFlight,
    waiting: BTreeMap<u64, Waiting>,
    arrivals: u64,
}

impl Queue {
    /// Joins the queue, unless that many wait already.
    pub fn enter(&mut self, want: &Want, max: usize, now: Instant) -> Option<u64> {
        if self.waiting.len() >= max {
            return None;
        }
        self.arrivals += 1;
        let waiting = Waiting { want: want.clone(), since: now, claim: None, is_away: false };
        self.waiting.insert(self.arrivals, waiting);
        Some(self.arrivals)
    }

    pub fn leave(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Those who came before; all of them for one who has not joined.
    fn earlier(&self, number: Option<u64>) -> impl Iterator<Item = &Waiting> {
        self.waiting.range(..number.unwrap_or(u64::MAX)).map(|(_, waiting)| waiting)
    }

    /// Whether somebody who came before waits for the same worker.
    pub fn is_behind(&self, number: Option<u64>, suits: impl Fn(&Want) -> bool) -> bool {
        self.earlier(number).any(|waiting| !waiting.is_away && suits(&waiting.want))
    }

    /// Notes that a request waits for a spawn of its own now, or that it is back. Its place stays.
    pub fn set_away(&mut self, number: u64, is_away: bool) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.is_away = is_away;
            waiting.claim = None;
        }
    }

    /// One's place among those who want the same model, the first being 1.
    pub fn position(&self, number: u64, model: &str) -> usize {
        1 + self.earlier(Some(number)).filter(|waiting| waiting.want.model == model).count()
    }

    pub fn waited(&self, number: u64, now: Instant) -> Duration {
        self.waiting.get(&number).map_or(Duration::ZERO, |waiting| now.duration_since(waiting.since))
    }

    /// Notes what memory a request waits for, or that it does no more.
    pub fn claim(&mut self, number: u64, claim: Option<Claim>) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.claim = claim;
        }
    }

    /// What those who came before have a claim on by now: workers that let nobody else in, and memory that is spoken for.
    pub fn claims(&self, number: Option<u64>, now: Instant) -> (Vec<String>, Vec<Promise>) {
        let is_ripe = |waiting: &&Waiting| now.duration_since(waiting.since) >= CLAIM_AFTER;
        let ripe = self.earlier(number).filter(is_ripe);
        let claims: Vec<&Claim> = ripe.filter_map(|waiting| waiting.claim.as_ref()).collect();
        let workers = claims.iter().flat_map(|claim| claim.by.iter().cloned()).collect();
        let promise = |claim: &&Claim| Promise {
            hive: claim.hive.clone(),
            device: claim.device.clone(),
            bytes: claim.bytes,
        };
        (workers, claims.iter().map(promise).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(model: &str) -> Want {
        Want { model: model.into(), ..Want::default() }
    }

    #[test]
    fn who_came_first_goes_first_among_those_a_worker_suits() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let first = queue.enter(&want("a"), 3, now).unwrap();
        let other = queue.enter(&want("b"), 3, now).unwrap();
        let last = queue.enter(&want("a"), 3, now).unwrap();
        assert_eq!(queue.enter(&want("a"), 3, now), None, "it is full");
        let serves_a = |want: &Want| want.model == "a";
        assert!(!queue.is_behind(Some(first), serves_a));
        assert!(queue.is_behind(Some(last), serves_a) && queue.is_behind(None, serves_a));
        let places =
            [(first, "a"), (other, "b"), (last, "a")].map(|(number, model)| queue.position(number, model));
        assert_eq!(places, [1, 1, 2]);
        queue.set_away(first, true);
        assert!(!queue.is_behind(Some(last), serves_a), "it has a worker of its own started");
        queue.set_away(first, false);
        assert!(queue.is_behind(Some(last), serves_a));
        queue.leave(first);
        assert!(!queue.is_behind(Some(last), serves_a));
        assert_eq!(queue.position(last, "a"), 1);
    }

    #[test]
    fn a_claim_holds_after_a_while_against_those_who_came_later() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let early = queue.enter(&want("a"), 9, now).unwrap();
        let patient = queue.enter(&want("b"), 9, now).unwrap();
        let claim = Claim { hive: "h".into(), device: "CPU-0".into(), bytes: 7, by: vec!["w".into()] };
        queue.claim(patient, Some(claim));
        let none = (Vec::new(), Vec::new());
        assert_eq!(queue.claims(None, now), none, "it is too early");
        let later = now + CLAIM_AFTER;
        let (workers, promises) = queue.claims(None, later);
        assert_eq!((workers, promises[0].bytes), (vec!["w".to_owned()], 7));
        assert_eq!(queue.claims(Some(early), later), none, "not against who came before");
        queue.claim(patient, None);
        assert_eq!(queue.claims(None, later), none);
    }
}
