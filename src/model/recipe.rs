//! Models that rbee knows by name: small files of facts under pkgbuilds/, carried in the binary.

use crate::wire::digest::Digest;
use serde::Deserialize;
use std::sync::{Arc, OnceLock};

/// The name of the model that is used when none is named.
pub const DEFAULT: &str = "smollm2-135m-instruct";

/// `(folder, its worker.toml, its PKGBUILD)` of every model in pkgbuilds/, by build.rs.
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
    /// What the file is called, here and in the recipe's package.
    pub file: String,
    /// What the PKGBUILD needs; it says the same.
    pub makedepends: Vec<String>,
    /// Where the hub has it; some models are only to be had otherwise.
    pub hub: Option<HubFile>,
    /// The way that needs no hub.
    #[serde(skip)]
    pub pkgbuild: String,
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

/// All models built in, by name.
pub fn all() -> &'static [Arc<Recipe>] {
    static ALL: OnceLock<Vec<Arc<Recipe>>> = OnceLock::new();
    ALL.get_or_init(|| {
        embedded::RECIPES
            .iter()
            .filter_map(|(folder, facts, pkgbuild)| read(folder, facts, pkgbuild))
            .collect()
    })
}

pub fn find(name: &str) -> Option<Arc<Recipe>> {
    all().iter().find(|recipe| recipe.id.eq_ignore_ascii_case(name)).cloned()
}

pub fn names() -> String {
    all().iter().map(|recipe| recipe.id.as_str()).collect::<Vec<_>>().join(", ")
}

/// A test reads every recipe in the tree, so what fails here was changed after the tests.
fn read(folder: &str, facts: &str, pkgbuild: &str) -> Option<Arc<Recipe>> {
    match toml::from_str(facts) {
        Ok(recipe) => Some(Arc::new(Recipe { pkgbuild: pkgbuild.to_owned(), ..recipe })),
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
        for (folder, facts, pkgbuild) in embedded::RECIPES {
            let recipe: Recipe = toml::from_str(facts).unwrap_or_else(|e| panic!("{folder}: {e}"));
            assert_eq!(recipe.id, *folder);
            let is_commit = |c: &str| c.len() == 40 && c.bytes().all(|b| b.is_ascii_hexdigit());
            let is_fixed = recipe.hub.as_ref().is_none_or(|hub| is_commit(&hub.revision));
            assert!(is_fixed, "{folder}: a revision that can move");
            let says = |text: &str| pkgbuild.contains(text);
            assert!(
                says(&recipe.sha256.to_string()) && says(&recipe.file),
                "{folder}: PKGBUILD says otherwise"
            );
        }
        assert!(find(DEFAULT).is_some());
        assert!(find(&DEFAULT.to_uppercase()).is_some());
    }
}
