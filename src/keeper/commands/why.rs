//! `rbee why MODEL`: where a request for a model would run now, and what each node has to say to it.

use crate::config::Settings;
use crate::http::request::percent_encode;
use crate::keeper::KeeperError;
use crate::keeper::render::{Render, size};
use crate::keeper::server::Server;
use crate::model::Reference;
use crate::wire::{Code, Failure};
use serde_json::Value;

const COLUMNS: &[&str] = &["hive", "device", "worker", "verdict", "needs", "free", "reason"];

pub async fn why(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let server = Server::of(settings)?;
    if server.is_hive {
        return Err(KeeperError::Usage("`why` asks a queen: give --hive a name, not an address".into()));
    }
    let words = settings.positionals().join(" ");
    let reference = Reference::parse(&words).map_err(|error| KeeperError::Refused(error.into()))?;
    let mut path = format!("/v1/placement?model={}", percent_encode(&reference.to_string()));
    let device = settings.text("device").map(str::to_owned);
    for (name, value) in [("hive", server.hive_id.clone()), ("device", device)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", percent_encode(&value)));
        }
    }
    let placement: Value = server.get(&path, render).await?;
    let writing = |error: std::io::Error| KeeperError::local("writing the verdicts", error);
    let decision = &placement["decision"];
    if render.is_json() {
        render.value(&placement).map_err(writing)?;
    } else {
        let nodes = placement["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        render.table(COLUMNS, nodes.iter().map(row).collect()).map_err(writing)?;
        render.answer(&format!("\n{}\n", sentence(decision))).map_err(writing)?;
    }
    match decision["action"].as_str() {
        Some("refuse") => {
            let code = serde_json::from_value(decision["code"].clone()).unwrap_or(Code::Unknown);
            let model = placement["model"].as_str().unwrap_or(&words);
            Err(Failure::new(code, format!("a request for `{model}` would be refused")).into())
        }
        _ => Ok(()),
    }
}

fn row(node: &Value) -> Vec<String> {
    let text = |key: &str| node[key].as_str().unwrap_or("").to_owned();
    let bytes = |key: &str| node[key].as_u64().map(size).unwrap_or_default();
    vec![
        text("hive"),
        text("device"),
        text("worker_id"),
        text("verdict"),
        bytes("needed_bytes"),
        bytes("free_bytes"),
        text("reason"),
    ]
}

fn sentence(decision: &Value) -> String {
    let text = |key: &str| decision[key].as_str().unwrap_or("");
    let list = |key: &str| {
        let ids = decision[key].as_array().map(Vec::as_slice).unwrap_or_default();
        ids.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
    };
    match text("action") {
        "use" => format!("A request would go to worker {} on {}.", text("worker_id"), text("hive")),
        "spawn" if list("evict").is_empty() => {
            format!("A request would start a worker on {} of {}.", text("device"), text("hive"))
        }
        "spawn" => format!(
            "A request would stop the idle {} and start a worker on {} of {}.",
            list("evict"),
            text("device"),
            text("hive")
        ),
        "wait" => format!("A request would wait: {}.", text("reason")),
        _ => format!("A request would be refused: {}.", text("reason")),
    }
}
