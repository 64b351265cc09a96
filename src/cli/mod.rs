//! The command line as data: one table of commands and flags that the parser, the help, the configuration file and
//! the environment all read. Nothing here touches the world: words in, a [`Request`] out.
//!
//! To add a command: a line in [`Action`], an entry in `table.rs`; the compiler then asks main.rs to dispatch it.
//! To add a flag: an entry in `flags.rs`, named in the commands that take it. Help, `RBEE_…` variable and
//! configuration key follow by themselves.

mod completions;
mod flags;
mod help;
mod lookup;
mod man;
mod parse;
mod suggest;
mod table;
pub mod value;

pub use completions::script as completion_script;
pub use help::overview;
pub use lookup::{LINK_NAMES, find, section_flags, sections};
pub use man::page as man_page;
pub use parse::{Parsed, Request, UsageError, parse};
pub use suggest::nearest;
pub use table::COMMANDS;
pub use value::Kind;

/// What `rbee completions` takes.
pub const SHELLS: &[&str] = &["bash", "zsh", "fish"];

/// Flags that every command takes, in any place.
pub fn global_flags() -> &'static [&'static Flag] {
    flags::GLOBAL
}

/// What main.rs dispatches on; exhaustive, so that no command in the table goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Run,
    Chat,
    Status,
    Why,
    Serve,
    QueenServe,
    QueenStart,
    QueenStatus,
    QueenStop,
    HiveServe,
    HiveStart,
    HiveStatus,
    HiveStop,
    HiveList,
    HiveGet,
    HiveInstall,
    HiveUpdate,
    HiveUninstall,
    HiveDrain,
    WorkerServe,
    WorkerSpawn,
    WorkerAvailable,
    WorkerInstalled,
    WorkerGet,
    WorkerDownload,
    WorkerRemove,
    WorkerProcessList,
    WorkerProcessGet,
    WorkerProcessDelete,
    CatalogServe,
    WorkersList,
    WorkersGet,
    WorkersHealth,
    WorkersRetire,
    WorkersShutdown,
    Stop,
    WorkersLogs,
    Logs,
    ModelDownload,
    ModelList,
    ModelGet,
    ModelRemove,
    ModelVerify,
    ModelPrune,
    ModelAlias,
    ModelUnalias,
    JobList,
    JobGet,
    JobFollow,
    JobCancel,
    KeyCreate,
    KeyList,
    KeyRevoke,
    Token,
    Install,
    Uninstall,
    Links,
    Completions,
    Man,
    Version,
    Help,
    Shim,
    Unpack,
}

/// Which part of the program a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    Keeper,
    /// Queen and hive in one process.
    Serve,
    Queen,
    Hive,
    Worker,
    Catalog,
    Shim,
    /// Reads archives of strangers, confined.
    Unpack,
}

/// The headings of `rbee help`, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Group {
    Ask,
    Fleet,
    Engines,
    Models,
    Jobs,
    Keys,
    Daemons,
    Rest,
}

#[derive(Debug)]
pub struct Command {
    pub action: Action,
    /// The words that name it: `["hive", "serve"]`.
    pub path: &'static [&'static str],
    /// Other spellings, each a whole path.
    pub aliases: &'static [&'static [&'static str]],
    pub role: Role,
    pub group: Group,
    pub summary: &'static str,
    /// Paragraphs for `--help`.
    pub details: &'static str,
    pub positionals: &'static [Positional],
    /// Its own flags; the global ones (`flags::GLOBAL`) come on top. An own flag hides a global one of the same name.
    pub flags: &'static [&'static Flag],
    /// Tables of the configuration file that speak to it. The command that names one table alone owns it: the table's
    /// keys are its flags. Global flags stand outside of tables.
    pub sections: &'static [&'static str],
    pub hidden: bool,
}

#[derive(Debug)]
pub struct Positional {
    pub name: &'static str,
    pub help: &'static str,
    pub required: bool,
    /// Takes all that follow.
    pub many: bool,
}

