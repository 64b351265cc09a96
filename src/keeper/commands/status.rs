//! `rbee status`: the fleet on one screen.

use crate::config::Settings;
use crate::http::request::percent_encode;
use crate::keeper::KeeperError;
use crate::keeper::commands::workers;
use crate::keeper::render::{Render, ago, size};
use crate::keeper::server::Server;
use crate::wire::fleet::{Capabilities, HiveInfo, HiveState, Info, WorkerInfo};
use crate::wire::job::JobRecord;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Hives {
    hives: Vec<HiveInfo>,
}

#[derive(Deserialize)]
struct Workers {
    workers: Vec<WorkerInfo>,
}

#[derive(Deserialize)]
struct Jobs {
    jobs: Vec<JobRecord>,
}

pub async fn status(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let server = Server::of(settings)?;
    let info: Info = server.get("/v1/info", render).await?;
    let mut jobs = server.get::<Jobs>("/v1/jobs", render).await?.jobs;
    jobs.retain(|job| !job.state.has_ended());
    let hives =
        if server.is_hive { Vec::new() } else { server.get::<Hives>("/v1/hives", render).await?.hives };
    let nodes = capabilities(&server, &hives, render).await;
    let workers = match server.is_hive {
        true => server.get::<Workers>("/v1/workers", render).await?.workers,
        false => hives.iter().flat_map(|hive| hive.workers.clone()).collect(),
    };
    let writing = |error: std::io::Error| KeeperError::local("writing the status", error);
    if render.is_json() {
        let value = match server.is_hive {
            true => json!({"hive": info, "workers": workers, "jobs": jobs, "nodes": nodes}),
            false => json!({"queen": info, "hives": hives, "jobs": jobs, "nodes": nodes}),
        };
        return render.value(&value).map_err(writing);
    }
    let up = ago(info.started_at);
    let mut text =
        format!("{} {} at {}  rbee {}  up {up}\n", info.role, info.name, info.base_url, info.version);
    if !server.is_hive {
        text += &format!("OpenAI clients: OPENAI_BASE_URL={}/v1\n", info.base_url);
    }
    render.answer(&text).map_err(writing)?;
    if !server.is_hive && hives.is_empty() {
        render.answer("no hive is connected; start one with `rbee hive serve`\n").map_err(writing)?;
    }
    if !hives.is_empty() {
        render.answer("\n").map_err(writing)?;
        render
            .table(
                &["hive", "state", "version", "up", "devices", "models"],
                hives.iter().map(hive_row).collect(),
            )
            .map_err(writing)?;
    }
    if !nodes.is_empty() {
        render.answer("\n").map_err(writing)?;
        let columns = &["hive", "engines", "workers held by", "builds held by"];
        render.table(columns, nodes.iter().map(node_row).collect()).map_err(writing)?;
    }
    if !workers.is_empty() {
        render.answer("\n").map_err(writing)?;
        workers::table(render, &workers.iter().collect::<Vec<_>>()).map_err(writing)?;
    }
    if !jobs.is_empty() {
        render.answer("\n").map_err(writing)?;
        let rows = jobs.iter().map(|job| {
            let state = job.state.name().to_owned();
            vec![job.job_id.to_string(), job.operation.clone(), state, ago(job.created_at)]
        });
        render.table(&["job", "operation", "state", "for"], rows.collect()).map_err(writing)?;
    }
    Ok(())
}

/// What each node can do, by its hive's name. One that does not answer is left out: the list of hives tells its state.
async fn capabilities(
    server: &Server,
    hives: &[HiveInfo],
    render: &Render,
) -> BTreeMap<String, Capabilities> {
    let mut nodes = BTreeMap::new();
    let online = hives.iter().filter(|hive| hive.state == HiveState::Online);
    let mut places: Vec<(String, String)> = online
        .map(|hive| (hive.name.clone(), format!("/v1/hives/{}/v1/capabilities", percent_encode(&hive.name))))
        .collect();
    if server.is_hive {
        places.push(("here".into(), "/v1/capabilities".into()));
    }
    for (name, path) in places {
        if let Ok(node) = server.get::<Capabilities>(&path, render).await {
            nodes.insert(name, node);
        }
    }
    nodes
}

fn node_row((name, node): (&String, &Capabilities)) -> Vec<String> {
    let engines = node.engines.iter().map(|engine| format!("{} {}", engine.id, engine.version));
    vec![
        name.clone(),
        engines.collect::<Vec<_>>().join(", "),
        node.containment.workers.clone(),
        node.containment.builds.clone(),
    ]
}

pub fn hive_row(hive: &HiveInfo) -> Vec<String> {
    let state = serde_json::to_value(hive.state).unwrap_or_default();
    let devices = hive.devices.iter().map(|device| {
        format!("{} {} free of {}", device.id, size(device.memory_free_bytes), size(device.memory_bytes))
    });
    vec![
        hive.name.clone(),
        state.as_str().unwrap_or_default().to_owned(),
        hive.version.clone(),
        ago(hive.connected_at),
        devices.collect::<Vec<_>>().join(", "),
        hive.models.join(", "),
    ]
}
