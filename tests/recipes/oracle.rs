//! The same recipes through makepkg and through rbee, which must come to the same end and the same files, but for the
//! differences that the table states with their reasons.

use super::bench::{Bench, Fixtures, OTHER_USER, files, has, has_other_user, is_root};
use super::table::{CASES, Case, Fate, HEADER};
use crate::support::pidns;
use crate::support::survivors::block_on;
use rbee::pkgbuild::Ended;
use rbee::wire::Failure;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

/// `all` runs makepkg for every case, a number for every so-manieth; it takes a second or two a case.
const ORACLE: &str = "RBEE_ORACLE";
/// A part of a case's name: that one alone, told in full.
const ONLY: &str = "RBEE_RECIPE";
const ORACLE_EVERY: usize = 27;
const AT_ONCE: usize = 4;
const CONFIGURATION: &str = "CARCH=$(uname -m)\nCHOST=$CARCH-pc-linux-gnu\n\
    DLAGENTS=('file::/usr/bin/curl -gqC - -o %o %u' 'http::/usr/bin/curl -gqfL -o %o %u')\nVCSCLIENTS=('git::git')\n\
    BUILDENV=(!distcc !color !ccache check !sign)\n\
    OPTIONS=(!strip docs libtool staticlibs emptydirs !zipman !purge !debug !lto)\nINTEGRITY_CHECK=(sha256)\n\
    PKGEXT=.pkg.tar\nSRCEXT=.src.tar\n";

type Files = BTreeMap<String, String>;

fn through_rbee(case: &Case, fixtures: &Fixtures) -> (Result<Files, Failure>, String) {
    let bench = Bench::new();
    let text = fixtures.fill(&format!("{HEADER}{}\n", case.text), "rbee");
    let trusted =
        vec![format!("http://{}", fixtures.http), format!("file://{}", fixtures.of("rbee").display())];
    let order = bench.order(&text, &fixtures.of("rbee"), trusted);
    let ended = block_on(bench.build(order, &CancellationToken::new()));
    let result = ended.map(|ended| match ended {
        Ended::Built(built) => files(built.folder()),
        Ended::Cancelled(_) => panic!("{}: nobody cancelled", case.name),
    });
    assert!(bench.is_clean(), "{}: the work folder is gone", case.name);
    (result, bench.told())
}

fn through_makepkg(case: &Case, fixtures: &Fixtures) -> (Result<Files, ()>, String) {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("b");
    let copied = Command::new("cp").arg("-a").args([&fixtures.of("makepkg"), &place]).status().unwrap();
    assert!(copied.success());
    // A repository beside the PKGBUILD would be taken for the download.
    std::fs::remove_dir_all(place.join("proj")).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let text = fixtures.fill(&format!("{HEADER}{}\n", case.text), "makepkg");
    std::fs::write(place.join("PKGBUILD"), text).unwrap();
    std::fs::write(place.join("x.install"), "").unwrap();
    std::fs::write(place.join("makepkg.conf"), CONFIGURATION).unwrap();
    // makepkg looks for pacman at its start, and asks it nothing here.
    std::fs::write(place.join("pacman"), "#!/bin/sh\nexit 0\n").unwrap();
    std::fs::set_permissions(place.join("pacman"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = match is_root() {
        false => Command::new("makepkg"),
        true => {
            let owner = format!("{OTHER_USER}:{OTHER_USER}");
            assert!(Command::new("chown").args(["-R", &owner]).arg(&place).status().unwrap().success());
            let mut command = Command::new("setpriv");
            command.args(["--reuid", OTHER_USER, "--regid", OTHER_USER, "--clear-groups", "makepkg"]);
            command
        }
    };
    let done = command
        .args(["-d", "-f", "-m", "--noarchive", "--config"])
        .arg(place.join("makepkg.conf"))
        .current_dir(&place)
        .env_clear()
        .env("HOME", &place)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("PACMAN", place.join("pacman"))
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    let result = done.status.success().then(|| files(&place.join("pkg"))).ok_or(());
    (result, told)
}

/// What is wrong with one case, each as a text.
fn compare(case: &Case, fixtures: &Fixtures, ask_makepkg: bool, is_told: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let (ours, told) = through_rbee(case, fixtures);
    let fate = if ours.is_ok() { Fate::Built } else { Fate::Refused };
    let why = ours.as_ref().err().map(ToString::to_string).unwrap_or_default();
    if fate != case.rbee {
        wrong.push(format!("{}: rbee: {fate:?}, the table says {:?}\n{why}\n{told}", case.name, case.rbee));
    }
    if is_told {
        println!("{}: {fate:?}\n{why}\n{told}", case.name);
    }
    if !ask_makepkg {
        return wrong;
    }
    let (theirs, told) = through_makepkg(case, fixtures);
    let fate = if theirs.is_ok() { Fate::Built } else { Fate::Refused };
    if fate != case.makepkg {
        wrong.push(format!("{}: makepkg: {fate:?}, the table says {:?}\n{told}", case.name, case.makepkg));
    }
    if let (Ok(ours), Ok(theirs), None) = (&ours, &theirs, case.difference)
        && ours != theirs
    {
        wrong.push(format!("{}: other files:\nrbee {ours:#?}\nmakepkg {theirs:#?}", case.name));
    }
    wrong
}

/// All cases through rbee, held against the table; those that the oracle is asked for through makepkg as well.
#[test]
fn what_makepkg_builds_rbee_builds_and_what_it_refuses_it_refuses() {
    if !pidns::inside(module_path!(), "what_makepkg_builds_rbee_builds_and_what_it_refuses_it_refuses") {
        return;
    }
    let needed = ["git", "zip", "xz", "zstd", "bzip2", "bash"];
    if let Some(missing) = needed.iter().find(|program| !has(program)) {
        return eprintln!("skipped: recipes need {missing} to be made");
    }
    let only = std::env::var(ONLY).ok();
    let every = match std::env::var(ORACLE).ok().as_deref() {
        _ if only.is_some() => 1,
        Some("all") => 1,
        Some(number) => number.parse().expect("RBEE_ORACLE is `all` or a number"),
        None => ORACLE_EVERY,
    };
    let oracle = has("makepkg") && has("fakeroot") && has("setpriv") && has_other_user();
    if !oracle {
        let why = "it is not here, or there is no user but root";
        eprintln!("skipped: the comparison with makepkg: {why}; the table stands for it");
    }
    let fixtures = Fixtures::make();
    let (next, asked, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = CASES.get(number) else { return };
                    if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
                        continue;
                    }
                    let ask = oracle && number % every == 0;
                    asked.fetch_add(usize::from(ask), Ordering::Relaxed);
                    wrong.lock().unwrap().extend(compare(case, &fixtures, ask, only.is_some()));
                }
            });
        }
    });
    println!("{} cases, {} of them through makepkg", CASES.len(), asked.into_inner());
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n---\n"));
}
