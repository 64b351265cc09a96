//! The models on this machine: one record each, and the names they are called by.
//!
//! A record says where the bytes lie and what they were when they were last known to be right. It is written in one step,
//! so that a kill leaves the old one or the new one. Bytes that were changed behind its back show by size or time before
//! a worker gets them (`check`), or when somebody asks for all to be read again (`verify`).

mod alias;
mod check;
mod prune;
mod record;
mod remove;
mod sums;
mod verify;

use super::gguf::{self, GgufError, Header};
use super::hub::Hub;
use super::names::{self, Known};
use super::reference::Reference;
use crate::download::Limits;
use crate::pkgbuild::Places;
use crate::wire::digest::Digest;
use crate::wire::fleet::{ModelInfo, ModelNames, now_ms};
use crate::wire::{Code, Failure, failure};
use alias::Aliases;
use record::{Record, Stamp, StoredFile};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OwnedMutexGuard;

pub use prune::{Kind as PruneKind, Leftover, Pruned};
pub use remove::Removal;
pub use verify::{FileVerdict, ModelVerdict, Verdict, Verified};

/// Other names of one model that are told to the queen: aliases first, then files.
pub const NAMES_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("opening the folder of model records `{path}`")]
    Open { path: PathBuf, source: io::Error },
    #[error("writing the model record `{path}`")]
    Write { path: PathBuf, source: io::Error },
}

/// Where things are, and how patient to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of records.
    pub records: PathBuf,
    pub hub: Hub,
    pub limits: Limits,
    /// Where recipes run that make a model.
    pub builds: Places,
    /// Origins that a model may come from though they are of a private network, or without encryption.
    pub trusted: Vec<String>,
}

impl Settings {
    pub fn new(records: PathBuf, hub: Hub, builds: Places) -> Self {
        Settings { records, hub, limits: Limits::default(), builds, trusted: Vec::new() }
    }
}

/// A model that is there and was looked at.
#[derive(Debug, Clone)]
pub struct Stored {
    pub info: ModelInfo,
    pub path: PathBuf,
    pub header: Header,
}

/// A model whose bytes lie where they belong.
#[derive(Debug, Clone)]
pub struct New {
    /// The canonical form of what it is, or the recipe's name.
    pub id: String,
    /// The canonical form of what was asked for.
    pub reference: String,
    /// The commit it is of.
    pub revision: Option<String>,
    /// In order; the first is what llama.cpp is given.
    pub files: Vec<NewFile>,
    pub header: Header,
}

#[derive(Debug, Clone)]
pub struct NewFile {
    pub path: PathBuf,
    /// As the publisher calls it: a path inside its repository.
    pub name: String,
    /// What the bytes have, just now; none if they were not read.
    pub sha256: Option<Digest>,
    /// Somebody has published that sum, and it is no mere record of what came.
    pub is_published: bool,
}

/// The right to change what lies on disk for one model, held alone: by a fetch, a removal, the start of a worker.
#[derive(Debug)]
pub struct Turn {
    id: String,
    _held: OwnedMutexGuard<()>,
}

pub struct Store {
    pub(super) settings: Settings,
    records: Mutex<BTreeMap<String, Record>>,
    aliases: Mutex<Aliases>,
    /// One at a time puts records on disk. Apart from `records`, so that nobody who reads those waits for a disk.
    writing: Mutex<()>,
    /// One fetch of a model at a time; others wait for it and find the model there.
    fetching: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Store {
    /// Reads all records.
    pub fn open(settings: Settings) -> Result<Self, StoreError> {
        let path = &settings.records;
        let open = |source| StoreError::Open { path: path.clone(), source };
        std::fs::create_dir_all(path).map_err(open)?;
        record::remove_temporaries(path);
        let records = record::read_all(path).map_err(open)?;
        Ok(Store {
            aliases: Mutex::new(Aliases::read(path)),
            records: Mutex::new(records.into_iter().map(|record| (record.id.clone(), record)).collect()),
            settings,
            writing: Mutex::default(),
            fetching: Mutex::default(),
        })
    }

    /// Every model whose files are there.
    pub fn list(&self) -> Vec<ModelInfo> {
        let records = self.there();
        let aliases = self.aliases_among(&records);
        records.iter().zip(aliases).map(|(record, aliases)| record.info(aliases)).collect()
    }

    /// By its id alone.
    pub fn get(&self, id: &str) -> Option<ModelInfo> {
        self.record(id).filter(Record::is_there).map(|record| self.info(&record))
    }

    /// The facts of the model that a reference means, whatever state its files are in.
    pub fn facts(&self, reference: &Reference) -> Option<ModelInfo> {
        self.best(reference).map(|record| self.info(&record))
    }

    /// What can be used here, and every name it may be asked for by.
    pub fn names(&self) -> Vec<ModelNames> {
        let usable: Vec<Record> = self.there().into_iter().filter(|record| !record.damaged).collect();
        let aliases = self.aliases_among(&usable);
        let told = usable.iter().zip(aliases).map(|(record, mut names)| {
            names.extend(record.file_names());
            names.truncate(NAMES_MAX);
            ModelNames { id: record.id.clone(), names }
        });
        told.collect()
    }

    /// Records a model whose bytes lie where they belong; what was recorded under its id is replaced.
    pub fn add(&self, new: New) -> Result<Stored, Failure> {
        let New { id, reference, revision, files, header } = new;
        let Some(path) = files.first().map(|file| file.path.clone()) else {
            return Err(Failure::new(Code::Internal, format!("{id} was to be recorded without a file")));
        };
        let file = |new: NewFile| {
            let stamp = Stamp::of(&new.path).map_err(|error| unreadable(&new.path, &error))?;
            Ok(StoredFile {
                verified_at: new.sha256.is_some().then(now_ms),
                mtime_ns: Some(stamp.mtime_ns),
                name: new.name,
                size: stamp.size,
                sha256: new.sha256,
                path: Some(new.path),
                recorded: new.sha256.is_some() && !new.is_published,
            })
        };
        let files = files.into_iter().map(file).collect::<Result<Vec<_>, Failure>>()?;
        let mut record = Record {
            id,
            reference,
            revision,
            size_bytes: files.iter().map(|file| file.size).sum(),
            files,
            architecture: String::new(),
            parameters: 0,
            quantization: String::new(),
            context_length: 0,
            vocabulary: 0,
            chat_template: false,
            path: path.clone(),
            added_at: now_ms(),
            damaged: false,
        };
        record.take_facts(&header);
        self.put(record.clone())?;
        Ok(Stored { info: self.info(&record), path, header })
    }

    /// Records a person's own file, which stays where it is.
    pub(super) fn add_own(
        &self,
        reference: &Reference,
        path: &Path,
        header: Header,
    ) -> Result<Stored, Failure> {
        let file = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            NewFile { path: path.clone(), name, sha256: None, is_published: false }
        };
        let files = match header.parts.as_slice() {
            [] => vec![file(&path.to_owned())],
            parts => parts.iter().map(file).collect(),
        };
        let id = reference.to_string();
        self.add(New { reference: id.clone(), id, revision: None, files, header })
    }

