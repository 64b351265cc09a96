//! What a person types in a conversation: words for the model, or a command that begins with a slash. Pure, so that a
//! terminal and a pipe read the same.

/// A line that goes on ends in this.
const CONTINUES: char = '\\';
/// Around text of several lines.
const BLOCK: &str = "\"\"\"";

/// The commands, as `/help` lists them.
pub const COMMANDS: &[(&str, &str)] = &[
    ("/help", "this list"),
    ("/model [MODEL]", "go on with another model; alone: tell which"),
    ("/system [TEXT]", "set the system message; alone: tell it"),
    ("/reset", "forget the conversation; model and system message stay"),
    ("/retry", "answer the last message again"),
    ("/save FILE", "write the conversation to a new file, as JSON"),
    ("/quit", "end; so does Ctrl-D"),
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    Nothing,
    Say(String),
    Help,
    /// None asks.
    Model(Option<String>),
    System(Option<String>),
    Reset,
    Retry,
    Save(String),
    Quit,
}

/// What is wrong with a command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnError {
    #[error(
        "there is no command `{0}`; `/help` lists them, and a message that begins with a slash is written with two"
    )]
    Unknown(String),
    #[error("`{0}` takes nothing after it")]
    TakesNothing(&'static str),
    #[error("say where to: /save FILE")]
    NoFile,
}

/// Whether nothing more has to come: no line that goes on, no block that is open.
pub fn is_whole(text: &str) -> bool {
    if let Some(block) = text.trim_start().strip_prefix(BLOCK) {
        return block.trim_end().ends_with(BLOCK);
    }
    !continues(text)
}

/// An even number of them at the end is that many halves, written out.
fn continues(line: &str) -> bool {
    (line.len() - line.trim_end_matches(CONTINUES).len()) % 2 == 1
}

pub fn read(text: &str) -> Result<Turn, TurnError> {
    if let Some(block) = text.trim_start().strip_prefix(BLOCK) {
        let block = block.trim_end();
        let inner = block.strip_suffix(BLOCK).unwrap_or(block).trim_matches('\n');
        return Ok(if inner.trim().is_empty() { Turn::Nothing } else { Turn::Say(inner.to_owned()) });
    }
    let text = joined(text);
    let text = text.trim();
    match text.strip_prefix('/') {
        _ if text.is_empty() => Ok(Turn::Nothing),
        None => Ok(Turn::Say(text.to_owned())),
        Some(message) if message.starts_with('/') => Ok(Turn::Say(message.to_owned())),
        Some(command) => self::command(command),
    }
}

fn command(text: &str) -> Result<Turn, TurnError> {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    let given = (!rest.is_empty()).then(|| rest.to_owned());
    let alone = |turn: Turn, name: &'static str| match given {
        None => Ok(turn),
        Some(_) => Err(TurnError::TakesNothing(name)),
    };
    match word {
        "help" | "?" => alone(Turn::Help, "/help"),
        "model" => Ok(Turn::Model(given)),
        "system" => Ok(Turn::System(given)),
        "reset" | "clear" => alone(Turn::Reset, "/reset"),
        "retry" => alone(Turn::Retry, "/retry"),
        "save" => given.map(Turn::Save).ok_or(TurnError::NoFile),
        "quit" | "exit" | "bye" => alone(Turn::Quit, "/quit"),
        _ => Err(TurnError::Unknown(format!("/{word}"))),
    }
}

/// Lines that go on, as the lines they are.
fn joined(text: &str) -> String {
    let lines: Vec<&str> = text
        .split('\n')
        .map(|line| if continues(line) { &line[..line.len() - CONTINUES.len_utf8()] } else { line })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(text: &str) -> Result<Turn, TurnError> {
        Ok(Turn::Say(text.into()))
    }

    #[test]
    fn words_are_for_the_model_and_commands_begin_with_a_slash() {
        assert_eq!(read("  hello there "), say("hello there"));
        assert_eq!(read("   "), Ok(Turn::Nothing));
        assert_eq!(read("/model org/repo:Q4_K_M"), Ok(Turn::Model(Some("org/repo:Q4_K_M".into()))));
        assert_eq!(read("/system  be brief "), Ok(Turn::System(Some("be brief".into()))));
        assert_eq!(read("/model"), Ok(Turn::Model(None)));
        assert_eq!(read("/exit"), Ok(Turn::Quit));
        assert_eq!(read("//etc is a folder"), say("/etc is a folder"));
        assert_eq!(read("/frob"), Err(TurnError::Unknown("/frob".into())));
        assert_eq!(read("/reset now"), Err(TurnError::TakesNothing("/reset")));
        assert_eq!(read("/save"), Err(TurnError::NoFile));
    }

    #[test]
    fn every_command_in_the_help_is_read() {
        for (command, _) in COMMANDS {
            let typed = command.replace("[MODEL]", "m").replace("[TEXT]", "t").replace("FILE", "f");
            assert!(read(&typed).is_ok_and(|turn| !matches!(turn, Turn::Say(_) | Turn::Nothing)), "{typed}");
        }
    }

    #[test]
    fn several_lines_are_a_block_or_lines_that_go_on() {
        for open in ["a\\", "\"\"\"", "\"\"\"a\nb", "\"\"\"a\"\"\" b", "a\nb\\"] {
            assert!(!is_whole(open), "{open}");
        }
        for whole in ["a", "", "a\\\\", "\"\"\"a\nb\"\"\"", "\"\"\"\na\n\"\"\" ", "a\\\nb"] {
            assert!(is_whole(whole), "{whole}");
        }
        assert_eq!(read("a\\\nb"), say("a\nb"));
        assert_eq!(read("\"\"\"\n/not a command\n  b\n\"\"\""), say("/not a command\n  b"));
        assert_eq!(read("\"\"\"\"\"\""), Ok(Turn::Nothing));
    }
}
