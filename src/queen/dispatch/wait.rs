//! One request's wait for a slot. From its first wait on it has its place in the queue, whether all slots are taken or a
//! worker is only coming up, and is counted there: who came first is served first, also when a worker is up at last. Whoever
//! waits for a spawn of its own looks at every change, too: a slot that becomes free elsewhere is as good.

use super::queue::{CLAIM_AFTER, Claim};
use super::spawn::{Key, Watching};
use super::{Dispatcher, GROW_AFTER, GROW_AGAIN_AFTER, LOSSES_MAX, Slot, State, Tell};
use crate::queen::fleet::Fleet;
use crate::queen::placement::{self, Decision, View, Want};
use crate::wire::fleet::HiveInfo;
use crate::wire::job::JobEvent;
use crate::wire::{Code, Failure};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Spawns that one request may cause: a model whose workers die as soon as they are up must not be started for ever.
pub const SPAWNS_MAX: u32 = 3;
/// Plans that came to nothing because somebody was quicker, before a request is given up.
pub const RACES_MAX: u32 = 32;
/// After such a plan, how long the word of what has happened is waited for.
pub const RACE_NEWS_MAX: Duration = Duration::from_millis(250);
/// How long a hive may be away whose model a request has come for: after an update, or a break of the network, it dials again.
pub const HIVE_AWAY_MAX: Duration = Duration::from_secs(10);
/// What a client should wait when every slot is busy.
pub const RETRY_AFTER_SECONDS: u64 = 1;

/// A place in the queue; dropping it leaves the queue.
pub struct Ticket<'d> {
    pub dispatcher: &'d Dispatcher,
    pub number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let waited = {
            let mut state = self.dispatcher.state();
            let waited = state.queue.waited(self.number, Instant::now());
            state.queue.leave(self.number);
            waited
        };
        self.dispatcher.waits.observe(waited);
        self.dispatcher.changed.send_replace(());
    }
}

impl Dispatcher {
    /// Waits for a slot: in order of arrival among those a worker suits, spawning where nothing serves. One that has lost its
    /// slot comes again with what it has tried, and with its place.
    pub(super) async fn place(
        self: &Arc<Self>,
        want: &Want,
        tries: &mut Tries,
        tell: Tell<'_>,
    ) -> Result<Slot, Failure> {
        let mut ticket = None;
        let placed = self.wait(want, tries, &mut ticket, tell).await;
        if let Some(Ticket { number, .. }) = ticket {
            tries.waited = self.state().queue.waited(number, Instant::now());
        }
        tries.has_had_slot |= placed.is_ok();
        placed
    }

