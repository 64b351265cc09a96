//! Jobs: everything that takes longer than a request should. A job starts at once, whoever watches; its events can be
//! replayed from any point by any number of readers, also after a restart of the daemon; a client that leaves detaches, and
//! only a cancel cancels.
//!
//! The rule that the rest hangs on: a job's future is never dropped. A cancel sets a token, the handler notices, cleans
//! up and returns a receipt, and only then is the job `cancelled`. So a receipt tells what has happened, not what was asked.

pub mod journal;
mod key;
mod metrics;
pub mod progress;
pub mod routes;
pub mod stream;
mod table;

pub use key::{HEADER as KEY_HEADER, Key};
pub use table::{CANCEL_ANSWER_MAX, Cancelled, JOBS_RUNNING_MAX, Jobs};

use crate::shutdown::Shutdown;
use crate::wire::fleet::now_ms;
use crate::wire::job::{JobEvent, JobId, JobRecord, JobState, Receipt, Terminator};
use crate::wire::{Code, Failure};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use stream::EventLog;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

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
    told: journal::End,
    /// None, too, where only the journal has it.
    result: Option<Value>,
}

#[derive(Debug)]
pub struct Job {
    pub id: JobId,
    pub operation: String,
    /// Its place in the order of starts: ids of one millisecond do not tell.
    number: u64,
    created_at: u64,
    key: Option<Key>,
    events: Mutex<Events>,
    /// Its handler waits for its turn.
    waiting: AtomicBool,
    cancel: CancellationToken,
    /// A person asked for the cancel, as against a shutdown.
    asked: CancellationToken,
    /// Set by a second cancel: no more grace.
    now: CancellationToken,
    end: watch::Sender<Option<Arc<End>>>,
    journal: Option<Journalled>,
}

#[derive(Debug)]
enum Events {
    Here(EventLog),
    /// In the journal, and with whoever reads them now.
    Journalled(Weak<journal::Loaded>),
}

/// A job's journal: what is being written, or what an earlier life has left.
#[derive(Debug)]
enum Journalled {
    Writing(Arc<journal::Entry>),
    Found { bytes: u64 },
}

/// What a handler holds: where to tell, and when to stop.
#[derive(Debug, Clone)]
pub struct Context {
    job: Arc<Job>,
    log: EventLog,
    shutdown: Shutdown,
}

impl Context {
    pub fn id(&self) -> JobId {
        self.job.id
    }

    pub fn emit(&self, event: JobEvent) {
        self.log.push(event);
        if let Some(Journalled::Writing(entry)) = &self.job.journal {
            entry.touch();
        }
    }

    pub fn narrate(&self, action: &str, message: impl Into<String>) {
        self.emit(JobEvent::narrate(action, message));
    }

    /// The handler waits for its turn: the job is `queued` until [`Context::running`].
    pub fn waiting(&self, why: impl Into<String>) {
        self.job.waiting.store(true, Ordering::Relaxed);
        self.narrate("queued", why);
    }

    pub fn running(&self) {
        self.job.waiting.store(false, Ordering::Relaxed);
    }

    /// Waits for a turn as a `queued` job; nothing if the job is to end first. A turn that is there already is taken without
    /// a word.
    pub async fn turn<T>(&self, why: impl Into<String>, turn: impl Future<Output = T>) -> Option<T> {
        let mut turn = std::pin::pin!(turn);
        tokio::select! {
            // A job that was cancelled takes no turn, and a free one is no waiting.
            biased;
            () = self.token().cancelled() => return None,
            taken = &mut turn => return Some(taken),
            () = std::future::ready(()) => {}
        }
        self.waiting(why);
        let taken = self.token().run_until_cancelled(turn).await;
        self.running();
        taken
    }

    /// Ends when the handler should clean up and return [`Outcome::Cancelled`].
    pub fn token(&self) -> &CancellationToken {
        &self.job.cancel
    }

    /// Whether somebody has asked for the cancel, as against a shutdown.
    pub fn is_asked(&self) -> bool {
        self.job.asked.is_cancelled()
    }

    /// Ends when somebody asks for the cancel.
    pub async fn asked(&self) {
        self.job.asked.cancelled().await;
    }

    /// Ends when the daemon takes nothing new any more, and finishes what it does.
    pub async fn drained(&self) {
        self.shutdown.drained().await;
    }

    /// Ends when the daemon finishes nothing any more.
    pub async fn stopped(&self) {
        self.shutdown.stopped().await;
    }

    /// Somebody has cancelled it where it is done.
    pub fn cancelled_there(&self) {
        self.job.asked.cancel();
        self.job.cancel.cancel();
    }

