//! Where a prompt and a text lie on a terminal's rows, and what is written to show them.

use std::fmt::Write;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What was drawn last: how far the cursor is below the first row.
#[derive(Debug, Default)]
pub struct Screen {
    row: usize,
}

struct Layout {
    rows: Vec<String>,
    row: usize,
    column: usize,
}

impl Screen {
    /// Codes that draw everything anew over what was drawn before. Of a text that is taller than the terminal the rows
    /// around the cursor are shown.
    pub fn draw(&mut self, prompt: &str, before: &str, after: &str, columns: usize, height: usize) -> String {
        let Layout { rows, row, column } = layout(prompt, before, after, columns.max(2));
        let height = height.max(1);
        let first = (row + 1).saturating_sub(height);
        let shown = &rows[first..rows.len().min(first + height)];
        let mut out = self.to_start();
        out.push_str("\u{1b}[J");
        out.push_str(&shown.join("\r\n"));
        let up = first + shown.len() - 1 - row;
        if up > 0 {
            let _ = write!(out, "\u{1b}[{up}A");
        }
        out.push('\r');
        if column > 0 {
            let _ = write!(out, "\u{1b}[{column}C");
        }
        self.row = row - first;
        out
    }

    /// Codes that bring the cursor to the first row's start.
    fn to_start(&self) -> String {
        if self.row > 0 { format!("\r\u{1b}[{}A", self.row) } else { "\r".into() }
    }

    /// A new prompt begins where the cursor is.
    pub fn forget(&mut self) {
        self.row = 0;
    }
}

fn layout(prompt: &str, before: &str, after: &str, columns: usize) -> Layout {
    let mut rows = vec![prompt.to_owned()];
    let mut width = prompt.width();
    let mut cursor = (0, width);
    let text = before.chars().map(Some).chain([None]).chain(after.chars().map(Some));
    for c in text {
        let Some(c) = c else {
            if width == columns {
                rows.push(String::new());
                width = 0;
            }
            cursor = (rows.len() - 1, width);
            continue;
        };
        let takes = c.width().unwrap_or(0);
        if c == '\n' || width + takes > columns {
            rows.push(String::new());
            width = 0;
        }
        if c != '\n' {
            rows.last_mut().expect("the prompt is the first row").push(c);
            width += takes;
        }
    }
    Layout { rows, row: cursor.0, column: cursor.1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_wrap_by_the_width_a_terminal_gives_and_the_cursor_is_in_its_place() {
        let at = |before: &str, after: &str| {
            let Layout { rows, row, column } = layout("> ", before, after, 6);
            (rows, row, column)
        };
        assert_eq!(at("ab", "c"), (vec!["> abc".into()], 0, 4));
        assert_eq!(at("abcd", ""), (vec!["> abcd".into(), "".into()], 1, 0));
        assert_eq!(at("abcdef", "g"), (vec!["> abcd".into(), "efg".into()], 1, 2));
        assert_eq!(at("a蜜蜂", ""), (vec!["> a蜜".into(), "蜂".into()], 1, 2));
        assert_eq!(at("a\nb", "\nc"), (vec!["> a".into(), "b".into(), "c".into()], 1, 1));
    }

    #[test]
    fn what_is_drawn_over_begins_at_the_first_row_and_a_tall_text_shows_the_rows_at_the_cursor() {
        let mut screen = Screen::default();
        assert_eq!(screen.draw("> ", "a\nb", "\nc", 80, 24), "\r\u{1b}[J> a\r\nb\r\nc\u{1b}[1A\r\u{1b}[1C");
        assert_eq!(screen.draw("> ", "x", "", 80, 24), "\r\u{1b}[1A\u{1b}[J> x\r\u{1b}[3C");
        screen.forget();
        let tall: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        let drawn = screen.draw("> ", &tall.join("\n"), "", 80, 10);
        assert!(drawn.starts_with("\r\u{1b}[J40\r\n") && drawn.contains("49"), "{drawn:?}");
    }
}
