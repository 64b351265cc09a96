//! The models on this machine: one record each, a JSON file that a person can read and the next version, too.

use super::gguf::{self, GgufError, Header};
use super::hub::Hub;
use super::recipe::Recipe;
use super::reference::Reference;
use super::transfer::Limits;
use crate::wire::fleet::{ModelFile, ModelInfo, now_ms};
use crate::wire::{Code, Failure, failure};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A record is some hundred bytes; anything larger is no record.
const RECORD_BYTES_MAX: u64 = 1 << 20;
const RECORD_NAME_HEX: usize = 16;
const RECORD_EXTENSION: &str = "json";

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
    /// Records and sockets of helper processes.
    pub processes: PathBuf,
    pub hub: Hub,
    pub limits: Limits,
    /// The program whose hidden role holds helper processes; this very one if `None`.
    pub shim: Option<PathBuf>,
}

impl Settings {
    pub fn new(records: PathBuf, processes: PathBuf, hub: Hub) -> Self {
        Settings { records, processes, hub, limits: Limits::default(), shim: None }
    }
}

/// A model that is there and was looked at.
#[derive(Debug, Clone)]
pub struct Stored {
    pub info: ModelInfo,
    pub path: PathBuf,
    pub header: Header,
}

pub struct Store {
    pub(super) settings: Settings,
    records: Mutex<BTreeMap<String, ModelInfo>>,
    /// One fetch of a model at a time; others wait for it and find the model there.
    fetching: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Store {
    /// Reads all records. One that is damaged is passed over, and overwritten when its model is fetched again.
    pub fn open(settings: Settings) -> Result<Self, StoreError> {
        let path = &settings.records;
        let open = |source| StoreError::Open { path: path.clone(), source };
        std::fs::create_dir_all(path).map_err(open)?;
        let mut records = BTreeMap::new();
        for entry in std::fs::read_dir(path).map_err(open)? {
            let file = entry.map_err(open)?.path();
            if file.extension().is_none_or(|extension| extension != RECORD_EXTENSION) {
                continue;
            }
            match read_record(&file) {
                Ok(info) => {
                    records.insert(info.id.clone(), info);
                }
                Err(error) => tracing::warn!(file = %file.display(), %error, "a model record is damaged"),
            }
        }
        Ok(Store { settings, records: Mutex::new(records), fetching: Mutex::default() })
    }

    /// Every model whose file is there.
    pub fn list(&self) -> Vec<ModelInfo> {
        let records: Vec<ModelInfo> = self.records().values().cloned().collect();
        records.into_iter().filter(is_there).collect()
    }

    /// By the canonical form of a reference.
    pub fn get(&self, id: &str) -> Option<ModelInfo> {
        let record = self.records().get(id).cloned();
        record.filter(is_there)
    }

    /// The model as it is on disk now, header and all; `None` if it has to be fetched first.
    pub fn find(&self, reference: &Reference) -> Result<Option<Stored>, Failure> {
        let Some(info) = self.get(&reference.to_string()) else { return Ok(None) };
        let path = PathBuf::from(&info.path);
        let header = gguf::inspect(&path).map_err(|error| invalid(&path, &error))?;
        if header.file_bytes == info.size_bytes {
            return Ok(Some(Stored { info, path, header }));
        }
        match reference {
            // Someone changed a file under its name: it is no longer what was verified.
            Reference::Name(_) | Reference::Hub(_) | Reference::Url(_) => Ok(None),
            Reference::File(_) => self.add(reference, &path, None, header).map(Some),
        }
    }

    /// Records a model that lies at `path`.
    pub(super) fn add(
        &self,
        reference: &Reference,
        path: &Path,
        recipe: Option<&Recipe>,
        header: Header,
    ) -> Result<Stored, Failure> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let sha256 = recipe.map(|recipe| recipe.sha256.to_string());
        let info = ModelInfo {
            id: reference.to_string(),
            reference: reference.to_string(),
            revision: recipe.and_then(|recipe| Some(recipe.hub.as_ref()?.revision.clone())),
            files: vec![ModelFile { name, size: header.file_bytes, sha256 }],
            size_bytes: header.file_bytes,
            architecture: header.architecture.clone(),
            parameters: header.parameters,
            quantization: header.quantization.clone(),
            context_length: header.context_length,
            vocabulary: header.vocabulary,
            chat_template: header.chat_template.is_some(),
            path: path.to_string_lossy().into_owned(),
            added_at: now_ms(),
            in_use_by: Vec::new(),
        };
        self.write_record(&info).map_err(|error| Failure::internal(&error))?;
        self.records().insert(info.id.clone(), info.clone());
        Ok(Stored { info, path: path.to_owned(), header })
    }

    /// The lock under which a model is fetched.
    pub(super) fn fetch_lock(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever is not at it any more holds no clone.
        fetching.retain(|_, lock| Arc::strong_count(lock) > 1);
        fetching.entry(id.to_owned()).or_default().clone()
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<String, ModelInfo>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_record(&self, info: &ModelInfo) -> Result<(), StoreError> {
        let mut name: String = Sha256::digest(&info.id).iter().map(|byte| format!("{byte:02x}")).collect();
        name.truncate(RECORD_NAME_HEX);
        let path = self.settings.records.join(name).with_extension(RECORD_EXTENSION);
        let write = || -> io::Result<()> {
            let mut fresh = tempfile::NamedTempFile::new_in(&self.settings.records)?;
            fresh.write_all(&serde_json::to_vec_pretty(info)?)?;
            fresh.as_file().sync_all()?;
            fresh.persist(&path)?;
            File::open(&self.settings.records)?.sync_all()
        };
        write().map_err(|source| StoreError::Write { path: path.clone(), source })
    }
}

fn is_there(info: &ModelInfo) -> bool {
    Path::new(&info.path).is_file()
}

fn read_record(path: &Path) -> io::Result<ModelInfo> {
    if path.metadata()?.len() > RECORD_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
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
