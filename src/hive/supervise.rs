//! One worker's life: launched under a shim, loading (its own progress stream tells, nobody polls), ready, busy, and the
//! end, by wish, by idleness, by crash or with the hive. Whatever the end, its socket and its place in the table go with it.

use crate::hive::workers::{Note, Worker, Workers};
use crate::http::{client, sse};
use crate::process::{self, LISTENER_FD, SHIM_PIPE_FD, Spec, Tree};
use crate::shutdown::DRAIN_MAX;
use crate::wire::fleet::{WorkerInfo, WorkerState};
use crate::wire::job::Receipt;
use crate::wire::{Code, Failure};
use serde_json::json;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// B12: loading may take long, but must move.
pub const LOADING_SILENCE_MAX: Duration = Duration::from_secs(5 * 60);
/// From TERM to KILL, when a stop asks for none of its own.
pub const WORKER_GRACE: Duration = Duration::from_secs(5);
/// Lines of a dead worker's log that its failure carries.
pub const LOG_TAIL_LINES: usize = 20;
pub const STOPS_MAX: usize = 8;

/// How far a worker is, for those who wait for it.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    Starting,
    Loading(f64),
    Ready,
    Failed(Failure),
}

/// Asks a worker to end.
#[derive(Debug)]
pub struct Stop {
    pub grace: Duration,
    pub reply: oneshot::Sender<Receipt>,
}

/// Launches a worker and lives its life.
pub async fn start(
    workers: Arc<Workers>,
    info: WorkerInfo,
    socket: PathBuf,
    model: PathBuf,
    phase: watch::Sender<Phase>,
    stops: mpsc::Receiver<Stop>,
) {
    let id = info.worker_id.clone();
    match launch(&workers, info, &socket, &model).await {
        Ok(tree) => {
            workers.update(&id, |worker| worker.info.pid = Some(tree.pid()));
            run(workers, id, tree, socket, phase, stops).await;
        }
        Err(failure) => {
            // Told before it leaves the table: a waiter that finds no entry could not say why.
            phase.send_replace(Phase::Failed(failure));
            workers.remove(&id);
            remove_socket(&socket);
        }
    }
}

