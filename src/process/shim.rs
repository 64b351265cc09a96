//! The hidden role that owns one tree: one thread, one `poll`, no runtime, so that it forks soundly, arms the death
//! signal on its child, costs next to nothing while a model runs for weeks, and has little in it that could fail.
//!
//! ```text
//!  Waiting ──first lease: start──▶ Running ──leader exits, others live──▶ Lingering ──output idle──┐
//!     │ nobody came                   │ asked · SIGTERM · no lease for orphan_ttl                  ▼
//!     ▼                               └──▶ Terminating (TERM, CONT) ──grace over──▶ Killing (KILL, sweep)
//!   gone ◀── told ── Farewell (receipt) ◀──── no child left, from any phase; or 2 s of Killing ────┘
//! ```

use super::capture::{CappedLog, Line, Splitter};
use super::confine::Walls;
use super::contain::{Contained, Held};
use super::identity::Identity;
use super::lease::Lease;
use super::protocol::{Asked, Exit, Hello, LEASE_PROTOCOL, Said};
use super::record::{Files, Record, Spec};
use super::remove::remove_tree;
use super::watcher::Watcher;
use super::{inherited_listener, platform, spawn};
use crate::wire::job::{Receipt, Survivor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where the shim finds its own listener; `inherited::LISTENER_FD` is the same number in the child.
pub(super) const OWN_LISTENER_FD: i32 = 3;
pub(super) const CHILD_LISTENER_FD: i32 = 4;

/// How long a shim waits for whoever started it to take the first lease.
const FIRST_LEASE_MAX: Duration = Duration::from_secs(10);
/// The longest grace anybody may ask for; clocks end somewhere.
pub(super) const GRACE_MAX: Duration = Duration::from_secs(24 * 3600);
/// After the leader's exit: how long others may stay silent before they are swept, and how long they may talk.
const LINGER_IDLE_MAX: Duration = Duration::from_millis(100);
pub(super) const LINGER_MAX: Duration = Duration::from_secs(2);
/// After KILL: how long to wait for the kernel. What is left then (stuck in a device) is told, not waited for.
pub(super) const VERIFY_MAX: Duration = Duration::from_secs(2);
/// After KILL: how often to look for what was forked meanwhile; only a rung that is not atomic ever needs a second look.
const SWEEP_EVERY: Duration = Duration::from_millis(20);
/// How long a holder may take to read the receipt.
const FAREWELL_MAX: Duration = Duration::from_secs(60);
/// How many watchers one tree may lose before that is taken for an attack.
const WATCHERS_MAX: u32 = 100;
const LEASES_MAX: usize = 16;
const READ_BYTES: usize = 64 * 1024;
/// Output still in the pipe when the tree has ended: at most what a pipe holds.
const DRAIN_READS_MAX: usize = 32;

/// Runs the shim of the tree recorded at `record_path`, started by `launch` with its listener as descriptor 3.
/// The result is the process's exit code.
pub fn shim_main(record_path: &Path) -> u8 {
    match Shim::open(record_path).and_then(Shim::run) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rbee shim: {error}");
            1
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Waiting { until: Instant },
    Running,
    Lingering { idle: Instant, until: Instant },
    Terminating { until: Instant },
    Killing { until: Instant, sweep: Instant },
    Farewell { until: Instant },
    Gone,
}

/// Where output goes: into a log, to the lease holders as lines, or both.
struct Sink {
    log: Option<CappedLog>,
    lines: Option<Splitter>,
}

impl Sink {
    fn of(spec: &Spec) -> io::Result<Sink> {
        let open = if spec.log_append { CappedLog::go_on } else { CappedLog::begin };
        let lines = (spec.tell || spec.log.is_none()).then(Splitter::default);
        Ok(Sink { log: spec.log.as_deref().map(open).transpose()?, lines })
    }
}

fn tell_line(leases: &mut [Lease], line: &Line<'_>) {
    let text = leases.iter().any(Lease::has_room).then(|| line.text());
    leases.iter_mut().for_each(|lease| lease.tell_line(text.as_deref()));
}

struct Child {
    tree: Contained,
    identity: Identity,
    output: Option<OwnedFd>,
    exit: Option<Exit>,
    reaped: u32,
    /// The end of the tree, once begun: when, and what memory it had then.
    ending: Option<(Instant, u64)>,
    walls: Walls,
    /// Closing it tells the child that the shim is gone.
    _alive: OwnedFd,
}

struct Shim {
    files: Files,
    record: Record,
    identity: Identity,
    held: Held,
    watcher: Option<Watcher>,
    watchers_left: u32,
    listener: UnixListener,
    inherit: Option<OwnedFd>,
    signals: Signals,
    sink: Sink,
    leases: Vec<Lease>,
    /// When the tree ends for want of a lease.
    orphaned: Option<Instant>,
    child: Option<Child>,
    /// A holder was told how it ended, so what is left to do is the holder's.
    told: bool,
    phase: Phase,
}

/// The signals of interest as a descriptor that `poll` can wait for.
struct Signals {
    arrived: UnixStream,
    terminate: Arc<AtomicBool>,
}

impl Signals {
    fn catch() -> io::Result<Signals> {
        use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        let (arrived, sender) = UnixStream::pair()?;
        arrived.set_nonblocking(true)?;
        let terminate = Arc::new(AtomicBool::new(false));
        // The flag is set before the byte is sent, so that who reads the byte sees the flag.
        signal_hook::flag::register(SIGTERM, terminate.clone())?;
        // INT, HUP and QUIT are caught only to survive them: a terminal's Ctrl-C is for the hive or the keeper. Caught
        // rather than ignored, because ignoring would be inherited by the child.
        for signal in [SIGTERM, SIGCHLD, SIGINT, SIGHUP, SIGQUIT] {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Signals { arrived, terminate })
    }

    fn clear(&mut self) {
        let mut buffer = [0u8; 256];
        while matches!(io::Read::read(&mut self.arrived, &mut buffer), Ok(count) if count > 0) {}
    }
}

impl Shim {
    fn open(record_path: &Path) -> io::Result<Shim> {
        let files = Files::beside(record_path);
        // The descriptors first: nothing else may have taken their numbers.
        let listener = inherited_listener(OWN_LISTENER_FD)?;
        let mut record = files.read().map_err(io::Error::other)?;
        let inherit = match record.inherits {
            true => Some(inherited_listener(CHILD_LISTENER_FD)?.into()),
            false => None,
        };
        platform::name_this_process(c"rbee-shim");
        let signals = Signals::catch()?;
        rustix::process::setsid()?;
        platform::adopt_orphans()?;
        listener.set_nonblocking(true)?;
        // Listening again makes this process, not the hive that bound the socket, the one that peers see.
        rustix::net::listen(&listener, LEASES_MAX as i32)?;

        let identity = Identity::of_this_process().ok_or(io::ErrorKind::NotFound)?;
        let held = Held::choose(&record.spec, &files.record);
        record.shim = Some(identity.clone());
        record.containment = held.name();
        // Known before anything is in it, so that whoever finds the record finds all.
        record.cgroup = held.cgroup.as_ref().map(|cgroup| cgroup.path.clone());
        files.write(&record).map_err(io::Error::other)?;
        let sink = Sink::of(&record.spec)?;
        Ok(Shim {
            files,
            record,
            identity,
            held,
            watcher: None,
            watchers_left: WATCHERS_MAX,
            listener,
            inherit,
            signals,
            sink,
            leases: Vec::new(),
            orphaned: None,
            child: None,
            told: false,
            phase: Phase::Waiting { until: Instant::now() + FIRST_LEASE_MAX },
        })
    }

    fn run(mut self) -> io::Result<()> {
        while self.phase != Phase::Gone {
            let events = self.wait()?;
            if events.signals {
                self.signals.clear();
            }
            if events.output {
                self.read_output(1);
            }
            self.reap()?;
            if events.watcher {
                self.replace_watcher();
            }
            self.hear_leases(&events.leases);
            if events.listener {
                self.accept();
            }
            if self.signals.terminate.swap(false, Ordering::Relaxed) {
                self.terminate(self.record.spec.grace());
            }
            self.pass_deadlines();
        }
        self.remove_scratch();
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
        // Leases close with the process, not a moment before it: their holders take that for its end.
        std::mem::forget(self);
        Ok(())
    }

    fn wait(&self) -> io::Result<Events> {
        let now = Instant::now();
        let timeout = self.next_deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(now);
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let output = self.child.as_ref().and_then(|child| child.output.as_ref());
        let mut fds = vec![
            PollFd::new(&self.signals.arrived, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        fds.extend(self.leases.iter().map(|lease| {
            let more = if lease.has_more_to_tell() { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::new(&lease.stream, PollFlags::IN | more)
        }));
        let aside = [self.watcher.as_ref().map(|watcher| watcher.lives.as_fd()), self.init_control()];
        fds.extend(aside.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        fds.extend(output.map(|output| PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let leases = ready[2..2 + self.leases.len()].to_vec();
        let output = output.is_some() && ready[ready.len() - 1];
        // What the first process of a namespace says is heard at every reaping.
        let watcher = aside[0].is_some() && ready[2 + self.leases.len()];
        Ok(Events { signals: ready[0], listener: ready[1], output, leases, watcher })
    }

    #[cfg(target_os = "linux")]
    fn init_control(&self) -> Option<BorrowedFd<'_>> {
        let child = self.child.as_ref().filter(|child| child.exit.is_none())?;
        Some(child.tree.init.as_ref()?.control().as_fd())
    }

    #[cfg(not(target_os = "linux"))]
    fn init_control(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { until } | Phase::Terminating { until } | Phase::Farewell { until } => {
                Some(until)
            }
            Phase::Lingering { idle, until } => Some(idle.min(until).min(self.orphaned.unwrap_or(until))),
            Phase::Killing { until, sweep } => Some(until.min(sweep)),
            Phase::Running => self.orphaned,
            Phase::Gone => None,
        }
    }

    fn pass_deadlines(&mut self) {
        let now = Instant::now();
        match self.phase {
            Phase::Waiting { until } if now >= until => self.leave(),
            Phase::Running | Phase::Lingering { .. }
                if self.orphaned.is_some_and(|deadline| now >= deadline) =>
            {
                self.terminate(self.record.spec.grace());
            }
            Phase::Lingering { idle, until } if now >= idle.min(until) => self.kill(),
            Phase::Terminating { until } if now >= until => self.kill(),
            Phase::Killing { until, .. } if now >= until => self.farewell(),
            Phase::Killing { until, sweep } if now >= sweep => {
                self.kill_all();
                self.phase = Phase::Killing { until, sweep: now + SWEEP_EVERY };
            }
            Phase::Farewell { until } if now >= until || !self.leases.iter().any(Lease::has_more_to_tell) => {
                self.phase = Phase::Gone;
            }
            _ => {}
        }
    }

    // ── leases

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let ours = platform::peer_uid(&stream)
                .is_ok_and(|uid| uid == 0 || uid == rustix::process::geteuid().as_raw());
            if !ours || self.leases.len() >= LEASES_MAX {
                continue;
            }
            let Ok(lease) = Lease::new(stream) else { continue };
            self.leases.push(lease);
            self.orphaned = None;
            // Started for its first holder, so that a hive killed before it came leaves nothing behind.
            if matches!(self.phase, Phase::Waiting { .. }) {
                self.start();
            }
            let hello = self.hello();
            if let (Some(hello), Some(lease)) = (hello, self.leases.last_mut()) {
                lease.tell(&hello);
            }
            self.flush_leases();
        }
    }

    fn hello(&self) -> Option<Said> {
        let child = self.child.as_ref()?;
        let hello = Hello {
            version: LEASE_PROTOCOL,
            id: self.record.spec.id.clone(),
            shim: self.identity.clone(),
            child: child.identity.clone(),
            containment: self.record.containment.clone(),
            walls: child.walls.clone(),
            note: self.record.spec.note.clone(),
        };
        Some(Said { hello: Some(hello), exited: child.exit, ..Said::default() })
    }

    fn tell_all(&mut self, message: &Said) {
        for lease in &mut self.leases {
            lease.tell(message);
        }
        self.flush_leases();
    }

    fn flush_leases(&mut self) {
        self.leases.retain_mut(Lease::flush);
        if matches!(self.phase, Phase::Farewell { .. }) {
            self.told |= self.leases.iter().any(|lease| !lease.has_more_to_tell());
        }
        self.notice_orphaning();
    }

    fn hear_leases(&mut self, ready: &[bool]) {
        let mut asked = Vec::new();
        let mut index = 0;
        self.leases.retain_mut(|lease| {
            let is_ready = ready.get(index).copied().unwrap_or(false);
            index += 1;
            if !is_ready {
                return true;
            }
            match lease.listen() {
                Some(words) => {
                    asked.extend(words);
                    true
                }
                None => false,
            }
        });
        for Asked { stop, note } in asked {
            if let Some(note) = note {
                self.record.spec.note = note;
                // A hive that adopts hears it from us; the file is for people and for a sweep.
                if let Err(error) = self.files.write(&self.record) {
                    eprintln!("rbee shim: {error}");
                }
            }
            if let Some(stop) = stop {
                self.terminate(Duration::from_millis(stop.grace_ms));
            }
        }
        self.flush_leases();
    }

    fn notice_orphaning(&mut self) {
        if self.leases.is_empty() && self.orphaned.is_none() && self.child.is_some() {
            self.orphaned = Some(Instant::now() + self.record.spec.orphan_ttl());
        }
    }

    // ── the tree

    fn start(&mut self) {
        // First, so that there is no moment in which the tree is unwatched.
        let watched = if self.held.needs_watcher() { self.watch() } else { Ok(()) };
        let started = watched.and_then(|()| spawn::start(&self.record.spec, self.inherit.take(), &self.held));
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                self.remove_cgroup();
                self.files.remove();
                self.phase = Phase::Farewell { until: Instant::now() + FAREWELL_MAX };
                self.tell_all(&Said { failed: Some(error.to_string()), ..Said::default() });
                return;
            }
        };
        self.record.child = Some(started.identity.clone());
        if let Some(watcher) = &mut self.watcher {
            watcher.tell_leader(started.identity.pid);
        }
        #[cfg(target_os = "linux")]
        {
            self.record.init = started.init.as_ref().map(|init| init.identity.clone());
        }
        // Without it an adopting hive asks the shim, and a sweep goes by the session: the tree is worth more.
        if let Err(error) = self.files.write(&self.record) {
            eprintln!("rbee shim: {error}");
        }
        self.child = Some(Child {
            tree: Contained {
                shim: rustix::process::getpid(),
                leader: started.pid,
                watcher: self.watcher.as_ref().and_then(|watcher| watcher.pid),
                #[cfg(target_os = "linux")]
                init: started.init,
            },
            identity: started.identity,
            output: Some(started.output),
            exit: None,
            reaped: 0,
            ending: None,
            walls: started.walls,
            _alive: started.alive,
        });
        self.phase = Phase::Running;
    }

    /// Another sibling that watches this process, while there are any left to try.
    fn watch(&mut self) -> io::Result<()> {
        self.watchers_left =
            self.watchers_left.checked_sub(1).ok_or_else(|| io::Error::other("its watchers are killed"))?;
        let watcher = Watcher::start(&self.record)?;
        if let Some(child) = &mut self.child {
            child.tree.watcher = watcher.pid;
        }
        if let Some(dead) = self.watcher.replace(watcher) {
            dead.collect();
        }
        Ok(())
    }

    /// The watcher has died: a tree that nobody would end after this process is not left to run.
    fn replace_watcher(&mut self) {
        if let Err(error) = self.watch() {
            eprintln!("rbee shim: {error}");
            if let Some(dead) = self.watcher.take() {
                dead.collect();
            }
            self.terminate(self.record.spec.grace());
        }
    }

    /// Collects every child that has ended, its own and adopted; none left means the tree has ended.
    fn reap(&mut self) -> io::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let mut leader_exit = None;
        #[cfg(target_os = "linux")]
        if let Some(init) = child.tree.init.as_mut().filter(|_| child.exit.is_none()) {
            leader_exit = init.leader_exit();
        }
        let none_left = loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(None) => break false,
                Err(rustix::io::Errno::CHILD) => break true,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(Some((pid, status))) => {
                    #[cfg(target_os = "linux")]
                    if let Some(init) =
                        child.tree.init.as_mut().filter(|init| init.identity.pid == pid.as_raw_pid())
                    {
                        if child.exit.is_none() {
                            // What was not told by now was killed with it.
                            let exit = leader_exit.or_else(|| init.leader_exit());
                            leader_exit = exit.or(Some(Exit::Signal(libc::SIGKILL)));
                        }
                        continue;
                    }
                    child.reaped += 1;
                    if pid == child.tree.leader {
                        leader_exit = Exit::of(status);
                    }
                }
            }
        };
        // Where orphans go elsewhere (macOS) having no child does not mean that the group is empty.
        let ended = none_left && (platform::ORPHANS_STAY_BELOW || child.tree.group_is_empty());
        if let Some(exit) = leader_exit {
            child.exit = Some(exit);
            self.tell_all(&Said { exited: Some(exit), ..Said::default() });
            if self.phase == Phase::Running && !ended {
                self.begin_end();
                let now = Instant::now();
                self.phase = Phase::Lingering { idle: now + LINGER_IDLE_MAX, until: now + LINGER_MAX };
            }
        }
        if ended && !matches!(self.phase, Phase::Farewell { .. } | Phase::Gone) {
            self.farewell();
        }
        Ok(())
    }

    /// TERM to everyone, and CONT so that the stopped hear it. Asked again, the shorter grace wins.
    fn terminate(&mut self, grace: Duration) {
        let until = Instant::now() + grace.min(GRACE_MAX);
        match self.phase {
            Phase::Running | Phase::Lingering { .. } if !grace.is_zero() => {
                self.begin_end();
                self.signal(&[Signal::TERM, Signal::CONT]);
                self.phase = Phase::Terminating { until };
            }
            Phase::Running | Phase::Lingering { .. } => self.kill(),
            Phase::Terminating { until: before } => {
                self.phase = Phase::Terminating { until: until.min(before) }
            }
            // Waiting: nothing was started yet. Killing and after: nothing is faster.
            Phase::Waiting { .. } => self.leave(),
            Phase::Killing { .. } | Phase::Farewell { .. } | Phase::Gone => {}
        }
    }

    fn kill(&mut self) {
        self.begin_end();
        self.kill_all();
        let now = Instant::now();
        self.phase = Phase::Killing { until: now + VERIFY_MAX, sweep: now + SWEEP_EVERY };
    }

    fn signal(&self, signals: &[Signal]) {
        if let Some(child) = &self.child {
            child.tree.signal(signals, child.exit.is_some());
        }
    }

    fn kill_all(&mut self) {
        if let Some(child) = &mut self.child {
            child.tree.kill(&self.held, child.exit.is_some());
        }
    }

    fn begin_end(&mut self) {
        if let Some(child) = &mut self.child
            && child.ending.is_none()
        {
            let members = child.tree.members();
            let memory = members.iter().filter_map(|entry| platform::memory_bytes(entry.pid)).sum();
            child.ending = Some((Instant::now(), memory));
        }
    }

    /// The tree has ended, or what is left of it cannot: tells the receipt.
    fn farewell(&mut self) {
        self.read_output(DRAIN_READS_MAX);
        if let Some(splitter) = &mut self.sink.lines {
            splitter.finish(|line| tell_line(&mut self.leases, &line));
        }
        let mut receipt = self.receipt();
        receipt.bytes_removed = self.remove_scratch();
        self.remove_cgroup();
        // Before the receipt: whoever reads it may start a tree of the same name, and these would be its files.
        self.files.remove();
        self.phase = Phase::Farewell { until: Instant::now() + FAREWELL_MAX };
        self.tell_all(&Said { receipt: Some(receipt), ..Said::default() });
    }

    fn receipt(&self) -> Receipt {
        let Some(child) = &self.child else { return Receipt::default() };
        let (began, memory_before) = child.ending.unwrap_or((Instant::now(), 0));
        let left = child.tree.members();
        let memory_left: u64 = left.iter().filter_map(|entry| platform::memory_bytes(entry.pid)).sum();
        Receipt {
            clean: left.is_empty(),
            containment: self.record.containment.clone(),
            processes_reaped: child.reaped + child.tree.reaped_inside(left.len()),
            survivors: left
                .iter()
                .map(|entry| Survivor { pid: entry.pid, command: platform::command(entry.pid) })
                .collect(),
            bytes_removed: 0,
            memory_returned_bytes: memory_before.saturating_sub(memory_left),
            ms: began.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
        }
    }

    /// An empty one; what the kernel could not end keeps its group, which the next tree of this name ends.
    fn remove_cgroup(&mut self) {
        if let Some(cgroup) = self.held.cgroup.take()
            && !cgroup.remove(VERIFY_MAX)
        {
            eprintln!("rbee shim: removing {}: it is not empty", cgroup.path.display());
        }
    }

    /// What the tree worked in, when nobody is left who would remove it; how much that gave back.
    fn remove_scratch(&mut self) -> u64 {
        if !self.leases.is_empty() || self.told {
            return 0;
        }
        let Some(scratch) = self.record.spec.scratch.take() else { return 0 };
        // A hive that starts meanwhile is not to wait for this: it finds nobody here, and does it itself.
        self.files.remove_socket();
        remove_tree(&scratch).unwrap_or_else(|error| {
            eprintln!("rbee shim: removing {}: {error}", scratch.display());
            0
        })
    }

    /// Ends without having started anything.
    fn leave(&mut self) {
        self.remove_scratch();
        self.remove_cgroup();
        self.files.remove();
        self.phase = Phase::Gone;
    }

    // ── output

    fn read_output(&mut self, reads_max: usize) {
        let mut buffer = [0u8; READ_BYTES];
        for _ in 0..reads_max {
            let Some(output) = self.child.as_ref().and_then(|child| child.output.as_ref()) else { return };
            match rustix::io::read(output, &mut buffer) {
                Ok(0) => self.close_output(),
                Ok(count) => self.take_output(&buffer[..count]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => self.close_output(),
            }
        }
    }

    fn take_output(&mut self, bytes: &[u8]) {
        if let Phase::Lingering { until, .. } = self.phase {
            self.phase = Phase::Lingering { idle: Instant::now() + LINGER_IDLE_MAX, until };
        }
        if let Some(log) = &mut self.sink.log {
            // A full disk loses output, not the child.
            let _ = log.write(bytes);
        }
        if let Some(splitter) = &mut self.sink.lines {
            splitter.push(bytes, |line| tell_line(&mut self.leases, &line));
        }
    }

    fn close_output(&mut self) {
        if let Some(child) = &mut self.child {
            child.output = None;
        }
        // Nobody can write any more, so there is nothing to linger for.
        if let Phase::Lingering { until, .. } = self.phase {
            self.phase = Phase::Lingering { idle: Instant::now(), until };
        }
    }
}

struct Events {
    signals: bool,
    listener: bool,
    output: bool,
    leases: Vec<bool>,
    watcher: bool,
}
