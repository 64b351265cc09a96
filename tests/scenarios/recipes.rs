//! B40 to B46: engines, from a catalog's line to a process, and the ends of both.

use super::Person;
use crate::builds::{CANCELLED_MAX, QUICK, STUBBORN, Shop, is_clean};
use crate::support::fleet::pid_of;
use crate::support::node::{Daemon, Place, alone, is_alive, signal_pid, until};
use rustix::process::Signal;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn b40_what_can_be_installed_is_a_table_of_five_columns_and_a_catalog_that_is_down_hides_nothing() {
    alone(|| {
        let place = Place::new();
        let shop = Shop::open(&place);
        shop.recipe("house-engine", QUICK, "");
        let columns = ["ID", "NAME", "TYPE", "PLATFORMS", "DESCRIPTION"];
        let listed = |daemon: &Daemon| {
            let told = Person::at(&place, daemon).does(&["worker", "available"]);
            let head: Vec<&str> = told.out.lines().next().unwrap().split_whitespace().collect();
            assert_eq!(head, columns, "{}", told.out);
            for id in ["llm-worker-rbee-cpu", "llm-worker-rbee-cuda"] {
                assert!(told.out.contains(id), "no {id} in {}", told.out);
            }
            told
        };
        // With nothing configured, what the binary has.
        let daemon = Daemon::start(&place, "serve", &[]);
        let told = listed(&daemon);
        assert_eq!(told.err, "");
        assert!(daemon.terminate().success());
        let daemon = shop.hive(&place, &[]);
        assert!(listed(&daemon).out.contains("house-engine"));
        let url = shop.daemon.url();
        drop(shop);
        let told = listed(&daemon);
        told.tells(&["CATALOG_UNAVAILABLE", &url]);
        assert!(!told.out.contains("house-engine"), "{}", told.out);
    });
}

#[test]
fn b41_an_engine_is_checked_for_built_line_by_line_and_installed_whole_or_not_at_all() {
    alone(|| {
        let place = Place::new();
        let shop = Shop::open(&place);
        let build = |line: &str| format!("build() {{ echo compiling the {line}; }}\n{QUICK}");
        shop.recipe("engine", &build("first"), "");
        shop.recipe("broken", "build() { echo last words; (exit 7); }\npackage() { :; }", "");
        let daemon = shop.hive(&place, &[]);
        let person = Person::at(&place, &daemon);
        let told = person.does(&["worker", "install", "engine"]);
        told.tells(&["compiling the first"]);
        let listed = person.does(&["worker", "list", "--json"]).json();
        assert_eq!((&listed[0]["worker_id"], &listed[0]["version"]), (&json!("engine"), &json!("1.0-1")));
        let program = place.state().join("workers/engine/current/bin/engine");
        assert!(program.is_file(), "{}", program.display());

        let told = person.fails(&["worker", "install", "broken"], "BUILD_FAILED");
        told.tells(&["build", "7", "last words"]);
        let log = told.err.split_whitespace().map(|word| word.trim_matches(['`', '.', ',', ';', ')', '(']));
        let log = log.filter(|word| word.starts_with('/')).find(|word| Path::new(word).is_file());
        let log = log.unwrap_or_else(|| panic!("no log is named: {}", told.err));
        assert!(std::fs::read_to_string(log).unwrap().contains("last words"), "{log}");
        is_clean(&place, &[&daemon, &shop.daemon], "broken", Duration::ZERO);
        assert!(program.is_file());

        person.fails(&["worker", "install", "unheard-of"], "WORKER_NOT_FOUND").tells(&["unheard-of"]);
        assert!(daemon.terminate().success());
        // Where there is no compiler, that is said before anything begins.
        let bare = Daemon::try_start(&place, "serve", &["--name", "bare"], &[("PATH", "/nowhere")]).unwrap();
        let told = Person::at(&place, &bare).fails(&["worker", "install", "cpu"], "MISSING_DEPENDENCIES");
        told.tells(&["cargo", "cmake", "rustup"]);
    });
}

