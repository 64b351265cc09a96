//! A job that runs on a hive, seen from the queen. It keeps one id on both sides. If the link drops, the hive's job goes on,
//! and the queen takes its events up again where she left off, for a while.

use crate::http::link::{Caller, Streamed};
use crate::http::{client, reply, request, sse};
use crate::job::{Context, Outcome};
use crate::queen::Queen;
use crate::queen::registry::{Registry, TELEMETRY_SILENCE_MAX};
use crate::wire::fleet::{HiveInfo, HiveState, ModelNames};
use crate::wire::job::{JOB_ID_HEADER, JobAccepted, JobEvent, JobId, JobRecord, Receipt, Terminator};
use crate::wire::operation::HiveOperation;
use crate::wire::{Code, Failure, failure};
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How long a relayed job waits for its hive to come back.
pub const REATTACH_MAX: Duration = Duration::from_secs(30);
/// How often a job's stream is taken up again, one time after the other, without anything new.
pub const REATTACHES_IDLE_MAX: u32 = 8;
/// A link that broke a stream and looks whole is asked again after so long, longer each time.
pub const REATTACH_PAUSE: Duration = Duration::from_millis(100);

/// Where a job runs: all it takes to ask for it.
#[derive(Debug, Clone)]
struct Place {
    registry: Arc<Registry>,
    hive: String,
    id: JobId,
}

pub struct HiveJob {
    place: Place,
    caller: Caller,
    /// The number of the link that the caller is of.
    link: u64,
    /// The number of the next event wanted.
    next: u64,
}

/// How a job ended on its hive, if it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Done,
    /// By us, or by somebody there.
    Cancelled,
}

impl HiveJob {
    pub async fn start(
        registry: Arc<Registry>,
        hive: &str,
        operation: &HiveOperation,
        id: JobId,
    ) -> Result<Self, Failure> {
        let known = registry.hive(hive)?;
        let mut ask = client::post("/v1/jobs", operation).map_err(|error| Failure::internal(&error))?;
        if let Ok(value) = http::HeaderValue::from_str(&id.to_string()) {
            ask.headers_mut().insert(JOB_ID_HEADER, value);
        }
        let answer = known.caller.send(ask).await.map_err(|error| lost(hive, &error))?;
        let accepted: JobAccepted = request::parse(&client::whole(answer).await?)?;
        let place = Place { registry, hive: hive.to_owned(), id: accepted.job_id };
        Ok(HiveJob { place, caller: known.caller.clone(), link: known.link, next: 0 })
    }

    /// Follows the job to its end, for whoever would rather hear of the loss of its hive than wait for it.
    pub async fn done(&mut self, each: impl FnMut(JobEvent) + Send) -> Result<(), Failure> {
        match self.follow(Duration::ZERO, each).await? {
            Ended::Done => Ok(()),
            Ended::Cancelled => Err(Failure::new(Code::Conflict, "somebody cancelled the job on its hive")),
        }
    }

    /// Follows the job to its end. An error is the job's own, or the loss of its hive for longer than `reattach`.
    pub async fn follow(
        &mut self,
        reattach: Duration,
        mut each: impl FnMut(JobEvent) + Send,
    ) -> Result<Ended, Failure> {
        let mut error = None;
        let mut idle = 0;
        loop {
            let seen = self.next;
            let broke = match self.read(&mut error, &mut each).await {
                Ok(Terminator::Done) => return Ok(Ended::Done),
                Ok(Terminator::Cancelled) => return Ok(Ended::Cancelled),
                Ok(Terminator::Error(message)) => {
                    return Err(error.unwrap_or_else(|| Failure::new(Code::Unknown, message)));
                }
                Err(broke) if broke.code == Code::HiveLost && !reattach.is_zero() => broke,
                Err(failure) => return Err(failure),
            };
            idle = if self.next > seen { 0 } else { idle + 1 };
            if idle > REATTACHES_IDLE_MAX {
                return Err(broke);
            }
            each(JobEvent::warn(
                "link",
                format!("{}; the job goes on there, waiting for the link", broke.message),
            ));
            let linked = self.place.linked(Some(self.link), REATTACH_PAUSE * idle.max(1));
            (self.caller, self.link) = tokio::time::timeout(reattach, linked).await.map_err(|_| broke)?;
        }
    }

