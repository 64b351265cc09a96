//! What placement thinks of every worker and device, in words: for `rbee why`, and for a refusal that says what to do.

use super::room::{self, Room};
use super::site::{Holder, speed};
use super::{View, Want, is_asked, search};
use crate::model::smaller::fitting;
use crate::wire::failure::listed;
use crate::wire::fleet::{Device, HiveInfo, HiveState, WorkerInfo};
use crate::wire::{Code, Failure};
use serde_json::{Value, json};

/// How a worker that has the model stands to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Free,
    Full,
    Coming,
    /// It stops, or has failed.
    Leaving,
    /// Another worker, or another device, was asked for.
    Other,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Verdict<'v> {
    Worker {
        hive: &'v HiveInfo,
        worker: &'v WorkerInfo,
        standing: Standing,
    },
    Device {
        hive: &'v HiveInfo,
        device: &'v Device,
        room: Room<'v>,
    },
    /// The whole node is out of the question.
    Node {
        hive: &'v HiveInfo,
    },
}

/// Every node's verdict, by their names.
pub fn all<'v>(want: &Want, view: &View<'v>) -> Vec<Verdict<'v>> {
    let mut holders: Vec<Holder<'v>> = view.holders.to_vec();
    holders.sort_unstable_by_key(|holder| &holder.hive.name);
    let gpu = room::capable_gpu(want, view);
    holders.into_iter().flat_map(|holder| of_node(want, view, holder, gpu.as_deref())).collect()
}

/// The verdicts on one node: on its workers that have the model, and on its devices.
fn of_node<'v>(want: &Want, view: &View<'v>, holder: Holder<'v>, gpu: Option<&str>) -> Vec<Verdict<'v>> {
    let Holder { hive, site, needs } = holder;
    if !is_asked(want, hive) || !site.is_open {
        return vec![Verdict::Node { hive }];
    }
    let of_model = hive.workers.iter().filter(|worker| worker.model == want.model);
    let on_worker = |worker: &'v WorkerInfo| {
        let standing = standing(want, view, hive, worker);
        Verdict::Worker { hive, worker, standing }
    };
    let mut verdicts: Vec<Verdict<'v>> = of_model.map(on_worker).collect();
    if needs.is_some() {
        let devices = hive.devices.iter().zip(&site.places);
        verdicts.extend(devices.map(|(device, place)| {
            let room = room::room(want, view, holder, device, place, gpu);
            Verdict::Device { hive, device, room }
        }));
    }
    verdicts
}

/// Whether a worker is one that a request could be sent to, were a slot free.
pub fn suits(want: &Want, hive: &HiveInfo, worker: &WorkerInfo) -> bool {
    worker.model == want.model && is_asked(want, hive) && is_wanted(want, hive, worker)
}

fn is_wanted(want: &Want, hive: &HiveInfo, worker: &WorkerInfo) -> bool {
    let is_device = |word: &String| {
        let device = hive.device(&worker.device);
        word.eq_ignore_ascii_case(&worker.device)
            || word.eq_ignore_ascii_case(&worker.worker)
            || device.is_some_and(|device| room::is_device(word, device, &[]))
            || word.parse().is_ok_and(|number| room::numbered(hive, number) == Some(worker.device.as_str()))
    };
    want.worker_id.as_ref().is_none_or(|id| *id == worker.worker_id)
        && want.device.as_ref().is_none_or(is_device)
}

pub fn standing(want: &Want, view: &View<'_>, hive: &HiveInfo, worker: &WorkerInfo) -> Standing {
    match worker.state {
        _ if !is_wanted(want, hive, worker) => Standing::Other,
        state if state.is_coming() => Standing::Coming,
        state if !state.serves() => Standing::Leaving,
        _ if view.is_claimed(worker) || view.busy(worker) >= worker.slots_total => Standing::Full,
        _ => Standing::Free,
    }
}

/// Nodes whose reasons a refusal tells; `rbee why` tells all.
const REASONS_MAX: usize = 8;

