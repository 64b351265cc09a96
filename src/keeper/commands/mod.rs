//! One function a command.

pub mod links;
