//! Every rung of the containment ladder against trees that hide, ended in every way there is, as root and as nobody.
//!
//! A few of each by default; `RBEE_KILLS=all` runs all and prints the survivors as a table.

use crate::support::node::within;
use crate::support::pidns::{self, NOBODY};
use crate::support::survivors::{
    END_MAX, Holder, block_on, kill_9, launch, left_after, others, rbee, ready, spec,
};
use rbee::process::{self, Confine, Exit, Output, Spec};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a plain group leaves is looked for this long, and then killed.
const LEAK_SEEN_AFTER: Duration = Duration::from_millis(300);

fn everything() -> bool {
    std::env::var("RBEE_KILLS").is_ok_and(|kills| kills == "all")
}

/// How a victim goes on once it is ready.
const STAY: &str = "exec sleep 1000";
const LEAVE: &str = "exit 0";

/// Trees that hide. Each says `ready` when it stands; END is what the leader does then. Those marked run every day.
const VICTIMS: [(bool, &str, &str); 16] = [
    (false, "plain child", "sleep 1000 >&2 & echo ready; END"),
    (
        false,
        "setpgid child",
        "{ bash -c 'set -m; sleep 1000 >&2 & echo up; wait' & } | read up; echo ready; END",
    ),
    (
        false,
        "setsid child",
        "{ setsid sh -c 'echo up; exec sleep 1000 >/dev/null 2>&1' & } | read up; echo ready; END",
    ),
    (
        true,
        "double-fork daemon, no env, renamed",
        "{ env -i /bin/bash -c '(exec -a innocent setsid /bin/sh -c \"(echo up; exec sleep 1000 >&2) &\") &'; } | read up; echo ready; END",
    ),
    (
        false,
        "daemon holding stdout",
        "{ setsid sh -c '(echo up; exec sleep 1000 >&2) &'; } | read up; echo ready; END",
    ),
    (
        true,
        "ignores TERM INT HUP",
        "trap '' TERM INT HUP; { setsid sh -c 'echo up; exec sleep 1000 >&2' & } | read up; echo ready; END",
    ),
    (
        false,
        "leader exits, daemon talks",
        "{ setsid sh -c 'echo up; exec >&2; while :; do echo x; sleep 0.01; done' & } | read up; echo ready; exit 0",
    ),
    (
        false,
        "200 children, half setsid",
        "i=0; while [ $i -lt 100 ]; do sleep 1000 & setsid sleep 1000 & i=$((i+1)); done; echo ready; END",
    ),
    (
        false,
        "stopped setsid child",
        "{ setsid sh -c 'echo up; exec >&2; kill -STOP $$; sleep 1000' & } | read up; echo ready; END",
    ),
    (false, "closed stdio", "echo ready; exec 0<&- 1>&- 2>&-; setsid sleep 1000 & END"),
    (true, "stops its parent", "sh -c 'echo ready; kill -STOP $PPID; sleep 1000' & END"),
    (
        false,
        "kills its parent",
        "{ sh -c 'sh -c \"kill -9 \\$PPID; echo up; exec setsid sleep 1000 >&2\" & wait' & } | read up; echo ready; END",
    ),
    (
        false,
        "fork-and-exit runners x8",
        "run() { (sleep 0.005; run) & }; run; run; run; run; run; run; run; run; echo ready; END",
    ),
    (
        false,
        "respawning pairs",
        "exec bash -c 'mate() { while kill -0 \"$1\" 2>/dev/null; do sleep 0.02; done; both; }; \
         both() { mate $BASHPID & mate $!; }; (both) & (both) & echo ready; END'",
    ),
    (
        false,
        "set -m, setsid -f, nohup, (a & b &)",
        "{ setsid -f sh -c 'echo up; exec sleep 1000 >&2'; } | read up; nohup sleep 1000 >&2 & \
         (sleep 1000 >&2 & sleep 1000 >&2 &); echo ready; END",
    ),
    (
        false,
        "CLONE_PARENT",
        "{ perl -e 'unless (syscall(CLONE, 0x8011, 0, 0, 0, 0)) \
         { syswrite STDOUT, \"up\\n\"; open STDOUT, \">&STDERR\"; exec \"setsid\", \"sleep\", \"1000\" }' & } | read up; \
         echo ready; END",
    ),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Stop,
    HolderKilledNoTtl,
    HolderKilledTtl,
    ShimKilled,
    BothKilled,
    NormalExit,
}

