//! Jobs that the queen relays, at a hive that does what no good hive does: it answers late, goes away, says too much or nothing.

use crate::protocols::{OLDER, older_hive};
use crate::support::node::{Daemon, Place, alone, until};
use bytes::Bytes;
use http_body_util::{BodyExt, Channel, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioExecutor;
use rbee::http::client::Target;
use rbee::http::link::{self, Hello};
use rbee::http::sse::EVENT_BYTES_MAX;
use rbee::wire::job::{JOB_ID_HEADER, Terminator};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// Cancels that a job takes before it ends as cancelled.
const PATIENT: &str = "patient";
const STUBBORN: &str = "stubborn";
/// Its only event is longer than any may be.
const LOUD: &str = "loud";
/// Its stream ends at once, each time.
const MUTE: &str = "mute";

#[derive(Default)]
struct Job {
    kind: String,
    streams: usize,
    cancels: watch::Sender<usize>,
}

impl Job {
    fn cancels_wanted(&self) -> usize {
        if self.kind == STUBBORN { 2 } else { 1 }
    }
}

/// What the hive knows, over all of its links.
#[derive(Clone, Default)]
struct Known(Arc<Mutex<HashMap<String, Job>>>);

impl Known {
    fn of<T>(&self, id: &str, look: impl FnOnce(&mut Job) -> T) -> T {
        look(self.0.lock().unwrap().get_mut(id).unwrap_or_else(|| panic!("no job {id}")))
    }

    fn cancels(&self, id: &str) -> usize {
        self.of(id, |job| *job.cancels.borrow())
    }

    async fn answer(self, request: http::Request<Incoming>) -> http::Response<Body> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        if path == "/v1/telemetry" {
            return stream(|mut telemetry| async move {
                telemetry.send_data(older_hive()).await.unwrap();
                std::future::pending().await
            });
        }
        let Some(path) = path.strip_prefix("/v1/jobs/") else {
            let asked: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
            let id = head.headers[JOB_ID_HEADER].to_str().unwrap().to_owned();
            let kind = asked["worker_id"].as_str().unwrap().to_owned();
            self.0.lock().unwrap().insert(id.clone(), Job { kind, ..Job::default() });
            return whole(200, &json!({"job_id": id, "sse_url": "here"}));
        };
        let id = path.split('/').next().unwrap().to_owned();
        if path.ends_with("/stream") {
            return self.events(id, head.uri.query() == Some("from=0"));
        }
        if head.method == "DELETE" {
            self.of(&id, |job| job.cancels.send_modify(|cancels| *cancels += 1));
            return whole(202, &json!({"job_id": id, "status": "cancelling", "receipt": null}));
        }
        whole(
            200,
            &json!({
                "job_id": id, "operation": "worker_remove", "state": "cancelled", "created_at": 1, "ended_at": 2,
                "events": 1, "result": null, "error": null, "receipt": {"clean": true, "processes_reaped": 3},
            }),
        )
    }

    fn events(&self, id: String, is_first: bool) -> http::Response<Body> {
        let (kind, wanted, mut cancels) = self.of(&id, |job| {
            job.streams += 1;
            (job.kind.clone(), job.cancels_wanted(), job.cancels.subscribe())
        });
        stream(move |mut events| async move {
            if kind == LOUD {
                // Cut off, of course.
                let long = vec![b'x'; EVENT_BYTES_MAX + 100];
                let _ = events.send_data([b"data: ".as_slice(), &long, b"\n\n"].concat().into()).await;
            }
            if kind == LOUD || kind == MUTE {
                return;
            }
            if is_first {
                let told = "id: 0\nevent: narration\ndata: {\"action\":\"a\",\"message\":\"begun\",\"level\":\"info\"}\n\n";
                let _ = events.send_data(told.into()).await;
            }
            cancels.wait_for(|cancels| *cancels >= wanted).await.unwrap();
            // Its reader's link may be gone; the next stream tells it again.
            let _ = events.send_data("data: [CANCELLED]\n\n".into()).await;
        })
    }
}

fn whole(status: u16, body: &Value) -> http::Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).boxed();
    http::Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

fn stream<F: Future<Output = ()> + Send + 'static>(
    tell: impl FnOnce(http_body_util::channel::Sender<Bytes, Infallible>) -> F,
) -> http::Response<Body> {
    let (sender, body) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(tell(sender));
    http::Response::new(body.boxed())
}

/// The hive `odd`, and the queen it links with.
struct Odd {
    queen: Daemon,
    known: Known,
    runtime: Runtime,
    link: Option<JoinHandle<()>>,
    place: Place,
}

