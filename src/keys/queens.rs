//! `queens.json`: the keys that a node got when it joined, one a queen. These are the secrets themselves, since the node has to
//! show them; the file is for its user's eyes only.

use super::{KeyError, book::replace};
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const FILE: &str = "queens.json";
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Joined {
    queen: String,
    /// The name it joined by.
    hive: String,
    key: String,
}

#[derive(Debug, Clone)]
pub struct QueenKeys {
    path: PathBuf,
}

impl QueenKeys {
    pub fn of(state: &Path) -> Self {
        QueenKeys { path: state.join(FILE) }
    }

    /// The key for a queen, by the address she is dialled at.
    pub fn find(&self, queen: &str) -> Result<Option<String>, KeyError> {
        Ok(self.read()?.into_iter().find(|joined| joined.queen == queen).map(|joined| joined.key))
    }

    pub fn keep(&self, queen: &str, hive: &str, key: &str) -> Result<(), KeyError> {
        let mut joined = self.read()?;
        joined.retain(|other| other.queen != queen);
        joined.push(Joined { queen: queen.into(), hive: hive.into(), key: key.into() });
        let writing = |source| KeyError::Write { path: self.path.clone(), source };
        let text = serde_json::to_vec_pretty(&joined).map_err(|error| writing(error.into()))?;
        replace(&self.path, &text).map_err(writing)
    }

    fn read(&self) -> Result<Vec<Joined>, KeyError> {
        let read = || -> io::Result<Vec<Joined>> {
            let mut bytes = Vec::new();
            std::fs::File::open(&self.path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|source| KeyError::Read { path: self.path.clone(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn each_queen_has_one_key_and_nobody_else_reads_them() {
        let state = tempfile::tempdir().unwrap();
        let keys = QueenKeys::of(state.path());
        assert_eq!(keys.find("http://q:1").unwrap(), None);
        keys.keep("http://q:1", "one", "a").unwrap();
        keys.keep("http://r:1", "one", "b").unwrap();
        keys.keep("http://q:1", "one", "c").unwrap();
        assert_eq!(keys.find("http://q:1").unwrap().as_deref(), Some("c"));
        assert_eq!(keys.find("http://r:1").unwrap().as_deref(), Some("b"));
        let mode = state.path().join(FILE).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
