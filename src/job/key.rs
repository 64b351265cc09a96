//! Idempotency: a POST that is repeated under one key gives the first job again, as long as it asks for the same.

use crate::wire::Failure;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The header that carries it.
pub const HEADER: &str = "idempotency-key";
/// The longest key.
pub const KEY_BYTES_MAX: usize = 255;

/// What the client calls its request, and the request's own mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub text: String,
    body_sha256: String,
}

impl Key {
    /// Of a request's header and the bytes of its body.
    pub fn read(header: Option<&str>, body: &[u8]) -> Result<Option<Key>, Failure> {
        let Some(text) = header else { return Ok(None) };
        if text.is_empty() || text.len() > KEY_BYTES_MAX {
            return Err(Failure::invalid(format!("an idempotency key has 1 to {KEY_BYTES_MAX} bytes")));
        }
        let body_sha256 = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Some(Key { text: text.to_owned(), body_sha256 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_with_its_body() {
        let read = |text, body: &str| Key::read(Some(text), body.as_bytes()).unwrap();
        assert_eq!(read("k", "{}"), read("k", "{}"));
        assert_ne!(read("k", "{}"), read("k", "{ }"));
        assert!(Key::read(Some(""), b"").is_err() && Key::read(Some(&"k".repeat(256)), b"").is_err());
        assert_eq!(Key::read(None, b"").unwrap(), None);
    }
}