impl Odd {
    fn start() -> Odd {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut odd = Odd { queen, known: Known::default(), runtime, link: None, place };
        odd.link();
        odd
    }

    fn link(&mut self) {
        let (target, known) = (Target::parse(&self.queen.url()).unwrap(), self.known.clone());
        self.link = Some(self.runtime.spawn(async move {
            let hello = Hello { protocol: OLDER, version: "0.0.9".into(), ..Hello::ours("odd", "its-node") };
            let io = link::dial(&target, &hello).await.unwrap().io;
            let service = hyper::service::service_fn(move |request| {
                let known = known.clone();
                async move { Ok::<_, Infallible>(known.answer(request).await) }
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, service)
                .await;
        }));
        self.queen.has_hives(1);
    }

    fn unlink(&mut self) {
        self.link.take().unwrap().abort();
        self.queen.has_hives(0);
    }

    /// A job of a kind, under way.
    fn begin(&self, kind: &str) -> String {
        self.queen.begin(&json!({"operation": "worker_remove", "worker_id": kind, "hive_id": "odd"}))
    }

    fn has_begun(&self, id: &str) {
        until("its event has come", || {
            let record = self.record(id);
            if record["events"] == 1 { Ok(()) } else { Err(record.to_string()) }
        });
    }

    fn record(&self, id: &str) -> Value {
        self.queen.get(&format!("/v1/jobs/{id}")).json()
    }

    fn is_cancelled(&self, id: &str) {
        assert_eq!(self.queen.follow(id).terminator, Terminator::Cancelled);
        let record = self.record(id);
        assert_eq!(
            (&record["state"], &record["receipt"]["processes_reaped"]),
            (&json!("cancelled"), &json!(3)),
            "{record}"
        );
    }
}

#[test]
fn a_cancel_that_its_hive_is_slow_to_clean_up_after_ends_as_it_does_there_and_a_second_one_goes_there_too() {
    alone(|| {
        let odd = Odd::start();
        let id = odd.begin(STUBBORN);
        odd.has_begun(&id);
        let cancel = format!("/v1/jobs/{id}/cancel");
        odd.queen.leave_after(&cancel, &json!({}), || {
            until("the first has come to the hive", || match odd.known.cancels(&id) {
                1 => Ok(()),
                count => Err(format!("{count}")),
            });
        });
        assert_eq!(odd.record(&id)["state"], "running");
        let cancelled = odd.queen.post(&cancel, &json!({}));
        assert_eq!((cancelled.status, odd.known.cancels(&id)), (200, 2), "{cancelled:?}");
        odd.is_cancelled(&id);
    });
}

#[test]
fn a_cancel_while_the_link_is_lost_is_taken_to_the_hive_when_it_is_back() {
    alone(|| {
        let mut odd = Odd::start();
        let id = odd.begin(PATIENT);
        odd.has_begun(&id);
        odd.unlink();
        let cancelled = odd.queen.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
        assert_eq!((cancelled.status, odd.known.cancels(&id)), (202, 0), "{cancelled:?}");
        odd.link();
        odd.is_cancelled(&id);
        assert_eq!(odd.known.cancels(&id), 1);
    });
}

#[test]
fn a_queen_that_stops_leaves_her_hives_jobs_alone_and_waits_for_none() {
    alone(|| {
        let mut odd = Odd::start();
        let id = odd.begin(PATIENT);
        odd.has_begun(&id);
        odd.queen.signal(Signal::TERM);
        assert!(odd.queen.ended().success());
        let log = odd.queen.log();
        assert!(!log.contains("still busy after the drain"), "{log}");
        assert_eq!(odd.known.cancels(&id), 0);
        odd.queen = Daemon::start(&odd.place, "queen serve", &[]);
        assert_eq!(odd.record(&id)["state"], "interrupted");
    });
}

#[test]
fn a_stream_that_brings_nothing_is_not_taken_up_for_ever() {
    alone(|| {
        let odd = Odd::start();
        for (kind, code, streams) in [(LOUD, "BODY_TOO_LARGE", 1), (MUTE, "HIVE_LOST", 9)] {
            let job = odd.queen.follow(&odd.begin(kind));
            let failure = job.find("error").unwrap_or_else(|| panic!("{job:?}"));
            assert_eq!(failure["code"], code, "{failure}");
            assert_eq!(odd.known.of(&job.id, |job| job.streams), streams, "{kind}");
        }
        let long = json!({"operation": "worker_stop", "worker_id": "x".repeat(100_000), "hive_id": "odd"});
        let refused = odd.queen.post("/v1/jobs", &long);
        assert_eq!(refused.status, 400, "{:?}", refused.failure());
    });
}
