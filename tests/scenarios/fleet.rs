//! B1 to B6: the machines of a fleet, as they come, are asked, and go.

use super::{Person, published};
use crate::fleet::dial;
use crate::support::fleet::{CHAT, Pair, fleet};
use crate::support::hub::{Repo, TestHub};
use crate::support::node::{Daemon, Place, alone, chat, roomy, until, within, write};
use crate::versions::Other;
use rbee::wire::{Code, VERSION};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// B6: 5 s, and what a busy machine adds.
const NOTICED_MAX: Duration = Duration::from_secs(15);

/// A machine that is this one, behind a stand-in for ssh, with an account of its own: nobody's, where root runs the tests.
fn far_account(place: &Place) {
    let home = place.path("far");
    std::fs::create_dir(&home).unwrap();
    let mut become_user = "";
    if rustix::process::geteuid().is_root() {
        become_user = "setpriv --reuid=65534 --regid=65534 --clear-groups --";
        std::os::unix::fs::chown(&home, Some(65_534), Some(65_534)).unwrap();
        std::fs::set_permissions(place.path(""), std::fs::Permissions::from_mode(0o711)).unwrap();
    }
    ssh_says(
        place,
        &format!(
            "while [ \"$1\" != -- ]; do shift; done\n\
             exec env -i HOME={} PATH=\"$PATH\" SSH_CONNECTION='127.0.0.1 1 127.0.0.1 22' {become_user} sh -c \"$3\"",
            home.display()
        ),
    );
}

/// What ssh does from now on. It writes down who asked for whom.
fn ssh_says(place: &Place, script: &str) {
    let asked = place.path("asked");
    let text = format!("#!/bin/sh\necho \"$@\" >> {}\n{script}\n", asked.display());
    write(&place.path("tools/ssh"), &text, 0o755);
}

/// With that ssh before the system's.
fn administrator<'p>(place: &'p Place, queen: &Daemon) -> Person<'p> {
    let path = format!("{}:{}", place.path("tools").display(), std::env::var("PATH").unwrap());
    Person::at(place, queen).with("PATH", &path)
}

const INSTALL: [&str; 7] = ["hive", "install", "u@box", "--name", "far", "--listen", "127.0.0.1:0"];

#[test]
fn b01_a_machine_is_installed_over_ssh_each_step_told_and_each_failure_in_its_own_words() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let person = administrator(&place, &queen);
        far_account(&place);
        let working = std::fs::read_to_string(place.path("tools/ssh")).unwrap();
        for (line, tries, words) in [
            ("ssh: connect to host box port 22: Connection timed out", 3, "within 10 s, in 3 tries"),
            ("u@box: Permission denied (publickey).", 1, "none of the keys"),
        ] {
            ssh_says(&place, &format!("echo '{line}' >&2; exit 255"));
            let told = person.types(&INSTALL);
            assert_eq!((told.code, told.out.as_str()), (Some(1), ""), "{told:?}");
            told.tells(&[words]);
            let asked = std::fs::read_to_string(place.path("asked")).unwrap();
            assert_eq!(asked.lines().count(), tries, "{asked}");
            std::fs::remove_file(place.path("asked")).unwrap();
        }
        let absent = [&INSTALL[..], &["--identity", "/nowhere/key"]].concat();
        let told = person.types(&absent);
        assert_eq!(told.code, Some(1), "{told:?}");
        told.tells(&["/nowhere/key", "chmod 600 /nowhere/key"]);
        ssh_says(&place, "echo 'sh: 1: uname: not found' >&2; exit 127");
        person.fails(&INSTALL, "`uname` was not found");
        queen.has_hives(0);
        assert!(!place.state().join("nodes").exists(), "nothing is saved");

        std::fs::write(place.path("tools/ssh"), working).unwrap();
        let told = person.does(&INSTALL);
        told.tells_in_order(&["checking u@box", "copying", "joined the queen", "`far` is reachable"]);
        queen.has_hives(1);
        let listed = person.does(&["hive", "list"]).out;
        assert!(["far", "u@box", "online"].iter().all(|word| listed.contains(word)), "{listed}");
        person.fails(&INSTALL, "already called `far`");

        // The configuration knows better how this machine is reached.
        let config = "[hives.far]\nhost = \"crate\"\nuser = \"bee\"\nport = 2222\n";
        write(&place.path("home/.config/rbee/config.toml"), config, 0o600);
        std::fs::remove_file(place.path("asked")).unwrap();
        person.does(&["hive", "uninstall", "far"]);
        let asked = std::fs::read_to_string(place.path("asked")).unwrap();
        assert!(asked.contains("bee@crate") && asked.contains("-p 2222"), "{asked}");
        queen.has_hives(0);
    });
}

