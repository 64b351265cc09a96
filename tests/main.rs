//! One integration target: every file beside this one is a module, so the crate is linked once.

mod processes;
mod support;
