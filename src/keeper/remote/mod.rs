//! `rbee hive install|update|uninstall`: another machine's hive, set up over the system's ssh. What is done over there, `rbee
//! install` does, by the program that was copied first; here are the way to it, the join token, and the word of the queen
//! that the node has come.

mod address;
mod failure;
mod node;
mod probe;
mod program;
mod ssh;
mod whom;

use crate::config::Settings;
use crate::http::client::{self, AskError, Target};
use crate::http::reply;
use crate::http::request::percent_encode;
use crate::keeper::install::Installed;
use crate::keeper::render::Render;
use crate::keeper::{KeeperError, server};
use crate::paths::Dirs;
use crate::wire::fleet::{HiveInfo, TokenAnswer, TokenRequest, now_ms};
use crate::wire::{Code, Failure, VERSION};
use address::Wanted;
use failure::{RemoteError, last_line};
pub use node::{Node, Nodes};
use probe::Facts;
use program::Arrived;
use serde_json::json;
use ssh::{Input, Ssh};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// A node may have to be built before it joins.
const TOKEN_TTL: Duration = Duration::from_secs(2 * 3600);
/// How long a hive that was started may take to be linked with the queen.
const SEEN_MAX: Duration = Duration::from_secs(60);
/// Between two questions whether it is.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Of its log, when it does not come.
const LOG: &str = "for log in \"${XDG_CACHE_HOME:-$HOME/.cache}/rbee/logs\" /var/log/rbee; do \
                   tail -n 10 \"$log/rbee-hive.log\" \"$log/hive.log\" 2>/dev/null; done; \
                   journalctl --user -u rbee-hive -n 10 --no-pager 2>/dev/null | grep -v '^--'; \
                   journalctl -u rbee-hive -n 10 --no-pager 2>/dev/null | grep -v '^--'";

/// This account's records of nodes.
pub fn nodes(settings: &Settings) -> Result<Nodes, KeeperError> {
    let dirs = Dirs::of_process(settings.path("state-dir"));
    dirs.map(|dirs| Nodes::of(&dirs.state)).map_err(|error| KeeperError::local("finding the records", error))
}

pub async fn install(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let wanted = Wanted::of(settings)?;
    let nodes = nodes(settings)?;
    let queen = server::queen(settings)?;
    if let Some(name) = &wanted.name {
        is_free(&nodes, &queen, name).await?;
    }
    let ssh = Ssh::new(&wanted.address, render);
    render.say(&format!("checking {} over ssh", ssh.host()));
    let facts = probe::probe(&ssh).await?;
    let short = facts.node.split('.').next().unwrap_or_default().to_owned();
    let name = wanted.name.clone().unwrap_or(short);
    render.say(&format!("it is {} ({}); the hive will be `{name}`", facts.node, facts.target));
    is_free(&nodes, &queen, &name).await?;
    if let Some(record) = &facts.installed {
        return Err(Failure::new(
            Code::Conflict,
            format!(
                "rbee is installed on {} already ({record}): `rbee uninstall` there takes it away; `rbee hive update NAME` renews what was installed from here",
                ssh.host()
            ),
        )
        .into());
    }
    let asked = TokenRequest { ttl_ms: TOKEN_TTL.as_millis() as u64 };
    let token: TokenAnswer = client::ask(&queen, client::post("/v1/tokens", &asked)?).await?;
    let dialled = dialled(settings, &queen, &token.listen, facts.from)?;
    let is_system = settings.on("system") || facts.is_root;
    let bin_dir = wanted.bin_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned());
    let mut words =
        vec!["--json", "install", "--role", "hive", "--name", &name, "--queen", &dialled, "--join", "-"];
    if let Some(dir) = &bin_dir {
        words.extend(["--bin-dir", dir]);
    }
    words.extend(settings.texts("listen").into_iter().flat_map(|address| ["--listen", address]));
    let over = Over { ssh: &ssh, is_system, needs_sudo: is_system && !facts.is_root };
    let begun = now_ms();
    let input = Input::Text(format!("{}\n", token.token));
    let installed = match over.install(&facts, settings.path("binary"), &words, input, render).await {
        Err(KeeperError::Interrupted) => {
            // Where it had joined already, its key is to open nothing.
            let _ = forget(&queen, &name).await;
            return Err(KeeperError::Interrupted);
        }
        installed => installed?,
    };
    let program = installed.program.to_string_lossy().into_owned();
    if let Err(error) = seen(&queen, &name, begun).await {
        over.show_log(render).await;
        render.say("taking it away again");
        let undone = over.rbee(&program, &["uninstall"], Input::Nothing).await;
        let forgotten = forget(&queen, &name).await;
        if let Err(error) = undone.map(drop).map_err(KeeperError::from).and(forgotten) {
            render.error(&crate::wire::failure::chain(&error));
        }
        return Err(error);
    }
    let node = Node {
        name: name.clone(),
        address: wanted.address.clone(),
        is_system,
        program,
        queen: dialled,
        version: installed.version,
        service: installed.service,
        installed_at: now_ms(),
    };
    nodes.save(&node)?;
    render.say(&format!("`{name}` is reachable"));
    told(render, &node)
}

