//! The one integration target: every test that needs the built program or more than one module.

#![expect(clippy::unwrap_used, reason = "a test that meets the unexpected has failed")]

mod addresses;
mod builds;
mod catalog;
mod chat;
mod cli;
mod completions;
mod cost;
mod estimate;
mod fleet;
mod follow;
mod fuzz;
mod guard;
mod heartbeats;
mod hive_install;
mod hub_faults;
mod hub_hardships;
mod hub_speed;
mod inference;
mod install;
mod interop;
mod jobs;
mod kernels;
mod keys;
mod kills;
mod metrics;
mod models;
mod output;
mod partition;
mod placement;
mod processes;
mod protocols;
mod recipes;
mod references;
mod run;
mod rungs;
mod scripted;
mod shutdown;
mod sources;
mod statics;
mod store;
mod support;
mod tidy;
mod v2;
mod walls;
