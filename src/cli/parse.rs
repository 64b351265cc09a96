//! Words to a [`Request`]. Help and version are answered even when something else on the line is wrong, so the
//! parser notes its first error and reads on.

use super::lookup::{find, next_words, role_words};
use super::table::COMMANDS;
use super::value::Value;
use super::{Action, Command, Flag, flags, nearest};
use super::{completions, help, man};
use std::ffi::{OsStr, OsString};

/// What the line asks for.
#[derive(Debug)]
pub enum Request {
    /// Print this to stdout and be done.
    Help(String),
    Version {
        json: bool,
    },
    Command(Parsed),
}

/// A command line that holds together. Values are checked but not yet joined with environment and files.
#[derive(Debug, Clone)]
pub struct Parsed {
    pub command: &'static Command,
    /// In the order given, under the flag's own name.
    pub flags: Vec<(&'static Flag, Value)>,
    pub positionals: Vec<String>,
}

/// What is wrong with the line; exit code 2.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    #[error("say what to do\n\n{overview}")]
    Nothing { overview: String },
    #[error("unknown command `{words}`{}; see `rbee help`", did_you_mean(.nearest, ""))]
    UnknownCommand { words: String, nearest: Option<String> },
    #[error("`rbee {group}` needs one more word: {next}; see `rbee help {group}`")]
    IncompleteCommand { group: String, next: String },
    #[error("unknown flag `{flag}`{}; see `rbee {help}`", did_you_mean(.nearest, "--"))]
    UnknownFlag { flag: String, nearest: Option<String>, help: String },
    #[error("`{flag}` belongs after the command; see `rbee help`")]
    FlagBeforeCommand { flag: String },
    #[error("`{flag}` needs a value: {flag} {value}; see `rbee {help}`")]
    MissingValue { flag: String, value: &'static str, help: String },
    #[error("`{flag}`: `{text}` is not {expected}; see `rbee {help}`")]
    BadValue { flag: String, text: String, expected: String, help: String },
    #[error("unexpected argument `{text}`; see `rbee {help}`")]
    Unexpected { text: String, help: String },
    #[error("{name} is missing: {what}; see `rbee {help}`")]
    MissingPositional { name: &'static str, what: &'static str, help: String },
    #[error("there are no completions for `{shell}`, but for {}; see `rbee help completions`", super::SHELLS.join(", "))]
    UnknownShell { shell: String },
    #[error("`{text}` is not valid UTF-8")]
    NotUtf8 { text: String },
}

fn did_you_mean(nearest: &Option<String>, dashes: &str) -> String {
    nearest.as_ref().map_or_else(String::new, |word| format!(", did you mean `{dashes}{word}`?"))
}

/// Reads a whole command line, program name first.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Request, UsageError> {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default();
    let name = std::path::Path::new(&program).file_name().and_then(OsStr::to_str).unwrap_or("rbee");
    let mut line = Line { words: role_words(name).to_vec(), ..Line::default() };
    line.command = find(&line.words);
    line.read(lexopt::Parser::from_args(args));
    line.finish()
}

/// The state of the parser.
#[derive(Default)]
struct Line {
    /// The command's words as far as they were read, in the table's own spelling.
    words: Vec<&'static str>,
    command: Option<&'static Command>,
    flags: Vec<(&'static Flag, Value)>,
    positionals: Vec<String>,
    help: Option<help::Length>,
    version: bool,
    error: Option<UsageError>,
}

impl Line {
    fn read(&mut self, mut parser: lexopt::Parser) {
        loop {
            let step = match parser.next() {
                Ok(None) => return,
                Ok(Some(lexopt::Arg::Value(word))) => self.word(word),
                Ok(Some(lexopt::Arg::Short(short))) => self.flag(short.to_string(), true, &mut parser),
                Ok(Some(lexopt::Arg::Long(long))) => {
                    let long = long.to_owned();
                    self.flag(long, false, &mut parser)
                }
                Err(error) => {
                    Err(UsageError::Unexpected { text: error.to_string(), help: self.help_words() })
                }
            };
            if let Err(error) = step {
                self.error.get_or_insert(error);
            }
        }
    }

