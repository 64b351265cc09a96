//! From `source=` to `$srcdir`: every source brought, verified, and laid where the recipe looks for it. `$startdir`, where
//! makepkg has the files, has links to them.

use super::Order;
use super::errand::Errands;
use super::execute::Stop;
use super::fetch::Limits;
use super::fetch::{self, FetchOrder};
use super::metadata::Metadata;
use super::source::{self, Source};
use super::trust::Trusted;
use super::unpack;
use super::work::Work;
use crate::wire::job::JobEvent;
use crate::wire::{Code, Failure};
use std::os::unix::fs::symlink;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// What lies in `$startdir` already.
const TAKEN: [&str; 2] = ["PKGBUILD", "src"];

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
        id: &order.name(),
        cache: &order.sources,
        work: &work.root,
        origin: order.origin.as_ref(),
        trusted: &trusted,
        limits: &limits,
        env: &order.env,
        errands,
    };
    let fetched = fetch::fetch(&all, &fetching, tell).await?;
    unpack::unpack(&fetched, &metadata.noextract, &work.sources, &fetching, tell).await?;
    for one in &fetched {
        let link = symlink(Path::new("src").join(&one.name), work.start.join(&one.name));
        link.map_err(|error| work.failed("linking sources in", &error))?;
    }
    Ok(())
}
