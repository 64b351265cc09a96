//! A PID namespace for a test that forks: what it leaves dies with the namespace, and what runs wild stops at a limit.
//!
//! ```ignore
//! #[test]
//! fn the_tree_ends() {
//!     if !pidns::inside(module_path!(), "the_tree_ends") {
//!         return; // it has run, inside, and passed; or it was skipped aloud
//!     }
//!     …
//! }
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Processes and threads in one namespace.
const PIDS_MAX: u32 = 2000;
/// A test that hangs fails; the namespace and all in it die with `unshare`.
const TEST_SECONDS_MAX: u32 = 240;
const TEST_SECONDS_MAX_OF_ALL: u32 = 1800;
/// What makes a test repeat itself for long.
const REPEATS: [&str; 4] = ["RBEE_KILLS", "RBEE_CUTS", "RBEE_PULLS", "RBEE_PULL_MIB"];
const INSIDE: &str = "RBEE_TEST_IN_PIDNS";

/// Who has no rights here, as a number.
pub const NOBODY: &str = "65534";

/// [`inside`], as that user, in a control group of its own where there can be one. Only root becomes another.
pub fn inside_as(uid: &str, module: &str, test: &str) -> bool {
    if !rustix::process::geteuid().is_root() && std::env::var_os(INSIDE).is_none() {
        eprintln!("skipped: {test}: only root becomes another user");
        return false;
    }
    let group = delegated_group();
    let ended = run(module, test, &become_nobody(uid, group.as_deref()));
    if let Some(group) = group.filter(|_| !ended) {
        // Its own groups are gone if the test passed; if not, the test has said more than this could.
        let _ = std::fs::remove_dir(group);
    }
    ended
}

/// A line of shell that ends in what stands before the test's command.
fn become_nobody(uid: &str, group: Option<&Path>) -> String {
    let join = group.map_or(String::new(), |group| {
        let group = group.display();
        format!("mkdir {group} && chown -R {uid} {group} && echo 0 > {group}/cgroup.procs\n")
    });
    format!("{join}setpriv --reuid={uid} --regid={uid} --clear-groups ")
}

/// Below the group of this process, not made yet.
fn delegated_group() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(mount).join(own).join(format!("rbee-test-{}", uuid::Uuid::now_v7().simple())))
}

/// [`inside`], in a network of its own with nothing but loopback. Only root makes one.
pub fn inside_network(module: &str, test: &str) -> bool {
    if std::env::var_os(INSIDE).is_none() {
        let has = |program: &str, args: &[&str]| {
            let probe = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
            probe.is_ok_and(|status| status.success())
        };
        if !has("unshare", &["-n", "true"]) || !has("ip", &["-V"]) || !has("nsenter", &["-V"]) {
            eprintln!("skipped: {test}: this needs root, `ip` and `nsenter` for networks of its own");
            return false;
        }
    }
    run(module, test, "unshare -n sh -c 'ip link set lo up && exec \"$@\"' sh ")
}

/// True in the namespace. Elsewhere runs the named test of this executable in a fresh one, fails as it fails, and is
/// false.
pub fn inside(module: &str, test: &str) -> bool {
    run(module, test, "")
}

fn run(module: &str, test: &str, before: &str) -> bool {
    let path = format!("{module}::{test}");
    let name = path.split_once("::").map_or(path.as_str(), |(_crate, name)| name);
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return true;
    }
    let Some(unshare) = unshare_arguments() else {
        eprintln!("skipped: {name}: this system makes no PID namespaces (unshare -pf)");
        return false;
    };
    let status = Command::new("timeout")
        .args(["--signal=KILL", &seconds_max().to_string(), "unshare"])
        .args(unshare)
        // The shell stays as process 1 and reaps what is orphaned; `exit` keeps it from making way for its last command.
        .args(["sh", "-c", &format!("{}\n{before}\"$@\"; exit $?", limit()), "sh"])
        .arg(std::env::current_exe().expect("a test knows its executable"))
        .args(["--exact", name, "--nocapture", "--test-threads=1", "--include-ignored"])
        .env(INSIDE, name)
        .stdin(Stdio::null())
        .status()
        .expect("`timeout` is beside `unshare`");
    assert!(status.success(), "{name}, in its PID namespace: {status}");
    false
}

/// As root, or with a user namespace.
fn unshare_arguments() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] =
        [&["-pf", "--kill-child", "--mount-proc"], &["-Urpf", "--kill-child", "--mount-proc"]];
    WAYS.into_iter().find(|way| {
        let probe = Command::new("unshare").args(*way).arg("true").stderr(Stdio::null()).status();
        probe.is_ok_and(|status| status.success())
    })
}

/// The limit, as a line of shell. Since Linux 6.14 `pid_max` is the namespace's own; before, writing it would limit the
/// whole machine, and the number of processes of this user is all there is (root is exempt from that).
fn limit() -> String {
    if limits_are_own() {
        format!("echo {PIDS_MAX} > /proc/sys/kernel/pid_max || ulimit -u {PIDS_MAX}")
    } else {
        format!("ulimit -u {PIDS_MAX}")
    }
}

fn seconds_max() -> u32 {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    if REPEATS.into_iter().any(is_set) { TEST_SECONDS_MAX_OF_ALL } else { TEST_SECONDS_MAX }
}

/// Since Linux 6.14 `pid_max` is the namespace's own.
pub fn limits_are_own() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(14))
}
