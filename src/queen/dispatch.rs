//! From a request to a worker's answer: wait for a place in a bounded, fair queue, spawn where nothing serves, send over
//! the link, try once more elsewhere while the client has seen nothing.

use crate::http::link::{Caller, LinkError};
use crate::http::{client, reply, request};
use crate::queen::hive_job::HiveJob;
use crate::queen::placement::{self, Decision, InFlight, Want};
use crate::queen::registry::{Fleet, Registry};
use crate::wire::job::{JobEvent, JobId};
use crate::wire::operation::{HiveOperation, WorkerSpawn};
use crate::wire::{Code, Failure};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// Tries of one request, as long as its client has seen nothing.
pub const ATTEMPTS_MAX: u32 = 2;
/// Spawns that one request may cause: a model whose workers die as soon as they are up must not be started for ever.
pub const SPAWNS_MAX: u32 = 3;
/// How long a cancel waits for word that its slot is free: a decode step, and the way there and back.
pub const SLOT_FREE_MAX: Duration = Duration::from_secs(3);
/// Events of a spawn that wait for a watcher; a slow one misses some.
pub const SPAWN_EVENTS_MAX: usize = 256;
/// What a client should wait when every slot is busy.
pub const RETRY_AFTER_SECONDS: u64 = 1;

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
}

#[derive(Debug, Default)]
struct State {
    in_flight: InFlight,
    /// Who waits, in order of arrival, and for what.
    queue: BTreeMap<u64, Want>,
    arrivals: u64,
    spawns: HashMap<(String, Want), Arc<Spawn>>,
}

#[derive(Debug)]
struct Spawn {
    events: broadcast::Sender<JobEvent>,
    end: watch::Sender<Option<Result<(), Failure>>>,
}

/// A request's place at a worker; dropping it frees the slot for the next in the queue.
#[derive(Debug)]
pub struct Slot {
    dispatcher: Arc<Dispatcher>,
    pub hive: String,
    pub worker_id: String,
    caller: Caller,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.dispatcher.state();
        if let Some(count) = state.in_flight.get_mut(&self.worker_id) {
            *count -= 1;
            if *count == 0 {
                state.in_flight.remove(&self.worker_id);
            }
        }
        drop(state);
        self.dispatcher.changed.send_replace(());
    }
}

/// A place in the queue; dropping it leaves the queue.
struct Ticket<'d> {
    dispatcher: &'d Dispatcher,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.dispatcher.state().queue.remove(&self.number);
        self.dispatcher.changed.send_replace(());
    }
}

/// A worker's answer whose first piece has arrived: from here on the client is committed to it.
pub struct Answer {
    pub response: http::Response<Begun>,
    pub slot: Slot,
}

/// A body whose first frame has been read already.
pub struct Begun {
    first: Option<Bytes>,
    rest: Incoming,
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        if let Some(bytes) = self.first.take() {
            return std::task::Poll::Ready(Some(Ok(http_body::Frame::data(bytes))));
        }
        std::pin::Pin::new(&mut self.rest).poll_frame(cx)
    }
}

/// Tells whoever waits for a request what happens meanwhile.
pub type Tell<'t> = &'t (dyn Fn(JobEvent) + Send + Sync);

