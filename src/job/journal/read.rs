//! Journals of an earlier life. What they say is bounded before it is read; a torn last line is cut; a file that says
//! nothing sensible is set aside and never fatal.

use super::line::{self, Line};
use super::write::path_of;
use super::{
    BROKEN_KEPT_MAX, BROKEN_SUFFIX, End, FILE_BYTES_MAX, FRAME_BYTES_MAX, Head, JOURNAL_EVENTS_MAX,
    JOURNALS_BYTES_MAX, JOURNALS_KEPT_MAX, KEPT_FOR, SUFFIX,
};
use crate::job::stream::{EventLog, Numbered};
use crate::wire::fleet::now_ms;
use crate::wire::job::{JobEvent, JobId, JobState};
use crate::wire::{Code, Failure};
use serde_json::Value;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// No job has as many events: a number above comes from a damaged file.
const SEQ_MAX: u64 = 1 << 53;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("reading the journal `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the journal is longer than the {FILE_BYTES_MAX} bytes that one may have")]
    TooLong,
    #[error("the journal does not begin with its job")]
    NoHead,
    #[error("the journal is of another job")]
    Foreign,
    #[error("line {0} of the journal does not read")]
    Line(usize),
    #[error("the journal has no end")]
    NoEnd,
}

/// A journal as it lies there.
#[derive(Debug)]
pub struct Parsed {
    pub head: Head,
    pub events: Vec<Numbered>,
    /// The number after the last event it knows of.
    pub next: u64,
    pub end: Option<End>,
    /// Bytes that are whole lines: what follows was torn.
    pub whole: usize,
}

/// Everything that a journal of an ended job knows.
#[derive(Debug)]
pub struct Loaded {
    pub log: EventLog,
    pub result: Option<Value>,
}

/// An ended job of an earlier life, its events still on the disk.
#[derive(Debug)]
pub struct Found {
    pub head: Head,
    pub end: End,
    pub bytes: u64,
}

/// Reads a journal's bytes. Pure, so that it can be fed anything.
pub fn parse(bytes: &[u8]) -> Result<Parsed, ReadError> {
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(ReadError::TooLong);
    }
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
    let head = match lines.next().and_then(|(_, line)| whole_line(line)) {
        Some(Line::Job(head)) => head,
        _ => return Err(ReadError::NoHead),
    };
    let mut at = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut parsed = Parsed { head, events: Vec::new(), next: 0, end: None, whole: at };
    for (index, line) in lines {
        at += line.len();
        let read = match whole_line(line) {
            // After the end, and twice the beginning, there is nothing that we wrote.
            Some(_) if parsed.end.is_some() => false,
            Some(line) => parsed.take(line),
            None => is_newer(line),
        };
        match read {
            true => parsed.whole = at,
            // The last line may be torn, by a crash in the middle of it.
            false if at == bytes.len() => break,
            false => return Err(ReadError::Line(index + 1)),
        }
    }
    Ok(parsed)
}

