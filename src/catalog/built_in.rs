//! The recipes in the program: every folder of pkgbuilds/, by build.rs.

use super::entry;
use super::recipe::{self, ARCHIVE, Recipe, Source};
use crate::wire::catalog::CatalogEntry;
use std::borrow::Cow;
use std::sync::OnceLock;

/// What the source of a recipe is called that came from nowhere else.
pub const BUILT_IN: &str = "built-in";
const ENTRY: &str = "worker.toml";
const PKGBUILD: &str = "PKGBUILD";

/// `(folder, its files)`.
mod embedded {
    /// `(name, bytes)`.
    type Files = &'static [(&'static str, &'static [u8])];
    include!(concat!(env!("OUT_DIR"), "/recipes.rs"));
}

/// Every worker that can be built, by id.
pub fn entries() -> &'static [CatalogEntry] {
    static ENTRIES: OnceLock<Vec<CatalogEntry>> = OnceLock::new();
    ENTRIES.get_or_init(|| embedded::RECIPES.iter().filter_map(|(folder, _)| read(folder)).collect())
}

pub fn find(id: &str) -> Option<&'static CatalogEntry> {
    entries().iter().find(|entry| entry.id == id)
}

/// The PKGBUILD as it lies in the folder, its marks not filled in.
pub fn pkgbuild(id: &str) -> Option<&'static str> {
    find(id)?;
    text(id, PKGBUILD)
}

pub fn recipe(id: &str) -> Option<Recipe> {
    let pkgbuild = recipe::fill(pkgbuild(id)?, Source::Local);
    Some(Recipe::new(find(id)?.clone(), pkgbuild, BUILT_IN))
}

/// A file beside a PKGBUILD, or our own source.
pub fn file(id: &str, name: &str) -> Option<Cow<'static, [u8]>> {
    let pkgbuild = pkgbuild(id)?;
    if name == recipe::archive_name() && recipe::wants_archive(pkgbuild) {
        return Some(ARCHIVE.into());
    }
    if [ENTRY, PKGBUILD].contains(&name) || !entry::is_file_name(name) {
        return None;
    }
    bytes(id, name).map(Cow::from)
}

fn bytes(folder: &str, name: &str) -> Option<&'static [u8]> {
    let (_, files) = embedded::RECIPES.iter().find(|(id, _)| *id == folder)?;
    files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| *bytes)
}

fn text(folder: &str, name: &str) -> Option<&'static str> {
    std::str::from_utf8(bytes(folder, name)?).ok()
}

/// A test reads every recipe in the tree, so what fails here was changed after the tests.
fn read(folder: &str) -> Option<CatalogEntry> {
    match entry::read(folder, text(folder, ENTRY)?) {
        Ok(entry) => entry,
        Err(error) => {
            tracing::error!(folder, %error, "a recipe that was built in does not parse");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::VERSION;

    #[test]
    fn every_recipe_in_the_tree_is_read_and_has_a_pkgbuild() {
        for (folder, _) in embedded::RECIPES {
            let entry = entry::read(folder, text(folder, ENTRY).unwrap());
            entry.unwrap_or_else(|error| panic!("{folder}: {}", crate::wire::failure::chain(&error)));
            assert!(text(folder, PKGBUILD).is_some_and(|text| !text.contains('\r')), "{folder}");
        }
        assert!(entries().iter().any(|entry| entry.id == "llm-worker-rbee-cpu"));
    }

    #[test]
    fn what_is_built_from_our_source_names_it_and_its_sum_and_has_it_beside() {
        let recipe = recipe("llm-worker-rbee-cpu").unwrap();
        let name = format!("rbee-{VERSION}.tar.gz");
        assert!(
            recipe.pkgbuild.contains(&name) && !recipe.pkgbuild.contains("@RBEE_"),
            "{}",
            recipe.pkgbuild
        );
        let archive = file(&recipe.entry.id, &name).unwrap();
        assert!(recipe.pkgbuild.contains(&recipe::sum(&archive)));
        assert_eq!(file("llama-cpp-server", &name), None, "a recipe that is not built from it");
        for hidden in [ENTRY, PKGBUILD, "../Cargo.toml", ""] {
            assert_eq!(file(&recipe.entry.id, hidden), None, "{hidden}");
        }
    }
}
