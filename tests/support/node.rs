//! Daemons as they are used: the built program with a home, a state directory and ports of its own, asked over real sockets.
//!
//! A [`Place`] is an account's world: what runs on it names its directory in its command line or environment, so that a test
//! can count what is left, and fails if anything is. A [`Daemon`] says over a pipe when it is ready; nothing looks for it.

use crate::support::gguf::{Tiny, tiny};
use crate::support::pidns;
use bytes::Bytes;
use command_fds::{CommandFdExt, FdMapping};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rbee::http::client::{self, Target};
use rbee::http::sse;
use rbee::wire::Failure;
use rbee::wire::job::Terminator;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

pub const RBEE: &str = env!("CARGO_BIN_EXE_rbee");
/// Nothing here takes as long, on a machine that does something else besides.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(10);
const NOTIFY_FD: i32 = 3;
/// A port that nobody listens on: a hive that is told of no queen dials here, not a queen of the person who runs the tests.
const NO_QUEEN: &str = "http://127.0.0.1:9";

/// Drives every client of a test; the tests themselves are plain functions that wait.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
});

fn wait<T>(what: &str, future: impl Future<Output = T>) -> T {
    RUNTIME
        .block_on(async { tokio::time::timeout(PATIENCE, future).await })
        .unwrap_or_else(|_| panic!("{what} took longer than {} s", PATIENCE.as_secs()))
}

/// Waits until a condition holds; its last complaint is the failure's text.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    within(PATIENCE, what, &mut condition)
}

#[track_caller]
pub fn within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(last) if begun.elapsed() > limit => panic!("{what}: not within {limit:?}; last: {last}"),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Runs a test in a PID namespace of its own; the closure's type tells the test's name.
pub fn alone<F: FnOnce()>(test: F) {
    let path = std::any::type_name::<F>();
    let path = path.strip_suffix("::{{closure}}").expect("a test passes a closure");
    let (module, name) = path.rsplit_once("::").expect("a test is in a module");
    if pidns::inside(module, name) {
        test();
    }
}

/// A model whose answers last: some hundred tokens a second, and room for thousands.
pub fn slow() -> Tiny {
    Tiny { embedding: 256, blocks: 8, feed_forward: 1024, context: 32_768, endless: true, ..Tiny::default() }
}

/// A model with room for answers that last until somebody ends them; see [`ENDLESS`].
pub fn roomy() -> Tiny {
    Tiny { context: 131_072, endless: true, ..Tiny::default() }
}

/// Tokens of an answer that no test waits for.
pub const ENDLESS: u32 = 100_000;

/// A home, a state directory and a model of its own.
pub struct Place {
    root: tempfile::TempDir,
    logs: AtomicU32,
    /// A process in whose network everything of this place runs.
    network: Option<i32>,
}

impl Place {
    pub fn new() -> Place {
        Place::with_model(&Tiny::default())
    }

    pub fn with_model(options: &Tiny) -> Place {
        // Short, because a socket's path has 108 bytes, and below no directory that another variable names.
        let root = tempfile::Builder::new().prefix("rb").rand_bytes(6).tempdir_in("/tmp").unwrap();
        let place = Place { root, logs: AtomicU32::new(0), network: None };
        std::fs::create_dir(place.path("home")).unwrap();
        std::fs::write(place.path("tiny.gguf"), tiny(options)).unwrap();
        place
    }

    /// Runs what comes next in the network of a process.
    pub fn in_network_of(mut self, pid: i32) -> Place {
        self.network = Some(pid);
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("s")
    }

    /// The model's file, as a request names it.
    pub fn model(&self) -> String {
        self.path("tiny.gguf").to_str().unwrap().to_owned()
    }

