//! A fleet over a real network, in namespaces: one queen, three hives. A hive is killed, a cable is cut one way and the
//! other, and mended: what was lost is seen in time, what returns is whole again, and no worker is started twice.

use crate::support::fleet::CHAT;
use crate::support::network::Host;
use crate::support::node::{Daemon, Place, chat, until, within};
use crate::support::pidns;
use serde_json::Value;
use std::time::{Duration, Instant};

const KEY: &str = "of-this-fleet";
/// B6: a silent network is noticed in 5 s, and what a busy machine adds.
const NOTICED_MAX: Duration = Duration::from_secs(10);
/// From the fault's end to a whole fleet: 5 s are aimed at, and what a busy machine adds.
const WHOLE_MAX: Duration = Duration::from_secs(15);

struct Node {
    host: Host,
    name: String,
    daemon: Option<Daemon>,
    place: Place,
}

impl Node {
    fn start(number: u8) -> Node {
        let host = Host::connected(number);
        let place = Place::new().in_network_of(host.pid());
        Node { host, name: format!("node{number}"), daemon: None, place }
    }

    fn hive(&mut self) {
        let queen = format!("http://{}:7833", self.host.ours());
        let args = ["--name", &self.name, "--queen", &queen, "--listen", "127.0.0.1:7835"];
        let daemon = Daemon::try_start(&self.place, "hive serve", &args, &[("RBEE_API_KEY", KEY)]);
        self.daemon = Some(daemon.unwrap());
    }
}

fn online(queen: &Daemon) -> Vec<String> {
    let hives = queen.get("/v1/hives").json()["hives"].as_array().unwrap().clone();
    hives.iter().map(|hive| hive["name"].as_str().unwrap().to_owned()).collect()
}

/// Waits until a hive is known, or is not; how long that took.
fn is_known(queen: &Daemon, name: &str, is_known: bool, limit: Duration) -> Duration {
    let begun = Instant::now();
    within(limit, &format!("{name} is known: {is_known}"), || match online(queen) {
        names if names.iter().any(|known| known == name) == is_known => Ok(()),
        names => Err(format!("{names:?}")),
    });
    begun.elapsed()
}

fn workers_of(queen: &Daemon, name: &str) -> Vec<Value> {
    queen
        .workers()
        .into_iter()
        .filter(|worker| worker["hive"] == name && worker["state"] == "ready")
        .collect()
}

#[test]
fn hives_that_are_killed_or_cut_off_are_missed_in_time_and_whole_again_when_they_return() {
    if !pidns::inside_network(
        module_path!(),
        "hives_that_are_killed_or_cut_off_are_missed_in_time_and_whole_again_when_they_return",
    ) {
        return;
    }
    let mut nodes: Vec<Node> = (1..=3).map(Node::start).collect();
    let at_home = Place::new();
    let listen = ["--listen", "0.0.0.0:7833"];
    let mut queen = Daemon::try_start(&at_home, "queen serve", &listen, &[("RBEE_API_KEY", KEY)]).unwrap();
    queen.use_key(KEY);
    nodes.iter_mut().for_each(Node::hive);
    queen.has_hives(3);
    // A worker on each, for that node's own model.
    let models: Vec<String> =
        nodes.iter().map(|node| queen.register(&node.place, Some(&node.name))).collect();
    for model in &models {
        assert_eq!(queen.post(CHAT, &chat(model, 3, false)).status, 200);
    }
    // That it is free again is told by telemetry, which may come after the answer.
    let only = |name: &str| {
        until("its one worker is ready", || match &workers_of(&queen, name)[..] {
            [worker] => Ok(worker["worker_id"].clone()),
            workers => Err(format!("{name}: {workers:?}")),
        })
    };
    let ids: Vec<Value> = nodes.iter().map(|node| only(&node.name)).collect();
    let is_whole = |node: usize, name: &str, model: &str, limit: Duration| {
        let begun = Instant::now();
        within(limit, &format!("{name} has its worker again"), || match workers_of(&queen, name) {
            workers if workers.len() == 1 && workers[0]["worker_id"] == ids[node] => Ok(()),
            workers => Err(format!("{workers:?}")),
        });
        let took = begun.elapsed();
        assert_eq!(queen.post(CHAT, &chat(model, 3, false)).status, 200);
        took
    };

    nodes[0].daemon.take().unwrap().kill9();
    let missed = is_known(&queen, "node1", false, NOTICED_MAX);
    nodes[0].hive();
    let whole = is_whole(0, "node1", &models[0], WHOLE_MAX);
    println!("a hive killed: missed after {missed:.2?}; started again, whole after {whole:.2?}");

    nodes[1].host.cut_towards();
    let missed = is_known(&queen, "node2", false, NOTICED_MAX);
    assert_eq!(online(&queen).len(), 2, "the others are not touched");
    assert_eq!(queen.post(CHAT, &chat(&models[2], 3, false)).status, 200);
    nodes[1].host.mend_towards();
    let whole = is_whole(1, "node2", &models[1], WHOLE_MAX);
    println!("a cable cut towards a hive: missed after {missed:.2?}; mended, whole after {whole:.2?}");

    nodes[2].host.cut_from();
    let missed = is_known(&queen, "node3", false, NOTICED_MAX);
    nodes[2].host.mend_from();
    let whole = is_whole(2, "node3", &models[2], WHOLE_MAX);
    println!("a cable cut from a hive: missed after {missed:.2?}; mended, whole after {whole:.2?}");

    for node in &nodes {
        assert_eq!(node.place.spawns(), 1, "{} has started a worker twice", node.name);
    }
    for node in &mut nodes {
        assert!(node.daemon.take().unwrap().terminate().success());
    }
    assert!(queen.terminate().success());
    until("nothing is left", || match nodes.iter().map(|node| node.place.processes().len()).sum::<usize>() {
        0 => Ok(()),
        count => Err(format!("{count} processes")),
    });
}
