//! Programs of different versions meet (B4): both are named, what to run is said, nobody hangs, and a hive goes on dialling.

use crate::support::node::{Daemon, Place, alone, said, until};
use rbee::wire::version::Peer;
use rbee::wire::{PROTOCOL, PROTOCOL_OLDEST, VERSION};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A daemon of another version, as far as one answer goes. It gives the same to whatever is asked, until it is dropped.
pub struct Other {
    pub address: String,
    asked: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    serving: Option<std::thread::JoinHandle<()>>,
}

impl Other {
    pub fn start(place: &Place, status: &'static str, protocol: u32, body: String) -> Other {
        let listener = TcpListener::bind(place.address(0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (asked, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, ends) = (asked.clone(), over.clone());
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    head.push(byte[0]);
                }
                counted.fetch_add(1, Ordering::SeqCst);
                // Who hangs up early has its answer.
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nrbee-protocol: {protocol}\r\nrbee-version: 9.9.9\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Other { address, asked, over, serving: Some(serving) }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // The last connection wakes it.
        let _ = std::net::TcpStream::connect(&self.address);
        let _ = self.serving.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn the_command_line_tells_a_daemon_that_is_too_old_or_too_new_from_one_it_understands() {
    alone(|| {
        let place = Place::new();
        let ask = |protocol: u32, words: &[&str]| {
            let other = Other::start(&place, "200 OK", protocol, json!({"hives": []}).to_string());
            let url = format!("http://{}", other.address);
            let shown = place.rbee(&[words, &["--queen", &url]].concat());
            (shown.status.code(), said(&shown).1)
        };
        let commands: [&[&str]; 3] = [&["hive", "list"], &["run", "hello"], &["logs"]];
        for words in commands {
            for (protocol, update) in [(PROTOCOL_OLDEST - 1, "rbee queen start"), (PROTOCOL + 2, "scp ")] {
                let (exit, told) = ask(protocol, words);
                assert_eq!(exit, Some(1), "{told}");
                for word in ["VERSION_MISMATCH", "9.9.9", VERSION, &format!("protocol {protocol}"), update] {
                    assert!(told.contains(word), "{word}: {told}");
                }
            }
        }
        for protocol in [PROTOCOL_OLDEST, PROTOCOL, PROTOCOL + 1] {
            assert_eq!(ask(protocol, &["hive", "list"]).0, Some(0), "protocol {protocol}");
        }
    });
}

#[test]
fn a_hive_that_a_queen_of_another_version_refuses_says_so_once_and_goes_on_dialling() {
    alone(|| {
        let place = Place::new();
        let peer = Peer { who: "the hive one".into(), version: VERSION.into(), protocol: PROTOCOL };
        let refusal = peer.mismatch("this queen", "update the hive: `rbee hive update one`");
        let body = refusal.body("r").to_string();
        let old = Other::start(&place, "426 Upgrade Required", 99, body);
        let url = format!("http://{}", old.address);
        let hive = Daemon::start(&place, "hive serve", &["--name", "one", "--queen", &url]);
        until("it has dialled several times", || match old.asked.load(Ordering::SeqCst) {
            asked if asked >= 3 => Ok(()),
            asked => Err(asked.to_string()),
        });
        let log = hive.log();
        assert_eq!(log.matches("VERSION_MISMATCH").count(), 1, "{log}");
        assert!(log.contains("rbee hive update one"), "{log}");
        let address = old.address.clone();
        drop(old);
        let queen = Daemon::start(&place, "queen serve", &["--listen", &address]);
        queen.has_hives(1);
    });
}
