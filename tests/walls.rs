//! A confined tree reaches what it was given and nothing else, as root and as an ordinary user. Linux has these walls.

#![cfg(target_os = "linux")]

use crate::support::pidns;
use crate::support::survivors::block_on;
use crate::support::trees::{Ground, Told, also_as_nobody, launch, script, to_the_end};
use rbee::process::{Confine, Exit, Spec, Walls};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open, test_kill_process};
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where toolchains and shells lie.
const SYSTEM: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"];
const FILE_BYTES_MAX: u64 = 1 << 20;
const MEMORY_BYTES_MAX: u64 = 2 << 30;

// ── what a confined process tries

const TARGETS: &str = "RBEE_TEST_TARGETS";

/// What there is outside to be reached.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Targets {
    work: PathBuf,
    library: PathBuf,
    outside: PathBuf,
    tcp: u16,
    udp: u16,
    abstract_name: String,
    process: i32,
}

#[test]
#[ignore = "not a test: what a confined process tries"]
fn attempts() {
    let Ok(text) = std::env::var(TARGETS) else { return };
    let targets: Targets = serde_json::from_str(&text).unwrap();
    println!();
    for (name, attempt) in ATTEMPTS {
        let told = match attempt(&targets) {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("refused: {error}"),
        };
        println!("attempt {name}: {told}");
    }
}

type Attempt = fn(&Targets) -> io::Result<()>;

fn put(path: &Path) -> io::Result<()> {
    std::fs::File::options().write(true).create(true).truncate(true).open(path)?.write_all(b"x")
}

fn get(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.read_exact(&mut [0; 1])
}

fn run(words: &[&str]) -> io::Result<()> {
    let status =
        Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).stderr(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{status}"))) }
}

fn victim(targets: &Targets) -> Pid {
    Pid::from_raw(targets.process).unwrap()
}

/// A line of /proc/self/status that must be only zeros.
fn has_none(key: &str) -> io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("missing").trim().to_owned();
    if value.bytes().all(|digit| digit == b'0') { Ok(()) } else { Err(io::Error::other(value)) }
}

