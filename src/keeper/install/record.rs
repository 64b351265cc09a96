//! `installed.json`: what `rbee install` has put where, written down before it is done, so that taking it away again takes that
//! and nothing else, also after an install that was killed.

use super::InstallError;
use super::places::absent;
use super::service::Service;
use super::unit::Role;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "installed.json";
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Read at once when a file is hashed.
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub role: Role,
    pub service: Service,
    pub version: String,
    pub program: PathBuf,
    /// Whether the program was put there by us, and not found there.
    pub owns_program: bool,
    /// Where the symlinks are; none were made if empty.
    pub links: Option<PathBuf>,
    /// Files we wrote, with what they held then.
    pub files: Vec<Written>,
    /// Folders that were not there before, the outermost first.
    pub folders: Vec<PathBuf>,
    /// The daemon's command line.
    pub command: Vec<String>,
    /// Whether the state directory held something of a time before.
    pub had_state: bool,
    /// Whether services of this user now run without a login, by our doing.
    #[serde(default)]
    pub lingers: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    pub path: PathBuf,
    pub sha256: String,
}

impl Record {
    pub fn path(state: &Path) -> PathBuf {
        state.join(FILE)
    }

    pub fn read(state: &Path) -> Result<Option<Self>, InstallError> {
        let path = Record::path(state);
        let read = || -> io::Result<Record> {
            let mut bytes = Vec::new();
            File::open(&path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        match read() {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(InstallError::Read { path, source }),
        }
    }

    pub fn save(&self, state: &Path) -> Result<(), InstallError> {
        let path = Record::path(state);
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        text.and_then(|text| replace(&path, &text, 0o600))
            .map_err(|source| InstallError::Write { path, source })
    }

    /// Takes a folder into the record with those above it that are missing, and makes them.
    pub fn make_folder(&mut self, state: &Path, folder: &Path) -> Result<(), InstallError> {
        let missing = absent(folder);
        if !missing.is_empty() {
            self.folders.extend(missing);
            self.save(state)?;
        }
        std::fs::create_dir_all(folder)
            .map_err(|source| InstallError::Write { path: folder.to_owned(), source })
    }

    pub fn owns(&self, path: &Path) -> bool {
        self.files.iter().any(|written| written.path == path)
    }

    /// Writes a file that was not there, or is ours already.
    pub fn write(&mut self, state: &Path, path: &Path, text: &str) -> Result<(), InstallError> {
        if !self.owns(path) && path.symlink_metadata().is_ok() {
            return Err(InstallError::Taken { path: path.to_owned() });
        }
        self.files.retain(|written| written.path != path);
        self.files.push(Written { path: path.to_owned(), sha256: hex(&Sha256::digest(text.as_bytes())) });
        self.save(state)?;
        let failed = |source| InstallError::Write { path: path.to_owned(), source };
        replace(path, text.as_bytes(), 0o644).map_err(failed)
    }

    /// Removes the files; those that a person has changed since stay, and are told.
    pub fn remove_files(&self) -> Result<Vec<PathBuf>, InstallError> {
        let mut kept = Vec::new();
        for written in &self.files {
            match sum(&written.path) {
                Ok(sum) if sum == written.sha256 => remove(&written.path)?,
                Ok(_) => kept.push(written.path.clone()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(InstallError::Read { path: written.path.clone(), source }),
            }
        }
        Ok(kept)
    }

    /// Removes the folders that we made and that hold nothing now.
    pub fn remove_folders(&self) {
        for folder in self.folders.iter().rev() {
            // One that somebody else uses by now is not empty.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

pub fn remove(path: &Path) -> Result<(), InstallError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(InstallError::Remove { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file's SHA-256 sum.
pub fn sum(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex(&hasher.finalize())),
            count => hasher.update(&chunk[..count]),
        }
    }
}

/// The old bytes or the new ones, whenever the power goes.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, mode, |file| file.write_all(bytes))
}

/// Puts a file in its place in one step: whoever runs the old one goes on with it.
pub fn put(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut fresh = tempfile::Builder::new().prefix(".rbee-new-").tempfile_in(folder)?;
    fill(fresh.as_file_mut())?;
    fresh.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    fresh.as_file().sync_all()?;
    fresh.persist(path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            role: Role::Hive,
            service: Service::Detached,
            version: "0".into(),
            program: "/p".into(),
            owns_program: false,
            links: None,
            files: vec![],
            folders: vec![],
            command: vec![],
            had_state: false,
            lingers: false,
        }
    }

    #[test]
    fn what_was_made_goes_and_what_a_person_changed_or_added_stays() {
        let state = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let mut record = record();
        let folder = root.path().join("a/b");
        record.make_folder(state.path(), &folder).unwrap();
        record.write(state.path(), &folder.join("one"), "1").unwrap();
        record.write(state.path(), &folder.join("two"), "2").unwrap();
        std::fs::write(folder.join("two"), "changed").unwrap();
        assert_eq!(Record::read(state.path()).unwrap(), Some(record.clone()));
        assert_eq!(record.remove_files().unwrap(), [folder.join("two")]);
        record.remove_folders();
        assert!(!folder.join("one").exists() && folder.join("two").exists());
        std::fs::remove_file(folder.join("two")).unwrap();
        record.remove_folders();
        assert!(!root.path().join("a").exists() && root.path().exists());
    }

    #[test]
    fn what_is_not_ours_is_not_overwritten() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("config.toml");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(record().write(state.path(), &path, "x"), Err(InstallError::Taken { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
