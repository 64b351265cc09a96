//! All jobs of one daemon: how they start, are found, are cancelled, and go when they are old.

use crate::job::journal::{self, Head, JOURNALS_BYTES_MAX, JOURNALS_KEPT_MAX, Journal, KEPT_FOR, Loaded};
use crate::job::stream::{EventLog, Reader};
use crate::job::{Context, End, Events, Job, Journalled, Key, Outcome};
use crate::shutdown::Shutdown;
use crate::wire::fleet::now_ms;
use crate::wire::job::{JobId, JobRecord, JobState, Receipt};
use crate::wire::{Code, Failure};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Jobs at work at once; one more is refused.
pub const JOBS_RUNNING_MAX: usize = 1_024;
/// Ended jobs kept for late readers; the oldest go first.
pub const JOBS_ENDED_MAX: usize = JOURNALS_KEPT_MAX;
/// Memory for the events of ended jobs; beyond it they are read from their journals.
pub const ENDED_BYTES_MAX: usize = 64 << 20;
/// How long a cancel waits for the job's cleanup before it answers 202: the grace of a build, and 3 s.
pub const CANCEL_ANSWER_MAX: Duration = Duration::from_secs(5);

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
    journal: Option<(Journal, Arc<Path>)>,
    pub(super) cancel_answer_max: Duration,
    pub(super) keep_alive: Duration,
}

#[derive(Debug, Default)]
struct Table {
    started: u64,
    jobs: HashMap<JobId, Arc<Job>>,
    keys: HashMap<String, JobId>,
}

impl Table {
    fn started_by(&self, key: &Key) -> Result<Option<Arc<Job>>, Failure> {
        let Some(existing) = self.keys.get(&key.text).and_then(|id| self.jobs.get(id)) else {
            return Ok(None);
        };
        if existing.key.as_ref() == Some(key) {
            return Ok(Some(existing.clone()));
        }
        let other =
            format!("the idempotency key was used for another request, which started job {}", existing.id);
        Err(Failure::new(Code::Conflict, other).with(serde_json::json!({ "job_id": existing.id })))
    }
}

impl Jobs {
    /// Jobs that a restart forgets; their handlers are told to clean up when the shutdown stops.
    pub fn new(shutdown: Shutdown) -> Self {
        Jobs {
            table: Arc::default(),
            shutdown,
            journal: None,
            cancel_answer_max: CANCEL_ANSWER_MAX,
            keep_alive: crate::http::sse::KEEP_ALIVE,
        }
    }

