//! `rbee hive install|update|uninstall`: against a real sshd with an account made for the test, and against a stand-in for ssh
//! where only what is said matters.

mod build;

use crate::install::tree;
use crate::support::fleet::CHAT;
use crate::support::node::{Daemon, Place, alone, chat, said, signal_pid, until, write};
use crate::support::sshd::{Account, Sshd, is_possible};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// The keeper, with a folder of tools before all others.
fn keeper(place: &Place, args: &[&str]) -> Command {
    let mut command = place.command(args);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", place.path("tools").display()));
    println!("{command:?}");
    command
}

fn rbee(place: &Place, args: &[&str]) -> Output {
    keeper(place, args).output().unwrap()
}

#[track_caller]
fn refused(place: &Place, args: &[&str], words: &str) -> String {
    let output = rbee(place, args);
    let (stdout, stderr) = said(&output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{output:?}");
    assert!(stderr.contains(words), "`{words}` is not in {stderr}");
    stderr
}

#[track_caller]
fn done(place: &Place, args: &[&str]) -> (String, String) {
    let output = rbee(place, args);
    assert!(output.status.success(), "{output:?}");
    said(&output)
}

/// Where the only hive listens.
fn first_address(queen: &Daemon) -> String {
    queen.has_hives(1)[0]["listen"].as_str().unwrap().to_owned()
}

/// A queen with a key, and a machine that her person's ssh reaches, with a model on its disk.
struct Far {
    queen: Daemon,
    sshd: Sshd,
    port: String,
    key: String,
    host: String,
    model: PathBuf,
    account: Account,
    place: Place,
}

impl Far {
    fn start(listen: &str) -> Far {
        let (place, account) = (Place::new(), Account::new());
        let model = account.home.join("tiny.gguf");
        std::fs::copy(place.model(), &model).unwrap();
        account.give(&model);
        let sshd = Sshd::start(&place, &account);
        let client_key = done(&place, &["key", "create"]).0;
        let mut queen = Daemon::start(&place, "queen serve", &["--listen", listen]);
        queen.use_key(client_key.trim());
        let (port, key) = (sshd.port.to_string(), sshd.key("ours"));
        let host = format!("{}@127.0.0.1", account.name);
        Far { queen, sshd, port, key, host, model, account, place }
    }
}

#[test]
fn a_hive_is_installed_over_ssh_serves_survives_its_update_and_leaves_no_trace() {
    if !is_possible() {
        return;
    }
    alone(|| {
        // As a fleet's queen: open to the network, with a key, which this account's commands need not be told.
        let Far { place, account, model, host, key, port, sshd, queen } = Far::start("0.0.0.0:0");
        let before = tree(&account.home);
        let url = queen.url().replace("0.0.0.0", "127.0.0.1");
        let install = |more: &[&str]| {
            let mut words = vec!["hive", "install", "--queen", &url, "--name", "one", &host];
            words.extend(["--listen", "127.0.0.1:0"]);
            words.extend(more);
            words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>()
        };
        let fails = |more: &[&str], words: &str| {
            let line = install(more);
            let told = refused(&place, &line.iter().map(String::as_str).collect::<Vec<_>>(), words);
            assert_eq!(tree(&account.home), before, "{told}");
            queen.has_hives(0);
            assert!(!place.path("s/nodes").exists(), "nothing is saved");
            told
        };
        fails(&["--port", &port, "--identity", &sshd.key("other")], "accepts none of the keys");
        let told = fails(&["--port", &port, "--identity", &sshd.key("absent")], "is missing");
        assert!(told.contains(&format!("chmod 600 {}", sshd.key("absent"))), "{told}");
        std::fs::copy(&key, sshd.key("open")).unwrap();
        std::fs::set_permissions(sshd.key("open"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let told = fails(&["--port", &port, "--identity", &sshd.key("open")], "is open to others");
        assert!(told.contains(&format!("chmod 600 {}", sshd.key("open"))), "{told}");
        let told = fails(&["--port", "1", "--identity", &key], "Connection refused): is it on");
        assert!(told.contains("try 1 of 3") && told.contains("try 3 of 3"), "{told}");
        let known = std::fs::read(sshd.folder.join("known")).unwrap();
        std::fs::write(sshd.folder.join("known"), "").unwrap();
        fails(&["--port", &port, "--identity", &key], "host key is not known here");
        std::fs::write(sshd.folder.join("known"), known).unwrap();
        // A folder of root's, by the configuration's word.
        let config = format!(
            "[hives.one]\nhost = \"box\"\nuser = \"{}\"\nidentity = \"{key}\"\nbinary = \"/usr/local/rbee-nobody/rbee\"\n",
            account.name
        );
        write(&place.path("home/.config/rbee/config.toml"), &config, 0o600);
        write(&place.path("config.toml"), &config, 0o600);
        let env = place.path("config.toml");
        let with_config = |args: &[&str]| keeper(&place, args).env("RBEE_CONFIG", &env).output().unwrap();
        let output = with_config(&["hive", "install", "--queen", &url, "one", "--listen", "127.0.0.1:0"]);
        let (_, told) = said(&output);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(told.contains("writing `/usr/local/rbee-nobody`"), "{told}");
        assert_eq!(tree(&account.home), before, "{told}");
        queen.has_hives(0);
        std::fs::remove_file(place.path("home/.config/rbee/config.toml")).unwrap();

        // A hive that does not start says why, and its key is not left with the queen.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let told = fails(&["--port", &port, "--identity", &key, "--listen", &address], "in use");
        assert!(told.contains(&address), "{told}");
        let keys = std::fs::read_to_string(place.path("s/keys.json")).unwrap();
        let keys: Value = serde_json::from_str(&keys).unwrap();
        assert_eq!(keys["keys"].as_array().unwrap().len(), 1, "the client's: {keys}");
        assert_eq!(keys["tokens"], json!([]), "no token waits");

        // And now as it should be.
        let line = install(&["--port", &port, "--identity", &key, "--json"]);
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let (value, told) = done(&place, &line);
        println!("{told}");
        let value: Value = serde_json::from_str(&value).unwrap();
        let drained = rbee(&place, &["hive", "drain", "two", "--hive", &first_address(&queen)]);
        assert!(said(&drained).1.contains("is `one`, not `two`"), "{drained:?}");
        assert_eq!((value["name"].as_str(), value["service"].as_str()), (Some("one"), Some("detached")));
        for step in [
            "checking",
            "copying",
            "symlinks: ",
            "joined the queen",
            "started rbee hive serve",
            "is reachable",
        ] {
            assert!(told.contains(step), "{step}: {told}");
        }
        queen.has_hives(1);
        let listed = done(&place, &["hive", "list", "--queen", &url]).0;
        assert!(listed.contains("one") && listed.contains(&host) && listed.contains("online"), "{listed}");
        // Of a queen that it is not linked to it is away, for programs, too.
        let elsewhere = Place::new();
        let other = Daemon::start(&elsewhere, "queen serve", &[]);
        for (url, state) in [(&url, "online"), (&other.url(), "away")] {
            let listed: Value =
                serde_json::from_str(&done(&place, &["hive", "list", "--json", "--queen", url]).0).unwrap();
            let told = ["name", "host", "state"].map(|field| listed[0][field].as_str());
            assert_eq!(told, [Some("one"), Some(host.as_str()), Some(state)], "{listed}");
            assert!(listed[0]["workers"].is_array() && listed.as_array().unwrap().len() == 1);
        }
        let keys = done(&place, &["key", "list", "--json"]).0;
        assert!(keys.contains("\"one\"") && keys.contains("\"hive\""), "{keys}");
        refused(&place, &line, "a hive is already called `one`");

        let download = json!({"operation": "model_download", "model": model, "hive_id": "one"});
        let model = queen.job(&download).done()["id"].as_str().unwrap().to_owned();
        let ask = || queen.stream(CHAT, &chat(&model, 3, true)).rest();
        assert!(ask().is_clean());
        let worker = queen.workers()[0].clone();
        let first = queen.get("/v1/hives/one").json()["connected_at"].as_u64();
        let (_, told) = done(&place, &["hive", "update", "one", "--queen", &url]);
        let after = queen.get("/v1/hives/one").json()["connected_at"].as_u64();
        assert!(after > first, "{told}");
        // The worker went on, its model loaded, where hives hand over.
        if rbee::hive::TABLE.iter().any(|route| route.path == "/v1/handover") {
            assert!(told.contains("the next hive has taken over"), "{told}");
            until("the worker is adopted", || match queen.workers().first() {
                Some(now) if now["pid"] == worker["pid"] => Ok(()),
                now => Err(format!("{now:?}")),
            });
        }
        assert!(ask().is_clean());

        let (_, told) = done(&place, &["hive", "uninstall", "one", "--queen", &url]);
        queen.has_hives(0);
        assert_eq!(tree(&account.home), before, "{told}");
        let keys: Value = serde_json::from_str(&done(&place, &["key", "list", "--json"]).0).unwrap();
        assert_eq!(keys.as_array().unwrap().len(), 1, "the client's: {keys}");
        until("nothing of the account's runs", || match account.processes() {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        });
        refused(&place, &["hive", "uninstall", "one", "--queen", &url], "no hive `one` was installed");
        let listed = done(&place, &["hive", "list", "--queen", &url]).0;
        assert!(!listed.contains("one"), "{listed}");
    });
}

/// A stand-in that says what it is told to, and how often it was asked.
fn stand_in(place: &Place, script: &str) {
    let tool = format!("#!/bin/sh\necho \"$@\" >> {}\n{script}\n", place.path("asked").display());
    write(&place.path("tools/ssh"), &tool, 0o755);
    let _ = std::fs::remove_file(place.path("asked"));
}

#[test]
fn each_way_in_which_ssh_can_fail_has_its_own_message_and_saves_nothing() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let url = queen.url();
        let install = ["hive", "install", "u@box", "--queen", &url];
        let fail = |line: &str| format!("echo '{line}' >&2; exit 255");
        for (script, words, asked) in [
            (
                fail("ssh: connect to host box port 22: Connection timed out"),
                "did not answer within 10 s, in 3 tries",
                3,
            ),
            (fail("ssh: connect to host box port 22: No route to host"), "cannot be reached", 3),
            (
                fail("ssh: Could not resolve hostname box: Name or service not known"),
                "no machine is known as",
                1,
            ),
            (fail("u@box: Permission denied (publickey)."), "accepts none of the keys", 1),
            (fail("Host key verification failed."), "host key is not known here", 1),
            ("echo 'sh: 1: uname: not found' >&2; exit 127".into(), "`uname` was not found on u@box", 1),
            (
                "echo 'This account is currently not available.'; exit 1".into(),
                "commands do not run on u@box",
                1,
            ),
        ] {
            stand_in(&place, &script);
            refused(&place, &install, words);
            let lines = std::fs::read_to_string(place.path("asked")).unwrap();
            assert_eq!(lines.lines().count(), asked, "{words}: {lines}");
            assert!(lines.contains("ConnectTimeout=10") && lines.contains("BatchMode=yes"), "{lines}");
        }
        assert!(!place.path("s/nodes").exists() && !place.path("s/keys.json").exists(), "nothing is saved");

        let facts = "echo 'rbee:home=/home/u'; echo 'rbee:user=1000'; echo 'rbee:node=box'";
        let from = |ip: &str| format!("echo 'rbee:from={ip} 1 2 22'");
        let here = "echo \"rbee:target=$(uname -sm)\"";
        stand_in(&place, &format!("{facts}; {here}; {}; echo rbee:installed=/r.json", from("127.0.0.1")));
        refused(&place, &install, "rbee is installed on u@box already (/r.json)");
        stand_in(&place, &format!("{facts}; {here}; {}", from("192.168.1.2")));
        let port = queen.address.rsplit_once(':').unwrap().1;
        let told = refused(&place, &install, &format!("--listen 0.0.0.0:{port}"));
        assert!(told.contains(&format!("`ssh -N -R {port}:127.0.0.1:{port} u@box`")), "{told}");
        assert!(told.contains(&format!("--dial http://127.0.0.1:{port}")), "{told}");
        // Another kind of machine, which has no cargo.
        stand_in(
            &place,
            &format!(
                "case \"$(cat)\" in *rbee:target*) {facts}; echo 'rbee:target=Linux riscv64'; {};; *cargo*) echo cargo; echo c++;; esac",
                from("127.0.0.1")
            ),
        );
        let told = refused(&place, &install, "`cargo`, `c++` was not found on u@box");
        assert!(told.contains("Linux riscv64") && told.contains("--binary FILE"), "{told}");
        assert!(!place.path("s/nodes").exists());
        queen.has_hives(0);
        for bad in ["-oProxyCommand=touch /tmp/x", "u@-x", "a b"] {
            let output = rbee(&place, &["hive", "install", "--queen", &url, "--", bad]);
            assert_eq!(output.status.code(), Some(2), "{bad}: {output:?}");
        }
        let output = rbee(&place, &["hive", "install", "--queen", &url, "u@box", "--name", "a b"]);
        assert!(
            output.status.code() == Some(2) && said(&output).1.contains("cannot name a hive"),
            "{output:?}"
        );
        std::fs::remove_dir_all(place.path("tools")).unwrap();
        let mut command = place.command(&install);
        let output = command.env("PATH", place.path("tools")).output().unwrap();
        assert!(said(&output).1.contains("`ssh` was not found"), "{output:?}");
    });
}

