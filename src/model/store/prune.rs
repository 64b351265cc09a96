//! What lies around: downloads that nobody is at, records whose files are gone, bytes of ours that no record names. Of the
//! hub's cache only files with our own endings are ours to take; what other tools left there is theirs.

use super::Store;
use super::record::Record;
use super::remove::remove_empty;
use crate::download;
use crate::model::fetch::{ADDRESSES, PACKAGES, SCRATCH};
use crate::wire::Failure;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The endings of a file on its way, and of what is known about it.
const PARTIAL_ENDINGS: [&str; 2] = [download::PART, download::JOURNAL];
/// Our own folders beside the records, each with a folder a model.
const OURS: [&str; 2] = [PACKAGES, ADDRESSES];
/// Folders below a root in which such files may lie, and how many entries are looked at.
const DEPTH_MAX: usize = 4;
const ENTRIES_MAX: usize = 100_000;

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
    /// Bytes in a folder of ours that belong to no record.
    Bytes,
}

impl Kind {
    pub fn told(self) -> &'static str {
        match self {
            Kind::Download => "download that was left",
            Kind::Record => "record without files",
            Kind::Bytes => "bytes without a record",
        }
    }
}

/// Something to take away, held so that nobody comes to it meanwhile.
struct Found {
    leftover: Leftover,
    what: What,
    _held: Vec<Held>,
}

impl Found {
    fn path(kind: Kind, path: PathBuf, held: Vec<Held>) -> Found {
        let leftover = Leftover { kind, name: path.display().to_string(), bytes: bytes_below(&path) };
        Found { leftover, what: What::Path(path), _held: held }
    }
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
const FINDERS: [fn(&Store) -> Vec<Found>; 3] = [partials, without_record, records];

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
                        for root in self.roots() {
                            remove_empty(path.parent(), &root);
                        }
                    }
                }
            }
            pruned.bytes += leftover.bytes;
            pruned.items.push(leftover);
        }
        Ok(pruned)
    }

    /// Where what is ours to remove may lie.
    fn roots(&self) -> [PathBuf; 2] {
        [self.settings.hub.cache().to_owned(), self.settings.records.clone()]
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

/// What downloads and packages have left on their way, wherever they were.
fn partials(store: &Store) -> Vec<Found> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    let mut seen = 0;
    let mut waiting: Vec<(PathBuf, usize)> = store.roots().into_iter().map(|root| (root, 0)).collect();
    while let Some((folder, depth)) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            seen += 1;
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
            if seen > ENTRIES_MAX {
                break;
            } else if kind.is_dir() && entry.file_name().as_encoded_bytes().starts_with(SCRATCH.as_bytes()) {
                folders.push(path);
            } else if kind.is_dir() && depth < DEPTH_MAX {
                waiting.push((path, depth + 1));
            } else if kind.is_file() && is_partial(&path) {
                files.push(path);
            }
        }
    }
    // Looked for first: what somebody is at now was begun later, or makes the store busy.
    folders.retain(|_| store.is_idle());
    files.sort();
    let folders = folders.into_iter().map(|path| Found::path(Kind::Download, path, Vec::new()));
    files.into_iter().filter_map(abandoned).chain(folders).collect()
}

fn is_partial(path: &Path) -> bool {
    path.extension().is_some_and(|extension| PARTIAL_ENDINGS.iter().any(|ending| extension == *ending))
}

/// A partial file, unless somebody holds it or its sibling.
fn abandoned(path: PathBuf) -> Option<Found> {
    let siblings = PARTIAL_ENDINGS.iter().map(|ending| path.with_extension(ending));
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
    Some(Found::path(Kind::Download, path, held))
}

/// Folders of ours that no record needs, and in which nothing is on its way.
fn without_record(store: &Store) -> Vec<Found> {
    let folders = OURS.iter().flat_map(|name| std::fs::read_dir(store.settings.records.join(name)));
    let folders: Vec<PathBuf> = folders
        .flat_map(|entries| entries.flatten())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    // As above: whoever has not come to record what is there is still at it.
    if !store.is_idle() {
        return Vec::new();
    }
    let records: Vec<Record> = store.records().values().cloned().collect();
    let needed: Vec<PathBuf> = records.iter().flat_map(Record::paths).collect();
    let is_left =
        |folder: &PathBuf| !needed.iter().any(|path| path.starts_with(folder)) && !has_partial(folder);
    folders.into_iter().filter(is_left).map(|folder| Found::path(Kind::Bytes, folder, Vec::new())).collect()
}

fn has_partial(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => has_partial(&entry.path()),
        _ => is_partial(&entry.path()),
    })
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
