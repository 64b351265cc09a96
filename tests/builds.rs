//! Engines built on the node, through the real binary: fetched from a catalog, built in a contained tree, installed,
//! spawned, removed. And above all: stopped at any moment, by a cancel or by the death of the hive, with nothing left.

use crate::support::fleet::CHAT;
use crate::support::node::{Daemon, Place, alone, chat, said, signal_pid, until, within};
use rbee::wire::Code;
use rbee::wire::job::Terminator;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// B42: the grace, and one second.
pub const CANCELLED_MAX: Duration = Duration::from_secs(3);

/// A folder of recipes, and the catalog that serves it.
pub struct Shop {
    folder: PathBuf,
    pub daemon: Daemon,
}

impl Shop {
    pub fn open(place: &Place) -> Shop {
        let folder = place.path("shop");
        std::fs::create_dir(&folder).unwrap();
        let daemon = Daemon::start(place, "catalog serve", &["--dir", folder.to_str().unwrap()]);
        Shop { folder, daemon }
    }

    /// A recipe whose engine is made by `phases`, functions of bash.
    pub fn recipe(&self, id: &str, phases: &str, more: &str) {
        self.recipe_of(id, "1.0", phases, more);
    }

    /// A recipe whose build says `waiting`, and goes on when it is told to by `go_on`.
    pub fn waiting_recipe(&self, id: &str) {
        self.recipe(id, "build() { echo waiting; read -r _ < pipe; }\nprepare() { mkfifo pipe; }\npackage() { install -Dm755 /bin/true \"$pkgdir/bin/engine\"; }", "");
    }

    fn recipe_of(&self, id: &str, version: &str, phases: &str, more: &str) {
        let folder = self.folder.join(id);
        std::fs::create_dir_all(&folder).unwrap();
        let pkgbuild = format!(
            "pkgname={id}\npkgver={version}\npkgrel=1\narch=(any)\npkgdesc='A test engine'\n{phases}\n"
        );
        std::fs::write(folder.join("PKGBUILD"), pkgbuild).unwrap();
        std::fs::write(folder.join("worker.toml"), worker_toml(id, version, more)).unwrap();
    }

    /// A hive that knows this catalog.
    pub fn hive(&self, place: &Place, more: &[&str]) -> Daemon {
        let url = self.daemon.url();
        let args: Vec<&str> =
            ["--name", "here", "--catalog", &url].into_iter().chain(more.iter().copied()).collect();
        Daemon::start(place, "serve", &args)
    }
}

/// Has the one build that waits go on.
pub fn go_on(place: &Place) {
    let builds: Vec<PathBuf> = folders_below(&place.state().join("builds"));
    assert_eq!(builds.len(), 1, "{builds:?}");
    let pipe = file_below(&builds[0], "pipe").expect("prepare() has made it");
    std::fs::write(pipe, "go\n").unwrap();
}

fn worker_toml(id: &str, version: &str, more: &str) -> String {
    format!(
        r#"id = "{id}"
kind = "worker"
implementation = "test"
worker_type = "cpu"
version = "{version}"
platforms = ["linux", "macos"]
architectures = ["any"]
name = "{id}"
description = "A test engine"
license = "MIT"
build_system = "none"
depends = []
makedepends = []
binary_name = "engine"
install_path = "bin/engine"
supported_formats = ["gguf"]
supports_streaming = true
supports_batching = true
{more}
[source]
type = "archive"
url = "none"

[build]
"#
    )
}

/// An engine that is this very rbee, dressed up as another project's.
fn dressed_up() -> (String, &'static str) {
    let engine = format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_rbee"));
    let package = format!(
        "package() {{\n  mkdir -p \"$pkgdir/bin\"\n  cat > \"$pkgdir/bin/engine\" <<'END'\n{engine}END\n  chmod 755 \"$pkgdir/bin/engine\"\n}}"
    );
    let serve = r#"
[serve]
argv = ["worker", "serve", "--model", "{model}", "--alias", "{alias}", "--host", "{host}", "--port", "{port}",
        "--parallel", "{slots}", "--ctx-size", "{ctx_total}"]
key_env = "RBEE_API_KEY"
health = "/health"
api = "openai"
"#;
    (package, serve)
}

pub const QUICK: &str = r#"package() { install -Dm755 /bin/true "$pkgdir/bin/engine"; }"#;

