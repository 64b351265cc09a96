//! From the shim to the leader of its tree: everything that happens between fork and exec.

use super::confine::{Prepared, Walls};
use super::contain::Held;
use super::identity::Identity;
use super::inherited::{LISTENER_FD, SHIM_PIPE_FD};
#[cfg(target_os = "linux")]
use super::init::Init;
use super::platform;
use super::record::Spec;
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::Pid;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

pub(super) struct Started {
    pub pid: Pid,
    pub identity: Identity,
    /// The read end of stdout and stderr, one pipe for both so that their order is kept.
    pub output: OwnedFd,
    /// Held for as long as the shim lives; the child has the other end.
    pub alive: OwnedFd,
    pub walls: Walls,
    #[cfg(target_os = "linux")]
    pub init: Option<super::init::Init>,
}

pub(super) fn start(spec: &Spec, inherit: Option<OwnedFd>, held: &Held) -> io::Result<Started> {
    let name = spec.argv.first().ok_or(io::ErrorKind::InvalidInput)?;
    let program = spec.program.as_deref().unwrap_or(Path::new(name));
    let (output, child_output) = io::pipe()?;
    let (child_alive, alive) = io::pipe()?;
    rustix::io::ioctl_fionbio(&output, true)?;

    let mut command = Command::new(program);
    command
        .arg0(name)
        .args(&spec.argv[1..])
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(child_output.try_clone()?)
        .stderr(child_output)
        .process_group(0);
    if let Some(cwd) = &spec.cwd {
        command.current_dir(cwd);
    }
    // Both numbers are taken in this process by now (its own listener, these pipes), so they cannot be the pipe by
    // which std learns that exec failed.
    let mut mappings = vec![FdMapping { parent_fd: child_alive.into(), child_fd: SHIM_PIPE_FD }];
    mappings.extend(inherit.map(|parent_fd| FdMapping { parent_fd, child_fd: LISTENER_FD }));
    command.fd_mappings(mappings).map_err(io::Error::other)?;

    #[cfg(target_os = "linux")]
    let network_is_empty = held.namespaces.as_ref().is_some_and(|own| own.network_is_empty);
    #[cfg(not(target_os = "linux"))]
    let network_is_empty = false;
    // Here, and not earlier, for the same reason: its descriptors must not take these numbers.
    let prepared = Prepared::new(spec.confine.as_ref(), network_is_empty)?;
    let walls = prepared.walls.clone();
    let spawn = || spawn(command, prepared, held);
    #[cfg(target_os = "linux")]
    if let Some(namespaces) = &held.namespaces {
        let (init, pid, identity) = Init::start(namespaces, held.cgroup.as_ref(), spawn)?;
        return Ok(Started {
            pid,
            identity,
            output: output.into(),
            alive: alive.into(),
            walls,
            init: Some(init),
        });
    }
    let pid = spawn()?;
    let identity = Identity::of(pid.as_raw_pid()).ok_or(io::ErrorKind::NotFound)?;
    Ok(Started {
        pid,
        identity,
        output: output.into(),
        alive: alive.into(),
        walls,
        #[cfg(target_os = "linux")]
        init: None,
    })
}

/// Starts the leader as a child of this process: the shim, or the first process of the tree's PID namespace.
fn spawn(mut command: Command, prepared: Prepared, held: &Held) -> io::Result<Pid> {
    let parent = rustix::process::getpid();
    let entrance = held.entrance()?;
    // SAFETY: between fork and exec of a single-threaded process; only system calls, no allocation, no locks.
    unsafe {
        command.pre_exec(move || {
            reset_signals();
            platform::die_with(Some(parent))?;
            platform::close_from(SHIM_PIPE_FD.unsigned_abs() + 1)?;
            entrance.join()?;
            prepared.enter()?;
            entrance.pin()
        });
    }
    let child = command.spawn()?;
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::ErrorKind::Other.into())
}

/// An ignored signal stays ignored across exec, whoever ignored it: `nohup` far above must not make a build that
/// cannot be interrupted.
pub(super) fn reset_signals() {
    for signal in 1..32 {
        // SAFETY: plain system calls without memory of ours; KILL and STOP are refused, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