#[test]
fn ctrl_c_takes_back_what_was_begun_over_there() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let facts = "echo 'rbee:home=/home/u'; echo 'rbee:user=1000'; echo 'rbee:node=box'; \
                     echo \"rbee:target=$(uname -sm)\"; echo 'rbee:from=127.0.0.1 1 2 22'";
        // The copy never ends.
        let script = format!("case \"$*\" in *'sh -s') {facts};; *'cat >'*) exec sleep 1000;; esac");
        stand_in(&place, &script);
        let mut command = keeper(&place, &["hive", "install", "u@box", "--queen", &queen.url()]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let asked = || std::fs::read_to_string(place.path("asked")).unwrap_or_default();
        until("the copy has begun", || if asked().contains("cat >") { Ok(()) } else { Err(asked()) });
        signal_pid(child.id() as i32, Signal::INT);
        let status = until("it ends", || child.try_wait().unwrap().ok_or_else(asked));
        assert_eq!(status.code(), Some(130));
        let folder =
            asked().split("'/home/u/.rbee-install-").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        let removes =
            |line: &str| line.contains("; rm -rf") && line.ends_with(&format!(".rbee-install-{folder}'"));
        assert!(asked().lines().any(removes), "{}", asked());
        assert!(asked().contains("'uninstall'"), "{}", asked());
    });
}

