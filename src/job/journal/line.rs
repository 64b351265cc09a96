//! The lines of a journal. A kind of line that a newer version writes is skipped by this one, as a gap.

use crate::job::Key;
use crate::wire::Failure;
use crate::wire::job::{JobEvent, JobId, JobState, Receipt, Terminator};
use serde::{Deserialize, Serialize};

pub const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// The first.
    Job(Head),
    Event(Event),
    Tokens(Tokens),
    LeftOut(LeftOut),
    /// The last.
    End(End),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub version: u32,
    pub job_id: JobId,
    pub operation: String,
    pub created_at: u64,
    /// Its place among the daemon's starts, for those of one millisecond.
    #[serde(default)]
    pub number: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
}

/// An event, and how many before it are of no interest since it came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Event {
    pub seq: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub overtaken: u64,
    #[serde(flatten)]
    pub event: JobEvent,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Tokens that came one after the other, with the length of each: a line for every token would be ten times its text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Tokens {
    /// The first one's number.
    pub seq: u64,
    /// The first one's place in the answer.
    pub index: u64,
    pub text: String,
    /// Bytes of each.
    pub lengths: Vec<usize>,
}

/// Events that are not here, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LeftOut {
    pub seq: u64,
    pub count: u64,
    pub why: String,
}

/// How a job ended. Its result is an event before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    pub state: JobState,
    pub at: u64,
    /// Events of the whole job.
    pub events: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

impl End {
    pub fn terminator(&self) -> Terminator {
        match (&self.error, self.state) {
            (Some(failure), _) => Terminator::Error(failure.message.clone()),
            (None, JobState::Cancelled) => Terminator::Cancelled,
            (None, JobState::Done) => Terminator::Done,
            (None, other) => Terminator::Error(format!("the job is {}", other.name())),
        }
    }
}

impl Tokens {
    /// Adds the next token, if it is the next.
    pub fn take(&mut self, seq: u64, index: u64, text: &str) -> bool {
        let count = self.lengths.len() as u64;
        if count == 0 {
            (self.seq, self.index) = (seq, index);
        } else if seq != self.seq + count || index != self.index + count {
            return false;
        }
        self.text.push_str(text);
        self.lengths.push(text.len());
        true
    }
}
