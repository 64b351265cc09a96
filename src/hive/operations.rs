//! What a hive's jobs do, one function an operation.

use crate::hive::choose::{choose, unused_gpu};
use crate::hive::preflight::{self, Plan};
use crate::hive::workers::{Planned, STOP_GRACE, Spawned};
use crate::hive::{Hive, drain, models, processes, retire};
use crate::job::{Context, Outcome};
use crate::model::Stored;
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::operation::{HiveOperation, WorkerSpawn};
use crate::wire::{Code, Failure, VERSION};
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

pub async fn run(hive: Arc<Hive>, operation: HiveOperation, job: Context) -> Outcome {
    match operation {
        HiveOperation::WorkerSpawn(want) => worker_spawn(&hive, want, &job).await,
        HiveOperation::WorkerStop { worker_id, if_idle } => {
            worker_stop(&hive, &worker_id, if_idle, &job).await
        }
        HiveOperation::WorkerRetire { worker_id, now } => retire::retire(&hive, &worker_id, now, &job).await,
        HiveOperation::WorkerProcessList => Outcome::Done(json!({ "processes": processes::list(&hive) })),
        HiveOperation::WorkerProcessGet { pid } => {
            processes::get(&hive, pid).map(|process| json!(process)).into()
        }
        HiveOperation::WorkerProcessDelete { pid } => process_delete(&hive, pid, &job).await,
        HiveOperation::WorkerCatalogList => {
            let listing = job.token().run_until_cancelled(hive.catalog.list()).await;
            let Some(listing) = listing else { return Outcome::Cancelled(Receipt::default()) };
            if let Some(warning) = &listing.warning {
                job.emit(JobEvent::warn("catalog", warning.message.clone()));
            }
            Outcome::Done(
                json!({"workers": listing.entries, "source": listing.source, "warning": listing.warning}),
            )
        }
        HiveOperation::WorkerCatalogGet { worker_id } => {
            let recipe = job.token().run_until_cancelled(hive.catalog.get(&worker_id)).await;
            let Some(recipe) = recipe else { return Outcome::Cancelled(Receipt::default()) };
            recipe.map(|recipe| json!(recipe.entry)).into()
        }
        HiveOperation::WorkerListInstalled => Outcome::Done(json!({ "workers": hive.engines.installed() })),
        HiveOperation::WorkerInstalledGet { worker_id } => {
            hive.engines.find(&worker_id).map(|worker| json!(worker)).into()
        }
        HiveOperation::WorkerInstall { worker_id } => {
            let outcome = hive.builds.install(&hive.catalog, &hive.engines, &worker_id, &job).await;
            hive.engines_changed.send_replace(());
            outcome
        }
        HiveOperation::WorkerRemove { worker_id } => worker_remove(&hive, &worker_id, &job).await,
        HiveOperation::ModelDownload { model } => models::download(&hive, &model, &job).await,
        HiveOperation::ModelList => Outcome::Done(models::list(&hive)),
        HiveOperation::ModelGet { id } => models::get(&hive, &id).into(),
        HiveOperation::ModelRemove { id } => models::remove(&hive, &id, &job).await,
        HiveOperation::ModelVerify { id } => models::verify(&hive, id.as_deref(), &job).await,
        HiveOperation::ModelPrune { apply } => models::prune(&hive, apply).await,
        HiveOperation::ModelAliasList => Outcome::Done(json!({ "aliases": hive.store.aliases() })),
        HiveOperation::ModelAliasSet { name, model } => models::set_alias(&hive, &name, &model).into(),
        HiveOperation::ModelAliasRemove { name } => models::remove_alias(&hive, &name).into(),
        HiveOperation::HiveDrain { undo } => drain::drain(&hive, undo, &job).await,
        HiveOperation::Status => Outcome::Done(json!({
            "hive": hive.info(),
            "capabilities": hive.capabilities().await,
            "workers": hive.workers.infos(),
            "models": models::ids(&hive),
        })),
        HiveOperation::HiveCheck => Outcome::Done(json!({"ok": true, "version": VERSION})),
    }
}

