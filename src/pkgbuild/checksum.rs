//! The sums of makepkg, all that a recipe gives for a file in one pass over it.

use crate::wire::{Code, Failure};
use serde_json::json;
use sha2::Digest;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use tokio_util::sync::CancellationToken;

const READ_BYTES: usize = 256 << 10;

/// What `KINDsums=()` is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Ck,
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    B2,
}

impl Kind {
    pub const ALL: [Kind; 8] =
        [Kind::Ck, Kind::Md5, Kind::Sha1, Kind::Sha224, Kind::Sha256, Kind::Sha384, Kind::Sha512, Kind::B2];

    /// The array's name in a PKGBUILD.
    pub fn variable(self) -> &'static str {
        match self {
            Kind::Ck => "cksums",
            Kind::Md5 => "md5sums",
            Kind::Sha1 => "sha1sums",
            Kind::Sha224 => "sha224sums",
            Kind::Sha256 => "sha256sums",
            Kind::Sha384 => "sha384sums",
            Kind::Sha512 => "sha512sums",
            Kind::B2 => "b2sums",
        }
    }

    pub fn name(self) -> &'static str {
        self.variable().trim_end_matches("sums")
    }

    /// Whether nobody can make other bytes of the same sum.
    pub fn is_strong(self) -> bool {
        !matches!(self, Kind::Ck | Kind::Md5 | Kind::Sha1)
    }

    /// Bytes of a sum; a cksum is a decimal number.
    fn bytes(self) -> Option<usize> {
        match self {
            Kind::Ck => None,
            Kind::Md5 => Some(16),
            Kind::Sha1 => Some(20),
            Kind::Sha224 => Some(28),
            Kind::Sha256 => Some(32),
            Kind::Sha384 => Some(48),
            Kind::Sha512 | Kind::B2 => Some(64),
        }
    }
}