    /// Ends when the cleanup should skip its grace.
    pub fn hurry(&self) -> &CancellationToken {
        &self.job.now
    }
}

impl Job {
    pub fn state(&self) -> JobState {
        let begun = if self.waiting.load(Ordering::Relaxed) { JobState::Queued } else { JobState::Running };
        self.end.borrow().as_ref().map_or(begun, |end| end.told.state)
    }

    /// All but the result.
    pub fn summary(&self) -> JobRecord {
        let end = self.end.borrow().clone();
        let told = end.as_ref().map(|end| &end.told);
        let events = match &*self.events() {
            Events::Here(log) => log.next_seq(),
            Events::Journalled(_) => told.map_or(0, |end| end.events),
        };
        JobRecord {
            job_id: self.id,
            operation: self.operation.clone(),
            state: self.state(),
            created_at: self.created_at,
            ended_at: told.map(|end| end.at),
            events,
            result: None,
            error: told.and_then(|end| end.error.clone()),
            receipt: told.and_then(|end| end.receipt.clone()),
        }
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().expect("no holder of a job's events panics")
    }

    fn has_ended(&self) -> bool {
        self.end.borrow().is_some()
    }

    async fn ended(&self) -> Arc<End> {
        let mut watching = self.end.subscribe();
        let end = watching.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        end.expect("a job's sender lives in the job, and it ends by being set")
    }

    /// Waits for its end.
    pub async fn over(&self) {
        self.ended().await;
    }

    /// Waits until a kill of the daemon would no longer make this job unknown.
    pub async fn recorded(&self) {
        if let Some(Journalled::Writing(entry)) = &self.journal {
            entry.recorded().await;
        }
    }

    /// Roughly the memory that its events and its result take.
    fn memory_bytes(&self) -> usize {
        match &*self.events() {
            // The log counts the result with the events.
            Events::Here(log) => log.bytes(),
            Events::Journalled(_) => 0,
        }
    }

    fn journal_bytes(&self) -> u64 {
        match &self.journal {
            Some(Journalled::Writing(entry)) => entry.bytes(),
            Some(Journalled::Found { bytes }) => *bytes,
            None => 0,
        }
    }

    /// Leaves the events to the journal, if that has them; tells whether it has. Whoever reads them now reads on.
    fn release(&self) -> bool {
        match &self.journal {
            Some(Journalled::Writing(entry)) if entry.is_whole() => {
                *self.events() = Events::Journalled(Weak::new());
                self.end.send_modify(|end| {
                    *end = end.as_ref().map(|end| Arc::new(End { told: end.told.clone(), result: None }));
                });
                true
            }
            Some(Journalled::Found { .. }) => true,
            _ => false,
        }
    }

