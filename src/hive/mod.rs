//! The hive: one a machine. It owns that machine's devices, models and worker processes, serves them on its own address and
//! on the links it dials, and runs without a queen, too.

mod builds;
mod choose;
mod devices;
mod drain;
mod ends;
mod engines;
mod foreign;
mod handover;
mod heartbeats;
mod launching;
mod link;
mod liveness;
mod logs;
mod metrics;
mod models;
mod needs;
mod operations;
mod patience;
mod preflight;
mod processes;
pub mod restarts;
mod retire;
mod routes;
mod service;
mod speed;
mod supervise;
mod workers;

use crate::catalog::Catalog;
use crate::http::client::Target;
use crate::http::link::Hello;
use crate::http::metrics::Requests;
use crate::job::Jobs;
use crate::keys::Passes;
use crate::model::Store;
use crate::shutdown::Shutdown;
use crate::wire::fleet::{Capabilities, Containment, Device, EngineInfo, Info, now_ms};
use crate::wire::{PROTOCOL, VERSION};
use crate::{pkgbuild, process};
use builds::Builds;
use engines::{Engine, Engines};
use needs::Needs;
use speed::Speeds;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use workers::Workers;

pub use launching::environment as worker_environment;
pub use routes::{Routes, TABLE};
pub use workers::{LOADING_SILENCE_MAX, Settings as WorkerSettings, WORKER_SILENCE_MAX};

/// What a hive is told at its start.
#[derive(Debug, Clone)]
pub struct Options {
    pub name: String,
    pub base_url: String,
    /// Where its jobs' journals lie.
    pub journals: std::path::PathBuf,
    pub queens: Vec<Target>,
    /// What it shows them.
    pub passes: Arc<Passes>,
    pub workers: WorkerSettings,
    /// The most of the machine's own memory that workers may take, where a person has set a limit.
    pub memory_max: Option<u64>,
    /// Installed engines, a folder each.
    pub engines: PathBuf,
    pub builds: pkgbuild::Places,
    pub catalog: Catalog,
}

pub struct Hive {
    options: Options,
    /// This machine's own id, whatever it is called.
    node: String,
    workers: Arc<Workers>,
    engines: Engines,
    builds: Arc<Builds>,
    catalog: Arc<Catalog>,
    store: Store,
    jobs: Jobs,
    /// Wakes telemetry when a model came or went.
    models_changed: watch::Sender<()>,
    /// Out of service by somebody's wish; see `drain`.
    drained: watch::Sender<bool>,
    /// Wakes it when an engine was installed or removed.
    engines_changed: watch::Sender<()>,
    devices_seen: Mutex<Vec<Device>>,
    needs: Arc<Needs>,
    speeds: Arc<Speeds>,
    started_at: u64,
    requests: Requests,
    shutdown: Shutdown,
}

impl Hive {
    /// Takes over what an earlier hive left running, and starts dialling its queens.
    pub async fn start(options: Options, node: String, store: Store, shutdown: Shutdown) -> Arc<Self> {
        let workers = Workers::new(&options.name, options.workers.clone(), shutdown.clone());
        let engines = Engines::new(options.engines.clone());
        workers.adopt(&engines.all()).await;
        let builds = Builds::new(options.builds.clone(), shutdown.clone()).await;
        let hive = Arc::new(Hive {
            node,
            workers,
            engines,
            builds: Arc::new(builds),
            catalog: Arc::new(options.catalog.clone()),
            store,
            jobs: Jobs::open(options.journals.clone(), shutdown.clone()),
            models_changed: watch::Sender::new(()),
            drained: watch::Sender::new(false),
            engines_changed: watch::Sender::new(()),
            devices_seen: Mutex::default(),
            needs: Arc::default(),
            speeds: Arc::default(),
            started_at: now_ms(),
            requests: Requests::default(),
            shutdown,
            options,
        });
        // What links tell first.
        hive.devices().await;
        for (number, queen) in hive.options.queens.clone().into_iter().enumerate() {
            hive.shutdown.spawn(link::keep(hive.clone(), queen, number == 0));
        }
        hive
    }

