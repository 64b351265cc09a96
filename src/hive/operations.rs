//! What a hive's jobs do, one function an operation.

use crate::hive::preflight::{self, Plan};
use crate::hive::workers::{Planned, Spawned};
use crate::hive::{Hive, devices};
use crate::job::{Context, Outcome};
use crate::model::{Fetched, Reference, Stored};
use crate::process;
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::operation::{HiveOperation, WorkerSpawn};
use crate::wire::{Code, Failure, VERSION};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long requests at work may take when their worker is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

pub async fn run(hive: Arc<Hive>, operation: HiveOperation, job: Context) -> Outcome {
    match operation {
        HiveOperation::WorkerSpawn(want) => worker_spawn(&hive, want, &job).await,
        HiveOperation::WorkerStop { worker_id } => worker_stop(&hive, &worker_id, &job).await,
        HiveOperation::WorkerProcessList => Outcome::Done(processes(&hive)),
        HiveOperation::WorkerCatalogList
        | HiveOperation::WorkerCatalogGet { .. }
        | HiveOperation::WorkerListInstalled
        | HiveOperation::WorkerInstalledGet { .. }
        | HiveOperation::WorkerInstall { .. }
        | HiveOperation::WorkerRemove { .. }
        | HiveOperation::WorkerProcessGet { .. }
        | HiveOperation::WorkerProcessDelete { .. } => {
            Outcome::Failed(Failure::invalid("this hive does not know the operation yet"))
        }
        HiveOperation::ModelDownload { model } => model_download(&hive, &model, &job).await,
        HiveOperation::ModelList => {
            let models: Vec<Value> =
                hive.store.list().into_iter().map(|model| hive.with_users(model)).collect();
            Outcome::Done(json!({ "models": models }))
        }
        HiveOperation::ModelGet { id } => find(&hive, &id).map(|stored| hive.with_users(stored.info)).into(),
        HiveOperation::Status => Outcome::Done(json!({
            "hive": hive.info(),
            "capabilities": devices::capabilities().await,
            "workers": hive.workers.infos(),
            "models": hive.model_names(),
        })),
        HiveOperation::HiveCheck => Outcome::Done(json!({"ok": true, "version": VERSION})),
    }
}

async fn worker_spawn(hive: &Arc<Hive>, mut want: WorkerSpawn, job: &Context) -> Outcome {
    let started = Instant::now();
    let stored = match find(hive, &want.model) {
        Ok(stored) => stored,
        Err(failure) => return Outcome::Failed(failure),
    };
    want.model.clone_from(&stored.info.id);
    let id = match hive.workers.matching(&want) {
        Some(info) => info.worker_id,
        None => match start(hive, &want, &stored, job).await {
            Ok(id) => id,
            Err(failure) => return Outcome::Failed(failure),
        },
    };
    let ready = hive.workers.ready(&id, |event| job.emit(event), job.token()).await;
    match ready {
        Ok(Spawned::Ready(info)) => {
            job.narrate(
                "ready",
                format!("worker {} serves {} on {}", info.worker_id, info.model, info.device),
            );
            Outcome::Done(json!(info))
        }
        Ok(Spawned::Cancelled(receipt)) => {
            Outcome::Cancelled(Receipt { ms: started.elapsed().as_millis() as u64, ..receipt })
        }
        Err(failure) => Outcome::Failed(failure),
    }
}

async fn start(
    hive: &Arc<Hive>,
    want: &WorkerSpawn,
    stored: &Stored,
    job: &Context,
) -> Result<String, Failure> {
    let mut devices = devices::devices().await;
    let promised = hive.workers.memory_promised();
    for device in devices.iter_mut().filter(|device| device.device_type == devices::BUILT_IN) {
        device.memory_free_bytes = device.memory_free_bytes.saturating_sub(promised);
    }
    let plan: Plan = preflight::plan(want, &stored.header, &devices, devices::BUILT_IN)?;
    if let Some(lowered) = &plan.lowered {
        job.emit(JobEvent::warn("memory", lowered.clone()));
    }
    let gpu = devices.iter().find(|device| device.device_type != "cpu");
    if let Some(gpu) = gpu.filter(|_| devices::BUILT_IN == "cpu") {
        job.emit(JobEvent::warn(
            "device",
            format!("{} ({}) is not used: this binary has the cpu engine inside; build one for it with --features {}", gpu.id, gpu.name, gpu.device_type),
        ));
    }
    job.narrate(
        "spawn",
        format!(
            "starting a worker for {} on {}: {} slots of {} tokens, about {} MiB",
            stored.info.id,
            plan.device,
            plan.slots,
            plan.ctx,
            plan.memory_bytes >> 20
        ),
    );
    hive.workers.spawn(
        want,
        Planned {
            model: stored.info.id.clone(),
            path: stored.path.clone(),
            worker: plan.worker,
            device: plan.device,
            slots: plan.slots,
            ctx: plan.ctx,
            memory_bytes: plan.memory_bytes,
        },
    )
}

async fn worker_stop(hive: &Arc<Hive>, id: &str, job: &Context) -> Outcome {
    job.narrate("stop", format!("stopping worker {id}"));
    let stopped = hive.workers.stop(id, STOP_GRACE).await;
    stopped.map(|receipt| json!({"worker_id": id, "receipt": receipt})).into()
}

fn processes(hive: &Hive) -> Value {
    let processes: Vec<Value> = hive
        .workers
        .infos()
        .into_iter()
        .filter_map(|worker| {
            let pid = worker.pid?;
            let kib = process::memory_bytes(pid).unwrap_or(0) >> 10;
            Some(json!({"pid": pid, "worker_id": worker.worker_id, "command": format!("worker {}", worker.model),
                "memory_kb": kib, "started_at": worker.started_at}))
        })
        .collect();
    json!({ "processes": processes })
}

async fn model_download(hive: &Arc<Hive>, model: &str, job: &Context) -> Outcome {
    let started = Instant::now();
    let reference = match Reference::parse(model) {
        Ok(reference) => reference,
        Err(error) => return Outcome::Failed(error.into()),
    };
    let fetched = hive.store.fetch(&reference, &|event| job.emit(event), job.token()).await;
    match fetched {
        Ok(Fetched::Stored(stored)) => {
            hive.models_changed.send_replace(());
            Outcome::Done(hive.with_users(stored.info))
        }
        Ok(Fetched::Cancelled(receipt)) => {
            Outcome::Cancelled(Receipt { ms: started.elapsed().as_millis() as u64, ..receipt })
        }
        Err(failure) => Outcome::Failed(failure),
    }
}

/// A model of this node, by whatever a person calls it.
fn find(hive: &Hive, name: &str) -> Result<Stored, Failure> {
    let reference = Reference::parse(name)?;
    hive.store.find(&reference)?.ok_or_else(|| {
        let names = hive.model_names();
        let known = if names.is_empty() {
            "there is none yet".into()
        } else {
            format!("there are: {}", names.join(", "))
        };
        Failure::new(
            Code::ModelNotFound,
            format!("this node has no model `{name}`; {known}. Fetch it with `rbee model download {name}`"),
        )
    })
}
