//! Settings: what was typed, the environment, the configuration files and the defaults, resolved to one value a flag.
//!
//! The first of these that speaks wins: flag, `RBEE_…` variable, the file that `RBEE_CONFIG` names,
//! `~/.config/rbee/config.toml`, `/etc/rbee/config.toml`, default. The values of a repeatable flag all come from the
//! one place that won; they are never mixed.
//!
//! In a file, global flags are keys at the top, a role's flags are keys of its table (`[queen]`, `[hive]`, `[worker]`,
//! `[run]`, `[spawn]`); a key is a flag's name with underscores, but `queen_url` and `hive_name` for the global
//! `--queen` and `--hive`, whose names are tables. `[hives.NAME]` is about another machine
//! ([`Machine`]). Files are checked whole, whatever the command needs of them, so that a slip shows at once.
//! Variables that start with `RBEE_` and belong to no flag are left alone: they may be another version's.

mod file;
mod machine;

use crate::cli::value::Value;
use crate::cli::{Command, Default, Flag, Parsed, global_flags};
use file::{FILE_BYTES_MAX, File};
pub use machine::Machine;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("reading the configuration `{}`", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration `{}` is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{at}: {message}")]
    Syntax { at: Place, message: String },
    #[error("{at}: unknown key `{key}`{}", hint(.nearest))]
    UnknownKey { at: Place, key: String, nearest: Option<String> },
    #[error("{at}: `{key}` = `{text}` is not {expected}")]
    BadValue { at: Place, key: String, text: String, expected: String },
    #[error("{variable} = `{text}` is not {expected}")]
    BadVariable { variable: String, text: String, expected: String },
    #[error("`--{flag} {value}` is missing: {help}; see `rbee help {command}`")]
    Missing { flag: &'static str, value: &'static str, help: &'static str, command: String },
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |key| format!(", did you mean `{key}`?"))
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Where a value came from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Flag(&'static str),
    Variable(String),
    File(Place),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(name) => write!(f, "--{name}"),
            Origin::Variable(name) => f.write_str(name),
            Origin::File(place) => place.fmt(f),
            Origin::Default => f.write_str("the default"),
        }
    }
}

/// Every setting of one command, checked. Asking for a flag that the command does not have is a bug and panics.
#[derive(Debug, Clone)]
pub struct Settings {
    command: &'static Command,
    values: BTreeMap<&'static str, (Vec<Value>, Origin)>,
    positionals: Vec<String>,
    machines: BTreeMap<String, Machine>,
}

impl Settings {
    /// Pure: `env` looks a variable up, `files` are the configuration files that exist, the strongest first.
    pub fn resolve(
        parsed: Parsed,
        env: impl Fn(&str) -> Option<OsString>,
        files: &[(PathBuf, String)],
    ) -> Result<Settings, ConfigError> {
        let files: Vec<File> =
            files.iter().map(|(path, text)| File::read(path, text)).collect::<Result<_, _>>()?;
        let mut values = BTreeMap::new();
        for flag in parsed.command.all_flags() {
            let found = match typed(flag, &parsed) {
                Some(found) => Some(found),
                None => match from_env(flag, &env)? {
                    Some(found) => Some(found),
                    None => from_files(flag, parsed.command, &files).or_else(|| default(flag)),
                },
            };
            if flag.required && found.is_none() {
                let command = parsed.command.name();
                return Err(ConfigError::Missing {
                    flag: flag.name,
                    value: flag.value,
                    help: flag.help,
                    command,
                });
            }
            if let Some((mut found, origin)) = found {
                // One value, the last, where only one counts.
                if !flag.many && found.len() > 1 {
                    found.drain(..found.len() - 1);
                }
                if origin != Origin::Default {
                    found.iter_mut().for_each(|value| expand_home(value, &env));
                }
                values.insert(flag.name, (found, origin));
            }
        }
        let mut machines: BTreeMap<String, Machine> = BTreeMap::new();
        for (name, mut machine) in files.into_iter().flat_map(|file| file.machines) {
            if let Some(identity) = machine.identity.take() {
                let mut identity = Value::Path(identity);
                expand_home(&mut identity, &env);
                machine.identity = if let Value::Path(path) = identity { Some(path) } else { None };
            }
            machines.entry(name).or_insert(machine);
        }
        Ok(Settings { command: parsed.command, values, positionals: parsed.positionals, machines })
    }