    /// Jobs with journals in a folder of their own, and those that an earlier life has left there. A disk that fails costs
    /// the journals, never the daemon.
    pub fn open(dir: PathBuf, shutdown: Shutdown) -> Self {
        let mut jobs = Jobs::new(shutdown);
        let opened = journal::restore(&dir).and_then(|found| Ok((found, Journal::start(dir.clone())?)));
        match opened {
            Ok((found, journal)) => {
                jobs.journal = Some((journal, dir.into()));
                jobs.restore(found);
            }
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "no journals: jobs will not survive a restart");
            }
        }
        jobs
    }

    fn restore(&self, found: Vec<journal::Found>) {
        let mut table = self.table();
        for found in found {
            table.started += 1;
            let Head { job_id, operation, created_at, key, .. } = found.head;
            if let Some(key) = &key {
                table.keys.insert(key.text.clone(), job_id);
            }
            let job = Job {
                id: job_id,
                operation,
                number: table.started,
                created_at,
                key,
                events: Mutex::new(Events::Journalled(Weak::new())),
                waiting: AtomicBool::new(false),
                cancel: CancellationToken::new(),
                asked: CancellationToken::new(),
                now: CancellationToken::new(),
                end: watch::Sender::new(Some(Arc::new(End { told: found.end, result: None }))),
                journal: Some(Journalled::Found { bytes: found.bytes }),
            };
            table.jobs.insert(job_id, Arc::new(job));
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of the table panics")
    }

    /// Starts a job, or gives the one that the idempotency key already started.
    pub fn start<H, F>(&self, operation: &str, key: Option<Key>, handler: H) -> Result<Arc<Job>, Failure>
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
        key: Option<Key>,
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
        let log = EventLog::default();
        let job = match self.enter(id, operation, key, &log)? {
            Entered::New(job) => job,
            Entered::Known(job) => return Ok(job),
        };
        let work = handler(Context { job: job.clone(), log: log.clone(), shutdown: self.shutdown.clone() });
        let running = job.clone();
        self.shutdown.spawn(async move {
            // Nothing has begun, so there is nothing to clean up.
            let outcome = if running.cancel.is_cancelled() {
                Outcome::Cancelled(Receipt::default())
            } else {
                // A task of its own, so that a panic is a failed job and not a lost one.
                tokio::spawn(work).await.unwrap_or_else(|error| {
                    Outcome::Failed(Failure::new(Code::Internal, format!("the job's handler broke: {error}")))
                })
            };
            running.finish(&log, outcome);
            drop(log);
            // The daemon's own end waits for this task, and with it for the disk.
            if let Some(Journalled::Writing(entry)) = &running.journal {
                entry.ended().await;
            }
        });
        Ok(job)
    }

    /// The job that an idempotency key has started.
    pub fn started_by(&self, key: &Key) -> Result<Option<Arc<Job>>, Failure> {
        self.table().started_by(key)
    }

    fn enter(
        &self,
        id: JobId,
        operation: &str,
        key: Option<Key>,
        log: &EventLog,
    ) -> Result<Entered, Failure> {
        let mut table = self.table();
        if let Some(existing) = key.as_ref().map(|key| table.started_by(key)).transpose()?.flatten() {
            return Ok(Entered::Known(existing));
        }
        if table.jobs.contains_key(&id) {
            return Err(Failure::new(Code::Conflict, format!("there is a job {id} already")));
        }
        self.let_go(&mut table)?;
        table.started += 1;
        let (number, created_at) = (table.started, now_ms());
        let head = || Head {
            version: journal::VERSION,
            job_id: id,
            operation: operation.to_owned(),
            created_at,
            number,
            key: key.clone(),
        };
        let journal = self.journal.as_ref().and_then(|(journal, _)| journal.enter(head(), log.clone()));
        if let Some(key) = &key {
            table.keys.insert(key.text.clone(), id);
        }
        let job = Arc::new(Job {
            id,
            operation: operation.to_owned(),
            number,
            created_at,
            key,
            events: Mutex::new(Events::Here(log.clone())),
            waiting: AtomicBool::new(false),
            asked: CancellationToken::new(),
            now: CancellationToken::new(),
            cancel: self.shutdown.token(),
            end: watch::Sender::new(None),
            journal: journal.map(Journalled::Writing),
        });
        table.jobs.insert(id, job.clone());
        Ok(Entered::New(job))
    }

    /// Makes room for one more: ended jobs go when they are a day old, too many, or too large.
    fn let_go(&self, table: &mut Table) -> Result<(), Failure> {
        let mut ended: Vec<Arc<Job>> = table.jobs.values().filter(|job| job.has_ended()).cloned().collect();
        if table.jobs.len() - ended.len() >= JOBS_RUNNING_MAX {
            return Err(Failure::new(
                Code::TooManyRequests,
                format!("{JOBS_RUNNING_MAX} jobs are running already; wait for one to end"),
            )
            .with(serde_json::json!({"retry_after": 1})));
        }
        ended.sort_unstable_by_key(|job| std::cmp::Reverse(job.number));
        let now = now_ms();
        let (mut kept, mut on_disk, mut in_memory) = (0, 0, 0);
        let mut is_kept = |job: &Arc<Job>| {
            let at = job.end.borrow().as_ref().map_or(now, |end| end.told.at);
            on_disk += job.journal_bytes();
            let memory = job.memory_bytes();
            let has_room = in_memory + memory <= ENDED_BYTES_MAX || job.release();
            if has_room {
                in_memory += job.memory_bytes();
            }
            kept += 1;
            let is_fresh = now.saturating_sub(at) <= KEPT_FOR.as_millis() as u64;
            // The newest one stays, however large: its client is on the way to it.
            kept == 1 || is_fresh && has_room && kept < JOBS_ENDED_MAX && on_disk <= JOURNALS_BYTES_MAX
        };
        let gone: Vec<Arc<Job>> = ended.into_iter().filter(|job| !is_kept(job)).collect();
        for job in &gone {
            table.jobs.remove(&job.id);
            if let Some(key) = job.key.as_ref().filter(|key| table.keys.get(&key.text) == Some(&job.id)) {
                table.keys.remove(&key.text);
            }
            if let Some(Journalled::Writing(entry)) = &job.journal {
                entry.forget();
            }
            if let (Some((journal, _)), Some(_)) = (&self.journal, &job.journal) {
                journal.remove(job.id);
            }
        }
        Ok(())
    }

    pub fn get(&self, id: &str) -> Result<Arc<Job>, Failure> {
        let unknown = || Failure::new(Code::JobNotFound, format!("there is no job {id} here"));
        let parsed: JobId = id.parse().map_err(|_| unknown())?;
        self.table().jobs.get(&parsed).cloned().ok_or_else(unknown)
    }

    /// How many are in a state.
    pub fn count(&self, state: JobState) -> usize {
        self.table().jobs.values().filter(|job| job.state() == state).count()
    }

    /// All jobs, the newest first, without their results.
    pub fn list(&self) -> Vec<JobRecord> {
        let mut jobs: Vec<Arc<Job>> = self.table().jobs.values().cloned().collect();
        jobs.sort_unstable_by_key(|job| std::cmp::Reverse(job.number));
        jobs.iter().map(|job| job.summary()).collect()
    }

    /// Waits until none of the jobs that count runs any more.
    pub async fn quiet(&self, counts: impl Fn(&str) -> bool) {
        loop {
            let running =
                self.table().jobs.values().find(|job| !job.has_ended() && counts(&job.operation)).cloned();
            match running {
                Some(job) => drop(job.ended().await),
                None => return,
            }
        }
    }

    /// A job with its result.
    pub async fn record(&self, job: &Job) -> Result<JobRecord, Failure> {
        let mut record = job.summary();
        if record.state == JobState::Done {
            let here = job.end.borrow().as_ref().and_then(|end| end.result.clone());
            record.result = match here {
                Some(result) => Some(result),
                None => self.load(job).await?.and_then(|loaded| loaded.result.clone()),
            };
        }
        Ok(record)
    }

    /// A reader of a job's events, from wherever they are.
    pub async fn reader(&self, job: &Job, from: u64) -> Result<Reader, Failure> {
        if let Events::Here(log) = &*job.events() {
            return Ok(log.reader(from));
        }
        match self.load(job).await? {
            Some(loaded) => Ok(Reader::of(loaded, from)),
            None => Ok(EventLog::default().reader(0)),
        }
    }

    /// A job's journal, read once for all who want it at the same time. None if the events are here.
    async fn load(&self, job: &Job) -> Result<Option<Arc<Loaded>>, Failure> {
        let Some((_, dir)) = &self.journal else { return Ok(None) };
        match &*job.events() {
            Events::Here(_) => return Ok(None),
            Events::Journalled(loaded) => {
                if let Some(loaded) = loaded.upgrade() {
                    return Ok(Some(loaded));
                }
            }
        }
        let (dir, id) = (dir.clone(), job.id);
        let read = tokio::task::spawn_blocking(move || journal::load(&dir, id)).await;
        let loaded = match read {
            Ok(Ok(loaded)) => Arc::new(loaded),
            Ok(Err(error)) => return Err(Failure::internal(&error)),
            Err(error) => return Err(Failure::internal(&error)),
        };
        if let Events::Journalled(known) = &mut *job.events() {
            *known = Arc::downgrade(&loaded);
        }
        Ok(Some(loaded))
    }

    /// Asks a job to end and waits for its cleanup. Idempotent: a second call gets the same receipt, and while the cleanup
    /// still runs it also takes away the grace.
    pub async fn cancel(&self, id: &str) -> Result<Cancelled, Failure> {
        let job = self.get(id)?;
        if !job.has_ended() {
            if job.asked.is_cancelled() {
                job.now.cancel();
            }
            job.asked.cancel();
            job.cancel.cancel();
        }
        let Ok(end) = tokio::time::timeout(self.cancel_answer_max, job.ended()).await else {
            return Ok(Cancelled::Pending);
        };
        match (&end.told.receipt, end.told.state) {
            (Some(receipt), JobState::Cancelled) => Ok(Cancelled::Clean(receipt.clone())),
            (_, state) => {
                let message = format!("the job had already ended as {}", state.name());
                Err(Failure::new(Code::Conflict, message).with(serde_json::json!({ "state": state })))
            }
        }
    }
}

enum Entered {
    New(Arc<Job>),
    /// The idempotency key's.
    Known(Arc<Job>),
}
