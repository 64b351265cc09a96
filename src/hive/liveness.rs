//! B14 for a worker of ours whose process stands still: stopped by somebody, hung in a driver. It watches its own progress
//! as long as it runs; one that does not run tells nobody anything, and would hold its clients and its slots for ever.

use crate::hive::workers::{Table, Workers};
use crate::http::client;
use crate::wire::{Code, Failure};

/// Ends when the worker has left the question whether it lives unanswered. It is asked only while somebody waits for it, and
/// answers from another thread than the one that computes: a long prompt does not keep it from answering.
pub async fn frozen(workers: &Workers, id: &str) {
    let half = workers.settings().worker_silence / 2;
    let is_busy = |table: &Table| table.get(id).is_some_and(|worker| worker.info.slots_busy > 0);
    let mut table = workers.watch();
    loop {
        if table.wait_for(is_busy).await.is_err() {
            return std::future::pending().await;
        }
        // What comes meanwhile is no matter: most requests have ended when this has.
        tokio::time::sleep(half).await;
        let Ok(worker) = workers.get(id) else { return std::future::pending().await };
        if worker.info.slots_busy == 0 {
            continue;
        }
        let Ok(ask) = client::get("/health") else { return std::future::pending().await };
        // Whatever it says, it says something; of one that has gone its tree tells.
        if tokio::time::timeout(half, client::send(worker.pool.target(), ask)).await.is_err() {
            return;
        }
    }
}

/// What is said of it then.
pub fn failure(workers: &Workers, id: &str) -> Failure {
    let seconds = workers.settings().worker_silence.as_secs_f32();
    Failure::new(
        Code::WorkerLost,
        format!("worker {id} stood still: it did not say for {seconds} s that it lives, and was ended"),
    )
}
