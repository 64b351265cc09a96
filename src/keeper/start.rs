//! Starting what is missing, so that one machine needs no set-up. Two first calls at once share one start; readiness is
//! told by the daemon over a pipe, not looked for.

use crate::config::{Origin, Settings};
use crate::daemon::{self, READY};
use crate::http::client::Target;
use crate::keeper::KeeperError;
use crate::keeper::render::Render;
use crate::keeper::server::Server;
use crate::keeper::signals::Signals;
use crate::paths::Dirs;
use crate::wire::{Code, Failure};
use command_fds::{CommandFdExt, FdMapping};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// How long a daemon may take to be ready.
pub const START_MAX: Duration = Duration::from_secs(30);
/// How long an ephemeral daemon may take to be gone.
pub const END_MAX: Duration = Duration::from_secs(35);
/// How long one that failed may take to say why and to be gone.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);
/// Lines of a daemon's log that its failure shows.
const LOG_TAIL_LINES: usize = 5;
/// Flags of ours, not the daemon's; the key goes another way.
const NOT_PASSED_ON: &[&str] = &["api-key", "join", "json", "quiet", "verbose", "no-color", "timeout"];
const SECRETS: [(&str, &str); 2] = [("api-key", "RBEE_API_KEY"), ("join", "RBEE_JOIN")];
const NOTIFY_FD: i32 = 3;
const LEASE_FD: i32 = 4;

/// A daemon that lives as long as this value: the kernel closes the lease even if we are killed.
pub struct Ephemeral {
    lease: OwnedFd,
    daemon: Child,
}