#[test]
fn b02_hives_are_listed_with_what_they_have_and_one_that_is_uninstalled_leaves_no_trace() {
    alone(|| {
        let (place, other) = (Place::new(), Place::new());
        let queen = Daemon::start(&place, "queen serve", &[]);
        let person = administrator(&place, &queen);
        let empty = person.does(&["hive", "list"]).out;
        for column in ["HIVE", "HOST", "STATE", "LAST SEEN", "DEVICES", "WORKERS"] {
            assert!(empty.contains(column), "no {column} in {empty}");
        }
        assert_eq!(person.does(&["hive", "ls", "--json"]).json(), json!([]));

        far_account(&place);
        person.does(&INSTALL);
        let url = queen.url();
        let args = ["--name", "near", "--queen", &url, "--listen", "127.0.0.9:0"];
        let near = Daemon::start(&other, "hive serve", &args);
        queen.has_hives(2);
        let model = queen.register(&place, Some("near"));
        assert_eq!(queen.post(CHAT, &chat(&model, 3, false)).status, 200);
        let listed = person.does(&["hive", "list"]).out;
        for (name, workers) in [("far", "0"), ("near", "1")] {
            let line = listed
                .lines()
                .find(|line| line.trim_start().starts_with(name))
                .unwrap_or_else(|| panic!("{listed}"));
            let cells: Vec<&str> = line.split_whitespace().collect();
            assert!(cells.contains(&"online") && cells.last() == Some(&workers), "{line}");
        }
        person.fails(&["hive", "uninstall", "near"], "HIVE_NOT_FOUND").tells(&["far"]);
        person.does(&["hive", "uninstall", "far"]);
        assert_eq!(queen.has_hives(1)[0]["name"], "near");
        let left = crate::support::pull::entries(&place.path("far"));
        assert!(left.is_empty(), "{left:?}");
        let far = place.path("far");
        let far = far.to_str().unwrap();
        until("its processes are gone", || match place.processes() {
            left if left.iter().all(|(_, line)| !line.contains(far)) => Ok(()),
            left => Err(format!("{left:?}")),
        });
        let listed = person.does(&["hive", "list"]).out;
        assert!(!listed.contains("far") && listed.contains("near"), "{listed}");
        assert!(near.terminate().success());
    });
}

#[test]
fn b03_an_unknown_hive_or_model_is_refused_with_what_there_is_and_only_a_command_fetches() {
    alone(|| {
        let hub = TestHub::of([Repo::new("bees/Tiny").with("t-Q4_K_M.gguf", &published(3))]).open();
        let place = Place::new();
        let env = [("HF_ENDPOINT", &*hub.endpoint())];
        let daemon = Daemon::try_start(&place, "serve", &["--name", "here"], &env).unwrap();
        let person = Person::at(&place, &daemon);
        let refused = daemon.post(CHAT, &chat("bees/Tiny", 3, false));
        assert_eq!((refused.status, refused.failure().code), (404, Code::ModelNotFound));
        assert!(refused.failure().message.contains("rbee model download"), "{refused:?}");
        let refused = daemon.get("/v1/hives/there");
        assert_eq!((refused.status, refused.failure().code), (404, Code::HiveNotFound));
        assert_eq!(hub.asked().len(), 0, "the API never downloads");

        let ask = |more: &[&'static str]| [&["run", "--max-tokens", "3"], more, &["hello"]].concat();
        let told = person.fails(&ask(&["-m", "bees/Tiny", "--hive", "there"]), "HIVE_NOT_FOUND");
        told.tells(&["there", "here", "rbee hive"]);
        let told = person.fails(&ask(&["-m", "bees/Tiny:Q2_K"]), "MODEL_NOT_FOUND");
        told.tells(&["Q2_K", "Q4_K_M"]);
        // To somebody without a key the hub does not say whether a repository is private or not there.
        person.fails(&ask(&["-m", "bees/None"]), "FORBIDDEN").tells(&["bees/None", "HF_TOKEN"]);
        assert_ne!(person.does(&ask(&["-m", "bees/Tiny"])).out, "");
        assert_eq!(hub.bytes_sent(), published(3).size());
        let refused = daemon.post(CHAT, &chat("bees/None", 3, false)).failure();
        assert!(refused.message.contains("bees/Tiny"), "it says which there are: {refused}");
    });
}

#[test]
fn b04_a_peer_of_another_version_hears_both_versions_and_what_to_run_and_never_hangs() {
    alone(|| {
        let place = Place::new();
        let (queen, hive) = fleet(&place, &[]);
        for daemon in [&queen, &hive] {
            let health = json!({"status": "ok", "version": VERSION, "api_version": "v1"});
            assert_eq!(daemon.get("/health").json(), health);
        }
        for (protocol, says) in [(99, "rbee queen start"), (0, "rbee hive update old")] {
            let refused = dial(&queen, "old", "node", protocol);
            assert_eq!((refused.status, refused.failure().code), (426, Code::VersionMismatch), "{refused:?}");
            let failure = refused.failure();
            let told = format!("{} {}", failure.message, failure.details);
            for word in ["9.9.9", VERSION, says] {
                assert!(told.contains(word), "no {word} in {told}");
            }
        }
        // At the command line, by a daemon that speaks what ours does not.
        let future =
            Other::start(&place, "200 OK", rbee::wire::PROTOCOL + 2, json!({"hives": []}).to_string());
        let address = format!("http://{}", future.address);
        let told =
            Person::at(&place, &queen).fails(&["hive", "list", "--queen", &address], "VERSION_MISMATCH");
        told.tells(&["9.9.9", VERSION, "scp "]);
    });
}

#[test]
fn b05_a_daemon_that_cannot_be_reached_is_tried_three_times_each_told_and_then_what_to_check() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let person = Person::at(&place, &queen);
        person.does(&["workers", "list"]);
        queen.kill9();
        let told = person.fails(&["workers", "list"], "CONNECTION_FAILED");
        told.tells_in_order(&[
            "try 2 of 3 in 200 ms",
            "try 3 of 3 in 400 ms",
            "rbee queen status",
            "--queen",
        ]);
        let told = person.fails(&["job", "list", "--hive", "127.0.0.1:9"], "CONNECTION_FAILED");
        told.tells_in_order(&["try 2 of 3", "try 3 of 3", "rbee hive status", "--hive"]);
    });
}

