//! Which kernels come out of a build: what the program says of itself against what the processor has, and the recipe of
//! the native worker, whose kernels are to use all of it. cmake leaves kernels out without a word when SOURCE_DATE_EPOCH is
//! set or a flag gets lost; a model then answers, 28 times slower.
//!
//! RBEE_NATIVE=1 builds the native worker whole, through the product: some ten minutes, and crates from the network.

#![cfg(target_os = "linux")]

use crate::support::node::{Daemon, Place, RBEE, said};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const CPU: &str = "llm-worker-rbee-cpu";
/// ggml's names, and what Linux calls the same.
const NAMES: [(&str, &str); 10] = [
    ("avx", "avx"),
    ("avx2", "avx2"),
    ("bmi2", "bmi2"),
    ("f16c", "f16c"),
    ("fma", "fma"),
    ("avx_vnni", "avx_vnni"),
    ("avx512", "avx512f"),
    ("avx512_vbmi", "avx512vbmi"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512_bf16", "avx512_bf16"),
];
/// What .cargo/config.toml asks of the portable build.
const FLOOR: [&str; 5] = ["avx", "avx2", "bmi2", "f16c", "fma"];
/// Of ggml's kernels, files that compile in a second or two, and what is found in them where the processor has it: one of
/// these sets, so this instruction.
const OBJECTS: [&str; 3] = ["ggml-cpu/ggml-cpu.o", "ggml-cpu/vec.o", "ggml-cpu/arch/x86/quants.o"];
const INSTRUCTIONS: [(&[&str], &str); 6] = [
    (&["avx2"], "%ymm"),
    (&["fma"], "vfmadd"),
    (&["f16c"], "vcvtph2ps"),
    (&["avx512"], "%zmm"),
    (&["avx512_vnni", "avx_vnni"], "vpdpbusd"),
    (&["avx512_bf16"], "vdpbf16ps"),
];

/// What the kernel says that this processor has, of what ggml knows; `None` where this is no x86.
fn processor() -> Option<BTreeSet<&'static str>> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let line =
        text.lines().find(|line| line.starts_with("flags")).filter(|_| cfg!(target_arch = "x86_64"))?;
    let flags: Vec<&str> = line.split_ascii_whitespace().collect();
    Some(NAMES.iter().filter(|(_, flag)| flags.contains(flag)).map(|(name, _)| *name).collect())
}

