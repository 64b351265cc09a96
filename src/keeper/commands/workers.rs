//! `rbee workers …` and `rbee worker spawn`: what runs now.

use crate::config::Settings;
use crate::http::request::percent_encode;
use crate::keeper::KeeperError;
use crate::keeper::follow::Follower;
use crate::keeper::render::{Render, ago, printable, size};
use crate::keeper::server::Server;
use crate::model::Reference;
use crate::wire::fleet::{HiveInfo, WorkerInfo};
use crate::wire::operation::{HiveOperation, WorkerSpawn};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Workers {
    workers: Vec<WorkerInfo>,
}

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing the list", error)
}

pub fn table(render: &Render, workers: &[&WorkerInfo]) -> std::io::Result<()> {
    let row = |worker: &&WorkerInfo| {
        vec![
            worker.worker_id.clone(),
            worker.hive.clone(),
            worker.state.name().to_owned(),
            worker.model.clone(),
            worker.device.clone(),
            format!("{}/{}", worker.slots_busy, worker.slots_total),
            worker.ctx.to_string(),
            size(worker.memory_bytes),
            ago(worker.started_at),
        ]
    };
    let columns = &["worker", "hive", "state", "model", "device", "slots", "ctx", "memory", "up"];
    render.table(columns, workers.iter().map(row).collect())
}

pub async fn list(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let server = Server::of(settings)?;
    let workers = match &server.hive_id {
        Some(name) => {
            server.get::<HiveInfo>(&format!("/v1/hives/{}", percent_encode(name)), render).await?.workers
        }
        None => server.get::<Workers>("/v1/workers", render).await?.workers,
    };
    if render.is_json() {
        return render.value(&json!(workers)).map_err(writing);
    }
    table(render, &workers.iter().collect::<Vec<_>>()).map_err(writing)
}

pub async fn get(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let id = percent_encode(&settings.positionals().join(" "));
    let facts: Value = Server::of(settings)?.get(&format!("/v1/workers/{id}"), render).await?;
    if render.is_json() {
        return render.value(&facts).map_err(writing);
    }
    let worker =
        WorkerInfo::deserialize(&facts).map_err(|error| KeeperError::local("reading the worker", error))?;
    table(render, &[&worker]).map_err(writing)?;
    for end in facts["ends"].as_array().into_iter().flatten() {
        let (at, reason) =
            (end["at"].as_u64().unwrap_or_default(), end["reason"].as_str().unwrap_or_default());
        let restarted = if end["restart"].is_null() { "" } else { ", and was restarted" };
        let line = format!("crashed {} ago{restarted}: {}\n", ago(at), printable(reason));
        render.answer(&line).map_err(writing)?;
    }
    Ok(())
}

pub async fn spawn(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let name = settings.text("model").unwrap_or_default();
    let model = Reference::parse(name).map_err(|error| KeeperError::Refused(error.into()))?.to_string();
    let server = Server::of(settings)?;
    let operation = HiveOperation::WorkerSpawn(WorkerSpawn {
        model,
        worker: settings.text("worker").map(str::to_owned),
        device: settings.text("device").map(str::to_owned),
        slots: settings.number("slots"),
        ctx: settings.number("ctx"),
        pin: settings.on("pin"),
    });
    let mut jobs = Follower::new(&server, render)?;
    let worker = jobs.run(&json!(operation), &mut |_| Ok(())).await?;
    if render.is_json() {
        return render.value(&worker).map_err(writing);
    }
    let worker: WorkerInfo =
        serde_json::from_value(worker).map_err(|error| KeeperError::local("reading the worker", error))?;
    table(render, &[&worker]).map_err(writing)
}
