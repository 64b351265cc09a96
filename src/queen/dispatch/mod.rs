//! From a request to a worker's answer: wait for a place in a bounded, fair queue, spawn where nothing serves, send over
//! the link, try once more elsewhere while the client has seen nothing.

mod budget;
mod queue;
mod slot;
mod spawn;
mod wait;

pub use slot::{Answer, Begun, Slot};

use crate::http::metrics::Histogram;
use crate::http::{client, reply, request};
use crate::queen::fleet::Fleet;
use crate::queen::placement::{self, Verdict, View, Want};
use crate::queen::registry::{Registry, TELEMETRY_SILENCE_MAX};
use crate::queen::worker_facts;
use crate::wire::fleet::{HiveInfo, HiveState};
use crate::wire::job::JobEvent;
use crate::wire::{Code, Failure};
use budget::Budget;
use bytes::Bytes;
use http::header::HeaderName;
use queue::Queue;
use serde_json::{Value, json};
use slot::{NotBegun, begin};
use spawn::{Key, Spawning};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use wait::Tries;

/// Workers that one request may cost before it is given up, as long as its client has seen nothing.
pub const LOSSES_MAX: usize = 2;
/// Times a request is sent elsewhere because a worker was just leaving.
pub const REDIRECTS_MAX: u32 = 8;
/// How long a model's slots stay full before it gets another worker where there is room.
pub const GROW_AFTER: Duration = Duration::from_secs(2);
/// And how long it gets none after one could not be started.
pub const GROW_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How long a cancel waits for word that its slot is free: a decode step, and the way there and back.
pub const SLOT_FREE_MAX: Duration = Duration::from_secs(3);
/// The header of a request's deadline, in milliseconds since the epoch.
pub const DEADLINE_HEADER: HeaderName = HeaderName::from_static("x-request-deadline");

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests that may wait, for a slot or for a worker that comes up, beside those that have each had a worker started.
    pub queue: usize,
    /// How long one may wait, a worker's start not counted.
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

