//! A child's output, bounded: as lines for the lease holders, or as a log that keeps its head and its tail.

use super::printable::printable;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// One line of output; what is longer is cut and says so.
pub(super) const LINE_BYTES_MAX: usize = 16 * 1024;
/// The log's beginning, kept for good.
const LOG_HEAD_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Half of the log's end: two files of this size take turns.
const LOG_TAIL_HALF_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// How far back `tail` looks.
const TAIL_READ_BYTES_MAX: u64 = 256 * 1024;

/// Bytes in, lines out. A carriage return ends a line too, so that a progress bar is many short lines, not one long.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    partial: Vec<u8>,
    cut: u64,
    /// The last line ended with a carriage return, so a newline that follows at once belongs to it.
    returned: bool,
}

/// A line as it was written: turning it into text is for whom it is told, if it is told.
#[derive(Debug)]
pub(super) struct Line<'a> {
    bytes: &'a [u8],
    cut: u64,
}

impl Line<'_> {
    pub(super) fn text(&self) -> String {
        let mut text = printable(self.bytes);
        if self.cut > 0 {
            text.push_str(&format!(" [+{} bytes]", self.cut));
        }
        text
    }
}

impl Splitter {
    pub(super) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(Line<'_>)) {
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let (text, ends) = match piece.split_last() {
                Some((b'\n' | b'\r', text)) => (text, true),
                _ => (piece, false),
            };
            let nothing_new = text.is_empty() && self.partial.is_empty();
            let belongs_to_the_last = nothing_new && (piece == b"\r" || self.returned);
            if ends && self.partial.is_empty() && text.len() <= LINE_BYTES_MAX {
                // Whole at once, which is nearly always.
                if !belongs_to_the_last {
                    line(Line { bytes: text, cut: 0 });
                }
            } else {
                let kept = text.len().min(LINE_BYTES_MAX - self.partial.len());
                self.partial.extend_from_slice(&text[..kept]);
                self.cut += (text.len() - kept) as u64;
                if ends {
                    self.finish(&mut line);
                }
            }
            self.returned = piece.ends_with(b"\r");
        }
    }

    /// What came without a newline at the end.
    pub(super) fn finish(&mut self, mut line: impl FnMut(Line<'_>)) {
        if !self.partial.is_empty() {
            line(Line { bytes: &self.partial, cut: std::mem::take(&mut self.cut) });
            self.partial.clear();
        }
    }
}

/// `x.log` until it is full, then `x.log.tail`, which moves to `x.log.tail.old` each time it is full.
#[derive(Debug)]
pub(super) struct CappedLog {
    path: PathBuf,
    file: File,
    room: u64,
}

