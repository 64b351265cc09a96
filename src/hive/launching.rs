//! How a worker's process is started: its command line, its environment, where it listens and logs, and what its shim is to
//! remember of it for the next hive.

use crate::hive::engines::Program;
use crate::hive::foreign::{self, Endpoint};
use crate::hive::logs;
use crate::hive::supervise::{Start, WORKER_GRACE};
use crate::hive::workers::{Note, Settings, Workers};
use crate::http::pool::Pool;
use crate::process::{self, LISTENER_FD, SHIM_PIPE_FD, Spec, Tree};
use crate::wire::Failure;
use crate::wire::catalog::Serve;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Starts it; `again` goes on with the log that its earlier lives have left.
pub(super) async fn launch(
    workers: &Workers,
    start: &Start,
    again: bool,
) -> Result<(Tree, Option<Endpoint>), Failure> {
    let settings = workers.settings();
    if !again {
        let running = workers.infos().into_iter().map(|worker| worker.worker_id);
        logs::forget_old(&settings.logs, &running.collect());
    }
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
    spec.log = Some(logs::path_of(&settings.logs, id));
    // So that they can be followed; see `logs`.
    spec.tell = true;
    spec.grace_ms = WORKER_GRACE.as_millis() as u64;
    spec.orphan_ttl_ms = settings.orphan_ttl.as_millis() as u64;
    spec.rung_max.clone_from(&settings.rung_max);
    spec.log_append = again;
    let note = Note {
        worker: start.info.clone(),
        socket: start.socket.clone(),
        pinned: start.info.pinned,
        kind: Some(start.engine.kind.clone()),
        foreign: endpoint.clone(),
        model: Some(start.model.clone()),
    };
    spec.note = serde_json::to_value(note).map_err(|error| failed(&error))?;
    if let Some(endpoint) = &endpoint {
        let target = endpoint.target().map_err(|error| failed(&error))?;
        workers.update(id, |worker| worker.pool = Pool::new(target));
    }
    let launched = process::launch(&settings.shims, spec, listener).await;
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
