//! Where a part's bytes go. Large files are written past the page cache: the copy into it and the long sync at the end
//! would take longer than the bytes took to come, and a model would push out what others use. A disk that is slow at that,
//! as one with arms to move is, gets the rest through the cache, in the kernel's own order; so does every run that is not
//! whole, and the kernel keeps both views of a file the same.

use bytes::Bytes;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// From this size on the page cache is passed by: smaller models are wanted at once, from memory.
pub const DIRECT_BYTES_MIN: u64 = 1 << 30;
/// What disks and file systems ask of offsets, lengths and addresses, at most.
const ALIGNMENT: usize = 4 << 10;

/// A disk is judged when it has taken this much.
const TRIAL_BYTES: u64 = 16 << 20;
/// Bytes a second and writer. Less, and the kernel's order of writing is worth a copy.
const DIRECT_RATE_MIN: u64 = 40_000_000;

pub(super) struct Disk {
    file: File,
    path: PathBuf,
    /// The same file, opened to be written past the page cache; looked for when its length is known.
    direct: OnceLock<Option<File>>,
    /// Neither refused nor slow so far.
    is_direct: AtomicBool,
    /// Written so, and how long that took.
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Disk {
    pub fn new(file: File, path: &Path) -> Disk {
        Disk {
            file,
            path: path.to_owned(),
            direct: OnceLock::new(),
            is_direct: AtomicBool::new(true),
            bytes: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes all pieces, one after the other, from `at` on. `size` is what the file will have, if that is known. Blocks.
    pub fn write(&self, at: u64, pieces: &[Bytes], size: Option<u64>) -> io::Result<()> {
        let length: usize = pieces.iter().map(Bytes::len).sum();
        let is_whole = at.is_multiple_of(ALIGNMENT as u64) && length.is_multiple_of(ALIGNMENT);
        let is_large = size.is_some_and(|size| size >= DIRECT_BYTES_MIN);
        if is_large
            && is_whole
            && self.is_direct.load(Ordering::Relaxed)
            && let Some(direct) = self.direct.get_or_init(|| open_direct(&self.path))
        {
            let begun = Instant::now();
            match write_aligned(direct, at, pieces, length) {
                Ok(()) => {
                    self.judge(length as u64, begun.elapsed().as_nanos() as u64);
                    return Ok(());
                }
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                    self.is_direct.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error.into()),
            }
        }
        write_through_cache(&self.file, at, pieces)
    }

    fn judge(&self, bytes: u64, nanoseconds: u64) {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let nanoseconds = self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed) + nanoseconds;
        let rate = u128::from(bytes) * 1_000_000_000 / u128::from(nanoseconds.max(1));
        if bytes >= TRIAL_BYTES && rate < u128::from(DIRECT_RATE_MIN) {
            self.is_direct.store(false, Ordering::Relaxed);
        }
    }
}

thread_local! {
    /// Bytes on their way to a disk that wants them aligned.
    static ALIGNED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn write_aligned(file: &File, at: u64, pieces: &[Bytes], length: usize) -> rustix::io::Result<()> {
    ALIGNED.with_borrow_mut(|buffer| {
        if buffer.len() < length + ALIGNMENT {
            buffer.resize(length + ALIGNMENT, 0);
        }
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let aligned = &mut buffer[start..start + length];
        let mut rest = &mut *aligned;
        for piece in pieces {
            let (here, after) = rest.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            rest = after;
        }
        let mut done = 0;
        while done < length {
            match rustix::io::pwrite(file, &aligned[done..], at + done as u64) {
                Ok(0) => return Err(rustix::io::Errno::IO),
                Ok(written) => done += written,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })
}

fn write_through_cache(file: &File, at: u64, pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut rest = slices.as_mut_slice();
    let mut at = at;
    while !rest.is_empty() {
        // The system's own limit for one call.
        let count = rest.len().min(1_024);
        match rustix::io::pwritev(file, &rest[..count], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> Option<File> {
    use rustix::fs::OFlags;
    use std::os::unix::fs::OpenOptionsExt;
    let flags = OFlags::DIRECT | OFlags::NOFOLLOW;
    File::options().write(true).custom_flags(flags.bits() as i32).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &Path) -> Option<File> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_and_broken_runs_make_one_file_whichever_way_they_went() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let disk = Disk::new(file, &path);
        let write = |at, pieces: &[Bytes]| disk.write(at, pieces, Some(DIRECT_BYTES_MIN)).unwrap();
        let bytes: Vec<u8> = (0..5 * ALIGNMENT + 17).map(|at| (at % 251) as u8).collect();
        let piece = |from: usize, to: usize| Bytes::copy_from_slice(&bytes[from..to]);
        // Whole, in two pieces; then to the middle of a block, and on from there; the file's end is no whole block.
        write(0, &[piece(0, 100), piece(100, 2 * ALIGNMENT)]);
        write(2 * ALIGNMENT as u64, &[piece(2 * ALIGNMENT, 3 * ALIGNMENT - 5)]);
        write(3 * ALIGNMENT as u64 - 5, &[piece(3 * ALIGNMENT - 5, 4 * ALIGNMENT)]);
        write(4 * ALIGNMENT as u64, &[piece(4 * ALIGNMENT, 5 * ALIGNMENT)]);
        write(5 * ALIGNMENT as u64, &[piece(5 * ALIGNMENT, bytes.len())]);
        assert!(std::fs::read(&path).unwrap() == bytes);
        if !matches!(disk.direct.get(), Some(Some(_))) || !disk.is_direct.load(Ordering::Relaxed) {
            eprintln!("skipped in part: {} takes no direct writes", folder.path().display());
        }
    }

    #[test]
    fn a_slow_disk_is_written_in_the_kernels_order() {
        let file = tempfile::tempfile().unwrap();
        let disk = Disk::new(file, Path::new("/nowhere"));
        disk.judge(TRIAL_BYTES, 1_000_000);
        assert!(disk.is_direct.load(Ordering::Relaxed));
        disk.judge(1, 10_000_000_000);
        assert!(!disk.is_direct.load(Ordering::Relaxed));
    }
}