/// A machine over there that takes everything and starts nothing.
fn willing(place: &Place) {
    let facts = "echo 'rbee:home=/home/u'; echo 'rbee:user=1000'; echo 'rbee:node=box'; \
                 echo \"rbee:target=$(uname -sm)\"; echo 'rbee:from=127.0.0.1 1 2 22'";
    let sum = "sha256sum < \"$0.got\" | cut -d ' ' -f 1";
    let version = json!({"version": rbee::wire::VERSION});
    let installed = json!({
        "name": "late", "program": "/home/u/.local/bin/rbee", "version": rbee::wire::VERSION,
        "service": "detached", "survives_reboot": false,
    });
    stand_in(
        place,
        &format!(
            "case \"$*\" in *'sh -s') {facts};; *'cat >'*) cat > \"$0.got\";; *sha256sum*) {sum};; \
             *\"'install'\"*) read -r token; echo '{installed}';; *version*) echo '{version}';; esac"
        ),
    );
}

#[test]
fn a_hive_is_seen_when_it_comes_though_the_queen_was_restarted_while_it_was_waited_for() {
    alone(|| {
        let (place, node) = (Place::new(), Place::new());
        let address = place.address(7833);
        let queen = Daemon::start(&place, "queen serve", &["--listen", &address]);
        let url = queen.url();
        willing(&place);
        let asked = || std::fs::read_to_string(place.path("asked")).unwrap_or_default();
        let begin = || {
            let mut command = place.command(&["hive", "install", "u@box", "--name", "late", "--queen", &url]);
            let path = std::env::var("PATH").unwrap();
            command.env("PATH", format!("{}:{path}", place.path("tools").display()));
            let child = command.stderr(Stdio::piped()).spawn().unwrap();
            // The last word over there before the queen's is waited for.
            until("it is installed over there", || {
                if asked().contains("du -sk") { Ok(()) } else { Err(asked()) }
            });
            child
        };
        let child = begin();
        queen.kill9();
        let queen = Daemon::start(&place, "queen serve", &["--listen", &address]);
        let hive = Daemon::start(&node, "hive serve", &["--name", "late", "--queen", &url]);
        let output = child.wait_with_output().unwrap();
        let (_, told) = said(&output);
        assert!(output.status.success() && told.contains("`late` is reachable"), "{told}");
        assert!(hive.terminate().success());
        queen.has_hives(0);
        done(&place, &["hive", "uninstall", "late", "--forget", "--queen", &url]);

        // One that does not come is given up on a SIGTERM, and taken away.
        std::fs::remove_file(place.path("asked")).unwrap();
        let child = begin();
        signal_pid(child.id() as i32, Signal::TERM);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(143), "{output:?}");
        assert!(asked().contains("'uninstall'"), "{}", asked());
        assert!(!place.path("s/nodes").exists() || place.path("s/nodes").read_dir().unwrap().count() == 0);
    });
}

