//! Where a request runs. Pure: what is wanted and what is known give a decision, so that every case can be a test.
//! In order: a ready worker with a free slot, the least busy first; else a worker that is coming up; else a full one
//! to wait for; else a new worker on the node that has the model and the most free memory.

use crate::wire::fleet::{HiveInfo, HiveState, WorkerInfo};
use crate::wire::{Code, Failure};
use std::cmp::Reverse;
use std::collections::HashMap;

/// What a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Want {
    pub model: String,
    pub hive: Option<String>,
    pub worker_id: Option<String>,
    pub device: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    Use {
        hive: String,
        worker_id: String,
    },
    Spawn {
        hive: String,
    },
    /// Workers are coming up; a change of the fleet will tell.
    Loading,
    /// All slots of all workers that have the model.
    Full {
        slots_total: u32,
        slots_busy: u32,
    },
    Refuse(Failure),
}

/// Requests that this queen has at each worker now. Telemetry lags behind her own sending.
pub type InFlight = HashMap<String, u32>;

pub fn decide<'h>(want: &Want, hives: &'h [HiveInfo], in_flight: &InFlight) -> Decision {
    let hives: Vec<&'h HiveInfo> = match usable(want, hives) {
        Ok(hives) => hives,
        Err(failure) => return Decision::Refuse(failure),
    };
    let fits = |hive: &HiveInfo, worker: &WorkerInfo| {
        worker.model == want.model
            && want.worker_id.as_ref().is_none_or(|id| *id == worker.worker_id)
            && want.device.as_ref().is_none_or(|device| is_device(device, worker, hive))
    };
    let on = |hive: &&'h HiveInfo| {
        let hive: &'h HiveInfo = hive;
        hive.workers.iter().filter(move |worker| fits(hive, worker))
    };
    let workers: Vec<&WorkerInfo> = hives.iter().flat_map(on).collect();
    let busy =
        |worker: &WorkerInfo| worker.slots_busy.max(in_flight.get(&worker.worker_id).copied().unwrap_or(0));
    let serving = || workers.iter().filter(|worker| worker.state.serves());
    let free = serving().filter(|worker| busy(worker) < worker.slots_total);
    if let Some(worker) = free.min_by_key(|worker| (busy(worker), Reverse(worker.slots_total))) {
        return Decision::Use { hive: worker.hive.clone(), worker_id: worker.worker_id.clone() };
    }
    if workers.iter().any(|worker| worker.state.is_coming()) {
        return Decision::Loading;
    }
    if serving().next().is_some() {
        return Decision::Full {
            slots_total: serving().map(|worker| worker.slots_total).sum(),
            slots_busy: serving().map(|worker| busy(worker).min(worker.slots_total)).sum(),
        };
    }
    if let Some(id) = &want.worker_id {
        return Decision::Refuse(Failure::new(
            Code::WorkerNotFound,
            format!("no worker {id} serves `{}`; see `rbee workers list`", want.model),
        ));
    }
    let with_model = hives.iter().filter(|hive| hive.models.contains(&want.model));
    match with_model.max_by_key(|hive| free_memory(hive)) {
        Some(hive) => Decision::Spawn { hive: hive.name.clone() },
        None => Decision::Refuse(unknown_model(&want.model, &hives)),
    }
}

/// The hives a request may go to.
fn usable<'h>(want: &Want, hives: &'h [HiveInfo]) -> Result<Vec<&'h HiveInfo>, Failure> {
    let names = || hives.iter().map(|hive| hive.name.as_str()).collect::<Vec<_>>().join(", ");
    if hives.is_empty() {
        return Err(Failure::new(
            Code::BackendUnavailable,
            "no hive is connected to this queen; start one with `rbee hive serve --queen URL`",
        )
        .with(serde_json::json!({"retry_after": 5})));
    }
    let named = hives.iter().filter(|hive| want.hive.as_ref().is_none_or(|name| *name == hive.name));
    let usable: Vec<&HiveInfo> = named.filter(|hive| hive.state == HiveState::Online).collect();
    match &want.hive {
        Some(name) if !hives.iter().any(|hive| hive.name == *name) => Err(Failure::new(
            Code::HiveNotFound,
            format!("no hive is called `{name}`; there are: {}", names()),
        )),
        _ if usable.is_empty() => Err(Failure::new(
            Code::ShuttingDown,
            format!("every hive that could serve is draining: {}", names()),
        )),
        _ => Ok(usable),
    }
}

/// By the device's name, or its kind, whatever the engine is called that computes on it.
fn is_device(wanted: &str, worker: &WorkerInfo, hive: &HiveInfo) -> bool {
    let device = hive.devices.iter().find(|device| device.id == worker.device);
    wanted.eq_ignore_ascii_case(&worker.device)
        || wanted.eq_ignore_ascii_case(&worker.worker)
        || device.is_some_and(|device| wanted.eq_ignore_ascii_case(&device.device_type))
}

fn free_memory(hive: &HiveInfo) -> u64 {
    hive.devices.iter().map(|device| device.memory_free_bytes).max().unwrap_or(0)
}

