//! From an address of its own. Nobody publishes a sum for it, so ours is recorded, and shown as ours.

use super::file::Wanted;
use super::{Errand, Stop, inspect};
use crate::download::{Access, Expected, Reach, Visit};
use crate::http::public::leads_inside;
use crate::http::url::Url;
use crate::model::reference::is_plain;
use crate::model::store::{New, NewFile, Stored};
use crate::wire::{Code, Failure};
use sha2::{Digest as _, Sha256};
use std::path::PathBuf;
use std::sync::Arc;

/// Below the folder of records.
pub const FOLDER: &str = "addresses";
const KEY_HEX: usize = 16;
const NAME_OF_THE_NAMELESS: &str = "model.gguf";

impl Errand<'_> {
    pub(super) async fn fetch_from_address(&self, url: &Url) -> Result<Stored, Stop> {
        // Without the query, which may be a signature for a day.
        let id = url.to_string();
        self.check_online(&id)?;
        let visit = Visit {
            url: url.clone(),
            access: Access::Open,
            reach: Arc::new(Reach::Public(self.store.settings.trusted.clone())),
            // Nothing but the way tells that the bytes are the publisher's.
            may_be_plain: false,
            cancel: self.cancel.clone(),
        };
        if !visit.reach.is_trusted(url.origin()) {
            check_way(url).await?;
        }
        let (folder, name) = self.place(&id);
        let target = folder.join(&name);
        self.check_room(&name, &folder, 0)?;
        let wanted = Wanted {
            label: &name,
            expected: Expected::default(),
            target: target.clone(),
            has_fallback: false,
        };
        let brought = self.bring(visit, &wanted).await;
        // Of a failure that left nothing behind, nothing stays; a folder with a part in it does.
        let digest = brought.inspect_err(|_| drop(std::fs::remove_dir(&folder)))?;
        let header = match inspect(&target).await {
            Ok(header) => header,
            Err(failure) => {
                // No model: a page that says so, perhaps. Nothing is kept that cannot be used.
                let _ = std::fs::remove_file(&target);
                let _ = std::fs::remove_dir(&folder);
                return Err(failure.into());
            }
        };
        self.tell(format!("{name} has the SHA-256 sum {digest}, which nobody has published"));
        let file = NewFile { path: target, name, sha256: Some(digest), is_published: false };
        // Records are shown to whoever may list models.
        let reference = id.clone();
        Ok(self.store.add(New { id, reference, revision: None, files: vec![file], header })?)
    }

    /// A folder an address, so that the file keeps its name.
    fn place(&self, id: &str) -> (PathBuf, String) {
        let mut key: String = Sha256::digest(id).iter().map(|byte| format!("{byte:02x}")).collect();
        key.truncate(KEY_HEX);
        let name = id.rsplit('/').next().filter(|name| is_plain(name) && !name.starts_with('.'));
        let folder = self.store.settings.records.join(FOLDER).join(key);
        (folder, name.unwrap_or(NAME_OF_THE_NAMELESS).to_owned())
    }
}

/// Nobody vouches for what comes unencrypted, and what is inside our network is nothing that an address may reach by itself.
async fn check_way(url: &Url) -> Result<(), Failure> {
    let origin = url.origin();
    if !url.is_encrypted() {
        return Err(Failure::invalid(format!(
            "{url} is not encrypted, so anybody on the way could change the model: use https, or start the hive with --trust {origin}"
        )));
    }
    if leads_inside(url).await {
        let message = format!(
            "{url} is of a private network, from which no model is fetched unasked: start the hive with --trust {origin} if it should be"
        );
        return Err(Failure::new(Code::Forbidden, message));
    }
    Ok(())
}
