use super::*;
use crate::job::Outcome;
use crate::job::stream::{EVENT_BYTES_KEPT_MAX, EVENTS_KEPT_MAX};
use crate::shutdown::Shutdown;
use crate::wire::job::Terminator;
use http_body_util::BodyExt;
use serde_json::Value;

/// What a stream's body has said up to the first frame that `is_last` takes.
async fn read(response: Response, is_last: impl Fn(&str) -> bool) -> String {
    let mut body = response.into_body();
    let mut text = String::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.unwrap().into_data().unwrap();
        text.push_str(std::str::from_utf8(&frame).unwrap());
        if is_last(&text) {
            break;
        }
    }
    text
}

#[tokio::test]
async fn a_silent_job_is_kept_alive_with_comments() {
    let jobs = Jobs::new(Shutdown::new());
    let job = jobs
        .start("silent", None, |ctx| async move {
            ctx.token().cancelled().await;
            Outcome::Cancelled(Default::default())
        })
        .unwrap();
    let reader = jobs.reader(&job, 0).await.unwrap();
    let said =
        read(follow(reader, Duration::from_millis(5)), |text| text.matches(": \n\n").count() == 3).await;
    assert_eq!(said, ": \n\n".repeat(3), "comments and nothing else");
}

/// Emits so many events with no pause, and ends.
async fn flood(jobs: &Jobs, events: u64) -> std::sync::Arc<Job> {
    jobs.start("flood", None, move |ctx| async move {
        for index in 0..events {
            ctx.emit(JobEvent::Log {
                stream: "stdout".into(),
                line: format!("line {index} {}", "x".repeat(100)),
            });
        }
        Outcome::Done(Value::from(events))
    })
    .unwrap()
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_bounded_memory_and_no_time_and_is_told_what_it_missed() {
    const EVENTS: u64 = 100_000;
    let jobs = Jobs::new(Shutdown::new());
    let job = flood(&jobs, EVENTS).await;
    let stuck = follow(jobs.reader(&job, 0).await.unwrap(), Duration::from_secs(10));
    let eager = follow(jobs.reader(&job, 0).await.unwrap(), Duration::from_secs(10));
    // The job ends although one reader has not taken a single byte.
    job.ended().await;
    assert!(job.memory_bytes() <= EVENT_BYTES_KEPT_MAX);
    for (name, stream) in [("eager", eager), ("stuck", stuck)] {
        let text = read(stream, |_| false).await;
        assert!(text.ends_with("data: [DONE]\n\n"), "{name} is told the end");
        let seen: Vec<u64> =
            text.lines().filter_map(|line| line.strip_prefix("id: ")).map(|id| id.parse().unwrap()).collect();
        assert!(seen.is_sorted_by(|a, b| a < b), "{name}: in order, none twice");
        assert_eq!(seen.last(), Some(&EVENTS), "{name}: the result is the last");
        let missed: u64 = text
            .lines()
            .filter_map(|line| {
                line.split_once("\"message\":\"")?.1.split_once(" events are no longer kept: ")
            })
            .map(|(count, _)| count.parse::<u64>().unwrap())
            .sum();
        assert_eq!(seen.len() as u64 + missed, EVENTS + 1, "{name}: told or counted");
        assert!(missed >= EVENTS - EVENTS_KEPT_MAX as u64, "{name}: {missed}");
    }
    let late = jobs.reader(&job, u64::MAX).await.unwrap();
    let text = read(follow(late, Duration::from_secs(10)), |_| false).await;
    assert_eq!(text, format!("id: {EVENTS}\nevent: result\ndata: {EVENTS}\n\ndata: [DONE]\n\n"));
}

#[tokio::test]
async fn a_reader_that_leaves_detaches_and_the_job_goes_on() {
    let jobs = Jobs::new(Shutdown::new());
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let opened = gate.clone();
    let job = jobs
        .start("long", None, |ctx| async move {
            ctx.narrate("begun", "begun");
            opened.notified().await;
            Outcome::Done(Value::Null)
        })
        .unwrap();
    let stream = follow(jobs.reader(&job, 0).await.unwrap(), Duration::from_secs(10));
    let said = read(stream, |text| text.contains("begun")).await;
    assert!(said.starts_with("id: 0\nevent: narration\n"), "{said}");
    assert!(!job.has_ended());
    gate.notify_one();
    let mut again = jobs.reader(&job, 1).await.unwrap();
    assert_eq!(again.next().await, Step::Event(1, JobEvent::Result(Value::Null)));
    assert_eq!(again.next().await, Step::End(Terminator::Done));
}

#[test]
fn a_reader_starts_after_what_it_has_seen() {
    assert_eq!(first_wanted(None, None).unwrap(), 0);
    assert_eq!(first_wanted(Some("7"), None).unwrap(), 7);
    assert_eq!(first_wanted(None, Some(" 7 ")).unwrap(), 8);
    assert_eq!(first_wanted(Some("0"), Some("41")).unwrap(), 42, "a browser that connects again sends both");
    assert_eq!(first_wanted(Some("3"), Some("")).unwrap(), 3);
    assert_eq!(first_wanted(None, Some(&u64::MAX.to_string())).unwrap(), u64::MAX);
    for bad in ["-1", "x", "1.5", "18446744073709551616", "１"] {
        assert!(first_wanted(Some(bad), None).is_err() && first_wanted(None, Some(bad)).is_err(), "{bad}");
    }
}
