//! Builds as jobs have them: ended at any moment, told how they failed, kept from what is not theirs, installed whole.

use super::bench::{Bench, has, serve};
use crate::support::node::within;
use crate::support::origin::Folder;
use crate::support::pidns;
use crate::support::survivors::block_on;
use rbee::pkgbuild::{self, Declared, Ended, Order, Origin};
use rbee::wire::job::{JobEvent, Receipt};
use rbee::wire::{Code, Failure};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The grace and what ending takes besides.
const CANCEL_MAX: Duration = Duration::from_secs(3);
const GONE_MAX: Duration = Duration::from_secs(20);
const HOLD: &str = "RBEE_TEST_HOLD_BUILD";
const HEADER: &str = "pkgname=x\npkgver=1.0\npkgrel=1\narch=(any)\nlicense=(MIT)\n";
const PROGRAM: &str = "package() { printf '#!/bin/sh\\necho \"I am %s\"\\n' $pkgver > p; install -Dm755 p \"$pkgdir/bin/x\"; }\n";

/// Hides in every way there is and never ends.
const STUBBORN: &str = r#"
prepare() { mkdir -p deep/er; echo x > deep/er/file; chmod 000 deep/er; }
build() {
  trap '' TERM INT HUP
  setsid sleep 1000 &
  (setsid bash -c 'trap "" TERM; sleep 1000' >/dev/null 2>&1 &)
  nohup sleep 1000 >/dev/null 2>&1 &
  exec 1>&- 2>&- || true
  sleep 1000
}
package() { :; }
"#;

fn text(rest: &str) -> String {
    format!("{HEADER}{rest}")
}

fn here() -> &'static Path {
    Path::new("/")
}

/// Living processes of this namespace but its first and this one.
fn others() -> Vec<String> {
    let me = std::process::id().to_string();
    let names =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().into_string().ok());
    let pids = names.filter(|name| name.parse::<u32>().is_ok() && *name != "1" && *name != me);
    let lives = |pid: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().unwrap_or_default().trim_start().to_owned();
        !state.is_empty() && !state.starts_with(['Z', 'X'])
    };
    pids.filter(lives).collect()
}

