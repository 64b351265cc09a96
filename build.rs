//! Puts the recipes of pkgbuilds/ into the binary.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rustc-env=RBEE_COMMIT=unknown");
    embed_recipes(&root.join("pkgbuilds"), &out.join("recipes.rs"));
}

/// Writes a table of every folder's worker.toml for src/model/recipe.rs to include.
fn embed_recipes(folder: &Path, table: &Path) {
    println!("cargo::rerun-if-changed={}", folder.display());
    let entries = fs::read_dir(folder).expect("pkgbuilds/ is part of the source");
    let mut recipes: Vec<PathBuf> = entries
        .map(|entry| entry.expect("pkgbuilds/ can be read").path().join("worker.toml"))
        .filter(|recipe| recipe.is_file())
        .collect();
    recipes.sort();
    let mut text = String::from("pub const RECIPES: &[(&str, &str)] = &[\n");
    for recipe in &recipes {
        let id = recipe.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let id = id.expect("a recipe's folder has a plain name");
        writeln!(text, "    ({id:?}, include_str!({recipe:?})),").expect("a string grows");
    }
    text.push_str("];\n");
    fs::write(table, text).expect("OUT_DIR can be written");
}
