//! What a person sees. On a terminal: bars, colour, one line that moves; off it: plain lines and no control codes. Results
//! and tokens go to stdout, all else to stderr, so that a pipe gets the answer alone.

use super::bars::{Bars, Progress, duration};
use super::lines::Lines;
use crate::config::Settings;
pub use crate::job::progress::size;
use crate::wire::Failure;
use crate::wire::job::{JobEvent, JobId, Level, Receipt};
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

pub struct Render {
    json: bool,
    quiet: bool,
    verbose: bool,
    colour: bool,
    terminal: bool,
    answers_terminal: bool,
    bars: Mutex<Bars>,
    lines: Mutex<Lines>,
}

impl Render {
    pub fn new(settings: &Settings) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Render {
            json: settings.on("json"),
            quiet: settings.on("quiet"),
            verbose: settings.on("verbose"),
            colour: terminal && !settings.on("no-color"),
            terminal,
            answers_terminal: std::io::stdout().is_terminal(),
            bars: Mutex::new(Bars::new(terminal)),
            lines: Mutex::default(),
        }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    pub fn is_verbose(&self) -> bool {
        self.verbose
    }

    fn bars(&self) -> MutexGuard<'_, Bars> {
        self.bars.lock().expect("no holder of the bars panics")
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().expect("no holder of the lines panics")
    }

    /// A line for people, above any bar.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            self.stderr(line);
        }
    }

    /// A question, with the cursor behind it. Asked of one who wants no narration, too.
    pub fn question(&self, text: &str) {
        self.clear();
        self.draw(text);
    }

    pub fn error(&self, message: &str) {
        let mark = if self.colour { "\u{1b}[31merror:\u{1b}[0m" } else { "error:" };
        self.stderr(&format!("{mark} {}", printable(message)));
    }

    /// A failure with its code, and the log's tail where it has one.
    pub fn failure(&self, failure: &Failure) {
        self.clear();
        if let Some(log) = failure.details.get("log").and_then(Value::as_array) {
            for line in log.iter().filter_map(Value::as_str) {
                self.say(&format!("  | {}", printable(line)));
            }
        }
        let code = serde_json::to_value(failure.code).unwrap_or_default();
        self.error(&format!("{} ({})", failure.message, code.as_str().unwrap_or("UNKNOWN")));
    }

    /// Writes a line after whatever waits to be drawn.
    fn stderr(&self, line: &str) {
        let waiting = self.lines().take(Instant::now()).unwrap_or_default();
        self.draw(&format!("{waiting}{line}\n"));
    }

    fn draw(&self, text: &str) {
        let draw = self.bars().draw().clone();
        draw.suspend(|| {
            // Nobody to tell that stderr is closed.
            let _ = std::io::stderr().write_all(text.as_bytes());
        });
    }

    /// A line of a log: dimmed and set off. On a terminal it may wait for the next draw.
    fn log(&self, line: &str) {
        if self.quiet {
            return;
        }
        let line = printable(line);
        let line = if self.colour { format!("\u{1b}[2m  | {line}\u{1b}[0m") } else { format!("  | {line}") };
        if !self.terminal {
            return self.stderr(&line);
        }
        let due = self.lines().add(line, Instant::now());
        if let Some(text) = due {
            self.draw(&text);
        }
    }

    /// Whether something waits for [`Render::catch_up`], which is to come within [`super::lines::DRAW_EVERY`].
    pub fn is_behind(&self) -> bool {
        self.lines().is_waiting()
    }

    pub fn catch_up(&self) {
        let due = self.lines().take(Instant::now());
        if let Some(text) = due {
            self.draw(&text);
        }
    }

    /// Text of an answer, as it comes. A model may say anything: on a terminal what would move the cursor is left out.
    pub fn answer(&self, text: &str) -> std::io::Result<()> {
        let shown = if self.answers_terminal { printable_text(text) } else { text.into() };
        self.catch_up();
        let draw = self.bars().draw().clone();
        draw.suspend(|| {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(shown.as_bytes())?;
            stdout.flush()
        })
    }

    /// One JSON value on stdout.
    pub fn value(&self, value: &Value) -> std::io::Result<()> {
        self.answer(&format!("{value}\n"))
    }

    /// A list, as a table.
    pub fn table(&self, columns: &[&str], rows: Vec<Vec<String>>) -> std::io::Result<()> {
        self.answer(&table(columns, &rows))
    }

    /// One event of a job.
    pub fn event(&self, event: &JobEvent) -> std::io::Result<()> {
        match event {
            JobEvent::Narration { message, level, .. } => match level {
                Level::Info => self.say(&printable(message)),
                Level::Warn => self.say(&format!("warning: {}", printable(message))),
                Level::Error => self.error(message),
            },
            JobEvent::Log { line, .. } => self.log(line),
            JobEvent::Progress { task, label, position, total, unit, rate } => {
                if !self.quiet {
                    let (position, total, unit, rate) = (*position, *total, *unit, *rate);
                    let line = self.bars().see(Progress { task, label, position, total, unit, rate });
                    if let Some(line) = line {
                        self.stderr(&line);
                    }
                }
            }
            // With --json the command's value has it.
            JobEvent::Table { .. } if self.json => {}
            JobEvent::Table { columns, rows } => {
                let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
                self.table(&columns, rows.clone())?;
            }
            // The command shows results and tokens its own way, the end of the job its error.
            JobEvent::Token { .. } | JobEvent::Result(_) | JobEvent::Error(_) => {}
        }
        Ok(())
    }

    /// Takes the bars away, before an answer's first word or an error.
    pub fn clear(&self) {
        self.catch_up();
        self.bars().clear();
    }

    /// What a cancel stopped, if that is known yet.
    pub fn cancelled(&self, id: JobId, receipt: Option<&Receipt>) {
        match receipt {
            Some(receipt) => self.receipt(receipt),
            None => {
                self.clear();
                self.say(&format!("cancelling: the server is still cleaning up; see `rbee job get {id}`"));
            }
        }
    }

    /// What was stopped and given back.
    pub fn receipt(&self, receipt: &Receipt) {
        self.clear();
        self.say(&told(receipt));
        for survivor in &receipt.survivors {
            self.say(&format!("  still there: {} {}", survivor.pid, printable(&survivor.command)));
        }
    }
}

