//! Bytes as they arrive, told often enough for a bar and seldom enough for a log.

use crate::wire::job::{JobEvent, Unit};
use std::time::{Duration, Instant};

/// Who is told. Called on the task that works, so it should be quick.
pub type Events<'a> = &'a (dyn Fn(JobEvent) + Send + Sync);

/// At most ten a second.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// The time over which speed is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(5);

pub struct Meter<'a> {
    events: Events<'a>,
    task: &'static str,
    label: String,
    total: Option<u64>,
    told: Option<Instant>,
    /// Where speed is measured from; moved up as the window passes.
    from: (Instant, u64),
    next_from: (Instant, u64),
}

impl<'a> Meter<'a> {
    /// Of a download.
    pub fn new(events: Events<'a>, label: &str, position: u64, total: Option<u64>) -> Self {
        Meter::of("download", events, label, position, total)
    }

    /// Bytes already there when the work starts do not count as speed.
    pub fn of(
        task: &'static str,
        events: Events<'a>,
        label: &str,
        position: u64,
        total: Option<u64>,
    ) -> Self {
        let start = (Instant::now(), position);
        let mut meter =
            Meter { events, task, label: label.into(), total, told: None, from: start, next_from: start };
        meter.tell(position, start.0);
        meter
    }

    /// A server has told how much there is.
    pub fn set_total(&mut self, total: Option<u64>) {
        self.total = total;
    }

    pub fn at(&mut self, position: u64) {
        let now = Instant::now();
        if Some(position) == self.total || self.told.is_none_or(|told| now - told >= TELL_EVERY) {
            self.tell(position, now);
        }
    }

    fn tell(&mut self, position: u64, now: Instant) {
        if now - self.next_from.0 >= RATE_WINDOW || position < self.from.1 {
            self.from = if position < self.from.1 { (now, position) } else { self.next_from };
            self.next_from = (now, position);
        }
        let seconds = (now - self.from.0).as_secs_f64();
        let rate = (seconds > 0.0).then(|| (position - self.from.1) as f64 / seconds);
        self.told = Some(now);
        (self.events)(JobEvent::Progress {
            task: self.task.into(),
            label: self.label.clone(),
            position,
            total: self.total,
            unit: Unit::Bytes,
            rate,
        });
    }
}

/// `512 B`, `98 MiB`, `1.2 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1 << 10 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    // A tenth says something only of small numbers; of gibibytes always.
    let is_round = (value - value.round()).abs() < 0.05 && unit < 2;
    if is_round || (value >= 100.0 && unit < 2) {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_million_steps_are_told_as_a_few_and_the_last_always() {
        let told = Mutex::new(Vec::new());
        let events = |event: JobEvent| {
            if let JobEvent::Progress { position, .. } = event {
                told.lock().unwrap().push(position);
            }
        };
        let start = Instant::now();
        let mut meter = Meter::new(&events, "m", 5, Some(1_000_000));
        (6..=1_000_000).for_each(|position| meter.at(position));
        let most = 3 + start.elapsed().as_millis() as usize / TELL_EVERY.as_millis() as usize;
        let told = told.into_inner().unwrap();
        assert!(told.len() <= most, "{}", told.len());
        assert_eq!((told[0], *told.last().unwrap()), (5, 1_000_000));
    }

    #[test]
    fn sizes_read_as_people_say_them() {
        let told = [0, 1, 1023, 1024, 1536, 98 << 20, 300_000_000, 3 << 29, (1 << 30) - 1, 1 << 42].map(size);
        let expected = [
            "0 B", "1 B", "1023 B", "1 KiB", "1.5 KiB", "98 MiB", "286 MiB", "1.5 GiB", "1.0 GiB", "4.0 TiB",
        ];
        assert_eq!(told, expected);
    }
}
