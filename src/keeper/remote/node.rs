//! What was installed from here on which machine: one file a node in this account's state, so that `update` and `uninstall` know
//! the way without being told again.

use super::address::Address;
use super::failure::RemoteError;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FOLDER: &str = "nodes";
const SUFFIX: &str = "json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub address: Address,
    pub is_system: bool,
    /// The program over there.
    pub program: String,
    /// The queen that it dials.
    pub queen: String,
    pub version: String,
    pub service: String,
    pub installed_at: u64,
}

#[derive(Debug, Clone)]
pub struct Nodes {
    folder: PathBuf,
}

impl Nodes {
    pub fn of(state: &Path) -> Self {
        Nodes { folder: state.join(FOLDER) }
    }

    /// A hive's name has no slash, or it would not be one.
    fn place(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{}.{SUFFIX}", name.replace('/', "_")))
    }

    pub fn find(&self, name: &str) -> Result<Option<Node>, RemoteError> {
        let path = self.place(name);
        match std::fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
            Ok(node) => Ok(Some(node)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RemoteError::Record { path, source }),
        }
    }

    /// Those that read, by name.
    pub fn all(&self) -> Vec<Node> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| {
            let path = entry.path();
            let is_record = path.extension().is_some_and(|extension| extension == SUFFIX);
            is_record.then(|| path.file_stem().map(|name| name.to_string_lossy().into_owned())).flatten()
        });
        let mut nodes: Vec<Node> = names.filter_map(|name| self.find(&name).ok().flatten()).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        nodes
    }

    pub fn save(&self, node: &Node) -> Result<(), RemoteError> {
        let path = self.place(&node.name);
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(&self.folder)?;
            let mut fresh = tempfile::NamedTempFile::new_in(&self.folder)?;
            fresh.write_all(&serde_json::to_vec_pretty(node)?)?;
            fresh.as_file().sync_all()?;
            fresh.persist(&path)?;
            std::fs::File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| RemoteError::Record { path: path.clone(), source })
    }

    pub fn forget(&self, name: &str) -> Result<(), RemoteError> {
        let path = self.place(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RemoteError::Record { path, source })
            }
            _ => Ok(()),
        }
    }
}
