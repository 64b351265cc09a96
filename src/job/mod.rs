//! Jobs: everything that takes longer than a request should. A job starts at once, whoever watches; its events can be
//! replayed from any point by any number of readers; a client that leaves detaches, and only a cancel cancels.
//!
//! The rule that the rest hangs on: a job's future is never dropped. A cancel sets a token, the handler notices, cleans
//! up and returns a receipt, and only then is the job `cancelled`. So a receipt tells what has happened, not what was asked.

pub mod progress;
pub mod routes;
pub mod stream;

use crate::shutdown::Shutdown;
use crate::wire::fleet::now_ms;
use crate::wire::job::{JobEvent, JobId, JobRecord, JobState, Receipt, Terminator};
use crate::wire::{Code, Failure};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use stream::EventLog;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Jobs at work at once; one more is refused.
pub const JOBS_RUNNING_MAX: usize = 1_024;
/// Ended jobs kept for late readers; the oldest go first.
pub const JOBS_ENDED_MAX: usize = 1_024;
/// How long a cancel waits for the job's cleanup before it answers 202: the longest grace of a build, and 3 s.
pub const CANCEL_ANSWER_MAX: Duration = Duration::from_secs(5);
/// The longest idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// How a handler ended.
#[derive(Debug)]
pub enum Outcome {
    Done(Value),
    Failed(Failure),
    /// The handler saw its token and has cleaned up.
    Cancelled(Receipt),
}

impl From<Result<Value, Failure>> for Outcome {
    fn from(result: Result<Value, Failure>) -> Self {
        match result {
            Ok(value) => Outcome::Done(value),
            Err(failure) => Outcome::Failed(failure),
        }
    }
}

#[derive(Debug)]
struct End {
    state: JobState,
    at: u64,
    result: Option<Value>,
    error: Option<Failure>,
    receipt: Option<Receipt>,
}

#[derive(Debug)]
pub struct Job {
    pub id: JobId,
    pub operation: String,
    /// Its place in the order of starts: ids of one millisecond do not tell.
    number: u64,
    created_at: u64,
    log: EventLog,
    cancel: CancellationToken,
    /// A person asked for the cancel, as against a shutdown.
    asked: CancellationToken,
    /// Set by a second cancel: no more grace.
    now: CancellationToken,
    end: watch::Sender<Option<Arc<End>>>,
}

/// What a handler holds: where to tell, and when to stop.
#[derive(Debug, Clone)]
pub struct Context {
    job: Arc<Job>,
}

impl Context {
    pub fn id(&self) -> JobId {
        self.job.id
    }

    pub fn emit(&self, event: JobEvent) {
        self.job.log.push(event);
    }

    pub fn narrate(&self, action: &str, message: impl Into<String>) {
        self.emit(JobEvent::narrate(action, message));
    }

    /// Ends when the handler should clean up and return [`Outcome::Cancelled`].
    pub fn token(&self) -> &CancellationToken {
        &self.job.cancel
    }

    /// Ends when the cleanup should skip its grace.
    pub fn hurry(&self) -> &CancellationToken {
        &self.job.now
    }
}

impl Job {
    pub fn record(&self) -> JobRecord {
        let end = self.end.borrow().clone();
        JobRecord {
            job_id: self.id,
            operation: self.operation.clone(),
            state: end.as_ref().map_or(JobState::Running, |end| end.state),
            created_at: self.created_at,
            ended_at: end.as_ref().map(|end| end.at),
            events: self.log.next_seq(),
            result: end.as_ref().and_then(|end| end.result.clone()),
            error: end.as_ref().and_then(|end| end.error.clone()),
            receipt: end.as_ref().and_then(|end| end.receipt.clone()),
        }
    }

    pub fn reader(&self, from: u64) -> stream::Reader {
        self.log.reader(from)
    }

    async fn ended(&self) -> Arc<End> {
        let mut watching = self.end.subscribe();
        let end = watching.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        end.expect("a job's sender lives in the job, and it ends by being set")
    }

    fn finish(&self, outcome: Outcome) {
        let (state, result, error, receipt) = match outcome {
            Outcome::Done(value) => (JobState::Done, Some(value), None, None),
            Outcome::Failed(failure) => (JobState::Failed, None, Some(failure), None),
            Outcome::Cancelled(receipt) if self.asked.is_cancelled() => {
                (JobState::Cancelled, None, None, Some(receipt))
            }
            Outcome::Cancelled(receipt) => {
                let failure = Failure::new(Code::ShuttingDown, "the server that ran this job was stopped");
                (JobState::Interrupted, None, Some(failure), Some(receipt))
            }
        };
        if let Some(value) = &result {
            self.log.push(JobEvent::Result(value.clone()));
        }
        if let Some(failure) = &error {
            self.log.push(JobEvent::Error(failure.clone()));
        }
        let terminator = match (&error, state) {
            (Some(failure), _) => Terminator::Error(failure.message.clone()),
            (None, JobState::Cancelled) => Terminator::Cancelled,
            (None, _) => Terminator::Done,
        };
        // The state first: whoever has read the terminator must not be told that the job still runs.
        self.end.send_replace(Some(Arc::new(End { state, at: now_ms(), result, error, receipt })));
        self.log.end(terminator);
    }
}

