//! Who keeps a daemon running: systemd, launchd, or, where neither runs, nobody but itself.

use super::InstallError;
use super::unit::{self, Role};
use crate::daemon::READY;
use crate::paths::Dirs;
use crate::process::Identity;
use command_fds::{CommandFdExt, FdMapping};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const NOTIFY_FD: i32 = 3;
/// How long a daemon that failed may take to say why.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);
/// launchctl's words for a daemon that it has begun to stop, and for one that it starts already.
const LAUNCHCTL_STOPS_STILL: i32 = 36;
const LAUNCHCTL_STARTS_ALREADY: i32 = 37;
/// Of what a supervisor or a daemon said, the last lines are told.
const SAID_LINES: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    SystemdSystem,
    SystemdUser,
    LaunchdSystem,
    LaunchdUser,
    /// A process without a supervisor: a reboot ends it.
    Detached,
}

impl Service {
    /// What this machine offers.
    pub fn detect(is_system: bool) -> Self {
        if cfg!(target_os = "macos") {
            return if is_system { Service::LaunchdSystem } else { Service::LaunchdUser };
        }
        let service = if is_system { Service::SystemdSystem } else { Service::SystemdUser };
        match service.systemctl(&["show-environment"]).output() {
            // A system that was not started by systemd has the program, perhaps, but nobody it could ask.
            Ok(output) if output.status.success() => service,
            _ => Service::Detached,
        }
    }

    /// Whether it is there after a reboot before anybody has logged in.
    pub fn survives_reboot(self) -> bool {
        !matches!(self, Service::Detached | Service::LaunchdUser)
    }

    fn systemctl(self, args: &[&str]) -> Command {
        let mut command = Command::new("systemctl");
        if self == Service::SystemdUser {
            command.arg("--user");
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Where its unit goes; `config` is the folder of this user's configurations.
    pub fn unit(self, role: Role, config: &Path, home: Option<&Path>) -> Option<PathBuf> {
        let service = format!("{}.service", role.unit());
        let list = format!("{}.plist", unit::launchd_label(role));
        match self {
            Service::SystemdSystem => Some(Path::new("/etc/systemd/system").join(service)),
            Service::SystemdUser => Some(config.join("systemd/user").join(service)),
            Service::LaunchdSystem => Some(Path::new("/Library/LaunchDaemons").join(list)),
            Service::LaunchdUser => home.map(|home| home.join("Library/LaunchAgents").join(list)),
            Service::Detached => None,
        }
    }

    pub fn text(self, role: Role, line: &[String], dirs: &Dirs) -> String {
        match self {
            Service::SystemdSystem | Service::Detached => unit::systemd(role, true, line),
            Service::SystemdUser => unit::systemd(role, false, line),
            Service::LaunchdSystem | Service::LaunchdUser => {
                // The daemon turns its own log over. What launchd puts there is what is said before and beside it.
                let line = [line, &["--detach".to_owned()]].concat();
                unit::launchd(role, &line, &dirs.log(&role.unit()))
            }
        }
    }

    /// Makes it start now, and with the machine. True if this user's services run without a login from now on.
    pub fn start(self, role: Role, line: &[String], unit: &Path, dirs: &Dirs) -> Result<bool, InstallError> {
        let name = format!("{}.service", role.unit());
        match self {
            Service::SystemdSystem | Service::SystemdUser => {
                run(self.systemctl(&["daemon-reload"]))?;
                run(self.systemctl(&["enable", "--now", &name]))?;
                Ok(self == Service::SystemdUser && linger())
            }
            Service::LaunchdSystem | Service::LaunchdUser => {
                run(launchctl(&["bootstrap", &self.domain(), &unit.to_string_lossy()]))?;
                Ok(false)
            }
            Service::Detached => detached(role, line, dirs).map(|()| false),
        }
    }

    /// Starts it anew, with the program and unit as they are now.
    pub fn restart(self, role: Role, line: &[String], dirs: &Dirs) -> Result<(), InstallError> {
        let name = format!("{}.service", role.unit());
        match self {
            Service::SystemdSystem | Service::SystemdUser => {
                run(self.systemctl(&["daemon-reload"]))?;
                run(self.systemctl(&["restart", &name]))
            }
            Service::LaunchdSystem | Service::LaunchdUser => {
                run(launchctl(&["kickstart", "-k", &self.loaded(role)]))
            }
            Service::Detached => detached(role, line, dirs),
        }
    }

    /// Starts it after the one before has ended by itself; a supervisor may have done so already.
    pub fn resume(self, role: Role, line: &[String], dirs: &Dirs) -> Result<(), InstallError> {
        let name = format!("{}.service", role.unit());
        match self {
            Service::SystemdSystem | Service::SystemdUser => {
                run(self.systemctl(&["daemon-reload"]))?;
                run(self.systemctl(&["start", &name]))
            }
            Service::LaunchdSystem | Service::LaunchdUser => {
                run_unless(launchctl(&["kickstart", &self.loaded(role)]), &[LAUNCHCTL_STARTS_ALREADY])
            }
            Service::Detached => detached(role, line, dirs),
        }
    }

    /// Stops it for good. One that nobody supervises is stopped by who asks, by its lock.
    pub fn stop(self, role: Role) -> Result<(), InstallError> {
        let name = format!("{}.service", role.unit());
        match self {
            Service::SystemdSystem | Service::SystemdUser => {
                run(self.systemctl(&["disable", "--now", &name]))
            }
            Service::LaunchdSystem | Service::LaunchdUser => {
                run_unless(launchctl(&["bootout", &self.loaded(role)]), &[LAUNCHCTL_STOPS_STILL])
            }
            Service::Detached => Ok(()),
        }
    }

    /// After its unit was removed.
    pub fn forget(self, lingers: bool) {
        if matches!(self, Service::SystemdSystem | Service::SystemdUser) {
            // It has gone already; a manager that does not hear of it now will at its next start.
            let _ = self.systemctl(&["daemon-reload"]).output();
        }
        if lingers {
            let _ = Command::new("loginctl").args(["disable-linger"]).stdin(Stdio::null()).output();
        }
    }

    /// launchd's domains that its agents or daemons may be in: of a user the graphical session, and the one that a Mac which
    /// is only reached over ssh has, too.
    fn domains(self) -> Vec<String> {
        let user = rustix::process::geteuid().as_raw();
        match self {
            Service::LaunchdUser => vec![format!("gui/{user}"), format!("user/{user}")],
            _ => vec!["system".into()],
        }
    }

    /// Where it is to be put: the first that there is.
    fn domain(self) -> String {
        first_there(self.domains())
    }

    /// As launchd calls it, wherever it was put.
    fn loaded(self, role: Role) -> String {
        let label = unit::launchd_label(role);
        first_there(self.domains().into_iter().map(|domain| format!("{domain}/{label}")).collect())
    }
}

/// The first of launchd's targets that there is, or the last of them.
fn first_there(mut targets: Vec<String>) -> String {
    let is_there =
        |target: &String| launchctl(&["print", target]).output().is_ok_and(|output| output.status.success());
    let at = targets.iter().position(is_there).unwrap_or(targets.len() - 1);
    targets.swap_remove(at)
}

fn launchctl(args: &[&str]) -> Command {
    let mut command = Command::new("launchctl");
    command.args(args).stdin(Stdio::null());
    command
}

/// Without it a user's services end with their last login. False where it was so already, or is not allowed.
fn linger() -> bool {
    let asked = Command::new("loginctl")
        .args(["show-user", "--property=Linger", "--value", &rustix::process::geteuid().as_raw().to_string()])
        .stdin(Stdio::null())
        .output();
    if asked.is_ok_and(|output| output.stdout.starts_with(b"yes")) {
        return false;
    }
    let enabled = Command::new("loginctl").arg("enable-linger").stdin(Stdio::null()).output();
    enabled.is_ok_and(|output| output.status.success())
}

fn run(command: Command) -> Result<(), InstallError> {
    run_unless(command, &[])
}

/// An exit code of `fine` is none of a failure.
fn run_unless(mut command: Command, fine: &[i32]) -> Result<(), InstallError> {
    let said = format!("{command:?}").replace('"', "");
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) if output.status.code().is_some_and(|code| fine.contains(&code)) => Ok(()),
        Ok(output) => Err(InstallError::Supervisor { command: said, said: told(&output) }),
        Err(source) => Err(InstallError::Run { command: said, source }),
    }
}

