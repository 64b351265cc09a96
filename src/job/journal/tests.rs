use super::*;
use crate::job::stream::{EventLog, Reader, Step};
use crate::job::{Job, Jobs, Key, Outcome};
use crate::shutdown::Shutdown;
use crate::wire::fleet::now_ms;
use crate::wire::job::{JobEvent, JobId, JobState, Receipt, Terminator, Unit};
use crate::wire::{Code, Failure};
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

fn open(dir: &Path) -> Jobs {
    Jobs::open(dir.to_owned(), Shutdown::new())
}

fn log_line(line: impl Into<String>) -> JobEvent {
    JobEvent::Log { stream: "stdout".into(), line: line.into() }
}

fn progress(task: &str, position: u64) -> JobEvent {
    let label = "model".into();
    JobEvent::Progress { task: task.into(), label, position, total: Some(9), unit: Unit::Bytes, rate: None }
}

fn token(index: u64, text: &str) -> JobEvent {
    JobEvent::Token { index, text: text.into() }
}

/// Runs a job that emits these events, until its journal is whole.
async fn run(jobs: &Jobs, events: Vec<JobEvent>, outcome: Outcome) -> Arc<Job> {
    let handler = |ctx: crate::job::Context| async move {
        events.into_iter().for_each(|event| ctx.emit(event));
        outcome
    };
    let job = jobs.start("test", None, handler).unwrap();
    job.ended().await;
    written(&job).await;
    job
}

async fn written(job: &Job) {
    let Some(crate::job::Journalled::Writing(entry)) = &job.journal else { panic!("no journal") };
    entry.ended().await;
    assert!(entry.is_whole());
}

async fn all(mut reader: Reader) -> Vec<Step> {
    let mut steps = Vec::new();
    loop {
        steps.push(reader.next().await);
        if let Some(Step::End(_)) = steps.last() {
            return steps;
        }
    }
}

async fn steps(jobs: &Jobs, id: JobId, from: u64) -> Vec<Step> {
    let job = jobs.get(&id.to_string()).unwrap();
    all(jobs.reader(&job, from).await.unwrap()).await
}

fn file(dir: &Path, id: JobId) -> std::path::PathBuf {
    dir.join(format!("{id}.{SUFFIX}"))
}

#[tokio::test]
async fn an_ended_job_is_told_the_same_after_a_restart_from_any_event() {
    let dir = tempfile::tempdir().unwrap();
    let mut events =
        vec![JobEvent::narrate("begin", "ü\n\u{1f41d}"), token(0, "a"), token(1, "ß\n"), token(2, "")];
    events.extend([log_line("x"), token(3, "b")]);
    events.push(JobEvent::Table { columns: vec!["c".into()], rows: vec![vec!["r".into()]] });
    let jobs = open(dir.path());
    let job = run(&jobs, events, Outcome::Done(json!({"text": "aßb", "n": 1.5}))).await;
    let before = steps(&jobs, job.id, 0).await;
    assert_eq!(file(dir.path(), job.id).metadata().unwrap().mode() & 0o777, 0o600);
    let again = open(dir.path());
    assert_eq!(steps(&again, job.id, 0).await, before);
    for from in 0..before.len() + 2 {
        assert_eq!(
            steps(&again, job.id, from as u64).await,
            steps(&jobs, job.id, from as u64).await,
            "{from}"
        );
    }
    let record = again.record(&again.get(&job.id.to_string()).unwrap()).await.unwrap();
    assert_eq!(record, jobs.record(&job).await.unwrap());
    assert_eq!((record.state, record.result), (JobState::Done, Some(json!({"text": "aßb", "n": 1.5}))));
}

#[tokio::test]
async fn every_way_to_end_survives() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = open(dir.path());
    let failure = Failure::new(Code::BuildFailed, "phase build").with(json!({"log": ["a"]}));
    let failed = run(&jobs, vec![], Outcome::Failed(failure.clone())).await;
    let cancelled = jobs
        .start("wait", None, |ctx| async move {
            ctx.token().cancelled().await;
            Outcome::Cancelled(Receipt { processes_reaped: 8, ..Receipt::default() })
        })
        .unwrap();
    tokio::task::yield_now().await;
    jobs.cancel(&cancelled.id.to_string()).await.unwrap();
    written(&cancelled).await;
    let again = open(dir.path());
    assert_eq!(
        steps(&again, failed.id, 0).await,
        [Step::Event(0, JobEvent::Error(failure)), Step::End(Terminator::Error("phase build".into()))]
    );
    assert_eq!(steps(&again, cancelled.id, 0).await, [Step::End(Terminator::Cancelled)]);
    // A cancel that is repeated gets the receipt of the first, whoever answers.
    let id = cancelled.id.to_string();
    assert_eq!(again.cancel(&id).await.unwrap(), jobs.cancel(&id).await.unwrap());
    assert_eq!(again.cancel(&failed.id.to_string()).await.unwrap_err().details["state"], "failed");
    let ids: Vec<JobId> = again.list().iter().map(|record| record.job_id).collect();
    assert_eq!(ids, [cancelled.id, failed.id], "the newest first");
}

