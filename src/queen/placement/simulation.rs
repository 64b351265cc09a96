//! Fleets at random, driven by the real decisions: whatever comes, memory is never given away twice, nobody busy or pinned
//! is evicted, and whoever waits is served in the end. And what a decision costs.

use super::room::Grade;
use super::*;
use crate::wire::fleet::{DeviceSpeed, EngineInfo, HiveState, ModelNeeds, ShapeNeeds, WorkerState};
use std::cmp::Reverse;
use std::collections::VecDeque;

const MIB: u64 = 1 << 20;

/// A generator that is the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

fn model(number: u64) -> String {
    format!("model-{number}")
}

/// Every model has its own size, the same on all nodes.
fn needs(number: u64) -> ModelNeeds {
    let weights = (200 + 500 * number) * MIB;
    let shape = |slots: u32, ctx: u32| ShapeNeeds {
        slots,
        ctx,
        bytes: weights + u64::from(slots * ctx) * (64 << 10),
    };
    ModelNeeds {
        id: model(number),
        weights_bytes: weights,
        shapes: vec![shape(4, 4_096), shape(2, 4_096), shape(1, 4_096), shape(1, 1_024), shape(1, 512)],
    }
}

fn node(dice: &mut Dice, number: usize, models: u64) -> HiveInfo {
    let name = format!("node-{number:04}");
    let mut devices = vec![("CPU-0".to_owned(), "cpu", 1_500 + dice.below(6_000))];
    let mut engines = vec!["cpu"];
    for gpu in 0..dice.below(3) {
        devices.push((format!("GPU-{gpu}"), "cuda", 1_000 + dice.below(5_000)));
    }
    if dice.below(4) > 0 {
        engines.push("cuda");
    }
    let mut held: Vec<ModelNeeds> = (0..models).filter(|_| dice.below(3) > 0).map(needs).collect();
    held.sort_by(|a, b| a.id.cmp(&b.id));
    let device = |(id, kind, megabytes): (String, &str, u64)| Device {
        id,
        name: String::new(),
        device_type: kind.into(),
        memory_bytes: megabytes * MIB,
        memory_free_bytes: megabytes * MIB,
        compute_capability: None,
    };
    let engine = |kind: &str| EngineInfo {
        id: kind.into(),
        kind: kind.into(),
        version: String::new(),
        foreign: false,
    };
    let speed =
        DeviceSpeed { device: "CPU-0".into(), bytes_per_second: (10 + dice.below(40)) * 1_000_000_000 };
    HiveInfo {
        name,
        version: String::new(),
        state: HiveState::Online,
        listen: String::new(),
        connected_at: 0,
        last_seen: 0,
        devices: devices.into_iter().map(device).collect(),
        workers: Vec::new(),
        models: held.iter().map(|needs| needs.id.clone()).collect(),
        model_names: Vec::new(),
        model_needs: held,
        engines: engines.into_iter().map(engine).collect(),
        speeds: vec![speed],
        os: String::new(),
        arch: String::new(),
    }
}

/// What a model takes at least.
fn needs_of(hives: &[HiveInfo], model: &str) -> u64 {
    let needs = hives.iter().find_map(|hive| hive.needs(model)).expect("somebody has it");
    needs.shapes.last().map_or(0, |shape| shape.bytes)
}

/// A fleet, what runs on it, and who waits.
struct World {
    dice: Dice,
    hives: Vec<HiveInfo>,
    /// Requests at work: the worker of each.
    running: Vec<String>,
    /// Who waits for what, and for how many rounds already.
    waiting: VecDeque<(Want, u32)>,
    born: u64,
    served: u64,
    refused: u64,
    evicted: u64,
}

impl World {
    fn new(seed: u64, nodes: usize, models: u64) -> World {
        let mut dice = Dice(seed);
        let hives = (0..nodes).map(|number| node(&mut dice, number, models)).collect();
        World {
            dice,
            hives,
            running: Vec::new(),
            waiting: VecDeque::new(),
            born: 0,
            served: 0,
            refused: 0,
            evicted: 0,
        }
    }

