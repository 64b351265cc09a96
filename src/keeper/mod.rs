//! The person's command line.

pub mod commands;
