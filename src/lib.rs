//! rbee, the map. One binary, four roles; a role never imports another, and imports point down this list.
//!
//! Composition
//! - [`serve`]: the daemons as processes; the only place where queen and hive meet.
//!
//! Roles
//! - [`keeper`]: the person's command line; no state, speaks HTTP.
//! - [`queen`]: one address for the fleet: registry, placement, dispatch.
//! - [`hive`]: one a machine: devices, models, worker processes, the link to the queen.
//! - [`worker`]: one process, one model; llama.cpp behind an engine thread.
//!
//! Capabilities
//! - [`job`]: everything long: a record, an event stream that can be replayed, a cancel that is awaited.
//! - [`download`]: one file over HTTP: resumed, hashed, over several connections.
//! - [`model`]: references, the hub, verified files, the GGUF header.
//! - [`pkgbuild`]: recipes: sources fetched and verified, functions run behind walls, the product installed.
//! - [`catalog`]: recipes built in, asked of another catalog, or served to others; this program's own source.
//!
//! Plumbing
//! - [`process`]: process trees under a shim, leases, receipts.
//! - [`keys`]: who may ask: keys and join tokens on disk, the key of the moment, a node's keys for its queens.
//! - [`http`]: server, client, the link's HTTP/2, event streams, the guard.
//! - [`daemon`]: a long-running role's start: lock, addresses, readiness.
//! - [`shutdown`]: signals to a token tree and a task tracker.
//!
//! Vocabulary
//! - [`cli`]: the one table of commands and flags, its parser and help; no IO.
//! - [`config`]: flag, environment, file, default: one resolved value a setting.
//! - [`wire`]: what both ends of a connection share.
//! - [`paths`], [`exit`]: where state lies; what exit codes mean.

#[cfg(all(feature = "cuda", target_feature = "crt-static"))]
compile_error!(
    "a static program cannot load the NVIDIA driver: build with RUSTFLAGS=\"-Ctarget-feature=-crt-static\" cargo build --release --features cuda"
);
#[cfg(all(feature = "metal", not(target_os = "macos")))]
compile_error!("Metal exists on macOS only, where the default build already has it");
#[cfg(all(target_os = "macos", target_feature = "crt-static"))]
compile_error!("macOS has no static executables: build without +crt-static");

pub mod catalog;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod download;
pub mod exit;
pub mod hive;
pub mod http;
pub mod job;
pub mod keeper;
pub mod keys;
pub mod model;
pub mod paths;
pub mod pkgbuild;
pub mod process;
pub mod queen;
pub mod serve;
pub mod shutdown;
pub mod wire;
pub mod worker;