    async fn wait<'d>(
        self: &'d Arc<Self>,
        want: &Want,
        tries: &mut Tries,
        ticket: &mut Option<Ticket<'d>>,
        tell: Tell<'_>,
    ) -> Result<Slot, Failure> {
        let mut fleet = self.registry.watch();
        let mut freed = self.changed.subscribe();
        let mut told = String::new();
        let mut spawning: Option<Watching> = None;
        let mut is_cause = false;
        // All that has come since a spawn began.
        let mut news = fleet.clone();
        loop {
            let known = fleet.borrow_and_update().clone();
            freed.mark_unchanged();
            let placed = self.decide(want, &known, tries);
            if let Some(watching) = &mut spawning {
                if let Ok(Placed::Slot(slot)) = placed {
                    watching.tell_so_far(tell);
                    return Ok(slot);
                }
                // Whatever else could be done, a worker is on its way.
                let outcome = tokio::select! {
                    outcome = watching.end(tell) => outcome,
                    _ = fleet.changed() => continue,
                    _ = freed.changed() => continue,
                };
                let place = watching.place();
                spawning = None;
                if tries.spawned(is_cause, place, outcome)? == Spawned::LostARace {
                    self.state().queue.stood_by_in_vain(tries.number);
                    // What has come already is enough; nothing is missed by a look in vain.
                    let _ = tokio::time::timeout(RACE_NEWS_MAX, news.changed()).await;
                }
                continue;
            }
            let placed = match placed {
                Ok(placed) => {
                    (tries.has_known_model, tries.away_since) = (true, None);
                    placed
                }
                // It was there when the request came: its hive may be dialling again.
                Err(_) if tries.has_known_model && tries.first_failure.is_none() => {
                    Placed::Wait(Wait::for_hive(want))
                }
                Err(failure) => return Err(tries.first_failure.take().unwrap_or(failure)),
            };
            // Where no other hive can, another device of the same one may.
            if matches!(placed, Placed::Refused(_))
                && let Some((hive, device)) = tries.lost_at.take()
            {
                tries.refused.retain(|(name, on)| *name != hive || on.is_some());
                tries.refused.push((hive, Some(device)));
                continue;
            }
            // Nothing was found yet: nowhere, or telemetry has not told yet that the lost one has gone.
            let is_nowhere = match &placed {
                Placed::Refused(_) => true,
                Placed::Wait(wait) => !wait.is_for_slot,
                _ => false,
            };
            let is_over = tries.lost_workers.len() >= LOSSES_MAX;
            if let Some((failure, is_cause)) = tries.lost_loading.take_if(|_| is_over || !is_nowhere) {
                let failure = self.may_try_again(&tries.lost_workers, failure, is_cause)?;
                tell(JobEvent::warn("retry", format!("{}; trying elsewhere", failure.message)));
            }
            let wait = match placed {
                Placed::Slot(slot) => return Ok(slot),
                Placed::Spawn(plan) => {
                    tries.may_spawn(want)?;
                    news.clone_from(&fleet);
                    is_cause = true;
                    spawning = self.start(Key::of(&known, want, &plan), want, &plan, tries, ticket)?;
                    continue;
                }
                Placed::Join(watching) => {
                    let wait = Wait::for_worker(want, (0, 0));
                    let number = self.enter(&mut self.state(), ticket, want, tries, false, &wait)?;
                    let position = self.stands_by(number, want);
                    // The first hears of the load; the others, where they are.
                    if position > 1 {
                        tell(JobEvent::narrate("queue", wait.news(position)));
                    }
                    news.clone_from(&fleet);
                    is_cause = false;
                    spawning = Some(watching);
                    continue;
                }
                Placed::Refused(failure) => return Err(tries.first_failure.take().unwrap_or(failure)),
                Placed::Wait(wait) => wait,
            };
            let number = self.enter(&mut self.state(), ticket, want, tries, false, &wait)?;
            let (position, has_waited) = if wait.is_for_slot {
                let (mut state, now) = (self.state(), Instant::now());
                state.queue.waits(number, wait.claim.clone(), now);
                (state.queue.position(number, &want.model), state.queue.waited(number, now))
            } else {
                (self.stands_by(number, want), Duration::ZERO)
            };
            let news = wait.news(position);
            if news != told {
                tell(JobEvent::narrate("queue", news.clone()));
                told = news;
            }
            if !wait.is_for_slot {
                tokio::select! {
                    _ = fleet.changed() => {}
                    _ = freed.changed() => {}
                }
                continue;
            }
            let mut grow_after = None;
            if let Some(plan) = wait.grow.as_ref().filter(|_| position == 1) {
                if has_waited >= GROW_AFTER {
                    self.grow(want, plan);
                } else {
                    grow_after = Some(GROW_AFTER - has_waited);
                }
            }
            // From then on others are kept out, which is worth another look.
            let claim_after = wait.claim.as_ref().and_then(|_| CLAIM_AFTER.checked_sub(has_waited));
            let away =
                wait.is_for_hive.then(|| *tries.away_since.get_or_insert_with(Instant::now) + HIVE_AWAY_MAX);
            let look_again = grow_after.into_iter().chain(claim_after).filter(|left| !left.is_zero()).min();
            tokio::select! {
                _ = fleet.changed() => {}
                _ = freed.changed() => {}
                () = async { tokio::time::sleep(look_again.unwrap_or_default()).await }, if look_again.is_some() => {
                    self.changed.send_replace(());
                }
                () = async { tokio::time::sleep_until(away.unwrap_or_else(Instant::now)).await }, if away.is_some() => {
                    return Err(tries.lost.take().unwrap_or_else(|| wait.away()));
                }
                () = tokio::time::sleep(self.limits.queue_wait.saturating_sub(has_waited)) => {
                    let seconds = self.limits.queue_wait.as_secs();
                    return Err(wait.failure(&format!("and stayed so for {seconds} s")));
                }
            }
        }
    }

    /// Has a worker started, or joins who does it. The request that is the cause waits beside the queue's limit: it could
    /// else never be answered where nobody may wait. Nothing, if an idle worker that was to go is at work again meanwhile.
    fn start<'d>(
        self: &'d Arc<Self>,
        key: Key,
        want: &Want,
        plan: &placement::Spawn,
        tries: &Tries,
        ticket: &mut Option<Ticket<'d>>,
    ) -> Result<Option<Watching>, Failure> {
        let mut state = self.state();
        if plan.evict.iter().any(|worker| state.queue.in_flight.contains_key(worker)) {
            return Ok(None);
        }
        let is_joined = state.spawns.contains_key(&key);
        let wait = Wait::for_worker(want, (0, 0));
        let number = self.enter(&mut state, ticket, want, tries, !is_joined, &wait)?;
        state.queue.stands_by(number, Instant::now());
        Ok(Some(Watching::of(self.start_spawn(&mut state, key, want, plan))))
    }

    /// One's number in the queue. It has a limit, but not for the cause of a spawn, nor for one that has had a slot.
    fn enter<'d>(
        &'d self,
        state: &mut State,
        ticket: &mut Option<Ticket<'d>>,
        want: &Want,
        tries: &Tries,
        is_cause: bool,
        wait: &Wait,
    ) -> Result<u64, Failure> {
        let number = tries.number;
        if ticket.is_none() {
            let queue = &mut state.queue;
            if is_cause || tries.has_had_slot {
                queue.enter_beside(number, want, tries.waited);
            } else if !queue.enter(number, want, self.limits.queue) {
                return Err(wait.full(queue.len()));
            }
            *ticket = Some(Ticket { dispatcher: self, number });
        }
        Ok(number)
    }

    /// Waits for a worker and not for a slot; one's place among those who want the same model.
    fn stands_by(&self, number: u64, want: &Want) -> usize {
        let mut state = self.state();
        state.queue.stands_by(number, Instant::now());
        state.queue.position(number, &want.model)
    }

    fn decide(self: &Arc<Self>, want: &Want, fleet: &Fleet, tries: &Tries) -> Result<Placed, Failure> {
        let (number, refused) = (Some(tries.number), tries.refused.as_slice());
        let holders = fleet.holders(&want.model, want.hive.as_deref());
        if holders.is_empty() {
            let all: Vec<&HiveInfo> = fleet.hives.values().map(|hive| &hive.info).collect();
            return Err(placement::nowhere(want, &all));
        }
        let mut state = self.state();
        let (claimed, promises) = Dispatcher::spoken_for(&state, number, fleet);
        let view = View {
            holders: &holders,
            in_flight: &state.queue.in_flight,
            promises: &promises,
            claimed: &claimed,
            refused,
        };
        let decision = placement::decide(want, &view);
        if matches!(decision, Decision::Spawn(_) | Decision::Blocked { .. } | Decision::Refuse(_)) {
            // Somebody has one started that will do, and has taken the room for it: one is enough.
            let will_do = state.spawns.values().find(|spawning| spawning.will_do(want, refused));
            if let Some(spawning) = will_do {
                return Ok(Placed::Join(Watching::of(spawning.clone())));
            }
        }
        Ok(match decision {
            Decision::Refuse(failure) => Placed::Refused(failure),
            Decision::Spawn(plan) => {
                // An idle worker is theirs first who came before and can use it.
                let is_theirs = |id: &String| {
                    fleet.hives.get(&plan.hive).is_some_and(|hive| {
                        let worker = hive.info.workers.iter().find(|worker| worker.worker_id == *id);
                        worker.is_some_and(|worker| {
                            state.queue.is_behind(number, |other| placement::suits(other, &hive.info, worker))
                        })
                    })
                };
                match (&plan.device, plan.evict.iter().any(is_theirs)) {
                    (Some(device), true) => {
                        let (hive, device) = (plan.hive.clone(), device.clone());
                        Placed::Wait(Wait::for_room(want, hive, device, plan.bytes, plan.evict))
                    }
                    _ => Placed::Spawn(plan),
                }
            }
            Decision::Loading { slots_total, slots_busy } => {
                Placed::Wait(Wait::for_worker(want, (slots_total, slots_busy)))
            }
            Decision::Full { slots_total, slots_busy, grow } => {
                let recently = |at: &Instant| at.elapsed() < GROW_AGAIN_AFTER;
                let grow = grow.filter(|_| !state.grown.get(&want.model).is_some_and(recently));
                Placed::Wait(Wait { grow, ..Wait::for_slot(slots_total, slots_busy) })
            }
            Decision::Blocked { hive, device, bytes, by } => {
                Placed::Wait(Wait::for_room(want, hive, device, bytes, by))
            }
            Decision::Use { hive, worker_id } => {
                let Some(known) = fleet.hives.get(&hive) else {
                    return Ok(Placed::Wait(Wait::for_worker(want, (0, 0))));
                };
                let Some(worker) = known.info.workers.iter().find(|worker| worker.worker_id == worker_id)
                else {
                    return Ok(Placed::Wait(Wait::for_worker(want, (0, 0))));
                };
                if state.queue.is_behind(number, |other| placement::suits(other, &known.info, worker)) {
                    let total = worker.slots_total;
                    return Ok(Placed::Wait(Wait::for_slot(total, total)));
                }
                *state.queue.in_flight.entry(worker_id.clone()).or_default() += 1;
                let caller = known.caller.clone();
                Placed::Slot(Slot { dispatcher: self.clone(), hive, worker_id, caller })
            }
        })
    }
}