/// Builds with a grandchild in a session of its own, a daemon with closed output, one that ignores TERM.
pub const STUBBORN: &str = r#"
build() {
  setsid sleep 1000 &
  ( trap '' TERM INT HUP; while :; do sleep 1000; done ) &
  ( exec <&- >&- 2>&-; sleep 1000 & ) &
  dd if=/dev/zero of=big bs=1M count=8 status=none
  chmod 0 big; mkdir -p deep/er; chmod 0 deep
  echo compiling
  sleep 1000
}
package() { :; }
"#;

fn install(daemon: &Daemon, id: &str) -> String {
    daemon.begin(&json!({"operation": "worker_install", "worker_id": id}))
}

/// A catalog, a hive, and a job in the middle of the build that is hardest to end.
fn in_a_stubborn_build(place: &Place) -> (Shop, Daemon, String) {
    let shop = Shop::open(place);
    shop.recipe("stubborn", STUBBORN, "");
    let daemon = shop.hive(place, &[]);
    let job = install(&daemon, "stubborn");
    has_told(&daemon, &job, "compiling");
    (shop, daemon, job)
}

/// Waits until a job has told a line of output.
pub fn has_told(daemon: &Daemon, job: &str, word: &str) {
    until(&format!("the build tells `{word}`"), || {
        let mut stream = daemon.stream_of(job);
        loop {
            match stream.next() {
                Ok(Some(event)) if event.data.contains(word) => return Ok(()),
                Ok(Some(event)) if event.name.is_none() => return Err(event.data),
                Ok(Some(_)) => {}
                other => return Err(format!("{other:?}")),
            }
        }
    });
}

