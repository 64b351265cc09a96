//! Who of the workers takes requests: who asks them, who waits for them, who wants them drained. All of it is decided under the
//! table's lock: a request is counted or refused, and one that is counted is waited for.

use crate::hive::workers::{Worker, Workers};
use crate::wire::fleet::{WorkerState, now_ms};
use crate::wire::{Code, Failure};
use std::sync::Arc;
use tokio::time::Instant;

impl Worker {
    /// Nobody has any use for it now.
    pub(super) fn is_unused(&self) -> bool {
        self.info.state.serves() && self.info.slots_busy == 0 && self.waiting == 0 && !self.info.pinned
    }
}

impl Workers {
    /// Takes an idle worker out of service, so that its memory can go to another; refused while anybody has use for it.
    pub fn give_up(&self, id: &str) -> Result<(), Failure> {
        let mut given_up = None;
        self.table.send_if_modified(|table| {
            let Some(worker) = table.get_mut(id) else { return false };
            if !worker.is_unused() {
                let what = if worker.info.pinned { "pinned" } else { worker.info.state.name() };
                let why = format!("worker {id} is {what}, and not to be given up");
                given_up = Some(Err(Failure::new(Code::Conflict, why)));
                return false;
            }
            worker.drains += 1;
            worker.info.state = WorkerState::Draining;
            given_up = Some(Ok(()));
            true
        });
        given_up.unwrap_or_else(|| Err(self.not_here(id)))
    }

    /// Has a worker, whatever its state, take no new requests for good.
    pub(super) fn end(&self, id: &str) {
        self.update(id, |worker| {
            worker.drains += 1;
            worker.info.state = WorkerState::Draining;
        });
    }

    /// Has a worker take no new requests; one that still loads will not begin to. It is for `undrain` to end that.
    pub(super) fn drain(&self, id: &str) {
        self.update(id, |worker| {
            worker.drains += 1;
            settle(worker);
        });
    }

    /// One of those who wanted it drained no longer does; it takes requests again if nobody else wants that. Tells whether.
    pub(super) fn undrain(&self, id: &str) -> bool {
        let mut is_back = false;
        self.update(id, |worker| {
            worker.drains = worker.drains.saturating_sub(1);
            is_back = worker.drains == 0;
            settle(worker);
        });
        is_back
    }

    /// Its model is loaded.
    pub(super) fn serves(&self, id: &str) {
        self.update(id, |worker| {
            worker.info.state = WorkerState::Ready;
            worker.has_served = true;
            worker.used = Instant::now();
            settle(worker);
        });
    }

    /// Counts a request at a worker for as long as the value lives. Refused under the same lock that takes it out of service: a
    /// request that is counted is waited for.
    pub fn busy(self: &Arc<Self>, id: &str) -> Result<Busy, Failure> {
        let mut taken = None;
        self.table.send_if_modified(|table| {
            let Some(worker) = table.get_mut(id) else { return false };
            let state = worker.info.state;
            if worker.drains > 0 || !(state.serves() || state.is_coming()) {
                let why = format!("worker {id} ({}) takes no new requests", state.name());
                taken = Some(Err(Failure::new(Code::ShuttingDown, why)));
                return false;
            }
            worker.info.slots_busy += 1;
            touch(worker);
            taken = Some(Ok(()));
            true
        });
        taken.unwrap_or_else(|| Err(self.not_here(id)))?;
        Ok(Busy { workers: self.clone(), id: id.to_owned() })
    }
}

fn touch(worker: &mut Worker) {
    worker.used = Instant::now();
    worker.info.last_used = now_ms();
    settle(worker);
}

/// The state of one that is up, by who asks it and who wants it drained.
fn settle(worker: &mut Worker) {
    let state = &mut worker.info.state;
    if state.serves() || *state == WorkerState::Draining {
        *state = match (worker.drains, worker.info.slots_busy) {
            (1.., _) => WorkerState::Draining,
            (0, 1..) => WorkerState::Busy,
            (0, 0) => WorkerState::Ready,
        };
    }
}

/// A request at work; see [`Workers::busy`].
#[derive(Debug)]
pub struct Busy {
    workers: Arc<Workers>,
    id: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.workers.update(&self.id, |worker| {
            worker.info.slots_busy = worker.info.slots_busy.saturating_sub(1);
            touch(worker);
        });
    }
}