#[test]
fn a_join_that_hangs_over_there_ends_with_the_one_who_wanted_it() {
    if !is_possible() {
        return;
    }
    alone(|| {
        let Far { place, account, model: _, host, key, port, sshd: _sshd, queen } = Far::start("127.0.0.1:0");
        let before = tree(&account.home);
        // Connections come about, and nobody ever answers.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (url, dial) = (queen.url(), format!("http://{}", silent.local_addr().unwrap()));
        let mut install = vec!["hive", "install", "--queen", &url, "--name", "far", &host];
        install.extend(["--port", &port, "--identity", &key, "--listen", "127.0.0.1:0", "--dial", &dial]);
        let child = keeper(&place, &install).stderr(Stdio::piped()).spawn().unwrap();
        let (mut joining, _) = silent.accept().unwrap();
        signal_pid(child.id() as i32, Signal::INT);
        let output = child.wait_with_output().unwrap();
        let (_, told) = said(&output);
        assert_eq!(output.status.code(), Some(130), "{told}");
        assert!(told.contains("cancelled: "), "{told}");
        // What asked there has ended, and all that it had put there is gone.
        std::io::Read::read_to_end(&mut joining, &mut Vec::new()).unwrap();
        until("nothing of the account's runs", || match account.processes() {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        });
        assert_eq!(tree(&account.home), before, "{told}");
        let keys = std::fs::read_to_string(place.path("s/keys.json")).unwrap();
        let keys: Value = serde_json::from_str(&keys).unwrap();
        assert_eq!((keys["keys"].as_array().unwrap().len(), &keys["tokens"]), (1, &json!([])), "{keys}");
    });
}

