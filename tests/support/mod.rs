//! What several test files need.

pub mod gguf;
pub mod hub;
pub mod models;
pub mod node;
pub mod pidns;
pub mod survivors;
pub mod trees;
