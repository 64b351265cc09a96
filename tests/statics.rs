//! One static file: it needs nothing beside it, and finds names and trusts certificates where a static program that
//! asked glibc for them would die. Other systems have no static programs.

#![cfg(target_os = "linux")]

use crate::support::authority::authority;
use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::{TestHub, places, recipe};
use command_fds::{CommandFdExt, FdMapping};
use rbee::http::client::{self, Target};
use rbee::model::{Fetched, Hub, Settings, Store};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

const RBEE: &str = env!("CARGO_BIN_EXE_rbee");
const SOON: Duration = Duration::from_secs(120);
/// Where the test in the namespace finds its files.
const INSIDE: &str = "RBEE_TEST_NAMES";

fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()
}

#[test]
fn the_program_is_one_file_that_no_loader_is_needed_for() {
    if !cfg!(target_feature = "crt-static") {
        return eprintln!("skipped: this build is not static");
    }
    match run("ldd", &[RBEE]) {
        None => eprintln!("skipped: there is no ldd"),
        Some(output) => {
            let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(
                told.contains("not a dynamic executable") || told.contains("statically linked"),
                "{told}"
            );
        }
    }
}

/// A root directory with nothing in it but the program and a model, and the words that run a program there.
struct EmptyRoot {
    dir: tempfile::TempDir,
    enter: Vec<String>,
}

