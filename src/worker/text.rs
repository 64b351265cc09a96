//! From token bytes to text that may be sent: characters are whole, stop strings never leak, not even their beginnings.

/// Stop strings of one request.
pub const STOPS_MAX: usize = 16;
/// The longest stop string.
pub const STOP_BYTES_MAX: usize = 512;

#[derive(Debug)]
pub struct Text {
    stops: Vec<String>,
    /// Bytes that do not yet make a character.
    bytes: Vec<u8>,
    /// Characters that may be the beginning of a stop string.
    held: String,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Emitted {
    pub text: String,
    /// The stop string that ended it.
    pub stopped: Option<String>,
}

impl Text {
    pub fn new(stops: Vec<String>) -> Self {
        Text { stops, bytes: Vec::new(), held: String::new() }
    }

    /// Takes a token's bytes, gives what is certain to belong to the answer.
    pub fn push(&mut self, bytes: &[u8]) -> Emitted {
        self.bytes.extend_from_slice(bytes);
        self.take_characters(false);
        self.release()
    }

    /// The rest: the generation has ended, so nothing held can become a stop string.
    pub fn finish(&mut self) -> Emitted {
        self.take_characters(true);
        let mut last = self.release();
        if last.stopped.is_none() {
            last.text.push_str(&std::mem::take(&mut self.held));
        }
        last
    }

    /// Moves whole characters over. What can't become one is replaced, as every decoder of broken UTF-8 does.
    fn take_characters(&mut self, all: bool) {
        let mut rest = self.bytes.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (whole, broken) = rest.split_at(error.valid_up_to());
                    self.held.push_str(&String::from_utf8_lossy(whole));
                    rest = match error.error_len() {
                        Some(len) => &broken[len..],
                        None if all => &[],
                        None => {
                            rest = broken;
                            break;
                        }
                    };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
        let consumed = self.bytes.len() - rest.len();
        self.bytes.drain(..consumed);
    }

    fn release(&mut self) -> Emitted {
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop))).min();
        if let Some((at, stop)) = found {
            let stopped = Some(stop.clone());
            self.held.truncate(at);
            self.bytes.clear();
            return Emitted { text: std::mem::take(&mut self.held), stopped };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let text = self.held.drain(..self.held.len() - keep).collect();
        Emitted { text, stopped: None }
    }
}

/// How many of the text's last bytes are the beginning of the stop string.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|n| stop.is_char_boundary(*n) && text.as_bytes().ends_with(&stop.as_bytes()[..*n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn a_stop_string_over_token_boundaries_never_shows() {
        let mut text = Text::new(stops(&["</end>"]));
        assert_eq!(text.push(b"answer <").text, "answer ");
        assert_eq!(text.push(b"/e").text, "");
        let last = text.push(b"nd> more");
        assert_eq!((last.text.as_str(), last.stopped.as_deref()), ("", Some("</end>")));
    }

    #[test]
    fn what_only_looked_like_a_stop_is_released() {
        let mut text = Text::new(stops(&["</end>"]));
        assert_eq!(text.push(b"a </e").text, "a ");
        assert_eq!(text.push(b"m>").text, "</em>");
        assert_eq!(text.push(b"</").text, "");
        assert_eq!(text.finish().text, "</");
    }

    #[test]
    fn the_earliest_of_several_stops_wins() {
        let mut text = Text::new(stops(&["later", "so"]));
        let all = text.push(b"and so on and later");
        assert_eq!((all.text.as_str(), all.stopped.as_deref()), ("and ", Some("so")));
    }

    #[test]
    fn characters_split_over_tokens_come_out_whole() {
        let mut text = Text::new(Vec::new());
        let bytes = "ü漢🐝".as_bytes();
        let mut out = String::new();
        for byte in bytes {
            out.push_str(&text.push(&[*byte]).text);
            assert!(!out.contains(char::REPLACEMENT_CHARACTER));
        }
        assert_eq!(out, "ü漢🐝");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_a_cut_character_at_the_end_too() {
        let mut text = Text::new(Vec::new());
        assert_eq!(text.push(b"a\xff\xfeb").text, "a\u{fffd}\u{fffd}b");
        assert_eq!(text.push(&[0xF0, 0x9F]).text, "");
        assert_eq!(text.finish().text, "\u{fffd}");
    }

    #[test]
    fn any_cutting_of_any_text_gives_the_same_answer() {
        let whole = "one STO two ST🐝OP three STOP four".as_bytes();
        for size in 1..whole.len() {
            let mut text = Text::new(stops(&["STOP", "🐝🐝"]));
            let mut out = String::new();
            let mut stopped = None;
            for piece in whole.chunks(size) {
                let emitted = text.push(piece);
                out.push_str(&emitted.text);
                if emitted.stopped.is_some() {
                    stopped = emitted.stopped;
                    break;
                }
            }
            assert_eq!(
                (out.as_str(), stopped.as_deref()),
                ("one STO two ST🐝OP three ", Some("STOP")),
                "{size}"
            );
        }
    }
}
