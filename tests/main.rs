//! The one integration target: every test that needs the built program or more than one module.

#![expect(clippy::unwrap_used, reason = "a test that meets the unexpected has failed")]

mod cli;
mod fleet;
mod follow;
mod fuzz;
mod guard;
mod inference;
mod jobs;
mod kills;
mod models;
mod processes;
mod run;
mod shutdown;
mod statics;
mod support;
mod tidy;
