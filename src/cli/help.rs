//! Help, written from the table: `-h` is one line a flag, `--help` adds defaults, variables and configuration keys.

use super::lookup::{find, next_words, role_words};
use super::table::COMMANDS;
use super::{Command, Default, Flag, Group, Positional, flags};
use crate::exit::Exit;
use std::fmt::Write;

/// A terminal's usual width, less a margin.
const COLUMNS_MAX: usize = 100;
/// Wider names push their text to the next line.
const NAME_COLUMNS: usize = 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    Short,
    Long,
}

pub(super) const GROUPS: &[(Group, &str)] = &[
    (Group::Ask, "Ask"),
    (Group::Fleet, "Fleet"),
    (Group::Engines, "Workers to install"),
    (Group::Models, "Models"),
    (Group::Jobs, "Jobs"),
    (Group::Keys, "Keys"),
    (Group::Daemons, "Daemons"),
    (Group::Rest, "And"),
];

/// Help for as many words of a command as are known: all commands, a group of them, or one.
pub(super) fn page(words: &[&str], length: Length) -> String {
    match find(words) {
        Some(command) => command_page(command, length),
        None if words.is_empty() => overview() + &everywhere(length, &[]) + &closing(length),
        None => group_page(words) + &everywhere(Length::Short, &[]),
    }
}

/// All commands, one line each, by group.
pub fn overview() -> String {
    let mut text =
        "rbee makes the machines you own one inference cloud\n\nUsage: rbee COMMAND [flags]\n".to_owned();
    for (group, title) in GROUPS {
        let _ = writeln!(text, "\n{title}:");
        for command in COMMANDS.iter().filter(|c| c.group == *group && !c.hidden) {
            entry(&mut text, &spelling(command), command.summary);
        }
    }
    text
}

fn group_page(words: &[&str]) -> String {
    let name = words.join(" ");
    let mut text = format!("Usage: rbee {name} {} …\n\nCommands:\n", next_words(words).join("|"));
    for command in COMMANDS.iter().filter(|c| !c.hidden && c.path.starts_with(words)) {
        entry(&mut text, &spelling(command), command.summary);
    }
    text
}

fn command_page(command: &Command, length: Length) -> String {
    let mut text = String::new();
    wrap(&mut text, 0, &format!("{}: {}", command.name(), command.summary));
    let _ = write!(text, "\nUsage: rbee {}", command.name());
    text.push_str(&arguments(command));
    text.push_str(" [flags]\n");
    let linked =
        super::LINK_NAMES.iter().filter(|link| role_words(link) == command.path).map(|l| (*l).to_owned());
    let also: Vec<String> =
        command.aliases.iter().map(|a| format!("rbee {}", a.join(" "))).chain(linked).collect();
    if !also.is_empty() {
        let _ = writeln!(text, "Also:  {}", also.join(", "));
    }
    if length == Length::Long && !command.details.is_empty() {
        text.push('\n');
        wrap(&mut text, 0, command.details);
    }
    if !command.positionals.is_empty() {
        text.push_str("\nArguments:\n");
        for positional in command.positionals {
            entry(&mut text, positional.name, positional.help);
        }
    }
    let own: Vec<&'static Flag> = command.flags.iter().copied().filter(|flag| !flag.hidden).collect();
    if !own.is_empty() {
        text.push_str("\nFlags:\n");
        for flag in own {
            let tables: Vec<String> = command.sections_of(flag).map(|table| format!("[{table}]")).collect();
            let key = (!tables.is_empty()).then(|| format!("{} {}", tables.join(", "), flag.key()));
            flag_entry(&mut text, flag, length, key);
        }
    }
    text + &everywhere(Length::Short, command.flags) + "\n`rbee help` says more on these.\n"
}

/// The global flags, without those that `hidden_by` redefines.
fn everywhere(length: Length, hidden_by: &[&Flag]) -> String {
    let mut text = "\nFlags everywhere:\n".to_owned();
    for flag in flags::GLOBAL.iter().filter(|g| hidden_by.iter().all(|own| own.name != g.name)) {
        flag_entry(&mut text, flag, length, Some(flag.key()));
    }
    entry(&mut text, "-h, --help", "this text; --help says more than -h");
    entry(&mut text, "-V, --version", "the version");
    text
}

/// What holds for every command.
fn closing(length: Length) -> String {
    let mut text = "\n`rbee help COMMAND` says more.\n".to_owned();
    if length == Length::Long {
        text.push('\n');
        wrap(
            &mut text,
            0,
            "A setting comes from the first of: its flag, its RBEE_ variable, the file that RBEE_CONFIG names, \
             ~/.config/rbee/config.toml, /etc/rbee/config.toml, its default. An empty variable counts as unset. \
             A switch is turned off again by --flag=false.",
        );
        text.push_str("\nExit codes:\n");
        for exit in Exit::ALL {
            entry(&mut text, &exit.code().to_string(), exit.meaning());
        }
    }
    text
}

