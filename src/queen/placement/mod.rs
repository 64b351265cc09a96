//! Where a request runs. Pure: what is wanted and what is known give a decision, so that every case can be a test.
//!
//! Every worker that has the model and every device that could get one is judged (`verdict`); what is best of them is
//! done (`search`). In order: a worker with a free slot, by the speed a further stream may expect there; a worker that is coming up; a
//! full one to wait for; a new worker where there is room, or where idle ones make room (`room`); else waiting for those
//! that are busy now. A busy or pinned worker is never evicted, and a GPU's work goes to a processor only if that was asked
//! for.

mod room;
mod search;
mod site;
mod verdict;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use room::{MEMORY_MARGIN_PERCENT, Room};
pub use site::{Holder, Site};
pub use verdict::{Standing, Verdict, all as verdicts, suits};

use crate::wire::failure::listed;
use crate::wire::fleet::{Device, HiveInfo, WorkerInfo};
use crate::wire::{Code, Failure};
use serde_json::json;
use std::collections::HashMap;

/// What a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Want {
    pub model: String,
    pub hive: Option<String>,
    pub worker_id: Option<String>,
    pub device: Option<String>,
}

/// A new worker: where, and which idle ones have to go for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawn {
    pub hive: String,
    /// None where nothing is known of the node's needs: it chooses then.
    pub device: Option<String>,
    pub bytes: u64,
    pub evict: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    Use {
        hive: String,
        worker_id: String,
    },
    Spawn(Spawn),
    /// Workers are coming up; a change of the fleet will tell. The slots are those of workers that are up, all taken.
    Loading {
        slots_total: u32,
        slots_busy: u32,
    },
    /// All slots of all workers that have the model are taken; where there is room for one more worker, it is told.
    Full {
        slots_total: u32,
        slots_busy: u32,
        grow: Option<Spawn>,
    },
    /// There is room only where others are at work: when they have ended, it can be had.
    Blocked {
        hive: String,
        device: String,
        bytes: u64,
        by: Vec<String>,
    },
    Refuse(Failure),
}

impl Decision {
    pub fn json(&self) -> serde_json::Value {
        let spawn = |spawn: &Spawn| json!({"hive": spawn.hive, "device": spawn.device, "needed_bytes": spawn.bytes, "evict": spawn.evict});
        match self {
            Decision::Use { hive, worker_id } => {
                json!({"action": "use", "hive": hive, "worker_id": worker_id})
            }
            Decision::Spawn(plan) => {
                let mut told = spawn(plan);
                told["action"] = json!("spawn");
                told
            }
            Decision::Loading { .. } => json!({"action": "wait", "reason": "a worker is loading the model"}),
            Decision::Full { slots_total, slots_busy, grow } => json!({
                "action": "wait", "reason": "all slots are busy", "slots_total": slots_total,
                "slots_busy": slots_busy, "grow": grow.as_ref().map(spawn),
            }),
            Decision::Blocked { hive, device, bytes, by } => json!({
                "action": "wait", "reason": "there is room only where others are at work", "hive": hive,
                "device": device, "needed_bytes": bytes, "waits_for": by,
            }),
            Decision::Refuse(failure) => {
                json!({"action": "refuse", "code": failure.code, "reason": failure.message})
            }
        }
    }
}

/// Requests that this queen has at each worker now. Telemetry lags behind her own sending.
pub type InFlight = HashMap<String, u32>;

/// Memory that a worker will take which telemetry does not show yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    pub hive: String,
    pub device: String,
    pub bytes: u64,
}

impl Promise {
    /// For a request that waits for workers to end: what they hold it gets from them, and only the rest of what is free.
    pub fn of_claim(hive: &str, device: &str, bytes: u64, by: &[String], workers: &[WorkerInfo]) -> Self {
        let held = workers.iter().filter(|worker| by.contains(&worker.worker_id));
        let held: u64 = held.map(|worker| worker.memory_bytes).sum();
        Promise { hive: hive.to_owned(), device: device.to_owned(), bytes: bytes.saturating_sub(held) }
    }
}

/// What is known at one instant.
#[derive(Debug, Clone, Copy)]
pub struct View<'v> {
    /// The hives that have the model, loaded or on their disks.
    pub holders: &'v [Holder<'v>],
    pub in_flight: &'v InFlight,
    pub promises: &'v [Promise],
    /// Workers that take nobody in, because a request that came earlier waits for their memory.
    pub claimed: &'v [String],
    /// Hives and devices that would not take this very request.
    pub refused: &'v [(String, Option<String>)],
}

