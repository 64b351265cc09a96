//! /metrics of queen and hive, read as strictly as Prometheus reads it.

use crate::support::fleet::CHAT;
use crate::support::node::{Daemon, Place, alone, chat, until};
use std::collections::{BTreeMap, HashSet};

/// A sample's name and labels, as written, to its value.
type Samples = BTreeMap<String, f64>;

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `name="value",…` to pairs; panics at whatever the format does not allow.
fn labels(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{text}"));
        assert!(is_name(name), "{text}");
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next().unwrap_or_else(|| panic!("a quote is open: {text}")) {
                (at, '"') => break at,
                (_, '\\') => match letters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, c @ ('\\' | '"'))) => value.push(c),
                    other => panic!("{other:?} in {text}"),
                },
                (_, c) => value.push(c),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    labels
}

/// The text format, without what it leaves to taste: each family once, its help and type before its samples, no sample
/// twice, counters called so, histograms whole.
fn read(text: &str) -> Samples {
    assert!(text.ends_with('\n'));
    let mut families: BTreeMap<String, String> = BTreeMap::new();
    let mut helped = HashSet::new();
    let mut samples = Samples::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').unwrap();
            assert!(is_name(name) && !words.is_empty() && helped.insert(name.to_owned()), "{line}");
            current = name.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind) && name == current, "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
        } else {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = key.split('{').next().unwrap();
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let is_histogram = families.get(&current).is_some_and(|kind| kind == "histogram");
            let family = if is_histogram { of_histogram.unwrap_or(name) } else { name };
            assert!(family == current && families.contains_key(&current), "{line} is not of {current}");
            if let Some(inner) = key[name.len()..].strip_prefix('{') {
                let pairs = labels(inner.strip_suffix('}').unwrap());
                let names: HashSet<&String> = pairs.iter().map(|(name, _)| name).collect();
                assert_eq!(names.len(), pairs.len(), "{line}");
            }
            let value: f64 = value.parse().unwrap();
            assert!(value.is_finite() && value >= 0.0, "{line}");
            assert!(samples.insert(key.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    for (name, _) in families.iter().filter(|(_, kind)| *kind == "histogram") {
        let bounds = |key: &String| {
            let bound = key.strip_prefix(&format!("{name}_bucket{{le=\""))?.strip_suffix("\"}")?.to_owned();
            Some(if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() })
        };
        let mut buckets: Vec<(f64, f64)> =
            samples.iter().filter_map(|(key, value)| Some((bounds(key)?, *value))).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, samples[&format!("{name}_count")])), "{name}");
        assert!(samples.contains_key(&format!("{name}_sum")));
    }
    samples
}

#[track_caller]
fn scrape(daemon: &Daemon) -> Samples {
    let answer = daemon.get("/metrics");
    assert_eq!(answer.status, 200);
    let content_type = answer.headers["content-type"].to_str().unwrap();
    assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
    read(std::str::from_utf8(&answer.body).unwrap())
}

#[test]
fn queen_and_hive_count_what_they_have_and_what_they_did() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let before = scrape(&queen);
        assert_eq!((before["rbee_hives{state=\"online\"}"], before["rbee_tokens_total"]), (0.0, 0.0));
        let hive = Daemon::start(&place, "hive serve", &["--name", "one", "--queen", &queen.url()]);
        queen.has_hives(1);
        let model = queen.register(&place, None);
        assert!(queen.stream(CHAT, &chat(&model, 5, true)).rest().is_clean());
        assert_eq!(queen.post(CHAT, &chat("nobody/has-this", 1, false)).status, 404);
        // What a client makes up is no label.
        for number in 0..50 {
            assert_eq!(queen.get(&format!("/made/up/{number}")).status, 404);
            assert_eq!(queen.get(&format!("/v1/models/made-up-{number}")).status, 404);
        }

        let told = until("the answer is counted", || {
            let told = scrape(&queen);
            let is_idle = told["rbee_slots_busy"] == 0.0 && told["rbee_requests_in_flight"] == 0.0;
            if is_idle && told["rbee_tokens_total"] > 0.0 { Ok(told) } else { Err(format!("{told:?}")) }
        });
        let value = |key: &str| *told.get(key).unwrap_or_else(|| panic!("no {key} in {told:#?}"));
        // A token that is half a character makes no piece.
        assert!((1.0..=5.0).contains(&value("rbee_tokens_total")), "{told:#?}");
        assert_eq!(value("rbee_first_piece_seconds_count"), 1.0);
        assert_eq!(value("rbee_queue_length"), 0.0);
        assert_eq!(value("rbee_hives{state=\"online\"}"), 1.0);
        assert_eq!(value("rbee_workers{state=\"ready\"}"), 1.0);
        assert_eq!(value("rbee_slots"), 4.0);
        assert_eq!(value("rbee_jobs{state=\"done\"}"), 1.0);
        let requests = |route: &str, status: u16| {
            value(&format!("rbee_requests_total{{route=\"{route}\",status=\"{status}\"}}"))
        };
        assert_eq!((requests(CHAT, 200), requests(CHAT, 404)), (1.0, 1.0));
        assert_eq!((requests("other", 404), requests("/v1/models/{id*}", 404)), (50.0, 50.0));
        assert!(!told.keys().any(|key| key.contains("made")), "{told:#?}");

        let told = scrape(&hive);
        let value = |key: &str| *told.get(key).unwrap_or_else(|| panic!("no {key} in {told:#?}"));
        assert_eq!(value("rbee_workers{state=\"ready\"}"), 1.0);
        assert_eq!(value("rbee_models"), 1.0);
        assert_eq!(value("rbee_model_bytes"), std::fs::metadata(place.model()).unwrap().len() as f64);
        assert!(value("rbee_device_memory_bytes{device=\"CPU-0\"}") > 0.0);
        assert!(value("rbee_worker_memory_bytes") > 0.0);
        assert_eq!(value("rbee_jobs{state=\"done\"}"), 2.0, "a download and a spawn");
    });
}
