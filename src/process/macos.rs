//! What macOS knows about processes: libproc. It has no subreaper, no death signal and no way to pin a group, so the
//! containment here is the group and a sweep, and a tree whose shim is killed is swept by the next who looks.

use super::identity::{Entry, Identity};
use rustix::event::kqueue::{Event, EventFilter, EventFlags, ProcessEvents, kevent, kqueue};
use rustix::process::{Pid, Signal};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Orphans go to launchd; only their group tells that they were ours.
pub(super) const ORPHANS_STAY_BELOW: bool = false;

const ZOMBIE: u32 = 5;
/// proc_pidinfo's argument, without which it knows no process that has ended and was not asked about yet.
const ALSO_ZOMBIES: u64 = 1;
/// More than a Mac may run at once by default (kern.maxproc); the table is cut there.
const PROCESSES_MAX: usize = 16_384;

pub fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// The boot session's UUID: unlike the boot time it does not move when the clock is set.
pub(super) fn boot() -> String {
    text(c"kern.bootsessionuuid")
}

/// A text that the kernel tells by name, or none.
fn text(name: &std::ffi::CStr) -> String {
    let mut text = [0u8; 128];
    let mut length = text.len();
    // SAFETY: the name is a C string, the buffer is ours and its length is passed in and updated.
    let failed = unsafe {
        libc::sysctlbyname(name.as_ptr(), text.as_mut_ptr().cast(), &raw mut length, std::ptr::null_mut(), 0)
    };
    if failed != 0 {
        return String::new();
    }
    String::from_utf8_lossy(&text[..length]).trim_end_matches('\0').to_owned()
}

/// One of libproc's fixed structures about one process.
fn information<T>(pid: i32, flavor: libc::c_int, argument: u64) -> Option<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let size = libc::c_int::try_from(size_of::<T>()).ok()?;
    // SAFETY: the buffer is as long as said, and the kernel fills plain integers; all zeroes is a valid value of them.
    unsafe {
        let filled = libc::proc_pidinfo(pid, flavor, argument, value.as_mut_ptr().cast(), size);
        (filled == size).then(|| value.assume_init())
    }
}

pub(super) fn process(pid: i32) -> Option<Entry> {
    let facts: libc::proc_bsdinfo = information(pid, libc::PROC_PIDTBSDINFO, ALSO_ZOMBIES)?;
    Some(Entry {
        pid,
        parent: i32::try_from(facts.pbi_ppid).ok()?,
        group: i32::try_from(facts.pbi_pgid).ok()?,
        session: 0,
        start: facts.pbi_start_tvsec * 1_000_000 + facts.pbi_start_tvusec,
        zombie: facts.pbi_status == ZOMBIE,
    })
}

pub(super) fn processes() -> Vec<Entry> {
    let mut pids = vec![0i32; PROCESSES_MAX];
    let bytes = libc::c_int::try_from(std::mem::size_of_val(pids.as_slice())).unwrap_or(libc::c_int::MAX);
    // SAFETY: the buffer is ours and as long as said.
    let count = unsafe { libc::proc_listallpids(pids.as_mut_ptr().cast(), bytes) };
    pids.truncate(usize::try_from(count).unwrap_or(0));
    pids.into_iter().filter_map(process).collect()
}

