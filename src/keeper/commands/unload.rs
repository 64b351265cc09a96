//! `rbee workers retire|shutdown|health` and `rbee stop`: ending workers, and asking whether they are well.

use crate::config::Settings;
use crate::http::client;
use crate::http::request::percent_encode;
use crate::keeper::KeeperError;
use crate::keeper::follow::Follower;
use crate::keeper::render::{Render, printable, size};
use crate::keeper::server::Server;
use crate::model::Reference;
use crate::model::names::{self, Known};
use crate::wire::fleet::{HiveInfo, WorkerInfo};
use crate::wire::job::Receipt;
use crate::wire::{Code, Failure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;

#[derive(Deserialize)]
struct Workers {
    workers: Vec<WorkerInfo>,
}

#[derive(Deserialize)]
struct Hives {
    hives: Vec<HiveInfo>,
}

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing what was stopped", error)
}

/// No new requests, and when those at work are done it stops. Ctrl-C puts it back to work.
pub async fn retire(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let server = Server::of(settings)?;
    let mut jobs = Follower::new(&server, render)?;
    let id = settings.positionals().join(" ");
    let result = jobs.run(&retirement(&server, &id), &mut |_| Ok(())).await?;
    told(render, &[result])
}

/// At once.
pub async fn shutdown(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let server = Server::of(settings)?;
    let id = settings.text("id").unwrap_or_default();
    if server.is_hive {
        let mut jobs = Follower::new(&server, render)?;
        let operation = json!({"operation": "worker_retire", "worker_id": id, "now": true});
        let result = jobs.run(&operation, &mut |_| Ok(())).await?;
        return told(render, &[result]);
    }
    let ask = || client::post("/v2/workers/shutdown", &json!({"worker_id": id}));
    let answer: Value = server.ask(ask, render).await?;
    if render.is_json() {
        return render.value(&answer).map_err(writing);
    }
    let message = answer["message"].as_str().unwrap_or("it is stopped");
    render.answer(&format!("{}\n", printable(message))).map_err(writing)
}

/// All workers of a model, in order: none is given new requests from the start.
pub async fn stop(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let server = Server::of(settings)?;
    let words = settings.positionals().join(" ");
    let workers = of_model(&server, render, &words).await?;
    let mut jobs = Follower::new(&server, render)?;
    let mut begun = VecDeque::new();
    for worker in &workers {
        match jobs.post(&retirement(&server, &worker.worker_id)).await {
            Ok(job) => begun.push_back(job),
            Err(error) => return Err(jobs.undo(begun, error).await),
        }
    }
    let (mut results, mut failed) = (Vec::new(), None);
    while let Some(job) = begun.pop_front() {
        match jobs.follow(job, &mut |_| Ok(())).await {
            Ok(result) => results.push(result),
            Err(stop) if stop.is_stop() => return Err(jobs.undo(begun, stop).await),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    told(render, &results)?;
    failed.map_or(Ok(()), Err)
}

fn retirement(server: &Server, worker_id: &str) -> Value {
    let operation = if server.is_hive { "worker_retire" } else { "active_worker_retire" };
    json!({"operation": operation, "worker_id": worker_id})
}

/// The workers that hold the model that a person means by a name.
async fn of_model(server: &Server, render: &Render, words: &str) -> Result<Vec<WorkerInfo>, KeeperError> {
    let reference = Reference::parse(words).map_err(|error| KeeperError::Refused(error.into()))?.to_string();
    let hives = match server.is_hive {
        true => Vec::new(),
        false => server.get::<Hives>("/v1/hives", render).await?.hives,
    };
    let hives: Vec<HiveInfo> = hives
        .into_iter()
        .filter(|hive| server.hive_id.as_ref().is_none_or(|name| *name == hive.name))
        .collect();
    let workers: Vec<WorkerInfo> = match server.is_hive {
        true => server.get::<Workers>("/v1/workers", render).await?.workers,
        false => hives.iter().flat_map(|hive| hive.workers.iter().cloned()).collect(),
    };
    let models = hives.iter().flat_map(|hive| &hive.model_names).map(Known::of);
    let loaded = workers.iter().map(|worker| Known { id: &worker.model, names: &[] });
    let meant = names::meant(&reference, models.chain(loaded)).first().map(|id| (*id).to_owned());
    let (found, others): (Vec<WorkerInfo>, Vec<WorkerInfo>) =
        workers.into_iter().partition(|worker| Some(&worker.model) == meant.as_ref());
    if !found.is_empty() {
        return Ok(found);
    }
    let mut loaded: Vec<&str> = others.iter().map(|worker| worker.model.as_str()).collect();
    loaded.sort_unstable();
    loaded.dedup();
    let loaded =
        if loaded.is_empty() { "none is".into() } else { format!("those are: {}", loaded.join(", ")) };
    Err(Failure::new(Code::ModelNotFound, format!("`{words}` is not loaded; {loaded}")).into())
}

fn told(render: &Render, results: &[Value]) -> Result<(), KeeperError> {
    if render.is_json() {
        return match results {
            [one] => render.value(one).map_err(writing),
            many => render.value(&json!(many)).map_err(writing),
        };
    }
    for result in results {
        let receipt: Receipt = serde_json::from_value(result["receipt"].clone()).unwrap_or_default();
        let id = printable(result["worker_id"].as_str().unwrap_or("the worker"));
        let memory = match receipt.memory_returned_bytes {
            0 => String::new(),
            bytes => format!(", {} of memory returned", size(bytes)),
        };
        render.answer(&format!("{id} is stopped{memory}\n")).map_err(writing)?;
    }
    Ok(())
}

/// Each worker is asked itself. Exits 1 where one does not answer as it should.
pub async fn health(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let server = Server::of(settings)?;
    if server.is_hive {
        return Err(KeeperError::Usage(
            "`workers health` asks a queen: give --hive a name, not an address".into(),
        ));
    }
    let node =
        server.hive_id.as_ref().map_or_else(String::new, |name| format!("?node={}", percent_encode(name)));
    let health: Value = server.get(&format!("/v2/workers/health{node}"), render).await?;
    if render.is_json() {
        render.value(&health).map_err(writing)?;
    } else {
        let text = |worker: &Value, key: &str| worker[key].as_str().unwrap_or_default().to_owned();
        let row = |worker: &Value| {
            let ready = if worker["ready"].as_bool() == Some(true) { "yes" } else { "no" };
            vec![text(worker, "worker_id"), text(worker, "node"), text(worker, "state"), ready.to_owned()]
        };
        let workers = health["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
        if workers.is_empty() {
            render.say("no worker runs");
        }
        render
            .table(&["worker", "hive", "state", "answers"], workers.iter().map(row).collect())
            .map_err(writing)?;
    }
    if health["status"] == "ok" { Ok(()) } else { Err(KeeperError::Down) }
}
