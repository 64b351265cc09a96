//! A completion request: what it may ask for, within which ranges, and what is refused because it would change the answer
//! and is not offered. Nothing that changes an answer is ignored silently; everything else unknown is, as OpenAI's servers do.

use super::queue::Ask;
use super::sampler::Sampling;
use super::text::{STOP_BYTES_MAX, STOPS_MAX};
use crate::wire::openai::{ChatMessage, ChatRequest, CompletionRequest, SamplingFields, Stop, StreamOptions};
use crate::wire::{Code, Failure};
use serde_json::Value;
use std::hash::{BuildHasher, Hasher};
use std::ops::RangeInclusive;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Chat,
    Completion,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Messages(Vec<ChatMessage>),
    Prompt(String),
}

#[derive(Debug, Clone)]
pub struct Completion {
    pub content: Content,
    pub stream: bool,
    pub include_usage: bool,
    /// `None`: as many as fit.
    pub max_tokens: Option<u32>,
    /// Token ids and draws in every chunk, for whoever may have to carry the stream on.
    pub with_tokens: bool,
    /// Everything but the prompt and the limit, which need the model.
    pub ask: Ask,
}

/// The value with which a field changes nothing, beside null, false, and what is empty.
#[derive(Debug, Clone, Copy)]
enum Neutral {
    Nothing,
    Number(f64),
    Text(&'static str),
}

/// Fields that would change the answer and that this version does not offer.
const REFUSED: &[(&str, Neutral)] = &[
    ("audio", Neutral::Nothing),
    ("best_of", Neutral::Number(1.0)),
    ("dry_multiplier", Neutral::Number(0.0)),
    ("dynatemp_range", Neutral::Number(0.0)),
    ("echo", Neutral::Nothing),
    ("function_call", Neutral::Text("none")),
    ("functions", Neutral::Nothing),
    ("grammar", Neutral::Nothing),
    ("input_extra", Neutral::Nothing),
    ("input_prefix", Neutral::Nothing),
    ("input_suffix", Neutral::Nothing),
    ("json_schema", Neutral::Nothing),
    ("logit_bias", Neutral::Nothing),
    ("logprobs", Neutral::Nothing),
    ("lora", Neutral::Nothing),
    ("mirostat", Neutral::Number(0.0)),
    ("n", Neutral::Number(1.0)),
    ("n_probs", Neutral::Number(0.0)),
    ("prediction", Neutral::Nothing),
    ("repeat_last_n", Neutral::Number(super::sampler::PENALTY_WINDOW as f64)),
    ("samplers", Neutral::Nothing),
    ("suffix", Neutral::Nothing),
    ("top_logprobs", Neutral::Number(0.0)),
    ("top_n_sigma", Neutral::Number(-1.0)),
    ("typical_p", Neutral::Number(1.0)),
    ("tools", Neutral::Nothing),
    ("xtc_probability", Neutral::Number(0.0)),
];

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match value {
            Value::Null | Value::Bool(false) => true,
            Value::Bool(true) => false,
            Value::Number(n) => matches!(self, Neutral::Number(neutral) if n.as_f64() == Some(neutral)),
            Value::String(text) => {
                text.is_empty() || matches!(self, Neutral::Text(neutral) if text == neutral)
            }
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
        }
    }
}

pub fn parse(kind: Kind, mut body: Value) -> Result<Completion, Failure> {
    let Some(fields) = body.as_object_mut() else {
        return Err(Failure::invalid("the body must be a JSON object"));
    };
    for (name, neutral) in REFUSED {
        if fields.get(*name).is_some_and(|value| !neutral.is(value)) {
            return Err(Failure::invalid(format!("`{name}` is not offered by this version; leave it out")));
        }
    }
    let choice = fields.get("tool_choice").and_then(Value::as_str).unwrap_or("none");
    if !matches!(choice, "none" | "auto") || fields.get("tool_choice").is_some_and(Value::is_object) {
        return Err(Failure::invalid("`tool_choice` is not offered by this version; leave it out"));
    }
    let format = fields.get("response_format").map_or(&Value::Null, |format| &format["type"]);
    if !format.is_null() && format != "text" {
        return Err(Failure::invalid("only `response_format` of type `text` is offered by this version"));
    }
    if let Some(resume) = fields.get("rbee").and_then(|rbee| rbee.get("resume")).filter(|r| !r.is_null()) {
        return Err(Failure::invalid(format!("`rbee.resume` is not offered by this version (got {resume})")));
    }
    let with_tokens = fields.get("rbee").is_some_and(Value::is_object);
    // llama-server's words for "any seed" and for the limit.
    if fields.get("seed").is_some_and(|seed| seed == -1) {
        fields.remove("seed");
    }
    if let Some(limit) = fields.remove("n_predict")
        && fields.get("max_tokens").is_none_or(Value::is_null)
    {
        fields.insert("max_tokens".into(), limit);
    }
    let wrong = |error: serde_json::Error| {
        Failure::invalid(format!("the body is not what this route takes: {error}"))
    };
    let (content, stream, options, max_tokens, sampling) = match kind {
        Kind::Chat => {
            let request: ChatRequest = serde_json::from_value(body).map_err(wrong)?;
            let max_tokens = request.max_completion_tokens.or(request.max_tokens);
            (
                Content::Messages(request.messages),
                request.stream,
                request.stream_options,
                max_tokens,
                request.sampling,
            )
        }
        Kind::Completion => {
            let request: CompletionRequest = serde_json::from_value(body).map_err(wrong)?;
            let Value::String(prompt) = request.prompt else {
                return Err(Failure::invalid(
                    "`prompt` must be one text; lists are not offered by this version",
                ));
            };
            (
                Content::Prompt(prompt),
                request.stream,
                request.stream_options,
                request.max_tokens,
                request.sampling,
            )
        }
    };
    Ok(Completion {
        content,
        stream,
        include_usage: options.is_some_and(|StreamOptions { include_usage }| include_usage),
        max_tokens: limit(max_tokens)?,
        with_tokens,
        ask: Ask {
            stops: stops(sampling.stop.clone())?,
            ignore_end: sampling.ignore_eos.unwrap_or(false),
            every_token: with_tokens,
            sampling: ranges(&sampling)?,
            ..Ask::default()
        },
    })
}

