//! Jobs as they travel: identifiers, states, events, the three terminators, the receipt of a cancel.

use super::Failure;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use uuid::Uuid;

/// Carries the queen's id for a job that she relays, over the link only: a relayed job has one id on both sides.
pub const JOB_ID_HEADER: &str = "rbee-job-id";

/// What a keeper and a queen say to each other of a job that the keeper does: its events go up and these come down, but for
/// the last, which goes up with the receipt.
pub mod reported {
    /// The first answer: the job's id.
    pub const ACCEPTED: &str = "accepted";
    /// Somebody has cancelled it.
    pub const CANCEL: &str = "cancel";
    /// It has cleaned up.
    pub const CANCELLED: &str = "cancelled";
}

/// A job's name: a UUID of version 7, so that names sort by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

impl JobId {
    pub fn fresh() -> Self {
        JobId(super::id::fresh())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for JobId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(JobId)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
    Interrupted,
}

impl JobState {
    pub fn name(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
            JobState::Interrupted => "interrupted",
        }
    }

    pub fn has_ended(self) -> bool {
        !matches!(self, JobState::Queued | JobState::Running)
    }
}

/// How urgent a line of narration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Info,
    Warn,
    Error,
}

/// One thing that happened in a job. The name is the SSE event's, the fields its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event", content = "data")]
pub enum JobEvent {
    Narration { action: String, message: String, level: Level },
    Progress { task: String, label: String, position: u64, total: Option<u64>, unit: Unit, rate: Option<f64> },
    Log { stream: String, line: String },
    Table { columns: Vec<String>, rows: Vec<Vec<String>> },
    Token { index: u64, text: String },
    Result(Value),
    Error(Failure),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Bytes,
    Percent,
    Items,
}

impl JobEvent {
    pub fn narrate(action: &str, message: impl Into<String>) -> Self {
        JobEvent::Narration { action: action.into(), message: message.into(), level: Level::Info }
    }

    pub fn warn(action: &str, message: impl Into<String>) -> Self {
        JobEvent::Narration { action: action.into(), message: message.into(), level: Level::Warn }
    }

    /// The SSE event name.
    pub fn name(&self) -> &'static str {
        match self {
            JobEvent::Narration { .. } => "narration",
            JobEvent::Progress { .. } => "progress",
            JobEvent::Log { .. } => "log",
            JobEvent::Table { .. } => "table",
            JobEvent::Token { .. } => "token",
            JobEvent::Result(_) => "result",
            JobEvent::Error(_) => "error",
        }
    }

    /// The SSE data alone.
    pub fn data(&self) -> Value {
        match serde_json::to_value(self) {
            Ok(Value::Object(mut whole)) => whole.remove("data").unwrap_or(Value::Null),
            _ => Value::Null,
        }
    }

    /// An event from its SSE name and data. `None` for a name of a newer peer, which a reader skips.
    pub fn from_parts(name: &str, data: &str) -> Option<Self> {
        let data: Value = serde_json::from_str(data).ok()?;
        serde_json::from_value(serde_json::json!({"event": name, "data": data})).ok()
    }
}

/// The last line of every stream: plain data, exactly one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Terminator {
    Done,
    Error(String),
    Cancelled,
}

impl fmt::Display for Terminator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Terminator::Done => f.write_str("[DONE]"),
            // One line: a newline would be a second `data:` field.
            Terminator::Error(message) => write!(f, "[ERROR] {}", message.replace(['\r', '\n'], " ")),
            Terminator::Cancelled => f.write_str("[CANCELLED]"),
        }
    }
}

impl Terminator {
    pub fn parse(data: &str) -> Option<Self> {
        match data {
            "[DONE]" => Some(Terminator::Done),
            "[CANCELLED]" => Some(Terminator::Cancelled),
            other => other.strip_prefix("[ERROR]").map(|m| Terminator::Error(m.trim_start().to_owned())),
        }
    }
}

/// A process that a cancel could not end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivor {
    pub pid: i32,
    pub command: String,
}

/// What a cancel stopped and gave back, told only after it has happened. Fields that an older shim does not know yet have
/// their defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Receipt {
    pub clean: bool,
    /// The rung of the containment ladder that held the processes; `none` when there were none.
    pub containment: String,
    pub processes_reaped: u32,
    pub survivors: Vec<Survivor>,
    pub bytes_removed: u64,
    pub memory_returned_bytes: u64,
    pub ms: u64,
}

impl Default for Receipt {
    fn default() -> Self {
        Receipt {
            clean: true,
            containment: "none".into(),
            processes_reaped: 0,
            survivors: Vec::new(),
            bytes_removed: 0,
            memory_returned_bytes: 0,
            ms: 0,
        }
    }
}

impl Receipt {
    /// Two cleanups of one job, told as one.
    pub fn and(mut self, other: Receipt) -> Receipt {
        self.clean &= other.clean;
        if self.containment == "none" {
            self.containment = other.containment;
        }
        self.processes_reaped += other.processes_reaped;
        self.survivors.extend(other.survivors);
        self.bytes_removed += other.bytes_removed;
        self.memory_returned_bytes += other.memory_returned_bytes;
        self.ms = self.ms.max(other.ms);
        self
    }
}

/// A job as GET /v1/jobs/{id} tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    pub job_id: JobId,
    pub operation: String,
    pub state: JobState,
    /// Milliseconds since the epoch.
    pub created_at: u64,
    pub ended_at: Option<u64>,
    pub events: u64,
    pub result: Option<Value>,
    pub error: Option<Failure>,
    pub receipt: Option<Receipt>,
}

/// The answer to POST /v1/jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobAccepted {
    pub job_id: JobId,
    pub sse_url: String,
}

impl JobAccepted {
    pub fn of(job_id: JobId) -> Self {
        JobAccepted { job_id, sse_url: format!("/v1/jobs/{job_id}/stream") }
    }
}

/// The answer to a cancel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobCancelled {
    pub job_id: JobId,
    pub status: String,
    pub receipt: Option<Receipt>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_reads_back_from_its_name_and_data() {
        let events = [
            JobEvent::narrate("fetch", "model"),
            JobEvent::Progress {
                task: "t".into(),
                label: "l".into(),
                position: 1,
                total: None,
                unit: Unit::Bytes,
                rate: Some(1.5),
            },
            JobEvent::Token { index: 3, text: "\n\u{1f41d}".into() },
            JobEvent::Result(serde_json::json!({"a": 1})),
            JobEvent::Error(Failure::invalid("no")),
        ];
        for event in events {
            let back = JobEvent::from_parts(event.name(), &event.data().to_string());
            assert_eq!(back.as_ref(), Some(&event));
        }
        assert_eq!(JobEvent::from_parts("hologram", "{}"), None);
    }

    #[test]
    fn terminators_are_plain_data_on_one_line() {
        let error = Terminator::Error("two\nlines".into()).to_string();
        assert_eq!(error, "[ERROR] two lines");
        assert_eq!(Terminator::parse(&error), Some(Terminator::Error("two lines".into())));
        assert_eq!(Terminator::parse("[DONE]"), Some(Terminator::Done));
        assert_eq!(Terminator::parse("{\"a\":1}"), None);
    }
}