/// A tunnel of ssh's, until it is dropped.
struct Tunnel(Child);

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_node_joins_and_serves_through_the_tunnel_that_is_advised() {
    if !is_possible() {
        return;
    }
    alone(|| {
        // As advised: a key first, since everybody on that machine comes to her through the tunnel.
        let far = Far::start("127.0.0.1:0");
        let Far { queen, port, key, host, model, account, place, .. } = &far;
        // Both ends are on one machine here, so the far one has another port.
        let there = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let forward = format!("{}:{}", there.port(), queen.address);
        let tunnel = Command::new(place.path("tools/ssh"))
            .args(["-N", "-R", &forward, "-p", port, "-i", key, "-o", "ExitOnForwardFailure=yes", host])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let _tunnel = Tunnel(tunnel);
        until("the tunnel is open", || {
            std::net::TcpStream::connect(there).map(drop).map_err(|error| error.to_string())
        });
        let (url, dial) = (queen.url(), format!("http://{there}"));
        let mut install = vec!["hive", "install", "--queen", &url, "--name", "far", host];
        install.extend(["--port", port, "--identity", key, "--listen", "127.0.0.1:0", "--dial", &dial]);
        let (_, told) = done(place, &install);
        assert!(told.contains("joined the queen") && told.contains("is reachable"), "{told}");
        queen.has_hives(1);
        let config = std::fs::read_to_string(account.home.join(".config/rbee/config.toml")).unwrap();
        assert!(config.contains(&dial), "{config}");
        let download = json!({"operation": "model_download", "model": model, "hive_id": "far"});
        let model = queen.job(&download).done()["id"].as_str().unwrap().to_owned();
        assert!(queen.stream("/v1/chat/completions", &chat(&model, 3, true)).rest().is_clean());
        done(place, &["hive", "uninstall", "far", "--queen", &url]);
        queen.has_hives(0);
    });
}
