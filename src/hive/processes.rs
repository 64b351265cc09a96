//! What this hive has started and runs now: workers and builds. Nothing else is shown, and nothing else can be ended
//! from here (B45): a pid that is not in our records is somebody else's.

use crate::hive::Hive;
use crate::process::{self, Running};
use crate::wire::catalog::ProcessInfo;
use crate::wire::job::Receipt;
use crate::wire::{Code, Failure};
use std::time::Duration;

/// The longest command line that is told.
const COMMAND_CHARS_MAX: usize = 512;

/// All of them, workers first.
pub fn list(hive: &Hive) -> Vec<ProcessInfo> {
    let workers = process::running(&hive.workers.settings().shims);
    let builds = process::running(hive.builds.trees());
    workers.into_iter().chain(builds).map(told).collect()
}

pub fn get(hive: &Hive, pid: i32) -> Result<ProcessInfo, Failure> {
    list(hive).into_iter().find(|process| process.pid == pid).ok_or_else(|| {
        let ours: Vec<String> = list(hive).iter().map(|process| process.pid.to_string()).collect();
        let there =
            if ours.is_empty() { "it runs none now".into() } else { format!("it runs: {}", ours.join(", ")) };
        Failure::new(Code::NotFound, format!("{pid} is no process that this hive has started; {there}"))
    })
}

/// Ends one, with all that descends from it: a worker as `worker_stop` does, a build as a cancel of its jobs does.
pub async fn delete(hive: &Hive, pid: i32, grace: Duration) -> Result<(ProcessInfo, Receipt), Failure> {
    let process = get(hive, pid)?;
    let receipt = match hive.builds.stop(&process.worker_id).await {
        Some(receipt) => receipt,
        None => hive.workers.stop(&process.worker_id, grace).await?,
    };
    Ok((process, receipt))
}

fn told(running: Running) -> ProcessInfo {
    ProcessInfo {
        pid: running.pid,
        worker_id: running.id,
        command: running.argv.join(" ").chars().take(COMMAND_CHARS_MAX).collect(),
        memory_kb: running.memory_bytes >> 10,
        cpu_percent: (running.cpu_percent * 10.0).round() / 10.0,
        elapsed: running.elapsed.as_secs(),
    }
}
