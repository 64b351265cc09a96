//! GET /v1/heartbeats/stream at a hive: its devices and workers.

use crate::hive::{Hive, models};
use crate::http::{Response, heartbeats};
use crate::wire::VERSION;
use crate::wire::fleet::now_ms;
use crate::wire::job::JobState;
use serde_json::{Value, json};
use std::sync::Arc;

pub fn stream(hive: &Arc<Hive>) -> Response {
    let teller = hive.clone();
    let changes = (hive.workers.watch(), hive.drained.subscribe());
    heartbeats::stream(changes, hive.shutdown.clone(), move || beat(&teller))
}

fn beat(hive: &Hive) -> Value {
    let state = if hive.is_draining() { "draining" } else { "online" };
    // As they were last looked at: a look runs a program of the vendor's.
    let devices = hive.devices_seen();
    json!({
        "at": now_ms(),
        "hive": {
            "name": hive.options.name, "version": VERSION, "started_at": hive.started_at, "state": state,
            "devices": devices, "workers": hive.workers.infos(), "models": models::ids(hive).len(),
            "jobs_running": hive.jobs.count(JobState::Running),
        },
    })
}
