//! The wall around the file system: Landlock, by its three system calls. Needs no privilege, holds for root, too, and
//! cannot be taken down again from inside.
//!
//! What it does not hold: `stat`, `readlink`, `chdir`; the *attributes* of files (`chmod`, `utime`, extended ones: see
//! `mounts`); connections to sockets that lie in the file system (see `refusals`); what was
//! open before. A confined process cannot trace one outside, nor (from version 6 on) send it a signal.

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;

/// What version 1 knows; each later one adds a right at the end.
const RIGHTS_FIRST: u64 = REFER - 1;
/// The first version that knows a right, where that is not the first of all.
const RIGHTS_SINCE: [(u32, u64); 3] = [(2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)];
const NETWORK_SINCE: u32 = 4;
const BIND_AND_CONNECT_TCP: u64 = 0b11;
const SCOPES_SINCE: u32 = 6;
const ABSTRACT_SOCKETS_AND_SIGNALS: u64 = 0b11;

/// All that means anything on something that is no folder; the kernel refuses a rule with more.
const ON_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
const READ: u64 = EXECUTE | READ_FILE | READ_DIR;
/// No build makes device nodes.
const WRITE: u64 = !(MAKE_CHAR | MAKE_BLOCK);
const LOOK: u64 = READ_FILE | READ_DIR;

/// Always there, because hardly a program runs without. Not `/dev/tty`: the tree has no terminal.
const DEVICES: [(&str, u64); 5] = [
    ("/dev/null", WRITE),
    ("/dev/zero", WRITE),
    ("/dev/full", WRITE),
    ("/dev/random", READ),
    ("/dev/urandom", READ),
];
/// May be read: a program looks for the machine's processors, its own memory and descriptors. What `/proc` tells of
/// others is what tracing would, and so is not told, but for their names and arguments.
const PROC: &std::ffi::CStr = c"/proc";

/// As the kernel has it since version 6; older ones take it as long as what they do not know is zero.
#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Rules made before fork, where memory can be had, and taken on after it.
#[derive(Debug)]
pub(super) struct Ruleset {
    fd: OwnedFd,
    handled: u64,
    pub(super) version: u32,
}

impl Ruleset {
    /// Everything refused but `/proc` and some devices.
    pub(super) fn new(tcp: bool) -> Result<Ruleset, String> {
        let version = version().map_err(|errno| match errno {
            Errno::NOSYS => "this kernel has no Landlock".to_owned(),
            Errno::OPNOTSUPP => "Landlock is switched off at boot (lsm=)".to_owned(),
            other => other.to_string(),
        })?;
        let attributes = attributes(version, tcp);
        // SAFETY: the structure outlives the call, which copies as many bytes as it is told.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attributes,
                size_of::<RulesetAttributes>(),
                0,
            )
        };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
        let fd = fd.ok_or_else(|| io::Error::last_os_error().to_string())?;
        // SAFETY: just made, and nobody else's; the kernel makes it close-on-exec.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Ruleset { fd, handled: attributes.handled_access_fs, version })
    }

    pub(super) fn allow(&self, read: &[PathBuf], write: &[PathBuf]) -> io::Result<()> {
        let devices = DEVICES.iter().map(|(path, rights)| (Path::new(path), *rights));
        let read = read.iter().map(|path| (path.as_path(), READ));
        let write = write.iter().map(|path| (path.as_path(), WRITE));
        for (path, rights) in devices.chain(read).chain(write) {
            self.allow_path(path, rights).map_err(|error| {
                io::Error::new(error.kind(), format!("a rule for {}: {error}", path.display()))
            })?;
        }
        Ok(())
    }

    fn allow_path(&self, path: &Path, rights: u64) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        // What is not there, or cannot be reached, needs no rule.
        let Ok(place) = rustix::fs::open(path, flags, Mode::empty()) else { return Ok(()) };
        let is_folder = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) == FileType::Directory;
        let rights = if is_folder { rights } else { rights & ON_FILES };
        Ok(self.add(place.as_fd(), rights)?)
    }

    /// No allocation in here: also used between fork and exec.
    fn add(&self, place: BorrowedFd<'_>, rights: u64) -> Result<(), Errno> {
        let rule = PathBeneath { allowed_access: rights & self.handled, parent_fd: place.as_raw_fd() };
        // SAFETY: the rule outlives the call, which copies it.
        let refused = unsafe {
            libc::syscall(
                libc::SYS_landlock_add_rule,
                self.fd.as_raw_fd(),
                RULE_PATH_BENEATH,
                &raw const rule,
                0,
            )
        };
        if refused == 0 { Ok(()) } else { Err(last_errno()) }
    }

    /// Between fork and exec, with `no_new_privs` set: from here on this process and all it starts live behind the wall.
    /// `/proc` comes only now, because a PID namespace has another one.
    pub(super) fn enter(&self) -> io::Result<()> {
        if let Ok(place) = rustix::fs::open(PROC, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            self.add(place.as_fd(), LOOK)?;
        }
        // SAFETY: a plain system call on a descriptor of ours.
        let refused = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.fd.as_raw_fd(), 0) };
        if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn attributes(version: u32, tcp: bool) -> RulesetAttributes {
    let later = RIGHTS_SINCE.iter().filter(|(since, _)| version >= *since);
    RulesetAttributes {
        handled_access_fs: later.fold(RIGHTS_FIRST, |rights, (_, right)| rights | right),
        handled_access_net: if version >= NETWORK_SINCE && !tcp { BIND_AND_CONNECT_TCP } else { 0 },
        scoped: if version >= SCOPES_SINCE { ABSTRACT_SOCKETS_AND_SIGNALS } else { 0 },
    }
}

/// Which Landlock this kernel has.
fn version() -> Result<u32, Errno> {
    // SAFETY: asks a question; the null pointer and the size 0 are what that wants.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttributes>(),
            0,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(answer).map_err(|_| last_errno())
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_asked_for_no_more_than_it_knows() {
        let handled = |version| attributes(version, false);
        assert_eq!(handled(1).handled_access_fs, 0x1fff);
        assert_eq!(handled(2).handled_access_fs, 0x3fff);
        assert_eq!((handled(3).handled_access_fs, handled(3).handled_access_net), (0x7fff, 0));
        assert_eq!((handled(4).handled_access_fs, handled(4).handled_access_net), (0x7fff, 3));
        assert_eq!((handled(5).handled_access_fs, handled(5).scoped), (0xffff, 0));
        // A version to come has rights we cannot name: what we name stays handled, and no more is claimed.
        for version in [6, 7, 99] {
            assert_eq!((handled(version).handled_access_fs, handled(version).scoped), (0xffff, 3));
        }
        assert_eq!(attributes(7, true).handled_access_net, 0);
    }

    #[test]
    fn rules_are_made_for_folders_files_and_what_is_not_there() {
        let Ok(rules) = Ruleset::new(false) else { return eprintln!("skipped: no Landlock on this kernel") };
        let paths = ["/", "/dev/null", "/proc/self/stat", "/not/there"].map(PathBuf::from);
        rules.allow(&paths, &paths).unwrap();
    }
}