/// A journal as a daemon that was killed leaves it.
fn killed(dir: &Path, lines: &str, torn: &str) -> JobId {
    let id = JobId::fresh();
    let head = json!({"job": {"version": 1, "job_id": id, "operation": "infer", "created_at": now_ms()}});
    std::fs::write(file(dir, id), format!("{head}\n{lines}{torn}")).unwrap();
    id
}

#[tokio::test]
async fn a_job_without_an_end_is_interrupted_and_its_torn_line_cut() {
    let dir = tempfile::tempdir().unwrap();
    let event = "{\"event\":{\"seq\":0,\"event\":\"log\",\"data\":{\"stream\":\"stdout\",\"line\":\"l\"}}}\n";
    // A line that reads and cannot be: nothing of it may be taken (found by the fuzzer).
    let half_right = "{\"tokens\":{\"seq\":1,\"index\":0,\"text\":\"ab\",\"lengths\":[1,2]}}\n";
    for torn in ["", "{\"event\":{\"se", "\0\0\0\0", "{\"end\":{\"state\":\"done\"", "garbage\n", half_right]
    {
        let id = killed(dir.path(), event, torn);
        for life in 0..2 {
            let jobs = open(dir.path());
            let told = steps(&jobs, id, 0).await;
            assert_eq!(told[0], Step::Event(0, log_line("l")), "{torn:?} {life}");
            let Step::Event(1, JobEvent::Error(failure)) = &told[1] else { panic!("{torn:?} {told:?}") };
            assert_eq!(failure.details["state"], "interrupted");
            assert_eq!(told[2], Step::End(Terminator::Error(failure.message.clone())));
            assert_eq!(jobs.get(&id.to_string()).unwrap().summary().state, JobState::Interrupted);
            // Who had seen more of the job than the journal has still learns how it ended.
            assert_eq!(steps(&jobs, id, 40).await, told[1..]);
        }
    }
}

#[test]
fn an_end_that_forgets_events_is_none() {
    let head = json!({"job": {"version": 1, "job_id": JobId::fresh(), "operation": "t", "created_at": 1}});
    let event = "{\"event\":{\"seq\":4,\"event\":\"result\",\"data\":1}}\n";
    let ends =
        |events| format!("{head}\n{event}{{\"end\":{{\"state\":\"done\",\"at\":1,\"events\":{events}}}}}\n");
    assert!(parse(ends(5).as_bytes()).unwrap().end.is_some());
    let parsed = parse(ends(4).as_bytes()).unwrap();
    assert_eq!((parsed.end, parsed.next, parsed.events.len()), (None, 5, 1));
}

#[tokio::test]
async fn what_does_not_parse_is_set_aside_and_nothing_else_is_harmed() {
    let dir = tempfile::tempdir().unwrap();
    let good = killed(dir.path(), "", "");
    let newer = killed(dir.path(), "{\"hologram\":{\"seq\":0}}\n", "");
    let twice = "{\"event\":{\"seq\":3,\"event\":\"result\",\"data\":1}}\n".repeat(2) + "{}\n";
    let broken = [
        killed(dir.path(), "garbage\n{\"left_out\":{\"seq\":0,\"count\":1,\"why\":\"\"}}\n", "torn"),
        killed(dir.path(), &twice, ""),
        killed(dir.path(), "{\"tokens\":{\"seq\":0,\"index\":0,\"text\":\"ü\",\"lengths\":[1,1]}}\n", "\n\n"),
        killed(
            dir.path(),
            "{\"left_out\":{\"seq\":9,\"count\":18446744073709551615,\"why\":\"\"}}\n",
            "\n\n",
        ),
    ];
    let empty = JobId::fresh();
    std::fs::write(file(dir.path(), empty), "").unwrap();
    let huge = JobId::fresh();
    std::fs::File::create(file(dir.path(), huge)).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
    let link = JobId::fresh();
    std::os::unix::fs::symlink("/dev/zero", file(dir.path(), link)).unwrap();
    std::fs::write(dir.path().join("notes.txt"), "a person's").unwrap();
    let moved = JobId::fresh();
    std::fs::copy(file(dir.path(), good), file(dir.path(), moved)).unwrap();
    let jobs = open(dir.path());
    let ids: Vec<JobId> = jobs.list().iter().map(|record| record.job_id).collect();
    assert_eq!((ids.len(), ids.contains(&good), ids.contains(&newer)), (2, true, true));
    for id in broken.into_iter().chain([empty, huge, link, moved]) {
        assert!(file(dir.path(), id).with_extension(BROKEN_SUFFIX).symlink_metadata().is_ok(), "{id}");
    }
    assert!(dir.path().join("notes.txt").exists());
}

