//! Numbers for Prometheus, in its text format. Labels come from this program alone, never from a client: their sets are
//! bounded. Written out here because the crates for it take 100 KiB of the program for what is a few lines.

use crate::http::router::Route;
use crate::http::{Response, reply};
use crate::wire::Failure;
use http::header::{CONTENT_TYPE, HeaderValue};
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
/// The route of what no table has.
const OTHER: &str = "other";

/// A page of metrics being written.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// A counter's name ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    pub fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    pub fn histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let out = &mut self.0;
        let mut below = 0;
        for (bound, count) in Histogram::BOUNDS_MS.iter().zip(&histogram.counts) {
            below += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {below}", *bound as f64 / 1e3);
        }
        let all = below + histogram.counts[Histogram::BOUNDS_MS.len()].load(Ordering::Relaxed);
        let sum = histogram.sum_ms.load(Ordering::Relaxed) as f64 / 1e3;
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {all}\n{name}_sum {sum}\n{name}_count {all}");
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { out: &mut self.0, name }
    }

    pub fn answer(self) -> Response {
        let mut response = reply::text(self.0);
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
        response
    }
}

#[derive(Debug)]
pub struct Family<'p> {
    out: &'p mut String,
    name: &'static str,
}

impl Family<'_> {
    pub fn is(self, value: impl Display) {
        let _ = writeln!(self.out, "{} {value}", self.name);
    }

    pub fn with(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let escaped = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
        let labels: Vec<String> =
            labels.iter().map(|(name, text)| format!("{name}=\"{}\"", escaped(text))).collect();
        let _ = writeln!(self.out, "{}{{{}}} {value}", self.name, labels.join(","));
    }
}

/// How long something took, by a few bounds.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; Histogram::BOUNDS_MS.len() + 1],
    sum_ms: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum_ms: AtomicU64::new(0) }
    }
}

impl Histogram {
    const BOUNDS_MS: [u64; 10] = [1, 5, 25, 100, 500, 1_000, 5_000, 15_000, 60_000, 300_000];

    pub fn observe(&self, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let place = Histogram::BOUNDS_MS.partition_point(|bound| *bound < ms);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

/// Answers by route and status: as many as a table has routes, times the statuses there are.
#[derive(Debug, Default)]
pub struct Requests(Mutex<BTreeMap<(&'static str, u16), u64>>);

impl Requests {
    /// Counts an answer; `to` is the endpoint that was found, if one was.
    pub fn count<E: PartialEq>(
        &self,
        table: &'static [Route<E>],
        to: Option<E>,
        answer: &Result<Response, Failure>,
    ) {
        let status = match answer {
            Ok(response) => response.status().as_u16(),
            Err(failure) => failure.code.status(),
        };
        let route =
            to.and_then(|to| table.iter().find(|route| route.to == to)).map_or(OTHER, |route| route.path);
        let mut counts = self.0.lock().expect("no holder of the counts panics");
        *counts.entry((route, status)).or_default() += 1;
    }

    pub fn write(&self, page: &mut Page) {
        let mut family = page.counter("rbee_requests_total", "Answers by route and status.");
        for ((route, status), count) in self.0.lock().expect("no holder of the counts panics").iter() {
            family.with(&[("route", route), ("status", &status.to_string())], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let histogram = Histogram::default();
        for ms in [0, 1, 2, 70_000, 400_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut page = Page::default();
        page.histogram("h", "what", &histogram);
        for line in
            ["h_bucket{le=\"0.001\"} 2", "h_bucket{le=\"0.005\"} 3", "h_bucket{le=\"300\"} 4", "h_count 5"]
        {
            assert!(page.0.contains(line), "{line} in {}", page.0);
        }
        assert!(page.0.contains("h_bucket{le=\"+Inf\"} 5\nh_sum 470.003\n"), "{}", page.0);
    }

    #[test]
    fn a_label_cannot_end_its_quotes() {
        let mut page = Page::default();
        page.gauge("g", "what").with(&[("device", "a\"b\\c\nd")], 1);
        assert!(page.0.ends_with("g{device=\"a\\\"b\\\\c\\nd\"} 1\n"), "{}", page.0);
    }
}