    /// Its end of a link inside this process.
    pub async fn serve_link(
        self: &Arc<Self>,
        io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    ) {
        if let Err(error) = crate::http::link::serve(io, Routes(self.clone()), self.shutdown.clone()).await {
            tracing::warn!(%error, "the link inside the process ended");
        }
    }

    pub fn hello(&self) -> Hello {
        Hello::ours(&self.options.name, &self.node)
    }

    fn info(&self) -> Info {
        Info {
            role: "hive".into(),
            name: self.options.name.clone(),
            base_url: self.options.base_url.clone(),
            version: VERSION.into(),
            protocol: PROTOCOL,
            features: vec!["jobs".into(), "link".into(), devices::BUILT_IN.into()],
            build: env!("RBEE_COMMIT").into(),
            pid: std::process::id(),
            started_at: self.started_at,
        }
    }

    /// What there is to compute with, and what of its memory is free. What workers that load were promised is taken off by
    /// whoever plans with it.
    async fn devices(&self) -> Vec<Device> {
        let mut devices = self.machine().await;
        let workers = self.workers.infos().into_iter();
        let up: Vec<_> = workers.filter(|worker| !worker.state.is_coming()).collect();
        devices::keep_to_its_part(&mut devices, &up);
        if let Some(max) = self.options.memory_max {
            devices::limit(&mut devices, max, up.into_iter());
        }
        self.devices_seen.lock().expect("no holder panics").clone_from(&devices);
        devices
    }

    /// The same, and of its memory what a new worker could have.
    async fn room(&self) -> Vec<Device> {
        // Looked at first: what they take meanwhile is counted twice then, and not never.
        let coming = self.workers.coming();
        let mut devices = self.machine().await;
        for (worker, resident) in &coming {
            let Some(device) = devices.iter_mut().find(|device| device.id == worker.device) else { continue };
            // What a worker has of the machine's memory is free no more. Of a graphics card's it is not known.
            let taken = if devices::is_own(device) { *resident } else { 0 };
            let to_come = worker.memory_bytes.saturating_sub(taken);
            device.memory_free_bytes = device.memory_free_bytes.saturating_sub(to_come);
        }
        devices::keep_to_its_part(&mut devices, &self.workers.infos());
        if let Some(max) = self.options.memory_max {
            devices::limit(&mut devices, max, self.workers.infos().into_iter());
        }
        devices
    }

    async fn machine(&self) -> Vec<Device> {
        let pids = self.workers.infos().into_iter().filter_map(|worker| worker.pid);
        let mapped = pids.filter_map(process::mapped_bytes).sum();
        devices::devices(mapped, &self.devices_seen()).await
    }

    /// As they were found the last time.
    fn devices_seen(&self) -> Vec<Device> {
        self.devices_seen.lock().expect("no holder panics").clone()
    }

    /// The engine inside, then those installed.
    fn engine_infos(&self) -> Vec<EngineInfo> {
        let told = |engine: Engine| EngineInfo {
            foreign: engine.is_foreign(),
            id: engine.id,
            kind: engine.kind,
            version: engine.version,
        };
        self.engines.all().into_iter().map(told).collect()
    }

    async fn capabilities(&self) -> Capabilities {
        // Its first look tries every rung.
        let ladder = tokio::task::spawn_blocking(process::ladder).await.unwrap_or_else(|_| process::ladder());
        // As far as the operator lets it.
        let most = self.options.workers.rung_max.as_deref();
        let held =
            |best: &str| most.map_or_else(|| best.to_owned(), |most| format!("{best}, at most {most}"));
        Capabilities {
            devices: self.devices().await,
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            cpu_features: devices::cpu_features(),
            engines: self.engine_infos(),
            containment: Containment {
                workers: held(&ladder.best_for_workers),
                builds: held(&ladder.best_for_builds),
                unavailable: ladder
                    .unavailable
                    .iter()
                    .map(|missing| format!("{}: {}", missing.rung, missing.reason))
                    .collect(),
            },
        }
    }
}
