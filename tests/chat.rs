//! `rbee chat` as a person at a terminal uses it, and as a script at a pipe.

use crate::support::fleet::{CHAT, served};
use crate::support::node::{Daemon, PATIENCE, Place, alone, chat as ask, said, signal_pid, slow};
use crate::support::terminal::{CTRL_C, CTRL_D, ENTER, LEFT, Terminal, UP};
use rustix::process::Signal;
use serde_json::Value;
use std::io::{BufRead, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

const PROMPT: &str = "> ";
/// The editor's last word to the terminal.
const PASTE_OFF: &str = "\u{1b}[?2004l";

fn chat(place: &Place, queen: &str, args: &[&str]) -> Command {
    let model = place.model();
    let fixed = ["chat", "--queen", queen, "-m", model.as_str(), "--temperature", "0"];
    place.command(&[&fixed[..], args].concat())
}

/// A conversation over a pipe.
fn piped(place: &Place, queen: &str, args: &[&str], turns: &str) -> Output {
    let mut command = chat(place, queen, args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(turns.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What follows the end of the editing is of the answer.
#[track_caller]
fn answer_comes(terminal: &mut Terminal) {
    terminal.shows(PASTE_OFF);
    terminal.shows("\n");
    terminal.shows_more(8);
}

#[test]
fn at_a_terminal_ctrl_c_stops_the_answer_and_not_the_conversation() {
    alone(|| {
        let place = Place::with_model(&slow());
        let (daemon, model) = served(&place, &[]);
        // Loaded before, so that nothing but the answer follows a message.
        assert_eq!(daemon.post(CHAT, &ask(&model, 1, false)).status, 200);
        let Some(mut terminal) = Terminal::start(&chat(&place, &daemon.url(), &[])) else { return };

        terminal.shows("listens");
        terminal.shows(PROMPT);
        // Mistyped and mended in the middle of the line.
        terminal.press(&format!("Say somthing.{}e{ENTER}", LEFT.repeat("thing.".len())));
        daemon.has_busy_slots(1);
        answer_comes(&mut terminal);
        terminal.press(CTRL_C);
        terminal.shows("cancelled: ");
        daemon.has_busy_slots(0);

        terminal.shows(PROMPT);
        terminal.press(&format!("{UP}{ENTER}"));
        daemon.has_busy_slots(1);
        answer_comes(&mut terminal);
        terminal.press(CTRL_C);
        terminal.shows("cancelled: ");
        daemon.has_busy_slots(0);

        terminal.shows(PROMPT);
        terminal.press(&format!("/frob{ENTER}"));
        terminal.shows("there is no command `/frob`");
        terminal.shows(PROMPT);
        terminal.press("thrown away");
        terminal.press(CTRL_C);
        terminal.shows(PROMPT);
        let saved = place.path("saved.json");
        terminal.press(&format!("/save {}{ENTER}", saved.display()));
        terminal.shows("saved in");
        terminal.shows(PROMPT);
        terminal.press(CTRL_D);
        assert_eq!(terminal.ends().code(), Some(0));

        let saved: Value = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
        let messages = saved["messages"].as_array().unwrap();
        let roles: Vec<&str> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "user", "assistant"], "{saved}");
        assert_eq!(messages[0]["content"], "Say something.");
        assert!(!messages[1]["content"].as_str().unwrap().is_empty(), "what had come is kept: {saved}");

        let history = place.state().join("chat_history");
        assert_eq!(history.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let history = std::fs::read_to_string(history).unwrap();
        let typed: Vec<&str> = history.lines().collect();
        assert_eq!(typed[..2], ["Say something.", "/frob"], "{history}");
    });
}

#[test]
fn at_a_terminal_a_message_may_have_several_lines_typed_or_pasted() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::start(&place, "serve", &[]);
        let args = ["--max-tokens", "2", "--system", "Be brief."];
        let Some(mut terminal) = Terminal::start(&chat(&place, &daemon.url(), &args)) else { return };
        for message in
            ["\u{1b}[200~pasted\nlines\u{1b}[201~", "\"\"\"\rblock\r\"\"\"", "goes\\\ron", "alt\u{1b}\renter"]
        {
            terminal.shows(PROMPT);
            terminal.press(&format!("{message}{ENTER}"));
            // The end of this turn's editing, and then the next one's prompt.
            terminal.shows(PASTE_OFF);
        }
        terminal.shows(PROMPT);
        let saved = place.path("saved.json");
        terminal.press(&format!("/sa\t{}{ENTER}", saved.display()));
        terminal.shows("saved in");
        terminal.press(&format!("/quit{ENTER}"));
        assert_eq!(terminal.ends().code(), Some(0));
        let saved: Value = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
        let messages = saved["messages"].as_array().unwrap();
        let typed: Vec<&str> = messages
            .iter()
            .filter(|message| message["role"] != "assistant")
            .map(|message| message["content"].as_str().unwrap())
            .collect();
        assert_eq!(typed, ["Be brief.", "pasted\nlines", "block", "goes\non", "alt\nenter"], "{saved}");
    });
}

