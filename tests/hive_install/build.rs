//! `rbee hive install` on another kind of machine: the program is built over there, from the source that this one carries, by
//! what stands in for its tools.

use super::{done, keeper, refused};
use crate::install::tree;
use crate::support::node::{Daemon, Place, RBEE, alone, signal_pid, until, write};
use crate::support::sshd::{Account, Sshd, TOOLS, is_possible, run};
use crate::support::terminal::{CTRL_C, Terminal};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// Files and their sums, below the folder where it runs.
const SUMS: &str = "find . -type f -exec sha256sum {} + | LC_ALL=C sort -k 2";

/// A machine that says of itself that it is another kind, with tools that are none.
struct Other {
    queen: Daemon,
    sshd: Sshd,
    /// All that is in its account's home before anything was done.
    before: Vec<PathBuf>,
    account: Account,
    place: Place,
}

impl Other {
    /// Its cargo is a script: what comes after it was asked for what it should be.
    fn start(cargo: &str) -> Other {
        Other::start_at(&[], cargo)
    }

    fn start_at(listen: &[&str], cargo: &str) -> Other {
        let (place, account) = (Place::new(), Account::new());
        let tool = |folder: &str, name: &str, script: &str| {
            write(&account.home.join(folder).join(name), &format!("#!/bin/sh\n{script}\n"), 0o755);
        };
        tool(TOOLS, "uname", "case $1 in -sm) echo Linux riscv64;; *) exec /bin/uname \"$@\";; esac");
        for name in ["cmake", "make", "c++"] {
            tool(TOOLS, name, "echo 'nobody asks this one' >&2; exit 1");
        }
        // Where rustup puts it, and only an interactive shell looks.
        let asked = "test \"$*\" = 'build --release --locked' || { echo \"asked for $*\" >&2; exit 2; }";
        tool(".cargo/bin", "cargo", &format!("{asked}\n{cargo}"));
        std::fs::copy(RBEE, account.home.join("rbee")).unwrap();
        let sshd = Sshd::start(&place, &account);
        run("chown", &["-R", &account.name, account.home.to_str().unwrap()]);
        let queen = Daemon::start(&place, "queen serve", listen);
        let before = tree(&account.home);
        Other { queen, sshd, before, account, place }
    }

    fn install(&self) -> Vec<String> {
        let (host, port) = (format!("{}@127.0.0.1", self.account.name), self.sshd.port.to_string());
        let (url, key) = (self.queen.url(), self.sshd.key("ours"));
        let words = ["hive", "install", "--queen", &url, "--name", "far", "--listen", "127.0.0.1:0"];
        let way = ["--port", &port, "--identity", &key, &host];
        words.iter().chain(&way).map(|word| (*word).to_owned()).collect()
    }

    /// Begins to install, up to the build's first line.
    fn begin(&self) -> (Child, BufReader<std::process::ChildStderr>) {
        let line = self.install();
        let mut command = keeper(&self.place, &words(&line));
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap());
        let mut all = String::new();
        while !all.ends_with("Compiling the first\n") {
            assert_ne!(told.read_line(&mut all).unwrap(), 0, "no build has begun: {all}");
        }
        self.builds();
        (child, told)
    }

    /// Waits until the build's child runs.
    fn builds(&self) {
        until("its child runs", || match self.account.processes() {
            all if all.contains("sleep 1000") => Ok(()),
            all => Err(all),
        });
    }

    /// The queen's job of the last install, as she tells it.
    fn job(&self) -> Value {
        let jobs = self.queen.get("/v1/jobs").json()["jobs"].take();
        let installs = |job: &&Value| job["operation"] == "hive_install";
        jobs.as_array().unwrap().iter().find(installs).unwrap_or_else(|| panic!("{jobs}")).clone()
    }

    /// The same, when it has ended.
    fn ended_job(&self) -> Value {
        until("the job has ended", || match self.job() {
            job if job["ended_at"].is_null() => Err(job.to_string()),
            job => Ok(job),
        })
    }

    /// The job was cancelled, and its receipt tells of what was there.
    fn is_cancelled(&self) {
        let job = self.ended_job();
        let receipt = &job["receipt"];
        assert_eq!((&job["state"], &receipt["clean"]), (&json!("cancelled"), &json!(true)), "{job}");
        // The shell of the build, what stands in for cargo, and its child.
        let (reaped, removed) = (&receipt["processes_reaped"], &receipt["bytes_removed"]);
        assert!(reaped.as_u64() >= Some(3) && removed.as_u64() > Some(100_000), "{job}");
        self.is_quiet();
        assert_eq!(tree(&self.account.home), self.before);
    }

    /// Nothing runs over there; and nothing is remembered of it here.
    #[track_caller]
    fn is_quiet(&self) {
        until("nothing of the account's runs", || match self.account.processes() {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        });
        self.queen.has_hives(0);
        assert_eq!(self.place.path("s/nodes").read_dir().into_iter().flatten().count(), 0);
    }
}