fn limit(max_tokens: Option<i64>) -> Result<Option<u32>, Failure> {
    match max_tokens {
        None | Some(-1) => Ok(None),
        Some(n) => match u32::try_from(n) {
            Ok(n) if n > 0 => Ok(Some(n)),
            _ => Err(Failure::invalid(format!(
                "`max_tokens` is {n}; give at least 1, or -1 for as many as fit"
            ))),
        },
    }
}

fn stops(stop: Option<Stop>) -> Result<Vec<String>, Failure> {
    let stops: Vec<String> =
        stop.map(Stop::into_vec).unwrap_or_default().into_iter().filter(|s| !s.is_empty()).collect();
    if stops.len() > STOPS_MAX {
        return Err(Failure::invalid(format!("{} stop strings are more than {STOPS_MAX}", stops.len())));
    }
    if stops.iter().any(|stop| stop.len() > STOP_BYTES_MAX) {
        return Err(Failure::invalid(format!("a stop string is longer than {STOP_BYTES_MAX} bytes")));
    }
    Ok(stops)
}

fn ranges(fields: &SamplingFields) -> Result<Sampling, Failure> {
    let defaults = Sampling::default();
    let number = |name: &str, value: Option<f32>, default: f32, range: RangeInclusive<f32>| match value {
        None => Ok(default),
        // Not-a-number is in no range.
        Some(value) if range.contains(&value) => Ok(value),
        Some(value) => {
            let (from, to) = (range.start(), range.end());
            Err(Failure::invalid(format!("`{name}` is {value}; give something from {from} to {to}")))
        }
    };
    if let Some(top_k) = fields.top_k.filter(|k| *k < -1) {
        return Err(Failure::invalid(format!("`top_k` is {top_k}; give a count, or 0 for no limit")));
    }
    Ok(Sampling {
        temperature: number("temperature", fields.temperature, defaults.temperature, 0.0..=100.0)?,
        top_k: fields.top_k.unwrap_or(defaults.top_k),
        top_p: number("top_p", fields.top_p, defaults.top_p, 0.0..=1.0)?,
        min_p: number("min_p", fields.min_p, defaults.min_p, 0.0..=1.0)?,
        repeat_penalty: number(
            "repeat_penalty",
            fields.repeat_penalty,
            defaults.repeat_penalty,
            0.01..=100.0,
        )?,
        presence_penalty: number("presence_penalty", fields.presence_penalty, 0.0, -2.0..=2.0)?,
        frequency_penalty: number("frequency_penalty", fields.frequency_penalty, 0.0, -2.0..=2.0)?,
        seed: fields.seed.unwrap_or_else(any_seed),
    })
}

/// The standard library's hasher is keyed with the system's randomness; that is all a seed needs.
fn any_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

