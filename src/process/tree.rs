//! A running tree as its lease holder sees it. One task owns the connection; the handle asks it and watches.

use super::ProcessError;
use super::capture;
use super::confine::Walls;
use super::identity::Identity;
use super::platform;
use super::protocol::{Asked, Exit, Frames, Hello, Said, Stop, frame};
use super::record::{Files, Spec};
use super::shim::{GRACE_MAX, LINGER_MAX, VERIFY_MAX};
use super::sweep::sweep;
use crate::wire::job::Receipt;
use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// From connecting to the shim's hello.
const HELLO_MAX: Duration = Duration::from_secs(10);
/// Lines that wait for a reader of [`Lines`]; more are dropped and counted.
const LINES_MAX: usize = 1024;
const LINES_BYTES_MAX: usize = 4 * 1024 * 1024;
const ASKS_MAX: usize = 8;
/// From a shim's receipt to its exit.
const SHIM_EXIT_MAX: Duration = Duration::from_secs(1);
/// What a shim may need beyond the grace it was given; after that it is killed, and the tree swept without it.
const STOP_ANSWER_MAX: Duration =
    LINGER_MAX.saturating_add(VERIFY_MAX).saturating_add(Duration::from_secs(3));

/// A leased process tree. Dropping it gives the lease back: the tree's `orphan_ttl` starts.
#[derive(Debug)]
pub struct Tree {
    hello: Hello,
    log: Option<PathBuf>,
    scratch: Option<PathBuf>,
    asks: mpsc::Sender<Ask>,
    state: watch::Receiver<State>,
    lines: Mutex<Option<Lines>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    exit: Option<Exit>,
    receipt: Option<Receipt>,
    detached: bool,
}

#[derive(Debug)]
enum Ask {
    Stop(Duration),
    Note(Value),
    Detach,
}

/// Output of a tree without a log, or whose log is told, in order. Printable text: see `printable`.
#[derive(Debug)]
pub struct Lines {
    lines: mpsc::Receiver<Output>,
    backlog: Arc<Backlog>,
}

/// What the holder and its reader share.
#[derive(Debug, Default)]
struct Backlog {
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Line(String),
    /// So many lines came faster than they were read.
    Dropped(u64),
}

impl Lines {
    /// The next line; `None` when the tree has ended and all was read.
    pub async fn next(&mut self) -> Option<Output> {
        match self.lines.recv().await {
            Some(output) => {
                if let Output::Line(line) = &output {
                    self.backlog.bytes.fetch_sub(line.len(), Ordering::Relaxed);
                }
                Some(output)
            }
            None => match self.backlog.dropped.swap(0, Ordering::Relaxed) {
                0 => None,
                dropped => Some(Output::Dropped(dropped)),
            },
        }
    }
}

impl Tree {
    /// Waits for the shim's hello on a fresh connection.
    pub(super) async fn take(
        stream: UnixStream,
        files: Files,
        // Not read from the record, which goes with the tree, and that may end before this looks.
        spec: &Spec,
        shim: Option<tokio::process::Child>,
    ) -> Result<Tree, ProcessError> {
        let id = spec.id.clone();
        let mut wire = Wire { stream, frames: Frames::default(), said: Vec::new() };
        let first = tokio::time::timeout(HELLO_MAX, wire.next()).await.ok().flatten();
        let Some(first) = first else { return Err(ProcessError::ShimLost { id }) };
        let hello = match (first.hello, first.failed) {
            (Some(hello), _) => hello,
            (None, Some(reason)) => return Err(ProcessError::Start { program: id, reason }),
            (None, None) => return Err(ProcessError::ShimLost { id }),
        };
        let (log, scratch) = (spec.log.clone(), spec.scratch.clone());
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let (state, watched) = watch::channel(State { exit: first.exited, ..State::default() });
        let (output, lines) = mpsc::channel(LINES_MAX);
        let backlog = Arc::new(Backlog::default());
        let holder = Holder {
            wire,
            asked,
            state,
            output: Some(output),
            backlog: backlog.clone(),
            files,
            hello: hello.clone(),
            answer_until: None,
            _shim: shim,
        };
        tokio::spawn(holder.run());
        let lines = Mutex::new(Some(Lines { lines, backlog }));
        Ok(Tree { hello, log, scratch, asks, state: watched, lines })
    }

    pub fn id(&self) -> &str {
        &self.hello.id
    }

    /// What was noted at launch, perhaps by another hive.
    pub fn note(&self) -> &Value {
        &self.hello.note
    }