/// What a request has tried so far.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// Its place among those who wait, by when it came.
    number: u64,
    /// How long it has waited for the slots that it has had.
    waited: Duration,
    has_had_slot: bool,
    /// What became of the last of them.
    pub lost: Option<Failure>,
    /// Workers that ended over it, or while they were loaded for it.
    pub lost_workers: Vec<String>,
    /// What became of the last that was loaded for it, as long as nothing else was found; and whether it was the cause.
    lost_loading: Option<(Failure, bool)>,
    /// The hive and its device that it was loaded on, as long as the hive's other devices were not thought of.
    lost_at: Option<(String, String)>,
    /// Some hive had the model.
    has_known_model: bool,
    /// Since when none has.
    away_since: Option<Instant>,
    /// Workers that were started for it.
    spawns: u32,
    races: u32,
    /// Where it was refused, or lost a worker, on a device or all of a hive: not asked again.
    refused: Vec<(String, Option<String>)>,
    first_failure: Option<Failure>,
}

/// What came of a spawn, if it is worth another look.
#[derive(Debug, PartialEq, Eq)]
enum Spawned {
    Ready,
    /// Somebody else was quicker, or a hive left.
    LostARace,
    /// Not there; perhaps elsewhere.
    NotThere,
}

impl Tries {
    pub(super) fn new(number: u64) -> Self {
        Tries { number, ..Tries::default() }
    }

