//! What a file is, by its content, as makepkg asks `file` and bsdtar; and its bytes without compression.

use super::budget::{Budget, Metered};
use super::tar;
use super::zstd::Zstd;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

const SNIFF_BYTES: usize = 512;
/// Of an xz dictionary, in KiB. `xz -9` makes 64 MiB.
const XZ_MEMORY_KIB_MAX: u32 = 512 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Format {
    Tar(Compression),
    Zip,
    /// One file, compressed.
    Single(Compression),
    /// Something that makepkg unpacks and we do not.
    Foreign(&'static str),
    /// No archive: the file itself is what is wanted.
    Plain,
}

/// Beginnings of files. What bsdtar knows beyond what is unpacked here, and compressions that a tar may lie in.
const FOREIGN: [(&[u8], &str); 10] = [
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"xar!", "a xar archive"),
    (b"070701", "a cpio archive"),
    (b"070702", "a cpio archive"),
    (b"070707", "a cpio archive"),
    (b"\xc7\x71", "a cpio archive"),
    (b"!<arch>\n", "an ar archive, such as a .deb"),
    (b"\xed\xab\xee\xdb", "an RPM package"),
    (b"MSCF", "a cabinet file"),
];
const FOREIGN_COMPRESSION: [(&[u8], &str); 5] = [
    (b"LZIP", "compressed by lzip"),
    (b"\x04\x22\x4d\x18", "compressed by lz4"),
    (b"\x1f\x9d", "compressed by compress"),
    (b"\x89LZO\0", "compressed by lzop"),
    (b"LRZI", "compressed by lrzip"),
];

/// What the file of this name is.
pub fn format(name: &str, path: &Path, budget: &Budget) -> io::Result<Format> {
    let mut head = Vec::new();
    File::open(path)?.take(SNIFF_BYTES as u64).read_to_end(&mut head)?;
    let begins = |magic: &[u8]| head.starts_with(magic);
    if begins(b"PK\x03\x04") || begins(b"PK\x05\x06") {
        return Ok(Format::Zip);
    }
    if tar::is_tar(&head) {
        return Ok(Format::Tar(Compression::None));
    }
    if let Some((_, what)) = FOREIGN.iter().find(|(magic, _)| begins(magic)) {
        return Ok(Format::Foreign(what));
    }
    if let Some((_, what)) = FOREIGN_COMPRESSION.iter().find(|(magic, _)| begins(magic)) {
        // A single file in one of these stays as it is, as with makepkg, and there is no looking for a tar in it.
        let is_tar = name.contains(".tar.") || name.ends_with(".taz") || name.ends_with(".tlz");
        return Ok(if is_tar { Format::Foreign(what) } else { Format::Plain });
    }
    let compression = match () {
        () if begins(b"\x1f\x8b") => Compression::Gzip,
        () if begins(b"BZh") => Compression::Bzip2,
        () if begins(b"\xfd7zXZ\0") => Compression::Xz,
        () if begins(b"\x28\xb5\x2f\xfd") || is_skippable(&head) => Compression::Zstd,
        () => return Ok(Format::Plain),
    };
    let mut inner = Vec::new();
    // What cannot be read is no tar; if it should be unpacked all the same, that will say why it cannot.
    let sniffed = open(path, compression, budget)?.take(SNIFF_BYTES as u64).read_to_end(&mut inner);
    if sniffed.is_ok() && tar::is_tar(&inner) {
        return Ok(Format::Tar(compression));
    }
    Ok(if extensions(compression).iter().any(|e| has_extension(name, e)) {
        Format::Single(compression)
    } else {
        Format::Plain
    })
}

/// A frame of zstd that holds no data may come first.
fn is_skippable(head: &[u8]) -> bool {
    matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, own)| !stem.is_empty() && own == extension)
}

/// makepkg unpacks a single compressed file only if it is named so.
fn extensions(compression: Compression) -> &'static [&'static str] {
    match compression {
        Compression::None => &[],
        Compression::Gzip => &["gz", "z", "Z"],
        Compression::Bzip2 => &["bz2", "bz"],
        Compression::Xz => &["xz"],
        Compression::Zstd => &["zst"],
    }
}

/// The file's content, every byte of it counted.
pub fn open<'a>(
    path: &Path,
    compression: Compression,
    budget: &'a Budget,
) -> io::Result<Metered<'a, Box<dyn Read>>> {
    let mut file = BufReader::new(File::open(path)?);
    file.rewind()?;
    let inner: Box<dyn Read> = match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, XZ_MEMORY_KIB_MAX)),
        Compression::Zstd => Box::new(Zstd::new(file)),
    };
    Ok(Metered::new(inner, budget))
}
