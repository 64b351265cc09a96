//! Everything read-only but what a tree may write: the wall around the *attributes* of files, which Landlock does not
//! hold. A build that may not open `/etc/shadow` could else still `chmod` it, if it runs as the file's owner.
//!
//! Needs the right to mount: root's, or that of a user namespace the tree has been given. Done in a mount namespace of
//! the tree's own, so nobody else sees it. Between two writable folders a rename is a copy, because each is a mount.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

const ROOT: &CStr = c"/";
const PATH_BYTES_MAX: usize = libc::PATH_MAX as usize;

/// Prepared before fork.
#[derive(Debug)]
pub(super) struct ReadOnly {
    writable: Vec<CString>,
}

impl ReadOnly {
    pub(super) fn but(write: &[PathBuf]) -> ReadOnly {
        let there = write.iter().filter(|path| path.exists());
        ReadOnly {
            writable: there.filter_map(|path| CString::new(path.as_os_str().as_bytes()).ok()).collect(),
        }
    }

    /// Whether this process could: tried out in a child, which is sound because the shim has one thread.
    pub(super) fn is_possible(&self) -> bool {
        // SAFETY: the child makes system calls only, and ends without running anything of its parent's.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = i32::from(self.enter().is_err());
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(code) };
        }
        let Some(child) = rustix::process::Pid::from_raw(child).filter(|_| child > 0) else { return false };
        let status = loop {
            match rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                ended => break ended,
            }
        };
        matches!(status, Ok(Some((_, status))) if status.exit_status() == Some(0))
    }

    /// Between fork and exec, before capabilities go. Must not allocate.
    pub(super) fn enter(&self) -> io::Result<()> {
        // SAFETY: plain system calls, with strings of ours.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        bind(None, ROOT, libc::MS_REC | libc::MS_PRIVATE)?;
        // A mount of its own each, so that it can differ.
        for path in &self.writable {
            bind(Some(path), path, libc::MS_BIND | libc::MS_REC)?;
        }
        set(ROOT, libc::MOUNT_ATTR_RDONLY, 0)?;
        for path in &self.writable {
            set(path, 0, libc::MOUNT_ATTR_RDONLY)?;
        }
        enter_again();
        Ok(())
    }
}

/// The folder this process is in lies in a mount that was covered: to go to where it is by name is to go on top. Where
/// that has no name any more it stays in the mount below, which is read-only.
fn enter_again() {
    let mut here = [0; PATH_BYTES_MAX];
    // SAFETY: the buffer is as long as it says, and what is in it after success ends with a zero.
    unsafe {
        if !libc::getcwd(here.as_mut_ptr(), here.len()).is_null() {
            libc::chdir(here.as_ptr());
        }
    }
}

fn bind(from: Option<&CStr>, at: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let from = from.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: strings that outlive the call; no kind and no data are null, which these flags want.
    check(unsafe { libc::mount(from, at.as_ptr(), std::ptr::null(), flags, std::ptr::null()) })
}

fn set(at: &CStr, add: u64, remove: u64) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: add, attr_clr: remove, propagation: 0, userns_fd: 0 };
    // SAFETY: the string and the structure outlive the call, which is told the structure's size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            at.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(if done == 0 { 0 } else { -1 })
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
