//! What of a job survives a restart: one file of JSON lines a job, readable by a person and by the next version.
//!
//! The job's path never touches the disk. The writer is one thread a daemon, and each journal is but one more reader of the
//! job's event log: a slow disk makes it fall behind, and what it then misses is written down as missed. It lets events
//! gather for [`LINGER`], so that a thousand tokens are one line; a start and an end are written at once.
//!
//! A start is written before the POST is answered, so that it survives kill -9 of the daemon, and synced right after; an end
//! is synced before the daemon's own orderly end. The POST waits for the write, for [`RECORD_WAIT_MAX`] at the most, and the
//! job does not wait at all.

mod line;
mod read;
mod write;

pub use line::{End, Head, VERSION};
pub use read::{Found, Loaded, ReadError, load, parse, restore};
pub use write::{Entry, Journal};

use std::time::Duration;

/// Events are gathered for so long before they are written: what a kill -9 may lose.
pub const LINGER: Duration = Duration::from_millis(500);
/// A journal's events: the head is kept, what comes after is told as missing, the end is always written.
pub const JOURNAL_BYTES_MAX: u64 = 4 << 20;
/// The most events of a journal.
pub const JOURNAL_EVENTS_MAX: u64 = 131_072;
/// A result or an error, which come after the limit of events, too.
pub const RESULT_BYTES_MAX: usize = 8 << 20;
/// The first line, and the last without the result.
pub const FRAME_BYTES_MAX: usize = 64 << 10;
/// The longest file that is read: none that was written here is longer.
pub const FILE_BYTES_MAX: u64 = JOURNAL_BYTES_MAX + RESULT_BYTES_MAX as u64 + (1 << 20);
/// Journals of ended jobs; the oldest go first.
pub const JOURNALS_KEPT_MAX: usize = 1_024;
/// All journals of a daemon; the oldest go first.
pub const JOURNALS_BYTES_MAX: u64 = 256 << 20;
/// How long an ended job is kept.
pub const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Journals that did not parse, set aside for a person to look at.
pub const BROKEN_KEPT_MAX: usize = 16;
/// Jobs at work, and ended ones whose end waits for the disk; one more has no journal.
pub const WAITING_MAX: usize = 2_048;
/// Files held open.
pub const OPEN_MAX: usize = 64;
/// Tokens, and bytes of them, in one line.
pub const RUN_TOKENS_MAX: usize = 4_096;
pub const RUN_BYTES_MAX: usize = 32 << 10;
/// How long the answer to a POST waits for the job's record to be written.
pub const RECORD_WAIT_MAX: Duration = Duration::from_millis(250);
/// How long the daemon's own end waits for an end to be on the disk.
pub const END_WAIT_MAX: Duration = Duration::from_secs(5);

/// A journal's name: the job's id.
pub const SUFFIX: &str = "jsonl";
const BROKEN_SUFFIX: &str = "broken";

#[cfg(test)]
mod tests;
