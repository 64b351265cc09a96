//! `rbee hive install|update|uninstall`: another machine's hive, set up over the system's ssh. What is done over there, `rbee
//! install` does, by the program that was copied first; here are the way to it, the join token, and the word of the queen
//! that the node has come.

mod address;
mod failure;
mod node;
mod probe;
mod program;
mod report;
mod ssh;
mod whom;
mod work;

use crate::config::Settings;
use crate::http::client::{self, AskError, Target};
use crate::http::heartbeats::HEARTBEAT_EVERY;
use crate::http::request::percent_encode;
use crate::http::{reply, sse};
use crate::keeper::KeeperError;
use crate::keeper::install::Installed;
use crate::keeper::render::Render;
use crate::keeper::server::Server;
use crate::keys;
use crate::paths::Dirs;
use crate::wire::fleet::{HiveInfo, TokenAnswer, TokenRequest, TokenWithdrawal, now_ms};
use crate::wire::operation::ReportedOperation;
use crate::wire::{Code, Failure, VERSION};
use address::Wanted;
use failure::{RemoteError, last_line};
pub use node::{Node, Nodes};
use probe::Facts;
use program::Arrived;
use serde::Deserialize;
use serde_json::{Value, json};
use ssh::{Input, Ssh};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use work::Work;

/// A node may have to be built before it joins.
const TOKEN_TTL: Duration = Duration::from_secs(2 * 3600);
/// How long a hive that was started may take to be linked with the queen.
const SEEN_MAX: Duration = Duration::from_secs(60);
/// Her heartbeats come more often.
const SILENCE_MAX: Duration = HEARTBEAT_EVERY.saturating_mul(4);
/// Before the queen is asked again for her heartbeats, when they broke off.
const ASK_AGAIN: Duration = Duration::from_millis(250);
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

/// One of the three commands: work, as a job, on the node that its argument names.
pub async fn run(
    operation: ReportedOperation,
    settings: &Settings,
    render: &Render,
) -> Result<(), KeeperError> {
    let server = Server::of_queen(settings)?;
    let place = Place { settings, nodes: nodes(settings)?, queen: &server.target };
    // What cannot be meant is refused before anybody is asked.
    let value = match operation {
        ReportedOperation::HiveInstall => {
            let wanted = Wanted::of(settings)?;
            let (work, orders) = Work::begin(&server, operation, render).await?;
            work.led(orders, install(&place, wanted, &work)).await?
        }
        ReportedOperation::HiveUpdate => {
            let node = place.known()?;
            let (work, orders) = Work::begin(&server, operation, render).await?;
            work.led(orders, update(&place, node, &work)).await?
        }
        ReportedOperation::HiveUninstall => {
            let node = place.known()?;
            let (work, orders) = Work::begin(&server, operation, render).await?;
            work.led(orders, uninstall(&place, node, &work)).await?
        }
    };
    if render.is_json() {
        render.value(&value).map_err(|error| KeeperError::local("writing the answer", error))?;
    }
    Ok(())
}

/// What a command knows before it goes anywhere.
struct Place<'a> {
    settings: &'a Settings,
    nodes: Nodes,
    queen: &'a Target,
}

impl Place<'_> {
    /// The node that was named, by its record and by what the configuration says of it by now.
    fn known(&self) -> Result<Node, KeeperError> {
        let mut node = known(&self.nodes, &self.settings.positionals().join(" "))?;
        node.address = node.address.overridden(self.settings.machine(&node.name));
        Ok(node)
    }
}