fn unknown_model(model: &str, hives: &[&HiveInfo]) -> Failure {
    let mut known: Vec<&str> = hives.iter().flat_map(|hive| &hive.models).map(String::as_str).collect();
    known.sort_unstable();
    known.dedup();
    let known = if known.is_empty() {
        "there is none yet".into()
    } else {
        format!("there are: {}", known.join(", "))
    };
    Failure::new(
        Code::ModelNotFound,
        format!("no node has the model `{model}`; {known}. Add one with `rbee model download REF`"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::fleet::{Device, WorkerState};

    fn worker(hive: &str, id: &str, state: WorkerState, busy: u32) -> WorkerInfo {
        WorkerInfo {
            worker_id: id.into(),
            hive: hive.into(),
            state,
            model: "m".into(),
            worker: "cpu".into(),
            device: "CPU-0".into(),
            slots_total: 2,
            slots_busy: busy,
            ctx: 128,
            memory_bytes: 0,
            pid: None,
            started_at: 0,
            last_used: 0,
            pinned: false,
            url: String::new(),
        }
    }

    fn hive(name: &str, free: u64, models: &[&str], workers: Vec<WorkerInfo>) -> HiveInfo {
        let device = Device {
            id: "CPU-0".into(),
            name: String::new(),
            device_type: "cpu".into(),
            memory_bytes: 100,
            memory_free_bytes: free,
            compute_capability: None,
        };
        HiveInfo {
            name: name.into(),
            version: String::new(),
            state: HiveState::Online,
            listen: String::new(),
            connected_at: 0,
            last_seen: 0,
            devices: vec![device],
            workers,
            models: models.iter().map(|m| (*m).to_owned()).collect(),
            model_names: Vec::new(),
            os: String::new(),
            arch: String::new(),
        }
    }

    fn want() -> Want {
        Want { model: "m".into(), ..Want::default() }
    }

    fn refusal(decision: Decision) -> Code {
        match decision {
            Decision::Refuse(failure) => failure.code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_least_busy_ready_worker_is_used_counting_what_is_on_its_way() {
        let hives = [hive(
            "a",
            9,
            &["m"],
            vec![worker("a", "w1", WorkerState::Ready, 0), worker("a", "w2", WorkerState::Busy, 1)],
        )];
        let uses = |in_flight: &InFlight| match decide(&want(), &hives, in_flight) {
            Decision::Use { worker_id, .. } => worker_id,
            other => panic!("{other:?}"),
        };
        assert_eq!(uses(&InFlight::new()), "w1");
        assert_eq!(uses(&InFlight::from([("w1".into(), 2)])), "w2");
    }

    #[test]
    fn a_kind_of_device_is_that_of_the_workers_device_whatever_its_engine_is_called() {
        let on_engine =
            WorkerInfo { worker: "another-server".into(), ..worker("a", "w", WorkerState::Ready, 0) };
        let hives = [hive("a", 9, &["m"], vec![on_engine])];
        let wants = |device: &str| Want { device: Some(device.into()), ..want() };
        let used = Decision::Use { hive: "a".into(), worker_id: "w".into() };
        for device in ["cpu", "CPU", "cpu-0", "another-server"] {
            assert_eq!(decide(&wants(device), &hives, &InFlight::new()), used, "{device}");
        }
        assert_ne!(decide(&wants("cuda"), &hives, &InFlight::new()), used);
    }

    #[test]
    fn a_loading_worker_is_waited_for_and_a_full_one_told() {
        let loading = [hive("a", 9, &["m"], vec![worker("a", "w", WorkerState::Loading, 0)])];
        assert_eq!(decide(&want(), &loading, &InFlight::new()), Decision::Loading);
        let full = [hive("a", 9, &["m"], vec![worker("a", "w", WorkerState::Busy, 2)])];
        assert_eq!(
            decide(&want(), &full, &InFlight::new()),
            Decision::Full { slots_total: 2, slots_busy: 2 }
        );
    }

    #[test]
    fn a_spawn_goes_where_the_model_is_and_memory_is_free() {
        let hives = [hive("a", 1, &["m"], vec![]), hive("b", 5, &["m"], vec![]), hive("c", 9, &[], vec![])];
        assert_eq!(decide(&want(), &hives, &InFlight::new()), Decision::Spawn { hive: "b".into() });
        let on_a = Want { hive: Some("a".into()), ..want() };
        assert_eq!(decide(&on_a, &hives, &InFlight::new()), Decision::Spawn { hive: "a".into() });
    }

    #[test]
    fn refusals_say_what_is_missing() {
        let none = InFlight::new();
        assert_eq!(refusal(decide(&want(), &[], &none)), Code::BackendUnavailable);
        let hives = [hive("a", 1, &["other"], vec![])];
        assert_eq!(refusal(decide(&want(), &hives, &none)), Code::ModelNotFound);
        let elsewhere = Want { hive: Some("z".into()), ..want() };
        assert_eq!(refusal(decide(&elsewhere, &hives, &none)), Code::HiveNotFound);
        let gone = Want { worker_id: Some("w9".into()), ..want() };
        assert_eq!(refusal(decide(&gone, &hives, &none)), Code::WorkerNotFound);
        let draining = [HiveInfo { state: HiveState::Draining, ..hive("a", 1, &["m"], vec![]) }];
        assert_eq!(refusal(decide(&want(), &draining, &none)), Code::ShuttingDown);
    }

    #[test]
    fn gpu_work_never_falls_to_a_cpu_worker_unasked() {
        let hives = [hive("a", 1, &["m"], vec![worker("a", "w", WorkerState::Ready, 0)])];
        let on_gpu = Want { device: Some("cuda".into()), ..want() };
        assert!(!matches!(decide(&on_gpu, &hives, &InFlight::new()), Decision::Use { .. }));
    }
}
