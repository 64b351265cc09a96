//! What a process is born with: descriptors, checked before they are believed, and how it is to take a signal.

use super::platform;
use rustix::io::{FdFlags, fcntl_setfd};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;

/// Where a child finds the listening socket its launcher gave it.
pub const LISTENER_FD: RawFd = 3;
/// Where a child finds the read end of a pipe that only its shim holds open: end of file means the shim is gone.
pub const SHIM_PIPE_FD: RawFd = 4;

/// Takes the listening socket inherited as `fd`. Call it once a descriptor, before anything else opens files.
pub fn inherited_listener(fd: RawFd) -> io::Result<UnixListener> {
    let owned = take(fd)?;
    if !platform::is_listening(&owned)? {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {fd} is not a listening socket"),
        ));
    }
    Ok(UnixListener::from(owned))
}

/// Takes the pipe inherited as `fd`. Call it once a descriptor, before anything else opens files.
pub fn inherited_pipe(fd: RawFd) -> io::Result<OwnedFd> {
    let owned = take(fd)?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&owned)?.st_mode);
    if kind != rustix::fs::FileType::Fifo {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {fd} is not a pipe")));
    }
    Ok(owned)
}

/// Whether whoever started this process wants it to outlive its terminal, as `nohup` does. To be asked before that signal is
/// caught for the first time.
pub fn ignores_hangup() -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; the structure is ours and filled where the call went well, and of plain integers in any case.
    unsafe {
        let asked = libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr());
        asked == 0 && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// What shares our terminal gets its Ctrl-C and its end, too. A command that ignores both leaves them to us, who end it in
/// order.
pub fn leave_stops_to_us(command: &mut std::process::Command) {
    // SAFETY: between fork and exec, with system calls and without memory of ours.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGINT, libc::SIGHUP] {
                if libc::signal(signal, libc::SIG_IGN) == libc::SIG_ERR {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

/// A wrong kind is closed again with the value: then this process was started by hand, and nothing else owns it.
fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD looks at a number and harms nothing whatever it is.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just seen open; it was inherited, so no value of this process owns it, and callers take each once.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC)?;
    Ok(owned)
}
