//! The writer of a daemon's journals: the jobs' side, which only says that there is news, and the thread that goes and looks.

use super::line::{Event, LeftOut, Line, Tokens};
use super::{
    END_WAIT_MAX, End, FRAME_BYTES_MAX, Head, JOURNAL_BYTES_MAX, JOURNAL_EVENTS_MAX, LINGER, OPEN_MAX,
    RECORD_WAIT_MAX, RESULT_BYTES_MAX, RUN_BYTES_MAX, RUN_TOKENS_MAX, SUFFIX, WAITING_MAX,
};
use crate::job::stream::{EventLog, Reader, Step};
use crate::wire::job::{JobEvent, JobId, Terminator};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use tokio::sync::watch;

/// Lines are handed to the kernel in pieces of about this size.
const WRITE_BYTES: usize = 256 << 10;
const TOO_SLOW: &str = "the disk was slower than the job";
const TOO_LONG: &str = "longer than a journal may be";

/// The journals of one daemon. The thread ends with the last handle, when all is written.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Shared>,
    _closer: Arc<Closer>,
}

#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Inbox {
    dirty: Vec<Arc<Entry>>,
    removed: Vec<JobId>,
    /// Somebody waits: nothing lingers.
    urgent: bool,
    /// Entries that are not final yet.
    waiting: usize,
    closed: bool,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("no holder of the inbox panics")
    }
}

#[derive(Debug)]
struct Closer(Arc<Shared>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.inbox().closed = true;
        self.0.news.notify_one();
    }
}

/// How far a job's journal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Recorded,
    /// Whole, and on the disk.
    Ended,
    /// The disk did not take it: this job will not survive a restart.
    Lost,
}

/// One job's journal, as the job holds it.
#[derive(Debug)]
pub struct Entry {
    head: Head,
    /// Until the writer takes it.
    log: Mutex<Option<EventLog>>,
    end: OnceLock<End>,
    dirty: AtomicBool,
    removed: AtomicBool,
    bytes: AtomicU64,
    stage: watch::Sender<Stage>,
    shared: Arc<Shared>,
}

impl Journal {
    /// Starts the writer of a folder that is there.
    pub fn start(dir: PathBuf) -> std::io::Result<Journal> {
        let shared = Arc::new(Shared::default());
        let folder = File::open(&dir)?;
        let mut writer = Writer {
            shared: shared.clone(),
            dir,
            folder,
            has_new: false,
            open: HashMap::new(),
            syncs: VecDeque::new(),
        };
        std::thread::Builder::new().name("journal".into()).spawn(move || writer.run())?;
        Ok(Journal { _closer: Arc::new(Closer(shared.clone())), shared })
    }

    /// A new job's journal; none if too many wait for the disk.
    pub fn enter(&self, head: Head, log: EventLog) -> Option<Arc<Entry>> {
        let mut inbox = self.shared.inbox();
        if inbox.waiting >= WAITING_MAX {
            tracing::warn!(job = %head.job_id, "too many journals wait for the disk: this job will not survive a restart");
            return None;
        }
        inbox.waiting += 1;
        drop(inbox);
        let entry = Arc::new(Entry {
            head,
            log: Mutex::new(Some(log)),
            end: OnceLock::new(),
            dirty: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            stage: watch::Sender::new(Stage::Waiting),
            shared: self.shared.clone(),
        });
        entry.hurry();
        Some(entry)
    }

    /// Deletes the journal of a job that has ended.
    pub fn remove(&self, id: JobId) {
        self.shared.inbox().removed.push(id);
        self.shared.news.notify_one();
    }
}

impl Entry {
    /// There is news; it may gather.
    pub fn touch(self: &Arc<Self>) {
        if !self.dirty.swap(true, Ordering::AcqRel) {
            self.shared.inbox().dirty.push(self.clone());
            self.shared.news.notify_one();
        }
    }

    fn hurry(self: &Arc<Self>) {
        let mut inbox = self.shared.inbox();
        inbox.urgent = true;
        if !self.dirty.swap(true, Ordering::AcqRel) {
            inbox.dirty.push(self.clone());
        }
        drop(inbox);
        self.shared.news.notify_one();
    }

    /// The job has ended so. Set before the terminator, which the writer takes as the sign that it is there.
    pub fn end(self: &Arc<Self>, end: End, log: &EventLog, terminator: Terminator) {
        // A job ends once.
        let _ = self.end.set(end);
        log.end(terminator);
        self.hurry();
    }