fn words(line: &[String]) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}

/// The sums of the source that this program carries, unpacked here.
fn sums_of_the_source(place: &Place) -> String {
    let (archive, folder) = (place.path("source.tar.gz"), place.path("source"));
    std::fs::write(&archive, rbee::catalog::ARCHIVE).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let unpacked =
        ["-xzf", archive.to_str().unwrap(), "--strip-components=1", "-C", folder.to_str().unwrap()];
    run("tar", &unpacked);
    run("sh", &["-c", &format!("cd {} && {SUMS}", folder.display())])
}

#[test]
fn another_kind_of_machine_gets_the_source_whole_builds_it_joins_and_keeps_nothing_of_it() {
    if !is_possible() {
        return;
    }
    alone(|| {
        let other = Other::start(&format!(
            "test -f Cargo.toml && test -d src || exit 3\n{SUMS} > ~/arrived\n\
             echo '   Compiling the first' >&2; echo '   Compiling the second' >&2\n\
             mkdir -p target/x/release && cp ~/rbee target/x/release/rbee"
        ));
        let Other { queen, account, place, .. } = &other;
        let line = other.install();
        let (_, told) = done(place, &words(&line));
        let mut rest = told.as_str();
        for step in [
            "is Linux riscv64",
            "building there from the source inside",
            "Compiling the first",
            "Compiling the second",
            "joined the queen",
            "`far` is reachable",
        ] {
            rest = rest.split_once(step).unwrap_or_else(|| panic!("no `{step}` in {rest}, of {told}")).1;
        }
        let arrived = std::fs::read_to_string(account.home.join("arrived")).unwrap();
        assert_eq!(arrived, sums_of_the_source(place));
        for file in ["./Cargo.toml", "./Cargo.lock", "./PROVENANCE.toml", "./src/main.rs"] {
            assert!(arrived.lines().any(|line| line.ends_with(file)), "no {file} in {arrived}");
        }
        queen.has_hives(1);
        let below = |path: &PathBuf| path.strip_prefix(&account.home).unwrap().to_str().unwrap().to_owned();
        let after: Vec<String> = tree(&account.home).iter().map(below).collect();
        assert!(!after.iter().any(|path| path.contains("rbee-install")), "{after:?}");
        let job = other.job();
        assert_eq!(job["state"], "done", "{job}");
        let id = job["job_id"].as_str().unwrap();
        let (stdout, replayed) = done(place, &["job", "follow", id, "--queen", &queen.url()]);
        for step in ["checking", "building there", "  |    Compiling the second", "is reachable"] {
            assert!(replayed.contains(step), "no `{step}` in {replayed}");
        }
        assert!(stdout.contains("\"name\"") && stdout.contains("far"), "{stdout}");
        let installed = account.home.join(".local/bin/rbee");
        assert_eq!(std::fs::read(installed).unwrap(), std::fs::read(RBEE).unwrap());

        done(place, &["hive", "uninstall", "far", "--queen", &queen.url()]);
        other.is_quiet();
        std::fs::remove_file(account.home.join("arrived")).unwrap();
        assert_eq!(tree(&account.home), other.before);
    });
}

#[test]
fn a_build_over_there_that_fails_gives_its_last_line_and_leaves_nothing() {
    if !is_possible() {
        return;
    }
    alone(|| {
        let other = Other::start(
            "echo '   Compiling the first' >&2; mkdir -p target/x; echo half > target/x/rbee\n\
             echo 'error: could not compile the first' >&2; exit 101",
        );
        let line = other.install();
        let told = refused(&other.place, &words(&line), ": error: could not compile the first");
        assert!(told.contains("  Compiling the first\n"), "{told}");
        let failed = told.lines().rfind(|line| line.starts_with("error: ")).unwrap();
        assert!(failed.contains("building on") && failed.contains(&other.account.name), "{failed}");
        assert_eq!(tree(&other.account.home), other.before);
        other.is_quiet();
        let job = other.ended_job();
        assert_eq!(job["state"], "failed", "{job}");
        assert!(job["error"]["message"].as_str().unwrap().contains("could not compile the first"), "{job}");
    });
}