    /// The leader's.
    pub fn pid(&self) -> i32 {
        self.hello.child.pid
    }

    pub fn identity(&self) -> &Identity {
        &self.hello.child
    }

    /// The shim's own.
    pub fn shim(&self) -> &Identity {
        &self.hello.shim
    }

    /// The rung of the containment ladder.
    pub fn containment(&self) -> &str {
        &self.hello.containment
    }

    /// The folder that the holder removes when it wants no more of this tree.
    pub fn scratch(&self) -> Option<&Path> {
        self.scratch.as_deref()
    }

    /// What stands around the tree.
    pub fn walls(&self) -> &Walls {
        &self.hello.walls
    }

    /// Waits until the leader has ended. Lines may follow, and [`Tree::ended`] waits for the rest of the tree. After
    /// `detach` it stays pending, because this process will not know.
    pub async fn exited(&self) -> Exit {
        let state = self.until(|state| state.exit.is_some()).await;
        match state.and_then(|state| state.exit) {
            Some(exit) => exit,
            None => std::future::pending().await,
        }
    }

    /// Waits until the whole tree has ended, without asking for it.
    pub async fn ended(&self) -> Receipt {
        let state = self.until(|state| state.receipt.is_some()).await;
        match state.and_then(|state| state.receipt) {
            Some(receipt) => receipt,
            None => std::future::pending().await,
        }
    }

    /// Ends the tree: TERM, `grace`, KILL, and waits for the receipt. Again is the same receipt; again while it runs,
    /// with a shorter grace, is an escalation. Never hangs: a deaf shim is killed and its tree swept.
    pub async fn stop(&self, grace: Duration) -> Receipt {
        // Refused only when the holder has ended, and then the state says how.
        let _ = self.asks.send(Ask::Stop(grace)).await;
        let state = self.until(|state| state.receipt.is_some() || state.detached).await;
        match state.and_then(|state| state.receipt) {
            Some(receipt) => receipt,
            // Somebody gave the lease back: this process stopped nothing and cannot say more.
            None => {
                Receipt { clean: false, containment: self.hello.containment.clone(), ..Receipt::default() }
            }
        }
    }

    /// Gives the lease back and leaves the tree to the next hive: `orphan_ttl` starts now. Stop and exit are not
    /// told here any more.
    pub async fn detach(&self) {
        let _ = self.asks.send(Ask::Detach).await;
        self.until(|state| state.detached || state.receipt.is_some()).await;
    }

    /// Gives the shim another note to keep, for the next hive that adopts the tree.
    pub async fn renote(&self, note: Value) {
        // Refused only when the holder has ended, and with it the tree.
        let _ = self.asks.send(Ask::Note(note)).await;
    }

    /// The output, if the tree has no log or tells it; the first caller gets it.
    pub fn lines(&self) -> Option<Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The last lines of the log, oldest first; empty without one. Reads a file: brief, but not on a hot path.
    pub fn tail(&self, lines: usize) -> Vec<String> {
        self.log.as_deref().map(|log| capture::tail(log, lines)).unwrap_or_default()
    }

    /// The state once it is so; `None` when the holder ended without its becoming so.
    async fn until(&self, so: impl FnMut(&State) -> bool) -> Option<State> {
        self.state.clone().wait_for(so).await.ok().map(|state| state.clone())
    }
}

/// The connection, in messages.
struct Wire {
    stream: UnixStream,
    frames: Frames,
    /// Messages that came together with an earlier one, last first.
    said: Vec<Said>,
}

impl Wire {
    /// The next message; `None` at the end, however it came. Cancel safe: what was read is kept.
    async fn next(&mut self) -> Option<Said> {
        loop {
            if let Some(said) = self.said.pop() {
                return Some(said);
            }
            self.stream.readable().await.ok()?;
            let mut buffer = [0u8; 16 * 1024];
            let count = match self.stream.try_read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => return None,
            };
            let frames = self.frames.push(&buffer[..count]).ok()?;
            // A message of a newer shim that we cannot read is skipped.
            self.said = frames.iter().rev().filter_map(|frame| serde_json::from_slice(frame).ok()).collect();
        }
    }
}

/// The task that owns the lease.
struct Holder {
    wire: Wire,
    asked: mpsc::Receiver<Ask>,
    state: watch::Sender<State>,
    output: Option<mpsc::Sender<Output>>,
    backlog: Arc<Backlog>,
    files: Files,
    hello: Hello,
    /// When a shim that was asked to stop counts as deaf.
    answer_until: Option<Instant>,
    /// Kept so that the runtime reaps it, if we started it.
    _shim: Option<tokio::process::Child>,
}