    /// Nothing more is written of a job whose file is to go.
    pub fn forget(&self) {
        self.removed.store(true, Ordering::Release);
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// All of it is on the disk.
    pub fn is_whole(&self) -> bool {
        *self.stage.borrow() == Stage::Ended
    }

    /// Waits until a kill of the daemon no longer loses the record, or for as long as a POST may wait.
    pub async fn recorded(&self) {
        let mut stage = self.stage.subscribe();
        let written = stage.wait_for(|stage| *stage != Stage::Waiting);
        if tokio::time::timeout(RECORD_WAIT_MAX, written).await.is_err() {
            tracing::warn!(job = %self.head.job_id, "the disk is slow: answering before the job's record is written");
        }
    }

    /// Waits until the end is on the disk, or for as long as a daemon's end may wait.
    pub async fn ended(&self) {
        let mut stage = self.stage.subscribe();
        let written = stage.wait_for(|stage| matches!(stage, Stage::Ended | Stage::Lost));
        if tokio::time::timeout(END_WAIT_MAX, written).await.is_err() {
            tracing::warn!(job = %self.head.job_id, "the disk is slow: the job's end is not written yet");
        }
    }

    fn reach(&self, stage: Stage) {
        let before = self.stage.send_replace(stage);
        let is_final = |stage| matches!(stage, Stage::Ended | Stage::Lost);
        if is_final(stage) && !is_final(before) {
            let mut inbox = self.shared.inbox();
            inbox.waiting = inbox.waiting.saturating_sub(1);
        }
    }

    /// Whether nothing more is to be written.
    fn is_final(&self) -> bool {
        if self.removed.load(Ordering::Acquire) {
            self.reach(Stage::Lost);
        }
        matches!(*self.stage.borrow(), Stage::Ended | Stage::Lost)
    }
}

/// Where journals lie.
pub(super) fn path_of(dir: &Path, id: JobId) -> PathBuf {
    dir.join(format!("{id}.{SUFFIX}"))
}

struct Writer {
    shared: Arc<Shared>,
    dir: PathBuf,
    folder: File,
    /// Files were made since the folder was synced.
    has_new: bool,
    open: HashMap<JobId, Open>,
    syncs: VecDeque<Sync>,
}

/// A file that is to reach the disk, and what is true of its job then.
struct Sync {
    entry: Arc<Entry>,
    file: File,
    stage: Stage,
}

impl Writer {
    fn run(&mut self) {
        while let Some((dirty, removed)) = self.news() {
            for entry in dirty {
                entry.dirty.store(false, Ordering::Release);
                self.append(&entry);
            }
            for id in removed {
                self.open.remove(&id);
                if let Err(error) = std::fs::remove_file(path_of(&self.dir, id))
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(job = %id, %error, "a journal could not be removed");
                }
            }
            // One at a time: a start that comes meanwhile is written before the next.
            if let Some(sync) = self.syncs.pop_front() {
                self.sync(sync);
            }
        }
    }

    /// What is to be done, when there is something; none at the end.
    fn news(&self) -> Option<(Vec<Arc<Entry>>, Vec<JobId>)> {
        let mut inbox = self.shared.inbox();
        if self.syncs.is_empty() {
            let poisoned = "no holder of the inbox panics";
            let is_quiet =
                |inbox: &mut Inbox| inbox.dirty.is_empty() && inbox.removed.is_empty() && !inbox.closed;
            inbox = self.shared.news.wait_while(inbox, is_quiet).expect(poisoned);
            let may_linger = |inbox: &mut Inbox| !inbox.urgent && !inbox.closed;
            inbox = self.shared.news.wait_timeout_while(inbox, LINGER, may_linger).expect(poisoned).0;
            if inbox.closed && inbox.dirty.is_empty() && inbox.removed.is_empty() {
                return None;
            }
        } else if !inbox.urgent {
            return Some(Default::default());
        }
        inbox.urgent = false;
        Some((std::mem::take(&mut inbox.dirty), std::mem::take(&mut inbox.removed)))
    }