#[tokio::test]
async fn keys_survive_with_their_journals() {
    let dir = tempfile::tempdir().unwrap();
    let key = |body: &str| Key::read(Some("k"), body.as_bytes()).unwrap();
    let start =
        |jobs: &Jobs, body: &str| jobs.start("once", key(body), |_| async { Outcome::Done(Value::Null) });
    let jobs = open(dir.path());
    let first = start(&jobs, "{}").unwrap();
    written(&first).await;
    let again = open(dir.path());
    assert_eq!(start(&again, "{}").unwrap().id, first.id);
    assert_eq!(start(&again, "{ }").unwrap_err().code, Code::Conflict);
}

#[tokio::test]
async fn a_day_old_job_goes_at_the_start_and_with_a_new_job() {
    let dir = tempfile::tempdir().unwrap();
    let old = killed(dir.path(), "", "");
    let path = file(dir.path(), old);
    let day = KEPT_FOR.as_millis() as u64;
    let end = |at| format!("{}\n", json!({"end": {"state": "done", "at": at, "events": 0}}));
    let head = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{head}{}", end(now_ms() - day - 1))).unwrap();
    assert!(open(dir.path()).list().is_empty());
    assert!(!path.exists());
    // Nearly a day old at the start; a day old when the next job but one comes.
    std::fs::write(&path, format!("{head}{}", end(now_ms() - day + 100))).unwrap();
    let jobs = open(dir.path());
    assert_eq!(jobs.list().len(), 1);
    while jobs.list().iter().any(|record| record.job_id == old) {
        run(&jobs, vec![], Outcome::Done(Value::Null)).await;
    }
    drop(jobs);
    while path.exists() {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_journal_keeps_its_head_tells_the_gap_and_has_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = open(dir.path());
    // More than a journal holds, less than memory does.
    let events: Vec<JobEvent> = (0..60).map(|n| log_line(format!("{n} {}", "x".repeat(100 << 10)))).collect();
    let job = run(&jobs, events, Outcome::Done(json!("whole"))).await;
    assert!(file(dir.path(), job.id).metadata().unwrap().len() <= JOURNAL_BYTES_MAX + 4096);
    let told = steps(&open(dir.path()), job.id, 0).await;
    let Some(Step::Missed { first, count }) = told.get(told.len() - 3) else { panic!("{}", told.len()) };
    assert_eq!((first + count, *first as usize), (60, told.len() - 3));
    assert!((30..41).contains(first), "{first}");
    assert_eq!(told[told.len() - 2], Step::Event(60, JobEvent::Result(json!("whole"))));
}

#[tokio::test]
async fn tokens_share_a_line_and_progress_that_was_overtaken_goes() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = open(dir.path());
    let mut events: Vec<JobEvent> = (0..500).map(|n| token(n, "bee ")).collect();
    events.extend((0..100).map(|n| progress("a", n)));
    events.extend([progress("b", 1), progress("a", 100)]);
    let job = run(&jobs, events, Outcome::Done(Value::Null)).await;
    let text = std::fs::read_to_string(file(dir.path(), job.id)).unwrap();
    assert!(
        text.lines().count() < 20 && text.len() < 6_000,
        "{} lines, {} bytes",
        text.lines().count(),
        text.len()
    );
    let told = steps(&open(dir.path()), job.id, 0).await;
    assert!(!told.iter().any(|step| matches!(step, Step::Missed { .. })), "what was overtaken is not missed");
    assert_eq!(told[499], Step::Event(499, token(499, "bee ")));
    let seen: Vec<&Step> = told.iter().filter(|step| matches!(step, Step::Event(500.., _))).collect();
    assert_eq!(seen[seen.len() - 2], &Step::Event(601, progress("a", 100)));
}

