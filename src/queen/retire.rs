//! Ending a worker from the queen: in order, when it has nothing more to do, or at once. Its hive does it.

use crate::http::{Response, reply};
use crate::job::{Context, Job, Outcome, stream::Step};
use crate::queen::registry::TELEMETRY_SILENCE_MAX;
use crate::queen::{Queen, hive_job};
use crate::wire::Failure;
use crate::wire::job::{JobState, Terminator};
use crate::wire::operation::HiveOperation;
use serde_json::{Value, json};
use std::sync::Arc;

impl Queen {
    /// The operation `active_worker_retire`.
    pub(super) async fn retire(self: Arc<Self>, worker_id: String, context: Context) -> Outcome {
        let hive = match self.worker(&worker_id) {
            Ok(worker) => worker.hive,
            Err(failure) => return Outcome::Failed(failure),
        };
        let operation = HiveOperation::WorkerRetire { worker_id, now: false };
        hive_job::relay(self, hive, operation, context).await
    }

    /// POST /v1/workers/{id}/retire: answers when no new request is sent to it any more; the job goes on until it stopped.
    pub(super) async fn begin_retire(self: &Arc<Self>, worker_id: &str) -> Result<Response, Failure> {
        self.worker(worker_id)?;
        let (queen, id) = (self.clone(), worker_id.to_owned());
        let job = self.jobs.start("active_worker_retire", None, |context| queen.retire(id, context))?;
        let mut fleet = self.registry.watch();
        let is_out = |fleet: &crate::queen::fleet::Fleet| {
            !fleet.workers().any(|worker| worker.worker_id == worker_id && worker.state.serves())
        };
        // A hive that falls silent now is the registry's to notice.
        let _ = tokio::time::timeout(TELEMETRY_SILENCE_MAX, fleet.wait_for(is_out)).await;
        let state = self.worker(worker_id).map_or("gone", |worker| worker.state.name());
        Ok(reply::json_status(
            202,
            &json!({
                "worker_id": worker_id, "state": state, "job_id": job.id,
                "sse_url": format!("/v1/jobs/{}/stream", job.id),
            }),
        ))
    }

    /// Stops it now, and answers when it has gone.
    pub(super) async fn shut_down(self: &Arc<Self>, worker_id: &str) -> Result<Value, Failure> {
        let worker = self.worker(worker_id)?;
        let operation = HiveOperation::WorkerRetire { worker_id: worker_id.to_owned(), now: true };
        let queen = self.clone();
        let (hive, name) = (worker.hive.clone(), operation.name());
        let job = self.jobs.start(name, None, |context| hive_job::relay(queen, hive, operation, context))?;
        self.ended(&job).await?;
        let message = format!("worker {worker_id} ({}) on {} is stopped", worker.model, worker.hive);
        Ok(json!({"success": true, "message": message}))
    }

    /// Waits for a job's end; an error is its own.
    async fn ended(&self, job: &Job) -> Result<(), Failure> {
        let mut reader = self.jobs.reader(job, 0).await?;
        let terminator = loop {
            if let Step::End(terminator) = reader.next().await {
                break terminator;
            }
        };
        let record = job.summary();
        match (terminator, record.error) {
            (Terminator::Done, _) if record.state == JobState::Done => Ok(()),
            (_, Some(failure)) => Err(failure),
            (terminator, None) => {
                Err(Failure::new(crate::wire::Code::Conflict, format!("the job ended with {terminator}")))
            }
        }
    }
}
