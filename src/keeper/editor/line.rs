//! The text that is being edited, the cursor in it, and the history behind it. Pure.

use super::keys::Key;
use unicode_width::UnicodeWidthChar;

/// What a key has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Edited,
    /// Enter: whoever asks decides whether the text is whole.
    Enter,
    Tab,
    Interrupt,
    End,
    Redraw,
    Suspend,
}

#[derive(Debug, Default)]
pub struct Line {
    text: String,
    /// A byte, on a character's boundary.
    at: usize,
    erased: String,
    /// How far back in the history, and what was typed before going there.
    back: usize,
    draft: String,
}

impl Line {
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn before_cursor(&self) -> &str {
        &self.text[..self.at]
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    pub fn into_text(self) -> String {
        self.text
    }

    /// Puts the cursor behind the last character, where what comes next on the screen does not cover any.
    pub fn move_to_end(&mut self) {
        self.at = self.text.len();
    }

    pub fn insert(&mut self, text: &str) {
        // A terminal's control codes are no text.
        let text: String = text
            .chars()
            .map(|c| if c == '\t' { ' ' } else { c })
            .filter(|c| *c == '\n' || !c.is_control())
            .collect();
        if self.text.len() + text.len() <= super::TURN_BYTES_MAX {
            self.text.insert_str(self.at, &text);
            self.at += text.len();
        }
    }

    pub fn press(&mut self, key: Key, history: &[String]) -> Step {
        match key {
            Key::Enter => return Step::Enter,
            Key::Tab => return Step::Tab,
            Key::Interrupt => return Step::Interrupt,
            Key::EndOfInput if self.text.is_empty() => return Step::End,
            Key::Redraw => return Step::Redraw,
            Key::Suspend => return Step::Suspend,
            Key::Text(text) => self.insert(&text),
            Key::Newline => self.insert("\n"),
            Key::Left => self.at = self.left_of(self.at),
            Key::Right => self.at = self.right_of(self.at),
            Key::Home => self.at = self.start(),
            Key::End => self.at = self.end(),
            Key::WordLeft => self.at = self.word_left(),
            Key::WordRight => self.at = self.word_right(),
            Key::Backspace => self.erase(self.left_of(self.at), self.at),
            Key::Delete | Key::EndOfInput => self.erase(self.at, self.right_of(self.at)),
            Key::EraseWord => self.cut(self.word_left(), self.at),
            Key::EraseToStart => self.cut(self.start(), self.at),
            Key::EraseToEnd => self.cut(self.at, self.end()),
            Key::Yank => {
                let erased = self.erased.clone();
                self.insert(&erased);
            }
            Key::Up => self.up(history),
            Key::Down => self.down(history),
            Key::Unknown => {}
        }
        Step::Edited
    }

    fn erase(&mut self, from: usize, to: usize) {
        self.text.replace_range(from..to, "");
        self.at = from;
    }

    fn cut(&mut self, from: usize, to: usize) {
        if from < to {
            self.erased = self.text[from..to].to_owned();
            self.erase(from, to);
        }
    }

    /// A character and the marks on it are one step.
    fn left_of(&self, at: usize) -> usize {
        let before = self.text[..at].char_indices().rev();
        before.into_iter().find(|(_, c)| !is_mark(*c)).map_or(0, |(index, _)| index)
    }

    fn right_of(&self, at: usize) -> usize {
        let mut after = self.text[at..].char_indices().skip(1);
        after.find(|(_, c)| !is_mark(*c)).map_or(self.text.len(), |(index, _)| at + index)
    }

    /// Of the line that the cursor is in.
    fn start(&self) -> usize {
        self.text[..self.at].rfind('\n').map_or(0, |index| index + 1)
    }

    fn end(&self) -> usize {
        self.text[self.at..].find('\n').map_or(self.text.len(), |index| self.at + index)
    }

    fn word_left(&self) -> usize {
        let before = self.text[..self.at].trim_end_matches(|c: char| !c.is_alphanumeric());
        before.trim_end_matches(char::is_alphanumeric).len()
    }

    fn word_right(&self) -> usize {
        let after = self.text[self.at..].trim_start_matches(|c: char| !c.is_alphanumeric());
        self.text.len() - after.trim_start_matches(char::is_alphanumeric).len()
    }

    /// The line above, or the turn before this one.
    fn up(&mut self, history: &[String]) {
        let start = self.start();
        if start > 0 {
            let column = self.text[start..self.at].chars().count();
            self.at = start - 1;
            let above = self.start();
            self.at = at_column(&self.text, above, start - 1, column);
        } else if self.back < history.len() {
            if self.back == 0 {
                self.draft = self.text.clone();
            }
            self.back += 1;
            self.recall(history);
        }
    }

    fn down(&mut self, history: &[String]) {
        let end = self.end();
        if end < self.text.len() {
            let column = self.text[self.start()..self.at].chars().count();
            self.at = end + 1;
            self.at = at_column(&self.text, end + 1, self.end(), column);
        } else if self.back > 0 {
            self.back -= 1;
            self.recall(history);
        }
    }

    fn recall(&mut self, history: &[String]) {
        let recalled = match self.back {
            0 => std::mem::take(&mut self.draft),
            back => history[history.len() - back].clone(),
        };
        self.text = recalled;
        self.at = self.text.len();
    }
}

fn is_mark(c: char) -> bool {
    c != '\n' && c.width() == Some(0)
}

fn at_column(text: &str, start: usize, end: usize, column: usize) -> usize {
    text[start..end].char_indices().nth(column).map_or(end, |(index, _)| start + index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(keys: &[Key], history: &[&str]) -> (String, usize) {
        let history: Vec<String> = history.iter().map(|turn| (*turn).to_owned()).collect();
        let mut line = Line::default();
        for key in keys {
            line.press(key.clone(), &history);
            assert!(line.text.is_char_boundary(line.at));
        }
        (line.text, line.at)
    }

    fn text(text: &str) -> Key {
        Key::Text(text.into())
    }

    #[test]
    fn text_is_put_in_and_taken_out_at_the_cursor() {
        assert_eq!(after(&[text("helo"), Key::Left, text("l")], &[]), ("hello".into(), 4));
        assert_eq!(after(&[text("ab"), Key::Backspace, Key::Backspace, Key::Backspace], &[]), ("".into(), 0));
        assert_eq!(after(&[text("one two"), Key::EraseWord, text("2")], &[]), ("one 2".into(), 5));
        let yanked = [text("one two"), Key::WordLeft, Key::EraseToEnd, Key::Home, Key::Yank];
        assert_eq!(after(&yanked, &[]), ("twoone ".into(), 3));
        assert_eq!(after(&[text("a\u{1b}[2Jb\tc")], &[]).0, "a[2Jb c");
        assert_eq!(after(&[text("ab"), Key::Home, Key::EndOfInput], &[]), ("b".into(), 0));
    }

    #[test]
    fn a_character_and_its_marks_are_one_step() {
        let e = "e\u{301}";
        assert_eq!(after(&[text("a"), text(e), Key::Backspace], &[]).0, "a");
        assert_eq!(after(&[text(e), text("b"), Key::Home, Key::Delete], &[]).0, "b");
    }

    #[test]
    fn up_and_down_go_through_lines_then_through_the_history_and_back_to_the_draft() {
        let history = ["first", "second\nlines"];
        let ups = |count| [vec![text("draft")], vec![Key::Up; count]].concat();
        assert_eq!(after(&ups(1), &history).0, "second\nlines");
        assert_eq!(after(&ups(2), &history), ("second\nlines".into(), 5));
        assert_eq!(after(&ups(3), &history).0, "first");
        assert_eq!(after(&ups(9), &history).0, "first");
        let back = [ups(3), vec![Key::Down; 2]].concat();
        assert_eq!(after(&back, &history).0, "draft");
    }
}
