//! Names that a person has given to models: `small` for `hf:org/repo:Q4_K_M`. An alias stands for a reference, not for
//! bytes: what it stands for may be fetched later, or again.

use super::Store;
use super::record::{self, Record};
use crate::model::names::{self, Known};
use crate::model::recipe;
use crate::model::reference::Reference;
use crate::wire::fleet::{ModelAlias, ModelNames};
use crate::wire::{Code, Failure};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

/// Beside the records.
pub(super) const FILE: &str = "aliases.json";
pub const ALIASES_MAX: usize = 256;
/// So many of the longest references.
const FILE_BYTES_MAX: u64 = 2 << 20;

#[derive(Debug, Default)]
pub(super) struct Aliases {
    map: BTreeMap<String, String>,
    /// Why the file could not be read: it is a person's work, so it is not written over.
    unread: Option<String>,
}

impl Aliases {
    pub fn read(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let read = record::read::<BTreeMap<String, String>>(&path, FILE_BYTES_MAX);
        let map = match read {
            Ok(map) => map,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Aliases::default(),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the aliases of models do not read");
                return Aliases { unread: Some(error.to_string()), ..Aliases::default() };
            }
        };
        // A person may have edited the file.
        let is_sound = |name: &str, model: &str| {
            let sound = is_alias(name) && Reference::read(model).is_ok_and(|read| read.to_string() == model);
            if !sound {
                tracing::warn!(file = %path.display(), name, model, "an alias that cannot be one is passed over");
            }
            sound
        };
        let sound = map.into_iter().filter(|(name, model)| is_sound(name, model));
        Aliases { map: sound.take(ALIASES_MAX).collect(), unread: None }
    }
}

/// In lower case, as references have names.
fn is_alias(name: &str) -> bool {
    matches!(Reference::read(name), Ok(Reference::Name(read)) if read == name)
}

impl Store {
    /// All of them, each with the model that it means now.
    pub fn aliases(&self) -> Vec<ModelAlias> {
        let known = self.names();
        let map = self.aliases_now().map.clone();
        map.into_iter().map(|(name, model)| told(name, model, &known)).collect()
    }

    /// What an alias stands for; any other reference is itself.
    pub fn unaliased(&self, reference: Reference) -> Reference {
        let Reference::Name(name) = &reference else { return reference };
        let model = self.aliases_now().map.get(name).cloned();
        // Read once already when the file was, or when it was set.
        model.and_then(|model| Reference::read(&model).ok()).unwrap_or(reference)
    }

    /// Gives a model another name, which may have stood for another model before.
    pub fn set_alias(&self, name: &str, model: Reference) -> Result<ModelAlias, Failure> {
        let wanted = name.trim().to_ascii_lowercase();
        if !is_alias(&wanted) {
            return Err(Failure::invalid(format!(
                "`{name}` cannot be an alias: letters, digits, `-`, `_` and `.`, beginning with a letter or digit"
            )));
        }
        if recipe::find(&wanted).is_some() || self.record(&wanted).is_some() {
            return Err(Failure::new(Code::Conflict, format!("`{wanted}` is a model's own name already")));
        }
        let model = self.unaliased(model);
        if let Reference::Name(model) = &model
            && recipe::find(model).is_none()
            && self.record(model).is_none()
        {
            let known = recipe::names();
            return Err(Failure::new(
                Code::ModelNotFound,
                format!(
                    "`{model}` is neither an alias nor one of {known}; a model of the hub is org/repo:Q4_K_M"
                ),
            ));
        }
        let model = model.to_string();
        self.change_aliases(|map| {
            if map.len() >= ALIASES_MAX && !map.contains_key(&wanted) {
                return Err(Failure::new(
                    Code::TooManyRequests,
                    format!(
                        "there are {ALIASES_MAX} aliases already; remove one with `rbee model unalias NAME`"
                    ),
                ));
            }
            map.insert(wanted.clone(), model.clone());
            Ok(())
        })?;
        Ok(told(wanted, model, &self.names()))
    }

    /// Takes a name away; the model stays. Tells what it stood for.
    pub fn remove_alias(&self, name: &str) -> Result<ModelAlias, Failure> {
        let wanted = name.trim().to_ascii_lowercase();
        let known = self.names();
        let mut stood_for = None;
        self.change_aliases(|map| {
            stood_for = map.remove(&wanted);
            match stood_for {
                Some(_) => Ok(()),
                None => {
                    let names: Vec<&str> = map.keys().map(String::as_str).collect();
                    let known = if names.is_empty() {
                        "there is none".into()
                    } else {
                        format!("there are: {}", names.join(", "))
                    };
                    Err(Failure::new(Code::NotFound, format!("no alias is called `{name}`; {known}")))
                }
            }
        })?;
        Ok(told(wanted, stood_for.unwrap_or_default(), &known))
    }

    /// What is to be removed, verified and the like by name must not be a name that merely stands for it.
    pub(super) fn refuse_alias(&self, reference: &Reference) -> Result<(), Failure> {
        let meant = self.unaliased(reference.clone());
        if meant == *reference {
            return Ok(());
        }
        let message = format!(
            "`{reference}` is an alias of {meant}: remove the model by that name, or the alias with `rbee model unalias {reference}`"
        );
        Err(Failure::new(Code::Conflict, message).with(json!({ "model": meant.to_string() })))
    }

    /// The aliases of each of these models. One that stands for a repository is that of the model which it means now.
    pub(super) fn aliases_among(&self, records: &[Record]) -> Vec<Vec<String>> {
        let known: Vec<ModelNames> = records.iter().map(Record::names).collect();
        let mut aliases = vec![Vec::new(); records.len()];
        for (name, model) in &self.aliases_now().map {
            let meant = names::meant(model, known.iter().map(Known::of));
            if let Some(at) = meant.first().and_then(|id| records.iter().position(|record| record.id == *id))
            {
                aliases[at].push(name.clone());
            }
        }
        aliases
    }

    fn change_aliases(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, String>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path: PathBuf = self.settings.records.join(FILE);
        let (mut map, unread) = {
            let aliases = self.aliases_now();
            (aliases.map.clone(), aliases.unread.clone())
        };
        if let Some(why) = unread {
            let message = format!(
                "`{}` does not read ({why}): mend it or remove it, then start the hive again",
                path.display()
            );
            return Err(Failure::new(Code::Conflict, message));
        }
        change(&mut map)?;
        let written = serde_json::to_vec_pretty(&map)
            .map_err(std::io::Error::from)
            .and_then(|text| record::write(&path, &text));
        written.map_err(|error| {
            Failure::new(Code::Internal, format!("writing `{}`: {error}", path.display()))
        })?;
        self.aliases_now().map = map;
        Ok(())
    }

    fn aliases_now(&self) -> MutexGuard<'_, Aliases> {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(name: String, model: String, known: &[ModelNames]) -> ModelAlias {
    let id = names::meant(&model, known.iter().map(Known::of)).first().map(|id| (*id).to_owned());
    ModelAlias { name, model, id }
}
