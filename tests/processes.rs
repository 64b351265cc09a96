//! Nothing outlives its lease: real trees under the real binary's shim, ended in every way there is.

use crate::support::pidns;
use rbee::process::{self, Exit, Output, Spec, Tree};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// From the end's cause to an empty namespace; the TERM-ignorer needs its grace, the talker its linger.
const END_MAX: Duration = Duration::from_secs(10);
const READY_MAX: Duration = Duration::from_secs(20);
const HOLD: &str = "RBEE_TEST_HOLD";

fn rbee() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_rbee"))
}

fn spec(id: &str, script: &str) -> Spec {
    let path = std::env::var("PATH").unwrap_or_default();
    Spec {
        env: vec![("PATH".into(), path)],
        grace_ms: 200,
        orphan_ttl_ms: 60_000,
        ..Spec::new(id, ["sh", "-c", script])
    }
}

async fn launch(directory: &Path, spec: Spec) -> Tree {
    process::launch_by(rbee(), directory, spec, None).await.expect("the tree starts")
}

/// Reads output until the line `ready`.
async fn ready(tree: &Tree) {
    let mut lines = tree.lines().expect("nobody took the lines before");
    let wait = async { while lines.next().await.expect("output goes on") != Output::Line("ready".into()) {} };
    tokio::time::timeout(READY_MAX, wait).await.expect("the victim gets ready");
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

/// Every living process of this namespace but its first and this one.
fn others() -> Vec<i32> {
    let me = i32::try_from(std::process::id()).expect("a pid");
    let lives = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
    };
    let names = std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|found| found.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).filter(|pid| *pid != 1 && *pid != me).filter(lives).collect()
}

/// Who is left when all have ended or the time is over. Waits on the processes themselves.
fn left_after(limit: Duration) -> Vec<i32> {
    let until = Instant::now() + limit;
    loop {
        let left = others();
        let time = until.saturating_duration_since(Instant::now());
        let Some(pid) = left.first().and_then(|pid| Pid::from_raw(*pid)).filter(|_| !time.is_zero()) else {
            return left;
        };
        wait_for_end(pid, time);
    }
}

fn wait_for_end(pid: Pid, limit: Duration) {
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let timeout = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)).expect("waiting for a process");
}

fn kill_9(pid: i32) {
    let pid = Pid::from_raw(pid).expect("a pid");
    // It may be ending by itself.
    let _ = kill_process(pid, Signal::KILL);
}

/// Another process that launches and holds a tree, there to be killed.
struct Holder(Child);

impl Holder {
    fn start(directory: &Path, spec: &Spec, test: &str) -> Holder {
        let request = directory.join("hold.spec");
        std::fs::write(&request, serde_json::to_vec(spec).expect("a spec is JSON"))
            .expect("writing the request");
        let child = Command::new(std::env::current_exe().expect("a test knows its executable"))
            .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
            .env(HOLD, &request)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting a lease holder");
        Holder(child)
    }

    /// The pids it told: leader, shim.
    fn ready(&mut self) -> (i32, i32) {
        let lines = BufReader::new(self.0.stdout.take().expect("piped")).lines();
        let told = lines.map_while(Result::ok).find_map(|line| {
            // The harness has begun the line with the test's name.
            line.split_once("holding ").map(|(_, pids)| pids.to_owned())
        });
        let told = told.expect("the holder says what it holds");
        let mut pids = told.split(' ').map(|pid| pid.parse().expect("a pid"));
        (pids.next().expect("a leader"), pids.next().expect("a shim"))
    }

    fn kill_9(&mut self) {
        self.0.kill().expect("killing the holder");
        self.0.wait().expect("reaping the holder");
    }
}

#[test]
#[ignore = "not a test: the lease holder that others start to kill it"]
fn lease_holder() {
    let Ok(request) = std::env::var(HOLD) else { return };
    let spec: Spec = serde_json::from_slice(&std::fs::read(&request).unwrap()).unwrap();
    block_on(async {
        let tree = launch(Path::new(&request).parent().unwrap(), spec).await;
        ready(&tree).await;
        println!("holding {} {}", tree.pid(), tree.shim().pid);
        std::future::pending::<()>().await;
    });
}

/// How a victim goes on once it is ready.
const STAY: &str = "exec sleep 1000";
const LEAVE: &str = "exit 0";

