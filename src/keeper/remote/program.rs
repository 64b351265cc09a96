//! The program on its way: this very file where the other machine is of the same kind; else one that the person names, or one
//! built over there from the source that this file carries.

use super::failure::{RemoteError, last_line};
use super::probe::{Facts, own_target};
use super::ssh::{Input, Ssh, line, quoted};
use crate::catalog;
use crate::keeper::render::{Render, size};
use crate::wire::VERSION;
use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;

/// Run with the folder as `$0`: a login shell may be any, `sh` is one.
const RECEIVE: &str = "umask 077 && mkdir -p \"$0\" && cat > \"$0/rbee\" && chmod 755 \"$0/rbee\"";
const RECEIVE_SOURCE: &str = "umask 077 && mkdir -p \"$0/source\" && tar -xzf - -C \"$0/source\"";
const SUM: &str = "(sha256sum \"$0\" || shasum -a 256 \"$0\" || openssl dgst -sha256 -r \"$0\") 2>/dev/null | cut -d ' ' -f 1";
/// `cargo` may be where rustup puts it and only an interactive shell looks.
const TOOLS: &str = "PATH=\"$HOME/.cargo/bin:$PATH\"; for tool in cargo cmake make; do command -v $tool >/dev/null || echo $tool; done; \
                     command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || echo c++";
/// Without a terminal nothing over there hears of a connection that ends, and a build goes on for an hour: so one of its own
/// processes reads what never comes, and at its end kills them all. They are known by their group, which sshd makes for every
/// command; where a server makes none, it is not ours to kill.
const BUILD: &str = "exec 3<&0; { cat <&3; set -- $(ps -o pgid= -p $$ | grep . || cut -d ' ' -f 5 /proc/$$/stat); \
                     case $1 in $$|$PPID) kill -KILL 0;; esac; } >/dev/null 2>&1 & watch=$!; exec 3<&- </dev/null; \
                     PATH=\"$HOME/.cargo/bin:$PATH\" && cd \"$0\"/source/* && cargo build --release --locked && \
                     cp target/*/release/rbee \"$0/rbee\"; code=$?; kill $watch 2>/dev/null; exit $code";
/// What was cut off a moment ago may still be writing.
const REMOVE: &str = "rm -rf \"$0\" 2>/dev/null || { sleep 1; rm -rf \"$0\"; }";

/// Where it arrives; gone in any case when the install has ended.
pub struct Arrived {
    pub folder: String,
    pub program: String,
}

impl Arrived {
    /// Where nothing is yet.
    pub fn of(facts: &Facts) -> Self {
        let id = crate::wire::id::fresh().simple().to_string();
        let folder = format!("{}/.rbee-install-{}", facts.home, &id[id.len() - 12..]);
        Arrived { program: format!("{folder}/rbee"), folder }
    }

    pub async fn remove(&self, ssh: &Ssh<'_>) {
        // What is left if even this fails is a file in the home directory; the failure before is what matters.
        let _ = ssh.run(&line(&["sh", "-c", REMOVE, &self.folder]), Input::Nothing, false).await;
    }
}

/// Brings a program over that runs there.
pub async fn bring(
    ssh: &Ssh<'_>,
    facts: &Facts,
    binary: Option<&Path>,
    to: &Arrived,
    render: &Render,
) -> Result<(), RemoteError> {
    match binary {
        Some(binary) => copy(ssh, binary, to, render).await?,
        None if facts.target == own_target() => {
            let own = crate::process::own_program().map_err(RemoteError::Ssh)?;
            copy(ssh, &own, to, render).await?;
        }
        None => build(ssh, facts, to, render).await?,
    }
    runs(ssh, to).await
}

