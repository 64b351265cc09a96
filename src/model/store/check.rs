//! Bytes that were changed behind the record's back. Size and time of every file are compared at each use, which costs
//! nothing; where they differ, a person's own file is taken as it is now, and a verified one is read again, whole.

use super::record::{Record, Stamp};
use super::sums::{self, Hashing};
use super::{Store, Stored, header_of};
use crate::job::progress::{Events, size};
use crate::model::fetch::Fetched;
use crate::model::reference::Reference;
use crate::wire::fleet::now_ms;
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::{Code, Failure};
use serde_json::json;
use tokio_util::sync::CancellationToken;

impl Store {
    /// The model as it is on disk now, header and all; `None` if it has to be fetched first, or fetched again: what is
    /// damaged, or was changed and not looked at since, is as good as not there.
    pub fn find(&self, reference: &Reference) -> Result<Option<Stored>, Failure> {
        let usable = |record: &Record| !record.damaged && record.is_there();
        let Some(record) = self.meant(reference).into_iter().find(usable) else { return Ok(None) };
        if record.is_unchanged() {
            return self.stored(&record).map(Some);
        }
        if record.is_own() { self.taken_as_it_is(record).map(Some) } else { Ok(None) }
    }

    /// The same for one who is about to use it: a model that was changed is verified first, which may take a while; one
    /// that is damaged is refused.
    pub async fn ready(
        &self,
        reference: &Reference,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<Option<Fetched>, Failure> {
        let Some(record) = self.best(reference).filter(Record::is_there) else { return Ok(None) };
        if record.damaged {
            return Err(damaged(&record));
        }
        let done = |stored| Ok(Some(Fetched::Stored(Box::new(stored))));
        if record.is_unchanged() {
            return done(self.stored(&record)?);
        }
        if record.is_own() {
            return done(self.taken_as_it_is(record)?);
        }
        match self.verified_again(&record, events, cancel).await? {
            Some(record) => done(self.stored(&record)?),
            None => Ok(Some(Fetched::Cancelled(Receipt::default()))),
        }
    }

    /// Whether the model's bytes are known to be wrong.
    pub fn is_damaged(&self, id: &str) -> bool {
        self.record(id).is_some_and(|record| record.damaged)
    }

    fn stored(&self, record: &Record) -> Result<Stored, Failure> {
        let header = header_of(record)?;
        Ok(Stored { info: self.info(record), path: record.path.clone(), header })
    }

    /// A person's own file says what it is. A sum of ours stays, so that `verify` can tell of the change.
    fn taken_as_it_is(&self, record: Record) -> Result<Stored, Failure> {
        let header = header_of(&record)?;
        let mut now = record.clone();
        now.take_facts(&header);
        for file in &mut now.files {
            let path = file.path.clone().unwrap_or_else(|| record.path.clone());
            let stamp = Stamp::of(&path).map_err(|error| super::unreadable(&path, &error))?;
            if !file.is_as(stamp) {
                (file.size, file.mtime_ns, file.verified_at) = (stamp.size, Some(stamp.mtime_ns), None);
            }
        }
        now.size_bytes = now.files.iter().map(|file| file.size).sum();
        self.update(&record, |kept| kept.clone_from(&now))?;
        Ok(Stored { info: self.info(&now), path: now.path.clone(), header })
    }

    /// Reads the changed files again. Right bytes under another time are kept; wrong ones make the model damaged.
    async fn verified_again(
        &self,
        record: &Record,
        events: Events<'_>,
        cancel: &CancellationToken,
    ) -> Result<Option<Record>, Failure> {
        let mut now = record.clone();
        let mut changed = Vec::new();
        for (at, file) in record.files.iter().enumerate() {
            let path = record.path_of(file);
            let stamp = Stamp::of(&path).map_err(|error| super::unreadable(&path, &error))?;
            if !file.is_as(stamp) {
                changed.push((at, stamp, path));
            }
        }
        let bytes: u64 = changed.iter().map(|(_, stamp, _)| stamp.size).sum();
        let is_longer = changed.iter().any(|(at, stamp, _)| record.files[*at].size != stamp.size);
        let digests = if is_longer {
            // Bytes that came or went need no sum.
            changed.iter().map(|_| None).collect()
        } else {
            events(JobEvent::narrate(
                super::verify::ACTION,
                format!("{} was touched since it was verified; reading its {} again", record.id, size(bytes)),
            ));
            let paths = changed.iter().map(|(_, stamp, path)| (path.clone(), stamp.size)).collect();
            let hashing = Hashing { label: &record.id, events, cancel };
            let Some(digests) = sums::digests(paths, hashing).await? else { return Ok(None) };
            digests.into_iter().map(Result::ok).collect::<Vec<_>>()
        };
        for ((at, stamp, _), digest) in changed.iter().zip(digests) {
            let file = &mut now.files[*at];
            match (file.sha256, digest) {
                (Some(expected), found) if found != Some(expected) => now.damaged = true,
                (None, None) => now.damaged = true,
                // Nobody has published a sum: its size is all that can be compared.
                _ => (file.mtime_ns, file.verified_at) = (Some(stamp.mtime_ns), Some(now_ms())),
            }
        }
        self.update(record, |kept| kept.clone_from(&now))?;
        if now.damaged { Err(damaged(&now)) } else { Ok(Some(now)) }
    }
}

/// The refusal of a model whose bytes are wrong.
fn damaged(record: &Record) -> Failure {
    let id = &record.id;
    let message = format!(
        "{id} is damaged on this node: its bytes are not those that were verified; `rbee model download {id}` mends it"
    );
    Failure::new(Code::ChecksumMismatch, message).with(json!({ "id": id, "path": record.path }))
}
