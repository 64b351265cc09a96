//! `keys.json`: the keys and join tokens of a state directory, as digests, in JSON that a person can read.

use super::{JoinRefused, KeyError, Secret};
use crate::wire::digest::Digest;
use crate::wire::fleet::now_ms;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

const FILE: &str = "keys.json";
/// Beside the file, because the file itself is replaced.
const LOCK: &str = "keys.lock";
pub const FILE_BYTES_MAX: u64 = 4 << 20;
pub const KEYS_MAX: usize = 2_048;
/// Unused ones.
pub const TOKENS_MAX: usize = 256;
pub const NAME_BYTES_MAX: usize = 100;
/// How long a join token may wait for its node.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a used or expired token is remembered, so that it can be told what became of it.
const TOKEN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Everything: a person's, or a program's.
    Client,
    /// A hive's link, under its own name, and nothing else: a node that is taken over must not command the fleet.
    Hive,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub name: String,
    pub kind: Kind,
    pub sha256: Digest,
    /// The last characters, for telling keys apart.
    pub ends_with: String,
    /// Milliseconds since the epoch, as everywhere.
    pub created_at: u64,
    /// The machine it was given to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// What lets one node in, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub sha256: Digest,
    pub ends_with: String,
    pub created_at: u64,
    pub expires_at: u64,
    /// The hive that used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    #[serde(default)]
    pub keys: Vec<Key>,
    #[serde(default)]
    pub tokens: Vec<Token>,
}

impl Book {
    pub fn path(state: &Path) -> PathBuf {
        state.join(FILE)
    }

    /// Empty where there is no file. One that does not read is an error: it must never count as "no keys".
    pub fn read(state: &Path) -> Result<Self, KeyError> {
        let path = Book::path(state);
        let read = || -> io::Result<Book> {
            let mut bytes = Vec::new();
            File::open(&path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > FILE_BYTES_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            Ok(serde_json::from_slice(&bytes)?)
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Book::default()),
            read => read.map_err(|source| KeyError::Read { path, source }),
        }
    }

    /// Reads, changes and replaces the file; nobody else changes it meanwhile. Blocks while somebody else does.
    pub fn edit<T>(
        state: &Path,
        change: impl FnOnce(&mut Book) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let path = Book::path(state);
        let writing = |source| KeyError::Write { path: path.clone(), source };
        let lock = File::options().write(true).create(true).truncate(false).open(state.join(LOCK));
        let lock = lock.map_err(writing)?;
        rustix::fs::flock(lock.as_fd(), rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| writing(error.into()))?;
        let mut book = Book::read(state)?;
        let before = book.clone();
        let outcome = change(&mut book)?;
        if book != before {
            let text = serde_json::to_vec_pretty(&book).map_err(|error| writing(error.into()))?;
            replace(&path, &text).map_err(writing)?;
        }
        Ok(outcome)
    }

    /// The key of this digest. Every key is compared to its end, so that the time taken does not tell which came close.
    pub fn find(&self, sha256: &Digest) -> Option<&Key> {
        let mut found = u32::MAX;
        for (index, key) in self.keys.iter().enumerate() {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let same: Choice = key.sha256.as_bytes().ct_eq(sha256.as_bytes());
            found.conditional_assign(&index, same);
        }
        self.keys.get(found as usize)
    }

    /// Whether a person or a program has a key. Those of hives do not count: they let nobody else in.
    pub fn has_client_keys(&self) -> bool {
        self.keys.iter().any(|key| key.kind == Kind::Client)
    }

