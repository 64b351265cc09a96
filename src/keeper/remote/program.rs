//! The program on its way: this very file where the other machine is of the same kind; else one that the person names, or one
//! built over there from the source that this file carries.

use super::failure::{RemoteError, last_line};
use super::probe::{Facts, own_target};
use super::ssh::{Input, Ssh, line, quoted};
use super::work::Work;
use crate::catalog;
use crate::keeper::render::size;
use crate::wire::VERSION;
use crate::wire::failure::chain;
use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;

/// Run with the folder as `$0`: a login shell may be any, `sh` is one.
const RECEIVE: &str = "umask 077 && mkdir -p \"$0\" && cat > \"$0/rbee\" && chmod 755 \"$0/rbee\"";
const RECEIVE_SOURCE: &str = "umask 077 && mkdir -p \"$0/source\" && tar -xzf - -C \"$0/source\"";
/// Folders of installs whose keeper was killed: no token is good for so long.
const SWEEP: &str =
    "find \"${0%/*}\" -maxdepth 1 -type d -name '.rbee-install-*' -mmin +1440 -exec rm -rf {} +";
const SUM: &str = "(sha256sum \"$0\" || shasum -a 256 \"$0\" || openssl dgst -sha256 -r \"$0\") 2>/dev/null | cut -d ' ' -f 1";
/// `cargo` may be where rustup puts it, and a Mac's tools where Homebrew does: only an interactive shell looks there.
const TOOLS: &str = "PATH=\"$HOME/.cargo/bin:$PATH:/opt/homebrew/bin:/usr/local/bin\"; for tool in cargo cmake make; do command -v $tool >/dev/null || echo $tool; done; \
                     command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || echo c++";
/// Without a terminal nothing over there hears of a connection that ends, and a build goes on for an hour: so one of its own
/// processes reads what never comes, and at its end tells which there are and kills them all. They are known by their group,
/// which sshd makes for every command; where a server makes none, it is not ours to kill.
const BUILD: &str = "exec 3<&0; { cat <&3 >/dev/null; set -- $(ps -o pgid= -p $$ | grep . || cut -d ' ' -f 5 /proc/$$/stat); \
                     case $1 in $$|$PPID) echo \"group $1 $$\"; ps -A -o pgid=,pid=,ppid=,comm=; kill -KILL 0;; esac; \
                     } 2>/dev/null & watch=$!; exec 3<&- </dev/null; \
                     PATH=\"$HOME/.cargo/bin:$PATH:/opt/homebrew/bin:/usr/local/bin\" && cd \"$0\"/source/* && cargo build --release --locked >&2 && \
                     cp target/*/release/rbee \"$0/rbee\"; code=$?; kill $watch 2>/dev/null; exit $code";
/// Tells first how many KiB there are.
const REMOVE: &str = "du -sk \"$0\" 2>/dev/null | cut -f 1; rm -rf \"$0\"";

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

    /// What is left if even this fails is told: the failure before is what matters.
    pub async fn remove(&self, ssh: &Ssh<'_>, work: &Work<'_>) {
        let removed = ssh.run(&line(&["sh", "-c", REMOVE, &self.folder]), Input::Nothing, false).await;
        let why = match removed {
            Ok(ended) if ended.is_done() => {
                return work.removed(ended.stdout.trim().parse::<u64>().unwrap_or_default() << 10);
            }
            Ok(ended) => last_line(&ended.stderr),
            Err(error) => chain(&error),
        };
        work.is_not_clean();
        work.warn("remove", &format!("`{}` is left on {}: {why}", self.folder, ssh.host())).await;
    }
}

/// Brings a program over that runs there.
pub async fn bring(
    ssh: &Ssh<'_>,
    facts: &Facts,
    binary: Option<&Path>,
    to: &Arrived,
    work: &Work<'_>,
) -> Result<(), RemoteError> {
    // No matter for this install, whatever becomes of it.
    let _ = ssh.run(&line(&["sh", "-c", SWEEP, &to.folder]), Input::Nothing, false).await?;
    match binary {
        Some(binary) => copy(ssh, binary, to, work).await?,
        None if facts.target == own_target() => {
            let own = crate::process::own_program().map_err(RemoteError::Ssh)?;
            copy(ssh, &own, to, work).await?;
        }
        None => build(ssh, facts, to, work).await?,
    }
    runs(ssh, to).await
}

async fn copy(ssh: &Ssh<'_>, from: &Path, to: &Arrived, work: &Work<'_>) -> Result<(), RemoteError> {
    let reading = |source: io::Error| RemoteError::Record { path: from.to_owned(), source };
    let file = File::open(from).map_err(reading)?;
    let bytes = file.metadata().map_err(reading)?.len();
    let here = crate::keeper::install::sum(from).map_err(reading)?;
    work.say("copy", &format!("copying {}", size(bytes))).await;
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
        work.warn("copy", "nothing over there makes SHA-256 sums; going by the length alone").await;
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

async fn build(ssh: &Ssh<'_>, facts: &Facts, to: &Arrived, work: &Work<'_>) -> Result<(), RemoteError> {
    let host = ssh.host().to_owned();
    let target = &facts.target;
    let begins =
        format!("{host} is {target}, this is {}: building there from the source inside", own_target());
    work.say("build", &begins).await;
    if let Some(job) = work.job() {
        work.say("build", &format!("to watch it from elsewhere: `rbee job follow {job}`")).await;
    }
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
    let ended = ssh.run(&line(&["sh", "-c", BUILD, &to.folder]), Input::Leash(String::new()), true).await;
    if let Err(RemoteError::Stopped { said }) = &ended {
        match said.as_deref().map_or(0, killed) {
            0 => {
                work.is_not_clean();
                work.warn("build", &format!("whether all of it has ended on {host} is not known")).await;
            }
            processes => work.reaped(processes),
        }
    }
    let ended = ended?;
    if !ended.is_done() {
        return Err(wrapped("building", last_line(&ended.stderr)));
    }
    Ok(())
}

/// How many processes of a build there were when they were killed, by what its watcher told before: without the one that
/// told it and those that this one came from. None are known where it could not tell.
fn killed(said: &str) -> u32 {
    let mut lines = said.lines();
    let ids = lines.by_ref().find_map(|line| line.strip_prefix("group ")).and_then(|ids| ids.split_once(' '));
    let Some((group, build)) = ids else { return 0 };
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split_whitespace().collect()).collect();
    let mut ours: Vec<&[&str]> =
        rows.iter().map(Vec::as_slice).filter(|row| row.len() >= 4 && row[0] == group).collect();
    let mut teller =
        ours.iter().find(|row| row[3] == "ps" || row[3].ends_with("/ps")).map_or("", |row| row[1]);
    while teller != build
        && let Some(at) = ours.iter().position(|row| row[1] == teller)
    {
        teller = ours.swap_remove(at)[2];
    }
    ours.len() as u32
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killed_processes_are_counted_without_those_that_count() {
        let said = "a line of the build's\ngroup 40 41\n   1     1     0 init\n  40    40    39 sh\n  40    41    40 sh\n\
                    40 42 41 sh\n 40 43 42 sh\n 40 44 43 ps\n 40 50 41 cargo\n 40 51 50 rustc main\n 60 61 1 sh\n";
        assert_eq!(killed(said), 4, "two shells, cargo and rustc");
        let said = "group 7 7\n 7 7 6 sh\n7 9 8 /bin/ps\n7 8 7 sh\n7 10 7 cargo\n";
        assert_eq!(killed(said), 2);
        assert_eq!(killed("group 7 7\n"), 0);
        assert_eq!(killed(""), 0);
    }
}
