//! The engines of this node: the one inside this binary, and those that recipes have installed. An installed one is a
//! folder `workers/<id>/<version>/` with a manifest; `workers/<id>/current` leads to the version in use.

use crate::hive::devices::BUILT_IN;
use crate::pkgbuild;
use crate::wire::catalog::{CatalogEntry, InstalledWorker, Serve};
use crate::wire::fleet::now_ms;
use crate::wire::{Code, Failure, VERSION};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Whose engines speak our own worker's command line and routes.
const OURS: &str = "rbee";
/// What the engine inside is asked for by, where another one of its kind is installed.
const BUILT_IN_ID: &str = "built-in";
const CURRENT: &str = "current";
/// Engines installed on one node.
const INSTALLED_MAX: usize = 256;
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// What can run a model here.
#[derive(Debug, Clone, PartialEq)]
pub struct Engine {
    /// The recipe's id; `built-in` for the one inside.
    pub id: String,
    /// `cpu`, `cuda` or `metal`.
    pub kind: String,
    pub version: String,
    pub program: Program,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Program {
    /// This very binary.
    BuiltIn,
    /// An rbee that was built on this node.
    Ours(PathBuf),
    /// Another project's server.
    Foreign { binary: PathBuf, serve: Serve },
}

impl Engine {
    pub fn built_in() -> Engine {
        Engine::inside(BUILT_IN)
    }

    /// This very binary, for devices of a kind.
    fn inside(kind: &str) -> Engine {
        Engine {
            id: BUILT_IN_ID.into(),
            kind: kind.into(),
            version: VERSION.into(),
            program: Program::BuiltIn,
        }
    }

    pub fn is_foreign(&self) -> bool {
        matches!(self.program, Program::Foreign { .. })
    }
}

/// What a recipe's package does not say of itself; the installer writes it into the package's manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    pub worker_id: String,
    pub installed_at: u64,
    /// The catalog it came from.
    pub source: String,
    pub recipe_sha256: String,
    pub backend: String,
    pub implementation: String,
    #[serde(default)]
    pub serve: Option<Serve>,
}

impl Provenance {
    pub fn of(entry: &CatalogEntry, source: &str, recipe_sha256: &str) -> Provenance {
        Provenance {
            worker_id: entry.id.clone(),
            installed_at: now_ms(),
            source: source.to_owned(),
            recipe_sha256: recipe_sha256.to_owned(),
            backend: entry.worker_type.clone(),
            implementation: entry.implementation.clone(),
            serve: entry.serve.clone(),
        }
    }
}

/// What lies beside an installed engine; of the installer's part, what is read here.
#[derive(Debug, Clone, Deserialize)]
struct Manifest {
    #[serde(flatten)]
    provenance: Provenance,
    package_version: String,
    /// Below the version's folder.
    binary: PathBuf,
    size_bytes: u64,
    /// The version's folder; known by where the manifest was.
    #[serde(skip)]
    folder: PathBuf,
}

impl Manifest {
    fn read(current: &Path) -> io::Result<Manifest> {
        let folder = current.canonicalize()?;
        let path = folder.join(pkgbuild::MANIFEST);
        if path.metadata()?.len() > MANIFEST_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large"));
        }
        let manifest: Manifest = serde_json::from_slice(&std::fs::read(path)?)?;
        Ok(Manifest { folder, ..manifest })
    }

    fn worker(self) -> InstalledWorker {
        InstalledWorker {
            worker_id: self.provenance.worker_id,
            version: self.package_version,
            path: self.folder.to_string_lossy().into_owned(),
            size_bytes: self.size_bytes,
            installed_at: self.provenance.installed_at,
            source: self.provenance.source,
            recipe_sha256: self.provenance.recipe_sha256,
            backend: self.provenance.backend,
        }
    }

    fn engine(self) -> Engine {
        let binary = self.folder.join(&self.binary);
        let Provenance { worker_id: id, backend: kind, implementation, serve, .. } = self.provenance;
        let program = match serve {
            Some(serve) if implementation != OURS => Program::Foreign { binary, serve },
            _ => Program::Ours(binary),
        };
        Engine { id, kind, version: self.package_version, program }
    }
}

/// The folder of installed engines.
#[derive(Debug, Clone)]
pub struct Engines {
    folder: PathBuf,
}

impl Engines {
    pub fn new(folder: PathBuf) -> Engines {
        Engines { folder }
    }

    /// Where an engine's versions lie.
    pub fn folder_of(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    /// All that is installed, by id.
    pub fn installed(&self) -> Vec<InstalledWorker> {
        self.manifests().into_iter().map(Manifest::worker).collect()
    }

    /// All that can run a model: the one built in first.
    pub fn all(&self) -> Vec<Engine> {
        let installed = self.manifests().into_iter().map(Manifest::engine);
        // What was built for a Mac computes on its processor, too, where a person asks for that.
        let also = (BUILT_IN == "metal").then(|| Engine::inside("cpu"));
        std::iter::once(Engine::built_in()).chain(also).chain(installed).collect()
    }

    fn manifests(&self) -> Vec<Manifest> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut manifests: Vec<Manifest> = entries
            .take(INSTALLED_MAX)
            .filter_map(|entry| {
                let folder = entry.path().join(CURRENT);
                match Manifest::read(&folder) {
                    Ok(manifest) => Some(manifest),
                    // A build that was stopped before its end has no `current`.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => {
                        tracing::warn!(path = %folder.display(), %error, "an installed engine's manifest does not read; it is left out");
                        None
                    }
                }
            })
            .collect();
        manifests.sort_by(|one, other| one.provenance.worker_id.cmp(&other.provenance.worker_id));
        manifests
    }

    /// An installed engine, by its id or, where only one is of that kind, by its kind.
    pub fn find(&self, word: &str) -> Result<InstalledWorker, Failure> {
        let installed = self.installed();
        let by_id = installed.iter().find(|worker| worker.worker_id.eq_ignore_ascii_case(word));
        let mut by_kind = installed.iter().filter(|worker| worker.backend.eq_ignore_ascii_case(word));
        let only = by_kind.next().filter(|_| by_kind.next().is_none());
        by_id.or(only).cloned().ok_or_else(|| {
            let ids: Vec<&str> = installed.iter().map(|worker| worker.worker_id.as_str()).collect();
            let there = if ids.is_empty() {
                "nothing is installed beside the engine inside this binary".to_owned()
            } else {
                format!("there are: {}", ids.join(", "))
            };
            Failure::new(
                Code::WorkerNotFound,
                format!("no worker `{word}` is installed here; {there}. See `rbee worker available`"),
            )
        })
    }

    /// Takes an engine away; how many bytes that freed. What leads to it goes first, so that a half-removed one is none.
    pub fn remove(&self, id: &str) -> Result<u64, Failure> {
        let folder = self.folder.join(id);
        let remove = || -> io::Result<u64> {
            match std::fs::remove_file(folder.join(CURRENT)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            crate::process::remove_tree(&folder)
        };
        remove().map_err(|error| {
            Failure::new(Code::Internal, format!("removing {} from {}: {error}", id, folder.display()))
        })
    }
}
