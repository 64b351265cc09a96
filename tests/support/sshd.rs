//! A machine behind a real sshd: an account of the system's made for one test, and a client that knows the way.

use super::node::{Place, until, write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const SSHD: &str = "/usr/sbin/sshd";
const SSH: &str = "/usr/bin/ssh";
/// Its privilege separation's folder, which a package's start makes.
const SSHD_RUN: &str = "/run/sshd";
/// In the account's home, before all others in its PATH.
pub const TOOLS: &str = "tools";

#[track_caller]
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// An account of the system's for one test.
pub struct Account {
    pub name: String,
    pub home: PathBuf,
}

impl Account {
    pub fn new() -> Account {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let name = format!("rbeetest{}", &id[id.len() - 8..]);
        // A password that nothing matches, where none at all would lock the account.
        run("useradd", &["--create-home", "--shell", "/bin/sh", "--password", "*", &name]);
        Account { home: Path::new("/home").join(&name), name }
    }

    pub fn give(&self, path: &Path) {
        use std::os::unix::fs::MetadataExt;
        let home = self.home.metadata().unwrap();
        chown(path, Some(home.uid()), Some(home.gid())).unwrap();
    }

    pub fn processes(&self) -> String {
        let output = Command::new("pgrep").args(["--list-full", "--uid", &self.name]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // Its processes end with the test's namespace, and are counted before.
        let _ = Command::new("userdel").args(["--force", "--remove", &self.name]).output();
    }
}

/// sshd for one test, and a client that knows it.
pub struct Sshd {
    child: Child,
    pub port: u16,
    pub folder: PathBuf,
}

impl Sshd {
    pub fn start(place: &Place, account: &Account) -> Sshd {
        std::fs::create_dir_all(SSHD_RUN).unwrap();
        let folder = place.path("sshd");
        std::fs::create_dir(&folder).unwrap();
        let key = |name: &str| {
            let path = folder.join(name);
            let file = path.to_str().unwrap().to_owned();
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &file]);
            std::fs::read_to_string(path.with_extension("pub")).unwrap()
        };
        let host = key("host");
        let ours = key("ours");
        key("other");
        let ssh = account.home.join(".ssh");
        write(&ssh.join("authorized_keys"), &ours, 0o600);
        account.give(&ssh);
        account.give(&ssh.join("authorized_keys"));
        std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o700)).unwrap();
        // Free a moment ago: sshd cannot be given an open socket.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = folder.display();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {at}/host\nPidFile none\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nLogLevel VERBOSE\n\
             SetEnv PATH={}:/usr/local/bin:/usr/bin:/bin\n",
            account.home.join(TOOLS).display()
        );
        write(&folder.join("sshd_config"), &config, 0o600);
        let known = format!("[127.0.0.1]:{port} {host}");
        write(&folder.join("known"), &known, 0o600);
        let client = format!(
            "UserKnownHostsFile {at}/known\nGlobalKnownHostsFile none\nStrictHostKeyChecking yes\nIdentitiesOnly yes\n\
             IdentityFile none\nHost box\n  HostName 127.0.0.1\n  Port {port}\n"
        );
        write(&folder.join("ssh_config"), &client, 0o600);
        let tool = format!("#!/bin/sh\nexec {SSH} -F {at}/ssh_config \"$@\"\n");
        write(&place.path("tools/ssh"), &tool, 0o755);
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let child = Command::new(SSHD)
            .args(["-D", "-e", "-f"])
            .arg(folder.join("sshd_config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        until("sshd listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string())
        });
        Sshd { child, port, folder }
    }

    pub fn key(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What such a test needs of the system.
pub fn is_possible() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    let tools = [SSHD, SSH, "/usr/sbin/useradd"];
    let missing: Vec<&str> = tools.into_iter().filter(|tool| !Path::new(tool).exists()).collect();
    if !is_root || !missing.is_empty() {
        eprintln!("skipped: hive install over ssh: needs root and {missing:?}");
        return false;
    }
    true
}
