//! Recipes: what a PKGBUILD says, its sources fetched and verified, its functions run behind walls, its product installed.

pub mod checksum;
mod download;
mod errand;
pub mod fetch;
mod git;
pub mod name;
pub mod source;
pub mod trust;
pub mod unpack;

pub use download::Limits;
pub use errand::Errands;

use crate::wire::Failure;
use std::path::Path;
use std::pin::Pin;

/// Where the files beside a PKGBUILD are.
pub trait Origin: Send + Sync {
    fn file<'a>(
        &'a self,
        name: &'a str,
        to: &'a Path,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;
}
