//! Text that a terminal, a log reader or an event stream can be shown, whatever bytes a program wrote.

/// Lossy UTF-8 without escape sequences, control characters (but tabs) and what turns the direction of writing, so that a
/// line can neither act on a terminal nor look like another. The log keeps the bytes.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
        return text.into_owned();
    }
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match next {
            '\u{1b}' => skip_escape(&mut rest),
            '\u{9b}' => skip_control_sequence(&mut rest),
            '\t' => kept.push('\t'),
            '\u{2028}' | '\u{2029}' => kept.push(' '),
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            control if control.is_control() => {}
            other => kept.push(other),
        }
    }
    kept
}

/// What follows ESC: a control sequence, a string up to its end, or one character after any number of intermediates.
fn skip_escape(rest: &mut std::str::Chars<'_>) {
    let mut ahead = rest.clone();
    match ahead.next() {
        Some('[') => {
            *rest = ahead;
            skip_control_sequence(rest);
        }
        Some(']' | 'P' | '^' | '_' | 'X') => {
            *rest = ahead.clone();
            // Without its end it is no string, and what follows is text: nothing is to be hidden by it.
            while let Some(next) = ahead.next() {
                match next {
                    '\u{7}' | '\u{9c}' => return *rest = ahead,
                    '\u{1b}' if ahead.clone().next() == Some('\\') => {
                        ahead.next();
                        return *rest = ahead;
                    }
                    _ => {}
                }
            }
        }
        Some(' '..='/') => {
            while ahead.clone().next().is_some_and(|next| matches!(next, ' '..='/')) {
                ahead.next();
            }
            ahead.next();
            *rest = ahead;
        }
        Some('0'..='~') => *rest = ahead,
        _ => {}
    }
}

/// Parameters and intermediates, then one final character. Anything else breaks it off and is text again.
fn skip_control_sequence(rest: &mut std::str::Chars<'_>) {
    let mut ahead = rest.clone();
    while let Some(next) = ahead.next() {
        match next {
            ' '..='?' => *rest = ahead.clone(),
            '@'..='~' => return *rest = ahead,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_and_what_acts_on_a_terminal_goes() {
        let cases: [(&[u8], &str); 12] = [
            (b"plain, with\ta tab", "plain, with\ta tab"),
            ("grüße 🐝".as_bytes(), "grüße 🐝"),
            (b"\x1b[1;31merror\x1b[0m: no", "error: no"),
            (b"\x1b]0;title\x07shown \x1b]8;;http://x\x1b\\link", "shown link"),
            (b"\x1b]0;no end", "0;no end"),
            (b"\x1bPq#0;2\x1b\\\x1b(Bx\x1b7y\x1b", "xy"),
            (b"a\0b\x07c\x7fd\x1b[", "abcd"),
            (b"bad \xff\xfe utf", "bad \u{fffd}\u{fffd} utf"),
            ("\u{9b}31mred\u{85}".as_bytes(), "red"),
            ("\u{202e}gpj.exe\u{2066}".as_bytes(), "gpj.exe"),
            ("one\u{2028}two".as_bytes(), "one two"),
            (b"event: done\ndata: x", "event: donedata: x"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(printable(bytes), shown, "{bytes:?}");
        }
    }

    #[test]
    fn any_bytes_give_text_without_controls() {
        let bytes: Vec<u8> = (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for start in 0..64 {
            let text = printable(&bytes[start * 7..]);
            assert!(text.chars().all(|c| c == '\t' || !c.is_control()));
        }
    }
}
