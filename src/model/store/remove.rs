//! Taking a model off the disk: its link in the hub's cache, its bytes where nobody else names them, and its record last,
//! so that a removal that was cut short can be asked for again. What lies outside of the cache and of our own folder is
//! not touched, whatever a record says.

use super::record::Record;
use super::{Store, Turn};
use crate::model::reference::Reference;
use crate::wire::{Code, Failure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files of a repository that are looked at for another link to the same bytes. Where there are more, the bytes stay.
const LINKS_MAX: usize = 100_000;
const LINK_DEPTH_MAX: usize = 32;
const BLOBS: &str = "blobs";
const SNAPSHOTS: &str = "snapshots";
const REFS: &str = "refs";
/// A branch or tag holds a commit's name.
const REF_BYTES_MAX: u64 = 1 << 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Removal {
    pub id: String,
    pub bytes_freed: u64,
    /// Files that stay: a person's own, or what lies where we remove nothing.
    #[serde(default)]
    pub kept: Vec<PathBuf>,
}

/// Where one file of a model lies, with every link on the way followed.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The folder that nothing is removed from but what lies below it.
    root: PathBuf,
    /// What the record names: a link, or the bytes themselves.
    named: PathBuf,
    target: Target,
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// It is no link.
    Itself,
    /// Bytes below the root.
    Blob(PathBuf),
    /// Bytes that are none of ours to remove.
    Elsewhere(PathBuf),
    Nowhere,
}

impl Place {
    fn bytes(&self) -> Option<&Path> {
        match &self.target {
            Target::Itself => Some(&self.named),
            Target::Blob(path) => Some(path),
            Target::Elsewhere(_) | Target::Nowhere => None,
        }
    }
}

impl Store {
    /// The one model that a removal is about: an alias, or a name that several have, is refused.
    pub fn to_remove(&self, reference: &Reference) -> Result<Option<String>, Failure> {
        self.refuse_alias(reference)?;
        let ids: Vec<String> = self.meant(reference).into_iter().map(|record| record.id).collect();
        match ids.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            several => {
                let message = format!("`{reference}` may mean {}; say which", several.join(", "));
                Err(Failure::new(Code::Conflict, message).with(json!({ "models": several })))
            }
        }
    }

    /// Removes the model whose turn this is, unless somebody uses it. Blocks.
    pub fn remove(&self, turn: &Turn, users: &[String]) -> Result<Option<Removal>, Failure> {
        let Some(record) = self.record(&turn.id) else { return Ok(None) };
        if !users.is_empty() {
            let message = format!("{} is in use by {}; stop that first", record.id, users.join(", "));
            return Err(Failure::new(Code::Conflict, message).with(json!({ "in_use_by": users })));
        }
        self.discard(&record).map(Some)
    }

    pub(super) fn discard(&self, record: &Record) -> Result<Removal, Failure> {
        let mut removal = Removal { id: record.id.clone(), bytes_freed: 0, kept: Vec::new() };
        for path in record.paths() {
            if record.is_own() {
                removal.kept.push(path);
                continue;
            }
            match self.place(&path) {
                Some(place) => {
                    removal.bytes_freed += self.free(record, &place, true)?;
                    if let Target::Elsewhere(bytes) = place.target {
                        removal.kept.push(bytes);
                    }
                }
                None if path.symlink_metadata().is_ok() => removal.kept.push(path),
                None => {}
            }
        }
        self.forget(record)?;
        Ok(removal)
    }

    /// The bytes that a removal would free.
    pub(super) fn would_free(&self, record: &Record) -> u64 {
        if record.is_own() {
            return 0;
        }
        let places = record.paths().filter_map(|path| self.place(&path));
        places.map(|place| self.free(record, &place, false).unwrap_or(0)).sum()
    }

    /// Where a path leads, if that is below a folder of ours.
    fn place(&self, path: &Path) -> Option<Place> {
        let named = path.parent()?.canonicalize().ok()?.join(path.file_name()?);
        let root = self.root_of(&named)?;
        let meta = named.symlink_metadata().ok()?;
        let target = match named.canonicalize() {
            _ if meta.is_file() => Target::Itself,
            _ if !meta.is_symlink() => return None,
            Ok(bytes) if bytes.starts_with(&root) && bytes.is_file() => Target::Blob(bytes),
            Ok(bytes) => Target::Elsewhere(bytes),
            Err(_) => Target::Nowhere,
        };
        Some(Place { root, named, target })
    }

    fn root_of(&self, path: &Path) -> Option<PathBuf> {
        // Directly in the folder of records lie records.
        let is_below =
            |root: &PathBuf| path.parent().is_some_and(|folder| folder.starts_with(root) && folder != *root);
        let roots = [self.settings.hub.cache(), &self.settings.records];
        roots.into_iter().filter_map(|root| root.canonicalize().ok()).find(is_below)
    }

    /// Removes one file as far as no other record and no other link needs it, and gives the bytes that came free.
    fn free(&self, record: &Record, place: &Place, is_done: bool) -> Result<u64, Failure> {
        let others: Vec<Record> =
            self.records().values().filter(|other| other.id != record.id).cloned().collect();
        let others: Vec<Place> =
            others.iter().flat_map(Record::paths).filter_map(|path| self.place(&path)).collect();
        if others.iter().any(|other| other.named == place.named) {
            return Ok(0);
        }
        let bytes = place.bytes().filter(|bytes| {
            let is_shared = others.iter().any(|other| other.bytes() == Some(bytes));
            !is_shared && (place.target == Target::Itself || !has_other_link(place, bytes))
        });
        let freed = bytes.map_or(0, freed_by);
        if !is_done {
            return Ok(freed);
        }
        if let Some(bytes) = bytes {
            unlink(bytes)?;
            remove_empty(bytes.parent(), &place.root);
        }
        if place.target != Target::Itself {
            unlink(&place.named)?;
        }
        tidy_up(place);
        Ok(freed)
    }
}

