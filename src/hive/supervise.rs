//! One worker's life: launched under a shim, loading (its own progress stream tells, nobody polls), ready, busy, and the
//! end, by wish, by idleness, by crash or with the hive. Whatever the end, its files and its place in the table go with
//! it, but in two cases: a pinned worker that crashed keeps its place and is started again, and one that is handed over
//! runs on, its shim keeping all that the next hive needs.

use crate::daemon::lines::Lines;
use crate::hive::ends::{Crash, Ended};
use crate::hive::engines::Engine;
use crate::hive::foreign::{self, Endpoint};
use crate::hive::launching::launch;
use crate::hive::liveness;
use crate::hive::logs;
use crate::hive::restarts::{RESTARTS_MAX, Restarts};
use crate::hive::workers::{Worker, Workers};
use crate::http::{client, sse};
use crate::process::{self, Output, Tree};
use crate::shutdown::DRAIN_MAX;
use crate::wire::fleet::{WorkerInfo, WorkerState};
use crate::wire::job::Receipt;
use crate::wire::{Code, Failure};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// From TERM to KILL, when a stop asks for none of its own.
pub const WORKER_GRACE: Duration = Duration::from_secs(5);
/// How long the rest of an ended worker's output is waited for.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
/// Lines of a dead worker's log that its failure carries.
pub const LOG_TAIL_LINES: usize = 20;
/// Orders that wait for a worker's task.
pub const ORDERS_MAX: usize = 8;

/// Loading, in either way.
type Loading<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// How a worker's process ended.
enum End {
    /// By a wish: a stop, idleness, the hive's own end.
    Over(Failure),
    /// By itself, and how long it had served by then, if it had.
    Crash { failure: Failure, served: Option<Duration> },
    /// Not at all: it runs on, for the next hive.
    Left,
}

/// What ended a wait.
enum Event {
    Exited(process::Exit),
    Asked(Order),
    Loaded(Result<(), Failure>),
    Idle,
    Frozen,
    HiveStops,
}

/// How far a worker is, for those who wait for it.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    Starting,
    Loading(f64),
    Ready,
    Failed(Failure),
}

/// What a worker's task is asked for.
#[derive(Debug)]
pub enum Order {
    /// To end.
    Stop { grace: Duration, reply: oneshot::Sender<Receipt> },
    /// To have its shim remember that it is pinned.
    Pin,
}

/// A worker to start, once or again.
#[derive(Debug)]
pub struct Start {
    pub info: WorkerInfo,
    pub engine: Engine,
    /// Where an engine of ours listens.
    pub socket: PathBuf,
    pub model: PathBuf,
}

/// A worker whose process runs.
#[derive(Debug)]
pub struct Held {
    pub tree: Tree,
    pub endpoint: Option<Endpoint>,
    /// An earlier hive has started it.
    pub is_adopted: bool,
}

/// A worker's task: what it needs from its first launch, or its adoption, to its last end.
pub struct Life {
    pub workers: Arc<Workers>,
    pub id: String,
    pub socket: PathBuf,
    /// How it is started. None for one that was adopted and whose engine is no longer here.
    pub start: Option<Start>,
    pub phase: watch::Sender<Phase>,
    pub orders: mpsc::Receiver<Order>,
}

impl Life {
    /// From the launch, or from what an earlier hive has left, to the end; a pinned worker has several lives.
    pub async fn live(mut self, mut held: Option<Held>) {
        let mut restarts = Restarts::new(self.workers.settings().restart_pause);
        let mut again = false;
        let failure = loop {
            let end = match held.take() {
                Some(held) => self.run(&held).await,
                None => self.launch_and_run(again).await,
            };
            match end {
                End::Left => {
                    tracing::info!(worker = self.id, "left to the next hive");
                    self.forget(Failure::new(Code::ShuttingDown, "the hive hands its workers over"));
                    return;
                }
                End::Over(failure) => {
                    self.remember(&failure, Crash::No);
                    break failure;
                }
                End::Crash { failure, served } => {
                    // One that never served is not tried again: whoever asked for it is told why, and can do something.
                    let has_served = self.workers.get(&self.id).is_ok_and(|worker| worker.has_served);
                    let pause = if has_served { restarts.after(served) } else { None };
                    if let Err(failure) = self.after_crash(failure, pause, restarts.count()).await {
                        break failure;
                    }
                    again = true;
                }
            }
        };
        tracing::info!(worker = self.id, reason = failure.message, "worker ended");
        self.remove_files();
        self.forget(failure);
    }