    /// A word is part of the command's name as long as it leads somewhere, then an argument.
    fn word(&mut self, word: OsString) -> Result<(), UsageError> {
        let word = utf8(word)?;
        if self.command.is_some() {
            self.positionals.push(word);
            return Ok(());
        }
        let next = next_words(&self.words);
        let hidden = COMMANDS.iter().filter(|c| c.hidden && self.words.is_empty()).map(|c| c.path[0]);
        match next.iter().copied().chain(hidden).find(|known| *known == word) {
            Some(known) => {
                self.words.push(known);
                self.command = find(&self.words);
                Ok(())
            }
            None => {
                let nearest = nearest(&word, next.iter().copied());
                let full = |last: &str| [&self.words[..], &[last]].concat().join(" ");
                Err(UsageError::UnknownCommand { words: full(&word), nearest: nearest.map(full) })
            }
        }
    }

    fn flag(&mut self, name: String, is_short: bool, parser: &mut lexopt::Parser) -> Result<(), UsageError> {
        match (name.as_str(), is_short) {
            ("h", true) => self.help = self.help.or(Some(help::Length::Short)),
            ("help", false) => self.help = Some(help::Length::Long),
            ("V", true) | ("version", false) => self.version = true,
            _ => return self.table_flag(name, is_short, parser),
        }
        Ok(())
    }

    fn table_flag(
        &mut self,
        name: String,
        is_short: bool,
        parser: &mut lexopt::Parser,
    ) -> Result<(), UsageError> {
        let typed = if is_short { format!("-{name}") } else { format!("--{name}") };
        let Some(flag) = self.find_flag(&name, is_short) else {
            // Without knowing the flag, `--x=1` still holds a value that must be stepped over.
            let _ = parser.optional_value();
            let elsewhere = COMMANDS.iter().flat_map(|c| c.flags).any(|f| !is_short && f.is(&name));
            if self.command.is_none() && elsewhere {
                return Err(UsageError::FlagBeforeCommand { flag: typed });
            }
            let known = self.flags_here().into_iter().filter(|f| !f.hidden).map(|f| f.name);
            let nearest = nearest(&name, known.chain(["help", "version"])).filter(|_| !is_short);
            return Err(UsageError::UnknownFlag {
                flag: typed,
                nearest: nearest.map(str::to_owned),
                help: self.help_words(),
            });
        };
        // `--json=false` switches off what a file switched on; in `-qv` the `v` is no value.
        let text = match flag.kind.takes_value() {
            true => Some(parser.value().map_err(|_| UsageError::MissingValue {
                flag: typed.clone(),
                value: flag.value,
                help: self.help_words(),
            })?),
            false if is_short => None,
            false => parser.optional_value(),
        };
        let text = text.map_or_else(|| Ok("true".to_owned()), utf8)?;
        let value = flag.kind.check(&text).map_err(|expected| UsageError::BadValue {
            flag: typed,
            text,
            expected: expected.to_string(),
            help: self.help_words(),
        })?;
        self.flags.push((flag, value));
        Ok(())
    }

    fn find_flag(&self, name: &str, is_short: bool) -> Option<&'static Flag> {
        self.flags_here().into_iter().find(|flag| {
            if is_short { flag.short.is_some_and(|s| name == s.to_string()) } else { flag.is(name) }
        })
    }

