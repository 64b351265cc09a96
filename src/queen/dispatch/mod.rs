//! From a request to a worker's answer: wait for a place in a bounded, fair queue, spawn where nothing serves, send over
//! the link, try once more elsewhere while the client has seen nothing.

mod budget;
mod queue;
mod slot;
mod spawn;

pub use slot::{Answer, Begun, Slot};

use crate::http::metrics::Histogram;
use crate::http::{client, reply, request};
use crate::queen::fleet::Fleet;
use crate::queen::placement::{self, Decision, Verdict, View, Want};
use crate::queen::registry::{Registry, TELEMETRY_SILENCE_MAX};
use crate::queen::worker_facts;
use crate::wire::fleet::HiveInfo;
use crate::wire::job::JobEvent;
use crate::wire::{Code, Failure};
use budget::Budget;
use bytes::Bytes;
use queue::{CLAIM_AFTER, Claim, Queue};
use serde_json::{Value, json};
use slot::{NotBegun, begin};
use spawn::{Key, Spawning};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Workers that one request may cost before it is given up, as long as its client has seen nothing.
pub const LOSSES_MAX: usize = 2;
/// Times a request is sent elsewhere because a worker was just leaving.
pub const REDIRECTS_MAX: u32 = 8;
/// Spawns that one request may cause: a model whose workers die as soon as they are up must not be started for ever.
pub const SPAWNS_MAX: u32 = 3;
/// Plans that came to nothing because somebody was quicker, before a request is given up.
pub const RACES_MAX: u32 = 32;
/// After such a plan, how long the word of what has happened is waited for.
pub const RACE_NEWS_MAX: Duration = Duration::from_millis(250);
/// How long a model's slots stay full before it gets another worker where there is room.
pub const GROW_AFTER: Duration = Duration::from_secs(2);
/// And how long it gets none after one could not be started.
pub const GROW_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How long a cancel waits for word that its slot is free: a decode step, and the way there and back.
pub const SLOT_FREE_MAX: Duration = Duration::from_secs(3);
/// What a client should wait when every slot is busy.
pub const RETRY_AFTER_SECONDS: u64 = 1;
/// The header of a request's deadline, in milliseconds since the epoch.
pub const DEADLINE_HEADER: &str = "x-request-deadline";

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests that may wait for a slot.
    pub queue: usize,
    /// How long one may wait, a model's loading not counted.
    pub queue_wait: Duration,
}

#[derive(Debug)]
pub struct Dispatcher {
    registry: Arc<Registry>,
    limits: Limits,
    state: Mutex<State>,
    /// Wakes the queue when a slot is let go or a spawn ends.
    changed: watch::Sender<()>,
    /// How long requests were in the queue.
    pub waits: Histogram,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    spawns: HashMap<Key, Arc<Spawning>>,
    /// When a model was last given another worker.
    grown: HashMap<String, Instant>,
    budget: Budget,
}

/// A place in the queue; dropping it leaves the queue.
struct Ticket<'d> {
    dispatcher: &'d Dispatcher,
    number: u64,
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

/// A request on its way to a worker.
#[derive(Debug)]
pub struct Dispatch<'r> {
    pub want: &'r Want,
    pub path: &'r str,
    pub body: Bytes,
    pub request_id: &'r str,
    pub deadline: Option<Deadline>,
}

/// When an answer is of no use any more. It goes down to the worker as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadline {
    at: Instant,
    header: String,
}

impl Deadline {
    /// From the header, if a request has one.
    pub fn read(header: Option<&str>, now_ms: u64) -> Result<Option<Self>, Failure> {
        let Some(text) = header else { return Ok(None) };
        let at: u64 = text.trim().parse().map_err(|_| {
            Failure::invalid(format!(
                "`X-Request-Deadline: {text}` is not a time in milliseconds since the epoch"
            ))
        })?;
        if at <= now_ms {
            return Err(passed());
        }
        let at = Instant::now().checked_add(Duration::from_millis(at - now_ms));
        Ok(at.map(|at| Deadline { at, header: text.trim().to_owned() }))
    }
}

