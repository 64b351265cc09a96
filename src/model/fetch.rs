//! How a model comes to be on this machine: already there, found in the hub's cache, from the hub, or from a package.

use super::gguf::{self, Header};
use super::hub::Places;
use super::package;
use super::partial::{self, Partial, PartialError};
use super::recipe::{self, HubFile, Recipe};
use super::reference::Reference;
use super::store::{Store, Stored, invalid};
use super::transfer::{Transfer, TransferError};
use crate::job::progress::{Events, size};
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::{Code, Failure, failure};
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) const ACTION: &str = "model_download";
/// Left free on the disk beside the model.
const DISK_RESERVE_BYTES: u64 = 64 << 20;
const INCOMPLETE: &str = "incomplete";

/// How a fetch ended.
#[derive(Debug)]
pub enum Fetched {
    Stored(Box<Stored>),
    /// The token was cancelled, and what had been started is gone.
    Cancelled(Receipt),
}

/// Why a way to a model did not lead there.
pub(super) enum Stop {
    Cancelled(Receipt),
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

impl Store {
    /// Makes the model be there. Two who ask for one model share one download.
    pub async fn fetch(
        &self,
        reference: &Reference,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<Fetched, Failure> {
        let recipe = match reference {
            Reference::Name(name) => Some(recipe::find(name).ok_or_else(|| unknown(name))?),
            _ => None,
        };
        self.fetch_as(reference, recipe.as_deref(), events, cancel).await
    }

    /// Makes the model of a recipe be there.
    pub async fn fetch_recipe(
        &self,
        recipe: &Recipe,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<Fetched, Failure> {
        self.fetch_as(&Reference::Name(recipe.id.clone()), Some(recipe), events, cancel).await
    }

    async fn fetch_as(
        &self,
        reference: &Reference,
        recipe: Option<&Recipe>,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<Fetched, Failure> {
        let lock = self.fetch_lock(&reference.to_string());
        let turn = match lock.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                events(JobEvent::narrate(
                    ACTION,
                    format!("{reference} is being fetched already; waiting for it"),
                ));
                match cancel.run_until_cancelled(lock.lock()).await {
                    Some(turn) => turn,
                    None => return Ok(Fetched::Cancelled(Receipt::default())),
                }
            }
        };
        let fetched = self.fetch_alone(reference, recipe, events, cancel).await;
        drop(turn);
        match fetched {
            Ok(stored) => Ok(Fetched::Stored(Box::new(stored))),
            Err(Stop::Cancelled(receipt)) => Ok(Fetched::Cancelled(receipt)),
            Err(Stop::Failed(failure)) => Err(failure),
        }
    }

    async fn fetch_alone(
        &self,
        reference: &Reference,
        recipe: Option<&Recipe>,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<Stored, Stop> {
        if let Some(stored) = self.find(reference)? {
            events(JobEvent::narrate(
                ACTION,
                format!("{reference} is already there: {}", stored.path.display()),
            ));
            return Ok(stored);
        }
        match (reference, recipe) {
            (_, Some(recipe)) => {
                let path = self.bring_recipe(recipe, events, cancel).await?;
                let header = inspect(&path).await?;
                Ok(self.add_file(reference, &path, Some(recipe), header)?)
            }
            (Reference::File(path), None) => {
                let header = inspect(path).await?;
                Ok(self.add_file(reference, path, None, header)?)
            }
            _ => Err(unknown(&reference.to_string()).into()),
        }
    }

    /// The path by which the model is used.
    async fn bring_recipe(
        &self,
        recipe: &Recipe,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<PathBuf, Stop> {
        let hub = &self.settings.hub;
        let places = match &recipe.hub {
            Some(file) => hub.places(file, recipe.sha256),
            None => package::places(&self.settings.records, recipe),
        };
        let places = places.map_err(|e| Failure::invalid(failure::chain(&e)))?;
        if self.is_cached(recipe, &places, cancel).await? {
            events(JobEvent::narrate(ACTION, format!("{} is on this machine already", recipe.id)));
        } else if hub.offline {
            let message =
                format!("{} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it", recipe.id);
            return Err(Failure::new(Code::DownloadFailed, message).into());
        } else {
            let folder = places.blob.parent().unwrap_or(&places.folder);
            std::fs::create_dir_all(folder).map_err(|e| writing(folder, &e))?;
            let started = Instant::now();
            self.fetch_bytes(recipe, &places, events, cancel).await?;
            let took = started.elapsed().as_secs_f32();
            let told = format!("{}: {} in {took:.1} s, SHA-256 verified", recipe.id, size(recipe.size));
            events(JobEvent::narrate(ACTION, told));
        }
        link(&places).map_err(|e| writing(&places.snapshot, &e))?;
        Ok(places.snapshot)
    }

    /// Whether another tool, or an earlier self, has put the very bytes there.
    async fn is_cached(
        &self,
        recipe: &Recipe,
        places: &Places,
        cancel: &CancellationToken,
    ) -> Result<bool, Stop> {
        match places.blob.metadata() {
            Ok(meta) if meta.is_file() && meta.len() == recipe.size => {}
            _ => return Ok(false),
        }
        let (blob, token) = (places.blob.clone(), cancel.clone());
        let digest = tokio::task::spawn_blocking(move || partial::digest_of(&blob, &token)).await;
        match digest {
            Ok(Ok(Some(digest))) => Ok(digest == recipe.sha256),
            Ok(Ok(None)) => Err(Stop::Cancelled(Receipt::default())),
            // Not readable is not there.
            Ok(Err(_)) | Err(_) => Ok(false),
        }
    }

    /// The hub first, then the packages. If both fail, the hub's reason is the code, and both are told.
    async fn fetch_bytes(
        &self,
        recipe: &Recipe,
        places: &Places,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let Some(file) = &recipe.hub else {
            let from = recipe.fallback.as_ref().ok_or_else(|| nowhere(recipe))?;
            let told = format!("fetching {} ({}) as {}", recipe.id, size(recipe.size), from.label());
            events(JobEvent::narrate(ACTION, told));
            return package::fetch(&self.settings, recipe, from, places, events, cancel).await;
        };
        let failed = match self.fetch_from_hub(recipe, file, places, events, cancel).await {
            Ok(()) => return Ok(()),
            Err(Stop::Failed(failure)) => failure,
            Err(cancelled) => return Err(cancelled),
        };
        let Some(from) = recipe.fallback.as_ref().filter(|_| failed.code != Code::InsufficientDisk) else {
            return Err(failed.into());
        };
        let message = format!("{}; trying {} instead", failed.message, from.label());
        events(JobEvent::warn(ACTION, message));
        match package::fetch(&self.settings, recipe, from, places, events, cancel).await {
            Err(Stop::Failed(second)) => {
                let message = format!(
                    "{}; the Python package did not help either: {}; set HF_ENDPOINT to a hub that can be reached, or give the path of a .gguf file",
                    failed.message, second.message
                );
                Err(Failure { message, ..failed }.into())
            }
            other => other,
        }
    }

    async fn fetch_from_hub(
        &self,
        recipe: &Recipe,
        file: &HubFile,
        places: &Places,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<(), Stop> {
        let hub = &self.settings.hub;
        let incomplete = places.blob.with_extension(INCOMPLETE);
        let opened = Partial::open(incomplete, cancel).await.map_err(|e| partial_failure(&e))?;
        let Some(partial) = opened else { return Err(Stop::Cancelled(Receipt::default())) };
        check_disk(&places.folder, recipe.size.saturating_sub(partial.length()))?;
        let url = hub.url(file).map_err(|e| Failure::invalid(failure::chain(&e)))?;
        let told = match partial.length() {
            0 => format!("fetching {} ({}) from {}", recipe.id, size(recipe.size), url.origin()),
            have => format!(
                "fetching the rest of {} from {}: {} of {} are there",
                recipe.id,
                url.origin(),
                size(have),
                size(recipe.size)
            ),
        };
        events(JobEvent::narrate(ACTION, told));
        let transfer = Transfer {
            url,
            token: hub.token(),
            digest: recipe.sha256,
            size: recipe.size,
            label: &recipe.id,
            has_fallback: recipe.fallback.is_some(),
            limits: &self.settings.limits,
            events,
            cancel,
        };
        match transfer.run(partial.clone()).await {
            Ok(verified) => Ok(verified.publish(&places.blob).await.map_err(|e| partial_failure(&e))?),
            Err(TransferError::Cancelled) => {
                let kept = size(partial.length());
                events(JobEvent::narrate(
                    ACTION,
                    format!("{kept} are kept; the next download goes on from there"),
                ));
                Err(Stop::Cancelled(Receipt::default()))
            }
            Err(error) => {
                partial.remove_if_empty();
                Err(transfer_failure(recipe, &error).into())
            }
        }
    }
}

/// No recipe and no alias.
fn unknown(name: &str) -> Failure {
    let known = recipe::names();
    Failure::new(
        Code::ModelNotFound,
        format!(
            "no model is called `{name}`: give org/repo:Q4_K_M, the path of a .gguf file, or one of {known}"
        ),
    )
}

/// A test reads every recipe in the tree, so this is one that was made elsewhere.
fn nowhere(recipe: &Recipe) -> Failure {
    Failure::new(Code::RecipeInvalid, format!("the recipe of {} names no place to fetch it from", recipe.id))
}

async fn inspect(path: &Path) -> Result<Header, Failure> {
    let file = path.to_owned();
    let header = tokio::task::spawn_blocking(move || gguf::inspect(&file)).await;
    let header = header.map_err(|e| Failure::internal(&e))?.map_err(|error| invalid(path, &error))?;
    match header.split {
        None => Ok(header),
        Some(part) => Err(Failure::new(
            Code::InvalidModel,
            format!(
                "`{}` is part {} of a model split in {}; those come with a later version, merge it with llama-gguf-split",
                path.display(),
                part.number + 1,
                part.count
            ),
        )),
    }
}

/// Told before it starts, and not after an hour.
pub(super) fn check_disk(folder: &Path, needed: u64) -> Result<(), Failure> {
    // A file system that does not tell may still have room.
    let Ok(fs) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let available = fs.f_bavail.saturating_mul(fs.f_frsize);
    let wanted = needed.saturating_add(DISK_RESERVE_BYTES);
    if available >= wanted {
        return Ok(());
    }
    let message = format!(
        "{} are needed in {}, {} are free: make room, or set HF_HUB_CACHE to another disk",
        size(wanted),
        folder.display(),
        size(available)
    );
    let details = json!({"needed": wanted, "available": available});
    Err(Failure::new(Code::InsufficientDisk, message).with(details))
}

/// Names the bytes the way the hub's tools look for them. The new link replaces an old one in one step.
fn link(places: &Places) -> io::Result<()> {
    if std::fs::read_link(&places.snapshot).is_ok_and(|target| target == places.link) {
        return Ok(());
    }
    let folder = places.snapshot.parent().unwrap_or(&places.folder);
    std::fs::create_dir_all(folder)?;
    let fresh = tempfile::Builder::new()
        .prefix(".link")
        .make_in(folder, |path| std::os::unix::fs::symlink(&places.link, path))?;
    fresh.persist(&places.snapshot)?;
    std::fs::File::open(folder)?.sync_all()
}

pub(super) fn writing(path: &Path, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::InsufficientDisk,
        _ => Code::Internal,
    };
    Failure::new(code, format!("writing `{}`: {error}", path.display()))
}

fn partial_failure(error: &PartialError) -> Failure {
    match error {
        PartialError::Busy(_) => Failure::new(Code::Conflict, error.to_string()),
        PartialError::Write { path, source } => writing(path, source),
    }
}

fn transfer_failure(recipe: &Recipe, error: &TransferError) -> Failure {
    if let TransferError::Partial(error) = error {
        return partial_failure(error);
    }
    let code = match error {
        TransferError::Stalled { .. } => Code::DownloadTimeout,
        TransferError::WrongBytes { .. }
        | TransferError::WrongSize { .. }
        | TransferError::TooMuch { .. } => Code::ChecksumMismatch,
        TransferError::NotThere(_) => Code::ModelNotFound,
        TransferError::Denied { .. } => Code::Forbidden,
        _ => Code::DownloadFailed,
    };
    Failure::new(code, format!("fetching {}: {}", recipe.id, failure::chain(error)))
}