/// In three parts: what must go on working, what is refused by a wall, what takes a capability.
const ATTEMPTS: &[(&str, Attempt)] = &[
    // Allowed.
    ("write in the work folder", |t| put(&t.work.join("made"))),
    ("make a folder and rename into it", |t| {
        std::fs::create_dir_all(t.work.join("sub"))?;
        std::fs::rename(t.work.join("made"), t.work.join("sub/made"))
    }),
    ("make a link, a fifo and a socket file", |t| {
        std::os::unix::fs::symlink(&t.outside, t.work.join("link"))?;
        run(&["mkfifo", t.work.join("fifo").to_str().unwrap()])
    }),
    ("change attributes", |t| {
        std::fs::set_permissions(t.work.join("sub/made"), Permissions::from_mode(0o755))
    }),
    ("remove", |t| std::fs::remove_dir_all(t.work.join("sub"))),
    ("read in the library", |t| get(&t.library.join("header"))),
    ("run a program", |_| run(&["sh", "-c", "true && (true | cat)"])),
    ("start a thread", |_| std::thread::spawn(|| ()).join().map_err(|_| io::Error::other("a panic"))),
    ("write /dev/null", |_| put(Path::new("/dev/null"))),
    ("read /dev/zero", |_| get(Path::new("/dev/zero"))),
    ("read /dev/urandom", |_| get(Path::new("/dev/urandom"))),
    ("read /proc/self", |_| get(Path::new("/proc/self/status"))),
    ("read /proc/meminfo", |_| get(Path::new("/proc/meminfo"))),
    ("make a pair of sockets", |_| UnixStream::pair().map(|_| ())),
    ("signal itself", |_| Ok(test_kill_process(rustix::process::getpid())?)),
    ("no capability effective", |_| has_none("CapEff:")),
    ("no capability permitted", |_| has_none("CapPrm:")),
    ("no capability ambient", |_| has_none("CapAmb:")),
    ("reserve less memory than the limit", |_| reserve(MEMORY_BYTES_MAX / 4)),
    // Refused by a wall.
    ("write in the library", |t| put(&t.library.join("header"))),
    ("write outside", |t| put(&t.outside.join("made"))),
    ("make a folder outside", |t| std::fs::create_dir(t.outside.join("folder"))),
    ("read outside", |t| get(&t.outside.join("secret"))),
    ("list outside", |t| std::fs::read_dir(&t.outside).map(|_| ())),
    ("remove outside", |t| std::fs::remove_file(t.outside.join("victim"))),
    ("by ..", |t| get(&t.work.join("../outside/secret"))),
    ("by a link", |t| get(&t.work.join("link/secret"))),
    ("through /proc/self/root", |t| {
        get(Path::new(&format!("/proc/self/root{}", t.outside.join("secret").display())))
    }),
    ("hard link into the work folder", |t| std::fs::hard_link(t.outside.join("secret"), t.work.join("hard"))),
    ("rename out of the work folder", |t| {
        put(&t.work.join("own"))?;
        std::fs::rename(t.work.join("own"), t.outside.join("own"))
    }),
    ("lend its owner to whoever runs a file", |t| {
        std::fs::write(t.work.join("lent"), "#!")?;
        std::fs::set_permissions(t.work.join("lent"), Permissions::from_mode(0o4755))
    }),
    ("create a file that lends its owner", |t| {
        std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o6755)
            .open(t.work.join("born"))
            .map(|_| ())
    }),
    (ATTRIBUTES, |t| std::fs::set_permissions(t.outside.join("secret"), Permissions::from_mode(0o666))),
    ("write a setting of the kernel", |_| std::fs::write("/proc/self/oom_score_adj", "1000")),
    ("tcp connect", |t| TcpStream::connect(("127.0.0.1", t.tcp)).map(|_| ())),
    ("tcp listen", |_| TcpListener::bind(("127.0.0.1", 0)).map(|_| ())),
    ("udp send", |t| UdpSocket::bind(("127.0.0.1", 0))?.send_to(b"x", ("127.0.0.1", t.udp)).map(|_| ())),
    ("connect to a socket in the file system", |t| UnixStream::connect(t.library.join("socket")).map(|_| ())),
    ("connect to an abstract socket", |t| {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(&t.abstract_name)?).map(|_| ())
    }),
    ("send from a pair to another socket", |t| {
        let pair = std::os::unix::net::UnixDatagram::pair()?;
        pair.0.send_to(b"x", t.library.join("datagrams")).map(|_| ())
    }),
    ("signal a process outside", |t| Ok(test_kill_process(victim(t))?)),
    ("take a descriptor of a process outside", |t| {
        let handle = pidfd_open(victim(t), PidfdFlags::empty())?;
        Ok(pidfd_getfd(&handle, 0, PidfdGetfdFlags::empty()).map(|_| ())?)
    }),
    ("read a process's memory", |t| std::fs::File::open(format!("/proc/{}/mem", t.process)).map(|_| ())),
    ("read a process's environment", |t| get(Path::new(&format!("/proc/{}/environ", t.process)))),
    ("reserve more memory than the limit", |_| reserve(MEMORY_BYTES_MAX)),
    // Last, because a signal would end this process: a child has it.
    ("write a larger file than the limit", |t| {
        let file = t.work.join("large");
        run(&["dd", "if=/dev/zero", &format!("of={}", file.display()), "bs=64k", "count=32"])
    }),
];
const ALLOWED: usize = 19;
/// Needs read-only mounts.
const ATTRIBUTES: &str = "change attributes outside";

/// What only root could do, and a confined root cannot.
const ROOTS: [(&str, &str); 5] = [
    ("change an owner", "chown 1:1 ."),
    ("become another user", "setpriv --reuid=1 --clear-groups true"),
    ("mount", "mkdir -p m && mount -t tmpfs none m"),
    ("make a device", "mknod device c 1 3"),
    ("make a user namespace", "unshare -Ur true"),
];

