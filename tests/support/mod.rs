//! What several test files need.

pub mod pidns;
pub mod gguf;