const WAYS: [(Way, &str); 6] = [
    (Way::Stop, "stop"),
    (Way::HolderKilledNoTtl, "holder -9, ttl 0"),
    (Way::HolderKilledTtl, "holder -9, ttl .2s"),
    (Way::ShimKilled, "shim -9"),
    (Way::BothKilled, "both -9"),
    (Way::NormalExit, "normal exit"),
];

/// A rung as a spec asks for it, and as its receipt names it.
#[derive(Debug, Clone, Copy)]
struct Rung {
    top: &'static str,
    pid_namespace: bool,
    told: &'static str,
}

const RUNGS: [Rung; 5] = [
    Rung { top: "cgroup", pid_namespace: false, told: "pinned group + cgroup" },
    Rung { top: "cgroup", pid_namespace: true, told: "pid namespace + cgroup" },
    Rung { top: "pid namespace", pid_namespace: true, told: "pid namespace" },
    Rung { top: "pinned group", pid_namespace: true, told: "pinned group" },
    Rung { top: "group", pid_namespace: true, told: "group" },
];

impl Rung {
    fn of(self, spec: Spec) -> Spec {
        Spec { rung_max: Some(self.top.into()), pid_namespace: self.pid_namespace, ..spec }
    }

    /// What this node does not have is skipped aloud.
    fn is_here(self) -> bool {
        let here = process::ladder().unavailable.iter().find(|one| self.told.contains(one.rung));
        if let Some(missing) = here {
            eprintln!("skipped: {}: {}", self.told, missing.reason);
        }
        here.is_none()
    }
}

struct Ended {
    survivors: usize,
    took: Duration,
}