fn nobody_is_left() {
    within(GONE_MAX, "all processes of the build to be gone", || match others() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
}

async fn failure(bench: &Bench, order: Order) -> Failure {
    match bench.build(order, &CancellationToken::new()).await {
        Err(failure) => failure,
        Ok(Ended::Built(_)) => panic!("it was built:\n{}", bench.told()),
        Ok(Ended::Cancelled(_)) => panic!("nobody cancelled"),
    }
}

fn cancelled(ended: Result<Ended, Failure>) -> Receipt {
    match ended {
        Ok(Ended::Cancelled(receipt)) => receipt,
        Ok(Ended::Built(_)) => panic!("it was built"),
        Err(failure) => panic!("{failure:?}"),
    }
}

/// The last thing that the stubborn build tells.
fn build_begins(event: &JobEvent) -> bool {
    matches!(event, JobEvent::Log { line, .. } if line.contains("Starting build"))
}

/// Cancelled when the n-th thing is told, for every n until the build sleeps.
#[test]
fn a_cancel_at_any_moment_leaves_nothing() {
    if !pidns::inside(module_path!(), "a_cancel_at_any_moment_leaves_nothing") {
        return;
    }
    for moment in 0.. {
        let bench = Bench::new();
        let (cancel, seen, is_last) = (CancellationToken::new(), AtomicUsize::new(0), AtomicBool::new(false));
        let tell = |event: JobEvent| {
            let is_now = seen.fetch_add(1, Ordering::Relaxed) == moment;
            if is_now || build_begins(&event) {
                is_last.fetch_or(is_now && build_begins(&event), Ordering::Relaxed);
                cancel.cancel();
            }
        };
        let order = bench.order(&text(STUBBORN), here(), Vec::new());
        let receipt = cancelled(block_on(pkgbuild::build(order, &tell, &cancel, &CancellationToken::new())));
        assert!(receipt.clean, "moment {moment}: {receipt:?}");
        assert!(receipt.bytes_removed > 0, "moment {moment}: {receipt:?}");
        assert!(bench.is_clean(), "moment {moment}");
        nobody_is_left();
        if is_last.load(Ordering::Relaxed) {
            assert!(moment >= 3, "a version, the walls and two phases are told before: {moment}");
            return;
        }
    }
}

#[test]
fn a_build_that_nobody_awaits_any_more_leaves_nothing() {
    if !pidns::inside(module_path!(), "a_build_that_nobody_awaits_any_more_leaves_nothing") {
        return;
    }
    let bench = Bench::new();
    let (begun, never) = (CancellationToken::new(), CancellationToken::new());
    let tell = |event: JobEvent| {
        if build_begins(&event) {
            begun.cancel();
        }
    };
    let order = bench.order(&text(STUBBORN), here(), Vec::new());
    block_on(async {
        tokio::select! {
            _ = pkgbuild::build(order, &tell, &never, &never) => panic!("it does not end by itself"),
            () = begun.cancelled() => {}
        }
    });
    nobody_is_left();
    assert!(bench.is_clean());
}

#[test]
fn a_cancel_in_a_stubborn_phase_takes_its_grace_and_a_hurry_none() {
    if !pidns::inside(module_path!(), "a_cancel_in_a_stubborn_phase_takes_its_grace_and_a_hurry_none") {
        return;
    }
    for is_hurried in [false, true] {
        let bench = Bench::new();
        let (cancel, hurry) = (CancellationToken::new(), CancellationToken::new());
        let asked = std::sync::Mutex::new(None);
        let (token, hurried, when) = (&cancel, &hurry, &asked);
        let tell = move |event: JobEvent| {
            if build_begins(&event) {
                *when.lock().unwrap() = Some(Instant::now());
                if is_hurried {
                    hurried.cancel();
                }
                token.cancel();
            }
        };
        let order = bench.order(&text(STUBBORN), here(), Vec::new());
        let receipt = cancelled(block_on(pkgbuild::build(order, &tell, &cancel, &hurry)));
        let took = asked.lock().unwrap().expect("build() began").elapsed();
        assert!(receipt.clean && receipt.processes_reaped > 0, "{receipt:?}");
        assert!(took < CANCEL_MAX, "hurried {is_hurried}: {took:?}");
        assert!(bench.is_clean());
        nobody_is_left();
    }
}

/// A server that has nothing to say.
struct Silent;

impl Origin for Silent {
    fn file<'a>(
        &'a self,
        _name: &'a str,
        _to: &'a Path,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(std::future::pending())
    }
}

#[test]
fn a_cancel_before_the_start_and_in_a_fetch_leaves_nothing() {
    if !pidns::inside(module_path!(), "a_cancel_before_the_start_and_in_a_fetch_leaves_nothing") {
        return;
    }
    let bench = Bench::new();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let receipt = cancelled(block_on(bench.build(bench.order(&text(PROGRAM), here(), Vec::new()), &cancel)));
    assert_eq!(receipt, Receipt::default());
    assert!(bench.folder.path().read_dir().unwrap().next().is_none());

    let cancel = CancellationToken::new();
    let source = "source=(a.txt)\nsha256sums=(SKIP)\n";
    let mut order = bench.order(&text(&format!("{source}{PROGRAM}")), here(), Vec::new());
    order.origin = Arc::new(Silent);
    let ended = block_on(async {
        let told = async {
            // The build waits for the file by now, or is about to; the cancel is right in both.
            while !bench.told().contains("x 1.0-1") {
                tokio::task::yield_now().await;
            }
            cancel.cancel();
        };
        tokio::join!(bench.build(order, &cancel), told).0
    });
    assert!(cancelled(ended).clean);
    assert!(bench.is_clean());
    nobody_is_left();
}