impl Holder {
    async fn run(mut self) {
        loop {
            let deaf_at = self.answer_until.unwrap_or_else(Instant::now);
            tokio::select! {
                said = self.wire.next() => match said {
                    Some(said) => {
                        if let Some(receipt) = self.hear(said) {
                            return self.farewell(receipt).await;
                        }
                    }
                    None => return self.lose().await,
                },
                ask = self.asked.recv() => match ask {
                    Some(Ask::Stop(grace)) => self.ask_to_stop(grace).await,
                    Some(Ask::Note(note)) => self.ask(&Asked { note: Some(note), ..Asked::default() }).await,
                    Some(Ask::Detach) | None => return self.state.send_modify(|state| state.detached = true),
                },
                () = tokio::time::sleep_until(deaf_at), if self.answer_until.is_some() => {
                    // Its end closes the connection, and the sweep follows.
                    platform::kill(&self.hello.shim);
                    self.answer_until = None;
                }
            }
        }
    }

    /// The receipt, when it has come; nothing follows it.
    fn hear(&mut self, said: Said) -> Option<Receipt> {
        if let Some(dropped) = said.dropped {
            self.backlog.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
        if let Some(line) = said.line {
            self.pass_on(line);
        }
        if let Some(exit) = said.exited {
            self.state.send_modify(|state| state.exit = Some(exit));
        }
        said.receipt
    }

    /// Tells the receipt once the shim, too, has gone: who is told that a tree has ended must find nothing of it.
    async fn farewell(mut self, receipt: Receipt) {
        self.output = None;
        let gone = async { while self.wire.next().await.is_some() {} };
        // It has nothing left to do but to exit; a holder beside us that does not read may keep it.
        let _ = tokio::time::timeout(SHIM_EXIT_MAX, gone).await;
        self.state.send_modify(|state| {
            // A leader that KILL could not end has no exit to tell.
            state.exit.get_or_insert(Exit::Lost);
            state.receipt = Some(receipt);
        });
    }

    fn pass_on(&mut self, line: String) {
        let Some(output) = &self.output else { return };
        let Backlog { bytes, dropped } = &*self.backlog;
        let missed = dropped.load(Ordering::Relaxed);
        let room = if bytes.load(Ordering::Relaxed) < LINES_BYTES_MAX { output.capacity() } else { 0 };
        if missed > 0 && room >= 2 && output.try_send(Output::Dropped(missed)).is_ok() {
            dropped.fetch_sub(missed, Ordering::Relaxed);
        }
        let length = line.len();
        // Added first: the reader may have it, and subtract, before the call returns.
        bytes.fetch_add(length, Ordering::Relaxed);
        if room == 0 || output.try_send(Output::Line(line)).is_err() {
            bytes.fetch_sub(length, Ordering::Relaxed);
            dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn ask_to_stop(&mut self, grace: Duration) {
        let grace = grace.min(GRACE_MAX);
        let grace_ms = grace.as_millis().try_into().unwrap_or(u64::MAX);
        let until = Instant::now() + grace + STOP_ANSWER_MAX;
        self.answer_until = Some(self.answer_until.map_or(until, |before| before.min(until)));
        self.ask(&Asked { stop: Some(Stop { grace_ms }), ..Asked::default() }).await;
    }

    async fn ask(&mut self, asked: &Asked) {
        // A shim that is gone is noticed by the reader.
        let _ = self.wire.stream.write_all(&frame(asked)).await;
    }

    /// The connection closed without a receipt: the shim was killed. What it left is ended here.
    async fn lose(mut self) {
        let files = self.files.clone();
        let hello = self.hello.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let receipt = files.read().map(|mut record| {
                // What the shim said is newer than what it wrote.
                record.shim = Some(hello.shim);
                record.child = Some(hello.child);
                record.containment = hello.containment;
                sweep(&record)
            });
            files.remove();
            receipt
        });
        let unknown =
            Receipt { clean: false, containment: self.hello.containment.clone(), ..Receipt::default() };
        let receipt = swept.await.ok().and_then(Result::ok).unwrap_or(unknown);
        self.output = None;
        self.state.send_modify(|state| {
            state.exit.get_or_insert(Exit::Lost);
            state.receipt = Some(receipt);
        });
    }
}
