//! `rbee chat`: a conversation. The model is there before the first prompt; Ctrl-C stops an answer, whose words so far stay
//! in the conversation, and not the program. Off a terminal each line of stdin is a turn.

use super::run;
use crate::config::Settings;
use crate::keeper::editor::{Source, Typed};
use crate::keeper::follow::Follower;
use crate::keeper::render::{Render, printable};
use crate::keeper::server::{Patience, Server};
use crate::keeper::signals::Signals;
use crate::keeper::turns::{self, Turn};
use crate::keeper::{KeeperError, start};
use crate::paths::Dirs;
use crate::wire::Code;
use crate::wire::failure::chain;
use crate::wire::job::JobEvent;
use crate::wire::openai::ChatMessage;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// In the state directory.
const HISTORY_FILE: &str = "chat_history";

pub async fn chat(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let model = run::model(settings.text("model"))?;
    let server = Server::of(settings)?;
    if server.is_hive {
        return Err(KeeperError::Usage("`chat` asks a queen: give --hive a name, not an address".into()));
    }
    let ephemeral = start::ensure(settings, render, &server, settings.on("ephemeral")).await?;
    let ended = converse(settings, render, &server, model).await;
    if let Some(ephemeral) = ephemeral {
        ephemeral.end().await?;
    }
    ended
}

async fn converse(
    settings: &Settings,
    render: &Render,
    server: &Server,
    model: String,
) -> Result<(), KeeperError> {
    let mut chat = Chat {
        settings,
        render,
        server,
        model: String::new(),
        has_template: true,
        system: settings.text("system").map(str::to_owned),
        messages: Vec::new(),
    };
    chat.use_model(&model).await?;
    let mut source = Source::open(history_file(settings)?).map_err(reading)?;
    let is_terminal = source.is_terminal();
    if is_terminal {
        let shown = printable(&chat.model);
        render.say(&format!("{shown} listens; /help lists commands, Ctrl-C stops an answer, Ctrl-D ends"));
    }
    // One for all turns: a signal between two of them is not lost.
    let mut signals = Signals::catch()?;
    loop {
        let (typed, back) = next(source, &mut signals).await?;
        source = back;
        let turn = match typed {
            Typed::End => return Ok(()),
            Typed::HungUp => return Err(KeeperError::Terminated),
            Typed::Cleared => continue,
            Typed::Text(text) => turns::read(&text).map_err(|error| KeeperError::Usage(error.to_string())),
        };
        let done = match turn {
            Ok(Turn::Quit) => return Ok(()),
            Ok(turn) => chat.take(turn).await,
            Err(error) => Err(error),
        };
        match done {
            Err(error) if is_terminal && !matches!(error, KeeperError::Terminated) => tell(render, error),
            done => done?,
        }
    }
}

/// What went wrong with one turn; the conversation goes on.
fn tell(render: &Render, error: KeeperError) {
    match error {
        // The receipt has said so.
        stop if stop.is_stop() => {}
        KeeperError::Refused(failure) => {
            let hint = failure.code == Code::ContextLengthExceeded;
            render.failure(&failure);
            if hint {
                render.say("the conversation is too long for the model: /reset begins a new one");
            }
        }
        error => render.error(&chain(&error)),
    }
}

fn reading(error: crate::keeper::editor::EditorError) -> KeeperError {
    KeeperError::local("reading a turn", error)
}

/// Waits for a turn on a thread of its own. A terminal in raw mode makes Ctrl-C a key; at a pipe it is a signal. What ends the
/// program gives the terminal back: that thread goes on waiting for a key.
async fn next(mut source: Source, signals: &mut Signals) -> Result<(Typed, Source), KeeperError> {
    let tty = source.tty();
    let mut typing = tokio::task::spawn_blocking(move || source.next().map(|typed| (typed, source)));
    loop {
        tokio::select! {
            typed = &mut typing => {
                let typed = typed.map_err(|error| KeeperError::local("reading a turn", error))?;
                return typed.map_err(reading);
            }
            stop = signals.next() => match &tty {
                Some(_) if matches!(stop, KeeperError::Interrupted) => {}
                Some(tty) => {
                    tty.give_back();
                    return Err(stop);
                }
                None => return Err(stop),
            }
        }
    }
}

fn history_file(settings: &Settings) -> Result<std::path::PathBuf, KeeperError> {
    let dirs = Dirs::of_process(settings.path("state-dir"))
        .and_then(|dirs| dirs.create().map(|()| dirs))
        .map_err(|error| KeeperError::local("finding a place for the history", error))?;
    Ok(dirs.state.join(HISTORY_FILE))
}

struct Chat<'c> {
    settings: &'c Settings,
    render: &'c Render,
    server: &'c Server,
    model: String,
    has_template: bool,
    system: Option<String>,
    /// Without the system message.
    messages: Vec<ChatMessage>,
}