fn whole_line(line: &[u8]) -> Option<Line> {
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

/// A line of a kind that this version does not know.
fn is_newer(line: &[u8]) -> bool {
    const KINDS: [&str; 5] = ["job", "event", "tokens", "left_out", "end"];
    let Some(line) = line.strip_suffix(b"\n") else { return false };
    let read = serde_json::from_slice::<Value>(line).ok();
    let Some(fields) = read.as_ref().and_then(Value::as_object) else { return false };
    fields.len() == 1 && fields.keys().all(|kind| !KINDS.contains(&kind.as_str()))
}

impl Parsed {
    /// Takes a line in; false if it contradicts those before, and then nothing of it is taken.
    fn take(&mut self, line: Line) -> bool {
        let (events, next) = (self.events.len(), self.next);
        let is_taken = self.try_take(line);
        if !is_taken {
            self.events.truncate(events);
            self.next = next;
            self.end = None;
        }
        is_taken
    }

    fn try_take(&mut self, line: Line) -> bool {
        match line {
            Line::Job(_) => false,
            Line::Event(line::Event { seq, overtaken, event }) => match seq.checked_sub(overtaken) {
                Some(first) => self.push(Numbered { first, seq, event }),
                None => false,
            },
            Line::Tokens(run) => {
                let mut rest = run.text.as_str();
                for (offset, length) in (0..).zip(run.lengths) {
                    let Some((text, after)) = rest.split_at_checked(length) else { return false };
                    let (Some(seq), Some(index)) =
                        (run.seq.checked_add(offset), run.index.checked_add(offset))
                    else {
                        return false;
                    };
                    let event = JobEvent::Token { index, text: text.to_owned() };
                    if !self.push(Numbered { first: seq, seq, event }) {
                        return false;
                    }
                    rest = after;
                }
                rest.is_empty()
            }
            Line::LeftOut(gap) => {
                let after = gap.seq.saturating_add(gap.count);
                self.next = self.next.max(after);
                after < SEQ_MAX
            }
            Line::End(end) => {
                let is_end = end.state.has_ended() && end.events >= self.next && end.events < SEQ_MAX;
                self.next = end.events;
                self.end = Some(end);
                is_end
            }
        }
    }

    fn push(&mut self, event: Numbered) -> bool {
        // The last words come on top of the limit.
        let has_room = (self.events.len() as u64) < JOURNAL_EVENTS_MAX + 2;
        if event.first < self.next || event.seq >= SEQ_MAX || !has_room {
            return false;
        }
        self.next = event.seq + 1;
        self.events.push(event);
        true
    }
}

fn open(path: &Path) -> io::Result<File> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let file = File::options().read(true).write(true).custom_flags(no_follow).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn read_whole(path: &Path) -> Result<(File, Parsed), ReadError> {
    let failed = |source| ReadError::Io { path: path.to_owned(), source };
    let file = open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    (&file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok((file, parse(&bytes)?))
}

/// The events and the result of a job that has ended.
pub fn load(dir: &Path, id: JobId) -> Result<Loaded, ReadError> {
    let (_, parsed) = read_whole(&path_of(dir, id))?;
    if parsed.head.job_id != id {
        return Err(ReadError::Foreign);
    }
    let end = parsed.end.ok_or(ReadError::NoEnd)?;
    let result = parsed.events.iter().rev().find_map(|numbered| match &numbered.event {
        JobEvent::Result(value) => Some(value.clone()),
        _ => None,
    });
    Ok(Loaded { log: EventLog::ended(parsed.events, parsed.next, end.terminator()), result })
}

/// The journals of a folder, the oldest first. Those without an end get one; those too old or too many go.
pub fn restore(dir: &Path) -> io::Result<Vec<Found>> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut ids: Vec<JobId> = Vec::new();
    let mut broken = Vec::new();
    for entry in std::fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        match (path.extension().and_then(|suffix| suffix.to_str()), id) {
            (Some(SUFFIX), Some(id)) => ids.push(id),
            (Some(BROKEN_SUFFIX), Some(_)) => broken.push(path),
            _ => {}
        }
    }
    // Ids sort by age.
    ids.sort_unstable();
    let mut found = Vec::new();
    let mut bytes = 0;
    for id in ids.into_iter().rev() {
        let path = path_of(dir, id);
        if found.len() >= JOURNALS_KEPT_MAX || bytes > JOURNALS_BYTES_MAX {
            remove(&path);
            continue;
        }
        match find(&path, id) {
            Ok(job) if now_ms().saturating_sub(job.end.at) > KEPT_FOR.as_millis() as u64 => remove(&path),
            Ok(job) => {
                bytes += job.bytes;
                found.push(job);
            }
            Err(error) => {
                let error = crate::wire::failure::chain(&error);
                tracing::warn!(path = %path.display(), error, "a job's journal was set aside");
                let aside = path.with_extension(BROKEN_SUFFIX);
                match std::fs::rename(&path, &aside) {
                    Ok(()) => broken.push(aside),
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "a journal stays where it is")
                    }
                }
            }
        }
    }
    broken.sort_unstable();
    let too_many = broken.len().saturating_sub(BROKEN_KEPT_MAX);
    broken[..too_many].iter().for_each(|path| remove(path));
    found.sort_by_key(|job| (job.head.created_at, job.head.number));
    Ok(found)
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "an old journal could not be removed");
    }
}

/// A job by the first and the last line of its journal: what lies between is read when somebody asks.
fn find(path: &Path, id: JobId) -> Result<Found, ReadError> {
    let failed = |source| ReadError::Io { path: path.to_owned(), source };
    let mut file = open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(ReadError::TooLong);
    }
    let piece = |from, file: &mut File| {
        let mut piece = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        file.take(FRAME_BYTES_MAX as u64).read_to_end(&mut piece)?;
        Ok(piece)
    };
    let front = piece(0, &mut file).map_err(failed)?;
    let back = piece(bytes.saturating_sub(FRAME_BYTES_MAX as u64), &mut file).map_err(failed)?;
    let head = match front.split_inclusive(|byte| *byte == b'\n').next().and_then(whole_line) {
        Some(Line::Job(head)) if head.job_id == id => head,
        Some(Line::Job(_)) => return Err(ReadError::Foreign),
        _ => return Err(ReadError::NoHead),
    };
    let last = back.split_inclusive(|byte| *byte == b'\n').next_back().and_then(whole_line);
    match last {
        Some(Line::End(end)) if end.state.has_ended() => Ok(Found { head, end, bytes }),
        _ => interrupted(path),
    }
}

/// A job whose daemon died: its journal gets the end that is true.
fn interrupted(path: &Path) -> Result<Found, ReadError> {
    let failed = |source| ReadError::Io { path: path.to_owned(), source };
    let (mut file, parsed) = read_whole(path)?;
    file.set_len(parsed.whole as u64).map_err(failed)?;
    if let Some(end) = parsed.end {
        return Ok(Found { head: parsed.head, end, bytes: parsed.whole as u64 });
    }
    let failure =
        Failure::new(Code::ShuttingDown, "the server that ran this job died before the job had ended")
            .with(serde_json::json!({ "state": JobState::Interrupted }));
    let end = End {
        state: JobState::Interrupted,
        at: now_ms(),
        events: parsed.next + 1,
        error: Some(failure.clone()),
        receipt: None,
    };
    let error = line::Event { seq: parsed.next, overtaken: 0, event: JobEvent::Error(failure) };
    let mut lines = Vec::new();
    for line in [Line::Event(error), Line::End(end.clone())] {
        serde_json::to_writer(&mut lines, &line).expect("our own words have string keys and no numbers");
        lines.push(b'\n');
    }
    let bytes = (parsed.whole + lines.len()) as u64;
    let written =
        file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(&lines)).and_then(|()| file.sync_all());
    written.map_err(failed)?;
    Ok(Found { head: parsed.head, end, bytes })
}