    /// The same, with the environment and the files of this process.
    pub fn of_process(parsed: Parsed) -> Result<Settings, ConfigError> {
        let env = |name: &str| std::env::var_os(name);
        let files = file::read_files(env)?;
        let mut settings = Settings::resolve(parsed, env, &files)?;
        settings.anchor();
        Ok(settings)
    }

    /// Paths that were typed start where they were typed, also for a daemon that is started with them elsewhere.
    fn anchor(&mut self) {
        for (values, _) in self.values.values_mut() {
            for value in values {
                if let Value::Path(path) = value
                    && let Ok(absolute) = std::path::absolute(&*path)
                {
                    *path = absolute;
                }
            }
        }
    }

    /// The flags that were typed, as they are typed again for another process; paths are absolute by now.
    pub fn typed(&self, but: &[&str]) -> Vec<OsString> {
        let mut words = Vec::new();
        for (name, (values, origin)) in &self.values {
            if !matches!(origin, Origin::Flag(_)) || but.contains(name) {
                continue;
            }
            for value in values {
                let mut word = OsString::from(format!("--{name}="));
                word.push(value.text());
                words.push(word);
            }
        }
        words
    }

    pub fn command(&self) -> &'static Command {
        self.command
    }

    pub fn positionals(&self) -> &[String] {
        &self.positionals
    }

    /// What `[hives.NAME]` says of a machine; of several files, the strongest that names it.
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines.get(name)
    }

    /// None: not given and without a default.
    pub fn origin(&self, name: &str) -> Option<&Origin> {
        self.found(name).map(|(_, origin)| origin)
    }

    /// Whether anybody said something about it, in any place.
    pub fn is_given(&self, name: &str) -> bool {
        self.origin(name).is_some_and(|origin| *origin != Origin::Default)
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.texts(name).pop()
    }

    /// All values of a repeatable flag.
    pub fn texts(&self, name: &str) -> Vec<&str> {
        let values = self.found(name).map_or(&[][..], |(values, _)| values);
        values
            .iter()
            .map(|value| if let Value::Text(text) = value { text.as_str() } else { wrong(name, value) })
            .collect()
    }

    pub fn on(&self, name: &str) -> bool {
        match self.value(name) {
            Some(Value::On(on)) => *on,
            Some(other) => wrong(name, other),
            None => false,
        }
    }

    /// The table's range must fit `T`.
    pub fn number<T: TryFrom<i64>>(&self, name: &str) -> Option<T> {
        self.value(name).map(|value| match value {
            Value::Number(number) => T::try_from(*number).unwrap_or_else(|_| wrong(name, value)),
            other => wrong(name, other),
        })
    }

    pub fn float(&self, name: &str) -> Option<f64> {
        self.value(name)
            .map(|value| if let Value::Float(float) = value { *float } else { wrong(name, value) })
    }

    pub fn duration(&self, name: &str) -> Option<Duration> {
        self.value(name)
            .map(|value| if let Value::Duration(time) = value { *time } else { wrong(name, value) })
    }

    pub fn path(&self, name: &str) -> Option<&Path> {
        self.value(name)
            .map(|value| if let Value::Path(path) = value { path.as_path() } else { wrong(name, value) })
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.found(name).and_then(|(values, _)| values.last())
    }

    fn found(&self, name: &str) -> Option<&(Vec<Value>, Origin)> {
        assert!(
            self.command.flag(name).is_some_and(|flag| flag.name == name),
            "`{}` has no flag `{name}`",
            self.command.name()
        );
        self.values.get(name)
    }
}

/// The table says one kind, the code asked for another.
fn wrong(name: &str, value: &Value) -> ! {
    panic!("flag `{name}` was asked for as something it is not: {value:?}")
}

type Found = (Vec<Value>, Origin);

fn typed(flag: &'static Flag, parsed: &Parsed) -> Option<Found> {
    let values: Vec<Value> = parsed
        .flags
        .iter()
        .filter(|(given, _)| given.name == flag.name)
        .map(|(_, value)| value.clone())
        .collect();
    (!values.is_empty()).then_some((values, Origin::Flag(flag.name)))
}

