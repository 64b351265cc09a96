//! Everything that is proved with real files, sockets and processes: one target, one module a subject.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic where it stands")]

mod models;
mod statics;
mod support;
