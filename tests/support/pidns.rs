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

use std::process::{Command, Stdio};

/// Processes and threads in one namespace.
const PIDS_MAX: u32 = 2000;
/// A test that hangs fails; the namespace and all in it die with `unshare`.
const TEST_SECONDS_MAX: u32 = 240;
const INSIDE: &str = "RBEE_TEST_IN_PIDNS";

/// True in the namespace. Elsewhere runs the named test of this executable in a fresh one, fails as it fails, and is
/// false.
pub fn inside(module: &str, test: &str) -> bool {
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
        .args(["--signal=KILL", &TEST_SECONDS_MAX.to_string(), "unshare"])
        .args(unshare)
        // The shell stays as process 1 and reaps what is orphaned; `exit` keeps it from making way for its last command.
        .args(["sh", "-c", &format!("{}\n\"$@\"; exit $?", limit()), "sh"])
        .arg(std::env::current_exe().expect("a test knows its executable"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
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
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
    if (numbers.next(), numbers.next()) >= (Some(6), Some(14)) {
        format!("echo {PIDS_MAX} > /proc/sys/kernel/pid_max || ulimit -u {PIDS_MAX}")
    } else {
        format!("ulimit -u {PIDS_MAX}")
    }
}
