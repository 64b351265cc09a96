//! What a shim and a lease holder say to each other: one JSON object a line, frozen from its first release.
//!
//! A shim may be older or newer than the hive that adopts it, so both ends skip keys they do not know, every field
//! may be absent, and nothing here is ever renamed or reused.

use super::confine::Walls;
use super::identity::Identity;
use crate::wire::job::Receipt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(super) const LEASE_PROTOCOL: u32 = 1;
/// One message with its newline. A line of output is at most 16 KiB, six times that as JSON; a note may be larger.
pub(super) const FRAME_BYTES_MAX: usize = 256 * 1024;

/// How the leader of a tree ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// The shim was killed, and what it knew with it. The tree was swept all the same.
    Lost,
}

impl Exit {
    /// `None` for a child that has only stopped.
    pub(super) fn of(status: rustix::process::WaitStatus) -> Option<Exit> {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(Exit::Code(code)),
            (_, Some(signal)) => Some(Exit::Signal(signal)),
            _ => None,
        }
    }

    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::Lost => f.write_str("lost with its shim"),
        }
    }
}

/// Shim to holder. Usually one field a message; `exited` comes when the leader ends, `receipt` when all have, and last.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Said {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hello: Option<Hello>,
    /// The child could not be started; nothing else follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// How many lines this holder was too slow for, here, between the line before and the line after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exited: Option<Exit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

/// The first message to every holder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Hello {
    pub version: u32,
    pub id: String,
    pub shim: Identity,
    pub child: Identity,
    pub containment: String,
    /// Empty from a shim that did not know of walls.
    #[serde(default)]
    pub walls: Walls,
    #[serde(default)]
    pub note: Value,
}

/// Holder to shim.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// A new note in place of that of the launch; a shim that does not know the word keeps the old one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<Value>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Stop {
    pub grace_ms: u64,
}

/// A message as it goes on the socket.
pub(super) fn frame(message: &impl Serialize) -> Vec<u8> {
    // These types have string keys and no custom serialisers, so JSON cannot fail; an empty line is skipped.
    let mut bytes = serde_json::to_vec(message).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct FrameTooLong;

/// Bytes in, whole lines out, never more than one frame held.
#[derive(Debug, Default)]
pub(super) struct Frames {
    partial: Vec<u8>,
}

impl Frames {
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, FrameTooLong> {
        let mut whole = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.partial.len() + piece.len() > FRAME_BYTES_MAX {
                return Err(FrameTooLong);
            }
            self.partial.extend_from_slice(piece);
            if self.partial.ends_with(b"\n") {
                whole.push(std::mem::take(&mut self.partial));
            }
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut_and_refuse_what_never_ends() {
        let mut frames = Frames::default();
        assert_eq!(frames.push(b"{\"a\"").unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(frames.push(b":1}\n{}\n{").unwrap(), vec![b"{\"a\":1}\n".to_vec(), b"{}\n".to_vec()]);
        assert_eq!(frames.push(&vec![b'x'; FRAME_BYTES_MAX]), Err(FrameTooLong));
    }

    #[test]
    fn the_lease_protocol_keeps_its_words() {
        let stop = frame(&Asked { stop: Some(Stop { grace_ms: 5 }), ..Asked::default() });
        assert_eq!(stop, b"{\"stop\":{\"grace_ms\":5}}\n");
        let exited = frame(&Said { exited: Some(Exit::Signal(9)), ..Said::default() });
        assert_eq!(exited, b"{\"exited\":{\"signal\":9}}\n");
        let newer: Said = serde_json::from_str(r#"{"line":"x","colour":"red"}"#).unwrap();
        assert_eq!(newer.line.as_deref(), Some("x"));
    }
}
