//! What placement needs of a hive, worked out once when its telemetry changes and not for each of the requests that look at
//! it: a fleet of a thousand nodes is looked through for every decision.

use super::room::{GPU_KINDS, best_kind};
use crate::wire::fleet::{HiveInfo, HiveState, ModelNeeds, WorkerInfo};
use std::hash::{DefaultHasher, Hash, Hasher};

/// What a device is taken to be worth before it was measured, in bytes of weights a second.
const SPEEDS_ASSUMED: &[(&str, u64)] = &[("cuda", 300_000_000_000), ("metal", 150_000_000_000)];
const SPEED_ASSUMED: u64 = 20_000_000_000;

/// A hive for placement.
#[derive(Debug, Clone, Default)]
pub struct Site {
    pub is_open: bool,
    pub has_gpu: bool,
    /// One a device, in their order.
    pub places: Vec<Place>,
    /// One a worker, in their order.
    loaded: Vec<Loaded>,
}

/// A device for placement.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub is_gpu: bool,
    /// Of the kind that this node's work goes to if nobody says otherwise.
    pub is_best: bool,
    /// Among those of that kind.
    pub number: usize,
    pub has_own_engine: bool,
    /// Ours or another project's.
    pub has_engine: bool,
    /// Measured, or what such devices are taken for, in bytes of weights a second.
    pub speed: u64,
    pub total: u64,
    pub free: u64,
    /// Held by workers that telemetry shows as idle and that may go.
    pub idle: u64,
    /// Held by all that are not pinned.
    pub unpinned: u64,
}

#[derive(Debug, Clone, Copy)]
struct Loaded {
    model: Fingerprint,
    /// Of a device that is not told of, nothing is known.
    speed: u64,
}

/// Of a model's name: most names of most workers are told apart by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    pub fn of(model: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        model.hash(&mut hasher);
        Fingerprint(hasher.finish())
    }
}

impl Site {
    pub fn of(hive: &HiveInfo) -> Self {
        let best = best_kind(hive);
        let mut of_best = 0;
        let place = |device: &crate::wire::fleet::Device| {
            let kind = device.device_type.as_str();
            let engines = || hive.engines.iter().filter(|engine| engine.kind == kind);
            // A hive of the version before does not tell its engines; it refuses by itself.
            let is_silent = hive.engines.is_empty();
            let held = |counts: fn(&WorkerInfo) -> bool| {
                let here = hive.workers.iter().filter(|worker| worker.device == device.id);
                here.filter(|worker| counts(worker)).map(|worker| worker.memory_bytes).sum()
            };
            let number = of_best;
            of_best += usize::from(kind == best);
            Place {
                is_gpu: GPU_KINDS.contains(&kind),
                is_best: kind == best,
                number,
                has_own_engine: is_silent || engines().any(|engine| !engine.foreign),
                has_engine: is_silent || engines().next().is_some(),
                speed: speed(hive, &device.id),
                total: device.memory_bytes,
                free: device.memory_free_bytes,
                idle: held(|worker| worker.state.serves() && worker.slots_busy == 0 && !worker.pinned),
                unpinned: held(|worker| !worker.pinned),
            }
        };
        let places: Vec<Place> = hive.devices.iter().map(place).collect();
        let loaded = |worker: &WorkerInfo| Loaded {
            model: Fingerprint::of(&worker.model),
            speed: speed(hive, &worker.device),
        };
        Site {
            is_open: hive.state == HiveState::Online,
            has_gpu: places.iter().any(|place| place.is_gpu),
            loaded: hive.workers.iter().map(loaded).collect(),
            places,
        }
    }
}

/// What a device gets through, in bytes of weights a second.
pub fn speed(hive: &HiveInfo, device: &str) -> u64 {
    let measured = hive.speeds.iter().find(|speed| speed.device == device);
    measured.map(|speed| speed.bytes_per_second).unwrap_or_else(|| {
        let kind = hive.device(device).map_or("", |device| device.device_type.as_str());
        SPEEDS_ASSUMED.iter().find(|(name, _)| *name == kind).map_or(SPEED_ASSUMED, |(_, speed)| *speed)
    })
}

/// A hive that has the model which is wanted, loaded or on its disk.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'v> {
    pub hive: &'v HiveInfo,
    pub site: &'v Site,
    /// None if it is loaded only.
    pub needs: Option<&'v ModelNeeds>,
}

impl<'v> Holder<'v> {
    pub fn of(hive: &'v HiveInfo, site: &'v Site, model: &str) -> Self {
        Holder { hive, site, needs: hive.needs(model) }
    }

    /// Its workers that have a model, each with its device's speed.
    pub fn workers(self, model: &'v str, print: Fingerprint) -> impl Iterator<Item = (&'v WorkerInfo, u64)> {
        let loaded = self.site.loaded.iter().zip(&self.hive.workers);
        let is_it =
            move |(loaded, worker): &(&Loaded, &WorkerInfo)| loaded.model == print && worker.model == model;
        loaded.filter(is_it).map(|(loaded, worker)| (worker, loaded.speed))
    }
}
