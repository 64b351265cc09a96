//! Secrets: 256 random bits behind a word that tells what they are for, and their digests.

use super::KeyError;
use crate::wire::digest::Digest;
use crate::wire::random;
use sha2::{Digest as _, Sha256};
use std::fmt;

const RANDOM_BYTES: usize = 32;
/// What a key begins with, and a join token: who finds one somewhere knows what it is.
const KEY_PREFIX: &str = "rbee_";
const TOKEN_PREFIX: &str = "rbee_join_";
/// Of the end, for telling keys apart: 16 of 256 bits.
const SHOWN_CHARS: usize = 4;

/// Never printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn key() -> Result<Self, KeyError> {
        Secret::fresh(KEY_PREFIX)
    }

    pub fn token() -> Result<Self, KeyError> {
        Secret::fresh(TOKEN_PREFIX)
    }

    fn fresh(prefix: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; RANDOM_BYTES];
        random::fill(&mut bytes).map_err(KeyError::Random)?;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Secret(format!("{prefix}{hex}")))
    }

    /// The text itself, for the one place where it has to be said.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn digest(&self) -> Digest {
        digest(&self.0)
    }

    pub fn ends_with(&self) -> String {
        self.0.chars().skip(self.0.len() - SHOWN_CHARS).collect()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// One round of SHA-256 is enough: nobody tries 2^256 secrets through, however fast each try is.
pub fn digest(secret: &str) -> Digest {
    Digest::of(Sha256::new_with_prefix(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_tell_their_kind_and_never_print() {
        let (one, two) = (Secret::key().unwrap(), Secret::key().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.reveal().len(), KEY_PREFIX.len() + 2 * RANDOM_BYTES);
        assert!(one.reveal().starts_with("rbee_") && one.reveal().ends_with(&one.ends_with()));
        assert!(Secret::token().unwrap().reveal().starts_with("rbee_join_"));
        assert!(!format!("{one:?}").contains(&one.ends_with()));
        assert_ne!(one.digest(), two.digest());
    }
}
