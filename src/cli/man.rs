//! The manual page, written from the table as troff, with the man macros that every system's `man` knows.

use super::lookup::role_words;
use super::table::COMMANDS;
use super::{Command, Default, Flag, Group, LINK_NAMES, flags, sections};
use crate::cli::help::{GROUPS, arguments};
use crate::exit::Exit;
use std::fmt::Write;

/// What is read besides each flag's own variable.
const VARIABLES: &[(&str, &str)] = &[
    ("RBEE_CONFIG", "a configuration file that comes before the others"),
    ("RBEE_LOG", "which log lines daemons write: a level, or target=level, comma by comma"),
    ("HF_TOKEN", "the key for models of the hub that ask for one"),
    ("HF_HOME, HF_HUB_CACHE", "where the hub's cache of models is"),
    ("HF_ENDPOINT", "another hub"),
    ("HF_HUB_OFFLINE", "use only what is in the cache"),
];

const FILES: &[(&str, &str)] = &[
    ("~/.config/rbee/config.toml, /etc/rbee/config.toml", "configuration of a user and of the system"),
    ("~/.cache/rbee, as root /var/lib/rbee", "state: installed workers, records of models, journals of jobs"),
    ("chat_history in the state", "what was typed in conversations, for its owner alone"),
    ("~/.cache/rbee/logs, as root /var/log/rbee", "logs of daemons, workers and builds"),
    ("$XDG_RUNTIME_DIR/rbee, as root /run/rbee", "sockets; without such a directory run/ in the state"),
    ("~/.cache/huggingface/hub", "the models' files, shared with other tools"),
];

pub fn page() -> String {
    let mut text = String::from(".\\\" Written by `rbee man`.\n");
    let _ = writeln!(text, ".TH RBEE 1 \"\" \"rbee {}\" \"User Commands\"", escaped(crate::wire::VERSION));
    section(&mut text, "NAME");
    paragraph(&mut text, "rbee - makes the machines you own one inference cloud");
    section(&mut text, "SYNOPSIS");
    text.push_str(".B rbee\n.I COMMAND\n[flags]\n");
    section(&mut text, "DESCRIPTION");
    paragraph(
        &mut text,
        "One file, copied to every machine, makes them one inference cloud with one OpenAI-compatible address. A queen \
         places requests; a hive on each machine owns its devices, models and workers; a worker is one process with one \
         model. `rbee run` starts what is missing on this machine.",
    );
    for (group, title) in GROUPS {
        section(&mut text, &format!("COMMANDS: {}", title.to_uppercase()));
        for command in COMMANDS.iter().filter(|c| c.group == *group && !c.hidden) {
            command_entry(&mut text, command);
        }
    }
    section(&mut text, "FLAGS EVERYWHERE");
    for flag in flags::GLOBAL {
        flag_entry(&mut text, flag, &format!("key {}", flag.key()));
    }
    entry(&mut text, "-h, --help", "help on the command; --help says more than -h");
    entry(&mut text, "-V, --version", "the version");
    section(&mut text, "CONFIGURATION");
    let tables: Vec<String> = sections().map(|table| format!("[{table}]")).collect();
    paragraph(
        &mut text,
        &format!(
            "A setting comes from the first of: its flag, its RBEE_ variable, the file that RBEE_CONFIG names, \
             ~/.config/rbee/config.toml, /etc/rbee/config.toml, its default. Flags that stand everywhere are keys at the \
             top of a file, the others stand in {}. An empty variable counts as unset. A switch is turned off again by \
             --flag=false.",
            tables.join(", ")
        ),
    );
    section(&mut text, "ENVIRONMENT");
    for (name, told) in VARIABLES {
        entry(&mut text, name, told);
    }
    for (variable, names) in variables() {
        entry(&mut text, &variable, &format!("sets {}", names.join(", ")));
    }
    section(&mut text, "FILES");
    for (path, told) in FILES {
        entry(&mut text, path, told);
    }
    section(&mut text, "EXIT STATUS");
    for exit in Exit::ALL {
        entry(&mut text, &exit.code().to_string(), exit.meaning());
    }
    text
}

fn command_entry(text: &mut String, command: &Command) {
    let _ = writeln!(text, ".SS \"rbee {}{}\"", escaped(&command.name()), escaped(&arguments(command)));
    let also: Vec<String> = command.aliases.iter().map(|alias| format!("rbee {}", alias.join(" "))).collect();
    let links = LINK_NAMES.iter().filter(|link| role_words(link) == command.path).map(|l| (*l).to_owned());
    let also: Vec<String> = also.into_iter().chain(links).collect();
    let summary = sentence(command.summary);
    let also = if also.is_empty() { String::new() } else { format!(" Also {}.", also.join(", ")) };
    paragraph(text, &format!("{summary}{also}"));
    if !command.details.is_empty() {
        text.push_str(".PP\n");
        paragraph(text, command.details);
    }
    for positional in command.positionals {
        entry(text, positional.name, positional.help);
    }
    for flag in command.flags.iter().filter(|flag| !flag.hidden) {
        let tables: Vec<String> = command.sections_of(flag).map(|table| format!("[{table}]")).collect();
        let key = if tables.is_empty() {
            String::new()
        } else {
            format!("key {} {}", tables.join(", "), flag.key())
        };
        flag_entry(text, flag, &key);
    }
}