    /// Enters a new key; without a name it gets the next free number.
    pub fn add(&mut self, name: Option<&str>, secret: &Secret) -> Result<Key, KeyError> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => (1..).map(|n| format!("key-{n}")).find(|name| !self.has(name)).unwrap_or_default(),
        };
        self.enter(name, Kind::Client, None, secret)
    }

    pub fn revoke(&mut self, name: &str) -> Result<Key, KeyError> {
        let at = self.keys.iter().position(|key| key.name == name);
        let at = at.ok_or_else(|| KeyError::Unknown(name.to_owned()))?;
        Ok(self.keys.remove(at))
    }

    pub fn add_token(&mut self, secret: &Secret, ttl: Duration) -> Result<Token, KeyError> {
        let now = now_ms();
        let kept = TOKEN_KEPT.as_millis() as u64;
        self.tokens.retain(|token| token.expires_at.saturating_add(kept) > now);
        let waiting = self.tokens.iter().filter(|token| token.used_by.is_none() && token.expires_at > now);
        if waiting.count() >= TOKENS_MAX {
            return Err(KeyError::TooManyTokens);
        }
        let token = Token {
            sha256: secret.digest(),
            ends_with: secret.ends_with(),
            created_at: now,
            expires_at: now.saturating_add(ttl.as_millis() as u64),
            used_by: None,
        };
        self.tokens.push(token.clone());
        Ok(token)
    }

    /// Lets a node in by its token, which is spent with that: enters the key that is the node's from now on. A node that
    /// joins again under its name gets a new key in place of its old one.
    pub fn join(&mut self, token: &Digest, hive: &str, node: &str, secret: &Secret) -> Result<Key, KeyError> {
        let now = now_ms();
        let same = |known: &Token| bool::from(known.sha256.as_bytes().ct_eq(token.as_bytes()));
        let at = self.tokens.iter().position(same).ok_or(JoinRefused::Unknown)?;
        let known = &self.tokens[at];
        if let Some(by) = &known.used_by {
            return Err(JoinRefused::Used { by: by.clone() }.into());
        }
        if known.expires_at <= now {
            return Err(JoinRefused::Expired { minutes: (now - known.expires_at) / 60_000 }.into());
        }
        if let Some(at) = self.keys.iter().position(|key| key.name == hive) {
            let is_its_own = self.keys[at].kind == Kind::Hive && self.keys[at].node.as_deref() == Some(node);
            if !is_its_own {
                return Err(JoinRefused::NameTaken(hive.to_owned()).into());
            }
            self.keys.remove(at);
        }
        let key = self.enter(hive.to_owned(), Kind::Hive, Some(node.to_owned()), secret)?;
        self.tokens[at].used_by = Some(hive.to_owned());
        Ok(key)
    }

    /// Takes a token back, and the key that a node got for it, whose name it gives.
    pub fn withdraw(&mut self, token: &Digest) -> Option<String> {
        let same = |known: &Token| bool::from(known.sha256.as_bytes().ct_eq(token.as_bytes()));
        let at = self.tokens.iter().position(same)?;
        let hive = self.tokens.remove(at).used_by?;
        self.keys.retain(|key| key.kind != Kind::Hive || key.name != hive);
        Some(hive)
    }

    fn enter(
        &mut self,
        name: String,
        kind: Kind,
        node: Option<String>,
        secret: &Secret,
    ) -> Result<Key, KeyError> {
        if !is_name(&name) {
            return Err(KeyError::BadName(name));
        }
        if self.has(&name) {
            return Err(KeyError::Taken(name));
        }
        if self.keys.len() >= KEYS_MAX {
            return Err(KeyError::TooMany);
        }
        let ends_with = secret.ends_with();
        let key = Key { name, kind, sha256: secret.digest(), ends_with, created_at: now_ms(), node };
        self.keys.push(key.clone());
        Ok(key)
    }

    fn has(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.name == name)
    }
}

/// As hives are named, because their keys are called as they are.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain)
}