/// A receipt in a line: what was stopped and given back.
fn told(receipt: &Receipt) -> String {
    let mut parts = Vec::new();
    match receipt.processes_reaped {
        0 => {}
        1 => parts.push(format!("1 process ended ({})", printable(&receipt.containment))),
        count => parts.push(format!("{count} processes ended ({})", printable(&receipt.containment))),
    }
    if receipt.bytes_removed > 0 {
        parts.push(format!("{} of files removed", size(receipt.bytes_removed)));
    }
    if receipt.memory_returned_bytes > 0 {
        parts.push(format!("{} of memory returned", size(receipt.memory_returned_bytes)));
    }
    parts.push(format!("{} ms", receipt.ms));
    let word = if receipt.clean { "cancelled" } else { "cancelled, but not cleanly" };
    format!("{word}: {}", parts.join(", "))
}

/// Rows under their columns, by the width a terminal gives each character. Cells have no line breaks: they are text of
/// others, and a row is a line.
fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(columns.iter().map(|column| printable(&column.to_uppercase())));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Text of others without control codes: a log line must not move our cursor, nor turn the words around.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| *c == '\t' || is_harmless(*c)).collect()
}

/// The same for a text of several lines.
fn printable_text(text: &str) -> std::borrow::Cow<'_, str> {
    let is_shown = |c: char| matches!(c, '\t' | '\n') || is_harmless(c);
    if text.chars().all(is_shown) { text.into() } else { text.chars().filter(|c| is_shown(*c)).collect() }
}

fn is_harmless(c: char) -> bool {
    // The latter change the direction of all that follows.
    !c.is_control() && !matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `3m12s`, for a time in milliseconds since the epoch.
pub fn ago(then_ms: u64) -> String {
    duration(crate::wire::fleet::now_ms().saturating_sub(then_ms) / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_text_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\rc\td"), "a[2Jbc\td");
    }

    #[test]
    fn a_receipt_tells_what_there_is_and_small_sizes_as_they_are() {
        let mut receipt = Receipt { ms: 12, ..Receipt::default() };
        assert_eq!(told(&receipt), "cancelled: 12 ms");
        receipt = Receipt { processes_reaped: 3, containment: "pidns".into(), bytes_removed: 700, ..receipt };
        receipt.memory_returned_bytes = 5 << 20;
        receipt.clean = false;
        let text = "cancelled, but not cleanly: 3 processes ended (pidns), 700 B of files removed, 5 MiB of memory returned, 12 ms";
        assert_eq!(told(&receipt), text);
    }

    /// Columns that a terminal gives a text: two for CJK and emoji.
    fn width(text: &str) -> usize {
        text.chars()
            .map(|c| if ('\u{1100}'..='\u{ffff}').contains(&c) || c >= '\u{1f300}' { 2 } else { 1 })
            .sum()
    }

    #[test]
    fn columns_line_up_by_the_width_of_what_is_shown() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let rows = vec![
            row("plain", "1"),
            row("蜜蜂蜜蜂", "2"),
            row("bee \u{1f41d}", "3"),
            row("\u{1b}[31mred\n", "4"),
        ];
        let text = table(&["name", "n"], &rows);
        let starts: Vec<usize> =
            text.lines().skip(1).map(|line| width(&line[..line.rfind(char::is_numeric).unwrap()])).collect();
        assert_eq!(starts.len(), 4, "a row is a line: {text}");
        assert!(starts.iter().all(|start| *start == starts[0]), "{text}");
        assert!(text.starts_with(" NAME") || text.starts_with("NAME"), "{text}");
    }

    #[test]
    fn an_answer_on_a_terminal_cannot_move_the_cursor_but_may_break_lines() {
        assert_eq!(printable_text("a\n\tb\u{1b}[2J\rc\u{202e}d"), "a\n\tb[2Jcd");
        assert!(matches!(printable_text("plain\n"), std::borrow::Cow::Borrowed(_)));
    }
}
