//! One recipe as it is built from: its entry, and its PKGBUILD with everything filled in.

use super::entry::VERSION_MARK;
use crate::wire::VERSION;
use crate::wire::catalog::CatalogEntry;
use sha2::{Digest as _, Sha256};
use std::sync::LazyLock;

/// The longest PKGBUILD.
pub const PKGBUILD_BYTES_MAX: usize = 256 << 10;
/// Stands for the address of our source, and for its sum.
const SOURCE_MARK: &str = "@RBEE_SOURCE@";
const SUM_MARK: &str = "@RBEE_SHA256@";

/// This program's own source, by build.rs.
pub static ARCHIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/source.tar.gz"));

/// What the archive is called, everywhere.
pub fn archive_name() -> String {
    format!("rbee-{VERSION}.tar.gz")
}

fn archive_sum() -> &'static str {
    static SUM: LazyLock<String> = LazyLock::new(|| sum(ARCHIVE));
    &SUM
}

/// A SHA-256 sum as text.
pub(super) fn sum(bytes: &[u8]) -> String {
    crate::model::Digest::of(Sha256::new_with_prefix(bytes)).to_string()
}

#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    pub entry: CatalogEntry,
    /// As it is to be built.
    pub pkgbuild: String,
    /// The sum of that text.
    pub sha256: String,
    /// The catalog it is from, or `built-in`.
    pub source: String,
}

impl Recipe {
    pub(super) fn new(entry: CatalogEntry, pkgbuild: String, source: &str) -> Self {
        let sha256 = sum(pkgbuild.as_bytes());
        Recipe { entry, pkgbuild, sha256, source: source.to_owned() }
    }
}

/// Where a PKGBUILD that is built from our own source should find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// A file beside the PKGBUILD.
    Local,
    /// At a catalog, by the address that its client used: `http://HOST`.
    At(&'a str),
}

/// Whether a PKGBUILD is built from our own source.
pub(super) fn wants_archive(pkgbuild: &str) -> bool {
    pkgbuild.contains(SOURCE_MARK)
}

/// The PKGBUILD with version, source and sum in their places.
pub fn fill(pkgbuild: &str, source: Source<'_>) -> String {
    let name = archive_name();
    let address = match source {
        Source::Local => name,
        Source::At(root) => format!("{name}::{root}/source/{name}"),
    };
    pkgbuild.replace(VERSION_MARK, VERSION).replace(SOURCE_MARK, &address).replace(SUM_MARK, archive_sum())
}