    fn worker(&mut self, id: &str) -> &mut WorkerInfo {
        let mut workers = self.hives.iter_mut().flat_map(|hive| &mut hive.workers);
        workers.find(|worker| worker.worker_id == id).expect("a decision names a worker that is there")
    }

    /// Gives a worker's memory back.
    fn end(&mut self, id: &str) {
        for hive in &mut self.hives {
            let Some(place) = hive.workers.iter().position(|worker| worker.worker_id == id) else { continue };
            let gone = hive.workers.remove(place);
            let device = hive.devices.iter_mut().find(|device| device.id == gone.device).unwrap();
            device.memory_free_bytes += gone.memory_bytes;
        }
    }

    fn spawn(&mut self, want: &Want, plan: &Spawn) {
        for id in &plan.evict {
            let worker = self.worker(id);
            assert!(worker.slots_busy == 0 && !worker.pinned && worker.state.serves(), "evicts {worker:?}");
            self.end(id);
            self.evicted += 1;
        }
        self.born += 1;
        let device_id = plan.device.clone().expect("every node here has told its needs");
        let is_pinned = self.dice.below(20) == 0;
        if want.device.is_none() && device_id.starts_with("CPU") {
            let least = needs_of(&self.hives, &want.model);
            let could = |hive: &HiveInfo| {
                let has_engine = hive.engines.iter().any(|engine| engine.kind == "cuda");
                let is_large =
                    |device: &&Device| device.device_type == "cuda" && device.memory_bytes >= 2 * least;
                has_engine
                    && hive.models.contains(&want.model)
                    && hive.devices.iter().any(|device| is_large(&device))
            };
            assert!(!self.hives.iter().any(could), "{want:?} falls to a processor");
        }
        let (born, hive) = (self.born, self.hives.iter_mut().find(|hive| hive.name == plan.hive).unwrap());
        let device = hive.devices.iter_mut().find(|device| device.id == device_id).unwrap();
        assert!(plan.bytes <= device.memory_free_bytes, "{plan:?} is over the memory of {device:?}");
        device.memory_free_bytes -= plan.bytes;
        let shape = hive.needs(&want.model).unwrap().shapes.iter().find(|shape| shape.bytes == plan.bytes);
        let hive_name = hive.name.clone();
        let slots_total = shape.expect("what is planned is one of the shapes").slots;
        hive.workers.push(WorkerInfo {
            worker_id: format!("w{born}"),
            hive: hive_name,
            state: WorkerState::Ready,
            model: want.model.clone(),
            worker: String::new(),
            device: device_id,
            slots_total,
            slots_busy: 0,
            ctx: 0,
            memory_bytes: plan.bytes,
            pid: None,
            started_at: born,
            last_used: born,
            pinned: is_pinned,
            url: String::new(),
        });
    }

