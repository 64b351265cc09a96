//! Having a hive start a worker: idle ones that stand in the way are given up first, and all who want the same wait for
//! one spawn, which goes on when the first of them leaves.

use super::{Dispatcher, State, Tell};
use crate::queen::fleet::Fleet;
use crate::queen::hive_job::HiveJob;
use crate::queen::placement::{self, Promise, Want};
use crate::queen::registry::TELEMETRY_SILENCE_MAX;
use crate::wire::fleet::WorkerInfo;
use crate::wire::job::{JobEvent, JobId};
use crate::wire::operation::{HiveOperation, WorkerSpawn};
use crate::wire::{Code, Failure};
use std::sync::Arc;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

/// Events of a spawn that wait for a watcher; a slow one misses some.
pub const SPAWN_EVENTS_MAX: usize = 256;

/// What is started, and where: the same again is the same spawn.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub hive: String,
    pub device: Option<String>,
    pub model: String,
    /// Of the engine, where the request calls for one by its name.
    pub engine: Option<String>,
}

impl Key {
    pub fn of(fleet: &Fleet, want: &Want, plan: &placement::Spawn) -> Self {
        let hive = fleet.hives.get(&plan.hive);
        let engines = hive.map(|hive| hive.info.engines.as_slice()).unwrap_or_default();
        let engine = want.device.as_deref().and_then(|word| {
            engines.iter().find(|engine| engine.id.eq_ignore_ascii_case(word)).map(|engine| engine.id.clone())
        });
        Key { hive: plan.hive.clone(), device: plan.device.clone(), model: want.model.clone(), engine }
    }
}

/// A spawn under way.
#[derive(Debug)]
pub struct Spawning {
    want: Want,
    key: Key,
    bytes: u64,
    /// Idle workers that go for it, and take nobody in any more.
    evict: Vec<String>,
    events: broadcast::Sender<JobEvent>,
    end: watch::Sender<Option<Result<(), Failure>>>,
}

impl Spawning {
    /// Whether its worker is one that a request could be sent to, and that would not be refused there.
    pub fn will_do(&self, want: &Want, refused: &[(String, Option<String>)]) -> bool {
        let is_refused = refused
            .iter()
            .any(|(hive, device)| *hive == self.key.hive && (device.is_none() || *device == self.key.device));
        !is_refused
            && want.model == self.want.model
            && want.worker_id.is_none()
            && want.hive.as_ref().is_none_or(|name| *name == self.key.hive)
            && (want.device.is_none() || want.device == self.want.device)
    }
}

/// Somebody's view of a spawn, which goes on without it.
pub struct Watching {
    spawning: Arc<Spawning>,
    events: broadcast::Receiver<JobEvent>,
    end: watch::Receiver<Option<Result<(), Failure>>>,
}

impl Watching {
    pub fn of(spawning: Arc<Spawning>) -> Self {
        let (events, end) = (spawning.events.subscribe(), spawning.end.subscribe());
        Watching { spawning, events, end }
    }

    /// The hive and its device.
    pub fn place(&self) -> (String, Option<String>) {
        (self.spawning.key.hive.clone(), self.spawning.key.device.clone())
    }

    /// Tells what happens until it has ended. It may be left and asked again.
    pub async fn end(&mut self, tell: Tell<'_>) -> Result<(), Failure> {
        loop {
            tokio::select! {
                biased; // What happened before the end is told before it.
                event = self.events.recv() => match event {
                    Ok(event) => tell(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Err(given_up()),
                },
                outcome = self.end.wait_for(Option::is_some) => {
                    let outcome = outcome.map_err(|_| given_up())?;
                    return outcome.clone().unwrap_or(Ok(()));
                }
            }
        }
    }

    /// Tells what has happened and was not told yet.
    pub fn tell_so_far(&mut self, tell: Tell<'_>) {
        loop {
            match self.events.try_recv() {
                Ok(event) => tell(event),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => return,
            }
        }
    }
}

impl Dispatcher {
    /// Has a hive spawn a worker, or gives the spawn that is under way for the same.
    pub(super) fn start_spawn(
        self: &Arc<Self>,
        state: &mut State,
        key: Key,
        want: &Want,
        plan: &placement::Spawn,
    ) -> Arc<Spawning> {
        if let Some(spawning) = state.spawns.get(&key) {
            return spawning.clone();
        }
        let spawning = Arc::new(Spawning {
            want: want.clone(),
            key: key.clone(),
            bytes: plan.bytes,
            evict: plan.evict.clone(),
            events: broadcast::Sender::new(SPAWN_EVENTS_MAX),
            end: watch::Sender::new(None),
        });
        state.spawns.insert(key.clone(), spawning.clone());
        // On its own: the spawn goes on for the others when the first to ask leaves.
        let (dispatcher, want, plan, ours) = (self.clone(), want.clone(), plan.clone(), spawning.clone());
        tokio::spawn(async move {
            let outcome = dispatcher.run_spawn(&want, &plan, &ours).await;
            dispatcher.state().spawns.remove(&key);
            ours.end.send_replace(Some(outcome));
            dispatcher.changed.send_replace(());
        });
        spawning
    }

