//! Each behaviour that is promised, by its number, as a person or a client meets it: the built program, real sockets, one
//! way through. What another file proves from every side is here once, from the outside.

mod fleet;
mod inference;
mod lifecycle;
mod models;
mod recipes;

use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::Content;
use crate::support::node::{Daemon, Place, said};
use serde_json::Value;
use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

/// Somebody at a keyboard, whose commands ask this queen.
struct Person<'p> {
    place: &'p Place,
    queen: String,
    env: Vec<(String, String)>,
}

impl<'p> Person<'p> {
    fn at(place: &'p Place, daemon: &Daemon) -> Person<'p> {
        Person { place, queen: daemon.url(), env: Vec::new() }
    }

    /// With an account where nothing runs yet.
    fn on_a_fresh_account(place: &'p Place) -> Person<'p> {
        Person { place, queen: format!("http://{}", place.address(7833)), env: Vec::new() }
    }

    fn with(mut self, name: &str, value: &str) -> Person<'p> {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.place.command(args);
        command.env("RBEE_QUEEN", &self.queen).envs(self.env.iter().map(|(name, value)| (name, value)));
        println!("{command:?}");
        command
    }

    /// Types a command and waits for its end.
    fn types(&self, args: &[&str]) -> Told {
        Told::of(&self.command(args).output().unwrap())
    }

    /// The same, for a command that must go well.
    #[track_caller]
    fn does(&self, args: &[&str]) -> Told {
        let told = self.types(args);
        assert_eq!(told.code, Some(0), "{args:?}: {told:?}");
        told
    }

    /// And for one that must not: exit code 1, the code of what went wrong on stderr, nothing on stdout.
    #[track_caller]
    fn fails(&self, args: &[&str], code: &str) -> Told {
        let told = self.types(args);
        assert_eq!((told.code, told.out.as_str()), (Some(1), ""), "{args:?}: {told:?}");
        assert!(told.err.contains(code), "{args:?}: no {code} in {}", told.err);
        told
    }

    /// Begins a command that is watched while it runs.
    fn begins(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running { child, seen: Vec::new() }
    }
}

/// What a command said, and its exit code.
#[derive(Debug)]
struct Told {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Told {
    fn of(output: &Output) -> Told {
        let (out, err) = said(output);
        Told { code: output.status.code(), out, err }
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// All of these words, on stderr.
    #[track_caller]
    fn tells(&self, words: &[&str]) {
        for word in words {
            assert!(self.err.contains(word), "no `{word}` in {}", self.err);
        }
    }

    /// These words on stderr, one after the other.
    #[track_caller]
    fn tells_in_order(&self, words: &[&str]) {
        let mut rest = self.err.as_str();
        for word in words {
            rest =
                rest.split_once(word).unwrap_or_else(|| panic!("no `{word}` in {rest}, of {}", self.err)).1;
        }
    }
}

/// A command under way.
struct Running {
    child: Child,
    /// Of its stdout.
    seen: Vec<u8>,
}

impl Running {
    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits for the first words of an answer.
    #[track_caller]
    fn first_words(&mut self) {
        let mut piece = [0; 64];
        let count = self.child.stdout.as_mut().unwrap().read(&mut piece).unwrap();
        if count == 0 {
            let mut said = String::new();
            self.child.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
            panic!("it ended without a word: {said}");
        }
        self.seen.extend_from_slice(&piece[..count]);
    }

    fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// All that it said, and its end.
    fn ends(self) -> Told {
        let mut output = self.child.wait_with_output().unwrap();
        output.stdout.splice(..0, self.seen);
        Told::of(&output)
    }
}

/// A model of the hub's that is like no other.
fn published(seed: u64) -> Arc<Content> {
    Content::of(tiny(&Tiny { seed, endless: true, ..Tiny::default() }))
}