    fn decide(&self, want: &Want, place: usize) -> Decision {
        let in_flight = InFlight::new();
        let sites: Vec<Site> = self.hives.iter().map(Site::of).collect();
        let of = |model: &str| -> Vec<Holder<'_>> {
            let held =
                self.hives.iter().zip(&sites).filter(|(hive, _)| hive.models.iter().any(|m| m == model));
            held.map(|(hive, site)| Holder::of(hive, site, model)).collect()
        };
        let holders = of(&want.model);
        if holders.is_empty() {
            return Decision::Refuse(nowhere(want, &self.hives.iter().collect::<Vec<_>>()));
        }
        // Those before us who have waited long have their claims, as in the queue.
        let ripe = self.waiting.iter().take(place).filter(|(_, rounds)| *rounds >= CLAIM_ROUNDS);
        let view = |claimed, promises| View {
            holders: &holders,
            in_flight: &in_flight,
            promises,
            claimed,
            refused: &[],
        };
        let (mut claimed, mut promises) = (Vec::new(), Vec::new());
        for (other, _) in ripe {
            let theirs = of(&other.model);
            let blocked = decide(other, &View { holders: &theirs, ..view(&[], &[]) });
            if let Decision::Blocked { hive, device, bytes, by } = blocked {
                let workers = &self.hives.iter().find(|known| known.name == hive).expect("it is one").workers;
                promises.push(Promise::of_claim(&hive, &device, bytes, &by, workers));
                claimed.extend(by);
            }
        }
        let looked_at = view(&claimed, &promises);
        let decision = decide(want, &looked_at);
        agrees(want, &looked_at, &decision);
        if matches!(decision, Decision::Refuse(_)) {
            let bare = decide(want, &view(&[], &[]));
            assert!(
                matches!(bare, Decision::Refuse(_)),
                "{want:?} is refused for what others are promised: {bare:?}"
            );
        }
        decision
    }

    /// One decision for everybody who waits, the first to come first; tells whether anybody got in.
    fn round(&mut self) {
        let mut place = 0;
        while place < self.waiting.len() {
            let want = self.waiting[place].0.clone();
            match self.decide(&want, place) {
                Decision::Use { worker_id, .. } => {
                    let now = self.born + self.served;
                    let worker = self.worker(&worker_id);
                    assert!(worker.slots_busy < worker.slots_total && worker.state.serves());
                    assert_eq!(worker.model, want.model);
                    worker.slots_busy += 1;
                    worker.last_used = now;
                    self.running.push(worker_id);
                    self.waiting.remove(place);
                    self.served += 1;
                }
                Decision::Spawn(plan) => self.spawn(&want, &plan),
                Decision::Refuse(_) => {
                    self.waiting.remove(place);
                    self.refused += 1;
                }
                Decision::Loading { .. } => panic!("here a worker is up at once"),
                Decision::Full { .. } | Decision::Blocked { .. } => {
                    self.waiting[place].1 += 1;
                    place += 1;
                }
            }
        }
    }

    /// Some of those at work come to an end.
    fn work(&mut self) {
        for _ in 0..1 + self.running.len() / 3 {
            if self.running.is_empty() {
                return;
            }
            let at = self.dice.below(self.running.len() as u64) as usize;
            let id = self.running.swap_remove(at);
            self.worker(&id).slots_busy -= 1;
        }
    }

    /// Puts a busy worker of another model on every device.
    fn fill(&mut self) {
        for hive in &mut self.hives {
            hive.workers.clear();
            for device in &mut hive.devices {
                device.memory_free_bytes = 0;
                hive.workers.push(WorkerInfo {
                    worker_id: format!("{}-{}", hive.name, device.id),
                    hive: hive.name.clone(),
                    state: WorkerState::Busy,
                    model: "another".into(),
                    worker: String::new(),
                    device: device.id.clone(),
                    slots_total: 4,
                    slots_busy: 4,
                    ctx: 0,
                    memory_bytes: device.memory_bytes,
                    pid: None,
                    started_at: 0,
                    last_used: 0,
                    pinned: false,
                    url: String::new(),
                });
            }
        }
    }

    fn holds_what_it_has(&self) {
        for hive in &self.hives {
            for device in &hive.devices {
                let here = hive.workers.iter().filter(|worker| worker.device == device.id);
                let taken: u64 = here.map(|worker| worker.memory_bytes).sum();
                assert_eq!(taken + device.memory_free_bytes, device.memory_bytes, "{}", hive.name);
            }
        }
    }
}

/// What is decided by passing most nodes over is no worse than what a look at every verdict finds.
fn agrees(want: &Want, view: &View<'_>, decision: &Decision) {
    let verdicts = verdicts(want, view);
    let has = |word: &str| verdicts.iter().any(|verdict| verdict.word() == word);
    let expected = if has("ready") {
        matches!(decision, Decision::Use { .. })
    } else if has("full") {
        matches!(decision, Decision::Full { grow, .. } if grow.is_some() == has("room"))
    } else if has("room") || has("evict") {
        let fits = verdicts.iter().filter_map(|verdict| match verdict {
            Verdict::Device { hive, device, room: Room::Fits { evict, is_lowered, .. } } => {
                let grade = Grade::of(!evict.is_empty(), *is_lowered);
                Some((grade, site::speed(hive, &device.id), device.memory_free_bytes, Reverse(&hive.name)))
            }
            _ => None,
        });
        let (_, _, _, Reverse(best)) = fits.max().expect("somebody has room");
        matches!(decision, Decision::Spawn(spawn) if spawn.hive == *best)
    } else if has("wait") {
        matches!(decision, Decision::Blocked { .. })
    } else {
        matches!(decision, Decision::Refuse(_))
    };
    assert!(expected, "{want:?}: {decision:?} of {verdicts:#?}");
}

