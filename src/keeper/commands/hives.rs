//! `rbee hive list|get|drain`: the machines of the fleet.

use crate::config::Settings;
use crate::http::request::percent_encode;
use crate::keeper::KeeperError;
use crate::keeper::commands::{status::hive_row, workers};
use crate::keeper::follow::Follower;
use crate::keeper::render::Render;
use crate::keeper::server::Server;
use crate::wire::fleet::{HiveInfo, WorkerInfo};
use crate::wire::operation::{HiveOperation, QueenOperation};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Hives {
    hives: Vec<HiveInfo>,
}

const COLUMNS: &[&str] = &["hive", "state", "version", "up", "devices", "models"];

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing the list", error)
}

pub async fn list(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let hives = Server::of(settings)?.get::<Hives>("/v1/hives", render).await?.hives;
    if render.is_json() {
        return render.value(&json!(hives)).map_err(writing);
    }
    render.table(COLUMNS, hives.iter().map(hive_row).collect()).map_err(writing)
}

pub async fn get(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let name = percent_encode(&settings.positionals().join(" "));
    let hive: HiveInfo = Server::of(settings)?.get(&format!("/v1/hives/{name}"), render).await?;
    if render.is_json() {
        return render.value(&json!(hive)).map_err(writing);
    }
    render.table(COLUMNS, vec![hive_row(&hive)]).map_err(writing)?;
    let running: Vec<&WorkerInfo> = hive.workers.iter().collect();
    if running.is_empty() {
        return Ok(());
    }
    render.answer("\n").and_then(|()| workers::table(render, &running)).map_err(writing)
}

pub async fn drain(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    // The name says which; a hive that is asked for by habit (RBEE_HIVE) must not be drained in its place.
    let server = Server { hive_id: None, ..Server::of(settings)? };
    let (name, undo) = (settings.positionals().join(" "), settings.on("undo"));
    let operation = match server.is_hive {
        // Asked directly: it is the one that is meant.
        true => json!(HiveOperation::HiveDrain { undo }),
        false => json!(QueenOperation::HiveDrain { name, undo }),
    };
    let drained = Follower::new(&server, render, settings.duration("timeout"))?
        .run(&operation, &mut |_| Ok(()))
        .await?;
    if render.is_json() { render.value(&drained).map_err(writing) } else { Ok(()) }
}
