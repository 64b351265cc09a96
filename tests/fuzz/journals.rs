//! Journals of jobs, as a crash, a full disk or somebody's editor may leave them.

use super::fuzz;
use rbee::job::journal::{SUFFIX, parse};
use rbee::job::stream::{EventLog, Step};
use rbee::job::{Jobs, Key, Outcome};
use rbee::shutdown::Shutdown;
use rbee::wire::Failure;
use rbee::wire::job::{JobEvent, Receipt, Terminator, Unit};
use serde_json::{Value, json};

const WORDS: &[&str] = &[
    "\n",
    "{}\n",
    "{\"hologram\":{}}\n",
    "{\"left_out\":{\"seq\":3,\"count\":9,\"why\":\"\"}}\n",
    "{\"tokens\":{\"seq\":0,\"index\":0,\"text\":\"ü\",\"lengths\":[0,0,2]}}\n",
    "\"overtaken\":7,",
    "{\"end\":{\"state\":\"done\",\"at\":1,\"events\":9}}\n",
    "\"queued\"",
];

/// What the writer has written of real jobs.
fn samples() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let shutdown = Shutdown::new();
    let jobs = Jobs::open(dir.path().to_owned(), shutdown.clone());
    let outcomes = [
        Outcome::Done(json!({"text": "bees", "ms": 0.5})),
        Outcome::Failed(Failure::invalid("no").with(json!({"log": ["a"]}))),
        Outcome::Cancelled(Receipt::default()),
    ];
    runtime.block_on(async {
        for (number, outcome) in outcomes.into_iter().enumerate() {
            let key = Key::read(Some(&format!("key {number}")), b"{}").unwrap();
            let run = |job: rbee::job::Context| async move {
                job.narrate("begin", "\u{1f41d}");
                for index in 0..20 {
                    job.emit(JobEvent::Token { index, text: "蜂 ".into() });
                    let (task, label) = ("t".into(), "l".into());
                    job.emit(JobEvent::Progress {
                        task,
                        label,
                        position: index,
                        total: None,
                        unit: Unit::Items,
                        rate: None,
                    });
                }
                job.emit(JobEvent::Table { columns: vec!["c".into()], rows: vec![vec!["r".into()]] });
                outcome
            };
            jobs.start("sample", key, run).unwrap();
        }
        // Waits for the jobs, and for their journals.
        shutdown.finish(std::time::Duration::from_secs(60)).await;
    });
    let files = dir.path().read_dir().unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|suffix| suffix == SUFFIX));
    let mut samples: Vec<String> =
        files.map(|path| always_the_same(&std::fs::read_to_string(path).unwrap())).collect();
    assert_eq!(samples.len(), 3);
    samples.sort();
    samples.into_iter().map(String::into_bytes).collect()
}

/// With an id and times that do not change, so that a seed says all.
fn always_the_same(journal: &str) -> String {
    let lines: Vec<Value> = journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut same =
        journal.replace(lines[0]["job"]["job_id"].as_str().unwrap(), "01900000-0000-7000-8000-000000000000");
    for time in [&lines[0]["job"]["created_at"], &lines[lines.len() - 1]["end"]["at"]] {
        same = same.replace(&time.to_string(), "1790000000000");
    }
    same
}

#[test]
fn journals_read_or_are_refused_and_what_is_read_holds_together() {
    let samples = samples();
    for sample in &samples {
        assert!(parse(sample).unwrap().end.is_some(), "{}", sample.escape_ascii());
    }
    let mut read = 0;
    fuzz("journals", &samples, WORDS, |input, _| {
        let Ok(journal) = parse(input) else { return };
        read += 1;
        assert!(journal.whole <= input.len());
        assert!(journal.events.len() <= input.len(), "an event has a byte");
        let again = parse(&input[..journal.whole]).unwrap();
        assert_eq!((&again.events, &again.end, again.next), (&journal.events, &journal.end, journal.next));
        // Its events are told in order, each gap is counted, and there is an end to it.
        let (count, next) = (journal.events.len(), journal.next);
        let terminator = journal.end.as_ref().map_or(Terminator::Done, |end| end.terminator());
        let mut reader = EventLog::ended(journal.events, next, terminator).reader(0);
        let (mut at, mut seen) = (0, 0);
        loop {
            match reader.ready().expect("a log that has ended always has a next step") {
                Step::Event(seq, _) => {
                    assert!(seq >= at, "{seq} after {at}");
                    (at, seen) = (seq + 1, seen + 1);
                }
                Step::Missed { first, count } => {
                    assert_eq!(first, at);
                    at += count;
                }
                Step::End(_) => break,
            }
        }
        assert_eq!((at, seen), (next, count));
    });
    assert!(read > 1_000, "mutations that still read: {read}");
}