async fn install(place: &Place<'_>, wanted: Wanted, work: &Work<'_>) -> Result<Value, KeeperError> {
    let Place { nodes, queen, .. } = place;
    if let Some(name) = &wanted.name {
        is_free(nodes, queen, name).await?;
    }
    let ssh = Ssh::new(&wanted.address, work);
    work.say("check", &format!("checking {} over ssh", ssh.host())).await;
    let facts = probe::probe(&ssh).await?;
    let short = facts.node.split('.').next().unwrap_or_default().to_owned();
    let name = wanted.name.clone().unwrap_or(short);
    if !keys::is_name(&name) {
        return Err(RemoteError::BadName(name).into());
    }
    let found = format!("it is {} ({}); the hive will be `{name}`", facts.node, facts.target);
    work.say("check", &found).await;
    is_free(nodes, queen, &name).await?;
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
    let token: TokenAnswer = client::ask(queen, client::post("/v1/tokens", &asked)?).await?;
    let joined = join(place, &wanted, &name, &ssh, &facts, &token, work).await;
    if joined.is_err() {
        // A token that was not used is to let nobody in, and a key that was given for it is to open nothing.
        let withdrawal = TokenWithdrawal { token: token.token };
        let ask = client::with_json("DELETE", "/v1/tokens", &withdrawal)?;
        if let Err(error) = client::ask::<Value>(queen, ask).await {
            work.is_not_clean();
            let why = crate::wire::failure::chain(&error);
            work.warn("undo", &format!("the queen still has the join token, or its key: {why}")).await;
        }
    }
    joined
}

/// Brings the program over, which joins by the token and starts, and waits until the queen has seen it. What fails is taken
/// back over there.
async fn join(
    place: &Place<'_>,
    wanted: &Wanted,
    name: &str,
    ssh: &Ssh<'_>,
    facts: &Facts,
    token: &TokenAnswer,
    work: &Work<'_>,
) -> Result<Value, KeeperError> {
    let Place { settings, nodes, queen } = place;
    let dialled = dialled(settings, queen, &token.listen, facts.from, ssh.host())?;
    let is_system = settings.on("system") || facts.is_root;
    let bin_dir = wanted.bin_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned());
    let mut words = vec!["--json", "install", "--role", "hive", "--name", name, "--queen", &dialled];
    words.extend(["--join", "-", "--leash"]);
    if let Some(dir) = &bin_dir {
        words.extend(["--bin-dir", dir]);
    }
    words.extend(settings.texts("listen").into_iter().flat_map(|address| ["--listen", address]));
    let over = Over { ssh, work, is_system, needs_sudo: is_system && !facts.is_root };
    let input = Input::Leash(format!("{}\n", token.token));
    let installed = over.install(facts, settings.path("binary"), &words, input).await?;
    let node = Node {
        name: name.to_owned(),
        address: wanted.address.clone(),
        is_system,
        program: installed.program.to_string_lossy().into_owned(),
        queen: dialled,
        version: installed.version,
        service: installed.service,
        installed_at: now_ms(),
    };
    let seen = match nodes.save(&node) {
        Ok(()) => seen(queen, name, None, work).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = seen {
        if !error.is_stop() {
            over.show_log().await;
        }
        work.say("undo", "taking it away again").await;
        let over = Over { ssh: &ssh.unstopped(), ..over };
        over.undo(&node.program).await;
        if let Err(error) = nodes.forget(name) {
            work.is_not_clean();
            work.warn("undo", &crate::wire::failure::chain(&error)).await;
        }
        return Err(error);
    }
    work.say("done", &format!("`{name}` is reachable")).await;
    Ok(json!(node))
}

async fn update(place: &Place<'_>, mut node: Node, work: &Work<'_>) -> Result<Value, KeeperError> {
    let ssh = Ssh::new(&node.address, work);
    work.say("check", &format!("checking {} over ssh", ssh.host())).await;
    let facts = probe::probe(&ssh).await?;
    let needs_sudo = node.is_system && !facts.is_root;
    let over = Over { ssh: &ssh, work, is_system: node.is_system, needs_sudo };
    let before = linked_at(place.queen, &node.name).await?;
    // Its own folder first: a second install takes the first one's places from its record.
    let folder = Path::new(&node.program).parent().unwrap_or(Path::new("/"));
    let words = ["--json", "install", "--role", "hive", "--bin-dir", &folder.to_string_lossy()];
    let installed = over.install(&facts, place.settings.path("binary"), &words, Input::Nothing).await?;
    // Done over there, whatever comes of the waiting.
    let version = std::mem::replace(&mut node.version, installed.version);
    place.nodes.save(&node)?;
    work.say("install", &format!("`{}` is rbee {VERSION} now, it was {version}", node.name)).await;
    if let Err(error) = seen(place.queen, &node.name, before, work).await {
        if !error.is_stop() {
            over.show_log().await;
        }
        return Err(error);
    }
    work.say("done", &format!("`{}` is back", node.name)).await;
    Ok(json!(node))
}