fn end(script: &str, rung: Rung, way: Way) -> Ended {
    let directory = tempfile::tempdir().expect("a directory");
    let last = if way == Way::NormalExit { LEAVE } else { STAY };
    let mut spec = rung.of(spec("victim", &script.replace("END", last)));
    let began;
    match way {
        Way::Stop | Way::ShimKilled | Way::NormalExit => {
            began = block_on(async {
                let tree = launch(directory.path(), spec).await;
                assert_eq!(tree.containment(), rung.told);
                if way != Way::NormalExit {
                    ready(&tree).await;
                }
                let began = Instant::now();
                let receipt = match way {
                    Way::Stop => tree.stop(Duration::from_millis(200)).await,
                    Way::ShimKilled => {
                        kill_9(tree.shim().pid);
                        tree.ended().await
                    }
                    _ => {
                        let exit = tree.exited().await;
                        assert_eq!(exit, Exit::Code(0), "{script}");
                        tree.ended().await
                    }
                };
                assert_eq!(receipt.containment, rung.told);
                assert!(receipt.clean, "{receipt:?}");
                began
            });
        }
        Way::HolderKilledNoTtl | Way::HolderKilledTtl | Way::BothKilled => {
            spec.orphan_ttl_ms = match way {
                Way::HolderKilledNoTtl => 0,
                Way::HolderKilledTtl => 200,
                _ => 60_000,
            };
            let mut holder = Holder::start(directory.path(), &spec);
            let (_leader, shim) = holder.ready();
            began = Instant::now();
            holder.kill_9();
            if way == Way::BothKilled {
                kill_9(shim);
            }
        }
    }
    // What got away from a plain group when its shim was killed stays.
    let may_leak = rung.told == "group" && matches!(way, Way::ShimKilled | Way::BothKilled);
    let left = left_after(if may_leak { LEAK_SEEN_AFTER } else { END_MAX });
    let took = began.elapsed();
    left.iter().for_each(|pid| kill_9(*pid));
    if way == Way::BothKilled {
        let found = block_on(process::adopt(directory.path()));
        assert!(found.is_empty(), "a dead shim's tree cannot be adopted");
    }
    let files = std::fs::read_dir(directory.path()).expect("the directory").flatten();
    let files: Vec<_> = files.map(|file| file.file_name()).filter(|name| name != "hold.spec").collect();
    assert!(files.is_empty(), "left on disk: {files:?}");
    Ended { survivors: left.len(), took }
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Every victim and way on these rungs; what was left, by case.
fn survivors(who: &str) -> Vec<(String, usize)> {
    assert!(others().is_empty(), "{who} starts alone: {:?}", others());
    let mut leaks = Vec::new();
    let clone = if cfg!(target_arch = "aarch64") { "220" } else { "56" };
    for rung in RUNGS.into_iter().filter(|rung| rung.is_here()) {
        let ways = WAYS.iter().filter(|(way, _)| everything() || *way != Way::HolderKilledTtl);
        let headings: Vec<&str> = ways.clone().map(|(_, heading)| *heading).collect();
        let mut table = format!("\n{who}, {}: survivors (ms until all had ended)\n\n", rung.told);
        table += &format!("| victim | {} |\n|---|{}\n", headings.join(" | "), "---|".repeat(headings.len()));
        for (_, name, script) in VICTIMS.iter().filter(|(daily, ..)| *daily || everything()) {
            if ["perl", "bash", "setsid"].iter().any(|tool| script.contains(tool) && !has(tool)) {
                eprintln!("skipped: {name}: it needs perl, bash or setsid");
                continue;
            }
            table += &format!("| {name} |");
            for (way, heading) in ways.clone() {
                // A stopped leader does not exit.
                if *way == Way::NormalExit && script.contains("STOP $PPID") {
                    table += " - |";
                    continue;
                }
                let Ended { survivors, took } = end(&script.replace("CLONE", clone), rung, *way);
                table += &format!(" {survivors} ({}) |", took.as_millis());
                if survivors > 0 {
                    leaks.push((format!("{}: {name}: {heading}", rung.told), survivors));
                }
            }
            table += "\n";
        }
        println!("{table}");
    }
    leaks
}

/// Only setsid or setpgid plus a killed shim gets away, from the plain group alone.
fn assert_documented(leaks: Vec<(String, usize)>) {
    for (case, survivors) in leaks {
        let documented =
            case.starts_with("group: ") && (case.ends_with("shim -9") || case.ends_with("both -9"));
        assert!(documented && !case.contains("plain child"), "{case}: {survivors} left");
    }
}

#[test]
fn no_rung_but_the_plain_group_leaves_a_survivor() {
    if pidns::inside(module_path!(), "no_rung_but_the_plain_group_leaves_a_survivor") {
        assert_documented(survivors("as the user of this run"));
    }
}

#[test]
fn no_rung_but_the_plain_group_leaves_a_survivor_of_nobody() {
    if pidns::inside_as(NOBODY, module_path!(), "no_rung_but_the_plain_group_leaves_a_survivor_of_nobody") {
        assert_documented(survivors("as nobody"));
    }
}

/// With what the tree says until its end.
async fn told(tree: &process::Tree) -> Vec<String> {
    let mut lines = tree.lines().unwrap();
    let mut told = Vec::new();
    while let Some(Output::Line(line)) = lines.next().await {
        told.push(line);
    }
    told
}

fn in_a_pid_namespace(id: &str, script: &str) -> Spec {
    RUNGS[2].of(spec(id, script))
}

#[test]
fn a_pid_namespace_shows_its_own_processes_and_keeps_exit_codes_and_users() {
    let name = "a_pid_namespace_shows_its_own_processes_and_keeps_exit_codes_and_users";
    if !pidns::inside_as(NOBODY, module_path!(), name) || !RUNGS[2].is_here() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let script = "echo $$; id -u; ls /proc | grep -c '^[0-9]'; touch made; exec sh -c 'exit 42'";
        let folder = Spec { cwd: Some(directory.path().into()), ..in_a_pid_namespace("a", script) };
        let tree = launch(directory.path(), folder).await;
        assert_eq!(tree.exited().await, Exit::Code(42));
        assert!(tree.ended().await.clean);
        let told = told(&tree).await;
        assert_eq!((told[0].as_str(), told[1].as_str()), ("2", NOBODY), "{told:?}");
        assert!(told[2].parse::<u32>().unwrap() <= 5, "only its own: {told:?}");
        let owner = std::os::unix::fs::MetadataExt::uid(&directory.path().join("made").metadata().unwrap());
        assert_eq!(owner.to_string(), NOBODY);

        let tree = launch(directory.path(), in_a_pid_namespace("b", "kill -SEGV $$")).await;
        assert_eq!(tree.exited().await, Exit::Signal(11));
        let tree = launch(directory.path(), in_a_pid_namespace("c", "echo ready; exec sleep 1000")).await;
        ready(&tree).await;
        // It speaks before it becomes what it executes.
        within(END_MAX, "the number is the one outside", || {
            let command = std::fs::read_to_string(format!("/proc/{}/cmdline", tree.pid())).unwrap();
            if command == "sleep\x001000\x00" { Ok(()) } else { Err(command) }
        });
        assert_eq!(tree.stop(Duration::from_secs(5)).await.processes_reaped, 1);
        assert_eq!(tree.exited().await, Exit::Signal(15));
        let absent = Spec::new("d", ["/nowhere/x"]);
        let absent = process::launch_by(rbee(), directory.path(), RUNGS[2].of(absent), None);
        let told = absent.await.unwrap_err().to_string();
        assert_eq!(told, "starting `/nowhere/x`: No such file or directory (os error 2)");
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn kill_all_from_inside_a_pid_namespace_reaches_nobody_else() {
    if !pidns::inside(module_path!(), "kill_all_from_inside_a_pid_namespace_reaches_nobody_else")
        || !RUNGS[2].is_here()
    {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut bystander = Command::new("sleep").arg("1000").spawn().unwrap();
    block_on(async {
        let script = "sleep 1000 & kill -9 1; kill -9 -1; wait; echo ready; exec sleep 1000";
        let tree = launch(directory.path(), in_a_pid_namespace("x", script)).await;
        ready(&tree).await;
        assert_eq!(bystander.try_wait().unwrap(), None);
        assert!(tree.stop(Duration::ZERO).await.clean);
        assert_eq!(tree.exited().await, Exit::Signal(9));
    });
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_closed_network_is_an_empty_namespace_with_a_loopback() {
    if !pidns::inside(module_path!(), "a_closed_network_is_an_empty_namespace_with_a_loopback")
        || !RUNGS[2].is_here()
    {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let confine = Confine { read: vec!["/".into()], ..Confine::default() };
    let script = "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; cat /proc/net/if_inet6 | wc -l";
    let spec = Spec { confine: Some(confine), ..in_a_pid_namespace("n", script) };
    block_on(async {
        let tree = launch(directory.path(), spec).await;
        assert_eq!(tree.exited().await, Exit::Code(0));
        assert_eq!(tree.walls().network, "namespace");
        let told = told(&tree).await;
        assert_eq!(told.first().map(String::as_str), Some("lo"), "{told:?}");
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_fork_bomb_stops_at_its_limit_and_ends_whole() {
    const PROCESSES_MAX: u32 = 100;
    if !pidns::inside(module_path!(), "a_fork_bomb_stops_at_its_limit_and_ends_whole") || !RUNGS[2].is_here()
    {
        return;
    }
    if !pidns::limits_are_own() {
        return eprintln!("skipped: before Linux 6.14 a PID namespace has no limit of its own");
    }
    let directory = tempfile::tempdir().unwrap();
    assert!(Command::new("mkfifo").arg(directory.path().join("up")).status().unwrap().success());
    // The leader forks once only, and says so when the others can no more: by the shell's complaint.
    let script = "b() { while :; do b & done; }; exec 3<>up; b 2>&3 & \
                  while read line <&3; do case $line in *fork*) break;; esac; done; echo ready; exec sleep 1000";
    let spec = Spec {
        processes_max: Some(PROCESSES_MAX),
        cwd: Some(directory.path().into()),
        ..in_a_pid_namespace("bomb", script)
    };
    block_on(async {
        let tree = launch(directory.path(), spec).await;
        ready(&tree).await;
        let began = Instant::now();
        let receipt = tree.stop(Duration::ZERO).await;
        println!("fork bomb: {} ended in {:?}", receipt.processes_reaped, began.elapsed());
        assert!(receipt.clean, "{receipt:?}");
    });
    assert!(left_after(END_MAX).is_empty());
}

/// The processes of this namespace that call themselves so.
fn called(name: &str) -> Vec<i32> {
    let is = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    };
    others().into_iter().filter(is).collect()
}

#[test]
fn a_watcher_is_replaced_and_ends_the_tree_when_it_is_alone() {
    if !pidns::inside(module_path!(), "a_watcher_is_replaced_and_ends_the_tree_when_it_is_alone") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut holder = Holder::start(directory.path(), &RUNGS[3].of(spec("w", "echo ready; exec sleep 1000")));
    let (leader, shim) = holder.ready();
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let watcher = within(END_MAX, "a watcher that is new", || {
            let found = called("rbee-watch").into_iter().find(|pid| !seen.contains(pid));
            found.ok_or_else(|| format!("seen: {seen:?}"))
        });
        seen.insert(watcher);
        let status = std::fs::read_to_string(format!("/proc/{watcher}/status")).unwrap();
        let memory =
            |key: &str| status.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
        println!("watcher: {} {}", memory("VmRSS"), memory("RssAnon"));
        if seen.len() < 3 {
            kill_9(watcher);
        }
    }
    assert!(others().contains(&leader), "the tree lives on under new watchers");
    let began = Instant::now();
    holder.kill_9();
    kill_9(shim);
    assert!(left_after(END_MAX).is_empty());
    println!("hive and shim killed: nothing left after {:?}", began.elapsed());
}

#[test]
fn what_a_reused_number_names_now_is_not_killed() {
    const PID_MAX: u32 = 400;
    if !pidns::inside(module_path!(), "what_a_reused_number_names_now_is_not_killed") {
        return;
    }
    if !pidns::limits_are_own() || std::fs::write("/proc/sys/kernel/pid_max", PID_MAX.to_string()).is_err() {
        return eprintln!("skipped: pid_max cannot be set for this namespace alone");
    }
    let directory = tempfile::tempdir().unwrap();
    let spin = |times: u32| {
        let script = format!("i=0; while [ $i -lt {times} ]; do /bin/true; i=$((i+1)); done");
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    };
    // Numbers below 300 are given once only.
    spin(310);
    let mut holder = Holder::start(directory.path(), &RUNGS[3].of(spec("r", "echo ready; exec sleep 1000")));
    let (leader, shim) = holder.ready();
    holder.kill_9();
    kill_9(shim);
    assert!(left_after(END_MAX).is_empty());
    // Strangers until two of them have those numbers.
    let mut strangers = Vec::new();
    let wanted = [leader, shim];
    for _ in 0..10 * PID_MAX {
        let mut stranger = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        if wanted.contains(&i32::try_from(stranger.id()).unwrap()) {
            strangers.push(stranger);
            if strangers.len() == wanted.len() {
                break;
            }
        } else {
            stranger.kill().unwrap();
            stranger.wait().unwrap();
        }
    }
    assert_eq!(strangers.len(), 2, "numbers come round again");
    assert!(block_on(process::adopt(directory.path())).is_empty());
    for mut stranger in strangers {
        assert_eq!(stranger.try_wait().unwrap(), None, "a stranger was killed");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}

#[test]
fn a_stop_at_any_moment_after_the_start_leaves_nothing() {
    const DELAY_MS_MAX: u64 = 50;
    if !pidns::inside(module_path!(), "a_stop_at_any_moment_after_the_start_leaves_nothing") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let times = if everything() { 1000 } else { 25 };
    let script = "(setsid sleep 1000 &) ; sleep 1000 & sleep 1000 & setsid sh -c 'sleep 1000 & wait' & wait";
    block_on(async {
        for number in 0..times {
            let rung = RUNGS[number % 4];
            let tree = launch(directory.path(), rung.of(spec("s", script))).await;
            let delay = Duration::from_millis(number as u64 * 37 % (DELAY_MS_MAX + 1));
            assert!(tokio::time::timeout(delay, tree.ended()).await.is_err(), "it does not end by itself");
            assert!(tree.stop(Duration::ZERO).await.clean);
        }
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn many_stops_at_once_each_twice_end_in_one_receipt_a_tree() {
    if !pidns::inside(module_path!(), "many_stops_at_once_each_twice_end_in_one_receipt_a_tree") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let many = if everything() { 100 } else { 16 };
    block_on(async {
        let mut trees = Vec::new();
        for number in 0..many {
            let spec = RUNGS[number % 4].of(spec(&format!("t{number}"), "setsid sleep 1000 & wait"));
            trees.push(launch(directory.path(), spec).await);
        }
        let began = Instant::now();
        let mut stops = tokio::task::JoinSet::new();
        for tree in trees {
            stops.spawn(async move {
                let grace = Duration::from_secs(5);
                let (one, other) = tokio::join!(tree.stop(grace), tree.stop(Duration::ZERO));
                assert_eq!((&one, &tree.stop(grace).await), (&other, &other));
                assert!(one.clean, "{one:?}");
            });
        }
        stops.join_all().await;
        println!("{many} trees stopped at once in {:?}", began.elapsed());
    });
    assert!(left_after(END_MAX).is_empty());
}

/// Four compilers that never end, each in a group of its own, as ninja starts them.
fn ninja(folder: &Path) -> String {
    let rule = "rule cc\n  command = echo x > up; exec sleep 1000\n";
    let edges: String = (1..=4).map(|number| format!("build {number}.o: cc\n")).collect();
    std::fs::write(folder.join("build.ninja"), format!("{rule}{edges}")).unwrap();
    assert!(Command::new("mkfifo").arg(folder.join("up")).status().unwrap().success());
    "ninja -j4 >/dev/null & exec 3<>up; for i in 1 2 3 4; do read x <&3; done; echo ready; wait".to_owned()
}

#[test]
fn the_compilers_of_a_ninja_build_end_with_it_and_outlive_a_bare_process_group() {
    let name = "the_compilers_of_a_ninja_build_end_with_it_and_outlive_a_bare_process_group";
    if !has("ninja") {
        return eprintln!("skipped: {name}: there is no ninja here");
    }
    if !pidns::inside(module_path!(), name) {
        return;
    }
    for rung in [RUNGS[2], RUNGS[3]].into_iter().filter(|rung| rung.is_here()) {
        let directory = tempfile::tempdir().unwrap();
        let script = ninja(directory.path());
        let receipt = block_on(async {
            let spec = Spec { cwd: Some(directory.path().into()), ..rung.of(spec("build", &script)) };
            let tree = launch(directory.path(), spec).await;
            ready(&tree).await;
            tree.stop(Duration::ZERO).await
        });
        assert!(receipt.clean && receipt.processes_reaped >= 6, "{receipt:?}");
        assert!(left_after(END_MAX).is_empty(), "{}", rung.told);
    }
    // The reason for all this.
    let directory = tempfile::tempdir().unwrap();
    let script = ninja(directory.path());
    let mut bare = Command::new("sh")
        .args(["-c", &script])
        .current_dir(directory.path())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(bare.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let group = rustix::process::Pid::from_child(&bare);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    bare.wait().unwrap();
    let left = left_after(LEAK_SEEN_AFTER);
    left.iter().for_each(|pid| kill_9(*pid));
    assert!(left.len() >= 4, "ninja puts its compilers in groups of their own: {left:?}");
}

#[test]
fn a_rung_that_nobody_knows_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let spec = Spec { rung_max: Some("jail".into()), ..spec("x", "true") };
    let refused = block_on(process::launch_by(rbee(), directory.path(), spec, None));
    let told = refused.unwrap_err().to_string();
    assert_eq!(told, "`x` asks for the rung `jail`: there are cgroup, pid namespace, pinned group and group");
}
