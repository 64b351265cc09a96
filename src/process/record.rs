//! What lies on disk about a tree: what was asked for, and who runs it. JSON, for a person and for the next version.

use super::ProcessError;
use super::confine::Confine;
use super::identity::Identity;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A lease is there to end things: nothing lives longer than this without one.
const ORPHAN_TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// A tree to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// The tree's name among those of one directory.
    pub id: String,
    /// What the child is told; its first word is the program to run, unless `program` names that.
    pub argv: Vec<String>,
    #[serde(default)]
    pub program: Option<PathBuf>,
    /// The whole environment of the child.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    /// Where stdout and stderr go, head and tail kept; without it they are told to the lease holders line by line.
    #[serde(default)]
    pub log: Option<PathBuf>,
    /// The log is gone on with, not begun anew.
    #[serde(default)]
    pub log_append: bool,
    /// The lines of the log are told to the lease holders, too.
    #[serde(default)]
    pub tell: bool,
    /// A folder that is removed at the end of a tree that nobody holds any more, by its shim or by the next `adopt`: who
    /// does hold it removes it.
    #[serde(default)]
    pub scratch: Option<PathBuf>,
    /// From TERM to KILL, where who stops it does not say otherwise.
    #[serde(default)]
    pub grace_ms: u64,
    /// How long the tree may live with no lease; 0 ends it at once.
    #[serde(default)]
    pub orphan_ttl_ms: u64,
    /// The tree needs sessions of its own (terminals), so its group cannot be pinned.
    #[serde(default)]
    pub sessions: bool,
    /// The tree may be put into a PID namespace of its own. Not a GPU engine: the driver tells pids of ours.
    #[serde(default)]
    pub pid_namespace: bool,
    /// The strongest rung of the containment ladder to use, by name; the node's best without.
    #[serde(default)]
    pub rung_max: Option<String>,
    /// How many processes the tree may have, where the node can hold it to that: exact in a control group that has the
    /// controller, about so many in a PID namespace since Linux 6.14.
    #[serde(default)]
    pub processes_max: Option<u32>,
    /// Memory of all its processes together, in a control group that has the controller.
    #[serde(default)]
    pub tree_memory_bytes_max: Option<u64>,
    #[serde(default)]
    pub confine: Option<Confine>,
    /// Opaque here; given back at adoption.
    #[serde(default)]
    pub note: Value,
}

impl Spec {
    /// A tree that ends with its lease, at once and without grace, with an empty environment and told output.
    pub fn new(id: impl Into<String>, argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Spec {
            id: id.into(),
            argv: argv.into_iter().map(Into::into).collect(),
            program: None,
            env: Vec::new(),
            cwd: None,
            log: None,
            log_append: false,
            tell: false,
            scratch: None,
            grace_ms: 0,
            orphan_ttl_ms: 0,
            sessions: false,
            pid_namespace: false,
            rung_max: None,
            processes_max: None,
            tree_memory_bytes_max: None,
            confine: None,
            note: Value::Null,
        }
    }

    pub(super) fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    pub(super) fn orphan_ttl(&self) -> Duration {
        Duration::from_millis(self.orphan_ttl_ms).min(ORPHAN_TTL_MAX)
    }
}

/// A tree that was started. The shim keeps it true: first itself, then the child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub version: u32,
    #[serde(flatten)]
    pub spec: Spec,
    /// Whether descriptor 4 of the shim is a listener to pass on.
    #[serde(default)]
    pub inherits: bool,
    #[serde(default)]
    pub shim: Option<Identity>,
    #[serde(default)]
    pub child: Option<Identity>,
    /// The first process of its PID namespace, if it has one.
    #[serde(default)]
    pub init: Option<Identity>,
    /// Its control group, if it has one.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    #[serde(default)]
    pub containment: String,
}

pub(super) const RECORD_VERSION: u32 = 1;

/// The two files of a tree, side by side.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub record: PathBuf,
    pub socket: PathBuf,
}

impl Files {
    /// Short, because a socket's path has 108 bytes at most.
    pub(super) fn of(directory: &Path, id: &str) -> Files {
        let digest = Sha256::digest(id.as_bytes());
        let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Files::beside(&directory.join(name).with_extension("json"))
    }

    pub(super) fn beside(record: &Path) -> Files {
        Files { record: record.to_owned(), socket: record.with_extension("sock") }
    }

    pub(super) fn remove(&self) {
        // Whoever else may have removed them had the same reason.
        let _ = std::fs::remove_file(&self.record);
        self.remove_socket();
    }

    /// Who looks for the tree finds nobody there, and what it left.
    pub(super) fn remove_socket(&self) {
        let _ = std::fs::remove_file(&self.socket);
    }

    pub(super) fn read(&self) -> Result<Record, ProcessError> {
        let failed = |source| ProcessError::ReadRecord { path: self.record.clone(), source };
        let bytes = std::fs::read(&self.record).map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|source| failed(source.into()))
    }

    /// Whole or not at all. Not synced: after a power cut there is no process left that it could tell of.
    pub(super) fn write(&self, record: &Record) -> Result<(), ProcessError> {
        let write = || -> std::io::Result<()> {
            let fresh = self.record.with_extension("new");
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            std::fs::rename(&fresh, &self.record)
        };
        write().map_err(|source| ProcessError::WriteRecord { path: self.record.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_newer_version_still_tells_what_we_need() {
        let text =
            r#"{"version":7,"id":"w","argv":["x"],"colour":"red","shim":{"pid":4,"start":5,"boot":"b"}}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!((record.spec.id.as_str(), record.shim.unwrap().pid), ("w", 4));
    }

    #[test]
    fn file_names_are_short_and_differ_by_id() {
        let (one, two) = (Files::of(Path::new("/d"), &"x".repeat(500)), Files::of(Path::new("/d"), "y"));
        assert_eq!(one.socket.as_os_str().len(), "/d/0123456789abcdef.sock".len());
        assert_ne!(one.record, two.record);
    }
}
