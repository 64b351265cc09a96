//! Where things lie. One user's daemons share one set of directories; root's are the system's; `--state-dir` puts
//! everything under one directory, which is how several fleets, and tests, live side by side.
//!
//! The home directory comes from HOME: the user database is behind NSS modules that a static program cannot load.

use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `sun_path` with its closing NUL: 108 on Linux, 104 on the BSDs and macOS.
/// A Mac's / is sealed and has no /run.
const RUN_OF_ROOT: &str = if cfg!(target_os = "macos") { "/var/run/rbee" } else { "/run/rbee" };
const SOCKET_PATH_BYTES_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
const SOCKET_HASH_HEX: usize = 12;
const SOCKET_SUFFIX: &str = ".sock";

#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error("HOME is not set: set it, or say where to keep state with --state-dir DIR")]
    NoHome,
    #[error("--state-dir `{}` cannot be made absolute", path.display())]
    NotAbsolute { path: PathBuf, source: io::Error },
    #[error("creating the directory `{}`: choose another with --state-dir DIR", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("`{}` belongs to user {owner}: choose another with --state-dir DIR", path.display())]
    Foreign { path: PathBuf, owner: u32 },
    #[error("`{}` is too long a path for sockets: choose a shorter one with --state-dir DIR", path.display())]
    TooLong { path: PathBuf },
}

/// Every directory, none of them created yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// config.toml and tokens.
    pub config: PathBuf,
    pub state: PathBuf,
    /// Sockets: gone after a reboot.
    pub run: PathBuf,
    pub logs: PathBuf,
    /// Records of models; their bytes are in the hub's cache.
    pub models: PathBuf,
    /// Journals.
    pub jobs: PathBuf,
    /// Installed workers, one directory an id.
    pub workers: PathBuf,
    /// What recipes download, kept between builds.
    pub sources: PathBuf,
    /// Builds at work, one directory each, gone with them.
    pub builds: PathBuf,
}

impl Dirs {
    /// Of this process, for `--state-dir` as it was resolved.
    pub fn of_process(state_dir: Option<&Path>) -> Result<Dirs, PathError> {
        Dirs::find(|name| std::env::var_os(name), rustix::process::geteuid().as_raw(), state_dir)
    }

    pub fn find(
        env: impl Fn(&str) -> Option<OsString>,
        user: u32,
        state_dir: Option<&Path>,
    ) -> Result<Dirs, PathError> {
        // The XDG specification wants relative paths ignored.
        let absolute = |name: &str| env(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("HOME");
        let is_root = user == 0;
        let config = match (is_root, absolute("XDG_CONFIG_HOME"), &home, state_dir) {
            (true, ..) => PathBuf::from("/etc/rbee"),
            (false, Some(config), ..) => config.join("rbee"),
            (false, None, Some(home), _) => home.join(".config/rbee"),
            (false, None, None, Some(state)) => state.join("config"),
            (false, None, None, None) => return Err(PathError::NoHome),
        };
        if let Some(dir) = state_dir {
            let dir = std::path::absolute(dir)
                .map_err(|source| PathError::NotAbsolute { path: dir.to_owned(), source })?;
            return Ok(Dirs::new(config, dir.clone(), dir.join("run"), dir.join("logs")));
        }
        if is_root {
            return Ok(Dirs::new(config, "/var/lib/rbee".into(), RUN_OF_ROOT.into(), "/var/log/rbee".into()));
        }
        let cache = match (absolute("XDG_CACHE_HOME"), home) {
            (Some(cache), _) => cache.join("rbee"),
            (None, Some(home)) => home.join(".cache/rbee"),
            (None, None) => return Err(PathError::NoHome),
        };
        // After `su` the variable may still name another user's directory, in a container none at all.
        let is_ours = |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == user);
        let run = match absolute("XDG_RUNTIME_DIR").filter(is_ours) {
            Some(runtime) => runtime.join("rbee"),
            None => cache.join("run"),
        };
        Ok(Dirs::new(config, cache.clone(), run, cache.join("logs")))
    }

    fn new(config: PathBuf, state: PathBuf, run: PathBuf, logs: PathBuf) -> Dirs {
        Dirs {
            models: state.join("models"),
            jobs: state.join("jobs"),
            workers: state.join("workers"),
            sources: state.join("sources"),
            builds: state.join("builds"),
            config,
            state,
            run,
            logs,
        }
    }

