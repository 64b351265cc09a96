//! `rbee install` and `rbee uninstall` on an account of nobody's: what they put where, whom they tell, and that nothing is left.

use crate::support::node::{Daemon, Place, alone, chat, said, until};
use crate::support::pidns::{NOBODY, inside_as};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// As the account itself would call it: without the flags and variables of a test.
fn rbee(place: &Place, program: Option<&Path>, args: &[&str]) -> Output {
    let mut command = place.command(args);
    if let Some(program) = program {
        let from = command;
        command = Command::new(program);
        command.args(from.get_args()).env_clear();
        command.envs(from.get_envs().filter_map(|(name, value)| Some((name, value?))));
    }
    command.env_remove("RBEE_STATE_DIR");
    let tools = place.path("tools");
    if tools.exists() {
        command.env("PATH", format!("{}:/usr/bin:/bin", tools.display()));
    }
    println!("{command:?}");
    command.output().unwrap()
}

#[track_caller]
fn done(output: &Output) -> (String, String) {
    assert!(output.status.success(), "{output:?}");
    said(output)
}

/// Everything below a folder.
pub fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut waiting = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        for entry in path.read_dir().unwrap().flatten() {
            found.push(entry.path());
            if entry.file_type().unwrap().is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// A stand-in for a program: notes how it was called.
fn tool(place: &Place, name: &str) {
    let folder = place.path("tools");
    std::fs::create_dir_all(&folder).unwrap();
    let script = format!("#!/bin/sh\necho {name} \"$@\" >> {}\n", place.path("called").display());
    std::fs::write(folder.join(name), script).unwrap();
    std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_hive_is_installed_serves_is_renewed_and_leaves_nothing_behind() {
    if !inside_as(NOBODY, module_path!(), "a_hive_is_installed_serves_is_renewed_and_leaves_nothing_behind") {
        return;
    }
    let (place, account) = (Place::new(), Place::new());
    let home = account.path("home");
    let queen = Daemon::start(&place, "queen serve", &[]);
    let token = done(&place.rbee(&["token"])).0;
    let arguments = ["install", "--role", "hive", "--queen", &queen.url(), "--name", "one", "--json"];
    let with_token = [&arguments[..], &["--join", token.trim()]].concat();
    let (value, narration) = done(&rbee(&account, None, &with_token));
    let value: Value = serde_json::from_str(&value).unwrap();
    assert_eq!(
        (value["service"].as_str(), value["survives_reboot"].as_bool()),
        (Some("detached"), Some(false))
    );
    assert!(narration.contains("neither systemd nor launchd"), "{narration}");
    queen.has_hives(1);
    let program = home.join(".local/bin/rbee");
    assert_eq!(value["program"], program.to_str().unwrap());
    assert_eq!(home.join(".local/bin/rbee-hive").canonicalize().unwrap(), program);
    for manual in
        ["man/man1/rbee.1", "bash-completion/completions/rbee", "fish/vendor_completions.d/rbee.fish"]
    {
        assert!(home.join(".local/share").join(manual).exists(), "{manual}");
    }
    let config = std::fs::read_to_string(home.join(".config/rbee/config.toml")).unwrap();
    assert!(config.contains(&format!("[hive]\nqueen = [\"{}\"]\nname = \"one\"\n", queen.url())), "{config}");
    let model = queen.register(&account, Some("one"));
    assert!(queen.stream("/v1/chat/completions", &chat(&model, 3, true)).rest().is_clean());

    // Again: the program is replaced, and the hive links again by its own key.
    let first = queen.get("/v1/hives/one").json()["connected_at"].as_u64();
    done(&rbee(&account, None, &["install"]));
    until("the renewed hive is linked", || match queen.get("/v1/hives/one") {
        answer if answer.status == 200 && answer.json()["connected_at"].as_u64() > first => Ok(()),
        answer => Err(format!("{answer:?}")),
    });
    let (_, narration) = done(&rbee(&account, Some(&program), &["uninstall"]));
    assert!(narration.contains("removed, with all state"), "{narration}");
    queen.has_hives(0);
    assert_eq!(tree(&home), Vec::<PathBuf>::new());
    assert_eq!(account.processes(), []);
    let again = rbee(&account, None, &["uninstall"]);
    assert!(said(&again).1.contains("nothing was installed"), "{again:?}");
}

#[test]
fn what_is_not_rbees_is_not_overwritten_and_a_failed_install_is_undone() {
    if !inside_as(
        NOBODY,
        module_path!(),
        "what_is_not_rbees_is_not_overwritten_and_a_failed_install_is_undone",
    ) {
        return;
    }
    let account = Place::new();
    let home = account.path("home");
    let bin = home.join(".local/bin");
    std::fs::create_dir_all(&bin).unwrap();
    for name in ["rbee", "rbee-hive"] {
        std::fs::write(bin.join(name), "mine").unwrap();
        let output = rbee(&account, None, &["install", "--role", "hive"]);
        let (_, narration) = said(&output);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(narration.contains(&format!("{}` exists", bin.join(name).display())), "{narration}");
        assert_eq!(tree(&home), [home.join(".local"), bin.clone(), bin.join(name)]);
        assert_eq!(std::fs::read_to_string(bin.join(name)).unwrap(), "mine");
        std::fs::remove_file(bin.join(name)).unwrap();
    }
    // A queen who is not there, and a token she would not know.
    let queen = ["install", "--role", "hive", "--queen", "http://127.0.0.1:9", "--join", "rbee_join_x"];
    let output = rbee(&account, None, &queen);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said(&output).1.contains("joining the queen at http://127.0.0.1:9"), "{output:?}");
    std::fs::set_permissions(&bin, std::fs::Permissions::from_mode(0o555)).unwrap();
    let output = rbee(&account, None, &["install", "--role", "hive"]);
    assert!(said(&output).1.contains(&format!("writing `{}", bin.display())), "{output:?}");
    assert_eq!(tree(&home), [home.join(".local"), bin.clone()]);
    std::fs::set_permissions(&bin, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Refused before anything is made, so that the next install does not take it for older state.
    for (words, told) in [
        (&["--listen", "0.0.0.0:7833"][..], "without a key"),
        (&["--role", "queen", "--queen", "http://q:7833"], "a queen dials nobody"),
    ] {
        let output = rbee(&account, None, &[&["install"], words].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(said(&output).1.contains(told), "{output:?}");
        assert_eq!(tree(&home), [home.join(".local"), bin.clone()]);
    }
    // A daemon that cannot start says why.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = rbee(&account, None, &["install", "--role", "hive", "--listen", &address]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let (_, narration) = said(&output);
    assert!(narration.contains(&address) && narration.contains("in use"), "{narration}");
    assert_eq!(tree(&home), [home.join(".local"), bin.clone()]);
    // Whom the keeper asks by habit is nothing that a queen is told.
    let mut command = account.command(&["install", "--role", "queen", "--no-start"]);
    command.env_remove("RBEE_STATE_DIR").env("RBEE_QUEEN", "http://127.0.0.1:9");
    done(&command.output().unwrap());
    done(&rbee(&account, Some(&bin.join("rbee")), &["uninstall"]));
    assert_eq!(tree(&home), [home.join(".local"), bin.clone()]);
    let output = rbee(&account, None, &["install", "--system"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(said(&output).1.contains("needs root"), "{output:?}");
}

#[test]
fn with_systemd_a_unit_is_written_enabled_and_taken_away() {
    if !inside_as(NOBODY, module_path!(), "with_systemd_a_unit_is_written_enabled_and_taken_away") {
        return;
    }
    let account = Place::new();
    let home = account.path("home");
    tool(&account, "systemctl");
    tool(&account, "loginctl");
    let called = || std::fs::read_to_string(account.path("called")).unwrap_or_default();
    // It would be started again and again, to refuse each time.
    let refused = rbee(&account, None, &["install", "--listen", "0.0.0.0:7833"]);
    assert!(said(&refused).1.contains("rbee key create") && !called().contains("enable"), "{refused:?}");
    let key = done(&rbee(&account, None, &["key", "create"])).0;
    assert!(key.starts_with("rbee_"), "{key}");
    let (_, narration) = done(&rbee(&account, None, &["install", "--listen", "0.0.0.0:7833"]));
    let unit = home.join(".config/systemd/user/rbee.service");
    assert!(narration.contains(unit.to_str().unwrap()), "{narration}");
    let text = std::fs::read_to_string(&unit).unwrap();
    assert!(text.contains(&format!("ExecStart={}/.local/bin/rbee serve\n", home.display())), "{text}");
    assert!(text.contains("KillMode=process\nDelegate=yes\n"), "{text}");
    let config = std::fs::read_to_string(home.join(".config/rbee/config.toml")).unwrap();
    assert!(config.contains("[queen]\nlisten = [\"0.0.0.0:7833\"]\n"), "{config}");
    let user = "systemctl --user";
    for call in [format!("{user} daemon-reload\n{user} enable --now rbee.service\n"), "enable-linger".into()]
    {
        assert!(called().contains(&call), "{}", called());
    }
    std::fs::write(account.path("called"), "").unwrap();
    // What a person has changed is theirs.
    std::fs::write(home.join(".config/rbee/config.toml"), "[queen]\nqueue = 3\n").unwrap();
    let (_, narration) = done(&rbee(&account, None, &["uninstall", "--keep-state"]));
    assert!(narration.contains("was changed since; it stays"), "{narration}");
    let disabled = called().find(&format!("{user} disable --now rbee.service")).unwrap();
    assert!(called().rfind(&format!("{user} daemon-reload")).unwrap() > disabled, "{}", called());
    assert!(called().contains("disable-linger"), "{}", called());
    assert!(!unit.exists() && !home.join(".local").exists() && home.join(".cache/rbee").exists());
}

/// What root's install writes to; in the test's own mounts these are empty.
const SYSTEM_FOLDERS: [&str; 5] = ["/usr/local", "/etc", "/var/lib", "/var/log", "/run"];

#[test]
fn root_installs_for_the_system_and_nothing_of_it_stays() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: root_installs_for_the_system_and_nothing_of_it_stays: needs root");
    }
    alone(|| {
        for folder in SYSTEM_FOLDERS {
            let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs", folder]).output().unwrap();
            if !mounted.status.success() {
                return eprintln!("skipped: root's install: {folder} cannot be mounted over: {mounted:?}");
            }
        }
        let (place, account) = (Place::new(), Place::new());
        let queen = Daemon::start(&place, "queen serve", &[]);
        let url = queen.url();
        let install = ["install", "--system", "--role", "hive", "--queen", &url, "--name", "one"];
        let listen = ["--listen", "127.0.0.1:0"];
        done(&rbee(&account, None, &[&install[..], &listen].concat()));
        queen.has_hives(1);
        for path in
            ["/usr/local/bin/rbee", "/usr/local/bin/rbee-hive", "/etc/rbee/config.toml", "/var/lib/rbee/node"]
        {
            assert!(Path::new(path).exists(), "{path}");
        }
        let state = Path::new("/var/lib/rbee").metadata().unwrap();
        assert_eq!(state.permissions().mode() & 0o777, 0o700);
        done(&rbee(&account, Some(Path::new("/usr/local/bin/rbee")), &["uninstall", "--system"]));
        queen.has_hives(0);
        for folder in SYSTEM_FOLDERS {
            assert_eq!(tree(Path::new(folder)), Vec::<PathBuf>::new(), "{folder}");
        }
    });
}
