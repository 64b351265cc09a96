//! GET /metrics at a hive: its devices, workers, models and jobs.

use crate::hive::Hive;
use crate::http::Response;
use crate::http::metrics::Page;
use crate::wire::VERSION;
use crate::wire::fleet::{Device, WorkerInfo, WorkerState};

pub fn page(hive: &Hive) -> Response {
    let mut page = Page::default();
    page.gauge("rbee_build_info", "What this is.").with(&[("version", VERSION), ("role", "hive")], 1);
    page.gauge("rbee_start_time_seconds", "When it was started, since the epoch.")
        .is(hive.started_at as f64 / 1e3);
    hive.requests.write(&mut page);
    let devices = hive.devices_seen();
    let mut memory = |name, help, bytes: fn(&Device) -> u64| {
        let mut family = page.gauge(name, help);
        devices.iter().for_each(|device| family.with(&[("device", &device.id)], bytes(device)));
    };
    memory("rbee_device_memory_bytes", "A device's memory.", |device| device.memory_bytes);
    memory("rbee_device_memory_free_bytes", "What a new worker could have of it.", |device| {
        device.memory_free_bytes
    });
    let workers = hive.workers.infos();
    let mut states = page.gauge("rbee_workers", "Workers, by state.");
    for state in WorkerState::ALL {
        let count = workers.iter().filter(|worker| worker.state == state).count();
        states.with(&[("state", state.name())], count);
    }
    let sum = |count: fn(&WorkerInfo) -> u64| workers.iter().map(count).sum::<u64>();
    page.gauge("rbee_slots", "Slots of all workers.").is(sum(|worker| worker.slots_total.into()));
    page.gauge("rbee_slots_busy", "Slots that are busy.").is(sum(|worker| worker.slots_busy.into()));
    page.gauge("rbee_worker_memory_bytes", "What the workers were reckoned to take.")
        .is(sum(|worker| worker.memory_bytes));
    let models = hive.store.list();
    page.gauge("rbee_models", "Models on this node's disk.").is(models.len());
    page.gauge("rbee_model_bytes", "What their files take.")
        .is(models.iter().map(|model| model.size_bytes).sum::<u64>());
    hive.jobs.write(&mut page);
    page.answer()
}
