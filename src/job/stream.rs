//! A job's events: ordered, numbered from 0, bounded in memory, replayable by any number of readers. Writing never waits:
//! a reader that falls further behind than what is kept is told how much it missed.

use crate::wire::job::{JobEvent, Terminator};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// Events a job keeps for readers.
pub const EVENTS_KEPT_MAX: usize = 65_536;
/// Roughly the memory those may take.
pub const EVENT_BYTES_KEPT_MAX: usize = 8 << 20;

#[derive(Debug)]
pub struct EventLog {
    kept: Arc<Mutex<Kept>>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<(JobEvent, usize)>,
    bytes: usize,
    /// The number of the first event kept.
    first: u64,
    terminator: Option<Terminator>,
}

impl Kept {
    fn next_seq(&self) -> u64 {
        self.first + self.events.len() as u64
    }
}

impl Default for EventLog {
    fn default() -> Self {
        EventLog { kept: Arc::default(), changed: watch::Sender::new(()) }
    }
}

/// What a reader sees next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Event(u64, JobEvent),
    /// So many events are no longer kept.
    Missed(u64),
    End(Terminator),
}

impl EventLog {
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
        kept.bytes += size;
        kept.events.push_back((event, size));
        while kept.events.len() > EVENTS_KEPT_MAX || kept.bytes > EVENT_BYTES_KEPT_MAX {
            let Some((_, size)) = kept.events.pop_front() else { break };
            kept.bytes -= size;
            kept.first += 1;
        }
        drop(kept);
        self.changed.send_replace(());
    }

    pub fn end(&self, terminator: Terminator) {
        self.kept().terminator.get_or_insert(terminator);
        self.changed.send_replace(());
    }

    pub fn next_seq(&self) -> u64 {
        self.kept().next_seq()
    }

    pub fn reader(&self, from: u64) -> Reader {
        Reader { kept: self.kept.clone(), changed: self.changed.subscribe(), at: from }
    }
}

#[derive(Debug)]
pub struct Reader {
    kept: Arc<Mutex<Kept>>,
    changed: watch::Receiver<()>,
    at: u64,
}

impl Reader {
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

    fn ready(&mut self) -> Option<Step> {
        let kept = self.kept.lock().expect("no holder of the log panics");
        if self.at < kept.first {
            let missed = kept.first - self.at;
            self.at = kept.first;
            return Some(Step::Missed(missed));
        }
        // A reader may ask for a number that has not been reached; it waits for the first one there is.
        if let Some((event, _)) = kept.events.get((self.at - kept.first) as usize) {
            self.at += 1;
            return Some(Step::Event(self.at - 1, event.clone()));
        }
        kept.terminator.clone().map(Step::End)
    }
}

fn size_of(event: &JobEvent) -> usize {
    const OVERHEAD: usize = 64;
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
        assert_eq!(reader.next().await, Step::Missed(7));
        assert_eq!(reader.next().await, Step::Event(10, token(10)));
    }

    #[test]
    fn memory_is_bounded_whatever_is_pushed() {
        let log = EventLog::default();
        for _ in 0..64 {
            log.push(JobEvent::Log { stream: "stdout".into(), line: "x".repeat(1 << 20) });
        }
        assert!(log.kept().bytes <= EVENT_BYTES_KEPT_MAX);
    }
}
