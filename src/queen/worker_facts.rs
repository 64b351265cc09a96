//! All that can be said of one worker: what telemetry tells of it, and how it ended before, which only its hive knows, also
//! of one that no longer runs.

use crate::http::client;
use crate::http::link::Caller;
use crate::http::request::{parse, percent_encode};
use crate::queen::Queen;
use crate::wire::{Code, Failure};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a hive is waited for. Its word on ends is wanted, not needed.
pub const ASK_MAX: Duration = Duration::from_secs(2);

/// A worker with its earlier ends; of one that has ended, a failure that says how.
pub async fn facts(queen: &Queen, id: &str) -> Result<Value, Failure> {
    let fleet = queen.registry.fleet();
    let running = fleet.workers().find(|worker| worker.worker_id == id).cloned();
    if let Some(worker) = running {
        let caller = fleet.hives.get(&worker.hive).map(|hive| hive.caller.clone());
        let ends = match caller {
            Some(caller) => ask(caller, id.to_owned()).await.ok().map(|mut told| told["ends"].take()),
            None => None,
        };
        let mut facts = json!(worker);
        facts["ends"] = ends.unwrap_or(json!([]));
        return Ok(facts);
    }
    let mut asked = JoinSet::new();
    for hive in fleet.hives.values() {
        asked.spawn(ask(hive.caller.clone(), id.to_owned()));
    }
    while let Some(told) = asked.join_next().await {
        // The hive that has run it knows how it ended; the others do not know it.
        if let Ok(Err(failure)) = told
            && failure.details.get("ends").is_some()
        {
            return Err(failure);
        }
    }
    Err(Failure::new(Code::WorkerNotFound, format!("no worker {id} is running; see `rbee workers list`")))
}

/// What its hive says of a worker now; telemetry may be a moment behind.
pub async fn ask(caller: Caller, id: String) -> Result<Value, Failure> {
    let lost = |what: String| Failure::new(Code::HiveLost, what);
    let answer = async {
        let path = format!("/v1/workers/{}", percent_encode(&id));
        let request = client::get(&path).map_err(|error| Failure::internal(&error))?;
        let answer = caller.send(request).await.map_err(|error| lost(error.to_string()))?;
        parse(&client::whole(answer).await?)
    };
    tokio::time::timeout(ASK_MAX, answer).await.unwrap_or_else(|_| Err(lost("it did not answer".into())))
}