impl CappedLog {
    pub(super) fn begin(path: &Path) -> io::Result<CappedLog> {
        for stale in [tail_path(path), old_tail_path(path)] {
            match std::fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(CappedLog { path: path.to_owned(), file: open_fresh(path)?, room: LOG_HEAD_BYTES_MAX })
    }

    /// Goes on where an earlier tree stopped, under the same bounds for all of them together.
    pub(super) fn go_on(path: &Path) -> io::Result<CappedLog> {
        let newest = [(tail_path(path), LOG_TAIL_HALF_BYTES_MAX), (path.to_owned(), LOG_HEAD_BYTES_MAX)];
        for (newest, bytes_max) in newest {
            match OpenOptions::new().append(true).custom_flags(libc::O_NOFOLLOW).open(newest) {
                Ok(file) => {
                    let room = bytes_max.saturating_sub(file.metadata()?.len());
                    return Ok(CappedLog { path: path.to_owned(), file, room });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        CappedLog::begin(path)
    }

    /// An error (a full disk) loses these bytes and nothing else: the child is not to stop for its log.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.room == 0 {
                self.turn()?;
            }
            let now = bytes.len().min(usize::try_from(self.room).unwrap_or(usize::MAX));
            self.file.write_all(&bytes[..now])?;
            self.room -= now as u64;
            bytes = &bytes[now..];
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let tail = tail_path(&self.path);
        if tail.exists() {
            std::fs::rename(&tail, old_tail_path(&self.path))?;
        }
        self.file = open_fresh(&tail)?;
        self.room = LOG_TAIL_HALF_BYTES_MAX;
        Ok(())
    }
}

fn open_fresh(path: &Path) -> io::Result<File> {
    // No link: where a child can write beside its log it shall not choose what else is written.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

fn tail_path(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".tail");
    PathBuf::from(name)
}

fn old_tail_path(log: &Path) -> PathBuf {
    tail_path(log).with_extension("tail.old")
}

/// The last lines of a log, oldest first; empty when there is none.
pub fn tail(log: &Path, lines: usize) -> Vec<String> {
    let mut text = Vec::new();
    // Newest file first, until there is enough.
    for path in [tail_path(log), old_tail_path(log), log.to_owned()] {
        let mut earlier = last_bytes(&path).unwrap_or_default();
        earlier.append(&mut text);
        text = earlier;
        if text.len() as u64 >= TAIL_READ_BYTES_MAX {
            break;
        }
    }
    let mut all = Vec::new();
    let mut splitter = Splitter::default();
    splitter.push(&text, |line| all.push(line.text()));
    splitter.finish(|line| all.push(line.text()));
    all.split_off(all.len().saturating_sub(lines))
}

fn last_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_READ_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_READ_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let (mut all, mut splitter) = (Vec::new(), Splitter::default());
        for chunk in chunks {
            splitter.push(chunk, |line| all.push(line.text()));
        }
        splitter.finish(|line| all.push(line.text()));
        all
    }

    #[test]
    fn lines_survive_any_cut_and_any_bytes() {
        assert_eq!(lines(&[b"on", b"e\ntwo\n\nthr", b"ee"]), ["one", "two", "", "three"]);
        assert_eq!(lines(&[b"10%\r20%\r\r30%\r\n\r", b"\nend\r", b"\n\n"]), ["10%", "20%", "30%", "end", ""]);
        assert_eq!(lines(&[b"a\xff\x00b\n"]), ["a\u{fffd}b"]);
    }

    #[test]
    fn an_endless_line_is_cut_and_counted() {
        let all = lines(&[&[b'x'; LINE_BYTES_MAX], b"yyy", b"zz\nnext\n"]);
        assert_eq!(all.len(), 2);
        assert!(all[0].ends_with("x [+5 bytes]"), "{}", &all[0][LINE_BYTES_MAX - 1..]);
        assert_eq!(all[1], "next");
    }

    #[test]
    fn a_log_keeps_its_head_and_its_tail() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let mut log = CappedLog::begin(&path).unwrap();
        log.write(b"first\n").unwrap();
        let mebibyte: Vec<u8> = b"middle\n".repeat(150_000);
        for part in 0..50 {
            if part % 7 == 0 {
                log = CappedLog::go_on(&path).unwrap();
            }
            log.write(&mebibyte).unwrap();
        }
        log.write(b"second last\nlast\n").unwrap();
        assert_eq!(tail(&path, 2), ["second last", "last"]);
        assert!(std::fs::read(&path).unwrap().starts_with(b"first\n"));
        let bytes: u64 =
            std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= LOG_HEAD_BYTES_MAX + 2 * LOG_TAIL_HALF_BYTES_MAX);
        assert!(tail(&directory.path().join("none"), 3).is_empty());
    }

    #[test]
    fn a_log_goes_on_where_it_was_left_and_begins_where_there_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        for text in ["one\n", "two\n"] {
            CappedLog::go_on(&path).unwrap().write(text.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        CappedLog::begin(&path).unwrap().write(b"three\n").unwrap();
        assert_eq!(tail(&path, 5), ["three"]);
    }

    #[test]
    fn a_log_is_not_written_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (path, outside) = (directory.path().join("x.log"), directory.path().join("outside"));
        std::fs::write(&outside, "kept").unwrap();
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        assert!(CappedLog::begin(&path).is_err() && CappedLog::go_on(&path).is_err());
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "kept");
    }
}