/// Trees that hide. Each says `ready` when it stands; END is what the leader does then.
const VICTIMS: [(&str, &str); 11] = [
    ("plain child", "sleep 1000 >&2 & echo ready; END"),
    (
        "setsid child",
        "{ setsid sh -c 'echo up; exec sleep 1000 >/dev/null 2>&1' & } | read up; echo ready; END",
    ),
    (
        "double-fork daemon, no env",
        "{ env -i setsid /bin/sh -c '(echo up; exec sleep 1000 >/dev/null 2>&1) &'; } | read up; echo ready; END",
    ),
    (
        "daemon holding stdout",
        "{ setsid sh -c '(echo up; exec sleep 1000 >&2) &'; } | read up; echo ready; END",
    ),
    (
        "ignores TERM",
        "trap '' TERM INT HUP; { setsid sh -c 'echo up; exec sleep 1000 >&2' & } | read up; echo ready; END",
    ),
    (
        "leader exits, daemon talks",
        "{ setsid sh -c 'echo up; exec >&2; while :; do echo x; sleep 0.01; done' & } | read up; echo ready; exit 0",
    ),
    (
        "200 children, half setsid",
        "i=0; while [ $i -lt 100 ]; do sleep 1000 & setsid sleep 1000 & i=$((i+1)); done; echo ready; END",
    ),
    (
        "stopped setsid child",
        "{ setsid sh -c 'echo up; exec >&2; kill -STOP $$; sleep 1000' & } | read up; echo ready; END",
    ),
    ("closed stdio", "echo ready; exec 0<&- 1>&- 2>&-; setsid sleep 1000 & END"),
    ("stops its parent", "sh -c 'echo ready; kill -STOP $PPID; sleep 1000' & END"),
    ("fork-and-exit runners x4", "run() { (sleep 0.005; run) & }; run; run; run; run; echo ready; END"),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Stop,
    HolderKilledNoTtl,
    HolderKilledTtl,
    ShimKilled,
    BothKilledThenAdopt,
    NormalExit,
}

const WAYS: [(Way, &str); 6] = [
    (Way::Stop, "stop"),
    (Way::HolderKilledNoTtl, "holder -9, ttl 0"),
    (Way::HolderKilledTtl, "holder -9, ttl .2s"),
    (Way::ShimKilled, "shim -9"),
    (Way::BothKilledThenAdopt, "both -9, adopt"),
    (Way::NormalExit, "normal exit"),
];

struct Ended {
    survivors: usize,
    took: Duration,
}

fn end(victim: usize, way: Way, sessions: bool, holder_test: &str) -> Ended {
    let directory = tempfile::tempdir().expect("a directory");
    let last = if way == Way::NormalExit { LEAVE } else { STAY };
    let top = if sessions { "group" } else { "pinned group" };
    let mut spec = Spec {
        sessions,
        rung_max: Some(top.into()),
        ..spec("victim", &VICTIMS[victim].1.replace("END", last))
    };
    let began;
    match way {
        Way::Stop | Way::ShimKilled | Way::NormalExit => {
            began = block_on(async {
                let tree = launch(directory.path(), spec).await;
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
                        assert_eq!(exit, Exit::Code(0), "{}", VICTIMS[victim].0);
                        tree.ended().await
                    }
                };
                assert_eq!(receipt.containment, if sessions { "group" } else { "pinned group" });
                assert!(receipt.clean, "{receipt:?}");
                began
            });
        }
        Way::HolderKilledNoTtl | Way::HolderKilledTtl | Way::BothKilledThenAdopt => {
            spec.orphan_ttl_ms = match way {
                Way::HolderKilledNoTtl => 0,
                Way::HolderKilledTtl => 200,
                _ => 60_000,
            };
            let mut holder = Holder::start(directory.path(), &spec, holder_test);
            let (_leader, shim) = holder.ready();
            began = Instant::now();
            if way == Way::BothKilledThenAdopt {
                holder.kill_9();
                kill_9(shim);
                assert!(
                    block_on(process::adopt(directory.path())).is_empty(),
                    "a dead shim's tree cannot be adopted"
                );
            } else {
                holder.kill_9();
            }
        }
    }
    // The shims are gone when this is over, and those of the plain group that got away from a dead shim stay: told.
    let may_leak = sessions && matches!(way, Way::ShimKilled | Way::BothKilledThenAdopt);
    let left = left_after(if may_leak { Duration::from_millis(300) } else { END_MAX });
    let took = began.elapsed();
    left.iter().for_each(|pid| kill_9(*pid));
    let files = std::fs::read_dir(directory.path()).expect("the directory").flatten();
    let files: Vec<_> = files.map(|file| file.file_name()).filter(|name| name != "hold.spec").collect();
    assert!(files.is_empty(), "left on disk: {files:?}");
    Ended { survivors: left.len(), took }
}

