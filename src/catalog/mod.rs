//! Recipes: what workers can be built, and from what. A node asks the catalog it was told of, or the one that it carries;
//! `rbee catalog serve` is the same catalog for other machines.

mod built_in;
mod entry;
mod folder;
mod recipe;
mod remote;
pub mod requirements;
pub mod server;

pub use built_in::BUILT_IN;
pub use entry::{EntryError, check_id, is_file_name};
pub use folder::{Folder, FolderError};
pub use recipe::{ARCHIVE, Recipe, archive_name};

use crate::http::client::{ClientError, Target};
use crate::pkgbuild::Origin;
use crate::wire::catalog::CatalogEntry;
use crate::wire::{Code, Failure, failure};
use remote::Remote;
use std::path::Path;
use std::pin::Pin;

/// The longest file beside a PKGBUILD: patches, unit files, our own source.
pub const LOCAL_FILE_BYTES_MAX: usize = 16 << 20;

/// What can be installed, and whose list it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    pub entries: Vec<CatalogEntry>,
    /// The catalog's address, or `built-in`.
    pub source: String,
    /// Why it is not the list that was asked for, or not all of it.
    pub warning: Option<Failure>,
}

/// Where this node's recipes come from.
#[derive(Debug, Clone)]
pub struct Catalog {
    remote: Option<Remote>,
}

impl Catalog {
    /// The catalog at `url`, asked with `key`; without an address the one that is built in.
    pub fn new(url: Option<&str>, key: Option<&str>) -> Result<Self, ClientError> {
        let remote = url.map(|url| Ok(Remote::new(Target::parse(url)?.with_key(key), key.is_some())));
        Ok(Catalog { remote: remote.transpose()? })
    }

    /// The configured catalog's address, or `built-in`.
    pub fn source(&self) -> String {
        self.remote.as_ref().map_or_else(|| BUILT_IN.to_owned(), Remote::name)
    }

    /// Addresses that a recipe's sources may be at though they are private ones: the configured catalog's own.
    pub fn trusted(&self) -> Vec<String> {
        self.remote.as_ref().map(Remote::name).into_iter().collect()
    }

    /// What can be installed. A configured catalog that is down is told of, and the built-in list stands in for it (B40).
    pub async fn list(&self) -> Listing {
        let warning = match &self.remote {
            None => None,
            Some(remote) => match remote.list().await {
                Ok(listing) => return listing,
                Err(failure) => Some(failure),
            },
        };
        Listing { entries: built_in::entries().to_vec(), source: BUILT_IN.to_owned(), warning }
    }

    /// The recipe of an id, or of `cpu`, `cuda`, `metal`. A configured catalog alone is asked: what it may say otherwise of an
    /// id is not for us to guess while it is down.
    pub async fn get(&self, id: &str) -> Result<Recipe, Failure> {
        let id = worker_id(id);
        check_id(id)?;
        match &self.remote {
            None => built_in::recipe(id).ok_or_else(|| unknown(id, BUILT_IN)),
            Some(remote) => remote.get(id).await.map_err(|failure| match failure.code {
                Code::WorkerNotFound | Code::NotFound => unknown(id, &remote.name()),
                _ => failure,
            }),
        }
    }

    /// Puts a file that lies beside a recipe's PKGBUILD at `to`.
    pub async fn file(&self, id: &str, name: &str, to: &Path) -> Result<(), Failure> {
        check_id(id)?;
        let missing = || {
            Failure::new(
                Code::RecipeInvalid,
                format!("the recipe {id} of {} has no file `{name}`", self.source()),
            )
        };
        if !is_file_name(name) {
            return Err(missing());
        }
        let bytes = match &self.remote {
            None => built_in::file(id, name).ok_or_else(missing)?.into_owned().into(),
            Some(remote) => remote.file(id, name).await.map_err(|failure| match failure.code {
                Code::WorkerNotFound | Code::NotFound => missing(),
                _ => failure,
            })?,
        };
        tokio::fs::write(to, bytes).await.map_err(|error| {
            let why = failure::chain(&error);
            Failure::new(Code::DownloadFailed, format!("writing `{}`: {why}", to.display()))
        })
    }

    /// The files beside one recipe.
    pub fn files(&self, id: &str) -> Files {
        Files { catalog: self.clone(), id: worker_id(id).to_owned() }
    }
}

/// The files beside one recipe, for whoever builds it.
#[derive(Debug, Clone)]
pub struct Files {
    catalog: Catalog,
    id: String,
}

impl Origin for Files {
    fn file<'a>(
        &'a self,
        name: &'a str,
        to: &'a Path,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(self.catalog.file(&self.id, name, to))
    }
}

fn unknown(id: &str, source: &str) -> Failure {
    let message =
        format!("no recipe is called `{id}` in the {source} catalog; `rbee worker available` lists them");
    Failure::new(Code::WorkerNotFound, message)
}

/// The id that a worker type stands for: our own worker of that kind. Ids stay as they are.
pub fn worker_id(word: &str) -> &str {
    match word {
        "cpu" => "llm-worker-rbee-cpu",
        "cuda" => "llm-worker-rbee-cuda",
        "metal" => "llm-worker-rbee-metal",
        id => id,
    }
}