#[test]
#[ignore = "not a test: the hive that another starts to kill it"]
fn builder() {
    let Ok(folder) = std::env::var(HOLD) else { return };
    let bench = Bench::new();
    let mut order = bench.order(&text(STUBBORN), here(), Vec::new());
    order.work = PathBuf::from(&folder).join("builds/1");
    order.processes = PathBuf::from(&folder).join("p");
    let tell = |event: JobEvent| {
        if build_begins(&event) {
            println!("building");
        }
    };
    let never = CancellationToken::new();
    let ended = block_on(pkgbuild::build(order, &tell, &never, &never));
    panic!("it ended: {}", ended.is_ok());
}

#[test]
fn a_hive_that_is_killed_leaves_neither_processes_nor_a_folder() {
    if !pidns::inside(module_path!(), "a_hive_that_is_killed_leaves_neither_processes_nor_a_folder") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let name = format!("{}::builder", module_path!().split_once("::").unwrap().1);
    let mut hive = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--ignored", "--nocapture", "--test-threads=1"])
        .env(HOLD, folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(hive.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("building")), "the build begins");
    let work = folder.path().join("builds/1");
    assert!(work.exists());
    hive.kill().unwrap();
    hive.wait().unwrap();
    nobody_is_left();
    within(GONE_MAX, "the work folder to be gone", || match work.exists() {
        false => Ok(()),
        true => Err("it is there".to_owned()),
    });
    // What a shim that was killed as well would have left.
    std::fs::create_dir_all(work.join("start/src")).unwrap();
    std::fs::write(work.join("start/src/file"), "12345").unwrap();
    assert!(pkgbuild::sweep_work(&folder.path().join("builds")) >= 5);
    assert!(folder.path().join("builds").read_dir().unwrap().next().is_none());
}

#[test]
fn a_failure_tells_its_phase_its_code_its_last_lines_and_the_log() {
    if !pidns::inside(module_path!(), "a_failure_tells_its_phase_its_code_its_last_lines_and_the_log") {
        return;
    }
    block_on(async {
        let bench = Bench::new();
        let recipe =
            "prepare() { echo preparing; }\nbuild() { seq 1 100; echo 'the reason' >&2; return 42; }\n";
        let order = bench.order(&text(&format!("{recipe}{PROGRAM}")), here(), Vec::new());
        let log = order.log.clone();
        let failure = failure(&bench, order).await;
        assert_eq!(failure.code, Code::BuildFailed);
        assert_eq!((&failure.details["phase"], &failure.details["exit_code"]), (&"build".into(), &42.into()));
        let last = failure.details["last_lines"].as_array().unwrap();
        assert!(last.len() <= 20 && last.iter().any(|line| line == "the reason"), "{last:?}");
        assert_eq!(failure.details["log"], log.to_str().unwrap());
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(
            text.contains("preparing") && text.contains("\n57\n") && text.contains("the reason"),
            "{text}"
        );
        let told = bench.told();
        assert!(told.contains("prepare| preparing") && told.contains("build| 57"), "{told}");
        assert!(told.contains("build: walls: "), "{told}");
        assert!(bench.is_clean());
    });
    nobody_is_left();
}

