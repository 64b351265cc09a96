//! Completions for shells, written from the table. A shell's script holds the tree of command words and the flags of each
//! command as data, and a few lines that walk it; nothing is asked of rbee while somebody types.

mod bash;
mod fish;
mod zsh;

use super::lookup::{find, next_words, role_words};
use super::table::COMMANDS;
use super::{Action, Command, Flag, Kind, LINK_NAMES, Positional, flags};

/// The script for a shell; none for one that is not among those of the command's own argument.
pub fn script(shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash::script()),
        "zsh" => Some(zsh::script()),
        "fish" => Some(fish::script()),
        _ => None,
    }
}

/// A place in the tree of command words.
struct Node {
    words: Vec<&'static str>,
    /// What may follow, and what that is.
    next: Vec<(&'static str, String)>,
    command: Option<&'static Command>,
}

/// What may stand where a value is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Values {
    /// Nothing that could be told beforehand.
    Free,
    OneOf(&'static [&'static str]),
    Files,
    Dirs,
}

/// Every place, parents first.
fn nodes() -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut waiting = vec![Vec::new()];
    while let Some(words) = waiting.pop() {
        let followers = next_words(&words);
        let longer = |word: &&'static str| [&words[..], &[*word]].concat();
        waiting.extend(followers.iter().rev().map(longer));
        let next = followers.iter().map(|word| (*word, told(&longer(word)))).collect();
        nodes.push(Node { next, command: find(&words).filter(|command| !command.hidden), words });
    }
    nodes
}

/// A command's summary, or the words of a group.
fn told(words: &[&str]) -> String {
    find(words).map_or_else(|| next_words(words).join(", "), |command| command.summary.to_owned())
}

/// The flags that `command` takes and help shows, the global ones aside.
fn own_flags(command: &Command) -> impl Iterator<Item = &'static Flag> {
    command.flags.iter().copied().filter(|flag| !flag.hidden)
}

/// Flags that stand anywhere; `--help` and `--version` are the parser's, not the table's.
fn global_flags() -> impl Iterator<Item = &'static Flag> {
    flags::GLOBAL.iter().copied()
}

const EVERYWHERE: &[(&str, &str)] = &[("--help", "all about the command"), ("--version", "the version")];

/// `--model`, `--ctx` and `-m`: every way to write it.
fn spellings(flag: &Flag) -> Vec<String> {
    let long = std::iter::once(flag.name).chain(flag.aliases.iter().copied()).map(|name| format!("--{name}"));
    long.chain(flag.short.map(|short| format!("-{short}"))).collect()
}

fn values_of(flag: &Flag) -> Values {
    match flag.kind {
        Kind::Choice(choices) => Values::OneOf(choices),
        Kind::Path if flag.value == "DIR" => Values::Dirs,
        Kind::Path => Values::Files,
        // A model may be a file's path.
        Kind::Text if flag.value == "MODEL" => Values::Files,
        _ => Values::Free,
    }
}

/// Of a command's first argument; further ones are free words.
fn values_of_arguments(command: &Command) -> Values {
    match (command.action, command.positionals.first()) {
        (Action::Completions, _) => Values::OneOf(super::SHELLS),
        (_, Some(Positional { name: "DIR", .. })) => Values::Dirs,
        (_, Some(Positional { name: "FILE" | "REF", .. })) => Values::Files,
        _ => Values::Free,
    }
}

/// Values as the data of bash and zsh have them.
fn tag(values: Values) -> String {
    match values {
        Values::Free => String::new(),
        Values::OneOf(words) => words.join(","),
        Values::Files => "@files".into(),
        Values::Dirs => "@dirs".into(),
    }
}

/// `--json` for a switch, `--log-format=text,json` for a flag with values.
fn tokens(flag: &Flag) -> impl Iterator<Item = String> {
    let tail = if flag.kind.takes_value() { format!("={}", tag(values_of(flag))) } else { String::new() };
    spellings(flag).into_iter().map(move |name| name + &tail)
}

/// Symlinks that begin inside the tree, with where.
fn roles() -> impl Iterator<Item = (&'static str, String)> {
    LINK_NAMES.iter().map(|link| (*link, role_words(link).join(" "))).filter(|(_, words)| !words.is_empty())
}

/// Programs that the completions are for.
fn programs() -> String {
    std::iter::once("rbee").chain(LINK_NAMES.iter().copied()).collect::<Vec<_>>().join(" ")
}

/// In single quotes, for shells where nothing is special between them but the quote itself.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Every spelling of the paths that lead to a command, as one `case` pattern.
fn pattern(node: &Node) -> String {
    quoted(&node.words.join(" "))
}

/// Commands that a shell may complete.
fn visible() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().filter(|command| !command.hidden)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::SHELLS;

    #[test]
    fn every_command_in_every_spelling_and_every_flag_is_in_every_script() {
        for shell in SHELLS {
            let script = script(shell).unwrap();
            let words: std::collections::HashSet<&str> = script
                .split(|c: char| c.is_whitespace() || "'\"=:()|".contains(c))
                .filter(|word| !word.is_empty())
                .collect();
            for command in visible() {
                for path in command.paths() {
                    assert!(script.contains(&path.join(" ")), "{shell}: {path:?}");
                    assert!(path.iter().all(|word| words.contains(word)), "{shell}: {path:?}");
                }
                for flag in command.all_flags().filter(|flag| !flag.hidden) {
                    for spelling in spellings(flag) {
                        // Fish wants names without their dashes.
                        let name =
                            if *shell == "fish" { spelling.trim_start_matches('-') } else { &spelling };
                        assert!(words.contains(name), "{shell}: {spelling} of {}", command.name());
                    }
                }
            }
            for flag in COMMANDS.iter().flat_map(|c| c.flags).filter(|flag| flag.hidden) {
                assert!(
                    !words.contains(flag.name) && !words.contains(&*format!("--{}", flag.name)),
                    "{shell}"
                );
            }
            assert!(!words.contains("shim") && !words.contains("unpack"), "{shell}");
        }
    }

    #[test]
    fn the_tree_knows_groups_commands_and_aliases() {
        let nodes = nodes();
        let at = |words: &[&str]| nodes.iter().find(|node| node.words == words);
        assert!(at(&["hive"]).unwrap().next.iter().any(|(word, _)| *word == "ls"));
        assert!(at(&["hive"]).unwrap().command.is_none());
        assert_eq!(at(&["pull"]).unwrap().command.unwrap().name(), "model download");
        assert!(at(&["worker", "binary"]).is_some_and(|node| node.next.len() == 3));
        assert!(at(&["shim"]).is_none());
    }

    #[test]
    fn a_quote_in_a_summary_does_not_end_its_word() {
        assert_eq!(quoted("a hive's"), r"'a hive'\''s'");
    }
}
