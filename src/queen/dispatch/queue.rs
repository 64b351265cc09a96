//! Who waits for a slot, in order of arrival, and who may go first. Pure bookkeeping under the dispatcher's lock.
//!
//! Among those a worker suits, the first to come is the first to be served, whether they wait for a slot or for the worker. The
//! limit bounds all of them but one a spawn: whoever was its cause. A request that waits for other models' workers
//! to end has a claim on their memory after a while: from then on whoever came later is not let in there, so that a busy
//! model cannot keep another one out for ever.

use crate::queen::placement::{InFlight, Want};
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
    /// The workers that hold it, or as much of it as is not free.
    pub by: Vec<String>,
}

#[derive(Debug)]
pub struct Waiting {
    pub want: Want,
    /// It had a worker started when it came, or has had a slot, and is not of those whom the limit bounds.
    is_beside: bool,
    /// How long it has waited for slots before `since`.
    waited: Duration,
    /// Since when it waits for a slot now; a worker's start is not counted.
    since: Option<Instant>,
    /// Since when it has stood by for a worker.
    standing: Option<Instant>,
    claim: Option<Claim>,
}

impl Waiting {
    fn waited(&self, now: Instant) -> Duration {
        self.waited + self.since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }
}

#[derive(Debug, Default)]
pub struct Queue {
    pub in_flight: InFlight,
    waiting: BTreeMap<u64, Waiting>,
    arrivals: u64,
}

impl Queue {
    /// A number for a request that has come. It is its place, whenever it has to wait.
    pub fn arrive(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// Joins the queue, unless that many wait already.
    pub fn enter(&mut self, number: u64, want: &Want, max: usize) -> bool {
        let bounded = self.waiting.values().filter(|waiting| !waiting.is_beside).count();
        if bounded < max {
            self.join(number, want, Duration::ZERO, false);
        }
        bounded < max
    }

    /// Joins it however many wait: as the cause of a spawn, or as one that has had a slot and has lost it.
    pub fn enter_beside(&mut self, number: u64, want: &Want, waited: Duration) {
        self.join(number, want, waited, true);
    }

    fn join(&mut self, number: u64, want: &Want, waited: Duration, is_beside: bool) {
        let want = want.clone();
        let waiting = Waiting { want, is_beside, waited, since: None, standing: None, claim: None };
        self.waiting.insert(number, waiting);
    }

    pub fn leave(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Those who came before; all of them for one who has not come.
    fn earlier(&self, number: Option<u64>) -> impl Iterator<Item = &Waiting> {
        self.waiting.range(..number.unwrap_or(u64::MAX)).map(|(_, waiting)| waiting)
    }

    /// Whether somebody who came before waits for the same worker.
    pub fn is_behind(&self, number: Option<u64>, suits: impl Fn(&Want) -> bool) -> bool {
        self.earlier(number).any(|waiting| suits(&waiting.want))
    }

    /// One's place among those who want the same model, the first being 1.
    pub fn position(&self, number: u64, model: &str) -> usize {
        1 + self.earlier(Some(number)).filter(|waiting| waiting.want.model == model).count()
    }

    /// How long a request has waited for a slot.
    pub fn waited(&self, number: u64, now: Instant) -> Duration {
        self.waiting.get(&number).map_or(Duration::ZERO, |waiting| waiting.waited(now))
    }

    /// Notes that a request waits for a slot, and for what memory, if for any.
    pub fn waits(&mut self, number: u64, claim: Option<Claim>, now: Instant) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.since.get_or_insert(now);
            waiting.standing = None;
            waiting.claim = claim;
        }
    }

