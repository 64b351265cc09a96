//! Process trees under the real binary's shim, and who is left of them.

use rbee::process::{self, Identity, Output, Spec, Tree};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// From the end's cause to an empty namespace; the TERM-ignorer needs its grace, the talker its linger.
pub const END_MAX: Duration = Duration::from_secs(10);
const READY_MAX: Duration = Duration::from_secs(20);
pub const HOLD: &str = "RBEE_TEST_HOLD";
/// The test that is none.
const HOLDER: &str = "processes::lease_holder";

pub fn rbee() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_rbee"))
}

pub fn spec(id: &str, script: &str) -> Spec {
    let path = std::env::var("PATH").unwrap_or_default();
    Spec {
        env: vec![("PATH".into(), path)],
        grace_ms: 200,
        orphan_ttl_ms: 60_000,
        ..Spec::new(id, ["sh", "-c", script])
    }
}

pub async fn launch(directory: &Path, spec: Spec) -> Tree {
    process::launch_by(rbee(), directory, spec, None).await.expect("the tree starts")
}

/// Reads output until the line `ready`.
pub async fn ready(tree: &Tree) {
    let mut lines = tree.lines().expect("nobody took the lines before");
    let wait = async { while lines.next().await.expect("output goes on") != Output::Line("ready".into()) {} };
    tokio::time::timeout(READY_MAX, wait).await.expect("the victim gets ready");
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

/// Every living process of this namespace but its first and this one.
pub fn others() -> Vec<i32> {
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
pub fn left_after(limit: Duration) -> Vec<i32> {
    let until = Instant::now() + limit;
    loop {
        let left = others();
        let time = until.saturating_duration_since(Instant::now());
        let Some(pid) = left.first().filter(|_| !time.is_zero()) else { return left };
        if let Some(process) = Identity::of(*pid) {
            process.ends_within(time);
        }
    }
}

pub fn kill_9(pid: i32) {
    let pid = Pid::from_raw(pid).expect("a pid");
    // It may be ending by itself.
    let _ = kill_process(pid, Signal::KILL);
}

/// Another process that launches and holds a tree, there to be killed.
pub struct Holder(Child);

impl Holder {
    pub fn start(directory: &Path, spec: &Spec) -> Holder {
        let request = directory.join("hold.spec");
        std::fs::write(&request, serde_json::to_vec(spec).expect("a spec is JSON"))
            .expect("writing the request");
        let child = Command::new(std::env::current_exe().expect("a test knows its executable"))
            .args(["--exact", HOLDER, "--ignored", "--nocapture", "--test-threads=1"])
            .env(HOLD, &request)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting a lease holder");
        Holder(child)
    }

    /// The pids it told: leader, shim.
    pub fn ready(&mut self) -> (i32, i32) {
        let lines = BufReader::new(self.0.stdout.take().expect("piped")).lines();
        let told = lines.map_while(Result::ok).find_map(|line| {
            // The harness has begun the line with the test's name.
            line.split_once("holding ").map(|(_, pids)| pids.to_owned())
        });
        let told = told.expect("the holder says what it holds");
        let mut pids = told.split(' ').map(|pid| pid.parse().expect("a pid"));
        (pids.next().expect("a leader"), pids.next().expect("a shim"))
    }

    pub fn kill_9(&mut self) {
        self.0.kill().expect("killing the holder");
        self.0.wait().expect("reaping the holder");
    }
}
