//! A folder of recipes that a person keeps: `<id>/{PKGBUILD,worker.toml,…}`. It is read afresh when it has changed, and a
//! recipe that is wrong is told of and does not hide the others.

use super::entry::{self, ENTRY_BYTES_MAX, EntryError};
use super::recipe::{self, PKGBUILD_BYTES_MAX};
use super::{ARCHIVE, LOCAL_FILE_BYTES_MAX};
use crate::wire::catalog::CatalogEntry;
use crate::wire::{Code, Failure, failure};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Recipes in one folder; what is beyond is not looked at.
const RECIPES_MAX: usize = 1_000;
const ENTRY: &str = "worker.toml";
const PKGBUILD: &str = "PKGBUILD";

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("reading the folder of recipes `{}`", .0.display())]
    List(PathBuf, #[source] io::Error),
    #[error("reading {0}")]
    Read(&'static str, #[source] io::Error),
    #[error("{0} is not UTF-8")]
    NotText(&'static str),
    #[error("{0} is not a plain file")]
    NotPlain(String),
    #[error("{name} is larger than {max} bytes")]
    TooLarge { name: String, max: usize },
    #[error(transparent)]
    Entry(#[from] EntryError),
}

impl From<FolderError> for Failure {
    fn from(error: FolderError) -> Self {
        Failure::new(Code::RecipeInvalid, failure::chain(&error))
    }
}

/// One recipe as it lies there.
#[derive(Debug)]
pub struct Shelved {
    pub entry: CatalogEntry,
    pub pkgbuild: String,
}

/// Every recipe of the folder by its id: what can be served, or why it cannot.
pub type Shelf = BTreeMap<String, Result<Shelved, Failure>>;

#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    read: Mutex<Option<(Stamp, Arc<Shelf>)>>,
}

/// When every file that a shelf was read from last changed, and how long it was.
type Stamp = Vec<(PathBuf, Option<(SystemTime, u64)>)>;

impl Folder {
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let folder = Folder { path: path.to_owned(), read: Mutex::default() };
        folder.shelf()?;
        Ok(folder)
    }

    /// What lies there now.
    pub fn shelf(&self) -> Result<Arc<Shelf>, FolderError> {
        let ids = self.ids()?;
        let stamp = self.stamp(&ids);
        let mut read = self.read.lock().expect("no holder of the shelf panics");
        match &*read {
            Some((then, shelf)) if *then == stamp => return Ok(shelf.clone()),
            _ => {}
        }
        let mut shelf = Shelf::new();
        for id in ids {
            match self.read_one(&id) {
                // A model's recipe is none of a worker.
                Ok(None) => {}
                Ok(Some(shelved)) => drop(shelf.insert(id, Ok(shelved))),
                Err(error) => {
                    let failure = Failure::from(error);
                    tracing::warn!(id, error = failure.message, "a recipe cannot be served");
                    shelf.insert(id, Err(failure));
                }
            }
        }
        let shelf = Arc::new(shelf);
        *read = Some((stamp, shelf.clone()));
        Ok(shelf)
    }

    /// A file beside a PKGBUILD, or our own source where the recipe is built from it.
    pub fn file(&self, id: &str, name: &str, pkgbuild: &str) -> Result<Option<Vec<u8>>, FolderError> {
        if name == recipe::archive_name() && recipe::wants_archive(pkgbuild) {
            return Ok(Some(ARCHIVE.to_vec()));
        }
        if [ENTRY, PKGBUILD].contains(&name) || !entry::is_file_name(name) {
            return Ok(None);
        }
        match self.bytes(id, name, LOCAL_FILE_BYTES_MAX) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(FolderError::Read(_, error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The folders with names that can be ids; others are a person's own.
    fn ids(&self) -> Result<Vec<String>, FolderError> {
        let listing = |error| FolderError::List(self.path.clone(), error);
        let mut ids = Vec::new();
        for found in self.path.read_dir().map_err(listing)? {
            let found = found.map_err(listing)?;
            let is_folder = found.file_type().is_ok_and(|kind| kind.is_dir());
            match found.file_name().into_string() {
                Ok(name) if is_folder && entry::check_id(&name).is_ok() => ids.push(name),
                _ => {}
            }
        }
        ids.sort();
        ids.truncate(RECIPES_MAX);
        Ok(ids)
    }

    fn stamp(&self, ids: &[String]) -> Stamp {
        let paths = ids.iter().flat_map(|id| [ENTRY, PKGBUILD].map(|name| self.path.join(id).join(name)));
        let state = |path: PathBuf| {
            let meta = path.symlink_metadata().ok();
            let state = meta.and_then(|meta| Some((meta.modified().ok()?, meta.len())));
            (path, state)
        };
        paths.map(state).collect()
    }

    fn read_one(&self, id: &str) -> Result<Option<Shelved>, FolderError> {
        let Some(entry) = entry::read(id, &self.text(id, ENTRY, ENTRY_BYTES_MAX)?)? else { return Ok(None) };
        Ok(Some(Shelved { entry, pkgbuild: self.text(id, PKGBUILD, PKGBUILD_BYTES_MAX)? }))
    }

    fn text(&self, id: &str, name: &'static str, max: usize) -> Result<String, FolderError> {
        String::from_utf8(self.bytes(id, name, max)?).map_err(|_| FolderError::NotText(name))
    }

    /// Links are not followed: what is served lies in the folder.
    fn bytes(&self, id: &str, name: &str, max: usize) -> Result<Vec<u8>, FolderError> {
        let what = match name {
            ENTRY => ENTRY,
            PKGBUILD => PKGBUILD,
            _ => "a file beside the PKGBUILD",
        };
        let path = self.path.join(id).join(name);
        let file = open_plain(&path).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => FolderError::NotPlain(name.to_owned()),
            _ => FolderError::Read(what, error),
        })?;
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            return Err(FolderError::NotPlain(name.to_owned()));
        }
        let mut bytes = Vec::new();
        let read = file.take(max as u64 + 1).read_to_end(&mut bytes);
        match read.map_err(|error| FolderError::Read(what, error))? > max {
            true => Err(FolderError::TooLarge { name: name.to_owned(), max }),
            false => Ok(bytes),
        }
    }
}

/// A pipe in the place of a file would keep us waiting.
fn open_plain(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}