pub async fn update(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let nodes = nodes(settings)?;
    let mut node = known(&nodes, &settings.positionals().join(" "))?;
    node.address = node.address.overridden(settings.machine(&node.name));
    let queen = server::queen(settings)?;
    let ssh = Ssh::new(&node.address, render);
    render.say(&format!("checking {} over ssh", ssh.host()));
    let facts = probe::probe(&ssh).await?;
    let over = Over { ssh: &ssh, is_system: node.is_system, needs_sudo: node.is_system && !facts.is_root };
    let begun = now_ms();
    // Its own folder first: a second install takes the first one's places from its record.
    let folder = Path::new(&node.program).parent().unwrap_or(Path::new("/"));
    let words = ["--json", "install", "--role", "hive", "--bin-dir", &folder.to_string_lossy()];
    let binary = settings.path("binary");
    let installed = over.install(&facts, binary, &words, Input::Nothing, render).await?;
    if let Err(error) = seen(&queen, &node.name, begun).await {
        over.show_log(render).await;
        return Err(error);
    }
    let before = std::mem::replace(&mut node.version, installed.version);
    nodes.save(&node)?;
    render.say(&format!("`{}` is rbee {VERSION} now, it was {before}", node.name));
    told(render, &node)
}

pub async fn uninstall(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let nodes = nodes(settings)?;
    let mut node = known(&nodes, &settings.positionals().join(" "))?;
    node.address = node.address.overridden(settings.machine(&node.name));
    let queen = server::queen(settings)?;
    if !settings.on("forget") {
        let ssh = Ssh::new(&node.address, render);
        render.say(&format!("checking {} over ssh", ssh.host()));
        let facts = probe::probe(&ssh).await?;
        if facts.installed.is_none() {
            render.say("nothing is installed there any more");
        } else {
            let over =
                Over { ssh: &ssh, is_system: node.is_system, needs_sudo: node.is_system && !facts.is_root };
            let mut words = vec!["uninstall"];
            words.extend(settings.on("keep-state").then_some("--keep-state"));
            over.rbee(&node.program, &words, Input::Nothing).await?;
        }
    }
    match forget(&queen, &node.name).await {
        Err(KeeperError::Refused(failure)) if failure.code == Code::HiveNotFound => {}
        forgotten => forgotten?,
    }
    nodes.forget(&node.name)?;
    render.say(&format!("`{}` is gone; its key opens nothing any more", node.name));
    if render.is_json() {
        let value = json!({"name": node.name, "uninstalled": true});
        return render.value(&value).map_err(|error| KeeperError::local("writing the answer", error));
    }
    Ok(())
}

fn told(render: &Render, node: &Node) -> Result<(), KeeperError> {
    if !render.is_json() {
        return Ok(());
    }
    let value = serde_json::to_value(node).map_err(std::io::Error::from);
    value
        .and_then(|value| render.value(&value))
        .map_err(|error| KeeperError::local("writing the answer", error))
}

fn known(nodes: &Nodes, name: &str) -> Result<Node, KeeperError> {
    nodes.find(name)?.ok_or_else(|| {
        let names: Vec<String> = nodes.all().into_iter().map(|node| node.name).collect();
        let there =
            if names.is_empty() { "none was".to_owned() } else { format!("there are: {}", names.join(", ")) };
        let message = format!("no hive `{name}` was installed from this account; {there}");
        Failure::new(Code::HiveNotFound, message).into()
    })
}

