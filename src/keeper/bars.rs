//! Progress: a bar a task on a terminal, now and then a plain line elsewhere. Speed and time left are the job's own words: a
//! late reader sees an hour's events in a moment, and must not take that for speed.

use super::render::{printable, size};
use crate::wire::job::Unit;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::HashMap;

/// Bars at once; tasks beyond it are not shown.
const BARS_MAX: usize = 32;
/// Off a terminal a bar becomes a line for every such step of percent, or for every doubling where the total is unknown.
const PLAIN_STEP_PERCENT: u64 = 10;
const PLAIN_FIRST_BYTES: u64 = 1 << 20;

/// One task's progress, as an event tells it.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'e> {
    pub task: &'e str,
    pub label: &'e str,
    pub position: u64,
    pub total: Option<u64>,
    pub unit: Unit,
    /// Units a second.
    pub rate: Option<f64>,
}

impl Progress<'_> {
    fn is_whole(&self) -> bool {
        self.total.is_some_and(|total| self.position >= total)
    }

    fn percent(&self) -> Option<u64> {
        let total = self.total?;
        let percent = u128::from(self.position) * 100 / u128::from(total.max(1));
        Some(if total == 0 { 100 } else { percent.min(100) as u64 })
    }

    /// `1.2 GiB of 4.0 GiB, 35 MiB/s, 1m20s left`, as much of it as is known.
    pub fn figures(&self) -> String {
        let amount = |amount: u64| match self.unit {
            Unit::Bytes => size(amount),
            Unit::Percent => format!("{amount} %"),
            Unit::Items => amount.to_string(),
        };
        let mut parts = match (self.unit, self.total) {
            // Said by the bar and by the line's own percent.
            (Unit::Percent, Some(_)) => Vec::new(),
            (_, Some(total)) => vec![format!("{} of {}", amount(self.position), amount(total))],
            (_, None) => vec![amount(self.position)],
        };
        let rate = self.rate.filter(|rate| rate.is_finite() && *rate > 0.0);
        if let Some(rate) = rate {
            match self.unit {
                Unit::Bytes => parts.push(format!("{}/s", size(rate as u64))),
                Unit::Items => parts.push(format!("{rate:.1}/s")),
                Unit::Percent => {}
            }
            if let Some(left) =
                self.total.map(|total| total.saturating_sub(self.position)).filter(|left| *left > 0)
            {
                parts.push(format!("{} left", duration((left as f64 / rate).ceil() as u64)));
            }
        }
        parts.join(", ")
    }
}

/// `45s`, `3m12s`, `2h5m`, `3d4h`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// All tasks of a command.
pub struct Bars {
    draw: MultiProgress,
    is_drawn: bool,
    tasks: HashMap<String, Task>,
}

#[derive(Default)]
struct Task {
    bar: Option<ProgressBar>,
    told_percent: u64,
    told_position: u64,
}

impl Bars {
    pub fn new(is_drawn: bool) -> Self {
        let target = if is_drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Bars { draw: MultiProgress::with_draw_target(target), is_drawn, tasks: HashMap::new() }
    }

    /// What draws, for writing between the bars.
    pub fn draw(&self) -> &MultiProgress {
        &self.draw
    }

    /// Takes an event in. Off a terminal: the line to write, if it is time for one.
    pub fn see(&mut self, progress: Progress<'_>) -> Option<String> {
        if self.tasks.len() >= BARS_MAX && !self.tasks.contains_key(progress.task) {
            return None;
        }
        let task = self.tasks.entry(progress.task.to_owned()).or_default();
        if self.is_drawn {
            let bar = task.bar.get_or_insert_with(|| self.draw.add(bar(progress.total)));
            if let Some(total) = progress.total {
                bar.set_length(total);
            }
            bar.set_message(printable(progress.label));
            bar.set_prefix(progress.figures());
            bar.set_position(progress.position);
            if progress.is_whole() {
                bar.finish_and_clear();
                self.tasks.remove(progress.task);
            }
            return None;
        }
        task.line(progress)
    }

    /// Takes the bars away.
    pub fn clear(&mut self) {
        for (_, task) in self.tasks.drain() {
            if let Some(bar) = task.bar {
                bar.finish_and_clear();
            }
        }
    }
}

impl Task {
    fn line(&mut self, progress: Progress<'_>) -> Option<String> {
        let label = printable(progress.label);
        let figures = progress.figures();
        let Some(percent) = progress.percent() else {
            let first = if progress.unit == Unit::Bytes { PLAIN_FIRST_BYTES } else { 1 };
            if progress.position < first.max(self.told_position.saturating_mul(2)) {
                return None;
            }
            self.told_position = progress.position;
            return Some(format!("{label}  {figures}"));
        };
        let is_due = percent >= self.told_percent + PLAIN_STEP_PERCENT;
        let is_end = progress.is_whole() && self.told_percent < 100;
        if !is_due && !is_end {
            return None;
        }
        self.told_percent = percent;
        Some(format!("{label} {percent} %  {figures}").trim_end().to_owned())
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{msg}  {percent:>3} % {wide_bar} {prefix}",
        None => "{spinner} {msg}  {prefix}",
    };
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(position: u64, total: Option<u64>, rate: Option<f64>) -> Progress<'static> {
        Progress { task: "t", label: "model", position, total, unit: Unit::Bytes, rate }
    }

    #[test]
    fn figures_tell_what_is_known_and_nothing_else() {
        let gib = 1_u64 << 30;
        let whole = bytes(gib, Some(4 * gib), Some(38.4 * f64::from(1 << 20)));
        assert_eq!(whole.figures(), "1.0 GiB of 4.0 GiB, 38.4 MiB/s, 1m20s left");
        assert_eq!(bytes(512, None, None).figures(), "512 B");
        assert_eq!(bytes(5, Some(10), Some(f64::NAN)).figures(), "5 B of 10 B");
        assert_eq!(bytes(10, Some(10), Some(1e308)).figures().matches("left").count(), 0);
        let items = Progress { unit: Unit::Items, ..bytes(3, Some(12), Some(1.5)) };
        assert_eq!(items.figures(), "3 of 12, 1.5/s, 6s left");
        assert_eq!(Progress { unit: Unit::Percent, ..bytes(3, Some(100), None) }.figures(), "");
        assert_eq!(Progress { unit: Unit::Percent, ..bytes(3, None, None) }.figures(), "3 %");
    }

    #[test]
    fn off_a_terminal_progress_is_a_few_plain_lines() {
        let mut bars = Bars::new(false);
        let lines: Vec<String> = (0..=1000).filter_map(|n| bars.see(bytes(n, Some(1000), None))).collect();
        assert_eq!(lines.len(), 10, "{lines:?}");
        assert_eq!(
            (lines[0].as_str(), lines[9].as_str()),
            ("model 10 %  100 B of 1000 B", "model 100 %  1000 B of 1000 B")
        );
        let mut bars = Bars::new(false);
        let unknown = (0..1_000_000).filter_map(|n| bars.see(bytes(n << 10, None, None))).count();
        assert_eq!(unknown, 10, "1 MiB to 512 MiB, doubling");
        assert!(bars.see(bytes(u64::MAX, Some(0), None)).unwrap().contains("100 %"));
    }

    #[test]
    fn tasks_without_end_do_not_grow() {
        let mut bars = Bars::new(false);
        for n in 0..1000 {
            bars.see(Progress { task: &n.to_string(), ..bytes(1, Some(100), None) });
        }
        assert!(bars.tasks.len() <= BARS_MAX);
    }
}