#[tokio::test]
async fn events_of_ended_jobs_leave_memory_and_are_read_from_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = open(dir.path());
    let big = || (0..30).map(|n| log_line(format!("{n}{}", "x".repeat(100 << 10)))).collect();
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(run(&jobs, big(), Outcome::Done(json!(7))).await.id);
    }
    run(&jobs, vec![], Outcome::Done(Value::Null)).await;
    let ended = ids.iter().map(|id| jobs.get(&id.to_string()).unwrap());
    let bytes: usize = ended.map(|job| job.memory_bytes()).sum();
    assert!(bytes <= crate::job::table::ENDED_BYTES_MAX, "{bytes}");
    let oldest = jobs.get(&ids[0].to_string()).unwrap();
    assert_eq!(oldest.memory_bytes(), 0);
    assert_eq!(steps(&jobs, ids[0], 0).await.len(), 32);
    assert_eq!(jobs.record(&oldest).await.unwrap().result, Some(json!(7)));
}

#[tokio::test]
async fn a_disk_that_refuses_costs_the_journal_and_never_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = open(dir.path());
    std::fs::remove_dir(dir.path()).unwrap();
    let job = jobs.start("test", None, |_| async { Outcome::Done(json!(1)) }).unwrap();
    job.recorded().await;
    job.ended().await;
    assert_eq!(steps(&jobs, job.id, 0).await.len(), 2);
    let nowhere = Jobs::open("/proc/nowhere".into(), Shutdown::new());
    let job = nowhere.start("test", None, |_| async { Outcome::Done(json!(1)) }).unwrap();
    job.ended().await;
    assert_eq!(nowhere.list().len(), 1);
}

#[test]
fn a_full_log_that_the_disk_could_not_follow_is_a_gap() {
    let log = EventLog::default();
    let count = crate::job::stream::EVENTS_KEPT_MAX as u64 + 100;
    let dir = tempfile::tempdir().unwrap();
    let (id, at) = (JobId::fresh(), now_ms());
    (0..count).for_each(|n| log.push(log_line(n.to_string())));
    log.push(JobEvent::Result(Value::Null));
    let journal = Journal::start(dir.path().to_owned()).unwrap();
    let head =
        Head { version: VERSION, job_id: id, operation: "t".into(), created_at: at, number: 1, key: None };
    let entry = journal.enter(head, log.clone()).unwrap();
    let end = End { state: JobState::Done, at, events: count + 1, error: None, receipt: None };
    entry.end(end, &log, Terminator::Done);
    drop(journal);
    while !entry.is_whole() {
        std::thread::yield_now();
    }
    let mut reader = load(dir.path(), id).unwrap().log.reader(0);
    assert_eq!(reader.ready(), Some(Step::Missed { first: 0, count: 101 }));
    assert_eq!(reader.ready(), Some(Step::Event(101, log_line("101"))));
}

/// Figures for a person: `cargo test --release --lib journal_figures -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn journal_figures() {
    let dir = tempfile::tempdir_in(".").unwrap();
    for (name, jobs) in [("without", Jobs::new(Shutdown::new())), ("with", open(dir.path()))] {
        const EVENTS: u32 = 60_000;
        let handler = |ctx: crate::job::Context| async move {
            let begun = std::time::Instant::now();
            (0..EVENTS).for_each(|n| ctx.emit(log_line(format!("Compiling something v1.{n}"))));
            Outcome::Done(json!(begun.elapsed().as_nanos() as u64 / u64::from(EVENTS)))
        };
        let job = jobs.start("flood", None, handler).unwrap();
        let begun = std::time::Instant::now();
        job.recorded().await;
        println!("{name} a journal: recorded after {:?}", begun.elapsed());
        job.ended().await;
        let record = jobs.record(&job).await.unwrap();
        if name == "with" {
            written(&job).await;
        }
        println!(
            "{name} a journal: {} ns an event; on the disk after {:?}",
            record.result.unwrap(),
            begun.elapsed()
        );
    }
    let jobs = open(dir.path());
    for _ in 0..1_000 {
        let events = (0..50).map(|n| log_line(format!("Compiling something v1.{n}"))).collect();
        let job = jobs.start("t", None, |ctx| async move {
            let events: Vec<JobEvent> = events;
            events.into_iter().for_each(|event| ctx.emit(event));
            Outcome::Done(json!({"text": "bees ".repeat(400)}))
        });
        job.unwrap().ended().await;
    }
    for record in jobs.list() {
        let job = jobs.get(&record.job_id.to_string()).unwrap();
        let Some(crate::job::Journalled::Writing(entry)) = &job.journal else { continue };
        while !entry.is_whole() {
            entry.ended().await;
        }
    }
    let begun = std::time::Instant::now();
    let again = open(dir.path());
    println!("{} journals open in {:?}", again.list().len(), begun.elapsed());
    std::io::stdout().flush().unwrap();
}
