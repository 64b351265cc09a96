//! A job's events: ordered, numbered from 0, bounded in memory, replayable by any number of readers. Writing never waits:
//! a reader that falls further behind than what is kept is told which numbers it missed.

use crate::job::journal::Loaded;
use crate::wire::job::{JobEvent, Terminator};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// Events a job keeps for readers.
pub const EVENTS_KEPT_MAX: usize = 16_384;
/// Roughly the memory those may take. The newest event is kept whatever its size: it may be the result.
pub const EVENT_BYTES_KEPT_MAX: usize = 8 << 20;

/// How much a log keeps.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub events: usize,
    pub bytes: usize,
}

impl Default for Room {
    fn default() -> Self {
        Room { events: EVENTS_KEPT_MAX, bytes: EVENT_BYTES_KEPT_MAX }
    }
}

/// A clone is the same log.
#[derive(Debug, Clone)]
pub struct EventLog {
    kept: Arc<Mutex<Kept>>,
    changed: Arc<watch::Sender<()>>,
}

/// An event with its number. One that was read from a journal may stand for several: progress that was overtaken.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbered {
    /// The first number that it stands for.
    pub first: u64,
    pub seq: u64,
    pub event: JobEvent,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<(Numbered, usize)>,
    bytes: usize,
    /// The number of the next event.
    next: u64,
    terminator: Option<Terminator>,
    room: Room,
}

impl Default for EventLog {
    fn default() -> Self {
        EventLog::of(Kept::default())
    }
}

/// What a reader sees next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Event(u64, JobEvent),
    /// So many events from that number on are no longer kept.
    Missed {
        first: u64,
        count: u64,
    },
    End(Terminator),
}

impl EventLog {
    fn of(kept: Kept) -> Self {
        EventLog { kept: Arc::new(Mutex::new(kept)), changed: Arc::new(watch::Sender::new(())) }
    }

    /// A log with less room than most have, or more.
    pub fn with_room(room: Room) -> Self {
        EventLog::of(Kept { room, ..Kept::default() })
    }

    /// The log of a job that has ended, from its journal: numbers may be missing, `next` is the one after the last.
    pub fn ended(events: Vec<Numbered>, next: u64, terminator: Terminator) -> Self {
        let sized = |numbered: Numbered| {
            let size = size_of(&numbered.event);
            (numbered, size)
        };
        let events: VecDeque<(Numbered, usize)> = events.into_iter().map(sized).collect();
        let bytes = events.iter().map(|(_, size)| size).sum();
        let room = Room::default();
        EventLog::of(Kept { events, bytes, next, terminator: Some(terminator), room })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no holder of the log panics")
    }

    /// Adds an event. After the end nothing is added: a terminator is the last line.
    pub fn push(&self, event: JobEvent) {
        let size = size_of(&event);
        let mut kept = self.kept();
        if kept.terminator.is_some() {
            return;
        }
        let seq = kept.next;
        kept.next += 1;
        kept.bytes += size;
        kept.events.push_back((Numbered { first: seq, seq, event }, size));
        while kept.events.len() > 1 && (kept.events.len() > kept.room.events || kept.bytes > kept.room.bytes)
        {
            let Some((_, size)) = kept.events.pop_front() else { break };
            kept.bytes -= size;
        }
        drop(kept);
        self.changed.send_replace(());
    }

    pub fn end(&self, terminator: Terminator) {
        self.kept().terminator.get_or_insert(terminator);
        self.changed.send_replace(());
    }

    pub fn next_seq(&self) -> u64 {
        self.kept().next
    }

    /// Roughly the memory it takes.
    pub fn bytes(&self) -> usize {
        self.kept().bytes
    }

    /// A reader from a number on. Who claims to have seen more than there is gets the last word again, or waits for the
    /// next event there will be.
    pub fn reader(&self, from: u64) -> Reader {
        let kept = self.kept();
        let last = kept.events.back().map(|(last, _)| last).filter(|_| kept.terminator.is_some());
        let is_word = |last: &&Numbered| matches!(last.event, JobEvent::Result(_) | JobEvent::Error(_));
        let at = match last.filter(is_word) {
            Some(last) if from > kept.next => last.first,
            _ => from.min(kept.next),
        };
        drop(kept);
        Reader { log: self.kept.clone(), changed: self.changed.subscribe(), at, _source: None }
    }
}

#[derive(Debug)]
pub struct Reader {
    log: Arc<Mutex<Kept>>,
    changed: watch::Receiver<()>,
    at: u64,
    /// What was read from a journal stays for others as long as somebody reads it.
    _source: Option<Arc<Loaded>>,
}

impl Reader {
    pub fn of(source: Arc<Loaded>, from: u64) -> Self {
        Reader { _source: Some(source.clone()), ..source.log.reader(from) }
    }

    /// The next step, waiting for it where there is none yet. After `End` it is `End` again.
    pub async fn next(&mut self) -> Step {
        loop {
            self.changed.mark_unchanged();
            if let Some(step) = self.ready() {
                return step;
            }
            if self.changed.changed().await.is_err() {
                // The job itself is gone from memory; what it kept went with its last reader's turn.
                return self
                    .ready()
                    .unwrap_or(Step::End(Terminator::Error("the job is no longer kept".into())));
            }
        }
    }