#[test]
fn reading_a_recipe_is_bounded_in_time_memory_output_and_reach() {
    if !pidns::inside(module_path!(), "reading_a_recipe_is_bounded_in_time_memory_output_and_reach") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let address = serve(folder.path().to_owned()).replace(':', "/");
    let outside = folder.path().join("outside");
    let cases = [
        ("turns for ever", "while :; do :; done".to_owned()),
        ("sleeps for ever", "sleep 1000".to_owned()),
        ("eats memory", "x=$(printf '%500000000s' y); [[ -z $x ]]".to_owned()),
        (
            "declares too much",
            "x=$(printf '%60000s' y); depends=(); for i in {1..40}; do depends+=(\"$x\"); done".to_owned(),
        ),
        ("writes to the PKGBUILD", "echo >> PKGBUILD".to_owned()),
        ("writes elsewhere", format!("echo > {}", outside.display())),
        ("reaches the network", format!("exec 9<>/dev/tcp/{address}")),
        ("links our files away", "ln -sf /nowhere $TMPDIR/../ours/driver.sh".to_owned()),
        ("leaves", "exit 0".to_owned()),
        ("fails", "false".to_owned()),
    ];
    let check = |name: &str, line: &str| {
        let bench = Bench::new();
        let began = Instant::now();
        let recipe = text(&format!("{PROGRAM}{line}\n"));
        let failure = block_on(failure(&bench, bench.order(&recipe, here(), Vec::new())));
        assert_eq!(failure.code, Code::RecipeInvalid, "{name}: {failure:?}");
        assert!(began.elapsed() < GONE_MAX, "{name}: {:?}", began.elapsed());
        assert!(bench.is_clean(), "{name}");
        println!("{name}: {failure}");
    };
    std::thread::scope(|scope| {
        for (name, line) in &cases {
            scope.spawn(move || check(name, line));
        }
    });
    assert!(!outside.exists());
    nobody_is_left();
}

#[test]
fn a_recipe_sees_no_secret_and_no_home() {
    if !pidns::inside(module_path!(), "a_recipe_sees_no_secret_and_no_home") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(home.path().join(".cargo")).unwrap();
    std::fs::write(home.path().join(".cargo/credentials.toml"), "token = 'canary'\n").unwrap();
    std::fs::write(home.path().join("key"), "canary").unwrap();
    let recipe = format!(
        "_look() {{ env; cat {0}/key {0}/.cargo/credentials.toml ~/key /proc/$PPID/environ || true; ls {0} || true; }}\n\
         _look\nbuild() {{ _look; cat /etc/shadow | wc -c; }}\n{PROGRAM}",
        home.path().display()
    );
    let bench = Bench::new();
    let mut order = bench.order(&text(&recipe), here(), Vec::new());
    order.env.retain(|(name, _)| name == "PATH");
    let secrets = [
        ("HF_TOKEN", "canary"),
        ("RBEE_API_KEY", "canary"),
        ("CARGO_REGISTRY_TOKEN", "canary"),
        ("HTTPS_PROXY", "http://me:canary@proxy/"),
    ];
    order.env.extend(secrets.map(|(name, value)| (name.to_owned(), value.to_owned())));
    order.env.push(("HOME".into(), home.path().to_str().unwrap().to_owned()));
    let log = order.log.clone();
    let ended = block_on(bench.build(order, &CancellationToken::new())).unwrap();
    let Ended::Built(built) = ended else { panic!("nobody cancelled") };
    let all = format!("{}{}", bench.told(), std::fs::read_to_string(log).unwrap());
    assert!(all.contains("CARCH="), "the environment was told: {all}");
    assert!(!all.contains("canary"), "{all}");
    assert!(!all.contains("build| key"), "{all}");
    drop(built);
    assert!(bench.is_clean());
}

#[test]
fn only_prepare_reaches_the_network_and_only_where_the_recipe_says_so() {
    if !pidns::inside(module_path!(), "only_prepare_reaches_the_network_and_only_where_the_recipe_says_so") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let address = serve(folder.path().to_owned()).replace(':', "/");
    let connect = format!("exec 9<>/dev/tcp/{address}");
    let asked = "options=('network=prepare')\n";
    for (recipe, fails_in) in [
        (format!("{asked}prepare() {{ {connect}; }}\n{PROGRAM}"), None),
        (format!("{asked}prepare() {{ :; }}\nbuild() {{ {connect}; }}\n{PROGRAM}"), Some("build")),
        (format!("prepare() {{ {connect}; }}\n{PROGRAM}"), Some("prepare")),
        (
            format!("{asked}{PROGRAM}\n{}", PROGRAM.replace("{ printf", &format!("{{ {connect}; printf"))),
            Some("package"),
        ),
    ] {
        let bench = Bench::new();
        let ended =
            block_on(bench.build(bench.order(&text(&recipe), here(), Vec::new()), &CancellationToken::new()));
        let phase = ended.err().map(|failure| failure.details["phase"].as_str().unwrap_or("?").to_owned());
        assert_eq!(phase.as_deref(), fails_in, "{recipe}\n{}", bench.told());
        let is_told = bench.told().contains("prepare() reaches the network");
        assert_eq!(is_told, recipe.starts_with(asked) && recipe.contains("prepare()"), "{}", bench.told());
    }
}

