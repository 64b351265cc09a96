//! Sources into `$srcdir`: archives unpacked by content, everything else put there as it is.
//!
//! Bytes of strangers are read in a process of their own (`rbee unpack ORDER`, a hidden role), which may read the
//! sources, write below `$srcdir` and reach nothing else. It says how it goes in JSON, one object a line.
//!
//! Other than with makepkg, `$srcdir` has copies, not links into the cache: a build that writes to its sources does not
//! write to the next one's.

mod archive;
mod budget;
mod sink;
mod tar;
mod zip;
mod zstd;

pub use budget::UnpackLimits;

use super::fetch::{ACTION, FetchOrder, Fetched, Kept, Stop, cancelled, writing};
use super::git;
use crate::job::progress::Events;
use crate::process::{Confine, Spec, own_program};
use crate::wire::job::JobEvent;
use crate::wire::{Code, Failure, failure};
use archive::Format;
use budget::Budget;
use rustix::fs::Mode;
use serde::{Deserialize, Serialize};
use sink::{Sink, UnpackError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Dictionaries and tables of contents are held in memory; nothing else is.
const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// Lines that are no words of ours, quoted when it fails.
const TAIL_LINES_MAX: usize = 5;

/// What the hidden role is told.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    items: Vec<Item>,
    into: PathBuf,
    limits: UnpackLimits,
}

#[derive(Debug, Serialize, Deserialize)]
struct Item {
    name: String,
    path: PathBuf,
    /// Archives are unpacked beside the file.
    extract: bool,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    /// This archive is at hand.
    Unpacking(String),
    Failed {
        message: String,
        disk_full: bool,
    },
}

/// Puts everything that was fetched into `srcdir`, which is there and empty.
pub async fn unpack(
    fetched: &[Fetched],
    noextract: &[String],
    srcdir: &Path,
    order: &FetchOrder<'_>,
    events: Events<'_>,
) -> Result<(), Stop> {
    let mut items = Vec::new();
    for source in fetched {
        if let Kept::File(path) = &source.kept {
            let (name, path) = (source.name.clone(), path.clone());
            items.push(Item { extract: !noextract.contains(&name), name, path });
        }
    }
    if !items.is_empty() {
        run(Task { items, into: srcdir.to_owned(), limits: order.limits.unpacked.clone() }, order, events)
            .await?;
    }
    for source in fetched {
        if let Kept::Git { mirror, commit } = &source.kept {
            git::check_out(source, mirror, commit, srcdir, order, events).await?;
        }
    }
    Ok(())
}

async fn run(task: Task, order: &FetchOrder<'_>, events: Events<'_>) -> Result<(), Stop> {
    if order.cancelled() {
        return Err(cancelled());
    }
    let id = format!("unpack-{}-{}", order.id, crate::wire::id::fresh());
    let words = order.work.join("unpack.json");
    let bytes = serde_json::to_vec(&task).map_err(|error| Failure::internal(&error))?;
    std::fs::write(&words, bytes).map_err(|error| writing(&words, &error))?;
    let program = match order.errands.shim {
        Some(program) => program.to_owned(),
        None => own_program().map_err(|error| Failure::internal(&error))?,
    };
    let mut spec =
        Spec::new(id, ["rbee", "unpack"].map(str::to_owned).into_iter().chain([words.display().to_string()]));
    spec.cwd = Some(task.into.clone());
    spec.scratch = Some(order.work.to_owned());
    let sources = task.items.iter().map(|item| item.path.clone());
    spec.confine = Some(Confine {
        read: sources.chain([words.clone(), program.clone()]).collect(),
        write: vec![task.into.clone()],
        network: false,
        // A source is copied, too, and what comes out of it is counted before it is written.
        file_bytes_max: Some(order.limits.unpacked.bytes_max.saturating_add(order.limits.download.bytes_max)),
        memory_bytes_max: Some(MEMORY_BYTES_MAX),
    });
    spec.program = Some(program);

    let (mut failed, mut tail) = (None, Vec::new());
    let hear = |line: String| match serde_json::from_str(&line) {
        Ok(Said::Unpacking(name)) => events(JobEvent::narrate(ACTION, format!("unpacking {name}"))),
        Ok(Said::Failed { message, disk_full }) => {
            let code = if disk_full { Code::InsufficientDisk } else { Code::RecipeInvalid };
            failed = Some(Failure::new(code, message));
        }
        Err(_) => {
            tail.push(line);
            if tail.len() > TAIL_LINES_MAX {
                tail.remove(0);
            }
        }
    };
    let exit = order.errands.run(spec, hear).await?;
    match failed {
        Some(failure) => Err(failure.into()),
        None if exit.success() => Ok(()),
        None => {
            let message = format!("unpacking the sources ended with {exit}: {}", tail.join("; "));
            Err(Failure::new(Code::RecipeInvalid, message).into())
        }
    }
}

