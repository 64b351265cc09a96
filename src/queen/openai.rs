//! OpenAI's routes at the queen. Of a request only the model's name is read, and the body goes on as it came; of an
//! answer nothing is read, only pieces counted, so that a worker that dies mid-stream can be told of with a number.

use crate::http::{Request, Response, relay, reply, request};
use crate::queen::Queen;
use crate::queen::dispatch::{Answer, DEADLINE_HEADER, Deadline, Dispatch};
use crate::queen::metrics::Tally;
use crate::queen::placement::Want;
use crate::wire::failure::listed;
use crate::wire::fleet::now_ms;
use crate::wire::openai::{ModelList, null_is_default};
use crate::wire::{Code, Failure};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What decides where a request runs; everything else is the worker's to read.
#[derive(Debug, Deserialize)]
struct Head {
    #[serde(default)]
    model: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    stream: bool,
}

/// POST /v1/chat/completions and /v1/completions.
pub async fn complete(queen: &Queen, path: &str, incoming: Request) -> Result<Response, Failure> {
    let id = incoming.id.clone();
    let deadline = Deadline::read(incoming.header(DEADLINE_HEADER), now_ms())?;
    let body = incoming.json_bytes(request::BODY_BYTES_MAX).await?;
    let head: Head = request::parse(&body)?;
    Deadline::keep(deadline.as_ref(), queen.settled()).await?;
    let want = Want { model: queen.model_asked_for(head.model)?, ..Want::default() };
    let ask = Dispatch { want: &want, path, body, request_id: &id, deadline, placed: &|_| {} };
    let begun = Instant::now();
    let Answer { response, slot } = queen.dispatcher.send(ask, &|_| {}).await?;
    queen.tally.first_piece.observe(begun.elapsed());
    let watcher = Stream {
        id,
        worker_id: slot.worker_id.clone(),
        is_stream: head.stream,
        heads: u64::from(path.contains("/chat/")),
        pieces: 0,
        is_whole: false,
        tally: queen.tally.clone(),
        line: Line::Field(0),
    };
    Ok(relay::relay(response, watcher, slot))
}

/// GET /v1/models: what is loaded or can be, without a download, and by which aliases.
pub fn models(queen: &Queen) -> Response {
    reply::json(&ModelList::of(queen.registry.fleet().models_and_aliases()))
}

/// GET /v1/models/{id}, by any name that a request may use.
pub fn model(queen: &Queen, asked: &str) -> Result<Response, Failure> {
    let fleet = queen.registry.fleet();
    let known = fleet.models_and_aliases();
    let id = fleet.meant(asked, None);
    // An alias is listed under its own name, so that is what it answers to.
    let Some(id) = [asked, &id].into_iter().find(|name| known.iter().any(|model| model == name)) else {
        return Err(Failure::new(
            Code::ModelNotFound,
            format!("no node has the model `{asked}`; there are: {}", listed(&known)),
        ));
    };
    let list = ModelList::of([id.to_owned()]);
    Ok(reply::json(&list.data[0]))
}

/// Counts the events of a stream, and ends a broken one with an error event in place of [DONE].
struct Stream {
    id: String,
    worker_id: String,
    is_stream: bool,
    /// Pieces that carry no token: a conversation's first one names the role.
    heads: u64,
    pieces: u64,
    is_whole: bool,
    tally: Arc<Tally>,
    line: Line,
}

/// The piece that tells why an answer ended, and [DONE].
const TAIL_PIECES: u64 = 2;
const DONE: &[u8] = b"data: [DONE]\n\n";

impl Drop for Stream {
    fn drop(&mut self) {
        let tail = if self.is_whole { TAIL_PIECES } else { 0 };
        self.tally.tokens.fetch_add(self.pieces.saturating_sub(self.heads + tail), Ordering::Relaxed);
    }
}

/// Where in a line a stream was cut: a piece may end anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// So many bytes of `data:` have come, and nothing else.
    Field(usize),
    Rest,
}

const FIELD: &[u8] = b"data:";

impl relay::Watcher for Stream {
    fn piece(&mut self, bytes: &Bytes) {
        self.is_whole |= bytes.ends_with(DONE);
        let mut left = &bytes[..];
        while !left.is_empty() {
            if let Line::Field(seen) = self.line {
                let same = left.iter().zip(&FIELD[seen..]).take_while(|(byte, of)| byte == of).count();
                left = &left[same..];
                self.line = match seen + same {
                    all if all == FIELD.len() => {
                        self.pieces += 1;
                        Line::Rest
                    }
                    // The piece ends here, and the line goes on with the next.
                    some if left.is_empty() => Line::Field(some),
                    _ => Line::Rest,
                };
            }
            // Whatever else the line holds is nobody's here.
            if let Some(end) = memchr::memchr(b'\n', left) {
                (left, self.line) = (&left[end + 1..], Line::Field(0));
            } else {
                break;
            }
        }
    }

    fn broken(&mut self, error: &reply::BoxError) -> Option<Bytes> {
        tracing::warn!(worker = self.worker_id, pieces = self.pieces, %error, "a worker was lost in the middle of an answer");
        if !self.is_stream {
            return None;
        }
        let tokens = self.pieces.saturating_sub(self.heads);
        let failure = Failure::new(
            Code::WorkerLost,
            format!("worker {} was lost after {tokens} tokens; the answer is incomplete", self.worker_id),
        )
        .with(json!({"tokens": tokens, "worker_id": self.worker_id}));
        // Whatever line was cut in the middle is closed first.
        let separator = if self.line == Line::Field(0) { "" } else { "\n\n" };
        Some(Bytes::from(format!("{separator}data: {}\n\n", failure.body(&self.id))))
    }
}

impl Queen {
    /// The model a request names; where it names none and there is just one, that one.
    fn model_asked_for(&self, named: Option<String>) -> Result<String, Failure> {
        if let Some(model) = named.filter(|model| !model.is_empty()) {
            return Ok(self.registry.meant(&model, None));
        }
        let mut known = self.registry.fleet().models();
        match (known.pop(), known.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(Failure::invalid("name a `model`; GET /v1/models lists them")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::relay::Watcher;

    fn stream() -> Stream {
        Stream {
            id: "r".into(),
            worker_id: "w".into(),
            is_stream: true,
            heads: 1,
            pieces: 0,
            is_whole: false,
            tally: Arc::default(),
            line: Line::Field(0),
        }
    }

    #[test]
    fn tokens_are_counted_over_any_cut_and_a_broken_stream_never_ends_in_done() {
        let whole = b"data: {\"role\":1}\n\ndata: {\"data:\":2}\n\n: alive\n\ndata: {\"cut";
        for cut in 0..=whole.len() {
            let mut watcher = stream();
            watcher.piece(&Bytes::copy_from_slice(&whole[..cut]));
            watcher.piece(&Bytes::copy_from_slice(&whole[cut..]));
            assert_eq!(watcher.pieces, 3, "cut at {cut}");
            let last = String::from_utf8(watcher.broken(&"gone".into()).unwrap().to_vec()).unwrap();
            assert!(last.starts_with("\n\ndata: {\"error\""), "{last}");
            assert!(last.contains("WORKER_LOST") && !last.contains("[DONE]"));
        }
    }

    #[test]
    fn an_answer_that_is_no_stream_is_cut_off() {
        let mut watcher = stream();
        watcher.is_stream = false;
        assert!(watcher.broken(&"gone".into()).is_none());
    }
}