#[test]
fn a_package_is_installed_whole_and_replaces_the_one_before() {
    if !pidns::inside(module_path!(), "a_package_is_installed_whole_and_replaces_the_one_before") {
        return;
    }
    let bench = Bench::new();
    let into = bench.folder.path().join("workers/x");
    let declared = Declared { install_path: "bin".into(), binary_name: "x".into() };
    for version in ["1.0", "1.1", "1.1"] {
        let recipe = text(PROGRAM).replace("pkgver=1.0", &format!("pkgver={version}"));
        let order = bench.order(&recipe, here(), Vec::new());
        let Ok(Ended::Built(built)) = block_on(bench.build(order, &CancellationToken::new())) else {
            panic!("it is built:\n{}", bench.told());
        };
        let told = serde_json::json!({"recipe_sha256": "abc"});
        let installed = block_on(built.install(&into, &declared, told)).unwrap();
        assert_eq!(installed.version, format!("{version}-1"));
        assert_eq!(installed.path, into.join(format!("{version}-1")));
        let said = Command::new(&installed.binary).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), format!("I am {version}\n"));
        let manifest = std::fs::read(installed.path.join(".manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["recipe_sha256"], "abc");
        assert_eq!(manifest["package_version"], format!("{version}-1"));
        assert_eq!(manifest["files"][1]["path"], "bin/x");
        assert_eq!(manifest["files"][1]["sha256"].as_str().unwrap().len(), 64);
        assert!(bench.is_clean());
        let mut names: Vec<_> =
            into.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, [format!("{version}-1"), "current".to_owned()]);
    }
    // What the recipe declares and the package does not have.
    let order = bench.order(&text(PROGRAM), here(), Vec::new());
    let Ok(Ended::Built(built)) = block_on(bench.build(order, &CancellationToken::new())) else {
        panic!("it is built:\n{}", bench.told());
    };
    let declared = Declared { install_path: "bin".into(), binary_name: "y".into() };
    let refused = block_on(built.install(&into, &declared, ())).unwrap_err();
    assert_eq!(refused.code, Code::BuildFailed);
    assert!(bench.is_clean() && into.join("current/bin/x").exists());
}

/// What a package is made of besides bash: the tools of the node, behind the walls.
#[test]
fn the_nodes_tools_work_behind_the_walls() {
    if !pidns::inside(module_path!(), "the_nodes_tools_work_behind_the_walls") {
        return;
    }
    let recipe = r#"
build() {
  if [[ -n $with_cc ]]; then
    printf '#include <stdio.h>\nint main(void) { puts("from C"); return 0; }\n' > a.c
    cc -o a a.c; ./a
  fi
  for tool in $tools; do echo "$tool: $("$tool" --version 2>&1 | head -n 1)"; done
  if [[ -n $with_cargo ]]; then
    cargo --offline init -q --vcs none --name made made
    (cd made; cargo --offline build -q; ./target/debug/made)
  fi
}
"#;
    let tools: Vec<&str> = ["make", "cmake", "ninja", "git", "python3", "cargo", "rustc"]
        .into_iter()
        .filter(|t| has(t))
        .collect();
    for (tool, name) in [("cc", "a C compiler"), ("cargo", "cargo")] {
        if !has(tool) {
            eprintln!("skipped: no {name} to be run behind the walls");
        }
    }
    let set = format!(
        "tools='{}'\nwith_cc={}\nwith_cargo={}\n",
        tools.join(" "),
        if has("cc") { "1" } else { "" },
        if has("cargo") && has("cc") { "1" } else { "" }
    );
    let bench = Bench::new();
    let order = bench.order(&text(&format!("{set}{recipe}{PROGRAM}")), here(), Vec::new());
    let env = order.env.clone();
    for tool in &tools {
        assert!(pkgbuild::find_tool(&env, tool).is_some(), "{tool}");
    }
    match block_on(bench.build(order, &CancellationToken::new())) {
        Ok(Ended::Built(_)) => {}
        Ok(Ended::Cancelled(_)) => panic!("nobody cancelled"),
        Err(failure) => panic!("{failure}\n{}", bench.told()),
    }
    let told = bench.told();
    println!("{told}");
    assert!(!has("cc") || told.contains("build| from C"), "{told}");
    assert!(!has("cargo") || !has("cc") || told.contains("build| Hello, world!"), "{told}");
    for tool in tools {
        assert!(told.contains(&format!("build| {tool}: ")), "{tool}: {told}");
    }
}

