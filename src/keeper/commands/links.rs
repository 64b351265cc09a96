//! `rbee links DIR`: symlinks whose names choose a role. Everything is looked at before anything is changed, so that a
//! refusal leaves the directory as it was.

use crate::cli::LINK_NAMES;
use crate::config::Settings;
use crate::keeper::KeeperError;
use crate::keeper::render::Render;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("finding this program's own path")]
    Program(#[source] io::Error),
    #[error("opening the directory `{}`: create it first, or name another", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("`{}` exists and is not a link to an rbee: move it away first", path.display())]
    Taken { path: PathBuf },
    #[error("reading the link `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("creating the link `{}`", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("removing the link `{}`", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// Makes or removes the links for this program and tells the path of each one that changed.
pub fn links(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let dir = Path::new(&settings.positionals()[0]);
    let changed = change(dir, settings.on("remove")).map_err(|error| KeeperError::local("links", error))?;
    let paths: Vec<_> = changed.iter().map(|path| path.to_string_lossy()).collect();
    let written = match render.is_json() {
        true => render.value(&serde_json::json!({ "changed": paths })),
        false => render.answer(&paths.iter().map(|path| format!("{path}\n")).collect::<String>()),
    };
    written.map_err(|error| KeeperError::local("writing the list of links", error))
}

fn change(dir: &Path, remove_them: bool) -> Result<Vec<PathBuf>, LinkError> {
    let program = std::env::current_exe().and_then(|path| path.canonicalize()).map_err(LinkError::Program)?;
    if remove_them { remove(dir, &program) } else { make(dir, &program) }
}

/// Links every name in `dir` to `program`, and tells the paths of those that were not there yet.
pub fn make(dir: &Path, program: &Path) -> Result<Vec<PathBuf>, LinkError> {
    let dir = open(dir)?;
    // Beside the program itself the links are relative, so that the folder can be moved as a whole.
    let target = match (program.parent(), program.file_name()) {
        (Some(parent), Some(name)) if parent == dir => Path::new(name),
        _ => program,
    };
    let mut wanted = Vec::new();
    for name in LINK_NAMES {
        let path = dir.join(name);
        match target_of(&path)? {
            Found::Nothing => wanted.push(path),
            Found::Link(old) if old == target => {}
            Found::Link(old) if is_rbee(&old, program) => wanted.push(path),
            Found::Link(_) | Found::Other => return Err(LinkError::Taken { path }),
        }
    }
    for path in &wanted {
        replace(path, target).map_err(|source| LinkError::Create { path: path.clone(), source })?;
    }
    Ok(wanted)
}

/// Removes the links in `dir` that lead to `program`, whatever their form, and tells their paths.
pub fn remove(dir: &Path, program: &Path) -> Result<Vec<PathBuf>, LinkError> {
    let dir = open(dir)?;
    let mut removed = Vec::new();
    for name in LINK_NAMES {
        let path = dir.join(name);
        if let Found::Link(target) = target_of(&path)?
            && dir.join(target).canonicalize().is_ok_and(|target| target == program)
        {
            std::fs::remove_file(&path).map_err(|source| LinkError::Remove { path: path.clone(), source })?;
            removed.push(path);
        }
    }
    Ok(removed)
}

fn open(dir: &Path) -> Result<PathBuf, LinkError> {
    let opened = dir.canonicalize().and_then(|path| match path.is_dir() {
        true => Ok(path),
        false => Err(ErrorKind::NotADirectory.into()),
    });
    opened.map_err(|source| LinkError::Directory { path: dir.to_owned(), source })
}

enum Found {
    Nothing,
    /// And what it says, which need not exist.
    Link(PathBuf),
    Other,
}

fn target_of(path: &Path) -> Result<Found, LinkError> {
    match std::fs::read_link(path) {
        Ok(target) => Ok(Found::Link(target)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Found::Nothing),
        // readlink's answer for whatever is no link.
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(Found::Other),
        Err(source) => Err(LinkError::Read { path: path.to_owned(), source }),
    }
}

/// By name: an older rbee may be gone, and its links dangle.
fn is_rbee(target: &Path, program: &Path) -> bool {
    let name = target.file_name();
    name.is_some() && (name == Some(OsStr::new("rbee")) || name == program.file_name())
}

/// In one step, so that nobody finds the name missing.
fn replace(path: &Path, target: &Path) -> io::Result<()> {
    let fresh = path.with_file_name(format!(".rbee-link-{}", std::process::id()));
    std::os::unix::fs::symlink(target, &fresh)?;
    std::fs::rename(&fresh, path).inspect_err(|_| drop(std::fs::remove_file(&fresh)))
}