fn table(test: &str, title: &str, sessions: bool) -> Vec<(String, usize)> {
    let holder_test = format!("{}::lease_holder", module_path!().split_once("::").expect("a crate").1);
    assert!(others().is_empty(), "{test} starts alone: {:?}", others());
    let mut leaks = Vec::new();
    let mut text = format!("\nsurvivors (ms until all had ended), {title}\n{:<28}", "");
    for (_, heading) in WAYS {
        text += &format!("{heading:>20}");
    }
    for (victim, (name, script)) in VICTIMS.iter().enumerate() {
        text += &format!("\n{name:<28}");
        for (way, heading) in WAYS {
            if way == Way::NormalExit && script.contains("STOP $PPID") {
                text += &format!("{:>20}", "-"); // a stopped leader does not exit
                continue;
            }
            let Ended { survivors, took } = end(victim, way, sessions, &holder_test);
            text += &format!("{:>20}", format!("{survivors} ({})", took.as_millis()));
            if survivors > 0 {
                leaks.push((format!("{name}: {heading}"), survivors));
            }
        }
    }
    println!("{text}\n");
    leaks
}

#[test]
fn no_way_of_ending_leaves_a_survivor_in_a_pinned_group() {
    if pidns::inside(module_path!(), "no_way_of_ending_leaves_a_survivor_in_a_pinned_group") {
        assert_eq!(table("pinned", "pinned group", false), []);
    }
}

/// The plain group holds as long as its shim lives; only setsid plus a killed shim gets away, and the table says so.
#[test]
fn a_plain_group_leaks_only_what_called_setsid_when_the_shim_is_killed() {
    if pidns::inside(module_path!(), "a_plain_group_leaks_only_what_called_setsid_when_the_shim_is_killed") {
        for (case, survivors) in table("plain", "plain group", true) {
            assert!(case.contains("-9, adopt") || case.ends_with("shim -9"), "{case}: {survivors} left");
            assert!(!case.starts_with("plain child"), "{case}: {survivors} left");
        }
    }
}