/// Rounds after which those who wait have a claim.
const CLAIM_ROUNDS: u32 = 5;
/// Nobody waits longer, whatever keeps coming.
const ROUNDS_MAX: u32 = 200;

#[test]
fn memory_is_given_once_nobody_busy_or_pinned_goes_and_everybody_is_served() {
    let (mut served, mut evicted, mut longest) = (0, 0, 0);
    for seed in 1..=60_u64 {
        let mut world = World::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15), 1 + (seed % 6) as usize, 6);
        for _ in 0..200 {
            // Always more than there is room for, and one model that everybody wants.
            for _ in 0..world.dice.below(6) {
                let number = if world.dice.below(2) == 0 { 0 } else { world.dice.below(6) };
                let device = (world.dice.below(8) == 0).then(|| "cpu".to_owned());
                world.waiting.push_back((Want { model: model(number), device, ..Want::default() }, 0));
            }
            world.round();
            world.work();
            world.holds_what_it_has();
            let oldest = world.waiting.iter().map(|(_, rounds)| *rounds).max().unwrap_or(0);
            longest = longest.max(oldest);
            assert!(oldest < ROUNDS_MAX, "seed {seed}: somebody waits for {oldest} rounds");
        }
        for _ in 0..ROUNDS_MAX {
            world.round();
            world.work();
        }
        assert!(world.waiting.is_empty(), "seed {seed}: {:?}", world.waiting);
        served += world.served;
        evicted += world.evicted;
    }
    println!("{served} served, {evicted} evicted, {longest} rounds the longest wait");
    assert!(served > 10_000 && evicted > 100, "{served} {evicted}");
}

/// A figure, no test: `cargo test --release --lib placement -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_a_decision_costs_by_the_size_of_the_fleet() {
    for nodes in [10, 100, 1_000] {
        let mut world = World::new(7, nodes, 20);
        for number in 0..20 {
            world.waiting.push_back((Want { model: model(number), ..Want::default() }, 0));
        }
        world.round();
        let in_flight = InFlight::new();
        let cases = [
            ("loaded", 1, 0),
            ("not loaded, with room somewhere", 1, 1),
            ("not loaded, with room where others are at work", 1, 2),
            ("too large for every node", 19, 2),
        ];
        for (what, number, emptied) in cases {
            if emptied == 1 {
                world.hives.iter_mut().for_each(|hive| hive.workers.retain(|w| w.model != model(number)));
            }
            if emptied == 2 {
                world.fill();
            }
            let want = Want { model: model(number), ..Want::default() };
            let sites: Vec<Site> = world.hives.iter().map(Site::of).collect();
            let held = world.hives.iter().zip(&sites).filter(|(hive, _)| hive.models.contains(&want.model));
            let holders: Vec<Holder<'_>> =
                held.map(|(hive, site)| Holder::of(hive, site, &want.model)).collect();
            let view =
                View { holders: &holders, in_flight: &in_flight, promises: &[], claimed: &[], refused: &[] };
            let mut times: Vec<u128> = (0..1_000)
                .map(|_| {
                    let begun = std::time::Instant::now();
                    std::hint::black_box(decide(&want, &view));
                    begun.elapsed().as_nanos()
                })
                .collect();
            times.sort_unstable();
            println!(
                "{nodes} hives, {} with a model {what}: {:.1} µs median, {:.1} µs p99",
                holders.len(),
                times[500] as f64 / 1e3,
                times[990] as f64 / 1e3
            );
        }
    }
}
