//! Recipes: what a PKGBUILD says, its sources fetched and verified, its functions run behind walls, its product installed.

pub mod checksum;
pub mod name;
pub mod source;
pub mod trust;