pub(super) fn command(pid: i32) -> String {
    let Some(facts) = information::<libc::proc_bsdinfo>(pid, libc::PROC_PIDTBSDINFO, ALSO_ZOMBIES) else {
        return String::new();
    };
    let bytes: Vec<u8> =
        facts.pbi_name.iter().map(|c| c.cast_unsigned()).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The memory a process has in RAM.
pub fn memory_bytes(pid: i32) -> Option<u64> {
    information::<libc::proc_taskinfo>(pid, libc::PROC_PIDTASKINFO, 0).map(|facts| facts.pti_resident_size)
}

/// Not told apart here from the rest of it: what is counted twice by that leaves a Mac some room.
pub fn mapped_bytes(pid: i32) -> Option<u64> {
    memory_bytes(pid)
}

/// A number that the kernel tells by name.
fn number<T: Default>(name: &std::ffi::CStr) -> Option<T> {
    let mut value = T::default();
    let mut length = size_of::<T>();
    // SAFETY: the name is a C string, the buffer is ours and its length is passed in; only plain integers are asked for.
    let failed = unsafe {
        libc::sysctlbyname(name.as_ptr(), (&raw mut value).cast(), &raw mut length, std::ptr::null_mut(), 0)
    };
    (failed == 0 && length == size_of::<T>()).then_some(value)
}

/// All memory, and what could be had of it: free pages, what programs have said they can do without, and files, which can be
/// read again.
pub fn machine_memory() -> Option<(u64, u64)> {
    let total: u64 = number(c"hw.memsize")?;
    let page: u64 = number(c"hw.pagesize")?;
    let mut told = std::mem::MaybeUninit::<libc::vm_statistics64>::zeroed();
    let mut words = libc::HOST_VM_INFO64_COUNT;
    // SAFETY: the buffer is as long as the count says, in words, and the kernel fills plain integers; all zeroes is a valid
    // value of them. The host's port is this process's to ask.
    let told = unsafe {
        #[expect(deprecated, reason = "another crate for one number")]
        let host = libc::mach_host_self();
        let failed =
            libc::host_statistics64(host, libc::HOST_VM_INFO64, told.as_mut_ptr().cast(), &raw mut words);
        (failed == 0).then(|| told.assume_init())?
    };
    let pages = [told.free_count, told.purgeable_count, told.external_page_count].map(u64::from);
    Some((total, (pages.iter().sum::<u64>() * page).min(total)))
}

/// Of `total`, what Metal lets programs have: what the person has set, or Apple's share.
pub fn gpu_memory_max(total: u64) -> u64 {
    const LARGE: u64 = 36 << 30;
    match number::<u32>(c"iogpu.wired_limit_mb") {
        Some(mebibytes) if mebibytes > 0 => (u64::from(mebibytes) << 20).min(total),
        _ if total > LARGE => total / 4 * 3,
        _ => total / 3 * 2,
    }
}

/// What the processor is called.
pub fn cpu_name() -> Option<String> {
    Some(text(c"machdep.cpu.brand_string")).filter(|name| !name.is_empty())
}

/// Not offered here: orphans go to launchd and are found by their group.
pub(super) fn adopt_orphans() -> io::Result<()> {
    Ok(())
}

/// Not offered here: our own worker watches the shim's pipe instead.
pub(super) fn die_with(_parent: Option<Pid>) -> io::Result<()> {
    Ok(())
}

/// Between fork and exec: nothing from `first` upwards is passed on. Marked, not closed: the standard library tells by one of
/// them why a program could not be started.
pub(super) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: asks for a number.
    let most = unsafe { libc::getdtablesize() };
    for fd in i32::try_from(first).unwrap_or(i32::MAX)..most {
        // SAFETY: a plain system call; on a number that is no descriptor it does nothing.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// Kills this process. Without process handles there is a moment between the look and the signal.
pub(super) fn kill(identity: &Identity) {
    if let Some(pid) = Pid::from_raw(identity.pid).filter(|_| identity.still_lives()) {
        // Already ended is as good.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Waits until all of these processes, children of anybody, have ended, or the time is over.
pub(super) fn wait_for_end(pids: &[i32], limit: Duration) {
    let until = Instant::now() + limit;
    let Ok(queue) = kqueue() else { return };
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let exit = EventFilter::Proc { pid, flags: ProcessEvents::EXIT };
        let watch = Event::new(exit, EventFlags::ADD | EventFlags::ONESHOT, std::ptr::null_mut());
        let mut ended: Vec<Event> = Vec::with_capacity(1);
        let left = until.saturating_duration_since(Instant::now());
        // SAFETY: the descriptor is open; processes are named by number, not by a descriptor that could be closed.
        // An error (it has ended already) or the timeout: who asked looks again at what lives.
        let _ = unsafe { kevent(&queue, &[watch], rustix::buffer::spare_capacity(&mut ended), Some(left)) };
    }
}

/// Whether it listens is not told here, only whether it is a socket.
pub(super) fn is_listening(fd: &OwnedFd) -> io::Result<bool> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    Ok(rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::Socket)
}

pub(super) fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    let (mut user, mut group) = (0, 0);
    // SAFETY: the descriptor is open for the whole call, and both results are ours.
    match unsafe { libc::getpeereid(stream.as_raw_fd(), &raw mut user, &raw mut group) } {
        0 => Ok(user),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Not needed here: `ps` shows the program's own name.
pub(super) fn name_this_process(_name: &std::ffi::CStr) {}

/// Who a fork aside has returned to.
pub(super) enum Aside {
    Parent(Option<i32>),
    Child,
}

/// A process beside the tree: launchd's child, because its own parent ends at once. For a process of one thread.
pub(super) fn fork_aside() -> io::Result<Aside> {
    // SAFETY: a shim has one thread, so the child may do all that this process may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as above.
        0 => match unsafe { libc::fork() } {
            0 => Ok(Aside::Child),
            pid => leave(i32::from(pid < 0)),
        },
        between => {
            let mut status = 0;
            // SAFETY: the status is ours.
            while unsafe { libc::waitpid(between, &raw mut status, 0) } < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
            if status == 0 { Ok(Aside::Parent(None)) } else { Err(io::ErrorKind::WouldBlock.into()) }
        }
    }
}

/// In such a process: closes what it has of its parent's.
pub(super) fn only_keep(kept: &mut [i32]) {
    // SAFETY: asks for a number.
    let most = unsafe { libc::getdtablesize() };
    for fd in (3..most).filter(|fd| !kept.contains(fd)) {
        // SAFETY: the process ends by `leave`, so that nothing of its parent's is used or dropped in it.
        unsafe { libc::close(fd) };
    }
}

/// Ends such a process without running what its parent has registered for its own end.
pub(super) fn leave(code: i32) -> ! {
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::_exit(code) }
}

/// Nothing to do: launchd reaps it.
pub(super) fn reap_aside(_pid: i32) {}

/// What a terminal or a careless `kill` sends is not for this process.
pub(super) fn ignore_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
        // SAFETY: plain system calls without memory of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