async fn uninstall(place: &Place<'_>, node: Node, work: &Work<'_>) -> Result<Value, KeeperError> {
    let settings = place.settings;
    if !settings.on("forget") {
        let ssh = Ssh::new(&node.address, work);
        work.say("check", &format!("checking {} over ssh", ssh.host())).await;
        let facts = probe::probe(&ssh).await?;
        if facts.installed.is_none() {
            work.say("check", "nothing is installed there any more").await;
        } else {
            let needs_sudo = node.is_system && !facts.is_root;
            let over = Over { ssh: &ssh, work, is_system: node.is_system, needs_sudo };
            let mut words = vec!["uninstall"];
            words.extend(settings.on("keep-state").then_some("--keep-state"));
            // Begun, it is led to its end: half of it is nothing that anybody wants.
            let over = Over { ssh: &ssh.unstopped(), ..over };
            over.rbee(&node.program, &words, Input::Nothing).await?;
        }
    }
    match forget(place.queen, &node.name).await {
        Err(KeeperError::Refused(failure)) if failure.code == Code::HiveNotFound => {}
        forgotten => forgotten?,
    }
    place.nodes.forget(&node.name)?;
    work.say("done", &format!("`{}` is gone; its key opens nothing any more", node.name)).await;
    Ok(json!({"name": node.name, "uninstalled": true}))
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
    match linked_at(queen, name).await? {
        Some(_) => Err(taken("it is linked with the queen")),
        None => Ok(()),
    }
}

async fn hive(queen: &Target, name: &str) -> Result<HiveInfo, AskError> {
    client::ask(queen, client::get(&format!("/v1/hives/{}", percent_encode(name)))?).await
}

