//! What this node's models need in memory, told to the queens so that they place by it. Every header is read once; a model
//! that was fetched anew or changed is another one.

use crate::hive::preflight;
use crate::model::{Reference, Store};
use crate::wire::fleet::ModelNeeds;
use std::collections::HashMap;
use std::sync::Mutex;

/// Models remembered; more than a node has.
const REMEMBERED_MAX: usize = 4_096;

/// What tells a model from an earlier one of the same name: its size, and when it came.
type Edition = (u64, u64);

#[derive(Debug, Default)]
pub struct Needs {
    known: Mutex<HashMap<String, (Edition, Option<ModelNeeds>)>>,
}

impl Needs {
    /// Of a model, as far as somebody has looked already.
    pub fn known(&self, id: &str) -> Option<ModelNeeds> {
        let known = self.known.lock().expect("no holder panics");
        known.get(id).and_then(|(_, needs)| needs.clone())
    }

    /// Reads the headers of all models that were not looked at yet: blocking, some milliseconds each. Tells whether there
    /// was anything new.
    pub fn look(&self, store: &Store) -> bool {
        let mut is_new = false;
        for model in store.list() {
            let edition = (model.size_bytes, model.added_at);
            let seen =
                self.known.lock().expect("no holder panics").get(&model.id).map(|(edition, _)| *edition);
            if seen == Some(edition) {
                continue;
            }
            let reference = Reference::read(&model.id).ok();
            // One that can't be read is told without needs; a spawn of it says what is wrong.
            let stored = reference.and_then(|reference| store.find(&reference).ok().flatten());
            let needs = stored.map(|stored| preflight::needs(&model.id, &stored.header));
            let mut known = self.known.lock().expect("no holder panics");
            if known.len() >= REMEMBERED_MAX {
                known.clear();
            }
            known.insert(model.id, (edition, needs));
            is_new = true;
        }
        is_new
    }
}
