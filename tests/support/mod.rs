//! What several test files need.

pub mod authority;
pub mod fleet;
pub mod gguf;
pub mod hub;
pub mod models;
pub mod network;
pub mod node;
pub mod origin;
pub mod pidns;
pub mod pull;
pub mod python;
pub mod sshd;
pub mod survivors;
pub mod terminal;
pub mod told;
pub mod trees;
pub mod worker;