#[test]
fn a_tree_is_adopted_by_the_next_holder_and_lives_on() {
    if !pidns::inside(module_path!(), "a_tree_is_adopted_by_the_next_holder_and_lives_on") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let spec =
        Spec { note: serde_json::json!({"model": "m"}), ..spec("worker-1", "echo ready; exec sleep 1000") };
    let holder_test = format!("{}::lease_holder", module_path!().split_once("::").unwrap().1);
    let mut holder = Holder::start(directory.path(), &spec, &holder_test);
    let (leader, shim) = holder.ready();
    holder.kill_9();
    block_on(async {
        let mut trees = process::adopt(directory.path()).await;
        assert_eq!(trees.len(), 1);
        let tree = trees.remove(0);
        assert_eq!((tree.id(), tree.pid(), tree.shim().pid), ("worker-1", leader, shim));
        assert_eq!(tree.note(), &serde_json::json!({"model": "m"}));
        let again = process::launch_by(rbee(), directory.path(), self::spec("worker-1", "true"), None).await;
        assert!(again.unwrap_err().to_string().contains("running already"));
        // Handed over once more: the lease back, and taken again.
        tree.detach().await;
        let tree = process::adopt(directory.path()).await.remove(0);
        assert!(tree.identity().still_lives());
        let receipt = tree.stop(Duration::from_secs(5)).await;
        assert!(receipt.clean && receipt.processes_reaped == 1, "{receipt:?}");
        assert!(receipt.memory_returned_bytes > 0);
        assert_eq!(tree.exited().await, Exit::Signal(15));
        assert_eq!(tree.stop(Duration::ZERO).await, receipt);
        assert!(process::adopt(directory.path()).await.is_empty());
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_second_stop_without_grace_cuts_the_first_short() {
    if !pidns::inside(module_path!(), "a_second_stop_without_grace_cuts_the_first_short") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let script = "trap 'echo asked' TERM; echo ready; while :; do sleep 1000 & wait; done";
        let tree = launch(directory.path(), spec("stubborn", script)).await;
        let mut lines = tree.lines().unwrap();
        assert_eq!(lines.next().await, Some(Output::Line("ready".into())));
        let first = tree.stop(Duration::from_secs(3600));
        let second = async {
            assert_eq!(lines.next().await, Some(Output::Line("asked".into())));
            tree.stop(Duration::ZERO).await
        };
        let (first, second) =
            tokio::time::timeout(END_MAX, async { tokio::join!(first, second) }).await.unwrap();
        assert_eq!(first, second);
        assert_eq!(tree.exited().await, Exit::Signal(9));
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_deaf_shim_is_killed_and_its_tree_swept() {
    if !pidns::inside(module_path!(), "a_deaf_shim_is_killed_and_its_tree_swept") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let tree = launch(directory.path(), spec("deaf", "sleep 1000 & echo ready; wait")).await;
        ready(&tree).await;
        kill_process(Pid::from_raw(tree.shim().pid).unwrap(), Signal::STOP).unwrap();
        let receipt = tree.stop(Duration::ZERO).await;
        assert!(receipt.clean, "{receipt:?}");
        assert_eq!(tree.exited().await, Exit::Lost);
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_terminal_signal_to_the_shim_is_ignored_and_term_stops_its_tree() {
    if !pidns::inside(module_path!(), "a_terminal_signal_to_the_shim_is_ignored_and_term_stops_its_tree") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let tree = launch(
            directory.path(),
            spec("t", "trap 'echo asked; exit 3' TERM; echo ready; sleep 1000 & wait"),
        )
        .await;
        let mut lines = tree.lines().unwrap();
        assert_eq!(lines.next().await, Some(Output::Line("ready".into())));
        let shim = Pid::from_raw(tree.shim().pid).unwrap();
        for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
            kill_process(shim, signal).unwrap();
        }
        assert_eq!(lines.next().await, Some(Output::Line("asked".into())));
        assert_eq!(tree.exited().await, Exit::Code(3));
        assert!(tree.ended().await.clean);
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_child_has_its_listener_its_watch_on_the_shim_and_no_other_descriptor() {
    if !pidns::inside(
        module_path!(),
        "a_child_has_its_listener_its_watch_on_the_shim_and_no_other_descriptor",
    ) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("child.log");
    // Held open by this process without close-on-exec, as a careless parent of ours might.
    let stray = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
    block_on(async {
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("worker")).unwrap();
        let script =
            "for fd in 0 1 2 3 4 5 6 7 8 9; do printf \"$fd \"; readlink /proc/$$/fd/$fd || echo; done; env";
        let spec = Spec { log: Some(log), env: vec![("ONLY".into(), "this".into())], ..spec("fds", script) };
        let tree = process::launch_by(rbee(), directory.path(), spec, Some(listener)).await.unwrap();
        assert_eq!(tree.exited().await, Exit::Code(0));
        assert!(tree.ended().await.clean);
        assert_eq!(tree.lines().unwrap().next().await, None);
        let told = tree.tail(100);
        let fds = told.iter().filter(|line| line.starts_with(char::is_numeric));
        let kinds: Vec<&str> = fds.map(|fd| fd.split([':', '[']).next().unwrap()).collect();
        let expected =
            ["0 /dev/null", "1 pipe", "2 pipe", "3 socket", "4 pipe", "5 ", "6 ", "7 ", "8 ", "9 "];
        assert_eq!(kinds, expected, "{told:?}");
        assert!(told.contains(&"ONLY=this".to_owned()) && !told.iter().any(|line| line.starts_with("HOME=")));
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_program_that_is_not_there_is_a_sentence() {
    if !pidns::inside(module_path!(), "a_program_that_is_not_there_is_a_sentence") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let absent = process::launch_by(rbee(), directory.path(), Spec::new("a", ["/nowhere/x"]), None).await;
        let told = absent.unwrap_err().to_string();
        assert_eq!(told, "starting `/nowhere/x`: No such file or directory (os error 2)");
    });
    assert!(left_after(END_MAX).is_empty());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_flood_reaches_a_slow_reader_bounded_and_counted() {
    if !pidns::inside(module_path!(), "a_flood_reaches_a_slow_reader_bounded_and_counted") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let tree = launch(directory.path(), spec("flood", "i=0; seq 1 300000; echo end")).await;
        // The reader starts when everything has been said.
        assert_eq!(tree.exited().await, Exit::Code(0));
        assert!(tree.ended().await.clean);
        let (mut lines, mut dropped, mut output) = (0, 0, tree.lines().unwrap());
        while let Some(next) = output.next().await {
            match next {
                Output::Line(_) => lines += 1,
                Output::Dropped(count) => dropped += count,
            }
        }
        assert_eq!(lines + dropped, 300_001);
        assert!(dropped > 0);
    });
    assert!(left_after(END_MAX).is_empty());
}