#[test]
fn metadata_alone_builds_nothing() {
    if !pidns::inside(module_path!(), "metadata_alone_builds_nothing") {
        return;
    }
    let bench = Bench::new();
    let recipe = "depends=(a 'b>=2')\nsource=('n::https://example.org/x.tar.gz')\nsha256sums=(SKIP)\n\
        build() {\n  local v=$(false)\n}\n";
    let order = Order {
        origin: Arc::new(Folder("/".into())),
        ..bench.order(&text(&format!("{recipe}{PROGRAM}")), here(), Vec::new())
    };
    let metadata = block_on(pkgbuild::metadata(&order)).unwrap();
    assert_eq!((metadata.version().as_str(), metadata.pkgbase.as_str()), ("1.0-1", "x"));
    assert_eq!(metadata.depends, ["a", "b>=2"]);
    assert_eq!(metadata.sources[0].sources, ["n::https://example.org/x.tar.gz"]);
    assert!(metadata.has("build") && metadata.has("package") && !metadata.has("check"));
    assert_eq!(metadata.warnings.len(), 1);
    assert!(bench.is_clean());
    nobody_is_left();
}

/// Whatever we write or change in the work folder after a recipe has run must not go where the recipe points it.
#[test]
fn a_recipe_cannot_turn_our_own_hand_against_the_person() {
    if !pidns::inside(module_path!(), "a_recipe_cannot_turn_our_own_hand_against_the_person") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (kept, folder) = (home.path().join("kept"), home.path().join("folder"));
    std::fs::write(&kept, "as it was").unwrap();
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
    let recipe = format!(
        r#"
_turn() {{
  local work=${{startdir%/start}} name
  for name in ours/driver.sh ours/owners/chown control/phase control/version control/fields cargo/config.toml; do
    rm -rf "$work/$name" || true; ln -s {0} "$work/$name" || true
  done
  for name in pkg/x pkg ours control cargo; do
    mv "$work/$name" "$work/moved" || true; ln -s {1} "$work/$name" || true
  done
  true
}}
"#,
        kept.display(),
        folder.display()
    );
    let turns = [
        format!("_turn\n{PROGRAM}"),
        format!("build() {{ _turn; }}\n{PROGRAM}"),
        format!("build() {{ :; }}\n{}", PROGRAM.replace("{ printf", "{ _turn; printf")),
    ];
    for turn in turns {
        let bench = Bench::new();
        let order = bench.order(&text(&format!("{recipe}{turn}")), here(), Vec::new());
        let ended = block_on(bench.build(order, &CancellationToken::new()));
        println!("{turn}{}\n{:?}", bench.told(), ended.as_ref().err());
        assert!(!turn.contains("build()") || bench.told().contains("Starting build()"), "{turn}");
        drop(ended);
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "as it was", "{turn}");
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{turn}");
        assert!(folder.read_dir().unwrap().next().is_none(), "{turn}");
        assert!(bench.is_clean(), "{turn}");
    }
    nobody_is_left();
}
