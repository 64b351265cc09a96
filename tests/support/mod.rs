//! What several test files need.

pub mod gguf;
pub mod hub;
pub mod models;
pub mod network;
pub mod node;
pub mod pidns;
pub mod pull;
pub mod python;
pub mod survivors;
pub mod terminal;
pub mod trees;
