//! Process trees that cannot outlive their lease.
//!
//! Everything rbee starts (a worker, a build, a foreign engine) is the child of a *shim*: this same binary in a hidden
//! role, single-threaded and without a runtime, whose only work is that nothing of the tree below it stays behind.
//! Whoever wants the tree to live holds a *lease*: a connection to the shim's socket. When the last one closes, by
//! intent or by `kill -9`, the tree's `orphan_ttl` runs; a new hive that connects in time has adopted it.
//!
//! ```text
//!  hive ── lease: unix socket, JSON lines ──▶ shim (own session, child subreaper) ◀──▶ watcher (own session)
//!                                              └─▶ leader ─▶ … one process group, pinned, PDEATHSIG on the leader
//!                                          or  └─▶ init (PDEATHSIG) ─▶ leader ─▶ … one PID namespace, no watcher
//! ```
//!
//! Three things end a tree: the holder asks (`Tree::stop`), the lease runs out, or the leader exits; each is followed
//! by the same end: KILL what is left, reap to the last child, tell a receipt. If the shim itself is killed, the
//! leader dies with it and the holder kills the rest by session and control group; if both are, the watcher does, or the
//! kernel with the namespace; if all three are, the next hive's `adopt`.

mod adopt;
mod capture;
mod cgroup;
mod confine;
mod contain;
mod identity;
mod inherited;
mod ladder;
mod launch;
mod lease;
mod printable;
mod protocol;
mod record;
mod remove;
mod shim;
mod spawn;
mod sweep;
mod tree;
mod usage;
mod watcher;

#[cfg(target_os = "linux")]
mod capabilities;
#[cfg(target_os = "linux")]
mod fork;
#[cfg(target_os = "linux")]
mod init;
#[cfg(target_os = "linux")]
mod landlock;
#[cfg(target_os = "linux")]
mod mounts;
#[cfg(target_os = "linux")]
mod namespaces;
#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod platform;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod platform;
#[cfg(target_os = "linux")]
mod refusals;
#[cfg(target_os = "linux")]
mod seccomp;

pub use adopt::adopt;
pub use capture::tail as log_tail;
pub use confine::{Confine, Walls};
pub use identity::Identity;
pub use inherited::{
    LISTENER_FD, SHIM_PIPE_FD, ignores_hangup, inherited_listener, inherited_pipe, leave_stops_to_us,
};
pub use ladder::{Ladder, Unavailable, ladder};
pub use launch::{launch, launch_by};
#[cfg(target_os = "macos")]
pub use platform::{cpu_name, gpu_memory_max, machine_memory};
pub use platform::{mapped_bytes, memory_bytes, own_program};
pub use printable::printable;
pub use protocol::Exit;
pub use record::Spec;
pub use remove::remove_tree;
pub use shim::shim_main;
pub use tree::{Lines, Output, Tree};
pub use usage::{Running, running};

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("preparing the directory of process records `{path}`")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("`{id}` is running already: stop it first")]
    Running { id: String },
    #[error(
        "binding the shim's socket `{path}` (a socket's path has 100 bytes or so: choose a shorter directory)"
    )]
    Socket { path: PathBuf, source: std::io::Error },
    #[error("writing the process record `{path}`")]
    WriteRecord { path: PathBuf, source: std::io::Error },
    #[error("reading the process record `{path}`")]
    ReadRecord { path: PathBuf, source: std::io::Error },
    #[error("starting the shim of `{id}`")]
    Shim { id: String, source: std::io::Error },
    #[error("taking the lease of `{id}`")]
    Lease { id: String, source: std::io::Error },
    #[error("the shim of `{id}` ended before it told what it started")]
    ShimLost { id: String },
    #[error("starting `{program}`: {reason}")]
    Start { program: String, reason: String },
    #[error("`{id}` asks for the rung `{name}`: there are cgroup, pid namespace, pinned group and group")]
    Rung { id: String, name: String },
    #[error("`{id}` names no program: argv is empty")]
    NoProgram { id: String },
}