    /// Waits before a pinned worker's next life; of any other, why it is over.
    async fn after_crash(
        &mut self,
        failure: Failure,
        pause: Option<Duration>,
        count: u32,
    ) -> Result<(), Failure> {
        let shutdown = self.workers.hive_shutdown().clone();
        let info = self.workers.get(&self.id).map(|worker| worker.info).ok();
        let is_pinned = info.as_ref().is_some_and(|info| info.pinned) && !shutdown.is_draining();
        let (Some(pause), Some(start), Some(info), true) = (pause, self.start.take(), info, is_pinned) else {
            self.remember(&failure, Crash::Last);
            return Err(failure);
        };
        tracing::warn!(
            worker = self.id,
            reason = failure.message,
            restart = count,
            of = RESTARTS_MAX,
            pause_ms = pause.as_millis() as u64,
            "a pinned worker crashed"
        );
        self.remember(&failure, Crash::Restart(count));
        // Its place in the table stays: requests wait for it rather than have another one started.
        self.workers.update(&self.id, |worker| {
            worker.info.state = WorkerState::Starting;
            worker.info.pid = None;
        });
        self.phase.send_replace(Phase::Starting);
        self.remove_files();
        let until = Instant::now() + pause;
        let again = Start { info: WorkerInfo { pid: None, ..info }, ..start };
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => {
                    self.start = Some(again);
                    return Ok(());
                }
                Some(order) = self.orders.recv() => if let Order::Stop { reply, .. } = order {
                    // Whoever asked may have left.
                    let _ = reply.send(Receipt::default());
                    return Err(stopped(&self.id));
                },
                () = shutdown.drained() => {
                    if self.workers.is_handing_over() {
                        // The next hive knows what runs and nothing else: it is started now, and left to load.
                        self.start = Some(again);
                        return Ok(());
                    }
                    return Err(Failure::new(Code::ShuttingDown, "the hive is shutting down"));
                }
            }
        }
    }

    async fn launch_and_run(&mut self, again: bool) -> End {
        let mut tries = 0;
        loop {
            tries += 1;
            let Some(start) = &self.start else {
                return End::Over(Failure::new(Code::WorkerLost, "how it was started is not known"));
            };
            let (tree, endpoint) = match launch(&self.workers, start, again).await {
                Ok(launched) => launched,
                Err(failure) => return End::Crash { failure, served: None },
            };
            self.workers.update(&self.id, |worker| worker.info.pid = Some(tree.pid()));
            let held = Held { tree, endpoint, is_adopted: false };
            match self.run(&held).await {
                End::Crash { failure, served: None }
                    if held.endpoint.as_ref().is_some_and(Endpoint::is_taken) =>
                {
                    if tries == foreign::PORT_TRIES_MAX {
                        return End::Crash { failure, served: None };
                    }
                    tracing::info!(worker = self.id, "its port was taken meanwhile; trying another");
                }
                end => return end,
            }
        }
    }

    fn remember(&self, failure: &Failure, crash: Crash) {
        if let Ok(worker) = self.workers.get(&self.id) {
            self.workers.ends.add(Ended::of(&worker.info, failure, crash));
        }
    }

    /// Takes it out of the table, and tells those who wait why.
    fn forget(&self, failure: Failure) {
        if let Ok(worker) = self.workers.get(&self.id) {
            worker.log.close();
        }
        self.phase.send_replace(Phase::Failed(failure));
        self.workers.remove(&self.id);
    }

    /// Its socket and its key, whichever it has.
    fn remove_files(&self) {
        for path in [self.socket.clone(), foreign::key_file(&self.workers.settings().run, &self.id)] {
            remove(&path);
        }
    }

    /// The life of a worker whose tree runs, launched or adopted.
    async fn run(&mut self, held: &Held) -> End {
        let said = self.workers.get(&self.id).ok().zip(held.tree.lines());
        let copying = said.map(|(worker, said)| tokio::spawn(copy(said, worker.log)));
        let end = self.watch(held).await;
        if let Some(copying) = copying {
            // Its last words; a shim that does not close its output is not waited for.
            let _ = tokio::time::timeout(LAST_WORDS_MAX, copying).await;
        }
        end
    }

    async fn watch(&mut self, Held { tree, endpoint, is_adopted }: &Held) -> End {
        let (workers, id, phase) = (&self.workers, self.id.as_str(), &self.phase);
        let orders = &mut self.orders;
        let shutdown = workers.hive_shutdown().clone();
        let mut loading: Option<Loading<'_>> = Some(match endpoint {
            None => Box::pin(load(workers.clone(), id.to_owned(), phase.clone(), *is_adopted)),
            Some(endpoint) => Box::pin(well(workers, id, tree, endpoint, phase)),
        });
        let mut serving_since: Option<Instant> = None;
        loop {
            let event = tokio::select! {
                exit = tree.exited() => Event::Exited(exit),
                Some(order) = orders.recv() => Event::Asked(order),
                outcome = async { loading.as_mut().expect("guarded by the condition").await }, if loading.is_some() => Event::Loaded(outcome),
                () = idle(workers, id), if loading.is_none() => Event::Idle,
                // Another project's engine is watched request by request; see `patience`.
                () = liveness::frozen(workers, id), if loading.is_none() && endpoint.is_none() => Event::Frozen,
                () = shutdown.drained() => Event::HiveStops,
            };
            let served = serving_since.map(|since| since.elapsed());
            match event {
                Event::Loaded(Ok(())) => {
                    loading = None;
                    serving_since = Some(Instant::now());
                    workers.serves(id);
                    phase.send_replace(Phase::Ready);
                }
                Event::Loaded(Err(failure)) => {
                    workers.update(id, |worker| worker.info.state = WorkerState::Failed);
                    // A worker that is about to exit says why better than its broken stream does.
                    let has_exited = tokio::time::timeout(WORKER_GRACE, tree.exited()).await.is_ok();
                    tree.stop(Duration::ZERO).await;
                    let failure = match failure.code {
                        Code::WorkerLost if has_exited => crashed(id, tree, &failure.message),
                        // Somebody else has asked it to end: this hive does not while it waits for it.
                        Code::ShuttingDown => crashed(id, tree, &failure.message),
                        _ => with_log(failure, id, tree),
                    };
                    return End::Crash { failure, served };
                }
                Event::Exited(exit) => {
                    // Said before the rest of its tree has gone: nobody is to be sent to it any more.
                    workers.update(id, |worker| worker.info.state = WorkerState::Failed);
                    tree.ended().await;
                    // One of ours has said why it could not load, and that may be heard after its end.
                    let said = match loading.as_mut().filter(|_| endpoint.is_none()) {
                        Some(loading) => {
                            tokio::time::timeout(LAST_WORDS_MAX, loading).await.ok().and_then(Result::err)
                        }
                        None => None,
                    };
                    let is_reason =
                        |said: &Failure| !matches!(said.code, Code::WorkerLost | Code::ShuttingDown);
                    let failure = match said.filter(is_reason) {
                        Some(said) => with_log(said, id, tree),
                        None => crashed(id, tree, &exit.to_string()),
                    };
                    return End::Crash { failure, served };
                }
                Event::Asked(Order::Pin) => tree.renote(pinned(tree.note())).await,
                Event::Asked(Order::Stop { grace, reply }) => {
                    end_in_order(workers, id, tree, grace, Some(reply)).await;
                    return End::Over(stopped(id));
                }
                Event::Idle => {
                    // Somebody may have come at the last moment.
                    if workers.give_up(id).is_err() {
                        continue;
                    }
                    tracing::info!(worker = id, "stopping an idle worker");
                    end_in_order(workers, id, tree, Duration::ZERO, None).await;
                    let why = format!("worker {id} was stopped for being idle");
                    return End::Over(Failure::new(Code::WorkerLost, why));
                }
                Event::Frozen => {
                    workers.update(id, |worker| worker.info.state = WorkerState::Failed);
                    tree.stop(Duration::ZERO).await;
                    return End::Crash {
                        failure: with_log(liveness::failure(workers, id), id, tree),
                        served,
                    };
                }
                Event::HiveStops if workers.is_handing_over() => {
                    workers.end(id);
                    quiet(workers, id, tree, DRAIN_MAX).await;
                    // Its end may be what made it quiet.
                    if let Ok(exit) = tokio::time::timeout(Duration::ZERO, tree.exited()).await {
                        return End::Crash { failure: crashed(id, tree, &exit.to_string()), served };
                    }
                    tree.detach().await;
                    return End::Left;
                }
                Event::HiveStops => {
                    end_in_order(workers, id, tree, DRAIN_MAX, None).await;
                    return End::Over(Failure::new(Code::ShuttingDown, "the hive is shutting down"));
                }
            }
        }
    }
}