#[test]
fn at_a_pipe_ctrl_c_ends_it() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::start(&place, "serve", &[]);
        let mut command = chat(&place, &daemon.url(), &["--max-tokens", "2", "--json"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"hello\n").unwrap();
        let mut answer = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut answer).unwrap();
        assert!(answer.contains("finish_reason"), "{answer}");
        // It waits for the next turn now, or is about to.
        signal_pid(child.id() as i32, Signal::INT);
        assert_eq!(child.wait().unwrap().code(), Some(130));
    });
}

#[test]
fn at_a_pipe_each_line_is_a_turn_and_the_answer_knows_the_turns_before() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::start(&place, "serve", &[]);
        let turns = "hello\n\n/system be brief\n\"\"\"\ntwo\nlines\n\"\"\"\n/reset\nhello";
        let output = piped(&place, &daemon.url(), &["--max-tokens", "4", "--json"], turns);
        let (stdout, stderr) = said(&output);
        assert!(output.status.success(), "{stderr}");
        let answers: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let prompts: Vec<u64> =
            answers.iter().map(|answer| answer["usage"]["prompt_tokens"].as_u64().unwrap()).collect();
        assert_eq!(answers.len(), 3, "{stdout}");
        assert!(prompts[1] > prompts[0] && prompts[2] < prompts[1], "{prompts:?}");
        assert!(answers.iter().all(|answer| answer["finish_reason"] == "length"), "{stdout}");

        let plain = piped(&place, &daemon.url(), &["--max-tokens", "4"], "hello\n/quit\nnever asked\n");
        let (stdout, _) = said(&plain);
        assert_eq!(stdout.trim_end(), answers[0]["text"].as_str().unwrap().trim_end());
        assert!(stdout.ends_with('\n') && plain.status.success());
    });
}

#[test]
fn at_a_pipe_the_first_mistake_ends_it() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::start(&place, "serve", &[]);
        let output = piped(&place, &daemon.url(), &["--max-tokens", "2"], "/frob\nhello\n");
        let (stdout, stderr) = said(&output);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(2), ""), "{stderr}");
        assert!(stderr.contains("`/frob`") && stderr.contains("/help"), "{stderr}");

        let output = piped(&place, &daemon.url(), &["--worker", "w0"], "hello\n");
        let (_, stderr) = said(&output);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("WORKER_NOT_FOUND"), "{stderr}");
    });
}

#[test]
fn an_ephemeral_conversation_starts_what_is_missing_and_leaves_nothing() {
    alone(|| {
        let place = Place::new();
        let queen = format!("http://{}", place.address(7833));
        let output = piped(&place, &queen, &["--ephemeral", "--max-tokens", "3", "--json"], "hello\n");
        let (stdout, stderr) = said(&output);
        assert!(output.status.success(), "{stderr}");
        assert!(stderr.contains("starting rbee serve"), "{stderr}");
        let answer: Value = serde_json::from_str(stdout.trim_end()).unwrap();
        assert_eq!(answer["usage"]["completion_tokens"], 3);
        place.is_deserted_within(PATIENCE);
    });
}
