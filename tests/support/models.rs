//! Real models, for the tests that need one: a folder with the files, named by RBEE_TEST_MODELS, else
//! `~/.cache/rbee-test-models`. Without them those tests say that they were skipped.

use std::path::PathBuf;

pub const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
pub const GEMMA3: &str = "gemma-3-270m-q4_k_m.gguf";

/// A real model's path, if it is here.
pub fn real_model(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("RBEE_TEST_MODELS").map(PathBuf::from);
    let folder =
        named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/rbee-test-models")))?;
    let found = Some(folder.join(name)).filter(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: there is no {name} in {} (RBEE_TEST_MODELS)", folder.display());
    }
    found
}