    fn flags_here(&self) -> Vec<&'static Flag> {
        self.command.map_or_else(|| flags::GLOBAL.to_vec(), |command| command.all_flags().collect())
    }

    /// The words that print the help for what was typed so far: `help hive serve`.
    fn help_words(&self) -> String {
        [&["help"], &self.words[..]].concat().join(" ")
    }

    fn finish(mut self) -> Result<Request, UsageError> {
        if let Some(length) = self.help {
            return Ok(Request::Help(help::page(&self.words, length)));
        }
        if self.version {
            return Ok(Request::Version { json: self.is_on("json") });
        }
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let Some(command) = self.command else {
            return Err(match self.words.is_empty() {
                true => UsageError::Nothing { overview: help::overview() },
                false => UsageError::IncompleteCommand {
                    group: self.words.join(" "),
                    next: next_words(&self.words).join(", "),
                },
            });
        };
        match command.action {
            Action::Help => self.help_for_words(),
            Action::Version if self.positionals.is_empty() => {
                Ok(Request::Version { json: self.is_on("json") })
            }
            Action::Completions => {
                self.check_positionals(command)?;
                let shell = self.positionals[0].as_str();
                completions::script(shell)
                    .map(Request::Help)
                    .ok_or_else(|| UsageError::UnknownShell { shell: shell.to_owned() })
            }
            Action::Man => {
                self.check_positionals(command)?;
                Ok(Request::Help(man::page()))
            }
            _ => {
                self.check_positionals(command)?;
                // A global flag typed before the command, which has its own of that name.
                for (flag, _) in &mut self.flags {
                    *flag = command.flag(flag.name).expect("a flag comes from this command or is global");
                }
                Ok(Request::Command(Parsed { command, flags: self.flags, positionals: self.positionals }))
            }
        }
    }

    /// `rbee help hive serve`: the words are read as a command line of their own, which names unknown ones.
    fn help_for_words(self) -> Result<Request, UsageError> {
        let mut asked = Line::default();
        for word in self.positionals {
            asked.word(word.into())?;
        }
        if let Some(extra) = asked.positionals.first() {
            return Err(UsageError::Unexpected { text: extra.clone(), help: asked.help_words() });
        }
        Ok(Request::Help(help::page(&asked.words, help::Length::Long)))
    }

    fn is_on(&self, name: &str) -> bool {
        self.flags
            .iter()
            .rev()
            .find(|(flag, _)| flag.name == name)
            .is_some_and(|(_, v)| *v == Value::On(true))
    }

    fn check_positionals(&self, command: &'static Command) -> Result<(), UsageError> {
        let given = self.positionals.len();
        let help = || self.help_words();
        if let Some(missing) = command.positionals.get(given).filter(|p| p.required) {
            return Err(UsageError::MissingPositional {
                name: missing.name,
                what: missing.help,
                help: help(),
            });
        }
        let takes_all = command.positionals.last().is_some_and(|p| p.many);
        match self.positionals.get(command.positionals.len()) {
            Some(extra) if !takes_all => Err(UsageError::Unexpected { text: extra.clone(), help: help() }),
            _ => Ok(()),
        }
    }
}

