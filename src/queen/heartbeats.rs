//! GET /v1/heartbeats/stream at the queen: her totals, and what each hive last told.

use crate::http::{Response, heartbeats};
use crate::queen::Queen;
use crate::queen::fleet::Fleet;
use crate::wire::VERSION;
use crate::wire::fleet::{HiveInfo, now_ms};
use crate::wire::job::JobState;
use serde_json::{Value, json};
use std::sync::Arc;

pub fn stream(queen: &Arc<Queen>) -> Response {
    let teller = queen.clone();
    heartbeats::stream(queen.registry.watch(), queen.shutdown.clone(), move || beat(&teller))
}

fn beat(queen: &Queen) -> Value {
    let fleet: Fleet = queen.registry.fleet();
    let hives: Vec<Value> = fleet.hives.values().map(|hive| told(&hive.info)).collect();
    let slots = |count: fn(&crate::wire::fleet::WorkerInfo) -> u32| fleet.workers().map(count).sum::<u32>();
    json!({
        "at": now_ms(),
        "queen": {
            "name": queen.options.name, "version": VERSION, "base_url": queen.options.base_url,
            "started_at": queen.started_at, "hives": hives.len(), "workers": fleet.workers().count(),
            "slots_total": slots(|worker| worker.slots_total), "slots_busy": slots(|worker| worker.slots_busy),
            "queued": queen.dispatcher.queued(), "in_flight": queen.dispatcher.in_flight(),
            "jobs_running": queen.jobs.count(JobState::Running),
        },
        "hives": hives,
    })
}

/// Without the names of its models, which are many and change seldom.
fn told(hive: &HiveInfo) -> Value {
    json!({
        "name": hive.name, "state": hive.state, "version": hive.version, "connected_at": hive.connected_at,
        "last_seen": hive.last_seen, "devices": hive.devices, "workers": hive.workers, "models": hive.models.len(),
    })
}