    /// Whether one more worker may be started for this request.
    fn may_spawn(&self, want: &Want) -> Result<(), Failure> {
        if self.spawns < SPAWNS_MAX {
            return Ok(());
        }
        let what = format!("{} workers for `{}` were gone as soon as they were up", self.spawns, want.model);
        Err(Failure::new(Code::WorkerLost, what))
    }

    /// After a spawn at a hive and its device: look again, or give up.
    fn spawned(
        &mut self,
        is_cause: bool,
        place: (String, Option<String>),
        outcome: Result<(), Failure>,
    ) -> Result<Spawned, Failure> {
        let failure = match outcome {
            Ok(()) => {
                // One that somebody else had started may have gone to those who came before, and on from there.
                self.spawns += u32::from(is_cause);
                return Ok(Spawned::Ready);
            }
            Err(failure) => failure,
        };
        // It was started, and ended or hung while it loaded: a driver, a disk, the memory. Another node may do better.
        if let Some(worker) = failure.details["worker_id"].as_str()
            && failure.code != Code::InvalidModel
        {
            self.lost_workers.push(worker.to_owned());
            self.lost_loading = Some((failure.clone(), is_cause));
            self.refused.push((place.0.clone(), None));
            self.lost_at = place.1.map(|device| (place.0, device));
            self.first_failure.get_or_insert(failure);
            return Ok(Spawned::NotThere);
        }
        match failure.code {
            // Somebody else was quicker, or a hive left: the next decision knows.
            Code::Conflict | Code::HiveLost | Code::HiveNotFound | Code::ShuttingDown => {
                self.races += 1;
                if self.races > RACES_MAX { Err(failure) } else { Ok(Spawned::LostARace) }
            }
            // Its hive knows better than we did; another one may have room, or a sound file.
            Code::InsufficientMemory
            | Code::BackendUnavailable
            | Code::ModelNotFound
            | Code::ChecksumMismatch => {
                self.refused.push(place);
                self.first_failure.get_or_insert(failure);
                Ok(Spawned::NotThere)
            }
            _ => Err(failure),
        }
    }
}

