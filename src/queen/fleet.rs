//! What the queen knows of her hives at one instant. A snapshot costs nothing to take: hives and index are shared until
//! the next change. The index tells who has a model without a look at every hive.

use crate::http::link::Caller;
use crate::model::is_name;
use crate::model::names::{self, Known};
use crate::wire::fleet::{Device, HiveInfo, WorkerInfo};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A hive and the way to ask it.
#[derive(Debug, Clone)]
pub struct Hive {
    /// As placement should see it: of a device's free memory that which nobody is about to take.
    pub info: HiveInfo,
    pub caller: Caller,
    /// Tells a hive's old link from its new one.
    pub(super) link: u64,
    pub(super) node: String,
    /// The devices as they were last told.
    devices: Vec<Device>,
    /// Workers that served already when that was.
    counted: BTreeSet<String>,
    /// The models it is found by in the index.
    indexed: BTreeSet<String>,
}

impl Hive {
    pub(super) fn new(info: HiveInfo, caller: Caller, link: u64, node: String) -> Self {
        let mut hive = Hive {
            devices: Vec::new(),
            counted: BTreeSet::new(),
            indexed: BTreeSet::new(),
            info,
            caller,
            link,
            node,
        };
        let devices = std::mem::take(&mut hive.info.devices);
        hive.set_devices(devices);
        hive
    }

    pub(super) fn set_devices(&mut self, devices: Vec<Device>) {
        let serving = self.info.workers.iter().filter(|worker| worker.state.serves());
        self.counted = serving.map(|worker| worker.worker_id.clone()).collect();
        self.devices = devices;
        self.reckon();
    }

    pub(super) fn set_workers(&mut self, workers: Vec<WorkerInfo>) {
        self.info.workers = workers;
        self.reckon();
    }

    /// A worker that came after the hive's last look at its memory has taken, or will take, what it needs from what
    /// was free then.
    fn reckon(&mut self) {
        let mut devices = self.devices.clone();
        for worker in self.info.workers.iter().filter(|worker| !self.counted.contains(&worker.worker_id)) {
            if let Some(device) = devices.iter_mut().find(|device| device.id == worker.device) {
                device.memory_free_bytes = device.memory_free_bytes.saturating_sub(worker.memory_bytes);
            }
        }
        self.info.devices = devices;
    }
}

/// Everything known at one instant.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    pub hives: Arc<BTreeMap<String, Arc<Hive>>>,
    /// By a model's id, the hives that have it, loaded or on disk.
    holders: Arc<HashMap<String, BTreeSet<String>>>,
    pub(super) links: u64,
}

impl Fleet {
    pub fn infos(&self) -> Vec<HiveInfo> {
        self.hives.values().map(|hive| hive.info.clone()).collect()
    }

    pub fn workers(&self) -> impl Iterator<Item = &WorkerInfo> {
        self.hives.values().flat_map(|hive| &hive.info.workers)
    }

    /// The hives that have a model; of them the one that is named, if one is.
    pub fn holders(&self, model: &str, hive: Option<&str>) -> Vec<&HiveInfo> {
        let names = self.holders.get(model).into_iter().flatten();
        let asked = names.filter(|name| hive.is_none_or(|hive| hive == name.as_str()));
        asked.filter_map(|name| self.hives.get(name)).map(|hive| &hive.info).collect()
    }

    /// The models that a client may ask for, by their ids: what is loaded or lies on a node's disk.
    pub fn models(&self) -> Vec<String> {
        let mut models: Vec<String> = self.holders.keys().cloned().collect();
        models.sort_unstable();
        models
    }

    /// The same, and the aliases, which clients use like models.
    pub fn models_and_aliases(&self) -> Vec<String> {
        let names =
            self.hives.values().flat_map(|hive| &hive.info.model_names).flat_map(|model| &model.names);
        let aliases = names.filter(|name| is_name(name)).cloned();
        let mut models: Vec<String> = self.models().into_iter().chain(aliases).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// The id of the model that a client means: on the hive it names, else on any. What nobody has keeps the name it was
    /// asked for by.
    pub fn meant(&self, asked: &str, hive: Option<&str>) -> String {
        let known = |on: Option<&str>| {
            let hives = self.hives.values().filter(move |hive| on.is_none_or(|name| name == hive.info.name));
            let models = hives.clone().flat_map(|hive| &hive.info.model_names).map(Known::of);
            let loaded = hives.flat_map(|hive| &hive.info.workers);
            let loaded = loaded.map(|worker| Known { id: &worker.model, names: &[] });
            names::meant(asked, models.chain(loaded)).first().map(|id| (*id).to_owned())
        };
        if let Some(id) = hive.and_then(|hive| known(Some(hive))) {
            return id;
        }
        // Most requests name an id as it is, and need no look at every name of every hive.
        if self.holders.contains_key(asked) {
            return asked.to_owned();
        }
        known(None).unwrap_or_else(|| asked.to_owned())
    }

    pub(super) fn insert(&mut self, name: &str, hive: Hive) {
        self.remove(name);
        Arc::make_mut(&mut self.hives).insert(name.to_owned(), Arc::new(hive));
        self.index(name);
    }

    pub(super) fn remove(&mut self, name: &str) {
        let Some(hive) = Arc::make_mut(&mut self.hives).remove(name) else { return };
        let holders = Arc::make_mut(&mut self.holders);
        hive.indexed.iter().for_each(|model| leave(holders, model, name));
    }

    /// Changes a hive's facts; the index follows.
    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut Hive)) {
        if let Some(hive) = Arc::make_mut(&mut self.hives).get_mut(name) {
            change(Arc::make_mut(hive));
            self.index(name);
        }
    }

    fn index(&mut self, name: &str) {
        let Some(hive) = Arc::make_mut(&mut self.hives).get_mut(name) else { return };
        let loaded = hive.info.workers.iter().map(|worker| &worker.model);
        let is_known = |model: &&String| hive.indexed.contains(*model);
        let held = || hive.info.models.iter().chain(loaded.clone());
        let here: BTreeSet<&String> = held().collect();
        if here.len() == hive.indexed.len() && here.iter().all(is_known) {
            return;
        }
        let here: BTreeSet<String> = here.into_iter().cloned().collect();
        let hive = Arc::make_mut(hive);
        let holders = Arc::make_mut(&mut self.holders);
        hive.indexed.difference(&here).for_each(|model| leave(holders, model, name));
        for model in here.difference(&hive.indexed) {
            holders.entry(model.clone()).or_default().insert(name.to_owned());
        }
        hive.indexed = here;
    }
}

fn leave(holders: &mut HashMap<String, BTreeSet<String>>, model: &str, hive: &str) {
    if let Some(hives) = holders.get_mut(model) {
        hives.remove(hive);
        if hives.is_empty() {
            holders.remove(model);
        }
    }
}