/// A request on its way to a worker.
pub struct Dispatch<'r> {
    pub want: &'r Want,
    pub path: &'r str,
    pub body: Bytes,
    pub request_id: &'r str,
    pub deadline: Option<Deadline>,
    /// Is told each slot that the request gets.
    pub placed: &'r (dyn Fn(&Slot) + Send + Sync),
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

    /// Waits for something, no longer than until a request's deadline.
    pub async fn keep<T>(deadline: Option<&Self>, work: impl Future<Output = T>) -> Result<T, Failure> {
        match deadline {
            None => Ok(work.await),
            Some(deadline) => tokio::time::timeout_at(deadline.at, work).await.map_err(|_| passed()),
        }
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
        Deadline::keep(ask.deadline.as_ref(), self.send_until_begun(&ask, tell)).await?
    }

    async fn send_until_begun(
        self: &Arc<Self>,
        ask: &Dispatch<'_>,
        tell: Tell<'_>,
    ) -> Result<Answer, Failure> {
        let mut tries = {
            let mut state = self.state();
            state.budget.request();
            Tries::new(state.queue.arrive())
        };
        let mut redirects = 0;
        loop {
            let slot = self.place(ask.want, &mut tries, tell).await?;
            (ask.placed)(&slot);
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
                    tries.lost_workers.push(slot.worker_id.clone());
                    self.may_try_again(&tries.lost_workers, failure, true)?
                }
            };
            tracing::info!(worker = slot.worker_id, reason = failure.message, "an answer did not begin");
            tell(JobEvent::warn("retry", format!("{}; trying again", failure.message)));
            let (hive, worker_id) = (slot.hive.clone(), slot.worker_id.clone());
            drop(slot);
            tries.lost = Some(failure);
            self.forgotten(&hive, &worker_id).await;
        }
    }

    /// Whether a request may be tried again after the loss of a worker; it has had `lost` of them. Of those who waited for one
    /// load, only its cause takes from the budget: together they have one more started.
    fn may_try_again(&self, lost: &[String], failure: Failure, is_cause: bool) -> Result<Failure, Failure> {
        if lost.len() >= LOSSES_MAX {
            return Err(poisonous(lost, failure));
        }
        if is_cause && !self.state().budget.retry(Instant::now()) {
            let what = format!("{}; too many were lost lately to try again", failure.message);
            return Err(Failure { message: what, ..failure });
        }
        Ok(failure)
    }

    /// Waits until the hive has said that no more of a worker's slots are busy than this queen still uses. False when that
    /// word did not come in time; another queen's requests can be the reason.
    pub async fn freed(&self, hive: &str, worker_id: &str) -> bool {
        let is_free =
            |busy: u64| busy <= self.state().queue.in_flight.get(worker_id).copied().unwrap_or(0).into();
        let is_told = |fleet: &Fleet| {
            fleet.workers().all(|worker| worker.worker_id != worker_id || is_free(worker.slots_busy.into()))
        };
        let mut fleet = self.registry.watch();
        let freed = async {
            // Its hive is asked, too: what was last told may be from before the request.
            while !self.busy_slots(hive, worker_id).await.is_ok_and(is_free) {
                let _ = fleet.changed().await;
            }
            let _ = fleet.wait_for(is_told).await;
        };
        tokio::time::timeout(SLOT_FREE_MAX, freed).await.is_ok()
    }

    /// How many of a worker's slots its hive says are busy. A hive that does not answer has said nothing.
    async fn busy_slots(&self, hive: &str, worker_id: &str) -> Result<u64, Failure> {
        let caller = self.registry.hive(hive)?.caller.clone();
        let told = match worker_facts::ask(caller, worker_id.to_owned()).await {
            Err(failure) if failure.code == Code::WorkerNotFound => return Ok(0),
            told => told?,
        };
        let silent = || Failure::new(Code::Unknown, format!("{hive} does not say how busy {worker_id} is"));
        told["slots_busy"].as_u64().ok_or_else(silent)
    }

    /// Waits until telemetry has taken a lost worker out, so that the next try is not sent to it again.
    async fn forgotten(&self, hive: &str, worker_id: &str) {
        let gone = |fleet: &Fleet| {
            !fleet.hives.get(hive).filter(|hive| hive.info.state == HiveState::Online).is_some_and(|hive| {
                hive.info.workers.iter().any(|worker| worker.worker_id == worker_id && worker.state.serves())
            })
        };
        let mut fleet = self.registry.watch();
        // A worker that serves on although it lost one connection may well be tried again.
        let _ = tokio::time::timeout(TELEMETRY_SILENCE_MAX, fleet.wait_for(gone)).await;
    }

    /// Another worker for a model whose slots stay full; its queue goes on meanwhile.
    fn grow(self: &Arc<Self>, want: &Want, plan: &placement::Spawn) {
        tracing::info!(
            model = want.model,
            hive = plan.hive,
            device = plan.device,
            "all slots stay busy: one more worker"
        );
        let key = Key::of(&self.registry.fleet(), want, plan);
        let mut state = self.state();
        state.grown.retain(|_, at| at.elapsed() < GROW_AGAIN_AFTER);
        state.grown.insert(want.model.clone(), Instant::now());
        self.start_spawn(&mut state, key, want, plan);
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
        let (claimed, promises) = Dispatcher::spoken_for(&state, None, &fleet);
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

/// The worker's request.
fn question(ask: &Dispatch<'_>, worker_id: &str) -> Result<http::Request<reply::Body>, Failure> {
    let target = format!("/v1/workers/{}{}", request::percent_encode(worker_id), ask.path);
    let mut question = client::request("POST", &target, reply::full(ask.body.clone()))
        .map_err(|error| Failure::internal(&error))?;
    let headers = question.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, reply::JSON);
    if let Some(id) = request::id_value(ask.request_id) {
        headers.insert(request::ID_HEADER, id);
    }
    if let Some(deadline) = &ask.deadline
        && let Ok(at) = http::HeaderValue::from_str(&deadline.header)
    {
        headers.insert(DEADLINE_HEADER, at);
    }
    Ok(question)
}

/// Two workers ended over one request: a third is not risked. What is known of the last one's end is told with it.
fn poisonous(workers: &[String], last: Failure) -> Failure {
    let names = workers.join(" and ");
    let has_loaded = last.details["worker_id"].is_null();
    let mut details = match last.details {
        Value::Object(details) => details,
        _ => serde_json::Map::new(),
    };
    details.insert("tokens".into(), 0.into());
    details.insert("workers".into(), json!(workers));
    let message = format!(
        "workers {names} were lost over this request, one after the other, and it is not tried again: {}",
        last.message
    );
    let code = if has_loaded { Code::WorkerLost } else { last.code };
    Failure::new(code, message).with(details.into())
}