impl Dispatcher {
    pub fn new(registry: Arc<Registry>, limits: Limits) -> Arc<Self> {
        Arc::new(Dispatcher { registry, limits, state: Mutex::default(), changed: watch::Sender::new(()) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the state panics")
    }

    /// Requests that wait for a slot now.
    pub fn queued(&self) -> usize {
        self.state().queue.len()
    }

    /// Sends a body to a worker that fits and gives its answer once that has begun. A worker that is lost before is
    /// replaced once; its failure answers (a bad request, say) are answers like any other.
    pub async fn send(
        self: &Arc<Self>,
        want: &Want,
        path: &str,
        body: Bytes,
        request_id: &str,
        tell: Tell<'_>,
    ) -> Result<Answer, Failure> {
        let mut lost = Failure::new(Code::WorkerLost, "the worker was lost");
        for attempt in 1..=ATTEMPTS_MAX {
            let slot = self.place(want, tell).await?;
            let target = format!("/v1/workers/{}{path}", request::percent_encode(&slot.worker_id));
            let mut ask = client::request("POST", &target, reply::full(body.clone()))
                .map_err(|error| Failure::internal(&error))?;
            ask.headers_mut().insert(http::header::CONTENT_TYPE, reply::JSON);
            if let Ok(id) = http::HeaderValue::from_str(request_id) {
                ask.headers_mut().insert("x-request-id", id);
            }
            match begin(&slot, ask).await {
                Ok(response) => return Ok(Answer { response, slot }),
                Err(failure) => lost = failure,
            }
            tracing::info!(attempt, worker = slot.worker_id, "a worker was lost before its first token");
            tell(JobEvent::warn("retry", format!("{}; trying again", lost.message)));
            let (hive, worker_id) = (slot.hive.clone(), slot.worker_id.clone());
            drop(slot);
            self.forgotten(&hive, &worker_id).await;
        }
        Err(lost)
    }

    /// Waits until the hive has said that no more of a worker's slots are busy than this queen still uses. False when that
    /// word did not come in time; another queen's requests can be the reason.
    pub async fn freed(&self, worker_id: &str) -> bool {
        let is_free = |fleet: &Fleet| {
            let ours = self.state().in_flight.get(worker_id).copied().unwrap_or(0);
            fleet.workers().all(|worker| worker.worker_id != worker_id || worker.slots_busy <= ours)
        };
        let mut fleet = self.registry.watch();
        tokio::time::timeout(SLOT_FREE_MAX, fleet.wait_for(is_free)).await.is_ok()
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
        let _ =
            tokio::time::timeout(crate::queen::registry::TELEMETRY_SILENCE_MAX, fleet.wait_for(gone)).await;
    }

    /// Waits for a slot: in order of arrival among those who want the same, spawning where nothing serves.
    async fn place(self: &Arc<Self>, want: &Want, tell: Tell<'_>) -> Result<Slot, Failure> {
        let mut fleet = self.registry.watch();
        let mut freed = self.changed.subscribe();
        let mut ticket: Option<Ticket<'_>> = None;
        let mut waited = Waited::new(self.limits.queue_wait);
        let mut told_position = 0;
        let mut spawns = 0;
        loop {
            let known = fleet.borrow_and_update().clone();
            freed.mark_unchanged();
            let decision = self.decide(want, &known, ticket.as_ref())?;
            let (slots_total, slots_busy) = match decision {
                Placed::Slot(slot) => return Ok(slot),
                Placed::Spawn(hive) => {
                    spawns += 1;
                    match self.spawn(hive, want, tell).await {
                        Ok(()) if spawns < SPAWNS_MAX => continue,
                        // The next decision finds another hive, or says that there is none.
                        Err(failure) if failure.code == Code::HiveLost && spawns < SPAWNS_MAX => continue,
                        Ok(()) => {
                            let what = format!(
                                "{spawns} workers for `{}` ended as soon as they were up",
                                want.model
                            );
                            return Err(Failure::new(Code::WorkerLost, what));
                        }
                        Err(failure) => return Err(failure),
                    }
                }
                Placed::Loading => {
                    tokio::select! {
                        _ = fleet.changed() => {}
                        _ = freed.changed() => {}
                    }
                    continue;
                }
                Placed::Full(total, busy) => (total, busy),
            };
            let busy = |message: String| {
                Failure::new(Code::AllSlotsBusy, message).with(json!({
                    "slots_total": slots_total, "slots_busy": slots_busy, "retry_after": RETRY_AFTER_SECONDS,
                }))
            };
            if ticket.is_none() {
                ticket = Some(self.enqueue(want).map_err(|queued| {
                    busy(format!("all {slots_total} slots are busy and {queued} requests wait already"))
                })?);
            }
            let position = self.position(want, ticket.as_ref());
            if position != told_position {
                tell(JobEvent::narrate(
                    "queue",
                    format!("all {slots_total} slots are busy; {position}. in the queue"),
                ));
                told_position = position;
            }
            tokio::select! {
                _ = fleet.changed() => {}
                _ = freed.changed() => {}
                () = waited.out() => {
                    let seconds = self.limits.queue_wait.as_secs();
                    return Err(busy(format!("all {slots_total} slots stayed busy for {seconds} s")));
                }
            }
        }
    }

    fn decide(
        self: &Arc<Self>,
        want: &Want,
        fleet: &Fleet,
        ticket: Option<&Ticket<'_>>,
    ) -> Result<Placed, Failure> {
        let hives = fleet.infos();
        let mut state = self.state();
        let before_us = |number: &u64| ticket.is_none_or(|ticket| *number < ticket.number);
        let is_behind = state.queue.iter().any(|(number, other)| before_us(number) && other == want);
        match placement::decide(want, &hives, &state.in_flight) {
            Decision::Refuse(failure) => Err(failure),
            Decision::Spawn { hive } => Ok(Placed::Spawn(hive)),
            Decision::Loading => Ok(Placed::Loading),
            Decision::Full { slots_total, slots_busy } => Ok(Placed::Full(slots_total, slots_busy)),
            Decision::Use { hive, worker_id } => {
                let workers = fleet.workers().filter(|worker| worker.model == want.model);
                let total = workers.map(|worker| worker.slots_total).sum();
                if is_behind {
                    return Ok(Placed::Full(total, total));
                }
                let Some(caller) = fleet.hives.get(&hive).map(|hive| hive.caller.clone()) else {
                    return Ok(Placed::Loading);
                };
                *state.in_flight.entry(worker_id.clone()).or_default() += 1;
                Ok(Placed::Slot(Slot { dispatcher: self.clone(), hive, worker_id, caller }))
            }
        }
    }

    fn enqueue(&self, want: &Want) -> Result<Ticket<'_>, usize> {
        let mut state = self.state();
        if state.queue.len() >= self.limits.queue {
            return Err(state.queue.len());
        }
        state.arrivals += 1;
        let number = state.arrivals;
        state.queue.insert(number, want.clone());
        Ok(Ticket { dispatcher: self, number })
    }

    fn position(&self, want: &Want, ticket: Option<&Ticket<'_>>) -> usize {
        let state = self.state();
        let ours = ticket.map_or(u64::MAX, |ticket| ticket.number);
        state.queue.range(..=ours).filter(|(_, other)| *other == want).count()
    }

    /// Has a hive spawn a worker, or joins the spawn that is under way for the same.
    async fn spawn(self: &Arc<Self>, hive: String, want: &Want, tell: Tell<'_>) -> Result<(), Failure> {
        let (spawn, is_new) = {
            let mut state = self.state();
            let key = (hive.clone(), want.clone());
            let is_new = !state.spawns.contains_key(&key);
            let fresh = || {
                Arc::new(Spawn {
                    events: broadcast::Sender::new(SPAWN_EVENTS_MAX),
                    end: watch::Sender::new(None),
                })
            };
            (state.spawns.entry(key).or_insert_with(fresh).clone(), is_new)
        };
        let mut events = spawn.events.subscribe();
        let mut end = spawn.end.subscribe();
        if is_new {
            // On its own: the spawn goes on for the others when the first to ask leaves.
            let (dispatcher, want, spawn) = (self.clone(), want.clone(), spawn.clone());
            tokio::spawn(async move {
                let outcome = dispatcher.run_spawn(&hive, &want, &spawn.events).await;
                dispatcher.state().spawns.remove(&(hive, want));
                spawn.end.send_replace(Some(outcome));
                dispatcher.changed.send_replace(());
            });
        }
        loop {
            tokio::select! {
                biased; // What happened before the end is told before it.
                event = events.recv() => match event {
                    Ok(event) => tell(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Err(Failure::new(Code::HiveLost, "the spawn was given up")),
                },
                outcome = end.wait_for(Option::is_some) => {
                    let outcome = outcome.map_err(|_| Failure::new(Code::HiveLost, "the spawn was given up"))?;
                    return outcome.clone().unwrap_or(Ok(()));
                }
            }
        }
    }

    async fn run_spawn(
        &self,
        hive: &str,
        want: &Want,
        events: &broadcast::Sender<JobEvent>,
    ) -> Result<(), Failure> {
        let operation = HiveOperation::WorkerSpawn(WorkerSpawn {
            model: want.model.clone(),
            worker: None,
            device: want.device.clone(),
            slots: None,
            ctx: None,
            pin: false,
        });
        let mut ready: Option<String> = None;
        let mut job = HiveJob::start(self.registry.clone(), hive, &operation, JobId::fresh()).await?;
        // No re-attaching: the requests that wait for this would rather hear of the loss and go elsewhere.
        job.follow(Duration::ZERO, |event| match &event {
            JobEvent::Result(value) => {
                ready = value.get("worker_id").and_then(|id| id.as_str()).map(str::to_owned);
            }
            JobEvent::Error(_) => {}
            _ => {
                // Nobody may be watching.
                let _ = events.send(event);
            }
        })
        .await?;
        // The job says ready; telemetry tells placement, and may be a moment behind.
        let Some(worker_id) = ready else { return Ok(()) };
        let known = |fleet: &Fleet| {
            fleet.workers().any(|worker| worker.worker_id == worker_id) || !fleet.hives.contains_key(hive)
        };
        let mut fleet = self.registry.watch();
        let _ =
            tokio::time::timeout(crate::queen::registry::TELEMETRY_SILENCE_MAX, fleet.wait_for(known)).await;
        Ok(())
    }
}

enum Placed {
    Slot(Slot),
    Spawn(String),
    Loading,
    Full(u32, u32),
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
        struct Clock<'w>(&'w mut Duration, tokio::time::Instant);
        impl Drop for Clock<'_> {
            fn drop(&mut self) {
                *self.0 = self.0.saturating_sub(self.1.elapsed());
            }
        }
        let clock = Clock(&mut self.left, tokio::time::Instant::now());
        tokio::time::sleep(*clock.0).await;
    }
}