/// A name is one node's: neither installed from here, nor linked with the queen.
async fn is_free(nodes: &Nodes, queen: &Target, name: &str) -> Result<(), KeeperError> {
    let taken = |by: &str| {
        let message = format!("a hive is already called `{name}` ({by}): choose another with --name");
        KeeperError::Refused(Failure::new(Code::Conflict, message))
    };
    if let Some(node) = nodes.find(name)? {
        return Err(taken(&format!("installed on {}", node.address.destination)));
    }
    match hive(queen, name).await {
        Ok(_) => Err(taken("it is linked with the queen")),
        Err(AskError::Refused(failure)) if failure.code == Code::HiveNotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn hive(queen: &Target, name: &str) -> Result<HiveInfo, AskError> {
    client::ask(queen, client::get(&format!("/v1/hives/{}", percent_encode(name)))?).await
}

/// Waits until a hive of this name is linked, by a link that is younger than `begun`.
async fn seen(queen: &Target, name: &str, begun: u64) -> Result<(), KeeperError> {
    let started = Instant::now();
    while started.elapsed() < SEEN_MAX {
        match hive(queen, name).await {
            Ok(info) if info.connected_at >= begun => return Ok(()),
            Ok(_) => {}
            Err(AskError::Refused(failure)) if failure.code == Code::HiveNotFound => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let message = format!(
        "the hive `{name}` was started and has not come to the queen within {} s: its log is above",
        SEEN_MAX.as_secs()
    );
    Err(Failure::new(Code::HiveNotFound, message).into())
}

async fn forget(queen: &Target, name: &str) -> Result<(), KeeperError> {
    let path = format!("/v1/hives/{}", percent_encode(name));
    let request = client::request("DELETE", &path, reply::empty())?;
    client::ask::<serde_json::Value>(queen, request).await?;
    Ok(())
}

fn dialled(
    settings: &Settings,
    queen: &Target,
    listen: &[String],
    from: Option<std::net::IpAddr>,
) -> Result<String, KeeperError> {
    if let Some(url) = settings.text("dial") {
        return Ok(url.to_owned());
    }
    let listens: Vec<SocketAddr> = listen.iter().filter_map(|address| address.parse().ok()).collect();
    whom::dialled(queen, &listens, from).ok_or_else(|| {
        Failure::new(
            Code::ConnectionFailed,
            format!(
                "the queen listens on this machine only ({}), where no other reaches her: make a key (`rbee key create`) and start her with `--listen 0.0.0.0:{}`; or give an address that leads to her from there with --dial URL, such as the end of a tunnel (`ssh -R {1}:127.0.0.1:{1} HOST`)",
                listen.join(", "),
                crate::wire::QUEEN_PORT,
            ),
        )
        .into()
    })
}

fn read(stdout: &str) -> Result<Installed, KeeperError> {
    serde_json::from_str(stdout.trim())
        .map_err(|error| KeeperError::local("reading what the install over there has answered", error))
}

/// Running the program over there, as who it takes.
struct Over<'a> {
    ssh: &'a Ssh<'a>,
    is_system: bool,
    needs_sudo: bool,
}

impl Over<'_> {
    /// Brings a program over and lets it install itself. Its folder goes in any case; Ctrl-C also takes back what was begun, and
    /// a second one leaves at once.
    async fn install(
        &self,
        facts: &Facts,
        binary: Option<&Path>,
        words: &[&str],
        input: Input,
        render: &Render,
    ) -> Result<Installed, KeeperError> {
        let arrived = Arrived::of(facts);
        let work = async {
            program::bring(self.ssh, facts, binary, &arrived, render).await?;
            self.rbee(&arrived.program, words, input).await
        };
        let interrupted = || async { tokio::signal::ctrl_c().await.is_ok() };
        let done = tokio::select! {
            // First: until it is asked for once, a Ctrl-C ends this process and leaves what was begun.
            biased;
            true = interrupted() => None,
            done = work => Some(done),
        };
        if done.is_none() {
            render.say("interrupted: taking back what was begun over there");
        }
        let cleaning = async {
            if done.is_none() && facts.installed.is_none() {
                // Fails where nothing was begun yet, which is as good.
                let _ = self.rbee(&arrived.program, &["uninstall"], Input::Nothing).await;
            }
            arrived.remove(self.ssh).await;
        };
        tokio::select! {
            () = cleaning => {}
            true = interrupted() => {}
        }
        read(&done.ok_or(KeeperError::Interrupted)??)
    }

    /// Its answer on stdout, if it did what it was asked for.
    async fn rbee(&self, program: &str, words: &[&str], input: Input) -> Result<String, RemoteError> {
        let sudo: &[&str] = if self.needs_sudo { &["sudo", "-n"] } else { &[] };
        let system: &[&str] = if self.is_system { &["--system"] } else { &[] };
        let command = ssh::line(&[sudo, &[program], words, system].concat());
        let ended = self.ssh.run(&command, input, true).await?;
        if ended.is_done() {
            return Ok(ended.stdout);
        }
        let host = self.ssh.host().to_owned();
        if self.needs_sudo && ended.stderr.contains("sudo: a password is required") {
            let user = host.split('@').next().unwrap_or_default().to_owned();
            return Err(RemoteError::Sudo { host, user });
        }
        if ended.is_not_found() {
            let command = if self.needs_sudo { "sudo".into() } else { program.to_owned() };
            return Err(RemoteError::NoCommand { host, command, hint: "it has to be there for this" });
        }
        let told = ended.stderr.lines().rfind(|line| line.starts_with("error: "));
        let said = told.map_or_else(|| last_line(&ended.stderr), |line| line["error: ".len()..].to_owned());
        Err(RemoteError::Failed { what: "it failed", host, said })
    }

    async fn show_log(&self, render: &Render) {
        if let Ok(ended) = self.ssh.script(LOG).await {
            for line in ended.stdout.lines() {
                render.say(&format!("  | {}", crate::keeper::render::printable(line)));
            }
        }
    }
}
