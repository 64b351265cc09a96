//! Where an install puts things, and what its configuration says.

use super::InstallError;
use super::record::Record;
use super::unit::Role;
use crate::cli::{self, Action};
use crate::config::Settings;
use crate::keeper::KeeperError;
use crate::paths::Dirs;
use std::path::{Path, PathBuf};

pub struct Places {
    pub is_system: bool,
    pub dirs: Dirs,
    /// For the program and the symlinks.
    pub bin: PathBuf,
    /// This user's configurations, of whatever program.
    pub user_config: PathBuf,
    pub home: Option<PathBuf>,
    /// Said on the line: the unit has to say it, too.
    pub state_dir: Option<PathBuf>,
    /// Whether there was state before us.
    pub had_state: bool,
    /// What is not there yet of the folders for state, the outermost first.
    pub missing: Vec<PathBuf>,
}

impl Places {
    /// Root's daemons are the system's, as everywhere; nobody else may install for the system.
    pub fn of(settings: &Settings) -> Result<Self, KeeperError> {
        let is_system = rustix::process::geteuid().is_root();
        if settings.on("system") && !is_system {
            let words = settings.command().name();
            return Err(KeeperError::Usage(format!("--system needs root: sudo rbee {words} --system")));
        }
        let state_dir = settings.path("state-dir").map(Path::to_owned);
        let dirs = Dirs::of_process(state_dir.as_deref())
            .map_err(|error| KeeperError::local("finding the state directory", error))?;
        let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = variable("HOME");
        let user_config = variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|h| h.join(".config")));
        let given = match settings.command().action {
            Action::Install => settings.path("bin-dir").map(Path::to_owned),
            _ => None,
        };
        let bin = match (given, is_system, &home) {
            (Some(given), ..) => given,
            (None, true, _) => "/usr/local/bin".into(),
            (None, false, Some(home)) => home.join(".local/bin"),
            (None, false, None) => return Err(InstallError::NoHome.into()),
        };
        // Looked at before any directory is made. A lock or a log alone is nothing that anybody would miss.
        let had_state = std::fs::read_dir(&dirs.state).is_ok_and(|mut entries| entries.next().is_some());
        let folders = [&dirs.state, &dirs.run, &dirs.logs];
        let mut missing: Vec<PathBuf> = folders.iter().flat_map(|folder| absent(folder)).collect();
        missing.sort_unstable();
        missing.dedup();
        Ok(Places {
            missing,
            is_system,
            bin,
            user_config: user_config.unwrap_or_else(|| "/etc".into()),
            home,
            state_dir,
            had_state,
            dirs,
        })
    }

    /// The state directory's folders. Made when nothing is left that could be refused.
    pub fn make_dirs(&self) -> Result<(), KeeperError> {
        self.dirs.create().map_err(|error| KeeperError::local("installing", error))
    }

    pub fn program(&self) -> PathBuf {
        self.bin.join("rbee")
    }

    /// The manual page, and what shells complete with, each with its place.
    pub fn manuals(&self) -> Vec<(PathBuf, String)> {
        let share = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let share = match (self.is_system, share, &self.home) {
            (true, ..) | (false, None, None) => PathBuf::from("/usr/local/share"),
            (false, Some(share), _) => share,
            (false, None, Some(home)) => home.join(".local/share"),
        };
        let mut manuals = vec![(share.join("man/man1/rbee.1"), cli::man_page())];
        for (shell, place) in [
            ("bash", "bash-completion/completions/rbee"),
            ("zsh", "zsh/site-functions/_rbee"),
            ("fish", "fish/vendor_completions.d/rbee.fish"),
        ] {
            manuals.extend(cli::completion_script(shell).map(|script| (share.join(place), script)));
        }
        manuals
    }

    /// The daemon's command line. What the configuration says is not repeated, unless the file is another's.
    pub fn command(&self, settings: &Settings, record: &Record) -> Vec<String> {
        let mut line = vec![record.program.to_string_lossy().into_owned()];
        line.extend(record.role.words().iter().map(|word| (*word).to_owned()));
        if let Some(dir) = &self.state_dir {
            line.extend(["--state-dir".to_owned(), dir.to_string_lossy().into_owned()]);
        }
        let config = self.dirs.config.join("config.toml");
        if !record.files.iter().any(|written| written.path == config) {
            for (flag, values) in said(settings, record.role) {
                line.extend(values.into_iter().flat_map(|value| [format!("--{flag}"), value]));
            }
        }
        line
    }
}

/// A folder and those above it, as far as they are not there.
pub fn absent(folder: &Path) -> Vec<PathBuf> {
    let mut absent: Vec<PathBuf> =
        folder.ancestors().take_while(|above| !above.exists()).map(Path::to_owned).collect();
    absent.reverse();
    absent
}

/// What was said to `rbee install` that its daemon has to know. A queen dials no other; that one may be named by habit
/// (RBEE_QUEEN) is the keeper's affair.
fn said(settings: &Settings, role: Role) -> Vec<(&'static str, Vec<String>)> {
    let flags =
        ["queen", "listen", "name"].into_iter().filter(|flag| role != Role::Queen || *flag != "queen");
    let given = flags.filter(|flag| settings.is_given(flag));
    given.map(|flag| (flag, settings.texts(flag).into_iter().map(str::to_owned).collect())).collect()
}

/// The first configuration: a person goes on from there.
pub fn configuration(settings: &Settings, role: Role) -> String {
    let words = role.words().join(" ");
    let mut text =
        format!("# rbee's configuration, begun by `rbee install`. `rbee help {words}` names every key.\n\n");
    // `rbee serve` reads both tables; where it listens is the queen's, whom it dials the hive's.
    let section = |flag: &str| match (role, flag) {
        (Role::Hive, _) | (Role::Serve, "queen") => "hive",
        _ => "queen",
    };
    for table in ["queen", "hive"] {
        let lines: Vec<_> =
            said(settings, role).into_iter().filter(|(flag, _)| section(flag) == table).collect();
        if lines.is_empty() {
            continue;
        }
        text += &format!("[{table}]\n");
        for (flag, values) in lines {
            let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
            let value = if flag == "name" { values.concat() } else { format!("[{}]", values.join(", ")) };
            text += &format!("{flag} = {value}\n");
        }
        text.push('\n');
    }
    text
}

/// As a TOML string.
fn quoted(value: &str) -> String {
    toml::Value::String(value.to_owned()).to_string()
}