/// Sends a request and waits for the first piece of its answer. An error here is a lost worker or link; a refusal that
/// only means "not me, not now" counts as one, too.
async fn begin(slot: &Slot, ask: http::Request<reply::Body>) -> Result<http::Response<Begun>, Failure> {
    let lost = |what: String| {
        Failure::new(Code::WorkerLost, what).with(json!({"tokens": 0, "worker_id": slot.worker_id}))
    };
    let answer = match slot.caller.send(ask).await {
        Ok(answer) => answer,
        Err(error @ LinkError::Broken(_)) => {
            return Err(lost(format!("the link to {} broke: {error}", slot.hive)));
        }
        Err(error) => return Err(Failure::internal(&error)),
    };
    let (head, mut rest) = answer.into_parts();
    let first = loop {
        match rest.frame().await {
            None => break None,
            Some(Err(_)) => {
                return Err(lost(format!("worker {} was lost before its first token", slot.worker_id)));
            }
            Some(Ok(frame)) => match frame.into_data() {
                // A comment that keeps a silent stream alive says nothing yet.
                Ok(bytes) if bytes.starts_with(b":") => {}
                Ok(bytes) => break Some(bytes),
                Err(_trailers) => {}
            },
        }
    };
    if !head.status.is_success() {
        let failure = Failure::from_body(head.status.as_u16(), first.as_deref().unwrap_or_default());
        if matches!(
            failure.code,
            Code::WorkerLost | Code::WorkerNotFound | Code::ShuttingDown | Code::LoadingModel
        ) {
            return Err(failure);
        }
    }
    Ok(http::Response::from_parts(head, Begun { first, rest }))
}
