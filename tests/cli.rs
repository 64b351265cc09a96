//! The command line from outside: roles by name, help, mistakes, configuration, links.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const RBEE: &str = env!("CARGO_BIN_EXE_rbee");

/// An account of its own: nothing of the person who runs the tests shines through.
struct Account {
    home: tempfile::TempDir,
    program: PathBuf,
}

impl Account {
    fn new() -> Account {
        Account { home: tempfile::tempdir().unwrap(), program: RBEE.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env_clear().env("HOME", self.home.path());
        command
    }

    fn rbee(&self, args: &[&str]) -> Answer {
        Answer::of(self.command(args))
    }
}

#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn of(mut command: Command) -> Answer {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Answer { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    #[track_caller]
    fn fails(&self, code: i32, words: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.contains(words), "`{words}` is not in {self:?}");
        assert_eq!(self.stdout, "", "results only on stdout");
    }
}

fn link_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_symlinks_name_chooses_the_role() {
    let mut account = Account::new();
    for (name, page) in [
        ("rbee", "rbee makes the machines you own"),
        ("rbee-keeper", "rbee makes the machines you own"),
        ("rbee-queen", "queen serve: "),
        ("queen-rbee", "queen serve: "),
        ("rbee-hive", "hive serve: "),
        ("rbee-worker", "worker serve: "),
        ("llm-worker-rbee", "worker serve: "),
        ("rbee-catalog", "catalog serve: "),
        ("rbee-hive-of-somebody", "rbee makes the machines you own"),
    ] {
        account.program = account.path(name);
        symlink(RBEE, &account.program).unwrap();
        let answer = account.rbee(&["--help"]);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        assert!(answer.stdout.starts_with(page), "{name}: {}", answer.stdout);
    }
}

#[test]
fn the_overview_shows_every_command_with_its_other_spellings() {
    let answer = Account::new().rbee(&["help"]);
    let commands = answer.stdout.split("\nFlags everywhere:").next().unwrap();
    assert_eq!(
        commands.trim_end(),
        "\
rbee makes the machines you own one inference cloud

Usage: rbee COMMAND [flags]

Ask:
  run (infer) [PROMPT…]       one answer, streamed to stdout
  chat                        the same as a conversation, with history and line editing
  status                      queen, hives, workers, models and running jobs on one screen
  why MODEL                   where a request for a model would run, and each node's verdict

Fleet:
  hive list (ls)              the machines of the fleet
  hive get (show) NAME        one machine: devices, workers, models
  hive install USER@HOST      set up a hive on another machine, over ssh
  hive update NAME            bring this program to a hive that was installed from here
  hive uninstall NAME         stop such a hive, remove it from its machine, and forget it
  hive drain NAME             take a machine out of service when what runs there is done
  workers list (ls), ps       running workers and the models they hold
  workers get (show) ID       one running worker
  workers health              does each running worker answer; exits 1 if not
  workers retire ID           no new requests for a worker; it stops when those at work are done
  workers shutdown            stop a worker at once, whatever it is at
  stop MODEL                  unload a model: retire all workers that hold it
  workers logs ID             what a worker says, or said before it ended
  logs                        what queen, hives and workers say, each line with its machine
  worker spawn                start a worker for a model, before anybody asks

Workers to install:
  worker available (catalog)  the workers that can be built and installed
  worker list (ls), worker binary list
                              the workers that a hive has installed
  worker get (show), worker binary get ID
                              one worker: as it is installed, else as the catalog has it
  worker download (install) ID
                              fetch a worker's recipe and sources, build it, install it
  worker remove (rm), worker binary delete ID
                              remove an installed worker from the hive's disk
  worker process list (ls)    the processes that a hive has started
  worker process get (show) PID
                              one process of a hive: command, memory, processor time
  worker process delete PID   end a process that the hive has started, and no other

Models:
  model download (pull, dl), pull REF
                              fetch a model and check it
  model list (ls), list       the models a hive has
  model get (show), show REF  one model: architecture, size, context length, sha256, path
  model remove (rm), rm REF   remove a model from a hive's disk
  model verify [REF]          read a model's bytes, or those of all, and check their sums
  model prune                 show what was left behind, and remove it
  model alias [NAME] [REF]    give a model another name; without arguments, list them
  model unalias NAME          take an alias away; the model stays

Jobs:
  job list (ls)               jobs that run or ran
  job get (show) ID           one job's state, result or receipt
  job follow ID               watch a job from its first event on
  job cancel ID               stop a job and show what was stopped

Keys:
  key create                  make a key for this machine's daemons; prints it, this once
  key list (ls)               the keys, and the hives that have joined
  key revoke (rm) NAME        take a key back; what it has opened closes within a second
  token                       make a token that lets one hive join the fleet, once

Daemons:
  serve                       queen and hive in one process; what `run` starts by itself
  queen serve                 the fleet's one address; needs no GPU
  queen start                 start the queen in the background, unless she runs
  queen status                is the queen up; exits 1 if not
  queen stop                  stop the queen of this machine
  hive serve                  this machine's devices, models and workers, for one or more queens
  hive start                  start this machine's hive in the background, unless it runs
  hive status                 is the hive up; exits 1 if not
  hive stop                   stop the hive of this machine and its workers
  worker serve                one model behind an OpenAI-compatible address, without queen or hive
  catalog serve               recipes of workers for other machines, and the source of this rbee
  install                     put program, symlinks, configuration and unit in place, and start
  uninstall                   stop and take away what `install` has put in place

And:
  links DIR                   make symlinks that choose a role by their name, such as rbee-hive
  completions SHELL           completions for a shell, on stdout
  man                         the manual page, on stdout: `rbee man | man -l -`
  version                     version, protocol and kernels of this file
  help [COMMAND…]             all about a command"
    );
}

