//! For fish: `rbee completions fish > ~/.config/fish/completions/rbee.fish`.

use super::{EVERYWHERE, Values, global_flags, nodes, own_flags, values_of, values_of_arguments, visible};
use crate::cli::lookup::role_words;
use crate::cli::{Command, Flag, LINK_NAMES};
use std::fmt::Write;

/// The command's words come before its flags; before them may stand global flags only, some with values.
const WALK: &str = r#"
function __rbee_at
    set -l tokens (commandline -opc)
    set -l at
    set -l is_value 0
    for word in $tokens[2..-1]
        if test $is_value = 1
            set is_value 0
        else if contains -- $word $__rbee_valued
            set is_value 1
        else if not string match -q -- '-*' $word
            test (count $at) = 0; and test $word = help; and continue
            contains -- (string join ' ' -- $at $word) $__rbee_paths; or break
            set -a at $word
        end
    end
    # Between quotes a list is its words with blanks between.
    contains -- "$at" $argv
end
"#;

pub fn script() -> String {
    let mut text =
        "# Completions of rbee for fish: rbee completions fish > ~/.config/fish/completions/rbee.fish\n\n"
            .to_owned();
    let paths: Vec<String> = nodes().iter().map(|node| quoted(&node.words.join(" "))).collect();
    let valued: Vec<String> =
        global_flags().filter(|flag| flag.kind.takes_value()).flat_map(super::spellings).collect();
    let _ = writeln!(text, "set -g __rbee_paths {}", paths.join(" "));
    let _ = writeln!(text, "set -g __rbee_valued {}\n", valued.join(" "));
    let _ = writeln!(text, "{WALK}");
    for program in LINK_NAMES {
        let words = ["rbee"].iter().chain(role_words(program)).copied().collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "complete -c {program} -w {}", quoted(&words));
    }
    text.push_str("complete -c rbee -f\n");
    for flag in global_flags() {
        flag_line(&mut text, flag, "");
    }
    for (name, help) in EVERYWHERE {
        let _ = writeln!(text, "complete -c rbee -l {} -d {}", name.trim_start_matches('-'), quoted(help));
    }
    for node in nodes() {
        let at = condition(&[node.words.join(" ")]);
        for (word, summary) in &node.next {
            let _ = writeln!(text, "complete -c rbee{at} -a {word} -d {}", quoted(summary));
        }
    }
    for command in visible() {
        command_lines(&mut text, command);
    }
    text
}

fn command_lines(text: &mut String, command: &Command) {
    let paths: Vec<String> = command.paths().map(|path| path.join(" ")).collect();
    let at = condition(&paths);
    match values_of_arguments(command) {
        Values::Free => {}
        values => {
            let _ = writeln!(text, "complete -c rbee{at}{}", offer(values));
        }
    }
    for flag in own_flags(command) {
        flag_line(text, flag, &at);
    }
}

fn flag_line(text: &mut String, flag: &Flag, at: &str) {
    let _ = write!(text, "complete -c rbee{at} -l {}", flag.name);
    for alias in flag.aliases {
        let _ = write!(text, " -l {alias}");
    }
    if let Some(short) = flag.short {
        let _ = write!(text, " -s {short}");
    }
    if flag.kind.takes_value() {
        text.push_str(" -r");
        text.push_str(&offer(values_of(flag)));
    }
    let _ = writeln!(text, " -d {}", quoted(flag.help));
}

fn offer(values: Values) -> String {
    match values {
        Values::Free => " -f".into(),
        Values::Files => " -F".into(),
        Values::Dirs => " -f -a '(__fish_complete_directories)'".into(),
        Values::OneOf(words) => format!(" -f -a {}", quoted(&words.join(" "))),
    }
}

/// Holds where the words typed so far are one of these.
fn condition(paths: &[String]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| format!("\"{path}\"")).collect();
    format!(" -n '__rbee_at {}'", paths.join(" "))
}

/// Fish knows two escapes between single quotes.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}
