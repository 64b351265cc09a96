//! Taking a hive out of service without ending it: it takes no new requests, what runs is finished, its workers then stop.
//! It stays so until that is undone, or until it is started again.

use crate::hive::Hive;
use crate::hive::workers::STOP_GRACE;
use crate::job::{Context, Outcome};
use crate::wire::job::Receipt;
use crate::wire::{Code, Failure};
use serde_json::json;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long a drain waits for what runs. Requests last minutes; what lasts longer than this is somebody's to decide on.
pub const DRAIN_WAIT_MAX: Duration = Duration::from_secs(60 * 60);
/// Its own jobs are not waited for: two drains would wait for each other.
const OPERATION: &str = "hive_drain";

impl Hive {
    /// Whether it takes no new work, by a drain or because it ends.
    pub fn is_draining(&self) -> bool {
        *self.drained.borrow() || self.shutdown.is_draining()
    }

    /// Refuses new work while it drains.
    pub fn takes_work(&self) -> Result<(), Failure> {
        if !self.is_draining() {
            return Ok(());
        }
        let name = &self.options.name;
        let why = if self.shutdown.is_draining() {
            format!("the hive {name} is shutting down and takes no new work")
        } else {
            format!("the hive {name} drains and takes no new work; `rbee hive drain {name} --undo` ends that")
        };
        Err(Failure::new(Code::ShuttingDown, why))
    }
}

/// The job: ends when nothing runs any more. A cancel undoes the drain.
pub async fn drain(hive: &Hive, undo: bool, job: &Context) -> Outcome {
    let name = &hive.options.name;
    if undo {
        let was_drained = hive.drained.send_replace(false);
        tracing::info!(was_drained, "taking work again");
        job.narrate("drain", format!("{name} takes work again"));
        return Outcome::Done(json!({"hive": name, "draining": false, "was_draining": was_drained}));
    }
    let started = Instant::now();
    hive.drained.send_replace(true);
    tracing::info!("draining: no new requests until that is undone");
    job.narrate("drain", format!("{name} takes no new requests; waiting for what runs"));
    let mut undone = hive.drained.subscribe();
    let emptied = tokio::select! {
        stopped = tokio::time::timeout(DRAIN_WAIT_MAX, empty(hive, job)) => stopped,
        _ = undone.wait_for(|drained| !drained) => {
            return Outcome::Failed(Failure::new(Code::Conflict, "the drain was undone meanwhile"));
        }
        () = job.token().cancelled() => {
            hive.drained.send_replace(false);
            tracing::info!("the drain was cancelled; taking work again");
            job.narrate("drain", format!("{name} takes work again"));
            let ms = started.elapsed().as_millis() as u64;
            return Outcome::Cancelled(Receipt { ms, ..Receipt::default() });
        }
    };
    match emptied {
        Ok(stopped) => {
            job.narrate(
                "drain",
                format!(
                    "nothing runs on {name} any more; `rbee hive drain {name} --undo` puts it back to work"
                ),
            );
            Outcome::Done(json!({"hive": name, "draining": true, "workers_stopped": stopped}))
        }
        Err(_) => Outcome::Failed(Failure::new(
            Code::RequestTimeout,
            format!(
                "{name} was still at work after {} min; it goes on draining",
                DRAIN_WAIT_MAX.as_secs() / 60
            ),
        )),
    }
}

/// Stops each worker as soon as it has nothing to do, then waits for the jobs that were under way. Tells who was stopped.
async fn empty(hive: &Hive, job: &Context) -> Vec<String> {
    let mut table = hive.workers.watch();
    let mut asked = HashSet::new();
    let mut stopping = JoinSet::new();
    let mut stopped = Vec::new();
    loop {
        // One that is still loading has nobody who was promised an answer.
        let (quiet, is_empty) = {
            let table = table.borrow_and_update();
            let quiet = table.values().filter(|worker| worker.info.slots_busy == 0);
            let quiet: Vec<String> = quiet.map(|worker| worker.info.worker_id.clone()).collect();
            (quiet, table.is_empty())
        };
        if is_empty {
            break;
        }
        for id in quiet.into_iter().filter(|id| asked.insert(id.clone())) {
            job.narrate("stop", format!("stopping worker {id}"));
            let workers = hive.workers.clone();
            stopping.spawn(async move { workers.stop(&id, STOP_GRACE).await.map(|_| id) });
        }
        tokio::select! {
            // The table lives as long as the hive.
            _ = table.changed() => {}
            Some(ended) = stopping.join_next() => stopped.extend(ended.ok().and_then(Result::ok)),
        }
    }
    while let Some(ended) = stopping.join_next().await {
        stopped.extend(ended.ok().and_then(Result::ok));
    }
    hive.jobs.quiet(|operation| operation != OPERATION).await;
    stopped
}