#[test]
fn short_help_is_a_line_a_flag_and_long_help_says_where_else_it_is_set() {
    let account = Account::new();
    let short = account.rbee(&["queen", "serve", "-h"]).stdout;
    assert!(
        short.starts_with(
            "\
queen serve: the fleet's one address; needs no GPU

Usage: rbee queen serve [flags]
Also:  rbee-queen, queen-rbee

Flags:
      --listen HOST:PORT      where to listen (repeatable)
"
        ),
        "{short}"
    );
    let long = account.rbee(&["help", "queen", "serve"]).stdout;
    assert!(
        long.contains(
            "
      --queue-wait DURATION   how long one may wait, the loading of a model not counted
                              [default: 60s; RBEE_QUEUE_WAIT; [queen] queue_wait]
"
        ),
        "{long}"
    );
    assert!(long.lines().count() > short.lines().count());
}

#[test]
fn help_and_version_answer_even_where_nothing_else_works() {
    let account = Account::new();
    account.write(".config/rbee/config.toml", "this is no configuration");
    for args in [&["help"][..], &["run", "--bogus", "-h"], &["--version"], &["version"]] {
        let mut command = account.command(args);
        command.env_remove("HOME").env("RBEE_TIMEOUT", "nonsense");
        let answer = Answer::of(command);
        assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{args:?}: {answer:?}");
        assert!(answer.stdout.contains("rbee"), "{answer:?}");
    }
}

#[test]
fn mistakes_are_usage_errors_with_the_nearest_word() {
    let account = Account::new();
    account.rbee(&["stauts"]).fails(2, "did you mean `status`?");
    account.rbee(&["model", "lsit"]).fails(2, "did you mean `model list`?");
    account.rbee(&["help", "hvie"]).fails(2, "did you mean `hive`?");
    account
        .rbee(&["hive", "serve", "--lisen", "x"])
        .fails(2, "did you mean `--listen`?; see `rbee help hive serve`");
    account.rbee(&["run", "--temperature", "hot"]).fails(2, "`hot` is not a number from 0 to 5");
    account.rbee(&["model", "get"]).fails(2, "REF is missing");
    account.rbee(&["model", "rm"]).fails(2, "REF is missing");
    account.rbee(&["rm"]).fails(2, "REF is missing");
    account.rbee(&["model", "alias", "--remove"]).fails(2, "which alias");
    account.rbee(&["links"]).fails(2, "DIR is missing");
    account.rbee(&["worker", "serve"]).fails(2, "`--model FILE` is missing");
    account.rbee(&[]).fails(2, "Usage: rbee COMMAND");
}

