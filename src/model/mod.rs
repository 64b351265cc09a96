//! Models: what a reference means, verified files on disk, what a GGUF header says, how much memory it will take.
//!
//! A [`Store`] has one record a model; the bytes lie in the hub's own cache, where other tools find them, too. A model
//! gets there by [`Store::fetch`]: from the hub, from an address, or made by a recipe. Whatever the way, bytes get their name
//! only after their sum was right.
//!
//! ```text
//!  reference ─ alias, recipe ─▶ fetch ─┬─ listing ─ pick ─ hub: files of one commit ─┐
//!                                      ├─ address ───────────────────────────────────┼─▶ download ─▶ gguf ─▶ store
//!                                      └─ recipe: the hub's file, else its PKGBUILD ──┘
//! ```

mod fetch;
pub mod gguf;
mod hub;
mod listing;
pub mod memory;
pub mod names;
mod pick;
mod recipe;
mod reference;
pub mod smaller;
mod store;

pub use crate::download::Limits;
pub use crate::job::progress::Events;
pub use crate::wire::digest::Digest;
pub use fetch::Fetched;
pub use hub::{Hub, HubError};
pub use recipe::{HubFile, Kind, Recipe};
pub use reference::{HubReference, Pick, Reference, ReferenceError, Repo, is_name};
pub use store::{
    FileVerdict, Leftover, ModelVerdict, New, NewFile, PruneKind, Pruned, Removal, Settings, Store,
    StoreError, Stored, Turn, Verdict, Verified,
};
