//! `rbee queen|hive start|status|stop`: the daemons themselves.

use crate::config::Settings;
use crate::http::client::{self, Target};
use crate::keeper::KeeperError;
use crate::keeper::render::{Render, ago};
use crate::keeper::server::{self, Patience, Server};
use crate::keeper::start::{self, Begun};
use crate::keeper::version;
use crate::paths::Dirs;
use crate::wire::fleet::Info;
use crate::wire::{Code, Failure, HIVE_PORT};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Which daemon a command is about.
#[derive(Debug, Clone, Copy)]
pub struct Daemon {
    role: &'static str,
}

pub const QUEEN: Daemon = Daemon { role: "queen" };
pub const HIVE: Daemon = Daemon { role: "hive" };

impl Daemon {
    fn server(self, settings: &Settings) -> Result<Server, KeeperError> {
        let target = match (self.role, settings.text("hive")) {
            ("queen", _) => server::queen(settings)?,
            (_, Some(address)) if address.contains(':') => server::keyed(settings, Target::parse(address)?)?,
            _ => server::keyed(settings, Target::parse(&format!("127.0.0.1:{HIVE_PORT}"))?)?,
        };
        Ok(Server { target, is_hive: self.role == "hive", hive_id: None, patience: Patience::of(settings) })
    }
}

/// Done when it is ready; one that runs already is as good.
pub async fn start(settings: &Settings, render: &Render, daemon: Daemon) -> Result<(), KeeperError> {
    let Begun { pid, was_there, log } = start::role(settings, render, daemon.role).await?;
    let writing = |error: std::io::Error| KeeperError::local("writing the start", error);
    if render.is_json() {
        let status = if was_there { "running" } else { "started" };
        return render
            .value(&json!({"role": daemon.role, "status": status, "pid": pid, "log": log}))
            .map_err(writing);
    }
    let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let role = daemon.role;
    let line = if was_there {
        format!("the {role} runs already{pid}; its log: {}\n", log.display())
    } else {
        format!(
            "the {role} runs at {}{pid}; its log: {}\n",
            settings.texts("listen").join(", "),
            log.display()
        )
    };
    render.answer(&line).map_err(writing)
}

pub async fn status(settings: &Settings, render: &Render, daemon: Daemon) -> Result<(), KeeperError> {
    let server = daemon.server(settings)?;
    let writing = |error: std::io::Error| KeeperError::local("writing the status", error);
    let info = version::ask::<Info>(&server.target, client::get("/v1/info")?).await;
    let info = match info {
        Ok(info) => info,
        Err(client::AskError::Refused(failure)) => return Err(failure.into()),
        Err(client::AskError::Client(error)) => {
            if let Some(pid) = inside_serve(settings, daemon) {
                if render.is_json() {
                    let value = json!({"role": "hive", "status": "up", "pid": pid, "inside": "serve"});
                    return render.value(&value).map_err(writing);
                }
                let line = format!("hive up, inside `rbee serve` (pid {pid}); `rbee status` shows it\n");
                return render.answer(&line).map_err(writing);
            }
            if render.is_json() {
                render.value(&json!({"role": daemon.role, "status": "down"})).map_err(writing)?;
                return Err(KeeperError::Down);
            }
            return Err(server.unreachable(Some(error)));
        }
    };
    if render.is_json() {
        return render.value(&json!(info)).map_err(writing);
    }
    let line = format!(
        "{} {} at {}  rbee {} (protocol {})  pid {}  up {}\n",
        info.role,
        info.name,
        info.base_url,
        info.version,
        info.protocol,
        info.pid,
        ago(info.started_at)
    );
    render.answer(&line).map_err(writing)
}

/// The pid of an `rbee serve` that is the hive of this state directory: it has no address of its own.
fn inside_serve(settings: &Settings, daemon: Daemon) -> Option<i32> {
    let dirs = Dirs::of_process(settings.path("state-dir")).ok()?;
    let is_here = daemon.role == "hive" && settings.text("hive").is_none_or(|hive| hive == "localhost");
    if !is_here
        || !crate::daemon::is_locked(&dirs.lock("hive"))
        || !crate::daemon::is_locked(&dirs.lock("queen"))
    {
        return None;
    }
    let pid = |role| crate::daemon::holders_pid(&dirs.lock(role));
    pid("hive").filter(|hive| pid("queen") == Some(*hive))
}

/// Stops the daemon of this machine and state directory: found by its lock, not by a name in a process list.
pub async fn stop(settings: &Settings, render: &Render, daemon: Daemon) -> Result<(), KeeperError> {
    let dirs = Dirs::of_process(settings.path("state-dir"))
        .map_err(|error| KeeperError::local("finding its state", error))?;
    let lock = dirs.lock(daemon.role);
    let Some(running) = crate::daemon::holder(&lock) else {
        let (code, what) = match crate::daemon::is_locked(&lock) {
            true => (Code::Internal, format!("its lock {} names no process", lock.display())),
            false => (Code::NotFound, format!("no {} runs on {}", daemon.role, dirs.state.display())),
        };
        return Err(Failure::new(code, what).into());
    };
    let pid = running.pid;
    let asked = Pid::from_raw(pid).map_or(Err(Errno::SRCH), |pid| kill_process(pid, Signal::TERM));
    asked.map_err(|error| KeeperError::local(format!("stopping pid {pid}"), error))?;
    render.say(&format!("stopping the {} (pid {pid})", daemon.role));
    crate::daemon::gone(running).await.map_err(|error| KeeperError::local("waiting for its end", error))?;
    render.say("stopped");
    Ok(())
}
