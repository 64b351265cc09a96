//! This node's workers: who runs, in what state, and the verbs: spawn, stop, adopt. One cell holds what is known and
//! publishes every change; one task a worker (`supervise`) moves it through its states.

use crate::daemon::lines::{LINES_KEPT_MAX, Lines};
use crate::hive::ends::Ends;
use crate::hive::engines::Engine;
use crate::hive::foreign::Endpoint;
use crate::hive::service::Waiting;
use crate::hive::supervise::{self, Held, Life, Order, Phase, Start};
use crate::http::client::Target;
use crate::http::pool::Pool;
use crate::process::{self, Tree};
use crate::shutdown::Shutdown;
use crate::wire::fleet::{WorkerInfo, WorkerState, now_ms};
use crate::wire::job::{JobEvent, Receipt, Unit};
use crate::wire::operation::WorkerSpawn;
use crate::wire::{Code, Failure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Workers of one hive.
pub const WORKERS_MAX: usize = 256;
/// B12: loading may take long, but must move.
pub const LOADING_SILENCE_MAX: Duration = Duration::from_secs(5 * 60);
/// B18: how long a worker may be idle where nobody was told.
pub const IDLE_TTL: Duration = Duration::from_secs(5 * 60);
/// B14: how long a worker at work may leave the question unanswered whether it lives. Its answer does not wait for what it
/// computes, and its requests' own limit is a minute.
pub const WORKER_SILENCE_MAX: Duration = Duration::from_secs(40);
/// How long requests at work may take to finish when their worker is told to stop; from TERM to KILL it then has
/// [`supervise::WORKER_GRACE`].
pub const STOP_GRACE: Duration = Duration::from_secs(5);

/// What a hive was told about its workers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Shim records and sockets.
    pub shims: PathBuf,
    pub run: PathBuf,
    pub logs: PathBuf,
    pub orphan_ttl: Duration,
    /// As this hive was told; else what its queen was told.
    pub idle_ttl: Option<Duration>,
    /// Before a pinned worker's first restart; see `restarts`.
    pub restart_pause: Duration,
    /// B12: how long a load may show no progress.
    pub loading_silence: Duration,
    /// B14: how long a worker at work may not say that it lives.
    pub worker_silence: Duration,
    /// The strongest rung of the containment ladder that is used; the node's best if not said.
    pub rung_max: Option<String>,
    /// What workers get of this process's environment.
    pub env: Vec<(String, String)>,
}

/// What the next hive needs to go on with a worker; kept by its shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    pub worker: WorkerInfo,
    pub socket: PathBuf,
    pub pinned: bool,
    /// `cpu`, `cuda` or `metal`; the worker's name in records that are older than installed engines.
    #[serde(default)]
    pub kind: Option<String>,
    /// For an engine that is not ours, which has no socket.
    #[serde(default)]
    pub foreign: Option<Endpoint>,
    /// The model's file, for the next start of a pinned worker; not in older records.
    #[serde(default)]
    pub model: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Worker {
    pub info: WorkerInfo,
    /// What its engine computes on; `info.worker` says which engine that is.
    pub kind: String,
    /// The way to ask it.
    pub pool: Arc<Pool>,
    /// When it was last asked something, on the clock that does not jump.
    pub used: Instant,
    /// It was ready once, in whatever life.
    pub has_served: bool,
    /// What it says, over all its lives.
    pub log: Arc<Lines>,
    phase: watch::Receiver<Phase>,
    orders: mpsc::Sender<Order>,
    /// Spawns that wait for it; when the last one is cancelled, nobody wants it.
    pub(super) waiting: u32,
    /// Who has it take no new requests: its retirements, and its end.
    pub(super) drains: u32,
}

pub type Table = BTreeMap<String, Worker>;

#[derive(Debug)]
pub struct Workers {
    hive: String,
    settings: Settings,
    pub(super) table: watch::Sender<Table>,
    pub ends: Ends,
    /// What the queen said last; she may be away.
    idle_ttl_told: watch::Sender<Option<Duration>>,
    /// Set before the shutdown: workers are left to the next hive then, not stopped.
    handing_over: AtomicBool,
    shutdown: Shutdown,
}

/// How a spawn ended for one who asked.
#[derive(Debug)]
pub enum Spawned {
    Ready(Box<WorkerInfo>),
    Cancelled(Receipt),
}

