//! The history's file: a turn a line, readable by its owner alone. A file that cannot be used costs the history and nothing
//! else.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Turns that are kept.
pub const HISTORY_TURNS_MAX: usize = 1_000;
/// A longer turn is not kept: somebody pasted a document.
pub const HISTORY_TURN_BYTES_MAX: usize = 16 << 10;
/// Beyond this the file is written anew, with the last turns alone.
pub const HISTORY_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub struct History {
    path: PathBuf,
    turns: Vec<String>,
}

impl History {
    pub fn load(path: PathBuf) -> Self {
        let mut bytes = Vec::new();
        // Somebody else's file may be of any length.
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(2 * HISTORY_BYTES_MAX).read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        let turns: Vec<String> =
            if read.is_ok() { text.lines().map(unescaped).collect() } else { Vec::new() };
        let first = turns.len().saturating_sub(HISTORY_TURNS_MAX);
        History { turns: turns[first..].to_vec(), path }
    }

    pub fn turns(&self) -> &[String] {
        &self.turns
    }

    /// Adds a turn, unless it is the last one again, or begins with a blank, which says that it is to be forgotten.
    /// Several conversations at once add to one file.
    pub fn add(&mut self, turn: &str) {
        let is_again = self.turns.last().is_some_and(|last| last == turn);
        if turn.trim().is_empty() || turn.starts_with(' ') || turn.len() > HISTORY_TURN_BYTES_MAX || is_again
        {
            return;
        }
        if self.turns.len() == HISTORY_TURNS_MAX {
            self.turns.remove(0);
        }
        self.turns.push(turn.to_owned());
        let file = std::fs::File::options().create(true).append(true).mode(0o600).open(&self.path);
        let added = file.and_then(|mut file| {
            file.write_all((escaped(turn) + "\n").as_bytes())?;
            Ok(file.metadata()?.len())
        });
        if added.is_ok_and(|bytes| bytes > HISTORY_BYTES_MAX) {
            self.shorten();
        }
    }

    /// Keeps the last turns, up to half of what the file may hold.
    fn shorten(&self) {
        let mut lines = Vec::new();
        let mut bytes = 0;
        for turn in self.turns.iter().rev() {
            let line = escaped(turn) + "\n";
            bytes += line.len() as u64;
            if bytes > HISTORY_BYTES_MAX / 2 {
                break;
            }
            lines.push(line);
        }
        lines.reverse();
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
            file.write_all(lines.concat().as_bytes())?;
            file.persist(&self.path).map_err(|error| error.error)
        });
        if let Err(error) = written {
            tracing::debug!(%error, "the history could not be shortened");
        }
    }
}

/// A turn as one line.
fn escaped(turn: &str) -> String {
    turn.replace('\\', r"\\").replace('\n', r"\n").replace('\r', "")
}

fn unescaped(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut letters = line.chars();
    while let Some(c) = letters.next() {
        out.push(match c {
            '\\' => match letters.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            c => c,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_history_is_private_survives_and_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let load = || History::load(path.clone());
        let turns = ["plain", "two\nlines \\n and a \\", "ü"];
        let mut history = load();
        turns.iter().for_each(|turn| history.add(turn));
        for unkept in ["ü", " secret", "  ", &"x".repeat(HISTORY_TURN_BYTES_MAX + 1)] {
            history.add(unkept);
        }
        assert_eq!((load().turns(), history.turns()), (&turns.map(str::to_owned)[..], history.turns()));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        let long = |n: usize| format!("{n}{}", "ü".repeat(HISTORY_TURN_BYTES_MAX / 4));
        for n in 0..300 {
            history.add(&long(n));
            assert!(path.metadata().unwrap().len() <= HISTORY_BYTES_MAX);
        }
        assert_eq!(load().turns().last(), Some(&long(299)));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        (0..2 * HISTORY_TURNS_MAX).for_each(|n| history.add(&n.to_string()));
        assert_eq!((history.turns().len(), load().turns().len()), (HISTORY_TURNS_MAX, HISTORY_TURNS_MAX));
    }
}