/// Takes a file of a worker that has ended away.
pub(super) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "an ended worker's file could not be removed");
    }
}

/// Keeps what a worker says for those who follow it.
async fn copy(mut said: process::Lines, log: Arc<Lines>) {
    while let Some(output) = said.next().await {
        log.push(match output {
            Output::Line(line) => line,
            Output::Dropped(lines) => format!("[{lines} lines came too fast]"),
        });
    }
}

fn stopped(id: &str) -> Failure {
    Failure::new(Code::WorkerLost, format!("worker {id} was stopped"))
}

/// A shim's note of a worker that is pinned from now on. What else stands in it stays.
fn pinned(note: &serde_json::Value) -> serde_json::Value {
    let mut note = note.clone();
    note["pinned"] = true.into();
    note["worker"]["pinned"] = true.into();
    note
}

/// Waits for an engine that is not ours, and says that it loads.
async fn well(
    workers: &Workers,
    id: &str,
    tree: &Tree,
    endpoint: &Endpoint,
    phase: &watch::Sender<Phase>,
) -> Result<(), Failure> {
    workers.update(id, |worker| worker.info.state = WorkerState::Loading);
    phase.send_replace(Phase::Loading(0.0));
    let log = logs::path_of(&workers.settings().logs, id);
    // It reads its model, or it tells something: either is progress.
    let progress = || {
        let told = log.metadata().map_or(0, |meta| meta.len());
        told + process::memory_bytes(tree.pid()).unwrap_or(0)
    };
    foreign::well(endpoint, workers.settings().loading_silence, progress).await
}