#[test]
fn b42_ctrl_c_or_a_killed_hive_ends_a_build_with_every_descendant_however_it_hid() {
    alone(|| {
        let place = Place::new();
        let shop = Shop::open(&place);
        shop.recipe("stubborn", STUBBORN, "");
        let daemon = shop.hive(&place, &[]);
        let person = Person::at(&place, &daemon);
        let is_building = || {
            until("its hidden processes run", || match place.processes() {
                all if all.iter().filter(|(_, line)| line.contains("sleep 1000")).count() >= 4 => Ok(()),
                all => Err(format!("{all:?}")),
            });
        };
        let running = person.begins(&["worker", "install", "stubborn"]);
        is_building();
        let begun = Instant::now();
        signal_pid(running.pid(), Signal::INT);
        let told = running.ends();
        assert_eq!(told.code, Some(130), "{told:?}");
        told.tells(&["cancelled: ", "processes ended", "of files removed"]);
        println!("ended after {:?}", begun.elapsed());
        is_clean(&place, &[&daemon, &shop.daemon], "stubborn", Duration::ZERO);

        let mut running = person.begins(&["worker", "install", "stubborn"]);
        is_building();
        daemon.kill9();
        // Its keeper would wait for the hive to come back.
        running.child.kill().unwrap();
        running.child.wait().unwrap();
        is_clean(&place, &[&shop.daemon], "stubborn", 3 * CANCELLED_MAX);
    });
}

/// What recipes are written with, all in one.
const BASH: &str = r#"
pkgver=2.0
_parts=(one 'two words'
  "three ${pkgname}")
_parts+=("${_parts[0]}-again")
source=('renamed.txt::@catalog@/workers/all-of-bash/files/notes.txt' 'script.sh' 'data.tar.gz')
source_x86_64=('wide.txt')
source_aarch64=('wide.txt')
noextract=('data.tar.gz')
sha256sums=('@notes@' 'SKIP' 'SKIP')
sha256sums_x86_64=('SKIP')
sha256sums_aarch64=('SKIP')
pkgver() { echo 2.5; }
_say() { echo "helped: $*"; }
prepare() { touch prepared; }
build() {
  _say "${_parts[@]}"; test -e prepared
  cat > config.h <<END
version $pkgver
END
  sh ./script.sh > built.txt
}
check() { grep -q "from a script" built.txt; test -f data.tar.gz; test ! -e data; }
package() {
  install -Dm755 script.sh "$pkgdir/bin/engine"
  install -Dm644 -t "$pkgdir/share" config.h built.txt renamed.txt wide.txt
  printf '%s\n' "${_parts[@]}" > "$pkgdir/share/parts"
}
"#;

#[test]
fn b43_a_recipe_is_bash_and_what_makepkg_would_refuse_is_refused() {
    alone(|| {
        let place = Place::new();
        let shop = Shop::open(&place);
        let sum = |text: &str| {
            use sha2::Digest as _;
            crate::support::hub::content::hex(&sha2::Sha256::digest(text.as_bytes()))
        };
        let shelve = |id: &str, recipe: &str| {
            shop.recipe(id, recipe, "");
            let folder = place.path("shop").join(id);
            for (name, text) in [
                ("notes.txt", "notes"),
                ("script.sh", "#!/bin/sh\necho from a script\n"),
                ("wide.txt", "wide"),
                ("data.tar.gz", "kept as it is"),
            ] {
                std::fs::write(folder.join(name), text).unwrap();
            }
        };
        let bash = BASH.replace("@catalog@", &shop.daemon.url());
        let recipe = bash.replace("@notes@", &sum("notes"));
        shelve("all-of-bash", &recipe);
        shelve("wrong-sum", &bash.replace("@notes@", &sum("other notes")));
        shelve("no-file", &recipe.replace("'script.sh'", "'nowhere.sh'"));
        shelve("failed-check", &recipe.replace("from a script\"", "something else\""));
        let daemon = shop.hive(&place, &[]);
        let person = Person::at(&place, &daemon);
        let told = person.does(&["worker", "install", "all-of-bash"]);
        told.tells(&["helped: one two words three all-of-bash one-again"]);
        let installed = place.state().join("workers/all-of-bash/current");
        let read = |name: &str| std::fs::read_to_string(installed.join("share").join(name)).unwrap();
        assert_eq!(read("parts"), "one\ntwo words\nthree all-of-bash\none-again\n");
        assert_eq!((read("config.h"), read("built.txt")), ("version 2.5\n".into(), "from a script\n".into()));
        assert_eq!((read("renamed.txt"), read("wide.txt")), ("notes".into(), "wide".into()));
        let shown = person.does(&["worker", "get", "all-of-bash", "--json"]).json();
        assert_eq!(shown["version"], "2.5-1", "{shown}");

        for (id, code, word) in [
            ("wrong-sum", "CHECKSUM_MISMATCH", "notes"),
            ("no-file", "", "nowhere.sh"),
            ("failed-check", "BUILD_FAILED", "check"),
        ] {
            person.fails(&["worker", "install", id], code).tells(&[word]);
            is_clean(&place, &[&daemon, &shop.daemon], id, Duration::ZERO);
        }
    });
}