fn flag_entry(text: &mut String, flag: &Flag, key: &str) {
    let mut name = flag.short.map_or_else(String::new, |short| format!("-{short}, "));
    let _ = write!(name, "--{}", flag.name);
    for alias in flag.aliases {
        let _ = write!(name, ", --{alias}");
    }
    if flag.kind.takes_value() {
        let _ = write!(name, " {}", flag.value);
    }
    let mut facts = Vec::new();
    if flag.required {
        facts.push("required".to_owned());
    }
    if flag.many {
        facts.push("repeatable".to_owned());
    }
    match flag.default {
        Default::None => {}
        Default::Value(default) | Default::Says(default) => facts.push(format!("default: {default}")),
    }
    facts.extend(Some(key.to_owned()).filter(|key| !key.is_empty()));
    let facts = if facts.is_empty() { String::new() } else { format!(" ({})", facts.join("; ")) };
    entry(text, &name, &format!("{}{facts}", flag.help));
}

/// Each variable once, with the flags that it sets.
fn variables() -> Vec<(String, Vec<String>)> {
    let mut variables: Vec<(String, Vec<String>)> = Vec::new();
    let own = COMMANDS.iter().filter(|c| !c.hidden).flat_map(|c| c.flags).copied();
    for flag in flags::GLOBAL.iter().copied().chain(own).filter(|flag| !flag.hidden) {
        let name = format!("--{}", flag.name);
        for variable in std::iter::once(flag.env()).chain(flag.also_env.map(str::to_owned)) {
            match variables.iter_mut().find(|(known, _)| *known == variable) {
                Some((_, names)) if names.contains(&name) => {}
                Some((_, names)) => names.push(name.clone()),
                None => variables.push((variable, vec![name.clone()])),
            }
        }
    }
    variables.sort();
    variables
}

fn section(text: &mut String, title: &str) {
    let _ = writeln!(text, ".SH \"{}\"", escaped(title));
}

fn paragraph(text: &mut String, words: &str) {
    let _ = writeln!(text, "{}", escaped(words));
}

fn entry(text: &mut String, name: &str, told: &str) {
    let _ = writeln!(text, ".TP\n.B {}\n{}", escaped(name), escaped(told));
}

fn sentence(summary: &str) -> String {
    let mut letters = summary.chars();
    let first = letters.next().map(char::to_uppercase).into_iter().flatten();
    first.chain(letters).chain(['.']).collect()
}

/// Text as troff prints it: no escape, no request at a line's start, no quote that ends an argument, and dashes that can be
/// copied to a command line.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '"' => out.push_str("\\(dq"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '.' if out.is_empty() => out.push_str("\\&."),
            '~' => out.push_str("\\(ti"),
            '^' => out.push_str("\\(ha"),
            c if c.is_ascii() => out.push(c),
            c => {
                let _ = write!(out, "\\[u{:04X}]", u32::from(c));
            }
        }
    }
    out
}

/// The heading that a group has in help, so that a group without one does not compile away unseen.
const _: () = assert!(GROUPS.len() == Group::Rest as usize + 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_flag_variable_and_exit_code_is_in_the_page() {
        let page = page();
        for command in COMMANDS.iter().filter(|c| !c.hidden) {
            assert!(page.contains(&format!(".SS \"rbee {}", escaped(&command.name()))), "{}", command.name());
            for alias in command.aliases {
                assert!(page.contains(&escaped(&format!("rbee {}", alias.join(" ")))), "{alias:?}");
            }
            for flag in command.all_flags().filter(|flag| !flag.hidden) {
                assert!(page.contains(&escaped(&format!("--{}", flag.name))), "{}", flag.name);
                assert!(page.contains(&format!("\n.B {}\n", flag.env())), "{}", flag.env());
            }
        }
        for flag in COMMANDS.iter().flat_map(|c| c.flags).filter(|flag| flag.hidden) {
            assert!(!page.contains(&escaped(&format!("--{}", flag.name))), "{}", flag.name);
        }
        for exit in Exit::ALL {
            assert!(page.contains(exit.meaning().split(' ').next().unwrap()));
        }
        assert!(page.is_ascii());
    }

    #[test]
    fn text_cannot_be_a_request_nor_end_an_argument() {
        assert_eq!(escaped(".so \\x \"y\" -z"), "\\&.so \\ex \\(dqy\\(dq \\-z");
        assert_eq!(escaped("'br"), "\\(aqbr");
    }
}
