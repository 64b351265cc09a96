//! What a person may write for a model: a recipe's name, or a file by `file:PATH` or path.

use super::recipe::{self, Recipe};
use crate::wire::{Code, Failure};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest reference accepted: a path's limit, and its prefix.
pub const REFERENCE_BYTES_MAX: usize = 4_096 + FILE_PREFIX.len();
const FILE_PREFIX: &str = "file:";
const EXTENSION: &str = ".gguf";
const PATH_STARTS: [&str; 3] = ["/", "./", "../"];

#[derive(Debug, Clone, PartialEq)]
pub enum Reference {
    Recipe(Arc<Recipe>),
    /// Absolute.
    File(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    #[error("a model has to be named: give the path of a .gguf file or one of {}", recipe::names())]
    Empty,
    #[error("a model's name of {0} bytes is over the limit of {REFERENCE_BYTES_MAX}")]
    TooLong(usize),
    #[error("`{0}` holds control characters, which no model's name does")]
    Control(String),
    #[error(
        "`{0}` looks like a reference to the hub; those come with a later version: give the path of a .gguf file or one of {known}",
        known = recipe::names()
    )]
    Hub(String),
    #[error("no model is called `{0}`: give the path of a .gguf file or one of {known}", known = recipe::names())]
    Unknown(String),
    #[error("`{0}` cannot be made an absolute path")]
    NotAbsolute(String, #[source] std::io::Error),
}

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        let code = match error {
            ReferenceError::Unknown(_) => Code::ModelNotFound,
            _ => Code::InvalidRequest,
        };
        Failure::new(code, crate::wire::failure::chain(&error))
    }
}

impl Reference {
    /// Relative paths are relative to this process: whoever asks another one sends the canonical form (`to_string`).
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(ReferenceError::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(ReferenceError::Control(text.escape_debug().to_string()));
        }
        if let Some(path) = text.strip_prefix(FILE_PREFIX) {
            return if path.is_empty() { Err(ReferenceError::Empty) } else { Reference::file(path) };
        }
        if let Some(recipe) = recipe::find(text) {
            return Ok(Reference::Recipe(recipe));
        }
        let is_hub = text.contains(':') || text.starts_with("hf.co/");
        if PATH_STARTS.iter().any(|start| text.starts_with(start))
            || (!is_hub && text.to_ascii_lowercase().ends_with(EXTENSION))
            || (text.contains('/') && Path::new(text).exists())
        {
            return Reference::file(text);
        }
        if is_hub || text.contains('/') {
            return Err(ReferenceError::Hub(text.to_owned()));
        }
        Err(ReferenceError::Unknown(text.to_owned()))
    }

    /// The model that is used when none is named.
    pub fn default_model() -> Result<Self, ReferenceError> {
        Reference::parse(recipe::DEFAULT)
    }

    fn file(path: &str) -> Result<Self, ReferenceError> {
        let absolute =
            std::path::absolute(path).map_err(|e| ReferenceError::NotAbsolute(path.to_owned(), e))?;
        Ok(Reference::File(settled(absolute)))
    }

    /// The name without the folders, for bars and narration.
    pub fn label(&self) -> String {
        match self {
            Reference::Recipe(recipe) => recipe.id.clone(),
            Reference::File(path) => {
                path.file_name().map_or_else(|| self.to_string(), |name| name.to_string_lossy().into_owned())
            }
        }
    }
}

/// One name a file: the folder's links and `..` followed, the file's own name kept, because in the hub's cache it is the
/// link that tells what the file is.
fn settled(path: PathBuf) -> PathBuf {
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => path,
    }
}

/// The canonical form: what records, requests and lists name the model by.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Recipe(recipe) => f.write_str(&recipe.id),
            Reference::File(path) => write!(f, "{FILE_PREFIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        Reference::parse(text).map_or_else(|e| format!("{e:?}"), |r| r.to_string())
    }

    #[test]
    fn names_and_paths_have_one_canonical_form() {
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        let inside = |path: &str| format!("file:{}", here.join(path).display());
        assert_eq!(canonical(" SmolLM2-135M-instruct "), recipe::DEFAULT);
        assert_eq!(canonical("file:/a/b.gguf"), "file:/a/b.gguf");
        assert_eq!(canonical("/../b.gguf"), "file:/b.gguf");
        assert_eq!(canonical("m.gguf"), inside("m.gguf"));
        assert_eq!(canonical("./src/../m.GGUF"), inside("m.GGUF"));
        assert_eq!(canonical("file:m"), inside("m"));
        let again = canonical("file:/a/b.gguf");
        assert_eq!(canonical(&again), again);
    }

    #[test]
    fn hub_references_and_unknown_names_say_what_would_work() {
        for hub in ["org/repo", "org/repo:Q4_K_M", "org/repo:file.gguf", "hf.co/org/repo", "hf:org/repo"] {
            let failure = Failure::from(Reference::parse(hub).unwrap_err());
            assert_eq!(failure.code, Code::InvalidRequest);
            assert!(failure.message.contains(recipe::DEFAULT), "{}", failure.message);
        }
        let unknown = Failure::from(Reference::parse("llama").unwrap_err());
        assert_eq!(unknown.code, Code::ModelNotFound);
        for bad in ["", "  ", "file:", "a\nb", "x\0"] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