#[test]
fn a_setting_comes_from_flag_then_variable_then_the_files_in_order() {
    let account = Account::new();
    let dir = account.path("bin");
    std::fs::create_dir(&dir).unwrap();
    let dir = dir.to_str().unwrap();
    // `links` prints a JSON object or plain paths, which shows who set --json.
    let is_json = |flags: &[&str], vars: &[(&str, &str)]| {
        let mut command = account.command(&[&["links", dir, "--remove"], flags].concat());
        let answer = Answer::of({
            command.envs(vars.iter().copied());
            command
        });
        assert_eq!(answer.code, Some(0), "{answer:?}");
        !answer.stdout.is_empty()
    };
    assert!(!is_json(&[], &[]));
    account.write(".config/rbee/config.toml", "json = true");
    assert!(is_json(&[], &[]), "the user's file");
    let named = account.write("named.toml", "json = false");
    let named = ("RBEE_CONFIG", named.to_str().unwrap());
    assert!(!is_json(&[], &[named]), "RBEE_CONFIG beats the user's file");
    assert!(is_json(&[], &[named, ("RBEE_JSON", "1")]), "a variable beats both");
    assert!(!is_json(&["--json=false"], &[named, ("RBEE_JSON", "1")]), "a flag beats all");
}

#[test]
fn a_bad_configuration_names_file_line_and_key() {
    let account = Account::new();
    let file = account.write(".config/rbee/config.toml", "verbose = true\n\n[queen]\nqueue_wait = 30\n");
    let place = format!("{}:4: `queen.queue_wait` = `30` is not a duration", file.display());
    account.rbee(&["status"]).fails(2, &place);
    account.write(".config/rbee/config.toml", "[hive]\nqueeen = 'http://h'\n");
    let place = format!("{}:2: unknown key `hive.queeen`, did you mean `queen`?", file.display());
    account.rbee(&["status"]).fails(2, &place);
    std::fs::remove_file(&file).unwrap();
    let mut command = account.command(&["status"]);
    command.env("RBEE_CONFIG", account.path("absent.toml"));
    Answer::of(command).fails(2, "absent.toml");
}

#[test]
fn links_are_made_once_and_only_ours_are_removed() {
    let account = Account::new();
    let dir = account.path("bin");
    let links = |flags: &[&str]| account.rbee(&[&["links", dir.to_str().unwrap()], flags].concat());
    links(&[]).fails(1, "create it first");
    std::fs::create_dir(&dir).unwrap();

    let made = links(&[]);
    assert_eq!(made.stdout.lines().count(), rbee::cli::LINK_NAMES.len(), "{made:?}");
    assert_eq!(std::fs::read_link(dir.join("rbee-hive")).unwrap(), Path::new(RBEE).canonicalize().unwrap());
    assert_eq!(links(&[]).stdout, "", "a second time nothing is left to do");

    // A link of an rbee that is gone is replaced; another rbee's is not removed.
    let replace = |name: &str, target: &Path| {
        std::fs::remove_file(dir.join(name)).unwrap();
        symlink(target, dir.join(name)).unwrap();
    };
    replace("rbee-hive", Path::new("/gone/rbee"));
    assert_eq!(links(&[]).stdout.trim(), dir.canonicalize().unwrap().join("rbee-hive").to_str().unwrap());
    replace("rbee-hive", Path::new("/gone/rbee"));
    assert_eq!(links(&["--remove"]).code, Some(0));
    assert_eq!(link_names(&dir), ["rbee-hive"]);
}

