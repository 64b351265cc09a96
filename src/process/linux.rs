//! What Linux knows about processes: /proc, subreapers, death signals.

use super::fork;
use super::identity::{Entry, Identity};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A subreaper inherits every orphan below it, so descent finds all of a tree, and having no child means it has ended.
pub(super) const ORPHANS_STAY_BELOW: bool = true;

/// The running program, also after an update has replaced its file: the kernel keeps this link to the inode.
pub fn own_program() -> io::Result<PathBuf> {
    Ok(PathBuf::from("/proc/self/exe"))
}

/// The boot's id and the PID namespace: a record shared by containers must not name a stranger in another one.
pub(super) fn boot() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

pub(super) fn process(pid: i32) -> Option<Entry> {
    entry(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

pub(super) fn processes() -> Vec<Entry> {
    let Ok(directory) = std::fs::read_dir("/proc") else { return Vec::new() };
    directory
        .flatten()
        .filter_map(|found| found.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(process)
        .collect()
}

/// A line of /proc/PID/stat. The command stands in parentheses and may hold spaces and parentheses of its own.
fn entry(stat: &str) -> Option<Entry> {
    let pid = stat.split_whitespace().next()?.parse().ok()?;
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let number = |index: usize| -> Option<i32> { fields.get(index)?.parse().ok() };
    Some(Entry {
        pid,
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        start: fields.get(19)?.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X" | "x"),
    })
}

pub(super) fn command(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> = bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    if words.is_empty() {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        return format!("[{}]", name.trim());
    }
    words.join(" ").chars().take(200).collect()
}

/// The memory a process has in RAM.
pub fn memory_bytes(pid: i32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

/// The part of it that is mapped files: the kernel calls those pages available.
pub fn mapped_bytes(pid: i32) -> Option<u64> {
    status_bytes(pid, "RssFile:")
}

fn status_bytes(pid: i32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Orphans below this process become its own children, so nothing can slip away to init.
pub(super) fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(Pid::INIT))?)
}

/// Between fork and exec: die when `parent` does. It may have died before this took hold, hence the second look.
pub(super) fn die_with(parent: Option<Pid>) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
}

/// Between fork and exec: nothing from `first` upwards is passed on, whatever was left open by whoever started us.
pub(super) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: only sets a flag on descriptors, and is a plain system call.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    match done {
        0 => Ok(()),
        // Before Linux 5.11 there is no such call or flag; our own descriptors are close-on-exec from birth anyway.
        _ => match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENOSYS | libc::EINVAL | libc::EPERM) => Ok(()),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Kills exactly this process: the handle is opened first and the identity read after, so the number cannot have moved.
pub(super) fn kill(identity: &Identity) {
    let Some(handle) = Pid::from_raw(identity.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
    else {
        return;
    };
    if identity.still_lives() {
        // Already ended is as good.
        let _ = pidfd_send_signal(&handle, Signal::KILL);
    }
}

/// Waits until all of these processes, children of anybody, have ended, or the time is over.
pub(super) fn wait_for_end(pids: &[i32], limit: Duration) {
    let until = Instant::now() + limit;
    let open = |pid: &i32| pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok();
    for handle in pids.iter().filter_map(open).collect::<Vec<OwnedFd>>() {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        // Interrupted or timed out: who asked looks again at what lives.
        let _ = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout));
    }
}

pub(super) fn is_listening(fd: &OwnedFd) -> io::Result<bool> {
    Ok(rustix::net::sockopt::socket_acceptconn(fd)?)
}

pub(super) fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid.as_raw())
}

pub(super) fn name_this_process(name: &std::ffi::CStr) {
    // Cosmetic: without it `ps` says "exe", the name of the link that was run.
    let _ = rustix::thread::set_name(name);
}

/// The number here of a child of `init`'s that is `inner` in the PID namespace which that began.
pub(super) fn number_outside(init: i32, inner: i32) -> Option<Pid> {
    let inner = inner.to_string();
    let is_it = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        numbers.and_then(|line| line.split_whitespace().last()) == Some(inner.as_str())
    };
    let children = processes().into_iter().filter(|entry| entry.parent == init);
    children.map(|entry| entry.pid).find(|pid| is_it(*pid)).and_then(Pid::from_raw)
}

/// Who a fork aside has returned to.
pub(super) enum Aside {
    Parent(Option<i32>),
    Child,
}

/// A child beside the tree, which `wait` does not see. For a process of one thread.
pub(super) fn fork_aside() -> io::Result<Aside> {
    // SAFETY: a shim has one thread.
    let child = unsafe { fork::fork(fork::UNSEEN) }?;
    Ok(child.map_or(Aside::Child, |pid| Aside::Parent(Some(pid.as_raw_pid()))))
}

/// In such a child: closes what it has of its parent's.
pub(super) fn only_keep(kept: &mut [i32]) {
    // SAFETY: the child ends by `leave`, so that nothing of its parent's is used or dropped in it.
    unsafe { fork::close_all_but(kept) };
}

pub(super) fn leave(code: i32) -> ! {
    fork::leave(code)
}

/// Reaps such a child, which is ending.
pub(super) fn reap_aside(pid: i32) {
    // SAFETY: asks for a number's end without memory of ours; a number that is no child of ours is refused.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WCLONE) };
}

/// What a terminal or a careless `kill` sends is not for this process.
pub(super) fn ignore_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
        // SAFETY: plain system calls without memory of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a) b (c)) S 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 2 3";
        let expected = Entry { pid: 42, parent: 7, group: 8, session: 9, start: 12345, zombie: false };
        assert_eq!(entry(stat), Some(expected));
        assert_eq!(entry("nonsense"), None);
    }

    #[test]
    fn this_process_has_memory_and_a_command() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(memory_bytes(me).unwrap() > 1024 * 1024);
        assert!(!command(me).is_empty());
    }
}