    /// Creates what daemons write to, readable by this user alone. The configuration is the person's to create.
    pub fn create(&self) -> Result<(), PathError> {
        if self.socket("").as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(PathError::TooLong { path: self.run.clone() });
        }
        create_private(&self.state)?;
        for path in [&self.run, &self.logs, &self.models, &self.jobs] {
            create_private(path)?;
            close_to_others(path)?;
        }
        Ok(())
    }

    /// A socket's path. Hashed, because names may be longer than a socket's address has room for.
    pub fn socket(&self, name: &str) -> PathBuf {
        let digest = Sha256::digest(name.as_bytes());
        let mut file: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        file.truncate(SOCKET_HASH_HEX);
        self.run.join(file + SOCKET_SUFFIX)
    }

    /// Held by the one daemon of a role. It lies with the state it guards: two logins of one user may differ in where
    /// their sockets are, and must not both write here.
    pub fn lock(&self, role: &str) -> PathBuf {
        self.state.join(format!("{role}.lock"))
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }
}

fn create_private(path: &Path) -> Result<(), PathError> {
    let failed = |source| PathError::Create { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let meta = path.metadata().map_err(failed)?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(PathError::Foreign { path: path.to_owned(), owner: meta.uid() });
    }
    Ok(())
}

/// Only for directories that we name: a `--state-dir` that was there before keeps its mode.
fn close_to_others(path: &Path) -> Result<(), PathError> {
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(path, private)
        .map_err(|source| PathError::Create { path: path.to_owned(), source })
}

/// The home folder that the system's list has for a user.
pub fn home_of(user: u32) -> Option<PathBuf> {
    home_in(&std::fs::read_to_string("/etc/passwd").ok()?, user)
}

/// Of lines of NAME:PASSWORD:UID:GID:COMMENT:HOME:SHELL.
fn home_in(list: &str, user: u32) -> Option<PathBuf> {
    list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_users = fields.nth(2)?.parse() == Ok(user);
        let home = PathBuf::from(fields.nth(2)?);
        (is_users && home.is_absolute()).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(vars: &[(&str, &str)], user: u32, state_dir: Option<&str>) -> Result<Dirs, PathError> {
        let env =
            |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Dirs::find(env, user, state_dir.map(Path::new))
    }

    #[test]
    fn a_users_home_is_in_the_systems_list() {
        let list =
            "# a comment\nroot:x:0:0:root:/root:/bin/bash\nbad:x\nnobody:x:65534:65534::nowhere:/bin/false\n";
        assert_eq!(home_in(list, 0), Some("/root".into()));
        assert_eq!((home_in(list, 65_534), home_in(list, 7)), (None, None));
    }

    #[test]
    fn a_user_has_the_cache_and_root_the_system() {
        let user = find(&[("HOME", "/home/u")], 1000, None).unwrap();
        assert_eq!(user.state, Path::new("/home/u/.cache/rbee"));
        assert_eq!(user.run, Path::new("/home/u/.cache/rbee/run"));
        assert_eq!(user.config, Path::new("/home/u/.config/rbee"));
        let root = find(&[("HOME", "/root")], 0, None).unwrap();
        assert_eq!((root.state, root.run), ("/var/lib/rbee".into(), "/run/rbee".into()));
    }

    #[test]
    fn without_home_the_error_says_what_to_set() {
        let error = find(&[], 1000, None).unwrap_err().to_string();
        assert!(error.contains("HOME") && error.contains("--state-dir"), "{error}");
        assert!(find(&[], 1000, Some("/x")).is_ok());
        assert!(
            find(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")], 1, None).unwrap().state.starts_with("/h")
        );
    }

    #[test]
    fn a_state_directory_holds_everything() {
        let dirs = find(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/1")], 0, Some("/x")).unwrap();
        for path in [&dirs.state, &dirs.run, &dirs.logs, &dirs.models, &dirs.jobs, &dirs.workers] {
            assert!(path.starts_with("/x"), "{path:?}");
        }
    }

    #[test]
    fn a_runtime_directory_of_somebody_else_is_not_used() {
        let temp = tempfile::tempdir().unwrap();
        let runtime = temp.path().to_str().unwrap();
        let owner = temp.path().metadata().unwrap().uid();
        let vars = [("HOME", "/home/u"), ("XDG_RUNTIME_DIR", runtime)];
        assert_eq!(find(&vars, owner + 1, None).unwrap().run, Path::new("/home/u/.cache/rbee/run"));
        if owner != 0 {
            assert_eq!(find(&vars, owner, None).unwrap().run, temp.path().join("rbee"));
        }
    }

    #[test]
    fn directories_are_made_private_and_short_enough_for_sockets() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = find(&[], 1000, temp.path().join("s").to_str()).unwrap();
        dirs.create().unwrap();
        assert_eq!(dirs.run.metadata().unwrap().mode() & 0o777, 0o700);
        assert_ne!(dirs.socket("a"), dirs.socket("b"));
        let long = find(&[], 1000, Some(&format!("/tmp/{}", "x".repeat(100)))).unwrap();
        assert!(matches!(long.create(), Err(PathError::TooLong { .. })));
    }
}
