//! Bytes from a terminal to keys. Pure: it may be fed anything, in any pieces.

/// The longest text pasted at once; the rest is dropped.
pub const PASTE_BYTES_MAX: usize = super::TURN_BYTES_MAX;
/// A longer escape sequence is none that a key makes.
const SEQUENCE_BYTES_MAX: usize = 32;
const ESCAPE: u8 = 0x1b;
const PASTE_ENDS: &[u8] = b"\x1b[201~";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    Text(String),
    Enter,
    /// A new line within the text.
    Newline,
    Tab,
    Backspace,
    Delete,
    Left,
    Right,
    Up,
    Down,
    Home,
    End,
    WordLeft,
    WordRight,
    EraseWord,
    EraseToStart,
    EraseToEnd,
    Yank,
    Redraw,
    Interrupt,
    /// Ctrl-D: the end on an empty line, else the character under the cursor.
    EndOfInput,
    Suspend,
    Unknown,
}

#[derive(Debug, Default)]
pub struct Keys {
    pending: Vec<u8>,
    pasted: Option<Vec<u8>>,
}

impl Keys {
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole key, if it has come.
    pub fn next(&mut self) -> Option<Key> {
        if self.pasted.is_some() {
            return self.paste();
        }
        let (key, taken) = match *self.pending.first()? {
            ESCAPE => self.sequence()?,
            byte if byte < 0x20 || byte == 0x7f => (control(byte), 1),
            _ => self.text()?,
        };
        self.pending.drain(..taken);
        match key {
            Some(key) => Some(key),
            None => {
                self.pasted = Some(Vec::new());
                self.paste()
            }
        }
    }

    /// Everything up to the mark is text, line breaks and all.
    fn paste(&mut self) -> Option<Key> {
        let text = self.pasted.as_mut()?;
        let end = self.pending.windows(PASTE_ENDS.len()).position(|window| window == PASTE_ENDS);
        // The mark itself may be half there.
        let taken = end.unwrap_or_else(|| self.pending.len().saturating_sub(PASTE_ENDS.len() - 1));
        let room = PASTE_BYTES_MAX.saturating_sub(text.len());
        text.extend(self.pending.drain(..taken).take(room));
        end?;
        self.pending.drain(..PASTE_ENDS.len());
        let text = self.pasted.take()?;
        Some(Key::Text(String::from_utf8_lossy(&text).replace("\r\n", "\n").replace('\r', "\n")))
    }

    /// One character; what is no UTF-8 is passed over.
    fn text(&self) -> Option<(Option<Key>, usize)> {
        let width = match self.pending[0] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xff => return Some((Some(Key::Unknown), 1)),
            _ => 1,
        };
        let bytes = self.pending.get(..width)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Some((Some(Key::Text(text.to_owned())), width)),
            Err(_) => Some((Some(Key::Unknown), 1)),
        }
    }

    /// A key's escape sequence; no key for the mark that begins a paste.
    fn sequence(&self) -> Option<(Option<Key>, usize)> {
        let after = *self.pending.get(1)?;
        if !matches!(after, b'[' | b'O') {
            let key = match after {
                b'b' => Key::WordLeft,
                b'f' => Key::WordRight,
                b'\r' | b'\n' => Key::Newline,
                0x7f | 0x08 => Key::EraseWord,
                _ => Key::Unknown,
            };
            return Some((Some(key), 2));
        }
        let is_last = |byte: &u8| (0x40..=0x7e).contains(byte);
        let Some(length) = self.pending[2..].iter().position(is_last) else {
            // Not for ever: a broken sequence must not swallow what follows.
            let is_broken = self.pending.len() > SEQUENCE_BYTES_MAX;
            return is_broken.then_some((Some(Key::Unknown), SEQUENCE_BYTES_MAX));
        };
        let end = 2 + length;
        let key = match (&self.pending[2..end], self.pending[end]) {
            (b"200", b'~') => return Some((None, end + 1)),
            (b"1;5" | b"1;3", b'D') => Key::WordLeft,
            (b"1;5" | b"1;3", b'C') => Key::WordRight,
            (_, b'A') => Key::Up,
            (_, b'B') => Key::Down,
            (_, b'C') => Key::Right,
            (_, b'D') => Key::Left,
            (_, b'H') | (b"1" | b"7", b'~') => Key::Home,
            (_, b'F') | (b"4" | b"8", b'~') => Key::End,
            (b"3", b'~') => Key::Delete,
            _ => Key::Unknown,
        };
        Some((Some(key), end + 1))
    }
}

/// As Emacs and every shell have them.
fn control(byte: u8) -> Option<Key> {
    Some(match byte {
        0x01 => Key::Home,
        0x02 => Key::Left,
        0x03 => Key::Interrupt,
        0x04 => Key::EndOfInput,
        0x05 => Key::End,
        0x06 => Key::Right,
        0x08 | 0x7f => Key::Backspace,
        b'\t' => Key::Tab,
        b'\r' | b'\n' => Key::Enter,
        0x0b => Key::EraseToEnd,
        0x0c => Key::Redraw,
        0x0e => Key::Down,
        0x10 => Key::Up,
        0x15 => Key::EraseToStart,
        0x17 => Key::EraseWord,
        0x19 => Key::Yank,
        0x1a => Key::Suspend,
        _ => Key::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], cut: usize) -> Vec<Key> {
        let mut keys = Keys::default();
        let mut read = Vec::new();
        for piece in [&bytes[..cut], &bytes[cut..]] {
            keys.push(piece);
            while let Some(key) = keys.next() {
                read.push(key);
            }
        }
        read
    }

    #[test]
    fn keys_read_the_same_from_any_cut() {
        let text = |text: &str| Key::Text(text.into());
        let bytes = "aü\u{1f41d}\x1b[A\x1bOD\x1b[1;5C\x1b[3~\x1b[200~x\r\ny\x1b[A\x1b[201~\x7f\r\x1b\r\x03"
            .as_bytes();
        let expected = [
            text("a"),
            text("ü"),
            text("\u{1f41d}"),
            Key::Up,
            Key::Left,
            Key::WordRight,
            Key::Delete,
            text("x\ny\u{1b}[A"),
            Key::Backspace,
            Key::Enter,
            Key::Newline,
            Key::Interrupt,
        ];
        for cut in 0..=bytes.len() {
            assert_eq!(read(bytes, cut), expected, "cut at {cut}");
        }
    }

    #[test]
    fn what_no_key_makes_is_passed_over_and_swallows_nothing_after_it() {
        let mut bytes = vec![0xff, 0x80, 0xc3, 0x28, ESCAPE, b'['];
        bytes.extend([b'9'; 64]);
        bytes.push(b'~');
        bytes.push(b'z');
        let keys = read(&bytes, 0);
        assert_eq!(keys.last(), Some(&Key::Text("z".into())), "{keys:?}");
    }
}