/// The old bytes or the new ones, for this user's eyes only, whenever the power goes.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // Temporary files are made with mode 0600.
    let mut fresh = tempfile::Builder::new().prefix(".rbee-keys-").tempfile_in(folder)?;
    fresh.write_all(bytes)?;
    fresh.as_file().sync_all()?;
    fresh.persist(path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const HOUR: Duration = Duration::from_secs(3600);

    fn secret() -> Secret {
        Secret::key().unwrap()
    }

    #[test]
    fn the_file_is_private_holds_no_secret_and_reads_back() {
        let state = tempfile::tempdir().unwrap();
        let secret = secret();
        let made = Book::edit(state.path(), |book| book.add(Some("laptop"), &secret)).unwrap();
        let path = Book::path(state.path());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(secret.reveal()) && text.contains("laptop"), "{text}");
        let book = Book::read(state.path()).unwrap();
        assert_eq!(book.find(&secret.digest()), Some(&made));
        assert_eq!(book.find(&Secret::key().unwrap().digest()), None);
    }

    #[test]
    fn names_are_told_apart_and_numbers_given() {
        let mut book = Book::default();
        assert_eq!(book.add(None, &secret()).unwrap().name, "key-1");
        assert_eq!(book.add(None, &secret()).unwrap().name, "key-2");
        assert!(matches!(book.add(Some("key-1"), &secret()), Err(KeyError::Taken(_))));
        for bad in ["", "a b", "../x", "ü", &"x".repeat(101)] {
            assert!(matches!(book.add(Some(bad), &secret()), Err(KeyError::BadName(_))), "{bad}");
        }
        book.revoke("key-1").unwrap();
        assert!(matches!(book.revoke("key-1"), Err(KeyError::Unknown(_))));
        assert_eq!(book.add(None, &secret()).unwrap().name, "key-1");
    }

    #[test]
    fn a_token_lets_one_node_in_once_and_in_time() {
        let mut book = Book::default();
        let (token, late) = (Secret::token().unwrap(), Secret::token().unwrap());
        book.add_token(&token, HOUR).unwrap();
        book.add_token(&late, Duration::ZERO).unwrap();
        let refused = |book: &mut Book, token: &Secret, hive: &str, node: &str| match book.join(
            &token.digest(),
            hive,
            node,
            &secret(),
        ) {
            Err(KeyError::Join(refused)) => refused,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&mut book, &secret(), "one", "n1"), JoinRefused::Unknown);
        assert_eq!(refused(&mut book, &late, "one", "n1"), JoinRefused::Expired { minutes: 0 });
        let key = book.join(&token.digest(), "one", "n1", &secret()).unwrap();
        assert_eq!((key.kind, key.name.as_str()), (Kind::Hive, "one"));
        assert_eq!(refused(&mut book, &token, "two", "n2"), JoinRefused::Used { by: "one".into() });
        assert!(!book.has_client_keys());
    }

    #[test]
    fn a_token_that_is_withdrawn_lets_nobody_in_and_whoever_came_by_it_is_out() {
        let mut book = Book::default();
        let (used, unused) = (Secret::token().unwrap(), Secret::token().unwrap());
        book.add_token(&used, HOUR).unwrap();
        book.add_token(&unused, HOUR).unwrap();
        book.add(Some("client"), &secret()).unwrap();
        book.join(&used.digest(), "one", "n1", &secret()).unwrap();
        assert_eq!(book.withdraw(&secret().digest()), None);
        assert_eq!((book.keys.len(), book.tokens.len()), (2, 2), "nobody's token changes nothing");
        assert_eq!(book.withdraw(&unused.digest()), None);
        assert!(matches!(
            book.join(&unused.digest(), "two", "n2", &secret()),
            Err(KeyError::Join(JoinRefused::Unknown))
        ));
        assert_eq!(book.withdraw(&used.digest()).as_deref(), Some("one"));
        assert_eq!((book.keys.len(), book.keys[0].name.as_str(), book.tokens.len()), (1, "client", 0));
    }

    #[test]
    fn a_name_is_its_nodes_and_a_refusal_does_not_spend_the_token() {
        let mut book = Book::default();
        let token = Secret::token().unwrap();
        let first = Secret::token().unwrap();
        book.add_token(&first, HOUR).unwrap();
        book.add_token(&token, HOUR).unwrap();
        let old = secret();
        book.join(&first.digest(), "one", "n1", &old).unwrap();
        let taken = book.join(&token.digest(), "one", "n2", &secret());
        assert!(matches!(taken, Err(KeyError::Join(JoinRefused::NameTaken(_)))), "{taken:?}");
        book.join(&token.digest(), "one", "n1", &secret()).unwrap();
        assert_eq!(book.find(&old.digest()), None, "the old key opens nothing any more");
        assert_eq!(book.keys.len(), 1);
    }

    #[test]
    fn a_book_that_does_not_read_is_no_empty_book() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(Book::read(state.path()).unwrap(), Book::default());
        std::fs::write(Book::path(state.path()), "{\"keys\": [").unwrap();
        assert!(matches!(Book::read(state.path()), Err(KeyError::Read { .. })));
        assert!(Book::edit(state.path(), |book| book.add(None, &secret())).is_err());
    }
}
