//! Chat messages to a prompt, by the model's own template. llama.cpp's `common` renders it (chat_shim.cpp); here is what
//! may go in: roles, text parts, a bounded number of messages.

use super::engine::EngineError;
use super::llama::{Model, Template};
use crate::wire::Failure;
use crate::wire::openai::ChatMessage;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Messages of one request.
pub const MESSAGES_MAX: usize = 10_000;
/// The longest template taken from a file or a flag.
pub const TEMPLATE_BYTES_MAX: u64 = 1 << 20;

/// Where the template comes from; without one, the model's own is used, or ChatML if it has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSource {
    Text(String),
    File(PathBuf),
}

impl TemplateSource {
    fn read(&self) -> Result<String, EngineError> {
        let refused = |path: &Path, why: String| EngineError::Template(format!("{}: {why}", path.display()));
        let source = match self {
            TemplateSource::Text(text) => text.clone(),
            TemplateSource::File(path) => {
                let bytes = std::fs::metadata(path).map_err(|error| refused(path, error.to_string()))?.len();
                if bytes > TEMPLATE_BYTES_MAX {
                    return Err(refused(path, format!("{bytes} bytes are more than {TEMPLATE_BYTES_MAX}")));
                }
                std::fs::read_to_string(path).map_err(|error| refused(path, error.to_string()))?
            }
        };
        if source.trim().is_empty() {
            return Err(EngineError::Template("it is empty".into()));
        }
        Ok(source)
    }
}

#[derive(Debug)]
pub struct Chat {
    /// The template engine's thread safety is undocumented, and rendering is short.
    template: Mutex<Template>,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Rendered {
    pub prompt: String,
    /// Stop strings that the template's format asks for.
    pub stops: Vec<String>,
}

impl Chat {
    /// Compiles the template, so that one with a mistake is found now and not by a client.
    pub fn open(model: Arc<Model>, source: Option<&TemplateSource>) -> Result<Self, EngineError> {
        let source = source.map(TemplateSource::read).transpose()?;
        Ok(Chat { template: Mutex::new(Template::open(model, source.as_deref())?) })
    }

    pub fn render(&self, messages: &[ChatMessage]) -> Result<Rendered, Failure> {
        check(messages)?;
        let request = serde_json::json!({"messages": messages, "add_generation_prompt": true}).to_string();
        let answer = self.template.lock().unwrap_or_else(PoisonError::into_inner).render(&request);
        let answer = answer.map_err(|error| {
            Failure::invalid(format!("the messages don't fit the model's chat template: {error}"))
        })?;
        serde_json::from_str(&answer).map_err(|error| Failure::internal(&error))
    }

    pub fn source(&self) -> String {
        self.template.lock().unwrap_or_else(PoisonError::into_inner).source()
    }
}

/// What the template engine would quietly leave out is refused instead.
fn check(messages: &[ChatMessage]) -> Result<(), Failure> {
    if messages.is_empty() {
        return Err(Failure::invalid("`messages` is empty; give at least one"));
    }
    if messages.len() > MESSAGES_MAX {
        return Err(Failure::invalid(format!("{} messages are more than {MESSAGES_MAX}", messages.len())));
    }
    for (n, message) in messages.iter().enumerate() {
        let refused = |what: &str| Err(Failure::invalid(format!("`messages[{n}]`: {what}")));
        if message.role.is_empty() {
            return refused("`role` is empty");
        }
        if message.rest.contains_key("tool_calls") || message.role == "tool" {
            return refused("tools are not offered by this version");
        }
        match &message.content {
            Value::String(_) => {}
            Value::Null => return refused("`content` is missing"),
            Value::Array(parts) => {
                let is_text = |part: &Value| part["type"] == "text" && part["text"].is_string();
                if !parts.iter().all(is_text) {
                    return refused("only parts of type `text` are understood");
                }
            }
            _ => return refused("`content` is neither text nor a list of parts"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(value: Value) -> ChatMessage {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn text_is_taken_and_what_would_be_dropped_is_refused() {
        assert_eq!(check(&[ChatMessage::new("user", "hi")]), Ok(()));
        assert_eq!(check(&[message(json!({"role":"user","content":[{"type":"text","text":"hi"}]}))]), Ok(()));
        for refused in [
            json!({"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}),
            json!({"role":"user","content":[{"type":"text"}]}),
            json!({"role":"user","content":7}),
            json!({"role":"user"}),
            json!({"role":"","content":"x"}),
            json!({"role":"tool","content":"x"}),
            json!({"role":"assistant","content":"x","tool_calls":[]}),
        ] {
            assert!(check(&[message(refused.clone())]).is_err(), "{refused}");
        }
        assert!(check(&[]).is_err());
    }
}