fn folders_below(path: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn file_below(folder: &Path, name: &str) -> Option<PathBuf> {
    folders_below(folder).into_iter().find_map(|path| match path.file_name() {
        Some(found) if found == name => Some(path),
        _ => file_below(&path, name),
    })
}

/// Nothing of a build is left: no process beside the daemons, no work folder, no half-installed engine.
#[track_caller]
pub fn is_clean(place: &Place, daemons: &[&Daemon], id: &str, limit: Duration) {
    within(limit, "every process of the build is gone", || {
        let ours: Vec<i32> = daemons.iter().map(|daemon| daemon.pid()).collect();
        let left: Vec<_> = place.processes().into_iter().filter(|(pid, _)| !ours.contains(pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    within(limit, "the work folder is gone", || {
        let left = folders_below(&place.state().join("builds"));
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert!(!place.state().join("workers").join(id).join("current").exists());
}

#[test]
fn an_engine_is_built_installed_spawned_and_removed() {
    let place = Place::new();
    let shop = Shop::open(&place);
    let (package, serve) = dressed_up();
    shop.recipe("other-engine", &package, serve);
    let daemon = shop.hive(&place, &[]);
    let url = daemon.url();
    let rbee = |args: &[&str]| {
        let output = place.rbee(&[&["--queen", &url][..], args].concat());
        let (stdout, stderr) = said(&output);
        assert!(output.status.success(), "{args:?}: {stderr}");
        stdout
    };
    let available = rbee(&["worker", "available"]);
    assert!(available.contains("other-engine") && available.contains("A test engine"), "{available}");
    assert!(!rbee(&["worker", "list"]).contains("other-engine"));
    rbee(&["worker", "install", "other-engine"]);
    assert!(rbee(&["worker", "ls"]).contains("other-engine"));
    let shown: Value = serde_json::from_str(&rbee(&["worker", "get", "other-engine", "--json"])).unwrap();
    assert_eq!((&shown["version"], &shown["backend"]), (&json!("1.0-1"), &json!("cpu")), "{shown}");
    // Again is no work.
    let again = daemon.job(&json!({"operation": "worker_download", "worker_id": "other-engine"}));
    assert_eq!(again.done()["installed_at"], shown["installed_at"]);

    let model = daemon.register(&place, None);
    rbee(&["worker", "spawn", "--worker", "other-engine", "--model", &model]);
    let worker = daemon.workers()[0].clone();
    assert_eq!(worker["worker"], "other-engine");
    let (pid, id) = (worker["pid"].as_i64().unwrap(), worker["worker_id"].as_str().unwrap());
    // Its key is nowhere that others can read.
    let key = std::fs::read_to_string(place.state().join("run").join(format!("{id}.key"))).unwrap();
    for (_, line) in place.processes() {
        assert!(!line.contains(key.trim()), "{line}");
    }
    let ended = daemon.stream(CHAT, &chat(&model, 5, true)).rest();
    assert!(ended.is_clean(), "{ended:?}");
    let infer = daemon.job(&json!({"operation": "infer", "model": model, "prompt": "Bees", "max_tokens": 3}));
    assert_eq!(infer.done()["worker_id"], id);

    // In use, it stays; and only what this hive has started can be ended from here.
    let refused = daemon.job(&json!({"operation": "worker_remove", "worker_id": "other-engine"}));
    assert!(matches!(refused.terminator, Terminator::Error(_)), "{refused:?}");
    let listed: Value = serde_json::from_str(&rbee(&["worker", "process", "list", "--json"])).unwrap();
    assert!(listed.to_string().contains(&pid.to_string()), "{listed}");
    let strangers =
        place.rbee(&["--queen", &url, "worker", "process", "delete", &std::process::id().to_string()]);
    assert_eq!(strangers.status.code(), Some(1), "{}", said(&strangers).1);
    rbee(&["worker", "process", "delete", &pid.to_string()]);
    within(CANCELLED_MAX, "the worker is gone", || match place.processes_of(id) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    assert!(!place.state().join("run").join(format!("{id}.key")).exists());
    rbee(&["worker", "rm", "other-engine"]);
    assert!(!rbee(&["worker", "list"]).contains("other-engine"));
    assert!(!place.state().join("workers/other-engine").exists());
}

#[test]
fn a_cancelled_build_leaves_no_process_no_file_and_tells_a_receipt() {
    alone(|| {
        let place = Place::new();
        let (shop, daemon, job) = in_a_stubborn_build(&place);
        let begun = Instant::now();
        let answer = daemon.post(&format!("/v1/jobs/{job}/cancel"), &json!({}));
        assert_eq!(answer.status, 200, "{}", answer.json());
        assert!(begun.elapsed() < CANCELLED_MAX, "{:?}", begun.elapsed());
        let receipt = answer.json()["receipt"].clone();
        is_clean(&place, &[&daemon, &shop.daemon], "stubborn", Duration::ZERO);
        assert_eq!(receipt["clean"], true, "{receipt}");
        assert!(receipt["processes_reaped"].as_u64() >= Some(5), "{receipt}");
        assert!(receipt["bytes_removed"].as_u64() >= Some(8 << 20), "{receipt}");
        assert_eq!(daemon.follow(&job).terminator, Terminator::Cancelled);
    });
}

#[test]
fn a_build_is_among_the_processes_and_can_be_ended_there() {
    alone(|| {
        let place = Place::new();
        let (shop, daemon, job) = in_a_stubborn_build(&place);
        let list = daemon.job(&json!({"operation": "worker_process_list"})).done()["processes"].clone();
        let of_build = |process: &&Value| process["worker_id"].as_str().unwrap().contains(&job);
        let builds: Vec<&Value> = list.as_array().unwrap().iter().filter(of_build).collect();
        assert_eq!(builds.len(), 1, "{list}");
        let pid = builds[0]["pid"].clone();
        let ended = daemon.job(&json!({"operation": "worker_process_delete", "pid": pid}));
        assert_eq!(ended.done()["receipt"]["clean"], true, "{ended:?}");
        is_clean(&place, &[&daemon, &shop.daemon], "stubborn", Duration::ZERO);
        assert!(matches!(daemon.follow(&job).terminator, Terminator::Error(_)));
        // Nothing of it stands in the way of the next.
        shop.recipe("stubborn", QUICK, "");
        daemon.job(&json!({"operation": "worker_install", "worker_id": "stubborn"})).done();
    });
}

#[test]
fn a_build_whose_hive_is_killed_leaves_nothing_either() {
    alone(|| {
        let place = Place::new();
        let (shop, daemon, job) = in_a_stubborn_build(&place);
        daemon.kill9();
        is_clean(&place, &[&shop.daemon], "stubborn", CANCELLED_MAX);
        // Its job is remembered as what it was.
        let daemon = shop.hive(&place, &[]);
        assert_eq!(daemon.get(&format!("/v1/jobs/{job}")).json()["state"], "interrupted");
    });
}

/// A C++ program of eight parts, configured by cmake, compiled by ninja. Each part computes two hundred constants, a second
/// each: a compiler is at work for minutes, whatever the machine, and none ends while a test looks.
const CMAKE: &str = r#"
prepare() {
  cat > heavy.h <<'END'
constexpr unsigned long mixed(unsigned long sum) {
  for (unsigned long outer = 0; outer < 2000; ++outer)
    for (unsigned long inner = 0; inner < 1000; ++inner) sum = sum * 31 + inner;
  return sum;
}
END
  for n in {1..200}; do echo "extern constexpr unsigned long value$n = mixed($n);"; done >> heavy.h
  for part in {1..8}; do
    { echo '#include "heavy.h"'; echo "unsigned long part$part() { return value$part; }"; } > "part$part.cpp"
  done
  echo 'int main() { return 0; }' > main.cpp
  cat > CMakeLists.txt <<'END'
cmake_minimum_required(VERSION 3.10)
project(engine CXX)
set(CMAKE_CXX_STANDARD 17)
file(GLOB parts part*.cpp)
add_executable(engine main.cpp ${parts})
END
}
build() {
  cmake -G Ninja -S . -B out -DCMAKE_BUILD_TYPE=Release
  cmake --build out --parallel 4
}
package() { install -Dm755 out/engine "$pkgdir/bin/engine"; }
"#;

/// The compilers proper that are at work, each with the temporary file that it writes for the assembler.
fn compilers_of(place: &Place) -> Vec<(i32, PathBuf)> {
    let at_work = |(pid, line): (i32, String)| {
        let (program, rest) = line.split_once(' ')?;
        let written = rest.split_once(" -o ")?.1.split(' ').next()?;
        program.ends_with("/cc1plus").then(|| (pid, PathBuf::from(written)))
    };
    place.processes().into_iter().filter_map(at_work).collect()
}

#[test]
fn ctrl_c_ends_a_cmake_and_ninja_build_whole_and_shows_what_was_stopped() {
    alone(|| {
        let answers = |tool: &str| std::process::Command::new(tool).arg("--version").output();
        for tool in ["cmake", "ninja", "c++"] {
            let Ok(version) = answers(tool) else {
                return eprintln!(
                    "skipped: ctrl_c_ends_a_cmake_and_ninja_build_whole_and_shows_what_was_stopped: no {tool} here"
                );
            };
            if tool == "c++" && said(&version).0.contains("clang") {
                return eprintln!(
                    "skipped: clang's driver compiles in its own process; this test looks for gcc's cc1plus"
                );
            }
        }
        let place = Place::new();
        let shop = Shop::open(&place);
        shop.recipe("cmake-built", CMAKE, "");
        for rung in ["pid-namespace", "pinned-group"] {
            let daemon = shop.hive(&place, &["--containment", rung]);
            let mut command = place.command(&["--queen", &daemon.url(), "worker", "install", "cmake-built"]);
            let keeper = command
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let compilers = until("two compilers are at work", || match compilers_of(&place) {
                running if running.len() >= 2 => Ok(running),
                running => Err(format!("{running:?}")),
            });
            // What a killed compiler leaves lies in the build's own folder, and goes with it.
            let builds = place.state().join("builds");
            for (_, written) in &compilers {
                assert!(written.starts_with(&builds) && written.exists(), "{rung}: {}", written.display());
            }
            for tool in ["cmake --build", "ninja"] {
                assert!(!place.processes_of(tool).is_empty(), "{rung}: {tool}: {:?}", place.processes());
            }
            let begun = Instant::now();
            signal_pid(keeper.id() as i32, Signal::INT);
            let output = keeper.wait_with_output().unwrap();
            let took = begun.elapsed();
            let (_, stderr) = said(&output);
            assert_eq!(output.status.code(), Some(130), "{rung}: {stderr}");
            assert!(took < CANCELLED_MAX, "{rung}: {took:?}");
            is_clean(&place, &[&daemon, &shop.daemon], "cmake-built", Duration::ZERO);
            for (_, written) in &compilers {
                assert!(!written.exists(), "{rung}: {}", written.display());
            }
            let receipt = stderr.lines().find(|line| line.contains("cancelled: ")).expect(&stderr);
            println!("{receipt}, {took:.1?} after Ctrl-C");
            // How many depends on who waited for whom in the last moment; the rung is the one that was asked for.
            assert!(receipt.contains(&format!("processes ended ({}", rung.replace('-', " "))), "{receipt}");
            assert!(receipt.contains("of files removed"), "{receipt}");
            daemon.terminate();
        }
    });
}

#[test]
fn an_engine_that_cannot_be_started_leaves_no_key() {
    alone(|| {
        let place = Place::new();
        let shop = Shop::open(&place);
        let serve = "[serve]\nargv = [\"--port\", \"{prot}\"]\nhealth = \"/health\"\napi = \"openai\"\n";
        shop.recipe("wrong", QUICK, serve);
        let daemon = shop.hive(&place, &[]);
        daemon.follow(&install(&daemon, "wrong")).done();
        let model = daemon.register(&place, None);
        let spawn = daemon.job(&json!({"operation": "worker_spawn", "model": model, "worker": "wrong"}));
        assert_eq!(spawn.find("error").unwrap()["code"], "RECIPE_INVALID", "{spawn:?}");
        let left = folders_below(&place.state().join("run"));
        assert!(left.iter().all(|path| path.extension().is_none()), "{left:?}");
    });
}

#[test]
fn two_who_ask_for_one_engine_share_one_build_and_one_of_them_may_leave() {
    alone(|| {
        let place = Place::new();
        let shop = Shop::open(&place);
        shop.waiting_recipe("slow");
        let daemon = shop.hive(&place, &[]);
        let first = install(&daemon, "slow");
        has_told(&daemon, &first, "waiting");
        let second = install(&daemon, "slow");
        has_told(&daemon, &second, "joining");
        has_told(&daemon, &second, "waiting");
        let left = daemon.post(&format!("/v1/jobs/{first}/cancel"), &json!({})).json();
        assert_eq!(left["receipt"]["processes_reaped"], 0, "{left}");
        go_on(&place);
        assert_eq!(daemon.follow(&second).done()["worker_id"], "slow");
    });
}

#[test]
fn what_fails_is_told_with_its_phase_its_code_its_last_lines_and_its_log() {
    let place = Place::new();
    let shop = Shop::open(&place);
    shop.recipe("broken", "build() { echo first; echo last words >&2; (exit 7); }\npackage() { :; }", "");
    shop.recipe("elsewhere", QUICK, "");
    let toml = shop.folder.join("elsewhere/worker.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    std::fs::write(&toml, text.replace(r#"platforms = ["linux", "macos"]"#, r#"platforms = ["plan9"]"#))
        .unwrap();
    let daemon = shop.hive(&place, &[]);
    let failure = |id: &str| {
        let job = daemon.job(&json!({"operation": "worker_install", "worker_id": id}));
        let error = job.find("error").unwrap_or_else(|| panic!("{job:?}")).clone();
        serde_json::from_value::<rbee::wire::Failure>(error).unwrap()
    };
    let broken = failure("broken");
    assert_eq!(broken.code, Code::BuildFailed);
    assert_eq!(
        (&broken.details["phase"], &broken.details["exit_code"]),
        (&json!("build"), &json!(7)),
        "{broken:?}"
    );
    assert!(broken.details["last_lines"].to_string().contains("last words"), "{broken:?}");
    let log = broken.details["log"].as_str().unwrap();
    assert!(std::fs::read_to_string(log).unwrap().contains("first"));
    assert_eq!(failure("elsewhere").code, Code::PlatformUnsupported);
    assert_eq!(failure("unheard-of").code, Code::WorkerNotFound);
    is_clean(&place, &[&daemon, &shop.daemon], "broken", Duration::ZERO);
}

#[test]
fn what_a_build_would_miss_is_said_before_it_begins_and_how_to_get_it() {
    let place = Place::new();
    // A node where nothing is to be found.
    let daemon = Daemon::try_start(&place, "serve", &["--name", "bare"], &[("PATH", "/nowhere")]).unwrap();
    let job = daemon.job(&json!({"operation": "worker_install", "worker_id": "cpu"}));
    let error = job.find("error").unwrap_or_else(|| panic!("{job:?}")).clone();
    let failure = serde_json::from_value::<rbee::wire::Failure>(error).unwrap();
    assert_eq!(failure.code, Code::MissingDependencies);
    assert!(failure.message.contains("cargo") && failure.message.contains("rustup"), "{}", failure.message);
    assert!(failure.details["missing"].to_string().contains("cmake"), "{failure:?}");
    assert!(folders_below(&place.state().join("builds")).is_empty());
}

#[test]
fn a_failed_build_of_a_newer_version_leaves_the_older_one_in_use() {
    let place = Place::new();
    let shop = Shop::open(&place);
    shop.recipe_of("engine", "1.0", QUICK, "");
    let daemon = shop.hive(&place, &[]);
    let operation = json!({"operation": "worker_install", "worker_id": "engine"});
    let installed = |daemon: &Daemon| {
        let list = daemon.job(&json!({"operation": "worker_list_installed"})).done().clone();
        list["workers"][0]["version"].as_str().map(str::to_owned)
    };
    daemon.job(&operation).done();
    shop.recipe_of("engine", "2.0", "package() { false; }", "");
    assert!(matches!(daemon.job(&operation).terminator, Terminator::Error(_)));
    assert_eq!(installed(&daemon).as_deref(), Some("1.0-1"));
    shop.recipe_of("engine", "2.0", QUICK, "");
    daemon.job(&operation).done();
    assert_eq!(installed(&daemon).as_deref(), Some("2.0-1"));
    let versions = folders_below(&place.state().join("workers/engine"));
    assert_eq!(versions.len(), 2, "the version in use and what leads to it: {versions:?}");
}

/// The most that a hive may grow by while a build floods it.
const GROWTH_MAX: u64 = 16 << 20;

fn resident_bytes(pid: i32) -> u64 {
    rbee::process::memory_bytes(pid).unwrap_or_default()
}

#[test]
fn a_build_that_floods_its_log_does_not_grow_the_hive() {
    alone(|| {
        let is_full = std::env::var("RBEE_FLOOD").is_ok_and(|how| how == "full");
        let (line, lines) = if is_full { (1_u64 << 30, 3_000_000_000) } else { (64 << 20, 200_000_000_u64) };
        let place = Place::new();
        let shop = Shop::open(&place);
        let flood = format!(
            "build() {{\n  head -c {line} /dev/zero | tr '\\0' x; echo\n  yes 'one of many lines that nobody reads' | head -c {lines}\n}}\n{QUICK}"
        );
        shop.recipe("flood", &flood, "");
        let url = shop.daemon.url();
        let daemon = Daemon::start(&place, "hive serve", &["--catalog", &url]);
        let before = resident_bytes(daemon.pid());
        let begun = Instant::now();
        let job = install(&daemon, "flood");
        let mut most = before;
        let mut stream = daemon.stream_of(&job);
        while let Ok(Some(event)) = stream.next() {
            most = most.max(resident_bytes(daemon.pid()));
            if event.name.is_none() {
                assert_eq!(event.data, "[DONE]");
            }
        }
        let took = begun.elapsed();
        let rate = (line + lines) as f64 / took.as_secs_f64() / 1e6;
        println!(
            "{} MB in {took:.1?}, {rate:.0} MB/s; the hive grew by {} KiB from {} KiB",
            (line + lines) / 1_000_000,
            (most - before) >> 10,
            before >> 10
        );
        assert!(most - before <= GROWTH_MAX, "it grew by {} KiB", (most - before) >> 10);
        let logs = folders_below(&place.state().join("logs"));
        let kept: u64 = logs.iter().filter_map(|log| log.metadata().ok()).map(|log| log.len()).sum();
        assert!(kept <= 33 << 20, "{kept} bytes of logs");
    });
}

#[test]
fn a_catalog_that_is_down_is_named_and_the_recipes_inside_still_list() {
    let place = Place::new();
    let daemon = Daemon::start(&place, "serve", &["--name", "here", "--catalog", "http://127.0.0.1:9"]);
    let output = place.rbee(&["--queen", &daemon.url(), "worker", "available"]);
    let (stdout, stderr) = said(&output);
    assert!(output.status.success() && stdout.contains("llm-worker-rbee-cpu"), "{stdout}{stderr}");
    assert!(stderr.contains("http://127.0.0.1:9"), "{stderr}");
}
