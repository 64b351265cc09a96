//! What the compiler needs beside Rust: the recipes of pkgbuilds/, the C++ chat shim, the commit this is built from.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed=build.rs");
    record_commit();
    embed_recipes(&root.join("pkgbuilds"), &out.join("recipes.rs"));
    compile_chat_shim();
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

/// Compiles the chat shim against the headers of the llama.cpp that llama-cpp-sys-2 has built.
fn compile_chat_shim() {
    const SHIM: &str = "src/worker/chat_shim.cpp";
    println!("cargo::rerun-if-changed={SHIM}");
    let llama = llama_sources();
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
        .compile("rbee_chat_shim");
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

/// Records the commit for `rbee version`: from git where there is a repository, else unknown.
fn record_commit() {
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).is_file()) {
        println!("cargo::rerun-if-changed={log}");
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=RBEE_COMMIT={commit}");
}

fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
