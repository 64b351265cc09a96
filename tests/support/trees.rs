//! Process trees for tests: under the real binary's shim, held by a process that can be killed, as root and as nobody.

use super::survivors::{block_on, rbee};
use rbee::process::{self, Exit, Lines, Output, Spec, Tree};
use rbee::wire::job::Receipt;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// From a tree's start to its end, where nothing is slow on purpose.
const TREE_MAX: Duration = Duration::from_secs(60);
const HOLD: &str = "RBEE_TEST_TREE";
const USER: &str = "RBEE_TEST_AS_NOBODY";
const NOBODY: u32 = 65534;

/// A shell's script as a tree.
pub fn script(id: &str, script: &str) -> Spec {
    let path = std::env::var("PATH").unwrap_or_default();
    Spec { env: vec![("PATH".into(), path)], ..Spec::new(id, ["sh", "-c", script]) }
}

pub async fn launch(records: &Path, spec: Spec) -> Tree {
    process::launch_by(rbee(), records, spec, None).await.expect("the tree starts")
}

/// What a tree said and how it ended, started and held to its end by this process.
pub struct Told {
    pub lines: Vec<String>,
    pub dropped: u64,
    pub exit: Exit,
    pub receipt: Receipt,
}

pub async fn to_the_end(tree: &Tree) -> Told {
    let mut output = tree.lines().expect("nobody took the lines before");
    let all = async {
        let (lines, dropped) = drain(&mut output).await;
        Told { lines, dropped, exit: tree.exited().await, receipt: tree.ended().await }
    };
    tokio::time::timeout(TREE_MAX, all).await.expect("the tree ends")
}

async fn drain(output: &mut Lines) -> (Vec<String>, u64) {
    let (mut lines, mut dropped) = (Vec::new(), 0);
    while let Some(next) = output.next().await {
        match next {
            Output::Line(line) => lines.push(line),
            Output::Dropped(count) => dropped += count,
        }
    }
    (lines, dropped)
}

/// Runs a test here, and where this is root once more as an ordinary user. `test` is its path in this target.
pub fn also_as_nobody(test: &str, body: impl FnOnce()) {
    println!("{test} as uid {}", rustix::process::geteuid().as_raw());
    body();
    if std::env::var_os(USER).is_some() || !rustix::process::geteuid().is_root() {
        return;
    }
    let me = std::env::current_exe().expect("a test knows its executable");
    let as_nobody = |command: &mut Command| {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]);
    };
    let mut probe = Command::new("setpriv");
    as_nobody(&mut probe);
    let can = probe.arg(&me).arg("--list").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !can.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: {test} as uid {NOBODY}: no setpriv, or this program is out of its reach");
    }
    let home = tempfile::tempdir().expect("a directory");
    chown(home.path(), Some(NOBODY), Some(NOBODY)).expect("root may");
    let mut again = Command::new("setpriv");
    as_nobody(&mut again);
    let status = again
        .arg(me)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(USER, "1")
        .env("TMPDIR", home.path())
        .env("HOME", home.path())
        .stdin(Stdio::null())
        .status()
        .expect("as before");
    assert!(status.success(), "{test} as uid {NOBODY}: {status}");
}

/// A file system in memory, in the mount namespace that a test has for itself.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn at(place: &Path, options: &str) -> Option<Mounted> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "rbee-test"]).arg(place);
        mount.status().is_ok_and(|status| status.success()).then(|| Mounted(place.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Else it goes with the namespace.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// A folder for records, one to work in, and one outside of everything.
pub struct Ground {
    // Unmounted before the folder it is mounted on is removed.
    _memory: Option<Mounted>,
    root: tempfile::TempDir,
}

impl Ground {
    pub fn new() -> Ground {
        Ground::on(|_| None)
    }

    /// In memory where that can be had.
    pub fn in_memory() -> Ground {
        Ground::on(|root| Mounted::at(root, "nr_inodes=0,mode=777"))
    }

    fn on(mount: impl FnOnce(&Path) -> Option<Mounted>) -> Ground {
        let root = tempfile::tempdir().expect("a directory");
        let memory = mount(root.path());
        for name in ["records", "work", "outside"] {
            std::fs::create_dir(root.path().join(name)).expect("a directory");
        }
        Ground { _memory: memory, root }
    }

    pub fn records(&self) -> PathBuf {
        self.root.path().join("records")
    }

    pub fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }

    pub fn outside(&self) -> PathBuf {
        self.root.path().join("outside")
    }
}

/// A folder that a broken removal left closed must not stop the test's own cleaning up.
impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::fs::set_permissions(self.work(), std::fs::Permissions::from_mode(0o700));
    }
}

/// Another process that launches and holds a tree, there to be stopped or killed.
pub struct Holder {
    process: Child,
    /// Open for as long as it may want to say something.
    _told: BufReader<ChildStdout>,
    pub shim: i32,
}

impl Holder {
    /// Returns when the tree has said `ready`.
    pub fn start(ground: &Ground, spec: &Spec) -> Holder {
        let request = ground.records().join("hold.spec");
        std::fs::write(&request, serde_json::to_vec(spec).expect("a spec is JSON"))
            .expect("writing the request");
        let mut process = Command::new(std::env::current_exe().expect("a test knows its executable"))
            .args(["--exact", "output::tree_holder", "--ignored", "--nocapture", "--test-threads=1"])
            .env(HOLD, &request)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting a holder");
        let mut told = BufReader::new(process.stdout.take().expect("piped"));
        // The harness has begun the line with the test's name.
        let shim = (&mut told).lines().map_while(Result::ok);
        let shim = shim.filter_map(|line| line.split_once("holding ")?.1.parse().ok()).next();
        Holder { process, _told: told, shim: shim.expect("the holder says what it holds") }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("a pid")
    }

    pub fn kill_9(&mut self) {
        self.process.kill().expect("killing the holder");
        self.process.wait().expect("reaping the holder");
    }
}

/// What the holder's process does.
pub fn hold() {
    let Ok(request) = std::env::var(HOLD) else { return };
    let spec: Spec = serde_json::from_slice(&std::fs::read(&request).expect("a request")).expect("a spec");
    block_on(async {
        let tree = launch(Path::new(&request).parent().expect("in a folder"), spec).await;
        let mut lines = tree.lines().expect("the first to ask");
        while lines.next().await.expect("the tree gets ready") != Output::Line("ready".into()) {}
        println!("holding {}", tree.shim().pid);
        tree.ended().await;
    });
}