    fn finish(&self, log: &EventLog, outcome: Outcome) {
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
            log.push(JobEvent::Result(value.clone()));
        }
        if let Some(failure) = &error {
            log.push(JobEvent::Error(failure.clone()));
        }
        let told = journal::End { state, at: now_ms(), events: log.next_seq(), error, receipt };
        let terminator: Terminator = told.terminator();
        let journal = match &self.journal {
            Some(Journalled::Writing(entry)) => Some((entry, told.clone())),
            _ => None,
        };
        // The state first: whoever has read the terminator must not be told that the job still runs.
        self.end.send_replace(Some(Arc::new(End { told, result })));
        // The journal's end before the terminator: the writer, who reads the one, must find the other.
        if let Some((entry, told)) = journal {
            entry.end(told, log, terminator);
        } else {
            log.end(terminator);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use table::JOBS_ENDED_MAX;

    fn jobs() -> Jobs {
        Jobs::new(Shutdown::new())
    }

    #[tokio::test]
    async fn a_cancel_answers_only_after_the_handler_has_cleaned_up() {
        let jobs = jobs();
        let job = jobs
            .start("wait", None, |ctx| async move {
                ctx.narrate("begin", "begun");
                ctx.token().cancelled().await;
                tokio::task::yield_now().await;
                ctx.narrate("cleanup", "cleaned");
                Outcome::Cancelled(Receipt { processes_reaped: 3, ..Receipt::default() })
            })
            .unwrap();
        let id = job.id.to_string();
        let mut reader = jobs.reader(&job, 0).await.unwrap();
        assert_eq!(reader.next().await, stream::Step::Event(0, JobEvent::narrate("begin", "begun")));
        let Cancelled::Clean(receipt) = jobs.cancel(&id).await.unwrap() else { panic!("not clean") };
        assert_eq!(receipt.processes_reaped, 3);
        assert_eq!(job.summary().state, JobState::Cancelled);
        assert_eq!(jobs.cancel(&id).await.unwrap(), Cancelled::Clean(receipt));
        assert_eq!(reader.next().await, stream::Step::Event(1, JobEvent::narrate("cleanup", "cleaned")));
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
        let mut reader = jobs.reader(&job, 0).await.unwrap();
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
        assert_eq!(job.summary().state, JobState::Interrupted);
        assert!(jobs.start("late", None, |_| async { Outcome::Done(Value::Null) }).is_err());
    }

    #[tokio::test]
    async fn an_idempotency_key_gives_the_first_job_again() {
        let jobs = jobs();
        let start = |body: &str| {
            let key = Key::read(Some("k"), body.as_bytes()).unwrap();
            jobs.start("once", key, |_| async { Outcome::Done(Value::Null) }).map(|job| job.id)
        };
        let first = start("{}").unwrap();
        assert_eq!(start("{}").unwrap(), first);
        let other = start("{\"other\":1}").unwrap_err();
        assert_eq!((other.code, &other.details["job_id"]), (Code::Conflict, &serde_json::json!(first)));
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

    #[tokio::test]
    async fn a_cancel_before_the_handler_began_leaves_it_unbegun() {
        let jobs = jobs();
        let began = Arc::new(AtomicBool::new(false));
        let seen = began.clone();
        let handler = move |_| async move {
            seen.store(true, Ordering::Relaxed);
            Outcome::Done(Value::Null)
        };
        // One thread, so nothing of the job has run when the cancel comes.
        let job = jobs.start("never", None, handler).unwrap();
        assert!(matches!(jobs.cancel(&job.id.to_string()).await.unwrap(), Cancelled::Clean(_)));
        assert!(!began.load(Ordering::Relaxed));
        assert_eq!(job.summary().state, JobState::Cancelled);
    }

    #[tokio::test]
    async fn a_cleanup_that_lasts_is_pending_and_told_when_it_is_done() {
        let mut jobs = jobs();
        jobs.cancel_answer_max = std::time::Duration::from_millis(20);
        let job = jobs
            .start("slow", None, |ctx| async move {
                // Only a second cancel, which takes the grace away, ends this cleanup.
                ctx.hurry().cancelled().await;
                Outcome::Cancelled(Receipt { ms: 7, ..Receipt::default() })
            })
            .unwrap();
        let id = job.id.to_string();
        // Begun, so that there is something to clean up.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        assert_eq!(jobs.cancel(&id).await.unwrap(), Cancelled::Pending);
        let Cancelled::Clean(receipt) = jobs.cancel(&id).await.unwrap() else { panic!("not clean") };
        assert_eq!(receipt.ms, 7);
        assert_eq!(jobs.cancel(&id).await.unwrap(), Cancelled::Clean(receipt), "and so for ever");
    }

    #[tokio::test]
    async fn a_job_that_waits_for_its_turn_is_queued_and_runs_when_it_has_it() {
        let jobs = jobs();
        let turns = Arc::new(tokio::sync::Semaphore::new(0));
        let (free, theirs) = (turns.clone(), turns.clone());
        let job = jobs
            .start("build", None, |ctx| async move {
                let Some(turn) = ctx.turn("one build before this one", theirs.acquire()).await else {
                    return Outcome::Cancelled(Receipt::default());
                };
                drop(turn);
                ctx.token().cancelled().await;
                Outcome::Cancelled(Receipt::default())
            })
            .unwrap();
        let mut reader = jobs.reader(&job, 0).await.unwrap();
        let waits = JobEvent::narrate("queued", "one build before this one");
        assert_eq!(reader.next().await, stream::Step::Event(0, waits));
        assert_eq!(job.summary().state, JobState::Queued);
        free.add_permits(1);
        while job.summary().state == JobState::Queued {
            tokio::task::yield_now().await;
        }
        assert_eq!(job.summary().state, JobState::Running);
        jobs.cancel(&job.id.to_string()).await.unwrap();
    }

    #[tokio::test]
    async fn a_turn_that_is_free_is_taken_without_a_word() {
        let jobs = jobs();
        let job = jobs
            .start("build", None, |ctx| async move {
                Outcome::Done(Value::from(ctx.turn("never said", async { 3 }).await))
            })
            .unwrap();
        job.ended().await;
        assert_eq!(jobs.record(&job).await.unwrap().result, Some(Value::from(3)));
        assert_eq!(job.summary().events, 1);
    }
}
