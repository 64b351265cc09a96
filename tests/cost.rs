//! What the way through queen and hive costs, beside the engine's own socket and nginx as a plain proxy, in one run: once, and
//! twice in a row, as there are two processes between a client and an engine here, too. A figure, not a check: asked for
//! by name. Where waking another processor is dear, as in a virtual machine, that is most of what a hop costs; under
//! `taskset -c 0` it does not count, and every instruction on the way does.

use crate::builds::Shop;
use crate::scripted;
use crate::support::fleet::{CHAT, fleet};
use crate::support::node::{Place, alone};
use bytes::Bytes;
use http_body_util::BodyExt;
use rbee::http::client::{self, Connection, Target};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Requests in one block; blocks of all ways alternate.
const BLOCK: usize = 200;
const BLOCKS: usize = 10;
const STREAM_TOKENS: u32 = 20_000;
const STREAMS: usize = 1_000;
const STREAM_TOKENS_EACH: u32 = 50;

struct Way {
    name: &'static str,
    target: Target,
    path: String,
    /// The queen reads it; nginx and the engine don't.
    model: String,
}

fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Forgets the most that a process ever had, so that from now on is measured.
fn forget_peak(pid: i32) -> u64 {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    resident(pid)
}

async fn once(connection: &mut Connection, path: &str, body: &Value) -> Bytes {
    let answer = connection.send(client::post(path, body).unwrap()).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(status.is_success(), "{status}: {body:?}");
    body
}

fn tokens(body: &[u8]) -> usize {
    body.windows(6).filter(|window| *window == b"\" bee\"").count()
}

/// nginx as a plain proxy before an address; it ends with the value.
struct Nginx {
    child: Child,
    target: Target,
    address: String,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn nginx(place: &Place, name: &str, engine: &str) -> Option<Nginx> {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let root = place.path(name);
    std::fs::create_dir(&root).unwrap();
    let root = root.display();
    let configuration = format!(
        "daemon off; master_process off; pid {root}/pid; error_log {root}/error;\nevents {{ worker_connections 4096; }}\n\
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;\n\
         uwsgi_temp_path {root}/d; scgi_temp_path {root}/e; upstream engine {{ server {engine}; keepalive 64; keepalive_requests 1000000; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://engine; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_buffering off; }} }} }}"
    );
    let path = place.path(&format!("{name}.conf"));
    std::fs::write(&path, configuration).unwrap();
    let child = Command::new("nginx").arg("-c").arg(&path).stdin(Stdio::null()).spawn().ok()?;
    let address = format!("127.0.0.1:{port}");
    let target = Target::parse(&format!("http://{address}")).unwrap();
    crate::support::node::until("nginx listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string())
    });
    Some(Nginx { child, target, address })
}

async fn latencies(ways: &[Way]) {
    let body = json!({"max_tokens": 1, "messages": []});
    let mut open = Vec::new();
    for way in ways {
        open.push((Connection::open(&way.target).await.unwrap(), Vec::new()));
    }
    for block in 0..=BLOCKS {
        for (way, (connection, times)) in ways.iter().zip(&mut open) {
            for _ in 0..BLOCK {
                let begun = Instant::now();
                once(connection, &way.path, &way.body(&body)).await;
                // The first block only warms up.
                if block > 0 {
                    times.push(begun.elapsed());
                }
            }
        }
    }
    let mut direct = [Duration::ZERO; 3];
    for (way, (_, mut times)) in ways.iter().zip(open) {
        let median = |block: &mut [Duration]| {
            block.sort_unstable();
            block[block.len() / 2]
        };
        // Where other machines share the processors, the block in which they did so least tells more than all of them.
        let quietest = times.chunks_mut(BLOCK).map(median).min().unwrap();
        let (all, late) = (median(&mut times), times[times.len() * 99 / 100]);
        let found = [all, late, quietest];
        if way.name == "engine" {
            direct = found;
        }
        let [p50, p99, quiet] = [0, 1, 2].map(|at| found[at].saturating_sub(direct[at]).as_micros());
        println!(
            "  {:8} p50 {all:.1?}, p99 {late:.1?}, p50 of its quietest block {quietest:.1?}; \
             more than the engine alone: {p50}, {p99}, {quiet} µs",
            way.name
        );
    }
}