/// When a hive was linked, by the queen's clock; none where it is not.
async fn linked_at(queen: &Target, name: &str) -> Result<Option<u64>, KeeperError> {
    match hive(queen, name).await {
        Ok(info) => Ok(Some(info.connected_at)),
        Err(AskError::Refused(failure)) if failure.code == Code::HiveNotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Waits until a hive of this name is linked, by another link than that of `before`.
async fn seen(queen: &Target, name: &str, before: Option<u64>, work: &Work<'_>) -> Result<(), KeeperError> {
    let linked = tokio::time::timeout(SEEN_MAX, linked_anew(queen, name, before));
    let Some(linked) = work.stop().run_until_cancelled(linked).await else {
        return Err(KeeperError::Interrupted);
    };
    if let Ok(linked) = linked {
        return linked;
    }
    let message = format!(
        "the hive `{name}` was started and has not come to the queen within {} s: its log is above",
        SEEN_MAX.as_secs()
    );
    Err(Failure::new(Code::HiveNotFound, message).into())
}

/// Reads her heartbeats until they tell of it. She may be away meanwhile, for a restart for instance.
async fn linked_anew(queen: &Target, name: &str, before: Option<u64>) -> Result<(), KeeperError> {
    loop {
        match client::send(queen, client::get("/v1/heartbeats/stream")?).await {
            Ok(answer) if answer.status().is_success() => {
                let mut beats = sse::Reader::new(answer.into_body());
                while let Ok(Ok(Some(beat))) = tokio::time::timeout(SILENCE_MAX, beats.next()).await {
                    if has_come(&beat.data, name, before) {
                        return Ok(());
                    }
                }
            }
            Ok(answer) => match client::whole(answer).await {
                Err(failure) if failure.code != Code::ShuttingDown => return Err(failure.into()),
                _ => {}
            },
            Err(_) => {}
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn has_come(beat: &str, name: &str, before: Option<u64>) -> bool {
    #[derive(Deserialize)]
    struct Beat {
        hives: Vec<Linked>,
    }
    #[derive(Deserialize)]
    struct Linked {
        name: String,
        connected_at: u64,
    }
    let Ok(beat) = serde_json::from_str::<Beat>(beat) else { return false };
    beat.hives.iter().any(|hive| hive.name == name && Some(hive.connected_at) != before)
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
    from: Option<IpAddr>,
    host: &str,
) -> Result<String, KeeperError> {
    if let Some(url) = settings.text("dial") {
        return Ok(url.to_owned());
    }
    let listens: Vec<SocketAddr> = listen.iter().filter_map(|address| address.parse().ok()).collect();
    whom::dialled(queen, &listens, from)
        .ok_or_else(|| Failure::new(Code::ConnectionFailed, whom::advice(&listens, host)).into())
}

fn read(stdout: &str) -> Result<Installed, KeeperError> {
    serde_json::from_str(stdout.trim())
        .map_err(|error| KeeperError::local("reading what the install over there has answered", error))
}

/// Running the program over there, as who it takes.
#[derive(Clone, Copy)]
struct Over<'a> {
    ssh: &'a Ssh<'a>,
    work: &'a Work<'a>,
    is_system: bool,
    needs_sudo: bool,
}

impl Over<'_> {
    /// Brings a program over and lets it install itself. Its folder goes in any case; a stop also takes back what was begun.
    async fn install(
        &self,
        facts: &Facts,
        binary: Option<&Path>,
        words: &[&str],
        input: Input,
    ) -> Result<Installed, KeeperError> {
        let arrived = Arrived::of(facts);
        let unstopped = self.ssh.unstopped();
        let undoing = Over { ssh: &unstopped, ..*self };
        // What ends by its leash may be stopped; the rest takes a moment, and half of it is nothing that anybody wants.
        let installing = if matches!(input, Input::Leash(_)) { *self } else { undoing };
        let bringing = async {
            program::bring(self.ssh, facts, binary, &arrived, self.work).await?;
            installing.rbee(&arrived.program, words, input).await
        };
        let done = bringing.await;
        if done.is_err() && self.work.stop().is_cancelled() {
            self.work.say("undo", "interrupted: taking back what was begun over there").await;
            if facts.installed.is_none() {
                undoing.undo(&arrived.program).await;
            }
        }
        arrived.remove(&unstopped, self.work).await;
        read(&done?)
    }

    /// Takes away what a program has put there.
    async fn undo(&self, program: &str) {
        match self.rbee(program, &["uninstall"], Input::Nothing).await {
            // Nothing was begun, or has undone itself already.
            Err(RemoteError::Failed { said, .. })
                if said.starts_with("nothing was installed") || said.contains("not found") => {}
            Ok(_) | Err(RemoteError::NoCommand { .. }) => {}
            Err(error) => {
                self.work.is_not_clean();
                self.work.warn("undo", &crate::wire::failure::chain(&error)).await;
            }
        }
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
        // All from there on: a daemon that did not start is told of in several lines.
        let told = format!("\n{}", ended.stderr);
        let said = match told.rsplit_once("\nerror: ") {
            Some((_, said)) => said.trim_end().to_owned(),
            None => last_line(&ended.stderr),
        };
        Err(RemoteError::Failed { what: "it failed", host, said })
    }

    async fn show_log(&self) {
        if let Ok(ended) = self.ssh.script(LOG).await {
            for line in ended.stdout.lines() {
                self.work.line("  | ", line).await;
            }
        }
    }
}