    /// What a request finds spoken for: workers that let nobody in, and memory. By those who came before it and have waited
    /// long, and by spawns under way.
    pub(super) fn spoken_for(
        state: &State,
        number: Option<u64>,
        fleet: &Fleet,
    ) -> (Vec<String>, Vec<Promise>) {
        let (mut claimed, mut promises) = (Vec::new(), Vec::new());
        for claim in state.queue.claims(number, Instant::now()) {
            let hive = fleet.hives.get(&claim.hive);
            let workers = hive.map(|hive| hive.info.workers.as_slice()).unwrap_or_default();
            promises.push(Promise::of_claim(&claim.hive, &claim.device, claim.bytes, &claim.by, workers));
            claimed.extend(claim.by.iter().cloned());
        }
        claimed.extend(state.spawns.values().flat_map(|spawning| spawning.evict.iter().cloned()));
        promises.extend(Dispatcher::promises(state.spawns.iter(), fleet));
        (claimed, promises)
    }

    /// What spawns under way will take and telemetry does not show yet.
    fn promises<'s>(
        spawns: impl Iterator<Item = (&'s Key, &'s Arc<Spawning>)>,
        fleet: &Fleet,
    ) -> Vec<Promise> {
        let is_seen = |key: &Key, device: &str| {
            let is_it = |worker: &WorkerInfo| {
                worker.model == key.model
                    && worker.device == device
                    && key.engine.as_ref().is_none_or(|engine| *engine == worker.worker)
            };
            fleet.hives.get(&key.hive).is_some_and(|hive| hive.info.workers.iter().any(is_it))
        };
        spawns
            .filter_map(|(key, spawning)| {
                let device = key.device.as_ref()?;
                let promise =
                    Promise { hive: key.hive.clone(), device: device.clone(), bytes: spawning.bytes };
                (!is_seen(key, device)).then_some(promise)
            })
            .collect()
    }

    async fn run_spawn(
        &self,
        want: &Want,
        plan: &placement::Spawn,
        spawning: &Spawning,
    ) -> Result<(), Failure> {
        let hive = plan.hive.as_str();
        // Nobody may be watching.
        let tell = |event: JobEvent| drop(spawning.events.send(event));
        for worker_id in &plan.evict {
            tell(JobEvent::narrate(
                "evict",
                format!("stopping the idle worker {worker_id} of {hive} to make room"),
            ));
            self.give_up(hive, worker_id).await?;
        }
        let operation = HiveOperation::WorkerSpawn(operation(want, &spawning.key));
        let mut ready: Option<String> = None;
        let mut job = HiveJob::start(self.registry.clone(), hive, &operation, JobId::fresh()).await?;
        // No re-attaching: the requests that wait for this would rather hear of the loss and go elsewhere.
        job.done(|event| match &event {
            JobEvent::Result(value) => {
                ready = value.get("worker_id").and_then(|id| id.as_str()).map(str::to_owned);
            }
            JobEvent::Error(_) => {}
            _ => tell(event),
        })
        .await?;
        // The job says ready; telemetry tells placement, and may be a moment behind.
        let Some(worker_id) = ready else { return Ok(()) };
        let known = |fleet: &Fleet| {
            fleet.workers().any(|worker| worker.worker_id == worker_id) || !fleet.hives.contains_key(hive)
        };
        let mut fleet = self.registry.watch();
        let _ = tokio::time::timeout(TELEMETRY_SILENCE_MAX, fleet.wait_for(known)).await;
        Ok(())
    }

    /// Has an idle worker stopped; refused by its hive if it is idle no more.
    async fn give_up(&self, hive: &str, worker_id: &str) -> Result<(), Failure> {
        let operation = HiveOperation::WorkerStop { worker_id: worker_id.to_owned(), if_idle: true };
        let mut job = HiveJob::start(self.registry.clone(), hive, &operation, JobId::fresh()).await?;
        match job.done(|_| {}).await {
            // Gone by itself meanwhile.
            Err(failure) if failure.code == Code::WorkerNotFound => Ok(()),
            ended => ended,
        }
    }
}

/// The device as it was chosen; by an engine's name, where that is what the request has called for.
fn operation(want: &Want, key: &Key) -> WorkerSpawn {
    let called_for = want.device.clone().filter(|_| key.engine.is_none());
    WorkerSpawn {
        device: key.device.clone().or(called_for),
        worker: key.engine.clone(),
        ..WorkerSpawn::of(&want.model)
    }
}

fn given_up() -> Failure {
    Failure::new(Code::HiveLost, "the spawn was given up")
}