    async fn read(
        &mut self,
        error: &mut Option<Failure>,
        each: &mut (impl FnMut(JobEvent) + Send),
    ) -> Result<Terminator, Failure> {
        let hive = &self.place.hive;
        let path = format!("/v1/jobs/{}/stream?from={}", self.place.id, self.next);
        let ask = client::get(&path).map_err(|error| Failure::internal(&error))?;
        let answer = self.caller.send(ask).await.map_err(|error| lost(hive, &error))?;
        if !answer.status().is_success() {
            return Err(match client::whole(answer).await {
                Err(failure) => failure,
                Ok(_) => lost(hive, &std::io::Error::other("it answered a job's stream with something else")),
            });
        }
        let mut events = sse::Reader::new(answer.into_body());
        let broken = |error: sse::ReadError| match error {
            // It would come again and again.
            sse::ReadError::TooLong => {
                Failure::new(Code::BodyTooLarge, format!("the hive {hive} told of its job: {error}"))
            }
            error => lost(hive, &error),
        };
        while let Some(event) = events.next().await.map_err(broken)? {
            if let Some(seq) = event.id.as_deref().and_then(|id| id.parse::<u64>().ok()) {
                self.next = seq + 1;
            }
            let Some(name) = event.name else {
                match Terminator::parse(&event.data) {
                    Some(terminator) => return Ok(terminator),
                    None => continue,
                }
            };
            let Some(event) = JobEvent::from_parts(&name, &event.data) else { continue };
            if let JobEvent::Error(failure) = &event {
                *error = Some(failure.clone());
            }
            each(event);
        }
        Err(lost(hive, &std::io::Error::other("its job's stream ended without a word")))
    }

    /// The job says that a model or a worker is there; placement knows it by telemetry, which comes another way and may be a
    /// moment behind. Whoever is told that the job is done must find it so.
    async fn is_told(&self, operation: &HiveOperation, result: &Value) {
        let field = |name: &str| result.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let told: Box<dyn Fn(&HiveInfo) -> bool + Send + Sync> = match operation {
            HiveOperation::ModelDownload { .. } => {
                let id = field("id");
                Box::new(move |hive| hive.models.contains(&id))
            }
            HiveOperation::ModelRemove { .. } => {
                let id = field("id");
                Box::new(move |hive| !hive.models.contains(&id))
            }
            HiveOperation::ModelAliasSet { .. } => {
                let (name, id) = (field("name"), field("id"));
                let has = move |model: &ModelNames| (model.id == id) == model.names.contains(&name);
                Box::new(move |hive| hive.model_names.iter().all(&has))
            }
            HiveOperation::ModelAliasRemove { .. } => {
                let name = field("name");
                Box::new(move |hive| hive.model_names.iter().all(|model| !model.names.contains(&name)))
            }
            HiveOperation::WorkerSpawn(_) => {
                let id = field("worker_id");
                Box::new(move |hive| hive.workers.iter().any(|worker| worker.worker_id == id))
            }
            HiveOperation::HiveDrain { undo } => {
                let undo = *undo;
                Box::new(move |hive| (hive.state == HiveState::Draining) != undo)
            }
            _ => return,
        };
        let mut fleet = self.place.registry.watch();
        let told =
            fleet.wait_for(|fleet| fleet.hives.get(&self.place.hive).is_none_or(|hive| told(&hive.info)));
        // A hive that falls silent now is the registry's to notice.
        let _ = tokio::time::timeout(TELEMETRY_SILENCE_MAX, told).await;
    }
}

impl Place {
    /// Waits for the hive's link: one other than what broke, or that one again after a pause, as long as it looks whole.
    async fn linked(&self, broke: Option<u64>, pause: Duration) -> (Caller, u64) {
        let mut fleet = self.registry.watch();
        let mut pause = std::pin::pin!(tokio::time::sleep(pause));
        let mut any_will_do = broke.is_none();
        loop {
            let hive = fleet.borrow_and_update().hives.get(&self.hive).cloned();
            let will_do = |link: u64| any_will_do || broke != Some(link);
            if let Some(hive) = hive.filter(|hive| !hive.caller.is_closed() && will_do(hive.link)) {
                return (hive.caller.clone(), hive.link);
            }
            tokio::select! {
                changed = fleet.changed() => if changed.is_err() {
                    // The registry lives as long as the queen.
                    std::future::pending::<()>().await;
                },
                () = pause.as_mut(), if !any_will_do => any_will_do = true,
            }
        }
    }

