//! `rbee chat` as a person at a terminal uses it, and as a script at a pipe.

use crate::support::fleet::{CHAT, served};
use crate::support::node::{
    Daemon, PATIENCE, Place, RBEE, alone, chat as ask, said, signal_pid, slow, until,
};
use crate::support::terminal::{CTRL_C, CTRL_D, ENTER, LEFT, Terminal, UP};
use rustix::process::Signal;
use serde_json::Value;
use std::io::{BufRead, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

const PROMPT: &str = "> ";
const CTRL_Z: &str = "\u{1a}";
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

/// The conversation, as a shell's command on the terminal, which then tells how it ended; its settings before and after are kept.
fn in_a_shell(place: &Place, queen: &str) -> Command {
    let chat = chat(place, queen, &[]);
    let script = format!(
        "cd '{}'; stty -a > before; \"$@\"; code=$?; stty -a > after; echo \"ended with $code\"",
        place.path("").display()
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "sh"]).arg(chat.get_program()).args(chat.get_args());
    shell.envs(chat.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

fn pid_of_chat(place: &Place) -> i32 {
    let of_rbee = |(pid, line): &(i32, String)| line.starts_with(&format!("{RBEE} chat")).then_some(*pid);
    until("the conversation runs", || {
        place.processes().iter().find_map(of_rbee).ok_or_else(|| format!("{:?}", place.processes()))
    })
}

#[track_caller]
fn is_as_it_was(place: &Place) {
    let settings = |name: &str| std::fs::read_to_string(place.path(name)).unwrap();
    assert!(settings("before").contains(" icanon") && settings("before").contains(" echo"));
    assert_eq!(settings("before"), settings("after"));
}

#[test]
fn a_signal_that_ends_the_conversation_leaves_the_terminal_as_it_was() {
    alone(|| {
        let place = Place::with_model(&slow());
        let daemon = Daemon::start(&place, "serve", &[]);
        let model = daemon.register(&place, None);
        assert_eq!(daemon.post("/v1/chat/completions", &ask(&model, 1, false)).status, 200);
        for signal in [Signal::TERM, Signal::HUP] {
            // At the prompt, with a line begun.
            let Some(mut terminal) = Terminal::start(&in_a_shell(&place, &daemon.url())) else { return };
            terminal.shows("listens");
            terminal.shows(PROMPT);
            terminal.press("half a li");
            terminal.shows("half a li");
            signal_pid(pid_of_chat(&place), signal);
            terminal.shows(PASTE_OFF);
            terminal.shows("ended with 143");
            assert_eq!(terminal.ends().code(), Some(0));
            is_as_it_was(&place);

            // In the middle of an answer.
            let Some(mut terminal) = Terminal::start(&in_a_shell(&place, &daemon.url())) else { return };
            terminal.shows("listens");
            terminal.shows(PROMPT);
            terminal.press(&format!("Say something.{ENTER}"));
            daemon.has_busy_slots(1);
            answer_comes(&mut terminal);
            signal_pid(pid_of_chat(&place), signal);
            terminal.shows("cancelled: ");
            let last = terminal.shows("ended with 143");
            assert!(last.ends_with("\r\n"), "{last:?}");
            daemon.has_busy_slots(0);
            assert_eq!(terminal.ends().code(), Some(0));
            is_as_it_was(&place);
        }
    });
}

#[test]
fn a_terminal_that_is_closed_ends_the_conversation_and_its_answer() {
    alone(|| {
        let place = Place::with_model(&slow());
        let daemon = Daemon::start(&place, "serve", &[]);
        let model = daemon.register(&place, None);
        assert_eq!(daemon.post("/v1/chat/completions", &ask(&model, 1, false)).status, 200);
        let Some(mut terminal) = Terminal::start(&chat(&place, &daemon.url(), &[])) else { return };
        terminal.shows("listens");
        terminal.shows(PROMPT);
        terminal.press(&format!("Say something.{ENTER}"));
        daemon.has_busy_slots(1);
        answer_comes(&mut terminal);
        drop(terminal);
        daemon.has_busy_slots(0);
        let is_left = |(_, line): &(i32, String)| line.starts_with(&format!("{RBEE} chat"));
        until("the conversation ends", || match place.processes().iter().find(|process| is_left(process)) {
            None => Ok(()),
            Some(left) => Err(format!("{left:?}")),
        });
    });
}

#[test]
fn a_conversation_that_was_stopped_goes_on_in_front_and_can_be_killed_from_behind() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::start(&place, "serve", &[]);
        let like = chat(&place, &daemon.url(), &[]);
        let mut shell = Command::new("bash");
        shell.args(["--norc", "--noprofile", "--noediting", "-i"]);
        shell.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("PS1", "shell: ");
        let Some(mut terminal) = Terminal::start(&shell) else { return };
        terminal.shows("shell: ");
        let words: Vec<&str> = like.get_args().map(|word| word.to_str().unwrap()).collect();
        terminal.press(&format!("{RBEE} {}{ENTER}", words.join(" ")));
        terminal.shows("listens");
        terminal.shows(PROMPT);
        terminal.press(CTRL_Z);
        terminal.shows("Stopped");
        terminal.shows("shell: ");
        terminal.press(&format!("fg{ENTER}"));
        terminal.shows(PROMPT);
        terminal.press(&format!("/help{ENTER}"));
        terminal.shows("/retry");
        terminal.shows(PROMPT);
        terminal.press(CTRL_Z);
        terminal.shows("Stopped");
        terminal.shows("shell: ");
        // To bash it is a stopped job until it has seen the end, so that `wait` would not wait.
        terminal.press(&format!("P=$(jobs -p); kill %1; tail --pid=$P -f /dev/null; jobs{ENTER}"));
        terminal.shows("Exit 143");
        terminal.press(&format!("exit{ENTER}"));
        terminal.ends();
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