impl Chat<'_> {
    fn jobs(&self) -> Result<Follower<'_>, KeeperError> {
        let patience = Patience::of(self.settings);
        Ok(Follower::new(self.server, self.render)?.within(patience).for_us())
    }

    /// Has the model fetched where no node has it.
    async fn use_model(&mut self, name: &str) -> Result<(), KeeperError> {
        let mut jobs = self.jobs()?;
        let (model, has_template) = run::provision(self.render, self.server, &mut jobs, name).await?;
        drop(jobs);
        if !has_template {
            let shown = printable(&model);
            self.render.say(&format!("{shown} was not taught conversation: it continues the text"));
        }
        (self.model, self.has_template) = (model, has_template);
        Ok(())
    }

    async fn take(&mut self, turn: Turn) -> Result<(), KeeperError> {
        match turn {
            Turn::Nothing | Turn::Quit => {}
            Turn::Say(text) => return self.say(ChatMessage::new("user", &text)).await,
            Turn::Retry => return self.retry().await,
            Turn::Help => {
                for (command, told) in turns::COMMANDS {
                    self.render.say(&format!("{command:<18} {told}"));
                }
                self.render.say("Several lines: end one with \\, or put the text between \"\"\" and \"\"\".");
            }
            Turn::Model(None) => self.render.say(&printable(&self.model)),
            Turn::Model(Some(name)) => {
                self.use_model(&run::model(Some(&name))?).await?;
                self.render.say(&format!("now {}", printable(&self.model)));
            }
            Turn::System(None) => {
                self.render.say(self.system.as_deref().unwrap_or("there is no system message"))
            }
            Turn::System(Some(text)) => self.system = Some(text),
            Turn::Reset => self.messages.clear(),
            Turn::Save(file) => {
                self.save(Path::new(&file))?;
                self.render.say(&format!("saved in {file}"));
            }
        }
        Ok(())
    }

    /// The last message once more, without what was answered.
    async fn retry(&mut self) -> Result<(), KeeperError> {
        let last = self.messages.iter().rposition(|message| message.role == "user");
        let Some(last) = last else {
            return Err(KeeperError::Usage("there is nothing to answer again yet".into()));
        };
        let mut rest = self.messages.split_off(last);
        let message = rest.remove(0);
        let said = self.say(message.clone()).await;
        if said.is_err() && self.messages.len() == last {
            // As it was: the answer before is better than none.
            self.messages.push(message);
            self.messages.append(&mut rest);
        }
        said
    }

    /// Asks, shows the answer as it comes, and keeps it. What had come when it was stopped or broke stays; a message
    /// without a word of an answer does not.
    async fn say(&mut self, message: ChatMessage) -> Result<(), KeeperError> {
        self.messages.push(message);
        let operation = run::operation(self.question());
        let (render, is_json) = (self.render, self.render.is_json());
        let mut answer = String::new();
        let mut jobs = self.jobs()?;
        let result = run::infer(render, &mut jobs, &operation, &mut |event| {
            let JobEvent::Token { text, .. } = event else { return Ok(()) };
            answer.push_str(text);
            if is_json {
                return Ok(());
            }
            render.clear();
            render.answer(text)
        })
        .await;
        drop(jobs);
        let writing = |error: std::io::Error| KeeperError::local("writing the answer", error);
        let is_open = !is_json && !answer.is_empty() && !answer.ends_with('\n');
        let ended = if is_open { render.answer("\n") } else { Ok(()) };
        if answer.is_empty() && result.is_err() {
            self.messages.pop();
        } else {
            self.messages.push(ChatMessage::new("assistant", &answer));
        }
        match &result {
            Ok(told) if is_json => render.value(told).map_err(writing)?,
            Ok(told) => run::told_by(render, told),
            Err(error) if is_json && !answer.is_empty() => {
                // Where stdout has gone, too, the error itself says more.
                let _ = render.value(&partial(&self.model, &answer, error));
            }
            Err(_) => {}
        }
        // A terminal that has gone takes no line's end, which is not what ended the answer.
        result.and_then(|_| ended.map_err(writing))
    }

    fn question(&self) -> crate::wire::operation::Infer {
        let asked = run::asked_as(self.settings, self.model.clone());
        if self.has_template {
            let system = self.system.iter().map(|text| ChatMessage::new("system", text));
            let messages = system.chain(self.messages.iter().cloned()).collect();
            return crate::wire::operation::Infer { messages: Some(messages), ..asked };
        }
        // A base model continues a text; this is the text so far.
        let said = self.messages.iter().map(|message| message.content.as_str().unwrap_or_default());
        let text: Vec<&str> = self.system.iter().map(String::as_str).chain(said).collect();
        crate::wire::operation::Infer { prompt: Some(text.join("\n")), ..asked }
    }

    fn save(&self, path: &Path) -> Result<(), KeeperError> {
        let failed =
            |error: std::io::Error| KeeperError::local(format!("saving to {}", path.display()), error);
        let system = self.system.iter().map(|text| ChatMessage::new("system", text));
        let messages: Vec<ChatMessage> = system.chain(self.messages.iter().cloned()).collect();
        let whole = json!({"model": self.model, "messages": messages});
        // Nothing is overwritten.
        let mut file = std::fs::File::create_new(path).map_err(failed)?;
        writeln!(file, "{whole:#}").map_err(failed)
    }
}

/// An answer's line where it did not come to its end.
fn partial(model: &str, text: &str, error: &KeeperError) -> Value {
    let reason = if error.is_stop() { "cancelled" } else { "error" };
    json!({"text": text, "finish_reason": reason, "model": model})
}