/// Why nothing can be done, by what comes nearest.
pub fn refusal(want: &Want, view: &View<'_>) -> Failure {
    let gpu = room::capable_gpu(want, view);
    let places = search::places(want, view, gpu.as_deref());
    let open = places.filter(|(holder, _, device, _)| !view.has_refused(holder.hive, device));
    let nearest = open.max_by_key(|(.., place)| place.free.saturating_add(place.unpinned));
    let first = nearest.map(|(holder, ..)| holder);
    let is_first = |holder: &Holder<'_>| first.is_some_and(|first| first.hive.name == holder.hive.name);
    let others = view.holders.iter().copied().filter(|holder| !is_first(holder));
    let told = first.into_iter().chain(others).take(REASONS_MAX);
    let verdicts: Vec<Verdict<'_>> =
        told.flat_map(|holder| of_node(want, view, holder, gpu.as_deref())).collect();
    let mut reasons = verdicts.iter().map(Verdict::reason).collect::<Vec<_>>().join("; ");
    if view.holders.len() > REASONS_MAX {
        let more = view.holders.len() - REASONS_MAX;
        reasons += &format!("; and so on, {more} more nodes: `rbee why {}`", want.model);
    }
    if let Some((holder, _, device, place)) = nearest
        && let Room::TooLittle { needed, free } =
            room::room(want, view, holder, device, place, gpu.as_deref())
    {
        let weights = holder.needs.map_or(0, |needs| needs.weights_bytes);
        let room = room::without_margin(free).saturating_sub(needed.saturating_sub(weights));
        let smaller = fitting(&want.model, weights, room);
        let mut advice = match smaller {
            Some((label, _)) => format!("The smaller quantisation {label} would fit on {}", device.id),
            None => "Take a smaller quantisation or a smaller model".into(),
        };
        if holder.hive.workers.iter().any(|worker| worker.pinned && worker.device == device.id) {
            advice += ", or stop what is pinned";
        }
        return Failure::new(
            Code::InsufficientMemory,
            format!("no node has the memory for `{}`: {reasons}. {advice}", want.model),
        )
        .with(json!({
            "needed_bytes": needed, "available_bytes": free, "device": device.id, "hive": holder.hive.name,
            "fits_quantization": smaller.map(|(label, _)| label),
        }));
    }
    let is_shut =
        |holder: &&Holder<'_>| is_asked(want, holder.hive) && holder.hive.state == HiveState::Draining;
    if view.holders.iter().all(|holder| !is_asked(want, holder.hive) || !holder.site.is_open) {
        let draining = || view.holders.iter().filter(is_shut).map(|holder| &holder.hive.name);
        if draining().next().is_some() {
            return Failure::new(
                Code::ShuttingDown,
                format!("every hive that has `{}` is draining: {}", want.model, listed(draining())),
            )
            .with(json!({"retry_after": 5}));
        }
    }
    Failure::new(
        Code::BackendUnavailable,
        format!("nothing here can run `{}` as it was asked for: {reasons}", want.model),
    )
}

