//! `[hives.NAME]`: another machine of one's own, where ssh alone would not find it.

use crate::cli::Kind;
use crate::cli::value::Value;
use std::path::PathBuf;

/// The keys such a table may have.
pub(super) const KEYS: &[&str] = &["host", "user", "port", "identity", "binary"];

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    pub host: Option<String>,
    pub user: Option<String>,
    pub port: Option<u16>,
    /// The file of the key that ssh shows.
    pub identity: Option<PathBuf>,
    /// Where the program lies over there.
    pub binary: Option<PathBuf>,
}

impl Machine {
    /// Takes a key's value, or tells what it should have been.
    pub(super) fn set(&mut self, key: &str, text: &str) -> Result<(), String> {
        let kind = match key {
            "port" => Kind::Number { min: 1, max: 65_535 },
            "identity" | "binary" => Kind::Path,
            _ => Kind::Text,
        };
        match (key, kind.check(text).map_err(|expected| expected.to_string())?) {
            ("host", Value::Text(text)) => self.host = Some(text),
            ("user", Value::Text(text)) => self.user = Some(text),
            ("port", Value::Number(port)) => self.port = u16::try_from(port).ok(),
            ("identity", Value::Path(path)) => self.identity = Some(path),
            ("binary", Value::Path(path)) => self.binary = Some(path),
            _ => {}
        }
        Ok(())
    }
}
