//! Forking without an exec to follow: into namespaces, into a watcher, to try a thing out.
//!
//! The raw call, because libc's `fork` knows neither namespaces nor a child that `wait` does not see. It runs no handlers
//! of libc's, so the child of a process with threads may only make system calls; that of the shim, which has no second
//! thread, may do all.

use rustix::process::{Pid, WaitOptions, waitpid};
use std::io::{self, Read, Write};

/// A child whose death tells nobody: `wait` passes it over, so that a tree without processes is seen as one.
pub(super) const UNSEEN: libc::c_int = 0;
pub(super) const SEEN: libc::c_int = libc::SIGCHLD;

/// The child's pid, or `None` in the child.
///
/// # Safety
/// In a process with threads the child must do nothing but system calls until it ends.
pub(super) unsafe fn fork(flags: libc::c_int) -> io::Result<Option<Pid>> {
    // SAFETY: no stack is given, so the child goes on with a copy of ours, as after fork; no pointers are passed.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, 0, 0, 0) };
    match pid {
        0 => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(i32::try_from(pid).ok().and_then(Pid::from_raw)),
    }
}

/// Ends a forked child without running what its parent has registered for its own end.
pub(super) fn leave(code: i32) -> ! {
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::_exit(code) }
}

/// What a trial in a child came to: which of its steps failed, and how.
pub(super) type Trial = Result<(), (u8, io::Error)>;

/// Runs `attempt` in a child that then ends. The error is the attempt's, or step 0 where there could be no child.
///
/// # Safety
/// `attempt` makes system calls only: no memory is had, no lock taken, nothing panics.
pub(super) unsafe fn attempt(flags: libc::c_int, attempt: impl FnOnce() -> Trial) -> Trial {
    let (mut told, mut tell) = io::pipe().map_err(|error| (0, error))?;
    // SAFETY: as promised by the caller.
    let child = unsafe { fork(flags | SEEN) }.map_err(|error| (0, error))?;
    let Some(child) = child else {
        let (step, number) = match attempt() {
            Ok(()) => (0, 0),
            Err((step, error)) => (step, error.raw_os_error().unwrap_or(libc::EINVAL)),
        };
        let [a, b, c, d] = number.to_ne_bytes();
        // Its parent takes silence for a failure.
        leave(i32::from(tell.write(&[step, a, b, c, d]).is_err()))
    };
    drop(tell);
    let mut answer = Vec::new();
    let read = told.read_to_end(&mut answer);
    while matches!(waitpid(Some(child), WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    read.map_err(|error| (0, error))?;
    match answer[..] {
        [_, 0, 0, 0, 0] => Ok(()),
        [step, a, b, c, d] => Err((step, io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d])))),
        _ => Err((0, io::Error::other("the trial was killed"))),
    }
}

/// Closes every descriptor but the first three and these.
///
/// # Safety
/// Whoever owns the others must not use or close them any more.
pub(super) unsafe fn close_all_but(kept: &mut [i32]) {
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.iter().copied().chain([i32::MAX]) {
        if first < fd {
            // SAFETY: as promised by the caller. A kernel without the call (before 5.9) leaves them open until the end.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = fd.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_tells_its_step_and_its_error() {
        // SAFETY: the closures touch nothing.
        unsafe {
            assert!(attempt(0, || Ok(())).is_ok());
            let (step, error) =
                attempt(0, || Err((3, io::Error::from_raw_os_error(libc::EPERM)))).unwrap_err();
            assert_eq!((step, error.raw_os_error()), (3, Some(libc::EPERM)));
            let killed = attempt(0, || leave(1)).unwrap_err();
            assert_eq!((killed.0, killed.1.to_string().as_str()), (0, "the trial was killed"));
        }
    }
}
