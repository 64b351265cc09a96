//! What several tests lean on.

pub mod gguf;
pub mod hub;