/// The hidden role. False if it has failed; it has said how.
pub fn unpack_main(task: &Path) -> bool {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let read = || -> io::Result<Task> { Ok(serde_json::from_slice(&std::fs::read(task)?)?) };
    let task = match read() {
        Ok(task) => task,
        Err(error) => {
            say(&Said::Failed {
                message: format!("reading `{}`: {error}", task.display()),
                disk_full: false,
            });
            return false;
        }
    };
    match task.run() {
        Ok(()) => true,
        Err((name, error)) => {
            let disk_full = matches!(&error, UnpackError::Write { source, .. } if is_full(source));
            say(&Said::Failed {
                message: format!("unpacking {name}: {}", failure::chain(&error)),
                disk_full,
            });
            false
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn say(said: &Said) {
    let mut line = serde_json::to_vec(said).unwrap_or_default();
    line.push(b'\n');
    // Who does not listen any more will see the exit code.
    let _ = io::stdout().lock().write_all(&line);
}

impl Task {
    fn run(&self) -> Result<(), (String, UnpackError)> {
        let budget = Budget::new(self.limits.clone());
        let mut sink = Sink::open(&self.into, self.limits.depth_max, self.limits.members_max)
            .map_err(|error| (self.into.display().to_string(), UnpackError::Open(error)))?;
        for item in &self.items {
            item.put(&budget, &mut sink).map_err(|error| (item.name.clone(), error))?;
        }
        sink.finish();
        Ok(())
    }
}

impl Item {
    fn put(&self, budget: &Budget, sink: &mut Sink) -> Result<(), UnpackError> {
        sink.place(self.name.as_bytes(), &self.path)?;
        if !self.extract {
            return Ok(());
        }
        let meta = self.path.metadata().map_err(UnpackError::Open)?;
        budget.begin(meta.len());
        let format = archive::format(&self.name, &self.path, budget).map_err(UnpackError::Open)?;
        if !matches!(format, Format::Plain) {
            say(&Said::Unpacking(self.name.clone()));
        }
        match format {
            Format::Plain => Ok(()),
            Format::Foreign(what) => Err(UnpackError::Foreign(what)),
            Format::Zip => zip::unpack(&self.path, budget, sink),
            Format::Tar(compression) => {
                let mut reader = archive::open(&self.path, compression, budget).map_err(UnpackError::Open)?;
                tar::unpack(&mut reader, sink)
            }
            Format::Single(compression) => {
                let mut reader = archive::open(&self.path, compression, budget).map_err(UnpackError::Open)?;
                let stem = self.name.rsplit_once('.').map_or(self.name.as_str(), |(stem, _)| stem);
                sink.file(stem.as_bytes(), 0o644, now(), &mut reader)
            }
        }
    }
}

fn now() -> sink::Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    sink::Time { seconds: since.as_secs().try_into().unwrap_or(0), nanoseconds: since.subsec_nanos() }
}