impl View<'_> {
    fn busy(&self, worker: &WorkerInfo) -> u32 {
        worker.slots_busy.max(self.in_flight.get(&worker.worker_id).copied().unwrap_or(0))
    }

    fn is_claimed(&self, worker: &WorkerInfo) -> bool {
        self.claimed.contains(&worker.worker_id)
    }

    fn has_refused(&self, hive: &HiveInfo, device: &Device) -> bool {
        let is_here = |(name, on): &(String, Option<String>)| {
            *name == hive.name && on.as_ref().is_none_or(|on| *on == device.id)
        };
        self.refused.iter().any(is_here)
    }

    fn promised(&self, hive: &HiveInfo, device: &Device) -> u64 {
        let here = self.promises.iter().filter(|p| p.hive == hive.name && p.device == device.id);
        here.map(|promise| promise.bytes).sum()
    }
}

/// The best that can be done. Of a large fleet most nodes are passed over by sums that `site` holds ready: only one that
/// could be better than the best so far is looked at closely.
pub fn decide(want: &Want, view: &View<'_>) -> Decision {
    let serving = search::Serving::look(want, view);
    if let Some((_, hive, worker)) = serving.free {
        return Decision::Use { hive: hive.name.clone(), worker_id: worker.worker_id.clone() };
    }
    if serving.is_coming {
        let (slots_total, slots_busy) = (serving.slots_total, serving.slots_busy);
        return Decision::Loading { slots_total, slots_busy };
    }
    if serving.slots_total > 0 {
        return Decision::Full {
            slots_total: serving.slots_total,
            slots_busy: serving.slots_busy,
            // Only into room that is free: nobody has to go for a second worker of a model. Another than the one that was
            // named is of no use.
            grow: match want.worker_id {
                Some(_) => None,
                None => search::best_spawn(
                    want,
                    view,
                    |room| matches!(room, Room::Fits { evict, .. } if evict.is_empty()),
                ),
            },
        };
    }
    if let Some(id) = &want.worker_id {
        return Decision::Refuse(Failure::new(
            Code::WorkerNotFound,
            format!("no worker {id} serves `{}`; see `rbee workers list`", want.model),
        ));
    }
    if let Some(spawn) = search::best_spawn(want, view, |_| true) {
        return Decision::Spawn(spawn);
    }
    search::fastest_blocked(want, view).unwrap_or_else(|| Decision::Refuse(verdict::refusal(want, view)))
}

/// Why nobody can have the model, where no hive has it at all or the one that was named is not there.
pub fn nowhere(want: &Want, fleet: &[&HiveInfo]) -> Failure {
    let names = || listed(fleet.iter().map(|hive| &hive.name));
    if fleet.is_empty() {
        return Failure::new(
            Code::BackendUnavailable,
            "no hive is connected to this queen; start one with `rbee hive serve --queen URL`",
        )
        .with(json!({"retry_after": 5}));
    }
    if let Some(name) = &want.hive
        && !fleet.iter().any(|hive| hive.name == *name)
    {
        return Failure::new(
            Code::HiveNotFound,
            format!(
                "no hive is called `{name}`; there are: {}. Another joins with `rbee hive serve --queen URL` on its machine",
                names()
            ),
        );
    }
    let on_asked = fleet.iter().filter(|hive| want.hive.as_ref().is_none_or(|name| *name == hive.name));
    let mut known: Vec<&str> = on_asked.clone().flat_map(|hive| &hive.models).map(String::as_str).collect();
    known.sort_unstable();
    known.dedup();
    let known =
        if known.is_empty() { "there is none yet".into() } else { format!("there are: {}", listed(known)) };
    let place =
        want.hive.as_ref().map_or_else(|| "no node has".to_owned(), |name| format!("{name} does not have"));
    Failure::new(
        Code::ModelNotFound,
        format!("{place} the model `{}`; {known}. Add one with `rbee model download REF`", want.model),
    )
}

/// Whether a request may run there at all, by what it named.
fn is_asked(want: &Want, hive: &HiveInfo) -> bool {
    want.hive.as_ref().is_none_or(|name| *name == hive.name)
}
