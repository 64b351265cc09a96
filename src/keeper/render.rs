//! What a person sees. On a terminal: bars, colour, one line that moves; off it: plain lines and no control codes. Results
//! and tokens go to stdout, all else to stderr, so that a pipe gets the answer alone.

use crate::config::Settings;
use crate::wire::Failure;
use crate::wire::job::{JobEvent, Level, Receipt, Unit};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard};

/// Off a terminal a bar becomes a line for every such step of percent.
const PLAIN_STEP_PERCENT: u64 = 10;

pub struct Render {
    json: bool,
    quiet: bool,
    verbose: bool,
    colour: bool,
    terminal: bool,
    bars: MultiProgress,
    tasks: Mutex<HashMap<String, Task>>,
}

struct Task {
    bar: Option<ProgressBar>,
    told_percent: u64,
}

impl Render {
    pub fn new(settings: &Settings) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Render {
            json: settings.on("json"),
            quiet: settings.on("quiet"),
            verbose: settings.on("verbose"),
            colour: terminal && !settings.on("no-color"),
            terminal,
            bars: MultiProgress::with_draw_target(target),
            tasks: Mutex::default(),
        }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    pub fn is_verbose(&self) -> bool {
        self.verbose
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, Task>> {
        self.tasks.lock().expect("no holder of the bars panics")
    }

    /// A line for people, above any bar.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            self.stderr(line);
        }
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

    fn stderr(&self, line: &str) {
        self.bars.suspend(|| {
            // Nobody to tell that stderr is closed.
            let _ = writeln!(std::io::stderr(), "{line}");
        });
    }

    /// Text of an answer, as it comes.
    pub fn answer(&self, text: &str) -> std::io::Result<()> {
        self.bars.suspend(|| {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(text.as_bytes())?;
            stdout.flush()
        })
    }

    /// One JSON value on stdout.
    pub fn value(&self, value: &Value) -> std::io::Result<()> {
        self.answer(&format!("{value}\n"))
    }

    /// A list, as a table or as JSON.
    pub fn table(&self, columns: &[&str], rows: Vec<Vec<String>>) -> std::io::Result<()> {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(columns.iter().map(|column| column.to_uppercase()));
        for row in rows {
            table.add_row(row.iter().map(|cell| printable(cell)));
        }
        let text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        self.answer(&text)
    }

    /// One event of a job.
    pub fn event(&self, event: &JobEvent) -> std::io::Result<()> {
        match event {
            JobEvent::Narration { message, level, .. } => match level {
                Level::Info => self.say(&printable(message)),
                Level::Warn => self.say(&format!("warning: {}", printable(message))),
                Level::Error => self.error(message),
            },
            JobEvent::Log { line, .. } => self.say(&format!("  | {}", printable(line))),
            JobEvent::Progress { task, label, position, total, unit, .. } => {
                self.progress(task, label, *position, *total, *unit);
            }
            JobEvent::Table { columns, rows } => {
                let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
                self.table(&columns, rows.clone())?;
            }
            // The command shows results and tokens its own way, the end of the job its error.
            JobEvent::Token { .. } | JobEvent::Result(_) | JobEvent::Error(_) => {}
        }
        Ok(())
    }

    fn progress(&self, task: &str, label: &str, position: u64, total: Option<u64>, unit: Unit) {
        if self.quiet {
            return;
        }
        let is_whole = total.is_some_and(|total| position >= total);
        let percent = total.map_or(0, |total| position.saturating_mul(100).checked_div(total).unwrap_or(100));
        let mut tasks = self.tasks();
        let entry = tasks.entry(task.to_owned()).or_insert_with(|| Task {
            bar: self.terminal.then(|| self.bars.add(bar(total, unit))),
            told_percent: 0,
        });
        if let Some(bar) = &entry.bar {
            bar.set_message(printable(label));
            if let Some(total) = total {
                bar.set_length(total);
            }
            bar.set_position(position);
            if is_whole {
                bar.finish_and_clear();
                tasks.remove(task);
            }
            return;
        }
        if percent >= entry.told_percent + PLAIN_STEP_PERCENT || (is_whole && entry.told_percent < 100) {
            entry.told_percent = percent;
            let line = format!("{} {percent} %", printable(label));
            drop(tasks);
            self.stderr(&line);
        }
    }

    /// Takes the bars away, before an answer's first word or an error.
    pub fn clear(&self) {
        for (_, task) in self.tasks().drain() {
            if let Some(bar) = task.bar {
                bar.finish_and_clear();
            }
        }
    }

    /// What a cancel stopped.
    pub fn receipt(&self, receipt: Option<&Receipt>) {
        self.clear();
        let Some(receipt) = receipt else {
            self.say("cancelled; the server is still cleaning up");
            return;
        };
        let mut parts = Vec::new();
        if receipt.processes_reaped > 0 {
            parts.push(format!("{} processes ended ({})", receipt.processes_reaped, receipt.containment));
        }
        if receipt.bytes_removed > 0 {
            parts.push(format!("{} MiB of files removed", receipt.bytes_removed >> 20));
        }
        if receipt.memory_returned_bytes > 0 {
            parts.push(format!("{} MiB of memory returned", receipt.memory_returned_bytes >> 20));
        }
        parts.push(format!("{} ms", receipt.ms));
        let word = if receipt.clean { "cancelled" } else { "cancelled, but not cleanly" };
        self.say(&format!("{word}: {}", parts.join(", ")));
        for survivor in &receipt.survivors {
            self.say(&format!("  still there: {} {}", survivor.pid, printable(&survivor.command)));
        }
    }
}

fn bar(total: Option<u64>, unit: Unit) -> ProgressBar {
    let template = match (unit, total) {
        (Unit::Bytes, Some(_)) => {
            "{msg}  {percent:>3} % {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}"
        }
        (Unit::Bytes, None) => "{msg}  {bytes}  {bytes_per_sec}",
        (_, Some(_)) => "{msg}  {percent:>3} % {wide_bar}",
        (_, None) => "{msg}  {pos}",
    };
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Text of others without control codes: a log line must not move our cursor.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

/// `3m12s`, for a time in milliseconds since the epoch.
pub fn ago(then_ms: u64) -> String {
    let seconds = crate::wire::fleet::now_ms().saturating_sub(then_ms) / 1000;
    match seconds {
        0..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// `98 MiB`, `1.2 GiB`.
pub fn size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes >= GIB {
        return format!("{:.1} GiB", bytes as f64 / GIB as f64);
    }
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_text_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\rc\td"), "a[2Jbc\td");
    }

    #[test]
    fn sizes_read_as_people_say_them() {
        assert_eq!(size(98 << 20), "98 MiB");
        assert_eq!(size(3 << 29), "1.5 GiB");
    }
}