/// Puts prompt and limit in. A prompt that leaves no room for an answer is refused; a limit beyond what fits is lowered to
/// it, as llama-server does: many clients always send a large one, and the answer says `length` if it gets there.
pub fn fit(ask: &mut Ask, prompt: Vec<i32>, max_tokens: Option<u32>, context: u32) -> Result<(), Failure> {
    if prompt.is_empty() {
        return Err(Failure::invalid("the prompt is empty"));
    }
    let room = (context as usize).saturating_sub(prompt.len());
    if room == 0 {
        let prompt = prompt.len();
        return Err(Failure::new(
            Code::ContextLengthExceeded,
            format!("the prompt's {prompt} tokens leave no room for an answer in a slot of {context}; shorten the prompt, or start the worker with a larger context (--ctx, --ctx-size)"),
        )
        .with(serde_json::json!({"prompt_tokens": prompt, "n_ctx": context})));
    }
    let room = u32::try_from(room).unwrap_or(u32::MAX);
    ask.new_tokens_max = max_tokens.map_or(room, |wanted| wanted.min(room));
    ask.prompt = prompt;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat(extra: Value) -> Result<Completion, Failure> {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        parse(Kind::Chat, body)
    }

    #[test]
    fn what_changes_the_answer_and_is_not_offered_is_refused_by_name() {
        for refused in [
            json!({"tools": [{"type": "function"}]}),
            json!({"tool_choice": "required"}),
            json!({"tool_choice": {"type": "function"}}),
            json!({"response_format": {"type": "json_object"}}),
            json!({"n": 2}),
            json!({"logprobs": true}),
            json!({"logprobs": 3}),
            json!({"logit_bias": {"1": 2}}),
            json!({"grammar": "root ::= \"a\""}),
            json!({"mirostat": 2}),
            json!({"repeat_last_n": 3}),
            json!({"rbee": {"resume": {"tokens": []}}}),
        ] {
            let name = refused.as_object().unwrap().keys().next().unwrap().clone();
            let failure = chat(refused.clone()).unwrap_err();
            assert!(failure.message.contains(&format!("`{name}")), "{refused}: {}", failure.message);
        }
    }

    #[test]
    fn fields_at_their_neutral_values_and_unknown_ones_pass() {
        let parsed = chat(json!({
            "n": 1, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": false,
            "top_logprobs": 0, "logit_bias": {}, "user": "someone", "metadata": {"a": 1}, "typical_p": 1.0, "seed": -1,
        }))
        .unwrap();
        assert_eq!((parsed.stream, parsed.max_tokens, parsed.with_tokens), (false, None, false));
        assert!(chat(json!({"rbee": {}})).unwrap().with_tokens);
        assert_eq!(chat(json!({"n_predict": 7})).unwrap().max_tokens, Some(7));
        assert_eq!(chat(json!({"max_tokens": 9, "max_completion_tokens": 5})).unwrap().max_tokens, Some(5));
    }

    #[test]
    fn what_openais_schema_lets_be_null_is_as_if_it_were_not_there() {
        let nulls = |names: &[&str]| -> Value {
            names
                .iter()
                .map(|name| ((*name).to_owned(), Value::Null))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let shared = [
            "model",
            "stream",
            "stream_options",
            "max_tokens",
            "temperature",
            "top_p",
            "n",
            "stop",
            "seed",
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
            "logprobs",
            "user",
            "suffix",
            "echo",
            "best_of",
        ];
        let only_chat = [
            "max_completion_tokens",
            "tools",
            "tool_choice",
            "response_format",
            "top_logprobs",
            "store",
            "metadata",
            "modalities",
            "audio",
            "prediction",
            "reasoning_effort",
            "service_tier",
            "function_call",
            "functions",
        ];
        let parsed = chat(nulls(&[&shared[..], &only_chat[..]].concat())).unwrap();
        assert_eq!((parsed.stream, parsed.include_usage, parsed.max_tokens), (false, false, None));
        let mut plain = nulls(&shared);
        plain["prompt"] = json!("p");
        assert!(!parse(Kind::Completion, plain).unwrap().stream);
        let options = json!({"stream": true, "stream_options": {"include_usage": null}, "max_tokens": null, "n_predict": 7});
        let parsed = chat(options).unwrap();
        assert_eq!((parsed.stream, parsed.include_usage, parsed.max_tokens), (true, false, Some(7)));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for refused in [
            json!({"temperature": -0.1}),
            json!({"temperature": 1e39}),
            json!({"top_p": 1.5}),
            json!({"min_p": -1}),
            json!({"top_k": -2}),
            json!({"top_k": 1e12}),
            json!({"repeat_penalty": 0}),
            json!({"presence_penalty": 3}),
            json!({"max_tokens": 0}),
            json!({"max_tokens": -7}),
            json!({"max_tokens": 5_000_000_000_i64}),
            json!({"seed": -5}),
            json!({"seed": 1.5}),
            json!({"stop": vec!["x"; STOPS_MAX + 1]}),
            json!({"stop": "x".repeat(STOP_BYTES_MAX + 1)}),
            json!({"stop": 7}),
            json!({"messages": "hi"}),
        ] {
            assert!(chat(refused.clone()).is_err(), "{refused}");
        }
        assert!(parse(Kind::Completion, json!({"prompt": ["a", "b"]})).is_err());
        assert!(parse(Kind::Completion, json!([])).is_err());
    }

    #[test]
    fn a_limit_is_lowered_to_the_room_and_a_prompt_without_room_refused() {
        let mut ask = Ask::default();
        for (wanted, given) in [(None, 6), (Some(6), 6), (Some(7_000), 6), (Some(2), 2)] {
            fit(&mut ask, vec![1; 10], wanted, 16).unwrap();
            assert_eq!(ask.new_tokens_max, given, "{wanted:?}");
        }
        let failure = fit(&mut ask, vec![1; 16], None, 16).unwrap_err();
        assert_eq!((failure.code, &failure.details["n_ctx"]), (Code::ContextLengthExceeded, &json!(16)));
        assert!(fit(&mut ask, Vec::new(), None, 16).is_err());
    }
}
