//! Finding one's way in the table of commands: by words, by a configuration's tables, by the name a program is called by.

use super::table::COMMANDS;
use super::{Command, Flag};

/// The command with exactly this path, by its own name or an alias.
pub fn find(words: &[&str]) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.paths().any(|path| path == words))
}

impl Command {
    /// Its own path, then the aliases.
    pub fn paths(&self) -> impl Iterator<Item = &'static [&'static str]> {
        std::iter::once(self.path).chain(self.aliases.iter().copied())
    }
}

/// The words that may follow these: the next level of the tree of commands, aliases included, hidden ones not.
pub(super) fn next_words(words: &[&str]) -> Vec<&'static str> {
    let mut next = Vec::new();
    for path in COMMANDS.iter().filter(|c| !c.hidden).flat_map(|c| c.paths()) {
        if path.len() > words.len() && path[..words.len()] == *words && !next.contains(&path[words.len()]) {
            next.push(path[words.len()]);
        }
    }
    next
}

/// The tables that a configuration file may have.
pub fn sections() -> impl Iterator<Item = &'static str> {
    let owned = |(at, command): (usize, &Command)| match command.sections {
        // Commands that share a table's flags come after its owner.
        [section] if COMMANDS[..at].iter().all(|before| before.sections != [*section]) => Some(*section),
        _ => None,
    };
    COMMANDS.iter().enumerate().filter_map(owned)
}

/// The flags that may be keys of a table.
pub fn section_flags(section: &str) -> impl Iterator<Item = &'static Flag> {
    let owner = COMMANDS.iter().find(|command| command.sections == [section]);
    owner.into_iter().flat_map(|command| command.flags).copied().filter(|flag| !flag.hidden)
}

/// What a symlink's name stands for; `rbee` and any other name mean the keeper.
pub fn role_words(program: &str) -> &'static [&'static str] {
    match program {
        "rbee-queen" | "queen-rbee" => &["queen", "serve"],
        "rbee-hive" => &["hive", "serve"],
        "rbee-worker" | "llm-worker-rbee" => &["worker", "serve"],
        "rbee-catalog" => &["catalog", "serve"],
        _ => &[],
    }
}

/// The names `rbee links` makes: those of `role_words`, and the keeper's.
pub const LINK_NAMES: &[&str] = &[
    "rbee-keeper",
    "rbee-queen",
    "queen-rbee",
    "rbee-hive",
    "rbee-worker",
    "llm-worker-rbee",
    "rbee-catalog",
];