impl Workers {
    pub fn new(hive: &str, settings: Settings, shutdown: Shutdown) -> Arc<Self> {
        Arc::new(Workers {
            hive: hive.to_owned(),
            settings,
            table: watch::Sender::new(Table::new()),
            ends: Ends::default(),
            idle_ttl_told: watch::Sender::new(None),
            handing_over: AtomicBool::new(false),
            shutdown,
        })
    }

    pub fn watch(&self) -> watch::Receiver<Table> {
        self.table.subscribe()
    }

    pub fn infos(&self) -> Vec<WorkerInfo> {
        self.table.borrow().values().map(|worker| worker.info.clone()).collect()
    }

    /// A number that stays the same as long as nothing has changed but how busy workers are.
    pub fn essence(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for Worker { info, .. } in self.table.borrow().values() {
            let state = if info.state.serves() { WorkerState::Ready } else { info.state };
            (&info.worker_id, state.name(), info.pid, info.pinned, info.memory_bytes).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// How long a worker may be idle.
    pub fn idle_ttl(&self) -> Duration {
        self.settings.idle_ttl.or(*self.idle_ttl_told.borrow()).unwrap_or(IDLE_TTL)
    }

    pub fn tell_idle_ttl(&self, told: Option<Duration>) {
        self.idle_ttl_told.send_replace(told);
    }

    /// Wakes who watches idle workers.
    pub(super) fn idle_ttl_changes(&self) -> watch::Receiver<Option<Duration>> {
        self.idle_ttl_told.subscribe()
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn get(&self, id: &str) -> Result<Worker, Failure> {
        self.look(id, Worker::clone)
    }

    /// Looks at a worker where it stands, which costs less than a copy of it.
    pub fn look<T>(&self, id: &str, at: impl FnOnce(&Worker) -> T) -> Result<T, Failure> {
        self.table.borrow().get(id).map(at).ok_or_else(|| self.not_here(id))
    }

    pub(super) fn not_here(&self, id: &str) -> Failure {
        let unknown = format!("this hive runs no worker {id}; see `rbee workers list`");
        self.ends.not_running(id, Failure::new(Code::WorkerNotFound, unknown))
    }

    /// Those that load, each with what it has of the machine's memory by now.
    pub fn coming(&self) -> Vec<(WorkerInfo, u64)> {
        let coming = self.infos().into_iter().filter(|worker| worker.state.is_coming());
        let with_resident = |worker: WorkerInfo| {
            let resident = worker.pid.and_then(process::memory_bytes).unwrap_or(0);
            (worker, resident)
        };
        coming.map(with_resident).collect()
    }

    /// A worker that already does what is wanted, or is about to.
    pub fn matching(&self, want: &WorkerSpawn) -> Option<WorkerInfo> {
        let table = self.table.borrow();
        table.values().find(|worker| is_match(worker, want)).map(|worker| worker.info.clone())
    }

    /// Starts a worker as planned, or joins the one that a simultaneous request started. The caller waits with `ready`.
    /// Whether one `may` be started is asked under the table's lock: whoever forbids it and then looks at the table sees all.
    pub fn spawn(
        self: &Arc<Self>,
        want: &WorkerSpawn,
        plan: Planned,
        may: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<String, Failure> {
        let id = fresh_id();
        let (phase, phases) = watch::channel(Phase::Starting);
        let (orders, asked) = mpsc::channel(supervise::ORDERS_MAX);
        let socket = self.settings.run.join(format!("{id}.sock"));
        let info = WorkerInfo {
            worker_id: id.clone(),
            hive: self.hive.clone(),
            state: WorkerState::Starting,
            model: plan.model,
            worker: plan.engine.id.clone(),
            device: plan.device,
            slots_total: plan.slots,
            slots_busy: 0,
            ctx: plan.ctx,
            memory_bytes: plan.memory_bytes,
            pid: None,
            started_at: now_ms(),
            last_used: now_ms(),
            pinned: want.pin,
            url: format!("/v1/workers/{id}"),
        };
        let worker = Worker {
            info: info.clone(),
            kind: plan.engine.kind.clone(),
            pool: Pool::new(Target::unix(&socket)),
            used: Instant::now(),
            has_served: false,
            log: Arc::default(),
            phase: phases,
            orders,
            waiting: 0,
            drains: 0,
        };
        let mut outcome = Ok(id.clone());
        self.table.send_if_modified(|table| {
            // Looked for again under the lock: two requests at once share one worker.
            if let Some(existing) = table.values().find(|worker| is_match(worker, want)) {
                outcome = Ok(existing.info.worker_id.clone());
                return false;
            }
            if let Err(failure) = may() {
                outcome = Err(failure);
                return false;
            }
            if table.len() >= WORKERS_MAX {
                outcome = Err(Failure::new(
                    Code::TooManyRequests,
                    format!("this hive already runs {WORKERS_MAX} workers"),
                ));
                return false;
            }
            table.insert(id.clone(), worker);
            true
        });
        if outcome.as_ref().is_ok_and(|chosen| *chosen == id) {
            let start = Start { info, engine: plan.engine, socket: socket.clone(), model: plan.path };
            let life = Life { workers: self.clone(), id, socket, start: Some(start), phase, orders: asked };
            self.shutdown.spawn(life.live(None));
        }
        outcome
    }

    /// Waits until a worker serves, telling how far it is. A cancel stops it, unless somebody else waits for it too.
    pub async fn ready(
        &self,
        id: &str,
        tell: impl Fn(JobEvent),
        cancel: &CancellationToken,
    ) -> Result<Spawned, Failure> {
        let worker = self.get(id)?;
        let waiting = Waiting::new(self, id);
        let mut phase = worker.phase.clone();
        let mut told = None;
        loop {
            let now = phase.borrow_and_update().clone();
            match now {
                Phase::Ready => return Ok(Spawned::Ready(Box::new(self.get(id)?.info))),
                Phase::Failed(failure) => return Err(failure),
                Phase::Starting => {}
                Phase::Loading(progress) => {
                    let percent = (progress.clamp(0.0, 1.0) * 100.0).round() as u64;
                    if told != Some(percent) {
                        told = Some(percent);
                        tell(JobEvent::Progress {
                            task: "load".into(),
                            label: format!("loading {}", worker.info.model),
                            position: percent,
                            total: Some(100),
                            unit: Unit::Percent,
                            rate: None,
                        });
                    }
                }
            }
            tokio::select! {
                changed = phase.changed() => if changed.is_err() {
                    return Err(Failure::new(Code::WorkerLost, format!("worker {id} is gone")));
                },
                () = cancel.cancelled() => {
                    return Ok(Spawned::Cancelled(match waiting.leave() {
                        true => self.stop(id, Duration::ZERO).await?,
                        false => Receipt::default(),
                    }));
                }
            }
        }
    }

    /// Ends a worker: no new requests, those at work get `grace`, then it is stopped. Tells what that gave back: nothing if it
    /// ended meanwhile, by another stop for one.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<Receipt, Failure> {
        let worker = self.get(id)?;
        let (reply, receipt) = oneshot::channel();
        if worker.orders.send(Order::Stop { grace, reply }).await.is_ok()
            && let Ok(receipt) = receipt.await
        {
            return Ok(receipt);
        }
        if self.is_handing_over() {
            let why = format!("the hive ends and leaves worker {id} to the next one; ask that to stop it");
            return Err(Failure::new(Code::ShuttingDown, why));
        }
        Ok(Receipt::default())
    }

    /// Pins a worker that may have been started unpinned; its shim will tell the next hive.
    pub async fn pin(&self, id: &str) -> Result<(), Failure> {
        let worker = self.get(id)?;
        if !worker.info.pinned {
            self.update(id, |worker| worker.info.pinned = true);
            let gone = |_| Failure::new(Code::WorkerNotFound, format!("worker {id} has ended"));
            worker.orders.send(Order::Pin).await.map_err(gone)?;
        }
        Ok(())
    }

    /// From the next drain of this hive on its workers are left to the next one.
    pub fn hand_over(&self) {
        self.handing_over.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_handing_over(&self) -> bool {
        self.handing_over.load(Ordering::SeqCst)
    }

    /// Takes over what an earlier hive left running, models loaded.
    pub async fn adopt(self: &Arc<Self>, engines: &[Engine]) {
        for tree in process::adopt(&self.settings.shims).await {
            match serde_json::from_value::<Note>(tree.note().clone()) {
                Ok(note) => self.adopt_one(tree, note, engines),
                Err(error) => {
                    tracing::warn!(id = tree.id(), %error, "a worker's note does not read; it is stopped");
                    tree.stop(Duration::ZERO).await;
                }
            }
        }
        self.remove_leftovers();
    }

    /// Sockets and keys of workers that ended while no hive was there.
    fn remove_leftovers(&self) {
        let table = self.table.borrow();
        for entry in std::fs::read_dir(&self.settings.run).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_workers = path.extension().is_some_and(|kind| kind == "sock" || kind == "key");
            let id = path.file_stem().and_then(std::ffi::OsStr::to_str).filter(|_| is_workers);
            if id.is_some_and(|id| is_id(id) && !table.contains_key(id)) {
                supervise::remove(&path);
            }
        }
    }

    fn adopt_one(self: &Arc<Self>, tree: Tree, note: Note, engines: &[Engine]) {
        let id = note.worker.worker_id.clone();
        let (phase, phases) = watch::channel(Phase::Starting);
        let (orders, asked) = mpsc::channel(supervise::ORDERS_MAX);
        let info = WorkerInfo {
            hive: self.hive.clone(),
            state: WorkerState::Starting,
            slots_busy: 0,
            pid: Some(tree.pid()),
            last_used: now_ms(),
            pinned: note.pinned,
            ..note.worker
        };
        let engine = engines.iter().find(|engine| engine.id == info.worker).cloned();
        let start = engine.zip(note.model).map(|(engine, model)| Start {
            info: info.clone(),
            engine,
            socket: note.socket.clone(),
            model,
        });
        tracing::info!(worker = id, model = info.model, pid = tree.pid(), "adopting a worker");
        // Said before this hive was there. What comes between this look and the first line that is told may come twice.
        let log = Arc::new(Lines::default());
        log.precede(tree.tail(LINES_KEPT_MAX));
        let target = match &note.foreign {
            None => Target::unix(&note.socket),
            // Without its key it answers nobody; its loading fails, and it is stopped.
            Some(endpoint) => endpoint.target().unwrap_or_else(|_| Target::unix(&note.socket)),
        };
        let worker = Worker {
            kind: note.kind.unwrap_or_else(|| info.worker.clone()),
            info,
            pool: Pool::new(target),
            used: Instant::now(),
            has_served: true,
            log,
            phase: phases,
            orders,
            waiting: 0,
            drains: 0,
        };
        self.table.send_modify(|table| {
            table.insert(id.clone(), worker);
        });
        let life = Life { workers: self.clone(), id, socket: note.socket, start, phase, orders: asked };
        self.shutdown.spawn(life.live(Some(Held { tree, endpoint: note.foreign, is_adopted: true })));
    }

    /// Changes a worker's facts and publishes them.
    pub(super) fn update(&self, id: &str, change: impl FnOnce(&mut Worker)) {
        self.table.send_if_modified(|table| match table.get_mut(id) {
            Some(worker) => {
                change(worker);
                true
            }
            None => false,
        });
    }

    pub(super) fn remove(&self, id: &str) {
        self.table.send_if_modified(|table| table.remove(id).is_some());
    }

    pub(super) fn hive_shutdown(&self) -> &Shutdown {
        &self.shutdown
    }
}

/// What preflight decided, and for which file.
#[derive(Debug)]
pub struct Planned {
    pub model: String,
    pub path: PathBuf,
    pub engine: Engine,
    pub device: String,
    pub slots: u32,
    pub ctx: u32,
    pub memory_bytes: u64,
}

/// Digits of a worker's id after the `w`: short enough to type.
const ID_DIGITS: usize = 10;

/// The random end of a UUID.
fn fresh_id() -> String {
    let uuid = crate::wire::id::fresh().simple().to_string();
    format!("w{}", &uuid[uuid.len() - ID_DIGITS..])
}

/// Whether this hive or one before it may have made it.
fn is_id(word: &str) -> bool {
    let digits = word.strip_prefix('w').filter(|digits| digits.len() == ID_DIGITS);
    digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_match(worker: &Worker, want: &WorkerSpawn) -> bool {
    let Worker { info, kind, .. } = worker;
    let is_alive = (info.state.serves() || info.state.is_coming()) && worker.drains == 0;
    let is_engine =
        |word: &String| word.eq_ignore_ascii_case(&info.worker) || word.eq_ignore_ascii_case(kind);
    let is_device = |word: &String| word.eq_ignore_ascii_case(&info.device) || is_engine(word);
    is_alive
        && info.model == want.model
        && want.worker.as_ref().is_none_or(is_engine)
        && want.device.as_ref().is_none_or(is_device)
        && want.slots.is_none_or(|slots| slots == info.slots_total)
        && want.ctx.is_none_or(|ctx| ctx == info.ctx)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const ID: &str = "w1";

    fn settings() -> Settings {
        let long = Duration::from_secs(60);
        Settings {
            shims: PathBuf::new(),
            run: PathBuf::new(),
            logs: PathBuf::new(),
            orphan_ttl: long,
            idle_ttl: None,
            restart_pause: long,
            loading_silence: long,
            worker_silence: long,
            rung_max: None,
            env: Vec::new(),
        }
    }

    /// A hive with one worker that serves; its orders come out here.
    pub fn one() -> (Arc<Workers>, mpsc::Receiver<Order>) {
        let workers = Workers::new("here", settings(), Shutdown::new());
        let (orders, asked) = mpsc::channel(supervise::ORDERS_MAX);
        let info = WorkerInfo {
            worker_id: ID.into(),
            hive: "here".into(),
            state: WorkerState::Ready,
            model: "m".into(),
            worker: "built-in".into(),
            device: "cpu".into(),
            slots_total: 2,
            slots_busy: 0,
            ctx: 512,
            memory_bytes: 0,
            pid: None,
            started_at: 0,
            last_used: 0,
            pinned: false,
            url: String::new(),
        };
        let worker = Worker {
            info,
            kind: "cpu".into(),
            pool: Pool::new(Target::unix("/none")),
            used: Instant::now(),
            has_served: true,
            log: Arc::default(),
            phase: watch::channel(Phase::Ready).1,
            orders,
            waiting: 0,
            drains: 0,
        };
        workers.table.send_modify(|table| drop(table.insert(ID.into(), worker)));
        (workers, asked)
    }

    #[tokio::test]
    async fn of_two_stops_both_have_what_they_wanted_and_the_first_has_the_receipt() {
        let (workers, mut orders) = one();
        let [first, second] = [(), ()].map(|()| {
            let workers = workers.clone();
            tokio::spawn(async move { workers.stop(ID, Duration::ZERO).await })
        });
        let Some(Order::Stop { reply, .. }) = orders.recv().await else { panic!("no order") };
        while orders.is_empty() {
            tokio::task::yield_now().await;
        }
        reply.send(Receipt { ms: 7, ..Receipt::default() }).unwrap();
        workers.remove(ID);
        drop(orders);
        let mut told = [first.await.unwrap().unwrap().ms, second.await.unwrap().unwrap().ms];
        told.sort_unstable();
        assert_eq!(told, [0, 7]);
        let unknown = workers.stop(ID, Duration::ZERO).await.unwrap_err();
        assert_eq!(unknown.code, Code::WorkerNotFound);
    }

    #[tokio::test]
    async fn a_stop_does_not_claim_a_worker_that_is_left_to_the_next_hive() {
        let (workers, orders) = one();
        workers.hand_over();
        drop(orders);
        assert_eq!(workers.stop(ID, Duration::ZERO).await.unwrap_err().code, Code::ShuttingDown);
    }

    #[test]
    fn a_spawn_is_allowed_or_not_when_the_worker_is_put_into_the_table() {
        let (workers, _orders) = one();
        let want = WorkerSpawn::of("other");
        let plan = Planned {
            model: want.model.clone(),
            path: PathBuf::new(),
            engine: Engine::built_in(),
            device: "cpu".into(),
            slots: 1,
            ctx: 512,
            memory_bytes: 0,
        };
        let refused = workers.spawn(&want, plan, || Err(Failure::new(Code::ShuttingDown, "it drains")));
        assert_eq!(refused.unwrap_err().code, Code::ShuttingDown);
        assert_eq!(workers.table.borrow().len(), 1);
    }

    #[test]
    fn how_long_a_worker_may_be_idle_is_the_hives_own_word_then_the_queens() {
        let soon = Some(Duration::from_secs(1));
        let (workers, _orders) = one();
        assert_eq!(workers.idle_ttl(), IDLE_TTL);
        workers.tell_idle_ttl(soon);
        assert_eq!(Some(workers.idle_ttl()), soon);
        let own = Some(Duration::from_secs(7));
        let workers = Workers::new("here", Settings { idle_ttl: own, ..settings() }, Shutdown::new());
        workers.tell_idle_ttl(soon);
        assert_eq!(Some(workers.idle_ttl()), own);
    }
}
