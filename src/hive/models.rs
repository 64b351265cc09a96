//! What a hive's jobs do with the models on its disk, one function an operation.

use crate::hive::Hive;
use crate::job::{Context, Outcome};
use crate::model::{Fetched, Reference, Stored, Turn};
use crate::wire::fleet::{ModelInfo, ModelNames};
use crate::wire::job::Receipt;
use crate::wire::{Code, Failure};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// What telemetry says of models at most: half of a frame, as many times what a node has.
const NAMES_BYTES_MAX: usize = 2 << 20;

/// What can be used here.
pub fn ids(hive: &Hive) -> Vec<String> {
    hive.store.names().into_iter().map(|model| model.id).collect()
}

/// The same with all names, as much as a frame has room for.
pub fn names(hive: &Hive) -> Vec<ModelNames> {
    let mut bytes = 0;
    let mut all = hive.store.names();
    let has_room = |model: &ModelNames| {
        bytes += model.id.len() + model.names.iter().map(String::len).sum::<usize>();
        bytes <= NAMES_BYTES_MAX
    };
    let told = all.iter().map(has_room).take_while(|has_room| *has_room).count();
    if told < all.len() {
        tracing::warn!(models = all.len(), told, "the names of all models are too long to tell the queen");
        all.truncate(told);
    }
    all
}

pub fn list(hive: &Hive) -> Value {
    let models: Vec<Value> = hive.store.list().into_iter().map(|model| with_users(hive, model)).collect();
    json!({ "models": models })
}

/// The facts of a model, also of one that is damaged; of a person's own file as it is now.
pub fn get(hive: &Hive, name: &str) -> Result<Value, Failure> {
    let reference = Reference::parse(name)?;
    let info = match hive.store.find(&reference)? {
        Some(stored) => Some(stored.info),
        None => hive.store.facts(&reference),
    };
    info.map(|info| with_users(hive, info)).ok_or_else(|| not_here(hive, name))
}

pub async fn download(hive: &Arc<Hive>, name: &str, job: &Context) -> Outcome {
    let started = Instant::now();
    let reference = match Reference::parse(name) {
        Ok(reference) => reference,
        Err(error) => return Outcome::Failed(error.into()),
    };
    match hive.store.fetch_with(&reference, &|event| job.emit(event), job.token(), job.hurry()).await {
        Ok(Fetched::Stored(stored)) => {
            hive.models_changed.send_replace(());
            Outcome::Done(with_users(hive, stored.info))
        }
        Ok(Fetched::Cancelled(receipt)) => cancelled(receipt, started),
        Err(failure) => Outcome::Failed(failure),
    }
}

/// The model that a worker is to be started for, and the turn at it. `None` when cancelled.
pub async fn ready(hive: &Hive, name: &str, job: &Context) -> Result<Option<(Box<Stored>, Turn)>, Failure> {
    let reference = Reference::parse(name)?;
    let id = hive.store.facts(&reference).ok_or_else(|| not_here(hive, name))?.id;
    let Some(turn) = take_turn(hive, &id, job).await else { return Ok(None) };
    let ready = hive.store.ready(&Reference::read(&id)?, &|event| job.emit(event), job.token()).await;
    if matches!(&ready, Err(failure) if failure.code == Code::ChecksumMismatch) {
        hive.models_changed.send_replace(());
    }
    match ready?.ok_or_else(|| not_here(hive, name))? {
        Fetched::Stored(stored) => Ok(Some((stored, turn))),
        Fetched::Cancelled(_) => Ok(None),
    }
}

