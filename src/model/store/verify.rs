//! Every byte of one model, or of all, read again and compared with what it should be. Nothing is taken from size or time
//! here: a disk that rots changes neither.

use super::Store;
use super::record::{Record, Stamp, StoredFile};
use super::sums::{self, Hashing};
use crate::job::progress::{Events, size};
use crate::model::reference::Reference;
use crate::wire::digest::Digest;
use crate::wire::fleet::now_ms;
use crate::wire::job::JobEvent;
use crate::wire::{Code, Failure};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) const ACTION: &str = "verify";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    pub models: Vec<ModelVerdict>,
    /// That were read.
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelVerdict {
    pub id: String,
    pub ok: bool,
    pub files: Vec<FileVerdict>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileVerdict {
    pub name: String,
    /// What the bytes have.
    pub sha256: Option<String>,
    /// What they should have.
    pub expected: Option<String>,
    pub state: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    Differs,
    Missing,
    Unreadable,
    /// It had no sum; from now on it has this one.
    Recorded,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Differs => "differs",
            Verdict::Missing => "missing",
            Verdict::Unreadable => "unreadable",
            Verdict::Recorded => "recorded",
        }
    }

    fn is_good(self) -> bool {
        matches!(self, Verdict::Ok | Verdict::Recorded)
    }
}

impl Verified {
    /// What to say, and to fail with, if anything is wrong. The details hold the whole table.
    pub fn failure(&self) -> Option<Failure> {
        let wrong: Vec<String> =
            self.models.iter().filter(|model| !model.ok).map(ModelVerdict::told).collect();
        if wrong.is_empty() {
            return None;
        }
        let message = format!("{} of {} models: {}", wrong.len(), self.models.len(), wrong.join("; "));
        let details = serde_json::to_value(self).unwrap_or_default();
        Some(Failure::new(Code::ChecksumMismatch, message).with(details))
    }
}

impl ModelVerdict {
    fn told(&self) -> String {
        let wrong = self.files.iter().filter(|file| !file.state.is_good());
        let files: Vec<String> = wrong.map(|file| format!("`{}` {}", file.name, file.state.told())).collect();
        let files = files.join(", ");
        let id = &self.id;
        match Reference::read(id) {
            Ok(Reference::File(_)) => format!(
                "{id}: {files} from what it was; if that is meant to be, `rbee model remove` and `rbee model download` take it as it is now"
            ),
            _ => format!("{id}: {files}; `rbee model download {id}` mends it"),
        }
    }
}

impl Verdict {
    fn told(self) -> &'static str {
        match self {
            Verdict::Missing => "is missing",
            Verdict::Unreadable => "cannot be read",
            Verdict::Ok | Verdict::Differs | Verdict::Recorded => "differs",
        }
    }
}

/// One file on its way through.
struct Asked<'r> {
    record: &'r Record,
    at: usize,
    /// Before the first byte was read: a change meanwhile shows at the next use.
    stamp: io::Result<Stamp>,
    path: PathBuf,
}

impl Asked<'_> {
    fn file(&self) -> &StoredFile {
        &self.record.files[self.at]
    }

    fn verdict(&self, digest: Option<&io::Result<Digest>>) -> FileVerdict {
        let file = self.file();
        let found = digest.and_then(|digest| digest.as_ref().ok()).copied();
        let state = match (&self.stamp, found, file.sha256) {
            (Err(error), ..) if error.kind() == io::ErrorKind::NotFound => Verdict::Missing,
            (Err(_), ..) | (Ok(_), None, _) => Verdict::Unreadable,
            (Ok(_), Some(found), Some(expected)) if found != expected => Verdict::Differs,
            (Ok(_), Some(_), Some(_)) => Verdict::Ok,
            (Ok(_), Some(_), None) => Verdict::Recorded,
        };
        let text = |digest: Option<Digest>| digest.map(|digest| digest.to_string());
        FileVerdict { name: file.name.clone(), sha256: text(found), expected: text(file.sha256), state }
    }
}

impl Store {
    /// Reads the model that is meant, or all, and keeps what came out. `Ok(None)` when cancelled.
    pub async fn verify(
        &self,
        which: Option<&Reference>,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<Option<Verified>, Failure> {
        let records = match which {
            Some(reference) => self.best(reference).into_iter().collect(),
            None => self.records().values().cloned().collect::<Vec<_>>(),
        };
        let asked: Vec<Asked<'_>> = records.iter().flat_map(files_of).collect();
        let (mut paths, mut bytes) = (Vec::new(), 0);
        for file in &asked {
            if let Ok(stamp) = &file.stamp {
                paths.push((file.path.clone(), stamp.size));
                bytes += stamp.size;
            }
        }
        let label = match records.as_slice() {
            [one] => one.id.clone(),
            several => format!("{} models", several.len()),
        };
        let begun = Instant::now();
        let Some(digests) = sums::digests(paths, Hashing { label: &label, events, cancel }).await? else {
            return Ok(None);
        };
        let seconds = begun.elapsed().as_secs_f32();
        events(JobEvent::narrate(ACTION, format!("{label}: {} read in {seconds:.1} s", size(bytes))));
        let mut digests = digests.iter();
        let verdicts: Vec<FileVerdict> = asked
            .iter()
            .map(|file| file.verdict(file.stamp.is_ok().then(|| digests.next()).flatten()))
            .collect();
        let mut models = Vec::new();
        for record in &records {
            let ours = || asked.iter().zip(&verdicts).filter(|(file, _)| file.record.id == record.id);
            self.keep(record, ours())?;
            let files: Vec<FileVerdict> = ours().map(|(_, verdict)| verdict.clone()).collect();
            let ok = files.iter().all(|file| file.state.is_good());
            models.push(ModelVerdict { id: record.id.clone(), ok, files });
        }
        Ok(Some(Verified { models, bytes }))
    }

    /// Writes into the record what was found.
    fn keep<'a>(
        &self,
        record: &Record,
        verdicts: impl Iterator<Item = (&'a Asked<'a>, &'a FileVerdict)>,
    ) -> Result<(), Failure> {
        let mut now = record.clone();
        let mut is_all_good = true;
        for (asked, verdict) in verdicts {
            is_all_good &= verdict.state.is_good();
            let file = &mut now.files[asked.at];
            match (verdict.state, &asked.stamp) {
                (Verdict::Ok | Verdict::Recorded, Ok(stamp)) => {
                    if verdict.state == Verdict::Recorded {
                        file.sha256 = verdict.sha256.as_deref().and_then(|sum| sum.parse().ok());
                        file.recorded = true;
                    }
                    (file.size, file.mtime_ns, file.verified_at) =
                        (stamp.size, Some(stamp.mtime_ns), Some(now_ms()));
                }
                (Verdict::Differs, _) => {
                    file.verified_at = None;
                    // What a person's own file holds is the person's to say.
                    now.damaged |= !record.is_own();
                }
                _ => {}
            }
        }
        if is_all_good {
            now.damaged = false;
        }
        now.size_bytes = now.files.iter().map(|file| file.size).sum();
        if now == *record { Ok(()) } else { self.update(record, |kept| kept.clone_from(&now)) }
    }
}

fn files_of(record: &Record) -> impl Iterator<Item = Asked<'_>> {
    record.files.iter().enumerate().map(move |(at, file)| {
        let path = record.path_of(file);
        Asked { record, at, stamp: Stamp::of(&path), path }
    })
}
