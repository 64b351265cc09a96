//! Queens and hives played by hand: a hive finds words that a queen of the version before understands, and the queen those
//! of such a hive; the first word tells all that placement needs.

use crate::support::gguf::Tiny;
use crate::support::node::{Daemon, Place, alone, until};
use bytes::Bytes;
use http_body_util::{BodyExt, Channel};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rbee::http::link::{self, Hello, PROTOCOL_HEADER, UPGRADE_TO};
use rbee::http::{client, client::Target};
use rbee::wire::codec::{self, Decoder, DeviceV1, Frame, HiveV1, ModelV1, TelemetryV1, TelemetryV2};
use rbee::wire::{Code, Failure, PROTOCOL};
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const OLDER: u32 = PROTOCOL - 1;
const WAIT_MAX: Duration = Duration::from_secs(30);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A dialling hive, and the protocol that it says.
async fn dialled(listener: &TcpListener) -> (TcpStream, u32) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let protocol = head.lines().find_map(|line| line.strip_prefix(&format!("{PROTOCOL_HEADER}: ")));
    (stream, protocol.unwrap().parse().unwrap())
}

/// Takes a hive's link, and hears its telemetry's first word.
async fn first_word(mut dialled: TcpStream, path: &str) -> Frame {
    let accepted =
        format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {UPGRADE_TO}\r\n\r\n");
    dialled.write_all(accepted.as_bytes()).await.unwrap();
    let (caller, running) = link::call(TokioIo::new(dialled)).await.unwrap();
    let running = tokio::spawn(running);
    let mut telling = caller.send(client::get(path).unwrap()).await.unwrap().into_body();
    let mut decoder = Decoder::default();
    let first = tokio::time::timeout(WAIT_MAX, async {
        loop {
            if let Some(frame) = decoder.next_frame().unwrap() {
                return frame;
            }
            decoder.push(&telling.frame().await.unwrap().unwrap().into_data().unwrap());
        }
    });
    let frame = first.await.unwrap();
    running.abort();
    frame
}

#[test]
fn the_first_word_of_a_hive_tells_what_its_models_need() {
    alone(|| {
        let place = Place::with_model(&Tiny::default());
        let earlier = Daemon::start(&place, "hive serve", &["--name", "laden"]);
        let model = earlier.register(&place, None);
        assert!(earlier.terminate().success());
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let starting = tokio::task::spawn_blocking(move || {
                (Daemon::start(&place, "hive serve", &["--name", "laden", "--queen", &url]), place)
            });
            let (stream, _) = dialled(&listener).await;
            match first_word(stream, "/v1/telemetry?version=2").await {
                Frame::V2(TelemetryV2::Full(told)) => {
                    let told = told.models.iter().find(|told| told.id == model);
                    assert!(told.is_some_and(|told| !told.shapes.is_empty()), "{told:?}");
                }
                other => panic!("{other:?}"),
            }
            let (hive, place) = starting.await.unwrap();
            tokio::task::spawn_blocking(move || assert!(hive.terminate().success())).await.unwrap();
            drop(place);
        });
    });
}

#[test]
fn a_hive_speaks_as_a_queen_of_the_version_before_understands() {
    alone(|| {
        let place = Place::new();
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let starting = tokio::task::spawn_blocking(move || {
                let hive = Daemon::start(&place, "hive serve", &["--name", "newer", "--queen", &url]);
                (hive, place)
            });
            let (mut refused, newest) = dialled(&listener).await;
            assert_eq!(newest, PROTOCOL);
            let body = Failure::new(Code::VersionMismatch, "what is that?").body("r").to_string();
            let head = "HTTP/1.1 426 Upgrade Required\r\ncontent-type: application/json\r\ncontent-length";
            refused.write_all(format!("{head}: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();

            let (stream, protocol) = dialled(&listener).await;
            assert_eq!(protocol, OLDER);
            match first_word(stream, "/v1/telemetry").await {
                Frame::V1(TelemetryV1::Full(told)) => assert_eq!(told.name, "newer"),
                other => panic!("{other:?}"),
            }
            let (hive, place) = starting.await.unwrap();
            tokio::task::spawn_blocking(move || assert!(hive.terminate().success())).await.unwrap();
            drop(place);
        });
    });
}

pub fn older_hive() -> Bytes {
    let device = DeviceV1 {
        id: "CPU-0".into(),
        name: "a processor".into(),
        device_type: "cpu".into(),
        memory_bytes: 8 << 30,
        memory_free_bytes: 4 << 30,
        compute_capability: None,
    };
    let hive = HiveV1 {
        name: "older".into(),
        version: "0.0.9".into(),
        listen: String::new(),
        os: "linux".into(),
        arch: "x86_64".into(),
        draining: false,
        devices: vec![device],
        workers: Vec::new(),
        models: vec![ModelV1 { id: "an-old-model".into(), names: Vec::new() }],
    };
    codec::encode(&Frame::V1(TelemetryV1::Full(hive))).unwrap().into()
}

#[test]
fn a_queen_understands_a_hive_of_the_version_before_and_leaves_the_choice_to_it() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let target = Target::parse(&queen.url()).unwrap();
        let runtime = runtime();
        let linked = runtime.spawn(async move {
            let hello =
                Hello { protocol: OLDER, version: "0.0.9".into(), ..Hello::ours("older", "its-node") };
            let io = link::dial(&target, &hello).await.unwrap().io;
            let telling =
                hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/v1/telemetry");
                    let (mut telemetry, body) = Channel::<Bytes, Infallible>::new(1);
                    tokio::spawn(async move {
                        telemetry.send_data(older_hive()).await.unwrap();
                        // It has nothing else to say, and stays.
                        std::future::pending::<()>().await;
                    });
                    Ok::<_, Infallible>(http::Response::new(body))
                });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, telling)
                .await;
        });
        until("the queen knows the older hive", || {
            let models = queen.get("/v1/models").json();
            if models.to_string().contains("an-old-model") { Ok(()) } else { Err(models.to_string()) }
        });
        linked.abort();
        assert!(queen.terminate().success());
    });
}
