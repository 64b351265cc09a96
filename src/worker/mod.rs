//! The worker: one process, one model. Requests come in over HTTP (`routes`), are turned into tokens (`chat`), wait in a bounded
//! queue (`queue`), and are decoded together by one thread that owns the engine (`batch` over `engine`; `llama` is llama.cpp).
//!
//! The order of things at the start: the processor is looked at before any code of the engine runs; the file's header is
//! read by our own code; then the port opens, so that whoever waits can watch the model load; then the engine's thread
//! loads. At the end: nothing new is taken, running answers are finished within the drain, what is left is
//! aborted inside its decode, and the thread has ended before `serve` returns.

pub mod batch;
pub mod chat;
pub mod cpu;
pub mod engine;
mod lease;
pub mod llama;
pub mod loading;
pub mod options;
pub mod queue;
mod request;
mod routes;
pub mod sampler;
mod stream;
pub mod text;

pub use options::{Options, OptionsError};

use crate::daemon;
use crate::http::auth::Guard;
use crate::http::server::{self, Listener};
use crate::model::gguf;
use crate::process;
use crate::shutdown::{DRAIN_MAX, Shutdown};
use crate::wire::{Code, Failure};
use batch::Scheduler;
use chat::Chat;
use engine::{Engine, EngineError};
use llama::{Llama, Model};
use loading::{Load, Ready};
use options::{ContextOptions, Endpoint, ModelOptions};
use queue::Work;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How long one that could not load stays for who has started it.
const FAILURE_HEARD_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    TooOld(#[from] cpu::TooOld),
    #[error("{} is not a model that can be loaded", path.display())]
    Header { path: PathBuf, source: gguf::GgufError },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Listen(#[from] daemon::DaemonError),
    #[error("listening on {endpoint}")]
    ListenUnix { endpoint: String, source: std::io::Error },
    #[error("taking over the inherited descriptor {fd}")]
    Inherited { fd: i32, source: std::io::Error },
    #[error("starting the engine's thread")]
    Thread(#[source] std::io::Error),
    #[error("the engine's thread has died")]
    EngineDied,
}

impl WorkerError {
    /// The stable code of what ended this worker.
    pub fn code(&self) -> Code {
        match self {
            WorkerError::Header { .. } => Code::InvalidModel,
            WorkerError::Engine(error) => engine_code(error),
            WorkerError::TooOld(_) => Code::BackendUnavailable,
            _ => Code::Internal,
        }
    }
}

fn engine_code(error: &EngineError) -> Code {
    match error {
        // llama.cpp has one word for all of it, and tells the reason in its log only.
        EngineError::Load { log, .. } => {
            let says = |words: &[&str]| log.iter().any(|line| words.iter().any(|word| line.contains(word)));
            match () {
                () if says(&["unable to allocate", "failed to allocate", "out of memory"]) => {
                    Code::InsufficientMemory
                }
                () if says(&["read error", "failed to open"]) => Code::Internal,
                () => Code::InvalidModel,
            }
        }
        EngineError::Unsuitable(..) | EngineError::Template(_) => Code::InvalidModel,
        EngineError::Context { .. } => Code::InsufficientMemory,
        EngineError::Backend { .. } => Code::BackendUnavailable,
        EngineError::LoadCancelled(_) => Code::ShuttingDown,
        _ => Code::Internal,
    }
}

/// Serves one model until the shutdown has drained. An error means that the worker could not work at all.
pub async fn serve(mut options: Options, shutdown: Shutdown) -> Result<(), WorkerError> {
    cpu::check()?;
    let kernels = cpu::kernels();
    tracing::info!(used = kernels.used.join(" "), unused = kernels.unused.join(" "), "kernels");
    if let Some(fd) = options.lease_fd {
        lease::watch(fd).map_err(|source| WorkerError::Inherited { fd, source })?;
    }
    let header = gguf::inspect(&options.model)
        .map_err(|source| WorkerError::Header { path: options.model.clone(), source })?;
    // Of a split model llama.cpp wants the first part, whichever was given.
    if let Some(first) = header.parts.into_iter().next() {
        options.model = first;
    }
    let is_leased = options.lease_fd.is_some();
    let guard = Arc::new(Guard::new(Vec::new(), options.api_key.as_deref()));
    let listeners = listeners(&options.listen, &guard)?;
    let (queue, incoming) = queue::queue();
    let load = watch::Sender::new(Load::Loading(0.0));
    let service = routes::Routes::new(queue, load.subscribe(), &options, shutdown.clone());
    let mut ended = start_engine(options, load, incoming, shutdown.clone())?;
    let serving = listeners.into_iter().map(|listener| {
        shutdown.spawn(server::serve(listener, service.clone(), guard.clone(), shutdown.clone()));
    });
    serving.for_each(drop);
    let early = tokio::select! {
        ended = &mut ended => Some(ended),
        () = shutdown.drained() => None,
    };
    if let Some(ended) = &early {
        // Whoever has started it asks how far it is, and is to hear why it could not load.
        if matches!(ended, Ok(Err(_))) && is_leased {
            tokio::select! {
                _ = tokio::time::timeout(FAILURE_HEARD_MAX, service.failure_told()) => {}
                () = shutdown.drained() => {}
            }
        }
        // The engine ended by itself: its clients have been told, nothing is left to drain.
        shutdown.drain();
    }
    shutdown.finish(DRAIN_MAX).await;
    drop(service);
    let ended = match early {
        Some(ended) => ended,
        None => ended.await,
    };
    match ended.map_err(|_| WorkerError::EngineDied)? {
        // Cancelled because it was told to stop: that is what was asked for.
        Err(EngineError::LoadCancelled(_)) => Ok(()),
        other => other.map_err(WorkerError::from),
    }
}

fn listeners(endpoints: &[Endpoint], guard: &Guard) -> Result<Vec<Listener>, WorkerError> {
    let mut listeners = Vec::new();
    for endpoint in endpoints {
        match endpoint {
            Endpoint::Tcp(text) => {
                let address = address(text)?;
                guard.may_listen(address).map_err(daemon::DaemonError::from)?;
                let listener = daemon::bind(address)?;
                if let Ok(address) = listener.local_addr() {
                    tracing::info!(%address, "listening");
                }
                listeners.push(Listener::Tcp(listener));
            }
            Endpoint::Unix(path) => {
                let failed =
                    |source| WorkerError::ListenUnix { endpoint: path.display().to_string(), source };
                listeners.push(Listener::Unix(tokio::net::UnixListener::bind(path).map_err(failed)?));
            }
            Endpoint::Inherited(fd) => {
                let failed = |source| WorkerError::Inherited { fd: *fd, source };
                let listener = process::inherited_listener(*fd).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                listeners.push(Listener::Unix(tokio::net::UnixListener::from_std(listener).map_err(failed)?));
            }
        }
    }
    Ok(listeners)
}

/// HOST:PORT without asking any name service: a listener's host is an address of this machine.
fn address(text: &str) -> Result<SocketAddr, daemon::DaemonError> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().map_err(|_| daemon::DaemonError::BadAddress(text.to_owned()))
}

/// Starts the thread that owns model, context and batch. The receiver resolves when it has ended.
fn start_engine(
    options: Options,
    load: watch::Sender<Load>,
    incoming: mpsc::Receiver<Work>,
    shutdown: Shutdown,
) -> Result<oneshot::Receiver<Result<(), EngineError>>, WorkerError> {
    let (done, ended) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let thread = move || {
        let outcome = open(&options, &load, &shutdown).map(|(scheduler, ready)| {
            load.send_replace(Load::Ready(ready));
            runtime.block_on(scheduler.run(incoming));
        });
        if let Err(error) = &outcome {
            load.send_replace(Load::Failed(Failure::new(engine_code(error), error.to_string())));
        }
        // Nobody listens if the runtime is going down already.
        let _ = done.send(outcome);
    };
    std::thread::Builder::new().name("engine".into()).spawn(thread).map_err(WorkerError::Thread)?;
    Ok(ended)
}

/// Loads the model and makes what serves it.
fn open(
    options: &Options,
    load: &watch::Sender<Load>,
    shutdown: &Shutdown,
) -> Result<(Scheduler<Llama>, Arc<Ready>), EngineError> {
    let (model, llama) = engine(options, &mut |progress| {
        loading::tell(load, progress);
        // Nobody can be served any more, so there is nothing to drain.
        !shutdown.is_draining()
    })?;
    let chat = Chat::open(model.clone(), options.chat_template.as_ref())?;
    let limits = llama.limits();
    let scheduler = Scheduler::new(llama, shutdown.token());
    let ready = Arc::new(Ready { model, chat, limits, slots: scheduler.views() });
    Ok((scheduler, ready))
}

/// The engine alone, as the options describe it.
pub fn engine(options: &Options, progress: llama::Progress<'_>) -> Result<(Arc<Model>, Llama), EngineError> {
    let gpu = ModelOptions { device: options.device, gpu_layers: options.n_gpu_layers };
    let model = Arc::new(Model::load(&options.model, &gpu, progress)?);
    let context = ContextOptions {
        sequences: options.parallel,
        context: options.context_per_slot(model.context_trained()),
        batch: options.batch_size,
        ubatch: options.ubatch_size,
        threads: options.threads,
        threads_batch: options.threads_batch,
        cache_k: options.cache_type_k,
        cache_v: options.cache_type_v,
        flash_attention: options.flash_attention,
    };
    let llama = Llama::new(model.clone(), &context)?;
    Ok((model, llama))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_load_failed_is_read_off_what_llama_cpp_logged() {
        let code = |line: &str| {
            engine_code(&EngineError::Load { path: "m".into(), log: vec![line.into(), "failed".into()] })
        };
        assert_eq!(
            code("llama_model_load: error loading model: unable to allocate CUDA0 buffer"),
            Code::InsufficientMemory
        );
        assert_eq!(
            code("llama_model_load: error loading model: read error: Input/output error"),
            Code::Internal
        );
        assert_eq!(code("error loading model: unknown model architecture: 'lolla'"), Code::InvalidModel);
    }
}
