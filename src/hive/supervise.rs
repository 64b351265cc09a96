//! One worker's life: launched under a shim, loading (its own progress stream tells, nobody polls), ready, busy, and the
//! end, by wish, by idleness, by crash or with the hive. Whatever the end, its socket and its place in the table go with it.

use crate::hive::engines::{Engine, Program};
use crate::hive::foreign::{self, Endpoint};
use crate::hive::workers::{Note, Settings, Worker, Workers};
use crate::http::{client, sse};
use crate::process::{self, LISTENER_FD, SHIM_PIPE_FD, Spec, Tree};
use crate::shutdown::DRAIN_MAX;
use crate::wire::catalog::Serve;
use crate::wire::fleet::{WorkerInfo, WorkerState};
use crate::wire::job::Receipt;
use crate::wire::{Code, Failure};
use serde_json::json;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
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

/// A worker to start.
#[derive(Debug)]
pub struct Start {
    pub info: WorkerInfo,
    pub engine: Engine,
    /// Where an engine of ours listens.
    pub socket: PathBuf,
    pub model: PathBuf,
}

/// The whole life of a worker, from its launch on.
pub async fn start(
    workers: Arc<Workers>,
    start: Start,
    phase: watch::Sender<Phase>,
    mut stops: mpsc::Receiver<Stop>,
) {
    let id = start.info.worker_id.clone();
    let mut tries = 0;
    let end = loop {
        tries += 1;
        match launch(&workers, &start).await {
            Ok((tree, endpoint)) => {
                workers.update(&id, |worker| worker.info.pid = Some(tree.pid()));
                match run(&workers, &id, &tree, endpoint.as_ref(), &phase, &mut stops).await {
                    End::PortTaken(_) if tries < foreign::PORT_TRIES_MAX => {
                        tracing::info!(worker = id, "its port was taken meanwhile; trying another");
                    }
                    End::PortTaken(failure) | End::Over(failure) => {
                        break (failure, endpoint);
                    }
                }
            }
            Err(failure) => break (failure, None),
        }
    };
    finish(&workers, &id, end, &start.socket, &phase);
}

/// The rest of the life of a worker that an earlier hive started.
pub async fn adopted(
    workers: Arc<Workers>,
    id: String,
    tree: Tree,
    socket: PathBuf,
    endpoint: Option<Endpoint>,
    phase: watch::Sender<Phase>,
    mut stops: mpsc::Receiver<Stop>,
) {
    let end = run(&workers, &id, &tree, endpoint.as_ref(), &phase, &mut stops).await;
    let (End::PortTaken(failure) | End::Over(failure)) = end;
    finish(&workers, &id, (failure, endpoint), &socket, &phase);
}

fn finish(
    workers: &Workers,
    id: &str,
    (end, endpoint): (Failure, Option<Endpoint>),
    socket: &Path,
    phase: &watch::Sender<Phase>,
) {
    tracing::info!(worker = id, reason = end.message, "worker ended");
    phase.send_replace(Phase::Failed(end));
    workers.remove(id);
    match endpoint {
        Some(endpoint) => endpoint.forget(),
        None => remove_socket(socket),
    }
}