    /// The next step, if there is one yet.
    pub fn ready(&mut self) -> Option<Step> {
        let kept = self.log.lock().expect("no holder of the log panics");
        let at = self.at;
        let next = kept.events.partition_point(|(event, _)| event.seq < at);
        let missed_until = match kept.events.get(next) {
            Some((event, _)) if event.first <= at => {
                self.at = event.seq + 1;
                return Some(Step::Event(event.seq, event.event.clone()));
            }
            Some((event, _)) => event.first,
            None if at < kept.next => kept.next,
            None => return kept.terminator.clone().map(Step::End),
        };
        self.at = missed_until;
        Some(Step::Missed { first: at, count: missed_until - at })
    }
}

/// What an event takes: its place in the queue, whose room doubles when it is full, the heads of its two or three
/// allocations, and its text.
fn size_of(event: &JobEvent) -> usize {
    const OVERHEAD: usize = 2 * std::mem::size_of::<(Numbered, usize)>() + 64;
    OVERHEAD
        + match event {
            JobEvent::Narration { action, message, .. } => action.len() + message.len(),
            JobEvent::Progress { task, label, .. } => task.len() + label.len(),
            JobEvent::Log { stream, line } => stream.len() + line.len(),
            JobEvent::Table { columns, rows } => {
                columns.iter().chain(rows.iter().flatten()).map(|cell| cell.len() + 24).sum()
            }
            JobEvent::Token { text, .. } => text.len(),
            JobEvent::Result(value) => value.to_string().len(),
            JobEvent::Error(failure) => failure.message.len() + failure.details.to_string().len(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(index: u64) -> JobEvent {
        JobEvent::Token { index, text: "x".into() }
    }

    #[tokio::test]
    async fn readers_replay_from_where_they_ask_and_all_see_the_same_end() {
        let log = EventLog::default();
        log.push(token(0));
        let mut early = log.reader(0);
        assert_eq!(early.next().await, Step::Event(0, token(0)));
        let waiting = tokio::spawn(async move { (early.next().await, early.next().await) });
        log.push(token(1));
        log.end(Terminator::Done);
        log.push(token(2));
        assert_eq!(waiting.await.unwrap(), (Step::Event(1, token(1)), Step::End(Terminator::Done)));
        let mut late = log.reader(1);
        assert_eq!(late.next().await, Step::Event(1, token(1)));
        assert_eq!(late.next().await, Step::End(Terminator::Done));
        assert_eq!(log.reader(99).next().await, Step::End(Terminator::Done));
    }

    #[tokio::test]
    async fn a_reader_too_far_behind_is_told_what_it_missed() {
        let log = EventLog::default();
        for index in 0..EVENTS_KEPT_MAX as u64 + 10 {
            log.push(token(index));
        }
        let mut reader = log.reader(3);
        assert_eq!(reader.next().await, Step::Missed { first: 3, count: 7 });
        assert_eq!(reader.next().await, Step::Event(10, token(10)));
    }

    #[test]
    fn memory_is_bounded_whatever_is_pushed() {
        let log = EventLog::default();
        for _ in 0..64 {
            log.push(JobEvent::Log { stream: "stdout".into(), line: "x".repeat(1 << 20) });
        }
        assert!(log.bytes() <= EVENT_BYTES_KEPT_MAX);
    }

    #[tokio::test]
    async fn a_result_larger_than_the_limit_is_kept_as_the_last_word() {
        let log = EventLog::default();
        log.push(token(0));
        let result = JobEvent::Result("x".repeat(EVENT_BYTES_KEPT_MAX + 1).into());
        log.push(result.clone());
        log.end(Terminator::Done);
        let mut reader = log.reader(0);
        assert_eq!(reader.next().await, Step::Missed { first: 0, count: 1 });
        assert_eq!(reader.next().await, Step::Event(1, result));
    }

    #[tokio::test]
    async fn who_has_seen_more_than_there_is_gets_the_last_word_again_or_the_next_event() {
        let log = EventLog::default();
        log.push(token(0));
        let mut early = log.reader(7);
        assert_eq!(early.ready(), None);
        log.push(token(1));
        assert_eq!(early.next().await, Step::Event(1, token(1)));
        log.push(JobEvent::Result(1.into()));
        log.end(Terminator::Done);
        assert_eq!(log.reader(3).next().await, Step::End(Terminator::Done));
        let mut beyond = log.reader(u64::MAX);
        assert_eq!(beyond.next().await, Step::Event(2, JobEvent::Result(1.into())));
        assert_eq!(beyond.next().await, Step::End(Terminator::Done));
    }

    #[tokio::test]
    async fn a_log_with_holes_tells_each_of_them() {
        let numbered = |first, seq| Numbered { first, seq, event: token(seq) };
        let log = EventLog::ended(vec![numbered(0, 0), numbered(1, 4), numbered(7, 7)], 10, Terminator::Done);
        let mut reader = log.reader(0);
        for expected in [
            Step::Event(0, token(0)),
            Step::Event(4, token(4)),
            Step::Missed { first: 5, count: 2 },
            Step::Event(7, token(7)),
            Step::Missed { first: 8, count: 2 },
            Step::End(Terminator::Done),
        ] {
            assert_eq!(reader.next().await, expected);
        }
        assert_eq!(log.reader(2).next().await, Step::Event(4, token(4)), "one that stands for several");
    }
}