    /// Waits for the turn at a model.
    pub async fn turn(&self, id: &str) -> Turn {
        Turn { id: id.to_owned(), _held: self.fetch_lock(id).lock_owned().await }
    }

    /// The lock under which a model is fetched.
    pub(super) fn fetch_lock(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever is not at it any more holds no clone.
        fetching.retain(|_, lock| Arc::strong_count(lock) > 1);
        fetching.entry(id.to_owned()).or_default().clone()
    }

    /// Whether nobody is at any model now.
    fn is_idle(&self) -> bool {
        let fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.values().all(|lock| lock.try_lock().is_ok())
    }

    /// All that a reference may mean, the likeliest first; also what is damaged or gone.
    fn meant(&self, reference: &Reference) -> Vec<Record> {
        let asked = self.unaliased(reference.clone()).to_string();
        let records = self.records();
        if let Some(exact) = records.get(&asked) {
            return vec![exact.clone()];
        }
        let known: Vec<ModelNames> = records.values().map(Record::names).collect();
        let ids = names::meant(&asked, known.iter().map(Known::of));
        ids.into_iter().filter_map(|id| records.get(id).cloned()).collect()
    }

    /// Of all that may be meant, what can be used; else what is there; else what was.
    fn best(&self, reference: &Reference) -> Option<Record> {
        let records = self.meant(reference);
        let is_there = |record: &&Record| record.is_there();
        let sound = records.iter().filter(|record| !record.damaged).find(is_there);
        sound.or_else(|| records.iter().find(is_there)).or(records.first()).cloned()
    }

    fn there(&self) -> Vec<Record> {
        let records: Vec<Record> = self.records().values().cloned().collect();
        records.into_iter().filter(Record::is_there).collect()
    }

    fn info(&self, record: &Record) -> ModelInfo {
        let mut records = self.there();
        records.retain(|other| other.id != record.id);
        records.push(record.clone());
        record.info(self.aliases_among(&records).pop().unwrap_or_default())
    }

    fn record(&self, id: &str) -> Option<Record> {
        self.records().get(id).cloned()
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, record: Record) -> Result<(), Failure> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        record.write(&self.settings.records).map_err(|error| Failure::internal(&error))?;
        self.records().insert(record.id.clone(), record);
        Ok(())
    }

    /// Changes a record that still speaks of the same files; nothing if it was replaced or removed meanwhile.
    fn update(&self, seen: &Record, change: impl FnOnce(&mut Record)) -> Result<(), Failure> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut record) = self.record(&seen.id).filter(|record| record.added_at == seen.added_at) else {
            return Ok(());
        };
        change(&mut record);
        record.write(&self.settings.records).map_err(|error| Failure::internal(&error))?;
        self.records().insert(record.id.clone(), record);
        Ok(())
    }

    fn forget(&self, record: &Record) -> Result<(), Failure> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        record.remove(&self.settings.records).map_err(|error| Failure::internal(&error))?;
        self.records().remove(&record.id);
        Ok(())
    }
}

/// Reads the header that speaks for all of a model's files.
fn header_of(record: &Record) -> Result<Header, Failure> {
    gguf::inspect(&record.path).map_err(|error| invalid(&record.path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Code::Internal, format!("reading `{}`: {error}", path.display()))
}

/// A file that is no model, or none that may be given to llama.cpp.
pub(super) fn invalid(path: &Path, error: &GgufError) -> Failure {
    let code = match error {
        GgufError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::ModelNotFound,
        GgufError::Open { .. } | GgufError::Read(_) => Code::Internal,
        _ => Code::InvalidModel,
    };
    let text = failure::chain(error);
    let message = match error {
        GgufError::Open { .. } | GgufError::NotAFile(_) => text,
        _ => format!("`{}`: {text}", path.display()),
    };
    Failure::new(code, message)
}
