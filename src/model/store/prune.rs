//! What lies around: downloads that nobody is at, records whose files are gone, bytes of ours that no record names. Of the
//! hub's cache only files with our own endings are ours to take; what other tools left there is theirs.

use super::Store;
use super::record::Record;
use crate::model::fetch::PACKAGES;
use crate::wire::Failure;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The endings of a file on its way, and of what is known about it.
pub const PARTIAL_ENDINGS: [&str; 2] = [".rbee-part", ".rbee-journal"];
/// Folders below a root in which such files may lie, and how many entries are looked at.
const DEPTH_MAX: usize = 4;
const ENTRIES_MAX: usize = 100_000;
/// The start of the name of a folder in which a package is unpacked.
const SCRATCH_PREFIX: &str = ".package";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    /// Whether it was done, or only looked for.
    pub applied: bool,
    pub items: Vec<Leftover>,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leftover {
    pub kind: Kind,
    /// A model's id, or a path.
    pub name: String,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A download that was left.
    Download,
    /// A record of files that are gone.
    Record,
    /// Bytes that came as packages, and belong to no record.
    Package,
}

impl Kind {
    pub fn told(self) -> &'static str {
        match self {
            Kind::Download => "download that was left",
            Kind::Record => "record without files",
            Kind::Package => "bytes without a record",
        }
    }
}

/// Something to take away, held so that nobody comes to it meanwhile.
struct Found {
    leftover: Leftover,
    what: What,
    _held: Vec<Held>,
}

enum What {
    Path(PathBuf),
    Record(Box<Record>),
}

/// A file's lock, or a model's turn.
enum Held {
    File { _locked: File },
    Model { _turn: tokio::sync::OwnedMutexGuard<()> },
}

/// Each kind of leftover has its finder.
const FINDERS: [fn(&Store) -> Vec<Found>; 3] = [partials, records, packages];

impl Store {
    /// Looks for what could go, and takes it away if that is wanted. Blocks.
    pub fn prune(&self, is_wanted: bool) -> Result<Pruned, Failure> {
        let mut pruned = Pruned { applied: is_wanted, items: Vec::new(), bytes: 0 };
        for found in FINDERS.iter().flat_map(|find| find(self)) {
            let Found { mut leftover, what, _held } = found;
            if is_wanted {
                match what {
                    What::Record(record) => leftover.bytes = self.discard(&record)?.bytes_freed,
                    What::Path(path) => {
                        if let Err(error) = remove(&path) {
                            tracing::warn!(path = %path.display(), %error, "what was left could not be removed");
                            continue;
                        }
                    }
                }
            }
            pruned.bytes += leftover.bytes;
            pruned.items.push(leftover);
        }
        Ok(pruned)
    }

    fn try_turn(&self, id: &str) -> Option<Held> {
        let turn = self.fetch_lock(id).try_lock_owned().ok()?;
        Some(Held::Model { _turn: turn })
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    // Links are removed, never followed.
    if path.symlink_metadata()?.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

fn partials(store: &Store) -> Vec<Found> {
    let mut found = Vec::new();
    let mut seen = 0;
    let roots = [store.settings.hub.cache().to_owned(), store.settings.records.clone()];
    let mut waiting: Vec<(PathBuf, usize)> = roots.into_iter().map(|root| (root, 0)).collect();
    while let Some((folder, depth)) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > ENTRIES_MAX {
                return found;
            }
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
            if kind.is_dir() && depth < DEPTH_MAX {
                waiting.push((path, depth + 1));
            } else if kind.is_file() && is_partial(&path) {
                found.extend(abandoned(path));
            }
        }
    }
    found.sort_by(|a, b| a.leftover.name.cmp(&b.leftover.name));
    found
}

fn is_partial(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    PARTIAL_ENDINGS.iter().any(|ending| name.ends_with(ending.as_bytes()))
}

/// A partial file, unless somebody holds it or its sibling.
fn abandoned(path: PathBuf) -> Option<Found> {
    let text = path.to_str()?;
    let stem = PARTIAL_ENDINGS.iter().find_map(|ending| text.strip_suffix(ending))?;
    let siblings = PARTIAL_ENDINGS.iter().map(|ending| PathBuf::from(format!("{stem}{ending}")));
    let mut held = Vec::new();
    for sibling in siblings.filter(|sibling| sibling.exists()) {
        let file = File::open(&sibling).ok()?;
        let lock = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
        // Any other error is a file system without locks, on which nobody holds one.
        if lock == Err(rustix::io::Errno::WOULDBLOCK) {
            return None;
        }
        held.push(Held::File { _locked: file });
    }
    let bytes = path.metadata().ok()?.len();
    let leftover = Leftover { kind: Kind::Download, name: text.to_owned(), bytes };
    Some(Found { leftover, what: What::Path(path), _held: held })
}

fn records(store: &Store) -> Vec<Found> {
    let all: Vec<String> = store.records().keys().cloned().collect();
    let found = all.into_iter().filter_map(|id| {
        let held = store.try_turn(&id)?;
        let record = store.record(&id).filter(|record| !record.is_there())?;
        let leftover =
            Leftover { kind: Kind::Record, name: record.id.clone(), bytes: store.would_free(&record) };
        Some(Found { leftover, what: What::Record(Box::new(record)), _held: vec![held] })
    });
    found.collect()
}

/// Folders of packages that no record needs, and in those that one needs what an unpacking has left.
fn packages(store: &Store) -> Vec<Found> {
    let root = store.settings.records.join(PACKAGES);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&root).into_iter().flatten().flatten() {
        let folder = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let Some(held) = entry.file_name().to_str().filter(|_| is_folder).and_then(|id| store.try_turn(id))
        else {
            continue;
        };
        let mut take = |path: PathBuf, held: Option<Held>| {
            let leftover =
                Leftover { kind: Kind::Package, name: path.display().to_string(), bytes: bytes_below(&path) };
            found.push(Found { leftover, what: What::Path(path), _held: held.into_iter().collect() });
        };
        let is_needed =
            store.records().values().any(|record| record.paths().any(|path| path.starts_with(&folder)));
        if !is_needed {
            take(folder, Some(held));
            continue;
        }
        let mut held = Some(held);
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
                take(entry.path(), held.take());
            }
        }
    }
    found
}

fn bytes_below(path: &Path) -> u64 {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| bytes_below(&entry.path())).sum()
        }
        Ok(meta) => meta.len(),
        Err(_) => 0,
    }
}
