//! The walls around a tree: what it may read, write and reach, and how much it may take.
//!
//! What a node cannot do (no Landlock, no network namespaces) is not done silently: [`Walls`] says what stands.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The walls that a tree is started behind. Paths that do not exist are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confine {
    /// May be read and executed, with all below.
    pub read: Vec<PathBuf>,
    /// May be read, executed and written, with all below.
    pub write: Vec<PathBuf>,
    /// Whether the network can be reached.
    pub network: bool,
    /// The largest file that may be written.
    pub file_bytes_max: Option<u64>,
    /// Address space of each process.
    pub memory_bytes_max: Option<u64>,
}

/// The walls that stand, as the shim found when it put them up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Walls {
    /// `landlock 7`, or why not: `none: this kernel has no Landlock`.
    pub filesystem: String,
    /// `open`, `namespace` (an empty one), `sockets refused`, or `none: …` where it should be closed and is not.
    pub network: String,
    /// Whether capabilities were given up, where there were any.
    pub capabilities_dropped: bool,
}
