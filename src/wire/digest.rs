//! A SHA-256 sum. File names are made from these alone, so a sum is parsed, never passed on as text.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;

const BYTES: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; BYTES]);

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a SHA-256 sum: 64 hexadecimal digits")]
pub struct NotADigest(String);

impl Digest {
    /// What a hasher has come to.
    pub fn of(hasher: sha2::Sha256) -> Self {
        Digest(sha2::Digest::finalize(hasher).into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let bad = || NotADigest(text.chars().take(2 * BYTES).collect());
        if text.len() != 2 * BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; BYTES];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_hexadecimal_digits_are_a_digest() {
        let good = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        let empty = Digest::of(sha2::Digest::new());
        assert!(empty.to_string().starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
        for bad in ["", "../../etc/passwd", &good[1..], &format!("{}é", &good[2..]), &good.replace('b', "+")]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
