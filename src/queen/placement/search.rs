//! Looking a fleet through for the best worker or the best place for one. Most nodes are passed over by sums that `site`
//! holds ready: only what could be better than the best so far is looked at closely.

use super::room::{self, Grade, Room};
use super::site::{Fingerprint, Holder, Place};
use super::verdict::{self, Standing};
use super::{Decision, Spawn, View, Want, is_asked};
use crate::wire::fleet::{Device, HiveInfo, ModelNeeds, WorkerInfo};
use std::cmp::Reverse;

/// How much slower a stream is for each other one on its worker, in percent: a batch reads the weights once for all.
const SHARE_PERCENT: u64 = 50;
/// What a further stream may expect of a worker, the more the better: its share of the speed, few others, many slots.
pub type Expected = (u64, Reverse<u32>, u32);

/// The workers that have the model, looked at as a whole.
#[derive(Default)]
pub struct Serving<'v> {
    /// The best with a free slot. As long as there is none, the others are counted.
    pub free: Option<(Expected, &'v HiveInfo, &'v WorkerInfo)>,
    pub is_coming: bool,
    pub slots_total: u32,
    pub slots_busy: u32,
}

impl<'v> Serving<'v> {
    pub fn look(want: &'v Want, view: &View<'v>) -> Self {
        let mut serving = Serving::default();
        let print = Fingerprint::of(&want.model);
        for holder in view.holders.iter().filter(|holder| is_asked(want, holder.hive) && holder.site.is_open)
        {
            for (worker, speed) in holder.workers(&want.model, print) {
                serving.see(want, view, holder.hive, worker, speed);
            }
        }
        serving
    }

    fn see(&mut self, want: &Want, view: &View<'v>, hive: &'v HiveInfo, worker: &'v WorkerInfo, speed: u64) {
        let expected = |busy: u32| -> Expected {
            let shared = speed * 100 / (100 + u64::from(busy) * SHARE_PERCENT);
            (shared, Reverse(busy), worker.slots_total)
        };
        // What this queen has sent and telemetry does not show yet can only make it worse.
        if self.free.is_some_and(|(best, ..)| expected(worker.slots_busy) <= best) {
            return;
        }
        match verdict::standing(want, view, hive, worker) {
            Standing::Free => {
                let expected = expected(view.busy(worker));
                if self.free.is_none_or(|(best, ..)| expected > best) {
                    self.free = Some((expected, hive, worker));
                }
            }
            Standing::Coming => self.is_coming = true,
            Standing::Full => {
                self.slots_total += worker.slots_total;
                self.slots_busy += view.busy(worker).min(worker.slots_total);
            }
            Standing::Leaving | Standing::Other => {}
        }
    }
}

/// Every device that could get a worker of the model, were there room.
pub fn places<'v>(
    want: &Want,
    view: &View<'v>,
    gpu: Option<&str>,
) -> impl Iterator<Item = (Holder<'v>, &'v ModelNeeds, &'v Device, &'v Place)> {
    let asked = view.holders.iter().filter(|holder| is_asked(want, holder.hive) && holder.site.is_open);
    asked.flat_map(move |holder| {
        let devices = holder.hive.devices.iter().zip(&holder.site.places);
        let eligible =
            devices.filter(move |(device, place)| room::is_eligible(want, *holder, device, place, gpu));
        holder.needs.into_iter().flat_map(move |needs| {
            eligible.clone().map(move |(device, place)| (*holder, needs, device, place))
        })
    })
}

/// How good a place for a new worker is: its grade, its speed, its free memory, and the first by name of two alike.
type Rank<'n> = (Grade, u64, u64, Reverse<&'n str>);

/// Where a new worker would go best, of the rooms that will do: nobody evicted and nothing lowered first, then speed, then
/// memory.
pub fn best_spawn(want: &Want, view: &View<'_>, will_do: impl Fn(&Room<'_>) -> bool) -> Option<Spawn> {
    let gpu = room::capable_gpu(want, view);
    let mut best: Option<(Rank<'_>, Spawn)> = None;
    for (holder, needs, device, place) in places(want, view, gpu.as_deref()) {
        let Some(hope) = Grade::at_best(needs, place) else { continue };
        let name = holder.hive.name.as_str();
        let is_better = |rank| best.as_ref().is_none_or(|(best, _)| rank > *best);
        if !is_better((hope, place.speed, place.free, Reverse(name))) {
            continue;
        }
        let room = room::room(want, view, holder, device, place, gpu.as_deref());
        if !will_do(&room) {
            continue;
        }
        let (rank, device, bytes, evict) = match room {
            Room::Fits { bytes, evict, is_lowered } => {
                let grade = Grade::of(!evict.is_empty(), is_lowered);
                ((grade, place.speed, place.free, Reverse(name)), Some(device), bytes, evict)
            }
            Room::Unknown => ((Grade::Lowered, 0, place.free, Reverse(name)), None, 0, Vec::new()),
            _ => continue,
        };
        if is_better(rank) {
            let spawn = Spawn {
                hive: name.to_owned(),
                device: device.map(|device| device.id.clone()),
                bytes,
                evict: evict.iter().map(|worker| worker.worker_id.clone()).collect(),
            };
            best = Some((rank, spawn));
        }
    }
    best.map(|(_, spawn)| spawn)
}

/// Of the devices that others are at work on, the fastest that will have room when they have ended.
pub fn fastest_blocked(want: &Want, view: &View<'_>) -> Option<Decision> {
    let gpu = room::capable_gpu(want, view);
    let mut best: Option<(u64, Decision)> = None;
    for (holder, needs, device, place) in places(want, view, gpu.as_deref()) {
        let is_slower = best.as_ref().is_some_and(|(speed, _)| place.speed <= *speed);
        if is_slower || !room::may_become_free(needs, place) {
            continue;
        }
        if let Room::AfterBusy { bytes, by } = room::room(want, view, holder, device, place, gpu.as_deref()) {
            let blocked = Decision::Blocked {
                hive: holder.hive.name.clone(),
                device: device.id.clone(),
                bytes,
                by: by.iter().map(|worker| worker.worker_id.clone()).collect(),
            };
            best = Some((place.speed, blocked));
        }
    }
    best.map(|(_, blocked)| blocked)
}
