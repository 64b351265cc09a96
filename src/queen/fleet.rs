//! What the queen knows of her hives at one instant. A snapshot costs nothing to take: hives and index are shared until
//! the next change. The index tells who has a model without a look at every hive, and what placement needs of each is
//! worked out when it changes.

use crate::http::link::Caller;
use crate::model::is_name;
use crate::model::names::{self, Known};
use crate::queen::placement::{Holder, Site};
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
    /// Workers that held their memory already when that was.
    counted: BTreeSet<String>,
    /// What placement needs of `info`.
    site: Site,
    /// The models it is found by in the index, each with the place of its needs.
    indexed: BTreeMap<String, Option<usize>>,
}

impl Hive {
    pub(super) fn new(info: HiveInfo, caller: Caller, link: u64, node: String) -> Self {
        let mut hive = Hive {
            devices: Vec::new(),
            counted: BTreeSet::new(),
            site: Site::default(),
            indexed: BTreeMap::new(),
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
        // One that is on its way out still holds its memory; one that loads may not have taken it yet.
        let holding = self.info.workers.iter().filter(|worker| !worker.state.is_coming());
        self.counted = holding.map(|worker| worker.worker_id.clone()).collect();
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

/// The hives, by their names; each keeps its number as long as it is linked.
#[derive(Debug, Clone, Default)]
pub struct Hives {
    numbers: Arc<BTreeMap<String, usize>>,
    numbered: Arc<Vec<Option<Arc<Hive>>>>,
}

impl Hives {
    fn number(&self, number: usize) -> Option<&Arc<Hive>> {
        self.numbered.get(number)?.as_ref()
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Hive>> {
        self.number(*self.numbers.get(name)?)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Arc<Hive>)> + Clone {
        self.numbers.iter().filter_map(|(name, number)| Some((name, self.number(*number)?)))
    }

    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.numbers.keys()
    }

    pub fn values(&self) -> impl Iterator<Item = &Arc<Hive>> + Clone {
        self.iter().map(|(_, hive)| hive)
    }

    pub fn contains_key(&self, name: &str) -> bool {
        self.numbers.contains_key(name)
    }

    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    fn insert(&mut self, name: &str, hive: Hive) -> usize {
        let numbered = Arc::make_mut(&mut self.numbered);
        let number = numbered.iter().position(Option::is_none).unwrap_or(numbered.len());
        if number == numbered.len() {
            numbered.push(None);
        }
        numbered[number] = Some(Arc::new(hive));
        Arc::make_mut(&mut self.numbers).insert(name.to_owned(), number);
        number
    }

    fn remove(&mut self, name: &str) -> Option<(usize, Arc<Hive>)> {
        let number = Arc::make_mut(&mut self.numbers).remove(name)?;
        let hive = Arc::make_mut(&mut self.numbered).get_mut(number)?.take()?;
        Some((number, hive))
    }

    fn change(&mut self, number: usize) -> Option<&mut Hive> {
        Arc::make_mut(&mut self.numbered).get_mut(number)?.as_mut().map(Arc::make_mut)
    }
}

/// A hive in the index, by its number, and where among its models' needs those of this one are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    number: usize,
    needs: Option<usize>,
}

/// Everything known at one instant.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    pub hives: Hives,
    /// By a model's id, the hives that have it, loaded or on disk.
    held: Arc<HashMap<String, Vec<Held>>>,
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
    pub fn holders(&self, model: &str, hive: Option<&str>) -> Vec<Holder<'_>> {
        let held = self.held.get(model).map_or(&[][..], Vec::as_slice);
        let mut holders = Vec::with_capacity(held.len());
        holders.extend(held.iter().filter_map(|held| {
            let Hive { info, site, .. } = self.hives.number(held.number)?.as_ref();
            let needs = held.needs.and_then(|place| info.model_needs.get(place));
            hive.is_none_or(|name| name == info.name).then_some(Holder { hive: info, site, needs })
        }));
        holders
    }

    /// The models that a client may ask for, by their ids: what is loaded or lies on a node's disk.
    pub fn models(&self) -> Vec<String> {
        let mut models: Vec<String> = self.held.keys().cloned().collect();
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
        if self.held.contains_key(asked) {
            return asked.to_owned();
        }
        known(None).unwrap_or_else(|| asked.to_owned())
    }

    pub(super) fn insert(&mut self, name: &str, hive: Hive) {
        self.remove(name);
        let number = self.hives.insert(name, hive);
        self.index(number);
    }

    pub(super) fn remove(&mut self, name: &str) {
        let Some((number, hive)) = self.hives.remove(name) else { return };
        let held = Arc::make_mut(&mut self.held);
        hive.indexed.keys().for_each(|model| leave(held, model, number));
    }

    /// Changes a hive's facts; what is made of them follows.
    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut Hive)) {
        let Some(number) = self.hives.numbers.get(name).copied() else { return };
        if let Some(hive) = self.hives.change(number) {
            change(hive);
            self.index(number);
        }
    }

    fn index(&mut self, number: usize) {
        let Some(hive) = self.hives.change(number) else { return };
        hive.site = Site::of(&hive.info);
        let place = |model: &String| {
            hive.info.model_needs.binary_search_by(|needs| needs.id.as_str().cmp(model)).ok()
        };
        let loaded = hive.info.workers.iter().map(|worker| &worker.model);
        let here = hive.info.models.iter().chain(loaded);
        let here: BTreeMap<String, Option<usize>> = here.map(|model| (model.clone(), place(model))).collect();
        if here == hive.indexed {
            return;
        }
        let before = std::mem::replace(&mut hive.indexed, here);
        let held = Arc::make_mut(&mut self.held);
        for model in before.keys().filter(|model| !hive.indexed.contains_key(*model)) {
            leave(held, model, number);
        }
        for (model, needs) in &hive.indexed {
            let fresh = Held { number, needs: *needs };
            match held.get_mut(model) {
                None => drop(held.insert(model.clone(), vec![fresh])),
                Some(hives) => match hives.iter_mut().find(|held| held.number == number) {
                    Some(known) => *known = fresh,
                    None => hives.push(fresh),
                },
            }
        }
    }
}

fn leave(held: &mut HashMap<String, Vec<Held>>, model: &str, number: usize) {
    if let Some(hives) = held.get_mut(model) {
        hives.retain(|held| held.number != number);
        if hives.is_empty() {
            held.remove(model);
        }
    }
}