fn told(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    last_lines(&text)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(SAID_LINES)..].join("\n")
}

/// Starts it with no supervisor, and waits for its word that it is ready.
fn detached(role: Role, line: &[String], dirs: &Dirs) -> Result<(), InstallError> {
    let said = line.join(" ");
    let failed = |source| InstallError::Run { command: said.clone(), source };
    let path = dirs.log(&role.unit());
    let log = File::options().create(true).append(true).open(&path).map_err(failed)?;
    let begins_at = log.metadata().map_or(0, |meta| meta.len());
    let (mut word, notify) = std::io::pipe().map_err(failed)?;
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]).arg("--detach").args(["--notify-fd", &NOTIFY_FD.to_string()]);
    command
        .fd_mappings(vec![FdMapping { parent_fd: notify.into(), child_fd: NOTIFY_FD }])
        .map_err(|error| failed(std::io::Error::other(error)))?;
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    // Its own from now on: nobody waits for its end, if it starts.
    let child = command.spawn().map_err(failed)?;
    drop(command);
    let mut heard = Vec::new();
    // Closed when it is ready, or ends without being.
    word.read_to_end(&mut heard).map_err(failed)?;
    if heard == READY {
        return Ok(());
    }
    // The pipe closes before the last words are written: they are there when the process is not. One that goes on without a
    // word is no longer waited for.
    if let Some(daemon) = i32::try_from(child.id()).ok().and_then(Identity::of) {
        daemon.ends_within(LAST_WORDS_MAX);
    }
    let text = std::fs::read(&path).map_err(failed)?;
    let text = String::from_utf8_lossy(text.get(begins_at as usize..).unwrap_or_default()).into_owned();
    Err(InstallError::Supervisor { command: said, said: last_lines(&text) })
}
