//! A file on its way: its bytes, in any order, and beside them a journal of which are there.
//!
//! The journal is text, a line each: first what is fetched (`{"size":…,"tag":…}`), then every run of bytes that was written
//! (`{"at":…,"length":…,"crc":…}`). A line that was torn, and bytes that a power cut has lost, cost a run that is fetched
//! again: what a run's checksum says is believed, not what the journal says. The file's own sum decides in the end.

use super::DownloadError;
use super::disk::Disk;
use super::plan::{Claim, Plan};
use bytes::Bytes;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// What a file on its way is called: the name it will have, and one of these.
pub const PART: &str = "rbee-part";
pub const JOURNAL: &str = "rbee-journal";
/// The longest run of bytes that one line of the journal tells of: what a kill may cost a connection. Runs end at multiples
/// of it, so that all but the first and the last of a connection's are whole blocks of a disk.
pub const RUN_BYTES_MAX: usize = 512 << 10;
/// Bytes that were just written and are next to be hashed, kept so that they need not be read again.
const FRESH_BYTES_MAX: usize = 4 << 20;
/// A terabyte in runs of a mebibyte, and then some.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;
const LINE_BYTES_MAX: u64 = 4 << 10;
/// A follower looks whether it was cancelled at least so often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the bytes are of: a strong tag, and the origin that gave it. Elsewhere it means nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    pub origin: String,
    pub etag: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Head {
    size: Option<u64>,
    tag: Option<Tag>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    at: u64,
    length: u32,
    crc: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Run(Run),
    Head(Head),
}

pub struct Part {
    path: PathBuf,
    disk: Disk,
    state: Mutex<State>,
    grown: Condvar,
    /// Told when bytes that were thought to be here are not.
    pub lost: Notify,
    /// Bytes that have come, written or about to be; for bars.
    pub received: AtomicU64,
    /// Not all of it is of one unbroken answer.
    pub is_patched: AtomicBool,
}

struct State {
    journal: File,
    head: Head,
    plan: Plan,
    runs: BTreeMap<u64, Run>,
    /// Written just now, by where they begin.
    fresh: BTreeMap<u64, Vec<Bytes>>,
    fresh_bytes: usize,
    /// How far the follower has come.
    followed: u64,
    /// Grows when everything starts again: what was written before counts no more.
    generation: u64,
}

/// What a follower finds next.
pub(super) enum Next {
    /// As they came.
    Fresh(Vec<Bytes>),
    /// Read from the file: so many, in the buffer.
    Read(usize),
    /// Everything starts again.
    Again(u64),
    End,
    Cancelled,
}

impl Part {
    /// Opens what an earlier attempt left, or begins. Blocks.
    ///
    /// Without a sum to tell in the end (`is_pinned`), bytes of another time are gone on with only if the server then
    /// named them by a strong tag.
    pub fn open(target: &Path, size: Option<u64>, is_pinned: bool) -> Result<Part, DownloadError> {
        let (path, journal_path) = (beside(target, PART), beside(target, JOURNAL));
        let failed = |path: &Path, source| DownloadError::Write { path: path.to_owned(), source };
        let open = |path: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            // No link that somebody has laid there leads us to another file.
            options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
            options.open(path).map_err(|source| failed(path, source))
        };
        let file = open(&path)?;
        // Where the file system has no locks, the sum decides alone.
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        if locked == Err(rustix::io::Errno::WOULDBLOCK) {
            return Err(DownloadError::Busy(path));
        }
        let journal = open(&journal_path)?;
        let length = file.metadata().map_err(|source| failed(&path, source))?.len();
        let (mut head, runs) = read(&journal, length).map_err(|source| failed(&journal_path, source))?;
        let is_other = matches!((size, head.size), (Some(size), Some(noted)) if size != noted);
        let is_unknown = !is_pinned && head.tag.is_none();
        let mut plan = Plan::new(size.or(head.size));
        let mut kept = BTreeMap::new();
        if is_other || is_unknown {
            head = Head { size, tag: None };
            plan = Plan::new(size);
        } else {
            let end = plan.total.unwrap_or(u64::MAX);
            // What was written later is what lies there.
            for run in runs.into_iter().rev() {
                let range = run.at..run.at + u64::from(run.length);
                if range.end <= end && plan.add(range) {
                    kept.insert(run.at, run);
                }
            }
        }
        let is_new = is_other || is_unknown || head.size != plan.total;
        head.size = plan.total;
        let received = AtomicU64::new(plan.bytes());
        let disk = Disk::new(file, &path);
        let state = State {
            journal,
            head,
            plan,
            runs: kept,
            fresh: BTreeMap::new(),
            fresh_bytes: 0,
            followed: 0,
            generation: 0,
        };
        let part = Part {
            path,
            disk,
            state: Mutex::new(state),
            grown: Condvar::new(),
            lost: Notify::new(),
            is_patched: AtomicBool::new(received.load(Ordering::Relaxed) > 0),
            received,
        };
        let ready = if is_new { part.rewrite() } else { part.go_on() };
        ready.map_err(|source| failed(&journal_path, source))?;
        Ok(part)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are here.
    pub fn bytes(&self) -> u64 {
        self.state().plan.bytes()
    }