/// What a cancel came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancelled {
    /// Cleaned up; the receipt tells what.
    Clean(Receipt),
    /// Still cleaning up after [`CANCEL_ANSWER_MAX`].
    Pending,
}

/// All jobs of one daemon.
#[derive(Debug, Clone)]
pub struct Jobs {
    table: Arc<Mutex<Table>>,
    shutdown: Shutdown,
}

#[derive(Debug, Default)]
struct Table {
    started: u64,
    jobs: HashMap<JobId, Arc<Job>>,
    keys: HashMap<String, JobId>,
}

impl Jobs {
    /// Jobs whose handlers are told to clean up when the shutdown stops.
    pub fn new(shutdown: Shutdown) -> Self {
        Jobs { table: Arc::default(), shutdown }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of the table panics")
    }

    /// Starts a job, or gives the one that the idempotency key already started.
    pub fn start<H, F>(&self, operation: &str, key: Option<&str>, handler: H) -> Result<Arc<Job>, Failure>
    where
        H: FnOnce(Context) -> F,
        F: Future<Output = Outcome> + Send + 'static,
    {
        self.start_as(JobId::fresh(), operation, key, handler)
    }

    /// The same under an id that somebody else gave: a job that is relayed has one on both sides.
    pub fn start_as<H, F>(
        &self,
        id: JobId,
        operation: &str,
        key: Option<&str>,
        handler: H,
    ) -> Result<Arc<Job>, Failure>
    where
        H: FnOnce(Context) -> F,
        F: Future<Output = Outcome> + Send + 'static,
    {
        if self.shutdown.is_draining() {
            return Err(Failure::new(
                Code::ShuttingDown,
                "this daemon is shutting down and takes no new jobs",
            ));
        }
        let cancel = self.shutdown.token();
        let number = {
            let mut table = self.table();
            table.started += 1;
            table.started
        };
        let job = Arc::new(Job {
            id,
            operation: operation.to_owned(),
            number,
            created_at: now_ms(),
            log: EventLog::default(),
            asked: CancellationToken::new(),
            now: CancellationToken::new(),
            cancel,
            end: watch::Sender::new(None),
        });
        if let Some(existing) = self.enter(&job, key)? {
            return Ok(existing);
        }
        let work = handler(Context { job: job.clone() });
        let running = job.clone();
        self.shutdown.spawn(async move {
            // A task of its own, so that a panic is a failed job and not a lost one.
            let outcome = tokio::spawn(work).await.unwrap_or_else(|error| {
                Outcome::Failed(Failure::new(Code::Internal, format!("the job's handler broke: {error}")))
            });
            running.finish(outcome);
        });
        Ok(job)
    }

