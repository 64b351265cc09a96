//! A program on a terminal of its own, with somebody at the keys: what util-linux' `script` makes.

use crate::support::node::until;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

pub const ENTER: &str = "\r";
pub const CTRL_C: &str = "\u{3}";
pub const CTRL_D: &str = "\u{4}";
pub const UP: &str = "\u{1b}[A";
pub const LEFT: &str = "\u{1b}[D";

pub struct Terminal {
    child: Child,
    keys: ChildStdin,
    shown: Arc<Mutex<Vec<u8>>>,
    /// How much of that has been looked at.
    seen: usize,
}

impl Terminal {
    /// Starts a command with its environment; none where there is no `script` that makes terminals.
    pub fn start(command: &Command) -> Option<Terminal> {
        let quoted = |word: &OsStr| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"));
        let words: Vec<String> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
        let mut script = Command::new("script");
        script.args(["-qefc", &format!("exec {}", words.join(" ")), "/dev/null"]).env_clear();
        script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
        let version = Command::new("script").arg("--version").output();
        if !version.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("util-linux")) {
            eprintln!("skipped: there is no `script` of util-linux here");
            return None;
        }
        let mut child =
            script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let keys = child.stdin.take().unwrap();
        let mut screen = child.stdout.take().unwrap();
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let showing = shown.clone();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut piece) {
                showing.lock().unwrap().extend_from_slice(&piece[..count]);
            }
        });
        Some(Terminal { child, keys, shown, seen: 0 })
    }

    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until this is shown, after all that was waited for before; gives what came in between.
    #[track_caller]
    pub fn shows(&mut self, text: &str) -> String {
        let (end, between) = until(&format!("the terminal shows {text:?}"), || {
            let shown = self.shown.lock().unwrap();
            let rest = String::from_utf8_lossy(&shown[self.seen..]).into_owned();
            let at = shown[self.seen..].windows(text.len()).position(|window| window == text.as_bytes());
            let at = at.ok_or_else(|| rest.clone())?;
            Ok((self.seen + at + text.len(), String::from_utf8_lossy(&shown[self.seen..][..at]).into_owned()))
        });
        self.seen = end;
        between
    }

    /// Waits until so many more bytes are shown, whatever they are.
    #[track_caller]
    pub fn shows_more(&mut self, bytes: usize) {
        let goal = self.seen + bytes;
        until("the terminal shows more", || match self.shown.lock().unwrap().len() {
            shown if shown >= goal => Ok(()),
            shown => Err(format!("{shown} of {goal} bytes")),
        });
        self.seen = goal;
    }

    #[track_caller]
    pub fn ends(mut self) -> ExitStatus {
        until("the program on the terminal ends", || {
            self.child.try_wait().unwrap().ok_or_else(|| {
                let shown = self.shown.lock().unwrap();
                String::from_utf8_lossy(&shown[self.seen.min(shown.len())..]).into_owned()
            })
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Its terminal closes with it, which ends the program; gone already where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
