//! Completions as the shells themselves answer them, and the manual page as `man` reads it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const RBEE: &str = env!("CARGO_BIN_EXE_rbee");

fn printed(args: &[&str]) -> String {
    let output = Command::new(RBEE).args(args).env_clear().output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A shell's script, in a folder with a file and a folder to complete.
struct Shell {
    name: &'static str,
    dir: tempfile::TempDir,
    script: PathBuf,
}

impl Shell {
    fn new(name: &'static str) -> Option<Shell> {
        if Command::new(name).args(["-c", "true"]).output().is_err() {
            eprintln!("skipped: there is no {name} here");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("completions");
        std::fs::write(&script, printed(&["completions", name])).unwrap();
        std::fs::create_dir(dir.path().join("folder one")).unwrap();
        std::fs::write(dir.path().join("model.gguf"), "").unwrap();
        Some(Shell { name, dir, script })
    }

    fn run(&self, program: &str, line: &str) -> Output {
        let mut command = Command::new(self.name);
        match self.name {
            "bash" => command.args(["--norc", "--noprofile"]),
            "zsh" => command.arg("-f"),
            _ => command.arg("--no-config"),
        };
        // Fish has no $0 of its own here.
        let arguments: &[&str] = if self.name == "fish" { &[line] } else { &["shell", line] };
        command.args(["-c", program]).args(arguments).current_dir(self.dir.path());
        command.env("SCRIPT", &self.script).env("HOME", self.dir.path()).output().unwrap()
    }

    #[track_caller]
    fn answers(&self, program: &str, line: &str) -> Vec<String> {
        let output = self.run(program, line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}: `{line}`: {said}", self.name);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

/// What must be offered at the end of a line, and what must not.
const EXPECTED: &[(&str, &[&str], &[&str])] = &[
    ("rbee ", &["run", "infer", "hive", "pull", "completions"], &["shim", "unpack", "list-models"]),
    ("rbee hi", &["hive"], &["run"]),
    ("rbee hive ", &["list", "ls", "serve"], &["download"]),
    ("rbee --queen http://127.0.0.1:7833 hive l", &["list", "ls"], &["links"]),
    ("rbee -q worker binary ", &["list", "get", "delete"], &["spawn"]),
    ("rbee help model ", &["download", "pull"], &["run"]),
    ("rbee completions ", &["bash", "zsh", "fish"], &["model.gguf"]),
    ("rbee serve --log-format ", &["text", "json"], &["--json"]),
    ("rbee run --model ", &["model.gguf"], &["hive"]),
    ("rbee links ", &["folder one"], &["model.gguf"]),
    ("rbee-hive --orphan-", &["--orphan-ttl"], &["--queue"]),
    ("rbee infer --top", &["--top-p", "--top-k"], &["--timeout"]),
    ("rbee worker serve --ct", &["--ctx-size", "--ctx"], &["--seed"]),
    ("rbee status --ti", &["--timeout"], &["--temperature"]),
    ("rbee ls --no", &["--node", "--no-color"], &["--name"]),
];

#[track_caller]
fn answers_as_expected(shell: &Shell, program: &str) {
    for (line, wanted, unwanted) in EXPECTED {
        let offered = shell.answers(program, line);
        // Fish tells what each is after a tab, and that a folder is one.
        let words: Vec<&str> = offered
            .iter()
            .map(|answer| answer.split('\t').next().unwrap_or_default().trim_end_matches('/'))
            .collect();
        for word in *wanted {
            assert!(words.contains(word), "{}: `{line}` offers {offered:?}, not {word}", shell.name);
        }
        for word in *unwanted {
            assert!(!words.contains(word), "{}: `{line}` offers {word}", shell.name);
        }
    }
}

const BASH: &str = r#"
source "$SCRIPT"
complete -p rbee rbee-hive >/dev/null || exit 1
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:' COMP_LINE=$1 COMP_POINT=${#1}
COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_rbee
printf '%s\n' "${COMPREPLY[@]}"
"#;

#[test]
fn bash_is_answered_at_every_place_of_a_line() {
    let Some(bash) = Shell::new("bash") else { return };
    answers_as_expected(&bash, BASH);
    assert_eq!(bash.answers(BASH, "rbee serve --log-format=j"), ["json"]);
    assert_eq!(bash.answers(BASH, "rbee run --seed "), [""; 0], "a value that nobody can know");
    assert_eq!(bash.answers(BASH, "rbee run --state-dir f"), ["folder one"]);
}

/// The two that zsh's own functions would show, shown here: completion functions run in an editor only.
const ZSH: &str = r#"
compdef() { : }
_message() { : }
compset() { : }
_files() { if [[ $1 == -/ ]]; then print -l -- *(/N); else print -l -- *(N); fi }
_describe() {
    [[ $1 == -o ]] && shift
    local word=${words[CURRENT]#*=} entry
    for entry in ${(P)2}; do
        [[ ${entry%%:*} == $word* ]] && print -r -- ${entry%%:*}
    done
}
source "$SCRIPT"
words=(${(z)1}) CURRENT=$#words
[[ $1 == *' ' ]] && { words+=(''); ((CURRENT++)) }
_rbee
true
"#;

#[test]
fn zsh_is_answered_at_every_place_of_a_line() {
    let Some(zsh) = Shell::new("zsh") else { return };
    let syntax = Command::new("zsh").arg("-n").arg(&zsh.script).output().unwrap();
    assert!(syntax.status.success() && syntax.stderr.is_empty(), "{syntax:?}");
    answers_as_expected(&zsh, ZSH);
    assert_eq!(zsh.answers(ZSH, "rbee serve --log-format=j"), ["json"]);
}

const FISH: &str = "source $SCRIPT; complete -C $argv[1]";

#[test]
fn fish_is_answered_at_every_place_of_a_line() {
    let Some(fish) = Shell::new("fish") else { return };
    let syntax = Command::new("fish").arg("--no-execute").arg(&fish.script).output().unwrap();
    assert!(syntax.status.success() && syntax.stderr.is_empty(), "{syntax:?}");
    answers_as_expected(&fish, FISH);
    let offered = fish.answers(FISH, "rbee hive l");
    assert!(offered.contains(&"list\tthe machines of the fleet".to_owned()), "{offered:?}");
}

#[test]
fn a_shell_without_completions_is_a_usage_error_that_names_those_with() {
    let output = Command::new(RBEE).args(["completions", "tcsh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("tcsh") && said.contains("bash, zsh, fish"), "{said}");
}

/// Runs a page through a program and gives what it printed and what it complained of.
fn formatted(program: &str, args: &[&str], page: &str) -> Option<(String, String)> {
    let mut command = Command::new(program);
    command.args(args).env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8");
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: there is no {program} here");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let text = page.to_owned();
    let writing = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Some((text(output.stdout), text(output.stderr)))
}

#[test]
fn the_manual_page_formats_without_a_warning_and_has_every_command() {
    let page = printed(&["man"]);
    let Some((text, complaints)) =
        formatted("groff", &["-man", "-Tutf8", "-P-cbou", "-ww", "-rLL=100n"], &page)
    else {
        return;
    };
    assert_eq!(complaints, "");
    for command in rbee::cli::COMMANDS.iter().filter(|command| !command.hidden) {
        assert!(text.contains(&format!("rbee {}", command.name())), "{}", command.name());
    }
    for words in ["--temperature T", "RBEE_QUEUE_WAIT", "EXIT STATUS", "130", "config.toml", "fleet's"] {
        assert!(text.contains(words), "{words}");
    }
    if let Some((text, _)) = formatted("man", &["-P", "cat", "-l", "-"], &page) {
        assert!(text.contains("one inference cloud"), "{text}");
    }
}
