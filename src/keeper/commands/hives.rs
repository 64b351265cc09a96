//! `rbee hive list|get|drain`: the machines of the fleet.

use crate::config::Settings;
use crate::http::request::percent_encode;
use crate::keeper::KeeperError;
use crate::keeper::commands::{status::hive_row, workers};
use crate::keeper::follow::Follower;
use crate::keeper::remote::{self, Node};
use crate::keeper::render::{Render, ago};
use crate::keeper::server::Server;
use crate::wire::fleet::{HiveInfo, Info, WorkerInfo};
use crate::wire::operation::{HiveOperation, QueenOperation};
use crate::wire::{Code, Failure};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Hives {
    hives: Vec<HiveInfo>,
}

const COLUMNS: &[&str] = &["hive", "host", "state", "last seen", "version", "devices", "workers"];
/// A hive that was installed from here and is not linked.
const AWAY: &str = "away";

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing the list", error)
}

pub async fn list(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let hives = Server::of(settings)?.get::<Hives>("/v1/hives", render).await?.hives;
    let nodes = remote::nodes(settings)?.all();
    let is_away = |node: &&Node| hives.iter().all(|hive| hive.name != node.name);
    let away: Vec<&Node> = nodes.iter().filter(is_away).collect();
    if render.is_json() {
        let linked = hives.iter().map(|hive| {
            let mut told = json!(hive);
            told["host"] = host(hive, &nodes).into();
            told
        });
        let away = away.iter().map(|node| {
            let (host, version) = (&node.address.destination, &node.version);
            json!({"name": node.name, "host": host, "state": AWAY, "version": version, "devices": [], "workers": [], "models": []})
        });
        return render.value(&linked.chain(away).collect()).map_err(writing);
    }
    let mut rows: Vec<Vec<String>> = hives.iter().map(|hive| row(hive, &nodes)).collect();
    for node in away {
        let (host, version) = (node.address.destination.clone(), node.version.clone());
        let unknown = String::new;
        rows.push(vec![node.name.clone(), host, AWAY.into(), unknown(), version, unknown(), unknown()]);
    }
    render.table(COLUMNS, rows).map_err(writing)
}

fn row(hive: &HiveInfo, nodes: &[Node]) -> Vec<String> {
    // As status shows it: name, state, version, time up, devices, models.
    let [name, state, version, _, devices, _] = <[String; 6]>::try_from(hive_row(hive)).unwrap_or_default();
    vec![
        name,
        host(hive, nodes),
        state,
        ago(hive.last_seen),
        version,
        devices,
        hive.workers.len().to_string(),
    ]
}

/// Where ssh finds it, if it was installed from here, else where it listens.
fn host(hive: &HiveInfo, nodes: &[Node]) -> String {
    let node = nodes.iter().find(|node| node.name == hive.name);
    node.map_or_else(|| hive.listen.clone(), |node| node.address.destination.clone())
}

pub async fn get(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let name = percent_encode(&settings.positionals().join(" "));
    let hive: HiveInfo = Server::of(settings)?.get(&format!("/v1/hives/{name}"), render).await?;
    if render.is_json() {
        return render.value(&json!(hive)).map_err(writing);
    }
    render.table(COLUMNS, vec![row(&hive, &remote::nodes(settings)?.all())]).map_err(writing)?;
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
    let operation = if server.is_hive {
        let there: Info = server.get("/v1/info", render).await?;
        if there.name != name {
            let message = format!("the hive at {} is `{}`, not `{name}`", server.target, there.name);
            return Err(Failure::new(Code::HiveNotFound, message).into());
        }
        json!(HiveOperation::HiveDrain { undo })
    } else {
        json!(QueenOperation::HiveDrain { name, undo })
    };
    let drained = Follower::new(&server, render)?.run(&operation, &mut |_| Ok(())).await?;
    if render.is_json() { render.value(&drained).map_err(writing) } else { Ok(()) }
}