#[test]
fn b44_a_spawn_says_what_is_wrong_with_it_and_the_list_shows_each_worker_as_it_is() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::start(&place, "serve", &["--name", "here"]);
        let person = Person::at(&place, &daemon);
        let model = daemon.register(&place, None);
        let spawn = |more: &[&'static str]| [&["worker", "spawn", "--model", &model], more].concat();
        person.fails(&spawn(&["--worker", "unheard-of"]), "BACKEND_UNAVAILABLE").tells(&["unheard-of"]);
        person.fails(&spawn(&["--device", "9"]), "BACKEND_UNAVAILABLE").tells(&["no device `9`", "CPU-0"]);
        person.fails(&spawn(&["--ctx", "100000"]), "INVALID_REQUEST").tells(&["2048", "100000"]);
        let nobody = ["worker", "spawn", "--model", "bees/Unknown"];
        person.fails(&nobody, "MODEL_NOT_FOUND").tells(&["bees/Unknown"]);
        assert_eq!(person.types(&["worker", "spawn"]).code, Some(2), "a model must be named");
        assert_eq!(place.spawns(), 0);

        person.does(&spawn(&["--slots", "2", "--ctx", "512"]));
        let listed = person.does(&["workers", "list"]).out;
        let worker = person.does(&["workers", "list", "--json"]).json()[0].clone();
        let id = worker["worker_id"].as_str().unwrap();
        for word in [id, "here", "ready", &model, "CPU-0", "0/2", "512", "MiB"] {
            assert!(listed.contains(word), "no `{word}` in {listed}");
        }
        assert!(is_alive(pid_of(&worker)));
        // The same again is the same worker.
        person.does(&spawn(&["--slots", "2", "--ctx", "512"]));
        assert_eq!((daemon.workers().len(), place.spawns()), (1, 1));
    });
}

#[test]
fn b45_only_what_this_hive_has_started_is_listed_and_ended() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::start(&place, "serve", &[]);
        let person = Person::at(&place, &daemon);
        let model = daemon.register(&place, None);
        let worker = person.does(&["worker", "spawn", "--model", &model, "--json"]).json();
        let pid = worker["pid"].to_string();
        let listed = person.does(&["worker", "process", "list", "--json"]).json();
        let pids: Vec<String> =
            listed.as_array().unwrap().iter().map(|process| process["pid"].to_string()).collect();
        assert_eq!(pids, [pid.as_str()]);
        let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for other in [stranger.id(), std::process::id(), daemon.pid().cast_unsigned(), 1] {
            let other = other.to_string();
            let told = person.types(&["worker", "process", "delete", &other]);
            assert_eq!(told.code, Some(1), "{told:?}");
            told.tells(&[&other]);
        }
        assert!(stranger.try_wait().unwrap().is_none(), "it lives");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        person.does(&["worker", "process", "delete", &pid]);
        assert!(!is_alive(pid.parse().unwrap()));
        until("the list is empty", || match person.does(&["worker", "process", "list", "--json"]).json() {
            list if list == json!([]) => Ok(()),
            list => Err(list.to_string()),
        });
    });
}