fn passed() -> Failure {
    Failure::new(Code::RequestTimeout, "the request's deadline has passed")
}

/// Tells whoever waits for a request what happens meanwhile.
pub type Tell<'t> = &'t (dyn Fn(JobEvent) + Send + Sync);

impl Dispatcher {
    pub fn new(registry: Arc<Registry>, limits: Limits) -> Arc<Self> {
        Arc::new(Dispatcher {
            registry,
            limits,
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            waits: Histogram::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the state panics")
    }

    /// Requests that are at workers now.
    pub fn in_flight(&self) -> u32 {
        self.state().queue.in_flight.values().sum()
    }

    /// Requests that wait for a slot now.
    pub fn queued(&self) -> usize {
        self.state().queue.len()
    }

    /// Sends a body to a worker that fits and gives its answer once that has begun. A worker that is lost before is
    /// replaced once; its failure answers (a bad request, say) are answers like any other.
    pub async fn send(self: &Arc<Self>, ask: Dispatch<'_>, tell: Tell<'_>) -> Result<Answer, Failure> {
        let deadline = ask.deadline.as_ref().map(|deadline| deadline.at);
        let sending = self.send_until_begun(&ask, tell);
        match deadline {
            None => sending.await,
            Some(at) => tokio::time::timeout_at(at, sending).await.map_err(|_| passed())?,
        }
    }

    async fn send_until_begun(
        self: &Arc<Self>,
        ask: &Dispatch<'_>,
        tell: Tell<'_>,
    ) -> Result<Answer, Failure> {
        self.state().budget.request();
        let mut lost: Vec<String> = Vec::new();
        let mut redirects = 0;
        loop {
            let slot = self.place(ask.want, tell).await?;
            let failure = match begin(&slot, question(ask, &slot.worker_id)?).await {
                Ok(response) => return Ok(Answer { response, slot }),
                Err(NotBegun::Refused(failure)) => return Err(failure),
                Err(NotBegun::NotNow(failure)) => {
                    redirects += 1;
                    if redirects > REDIRECTS_MAX {
                        return Err(failure);
                    }
                    failure
                }
                Err(NotBegun::Lost(failure)) => {
                    lost.push(slot.worker_id.clone());
                    if lost.len() >= LOSSES_MAX {
                        return Err(poisonous(&lost, &failure));
                    }
                    if !self.state().budget.retry(Instant::now()) {
                        let what = format!("{}; too many were lost lately to try again", failure.message);
                        return Err(Failure { message: what, ..failure });
                    }
                    failure
                }
            };
            tracing::info!(worker = slot.worker_id, reason = failure.message, "an answer did not begin");
            tell(JobEvent::warn("retry", format!("{}; trying again", failure.message)));
            let (hive, worker_id) = (slot.hive.clone(), slot.worker_id.clone());
            drop(slot);
            self.forgotten(&hive, &worker_id).await;
        }
    }

    /// Waits until the hive has said that no more of a worker's slots are busy than this queen still uses. False when that
    /// word did not come in time; another queen's requests can be the reason.
    pub async fn freed(&self, worker_id: &str) -> bool {
        let is_free =
            |busy: u64| busy <= self.state().queue.in_flight.get(worker_id).copied().unwrap_or(0).into();
        let is_told = |fleet: &Fleet| {
            fleet.workers().all(|worker| worker.worker_id != worker_id || is_free(worker.slots_busy.into()))
        };
        let mut fleet = self.registry.watch();
        let freed = async {
            // Its hive is asked, too: what was last told may be from before the request.
            while !self.busy_slots(worker_id).await.is_none_or(is_free) {
                let _ = fleet.changed().await;
            }
            let _ = fleet.wait_for(is_told).await;
        };
        tokio::time::timeout(SLOT_FREE_MAX, freed).await.is_ok()
    }

    /// How many of a worker's slots its hive says are busy; none if it has gone.
    async fn busy_slots(&self, worker_id: &str) -> Option<u64> {
        let fleet = self.registry.fleet();
        let hive = &fleet.workers().find(|worker| worker.worker_id == worker_id)?.hive;
        let caller = fleet.hives.get(hive)?.caller.clone();
        worker_facts::ask(caller, worker_id.to_owned()).await.ok()?["slots_busy"].as_u64()
    }

    /// Waits until telemetry has taken a lost worker out, so that the next try is not sent to it again.
    async fn forgotten(&self, hive: &str, worker_id: &str) {
        let gone = |fleet: &Fleet| {
            !fleet.hives.get(hive).is_some_and(|hive| {
                hive.info.workers.iter().any(|worker| worker.worker_id == worker_id && worker.state.serves())
            })
        };
        let mut fleet = self.registry.watch();
        // A worker that serves on although it lost one connection may well be tried again.
        let _ = tokio::time::timeout(TELEMETRY_SILENCE_MAX, fleet.wait_for(gone)).await;
    }

    /// Waits for a slot: in order of arrival among those a worker suits, spawning where nothing serves.
    async fn place(self: &Arc<Self>, want: &Want, tell: Tell<'_>) -> Result<Slot, Failure> {
        let mut fleet = self.registry.watch();
        let mut freed = self.changed.subscribe();
        let mut ticket: Option<Ticket<'_>> = None;
        let mut waited = Waited::new(self.limits.queue_wait);
        let mut told = String::new();
        let mut tries = Tries::default();
        loop {
            let known = fleet.borrow_and_update().clone();
            freed.mark_unchanged();
            let number = ticket.as_ref().map(|ticket| ticket.number);
            let wait = match self.decide(want, &known, number, &tries.refused)? {
                Placed::Slot(slot) => return Ok(slot),
                Placed::Spawn(plan) => {
                    tries.may_spawn(want)?;
                    let away = |is_away| {
                        number.inspect(|number| self.state().queue.set_away(*number, is_away));
                        self.changed.send_replace(());
                    };
                    away(true);
                    let outcome = self.spawn(want, &plan, tell).await;
                    away(false);
                    if tries.spawned(&plan, outcome)? == Spawned::LostARace {
                        // What has come already is enough; nothing is missed by a look in vain.
                        let _ = tokio::time::timeout(RACE_NEWS_MAX, fleet.changed()).await;
                    }
                    continue;
                }
                Placed::Refused(failure) => return Err(tries.first_failure.unwrap_or(failure)),
                Placed::Loading => {
                    tokio::select! {
                        _ = fleet.changed() => {}
                        _ = freed.changed() => {}
                    }
                    continue;
                }
                Placed::Wait(wait) => wait,
            };
            let ticket = match &ticket {
                Some(ticket) => ticket,
                None => {
                    let number = self.state().queue.enter(want, self.limits.queue, Instant::now());
                    let Some(number) = number else {
                        let queued = self.queued();
                        return Err(wait.failure(&format!("and {queued} requests wait already")));
                    };
                    ticket.insert(Ticket { dispatcher: self, number })
                }
            };
            let (position, has_waited) = {
                let mut state = self.state();
                state.queue.claim(ticket.number, wait.claim.clone());
                (
                    state.queue.position(ticket.number, &want.model),
                    state.queue.waited(ticket.number, Instant::now()),
                )
            };
            let news = format!("{}; {position}. in the queue", wait.reason);
            if news != told {
                tell(JobEvent::narrate("queue", news.clone()));
                told = news;
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
            let look_again = grow_after.into_iter().chain(claim_after).filter(|left| !left.is_zero()).min();
            tokio::select! {
                _ = fleet.changed() => {}
                _ = freed.changed() => {}
                () = async { tokio::time::sleep(look_again.unwrap_or_default()).await }, if look_again.is_some() => {
                    self.changed.send_replace(());
                }
                () = waited.out() => {
                    let seconds = self.limits.queue_wait.as_secs();
                    return Err(wait.failure(&format!("and stayed so for {seconds} s")));
                }
            }
        }
    }

    fn decide(
        self: &Arc<Self>,
        want: &Want,
        fleet: &Fleet,
        number: Option<u64>,
        refused: &[(String, Option<String>)],
    ) -> Result<Placed, Failure> {
        let holders = fleet.holders(&want.model, want.hive.as_deref());
        if holders.is_empty() {
            let all: Vec<&HiveInfo> = fleet.hives.values().map(|hive| &hive.info).collect();
            return Err(placement::nowhere(want, &all));
        }
        let mut state = self.state();
        let (claimed, mut promises) = state.queue.claims(number, Instant::now());
        promises.extend(Dispatcher::promises(state.spawns.iter(), fleet));
        let view = View {
            holders: &holders,
            in_flight: &state.queue.in_flight,
            promises: &promises,
            claimed: &claimed,
            refused,
        };
        Ok(match placement::decide(want, &view) {
            Decision::Refuse(failure) => Placed::Refused(failure),
            Decision::Spawn(plan) => Placed::Spawn(plan),
            Decision::Loading => Placed::Loading,
            Decision::Full { slots_total, slots_busy, grow } => {
                let recently = |at: &Instant| at.elapsed() < GROW_AGAIN_AFTER;
                let grow = grow.filter(|_| !state.grown.get(&want.model).is_some_and(recently));
                Placed::Wait(Wait { grow, ..Wait::for_slot(slots_total, slots_busy) })
            }
            Decision::Blocked { hive, device, bytes, by } => {
                let reason = format!(
                    "{device} of {hive} has no room for `{}` while {} is at work",
                    want.model,
                    by.join(", ")
                );
                let claim = Some(Claim { hive, device, bytes, by });
                Placed::Wait(Wait { reason, slots: (0, 0), grow: None, claim })
            }
            Decision::Use { hive, worker_id } => {
                let Some(known) = fleet.hives.get(&hive) else { return Ok(Placed::Loading) };
                let Some(worker) = known.info.workers.iter().find(|worker| worker.worker_id == worker_id)
                else {
                    return Ok(Placed::Loading);
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

    /// Another worker for a model whose slots stay full; its queue goes on meanwhile.
    fn grow(self: &Arc<Self>, want: &Want, plan: &placement::Spawn) {
        tracing::info!(
            model = want.model,
            hive = plan.hive,
            device = plan.device,
            "all slots stay busy: one more worker"
        );
        let mut state = self.state();
        state.grown.retain(|_, at| at.elapsed() < GROW_AGAIN_AFTER);
        state.grown.insert(want.model.clone(), Instant::now());
        drop(state);
        self.start_spawn(want, plan);
    }

    /// What placement thinks of a request now, every node's verdict with it.
    pub fn explain(&self, want: &Want) -> Result<Value, Failure> {
        let fleet = self.registry.fleet();
        let holders = fleet.holders(&want.model, want.hive.as_deref());
        if holders.is_empty() {
            let all: Vec<&HiveInfo> = fleet.hives.values().map(|hive| &hive.info).collect();
            return Err(placement::nowhere(want, &all));
        }
        let state = self.state();
        let (claimed, mut promises) = state.queue.claims(None, Instant::now());
        promises.extend(Dispatcher::promises(state.spawns.iter(), &fleet));
        let view = View {
            holders: &holders,
            in_flight: &state.queue.in_flight,
            promises: &promises,
            claimed: &claimed,
            refused: &[],
        };
        let verdicts = placement::verdicts(want, &view);
        let decision = placement::decide(want, &view);
        let without: Vec<&str> = fleet
            .hives
            .keys()
            .map(String::as_str)
            .filter(|name| !holders.iter().any(|holder| holder.hive.name == *name))
            .collect();
        let missing = without.iter().map(|name| {
            json!({"hive": name, "verdict": "no", "reason": format!("{name} does not have the model")})
        });
        let nodes: Vec<Value> = verdicts.iter().map(Verdict::json).chain(missing).collect();
        Ok(
            json!({"model": want.model, "decision": decision.json(), "nodes": nodes, "queued": state.queue.len()}),
        )
    }
}

/// What a request has tried so far.
#[derive(Debug, Default)]
struct Tries {
    spawns: u32,
    races: u32,
    /// Where it was refused: not asked again.
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
    Refused,
}

impl Tries {
    /// Whether one more worker may be started for this request.
    fn may_spawn(&self, want: &Want) -> Result<(), Failure> {
        if self.spawns < SPAWNS_MAX {
            return Ok(());
        }
        let what = format!("{} workers for `{}` were gone as soon as they were up", self.spawns, want.model);
        Err(Failure::new(Code::WorkerLost, what))
    }

    /// After a spawn: look again, or give up.
    fn spawned(&mut self, plan: &placement::Spawn, outcome: Result<(), Failure>) -> Result<Spawned, Failure> {
        let failure = match outcome {
            Ok(()) => {
                self.spawns += 1;
                return Ok(Spawned::Ready);
            }
            Err(failure) => failure,
        };
        match failure.code {
            // Somebody else was quicker, or a hive left: the next decision knows.
            Code::Conflict | Code::HiveLost | Code::HiveNotFound | Code::ShuttingDown => {
                self.races += 1;
                if self.races > RACES_MAX { Err(failure) } else { Ok(Spawned::LostARace) }
            }
            // Its hive knows better than we did; another one may have room.
            Code::InsufficientMemory | Code::BackendUnavailable | Code::ModelNotFound => {
                self.refused.push((plan.hive.clone(), plan.device.clone()));
                self.first_failure.get_or_insert(failure);
                Ok(Spawned::Refused)
            }
            _ => Err(failure),
        }
    }
}

/// The worker's request.
fn question(ask: &Dispatch<'_>, worker_id: &str) -> Result<http::Request<reply::Body>, Failure> {
    let target = format!("/v1/workers/{}{}", request::percent_encode(worker_id), ask.path);
    let mut question = client::request("POST", &target, reply::full(ask.body.clone()))
        .map_err(|error| Failure::internal(&error))?;
    let headers = question.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, reply::JSON);
    if let Ok(id) = http::HeaderValue::from_str(ask.request_id) {
        headers.insert("x-request-id", id);
    }
    if let Some(deadline) = &ask.deadline
        && let Ok(at) = http::HeaderValue::from_str(&deadline.header)
    {
        headers.insert(DEADLINE_HEADER, at);
    }
    Ok(question)
}

/// Two workers ended over one request: a third is not risked.
fn poisonous(workers: &[String], last: &Failure) -> Failure {
    let names = workers.join(" and ");
    Failure::new(
        Code::WorkerLost,
        format!(
            "workers {names} were lost over this request, one after the other, and it is not tried again: {}",
            last.message
        ),
    )
    .with(json!({"tokens": 0, "workers": workers}))
}

enum Placed {
    Slot(Slot),
    Spawn(placement::Spawn),
    Loading,
    Wait(Wait),
    Refused(Failure),
}

/// Why a request has to wait.
struct Wait {
    reason: String,
    /// All there are, and how many are busy.
    slots: (u32, u32),
    grow: Option<placement::Spawn>,
    claim: Option<Claim>,
}

impl Wait {
    fn for_slot(total: u32, busy: u32) -> Self {
        let reason = format!("all {total} slots are busy");
        Wait { reason, slots: (total, busy), grow: None, claim: None }
    }

    fn failure(&self, what: &str) -> Failure {
        let (total, busy) = self.slots;
        Failure::new(Code::AllSlotsBusy, format!("{} {what}", self.reason)).with(json!({
            "slots_total": total, "slots_busy": busy, "retry_after": RETRY_AFTER_SECONDS,
        }))
    }
}

/// How long a request has waited in the queue; loading is not counted, because the clock runs only while it is full.
struct Waited {
    left: Duration,
}

impl Waited {
    fn new(left: Duration) -> Self {
        Waited { left }
    }

    /// Ends when nothing is left; what passes until it is dropped is taken off.
    async fn out(&mut self) {
        struct Clock<'w>(&'w mut Duration, Instant);
        impl Drop for Clock<'_> {
            fn drop(&mut self) {
                *self.0 = self.0.saturating_sub(self.1.elapsed());
            }
        }
        let clock = Clock(&mut self.left, Instant::now());
        tokio::time::sleep(*clock.0).await;
    }
}
