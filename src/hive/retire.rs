//! Taking one worker out of service: no new requests, those at work finish, then it stops. A cancel puts it back. Or at once:
//! those at work are cut off.

use crate::hive::Hive;
use crate::hive::workers::{STOP_GRACE, Table};
use crate::job::{Context, Outcome};
use crate::wire::job::Receipt;
use serde_json::json;
use std::time::Duration;

/// How long what is at work may take; what lasts longer is ended.
pub const RETIRE_WAIT_MAX: Duration = Duration::from_secs(60 * 60);

pub async fn retire(hive: &Hive, id: &str, now: bool, job: &Context) -> Outcome {
    if now {
        job.narrate("stop", format!("stopping worker {id}"));
        let stopped = hive.workers.stop(id, Duration::ZERO).await;
        return stopped.map(|receipt| json!({"worker_id": id, "receipt": receipt})).into();
    }
    let worker = match hive.workers.get(id) {
        Ok(worker) => worker,
        Err(failure) => return Outcome::Failed(failure),
    };
    // One that still loads has nobody at work.
    hive.workers.drain(id);
    let at_work = worker.info.slots_busy;
    job.narrate("retire", format!("worker {id} takes no new requests; {at_work} at work"));
    let is_quiet = |table: &Table| table.get(id).is_none_or(|worker| worker.info.slots_busy == 0);
    let mut table = hive.workers.watch();
    tokio::select! {
        waited = tokio::time::timeout(RETIRE_WAIT_MAX, table.wait_for(is_quiet)) => if waited.is_err() {
            let minutes = RETIRE_WAIT_MAX.as_secs() / 60;
            job.narrate("retire", format!("worker {id} was still at work after {minutes} min; it is stopped"));
        },
        () = job.token().cancelled() => {
            let narration = match hive.workers.undrain(id) {
                true => "takes requests again",
                // Another retirement, or its end.
                false => "goes on draining: somebody else wants that, too",
            };
            job.narrate("retire", format!("worker {id} {narration}"));
            return Outcome::Cancelled(Receipt::default());
        }
    }
    match hive.workers.stop(id, STOP_GRACE).await {
        Ok(receipt) => Outcome::Done(json!({"worker_id": id, "receipt": receipt})),
        // Somebody else has stopped it meanwhile, or it crashed: it is gone, as was wanted.
        Err(_) if hive.workers.get(id).is_err() => {
            Outcome::Done(json!({"worker_id": id, "receipt": Receipt::default()}))
        }
        Err(failure) => Outcome::Failed(failure),
    }
}