impl EmptyRoot {
    fn new() -> Option<EmptyRoot> {
        if !cfg!(target_feature = "crt-static") {
            eprintln!("skipped: this build is not static");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("rbee");
        std::fs::copy(RBEE, &copy).unwrap();
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("tiny.gguf"), tiny(&Tiny::default())).unwrap();
        let root = dir.path().to_string_lossy().into_owned();
        let ways = [vec!["unshare", "-r", "chroot", &root], vec!["chroot", &root]];
        let works = |way: &&Vec<&str>| {
            run(way[0], &[&way[1..], &["/rbee", "version"]].concat())
                .is_some_and(|probe| probe.status.success())
        };
        match ways.iter().find(works) {
            Some(way) => Some(EmptyRoot { enter: way.iter().map(|word| (*word).to_owned()).collect(), dir }),
            None if is_root() => panic!("rbee version fails in an empty root"),
            None => {
                eprintln!("skipped: this system lets nobody change the root directory");
                None
            }
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.enter[0]);
        command.args(&self.enter[1..]).arg("/rbee").args(arguments).stdin(Stdio::null());
        command
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn it_runs_where_there_is_nothing_else() {
    let Some(root) = EmptyRoot::new() else { return };
    let output = root.command(&["version"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(env!("CARGO_PKG_VERSION")), "{output:?}");
    let missing = root.command(&["worker", "serve", "--model", "/none.gguf"]).output().unwrap();
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("none.gguf"), "{missing:?}");
}

#[tokio::test]
async fn a_worker_answers_where_there_is_nothing_else() {
    let Some(root) = EmptyRoot::new() else { return };
    let socket = root.dir.path().join("worker.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut command =
        root.command(&["worker", "serve", "--listen", "fd:3", "--model", "/tiny.gguf", "--threads", "1"]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).stderr(Stdio::piped());
    command.fd_mappings(vec![FdMapping { parent_fd: OwnedFd::from(listener), child_fd: 3 }]).unwrap();
    let mut worker = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
    let target = Target::unix(&socket);
    let talk = async {
        // Ends when the model is loaded.
        let loaded = client::send(&target, client::get("/v1/loading/progress").unwrap()).await.unwrap();
        client::whole(loaded).await.unwrap();
        let question = json!({"prompt": "bee", "max_tokens": 4, "temperature": 0, "ignore_eos": true});
        client::ask::<Value>(&target, client::post("/v1/completions", &question).unwrap()).await.unwrap()
    };
    let answer = tokio::time::timeout(SOON, talk).await.unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 4, "{answer}");
    worker.kill().await.unwrap();
}

/// A world of its own: a hosts file, a name server, a `getent`, and an nsswitch.conf of the kind that kills static programs.
const SETUP: &str = r#"
set -e
ip link set lo up
for file in hosts resolv.conf nsswitch.conf; do mount --bind "$RBEE_TEST_NAMES/$file" "/etc/$file"; done
exec "$@"
"#;

/// First this very executable, which is static, too, and has the program's own code for names, TLS and the store; then
/// the program.
#[test]
fn names_and_private_authorities_work_in_a_static_program() {
    const NAME: &str = "statics::names_and_private_authorities_work_in_a_static_program";
    if let Some(dir) = std::env::var_os(INSIDE) {
        return fetch_by_every_kind_of_name(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("hosts", "127.0.0.1 localhost\n127.0.0.1 hub.test\n");
    write("resolv.conf", "nameserver 127.0.0.1\n");
    write("nsswitch.conf", "hosts: mymachines resolve files dns\npasswd: sss files\n");
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    let getent =
        "#!/bin/sh\n[ \"$1 $2\" = 'ahosts hub.local' ] && echo '127.0.0.1 STREAM hub.local' || exit 2\n";
    write("bin/getent", getent);
    std::fs::set_permissions(dir.path().join("bin/getent"), PermissionsExt::from_mode(0o755)).unwrap();
    write("ca.pem", "");

    // What asks for Python finds none, at once.
    write("bin/python3", "#!/bin/sh\necho no python here >&2; exit 1\n");
    std::fs::set_permissions(dir.path().join("bin/python3"), PermissionsExt::from_mode(0o755)).unwrap();

    // With a PID namespace, so that the daemon that a command starts ends with the test.
    let namespace = ["-rmnpf", "--kill-child", "--mount-proc", "sh", "-c", SETUP, "sh"];
    let command = |arguments: &[&std::ffi::OsStr]| {
        let path = format!("{}:{}", dir.path().join("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("unshare");
        command.args(namespace).args(arguments).stdin(Stdio::null());
        command.env("PATH", path).env(INSIDE, dir.path()).env("SSL_CERT_FILE", dir.path().join("ca.pem"));
        command.output()
    };
    if !command(&["true".as_ref()]).is_ok_and(|probe| probe.status.success()) {
        return eprintln!(
            "skipped: this system makes no mount, network and PID namespaces (unshare -rmnpf, ip, mount)"
        );
    }
    let this = std::env::current_exe().unwrap();
    let output =
        command(&[this.as_os_str(), "--exact".as_ref(), NAME.as_ref(), "--nocapture".as_ref()]).unwrap();
    let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

const NAMES: [&str; 3] = ["hub.test", "hub-by-dns.test", "hub.local"];

#[tokio::main(flavor = "current_thread")]
async fn fetch_by_every_kind_of_name(dir: &Path) {
    let server = UdpSocket::bind("127.0.0.1:53").await.unwrap();
    tokio::spawn(serve_names(server));
    let tls = authority(dir, &NAMES);
    let bytes = tiny(&Tiny::default());
    for name in NAMES {
        let hub = TestHub::serve("127.0.0.1:0", Some(tls.clone()), bytes.clone(), []).await;
        let endpoint = format!("https://{name}:{}", hub.address.port());
        let state = tempfile::tempdir().unwrap();
        fetch(&endpoint, state.path(), &bytes).await.unwrap_or_else(|failure| panic!("{name}: {failure}"));
        assert_eq!(hub.asked().len(), 1, "{name}");
    }
    // A name that the certificate is not for, and one that nobody knows.
    let hub = TestHub::serve("127.0.0.1:0", Some(tls), bytes.clone(), []).await;
    let state = tempfile::tempdir().unwrap();
    for (name, says) in [("localhost", "certificate"), ("nobody.test", "no address is known")] {
        let endpoint = format!("https://{name}:{}", hub.address.port());
        let failure = fetch(&endpoint, state.path(), &bytes).await.unwrap_err();
        assert!(failure.message.contains(says), "{name}: {failure}");
    }
    assert_eq!(hub.asked().len(), 0);

    // The program itself asks by the name that needs every way: the hub has no such file, and it is the hub who says so.
    let endpoint = format!("https://hub.local:{}", hub.address.port());
    let mut download = tokio::process::Command::new(RBEE);
    download.args(["model", "download", "smollm2-135m-instruct"]).stdin(Stdio::null()).kill_on_drop(true);
    download.env_clear().env("PATH", dir.join("bin")).env("SSL_CERT_FILE", dir.join("ca.pem"));
    download.env("HOME", state.path()).env("RBEE_STATE_DIR", state.path().join("rbee"));
    let output =
        tokio::time::timeout(SOON, download.env("HF_ENDPOINT", endpoint).output()).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("is not there"), "{told}");
    assert!(told.contains("needs python-pip"), "{told}");
    assert_eq!(hub.asked().len(), 1);
}

async fn fetch(endpoint: &str, state: &Path, bytes: &[u8]) -> Result<Fetched, rbee::wire::Failure> {
    let cache = state.join("hub");
    let hub = Hub::find(|name| match name {
        "HF_ENDPOINT" => Some(endpoint.into()),
        "HF_HUB_CACHE" => Some(cache.clone().into()),
        _ => None,
    });
    let mut settings = Settings::new(state.join("models"), hub.unwrap(), places(state));
    settings.limits.attempts_max = 1;
    let store = Store::open(settings).unwrap();
    store.fetch_recipe(&recipe(bytes), &|_| {}, &CancellationToken::new()).await
}

/// A name server that knows one name.
async fn serve_names(socket: UdpSocket) {
    const HEADER_BYTES: usize = 12;
    const TYPE_A: [u8; 2] = [0, 1];
    let known = b"\x0ahub-by-dns\x04test\x00";
    let mut buffer = [0; 1500];
    loop {
        let (length, from): (usize, SocketAddr) = socket.recv_from(&mut buffer).await.unwrap();
        let question = &buffer[HEADER_BYTES..length];
        let Some(name_bytes) = question.iter().position(|byte| *byte == 0).map(|end| end + 1) else {
            continue;
        };
        let (name, kind) =
            (question[..name_bytes].to_ascii_lowercase(), &question[name_bytes..name_bytes + 2]);
        let has_answer = name == known && kind == TYPE_A;
        let code = if name == known { 0 } else { 3 };
        // The question's id; answer, recursion available; counts; the question; the answer, pointing at its name.
        let mut answer = buffer[..2].to_vec();
        answer.extend([0x81, 0x80 | code, 0, 1, 0, has_answer.into(), 0, 0, 0, 0]);
        answer.extend(&question[..name_bytes + 4]);
        if has_answer {
            answer.extend([0xc0, HEADER_BYTES as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        socket.send_to(&answer, from).await.unwrap();
    }
}
