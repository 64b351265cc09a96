//! The rules of the house, held over the source itself: layers, single places for what is dangerous, and what a static
//! program must not contain.

mod elf;

use std::path::{Path, PathBuf};

const LINES_MAX: usize = 700;

/// Modules from the ground up. A module may use those of its own layer and below; a role may not use another role.
const LAYERS: [(&str, &[&str]); 5] = [
    ("vocabulary", &["cli", "config", "wire", "paths", "exit"]),
    ("plumbing", &["process", "http", "keys", "shutdown", "daemon"]),
    ("capabilities", &["job", "download", "model", "pkgbuild", "catalog"]),
    ("roles", &["keeper", "queen", "hive", "worker"]),
    // Where alone two roles meet.
    ("composition", &["serve"]),
];
const ROLES: usize = 3;

/// What lies at the top of the repository; folders that git ignores apart.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".gitignore",
    ".rustfmt.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "build.rs",
    "pkgbuilds",
    "src",
    "tests",
];
const IGNORED: &[&str] = &[".git", ".setup", "shared", "target"];

/// What glibc answers by loading shared modules; with and without `_r`.
const NAME_SERVICE: &[&str] = &[
    "getaddrinfo",
    "getnameinfo",
    "gethostbyname",
    "gethostbyname2",
    "gethostbyaddr",
    "getpwnam",
    "getpwuid",
    "getpwent",
    "getgrnam",
    "getgrgid",
    "getgrent",
    "getgrouplist",
    "initgroups",
    "getservbyname",
    "getservbyport",
    "getprotobyname",
    "getlogin",
];

struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

impl Source {
    /// The lines that are code, numbered from one. Comments may name anything.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.map(|(number, line)| (number, line.split("//").next().unwrap_or_default()))
    }

    /// `hive` for src/hive/link.rs and src/hive.rs; none for main.rs, lib.rs and tests.
    fn module(&self) -> Option<&str> {
        let inner = self.path.strip_prefix("src/")?;
        let module = inner.split('/').next()?.trim_end_matches(".rs");
        (!matches!(module, "main" | "lib")).then_some(module)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut sources = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            sources.push(Source { path, text });
        }
    }
    assert!(!sources.is_empty());
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

#[track_caller]
fn nothing(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

/// Every place in the code where one of `words` stands, outside of the files that `allowed` lists (a `/` at the end
/// means a folder).
fn places(sources: &[Source], words: &[&str], allowed: &[&str]) -> Vec<String> {
    let is_allowed =
        |path: &str| allowed.iter().any(|a| if a.ends_with('/') { path.starts_with(a) } else { path == *a });
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| !is_allowed(&source.path)) {
        for (number, line) in source.code() {
            if words.iter().any(|word| has_word(line, word)) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    found
}

/// `word` in `line`, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(|c| is_name(c) && word.starts_with(is_name));
        let after =
            line[at + word.len()..].chars().next().is_some_and(|c| is_name(c) && word.ends_with(is_name));
        !before && !after
    })
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, modules)| modules.contains(&module))
}

/// The modules that a text names as `crate::x` or `crate::{x, y::z}`.
fn modules_named(code: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut named = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            named.push(name(rest));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in list.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => named.push(name(std::mem::take(&mut item).trim())),
                _ if depth == 0 => item.push(c),
                _ => {}
            }
        }
        named.push(name(item.trim()));
    }
    named
}

#[test]
fn imports_point_down_and_roles_know_nothing_of_one_another() {
    let mut found = Vec::new();
    for source in sources(&["src"]) {
        let Some(module) = source.module() else { continue };
        let Some(own) = layer(module) else {
            found.push(format!("{}: `{module}` has no layer; give it one in tests/tidy.rs", source.path));
            continue;
        };
        let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
        for named in modules_named(&code) {
            let Some(other) = layer(&named).filter(|_| named != module) else { continue };
            if other > own || own == ROLES && other == ROLES {
                found.push(format!(
                    "{}: {} `{module}` uses {} `{named}`",
                    source.path, LAYERS[own].0, LAYERS[other].0
                ));
            }
        }
    }
    nothing("imports must point down", found);
}

#[test]
fn the_layer_rule_reads_every_form_of_import() {
    let code =
        "use crate::http::server; use crate::{queen::{a, b}, hive, self::x}; fn f() { crate::worker::go() }";
    assert_eq!(modules_named(code), ["http", "queen", "hive", "self", "worker"]);
    assert!(has_word("let x = foo::unsafe_thing;", "unsafe_thing") && !has_word("unsafe_thing", "unsafe"));
}

