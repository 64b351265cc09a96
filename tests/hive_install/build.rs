//! `rbee hive install` on another kind of machine: the program is built over there, from the source that this one carries, by
//! what stands in for its tools.

use super::{done, keeper, refused};
use crate::install::tree;
use crate::support::node::{Daemon, Place, RBEE, alone, signal_pid, until, write};
use crate::support::sshd::{Account, Sshd, TOOLS, is_possible, run};
use rustix::process::Signal;
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
        let queen = Daemon::start(&place, "queen serve", &[]);
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
        until("its child runs", || match self.account.processes() {
            all if all.contains("sleep 1000") => Ok(()),
            all => Err(all),
        });
        (child, told)
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
    });
}

#[test]
fn ctrl_c_or_the_end_of_a_keeper_ends_the_build_over_there_with_all_its_processes() {
    if !is_possible() {
        return;
    }
    alone(|| {
        let other = Other::start(
            "trap '' TERM HUP INT; mkdir -p target/x\nsleep 1000 & echo '   Compiling the first' >&2\n\
             while :; do echo more > target/x/$$; done",
        );
        let (mut child, mut told) = other.begin();
        signal_pid(child.id() as i32, Signal::INT);
        let mut rest = String::new();
        told.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
        assert!(rest.contains("taking back what was begun"), "{rest}");
        other.is_quiet();
        assert_eq!(tree(&other.account.home), other.before);

        // Nobody is left to take anything back, but nothing goes on.
        let (mut child, _) = other.begin();
        child.kill().unwrap();
        child.wait().unwrap();
        other.is_quiet();
    });
}