async fn worker_spawn(hive: &Arc<Hive>, mut want: WorkerSpawn, job: &Context) -> Outcome {
    if let Err(failure) = hive.takes_work() {
        return Outcome::Failed(failure);
    }
    let started = Instant::now();
    let cancelled =
        |receipt| Outcome::Cancelled(Receipt { ms: started.elapsed().as_millis() as u64, ..receipt });
    // The turn is held until the worker is known to use the model, so that nobody removes it in between.
    let (stored, turn) = match models::ready(hive, &want.model, job).await {
        Ok(Some(ready)) => ready,
        Ok(None) => return cancelled(Receipt::default()),
        Err(failure) => return Outcome::Failed(failure),
    };
    want.model.clone_from(&stored.info.id);
    if want.device.as_deref().is_some_and(|word| word.parse::<usize>().is_ok()) {
        // Which one that is decides whether a worker is there already.
        let devices = hive.devices().await;
        match choose(&want, &hive.engines.all(), &devices) {
            Ok((_, device)) => want.device = Some(device.id.clone()),
            Err(failure) => return Outcome::Failed(failure),
        }
    }
    let id = match hive.workers.matching(&want) {
        Some(info) => info.worker_id,
        None => match start(hive, &want, &stored, job).await {
            Ok(id) => id,
            Err(failure) => return Outcome::Failed(failure),
        },
    };
    drop(turn);
    if want.pin
        && let Err(failure) = hive.workers.pin(&id).await
    {
        return Outcome::Failed(failure);
    }
    let ready = hive.workers.ready(&id, |event| job.emit(event), job.token()).await;
    match ready {
        Ok(Spawned::Ready(info)) => {
            job.narrate(
                "ready",
                format!("worker {} serves {} on {}", info.worker_id, info.model, info.device),
            );
            Outcome::Done(json!(info))
        }
        Ok(Spawned::Cancelled(receipt)) => cancelled(receipt),
        // One that was stopped because the hive drains is to be looked for elsewhere.
        Err(failure) if failure.code == Code::WorkerLost && failure.details.is_null() => {
            Outcome::Failed(hive.takes_work().err().unwrap_or(failure))
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
    let devices = hive.room().await;
    let engines = hive.engines.all();
    let (engine, device) = choose(want, &engines, &devices)?;
    let plan: Plan = preflight::plan(want, &stored.header, device)?;
    if let Some(lowered) = &plan.lowered {
        job.emit(JobEvent::warn("memory", lowered.clone()));
    }
    if let Some(crash) = hive.workers.ends.last_crash(&stored.info.id) {
        job.emit(JobEvent::warn("crash", crash.warning()));
    }
    if let Some(gpu) = unused_gpu(engine, &engines, &devices) {
        job.emit(JobEvent::warn(
            "device",
            format!(
                "{} ({}) is not used: there is no engine for it yet; build one with `rbee worker install llm-worker-rbee-{}`",
                gpu.id, gpu.name, gpu.device_type
            ),
        ));
    }
    job.narrate(
        "spawn",
        format!(
            "starting a worker ({}) for {} on {}: {} slots of {} tokens, about {} MiB",
            engine.id,
            stored.info.id,
            device.id,
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
            engine: engine.clone(),
            device: device.id.clone(),
            slots: plan.slots,
            ctx: plan.ctx,
            memory_bytes: plan.memory_bytes,
        },
        // It may have waited for its model's turn, and a drain may have begun and counted the workers meanwhile.
        || hive.takes_work(),
    )
}

async fn worker_stop(hive: &Arc<Hive>, id: &str, if_idle: bool, job: &Context) -> Outcome {
    if if_idle && let Err(failure) = hive.workers.give_up(id) {
        return Outcome::Failed(failure);
    }
    job.narrate("stop", format!("stopping worker {id}"));
    let stopped = hive.workers.stop(id, STOP_GRACE).await;
    stopped.map(|receipt| json!({"worker_id": id, "receipt": receipt})).into()
}

async fn process_delete(hive: &Arc<Hive>, pid: i32, job: &Context) -> Outcome {
    job.narrate("stop", format!("ending process {pid} and all that descends from it"));
    let ended = processes::delete(hive, pid, STOP_GRACE).await;
    ended
        .map(|(process, receipt)| json!({"pid": pid, "worker_id": process.worker_id, "receipt": receipt}))
        .into()
}

async fn worker_remove(hive: &Arc<Hive>, word: &str, job: &Context) -> Outcome {
    let installed = match hive.engines.find(word) {
        Ok(installed) => installed,
        Err(failure) => return Outcome::Failed(failure),
    };
    let id = installed.worker_id;
    let users = hive.workers.infos().into_iter().filter(|worker| worker.worker == id);
    let users: Vec<String> = users.map(|worker| worker.worker_id).collect();
    if !users.is_empty() {
        return Outcome::Failed(
            Failure::new(Code::Conflict, format!("{id} is in use by {}; stop that first", users.join(", ")))
                .with(json!({ "in_use_by": users })),
        );
    }
    let engines = hive.engines.clone();
    let removed = id.clone();
    let removal = tokio::task::spawn_blocking(move || engines.remove(&removed)).await;
    let removal = removal.unwrap_or_else(|error| Err(Failure::internal(&error)));
    hive.engines_changed.send_replace(());
    if let Ok(bytes) = &removal {
        job.narrate("remove", format!("{id} is removed, {} MiB freed", bytes.div_ceil(1 << 20)));
    }
    removal.map(|bytes| json!({"id": id, "bytes_freed": bytes})).into()
}
