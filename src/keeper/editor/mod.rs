//! Where a conversation's turns come from: a terminal with line editing and a history that is kept, or a pipe that is read
//! line by line. The crates that do this take 300 KiB and more of the program; this is what a conversation needs of them.

mod history;
mod keys;
mod line;
mod screen;
mod tty;

use crate::keeper::turns::{self, COMMANDS};
use history::History;
use keys::Keys;
use line::{Line, Step};
use screen::Screen;
use std::fs::File;
use std::io::{BufRead, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use tty::Tty;

/// The longest turn.
pub const TURN_BYTES_MAX: usize = 4 << 20;
const PROMPT: &str = "> ";
/// Where a terminal does not tell its size.
const COLUMNS: usize = 80;
const ROWS: usize = 24;

#[derive(Debug, thiserror::Error)]
pub enum EditorError {
    #[error("preparing the terminal")]
    Terminal(#[source] std::io::Error),
    #[error("reading from the terminal")]
    Keys(#[source] std::io::Error),
    #[error("reading stdin")]
    Stdin(#[source] std::io::Error),
    #[error("a turn on stdin is longer than {TURN_BYTES_MAX} bytes")]
    TooLong,
}

/// What came of waiting for a turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    Text(String),
    /// Ctrl-C: the line is cleared.
    Cleared,
    End,
    /// The terminal has gone.
    HungUp,
}

/// Both kinds read by blocking: they are asked on a thread of their own.
#[derive(Debug)]
pub enum Source {
    Terminal(Terminal),
    Pipe,
}

impl Source {
    /// A terminal that moves no cursor is read like a pipe.
    pub fn open(history: PathBuf) -> Result<Self, EditorError> {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if !std::io::stdin().is_terminal() || is_dumb {
            return Ok(Source::Pipe);
        }
        // Neither an answer nor a log that goes to a file is to have the prompt in it.
        let own = File::options().write(true).open("/dev/tty");
        let screen = own
            .or_else(|_| std::io::stderr().as_fd().try_clone_to_owned().map(File::from))
            .map_err(EditorError::Terminal)?;
        let history = History::load(history);
        let tty = Arc::new(Tty::new(screen));
        Ok(Source::Terminal(Terminal { tty, history, keys: Keys::default(), drawn: Screen::default() }))
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Source::Terminal(_))
    }

    /// The terminal, to be given back while a turn is waited for.
    pub fn tty(&self) -> Option<Arc<Tty>> {
        match self {
            Source::Terminal(terminal) => Some(terminal.tty.clone()),
            Source::Pipe => None,
        }
    }

    /// Waits for the next turn.
    pub fn next(&mut self) -> Result<Typed, EditorError> {
        match self {
            Source::Pipe => piped(std::io::stdin().lock()),
            Source::Terminal(terminal) => terminal.next(),
        }
    }
}

/// Lines until a turn is whole, or the input ends.
fn piped(mut input: impl BufRead) -> Result<Typed, EditorError> {
    let mut text = String::new();
    loop {
        let left = (TURN_BYTES_MAX - text.len()) as u64;
        let read = (&mut input).take(left + 1).read_line(&mut text).map_err(EditorError::Stdin)?;
        if text.len() > TURN_BYTES_MAX {
            return Err(EditorError::TooLong);
        }
        if read == 0 {
            return Ok(if text.is_empty() { Typed::End } else { Typed::Text(text) });
        }
        if turns::is_whole(text.trim_end_matches(['\r', '\n'])) {
            return Ok(Typed::Text(text));
        }
    }
}

#[derive(Debug)]
pub struct Terminal {
    tty: Arc<Tty>,
    history: History,
    /// Keys that were pressed before they were asked for are not lost.
    keys: Keys,
    drawn: Screen,
}

impl Terminal {
    fn next(&mut self) -> Result<Typed, EditorError> {
        let tty = self.tty.clone();
        let raw = tty.enter().map_err(EditorError::Terminal)?;
        self.drawn.forget();
        let edited = self.edit();
        drop(raw);
        if let Ok(Typed::Text(text)) = &edited {
            self.history.add(text);
        }
        edited
    }

    fn edit(&mut self) -> Result<Typed, EditorError> {
        let mut line = Line::default();
        loop {
            self.draw(&line)?;
            let Some(key) = self.key()?.filter(|_| !self.tty.is_given_back()) else {
                return Ok(Typed::HungUp);
            };
            let step = line.press(key, self.history.turns());
            match step {
                Step::Edited => {}
                Step::Enter if !turns::is_whole(line.text()) => line.insert("\n"),
                Step::Tab => complete(&mut line),
                Step::Redraw => {
                    self.write("\u{1b}[H\u{1b}[2J")?;
                    self.drawn.forget();
                }
                Step::Suspend => {
                    self.tty.suspend().map_err(EditorError::Terminal)?;
                    self.drawn.forget();
                }
                Step::Enter | Step::Interrupt | Step::End => {
                    line.move_to_end();
                    self.draw(&line)?;
                    return Ok(match step {
                        Step::Interrupt => Typed::Cleared,
                        Step::End => Typed::End,
                        _ => Typed::Text(line.into_text()),
                    });
                }
            }
        }
    }

    /// The next key; none when the terminal has gone.
    fn key(&mut self) -> Result<Option<keys::Key>, EditorError> {
        let mut bytes = [0; 1024];
        loop {
            if let Some(key) = self.keys.next() {
                return Ok(Some(key));
            }
            match rustix::io::read(std::io::stdin().as_fd(), &mut bytes) {
                Ok(0) | Err(rustix::io::Errno::IO) => return Ok(None),
                Ok(count) => self.keys.push(&bytes[..count]),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(EditorError::Keys(error.into())),
            }
        }
    }

    fn draw(&mut self, line: &Line) -> Result<(), EditorError> {
        let (columns, rows) = self.tty.size();
        let told =
            |cells: Option<u16>, usual| cells.map(usize::from).filter(|cells| *cells > 0).unwrap_or(usual);
        let columns = told(columns, COLUMNS);
        let rows = told(rows, ROWS);
        let after = &line.text()[line.before_cursor().len()..];
        let codes = self.drawn.draw(PROMPT, line.before_cursor(), after, columns, rows);
        self.write(&codes)
    }

    fn write(&self, text: &str) -> Result<(), EditorError> {
        self.tty.write(text).map_err(EditorError::Terminal)
    }
}

/// What all commands that begin so have in common.
fn complete(line: &mut Line) {
    let typed = line.text().to_owned();
    if !typed.starts_with('/') || !line.is_at_end() {
        return;
    }
    let names = COMMANDS.iter().filter_map(|(command, _)| command.split(' ').next());
    let fitting: Vec<&str> = names.filter(|name| name.starts_with(&typed)).collect();
    let Some(first) = fitting.first() else { return };
    let shared = (typed.len()..=first.len())
        .rev()
        .find(|end| fitting.iter().all(|name| name.as_bytes().starts_with(&first.as_bytes()[..*end])));
    line.insert(&first[typed.len()..shared.unwrap_or(typed.len())]);
    if fitting.len() == 1 {
        line.insert(" ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_of_several_lines_come_whole_from_a_pipe() {
        let mut input = &b"one\n\"\"\"\ntwo\nthree\n\"\"\"\nfour\\\nfive\nsix"[..];
        let mut next = || piped(&mut input).unwrap();
        for expected in ["one\n", "\"\"\"\ntwo\nthree\n\"\"\"\n", "four\\\nfive\n", "six"] {
            assert_eq!(next(), Typed::Text(expected.into()));
        }
        assert_eq!(next(), Typed::End);
        let endless = std::io::BufReader::new(std::io::repeat(b'x'));
        assert!(matches!(piped(endless), Err(EditorError::TooLong)));
    }

    #[test]
    fn a_command_is_completed_as_far_as_it_is_certain() {
        let completed = |typed: &str| {
            let mut line = Line::default();
            line.insert(typed);
            complete(&mut line);
            line.into_text()
        };
        assert_eq!(completed("/m"), "/model ");
        assert_eq!(completed("/s"), "/s");
        assert_eq!(completed("/re"), "/re");
        assert_eq!(completed("/res"), "/reset ");
        assert_eq!(completed("/x"), "/x");
        assert_eq!(completed("m"), "m");
    }
}
