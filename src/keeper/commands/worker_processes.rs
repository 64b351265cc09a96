//! `rbee worker process …`: the processes that a hive has started. It ends no others (B45).

use super::models::ask;
use super::worker::{facts, read};
use crate::config::Settings;
use crate::keeper::KeeperError;
use crate::keeper::render::{Render, size};
use crate::wire::catalog::ProcessInfo;
use crate::wire::operation::HiveOperation;
use serde::Deserialize;
use serde_json::{Value, json};

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing the list", error)
}

fn named(settings: &Settings) -> Result<i32, KeeperError> {
    let text = settings.positionals().join(" ");
    let number = text.parse::<i32>().ok().filter(|pid| *pid > 0);
    number.ok_or_else(|| {
        KeeperError::Usage(format!("`{text}` is no process' number; see `rbee worker process list`"))
    })
}

pub async fn list(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    #[derive(Deserialize)]
    struct Answer {
        processes: Vec<ProcessInfo>,
    }
    let answer = ask(settings, render, HiveOperation::WorkerProcessList).await?;
    let processes = read::<Answer>("the processes", &answer)?.processes;
    if render.is_json() {
        return render.value(&json!(processes)).map_err(writing);
    }
    let row = |process: &ProcessInfo| {
        vec![
            process.pid.to_string(),
            process.worker_id.clone(),
            memory(process),
            format!("{:.1} %", process.cpu_percent),
            elapsed(process.elapsed),
            process.command.clone(),
        ]
    };
    let columns = &["pid", "worker", "memory", "cpu", "elapsed", "command"];
    render.table(columns, processes.iter().map(row).collect()).map_err(writing)
}

pub async fn get(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let process = ask(settings, render, HiveOperation::WorkerProcessGet { pid: named(settings)? }).await?;
    if render.is_json() {
        return render.value(&process).map_err(writing);
    }
    let process: ProcessInfo = read("the process", &process)?;
    facts(
        render,
        vec![
            ("pid", process.pid.to_string()),
            ("worker", process.worker_id.clone()),
            ("memory", memory(&process)),
            ("cpu", format!("{:.1} %", process.cpu_percent)),
            ("elapsed", elapsed(process.elapsed)),
            ("command", process.command),
        ],
    )
}

/// The result is the hive's to choose; what matters to a person is that it is over.
pub async fn delete(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let pid = named(settings)?;
    let ended: Value = ask(settings, render, HiveOperation::WorkerProcessDelete { pid }).await?;
    match render.is_json() {
        true => render.value(&ended).map_err(writing),
        false => render.answer(&format!("process {pid} has ended\n")).map_err(writing),
    }
}

fn memory(process: &ProcessInfo) -> String {
    size(process.memory_kb.saturating_mul(1024))
}

/// `3m12s`.
fn elapsed(seconds: u64) -> String {
    match seconds {
        0..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}
