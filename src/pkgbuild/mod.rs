//! Recipes: from a PKGBUILD to files that a node can run.
//!
//! ```text
//!  PKGBUILD ─ bridge: bash tells its variables ─▶ metadata ─ stage: fetch, verify, unpack ─▶ $srcdir
//!    ─ execute: prepare, pkgver, build, check, package, each behind walls ─▶ $pkgdir ─ install: check, rename ─▶ workers/<id>/
//! ```
//!
//! A recipe is a stranger's program. Every line of it, its variables too, runs in a contained tree that reads the
//! system's programs, writes its own folder and reaches no network unless the recipe asks for it by name; listing and
//! comparing recipes never runs one. What makepkg builds is built, what it refuses is refused; tests/recipes.rs holds
//! the two against each other and lists each deliberate difference.

mod bridge;
pub mod checksum;
mod errand;
mod execute;
pub mod fetch;
pub mod fields;
mod git;
mod install;
mod lint;
mod metadata;
mod mirrors;
pub mod name;
mod package;
mod places;
mod sandbox;
pub mod source;
mod stage;
mod toolchain;
mod trees;
pub mod trust;
pub mod unpack;
mod work;

pub use errand::Errands;
pub use execute::{build, metadata};
pub use fetch::Limits;
pub use install::{Declared, Installed, MANIFEST};
pub use lint::NETWORK_IN_PREPARE;
pub use metadata::{Metadata, RecipeError, SourceArray};
pub use package::Built;
pub use places::{BUILD_LOGS_MAX, Places};
pub use toolchain::program_folders;
pub use work::sweep_work;

use crate::wire::Failure;
use crate::wire::job::Receipt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

/// Where files come from that a recipe's `source=` names and that are no addresses: the catalog it came from.
pub trait Origin: Send + Sync {
    fn file<'a>(
        &'a self,
        name: &'a str,
        to: &'a Path,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;
}

/// One build.
#[derive(Clone)]
pub struct Order {
    /// The recipe's id: names logs and trees, and chooses among several packages.
    pub recipe: String,
    pub pkgbuild: String,
    pub origin: Arc<dyn Origin>,
    /// Made by [`build`], gone at its end, however it ends.
    pub work: PathBuf,
    /// Downloads, kept between builds.
    pub sources: PathBuf,
    /// The whole output, head and tail kept.
    pub log: PathBuf,
    /// Records of process trees.
    pub processes: PathBuf,
    /// The program to run as shim; this one without.
    pub shim: Option<PathBuf>,
    /// The daemon's environment. A recipe sees what is listed by name, never the rest.
    pub env: Vec<(String, String)>,
    /// Origins (`scheme://host:port`) that may be fetched from though their addresses are private: the configured catalog's.
    pub trusted: Vec<String>,
    /// The strongest rung of the containment ladder to use, by name.
    pub rung_max: Option<String>,
}

impl Order {
    /// What this build is called among others.
    fn name(&self) -> String {
        let folder = self.work.file_name().map_or_else(Default::default, |name| name.to_string_lossy());
        format!("build-{}-{folder}", self.recipe)
    }
}

pub enum Ended {
    Built(Built),
    Cancelled(Receipt),
}

/// The program that a daemon with this environment would run by this name in a build. For preflights: a tool that is
/// found here is found there.
pub fn find_tool(env: &[(String, String)], name: &str) -> Option<PathBuf> {
    sandbox::Sandbox::new(env).tool(name)
}