    /// A loopback address that no other place has.
    pub fn address(&self, port: u16) -> String {
        let name = self.root.path().as_os_str().as_encoded_bytes();
        let sum = name.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        let [_, a, b, c] = sum.to_be_bytes();
        format!("127.{}.{b}.{}:{port}", a | 1, c | 2)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.network {
            None => Command::new(RBEE),
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command.args(["-t", &pid.to_string(), "-n", RBEE]);
                command
            }
        };
        command.args(args).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.path("home")).env("HF_HUB_CACHE", self.path("hub"));
        command.env("RBEE_STATE_DIR", self.state()).env("RBEE_THREADS", "1");
        // For a look at a failure: RBEE_LOG=debug cargo test …
        command.env("RBEE_LOG", std::env::var("RBEE_LOG").unwrap_or_else(|_| "info".into()));
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command of the keeper's to its end.
    pub fn rbee(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        println!("{command:?}");
        command.output().unwrap()
    }

    /// Living processes that belong to this place: by the command line, or by the environment they were started with.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let root = self.root.path().as_os_str().as_encoded_bytes();
        let names_us = |bytes: &[u8]| bytes.windows(root.len()).any(|window| window == root);
        let ours = |entry: std::fs::DirEntry| {
            let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
            // A zombie has neither any more: it is dead, and its parent's to reap.
            let line = std::fs::read(entry.path().join("cmdline")).ok().filter(|line| !line.is_empty())?;
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let text = String::from_utf8_lossy(&line).replace('\0', " ");
            (names_us(&line) || names_us(&environment)).then_some((pid, text))
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(ours).collect()
    }

    /// Processes of one role, by what their command line says.
    pub fn processes_of(&self, role: &str) -> Vec<i32> {
        let of_role = |(pid, line): (i32, String)| line.contains(role).then_some(pid);
        self.processes().into_iter().filter_map(of_role).collect()
    }

    #[track_caller]
    pub fn is_deserted_within(&self, limit: Duration) {
        within(limit, "the last process of the place ends", || match self.processes() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        });
    }

    /// What every daemon of this place has logged, for a failure's sake.
    pub fn print_logs(&self) {
        for number in 0..self.logs.load(Ordering::Relaxed) {
            let path = self.path(&format!("log{number}"));
            eprintln!("── {}\n{}", path.display(), std::fs::read_to_string(&path).unwrap_or_default());
        }
        for entry in std::fs::read_dir(self.path("s/logs")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(20).collect();
            eprintln!("── {}", entry.path().display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        let left = self.processes();
        for (pid, _) in &left {
            // Gone by itself meanwhile, or the test fails below in any case.
            let _ = Pid::from_raw(*pid).map(|pid| kill_process(pid, Signal::KILL));
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left running: {left:?}");
        }
    }
}

/// A daemon of a place, until it is dropped.
pub struct Daemon {
    child: Child,
    target: Target,
    log: PathBuf,
    pub address: String,
}

impl Daemon {
    /// Starts `serve`, `queen serve` or `hive serve`, and waits until it says that it is ready.
    #[track_caller]
    pub fn start(place: &Place, role: &str, args: &[&str]) -> Daemon {
        Daemon::try_start(place, role, args, &[]).unwrap_or_else(|refused| panic!("{role}: {refused}"))
    }

    /// The same, with its exit and what it said if it does not come up.
    pub fn try_start(
        place: &Place,
        role: &str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Result<Daemon, Refused> {
        let mut command = place.command(&role.split(' ').collect::<Vec<_>>());
        command.arg("--state-dir").arg(place.state()).args(["--notify-fd", &NOTIFY_FD.to_string()]);
        if !args.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        if role == "hive serve" && !args.contains(&"--queen") {
            command.args(["--queen", NO_QUEEN]);
        }
        command.args(args).envs(env.iter().copied());
        println!("{command:?}");
        let log = place.path(&format!("log{}", place.logs.fetch_add(1, Ordering::Relaxed)));
        let (mut said, notify) = std::io::pipe().unwrap();
        command
            .fd_mappings(vec![FdMapping { parent_fd: OwnedFd::from(notify), child_fd: NOTIFY_FD }])
            .unwrap();
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        // The command holds the pipe's other end, too; without it the pipe closes when the daemon says so or ends.
        drop(command);
        let mut word = Vec::new();
        said.read_to_end(&mut word).unwrap();
        if word != rbee::daemon::READY {
            let exit = child.wait().unwrap();
            return Err(Refused { exit, said: std::fs::read_to_string(&log).unwrap() });
        }
        let text = std::fs::read_to_string(&log).unwrap();
        let listening = text.lines().find_map(|line| line.split_once(" listening address=")).unwrap();
        let address = listening.1.split(' ').next().unwrap().to_owned();
        Ok(Daemon { child, target: Target::parse(&address).unwrap(), log, address })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Shows this key from now on.
    pub fn use_key(&mut self, key: &str) {
        self.target = self.target.clone().with_key(Some(key));
    }

    // ── asking

    pub fn request(&self, request: http::Request<rbee::http::Body>) -> Answer {
        let path = request.uri().path().to_owned();
        wait(&path, async {
            let answer = client::send(&self.target, request).await.unwrap();
            let (head, body) = answer.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer { status: head.status.as_u16(), headers: head.headers, body }
        })
    }

    /// Asks, waits for something to happen meanwhile, and leaves without the answer.
    pub fn leave_after(&self, path: &str, body: &Value, meanwhile: impl FnOnce()) {
        let (target, request) = (self.target.clone(), client::post(path, body).unwrap());
        let asking = RUNTIME.spawn(async move { client::send(&target, request).await.map(drop) });
        meanwhile();
        assert!(!asking.is_finished(), "{path} was answered");
        asking.abort();
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request(client::get(path).unwrap())
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(client::post(path, body).unwrap())
    }

    /// Asks and reads the answer as it comes.
    pub fn stream(&self, path: &str, body: &Value) -> Stream {
        self.open(path, client::post(path, body).unwrap())
    }

    fn open(&self, path: &str, request: http::Request<rbee::http::Body>) -> Stream {
        let answer = wait(path, client::send(&self.target, request)).unwrap();
        let status = answer.status().as_u16();
        Stream { status, events: sse::Reader::new(answer.into_body()) }
    }

    /// A stream that is there without a question.
    pub fn watch(&self, path: &str) -> Stream {
        self.open(path, client::get(path).unwrap())
    }

    /// A job's events, from the first on.
    pub fn stream_of(&self, job: &str) -> Stream {
        let path = format!("/v1/jobs/{job}/stream");
        self.open(&path, client::get(&path).unwrap())
    }

    /// Starts a job and follows it to its end.
    #[track_caller]
    pub fn job(&self, operation: &Value) -> Job {
        self.follow(&self.begin(operation))
    }

    /// Starts a job; its id.
    #[track_caller]
    pub fn begin(&self, operation: &Value) -> String {
        let accepted = self.post("/v1/jobs", operation).json();
        accepted["job_id"].as_str().unwrap_or_else(|| panic!("{operation}: {accepted}")).to_owned()
    }

    pub fn follow(&self, id: &str) -> Job {
        let path = format!("/v1/jobs/{id}/stream");
        let mut stream = self.open(&path, client::get(&path).unwrap());
        let mut events = Vec::new();
        let mut terminator = None;
        while let Some(event) =
            stream.next().unwrap_or_else(|broken| panic!("{id} broke off: {broken}; {events:?}"))
        {
            assert!(terminator.is_none(), "after {terminator:?} came {event:?}");
            match &event.name {
                Some(name) => {
                    events.push((name.clone(), serde_json::from_str(&event.data).unwrap_or_default()))
                }
                None => terminator = Some(Terminator::parse(&event.data).unwrap()),
            }
        }
        Job { id: id.to_owned(), terminator: terminator.unwrap(), events }
    }

    /// Makes the place's model known to a hive, and gives the name that requests use.
    #[track_caller]
    pub fn register(&self, place: &Place, hive: Option<&str>) -> String {
        let mut operation = json!({"operation": "model_download", "model": place.model()});
        if let Some(hive) = hive {
            operation["hive_id"] = json!(hive);
        }
        self.job(&operation).done()["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a queen knows so many hives.
    #[track_caller]
    pub fn has_hives(&self, count: usize) -> Vec<Value> {
        until("the hives are linked", || {
            let hives = self.get("/v1/hives").json()["hives"].as_array().unwrap().clone();
            if hives.len() == count { Ok(hives) } else { Err(format!("{hives:?}")) }
        })
    }

    pub fn workers(&self) -> Vec<Value> {
        self.get("/v1/workers").json()["workers"].as_array().unwrap().clone()
    }

    /// Asks in bytes of the caller's own, for what the client would never send; gives the status.
    pub fn raw(&self, head: &str) -> u16 {
        let mut stream = std::net::TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{head}\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("{head}: {answer}"))
    }

    // ── ending

    pub fn signal(&self, signal: Signal) {
        signal_pid(self.pid(), signal);
    }

    pub fn kill9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end in order and waits for that.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        until("the daemon ends", || self.child.try_wait().unwrap().ok_or_else(|| "it runs".into()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        // In order first, so that its workers go, too; at once if the test has failed already.
        if !std::thread::panicking() {
            self.signal(Signal::TERM);
            self.signal(Signal::TERM);
            self.ended();
        }
        // Fails only if it has ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal_pid(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Stops a process and waits until each of its threads has noticed.
#[track_caller]
pub fn freeze(pid: i32) {
    signal_pid(pid, Signal::STOP);
    until("every thread is stopped", || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let states: Vec<char> = threads.map(|thread| state_of(&thread.path().join("stat"))).collect();
        if states.iter().all(|state| *state == 'T') { Ok(()) } else { Err(format!("{states:?}")) }
    });
}

fn state_of(stat: &Path) -> char {
    let text = std::fs::read_to_string(stat).unwrap_or_default();
    text.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next()).unwrap_or('?')
}

pub fn is_alive(pid: i32) -> bool {
    // A zombie's command line is empty.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// The parent of a process: of a worker, its shim.
pub fn parent_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(") ").unwrap().1;
    after_name.split(' ').nth(1).unwrap().parse().unwrap()
}

/// A daemon that did not come up.
#[derive(Debug, thiserror::Error)]
#[error("{exit}, saying: {said}")]
pub struct Refused {
    pub exit: ExitStatus,
    pub said: String,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What a request was refused with.
    #[track_caller]
    pub fn failure(&self) -> Failure {
        assert!(self.status >= 400, "it was not refused: {self:?}");
        Failure::from_body(self.status, &self.body)
    }
}

/// A job that has ended.
#[derive(Debug)]
pub struct Job {
    pub id: String,
    pub terminator: Terminator,
    pub events: Vec<(String, Value)>,
}

impl Job {
    pub fn find(&self, name: &str) -> Option<&Value> {
        self.events.iter().find(|(event, _)| event == name).map(|(_, data)| data)
    }

    /// The result of a job that must have gone well.
    #[track_caller]
    pub fn done(&self) -> &Value {
        assert_eq!(self.terminator, Terminator::Done, "{self:?}");
        self.find("result").unwrap_or_else(|| panic!("no result: {self:?}"))
    }
}

/// An event stream that is being read.
pub struct Stream {
    pub status: u16,
    events: sse::Reader<Incoming>,
}

impl Stream {
    pub fn next(&mut self) -> Result<Option<sse::Event>, sse::ReadError> {
        wait("an event", self.events.next())
    }

    /// Reads so many events and leaves the rest.
    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<sse::Event> {
        assert_eq!(self.status, 200);
        (0..count).map(|_| self.next().unwrap().expect("the stream goes on")).collect()
    }

    /// Reads to the end, whatever that is.
    pub fn rest(&mut self) -> Ended {
        let mut events = Vec::new();
        loop {
            match self.next() {
                Ok(Some(event)) => events.push(event.data),
                Ok(None) => return Ended { events, broken: None },
                Err(error) => return Ended { events, broken: Some(rbee::wire::failure::chain(&error)) },
            }
        }
    }
}

/// How a stream ended.
#[derive(Debug)]
pub struct Ended {
    pub events: Vec<String>,
    pub broken: Option<String>,
}

impl Ended {
    pub fn is_clean(&self) -> bool {
        self.broken.is_none() && self.events.last().is_some_and(|data| data == "[DONE]")
    }

    /// The error event that says why it ended, if one does.
    pub fn failure(&self) -> Option<Failure> {
        let last = self.events.last()?;
        serde_json::from_str::<Value>(last).ok()?.get("error")?;
        Some(Failure::from_body(500, last.as_bytes()))
    }

    /// The end of an answer that was cut short: told, or seen by the broken connection, never taken for a whole one.
    #[track_caller]
    pub fn is_told(&self) {
        assert!(!self.events.iter().any(|data| data == "[DONE]"), "it ended as if whole: {self:?}");
        assert!(
            self.broken.is_some() || self.failure().is_some(),
            "neither an error nor a broken connection: {self:?}"
        );
    }
}

/// What the tiny models answer to without end when always the likeliest token is taken.
pub const PROMPT: &str = "Say something.";

/// A chat request; `tokens` of an answer that no end of sequence cuts short.
pub fn chat(model: &str, tokens: u32, stream: bool) -> Value {
    json!({
        "model": model, "stream": stream, "max_tokens": tokens, "ignore_eos": true, "temperature": 0,
        "messages": [{"role": "user", "content": PROMPT}],
    })
}

/// How often a kill is repeated where RBEE_KILLS does not say.
const KILLS: u32 = 2;

/// Repeats a kill, and tells how long it took until what must go had gone and what must stay was free.
pub fn repeat(what: &str, mut kill: impl FnMut() -> Duration) {
    let count = std::env::var("RBEE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let mut took: Vec<Duration> = (0..count).map(|_| kill()).collect();
    took.sort_unstable();
    println!(
        "{what} killed: {count} of {count}; then in order again after {:?} (median), {:?} (longest)",
        took[took.len() / 2],
        took[took.len() - 1]
    );
}

/// A file of this mode, and the folders that it takes.
pub fn write(path: &Path, text: &str, mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// An output's two streams as text.
pub fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