    pub fn total(&self) -> Option<u64> {
        self.state().plan.total
    }

    pub fn tag(&self) -> Option<Tag> {
        self.state().head.tag.clone()
    }

    pub(super) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Does something with the plan; what it says of the length is noted.
    pub(super) fn plan<T>(&self, work: impl FnOnce(&mut Plan) -> T) -> T {
        work(&mut self.state().plan)
    }

    /// A server has told what it has. False if it is not what we have the beginning of.
    pub(super) fn learn(
        &self,
        total: Option<u64>,
        tag: Option<Tag>,
        is_pinned: bool,
    ) -> Result<bool, DownloadError> {
        let mut state = self.state();
        let is_empty = state.plan.bytes() == 0;
        let is_same = match (&state.head.tag, &tag) {
            (Some(ours), Some(theirs)) if ours.origin == theirs.origin => ours == theirs,
            // Another mirror's tag, or none: a sum will tell.
            _ => is_pinned,
        };
        if !is_empty && !is_same && !is_pinned {
            return Ok(false);
        }
        let total = total.or(state.plan.total);
        let tag = tag.or_else(|| state.head.tag.clone().filter(|_| !is_empty));
        if state.head.size != total || state.head.tag != tag {
            state.head = Head { size: total, tag };
            state.plan.total = total;
            let line = Line::Head(state.head.clone());
            self.note(&mut state, &line)?;
        }
        Ok(true)
    }

    /// What came without a length has ended.
    pub(super) fn end_at(&self, total: u64) {
        let mut state = self.state();
        state.plan.total = Some(total);
        self.grown.notify_all();
    }

    /// Writes a run of bytes. Blocks. Bytes of an earlier beginning are dropped.
    pub(super) fn write(&self, at: u64, bytes: Vec<Bytes>, generation: u64) -> Result<(), DownloadError> {
        let mut crc = crc32fast::Hasher::new();
        let mut length = 0u64;
        for piece in &bytes {
            crc.update(piece);
            length += piece.len() as u64;
        }
        self.disk.write(at, &bytes, self.total()).map_err(|source| self.failed(source))?;
        let run = Run { at, length: length as u32, crc: crc.finalize() };
        let mut state = self.state();
        if state.generation == generation && state.plan.add(at..at + length) {
            state.runs.insert(at, run);
            self.note(&mut state, &Line::Run(run))?;
            let is_next = at >= state.followed && at - state.followed < FRESH_BYTES_MAX as u64;
            if is_next && state.fresh_bytes + length as usize <= FRESH_BYTES_MAX {
                state.fresh_bytes += length as usize;
                state.fresh.insert(at, bytes);
            }
            self.grown.notify_all();
        }
        Ok(())
    }

    fn note(&self, state: &mut State, line: &Line) -> Result<(), DownloadError> {
        let mut text = serde_json::to_vec(line).expect("numbers and text are JSON");
        text.push(b'\n');
        state.journal.write_all(&text).map_err(|source| self.failed(source))
    }