#[test]
fn what_is_dangerous_has_one_place() {
    let src = sources(&["src", "tests", "build.rs"]);
    let only = |words: &[&str], allowed: &[&str]| {
        nothing(
            &format!("{words:?} only in {allowed:?}"),
            places(&src, words, &[allowed, &["tests/tidy.rs"]].concat()),
        );
    };
    only(&["unsafe"], &["src/worker/llama.rs", "src/process/"]);
    only(&["llama_cpp_sys_2"], &["src/worker/llama.rs"]);
    only(&["llama_cpp_2"], &[]);
    only(&["hf_hub"], &["src/model/hub.rs"]);
    only(&["process::exit", "process::abort"], &["src/main.rs"]);
    only(&["todo!", "unimplemented!", "#[allow", "#![allow"], &[]);
    only(&["anyhow"], &[]);
}

/// Two loops look again after a pause: the harness' wait for a condition, and the wait for a foreign server, which offers
/// nothing to wait on. The test hub's slow lines are slow by the clock. Everything else uses them.
const PAUSES: &[&str] =
    &["tests/support/node.rs", "tests/inference.rs", "tests/support/hub/connection.rs", "tests/tidy.rs"];

#[test]
fn tests_wait_for_conditions_and_never_sleep() {
    nothing(
        "no sleep in tests",
        places(&sources(&["tests"]), &["thread::sleep", "time::sleep", "time::sleep_until"], PAUSES),
    );
}

#[test]
fn files_open_with_their_purpose_and_stay_short() {
    let mut found = Vec::new();
    for source in sources(&["src", "tests", "build.rs"]) {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            found.push(format!("{}: {lines} lines, at most {LINES_MAX}: split it", source.path));
        }
        // A module's tests in a file of their own have that module's purpose.
        if !source.text.starts_with("//!") && !source.path.ends_with("/tests.rs") {
            found.push(format!("{}: opens without a sentence on what it is for", source.path));
        }
        for name in ["common", "utils", "util", "helpers"] {
            if source.path.split(['/', '.']).any(|part| part == name) {
                found.push(format!("{}: name it for what it owns", source.path));
            }
        }
    }
    nothing("every file", found);
}

#[test]
fn error_messages_are_lowercase_and_without_a_full_stop() {
    let mut found = Vec::new();
    for source in sources(&["src"]) {
        for (at, _) in source.text.match_indices("#[error(") {
            let rest = source.text[at..].split_once('"').map_or("", |(_, rest)| rest);
            let message = rest.split("\")]").next().and_then(|m| m.split("\",").next()).unwrap_or_default();
            let mut first = message.chars();
            // A word in capitals, such as a variable's name, may start a message.
            let capital =
                first.next().is_some_and(char::is_uppercase) && first.next().is_some_and(char::is_lowercase);
            if capital || message.trim_end().ends_with('.') {
                found.push(format!("{}: {message}", source.path));
            }
        }
    }
    nothing("error messages", found);
}

#[test]
fn the_top_level_is_the_agreed_one() {
    let mut found = Vec::new();
    for entry in root().read_dir().unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !TOP_LEVEL.contains(&name.as_str()) && !IGNORED.contains(&name.as_str()) {
            found.push(name);
        }
    }
    nothing("files at the top that nobody agreed on", found);
}

#[test]
fn recipes_have_ids_that_the_catalog_can_serve() {
    let Ok(folders) = root().join("pkgbuilds").read_dir() else { return };
    let is_id = |name: &str| {
        (1..=100).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let names = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    nothing("recipe ids match [a-z0-9-]{1,100}", names.filter(|name| !is_id(name)).collect());
}

/// Static glibc answers these by loading shared modules, which kills the program where nsswitch names the wrong ones.
#[test]
fn the_static_program_asks_no_name_service() {
    let image = std::fs::read(env!("CARGO_BIN_EXE_rbee")).unwrap();
    let program = match elf::Program::read(&image) {
        Some(program) if !program.has_interpreter => program,
        _ => return eprintln!("skipped: the program is not a static ELF file"),
    };
    assert!(program.functions.iter().any(|name| name == "main"), "the symbol table was read");
    // Leading underscores are glibc's own names for the same. Parts of NSS come with fork(); nothing calls them.
    let asks = |name: &&String| {
        let name = name.trim_start_matches('_').trim_end_matches("_r");
        NAME_SERVICE.contains(&name)
    };
    nothing("functions that load NSS modules", program.functions.iter().filter(asks).cloned().collect());
}
