//! What had come of an answer that broke off (B17), kept in a file that is named: the words may have gone to a pipe, and with
//! --json to nowhere.

use crate::config::Settings;
use crate::keeper::KeeperError;
use crate::keeper::render::Render;
use crate::paths::{Dirs, PathError};
use crate::wire::failure::chain;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// In the state directory.
const FOLDER: &str = "partial";
/// As much as a queen keeps of an answer.
const TEXT_BYTES_MAX: usize = 4 << 20;
/// The newest are kept.
const FILES_MAX: usize = 32;

#[derive(Debug, thiserror::Error)]
enum PartialError {
    #[error(transparent)]
    Place(#[from] PathError),
    #[error("writing `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// The words of an answer so far.
#[derive(Debug, Default)]
pub struct Partial {
    text: String,
}

impl Partial {
    pub fn take(&mut self, text: &str) {
        if self.text.len() + text.len() <= TEXT_BYTES_MAX {
            self.text.push_str(text);
        }
    }

    /// Keeps them if the answer broke off, and says where. An answer that its reader stopped is not kept.
    pub fn keep<T>(self, settings: &Settings, render: &Render, ended: &Result<T, KeeperError>) {
        if self.text.is_empty() || !matches!(ended, Err(KeeperError::Refused(_))) {
            return;
        }
        let kept = Dirs::of_process(settings.path("state-dir"))
            .map_err(PartialError::from)
            .and_then(|dirs| write(&dirs.state.join(FOLDER), &self.text));
        match kept {
            Ok(path) => render.say(&format!("what had come of the answer is in {}", path.display())),
            Err(error) => {
                render.say(&format!("warning: what had come of the answer is not kept: {}", chain(&error)));
            }
        }
    }
}

/// Into a file of its own, which is its owner's to read: a prompt's answer is nobody else's business.
fn write(folder: &Path, text: &str) -> Result<PathBuf, PartialError> {
    let path = folder.join(format!("{}.txt", crate::wire::id::fresh()));
    let written = DirBuilder::new().recursive(true).mode(0o700).create(folder).and_then(|()| {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        make_room(folder, &path)
    });
    match written {
        Ok(()) => Ok(path),
        Err(source) => Err(PartialError::Write { path, source }),
    }
}

/// Names sort by age, but for those of one millisecond: the newest is told apart.
fn make_room(folder: &Path, newest: &Path) -> io::Result<()> {
    let mut files: Vec<PathBuf> = folder.read_dir()?.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file != newest && file.extension().is_some_and(|end| end == "txt"));
    files.sort_unstable();
    let surplus = (files.len() + 1).saturating_sub(FILES_MAX);
    files.iter().take(surplus).try_for_each(std::fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_only_their_owner_reads_them() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("state/partial");
        let paths: Vec<PathBuf> =
            (0..FILES_MAX + 3).map(|number| write(&folder, &number.to_string()).unwrap()).collect();
        assert_eq!(folder.read_dir().unwrap().count(), FILES_MAX);
        let last = paths.last().unwrap();
        assert_eq!(std::fs::read_to_string(last).unwrap(), (FILES_MAX + 2).to_string());
        assert_eq!(last.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn no_more_is_held_than_a_queen_keeps() {
        let mut partial = Partial::default();
        partial.take(&"a".repeat(TEXT_BYTES_MAX));
        partial.take("b");
        assert_eq!(partial.text.len(), TEXT_BYTES_MAX);
    }
}
