//! Configuration files: which ones there are, and one file's text to checked values, each with its line.

use super::machine::{self, Machine};
use super::{ConfigError, Place};
use crate::cli::value::Value;
use crate::cli::{Flag, global_flags, nearest, section_flags, sections};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// A configuration file is written by hand; anything larger is the wrong file.
pub(super) const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// The table about other machines, each with a table of its own.
const MACHINES_TABLE: &str = "hives";

/// The configuration files of this user, the strongest first. Only the one that RBEE_CONFIG names must exist.
pub(super) fn read_files(
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<(PathBuf, String)>, ConfigError> {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    let variable = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = variable("RBEE_CONFIG");
    let user = variable("XDG_CONFIG_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").map(|home| home.join(".config")))
        .map(|config| config.join("rbee/config.toml"));
    let system = Some(PathBuf::from("/etc/rbee/config.toml"));
    let mut files = Vec::new();
    for (path, required) in [(named, true), (user, false), (system, false)] {
        let Some(path) = path else { continue };
        match read_file(&path) {
            Ok(text) => files.push((path, text)),
            // The system's file may hold a key that only its daemons may read.
            Err(ConfigError::Read { source, .. })
                if !required && matches!(source.kind(), NotFound | NotADirectory | PermissionDenied) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read;
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

/// One file, checked: table and key to values. Global flags are in the table "".
pub(super) struct File {
    pub(super) values: BTreeMap<(String, String), (Vec<Value>, Place)>,
    pub(super) machines: BTreeMap<String, Machine>,
}

impl File {
    pub(super) fn read(path: &Path, text: &str) -> Result<File, ConfigError> {
        let reader = Reader { path, text };
        let top = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            at: reader.place(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', ", "),
        })?;
        let mut file = File { values: BTreeMap::new(), machines: BTreeMap::new() };
        for (key, value) in top.get_ref().iter() {
            let section: &str = key.get_ref();
            match value.get_ref() {
                DeValue::Table(machines) if section == MACHINES_TABLE => {
                    for (name, value) in machines.iter() {
                        file.machines
                            .insert(name.get_ref().to_string(), reader.machine(name, value.get_ref())?);
                    }
                }
                other if section == MACHINES_TABLE => {
                    let expected = format!("a table: write [{section}.NAME] on a line of its own");
                    return Err(reader.bad("", key, other.type_str().to_owned(), expected));
                }
                DeValue::Table(table) if is_section(section) => {
                    for (key, value) in table.iter() {
                        file.insert(section, key.get_ref(), reader.entry(section, key, value.get_ref())?);
                    }
                }
                other if is_section(section) => {
                    let expected = format!("a table: write [{section}] on a line of its own");
                    return Err(reader.bad("", key, other.type_str().to_owned(), expected));
                }
                other => file.insert("", section, reader.entry("", key, other)?),
            }
        }
        Ok(file)
    }

    fn insert(&mut self, section: &str, key: &str, found: (Vec<Value>, Place)) {
        self.values.insert((section.to_owned(), key.to_owned()), found);
    }
}

/// A key with the place where it stands.
type Key<'a> = Spanned<DeString<'a>>;

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Place { file: self.path.to_owned(), line }
    }

    fn entry(
        &self,
        section: &str,
        key: &Key<'_>,
        value: &DeValue<'_>,
    ) -> Result<(Vec<Value>, Place), ConfigError> {
        let known = flags_of(section);
        let name: &str = key.get_ref();
        let Some(flag) = known.iter().find(|flag| flag.key() == name) else {
            return Err(self.unknown(section, key, &known));
        };
        let items = match value {
            DeValue::Array(items) if flag.many => items.iter().map(|item| item.get_ref()).collect(),
            single => vec![single],
        };
        let mut values = Vec::new();
        for item in items {
            let text = scalar(item)
                .ok_or_else(|| self.bad(section, key, item.type_str().into(), "a single value".into()))?;
            let checked = flag.kind.check(&text);
            let value = checked.map_err(|expected| self.bad(section, key, text, expected.to_string()))?;
            values.push(self.anchored(value));
        }
        Ok((values, self.place(key.span().start)))
    }

    fn machine(&self, name: &Key<'_>, value: &DeValue<'_>) -> Result<Machine, ConfigError> {
        let section = format!("{MACHINES_TABLE}.{}", name.get_ref());
        let DeValue::Table(table) = value else {
            let expected = format!("a table: write [{section}] on a line of its own");
            return Err(self.bad(MACHINES_TABLE, name, value.type_str().to_owned(), expected));
        };
        let mut machine = Machine::default();
        for (key, value) in table.iter() {
            let word: &str = key.get_ref();
            if !machine::KEYS.contains(&word) {
                let nearest = nearest(word, machine::KEYS.iter().copied()).map(str::to_owned);
                let at = self.place(key.span().start);
                return Err(ConfigError::UnknownKey { at, key: full_key(&section, word), nearest });
            }
            let value = value.get_ref();
            let text = scalar(value)
                .ok_or_else(|| self.bad(&section, key, value.type_str().into(), "a single value".into()))?;
            machine.set(word, &text).map_err(|expected| self.bad(&section, key, text, expected))?;
        }
        // One beside this file, unless it is said from the root or from home.
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let at_home = |path: &PathBuf| path.starts_with("~");
        machine.identity = machine.identity.map(|path| if at_home(&path) { path } else { folder.join(path) });
        Ok(machine)
    }

    /// A relative path means the same wherever the daemon was started: it starts at the file.
    fn anchored(&self, value: Value) -> Value {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        match value {
            Value::Path(path) if !path.starts_with("~") => Value::Path(folder.join(path)),
            other => other,
        }
    }

    fn unknown(&self, section: &str, key: &Key<'_>, known: &[&Flag]) -> ConfigError {
        let keys: Vec<String> = known.iter().map(|flag| flag.key()).collect();
        let tables: Vec<&str> = sections().filter(|_| section.is_empty()).collect();
        let nearest = nearest(key.get_ref(), keys.iter().map(String::as_str).chain(tables));
        ConfigError::UnknownKey {
            at: self.place(key.span().start),
            key: full_key(section, key.get_ref()),
            nearest: nearest.map(str::to_owned),
        }
    }

    fn bad(&self, section: &str, key: &Key<'_>, text: String, expected: String) -> ConfigError {
        let at = self.place(key.span().start);
        ConfigError::BadValue { at, key: full_key(section, key.get_ref()), text, expected }
    }
}

fn full_key(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// The text of a single TOML value, to be checked like a text that was typed.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(on) => Some(on.to_string()),
        _ => None,
    }
}

/// What a table's keys may be; "" stands for the top of the file.
fn flags_of(section: &str) -> Vec<&'static Flag> {
    if section.is_empty() { global_flags().to_vec() } else { section_flags(section).collect() }
}

fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}