#[test]
fn links_overwrite_nothing_that_is_not_an_rbees() {
    let account = Account::new();
    let theirs = account.write("bin/rbee-worker", "somebody's script");
    let dir = theirs.parent().unwrap();
    let links = || account.rbee(&["links", dir.to_str().unwrap()]);
    links().fails(1, "exists and is not a link to an rbee");
    assert_eq!(link_names(dir), ["rbee-worker"], "refused before anything was made");
    std::fs::remove_file(&theirs).unwrap();
    symlink("/bin/sh", &theirs).unwrap();
    links().fails(1, "exists and is not a link to an rbee");
}

#[test]
fn beside_the_program_links_are_relative() {
    let mut account = Account::new();
    account.program = account.path("rbee");
    std::fs::hard_link(RBEE, &account.program)
        .or_else(|_| std::fs::copy(RBEE, &account.program).map(drop))
        .unwrap();
    let dir = account.home.path().to_str().unwrap();
    assert_eq!(account.rbee(&["links", dir]).code, Some(0));
    assert_eq!(std::fs::read_link(account.path("rbee-queen")).unwrap(), Path::new("rbee"));
    assert_eq!(account.rbee(&["links", dir, "--remove"]).stdout.lines().count(), rbee::cli::LINK_NAMES.len());
}

#[test]
fn a_daemon_that_is_not_there_is_tried_three_times_each_told_and_then_what_to_check() {
    let account = Account::new();
    let nobody = ["--queen", "http://127.0.0.1:9"];
    const ID: &str = "01900000-0000-7000-8000-000000000000";
    for command in [
        &["status"][..],
        &["hive", "list"],
        &["job", "list"],
        &["job", "cancel", ID],
        &["workers", "health"],
        &["workers", "shutdown", "--id", "w1"],
        &["model", "list"],
        &["hive", "install", "u@box"],
    ] {
        let answer = account.rbee(&[command, &nobody].concat());
        for words in
            ["try 2 of 3 in 200 ms", "try 3 of 3 in 400 ms", "CONNECTION_FAILED", "rbee queen status"]
        {
            answer.fails(1, words);
        }
        let quiet = account.rbee(&[command, &nobody, &["-q"]].concat());
        quiet.fails(1, "CONNECTION_FAILED");
        assert!(!quiet.stderr.contains("try 2"), "{quiet:?}");
    }
}

#[test]
fn a_command_waits_no_longer_than_its_timeout_for_a_daemon_that_says_nothing() {
    let account = Account::new();
    // Connections come about, and nobody ever answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let limit = ["--timeout", "300ms"];
    for command in [
        &["status"][..],
        &["hive", "list"],
        &["workers", "shutdown", "--id", "w1"],
        &["run", "hello"],
        &["why", "m"],
        &["model", "list"],
        &["hive", "install", "u@box"],
        &["token"],
    ] {
        let answer = account.rbee(&[command, &["--queen", &url], &limit].concat());
        answer.fails(1, "gave up after 0.3 s, as --timeout says");
    }
}

#[test]
fn an_error_that_nobody_can_read_keeps_its_exit_code() {
    for words in [&["bogus"][..], &["serve", "--queue", "x"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let status = Account::new().command(words).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn one_variable_is_not_two_things() {
    let account = Account::new();
    let with = |name: &str, words: &[&str]| {
        let mut command = account.command(words);
        command.env(name, "be brief");
        Answer::of(command)
    };
    with("RBEE_SYSTEM", &["install", "--listen", "0.0.0.0:1"]).fails(2, "without a key");
    with("RBEE_SYSTEM_WIDE", &["install"]).fails(2, "RBEE_SYSTEM_WIDE = `be brief` is not");
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let account = Account::new();
    let mut command = account.command(&["help"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command.stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
}
