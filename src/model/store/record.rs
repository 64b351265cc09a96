//! A model's record: what is known of it, in a JSON file that a person can read and the next version, too.

use super::StoreError;
use crate::model::gguf::Header;
use crate::model::reference::{HubReference, Pick, Reference};
use crate::wire::digest::Digest;
use crate::wire::fleet::{ModelFile, ModelInfo, ModelNames};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A record is some hundred bytes, and as much for each part of a split model, of which the largest have some hundred;
/// anything larger is no record.
const RECORD_BYTES_MAX: u64 = 8 << 20;
const RECORD_NAME_HEX: usize = 16;
const RECORD_EXTENSION: &str = "json";
/// What a write that a kill cut short leaves.
pub(super) const TEMPORARY_PREFIX: &str = ".record-";

/// The facts of a [`ModelInfo`], and of each file where it lies and when its bytes were last known to be right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub id: String,
    pub reference: String,
    pub revision: Option<String>,
    pub files: Vec<StoredFile>,
    pub size_bytes: u64,
    pub architecture: String,
    pub parameters: u64,
    pub quantization: String,
    pub context_length: u32,
    pub vocabulary: u32,
    pub chat_template: bool,
    /// What llama.cpp is given: the first file. The first version's records say no other path.
    pub path: PathBuf,
    pub added_at: u64,
    /// Some file's bytes were looked at and are not those that were verified.
    #[serde(default)]
    pub damaged: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StoredFile {
    pub name: String,
    pub size: u64,
    pub sha256: Option<Digest>,
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Nanoseconds since the epoch. Size and time tell a change without reading the bytes.
    #[serde(default)]
    pub mtime_ns: Option<i64>,
    /// When the bytes last had this sum; none since they have changed.
    #[serde(default)]
    pub verified_at: Option<u64>,
    /// The sum is our own, of the bytes as they were found; nobody has published one.
    #[serde(default)]
    pub recorded: bool,
}

/// A file's size and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub size: u64,
    pub mtime_ns: i64,
}

impl Stamp {
    /// Of the file itself where `path` is a link to it.
    pub fn of(path: &Path) -> io::Result<Stamp> {
        let meta = path.metadata()?;
        if !meta.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
        Ok(Stamp { size: meta.len(), mtime_ns })
    }
}

impl StoredFile {
    pub fn is_as(&self, stamp: Stamp) -> bool {
        self.size == stamp.size && self.mtime_ns == Some(stamp.mtime_ns)
    }
}

impl Record {
    /// A person's own file: never ours to change or remove.
    pub fn is_own(&self) -> bool {
        matches!(Reference::read(&self.id), Ok(Reference::File(_)))
    }

    pub fn path_of(&self, file: &StoredFile) -> PathBuf {
        file.path.clone().unwrap_or_else(|| self.path.clone())
    }

    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.iter().map(|file| self.path_of(file))
    }

    pub fn is_there(&self) -> bool {
        self.paths().all(|path| path.is_file())
    }

    /// Whether every file has the size and time that it had when it was recorded.
    pub fn is_unchanged(&self) -> bool {
        let same = |file| Stamp::of(&self.path_of(file)).is_ok_and(|stamp| file.is_as(stamp));
        self.files.iter().all(same)
    }

    /// What a header says about the model.
    pub fn take_facts(&mut self, header: &Header) {
        self.architecture.clone_from(&header.architecture);
        self.parameters = header.parameters;
        self.quantization.clone_from(&header.quantization);
        self.context_length = header.context_length;
        self.vocabulary = header.vocabulary;
        self.chat_template = header.chat_template.is_some();
    }

    /// The names by which a request may call it beside its id: a model of the hub is also called by each of its files.
    pub fn file_names(&self) -> Vec<String> {
        let Ok(Reference::Hub(hub)) = Reference::read(&self.id) else { return Vec::new() };
        let name = |file: &StoredFile| {
            let pick = Pick::File(file.name.clone());
            Reference::Hub(HubReference { pick, ..hub.clone() }).to_string()
        };
        // A name that does not read back names nothing.
        let names = self.files.iter().map(name).filter(|name| Reference::read(name).is_ok());
        names.filter(|name| *name != self.id).collect()
    }

    /// Itself as the rules of `names` know it, aliases apart.
    pub fn names(&self) -> ModelNames {
        ModelNames { id: self.id.clone(), names: self.file_names() }
    }

    pub fn info(&self, aliases: Vec<String>) -> ModelInfo {
        let file = |file: &StoredFile| ModelFile {
            name: file.name.clone(),
            size: file.size,
            sha256: file.sha256.map(|sum| sum.to_string()),
            verified_at: file.verified_at,
            recorded: file.recorded,
        };
        ModelInfo {
            id: self.id.clone(),
            reference: self.reference.clone(),
            revision: self.revision.clone(),
            files: self.files.iter().map(file).collect(),
            size_bytes: self.size_bytes,
            architecture: self.architecture.clone(),
            parameters: self.parameters,
            quantization: self.quantization.clone(),
            context_length: self.context_length,
            vocabulary: self.vocabulary,
            chat_template: self.chat_template,
            path: self.path.to_string_lossy().into_owned(),
            added_at: self.added_at,
            in_use_by: Vec::new(),
            aliases,
            damaged: self.damaged,
        }
    }

    pub fn write(&self, folder: &Path) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        let path = place(folder, &self.id);
        text.and_then(|text| write(&path, &text)).map_err(|source| StoreError::Write { path, source })
    }

    pub fn remove(&self, folder: &Path) -> Result<(), StoreError> {
        let path = place(folder, &self.id);
        let removed = std::fs::remove_file(&path).and_then(|()| File::open(folder)?.sync_all());
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Write { path, source })
            }
            _ => Ok(()),
        }
    }
}