fn reserve(bytes: u64) -> io::Result<()> {
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(io::Error::other)
}

// ── behind walls and without

fn system() -> Vec<PathBuf> {
    SYSTEM.map(PathBuf::from).into()
}

fn confined(ground: &Ground, also_read: &[&Path]) -> Confine {
    let mut read = system();
    read.extend(also_read.iter().map(|path| path.to_path_buf()));
    Confine {
        read,
        write: vec![ground.work()],
        network: false,
        file_bytes_max: Some(FILE_BYTES_MAX),
        memory_bytes_max: Some(MEMORY_BYTES_MAX),
    }
}

fn told_by(ground: &Ground, spec: Spec) -> (Walls, Told) {
    block_on(async {
        let tree = launch(&ground.records(), spec).await;
        let told = to_the_end(&tree).await;
        assert!(told.receipt.clean, "{:?}", told.receipt);
        (tree.walls().clone(), told)
    })
}

/// A process outside. Its number is one that no process has in a fresh namespace.
struct Sleeper(Child);

const NUMBER_MIN: u32 = 100;

impl Sleeper {
    fn start() -> Sleeper {
        loop {
            let sleeper = Sleeper(Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap());
            if sleeper.0.id() >= NUMBER_MIN {
                return sleeper;
            }
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

struct Attempted {
    walls: Walls,
    /// Each attempt and how it went.
    attempts: Vec<(String, String)>,
    /// Whether a datagram has come out.
    datagram_came: bool,
}

fn attempted(ground: &Ground, walled: bool, pid_namespace: bool) -> Attempted {
    let library = tempfile::tempdir().unwrap();
    std::fs::write(library.path().join("header"), "h").unwrap();
    std::fs::write(ground.outside().join("secret"), "s").unwrap();
    std::fs::write(ground.outside().join("victim"), "v").unwrap();
    let tcp = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let udp = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let _socket = UnixListener::bind(library.path().join("socket")).unwrap();
    let _datagrams = std::os::unix::net::UnixDatagram::bind(library.path().join("datagrams")).unwrap();
    let abstract_name = format!("rbee-test-{}", library.path().display());
    let name = SocketAddr::from_abstract_name(&abstract_name).unwrap();
    let _abstract = UnixListener::bind_addr(&name).unwrap();
    let sleeper = Sleeper::start();
    let targets = Targets {
        work: ground.work(),
        library: library.path().to_owned(),
        outside: ground.outside(),
        tcp: tcp.local_addr().unwrap().port(),
        udp: udp.local_addr().unwrap().port(),
        abstract_name,
        process: i32::try_from(sleeper.0.id()).unwrap(),
    };
    let me = std::env::current_exe().unwrap();
    let path = std::env::var("PATH").unwrap();
    let spec = Spec {
        env: vec![("PATH".into(), path), (TARGETS.into(), serde_json::to_string(&targets).unwrap())],
        cwd: Some(ground.work()),
        confine: walled.then(|| confined(ground, &[library.path(), &me])),
        pid_namespace,
        ..Spec::new(
            "attempts",
            [me.to_str().unwrap(), "--exact", "walls::attempts", "--ignored", "--nocapture"],
        )
    };
    let (walls, told) = told_by(ground, spec);
    assert_eq!(told.exit, Exit::Code(0), "{:#?}", told.lines);
    let attempts = told.lines.iter().filter_map(|line| {
        let (name, told) = line.strip_prefix("attempt ")?.rsplit_once(": done").map_or_else(
            || line.strip_prefix("attempt ").and_then(|rest| rest.split_once(": refused: ")),
            |(name, _)| Some((name, "done")),
        )?;
        Some((name.to_owned(), told.to_owned()))
    });
    let attempts: Vec<_> = attempts.collect();
    assert_eq!(attempts.len(), ATTEMPTS.len(), "{:#?}", told.lines);
    udp.set_nonblocking(true).unwrap();
    let datagram_came = udp.recv(&mut [0; 1]).is_ok();
    Attempted { walls, attempts, datagram_came }
}

/// What must go on working does, and all else is refused.
fn behind_walls(pid_namespace: bool) {
    let is_root = rustix::process::geteuid().is_root();
    let ground = Ground::new();
    let Attempted { walls, attempts, datagram_came } = attempted(&ground, true, pid_namespace);
    println!("{walls:?}");
    assert_eq!(walls.capabilities_dropped, is_root);
    // An empty namespace has a loopback of its own, where one may listen and send to oneself.
    let has_loopback = walls.network == "namespace";
    assert!(has_loopback || walls.network == "sockets refused", "{walls:?}");
    assert!(!datagram_came);
    let Some(version) = walls.filesystem.strip_prefix("landlock ") else {
        assert!(walls.filesystem.starts_with("none: "), "{walls:?}");
        return eprintln!("skipped: {}", walls.filesystem);
    };
    let (version, read_only) =
        version.split_once(", read-only mounts").map_or((version, false), |(version, _)| (version, true));
    assert!(read_only || !is_root || !has_right_to_mount(), "{walls:?}");
    let scoped = version.parse::<u32>().unwrap() >= 6;
    for (index, (name, told)) in attempts.iter().enumerate() {
        if name == "signal a process outside" && !scoped {
            eprintln!("skipped: {name}: not by Landlock {version}");
            continue;
        }
        if name == ATTRIBUTES && !read_only {
            eprintln!("skipped: {name}: no mounts of its own for this user");
            continue;
        }
        let in_loopback = has_loopback && ["tcp listen", "udp send"].contains(&name.as_str());
        assert_eq!(told == "done", index < ALLOWED || in_loopback, "{name}: {told}");
    }
    assert_eq!(std::fs::read_dir(ground.outside()).unwrap().count(), 2);
    assert!(std::fs::metadata(ground.work().join("large")).unwrap().len() <= FILE_BYTES_MAX);
}

fn has_right_to_mount() -> bool {
    run(&["unshare", "-m", "true"]).is_ok()
}

/// The same is all done where no walls are, so what refused were the walls.
fn without_walls() {
    let is_root = rustix::process::geteuid().is_root();
    let Attempted { walls, attempts, datagram_came } = attempted(&Ground::new(), false, false);
    assert_eq!((walls.filesystem.as_str(), walls.network.as_str()), ("open", "open"));
    assert!(!walls.capabilities_dropped && datagram_came);
    for (name, told) in attempts {
        let wants_no_capability =
            ["no capability effective", "no capability permitted"].contains(&name.as_str());
        // Another system may keep an ordinary user from tracing without us.
        let traces = name.contains("descriptor of a process") || name.contains("a process's");
        if !traces || is_root {
            assert_eq!(told == "done", !(wants_no_capability && is_root), "{name}: {told}");
        }
    }
}

#[test]
fn a_confined_tree_reaches_what_it_was_given_and_nothing_else() {
    if !pidns::inside(module_path!(), "a_confined_tree_reaches_what_it_was_given_and_nothing_else") {
        return;
    }
    also_as_nobody("walls::a_confined_tree_reaches_what_it_was_given_and_nothing_else", || {
        behind_walls(false);
        behind_walls(true);
        without_walls();
    });
}

#[test]
fn a_confined_root_has_no_power_of_root() {
    if !pidns::inside(module_path!(), "a_confined_root_has_no_power_of_root") {
        return;
    }
    also_as_nobody("walls::a_confined_root_has_no_power_of_root", || {
        let is_root = rustix::process::geteuid().is_root();
        for (name, command) in ROOTS {
            for walled in [true, false] {
                let ground = Ground::new();
                let spec = Spec {
                    cwd: Some(ground.work()),
                    confine: walled.then(|| confined(&ground, &[])),
                    ..script("root", &format!("{command} 2>&1"))
                };
                let (_, told) = told_by(&ground, spec);
                // Whether an ordinary user may make a user namespace is the system's choice.
                if walled || is_root {
                    assert_eq!(told.exit.success(), !walled, "{name}: {:?}", told.lines);
                }
            }
        }
    });
}

#[test]
fn an_open_network_is_reached_from_behind_the_other_walls() {
    if !pidns::inside(module_path!(), "an_open_network_is_reached_from_behind_the_other_walls") {
        return;
    }
    let ground = Ground::new();
    let me = std::env::current_exe().unwrap();
    let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let spec = Spec {
        env: vec![(CONNECT.into(), server.local_addr().unwrap().port().to_string())],
        confine: Some(Confine { network: true, ..confined(&ground, &[&me]) }),
        ..Spec::new("open", [me.to_str().unwrap(), "--exact", "walls::connects", "--ignored"])
    };
    let (walls, told) = told_by(&ground, spec);
    assert_eq!(walls.network, "open");
    assert_eq!(told.exit, Exit::Code(0), "{:#?}", told.lines);
}

const CONNECT: &str = "RBEE_TEST_CONNECT";

#[test]
#[ignore = "not a test: what a confined process with a network does"]
fn connects() {
    let Ok(port) = std::env::var(CONNECT) else { return };
    TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
    UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    // Keys and namespaces stay refused.
    assert!(run(&["unshare", "-Ur", "true"]).is_err());
}

#[test]
fn toolchains_that_may_be_read_run() {
    if !pidns::inside(module_path!(), "toolchains_that_may_be_read_run") {
        return;
    }
    let home = std::env::var("HOME").unwrap_or_default();
    let of_home = |variable: &str, name: &str| {
        std::env::var(variable).map_or_else(|_| Path::new(&home).join(name), PathBuf::from)
    };
    let (cargo, rustup) = (of_home("CARGO_HOME", ".cargo"), of_home("RUSTUP_HOME", ".rustup"));
    for program in ["cargo", "rustc", "cc"] {
        if run(&[program, "--version"]).is_err() {
            eprintln!("skipped: {program}: not here");
            continue;
        }
        let ground = Ground::new();
        let mut spec =
            script("tool", &format!("{program} --version && touch made && ! touch {}/made", cargo.display()));
        spec.env.extend([
            ("CARGO_HOME".into(), cargo.display().to_string()),
            ("RUSTUP_HOME".into(), rustup.display().to_string()),
            ("HOME".into(), ground.work().display().to_string()),
        ]);
        let spec =
            Spec { cwd: Some(ground.work()), confine: Some(confined(&ground, &[&cargo, &rustup])), ..spec };
        let (_, told) = told_by(&ground, spec);
        assert_eq!(told.exit, Exit::Code(0), "{program}: {:?}", told.lines);
        assert!(!cargo.join("made").exists());
    }
}

/// A build of the real thing: every part of a toolchain at once.
#[test]
fn a_program_is_built_and_run_behind_walls() {
    if !pidns::inside(module_path!(), "a_program_is_built_and_run_behind_walls") {
        return;
    }
    also_as_nobody("walls::a_program_is_built_and_run_behind_walls", || {
        if run(&["cc", "--version"]).is_err() {
            return eprintln!("skipped: no C compiler here");
        }
        let ground = Ground::new();
        let build = "printf '#include <stdio.h>\\nint main(void) { return puts(\"built\") < 0; }\\n' > x.c \
                     && cc -pipe -O1 -o x x.c && ./x";
        let mut spec = script("build", build);
        spec.env.push(("TMPDIR".into(), ground.work().display().to_string()));
        let spec = Spec { cwd: Some(ground.work()), confine: Some(confined(&ground, &[])), ..spec };
        let (_, told) = told_by(&ground, spec);
        assert_eq!((told.exit, told.lines.as_slice()), (Exit::Code(0), ["built".to_owned()].as_slice()));
    });
}
