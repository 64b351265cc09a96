//! One file of a model: there already, or brought by a download that can be gone on with.

use super::{ACTION, Errand, Stop, stopped};
use crate::download::{self, Download, DownloadError, Expected, Visit, check_file, check_room, disk_code};
use crate::job::progress::size;
use crate::wire::Failure;
use crate::wire::digest::Digest;
use crate::wire::job::Receipt;
use std::io;
use std::path::{Path, PathBuf};

/// A file that is wanted.
pub(super) struct Wanted<'a> {
    pub label: &'a str,
    pub expected: Expected,
    /// Where its bytes belong.
    pub target: PathBuf,
    /// It can be had elsewhere, too.
    pub has_fallback: bool,
}

impl Errand<'_> {
    /// Whether the very bytes are there, put by another tool or an earlier self; their sum.
    pub(super) async fn is_here(&self, wanted: &Wanted<'_>) -> Result<Option<Digest>, Stop> {
        match (wanted.target.metadata(), wanted.expected.size) {
            (Ok(meta), Some(size)) if meta.is_file() && meta.len() == size => {}
            _ => return Ok(None),
        }
        let (target, expected, token) = (wanted.target.clone(), wanted.expected, self.cancel.clone());
        let checked = tokio::task::spawn_blocking(move || check_file(&target, &expected, &token)).await;
        match checked {
            Ok(Ok(Some((digest, is_right)))) => Ok(is_right.then_some(digest)),
            Ok(Ok(None)) => Err(Stop::Cancelled(Receipt::default())),
            // Not readable is not there.
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Room for what is missing, told before it starts and not after an hour.
    pub(super) fn check_room(&self, name: &str, folder: &Path, bytes: u64) -> Result<(), Stop> {
        std::fs::create_dir_all(folder).map_err(|error| writing(folder, &error))?;
        check_room(folder, bytes).map_err(|error| stopped(name, &error))
    }

    /// Brings the bytes to their place; their sum.
    pub(super) async fn bring(&self, visit: Visit, wanted: &Wanted<'_>) -> Result<Digest, Stop> {
        if let Some(folder) = wanted.target.parent() {
            std::fs::create_dir_all(folder).map_err(|error| writing(folder, &error))?;
        }
        let origin = visit.url.origin().to_owned();
        let label = wanted.label;
        // One file may be asked for by several names.
        let lock = self.store.fetch_lock(&wanted.target.to_string_lossy());
        let _turn = match lock.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                self.tell(format!("{label} is being fetched already; waiting for it"));
                let Some(turn) = self.cancel.run_until_cancelled(lock.lock()).await else {
                    return Err(Stop::Cancelled(Receipt::default()));
                };
                if let Some(digest) = self.is_here(wanted).await? {
                    return Ok(digest);
                }
                turn
            }
        };
        let download = Download {
            visit,
            expected: wanted.expected,
            label,
            action: ACTION,
            has_fallback: wanted.has_fallback,
            limits: &self.store.settings.limits,
            events: self.events,
        };
        let part = download.open(&wanted.target).await.map_err(|error| stopped(label, &error))?;
        let (have, whole) = (part.bytes(), wanted.expected.size.map(size));
        self.tell(match (have, whole) {
            (0, Some(whole)) => format!("fetching {label} ({whole}) from {origin}"),
            (0, None) => format!("fetching {label} from {origin}"),
            (have, whole) => {
                let whole = whole.map_or_else(String::new, |whole| format!(" of {whole}"));
                format!("fetching the rest of {label} from {origin}: {}{whole} are there", size(have))
            }
        });
        match download.run(&part).await {
            Ok(digest) => {
                let published = download::publish(part, &wanted.target).await;
                published.map_err(|error| writing(&wanted.target, &error))?;
                Ok(digest)
            }
            Err(DownloadError::Cancelled) => {
                let kept = size(part.bytes());
                self.tell(format!("{kept} of {label} are kept; the next download goes on from there"));
                Err(Stop::Cancelled(Receipt::default()))
            }
            Err(error) => {
                part.remove_if_empty();
                Err(stopped(label, &error))
            }
        }
    }
}

pub(super) fn writing(path: &Path, error: &io::Error) -> Failure {
    Failure::new(disk_code(error), format!("writing `{}`: {error}", path.display()))
}
