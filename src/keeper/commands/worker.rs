//! `rbee worker …`: the workers that a hive can install and has installed.

use super::models::ask;
use crate::catalog;
use crate::config::Settings;
use crate::keeper::render::{Render, ago, printable, size};
use crate::keeper::server::Server;
use crate::keeper::{KeeperError, start};
use crate::wire::catalog::{CatalogEntry, InstalledWorker};
use crate::wire::operation::HiveOperation;
use crate::wire::{Code, Failure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A sum's digits in a table; `get` shows all.
const SUM_DIGITS: usize = 12;

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing the list", error)
}

pub(super) fn read<T: DeserializeOwned>(what: &str, value: &Value) -> Result<T, KeeperError> {
    T::deserialize(value).map_err(|error| KeeperError::local(format!("reading {what}"), error))
}

/// The id that was asked for; `cpu`, `cuda` and `metal` stand for our own workers.
fn named(settings: &Settings) -> Result<String, KeeperError> {
    let text = settings.positionals().join(" ");
    let id = catalog::worker_id(text.trim());
    catalog::check_id(id).map_err(|error| KeeperError::Refused(error.into()))?;
    Ok(id.to_owned())
}

pub async fn available(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    #[derive(Deserialize)]
    struct Answer {
        workers: Vec<CatalogEntry>,
        warning: Option<Failure>,
    }
    let answer = ask(settings, render, HiveOperation::WorkerCatalogList).await?;
    let Answer { workers, warning } = read("the catalog", &answer)?;
    if let Some(warning) = warning {
        let code = serde_json::to_value(warning.code).unwrap_or_default();
        let code = code.as_str().unwrap_or("UNKNOWN");
        render.say(&format!("warning: {} ({code})", printable(&warning.message)));
        let wrong = warning.details.get("log").and_then(Value::as_array);
        for line in wrong.into_iter().flatten().filter_map(Value::as_str) {
            render.say(&format!("  | {}", printable(line)));
        }
    }
    if render.is_json() {
        return render.value(&json!(workers)).map_err(writing);
    }
    let row = |entry: &CatalogEntry| {
        vec![
            entry.id.clone(),
            entry.name.clone(),
            entry.worker_type.clone(),
            entry.platforms.join(", "),
            entry.description.clone(),
        ]
    };
    let columns = &["id", "name", "type", "platforms", "description"];
    render.table(columns, workers.iter().map(row).collect()).map_err(writing)
}

pub async fn list(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    #[derive(Deserialize)]
    struct Answer {
        workers: Vec<InstalledWorker>,
    }
    let answer = ask(settings, render, HiveOperation::WorkerListInstalled).await?;
    let workers = read::<Answer>("the list", &answer)?.workers;
    if render.is_json() {
        return render.value(&json!(workers)).map_err(writing);
    }
    let row = |worker: &InstalledWorker| {
        vec![
            worker.worker_id.clone(),
            worker.version.clone(),
            worker.backend.clone(),
            size(worker.size_bytes),
            format!("{} ago", ago(worker.installed_at)),
            worker.source.clone(),
            worker.recipe_sha256.chars().take(SUM_DIGITS).collect(),
        ]
    };
    let columns = &["id", "version", "type", "size", "installed", "source", "recipe"];
    render.table(columns, workers.iter().map(row).collect()).map_err(writing)
}

/// Installed first, then the catalog.
pub async fn get(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let worker_id = named(settings)?;
    let installed = HiveOperation::WorkerInstalledGet { worker_id: worker_id.clone() };
    match ask(settings, render, installed).await {
        Ok(worker) => show_installed(render, &worker),
        Err(KeeperError::Refused(failure)) if failure.code == Code::WorkerNotFound => {
            let entry = ask(settings, render, HiveOperation::WorkerCatalogGet { worker_id }).await?;
            show_entry(render, &entry)
        }
        Err(error) => Err(error),
    }
}

/// Starts what is missing, as `model download` does.
pub async fn download(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let operation = HiveOperation::WorkerInstall { worker_id: named(settings)? };
    start::ensure(settings, render, &Server::of(settings)?, false).await?;
    let worker = ask(settings, render, operation).await?;
    show_installed(render, &worker)
}

pub async fn remove(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    #[derive(Deserialize)]
    struct Removal {
        id: String,
        bytes_freed: u64,
    }
    let removal = ask(settings, render, HiveOperation::WorkerRemove { worker_id: named(settings)? }).await?;
    if render.is_json() {
        return render.value(&removal).map_err(writing);
    }
    let Removal { id, bytes_freed } = read("the removal", &removal)?;
    render.answer(&format!("removed {}, {} freed\n", printable(&id), size(bytes_freed))).map_err(writing)
}

fn show_installed(render: &Render, worker: &Value) -> Result<(), KeeperError> {
    if render.is_json() {
        return render.value(worker).map_err(writing);
    }
    let worker: InstalledWorker = read("the worker", worker)?;
    facts(
        render,
        vec![
            ("worker", worker.worker_id),
            ("version", worker.version),
            ("type", worker.backend),
            ("size", size(worker.size_bytes)),
            ("installed", format!("{} ago", ago(worker.installed_at))),
            ("source", worker.source),
            ("recipe sha256", worker.recipe_sha256),
            ("path", worker.path),
        ],
    )
}

fn show_entry(render: &Render, entry: &Value) -> Result<(), KeeperError> {
    if render.is_json() {
        return render.value(entry).map_err(writing);
    }
    let entry: CatalogEntry = read("the entry", entry)?;
    let build = [entry.build.features, entry.build.flags].into_iter().flatten().flatten();
    let mut told = vec![
        ("recipe", entry.id),
        ("name", entry.name),
        ("description", entry.description),
        ("installed", "no".to_owned()),
        ("version", entry.version),
        ("type", entry.worker_type),
        ("platforms", entry.platforms.join(", ")),
        ("architectures", entry.architectures.join(", ")),
        ("license", entry.license),
        ("source", entry.source.url),
        ("build", [vec![entry.build_system], build.collect()].concat().join(" ")),
        ("needs to build", entry.makedepends.join(", ")),
        ("needs to run", entry.depends.join(", ")),
        ("formats", entry.supported_formats.join(", ")),
        ("options", entry.options.join(", ")),
    ];
    told.retain(|(_, fact)| !fact.is_empty());
    facts(render, told)
}

/// Names and facts, one a line.
pub(super) fn facts(render: &Render, facts: Vec<(&str, String)>) -> Result<(), KeeperError> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let line = |(name, fact): &(&str, String)| format!("{name:width$}  {}\n", printable(fact));
    render.answer(&facts.iter().map(line).collect::<String>()).map_err(writing)
}
