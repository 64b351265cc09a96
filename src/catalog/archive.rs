//! The source archive: what a node builds a worker of exactly this version from. build.rs packs it and a test packs it
//! again; the program only carries it. The same tree gives the same bytes everywhere: a fixed list, sorted, one owner, one
//! mode, one time, one compressor. What is built from the archive therefore carries the same archive.

use flate2::{Compression, GzBuilder};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What of the tree is packed. Tests, and what makes up a developer's checkout, stay at home.
pub const CONTENTS: &[&str] = &[
    ".cargo/config.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "build.rs",
    "pkgbuilds",
    "src",
];
/// Stands in the place of a repository: what the tree was made from.
pub const PROVENANCE: &str = "PROVENANCE.toml";
/// 2020-01-01, so that no unpacker takes it for an error.
const MODIFIED: u64 = 1_577_836_800;
const MODE: u32 = 0o644;
const BLOCK: usize = 512;
/// The end of a ustar archive.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// "Unknown" in a gzip header: the system that packed it is nobody's business.
const GZIP_SYSTEM: u8 = 255;

/// Packs the tree under `root` as `FOLDER/…`, with a provenance file of the text given.
pub fn pack(root: &Path, folder: &str, provenance: &str) -> io::Result<Vec<u8>> {
    let mut files = files(root)?;
    files.push((PROVENANCE.to_owned(), None));
    files.sort();
    let gzip = GzBuilder::new().mtime(0).operating_system(GZIP_SYSTEM);
    let mut packed = gzip.write(Vec::new(), Compression::new(9));
    for (name, path) in files {
        let content = match path {
            Some(path) => fs::read(path)?,
            None => provenance.as_bytes().to_vec(),
        };
        packed.write_all(&header(&format!("{folder}/{name}"), content.len())?)?;
        packed.write_all(&content)?;
        packed.write_all(&END[..content.len().next_multiple_of(BLOCK) - content.len()])?;
    }
    packed.write_all(&END)?;
    packed.finish()
}

/// Every file that is packed, by its name in the archive.
fn files(root: &Path) -> io::Result<Vec<(String, Option<PathBuf>)>> {
    let mut waiting: Vec<String> = CONTENTS.iter().map(|name| (*name).to_owned()).collect();
    let mut files = Vec::new();
    while let Some(name) = waiting.pop() {
        let path = root.join(&name);
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_file() {
            files.push((name, Some(path)));
        } else if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                let inner = entry?.file_name();
                let inner = inner.to_str().ok_or_else(|| invalid(&name, "holds a name that is not UTF-8"))?;
                if !is_leftover(inner) {
                    waiting.push(format!("{name}/{inner}"));
                }
            }
        } else {
            return Err(invalid(&name, "is neither a file nor a folder"));
        }
    }
    Ok(files)
}

/// What editors and version control leave beside a file.
fn is_leftover(name: &str) -> bool {
    name.starts_with('.')
        || name.starts_with('#')
        || [".orig", ".rej", "~"].iter().any(|end| name.ends_with(end))
}

/// One file's header in the ustar format.
fn header(path: &str, size: usize) -> io::Result<[u8; BLOCK]> {
    let (prefix, name) =
        split(path).ok_or_else(|| invalid(path, "has a name that is too long for a tar archive"))?;
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, format!("{MODE:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, format!("{MODIFIED:011o}").as_bytes());
    // The sum is taken with blanks in its own place.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(265, b"root");
    put(297, b"root");
    put(329, b"0000000");
    put(337, b"0000000");
    put(345, prefix.as_bytes());
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

/// A path as ustar has it: at most 155 bytes of folders, at most 100 of the rest.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    path.match_indices('/')
        .map(|(at, _)| (&path[..at], &path[at + 1..]))
        .find(|(prefix, name)| prefix.len() <= 155 && name.len() <= 100)
}

fn invalid(name: &str, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("`{name}` {why}"))
}