#[test]
fn b06_a_hive_that_vanishes_takes_its_workers_along_ends_its_requests_and_returns_whole() {
    alone(|| {
        // Places first: bindings are dropped in the reverse order.
        let Pair { places, queen, one, two } =
            Pair::at([Place::with_model(&roomy()), Place::with_model(&roomy())]);
        let model = queen.register(&places[1], Some("two"));
        let worker = queen.spawn_roomy_at(Some("two"), &model);
        let mut stream = queen.endless(&model);

        // A network that falls silent, as far as the other end can tell.
        two.signal(Signal::STOP);
        within(NOTICED_MAX, "the silent hive and its worker are gone", || {
            let (hives, workers) = (queen.get("/v1/hives").json(), queen.workers());
            let is_gone = hives["hives"].as_array().unwrap().len() == 1 && workers.is_empty();
            if is_gone { Ok(()) } else { Err(format!("{hives} {workers:?}")) }
        });
        let ended = stream.rest();
        ended.is_told();
        let failure = ended.failure().unwrap_or_else(|| panic!("no error event: {ended:?}"));
        assert_eq!(failure.code, Code::WorkerLost, "{failure}");
        assert!(failure.details["tokens"].as_u64() >= Some(2), "{failure:?}");

        two.signal(Signal::CONT);
        let back = queen.the_worker("it is whole again", |worker| worker["slots_busy"] == 0);
        assert_eq!((&back["worker_id"], &back["pid"]), (&worker["worker_id"], &worker["pid"]));
        queen.answers(&model);
        assert_eq!(places[1].spawns(), 1);

        // The link's close is seen at once; another hive that has the model takes over.
        let other = queen.register(&places[1], Some("one"));
        assert_eq!(other, model);
        two.kill9();
        let answer = queen.post(CHAT, &chat(&model, 3, false));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(queen.workers().iter().map(|worker| &worker["hive"]).collect::<Vec<_>>(), ["one"]);
        // A new hive of that state takes the worker over and ends it, rather than this test waiting for the lease.
        let args = ["--name", "two", "--queen", &queen.url(), "--listen", "127.0.0.3:0"];
        let again = Daemon::start(&places[1], "hive serve", &args);
        until("all that it had is back", || match queen.workers() {
            workers if workers.iter().any(|known| known["pid"] == worker["pid"]) => Ok(()),
            workers => Err(format!("{workers:?}")),
        });
        assert!(again.terminate().success() && one.terminate().success());
        let none: [Value; 0] = [];
        assert_eq!(queen.workers(), none);
    });
}
