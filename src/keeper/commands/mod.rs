//! One file a noun, one function a command.

pub mod aliases;
pub mod chat;
pub mod daemons;
pub mod hives;
pub mod jobs;
pub mod keys;
pub mod links;
pub mod logs;
pub mod models;
pub mod run;
pub mod status;
pub mod unload;
pub mod version;
pub mod why;
pub mod worker;
pub mod worker_processes;
pub mod workers;