/// The record's file: a hash, because an id holds what no file's name may.
fn place(folder: &Path, id: &str) -> PathBuf {
    let mut name: String = Sha256::digest(id).iter().map(|byte| format!("{byte:02x}")).collect();
    name.truncate(RECORD_NAME_HEX);
    folder.join(name).with_extension(RECORD_EXTENSION)
}

/// All records of a folder. One that is damaged is passed over, and overwritten when its model is fetched again.
pub(super) fn read_all(folder: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_record = path.extension().is_some_and(|extension| extension == RECORD_EXTENSION);
        if !is_record || path.file_name().is_some_and(|name| name == super::alias::FILE) {
            continue;
        }
        match read::<Record>(&path, RECORD_BYTES_MAX) {
            // Under another name it would outlive its model's removal.
            Ok(record) if path != place(folder, &record.id) => {
                tracing::warn!(file = %path.display(), id = record.id, "a model record has another model's name");
            }
            Ok(record) => records.push(record),
            Err(error) => tracing::warn!(file = %path.display(), %error, "a model record is damaged"),
        }
    }
    Ok(records)
}

/// What writes that a kill cut short have left; nobody else writes here.
pub(super) fn remove_temporaries(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
            // What stays takes a little room and is never read.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The old bytes or the new ones, never a mixture, whenever the power goes.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut fresh = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder)?;
    fresh.write_all(bytes)?;
    fresh.as_file().sync_all()?;
    fresh.persist(path)?;
    File::open(folder)?.sync_all()
}

pub(super) fn read<T: serde::de::DeserializeOwned>(path: &Path, bytes_max: u64) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"{
        "id": "tiny", "reference": "tiny", "revision": "abc",
        "files": [{"name": "tiny.gguf", "size": 7, "sha256": null}],
        "size_bytes": 7, "architecture": "llama", "parameters": 1, "quantization": "F32",
        "context_length": 2, "vocabulary": 3, "chat_template": true,
        "path": "/cache/tiny.gguf", "added_at": 5, "in_use_by": []
    }"#;

    #[test]
    fn the_first_versions_records_read_and_count_as_not_verified() {
        let record: Record = serde_json::from_str(OLD).unwrap();
        assert_eq!(record.paths().collect::<Vec<_>>(), [Path::new("/cache/tiny.gguf")]);
        assert!(!record.files[0].is_as(Stamp { size: 7, mtime_ns: 0 }), "its time is not known");
        assert!(!record.damaged && !record.is_own());
        let again: Record = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(again, record);
    }

    #[test]
    fn a_model_of_the_hub_is_called_by_its_files_too() {
        let named = |id: &str| Record { id: id.into(), ..serde_json::from_str(OLD).unwrap() }.file_names();
        assert_eq!(named("hf:org/repo:Q4_K_M@v1"), ["hf:org/repo:tiny.gguf@v1"]);
        assert_eq!(named("hf:org/repo:tiny.gguf"), [""; 0]);
        assert_eq!(named("tiny"), [""; 0]);
        assert_eq!(named("file:/a/tiny.gguf"), [""; 0]);
    }

    #[test]
    fn a_write_replaces_the_whole_or_nothing_and_what_a_kill_leaves_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let mut record: Record = serde_json::from_str(OLD).unwrap();
        record.write(folder.path()).unwrap();
        record.damaged = true;
        record.write(folder.path()).unwrap();
        std::fs::write(folder.path().join(format!("{TEMPORARY_PREFIX}x")), "{\"id\": \"ti").unwrap();
        std::fs::write(folder.path().join("torn.json"), "{\"id\": \"ti").unwrap();
        std::fs::write(folder.path().join("copy.json"), OLD).unwrap();
        remove_temporaries(folder.path());
        assert_eq!(read_all(folder.path()).unwrap(), [record.clone()]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        record.remove(folder.path()).unwrap();
        record.remove(folder.path()).unwrap();
        assert_eq!(read_all(folder.path()).unwrap(), []);
    }
}
