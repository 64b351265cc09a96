//! How workers ended, the latest of them: what a person wants to know of a worker that is no longer there, and of a model
//! whose workers crash.

use crate::wire::Failure;
use crate::wire::fleet::{WorkerInfo, now_ms};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

/// The oldest go first. With the log's last lines an end takes a few kilobytes.
pub const ENDS_KEPT_MAX: usize = 64;

/// One end of a worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ended {
    pub worker_id: String,
    pub model: String,
    pub worker: String,
    pub device: String,
    pub at: u64,
    /// By itself, as against a stop.
    pub crashed: bool,
    pub reason: String,
    /// Which restart follows, if one does.
    pub restart: Option<u32>,
    /// The last lines of its log.
    pub log: Vec<String>,
}

/// Whether a worker ended by itself, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    No,
    /// With the number of the restart that follows.
    Restart(u32),
    Last,
}

impl Ended {
    pub fn of(info: &WorkerInfo, failure: &Failure, crash: Crash) -> Self {
        let log = failure.details.get("log").and_then(Value::as_array);
        let log = log.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        Ended {
            worker_id: info.worker_id.clone(),
            model: info.model.clone(),
            worker: info.worker.clone(),
            device: info.device.clone(),
            at: now_ms(),
            crashed: crash != Crash::No,
            reason: failure.message.clone(),
            restart: if let Crash::Restart(number) = crash { Some(number) } else { None },
            log,
        }
    }

    fn seconds_ago(&self) -> u64 {
        now_ms().saturating_sub(self.at) / 1000
    }

    /// For one who asks for a model whose last worker crashed.
    pub fn warning(&self) -> String {
        format!("an earlier worker for this model crashed {} s ago: {}", self.seconds_ago(), self.reason)
    }
}

#[derive(Debug, Default)]
pub struct Ends(Mutex<VecDeque<Ended>>);

impl Ends {
    fn kept(&self) -> MutexGuard<'_, VecDeque<Ended>> {
        self.0.lock().expect("no holder of the ends panics")
    }

    pub fn add(&self, ended: Ended) {
        let mut kept = self.kept();
        if kept.len() == ENDS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(ended);
    }

    /// The latest first.
    pub fn all(&self) -> Vec<Ended> {
        self.kept().iter().rev().cloned().collect()
    }

    pub fn of_worker(&self, id: &str) -> Vec<Ended> {
        self.kept().iter().rev().filter(|ended| ended.worker_id == id).cloned().collect()
    }

    /// The last crash of a model's workers.
    pub fn last_crash(&self, model: &str) -> Option<Ended> {
        self.kept().iter().rev().find(|ended| ended.crashed && ended.model == model).cloned()
    }

    /// What is to be said of a worker that does not run: how it ended, if it ever ran.
    pub fn not_running(&self, id: &str, unknown: Failure) -> Failure {
        let ends = self.of_worker(id);
        let Some(last) = ends.first() else { return unknown };
        let message = format!("worker {id} ended {} s ago: {}", last.seconds_ago(), last.reason);
        Failure::new(unknown.code, message).with(json!({ "log": last.log, "ends": ends }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Code;

    fn ended(id: usize, crashed: bool) -> Ended {
        Ended {
            worker_id: format!("w{id}"),
            model: "m".into(),
            worker: "cpu".into(),
            device: "CPU-0".into(),
            at: now_ms(),
            crashed,
            reason: format!("reason {id}"),
            restart: None,
            log: vec!["last words".into()],
        }
    }

    #[test]
    fn the_latest_ends_are_kept_and_told() {
        let ends = Ends::default();
        for id in 0..=ENDS_KEPT_MAX {
            ends.add(ended(id, id == 3));
        }
        assert_eq!(ends.all().len(), ENDS_KEPT_MAX);
        assert!(ends.of_worker("w0").is_empty());
        assert_eq!(ends.last_crash("m").unwrap().worker_id, "w3");
        assert_eq!(ends.last_crash("other"), None);
        let unknown = Failure::new(Code::WorkerNotFound, "unknown");
        let told = ends.not_running("w5", unknown.clone());
        assert!(told.message.contains("reason 5"), "{told}");
        assert_eq!(told.details["log"][0], "last words");
        assert_eq!(ends.not_running("never", unknown.clone()), unknown);
    }
}
