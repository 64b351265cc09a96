//! From `source=` to `$srcdir`: every source brought, verified, and laid where the recipe looks for it.
//!
//! As with makepkg a file lies in `$startdir` and `$srcdir` has a link to it, and archives are unpacked beside the link.
//! Unlike there it is a copy: a build that writes to it must not change the download that other builds use.

use super::Order;
use super::download::Limits;
use super::errand::Errands;
use super::execute::Stop;
use super::fetch::{self, FetchOrder, Fetched, Kept};
use super::git;
use super::metadata::Metadata;
use super::source::{self, Source};
use super::trust::Trusted;
use super::work::Work;
use crate::wire::job::JobEvent;
use crate::wire::{Code, Failure};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// What lies in `$startdir` already.
const TAKEN: [&str; 3] = ["PKGBUILD", "src", "pkg"];

impl From<fetch::Stop> for Stop {
    fn from(stop: fetch::Stop) -> Self {
        match stop {
            fetch::Stop::Cancelled(receipt) => Stop::Cancelled(receipt),
            fetch::Stop::Failed(failure) => Stop::Failed(failure),
        }
    }
}

/// Brings what the recipe names and lays it into the work folder.
pub(super) async fn sources(
    order: &Order,
    metadata: &Metadata,
    work: &Work,
    tell: &(dyn Fn(JobEvent) + Send + Sync),
    cancel: &CancellationToken,
    hurry: &CancellationToken,
) -> Result<(), Stop> {
    std::fs::create_dir(&work.sources).map_err(|error| work.failed("making folders in", &error))?;
    let mut all: Vec<Source> = Vec::new();
    for array in &metadata.sources {
        all.extend(source::parse(&array.sources, &array.sums).map_err(Failure::from)?);
    }
    if let Some(source) = all.iter().find(|source| TAKEN.contains(&source.name.as_str())) {
        let sentence =
            format!("a source cannot have the name `{}`, which a build has for itself", source.name);
        return Err(Failure::new(Code::RecipeInvalid, sentence).into());
    }
    if all.is_empty() {
        return Ok(());
    }
    let (trusted, limits) = (Trusted::new(&order.trusted), Limits::default());
    let errands = Errands { processes: &order.processes, shim: order.shim.as_deref(), cancel, hurry };
    let fetching = FetchOrder {
        id: &order.recipe,
        cache: &order.sources,
        work: &work.root,
        origin: order.origin.as_ref(),
        trusted: &trusted,
        limits: &limits,
        env: &order.env,
        errands,
    };
    let fetched = fetch::fetch(&all, &fetching, tell).await?;
    for one in &fetched {
        match &one.kept {
            Kept::File(path) => lay(one, path, work).await?,
            Kept::Git { mirror, commit } => {
                git::check_out(one, mirror, commit, &work.sources, &fetching, tell).await?;
            }
        }
    }
    Ok(())
}

/// The file into `$startdir`, a link to it into `$srcdir`.
async fn lay(fetched: &Fetched, from: &Path, work: &Work) -> Result<(), Failure> {
    let (to, link) = (work.start.join(&fetched.name), work.sources.join(&fetched.name));
    let (from, is_ours) = (from.to_owned(), from.starts_with(&work.root));
    let laid = tokio::task::spawn_blocking(move || -> io::Result<()> {
        match is_ours {
            true => std::fs::rename(&from, &to)?,
            false => std::fs::copy(&from, &to).map(|_| ())?,
        }
        symlink(&to, &link)
    });
    let laid = laid.await.map_err(|error| Failure::internal(&error))?;
    laid.map_err(|error| work.failed("laying sources into", &error))
}