/// Follows the worker's own loading stream to its end. One that `is_adopted` runs already, and has no reason to be slow with its
/// first answer.
async fn load(
    workers: Arc<Workers>,
    id: String,
    phase: watch::Sender<Phase>,
    is_adopted: bool,
) -> Result<(), Failure> {
    let (pool, settings) = (workers.get(&id)?.pool, workers.settings());
    let silence = settings.loading_silence;
    let first = if is_adopted { settings.worker_silence.min(silence) } else { silence };
    let lost = |error: &dyn std::fmt::Display| {
        Failure::new(Code::WorkerLost, format!("worker {id} was lost while loading: {error}"))
    };
    let silent = |silence: Duration| {
        let seconds = silence.as_secs_f32();
        let why = format!("worker {id} made no progress loading for {seconds} s");
        Failure::new(Code::LoadingTimeout, why)
    };
    let ask = client::get("/v1/loading/progress").map_err(|error| Failure::internal(&error))?;
    let answer = tokio::time::timeout(first, pool.send(ask)).await.map_err(|_| silent(first))?;
    let mut events = sse::Reader::new(answer.map_err(|error| lost(&error))?.into_body());
    loop {
        let event = tokio::time::timeout(silence, events.next()).await.map_err(|_| silent(silence))?;
        let event = event.map_err(|error| lost(&error))?;
        let Some(event) = event else { return Err(lost(&"it closed the stream")) };
        if event.data == "[DONE]" {
            return Ok(());
        }
        if event.name.as_deref() == Some("error") {
            return Err(serde_json::from_str(&event.data).unwrap_or_else(|error| lost(&error)));
        }
        let value: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
        // Why it failed comes next.
        let has_failed = value["state"] == "failed";
        if let Some(progress) = value["progress"].as_f64().filter(|_| !has_failed) {
            workers.update(&id, |worker| worker.info.state = WorkerState::Loading);
            phase.send_replace(Phase::Loading(progress));
        }
    }
}