fn unlink(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::new(Code::Internal, format!("removing `{}`: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// A file with a second name on the same disk stays there under that one.
fn freed_by(path: &Path) -> u64 {
    path.symlink_metadata().ok().filter(|meta| meta.nlink() == 1).map_or(0, |meta| meta.len())
}

/// The repository's folder: what holds `blobs`, below the root.
fn repository<'p>(place: &'p Place, bytes: &'p Path) -> Option<&'p Path> {
    let blobs = bytes.parent().filter(|folder| folder.file_name().is_some_and(|name| name == BLOBS))?;
    blobs.parent().filter(|folder| folder.starts_with(&place.root) && *folder != place.root)
}

/// Whether something else of the repository leads to these bytes: another commit, which another tool has put there.
fn has_other_link(place: &Place, bytes: &Path) -> bool {
    // Bytes in no repository's layout are linked by who knows whom.
    let Some(repository) = repository(place, bytes) else { return true };
    let mut waiting = vec![(repository.to_owned(), 0)];
    let mut seen = 0;
    while let Some((folder, depth)) = waiting.pop() {
        // What cannot be looked at may hold one.
        let Ok(entries) = std::fs::read_dir(&folder) else { return true };
        for entry in entries {
            seen += 1;
            let Ok((path, kind)) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))) else {
                return true;
            };
            if seen > LINKS_MAX || depth > LINK_DEPTH_MAX {
                return true;
            }
            if kind.is_dir() {
                waiting.push((path, depth + 1));
            } else if kind.is_symlink()
                && path != place.named
                && path.canonicalize().is_ok_and(|to| to == bytes)
            {
                return true;
            }
        }
    }
    false
}

/// After the last file of a commit: its folder, and the branches and tags that named it.
fn tidy_up(place: &Place) {
    remove_empty(place.named.parent(), &place.root);
    let Some(inside) = place.named.strip_prefix(&place.root).ok() else { return };
    let mut parts = inside.iter();
    let (Some(repository), Some(snapshots), Some(commit)) = (parts.next(), parts.next(), parts.next()) else {
        return;
    };
    let repository = place.root.join(repository);
    if snapshots != SNAPSHOTS || repository.join(SNAPSHOTS).join(commit).exists() {
        return;
    }
    // Of a removal that was cut short the bytes may have gone without their folder.
    remove_empty(Some(&repository.join(BLOBS)), &place.root);
    let refs =
        Some(repository.join(REFS)).filter(|refs| refs.symlink_metadata().is_ok_and(|meta| meta.is_dir()));
    let mut waiting: Vec<(PathBuf, usize)> = refs.into_iter().map(|refs| (refs, 0)).collect();
    while let Some((folder, depth)) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
            if kind.is_dir() && depth < LINK_DEPTH_MAX {
                waiting.push((path, depth + 1));
            } else if kind.is_file() && names(&path, commit.as_encoded_bytes()) {
                // What cannot be removed names a commit that is not here, as after any tool's clearing up.
                let _ = std::fs::remove_file(&path);
                remove_empty(path.parent(), &place.root);
            }
        }
    }
}

fn names(path: &Path, commit: &[u8]) -> bool {
    path.metadata().is_ok_and(|meta| meta.len() <= REF_BYTES_MAX)
        && std::fs::read(path).is_ok_and(|text| text.trim_ascii() == commit)
}

/// A folder, and those above it, as long as nothing else is in them.
pub(super) fn remove_empty(folder: Option<&Path>, root: &Path) {
    for folder in folder.into_iter().flat_map(Path::ancestors) {
        if folder == root || !folder.starts_with(root) || std::fs::remove_dir(folder).is_err() {
            return;
        }
    }
}