async fn launch(workers: &Workers, info: WorkerInfo, socket: &Path, model: &Path) -> Result<Tree, Failure> {
    let settings = workers.settings();
    let failed = |error: &(dyn std::error::Error + 'static)| Failure::internal(error);
    // Bound here and handed over open: a request can be sent at once and waits in the kernel until the worker accepts.
    let listener = UnixListener::bind(socket).map_err(|error| failed(&error))?;
    let program = process::own_program().map_err(|error| failed(&error))?;
    let id = &info.worker_id;
    let numbers = [
        ("--ctx-size", u64::from(info.slots_total) * u64::from(info.ctx)),
        ("--parallel", u64::from(info.slots_total)),
        ("--lease-fd", SHIM_PIPE_FD as u64),
    ];
    let mut argv: Vec<String> = ["rbee", "worker", "serve", "--model"].map(str::to_owned).to_vec();
    argv.push(model.to_string_lossy().into_owned());
    argv.extend(["--alias".into(), info.model.clone()]);
    argv.extend(["--device".into(), info.device.clone()]);
    argv.extend(["--listen".into(), format!("fd:{LISTENER_FD}")]);
    for (flag, number) in numbers {
        argv.extend([flag.to_owned(), number.to_string()]);
    }
    let mut spec = Spec::new(id.clone(), argv);
    spec.program = Some(program);
    spec.env = settings.env.clone();
    spec.log = Some(settings.logs.join(format!("worker-{id}.log")));
    spec.grace_ms = WORKER_GRACE.as_millis() as u64;
    spec.orphan_ttl_ms = settings.orphan_ttl.as_millis() as u64;
    let pinned = info.pinned;
    spec.note = serde_json::to_value(Note { worker: info, socket: socket.to_owned(), pinned })
        .map_err(|error| failed(&error))?;
    process::launch(&settings.shims, spec, Some(listener)).await.map_err(|error| failed(&error))
}

/// What ended a wait.
enum Event {
    Exited(process::Exit),
    Asked(Stop),
    Loaded(Result<(), Failure>),
    Idle,
    HiveStops,
}

/// The life of a worker whose tree runs, launched or adopted.
pub async fn run(
    workers: Arc<Workers>,
    id: String,
    tree: Tree,
    socket: PathBuf,
    phase: watch::Sender<Phase>,
    mut stops: mpsc::Receiver<Stop>,
) {
    let shutdown = workers.hive_shutdown().clone();
    let mut loading = Some(Box::pin(load(workers.clone(), id.clone(), phase.clone())));
    let end = loop {
        let event = tokio::select! {
            exit = tree.exited() => Event::Exited(exit),
            Some(stop) = stops.recv() => Event::Asked(stop),
            outcome = async { loading.as_mut().expect("guarded by the condition").await }, if loading.is_some() => Event::Loaded(outcome),
            () = idle(&workers, &id), if loading.is_none() => Event::Idle,
            () = shutdown.drained() => Event::HiveStops,
        };
        match event {
            Event::Loaded(Ok(())) => {
                loading = None;
                workers.update(&id, |worker| {
                    worker.info.state = WorkerState::Ready;
                    worker.used = Instant::now();
                });
                phase.send_replace(Phase::Ready);
            }
            Event::Loaded(Err(failure)) => {
                // A worker that is about to exit says why better than its broken stream does.
                let told = tokio::time::timeout(WORKER_GRACE, tree.exited()).await.is_ok();
                tree.stop(Duration::ZERO).await;
                break if told { crashed(&id, &tree, &failure.message) } else { with_log(failure, &tree) };
            }
            Event::Exited(exit) => {
                tree.ended().await;
                break crashed(&id, &tree, &exit.to_string());
            }
            Event::Asked(stop) => {
                end_in_order(&workers, &id, &tree, stop.grace, Some(stop.reply)).await;
                break Failure::new(Code::WorkerLost, format!("worker {id} was stopped"));
            }
            Event::Idle => {
                tracing::info!(worker = id, "stopping an idle worker");
                end_in_order(&workers, &id, &tree, Duration::ZERO, None).await;
                break Failure::new(Code::WorkerLost, format!("worker {id} was stopped for being idle"));
            }
            Event::HiveStops => {
                end_in_order(&workers, &id, &tree, DRAIN_MAX, None).await;
                break Failure::new(Code::ShuttingDown, "the hive is shutting down");
            }
        }
    };
    tracing::info!(worker = id, reason = end.message, "worker ended");
    phase.send_replace(Phase::Failed(end));
    workers.remove(&id);
    remove_socket(&socket);
}

/// Follows the worker's own loading stream to its end.
async fn load(workers: Arc<Workers>, id: String, phase: watch::Sender<Phase>) -> Result<(), Failure> {
    let target = workers.get(&id)?.target;
    let lost = |error: &dyn std::fmt::Display| {
        Failure::new(Code::WorkerLost, format!("worker {id} was lost while loading: {error}"))
    };
    let ask = client::get("/v1/loading/progress").map_err(|error| Failure::internal(&error))?;
    let answer = client::send(&target, ask).await.map_err(|error| lost(&error))?;
    let mut events = sse::Reader::new(answer.into_body());
    loop {
        let event = match tokio::time::timeout(LOADING_SILENCE_MAX, events.next()).await {
            Ok(event) => event.map_err(|error| lost(&error))?,
            Err(_) => {
                return Err(Failure::new(
                    Code::LoadingTimeout,
                    format!("worker {id} made no progress loading for {} s", LOADING_SILENCE_MAX.as_secs()),
                ));
            }
        };
        let Some(event) = event else { return Err(lost(&"it closed the stream")) };
        if event.data == "[DONE]" {
            return Ok(());
        }
        let value: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
        if event.name.as_deref() == Some("error") || value.get("error").is_some() {
            return Err(Failure::from_body(500, event.data.as_bytes()));
        }
        if let Some(progress) = value.get("progress").and_then(serde_json::Value::as_f64) {
            workers.update(&id, |worker| worker.info.state = WorkerState::Loading);
            phase.send_replace(Phase::Loading(progress));
        }
    }
}

/// Ends when the worker has been idle for the hive's limit. The clock starts again with every request.
async fn idle(workers: &Workers, id: &str) {
    let ttl = workers.settings().idle_ttl;
    let mut table = workers.watch();
    loop {
        let state = table
            .borrow_and_update()
            .get(id)
            .map(|worker| (worker.info.slots_busy, worker.used, worker.info.pinned));
        match state {
            Some((0, used, false)) => tokio::select! {
                () = tokio::time::sleep_until(used + ttl) => return,
                _ = table.changed() => {}
            },
            // Busy or pinned: nothing to time until something changes. Gone: the life itself ends elsewhere.
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
    workers.update(id, |worker| worker.info.state = WorkerState::Draining);
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

fn crashed(id: &str, tree: &Tree, how: &str) -> Failure {
    let tail = tree.tail(LOG_TAIL_LINES);
    let last = tail.iter().rev().find(|line| !line.trim().is_empty()).cloned().unwrap_or_default();
    let why = if last.is_empty() { how.to_owned() } else { format!("{how}: {last}") };
    with_log(Failure::new(Code::WorkerLost, format!("worker {id} ended: {why}")), tree)
}

fn with_log(failure: Failure, tree: &Tree) -> Failure {
    let mut details = match failure.details.clone() {
        serde_json::Value::Object(details) => details,
        _ => serde_json::Map::new(),
    };
    details.insert("log".into(), json!(tree.tail(LOG_TAIL_LINES)));
    failure.with(details.into())
}

fn remove_socket(socket: &Path) {
    if let Err(error) = std::fs::remove_file(socket)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %socket.display(), %error, "a worker's socket could not be removed");
    }
}

/// What a worker gets of its hive's environment, and what it always gets. No token is on the list.
pub fn environment(of_hive: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    /// Where the worker finds its own configuration and libraries, and which GPUs it may see.
    const PASSED_ON: &[&str] = &[
        "HOME",
        "PATH",
        "LANG",
        "TMPDIR",
        "XDG_CONFIG_HOME",
        "RBEE_CONFIG",
        "RBEE_LOG",
        "RBEE_LOG_FORMAT",
        "RBEE_THREADS",
        "RBEE_THREADS_BATCH",
        "RBEE_BATCH_SIZE",
        "RBEE_UBATCH_SIZE",
        "RBEE_N_GPU_LAYERS",
        "RBEE_CACHE_TYPE_K",
        "RBEE_CACHE_TYPE_V",
        "RBEE_FLASH_ATTN",
        "RBEE_CHAT_TEMPLATE",
        "RBEE_CHAT_TEMPLATE_FILE",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
    ];
    let passed_on = PASSED_ON.iter().filter_map(|name| Some(((*name).to_owned(), of_hive(name)?)));
    // A crash must not call a debugger to print itself: slow, noisy, and it would ptrace.
    passed_on.chain([("GGML_NO_BACKTRACE".to_owned(), "1".to_owned())]).collect()
}
