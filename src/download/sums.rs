//! What bytes come to: their SHA-256 sum always, and git's name for them where that is what they are known by.

use super::{DownloadError, Expected, Sum};
use crate::wire::digest::Digest;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use tokio_util::sync::CancellationToken;

const READ_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sums {
    pub sha256: Digest,
    pub git_blob: Option<[u8; 20]>,
}

impl Sums {
    pub fn are(&self, expected: &Sum) -> bool {
        match expected {
            Sum::Sha256(digest) => self.sha256 == *digest,
            Sum::GitBlob(id) => self.git_blob == Some(*id),
        }
    }
}

impl Sums {
    /// What to say where they are not.
    pub fn wrong(&self, expected: &Sum) -> DownloadError {
        let got = match (expected, self.git_blob) {
            (Sum::GitBlob(_), Some(id)) => Sum::GitBlob(id),
            _ => Sum::Sha256(self.sha256),
        };
        DownloadError::WrongBytes { got, expected: *expected }
    }
}

pub(super) struct Summing {
    sha256: Sha256,
    git: Option<Sha1>,
}

impl Summing {
    pub fn new(expected: &Expected) -> Self {
        let git = match (expected.sum, expected.size) {
            (Some(Sum::GitBlob(_)), Some(size)) => {
                Some(Sha1::new_with_prefix(format!("blob {size}\0").as_bytes()))
            }
            _ => None,
        };
        Summing { sha256: Sha256::new(), git }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(git) = &mut self.git {
            git.update(bytes);
        }
    }

    pub fn sums(self) -> Sums {
        let git_blob = self.git.map(|git| git.finalize().into());
        Sums { sha256: Digest::of(self.sha256), git_blob }
    }
}

/// The SHA-256 sum of a file, and whether it is what is expected. Blocks; `None` when cancelled.
pub fn check_file(
    path: &Path,
    expected: &Expected,
    cancel: &CancellationToken,
) -> io::Result<Option<(Digest, bool)>> {
    let mut file = File::open(path)?;
    let mut summing = Summing::new(expected);
    let mut buffer = vec![0; READ_BYTES];
    while !cancel.is_cancelled() {
        match file.read(&mut buffer)? {
            0 => {
                let sums = summing.sums();
                let is_right = expected.sum.is_none_or(|sum| sums.are(&sum));
                return Ok(Some((sums.sha256, is_right)));
            }
            count => summing.update(&buffer[..count]),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_either_sum() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "what is up, doc?").unwrap();
        // `printf 'what is up, doc?' | git hash-object --stdin`
        let mut id = [0; 20];
        for (byte, hex) in id.iter_mut().zip("bd9dbf5aae1a3862dd1526723246b20206e5fc37".as_bytes().chunks(2))
        {
            *byte = u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap();
        }
        let check = |expected: Expected| {
            check_file(file.path(), &expected, &CancellationToken::new()).unwrap().unwrap()
        };
        let (digest, is_right) =
            check(Expected { size: Some(16), sum: Some(Sum::GitBlob(id)), ..Expected::default() });
        assert!(is_right);
        assert!(check(Expected { sum: Some(Sum::Sha256(digest)), ..Expected::default() }).1);
        id[0] ^= 1;
        assert!(!check(Expected { size: Some(16), sum: Some(Sum::GitBlob(id)), ..Expected::default() }).1);
    }
}
