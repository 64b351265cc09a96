//! Models: what a reference means, verified files on disk, what a GGUF header says, how much memory it will take.

pub mod gguf;
pub mod memory;