    /// Asks for the job until the hive answers, over whatever link it has then.
    async fn ask(&self, method: &str) -> Result<http::Response<Streamed>, Failure> {
        let path = format!("/v1/jobs/{}", self.id);
        let mut broke = None;
        let mut tries = 0;
        loop {
            let (caller, link) = self.linked(broke, REATTACH_PAUSE * tries).await;
            let ask =
                client::request(method, &path, reply::empty()).map_err(|error| Failure::internal(&error))?;
            match caller.send(ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) if tries == REATTACHES_IDLE_MAX => return Err(lost(&self.hive, &error)),
                Err(_) => {}
            }
            tries += 1;
            broke = Some(link);
        }
    }

    /// Takes a cancel to the hive. What comes of it the job's own stream tells.
    async fn cancel(&self) {
        let refused = match self.ask("DELETE").await {
            Ok(answer) => client::whole(answer).await.err(),
            Err(failure) => Some(failure),
        };
        if let Some(failure) = refused {
            tracing::info!(hive = self.hive, job = %self.id, reason = failure.message, "a cancel was not taken");
        }
    }

    /// Takes every cancel of a person's to the hive: the second one, which takes the grace away, also while the first is
    /// under way.
    async fn forward_cancels(&self, context: &Context) -> Infallible {
        context.asked().await;
        let again = async {
            context.hurry().cancelled().await;
            self.cancel().await;
        };
        tokio::join!(self.cancel(), again);
        std::future::pending().await
    }

    /// What the hive's job, which was cancelled, has stopped and given back.
    async fn receipt(&self) -> Result<Receipt, Failure> {
        let asked = tokio::time::timeout(REATTACH_MAX, self.ask("GET")).await;
        let answer =
            asked.map_err(|_| lost(&self.hive, &std::io::Error::other("it has not come back")))??;
        let record: JobRecord = request::parse(&client::whole(answer).await?)?;
        record.receipt.ok_or_else(|| {
            let what = format!("the hive {} cancelled the job and gave no receipt", self.hive);
            Failure::new(Code::Conflict, what)
        })
    }
}

fn lost(hive: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Code::HiveLost, format!("the hive {hive} was lost: {}", failure::chain(error)))
}

/// An operation posted to the queen for a hive: what the hive's job tells, this one tells; a cancel goes there, and its
/// receipt comes back. When the queen stops, the hive's job goes on.
pub async fn relay(queen: Arc<Queen>, hive: String, operation: HiveOperation, context: Context) -> Outcome {
    let mut job = match HiveJob::start(queen.registry.clone(), &hive, &operation, context.id()).await {
        Ok(job) => job,
        Err(failure) => return Outcome::Failed(failure),
    };
    // The hive of this very process ends with the queen, and finishes what it can before.
    let outlives = !(queen.options.shares_its_log && hive == queen.options.name);
    let place = job.place.clone();
    let mut result = Value::Null;
    let followed = {
        let follow = job.follow(REATTACH_MAX, |event| match event {
            JobEvent::Result(value) => result = value,
            // The runner tells a job's result and error itself.
            JobEvent::Error(_) => {}
            event => context.emit(event),
        });
        tokio::select! {
            followed = follow => Some(followed),
            never = place.forward_cancels(&context) => match never {},
            () = left_alone(&context, outlives) => None,
        }
    };
    match followed {
        Some(Ok(Ended::Done)) => {
            job.is_told(&operation, &result).await;
            Outcome::Done(result)
        }
        Some(Ok(Ended::Cancelled)) => match place.receipt().await {
            Ok(receipt) => {
                context.cancelled_there();
                Outcome::Cancelled(receipt)
            }
            Err(failure) => Outcome::Failed(failure),
        },
        Some(Err(failure)) => Outcome::Failed(failure),
        None if context.is_asked() => Outcome::Failed(Failure::new(
            Code::ShuttingDown,
            format!("this queen was stopped before the hive {hive} had told what came of the cancel"),
        )),
        None => {
            context.emit(JobEvent::warn("link", format!("this queen stops; the job goes on at {hive}")));
            Outcome::Cancelled(Receipt::default())
        }
    }
}

/// Ends when a stop of the queen leaves a job to its hive: as soon as she takes nothing new, but for a cancel whose receipt
/// somebody waits for, and for a hive that ends with her.
async fn left_alone(context: &Context, outlives: bool) {
    if outlives {
        context.drained().await;
    }
    if !outlives || context.is_asked() {
        context.stopped().await;
    }
}
