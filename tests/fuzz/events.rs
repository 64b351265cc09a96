//! Event streams, and a job's events and terminators in them.

use super::{fuzz, pieces};
use rbee::http::sse::{Event, Parser, encode};
use rbee::wire::Failure;
use rbee::wire::job::{JobEvent, Terminator, Unit};
use serde_json::{Value, json};

fn samples() -> Vec<JobEvent> {
    vec![
        JobEvent::narrate("spawn", "starting a worker: 4 slots"),
        JobEvent::warn("memory", "lowered\nto fit \u{1f41d}"),
        JobEvent::Progress {
            task: "fetch".into(),
            label: "model.gguf".into(),
            position: 1 << 33,
            total: Some(1 << 34),
            unit: Unit::Bytes,
            rate: Some(1.5e7),
        },
        JobEvent::Log { stream: "stderr".into(), line: "warning: `x`\u{1b}[0m".into() },
        JobEvent::Table {
            columns: vec!["id".into(), "name".into()],
            rows: vec![vec!["1".into(), "蜂".into()]],
        },
        JobEvent::Token { index: 17, text: " bees".into() },
        JobEvent::Result(json!({"text": "a", "usage": {"total_tokens": 10}, "ms": 0.1})),
        JobEvent::Error(Failure::invalid("no").with(json!({"log": ["a", null]}))),
    ]
}

const WORDS: &[&str] = &[
    "data: ",
    "event: ",
    "id: ",
    "\n\n",
    "\r\n",
    "\r",
    ": \n\n",
    "data:[DONE]\n\n",
    "retry: 1\n",
    "\u{feff}",
];

/// All events of some pieces; false where the parser refused.
fn parse(pieces: &[&[u8]]) -> (Vec<Event>, bool) {
    let mut parser = Parser::default();
    let mut events = Vec::new();
    for piece in pieces {
        parser.push(piece);
        loop {
            match parser.next_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(_) => return (events, false),
            }
        }
    }
    (events, true)
}

#[test]
fn event_streams_read_the_same_from_any_cut_and_back_from_what_we_write() {
    let stream = |from: usize| {
        let events = samples().into_iter().enumerate().skip(from);
        let mut bytes: Vec<u8> = events
            .flat_map(|(seq, event)| encode(Some(seq as u64), Some(event.name()), &event.data().to_string()))
            .collect();
        bytes.extend_from_slice(b": \n\ndata: [DONE]\n\n");
        bytes
    };
    let openai =
        b"data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\r\n\r\nevent: error\ndata: a\ndata: b\n\n"
            .to_vec();
    fuzz("event streams", &[stream(0), stream(4), stream(7), openai], WORDS, |input, random| {
        let (whole, is_whole) = parse(&[input]);
        assert_eq!(parse(&pieces(input, random)), (whole.clone(), is_whole));
        let size: usize = whole.iter().map(|event| event.data.len()).sum();
        // A byte that is no UTF-8 becomes a character of three.
        assert!(size <= input.len() * 3, "{size} of {}", input.len());
        for event in whole {
            let id = event.id.as_deref().and_then(|id| id.parse::<u64>().ok());
            let (again, _) = parse(&[&encode(id, event.name.as_deref(), &event.data)]);
            let expected = Event {
                id: id.map(|id| id.to_string()),
                data: event.data.replace('\r', " "),
                name: event.name,
            };
            assert_eq!(again, [expected]);
        }
    });
}

/// Equal, but for the last digit of a fraction.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= a.abs() * 1e-12
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| alike(value, other)))
        }
        _ => a == b,
    }
}

#[test]
fn job_events_read_back_as_they_were_said() {
    let corpus: Vec<Vec<u8>> =
        samples().iter().map(|event| format!("{}\n{}", event.name(), event.data()).into()).collect();
    let words = [
        "null",
        "[]",
        "{}",
        "\"\"",
        "\"rate\":null",
        "\\u0000",
        "\\ud800",
        "[[[[[[[[",
        "error\n",
        "result\n",
    ];
    let mut read = 0;
    fuzz("job events", &corpus, &words, |input, _| {
        let text = String::from_utf8_lossy(input);
        let (name, data) = text.split_once('\n').unwrap_or((&text, ""));
        let Some(event) = JobEvent::from_parts(name, data) else { return };
        read += 1;
        assert_eq!(event.name(), name);
        let again = JobEvent::from_parts(event.name(), &event.data().to_string()).unwrap();
        assert!(alike(&again.data(), &event.data()), "{event:?} {again:?}");
    });
    assert!(read > corpus.len() * 2, "mutations that still read: {read}");
}

#[test]
fn terminators_read_back_as_they_were_said() {
    let corpus = ["[DONE]", "[CANCELLED]", "[ERROR] the worker was lost: \u{1f41d}", "[ERROR]", "{\"a\":1}"];
    let corpus: Vec<Vec<u8>> = corpus.iter().map(|text| text.as_bytes().to_vec()).collect();
    fuzz("terminators", &corpus, &["[ERROR] ", "[DONE]", "\n", "\u{85}"], |input, _| {
        let text = String::from_utf8_lossy(input);
        let Some(terminator) = Terminator::parse(&text) else { return };
        let said = terminator.to_string();
        assert!(!said.contains(['\n', '\r']), "one line");
        let again = match terminator {
            Terminator::Error(message) => Terminator::Error(message.replace(['\n', '\r'], " ")),
            other => other,
        };
        assert_eq!(Terminator::parse(&said), Some(again));
    });
}
