//! From the hub: what the repository holds decides, and everything comes from one commit of it.

use super::file::{Wanted, writing};
use super::{ACTION, Errand, Stop, inspect, stopped};
use crate::download::{Expected, Sum, bytes_of};
use crate::job::progress::size;
use crate::model::hub::Places;
use crate::model::listing::{Listing, ListingError};
use crate::model::pick::{Chosen, RepoFile, choose, listed};
use crate::model::reference::{HubReference, Pick, Reference, Repo};
use crate::model::store::{New, NewFile, Stored};
use crate::wire::digest::Digest;
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::{Code, Failure, failure};
use std::io;
use std::time::Instant;

/// A file of the hub, and where it belongs.
struct Placed {
    file: RepoFile,
    expected: Expected,
    places: Places,
    label: String,
}

impl Errand<'_> {
    pub(super) async fn fetch_from_hub(&self, asked: &HubReference) -> Result<Stored, Stop> {
        let reference = Reference::Hub(asked.clone());
        let listing = match self.listing(asked).await? {
            Some(listing) => listing,
            // The hub cannot be asked, and what is here is what was meant the last time.
            None => return self.there(&reference)?.ok_or_else(|| self.nowhere(asked).into()),
        };
        let chosen = choose(&listing.repo, &listing.files, &asked.pick).map_err(Failure::from)?;
        let id = Reference::Hub(HubReference {
            repo: Repo::read(&listing.repo).unwrap_or_else(|| asked.repo.clone()),
            pick: chosen.choice.pick.clone(),
            revision: asked.revision.clone(),
        });
        // Others may ask for the same by another name, or be about to remove it.
        let _turn = match id == reference {
            true => None,
            false => Some(self.turn(&id).await?),
        };
        if let Some(stored) = self.same(&id, &chosen)? {
            self.tell(format!("{id} is already there: {}", stored.path.display()));
            return Ok(stored);
        }
        self.tell_choice(asked, &listing, &chosen);
        let files = self.placed(&listing, &chosen).await?;
        let new = self.bring_all(&listing, files).await?;
        let hub = &self.store.settings.hub;
        hub.note_revision(&listing.repo, asked.revision_or_main(), &listing.commit)
            .map_err(|error| writing(hub.cache(), &error))?;
        let header = inspect(&new[0].path).await?;
        let (id, reference) = (id.to_string(), reference.to_string());
        Ok(self.store.add(New { id, reference, revision: Some(listing.commit), files: new, header })?)
    }

    /// The repository's list; from the cache where the hub may not or cannot be asked. None if neither has it.
    async fn listing(&self, asked: &HubReference) -> Result<Option<Listing>, Stop> {
        let hub = &self.store.settings.hub;
        let repo = asked.repo.as_str();
        if hub.offline {
            self.tell(format!("HF_HUB_OFFLINE is set: {repo} is looked for on this machine only"));
            return Ok(hub.cached(asked));
        }
        let limits = &self.store.settings.limits;
        let mut attempt = 1;
        let error = loop {
            match hub.list(asked, limits, self.cancel).await {
                Ok(listing) => return Ok(Some(listing)),
                Err(error) => {
                    let pause = error.retry_after().filter(|asked| *asked <= limits.retry_after_max);
                    let Some(asked) = pause.filter(|_| attempt < limits.attempts_max) else { break error };
                    let pause = tokio::time::sleep(limits.pause(attempt, Some(asked)));
                    attempt += 1;
                    let why = failure::chain(&error);
                    self.warn(format!("{repo}: {why}; attempt {attempt}/{}", limits.attempts_max));
                    if self.cancel.run_until_cancelled(pause).await.is_none() {
                        return Err(Stop::Cancelled(Receipt::default()));
                    }
                }
            }
        };
        if let ListingError::Download(crate::download::DownloadError::Cancelled) = error {
            return Err(Stop::Cancelled(Receipt::default()));
        }
        let is_here = self.store.find(&Reference::Hub(asked.clone()))?.is_some();
        let cached = if error.is_unreachable() { hub.cached(asked) } else { None };
        if error.is_unreachable() && (is_here || cached.is_some()) {
            let why = failure::chain(&error);
            self.warn(format!("the hub could not be asked ({why}); what is on this machine is taken"));
            return Ok(cached);
        }
        Err(error.failure(repo).into())
    }

    fn nowhere(&self, asked: &HubReference) -> Failure {
        match self.check_online(&format!("hf:{asked}")) {
            Err(failure) => failure,
            Ok(()) => Failure::new(Code::ModelNotFound, format!("hf:{asked} is not on this machine")),
        }
    }

    /// The model as it is here, if its bytes are those that the hub has.
    fn same(&self, id: &Reference, chosen: &Chosen) -> Result<Option<Stored>, Failure> {
        let Some(stored) = self.store.find(id)? else { return Ok(None) };
        let sums = chosen.choice.files.iter().map(|file| match file.sum {
            Some(Sum::Sha256(digest)) => Some(digest.to_string()),
            _ => None,
        });
        let ours = stored.info.files.iter().map(|file| file.sha256.clone());
        let is_same = sums.clone().all(|sum| sum.is_some()) && sums.eq(ours);
        Ok(is_same.then_some(stored))
    }

    fn tell_choice(&self, asked: &HubReference, listing: &Listing, chosen: &Chosen) {
        let Chosen { choice, others, projectors } = chosen;
        let whole = choice.size().map_or_else(String::new, |bytes| format!(", {}", size(bytes)));
        let parts = match choice.files.len() {
            1 => String::new(),
            count => format!(" in {count} parts"),
        };
        let mut told = format!("{}: {}{parts}{whole}", listing.repo, choice.name());
        if !others.is_empty() && asked.pick == Pick::Any {
            told.push_str(&format!("; there is also {}", listed(others.iter().cloned())));
        }
        self.tell(told);
        if !projectors.is_empty() {
            self.tell(format!(
                "{} comes with a vision projector ({}), which is not fetched",
                listing.repo,
                listed(projectors.iter().cloned())
            ));
        }
    }

    /// Where every file belongs, which its sum says; the hub is asked once more for those whose sum it did not list.
    async fn placed(&self, listing: &Listing, chosen: &Chosen) -> Result<Vec<Placed>, Stop> {
        let hub = &self.store.settings.hub;
        let count = chosen.choice.files.len();
        let mut all = Vec::with_capacity(count);
        for (number, file) in chosen.choice.files.iter().enumerate() {
            let mut file = file.clone();
            if file.sum.is_none() || file.size.is_none() {
                let looked = hub.look(listing, &file, &self.store.settings.limits, self.cancel).await;
                file = looked.map_err(|error| stopped(&file.path, &error))?;
            }
            let Some(sum) = file.sum else {
                let message = format!("{} does not tell the sum of {}", hub.endpoint(), file.path);
                return Err(Failure::new(Code::DownloadFailed, message).into());
            };
            let places = hub.places(&listing.repo, &listing.commit, &file.path, &sum.to_string())?;
            let name = file.path.rsplit('/').next().unwrap_or(&file.path);
            let label = match count {
                1 => name.to_owned(),
                _ => format!("{name} ({}/{count})", number + 1),
            };
            let expected = Expected { size: file.size, sum: Some(sum), is_checked_after: false };
            all.push(Placed { file, expected, places, label });
        }
        Ok(all)
    }

    async fn bring_all(&self, listing: &Listing, files: Vec<Placed>) -> Result<Vec<NewFile>, Stop> {
        let mut here = Vec::with_capacity(files.len());
        let mut missing = 0;
        for placed in &files {
            let wanted = placed.wanted();
            let digest = self.is_here(&wanted).await?;
            if digest.is_none() {
                let whole = placed.file.size.unwrap_or(0);
                missing += whole.saturating_sub(bytes_of(&placed.places.blob));
            }
            here.push(digest);
        }
        if missing > 0 {
            self.check_online(&listing.repo)?;
            self.check_room(&listing.repo, &files[0].places.folder, missing)?;
        }
        let mut new = Vec::with_capacity(files.len());
        for (placed, here) in files.into_iter().zip(here) {
            let digest = match here {
                Some(digest) => {
                    self.tell(format!("{} is in the hub's cache already, verified", placed.label));
                    digest
                }
                None => self.bring_one(listing, &placed).await?,
            };
            link(&placed.places).map_err(|error| writing(&placed.places.snapshot, &error))?;
            new.push(NewFile {
                path: placed.places.snapshot,
                name: placed.file.path,
                sha256: Some(digest),
                is_published: matches!(placed.expected.sum, Some(Sum::Sha256(_))),
            });
        }
        Ok(new)
    }

    async fn bring_one(&self, listing: &Listing, placed: &Placed) -> Result<Digest, Stop> {
        let hub = &self.store.settings.hub;
        let visit = hub.file(&listing.repo, &listing.commit, &placed.file.path, self.cancel).await?;
        let started = Instant::now();
        let digest = self.bring(visit, &placed.wanted()).await?;
        let bytes = size(placed.file.size.unwrap_or(0));
        let took = started.elapsed().as_secs_f32();
        let event = format!("{}: {bytes} in {took:.1} s, verified", placed.label);
        (self.events)(JobEvent::narrate(ACTION, event));
        Ok(digest)
    }
}

impl Placed {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            label: &self.label,
            expected: self.expected,
            target: self.places.blob.clone(),
            has_fallback: false,
        }
    }
}

/// Names the bytes the way the hub's tools look for them. The new link replaces an old one in one step.
pub(super) fn link(places: &Places) -> io::Result<()> {
    if std::fs::read_link(&places.snapshot).is_ok_and(|target| target == places.link) {
        return Ok(());
    }
    let folder = places.snapshot.parent().unwrap_or(&places.folder);
    std::fs::create_dir_all(folder)?;
    let fresh = tempfile::Builder::new()
        .prefix(".link")
        .make_in(folder, |path| std::os::unix::fs::symlink(&places.link, path))?;
    fresh.persist(&places.snapshot)?;
    std::fs::File::open(folder)?.sync_all()
}