    fn enter(&self, job: &Arc<Job>, key: Option<&str>) -> Result<Option<Arc<Job>>, Failure> {
        let mut table = self.table();
        if let Some(key) = key {
            if key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
                return Err(Failure::invalid(format!(
                    "an idempotency key has at most {IDEMPOTENCY_KEY_BYTES_MAX} bytes"
                )));
            }
            if let Some(existing) = table.keys.get(key).and_then(|id| table.jobs.get(id)) {
                return Ok(Some(existing.clone()));
            }
        }
        if table.jobs.contains_key(&job.id) {
            return Err(Failure::new(Code::Conflict, format!("there is a job {} already", job.id)));
        }
        let ended = table.jobs.values().filter(|job| job.end.borrow().is_some());
        let mut ended: Vec<(u64, JobId)> = ended.map(|job| (job.number, job.id)).collect();
        if table.jobs.len() - ended.len() >= JOBS_RUNNING_MAX {
            return Err(Failure::new(
                Code::TooManyRequests,
                format!("{JOBS_RUNNING_MAX} jobs are running already; wait for one to end"),
            )
            .with(serde_json::json!({"retry_after": 1})));
        }
        if ended.len() >= JOBS_ENDED_MAX {
            ended.sort_unstable();
            for (_, id) in &ended[..=ended.len() - JOBS_ENDED_MAX] {
                table.jobs.remove(id);
            }
            let Table { jobs, keys, .. } = &mut *table;
            keys.retain(|_, id| jobs.contains_key(id));
        }
        table.jobs.insert(job.id, job.clone());
        if let Some(key) = key {
            table.keys.insert(key.to_owned(), job.id);
        }
        Ok(None)
    }

    pub fn get(&self, id: &str) -> Result<Arc<Job>, Failure> {
        let unknown = || Failure::new(Code::JobNotFound, format!("there is no job {id} here"));
        let parsed: JobId = id.parse().map_err(|_| unknown())?;
        self.table().jobs.get(&parsed).cloned().ok_or_else(unknown)
    }

    /// All jobs, the newest first.
    pub fn list(&self) -> Vec<JobRecord> {
        let mut jobs: Vec<Arc<Job>> = self.table().jobs.values().cloned().collect();
        jobs.sort_unstable_by_key(|job| std::cmp::Reverse(job.number));
        jobs.iter().map(|job| job.record()).collect()
    }

    /// Asks a job to end and waits for its cleanup. Idempotent: a second call gets the same receipt, and while the cleanup
    /// still runs it also takes away the grace.
    pub async fn cancel(&self, id: &str) -> Result<Cancelled, Failure> {
        let job = self.get(id)?;
        let was_running = job.end.borrow().is_none();
        if was_running {
            if job.asked.is_cancelled() {
                job.now.cancel();
            }
            job.asked.cancel();
            job.cancel.cancel();
        }
        let Ok(end) = tokio::time::timeout(CANCEL_ANSWER_MAX, job.ended()).await else {
            return Ok(Cancelled::Pending);
        };
        match (&end.receipt, end.state) {
            (Some(receipt), JobState::Cancelled) => Ok(Cancelled::Clean(receipt.clone())),
            (_, state) => {
                let name = serde_json::to_value(state).unwrap_or_default();
                Err(Failure::new(
                    Code::Conflict,
                    format!("the job had already ended as {}", name.as_str().unwrap_or("ended")),
                )
                .with(serde_json::json!({ "state": state })))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::job::Level;

    fn jobs() -> Jobs {
        Jobs::new(Shutdown::new())
    }

    #[tokio::test]
    async fn a_cancel_answers_only_after_the_handler_has_cleaned_up() {
        let jobs = jobs();
        let job = jobs
            .start("wait", None, |ctx| async move {
                ctx.token().cancelled().await;
                tokio::task::yield_now().await;
                ctx.narrate("cleanup", "cleaned");
                Outcome::Cancelled(Receipt { processes_reaped: 3, ..Receipt::default() })
            })
            .unwrap();
        let id = job.id.to_string();
        let Cancelled::Clean(receipt) = jobs.cancel(&id).await.unwrap() else { panic!("not clean") };
        assert_eq!(receipt.processes_reaped, 3);
        assert_eq!(job.record().state, JobState::Cancelled);
        assert_eq!(jobs.cancel(&id).await.unwrap(), Cancelled::Clean(receipt));
        let mut reader = job.reader(0);
        let narration =
            JobEvent::Narration { action: "cleanup".into(), message: "cleaned".into(), level: Level::Info };
        assert_eq!(reader.next().await, stream::Step::Event(0, narration));
        assert_eq!(reader.next().await, stream::Step::End(Terminator::Cancelled));
    }

    #[tokio::test]
    async fn a_job_that_ended_by_itself_conflicts_with_a_cancel() {
        let jobs = jobs();
        let job = jobs.start("quick", None, |_| async { Outcome::Done(Value::from(1)) }).unwrap();
        job.ended().await;
        let failure = jobs.cancel(&job.id.to_string()).await.unwrap_err();
        assert_eq!((failure.code, failure.details["state"].as_str()), (Code::Conflict, Some("done")));
        assert_eq!(jobs.cancel("nonsense").await.unwrap_err().code, Code::JobNotFound);
    }

    #[tokio::test]
    async fn a_panic_is_a_failed_job_and_never_a_clean_end() {
        let jobs = jobs();
        let job = jobs.start("broken", None, |_| async { panic!("boom") }).unwrap();
        job.ended().await;
        let mut reader = job.reader(0);
        assert!(matches!(reader.next().await, stream::Step::Event(0, JobEvent::Error(_))));
        assert!(matches!(reader.next().await, stream::Step::End(Terminator::Error(_))));
    }

    #[tokio::test]
    async fn a_shutdown_interrupts_rather_than_cancels() {
        let shutdown = Shutdown::new();
        let jobs = Jobs::new(shutdown.clone());
        let job = jobs
            .start("wait", None, |ctx| async move {
                ctx.token().cancelled().await;
                Outcome::Cancelled(Receipt::default())
            })
            .unwrap();
        shutdown.stop();
        job.ended().await;
        assert_eq!(job.record().state, JobState::Interrupted);
        assert!(jobs.start("late", None, |_| async { Outcome::Done(Value::Null) }).is_err());
    }

    #[tokio::test]
    async fn an_idempotency_key_gives_the_first_job_again() {
        let jobs = jobs();
        let start = || jobs.start("once", Some("k"), |_| async { Outcome::Done(Value::Null) }).unwrap().id;
        assert_eq!(start(), start());
    }

    #[tokio::test]
    async fn ended_jobs_are_kept_up_to_a_limit_and_the_oldest_go_first() {
        let jobs = jobs();
        let mut first = None;
        for _ in 0..JOBS_ENDED_MAX + 2 {
            let job = jobs.start("quick", None, |_| async { Outcome::Done(Value::Null) }).unwrap();
            job.ended().await;
            first.get_or_insert(job.id);
        }
        assert_eq!(jobs.list().len(), JOBS_ENDED_MAX);
        assert!(jobs.get(&first.unwrap().to_string()).is_err());
    }
}
