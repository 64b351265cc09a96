//! A job that runs on a hive, seen from the queen. It keeps one id on both sides. If the link drops, the hive's job goes on,
//! and the queen takes its events up again where she left off, for a while.

use crate::http::link::Caller;
use crate::http::{client, request, sse};
use crate::job::{Context, Outcome};
use crate::queen::registry::{Registry, TELEMETRY_SILENCE_MAX};
use crate::wire::fleet::{HiveInfo, ModelNames};
use crate::wire::job::{JOB_ID_HEADER, JobAccepted, JobCancelled, JobEvent, JobId, Receipt, Terminator};
use crate::wire::operation::HiveOperation;
use crate::wire::{Code, Failure, failure};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// How long a relayed job waits for its hive to come back.
pub const REATTACH_MAX: Duration = Duration::from_secs(30);

pub struct HiveJob {
    registry: Arc<Registry>,
    hive: String,
    caller: Caller,
    id: JobId,
    /// The number of the next event wanted.
    next: u64,
}

impl HiveJob {
    pub async fn start(
        registry: Arc<Registry>,
        hive: &str,
        operation: &HiveOperation,
        id: JobId,
    ) -> Result<Self, Failure> {
        let caller = registry.hive(hive)?.caller.clone();
        let mut ask = client::post("/v1/jobs", operation).map_err(|error| Failure::internal(&error))?;
        if let Ok(value) = http::HeaderValue::from_str(&id.to_string()) {
            ask.headers_mut().insert(JOB_ID_HEADER, value);
        }
        let answer = caller.send(ask).await.map_err(|error| lost(hive, &error))?;
        let accepted: JobAccepted = request::parse(&client::whole(answer).await?)?;
        Ok(HiveJob { registry, hive: hive.to_owned(), caller, id: accepted.job_id, next: 0 })
    }

    /// Follows the job to its end. An error is the job's own, or the loss of its hive for longer than `reattach`.
    pub async fn follow(
        &mut self,
        reattach: Duration,
        mut each: impl FnMut(JobEvent) + Send,
    ) -> Result<(), Failure> {
        let mut error = None;
        loop {
            let broke = match self.read(&mut error, &mut each).await {
                Ok(Terminator::Done) => return Ok(()),
                Ok(Terminator::Error(message)) => {
                    return Err(error.unwrap_or_else(|| Failure::new(Code::Unknown, message)));
                }
                Ok(Terminator::Cancelled) => {
                    return Err(Failure::new(Code::Conflict, "somebody cancelled the job on its hive"));
                }
                Err(broke) if broke.code == Code::HiveLost && !reattach.is_zero() => broke,
                Err(failure) => return Err(failure),
            };
            each(JobEvent::warn(
                "link",
                format!("{}; the job goes on there, waiting for the link", broke.message),
            ));
            self.caller = tokio::time::timeout(reattach, self.linked_again()).await.map_err(|_| broke)?;
        }
    }

    async fn read(
        &mut self,
        error: &mut Option<Failure>,
        each: &mut (impl FnMut(JobEvent) + Send),
    ) -> Result<Terminator, Failure> {
        let path = format!("/v1/jobs/{}/stream?from={}", self.id, self.next);
        let ask = client::get(&path).map_err(|error| Failure::internal(&error))?;
        let answer = self.caller.send(ask).await.map_err(|error| lost(&self.hive, &error))?;
        if !answer.status().is_success() {
            return Err(match client::whole(answer).await {
                Err(failure) => failure,
                Ok(_) => {
                    lost(&self.hive, &std::io::Error::other("it answered a job's stream with something else"))
                }
            });
        }
        let mut events = sse::Reader::new(answer.into_body());
        while let Some(event) = events.next().await.map_err(|error| lost(&self.hive, &error))? {
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
        Err(lost(&self.hive, &std::io::Error::other("its job's stream ended without a word")))
    }

    /// Waits for the hive's next link.
    async fn linked_again(&self) -> Caller {
        let mut fleet = self.registry.watch();
        loop {
            let hive = fleet.borrow_and_update().hives.get(&self.hive).cloned();
            if let Some(hive) = hive.filter(|hive| !hive.caller.is_closed()) {
                return hive.caller.clone();
            }
            if fleet.changed().await.is_err() {
                // The registry lives as long as the queen.
                std::future::pending::<()>().await;
            }
        }
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
            _ => return,
        };
        let mut fleet = self.registry.watch();
        let told = fleet.wait_for(|fleet| fleet.hives.get(&self.hive).is_none_or(|hive| told(&hive.info)));
        // A hive that falls silent now is the registry's to notice.
        let _ = tokio::time::timeout(TELEMETRY_SILENCE_MAX, told).await;
    }

    async fn cancel(&self) -> Result<Receipt, Failure> {
        let path = format!("/v1/jobs/{}", self.id);
        let ask = client::request("DELETE", &path, crate::http::reply::empty())
            .map_err(|error| Failure::internal(&error))?;
        let answer = self.caller.send(ask).await.map_err(|error| lost(&self.hive, &error))?;
        let cancelled: JobCancelled = request::parse(&client::whole(answer).await?)?;
        cancelled.receipt.ok_or_else(|| {
            Failure::new(
                Code::RequestTimeout,
                format!("the hive {} is still cleaning up after the job", self.hive),
            )
        })
    }
}

fn lost(hive: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::new(Code::HiveLost, format!("the hive {hive} was lost: {}", failure::chain(error)))
}

/// An operation posted to the queen for a hive: what the hive's job tells, this one tells; a cancel goes there, and its
/// receipt comes back.
pub async fn relay(
    registry: Arc<Registry>,
    hive: String,
    operation: HiveOperation,
    context: Context,
) -> Outcome {
    let mut job = match HiveJob::start(registry, &hive, &operation, context.id()).await {
        Ok(job) => job,
        Err(failure) => return Outcome::Failed(failure),
    };
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
            () = context.token().cancelled() => None,
        }
    };
    match followed {
        Some(Ok(())) => {
            job.is_told(&operation, &result).await;
            Outcome::Done(result)
        }
        Some(Err(failure)) => Outcome::Failed(failure),
        None => match job.cancel().await {
            Ok(receipt) => Outcome::Cancelled(receipt),
            Err(failure) => Outcome::Failed(failure),
        },
    }
}