async fn throughput(ways: &[Way]) {
    let body = json!({"max_tokens": STREAM_TOKENS, "stream": true, "messages": []});
    let mut best = vec![0.0_f64; ways.len()];
    for _ in 0..5 {
        for (way, best) in ways.iter().zip(&mut best) {
            let mut connection = Connection::open(&way.target).await.unwrap();
            let begun = Instant::now();
            let answer = once(&mut connection, &way.path, &way.body(&body)).await;
            let rate = f64::from(STREAM_TOKENS) / begun.elapsed().as_secs_f64();
            assert_eq!(tokens(&answer), STREAM_TOKENS as usize, "{}", way.name);
            *best = best.max(rate);
        }
    }
    for (way, rate) in ways.iter().zip(&best) {
        println!("  {:8} {rate:.0} tokens/s at full speed", way.name);
    }
    // At a pace that engines have: a token every 2 ms.
    let body = json!({"max_tokens": 500, "pause_us": 2_000, "stream": true, "messages": []});
    let mut paced = Vec::new();
    for way in ways {
        let mut connection = Connection::open(&way.target).await.unwrap();
        let begun = Instant::now();
        let answer = once(&mut connection, &way.path, &way.body(&body)).await;
        assert_eq!(tokens(&answer), 500);
        paced.push(500.0 / begun.elapsed().as_secs_f64());
    }
    for (way, rate) in ways.iter().zip(&paced) {
        println!(
            "  {:8} {rate:.1} tokens/s of a paced engine: {:.1} % of direct",
            way.name,
            100.0 * rate / paced[0]
        );
    }
}

async fn many(way: &Way, pids: &[(&str, i32)]) {
    let before: Vec<u64> = pids.iter().map(|(_, pid)| forget_peak(*pid)).collect();
    let body = json!({
        "max_tokens": STREAM_TOKENS_EACH, "pause_us": 100_000, "stream": true, "messages": [],
    });
    let begun = Instant::now();
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let (target, path, body) = (way.target.clone(), way.path.clone(), way.body(&body));
        streams.spawn(async move {
            let mut connection = Connection::open(&target).await.unwrap();
            tokens(&once(&mut connection, &path, &body).await)
        });
    }
    let mut came = 0;
    while let Some(stream) = streams.join_next().await {
        came += stream.unwrap();
    }
    let due = STREAMS * STREAM_TOKENS_EACH as usize;
    println!("  {STREAMS} streams at once: {came} of {due} tokens came, {:?}", begun.elapsed());
    for ((name, pid), before) in pids.iter().zip(before) {
        let (more, all) = (resident(*pid).saturating_sub(before) >> 20, resident(*pid) >> 20);
        println!("  the {name} grew by {more} MiB, to {all} MiB");
    }
}

impl Way {
    fn body(&self, body: &Value) -> Value {
        let mut body = body.clone();
        body["model"] = json!(self.model);
        body
    }
}

#[test]
#[ignore = "a figure: cargo test --release --test main cost -- --ignored --nocapture"]
fn added_latency_and_memory() {
    alone(|| {
        let place = Place::new();
        let shop = Shop::open(&place);
        scripted::recipe(&shop, "");
        let (queen, hive) = fleet(&place, &["--catalog", &shop.daemon.url()]);
        queen.job(&json!({"operation": "worker_install", "worker_id": scripted::ID})).done();
        let model = queen.register(&place, None);
        let spawn = json!({
            "operation": "worker_spawn", "model": model, "worker": scripted::ID, "slots": 1_024, "ctx": 512,
        });
        let worker = queen.job(&spawn).done().clone();
        let id = worker["worker_id"].as_str().unwrap();
        let engine = place.processes().into_iter().find_map(|(pid, _)| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            let text = String::from_utf8_lossy(&environment).into_owned();
            text.split('\0').find_map(|pair| pair.strip_prefix("RBEE_SCRIPTED_LISTEN=").map(str::to_owned))
        });
        let engine = engine.expect("the engine runs");
        let parse = |url: &str| Target::parse(url).unwrap();
        let way = |name, target, path: &str| Way { name, target, path: path.into(), model: model.clone() };
        const QUEEN: usize = 2;
        let mut ways = vec![
            way("engine", parse(&format!("http://{engine}")), CHAT),
            way("hive", parse(&hive.url()), &format!("/v1/workers/{id}{CHAT}")),
            way("queen", parse(&queen.url()), CHAT),
        ];
        let once = nginx(&place, "nginx", &engine);
        let twice = once.as_ref().and_then(|once| nginx(&place, "nginx2", &once.address));
        for (name, proxy) in [("nginx", &once), ("nginx x2", &twice)] {
            match proxy {
                Some(proxy) => ways.push(way(name, proxy.target.clone(), CHAT)),
                None => eprintln!("skipped in part: there is no nginx"),
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            latencies(&ways).await;
            throughput(&ways).await;
            many(&ways[QUEEN], &[("queen", queen.pid()), ("hive", hive.pid())]).await;
        });
    });
}
