//! What the compiler needs beside Rust: the recipes of pkgbuilds/, the archive of this very source, the C++ chat shim, the
//! commit this is built from.

#[path = "src/catalog/archive.rs"]
mod archive;

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for name in archive::CONTENTS {
        println!("cargo::rerun-if-changed={name}");
    }
    let provenance = provenance(&root);
    pack_source(&root, &out.join("source.tar.gz"), &provenance);
    embed_recipes(&root.join("pkgbuilds"), &out);
    chat_shim(&root, &out);
}

/// What the tree was made from: from the file of an unpacked archive, else from git where there is a repository, else
/// unknown. Tells the compiler the commit.
fn provenance(root: &Path) -> String {
    const COMMIT: &str = "commit = ";
    let file = root.join(archive::PROVENANCE);
    let text = match fs::read_to_string(&file) {
        Ok(text) => {
            println!("cargo::rerun-if-changed={}", archive::PROVENANCE);
            text
        }
        Err(_) => {
            let version = env::var("CARGO_PKG_VERSION").expect("cargo sets CARGO_PKG_VERSION");
            format!("{COMMIT}\"{}\"\nversion = \"{version}\"\n", commit())
        }
    };
    let commit = text.lines().find_map(|line| line.strip_prefix(COMMIT)).map(|value| value.trim_matches('"'));
    println!("cargo::rustc-env=RBEE_COMMIT={}", commit.unwrap_or("unknown"));
    text
}

fn commit() -> String {
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).is_file()) {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into())
}

fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn pack_source(root: &Path, target: &Path, provenance: &str) {
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets CARGO_PKG_VERSION");
    let packed = archive::pack(root, &format!("rbee-{version}"), provenance);
    let packed = packed.unwrap_or_else(|error| panic!("packing the source: {error}"));
    fs::write(target, packed).expect("OUT_DIR can be written");
}

/// Writes two tables: every file of every recipe for src/catalog, and of those that bring a model the worker.toml and
/// the PKGBUILD for src/model.
fn embed_recipes(folder: &Path, out: &Path) {
    let mut recipes = String::from("pub const RECIPES: &[(&str, Files)] = &[\n");
    let mut models = String::from("pub const RECIPES: &[(&str, &str, &str)] = &[\n");
    for recipe in listed(folder).iter().filter(|recipe| recipe.is_dir()) {
        let id = plain_name(recipe);
        writeln!(recipes, "    ({id:?}, &[").expect("a string grows");
        for file in listed(recipe).iter().filter(|file| file.is_file()) {
            writeln!(recipes, "        ({:?}, include_bytes!({file:?})),", plain_name(file))
                .expect("a string grows");
        }
        recipes.push_str("    ]),\n");
        let facts = recipe.join("worker.toml");
        let text =
            fs::read_to_string(&facts).unwrap_or_else(|error| panic!("reading {}: {error}", facts.display()));
        if text.lines().any(|line| line.trim() == "kind = \"model\"") {
            let pkgbuild = recipe.join("PKGBUILD");
            writeln!(models, "    ({id:?}, include_str!({facts:?}), include_str!({pkgbuild:?})),")
                .expect("a string grows");
        }
    }
    recipes.push_str("];\n");
    models.push_str("];\n");
    fs::write(out.join("recipes.rs"), recipes).expect("OUT_DIR can be written");
    fs::write(out.join("models.rs"), models).expect("OUT_DIR can be written");
}

fn listed(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("pkgbuilds/ is part of the source");
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("pkgbuilds/ can be read").path()).collect();
    // What a file manager leaves.
    paths.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    paths.sort();
    paths
}

fn plain_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("recipes have plain names")
}

/// Compiles the chat shim against the headers of the llama.cpp that llama-cpp-sys-2 has built. This script runs after every
/// change of the source, which it packs; the shim is compiled again only when what it is made from has changed.
fn chat_shim(root: &Path, out: &Path) {
    const SHIM: &str = "src/worker/chat_shim.cpp";
    const LIBRARY: &str = "rbee_chat_shim";
    let llama = llama_sources();
    let stamp = out.join("chat_shim.stamp");
    let inputs = {
        let mut hasher = DefaultHasher::new();
        fs::read(root.join(SHIM)).expect("the chat shim is part of the source").hash(&mut hasher);
        llama.hash(&mut hasher);
        for variable in ["CXX", "CXXFLAGS", "TARGET", "CARGO_CFG_TARGET_FEATURE"] {
            println!("cargo::rerun-if-env-changed={variable}");
            env::var_os(variable).hash(&mut hasher);
        }
        format!("{:016x}", hasher.finish())
    };
    let is_compiled = fs::read_to_string(&stamp).is_ok_and(|text| text == inputs)
        && out.join(format!("lib{LIBRARY}.a")).is_file();
    if !is_compiled {
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .warnings(false)
            .opt_level(2)
            .file(SHIM)
            .include(llama.join("common"))
            .include(llama.join("include"))
            .include(llama.join("ggml/include"))
            .include(llama.join("vendor"))
            .cargo_metadata(false)
            .compile(LIBRARY);
        fs::write(&stamp, inputs).expect("OUT_DIR can be written");
    }
    // The C++ library comes with llama-cpp-sys-2, statically where that was asked for.
    println!("cargo::rustc-link-lib=static={LIBRARY}");
    println!("cargo::rustc-link-search=native={}", out.display());
}

/// Where llama.cpp's sources are: the sys crate tells its build folder, and cmake's cache there tells the rest.
fn llama_sources() -> PathBuf {
    let config =
        env::var("DEP_LLAMA_GGML_CMAKE_DIR").expect("llama-cpp-sys-2 tells where its cmake files are");
    let out = Path::new(&config).ancestors().nth(2).expect("OUT_DIR/lib/cmake has two parents");
    let cache =
        fs::read_to_string(out.join("build/CMakeCache.txt")).expect("llama-cpp-sys-2 built with cmake");
    let home = cache.lines().find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="));
    PathBuf::from(home.expect("every cmake cache names its home directory"))
}