    /// The bytes that come after `at`, as soon as they are here and are what was written. Blocks.
    pub(super) fn follow(
        &self,
        at: u64,
        generation: u64,
        buffer: &mut Vec<u8>,
        is_cancelled: impl Fn() -> bool,
    ) -> io::Result<Next> {
        let mut state = self.state();
        state.followed = at;
        loop {
            if state.generation != generation {
                return Ok(Next::Again(state.generation));
            }
            if state.plan.total == Some(at) {
                return Ok(Next::End);
            }
            if let Some(bytes) = state.fresh.remove(&at) {
                state.fresh_bytes -= bytes.iter().map(Bytes::len).sum::<usize>();
                return Ok(Next::Fresh(bytes));
            }
            if let Some(run) = state.runs.get(&at).copied() {
                drop(state);
                let length = run.length as usize;
                if buffer.len() < length {
                    buffer.resize(length, 0);
                }
                let read = read_at(self.disk.file(), at, &mut buffer[..length])?;
                if read == length && crc32fast::hash(&buffer[..length]) == run.crc {
                    return Ok(Next::Read(length));
                }
                state = self.state();
                if state.generation == generation && state.runs.get(&at) == Some(&run) {
                    state.runs.remove(&at);
                    state.plan.lose(at..at + u64::from(run.length));
                    self.received.fetch_sub(u64::from(run.length), Ordering::Relaxed);
                    self.lost.notify_one();
                }
                continue;
            }
            if is_cancelled() {
                return Ok(Next::Cancelled);
            }
            let waited = self.grown.wait_timeout(state, LOOK_EVERY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Starts again from nothing. Nobody may be writing. Blocks.
    pub(super) fn restart(&self) -> Result<(), DownloadError> {
        let mut state = self.state();
        state.generation += 1;
        state.runs.clear();
        state.fresh.clear();
        (state.fresh_bytes, state.followed) = (0, 0);
        let size = state.head.size;
        state.plan = Plan::new(size);
        state.head.tag = None;
        self.received.store(0, Ordering::Relaxed);
        self.is_patched.store(false, Ordering::Relaxed);
        self.disk.file().set_len(0).map_err(|source| self.failed(source))?;
        drop(state);
        self.grown.notify_all();
        self.rewrite().map_err(|source| self.failed(source))
    }

    /// Lines come after those that are there; a torn one ends here.
    fn go_on(&self) -> io::Result<()> {
        let mut state = self.state();
        state.journal.seek(SeekFrom::End(0))?;
        state.journal.write_all(b"\n")
    }

    /// The journal as it should be.
    fn rewrite(&self) -> io::Result<()> {
        let mut state = self.state();
        let mut text = Vec::new();
        let lines =
            [Line::Head(state.head.clone())].into_iter().chain(state.runs.values().copied().map(Line::Run));
        for line in lines {
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
        }
        state.journal.set_len(0)?;
        state.journal.seek(SeekFrom::Start(0))?;
        state.journal.write_all(&text)
    }

    /// Makes the bytes durable and gives them their name. The caller has verified them. Blocks.
    ///
    /// A sync that failed may have lost any of them, and a second one would not tell: nothing is gone on with then.
    pub fn publish(&self, target: &Path) -> io::Result<()> {
        self.disk.file().sync_all().inspect_err(|_| self.remove())?;
        std::fs::rename(&self.path, target)?;
        if let Some(folder) = target.parent() {
            File::open(folder)?.sync_all()?;
        }
        let _ = std::fs::remove_file(journal_of(&self.path));
        Ok(())
    }

    pub fn remove(&self) {
        // What cannot be removed is overwritten by the next attempt.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(journal_of(&self.path));
    }

    /// Takes away the trace of an attempt that brought nothing.
    pub fn remove_if_empty(&self) {
        if self.bytes() == 0 {
            self.remove();
        }
    }

    pub(super) fn release(&self, claim: Claim) {
        self.state().plan.release(claim);
    }

    pub(super) fn failed(&self, source: io::Error) -> DownloadError {
        DownloadError::Write { path: self.path.clone(), source }
    }
}

fn beside(target: &Path, extension: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    target.with_file_name(name)
}

fn journal_of(part: &Path) -> PathBuf {
    part.with_extension(JOURNAL)
}

/// What the journal tells of a file of `length` bytes. Lines that say nothing, the torn last one too, are passed over.
fn read(journal: &File, length: u64) -> io::Result<(Head, Vec<Run>)> {
    let mut head = Head::default();
    let mut runs = Vec::new();
    if journal.metadata()?.len() > JOURNAL_BYTES_MAX {
        return Ok((head, runs));
    }
    let mut reader = BufReader::new(journal);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = io::Read::take(&mut reader, LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if count == 0 {
            return Ok((head, runs));
        }
        match serde_json::from_slice(&line) {
            Ok(Line::Run(run)) => {
                let end = run.at.checked_add(run.length.into());
                let is_run = run.length > 0 && run.length as usize <= RUN_BYTES_MAX;
                if is_run && end.is_some_and(|end| end <= length) {
                    runs.push(run);
                }
            }
            Ok(Line::Head(told)) => head = told,
            Err(_) => {}
        }
    }
}

/// As many bytes as there are, `bytes.len()` at most.
fn read_at(file: &File, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < bytes.len() {
        match rustix::io::pread(file, &mut bytes[have..], at + have as u64) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(have)
}

/// The bytes that were already fetched of what will be called `target`, as far as the journal knows. For narration and
/// preflights.
pub fn bytes_of(target: &Path) -> u64 {
    let Ok(journal) = File::open(beside(target, JOURNAL)) else { return 0 };
    let length = std::fs::metadata(beside(target, PART)).map_or(0, |meta| meta.len());
    let Ok((_, runs)) = read(&journal, length) else { return 0 };
    let mut plan = Plan::default();
    runs.into_iter().for_each(|run| {
        plan.add(run.at..run.at + u64::from(run.length));
    });
    plan.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    const SIZE: u64 = 100;

    fn open(folder: &Path) -> Part {
        Part::open(&folder.join("m"), Some(SIZE), true).unwrap()
    }

    fn bytes(range: Range<u8>) -> Vec<Bytes> {
        vec![range.collect::<Vec<u8>>().into()]
    }

    fn all(part: &Part) -> (Vec<u8>, Next) {
        let (mut whole, mut buffer) = (Vec::new(), Vec::new());
        loop {
            match part.follow(whole.len() as u64, part.generation(), &mut buffer, || true).unwrap() {
                Next::Fresh(more) => whole.extend(more.concat()),
                Next::Read(length) => whole.extend(&buffer[..length]),
                other => return (whole, other),
            }
        }
    }

    #[test]
    fn bytes_in_any_order_are_followed_in_theirs_and_survive_a_new_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path());
        part.write(50, bytes(50..100), 0).unwrap();
        assert!(matches!(all(&part), (have, Next::Cancelled) if have.is_empty()));
        part.write(0, bytes(0..20), 0).unwrap();
        drop(part);
        let part = open(folder.path());
        assert_eq!((part.bytes(), bytes_of(&folder.path().join("m"))), (70, 70));
        assert_eq!(part.plan(|plan| plan.claim(100)).unwrap().1, 20..50);
        part.write(20, bytes(20..50), 0).unwrap();
        assert!(matches!(all(&part), (have, Next::End) if have == (0..100).collect::<Vec<u8>>()));
        part.publish(&folder.path().join("m")).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn what_the_disk_lost_and_a_torn_line_are_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path());
        part.write(0, bytes(0..50), 0).unwrap();
        part.write(50, bytes(50..100), 0).unwrap();
        part.disk.write(3, &bytes(7..8), None).unwrap();
        let journal = journal_of(part.path());
        drop(part);
        let text = std::fs::read(&journal).unwrap();
        std::fs::write(&journal, &text[..text.len() - 5]).unwrap();
        let part = open(folder.path());
        assert_eq!(part.bytes(), 50);
        assert!(matches!(all(&part), (have, Next::Cancelled) if have.is_empty()));
        assert_eq!(part.bytes(), 0);
    }

    #[test]
    fn one_at_a_time_and_nothing_of_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let part = open(folder.path());
        assert!(matches!(Part::open(&folder.path().join("m"), None, true), Err(DownloadError::Busy(_))));
        part.write(0, bytes(0..50), 0).unwrap();
        part.restart().unwrap();
        part.write(0, bytes(0..50), 0).unwrap();
        assert_eq!(part.bytes(), 0, "a late write of the first beginning");
        part.write(0, bytes(0..50), 1).unwrap();
        drop(part);
        assert_eq!(Part::open(&folder.path().join("m"), Some(SIZE + 1), true).unwrap().bytes(), 0);
        let part = open(folder.path());
        part.write(0, bytes(0..50), 0).unwrap();
        drop(part);
        assert_eq!(
            Part::open(&folder.path().join("m"), None, false).unwrap().bytes(),
            0,
            "no tag and no sum"
        );
    }
}
