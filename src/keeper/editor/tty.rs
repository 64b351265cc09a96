//! The terminal that stdin is, raw while a line is edited and otherwise as it was: after a line, after an error, and on a
//! signal, when another thread gives it back while the editing one still waits for a key.

use rustix::termios::{self, OptionalActions, Termios};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Pasted text comes between marks, so that its line breaks end no turn.
const PASTE_ON: &str = "\u{1b}[?2004h";
const PASTE_OFF: &str = "\u{1b}[?2004l";
/// A shell's `kill` of a stopped job lets it go on first: how long that may take to be noticed before it is stopped again.
const KILL_SEEN_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Tty {
    screen: File,
    mode: Mutex<Mode>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Mode {
    /// As it is to be again.
    before: Option<Termios>,
    /// Given back for good.
    is_over: bool,
}

/// Raw until this goes.
#[derive(Debug)]
pub struct Raw<'t>(&'t Tty);

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        self.0.leave(&mut self.0.mode());
    }
}

impl Tty {
    /// What is drawn goes to `screen`.
    pub fn new(screen: File) -> Self {
        Tty { screen, mode: Mutex::default(), changed: Condvar::new() }
    }

    fn mode(&self) -> MutexGuard<'_, Mode> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn enter(&self) -> io::Result<Raw<'_>> {
        let mut mode = self.mode();
        if mode.is_over {
            return Err(over());
        }
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        mode.before = Some(before);
        drop(mode);
        let entered = Raw(self);
        self.write(PASTE_ON)?;
        Ok(entered)
    }

    fn leave(&self, mode: &mut Mode) {
        // A terminal that is another's now has that one's mode, and would stop us for a change.
        if let Some(before) = mode.before.take()
            && is_in_front()
        {
            // Both fail where the terminal has gone, which then needs nothing back. Not waiting for what is still to be
            // shown: somebody may have stopped that.
            let _ = self.write(&format!("{PASTE_OFF}\r\n"));
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &before);
        }
    }

    /// As it was, and never raw again.
    pub fn give_back(&self) {
        let mut mode = self.mode();
        mode.is_over = true;
        self.leave(&mut mode);
        self.changed.notify_all();
    }

    pub fn is_given_back(&self) -> bool {
        self.mode().is_over
    }

    /// Ctrl-Z, as in any other program: as it was while the shell has it, raw again when we have it again.
    pub fn suspend(&self) -> io::Result<()> {
        let Some(before) = self.mode().before.clone() else { return Ok(()) };
        let raw = termios::tcgetattr(io::stdin())?;
        self.write(PASTE_OFF)?;
        termios::tcsetattr(io::stdin(), OptionalActions::Drain, &before)?;
        loop {
            // By this thread to itself, so that it is stopped before it comes back.
            signal_hook::low_level::raise(signal_hook::consts::SIGTSTP)?;
            if is_in_front() {
                break;
            }
            let waited = self.changed.wait_timeout_while(self.mode(), KILL_SEEN_MAX, |mode| !mode.is_over);
            if waited.unwrap_or_else(PoisonError::into_inner).0.is_over {
                return Err(over());
            }
        }
        let mode = self.mode();
        if mode.is_over {
            return Err(over());
        }
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        drop(mode);
        self.write(PASTE_ON)
    }

    pub fn write(&self, text: &str) -> io::Result<()> {
        (&self.screen).write_all(text.as_bytes())
    }

    /// Columns and rows, where it tells them.
    pub fn size(&self) -> (Option<u16>, Option<u16>) {
        let size = termios::tcgetwinsize(self.screen.as_fd()).ok();
        (size.map(|size| size.ws_col), size.map(|size| size.ws_row))
    }
}

/// To wait for another key now, behind the shell, would stop the whole process where it is about to end.
fn over() -> io::Error {
    io::Error::other("the terminal was given back")
}

/// Whether the terminal is ours to use.
fn is_in_front() -> bool {
    termios::tcgetpgrp(io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}
