//! What an entry must be before anybody sees it: from a recipe's own worker.toml, or from a catalog that answered.

use crate::wire::catalog::CatalogEntry;
use crate::wire::{Code, Failure, VERSION, failure};
use serde::Deserialize;
use toml::{Table, Value};

pub const ID_BYTES_MAX: usize = 100;
/// The longest worker.toml, and the longest entry that a catalog may serve.
pub const ENTRY_BYTES_MAX: usize = 64 << 10;
/// Stands for our own version in worker.toml and PKGBUILD.
pub(super) const VERSION_MARK: &str = "@RBEE_VERSION@";
const KIND: &str = "kind";
const WORKER: &str = "worker";
const FILE_NAME_BYTES_MAX: usize = 255;

/// All keys of a worker's worker.toml.
const KEYS: &[&str] = &[
    "id",
    "implementation",
    "worker_type",
    "version",
    "platforms",
    "architectures",
    "name",
    "description",
    "license",
    "build_system",
    "source",
    "build",
    "depends",
    "makedepends",
    "binary_name",
    "install_path",
    "supported_formats",
    "max_context_length",
    "supports_streaming",
    "supports_batching",
    "serve",
    "options",
];

#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error("worker.toml of {ENTRY_BYTES_MAX} bytes at most is read, this has {0}")]
    TooLong(usize),
    #[error("reading worker.toml")]
    Toml(#[from] toml::de::Error),
    #[error("worker.toml: unknown key `{0}`")]
    UnknownKey(String),
    #[error("worker.toml has no `kind`, which is \"worker\" or \"model\"")]
    NoKind,
    #[error("the entry says that its id is `{said}`, but it is that of `{wanted}`")]
    OtherId { said: String, wanted: String },
    #[error("`{0}` is no recipe's id: those match [a-z0-9-]{{1,{ID_BYTES_MAX}}}")]
    BadId(String),
    #[error("{field} = `{value}` is not {expected}")]
    BadField { field: &'static str, value: String, expected: &'static str },
}

impl From<EntryError> for Failure {
    fn from(error: EntryError) -> Self {
        let code = match error {
            EntryError::BadId(_) => Code::InvalidRequest,
            _ => Code::RecipeInvalid,
        };
        Failure::new(code, failure::chain(&error))
    }
}

/// Ids become names of folders, parts of addresses and words of commands.
pub fn check_id(id: &str) -> Result<(), EntryError> {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(is_plain) {
        true => Ok(()),
        false => Err(EntryError::BadId(id.chars().take(ID_BYTES_MAX).flat_map(char::escape_debug).collect())),
    }
}

/// Whether a name can be that of a file beside a PKGBUILD: one that leads nowhere else, and no hidden one.
pub fn is_file_name(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._+-@".contains(&b);
    (1..=FILE_NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_plain)
}

/// The entry of a recipe's folder; none for a recipe that brings a model.
pub(super) fn read(folder: &str, text: &str) -> Result<Option<CatalogEntry>, EntryError> {
    if text.len() > ENTRY_BYTES_MAX {
        return Err(EntryError::TooLong(text.len()));
    }
    let mut table: Table = text.replace(VERSION_MARK, VERSION).parse()?;
    match table.remove(KIND) {
        Some(kind) if kind.as_str() == Some(WORKER) => {}
        Some(kind) if kind.as_str() == Some("model") => return Ok(None),
        _ => return Err(EntryError::NoKind),
    }
    if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(EntryError::UnknownKey(key.clone()));
    }
    table.insert("pkgbuild_url".into(), Value::String(format!("/workers/{folder}/PKGBUILD")));
    let entry = CatalogEntry::deserialize(table)?;
    check(&entry, folder)?;
    Ok(Some(entry))
}

/// What we make paths, words and addresses of is looked at once, here.
pub(super) fn check(entry: &CatalogEntry, wanted: &str) -> Result<(), EntryError> {
    if entry.id != wanted {
        return Err(EntryError::OtherId { said: entry.id.clone(), wanted: wanted.to_owned() });
    }
    check_id(&entry.id)?;
    let is_word = |text: &str| {
        (1..=ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
    };
    let is_path = |text: &str| !text.is_empty() && text.split('/').all(is_file_name);
    let is_address = |text: &str| text.starts_with('/') && !text.starts_with("//") && is_visible(text);
    let rules: [(&'static str, &str, bool, &'static str); 5] = [
        ("version", &entry.version, is_word(&entry.version), "a word without slashes"),
        ("worker_type", &entry.worker_type, is_word(&entry.worker_type), "a word without slashes"),
        ("binary_name", &entry.binary_name, is_file_name(&entry.binary_name), "a plain file name"),
        ("install_path", &entry.install_path, is_path(&entry.install_path), "a path below the package"),
        (
            "pkgbuild_url",
            &entry.pkgbuild_url,
            is_address(&entry.pkgbuild_url),
            "a path from the catalog's root",
        ),
    ];
    for (field, value, holds, expected) in rules {
        if !holds {
            let value = value.chars().take(ID_BYTES_MAX).flat_map(char::escape_debug).collect();
            return Err(EntryError::BadField { field, value, expected });
        }
    }
    Ok(())
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
kind = "worker"
id = "x"
implementation = "rbee"
worker_type = "cpu"
version = "@RBEE_VERSION@"
platforms = ["linux"]
architectures = ["x86_64"]
name = "X"
description = "d"
license = "MIT"
build_system = "cargo"
source = { type = "archive", url = "/source/x" }
build = {}
binary_name = "x"
install_path = "bin/x"
supported_formats = ["gguf"]
supports_streaming = true
supports_batching = true
"#;

    #[test]
    fn an_entry_is_what_its_folder_says_and_nothing_unknown() {
        let entry = read("x", GOOD).unwrap().unwrap();
        assert_eq!((entry.version.as_str(), entry.pkgbuild_url.as_str()), (VERSION, "/workers/x/PKGBUILD"));
        assert!(read("y", GOOD).is_err(), "another folder");
        assert!(read("x", &format!("{GOOD}\nsuports = 1")).is_err(), "a slip of the pen");
        assert!(read("x", &GOOD.replace("\"worker\"", "\"engine\"")).is_err());
        assert_eq!(read("x", &GOOD.replace("\"worker\"", "\"model\"")).unwrap(), None);
        for (from, to) in [
            ("\"bin/x\"", "\"../x\""),
            ("\"bin/x\"", "\"/x\""),
            ("\"bin/x\"", "\"\""),
            ("binary_name = \"x\"", "binary_name = \"a/x\""),
            ("\"@RBEE_VERSION@\"", "\"1/2\""),
        ] {
            assert!(read("x", &GOOD.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn ids_and_file_names_lead_nowhere_else() {
        let long = "a".repeat(ID_BYTES_MAX + 1);
        for bad in ["", "A", "a/b", "..", "a b", "a.b", "ä", &long] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
        assert!(check_id("llm-worker-rbee-cpu").is_ok());
        for bad in ["", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "a b"] {
            assert!(!is_file_name(bad), "{bad}");
        }
        assert!(is_file_name("fix-c++_1.patch"));
    }
}