enum Placed {
    Slot(Slot),
    Spawn(placement::Spawn),
    /// One that will do is under way.
    Join(Watching),
    Wait(Wait),
    Refused(Failure),
}

/// Why a request has to wait.
struct Wait {
    reason: String,
    /// Its time counts; while a worker comes up it does not.
    is_for_slot: bool,
    is_for_hive: bool,
    /// All there are, and how many are busy.
    slots: (u32, u32),
    grow: Option<placement::Spawn>,
    claim: Option<Claim>,
}

impl Wait {
    fn for_slot(total: u32, busy: u32) -> Self {
        let reason = format!("all {total} slots are busy");
        let slots = (total, busy);
        Wait { reason, is_for_slot: true, is_for_hive: false, slots, grow: None, claim: None }
    }

    fn for_room(want: &Want, hive: String, device: String, bytes: u64, by: Vec<String>) -> Self {
        let until = match by.as_slice() {
            [] => "what is free is promised to others".to_owned(),
            by => format!("{} is at work", by.join(", ")),
        };
        let reason = format!("{device} of {hive} has no room for `{}` while {until}", want.model);
        Wait { reason, claim: Some(Claim { hive, device, bytes, by }), ..Wait::for_slot(0, 0) }
    }

    fn for_worker(want: &Want, slots: (u32, u32)) -> Self {
        let reason = format!("a worker for `{}` is coming up", want.model);
        Wait { reason, is_for_slot: false, ..Wait::for_slot(slots.0, slots.1) }
    }

    fn for_hive(want: &Want) -> Self {
        let reason = format!("no hive that has `{}` is linked any more", want.model);
        Wait { reason, is_for_hive: true, ..Wait::for_slot(0, 0) }
    }

    fn news(&self, position: usize) -> String {
        format!("{}; {position}. in the queue", self.reason)
    }

    fn away(&self) -> Failure {
        let seconds = HIVE_AWAY_MAX.as_secs();
        let what = format!("{}, and none came back within {seconds} s", self.reason);
        Failure::new(Code::HiveLost, what).with(json!({"retry_after": RETRY_AFTER_SECONDS}))
    }

    fn full(&self, queued: usize) -> Failure {
        self.failure(&format!("and {queued} requests wait already"))
    }

    fn failure(&self, what: &str) -> Failure {
        let (total, busy) = self.slots;
        Failure::new(Code::AllSlotsBusy, format!("{} {what}", self.reason)).with(json!({
            "slots_total": total, "slots_busy": busy, "retry_after": RETRY_AFTER_SECONDS,
        }))
    }
}