/// Ignores what asks it to end, and goes on for ever with a child of its own.
const STUBBORN: &str = "trap '' TERM HUP INT; mkdir -p target/x\nsleep 1000 & echo '   Compiling the first' >&2\n\
                        while :; do echo more > target/x/$$; done";

#[test]
fn a_build_over_there_is_a_job_that_others_watch_and_cancel() {
    if !is_possible() {
        return;
    }
    alone(|| {
        let other = Other::start(STUBBORN);
        let (child, mut told) = other.begin();
        let job = other.job();
        let id = job["job_id"].as_str().unwrap();
        assert_eq!(job["state"], "running", "{job}");
        let mut watched = other.queen.watch(&format!("/v1/jobs/{id}/stream"));
        while !watched.next().unwrap().unwrap().data.contains("Compiling the first") {}
        let (_, receipt) = done(&other.place, &["job", "cancel", id, "--queen", &other.queen.url()]);
        assert!(receipt.contains("processes ended (process_group)"), "{receipt}");
        while watched.next().unwrap().unwrap().data != "[CANCELLED]" {}
        let mut rest = String::new();
        told.read_to_string(&mut rest).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{rest}");
        for words in ["cancelled by somebody else", "taking back what was begun", "processes ended"] {
            assert!(rest.contains(words), "no `{words}` in {rest}");
        }
        other.is_cancelled();
    });
}

#[test]
fn a_queen_that_is_lost_while_it_builds_is_missed_and_not_needed() {
    if !is_possible() {
        return;
    }
    alone(|| {
        let address = Place::new().address(7833);
        let other = Other::start_at(
            &["--listen", &address],
            "echo '   Compiling the first' >&2; until test -f ~/go-on; do sleep 1000; done\n\
             mkdir -p target/x/release && cp ~/rbee target/x/release/rbee",
        );
        let (child, mut told) = other.begin();
        let Other { place, account, sshd: _sshd, queen, .. } = other;
        queen.kill9();
        let mut all = String::new();
        while !all.contains("the queen's job of this is lost") {
            assert_ne!(told.read_line(&mut all).unwrap(), 0, "{all}");
        }
        let queen = Daemon::start(&place, "queen serve", &["--listen", &address]);
        let failed = queen.get("/v1/jobs").json()["jobs"][0].clone();
        assert_eq!((&failed["operation"], &failed["state"]), (&json!("hive_install"), &json!("interrupted")));
        write(&account.home.join("go-on"), "", 0o644);
        run("pkill", &["--uid", &account.name, "sleep"]);
        told.read_to_string(&mut all).unwrap();
        assert!(child.wait_with_output().unwrap().status.success(), "{all}");
        assert!(all.contains("`far` is reachable"), "{all}");
        queen.has_hives(1);
        done(&place, &["hive", "uninstall", "far", "--queen", &queen.url()]);
        queen.has_hives(0);
    });
}

#[test]
fn ctrl_c_or_the_end_of_a_keeper_ends_the_build_over_there_with_all_its_processes() {
    if !is_possible() {
        return;
    }
    alone(|| {
        let other = Other::start(STUBBORN);
        let (mut child, mut told) = other.begin();
        signal_pid(child.id() as i32, Signal::INT);
        let mut rest = String::new();
        told.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
        assert!(rest.contains("taking back what was begun"), "{rest}");
        other.is_cancelled();

        // At a terminal, which gives its Ctrl-C to ssh, too.
        let line = other.install();
        if let Some(mut terminal) = Terminal::start(&keeper(&other.place, &words(&line))) {
            terminal.shows("Compiling the first");
            other.builds();
            terminal.press(CTRL_C);
            terminal.shows("processes ended (process_group)");
            assert_eq!(terminal.ends().code(), Some(130));
            other.is_cancelled();
        }

        // Nobody is left to take anything back, but nothing goes on.
        let (mut child, _) = other.begin();
        child.kill().unwrap();
        child.wait().unwrap();
        other.is_quiet();
        let job = other.ended_job();
        assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("CONNECTION_FAILED")));
        assert!(job["error"]["message"].as_str().unwrap().contains("the command that did this is gone"));
    });
}