/// One spawn that waits for a worker.
pub(super) struct Waiting<'w> {
    workers: &'w Workers,
    id: String,
    has_left: bool,
}

impl<'w> Waiting<'w> {
    pub(super) fn new(workers: &'w Workers, id: &str) -> Self {
        workers.update(id, |worker| worker.waiting += 1);
        Waiting { workers, id: id.to_owned(), has_left: false }
    }

    /// No longer waits. True for the last of those who did, if the worker has not served yet: it is that one's to stop, and nobody
    /// joins it any more. One that is being started again is nobody's.
    pub(super) fn leave(mut self) -> bool {
        let mut is_unwanted = false;
        self.has_left = true;
        self.workers.update(&self.id, |worker| {
            worker.waiting = worker.waiting.saturating_sub(1);
            is_unwanted = worker.waiting == 0 && !worker.has_served;
            worker.drains += u32::from(is_unwanted);
        });
        is_unwanted
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.has_left {
            self.workers.update(&self.id, |worker| worker.waiting = worker.waiting.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hive::workers::tests::{ID, one};
    use crate::wire::operation::WorkerSpawn;

    fn state(workers: &Workers) -> WorkerState {
        workers.get(ID).unwrap().info.state
    }

    #[test]
    fn a_worker_is_given_up_only_while_nobody_asks_it_and_then_nobody_may() {
        let (workers, _orders) = one();
        let busy = workers.busy(ID).unwrap();
        assert_eq!(workers.give_up(ID).unwrap_err().code, Code::Conflict);
        drop(busy);
        let waiting = Waiting::new(&workers, ID);
        assert_eq!(workers.give_up(ID).unwrap_err().code, Code::Conflict);
        drop(waiting);
        workers.give_up(ID).unwrap();
        assert_eq!(workers.busy(ID).unwrap_err().code, Code::ShuttingDown);
        assert_eq!((state(&workers), workers.get(ID).unwrap().info.slots_busy), (WorkerState::Draining, 0));
        workers.remove(ID);
        assert_eq!(workers.busy(ID).unwrap_err().code, Code::WorkerNotFound);
    }

    #[test]
    fn of_those_who_wait_for_a_worker_the_last_to_leave_is_the_one_to_stop_it() {
        let (workers, _orders) = one();
        workers.update(ID, |worker| worker.has_served = false);
        let want = WorkerSpawn::of("m");
        assert!(workers.matching(&want).is_some());
        let [one, two] = [Waiting::new(&workers, ID), Waiting::new(&workers, ID)];
        assert_eq!((one.leave(), two.leave()), (false, true), "however close together");
        assert_eq!(workers.matching(&want), None, "it is about to be stopped");
        let waiting = Waiting::new(&workers, ID);
        workers.update(ID, |worker| worker.has_served = true);
        assert!(!waiting.leave(), "it is being started again");
        assert_eq!(workers.get(ID).unwrap().waiting, 0);
    }

    #[test]
    fn a_worker_is_back_when_the_last_who_wanted_it_drained_no_longer_does() {
        let (workers, _orders) = one();
        let busy = workers.busy(ID).unwrap();
        workers.drain(ID);
        workers.drain(ID);
        assert!(!workers.undrain(ID) && state(&workers) == WorkerState::Draining);
        assert!(workers.undrain(ID) && state(&workers) == WorkerState::Busy);
        drop(busy);
        assert_eq!(state(&workers), WorkerState::Ready);
        // Nor is one put back that is to be given up, whoever wanted it drained before.
        workers.give_up(ID).unwrap();
        workers.drain(ID);
        assert!(!workers.undrain(ID) && state(&workers) == WorkerState::Draining);
    }

    #[test]
    fn a_worker_that_is_drained_while_it_loads_does_not_begin_to_serve() {
        let (workers, _orders) = one();
        workers.update(ID, |worker| worker.info.state = WorkerState::Loading);
        workers.drain(ID);
        assert_eq!(state(&workers), WorkerState::Loading);
        workers.serves(ID);
        assert_eq!(state(&workers), WorkerState::Draining);
        assert!(workers.undrain(ID) && state(&workers) == WorkerState::Ready);
    }
}
