//! How a model comes to be on this machine: already there, found in the hub's cache, from the hub, from an address, or
//! made by a recipe. Whatever the way, bytes get their name only after their sum was right.

mod address;
mod file;
mod hub;
mod recipe;

pub(super) use address::FOLDER as ADDRESSES;
pub(super) use recipe::{FOLDER as PACKAGES, SCRATCH};

use super::gguf::{self, Header};
use super::recipe as recipes;
use super::reference::Reference;
use super::store::{Store, Stored, Turn, invalid};
use super::{HubError, Recipe};
use crate::download::DownloadError;
use crate::job::progress::Events;
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::{Code, Failure, failure};
use std::path::Path;
use tokio_util::sync::CancellationToken;

pub(super) const ACTION: &str = "model_download";

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

impl From<HubError> for Stop {
    fn from(error: HubError) -> Self {
        Stop::Failed(Failure::invalid(failure::chain(&error)))
    }
}

/// One fetch: for whom, and who may end it.
pub(super) struct Errand<'a> {
    pub store: &'a Store,
    pub events: Events<'a>,
    pub cancel: &'a CancellationToken,
    /// Asked to end a build at once, a second time.
    pub hurry: &'a CancellationToken,
}

impl Store {
    /// Makes the model be there. Two who ask for one model share one download.
    pub async fn fetch(
        &self,
        reference: &Reference,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<Fetched, Failure> {
        self.fetch_with(reference, events, cancel, &CancellationToken::new()).await
    }

    /// The same for one who may lose patience with a recipe that is ending.
    pub async fn fetch_with(
        &self,
        reference: &Reference,
        events: Events<'_>,
        cancel: &CancellationToken,
        hurry: &CancellationToken,
    ) -> Result<Fetched, Failure> {
        let reference = self.unaliased(reference.clone());
        let errand = Errand { store: self, events, cancel, hurry };
        let recipe = match &reference {
            Reference::Name(name) => Some(recipes::find(name).ok_or_else(|| unknown(name))?),
            _ => None,
        };
        errand.alone(&reference, recipe.as_deref()).await
    }

    /// Makes the model of a recipe be there.
    pub async fn fetch_recipe(
        &self,
        recipe: &Recipe,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<Fetched, Failure> {
        let never = CancellationToken::new();
        let errand = Errand { store: self, events, cancel, hurry: &never };
        errand.alone(&Reference::Name(recipe.id.clone()), Some(recipe)).await
    }
}

impl Errand<'_> {
    async fn alone(&self, reference: &Reference, recipe: Option<&Recipe>) -> Result<Fetched, Failure> {
        let lock = self.store.fetch_lock(&reference.to_string());
        let turn = match lock.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                self.tell(format!("{reference} is being fetched already; waiting for it"));
                match self.cancel.run_until_cancelled(lock.lock()).await {
                    Some(turn) => turn,
                    None => return Ok(Fetched::Cancelled(Receipt::default())),
                }
            }
        };
        let fetched = self.fetch(reference, recipe).await;
        drop(turn);
        match fetched {
            Ok(stored) => Ok(Fetched::Stored(Box::new(stored))),
            Err(Stop::Cancelled(receipt)) => Ok(Fetched::Cancelled(receipt)),
            Err(Stop::Failed(failure)) => Err(failure),
        }
    }

    async fn fetch(&self, reference: &Reference, recipe: Option<&Recipe>) -> Result<Stored, Stop> {
        // What a branch of the hub holds changes; everything else is what it was.
        if let Reference::Hub(asked) = reference {
            return self.fetch_from_hub(asked).await;
        }
        if let Some(stored) = self.there(reference)? {
            return Ok(stored);
        }
        match (reference, recipe) {
            (_, Some(recipe)) => self.fetch_by_recipe(recipe).await,
            (Reference::Url(url), None) => self.fetch_from_address(url).await,
            (Reference::File(path), None) => {
                let header = inspect(path).await?;
                Ok(self.store.add_own(reference, path, header)?)
            }
            (other, None) => Err(unknown(&other.to_string()).into()),
        }
    }

    /// The turn at what a reference has turned out to mean, besides that at the reference itself.
    async fn turn(&self, id: &Reference) -> Result<Turn, Stop> {
        let id = id.to_string();
        self.cancel
            .run_until_cancelled(self.store.turn(&id))
            .await
            .ok_or_else(|| Stop::Cancelled(Receipt::default()))
    }

    /// What is there already, said so.
    fn there(&self, reference: &Reference) -> Result<Option<Stored>, Stop> {
        let found = self.store.find(reference)?;
        if let Some(stored) = &found {
            self.tell(format!("{} is already there: {}", stored.info.id, stored.path.display()));
        }
        Ok(found)
    }

    fn tell(&self, message: impl Into<String>) {
        (self.events)(JobEvent::narrate(ACTION, message));
    }

    fn warn(&self, message: impl Into<String>) {
        (self.events)(JobEvent::warn(ACTION, message));
    }

    /// Nothing may be asked of anybody.
    fn check_online(&self, name: &str) -> Result<(), Failure> {
        match self.store.settings.hub.offline {
            false => Ok(()),
            true => Err(Failure::new(
                Code::DownloadFailed,
                format!("{name} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it"),
            )),
        }
    }
}

/// No recipe and no alias.
fn unknown(name: &str) -> Failure {
    let known = recipes::names();
    Failure::new(
        Code::ModelNotFound,
        format!(
            "no model is called `{name}`: give org/repo:Q4_K_M, the path of a .gguf file, or one of {known}"
        ),
    )
}

/// The header of a model, checked, whatever brought it.
async fn inspect(path: &Path) -> Result<Header, Failure> {
    let file = path.to_owned();
    let header = tokio::task::spawn_blocking(move || gguf::inspect(&file)).await;
    header.map_err(|e| Failure::internal(&e))?.map_err(|error| invalid(path, &error))
}

/// As the person who asked for `name` should read it.
fn stopped(name: &str, error: &DownloadError) -> Stop {
    match error {
        DownloadError::Cancelled => Stop::Cancelled(Receipt::default()),
        error => Stop::Failed(failure_of(name, error)),
    }
}

/// What is not there is a model here.
pub(super) fn failure_of(name: &str, error: &DownloadError) -> Failure {
    let failure = error.failure(name);
    match failure.code {
        Code::NotFound => Failure { code: Code::ModelNotFound, ..failure },
        _ => failure,
    }
}
