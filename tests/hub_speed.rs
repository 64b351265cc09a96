//! How fast a model comes, beside curl on the same machine in the same run. A figure, not a check: asked for by name.

use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::{Content, Repo, TestHub};
use crate::support::node::alone;
use crate::support::pull::Puller;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

const FILE: &str = "s-Q4_K_M.gguf";
const MIB: u64 = 1 << 20;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Resident memory of a process, and the most it ever was.
fn memory(pid: i32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    (field("VmRSS:"), field("VmHWM:"))
}

fn compare(rounds: u64, content: &Arc<Content>, rate: Option<u64>) {
    let mut repos = Vec::new();
    for round in 0..rounds {
        repos.push(Repo::new(&format!("bees/Speed{round}")).with(FILE, content));
    }
    let commits: Vec<String> = repos.iter().map(|repo| repo.newest().id.clone()).collect();
    let plan = TestHub::of(repos).cdn();
    let hub = match rate {
        Some(rate) => plan.bytes_per_second(rate),
        None => plan,
    };
    let puller = Puller::new(hub.open());
    let (idle, _) = memory(puller.hive().pid());
    let (mut ours, mut curls) = (Vec::new(), Vec::new());
    let speed = |begun: Instant| content.size() as f64 / 1e6 / begun.elapsed().as_secs_f64();
    for (round, commit) in commits.iter().enumerate() {
        let url = format!("{}/bees/Speed{round}/resolve/{commit}/{FILE}", puller.hub.endpoint());
        let target = puller.place.path("curl.out");
        let begun = Instant::now();
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--location", "--output"])
            .arg(&target)
            .arg(&url)
            .stdin(Stdio::null());
        assert!(curl.status().unwrap().success());
        curls.push(speed(begun));
        std::fs::remove_file(&target).unwrap();
        let begun = Instant::now();
        let job = puller.pull(&format!("bees/Speed{round}"));
        ours.push(speed(begun));
        let path = puller.path_of(&job);
        assert_eq!(path.metadata().unwrap().len(), content.size());
        // One at a time on the disk.
        std::fs::remove_dir_all(puller.folder(&format!("bees/Speed{round}"))).unwrap();
    }
    let (_, most) = memory(puller.hive().pid());
    let tell = |name: &str, speeds: &[f64]| {
        let all: Vec<String> = speeds.iter().map(|speed| format!("{speed:.0}")).collect();
        let best = speeds.iter().copied().fold(0.0, f64::max);
        let mut sorted = speeds.to_vec();
        sorted.sort_by(f64::total_cmp);
        println!("  {name}: {} MB/s; median {:.0}, best {best:.0}", all.join(", "), sorted[sorted.len() / 2]);
    };
    let per_connection =
        rate.map_or("no limit".into(), |rate| format!("{} MB/s per connection", rate / 1_000_000));
    println!(
        "{} MiB, {per_connection}, at most {} connections:",
        content.size() / MIB,
        puller.hub.sending_most()
    );
    tell("curl", &curls);
    tell("rbee, verified", &ours);
    println!("  the hive's memory: {} MiB idle, {} MiB at most", idle / MIB, most / MIB);
}

#[test]
#[ignore = "a figure: cargo test --release --test main hub_speed -- --ignored --nocapture"]
fn download_speed() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        return eprintln!("skipped: there is no curl");
    }
    alone(|| {
        let size = number("RBEE_PULL_MIB", 2048) * MIB;
        let rounds = number("RBEE_PULLS", 3);
        let content = Content::padded(tiny(&Tiny::default()), size, 1);
        content.sha256();
        compare(rounds, &content, None);
        compare(1, &content, Some(50_000_000));
    });
}