/// Ends when the worker has been idle for the hive's limit. The clock starts again with every request, which is looked at only
/// when it has run down: requests come by the thousand, and it seldom does.
async fn idle(workers: &Workers, id: &str) {
    let (mut table, mut told) = (workers.watch(), workers.idle_ttl_changes());
    loop {
        let unused =
            table.borrow_and_update().get(id).filter(|worker| worker.is_unused()).map(|worker| worker.used);
        match unused.map(|since| since + workers.idle_ttl()) {
            Some(end) if end <= Instant::now() => return,
            Some(end) => tokio::select! {
                () = tokio::time::sleep_until(end) => {}
                _ = told.changed() => {}
            },
            // Busy, pinned or on its way out: nothing to time until something changes. Gone: the life itself ends elsewhere.
            _ => {
                if table.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        }
    }
}

/// Takes no new requests, lets those at work finish within `grace`, then stops the tree and tells what that returned.
async fn end_in_order(
    workers: &Workers,
    id: &str,
    tree: &Tree,
    grace: Duration,
    reply: Option<oneshot::Sender<Receipt>>,
) {
    workers.end(id);
    quiet(workers, id, tree, grace).await;
    workers.update(id, |worker| worker.info.state = WorkerState::Stopping);
    let memory = process::memory_bytes(tree.pid()).unwrap_or(0);
    let stop_grace = if grace.is_zero() { Duration::ZERO } else { WORKER_GRACE };
    let mut receipt = tree.stop(stop_grace).await;
    receipt.memory_returned_bytes += memory;
    if let Some(reply) = reply {
        // Whoever asked may have left; the worker is gone all the same.
        let _ = reply.send(receipt);
    }
}

/// Waits until no request is at work, no longer than `grace`.
async fn quiet(workers: &Workers, id: &str, tree: &Tree, grace: Duration) {
    let is_quiet = |table: &crate::hive::workers::Table| {
        table.get(id).is_none_or(|worker: &Worker| worker.info.slots_busy == 0)
    };
    let mut table = workers.watch();
    tokio::select! {
        _ = table.wait_for(is_quiet) => {}
        () = tokio::time::sleep(grace) => {}
        () = workers.hive_shutdown().stopped() => {}
        _ = tree.exited() => {}
    }
}

fn crashed(id: &str, tree: &Tree, how: &str) -> Failure {
    let tail = tree.tail(LOG_TAIL_LINES);
    let last = tail.iter().rev().find(|line| !line.trim().is_empty()).cloned().unwrap_or_default();
    let why = if last.is_empty() { how.to_owned() } else { format!("{how}: {last}") };
    with_log(Failure::new(Code::WorkerLost, format!("worker {id} ended: {why}")), id, tree)
}

fn with_log(failure: Failure, id: &str, tree: &Tree) -> Failure {
    let mut details = match failure.details.clone() {
        serde_json::Value::Object(details) => details,
        _ => serde_json::Map::new(),
    };
    details.insert("worker_id".into(), json!(id));
    details.insert("log".into(), json!(tree.tail(LOG_TAIL_LINES)));
    failure.with(details.into())
}
