//! The stream of heartbeats of queen and hive: at once, on a change, and in time.

use crate::support::fleet::hive;
use crate::support::node::{Daemon, Place, Stream, alone, until};
use serde_json::{Value, json};

const PATH: &str = "/v1/heartbeats/stream";

fn beat(stream: &mut Stream) -> Value {
    let event = stream.next().unwrap().expect("it does not end");
    assert_eq!(event.name.as_deref(), Some("heartbeat"));
    serde_json::from_str(&event.data).unwrap()
}

/// Reads on until a beat tells of something.
#[track_caller]
fn beat_with(stream: &mut Stream, what: impl Fn(&Value) -> bool) -> Value {
    until("a heartbeat tells of it", || {
        let beat = beat(stream);
        if what(&beat) { Ok(beat) } else { Err(beat.to_string()) }
    })
}

#[test]
fn the_queens_heartbeats_tell_her_totals_and_each_hive_and_changes_as_they_come() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let mut stream = queen.watch(PATH);
        let first = beat(&mut stream);
        assert_eq!((&first["queen"]["hives"], &first["hives"]), (&json!(0), &json!([])));

        let hive = hive(&place, &queen, &[]);
        let joined = beat_with(&mut stream, |beat| beat["queen"]["hives"] == 1);
        assert_eq!(
            (&joined["hives"][0]["name"], &joined["hives"][0]["state"]),
            (&json!("one"), &json!("online"))
        );
        assert!(joined["hives"][0]["devices"][0]["memory_bytes"].as_u64() > Some(0), "{joined}");
        assert!(joined["at"].as_u64() >= first["at"].as_u64());

        let mut of_hive = hive.watch(PATH);
        assert_eq!(beat(&mut of_hive)["hive"]["workers"], json!([]));
        let model = queen.register(&place, None);
        let spawn = json!({"operation": "worker_spawn", "model": model, "slots": 3});
        assert_eq!(queen.job(&spawn).done()["slots_total"], 3);
        let ready = |worker: &Value| worker["state"] == "ready";
        let told = beat_with(&mut stream, |beat| ready(&beat["hives"][0]["workers"][0]));
        assert_eq!((&told["queen"]["workers"], &told["queen"]["slots_total"]), (&json!(1), &json!(3)));
        let told = beat_with(&mut of_hive, |beat| ready(&beat["hive"]["workers"][0]));
        assert_eq!((&told["hive"]["name"], &told["hive"]["models"]), (&json!("one"), &json!(1)));

        // Silence is broken in time, too.
        beat(&mut stream);
        assert!(hive.terminate().success());
        let left = beat_with(&mut stream, |beat| beat["queen"]["hives"] == 0);
        assert_eq!(left["queen"]["workers"], 0);
        // A stream that lasts does not hold up the end.
        assert!(queen.terminate().success());
    });
}

#[test]
fn a_hive_that_is_drained_says_so_in_its_own_heartbeats_too_and_when_that_is_undone() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let hive = Daemon::start(&place, "hive serve", &["--name", "one", "--queen", &queen.url()]);
        queen.has_hives(1);
        let (mut of_queen, mut of_hive) = (queen.watch(PATH), hive.watch(PATH));
        let both = |of_queen: &mut Stream, of_hive: &mut Stream, state: &str| {
            beat_with(of_queen, |beat| beat["hives"][0]["state"] == state);
            beat_with(of_hive, |beat| beat["hive"]["state"] == state);
        };
        both(&mut of_queen, &mut of_hive, "online");
        queen.job(&json!({"operation": "hive_drain", "name": "one"})).done();
        both(&mut of_queen, &mut of_hive, "draining");
        queen.job(&json!({"operation": "hive_drain", "name": "one", "undo": true})).done();
        both(&mut of_queen, &mut of_hive, "online");
    });
}