impl Verdict<'_> {
    pub fn hive(&self) -> &str {
        match self {
            Verdict::Worker { hive, .. } | Verdict::Device { hive, .. } | Verdict::Node { hive } => {
                &hive.name
            }
        }
    }

    /// One word for a program.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Worker { standing, .. } => match standing {
                Standing::Free => "ready",
                Standing::Full => "full",
                Standing::Coming => "loading",
                Standing::Leaving => "leaving",
                Standing::Other => "no",
            },
            Verdict::Device { room, .. } => match room {
                Room::Fits { evict, .. } if evict.is_empty() => "room",
                Room::Fits { .. } => "evict",
                Room::AfterBusy { .. } => "wait",
                Room::Unknown => "unknown",
                Room::Taken => "taken",
                _ => "no",
            },
            Verdict::Node { .. } => "no",
        }
    }

    /// The same for a person.
    pub fn reason(&self) -> String {
        match self {
            Verdict::Worker { hive, worker, standing } => {
                let place = format!("worker {} on {} of {}", worker.worker_id, worker.device, hive.name);
                let (busy, total) = (worker.slots_busy, worker.slots_total);
                match standing {
                    Standing::Free => format!("{place} has the model loaded, {busy} of {total} slots busy"),
                    Standing::Full => format!("{place} has the model loaded, and no slot free"),
                    Standing::Coming => format!("{place} is loading the model"),
                    Standing::Leaving => format!("{place} is {}", worker.state.name()),
                    Standing::Other => format!("{place} is not what was asked for"),
                }
            }
            Verdict::Device { hive, device, room } => {
                format!("{} of {} {}", device.id, hive.name, about_room(device, room))
            }
            Verdict::Node { hive } => match hive.state {
                HiveState::Draining => format!("{} is draining", hive.name),
                HiveState::Lost => format!("{} is lost", hive.name),
                HiveState::Online => format!("{} was not asked for", hive.name),
            },
        }
    }

    pub fn json(&self) -> Value {
        let mut told = json!({"hive": self.hive(), "verdict": self.word(), "reason": self.reason()});
        match self {
            Verdict::Worker { hive, worker, .. } => {
                told["worker_id"] = json!(worker.worker_id);
                told["device"] = json!(worker.device);
                told["slots_total"] = json!(worker.slots_total);
                told["slots_busy"] = json!(worker.slots_busy);
                told["tokens_per_second"] = tokens_per_second(hive, &worker.device, &worker.model);
            }
            Verdict::Device { device, room, .. } => {
                told["device"] = json!(device.id);
                told["free_bytes"] = json!(device.memory_free_bytes);
                match room {
                    Room::Fits { bytes, evict, .. } => {
                        told["needed_bytes"] = json!(bytes);
                        told["evict"] = ids(evict);
                    }
                    Room::AfterBusy { bytes, by } => {
                        told["needed_bytes"] = json!(bytes);
                        told["waits_for"] = ids(by);
                    }
                    Room::TooLittle { needed, .. } => told["needed_bytes"] = json!(needed),
                    _ => {}
                }
            }
            Verdict::Node { .. } => {}
        }
        told
    }
}

fn ids(workers: &[&WorkerInfo]) -> Value {
    workers.iter().map(|worker| worker.worker_id.as_str()).collect()
}

/// What a lone stream may expect, where the device was measured.
fn tokens_per_second(hive: &HiveInfo, device: &str, model: &str) -> Value {
    let is_measured = hive.speeds.iter().any(|speed| speed.device == device);
    let weights = hive.needs(model).map_or(0, |needs| needs.weights_bytes);
    if is_measured && weights > 0 { json!(speed(hive, device) / weights) } else { Value::Null }
}

fn about_room(device: &Device, room: &Room<'_>) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let names = |workers: &[&WorkerInfo]| {
        let name = |worker: &&WorkerInfo| format!("{} ({})", worker.worker_id, worker.model);
        workers.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let free = mib(device.memory_free_bytes);
    match room {
        Room::Fits { bytes, evict, is_lowered } => {
            let shape = if *is_lowered { " with fewer slots or less context" } else { "" };
            let makes_room = if evict.is_empty() {
                String::new()
            } else {
                format!(" once the idle {} is gone", names(evict))
            };
            format!("has room{shape}{makes_room}: about {} MiB needed, {free} free", mib(*bytes))
        }
        Room::AfterBusy { bytes, by } if by.is_empty() => {
            let needed = mib(*bytes);
            format!(
                "needs about {needed} MiB and has {free} free, which are promised to others who came first"
            )
        }
        Room::AfterBusy { bytes, by } => {
            format!("needs about {} MiB and has {free} free until {} is done", mib(*bytes), names(by))
        }
        Room::TooLittle { needed, free: most } => {
            format!("can have {} MiB free at most, and about {} MiB are needed", mib(*most), mib(*needed))
        }
        Room::Unknown => "has not said what the model needs; its hive will decide".into(),
        Room::Taken => "has a worker for the model".into(),
        Room::NoEngine => format!(
            "has no engine; build one with `rbee worker install llm-worker-rbee-{}`",
            device.device_type
        ),
        Room::Other => "is not what was asked for, or not the best of its node".into(),
        Room::HasGpu(gpu) => {
            format!("is not used unasked while {gpu} can do it; ask with `--device {}`", device.device_type)
        }
        Room::Refused => "refused when it was asked".into(),
    }
}