/// `model download (pull, dl), pull REF`: the other last words, other paths, arguments.
fn spelling(command: &Command) -> String {
    let siblings: Vec<&str> = command
        .aliases
        .iter()
        .filter(|alias| {
            alias.len() == command.path.len() && alias[..alias.len() - 1] == command.path[..alias.len() - 1]
        })
        .map(|alias| alias[alias.len() - 1])
        .collect();
    let elsewhere =
        command.aliases.iter().filter(|alias| alias.len() != command.path.len()).map(|alias| alias.join(" "));
    let mut text = command.name();
    if !siblings.is_empty() {
        let _ = write!(text, " ({})", siblings.join(", "));
    }
    for other in elsewhere {
        let _ = write!(text, ", {other}");
    }
    text + &arguments(command)
}

/// ` NAME [PROMPT…]`
pub(super) fn arguments(command: &Command) -> String {
    let mut text = String::new();
    for Positional { name, required, many, .. } in command.positionals {
        let dots = if *many { "…" } else { "" };
        let _ = match required {
            true => write!(text, " {name}{dots}"),
            false => write!(text, " [{name}{dots}]"),
        };
    }
    text
}

/// `keys`: where a configuration file has it.
fn flag_entry(text: &mut String, flag: &Flag, length: Length, keys: Option<String>) {
    let mut name = flag.short.map_or("    ".to_owned(), |short| format!("-{short}, "));
    let _ = write!(name, "--{}", flag.name);
    if flag.kind.takes_value() {
        let _ = write!(name, " {}", flag.value);
    }
    let mut help = flag.help.to_owned();
    if flag.required {
        help.push_str(" (required)");
    }
    if flag.many {
        help.push_str(" (repeatable)");
    }
    entry(text, &name, &help);
    if length == Length::Short {
        return;
    }
    let mut facts = Vec::new();
    if !flag.aliases.is_empty() {
        let aliases: Vec<String> = flag.aliases.iter().map(|alias| format!("--{alias}")).collect();
        facts.push(format!("also {}", aliases.join(", ")));
    }
    match flag.default {
        Default::None => {}
        Default::Value(default) | Default::Says(default) => facts.push(format!("default: {default}")),
    }
    facts.push(flag.env());
    facts.extend(flag.also_env.map(str::to_owned));
    facts.extend(keys);
    wrap(text, NAME_COLUMNS, &format!("[{}]", facts.join("; ")));
}

fn entry(text: &mut String, name: &str, help: &str) {
    if name.chars().count() + 4 > NAME_COLUMNS {
        let _ = writeln!(text, "  {name}");
        wrap(text, NAME_COLUMNS, help);
        return;
    }
    let mut wrapped = String::new();
    wrap(&mut wrapped, NAME_COLUMNS, help);
    let _ = write!(text, "  {name:<width$}{}", wrapped.trim_start(), width = NAME_COLUMNS - 2);
}

/// Adds `words` in lines of at most `COLUMNS_MAX`, each indented.
fn wrap(text: &mut String, indent: usize, words: &str) {
    let mut column = 0;
    for word in words.split_whitespace() {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > COLUMNS_MAX {
            text.push('\n');
            column = 0;
        }
        let gap = if column == 0 { indent } else { 1 };
        text.extend(std::iter::repeat_n(' ', gap));
        text.push_str(word);
        column += gap + width;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::value::Kind;

    fn every_page() -> impl Iterator<Item = (String, &'static Command)> {
        COMMANDS.iter().map(|command| (page(command.path, Length::Long), command))
    }

    #[test]
    fn every_flag_is_documented_with_value_variable_and_key() {
        let overview = page(&[], Length::Long);
        for (page, command) in every_page() {
            for flag in command.all_flags().filter(|flag| !flag.hidden) {
                let is_own = command.flags.iter().any(|own| std::ptr::eq(*own, flag));
                let told = if is_own { &page } else { &overview };
                let name = format!("--{} {}", flag.name, flag.value);
                let key = command.sections.first().map_or(String::new(), |_| flag.key());
                // Line breaks may fall anywhere between words.
                let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
                for fact in [name.trim_end(), &flag.env(), &key] {
                    assert!(told.contains(fact), "{fact} in\n{told}");
                }
                assert!(page.contains(&format!("--{}", flag.name)), "--{} in\n{page}", flag.name);
            }
            for flag in command.flags.iter().filter(|flag| flag.hidden) {
                assert!(!page.contains(&format!("--{}", flag.name)), "{} in\n{page}", flag.name);
            }
        }
    }

    #[test]
    fn every_command_is_in_the_overview_with_all_its_spellings() {
        let overview = overview();
        for command in COMMANDS.iter().filter(|c| !c.hidden) {
            assert!(overview.contains(&format!("\n  {}", spelling(command))), "{}", command.name());
        }
        assert!(!overview.contains("shim"));
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let pages = every_page()
            .map(|(page, _)| page)
            .chain([page(&[], Length::Long), page(&["hive"], Length::Long)]);
        for page in pages {
            for line in page.lines() {
                assert!(line.chars().count() <= COLUMNS_MAX, "{line}");
            }
        }
    }

    #[test]
    fn a_switchs_variable_holds_nobodys_text() {
        let mut seen = std::collections::BTreeMap::new();
        for flag in COMMANDS.iter().flat_map(Command::all_flags).filter(|flag| !flag.hidden) {
            let is_switch = matches!(flag.kind, Kind::Switch);
            let (first, other) = *seen.entry(flag.env()).or_insert((is_switch, flag.help));
            assert!(is_switch == first, "{}: `{other}` and `{}`", flag.env(), flag.help);
        }
    }
}