    fn append(&mut self, entry: &Arc<Entry>) {
        if entry.is_final() {
            return;
        }
        let id = entry.head.job_id;
        let path = path_of(&self.dir, id);
        let taken = entry.log.lock().expect("no holder of the log panics").take();
        if let Some(log) = taken {
            self.open.insert(id, Open::new(log.reader(0)));
        }
        let Some(open) = self.open.get_mut(&id) else { return };
        let is_new = open.written == 0;
        self.has_new |= is_new;
        let appended = open.append(entry, &path);
        entry.bytes.store(open.written, Ordering::Relaxed);
        match appended {
            Ok(has_ended) => {
                if is_new {
                    entry.reach(Stage::Recorded);
                }
                if let Some(file) = open.file.take_if(|_| has_ended) {
                    self.open.remove(&id);
                    self.syncs.push_back(Sync { entry: entry.clone(), file, stage: Stage::Ended });
                } else if let Some(file) = open.file.as_ref().filter(|_| is_new) {
                    match file.try_clone() {
                        Ok(file) => {
                            self.syncs.push_back(Sync { entry: entry.clone(), file, stage: Stage::Recorded })
                        }
                        Err(error) => self.lose(entry, &error),
                    }
                }
            }
            Err(error) => self.lose(entry, &error),
        }
        if self.open.len() > OPEN_MAX {
            self.open.values_mut().for_each(|open| open.file = None);
        }
    }

    fn sync(&mut self, Sync { entry, file, stage }: Sync) {
        if entry.is_final() {
            return;
        }
        let named = |()| if self.has_new { self.folder.sync_all() } else { Ok(()) };
        let synced = file.sync_all().and_then(named);
        self.has_new &= synced.is_err();
        match synced {
            // A start that was synced changes nothing for anybody who waits.
            Ok(()) if stage == Stage::Recorded => {}
            Ok(()) => entry.reach(stage),
            Err(error) => self.lose(&entry, &error),
        }
    }

    /// A journal that is not whole would tell a lie about its job after a restart: better none.
    fn lose(&mut self, entry: &Arc<Entry>, error: &std::io::Error) {
        let id = entry.head.job_id;
        tracing::warn!(job = %id, %error, "a job's journal cannot be written: the job will not survive a restart");
        self.open.remove(&id);
        // If not even that goes, the next start finds it without an end.
        let _ = std::fs::remove_file(path_of(&self.dir, id));
        entry.reach(Stage::Lost);
    }
}

/// A journal that is being written.
struct Open {
    file: Option<File>,
    reader: Reader,
    /// Bytes that are whole lines.
    written: u64,
    events: u64,
    /// Lines not written yet, and the numbers of the events in them.
    lines: Vec<u8>,
    unwritten: std::ops::Range<u64>,
    last: Last,
    left_out: Option<LeftOut>,
    /// Why no more events are taken.
    full: Option<String>,
}

/// What the next event may join.
#[derive(Default)]
enum Last {
    #[default]
    Nothing,
    Tokens(Tokens),
    Progress(Event),
}

impl Open {
    fn new(reader: Reader) -> Self {
        Open {
            file: None,
            reader,
            written: 0,
            events: 0,
            lines: Vec::new(),
            unwritten: 0..0,
            last: Last::Nothing,
            left_out: None,
            full: None,
        }
    }

    /// Writes what there is; tells whether that was the end.
    fn append(&mut self, entry: &Entry, path: &Path) -> std::io::Result<bool> {
        if self.file.is_none() {
            let mut options = File::options();
            options.append(true).mode(0o600);
            let file = options.create_new(self.written == 0).open(path)?;
            self.file = Some(file);
        }
        if self.written == 0 {
            self.line(&Line::Job(entry.head.clone()));
            self.flush()?;
        }
        while let Some(step) = self.reader.ready() {
            match step {
                Step::Event(seq, event) => self.event(seq, event),
                Step::Missed { first, count } => {
                    self.settle();
                    self.leave_out(first, count, TOO_SLOW);
                }
                Step::End(_) => {
                    // Set before the terminator, always.
                    let Some(end) = entry.end.get() else { break };
                    self.settle();
                    self.flush_or_leave_out()?;
                    self.write_gap();
                    self.line(&Line::End(bounded(end.clone())));
                    self.flush()?;
                    return Ok(true);
                }
            }
            if self.lines.len() > WRITE_BYTES {
                self.flush_or_leave_out()?;
            }
        }
        self.settle();
        self.flush_or_leave_out()?;
        Ok(false)
    }

    fn event(&mut self, seq: u64, event: JobEvent) {
        match (event, &mut self.last) {
            (JobEvent::Token { index, text }, last) => {
                if let Last::Tokens(run) = last
                    && run.lengths.len() < RUN_TOKENS_MAX
                    && run.text.len() < RUN_BYTES_MAX
                    && run.take(seq, index, &text)
                {
                    return;
                }
                self.settle();
                let mut run = Tokens::default();
                run.take(seq, index, &text);
                self.last = Last::Tokens(run);
            }
            (event @ JobEvent::Progress { .. }, last) => {
                let overtaken = match last {
                    Last::Progress(before) if is_of_one_task(&before.event, &event) => before.overtaken + 1,
                    _ => {
                        self.settle();
                        0
                    }
                };
                self.last = Last::Progress(Event { seq, overtaken, event });
            }
            (event, _) => {
                self.settle();
                let is_last_word = matches!(event, JobEvent::Result(_) | JobEvent::Error(_));
                self.put(seq, 1, &Line::Event(Event { seq, overtaken: 0, event }), is_last_word);
            }
        }
    }