#[derive(Debug)]
pub struct Flag {
    pub name: &'static str,
    pub short: Option<char>,
    pub aliases: &'static [&'static str],
    pub kind: Kind,
    /// What help calls the value: `HOST:PORT`.
    pub value: &'static str,
    /// Somebody must say it: on the line, in the environment or in a file.
    pub required: bool,
    /// May be given more than once; all values count.
    pub many: bool,
    pub default: Default,
    /// First line for `-h`; the rest for `--help`.
    pub help: &'static str,
    /// A variable of other programs that also sets it.
    pub also_env: Option<&'static str>,
    /// The configuration key where the flag's name is taken by a table.
    pub other_key: Option<&'static str>,
    /// Its variable where the name's own is another flag's of another kind.
    pub other_env: Option<&'static str>,
    /// Between our own processes only: not in help, no variable, no key.
    pub hidden: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    None,
    /// Parsed like a value that was typed.
    Value(&'static str),
    /// Worked out later; help says how.
    Says(&'static str),
}

impl Command {
    /// `hive serve`, as it is typed after `rbee`.
    pub fn name(&self) -> String {
        self.path.join(" ")
    }

    /// Every flag it understands: its own, then the global ones it does not redefine.
    pub fn all_flags(&self) -> impl Iterator<Item = &'static Flag> {
        let own = self.flags;
        let global = flags::GLOBAL.iter().copied().filter(move |g| own.iter().all(|f| f.name != g.name));
        own.iter().copied().chain(global)
    }

    pub fn flag(&self, name: &str) -> Option<&'static Flag> {
        self.all_flags().find(|flag| flag.is(name))
    }

    /// The tables of the configuration file that may hold one of its own flags.
    pub fn sections_of(&self, flag: &'static Flag) -> impl Iterator<Item = &'static str> {
        let has = move |section: &&str| section_flags(section).any(|other| std::ptr::eq(other, flag));
        self.sections.iter().copied().filter(has)
    }
}

impl Flag {
    const fn new(name: &'static str, kind: Kind, value: &'static str, help: &'static str) -> Flag {
        Flag {
            name,
            short: None,
            aliases: &[],
            kind,
            value,
            required: false,
            many: false,
            default: Default::None,
            help,
            also_env: None,
            other_key: None,
            other_env: None,
            hidden: false,
        }
    }

    const fn short(mut self, short: char) -> Flag {
        self.short = Some(short);
        self
    }

    const fn aliases(mut self, aliases: &'static [&'static str]) -> Flag {
        self.aliases = aliases;
        self
    }

    const fn required(mut self) -> Flag {
        self.required = true;
        self
    }

    const fn many(mut self) -> Flag {
        self.many = true;
        self
    }

    const fn default(mut self, text: &'static str) -> Flag {
        self.default = Default::Value(text);
        self
    }

    const fn says(mut self, text: &'static str) -> Flag {
        self.default = Default::Says(text);
        self
    }

    const fn also_env(mut self, variable: &'static str) -> Flag {
        self.also_env = Some(variable);
        self
    }

    const fn key_is(mut self, key: &'static str) -> Flag {
        self.other_key = Some(key);
        self
    }

    const fn variable_is(mut self, variable: &'static str) -> Flag {
        self.other_env = Some(variable);
        self
    }

    const fn hidden(mut self) -> Flag {
        self.hidden = true;
        self
    }

    /// By its name or an alias.
    pub fn is(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }

    /// `RBEE_QUEUE_WAIT` for `--queue-wait`.
    pub fn env(&self) -> String {
        let own = || format!("RBEE_{}", self.name.replace('-', "_").to_ascii_uppercase());
        self.other_env.map_or_else(own, str::to_owned)
    }

    /// `queue_wait` for `--queue-wait`.
    pub fn key(&self) -> String {
        self.other_key.map_or_else(|| self.name.replace('-', "_"), str::to_owned)
    }
}