pub async fn remove(hive: &Arc<Hive>, name: &str, job: &Context) -> Outcome {
    let id = Reference::parse(name)
        .map_err(Failure::from)
        .and_then(|reference| hive.store.to_remove(&reference))
        .and_then(|id| id.ok_or_else(|| not_here(hive, name)));
    let id = match id {
        Ok(id) => id,
        Err(failure) => return Outcome::Failed(failure),
    };
    let Some(turn) = take_turn(hive, &id, job).await else { return Outcome::Cancelled(Receipt::default()) };
    let ours = hive.clone();
    // Whoever uses it is looked for with the turn in hand: a worker is started under the same.
    let work = move || ours.store.remove(&turn, &users(&ours, &id));
    let removed =
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Failure::internal(&error)));
    hive.models_changed.send_replace(());
    let removal = removed.and_then(|removal| removal.ok_or_else(|| not_here(hive, name)));
    if let Ok(removal) = &removal {
        for path in &removal.kept {
            job.narrate("remove", format!("{} stays: it is not rbee's to remove", path.display()));
        }
    }
    removal.map(|removal| json!(removal)).into()
}

pub async fn verify(hive: &Arc<Hive>, name: Option<&str>, job: &Context) -> Outcome {
    let started = Instant::now();
    let reference = match name.map(Reference::parse).transpose() {
        Ok(reference) => reference,
        Err(error) => return Outcome::Failed(error.into()),
    };
    let missing = reference.as_ref().filter(|reference| hive.store.facts(reference).is_none());
    if missing.is_some() {
        return Outcome::Failed(not_here(hive, name.unwrap_or_default()));
    }
    let verified = hive.store.verify(reference.as_ref(), &|event| job.emit(event), job.token()).await;
    // What is damaged is not offered any more, what was mended is again.
    hive.models_changed.send_replace(());
    match verified {
        Ok(Some(verified)) => match verified.failure() {
            Some(failure) => Outcome::Failed(failure),
            None => Outcome::Done(json!(verified)),
        },
        Ok(None) => cancelled(Receipt::default(), started),
        Err(failure) => Outcome::Failed(failure),
    }
}

pub async fn prune(hive: &Arc<Hive>, is_wanted: bool) -> Outcome {
    let ours = hive.clone();
    let pruned = tokio::task::spawn_blocking(move || ours.store.prune(is_wanted)).await;
    hive.models_changed.send_replace(());
    pruned.unwrap_or_else(|error| Err(Failure::internal(&error))).map(|pruned| json!(pruned)).into()
}

pub fn set_alias(hive: &Hive, name: &str, model: &str) -> Result<Value, Failure> {
    let alias = hive.store.set_alias(name, Reference::parse(model)?)?;
    hive.models_changed.send_replace(());
    Ok(json!(alias))
}

pub fn remove_alias(hive: &Hive, name: &str) -> Result<Value, Failure> {
    let alias = hive.store.remove_alias(name)?;
    hive.models_changed.send_replace(());
    Ok(json!(alias))
}

/// `None` when cancelled while somebody else is at the model.
async fn take_turn(hive: &Hive, id: &str, job: &Context) -> Option<Turn> {
    job.turn(format!("somebody is at {id} already; waiting"), hive.store.turn(id)).await
}

/// The workers that hold a model.
fn users(hive: &Hive, id: &str) -> Vec<String> {
    let workers = hive.workers.infos().into_iter().filter(|worker| worker.model == id);
    workers.map(|worker| worker.worker_id).collect()
}

fn with_users(hive: &Hive, mut model: ModelInfo) -> Value {
    model.in_use_by = users(hive, &model.id);
    serde_json::to_value(model).unwrap_or_default()
}

fn cancelled(receipt: Receipt, started: Instant) -> Outcome {
    Outcome::Cancelled(Receipt { ms: started.elapsed().as_millis() as u64, ..receipt })
}

fn not_here(hive: &Hive, name: &str) -> Failure {
    let names = ids(hive);
    let known = if names.is_empty() {
        "there is none yet".into()
    } else {
        format!("there are: {}", names.join(", "))
    };
    Failure::new(
        Code::ModelNotFound,
        format!("this node has no model `{name}`; {known}. Fetch it with `rbee model download {name}`"),
    )
}
