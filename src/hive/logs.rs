//! `GET /v1/logs`: this hive's own lines and its workers', the last of them and those to come. A worker's lines come from
//! its shim as they are said; those of one that has ended are read from its file.

use crate::daemon::lines::{Lines, Reader, Step};
use crate::daemon::log;
use crate::hive::Hive;
use crate::http::sse::{self, Gone, Sender};
use crate::http::{Request, Response};
use crate::process;
use crate::wire::job::{JobEvent, Terminator};
use crate::wire::logs::{LogLine, LogQuery, TAIL_LINES_MAX};
use crate::wire::{Code, Failure};
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;

/// Logs of workers that have ended: the newest stay, for a while.
pub const WORKER_LOGS_KEPT_MAX: usize = 64;
pub const WORKER_LOG_AGE_MAX: Duration = Duration::from_secs(14 * 24 * 3600);
/// What the names of workers' logs begin with.
const PREFIX: &str = "worker-";

/// Where a worker's output goes. Its shim keeps the first 16 MiB and the last 8 to 16 MiB.
pub fn path_of(logs: &Path, worker: &str) -> PathBuf {
    logs.join(format!("{PREFIX}{worker}.log"))
}

/// Removes the logs of workers that ended long ago, or before many others.
pub fn forget_old(logs: &Path, running: &HashSet<String>) {
    let age = |path: &Path| {
        let changed = path.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        changed.elapsed().unwrap_or_default()
    };
    let Ok(entries) = std::fs::read_dir(logs) else { return };
    // A log's later parts bear its name and go with it.
    let ended = |path: &PathBuf| {
        let id = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(".log")?;
        (!running.contains(id)).then(|| age(path))
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut old: Vec<(Duration, PathBuf)> = paths.filter_map(|path| Some((ended(&path)?, path))).collect();
    old.sort_unstable();
    for (number, (age, path)) in old.into_iter().enumerate() {
        if number < WORKER_LOGS_KEPT_MAX && age <= WORKER_LOG_AGE_MAX {
            continue;
        }
        for part in ["log", "log.tail", "log.tail.old"].map(|part| path.with_extension(part)) {
            match std::fs::remove_file(&part) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(path = %part.display(), %error, "an old log cannot be removed");
                }
                _ => {}
            }
        }
    }
}

/// One log that is told.
struct Source {
    node: String,
    worker: Option<String>,
    reader: Reader,
}

impl Source {
    /// Tells its lines to their end, which with `follow` is the log's own.
    async fn tell(mut self, to: Sender) -> Result<(), Gone> {
        loop {
            let step = tokio::select! {
                () = to.closed() => return Err(Gone),
                step = self.reader.next() => step,
            };
            match step {
                Some(Step::Line(line)) => tell(&to, self.node.clone(), self.worker.clone(), line).await?,
                Some(Step::Missed(lines)) => {
                    let missed = JobEvent::warn("missed", format!("lines that are no longer kept: {lines}"));
                    to.event(missed.name(), &missed.data().to_string()).await?;
                }
                None => return Ok(()),
            }
        }
    }
}

async fn tell(to: &Sender, node: String, worker: Option<String>, line: String) -> Result<(), Gone> {
    let stream = if worker.is_some() { "worker" } else { "hive" }.into();
    to.event("log", &json!(LogLine { node, worker, stream, line }).to_string()).await
}

pub async fn logs(hive: &Arc<Hive>, request: &Request) -> Result<Response, Failure> {
    let query = LogQuery::read(|name| request.query(name))?;
    let Some(id) = query.worker.clone() else { return Ok(all(hive, query)) };
    if let Ok(worker) = hive.workers.get(&id) {
        let (to, response) = sse::channel();
        let source = source(hive, Some(id), &worker.log, &query);
        let shutdown = hive.shutdown.clone();
        tokio::spawn(async move {
            let told = tokio::select! {
                told = source.tell(to.clone()) => told,
                () = shutdown.drained() => return end(&to, true).await,
            };
            if told.is_ok() {
                end(&to, false).await;
            }
        });
        return Ok(response);
    }
    let path = path_of(&hive.workers.settings().logs, &id);
    let read =
        tokio::task::spawn_blocking(move || path.exists().then(|| process::log_tail(&path, query.tail)));
    let Some(lines) = read.await.ok().flatten() else {
        let unknown = format!("there is no log of a worker {id} here; see `rbee workers list`");
        return Err(Failure::new(Code::WorkerNotFound, unknown));
    };
    let (to, response) = sse::channel();
    let node = hive.options.name.clone();
    tokio::spawn(async move {
        for line in lines {
            if tell(&to, node.clone(), Some(id.clone()), line).await.is_err() {
                return;
            }
        }
        end(&to, false).await;
    });
    Ok(response)
}