async fn copy(ssh: &Ssh<'_>, from: &Path, to: &Arrived, render: &Render) -> Result<(), RemoteError> {
    let reading = |source: io::Error| RemoteError::Record { path: from.to_owned(), source };
    let file = File::open(from).map_err(reading)?;
    let bytes = file.metadata().map_err(reading)?.len();
    let here = crate::keeper::install::sum(from).map_err(reading)?;
    render.say(&format!("copying {}", size(bytes)));
    let command = line(&["sh", "-c", RECEIVE, &to.folder]);
    let ended = ssh.run(&command, Input::File(file), false).await?;
    if !ended.is_done() {
        let host = ssh.host().to_owned();
        let said = last_line(&ended.stderr);
        return Err(RemoteError::NotWritable { host, path: to.folder.clone(), said });
    }
    let there = ssh.run(&line(&["sh", "-c", SUM, &to.program]), Input::Nothing, false).await?;
    let there = there.stdout.trim().to_owned();
    if there.is_empty() {
        render.say("warning: nothing over there makes SHA-256 sums; going by the length alone");
        let length = ssh.run(&format!("wc -c < {}", quoted(&to.program)), Input::Nothing, false).await?;
        let there = length.stdout.trim().to_owned();
        return if there == bytes.to_string() {
            Ok(())
        } else {
            Err(RemoteError::Corrupt { host: ssh.host().to_owned(), here: format!("{bytes} bytes"), there })
        };
    }
    if there != here {
        return Err(RemoteError::Corrupt { host: ssh.host().to_owned(), here, there });
    }
    Ok(())
}

async fn build(ssh: &Ssh<'_>, facts: &Facts, to: &Arrived, render: &Render) -> Result<(), RemoteError> {
    let host = ssh.host().to_owned();
    let target = &facts.target;
    render
        .say(&format!("{host} is {target}, this is {}: building there from the source inside", own_target()));
    let missing = ssh.script(TOOLS).await?;
    let missing: Vec<&str> = missing.stdout.split_whitespace().collect();
    if !missing.is_empty() {
        return Err(RemoteError::NoCommand {
            host,
            command: missing.join("`, `"),
            hint: "install it there, or give a program for that machine with --binary FILE",
        });
    }
    let wrapped = |what: &'static str, said: String| RemoteError::Failed { what, host: host.clone(), said };
    let mut archive = tempfile::tempfile().map_err(RemoteError::Ssh)?;
    io::Write::write_all(&mut archive, catalog::ARCHIVE)
        .and_then(|()| archive.rewind())
        .map_err(RemoteError::Ssh)?;
    let unpack = line(&["sh", "-c", RECEIVE_SOURCE, &to.folder]);
    let ended = ssh.run(&unpack, Input::File(archive), false).await?;
    if !ended.is_done() {
        return Err(wrapped("unpacking the source", last_line(&ended.stderr)));
    }
    let ended = ssh.run(&line(&["sh", "-c", BUILD, &to.folder]), Input::Held, true).await?;
    if !ended.is_done() {
        return Err(wrapped("building", last_line(&ended.stderr)));
    }
    Ok(())
}

/// Before it takes anything's place: a wrong architecture, an old processor, a home that runs no programs.
async fn runs(ssh: &Ssh<'_>, arrived: &Arrived) -> Result<(), RemoteError> {
    let command = format!("{} version --json", quoted(&arrived.program));
    let ended = ssh.run(&command, Input::Nothing, false).await?;
    let told: Option<serde_json::Value> = serde_json::from_str(ended.stdout.trim()).ok();
    match told.as_ref().and_then(|told| told["version"].as_str()) {
        Some(VERSION) if ended.is_done() => Ok(()),
        Some(other) if ended.is_done() => Err(RemoteError::Failed {
            what: "the program has another version",
            host: ssh.host().to_owned(),
            said: format!("{other}, where this is {VERSION}"),
        }),
        _ => Err(RemoteError::Failed {
            what: "the program does not run",
            host: ssh.host().to_owned(),
            said: last_line(&format!("{}\n{}", ended.stdout, ended.stderr)),
        }),
    }
}