impl Ephemeral {
    /// Gives the lease back and waits until the daemon, and with it all it started, has gone. Who is asked to end meanwhile
    /// leaves it to that.
    pub async fn end(self) -> Result<(), KeeperError> {
        let Ephemeral { lease, mut daemon } = self;
        drop(lease);
        let gone = tokio::task::spawn_blocking(move || daemon.wait());
        let mut signals = Signals::catch()?;
        let ended = tokio::select! {
            ended = tokio::time::timeout(END_MAX, gone) => ended,
            stop = signals.next() => return Err(stop),
        };
        match ended {
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
    let dirs = dirs(settings)?;
    let _turn = my_turn(&dirs).await?;
    // Whoever had the turn before may have started it.
    if is_answering(server).await? {
        return Ok(None);
    }
    let has_hive = daemon::is_locked(&dirs.lock("hive"));
    let (role, name): (&[&str], _) =
        if has_hive { (&["queen", "serve"], "queen") } else { (&["serve"], "serve") };
    render.say(&format!("starting rbee {} at {}", role.join(" "), server.target));
    let mut command = command(&dirs, role)?;
    if let Some(authority) = authority_of(server) {
        command.args(["--listen", &authority]);
    }
    if let Some(dir) = settings.path("state-dir") {
        command.arg("--state-dir").arg(dir);
    }
    let Started { mut daemon, notify, lease } = spawn(command, &dirs, name, is_ephemeral)?;
    wait(&mut daemon, notify, &dirs, name).await?;
    Ok(lease.map(|lease| Ephemeral { lease, daemon }))
}

/// A daemon that was asked for by name, and whether it was there already.
pub struct Begun {
    pub pid: Option<i32>,
    pub was_there: bool,
    pub log: PathBuf,
}

/// Starts `queen` or `hive` of this machine and state directory with the flags that were typed; one that runs is left.
pub async fn role(settings: &Settings, render: &Render, name: &'static str) -> Result<Begun, KeeperError> {
    let dirs = dirs(settings)?;
    let _turn = my_turn(&dirs).await?;
    let lock = dirs.lock(name);
    let holder = || daemon::holders_pid(&lock);
    if daemon::is_locked(&lock) {
        // Queen and hive of one process have one log.
        let other = dirs.lock(if name == "queen" { "hive" } else { "queen" });
        let is_both = daemon::holders_pid(&other).is_some_and(|pid| holder() == Some(pid));
        let log = dirs.log(if is_both { "serve" } else { name });
        return Ok(Begun { pid: holder(), was_there: true, log });
    }
    render.say(&format!("starting the {name}"));
    let mut command = command(&dirs, &[name, "serve"])?;
    command.args(settings.typed(NOT_PASSED_ON));
    // Not on a command line, which everybody can read.
    for (flag, variable) in SECRETS {
        let is_flag = settings.command().flag(flag).is_some();
        if is_flag && let Some(Origin::Flag(_)) = settings.origin(flag) {
            command.env(variable, settings.text(flag).unwrap_or_default());
        }
    }
    let Started { mut daemon, notify, .. } = spawn(command, &dirs, name, false)?;
    wait(&mut daemon, notify, &dirs, name).await?;
    Ok(Begun { pid: holder(), was_there: false, log: dirs.log(name) })
}

fn dirs(settings: &Settings) -> Result<Dirs, KeeperError> {
    Dirs::of_process(settings.path("state-dir"))
        .and_then(|dirs| dirs.create().map(|()| dirs))
        .map_err(|error| KeeperError::local("preparing to start", error))
}

async fn is_answering(server: &Server) -> Result<bool, KeeperError> {
    // One that lives, but says what is not for us to ignore, is an error: a wrong key, another program on the port.
    Ok(server.health().await?.is_some())
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

/// `rbee ROLE…` in the background; `ps` shows it so.
fn command(dirs: &Dirs, role: &[&str]) -> Result<Command, KeeperError> {
    let program =
        crate::process::own_program().map_err(|error| KeeperError::local("starting a daemon", error))?;
    let mut command = Command::new(program);
    command.arg0("rbee").args(role).arg("--detach").args(["--notify-fd", &NOTIFY_FD.to_string()]);
    // What it is told is absolute, and where we stand may be gone by the time it looks.
    command.current_dir(&dirs.state).stdin(Stdio::null());
    Ok(command)
}

/// What a daemon says before it has its log, and what is not its own to say: a panic, a library's last words.
fn said_at_start(dirs: &Dirs, name: &str) -> PathBuf {
    dirs.log(&format!("{name}-start"))
}

fn spawn(mut command: Command, dirs: &Dirs, name: &str, is_ephemeral: bool) -> Result<Started, KeeperError> {
    let failed = |error: std::io::Error| KeeperError::local("starting a daemon", error);
    let path = said_at_start(dirs, name);
    // A fresh one each time: it is to tell of this start, and nothing turns it over.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let log = File::options().create_new(true).append(true).mode(0o600).open(path).map_err(failed)?;
    let (notify, word) = std::io::pipe().map_err(failed)?;
    let mut descriptors = vec![FdMapping { parent_fd: word.into(), child_fd: NOTIFY_FD }];
    let mut lease = None;
    if is_ephemeral {
        let (held, ours) = std::io::pipe().map_err(failed)?;
        command.args(["--lease-fd", &LEASE_FD.to_string()]);
        descriptors.push(FdMapping { parent_fd: held.into(), child_fd: LEASE_FD });
        lease = Some(ours.into());
    }
    command.fd_mappings(descriptors).map_err(|error| failed(std::io::Error::other(error)))?;
    command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    let daemon = command.spawn().map_err(failed)?;
    Ok(Started { daemon, notify: notify.into(), lease })
}

/// Waits for the word; a pipe that closes without it is a daemon that did not start.
async fn wait(daemon: &mut Child, notify: OwnedFd, dirs: &Dirs, name: &str) -> Result<(), KeeperError> {
    let failed = |error: std::io::Error| KeeperError::local("waiting for the daemon", error);
    let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(notify).map_err(failed)?;
    let mut word = Vec::new();
    match tokio::time::timeout(START_MAX, pipe.read_to_end(&mut word)).await {
        Ok(Ok(_)) if word == READY => return Ok(()),
        Ok(Err(error)) => return Err(failed(error)),
        Ok(Ok(_)) => has_said_why(daemon).await.map_err(failed)?,
        Err(_) => {}
    }
    let log = said_at_start(dirs, name);
    Err(Failure::new(
        Code::ConnectionFailed,
        format!("the daemon did not start; its log ({}) ends with:\n{}", log.display(), tail(&log)),
    )
    .into())
}

/// The pipe closes before the last words are written: they are there when the process is not.
async fn has_said_why(daemon: &mut Child) -> std::io::Result<()> {
    let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
    let gone = async {
        while daemon.try_wait()?.is_none() {
            ended.recv().await;
        }
        Ok(())
    };
    // One that goes on without a word is no longer waited for.
    tokio::time::timeout(LAST_WORDS_MAX, gone).await.unwrap_or(Ok(()))
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}