    /// Notes that it waits for a worker that comes up: its place stays, its time does not run.
    pub fn stands_by(&mut self, number: u64, now: Instant) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.waited = waiting.waited(now);
            waiting.since = None;
            waiting.standing.get_or_insert(now);
            waiting.claim = None;
        }
    }

    /// Notes that no worker came up, because somebody was quicker: that time counts.
    pub fn stood_by_in_vain(&mut self, number: u64) {
        if let Some(waiting) = self.waiting.get_mut(&number) {
            waiting.since = waiting.standing.take().or(waiting.since);
        }
    }

    /// What those who came before have a claim on by now.
    pub fn claims(&self, number: Option<u64>, now: Instant) -> impl Iterator<Item = &Claim> {
        let ripe = self.earlier(number).filter(move |waiting| waiting.waited(now) >= CLAIM_AFTER);
        ripe.filter_map(|waiting| waiting.claim.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(model: &str) -> Want {
        Want { model: model.into(), ..Want::default() }
    }

    fn enter(queue: &mut Queue, model: &str, max: usize) -> Option<u64> {
        let number = queue.arrive();
        queue.enter(number, &want(model), max).then_some(number)
    }

    #[test]
    fn who_came_first_goes_first_among_those_a_worker_suits() {
        let mut queue = Queue::default();
        let first = enter(&mut queue, "a", 3).unwrap();
        let other = enter(&mut queue, "b", 3).unwrap();
        let last = enter(&mut queue, "a", 3).unwrap();
        assert_eq!(enter(&mut queue, "a", 3), None, "it is full");
        let serves_a = |want: &Want| want.model == "a";
        assert!(!queue.is_behind(Some(first), serves_a));
        assert!(queue.is_behind(Some(last), serves_a) && queue.is_behind(None, serves_a));
        let places =
            [(first, "a"), (other, "b"), (last, "a")].map(|(number, model)| queue.position(number, model));
        assert_eq!(places, [1, 1, 2]);
        queue.stands_by(first, Instant::now());
        assert!(queue.is_behind(Some(last), serves_a), "the worker that comes up is the first one's");
        queue.leave(first);
        assert!(!queue.is_behind(Some(last), serves_a));
        assert_eq!(queue.position(last, "a"), 1);
        // It had a slot, and the worker was lost.
        queue.enter_beside(first, &want("a"), Duration::ZERO);
        assert!(queue.is_behind(Some(last), serves_a), "its place is what it was");
    }

    #[test]
    fn the_cause_of_a_spawn_waits_beside_the_limit_and_takes_nobodys_place() {
        let mut queue = Queue::default();
        assert_eq!(enter(&mut queue, "a", 0), None);
        let number = queue.arrive();
        queue.enter_beside(number, &want("a"), Duration::ZERO);
        assert!(enter(&mut queue, "a", 1).is_some());
        assert_eq!((enter(&mut queue, "a", 1), queue.len()), (None, 2));
    }

    #[test]
    fn time_runs_for_whoever_waits_for_a_slot_and_not_while_a_worker_comes_up() {
        let second = Duration::from_secs(1);
        let now = Instant::now();
        let mut queue = Queue::default();
        let number = enter(&mut queue, "a", 1).unwrap();
        queue.stands_by(number, now);
        queue.waits(number, None, now + 10 * second);
        queue.waits(number, None, now + 11 * second);
        assert_eq!(queue.waited(number, now + 12 * second), 2 * second);
        queue.stands_by(number, now + 13 * second);
        queue.waits(number, None, now + 20 * second);
        assert_eq!(queue.waited(number, now + 21 * second), 4 * second);
        queue.stands_by(number, now + 21 * second);
        queue.stood_by_in_vain(number);
        assert_eq!(queue.waited(number, now + 23 * second), 6 * second, "nothing came up");
        queue.leave(number);
        queue.enter_beside(number, &want("a"), 6 * second);
        queue.waits(number, None, now + 30 * second);
        assert_eq!(queue.waited(number, now + 31 * second), 7 * second, "before it had a slot, too");
    }

    #[test]
    fn a_claim_holds_after_a_while_against_those_who_came_later() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let early = enter(&mut queue, "a", 9).unwrap();
        let patient = enter(&mut queue, "b", 9).unwrap();
        let claim = Claim { hive: "h".into(), device: "CPU-0".into(), bytes: 7, by: vec!["w".into()] };
        queue.waits(patient, Some(claim.clone()), now);
        let claims = |queue: &Queue, number, now| queue.claims(number, now).cloned().collect::<Vec<_>>();
        assert_eq!(claims(&queue, None, now), [], "it is too early");
        let later = now + CLAIM_AFTER;
        assert_eq!(claims(&queue, None, later), [claim]);
        assert_eq!(claims(&queue, Some(early), later), [], "not against who came before");
        queue.waits(patient, None, later);
        assert_eq!(claims(&queue, None, later), []);
    }
}