/// A sum that bytes should have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sum {
    kind: Kind,
    /// As the tools print it: lower case.
    text: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` in {variable} is not a sum of that kind{}", digits(*.kind))]
pub struct NotASum {
    kind: Kind,
    variable: &'static str,
    text: String,
}

fn digits(kind: Kind) -> String {
    kind.bytes().map(|bytes| format!(": it has {} hexadecimal digits", 2 * bytes)).unwrap_or_default()
}

impl Sum {
    pub fn parse(kind: Kind, text: &str) -> Result<Self, NotASum> {
        let is_sum = match kind.bytes() {
            Some(bytes) => text.len() == 2 * bytes && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
            // In the one spelling that the tool prints.
            None => text.parse::<u32>().is_ok_and(|number| number.to_string() == text),
        };
        match is_sum {
            true => Ok(Sum { kind, text: text.to_ascii_lowercase() }),
            false => Err(NotASum {
                kind,
                variable: kind.variable(),
                text: text.escape_debug().take(2 * 64).collect(),
            }),
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Bytes that are not the ones a recipe names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not the file that the recipe names: its {} sum is {got}, should be {wanted}", .kind.name())]
pub struct Mismatch {
    pub name: String,
    pub kind: Kind,
    pub wanted: String,
    pub got: String,
}

impl From<Mismatch> for Failure {
    fn from(error: Mismatch) -> Self {
        let details =
            json!({"file": error.name, "kind": error.kind.name(), "wanted": error.wanted, "got": error.got});
        Failure::new(Code::ChecksumMismatch, error.to_string()).with(details)
    }
}

/// What reading a file for its sums has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Right,
    Wrong(Mismatch),
    Cancelled,
}

/// Reads the file once and compares every sum. Blocks; memory is one buffer, whatever the file's size.
pub fn verify(name: &str, path: &Path, sums: &[Sum], cancel: &CancellationToken) -> io::Result<Verdict> {
    let mut hashers: Vec<Hasher> = sums.iter().map(|sum| Hasher::new(sum.kind)).collect();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        if cancel.is_cancelled() {
            return Ok(Verdict::Cancelled);
        }
        match file.read(&mut buffer)? {
            0 => break,
            count => hashers.iter_mut().for_each(|hasher| hasher.update(&buffer[..count])),
        }
    }
    for (sum, hasher) in sums.iter().zip(hashers) {
        let got = hasher.finish();
        if got != sum.text {
            let (name, wanted) = (name.to_owned(), sum.text.clone());
            return Ok(Verdict::Wrong(Mismatch { name, kind: sum.kind, wanted, got }));
        }
    }
    Ok(Verdict::Right)
}

enum Hasher {
    Ck(Ck),
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha224(sha2::Sha224),
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
    B2(Box<blake2::Blake2b512>),
}

impl Hasher {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Ck => Hasher::Ck(Ck::default()),
            Kind::Md5 => Hasher::Md5(Digest::new()),
            Kind::Sha1 => Hasher::Sha1(Digest::new()),
            Kind::Sha224 => Hasher::Sha224(Digest::new()),
            Kind::Sha256 => Hasher::Sha256(Digest::new()),
            Kind::Sha384 => Hasher::Sha384(Digest::new()),
            Kind::Sha512 => Hasher::Sha512(Digest::new()),
            Kind::B2 => Hasher::B2(Box::default()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Ck(ck) => ck.update(bytes),
            Hasher::Md5(hasher) => hasher.update(bytes),
            Hasher::Sha1(hasher) => hasher.update(bytes),
            Hasher::Sha224(hasher) => hasher.update(bytes),
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha384(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
            Hasher::B2(hasher) => hasher.update(bytes),
        }
    }

    /// As the tool of that name prints it.
    fn finish(self) -> String {
        match self {
            Hasher::Ck(ck) => ck.finish().to_string(),
            Hasher::Md5(hasher) => hex(&hasher.finalize()),
            Hasher::Sha1(hasher) => hex(&hasher.finalize()),
            Hasher::Sha224(hasher) => hex(&hasher.finalize()),
            Hasher::Sha256(hasher) => hex(&hasher.finalize()),
            Hasher::Sha384(hasher) => hex(&hasher.finalize()),
            Hasher::Sha512(hasher) => hex(&hasher.finalize()),
            Hasher::B2(hasher) => hex(&hasher.finalize()),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// POSIX `cksum`: a CRC-32 with the highest bit first, the length in bytes after the data.
#[derive(Default)]
struct Ck {
    crc: u32,
    length: u64,
}

const CK_POLYNOMIAL: u32 = 0x04c1_1db7;
const CK_TABLE: [u32; 256] = ck_table();

const fn ck_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000_0000 == 0 { crc << 1 } else { (crc << 1) ^ CK_POLYNOMIAL };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

impl Ck {
    fn update(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        bytes.iter().for_each(|byte| self.push(*byte));
    }

    fn push(&mut self, byte: u8) {
        self.crc = (self.crc << 8) ^ CK_TABLE[usize::from((self.crc >> 24) as u8 ^ byte)];
    }

    fn finish(mut self) -> u32 {
        let mut length = self.length;
        while length > 0 {
            self.push(length as u8);
            length >>= 8;
        }
        !self.crc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `abc` and of nothing, as coreutils print them.
    const KNOWN: [(Kind, &str, &str); 8] = [
        (Kind::Ck, "1219131554", "4294967295"),
        (Kind::Md5, "900150983cd24fb0d6963f7d28e17f72", "d41d8cd98f00b204e9800998ecf8427e"),
        (Kind::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
        (
            Kind::Sha224,
            "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7",
            "d14a028c2a3a2bc9476102bb288234c415a2b01f828ea62ac5b3e42f",
        ),
        (
            Kind::Sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ),
        (
            Kind::Sha384,
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
            "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b",
        ),
        (
            Kind::Sha512,
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
        ),
        (
            Kind::B2,
            "ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923",
            "786a02f742015903c6c6fd852552d272912f4740e15847618a86e217f71f5419d25e1031afee585313896444934eb04b903a685b1448b755d56f701afe9be2ce",
        ),
    ];

    #[test]
    fn every_kind_has_the_tools_value() {
        let folder = tempfile::tempdir().unwrap();
        let (abc, empty) = (folder.path().join("abc"), folder.path().join("empty"));
        std::fs::write(&abc, "abc").unwrap();
        std::fs::write(&empty, "").unwrap();
        let never = CancellationToken::new();
        let mut all = Vec::new();
        for (kind, of_abc, of_empty) in KNOWN {
            let (right, other) = (Sum::parse(kind, of_abc).unwrap(), Sum::parse(kind, of_empty).unwrap());
            assert_eq!(verify("abc", &abc, std::slice::from_ref(&right), &never).unwrap(), Verdict::Right);
            assert_eq!(verify("e", &empty, std::slice::from_ref(&other), &never).unwrap(), Verdict::Right);
            let wrong = verify("abc", &abc, &[right.clone(), other.clone()], &never).unwrap();
            let Verdict::Wrong(mismatch) = wrong else { panic!("{kind:?}: {wrong:?}") };
            assert_eq!((mismatch.kind, mismatch.got.as_str()), (kind, of_abc));
            all.push(right);
        }
        assert_eq!(verify("abc", &abc, &all, &never).unwrap(), Verdict::Right);
    }

    #[test]
    fn a_sum_has_one_spelling() {
        let md5 = "900150983cd24fb0d6963f7d28e17f72";
        assert_eq!(Sum::parse(Kind::Md5, &md5.to_uppercase()).unwrap().to_string(), md5);
        for (kind, bad) in [
            (Kind::Md5, ""),
            (Kind::Md5, &md5[1..]),
            (Kind::Sha1, md5),
            (Kind::Md5, "SKIP"),
            (Kind::Md5, &md5.replace('9', "g")),
            (Kind::Ck, "-1"),
            (Kind::Ck, "4294967296"),
            (Kind::Ck, "01"),
            (Kind::Ck, "+1"),
        ] {
            assert!(Sum::parse(kind, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cancel_ends_the_reading() {
        let cancel = CancellationToken::new();
        cancel.cancel();
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(verify("x", file.path(), &[], &cancel).unwrap(), Verdict::Cancelled);
    }
}