fn default(flag: &'static Flag) -> Option<Found> {
    let Default::Value(text) = flag.default else { return None };
    let value = flag.kind.check(text).expect("a test checks every default of the table");
    Some((vec![value], Origin::Default))
}

fn from_env(
    flag: &'static Flag,
    env: &impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Found>, ConfigError> {
    if flag.hidden {
        return Ok(None);
    }
    let variable = flag.env();
    if let Some(text) = env(&variable).filter(|text| !text.is_empty()) {
        let bad = |text: &str, expected: String| ConfigError::BadVariable {
            variable: variable.clone(),
            text: text.to_owned(),
            expected,
        };
        let text = text.into_string().map_err(|text| bad(&text.to_string_lossy(), "valid UTF-8".into()))?;
        let parts: Vec<&str> = match flag.many && flag.kind.splits() {
            true => text.split(',').map(str::trim).collect(),
            false => vec![text.as_str()],
        };
        let values = parts
            .into_iter()
            .map(|part| flag.kind.check(part).map_err(|expected| bad(part, expected.to_string())))
            .collect::<Result<_, _>>()?;
        return Ok(Some((values, Origin::Variable(variable))));
    }
    // A foreign variable such as NO_COLOR counts when it is set to anything.
    let foreign = flag.also_env.filter(|name| env(name).is_some_and(|text| !text.is_empty()));
    Ok(foreign.map(|name| (vec![Value::On(true)], Origin::Variable(name.to_owned()))))
}

fn from_files(flag: &'static Flag, command: &Command, files: &[File]) -> Option<Found> {
    let is_global = global_flags().iter().any(|global| std::ptr::eq(*global, flag));
    let own = command.sections_of(flag).chain(is_global.then_some(""));
    let keys: Vec<_> = own.map(|section| (section.to_owned(), flag.key())).collect();
    files.iter().find_map(|file| {
        keys.iter().find_map(|key| {
            let (values, place) = file.values.get(key)?;
            Some((values.clone(), Origin::File(place.clone())))
        })
    })
}

/// `~/x` in a variable or a file, where no shell has seen it.
fn expand_home(value: &mut Value, env: &impl Fn(&str) -> Option<OsString>) {
    if let Value::Path(path) = value
        && let Ok(rest) = path.strip_prefix("~")
        && let Some(home) = env("HOME").filter(|home| !home.is_empty())
    {
        *path = Path::new(&home).join(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{COMMANDS, Request, parse};

    fn resolve(line: &str, vars: &[(&str, &str)], files: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let Ok(Request::Command(parsed)) = parse(line.split(' ').map(OsString::from)) else {
            panic!("{line}")
        };
        let env =
            |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        let files: Vec<_> =
            files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        Settings::resolve(parsed, env, &files)
    }

    #[test]
    fn every_default_and_every_shadowed_flag_of_the_table_is_sound() {
        for command in COMMANDS {
            for flag in command.all_flags() {
                if let Default::Value(text) = flag.default {
                    assert!(flag.kind.check(text).is_ok(), "--{}: {text}", flag.name);
                }
                let global = global_flags().iter().find(|global| global.name == flag.name);
                assert!(
                    global.is_none_or(|global| global.kind == flag.kind),
                    "--{} changes its kind",
                    flag.name
                );
                let twins = command.all_flags().filter(|other| {
                    other.is(flag.name) || other.short.is_some() && other.short == flag.short
                });
                assert_eq!(twins.count(), 1, "--{} of {} is ambiguous", flag.name, command.name());
            }
        }
    }

    #[test]
    fn the_strongest_place_wins_and_is_named() {
        let files = [
            ("/c/named.toml", "[queen]\nqueue = 3\n"),
            ("/etc/rbee/config.toml", "[queen]\nqueue = 4\nidle_ttl = '1m'\n"),
        ];
        let vars = [("RBEE_QUEUE", "2")];
        let number = |settings: &Settings| settings.number::<u32>("queue");
        let of = |line: &str, vars: &[_], files: &[_]| {
            let settings = resolve(line, vars, files).unwrap();
            (number(&settings), settings.origin("queue").unwrap().to_string())
        };
        assert_eq!(of("rbee queen serve --queue 1", &vars, &files), (Some(1), "--queue".into()));
        assert_eq!(of("rbee queen serve", &vars, &files), (Some(2), "RBEE_QUEUE".into()));
        assert_eq!(
            of("rbee queen serve", &[("RBEE_QUEUE", "")], &files),
            (Some(3), "/c/named.toml:2".into())
        );
        assert_eq!(of("rbee queen serve", &[], &files[1..]), (Some(4), "/etc/rbee/config.toml:2".into()));
        assert_eq!(of("rbee queen serve", &[], &[]), (Some(512), "the default".into()));
        let settings = resolve("rbee queen serve", &[], &files).unwrap();
        assert_eq!(settings.duration("idle-ttl"), Some(Duration::from_secs(60)));
        assert!(settings.is_given("idle-ttl") && !settings.is_given("queue-wait"));
    }

    #[test]
    fn repeatable_flags_are_lists_in_files_and_commas_in_variables() {
        let file = [("/c", "[hive]\nqueen = ['http://a', 'http://b']")];
        let texts = |s: Settings| s.texts("queen").into_iter().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(texts(resolve("rbee hive serve", &[], &file).unwrap()), ["http://a", "http://b"]);
        let vars = [("RBEE_QUEEN", "http://c, http://d")];
        assert_eq!(texts(resolve("rbee hive serve", &vars, &file).unwrap()), ["http://c", "http://d"]);
        assert_eq!(texts(resolve("rbee hive serve --queen http://e", &vars, &file).unwrap()), ["http://e"]);
        let stop = resolve("rbee run", &[("RBEE_STOP", "a, b")], &[]).unwrap();
        assert_eq!(stop.texts("stop"), ["a, b"], "free text may hold commas");
    }

    #[test]
    fn global_keys_stand_at_the_top_and_a_roles_own_in_its_table() {
        let file =
            [("/c", "queen_url = 'http://top'\n[hive]\nqueen = 'http://hive'\n[hives.far]\nport = 1\n")];
        assert_eq!(resolve("rbee status", &[], &file).unwrap().text("queen"), Some("http://top"));
        assert_eq!(resolve("rbee hive serve", &[], &file).unwrap().text("queen"), Some("http://hive"));
        // The embedded hive's queen is the one beside it, whatever the others on this machine ask.
        assert_eq!(resolve("rbee serve", &[], &file).unwrap().texts("queen"), [""; 0]);
    }

    #[test]
    fn one_process_of_two_roles_reads_both_tables() {
        let file = [("/c", "[queen]\nqueue = 9\n[hive]\norphan_ttl = '9s'\nlisten = ['127.0.0.1:9']\n")];
        let serve = resolve("rbee serve", &[], &file).unwrap();
        assert_eq!(serve.number::<u32>("queue"), Some(9));
        assert_eq!(serve.duration("orphan-ttl"), Some(Duration::from_secs(9)));
        assert_eq!(
            serve.texts("listen"),
            ["127.0.0.1:7833"],
            "where a hive listens is not where a queen does"
        );
        let error =
            resolve("rbee serve", &[], &[("/c", "[queen]\norphan_ttl = '9s'")]).unwrap_err().to_string();
        assert_eq!(error, "/c:2: unknown key `queen.orphan_ttl`");
    }

    #[test]
    fn a_bad_file_names_file_line_and_key() {
        let error = |text: &str| resolve("rbee status", &[], &[("/c.toml", text)]).unwrap_err().to_string();
        assert_eq!(
            error("\n[hive]\norphan_tll = '1s'"),
            "/c.toml:3: unknown key `hive.orphan_tll`, did you mean `orphan_ttl`?"
        );
        assert_eq!(
            error("\n\nquen_url = 'x'"),
            "/c.toml:3: unknown key `quen_url`, did you mean `queen_url`?"
        );
        assert_eq!(error("[hiv]\n"), "/c.toml:1: unknown key `hiv`, did you mean `hive`?");
        assert_eq!(
            error("[queen]\nqueue_wait = 30"),
            "/c.toml:2: `queen.queue_wait` = `30` is not a duration such as 500ms, 60s, 5m or 1h30m"
        );
        assert!(
            error("json = true\nqueen = \n").starts_with("/c.toml:2: "),
            "{}",
            error("json = true\nqueen = \n")
        );
        assert!(
            error("hive = 3").starts_with("/c.toml:1: `hive` = `integer` is not a table"),
            "{}",
            error("hive = 3")
        );
        assert!(error("[queen]\nlisten = [['a']]").contains("queen.listen"));
    }

    #[test]
    fn a_bad_variable_names_itself_and_foreign_ones_are_left_alone() {
        let error = resolve("rbee status", &[("RBEE_TIMEOUT", "30")], &[]).unwrap_err().to_string();
        assert!(error.starts_with("RBEE_TIMEOUT = `30` is not a duration"), "{error}");
        assert!(resolve("rbee status", &[("RBEE_FROM_THE_FUTURE", "x")], &[]).is_ok());
        let settings = resolve("rbee status", &[("NO_COLOR", "0")], &[]).unwrap();
        assert!(settings.on("no-color"), "NO_COLOR counts when it is set to anything");
    }

    #[test]
    fn paths_in_files_are_relative_to_the_file_and_know_the_home() {
        let vars = [("HOME", "/home/u")];
        let file = [("/etc/rbee/config.toml", "state_dir = 'state'\n[hive]\nmodels_dir = '~/models'")];
        let settings = resolve("rbee hive serve", &vars, &file).unwrap();
        assert_eq!(settings.path("state-dir"), Some(Path::new("/etc/rbee/state")));
        assert_eq!(settings.path("models-dir"), Some(Path::new("/home/u/models")));
    }

    #[test]
    fn a_required_flag_may_come_from_anywhere_but_must_come() {
        let error = resolve("rbee worker serve", &[], &[]).unwrap_err().to_string();
        assert_eq!(error, "`--model FILE` is missing: the GGUF file; see `rbee help worker serve`");
        assert!(resolve("rbee worker serve", &[("RBEE_MODEL", "a.gguf")], &[]).is_ok());
    }

    #[test]
    fn a_path_that_was_typed_is_absolute_for_whoever_gets_it_next() {
        let mut settings = resolve("rbee status --state-dir here", &[], &[]).unwrap();
        settings.anchor();
        assert_eq!(settings.path("state-dir"), Some(std::env::current_dir().unwrap().join("here").as_path()));
    }

    #[test]
    #[should_panic(expected = "has no flag `slots`")]
    fn asking_for_a_flag_the_command_lacks_is_a_bug() {
        let _ = resolve("rbee status", &[], &[]).unwrap().number::<u32>("slots");
    }

    #[test]
    fn a_machine_is_told_by_the_strongest_file_and_its_slips_by_their_line() {
        let text = "[hives.gpu]\nhost = '10.0.0.7'\nuser = 'u'\nport = 2222\nidentity = '~/k'\n[hives.b]\nidentity = 'k'\n";
        let files = [("/c/config.toml", text), ("/etc/rbee/config.toml", "[hives.gpu]\nport = 1\n")];
        let settings = resolve("rbee status", &[("HOME", "/home/u")], &files).unwrap();
        let gpu = settings.machine("gpu").unwrap();
        assert_eq!(
            (gpu.host.as_deref(), gpu.user.as_deref(), gpu.port),
            (Some("10.0.0.7"), Some("u"), Some(2222))
        );
        assert_eq!(gpu.identity.as_deref(), Some(Path::new("/home/u/k")));
        assert_eq!(settings.machine("b").unwrap().identity.as_deref(), Some(Path::new("/c/k")));
        assert_eq!(settings.machine("c"), None);
        for (text, words) in [
            ("[hives.gpu]\nprot = 1\n", "/c:2: unknown key `hives.gpu.prot`, did you mean `port`?"),
            ("[hives.gpu]\nport = 0\n", "/c:2: `hives.gpu.port` = `0` is not a whole number from 1 to 65535"),
            ("[hives]\ngpu = 'x'\n", "/c:2: `hives.gpu` = `string` is not a table"),
        ] {
            let error = resolve("rbee status", &[], &[("/c", text)]).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