async fn launch(workers: &Workers, start: &Start) -> Result<(Tree, Option<Endpoint>), Failure> {
    let settings = workers.settings();
    let failed = |error: &(dyn std::error::Error + 'static)| Failure::internal(error);
    let (mut spec, listener, endpoint) = match &start.engine.program {
        Program::BuiltIn => {
            let program = process::own_program().map_err(|error| failed(&error))?;
            let (spec, listener) = ours(start, program)?;
            (spec, Some(listener), None)
        }
        Program::Ours(program) => {
            let (spec, listener) = ours(start, program.clone())?;
            (spec, Some(listener), None)
        }
        Program::Foreign { binary, serve } => {
            let (spec, endpoint) = theirs(start, settings, binary, serve)?;
            (spec, None, Some(endpoint))
        }
    };
    let id = &start.info.worker_id;
    // An engine that is not ours gets none of our settings, ours all that concern workers.
    let is_theirs = |name: &str| endpoint.is_none() || !name.starts_with("RBEE_");
    spec.env.extend(settings.env.iter().filter(|(name, _)| is_theirs(name)).cloned());
    spec.log = Some(settings.logs.join(format!("worker-{id}.log")));
    spec.grace_ms = WORKER_GRACE.as_millis() as u64;
    spec.orphan_ttl_ms = settings.orphan_ttl.as_millis() as u64;
    spec.rung_max.clone_from(&settings.rung_max);
    let note = Note {
        worker: start.info.clone(),
        socket: start.socket.clone(),
        pinned: start.info.pinned,
        kind: Some(start.engine.kind.clone()),
        foreign: endpoint.clone(),
    };
    spec.note = serde_json::to_value(note).map_err(|error| failed(&error))?;
    if let Some(endpoint) = &endpoint {
        let target = endpoint.target().map_err(|error| failed(&error))?;
        workers.update(id, |worker| worker.target = target);
    }
    let launched = process::launch(&settings.shims, spec, listener).await;
    if launched.is_err()
        && let Some(endpoint) = &endpoint
    {
        endpoint.forget();
    }
    launched.map(|tree| (tree, endpoint)).map_err(|error| failed(&error))
}

/// How an engine of ours is started: on a socket that is bound here and handed on.
fn ours(start: &Start, program: PathBuf) -> Result<(Spec, UnixListener), Failure> {
    let Start { info, socket, model, .. } = start;
    let listener = UnixListener::bind(socket).map_err(|error| Failure::internal(&error))?;
    let numbers = [
        // For all slots together, as llama-server has it.
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
    let mut spec = Spec::new(info.worker_id.clone(), argv);
    spec.program = Some(program);
    Ok((spec, listener))
}

/// How another project's engine is started: told a loopback port and where its key is.
fn theirs(
    start: &Start,
    settings: &Settings,
    binary: &Path,
    serve: &Serve,
) -> Result<(Spec, Endpoint), Failure> {
    let info = &start.info;
    let failed = |error: std::io::Error| Failure::internal(&error);
    let endpoint = Endpoint::make(&settings.run, &info.worker_id, serve).map_err(failed)?;
    let values = foreign::Values {
        model: &start.model,
        alias: &info.model,
        slots: info.slots_total,
        ctx: info.ctx,
        endpoint: &endpoint,
    };
    let words = foreign::command_line(serve, &values)?;
    let name = binary.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let mut spec = Spec::new(info.worker_id.clone(), std::iter::once(name).chain(words));
    spec.program = Some(binary.to_owned());
    if let Some(variable) = &serve.key_env {
        spec.env.push((variable.clone(), endpoint.key().map_err(failed)?));
    }
    // It does not watch its lease as our own worker does. On a GPU the driver must see its real pid.
    spec.pid_namespace = start.engine.kind == "cpu";
    Ok((spec, endpoint))
}

/// Loading, in either way.
type Loading<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// How a worker's life ended.
enum End {
    Over(Failure),
    /// An engine that is not ours ended before it was well, and somebody else has its port.
    PortTaken(Failure),
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
async fn run(
    workers: &Arc<Workers>,
    id: &str,
    tree: &Tree,
    endpoint: Option<&Endpoint>,
    phase: &watch::Sender<Phase>,
    stops: &mut mpsc::Receiver<Stop>,
) -> End {
    let shutdown = workers.hive_shutdown().clone();
    let mut loading: Option<Loading<'_>> = Some(match endpoint {
        None => Box::pin(load(workers.clone(), id.to_owned(), phase.clone())),
        Some(endpoint) => Box::pin(well(workers, id, tree, endpoint, phase)),
    });
    let end = loop {
        let event = tokio::select! {
            exit = tree.exited() => Event::Exited(exit),
            Some(stop) = stops.recv() => Event::Asked(stop),
            outcome = async { loading.as_mut().expect("guarded by the condition").await }, if loading.is_some() => Event::Loaded(outcome),
            () = idle(workers, id), if loading.is_none() => Event::Idle,
            () = shutdown.drained() => Event::HiveStops,
        };
        match event {
            Event::Loaded(Ok(())) => {
                loading = None;
                workers.update(id, |worker| {
                    worker.info.state = WorkerState::Ready;
                    worker.used = Instant::now();
                });
                phase.send_replace(Phase::Ready);
            }
            Event::Loaded(Err(failure)) => {
                // A worker that is about to exit says why better than its broken stream does.
                let told = tokio::time::timeout(WORKER_GRACE, tree.exited()).await.is_ok();
                tree.stop(Duration::ZERO).await;
                break if told { crashed(id, tree, &failure.message) } else { with_log(failure, tree) };
            }
            Event::Exited(exit) => {
                tree.ended().await;
                let failure = crashed(id, tree, &exit.to_string());
                if loading.is_some() && endpoint.is_some_and(Endpoint::is_taken) {
                    return End::PortTaken(failure);
                }
                break failure;
            }
            Event::Asked(stop) => {
                end_in_order(workers, id, tree, stop.grace, Some(stop.reply)).await;
                break Failure::new(Code::WorkerLost, format!("worker {id} was stopped"));
            }
            Event::Idle => {
                tracing::info!(worker = id, "stopping an idle worker");
                end_in_order(workers, id, tree, Duration::ZERO, None).await;
                break Failure::new(Code::WorkerLost, format!("worker {id} was stopped for being idle"));
            }
            Event::HiveStops => {
                end_in_order(workers, id, tree, DRAIN_MAX, None).await;
                break Failure::new(Code::ShuttingDown, "the hive is shutting down");
            }
        }
    };
    End::Over(end)
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
    let log = workers.settings().logs.join(format!("worker-{id}.log"));
    // It reads its model, or it tells something: either is progress.
    let progress = || {
        let told = log.metadata().map_or(0, |meta| meta.len());
        told + process::memory_bytes(tree.pid()).unwrap_or(0)
    };
    foreign::well(endpoint, LOADING_SILENCE_MAX, progress).await
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