fn utf8(text: OsString) -> Result<String, UsageError> {
    text.into_string().map_err(|text| UsageError::NotUtf8 { text: text.to_string_lossy().into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Result<Request, UsageError> {
        parse(line.split(' ').map(OsString::from))
    }

    fn command(line: &str) -> Parsed {
        match request(line) {
            Ok(Request::Command(parsed)) => parsed,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn error(line: &str) -> String {
        request(line).unwrap_err().to_string()
    }

    #[test]
    fn every_spelling_leads_to_its_command_and_none_is_the_start_of_another() {
        for wanted in COMMANDS {
            for path in wanted.paths() {
                let asks: Vec<&str> =
                    wanted.positionals.iter().filter(|p| p.required).map(|p| p.name).collect();
                let line = ["rbee", &path.join(" "), &asks.join(" ")].join(" ");
                match request(line.trim_end()) {
                    Ok(Request::Command(parsed)) => {
                        assert_eq!(parsed.command.action, wanted.action, "{line}")
                    }
                    Ok(Request::Help(_)) => {
                        assert!(matches!(wanted.action, Action::Help | Action::Man), "{line}")
                    }
                    Err(UsageError::UnknownShell { .. }) => assert_eq!(wanted.action, Action::Completions),
                    Ok(Request::Version { .. }) => assert_eq!(wanted.action, Action::Version),
                    Err(error) => panic!("{line}: {error}"),
                }
                for other in COMMANDS.iter().flat_map(Command::paths).filter(|other| *other != path) {
                    assert!(!other.starts_with(path), "{path:?} hides {other:?}");
                }
            }
        }
    }

    #[test]
    fn a_programs_name_chooses_the_role_only_when_it_is_exact() {
        assert_eq!(command("/usr/bin/rbee-hive --name a").command.action, Action::HiveServe);
        assert_eq!(command("queen-rbee").command.action, Action::QueenServe);
        assert_eq!(command("llm-worker-rbee -m x.gguf").command.action, Action::WorkerServe);
        assert_eq!(command("rbee-keeper status").command.action, Action::Status);
        assert_eq!(command("rbee-hive-old status").command.action, Action::Status);
        assert_eq!(error("rbee-hive status"), "unexpected argument `status`; see `rbee help hive serve`");
    }

    #[test]
    fn global_flags_stand_anywhere_and_others_after_their_command() {
        let parsed = command("rbee --json hive --queen http://h list -q");
        let names: Vec<&str> = parsed.flags.iter().map(|(flag, _)| flag.name).collect();
        assert_eq!((parsed.command.action, names), (Action::HiveList, vec!["json", "queen", "quiet"]));
        assert!(error("rbee --top-k 3 run hi").contains("belongs after the command"));
        let parsed = command("rbee --queen http://h hive serve --queen http://i");
        assert!(parsed.flags.iter().all(|(flag, _)| flag.many), "the hive's own --queen is repeatable");
    }

    #[test]
    fn words_after_a_command_are_its_arguments_even_if_they_are_commands() {
        assert_eq!(command("rbee run list status -- --json").positionals, ["list", "status", "--json"]);
        assert_eq!(command("rbee run -m a.gguf").positionals, [""; 0]);
    }

    #[test]
    fn help_and_version_win_over_everything_else_on_the_line() {
        for line in
            ["rbee run --bogus --help", "rbee hive get -h", "rbee frob --help", "rbee -h run --top-k x"]
        {
            assert!(matches!(request(line), Ok(Request::Help(_))), "{line}");
        }
        for line in ["rbee --version", "rbee run -V --nonsense", "rbee-hive --version", "rbee version"] {
            assert!(matches!(request(line), Ok(Request::Version { json: false })), "{line}");
        }
        assert!(matches!(request("rbee version --json"), Ok(Request::Version { json: true })));
        let Ok(Request::Help(page)) = request("rbee help pull") else { panic!() };
        assert!(page.starts_with("model download: "), "{page}");
        assert!(error("rbee help hvie").contains("did you mean `hive`"));
    }

    #[test]
    fn mistakes_are_named_with_the_nearest_word_and_the_help_to_read() {
        assert_eq!(error("rbee stauts"), "unknown command `stauts`, did you mean `status`?; see `rbee help`");
        assert!(error("rbee hive lst").contains("did you mean `hive list`"));
        assert!(error("rbee frobnicate").starts_with("unknown command `frobnicate`; see"));
        let unknown = error("rbee hive serve --orphan-tl 3s");
        assert_eq!(
            unknown,
            "unknown flag `--orphan-tl`, did you mean `--orphan-ttl`?; see `rbee help hive serve`"
        );
        assert!(error("rbee run -Z").contains("unknown flag `-Z`; see `rbee help run`"));
        assert_eq!(error("rbee run --top-k"), "`--top-k` needs a value: --top-k K; see `rbee help run`");
        assert!(error("rbee run --top-p 2").contains("`2` is not a number from 0 to 1"));
        assert_eq!(error("rbee model get"), "REF is missing: which model; see `rbee help model get`");
        assert_eq!(error("rbee why"), "MODEL is missing: which model; see `rbee help why`");
        let hive = error("rbee hive");
        assert!(
            hive.contains("list, ls, get, show, install") && hive.contains("serve, start, status, stop"),
            "{hive}"
        );
        assert!(error("rbee").contains("Usage: rbee COMMAND"));
        assert_eq!(error("rbee status now"), "unexpected argument `now`; see `rbee help status`");
    }

    #[test]
    fn switches_can_be_turned_off_and_the_values_of_repeatable_flags_add_up() {
        let parsed = command("rbee run --json=false -qv --stop a --stop=b --seed 7");
        let values: Vec<&Value> = parsed.flags.iter().map(|(_, value)| value).collect();
        let text = |text: &str| Value::Text(text.into());
        assert_eq!(
            values,
            [
                &Value::On(false),
                &Value::On(true),
                &Value::On(true),
                &text("a"),
                &text("b"),
                &Value::Number(7)
            ]
        );
    }
}