    /// Makes a line of what waited to be joined.
    fn settle(&mut self) {
        match std::mem::take(&mut self.last) {
            Last::Nothing => {}
            Last::Tokens(run) => {
                let (seq, count) = (run.seq, run.lengths.len() as u64);
                self.put(seq, count, &Line::Tokens(run), false);
            }
            Last::Progress(event) => {
                let (first, count) = (event.seq - event.overtaken, event.overtaken + 1);
                self.put(first, count, &Line::Event(event), false);
            }
        }
    }

    /// A line of `count` events, or the remark that they are not here.
    fn put(&mut self, seq: u64, count: u64, line: &Line, is_last_word: bool) {
        if let (Some(why), false) = (&self.full, is_last_word) {
            let why = why.clone();
            return self.leave_out(seq, count, &why);
        }
        let length = self.lines.len();
        self.write_gap();
        let begun = self.lines.len();
        self.line(line);
        let bytes = self.lines.len() - begun;
        let is_over = self.written + self.lines.len() as u64 > JOURNAL_BYTES_MAX
            || self.events + count > JOURNAL_EVENTS_MAX;
        if if is_last_word { bytes > RESULT_BYTES_MAX } else { is_over } {
            self.lines.truncate(length);
            if !is_last_word {
                self.full = Some(TOO_LONG.into());
            }
            return self.leave_out(seq, count, TOO_LONG);
        }
        self.left_out = None;
        self.events += count;
        if self.unwritten.is_empty() {
            self.unwritten.start = seq;
        }
        self.unwritten.end = seq + count;
    }

    fn leave_out(&mut self, seq: u64, count: u64, why: &str) {
        match &mut self.left_out {
            Some(gap) if gap.seq + gap.count == seq => gap.count += count,
            _ => {
                self.write_gap();
                self.left_out = Some(LeftOut { seq, count, why: why.into() });
            }
        }
    }

    fn write_gap(&mut self) {
        if let Some(gap) = self.left_out.clone() {
            self.line(&Line::LeftOut(gap));
        }
    }

    fn line(&mut self, line: &Line) {
        serde_json::to_writer(&mut self.lines, line)
            .expect("what is journalled always has string keys and finite numbers");
        self.lines.push(b'\n');
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = file.write_all(&self.lines);
        let length = self.lines.len() as u64;
        self.lines.clear();
        if let Err(error) = written {
            // A part of it may be there.
            file.set_len(self.written)?;
            return Err(error);
        }
        self.unwritten = 0..0;
        self.written += length;
        Ok(())
    }

    /// A full disk costs events; only without its first line or its end a journal is none.
    fn flush_or_leave_out(&mut self) -> std::io::Result<()> {
        let lost = self.unwritten.clone();
        let Err(error) = self.flush() else { return Ok(()) };
        self.unwritten = 0..0;
        let why = format!("writing failed: {error}");
        if !lost.is_empty() {
            self.left_out = Some(LeftOut { seq: lost.start, count: lost.end - lost.start, why: why.clone() });
        }
        self.full = Some(why);
        Ok(())
    }
}

fn is_of_one_task(before: &JobEvent, after: &JobEvent) -> bool {
    matches!((before, after), (JobEvent::Progress { task: a, .. }, JobEvent::Progress { task: b, .. }) if a == b)
}

/// An end that fits in a line of [`FRAME_BYTES_MAX`]; the error event before it has the whole.
fn bounded(mut end: End) -> End {
    let too_long = |end: &End| serde_json::to_vec(end).is_ok_and(|bytes| bytes.len() > FRAME_BYTES_MAX / 2);
    if !too_long(&end) {
        return end;
    }
    if let Some(error) = &mut end.error {
        error.details = serde_json::Value::Null;
        error.message = error.message.chars().take(FRAME_BYTES_MAX / 16).collect();
    }
    if let Some(receipt) = &mut end.receipt {
        receipt.survivors.truncate(16);
        for survivor in &mut receipt.survivors {
            survivor.command = survivor.command.chars().take(256).collect();
        }
    }
    end
}
