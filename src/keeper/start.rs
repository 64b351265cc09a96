//! Starting what is missing, so that one machine needs no set-up. Two first calls at once share one start; readiness is
//! told by the daemon over a pipe, not looked for.

use crate::config::Settings;
use crate::daemon::{self, READY};
use crate::http::client::{AskError, Target};
use crate::keeper::KeeperError;
use crate::keeper::render::Render;
use crate::keeper::server::Server;
use crate::paths::Dirs;
use crate::wire::{Code, Failure};
use command_fds::{CommandFdExt, FdMapping};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// How long a daemon may take to be ready.
pub const START_MAX: Duration = Duration::from_secs(30);
/// How long an ephemeral daemon may take to be gone.
pub const END_MAX: Duration = Duration::from_secs(35);
/// Lines of a daemon's log that its failure shows.
const LOG_TAIL_LINES: usize = 5;
const NOTIFY_FD: i32 = 3;
const LEASE_FD: i32 = 4;

/// A daemon that lives as long as this value: the kernel closes the lease even if we are killed.
pub struct Ephemeral {
    lease: OwnedFd,
    daemon: Child,
}

impl Ephemeral {
    /// Gives the lease back and waits until the daemon, and with it all it started, has gone.
    pub async fn end(self) -> Result<(), KeeperError> {
        let Ephemeral { lease, mut daemon } = self;
        drop(lease);
        let gone = tokio::task::spawn_blocking(move || daemon.wait());
        match tokio::time::timeout(END_MAX, gone).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::new(
                Code::Internal,
                format!("the ephemeral daemon was not gone after {} s", END_MAX.as_secs()),
            )
            .into()),
        }
    }
}

/// Makes sure that a queen answers, starting one (and a hive, where there is none) on this machine if she would be here.
pub async fn ensure(
    settings: &Settings,
    render: &Render,
    server: &Server,
    is_ephemeral: bool,
) -> Result<Option<Ephemeral>, KeeperError> {
    if is_answering(server).await? {
        return Ok(None);
    }
    if server.is_hive || !is_here(&server.target) {
        server.get::<crate::wire::fleet::Health>("/health", render).await?;
        return Ok(None);
    }
    let dirs = Dirs::of_process(settings.path("state-dir"))
        .and_then(|dirs| dirs.create().map(|()| dirs))
        .map_err(|error| KeeperError::local("preparing to start", error))?;
    let _turn = my_turn(&dirs).await?;
    // Whoever had the turn before may have started it.
    if is_answering(server).await? {
        return Ok(None);
    }
    let has_hive = daemon::is_locked(&dirs.lock("hive"));
    let role: &[&str] = if has_hive { &["queen", "serve"] } else { &["serve"] };
    render.say(&format!("starting rbee {} at {}", role.join(" "), server.target));
    let Started { daemon, notify, lease } = spawn(settings, server, &dirs, role, is_ephemeral)?;
    wait(notify, &dirs).await?;
    Ok(lease.map(|lease| Ephemeral { lease, daemon }))
}

async fn is_answering(server: &Server) -> Result<bool, KeeperError> {
    match server.health().await {
        Ok(_) => Ok(true),
        // It lives, but what it says is not for us to ignore: a wrong key, another program on the port.
        Err(AskError::Refused(failure)) => Err(failure.into()),
        Err(AskError::Client(_)) => Ok(false),
    }
}

/// Whether the queen's address is this machine's: only then is she ours to start.
pub fn is_here(target: &Target) -> bool {
    target.host_and_port().is_some_and(|(host, _)| {
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

fn authority_of(server: &Server) -> Option<String> {
    server.target.to_string().strip_prefix("http://").map(str::to_owned)
}

/// One start at a time on a state directory.
async fn my_turn(dirs: &Dirs) -> Result<File, KeeperError> {
    let path = dirs.lock("start");
    let locked = tokio::task::spawn_blocking(move || {
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        rustix::fs::flock(file.as_fd(), rustix::fs::FlockOperation::LockExclusive)?;
        Ok::<_, std::io::Error>(file)
    });
    let waiting = |error: std::io::Error| KeeperError::local("waiting for another start", error);
    match tokio::time::timeout(START_MAX, locked).await {
        Ok(Ok(Ok(file))) => Ok(file),
        Ok(Ok(Err(error))) => Err(waiting(error)),
        Ok(Err(error)) => Err(waiting(std::io::Error::other(error))),
        Err(_) => Err(waiting(std::io::ErrorKind::TimedOut.into())),
    }
}

struct Started {
    daemon: Child,
    notify: OwnedFd,
    lease: Option<OwnedFd>,
}

fn spawn(
    settings: &Settings,
    server: &Server,
    dirs: &Dirs,
    role: &[&str],
    is_ephemeral: bool,
) -> Result<Started, KeeperError> {
    let failed = |error: std::io::Error| KeeperError::local("starting a daemon", error);
    let program = crate::process::own_program().map_err(failed)?;
    let log = File::options().create(true).append(true).open(dirs.log("serve")).map_err(failed)?;
    let (notify, said) = std::io::pipe().map_err(failed)?;
    let mut command = Command::new(program);
    // What `ps` shows.
    command.arg0("rbee").args(role).arg("--detach").args(["--notify-fd", &NOTIFY_FD.to_string()]);
    if let Some(authority) = authority_of(server) {
        command.args(["--listen", &authority]);
    }
    if let Some(dir) = settings.path("state-dir") {
        command.arg("--state-dir").arg(dir);
    }
    let mut descriptors = vec![FdMapping { parent_fd: said.into(), child_fd: NOTIFY_FD }];
    let mut lease = None;
    if is_ephemeral {
        let (held, ours) = std::io::pipe().map_err(failed)?;
        command.args(["--lease-fd", &LEASE_FD.to_string()]);
        descriptors.push(FdMapping { parent_fd: held.into(), child_fd: LEASE_FD });
        lease = Some(ours.into());
    }
    command.fd_mappings(descriptors).map_err(|error| failed(std::io::Error::other(error)))?;
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    let daemon = command.spawn().map_err(failed)?;
    Ok(Started { daemon, notify: notify.into(), lease })
}

/// Waits for the word; a pipe that closes without it is a daemon that did not start.
async fn wait(notify: OwnedFd, dirs: &Dirs) -> Result<(), KeeperError> {
    let failed = |error: std::io::Error| KeeperError::local("waiting for the daemon", error);
    let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(notify).map_err(failed)?;
    let mut said = Vec::new();
    let read = tokio::time::timeout(START_MAX, pipe.read_to_end(&mut said)).await;
    match read {
        Ok(Ok(_)) if said == READY => Ok(()),
        Ok(Err(error)) => Err(failed(error)),
        Ok(Ok(_)) | Err(_) => {
            let log = dirs.log("serve");
            Err(Failure::new(
                Code::ConnectionFailed,
                format!("the daemon did not start; its log ({}) ends with:\n{}", log.display(), tail(&log)),
            )
            .into())
        }
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}