fn source(hive: &Hive, worker: Option<String>, lines: &Arc<Lines>, query: &LogQuery) -> Source {
    let reader = lines.reader(query.tail, query.follow);
    Source { node: hive.options.name.clone(), worker, reader }
}

/// The hive's own log and those of its workers; with `follow` also of those to come.
fn all(hive: &Arc<Hive>, mut query: LogQuery) -> Response {
    let (to, response) = sse::channel();
    let hive = hive.clone();
    let own = source(&hive, None, &log::lines(), &query);
    tokio::spawn(async move {
        let mut telling = JoinSet::new();
        if !query.follow {
            // One after the other, as `tail` shows several files.
            let mut told = own.tell(to.clone()).await;
            for (id, lines) in running(&hive) {
                if told.is_ok() {
                    told = source(&hive, Some(id), &lines, &query).tell(to.clone()).await;
                }
            }
            return if told.is_ok() {
                end(&to, false).await
            };
        }
        telling.spawn(own.tell(to.clone()));
        let mut table = hive.workers.watch();
        let mut known = HashSet::new();
        loop {
            table.mark_unchanged();
            for (id, lines) in running(&hive) {
                if known.insert(id.clone()) {
                    telling.spawn(source(&hive, Some(id), &lines, &query).tell(to.clone()));
                }
            }
            // Who comes later is told from its first line on.
            query.tail = TAIL_LINES_MAX;
            tokio::select! {
                () = to.closed() => return,
                () = hive.shutdown.drained() => return end(&to, true).await,
                // The table lives as long as the hive.
                _ = table.changed() => {}
                Some(_) = telling.join_next() => {}
            }
        }
    });
    response
}

fn running(hive: &Hive) -> Vec<(String, Arc<Lines>)> {
    let table = hive.workers.watch();
    let table = table.borrow();
    table.values().map(|worker| (worker.info.worker_id.clone(), worker.log.clone())).collect()
}

/// The last word. One that follows would not have ended by itself.
async fn end(to: &Sender, broken_off: bool) {
    let terminator =
        if broken_off { Terminator::Error("the hive is shutting down".into()) } else { Terminator::Done };
    // Whether the reader is still there no longer matters.
    let _ = to.data(&terminator.to_string()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_go_and_those_of_running_workers_and_of_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path();
        for number in 0..WORKER_LOGS_KEPT_MAX + 5 {
            let path = path_of(logs, &format!("w{number}"));
            std::fs::write(&path, "said").unwrap();
            std::fs::write(path.with_extension("log.tail"), "said").unwrap();
            let changed = SystemTime::now() - Duration::from_secs(1_000 - number as u64);
            std::fs::File::options().append(true).open(&path).unwrap().set_modified(changed).unwrap();
        }
        let aged = path_of(logs, "aged");
        std::fs::write(&aged, "said").unwrap();
        let long_ago = SystemTime::now() - 2 * WORKER_LOG_AGE_MAX;
        std::fs::File::options().append(true).open(&aged).unwrap().set_modified(long_ago).unwrap();
        std::fs::write(logs.join("hive.log"), "said").unwrap();
        forget_old(logs, &HashSet::from(["w0".to_owned()]));
        let left = |id: &str| path_of(logs, id).exists();
        assert!(left("w0"), "it runs");
        assert!(!left("w1") && !left("w4") && !left("aged"));
        assert!(!path_of(logs, "w1").with_extension("log.tail").exists());
        assert!(left("w5") && left("w68"), "the newest {WORKER_LOGS_KEPT_MAX} stay");
        assert!(logs.join("hive.log").exists());
    }
}
