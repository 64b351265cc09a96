//! What a recipe needs to be built in a test: files, a server of them, an order, and what was told.

use crate::support::origin::Folder;
use crate::support::survivors::rbee;
use rbee::pkgbuild::{self, Ended, Order};
use rbee::wire::Failure;
use rbee::wire::job::JobEvent;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

/// Nobody in particular, for makepkg refuses to run as root.
pub const OTHER_USER: &str = "65534";
const FIXTURES: &str = r#"
umask 022
mkdir hello-1.0
printf '#!/bin/sh\necho hello\n' > hello-1.0/hello.sh; chmod 755 hello-1.0/hello.sh
printf 'read me\n' > hello-1.0/README
ln -s README hello-1.0/link
tar czf hello-1.0.tar.gz hello-1.0
tar cJf hello-1.0.tar.xz hello-1.0
tar cf - hello-1.0 | zstd -q > hello-1.0.tar.zst
tar cjf hello-1.0.tar.bz2 hello-1.0
zip -qry hello-1.0.zip hello-1.0
printf 'notes\n' > notes.txt; gzip -n notes.txt
echo a > a.txt; echo b > b.txt
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null HOME=/nowhere
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q -b main proj
cd proj
echo one > file; git add file; git commit -qm one; git tag -am v1 v1
echo two > file; git commit -qam two
git checkout -qb side; echo side > file; git commit -qam side; git checkout -q main
git tag -am honest honest
git update-ref refs/tags/forged "$(git rev-parse honest)"
"#;

pub fn has(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success()
}

/// What the recipes name, one copy for each of the two, as git minds whose a repository is.
pub struct Fixtures {
    folder: tempfile::TempDir,
    pub http: String,
}

impl Fixtures {
    pub fn make() -> Fixtures {
        let folder = tempfile::Builder::new().prefix("recipes").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let ours = folder.path().join("rbee");
        std::fs::create_dir(&ours).unwrap();
        let made = Command::new("sh").args(["-ec", FIXTURES]).current_dir(&ours).status().unwrap();
        assert!(made.success(), "making fixtures: {made}");
        let copied =
            Command::new("cp").arg("-a").args([&ours, &folder.path().join("makepkg")]).status().unwrap();
        assert!(copied.success());
        if is_root() && has_other_user() {
            let theirs = folder.path().join("makepkg");
            let owner = format!("{OTHER_USER}:{OTHER_USER}");
            let given = Command::new("chown").args(["-R", &owner]).arg(theirs).status().unwrap();
            assert!(given.success());
        }
        let http = serve(ours);
        Fixtures { folder, http }
    }

    pub fn of(&self, side: &str) -> PathBuf {
        self.folder.path().join(side)
    }

    /// The text with its placeholders filled.
    pub fn fill(&self, text: &str, side: &str) -> String {
        let fixtures = self.of(side);
        let mut filled = String::new();
        let mut parts = text.split('@');
        filled.push_str(parts.next().unwrap_or_default());
        let rest: Vec<&str> = parts.collect();
        let mut at = 0;
        while at < rest.len() {
            let value = match rest[at] {
                "FIXTURES" => Some(fixtures.to_str().unwrap().to_owned()),
                "HTTP" => Some(format!("http://{}", self.http)),
                "HTTP_ADDRESS" => Some(self.http.replace(':', "/")),
                "COMMIT" => Some(output(
                    Command::new("git")
                        .args(["-c", "safe.directory=*", "rev-parse", "v1^{commit}"])
                        .current_dir(self.of("rbee").join("proj")),
                )),
                word => word.split_once(':').map(|(kind, name)| {
                    let told = output(Command::new(format!("{kind}sum")).arg(name).current_dir(&fixtures));
                    told.split_whitespace().next().unwrap().to_owned()
                }),
            };
            match value {
                Some(value) if at + 1 < rest.len() => {
                    filled.push_str(&value);
                    filled.push_str(rest[at + 1]);
                    at += 2;
                }
                _ => {
                    filled.push('@');
                    filled.push_str(rest[at]);
                    at += 1;
                }
            }
        }
        filled
    }
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The smallest server of files; its thread ends with the test.
pub fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                request.push(byte[0]);
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let name =
                request.split_whitespace().nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
            let answer = match std::fs::read(folder.join(name)) {
                Ok(bytes) => [
                    format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        bytes.len()
                    )
                    .into_bytes(),
                    bytes,
                ]
                .concat(),
                Err(_) => {
                    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
                }
            };
            // A client that has gone has what it wanted.
            let _ = stream.write_all(&answer);
        }
    });
    address
}

/// Whether makepkg can be run, as somebody who is not root. The root of a user namespace has nobody else to be.
pub fn has_other_user() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let count = map.split_whitespace().nth(2).and_then(|count| count.parse::<u64>().ok());
    let other: u64 = OTHER_USER.parse().expect("a number");
    !is_root() || count.is_none_or(|count| count > other)
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Paths below a package folder, with what tells two trees apart.
pub fn files(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in folder.read_dir().into_iter().flatten() {
            let path = entry.unwrap().path();
            let status = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let mode = status.permissions().mode() & 0o777;
            let told = if status.is_dir() {
                waiting.push(path);
                format!("folder {mode:o}")
            } else if status.is_symlink() {
                format!("link to {}", std::fs::read_link(&path).unwrap().display())
            } else {
                format!("file {mode:o} {:?}", String::from_utf8_lossy(&std::fs::read(&path).unwrap()))
            };
            found.insert(name, told);
        }
    }
    found
}

/// One build with folders of its own.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub events: Arc<Mutex<Vec<JobEvent>>>,
}

impl Bench {
    pub fn new() -> Bench {
        Bench { folder: tempfile::tempdir().unwrap(), events: Arc::default() }
    }

    pub fn order(&self, pkgbuild: &str, origin: &Path, trusted: Vec<String>) -> Order {
        let at = |name: &str| self.folder.path().join(name);
        Order {
            recipe: "x".into(),
            pkgbuild: pkgbuild.into(),
            origin: Arc::new(Folder(origin.to_owned())),
            work: at("builds/1"),
            sources: at("sources"),
            log: at("logs/build.log"),
            processes: at("p"),
            shim: Some(rbee().to_owned()),
            env: std::env::vars().collect(),
            trusted,
            rung_max: None,
        }
    }

    pub async fn build(&self, order: Order, cancel: &CancellationToken) -> Result<Ended, Failure> {
        let events = self.events.clone();
        let tell = move |event: JobEvent| events.lock().unwrap().push(event);
        pkgbuild::build(order, &tell, cancel, &CancellationToken::new()).await
    }

    /// Everything told, as lines.
    pub fn told(&self) -> String {
        let events = self.events.lock().unwrap();
        let lines = events.iter().filter_map(|event| match event {
            JobEvent::Narration { action, message, .. } => Some(format!("{action}: {message}")),
            JobEvent::Log { stream, line } => Some(format!("{stream}| {line}")),
            _ => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    pub fn is_clean(&self) -> bool {
        !self.folder.path().join("builds/1").exists()
    }
}