/// What a program says of its kernels: what they use, and what else there would be.
fn told_by(program: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let output = Command::new(program).args(["version", "--json"]).env_clear().output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let set = |key: &str| -> BTreeSet<String> {
        told[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    (set("kernels"), set("kernels_unused"))
}

#[test]
fn the_portable_file_uses_what_its_floor_promises_and_says_what_else_there_is() {
    let Some(here) = processor() else { return eprintln!("skipped: this is no x86") };
    let (used, unused) = told_by(Path::new(RBEE));
    assert_eq!(used.iter().map(String::as_str).collect::<Vec<_>>(), FLOOR);
    let unused: BTreeSet<&str> = unused.iter().map(String::as_str).collect();
    assert_eq!(unused, here.into_iter().filter(|name| !FLOOR.contains(name)).collect());
}

fn program(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// What stands in for cargo: tells what it was asked and with which environment, and makes a program that says of its
/// kernels what a lesser compiler's would.
const CARGO: &str = r#"#!/bin/sh
echo "asked: $*"
[ "$1" = build ] || exit 0
env | sed 's/^/seen: /'
mkdir -p target/host/release
printf '#!/bin/sh\necho "rbee 1"\necho "kernels: avx"\necho "this processor also has: avx9 avx10"\n' > target/host/release/rbee
chmod 755 target/host/release/rbee
"#;

/// What the recipe of the tree makes of a cargo that only looks.
struct Seen {
    asked: Vec<String>,
    environment: BTreeMap<String, String>,
    /// By the job, for a person.
    warnings: Vec<String>,
}

/// The recipe built through the product; `None` where the tools are not there that it wants.
fn seen_by_cargo() -> Option<Seen> {
    let place = Place::new();
    let tools = place.path("tools");
    std::fs::create_dir(&tools).unwrap();
    program(&tools.join("cargo"), CARGO);
    program(&tools.join("rustc"), "#!/bin/sh\necho host: here\n");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    // What would lead a build elsewhere: none of it may reach this one.
    let misleading = [
        ("PATH", path.as_str()),
        ("SOURCE_DATE_EPOCH", "1"),
        ("RUSTFLAGS", "-Ctarget-cpu=x86-64"),
        ("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-cpu=x86-64"),
        ("CARGO_BUILD_RUSTFLAGS", "-Ctarget-cpu=x86-64"),
        ("GGML_NATIVE", "OFF"),
        ("GGML_AVX2", "OFF"),
        ("CMAKE_C_FLAGS", "-mno-avx"),
        ("CFLAGS", "-mno-avx"),
    ];
    let daemon = Daemon::try_start(&place, "serve", &["--name", "here"], &misleading).unwrap();
    let job = daemon.job(&json!({"operation": "worker_install", "worker_id": "cpu"}));
    if let Some(failure) = job.find("error").filter(|error| error["code"] == "MISSING_DEPENDENCIES") {
        eprintln!("skipped: {}", failure["message"]);
        return None;
    }
    assert_eq!(job.done()["worker_id"], CPU);
    let lines = job.events.iter().filter(|(name, _)| name == "log").map(|(_, log)| &log["line"]);
    let lines: Vec<&str> = lines.map(|line| line.as_str().unwrap()).collect();
    let after =
        |word: &'static str| lines.iter().filter_map(move |line| line.strip_prefix(word)).map(str::to_owned);
    let environment = after("seen: ").filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let narrated = job.events.iter().filter(|(name, data)| name == "narration" && data["level"] == "warn");
    let warnings = narrated.map(|(_, data)| data["message"].as_str().unwrap().to_owned()).collect();
    Some(Seen { asked: after("asked: ").collect(), environment: environment.collect(), warnings })
}

/// The build script of the crate that holds llama.cpp, as cargo compiled it for this very program, and the crate's folder.
fn build_script() -> Option<(PathBuf, PathBuf)> {
    let output = Path::new(RBEE).parent()?;
    let builds = output.parent()?.parent()?.join(output.file_name()?).join("build");
    let folders = builds.read_dir().ok()?.flatten().map(|entry| entry.path());
    let ours =
        folders.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("llama-cpp-sys-2-"));
    let scripts = ours.map(|folder| folder.join("build-script-build")).filter(|path| path.is_file());
    let script = scripts.max_by_key(|path| path.metadata().unwrap().modified().unwrap())?;
    // What it was made from lies beside it: `target: file file`.
    let mut beside = script.parent()?.read_dir().ok()?.flatten().map(|entry| entry.path());
    let facts =
        std::fs::read_to_string(beside.find(|path| path.extension().is_some_and(|e| e == "d"))?).ok()?;
    let source = facts.split_whitespace().find(|word| word.ends_with("/build.rs"))?;
    Some((script, Path::new(source).parent()?.to_owned()))
}

/// Stands in for cmake: configures as it is told, and compiles a few files instead of all.
fn cmake(real: &Path) -> String {
    format!(
        "#!/bin/sh\ncase $1 in --build) make -C ggml/src {}; exit 1;; esac\nexec {} \"$@\"\n",
        OBJECTS.join(" "),
        real.display()
    )
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// The instructions of ggml's kernels as this environment of cargo's makes them, as text.
fn kernels_of(environment: &BTreeMap<String, String>) -> Option<String> {
    let skip = |why: &str| eprintln!("skipped: the kernels of the native recipe: {why}");
    let Some((script, folder)) = build_script() else {
        skip("the build script of llama-cpp-sys-2 is not beside this program");
        return None;
    };
    let (Some(real), Some(objdump)) = (on_path("cmake"), on_path("objdump")) else {
        skip("cmake or objdump is missing");
        return None;
    };
    let work = tempfile::tempdir().unwrap();
    let (tools, out) = (work.path().join("tools"), work.path().join("target/build/crate/out"));
    std::fs::create_dir(&tools).unwrap();
    std::fs::create_dir_all(&out).unwrap();
    program(&tools.join("cmake"), &cmake(&real));
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = Command::new(&script);
    // As cargo runs it: the settings of the tree, what the environment makes of them, what it says of the target.
    command.current_dir(&folder).env_clear().envs(environment);
    let settings = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(".cargo/config.toml"));
    let settings: toml::Table = settings.unwrap().parse().unwrap();
    for (name, value) in settings["env"].as_table().unwrap() {
        command.env(name, value.as_str().unwrap());
    }
    let flags: Vec<&str> =
        environment.get("RUSTFLAGS").map(|flags| flags.split(' ').collect()).unwrap_or_default();
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    command.env("PATH", format!("{}:{}", tools.display(), std::env::var("PATH").unwrap()));
    command.env("TMPDIR", work.path()).env("HOME", work.path());
    command.env("CARGO_MANIFEST_DIR", &folder).env("OUT_DIR", &out);
    command.envs([
        ("TARGET", host.as_str()),
        ("HOST", &host),
        ("NUM_JOBS", "2"),
        ("PROFILE", "release"),
        ("DEBUG", "false"),
    ]);
    // Of the little that is not cmake's, nothing is kept: it need not be fast.
    command.env("OPT_LEVEL", "0");
    command.envs([("CARGO_CFG_TARGET_ARCH", std::env::consts::ARCH), ("CARGO_CFG_TARGET_OS", "linux")]);
    command.envs([("CARGO_CFG_TARGET_ENV", "gnu"), ("CARGO_CFG_TARGET_FEATURE", "crt-static")]);
    let output = command.output().unwrap();
    let compiled = out.join("build/ggml/src/CMakeFiles/ggml-cpu.dir");
    let mut text = String::new();
    for object in OBJECTS {
        let stem = object.strip_suffix(".o").unwrap();
        let paths = ["c", "cpp"].map(|language| compiled.join(format!("{stem}.{language}.o")));
        let path = paths.iter().find(|path| path.is_file());
        let path = path.unwrap_or_else(|| panic!("{object} was not compiled: {}", said(&output).1));
        let listing = Command::new(&objdump).args(["-d", "--no-show-raw-insn"]).arg(path).output().unwrap();
        text.push_str(&said(&listing).0);
    }
    Some(text)
}

#[test]
fn the_native_recipe_makes_kernels_of_all_that_this_processor_has() {
    let Some(Seen { asked, environment, warnings }) = seen_by_cargo() else { return };
    assert_eq!(asked, ["fetch --locked --target here", "build --frozen --release --bin rbee"]);
    assert_eq!(environment["RUSTFLAGS"], "-Ctarget-cpu=native -Ctarget-feature=+crt-static");
    let leads_elsewhere = |name: &&String| {
        ["GGML_", "CMAKE_", "CARGO_ENCODED", "CARGO_BUILD"].iter().any(|start| name.starts_with(start))
            || ["SOURCE_DATE_EPOCH", "CFLAGS", "CXXFLAGS"].contains(&name.as_str())
    };
    let leading: Vec<&String> = environment.keys().filter(leads_elsewhere).collect();
    assert!(leading.is_empty(), "{leading:?}");
    // What came out is asked of the program that was built, and less than there could be is a warning.
    let told = warnings.iter().find(|warning| warning.starts_with("check(): "));
    let told = told.unwrap_or_else(|| panic!("{warnings:?}"));
    assert!(told.ends_with("avx9 avx10") && told.contains("kernels"), "{told}");

    let Some(here) = processor() else { return eprintln!("skipped: this is no x86") };
    let Some(kernels) = kernels_of(&environment) else { return };
    for (sets, instruction) in INSTRUCTIONS {
        let count = kernels.lines().filter(|line| line.contains(instruction)).count();
        println!(
            "{instruction}: {count} lines; {sets:?} here: {}",
            sets.iter().any(|set| here.contains(set))
        );
        assert_eq!(count > 0, sets.iter().any(|set| here.contains(set)), "{instruction} for {sets:?}");
    }
}

#[test]
fn the_native_worker_installed_whole_uses_all_that_this_processor_has() {
    if std::env::var_os("RBEE_NATIVE").is_none() {
        return eprintln!("skipped: the whole native build takes some ten minutes; RBEE_NATIVE=1 does it");
    }
    let Some(here) = processor() else { return eprintln!("skipped: this is no x86") };
    let place = Place::new();
    // Crates come by the person's own settings: mirrors and proxies.
    let settings = std::env::vars().filter(|(name, _)| name != "HOME" && !name.starts_with("RBEE_"));
    let settings: Vec<(String, String)> = settings.collect();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let daemon = Daemon::try_start(&place, "serve", &["--name", "here"], &settings).unwrap();
    let output = place.rbee(&["--queen", &daemon.url(), "worker", "install", "cpu"]);
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{stdout}{stderr}");
    let (used, unused) =
        told_by(&place.state().join("workers").join(CPU).join("current/bin/llm-worker-rbee"));
    println!("used: {used:?}; unused: {unused:?}");
    assert_eq!(used.iter().map(String::as_str).collect::<BTreeSet<_>>(), here);
    assert!(unused.is_empty(), "{unused:?}");
}
