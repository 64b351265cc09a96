//! Who is let in, and where a daemon refuses to start: ports, state directories, keys, foreign hosts and origins.

use crate::support::fleet::fleet;
use crate::support::node::{Daemon, Place, Refused, alone};
use rbee::daemon::{Lock, holder, is_locked};
use rbee::http::client;
use rbee::http::router::Route;
use rbee::process::Identity;
use rbee::wire::Code;
use std::sync::atomic::{AtomicBool, Ordering};

const KEY: &str = "open-sesame-0123456789";
pub const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

#[track_caller]
fn refused(place: &Place, role: &str, args: &[&str]) -> String {
    match Daemon::try_start(place, role, args, &[]) {
        Err(Refused { exit, said }) => {
            assert_eq!(exit.code(), Some(1), "{said}");
            said
        }
        Ok(daemon) => panic!("{role} {args:?} listens on {}", daemon.address),
    }
}

#[test]
fn a_port_in_use_is_refused_with_its_holder_and_the_flag() {
    alone(|| {
        let (place, other) = (Place::new(), Place::new());
        let holder = Daemon::start(&place, "queen serve", &[]);
        for role in ["serve", "queen serve", "hive serve"] {
            let said = refused(&other, role, &["--listen", &holder.address]);
            assert!(said.contains(&format!("pid {}", holder.pid())) && said.contains("--listen"), "{said}");
        }
    });
}

#[test]
fn a_second_daemon_of_a_role_on_one_state_directory_is_refused() {
    alone(|| {
        let place = Place::new();
        let first = Daemon::start(&place, "serve", &[]);
        for role in ["serve", "queen serve", "hive serve"] {
            let said = refused(&place, role, &[]);
            assert!(said.contains(&format!("pid {}", first.pid())) && said.contains("--state-dir"), "{said}");
        }
    });
}

/// Alone, because a child that another test forks holds what is locked here until it is itself.
#[test]
fn those_who_look_at_a_lock_neither_see_each_other_nor_keep_a_daemon_from_starting() {
    const STARTS: usize = 500;
    alone(|| {
        let place = Place::new();
        let path = place.path("hive.lock");
        assert!(!is_locked(&path) && holder(&path).is_none());
        let first = Lock::take(&path, "hive").unwrap();
        let refused = Lock::take(&path, "hive").unwrap_err().to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        assert!(is_locked(&path));
        assert_eq!(holder(&path), Identity::of_this_process());
        drop(first);
        assert!(!is_locked(&path) && holder(&path).is_none());
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        is_locked(&path);
                    }
                });
            }
            let seen = (0..STARTS).filter(|_| is_locked(&path)).count();
            let refused = (0..STARTS).filter(|_| Lock::take(&path, "hive").is_err()).count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!((seen, refused), (0, 0));
        });
    });
}

#[test]
fn listening_beyond_loopback_without_a_key_is_refused_and_says_how_to_make_one() {
    alone(|| {
        let place = Place::new();
        for role in ["serve", "queen serve", "hive serve"] {
            let said = refused(&place, role, &["--listen", "0.0.0.0:0"]);
            assert!(said.contains("--api-key") && said.contains("openssl rand"), "{said}");
        }
        assert!(
            Daemon::try_start(&place, "serve", &["--listen", "0.0.0.0:0"], &[("RBEE_API_KEY", KEY)]).is_ok()
        );
    });
}

#[test]
fn a_head_that_is_too_large_is_refused_in_the_one_shape() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::start(&place, "queen serve", &[]);
        let ask = |headers: usize, bytes: usize| {
            let mut request = client::get("/health").unwrap();
            for number in 0..headers {
                let name: http::HeaderName = format!("x-h{number}").parse().unwrap();
                request.headers_mut().insert(name, "b".repeat(bytes).parse().unwrap());
            }
            request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
            daemon.request(request)
        };
        assert_eq!((ask(60, 1).status, ask(1, 60_000).status), (200, 200));
        for answer in [ask(120, 1), ask(1, 70_000)] {
            assert_eq!((answer.status, answer.failure().code), (431, Code::InvalidRequest), "{answer:?}");
            assert_eq!(answer.headers["x-request-id"], "mine");
            assert_eq!(answer.json()["error"]["request_id"], "mine");
        }
    });
}

#[test]
fn with_a_key_only_its_holder_is_let_in_and_the_log_never_shows_it() {
    alone(|| {
        let place = Place::new();
        for role in ["serve", "queen serve", "hive serve"] {
            let mut daemon = Daemon::try_start(&place, role, &[], &[("RBEE_API_KEY", KEY)]).unwrap();
            let missing = daemon.get("/v1/info");
            assert_eq!((missing.status, missing.failure().code), (401, Code::MissingApiKey));
            assert_eq!(daemon.get("/health").status, 200);
            daemon.use_key("open-sesame-0123456780");
            let wrong = daemon.get("/v1/info");
            assert_eq!((wrong.status, wrong.failure().code), (401, Code::InvalidApiKey));
            daemon.use_key(KEY);
            assert_eq!(daemon.get("/v1/info").status, 200);
            // Its holder may know the machine by another name; nobody else may, and no page of another origin either way.
            let by_alias = "GET /v1/info HTTP/1.1\r\nhost: alias.example";
            let with_key = format!("{by_alias}\r\nauthorization: Bearer {KEY}");
            assert_eq!(daemon.raw(by_alias), 403);
            assert_eq!(daemon.raw(&with_key), 200);
            assert_eq!(daemon.raw(&format!("{with_key}\r\norigin: https://evil.example")), 403);
            let log = daemon.log();
            assert!(!log.contains("open-sesame"), "{log}");
        }
    });
}

/// A request's path for a route.
pub fn path_of<E>(route: &Route<E>) -> String {
    let path = route.path.replace("{name}", "one").replace("{rest*}", "v1/info");
    let path = path.replace("{id}", "x").replace("{id*}", "x");
    assert!(!path.contains('{'), "{path}");
    path
}

/// Every method on every path of a table, with a header that is not ours.
fn refuses_foreigners<E>(daemon: &Daemon, table: &[Route<E>]) {
    let ours = &daemon.address;
    assert_eq!(daemon.raw(&format!("GET /v1/info HTTP/1.1\r\nhost: {ours}")), 200);
    assert_eq!(daemon.raw(&format!("GET /v1/info HTTP/1.1\r\nhost: {ours}\r\norigin: http://{ours}")), 200);
    let foreign = [
        "host: evil.example".to_owned(),
        format!("host: localhost.evil.example:{}", ours.rsplit_once(':').unwrap().1),
        format!("host: {ours}\r\norigin: https://evil.example"),
        format!("host: {ours}\r\norigin: null"),
    ];
    let mut asked = 0;
    for route in table {
        let path = path_of(route);
        for (method, headers) in
            METHODS.iter().flat_map(|method| foreign.iter().map(move |headers| (method, headers)))
        {
            let request = format!("{method} {path} HTTP/1.1\r\n{headers}\r\ncontent-length: 0");
            assert_eq!(daemon.raw(&request), 403, "{request}");
            asked += 1;
        }
    }
    println!("{asked} requests, each refused");
}

#[test]
fn a_foreign_host_or_origin_is_refused_on_every_method_of_every_route() {
    alone(|| {
        let place = Place::new();
        let (queen, hive) = fleet(&place, &[]);
        refuses_foreigners(&queen, rbee::queen::TABLE);
        refuses_foreigners(&hive, rbee::hive::TABLE);
    });
}

/// Every method on every path of a table, without a key and with a wrong one; and with the right one, from elsewhere.
fn asks_for_its_key<E>(daemon: &Daemon, table: &[Route<E>]) {
    let ours = &daemon.address;
    let mut asked = 0;
    for route in table {
        let path = path_of(route);
        let is_open = ["/health", "/v1/health"].contains(&path.as_str());
        for method in METHODS {
            let ask = |headers: &str| {
                daemon.raw(&format!("{method} {path} HTTP/1.1\r\nhost: {headers}\r\ncontent-length: 0"))
            };
            let (none, wrong) = (ask(ours), ask(&format!("{ours}\r\nauthorization: Bearer {KEY}x")));
            // Who joins shows a token, which the route itself looks at.
            let is_joining = path == "/v1/join";
            assert_eq!(none == 401, !is_open, "{method} {path}: {none}");
            assert!(
                if is_open { wrong != 401 } else { wrong == 401 || is_joining && wrong >= 400 },
                "{method} {path}: {wrong}"
            );
            let right = format!("authorization: Bearer {KEY}");
            for foreign in [
                format!("evil.example\r\nauthorization: Bearer {KEY}x"),
                format!("{ours}\r\n{right}\r\norigin: https://evil.example"),
                format!("{ours}\r\n{right}\r\norigin: null"),
                format!("{ours}\r\n{right}\r\nsec-fetch-site: cross-site"),
            ] {
                let answer = ask(&foreign);
                let is_refused = answer == 403 || (is_joining || path == "/v1/link") && answer >= 400;
                assert!(is_refused, "{method} {path}, {foreign}: {answer}");
            }
            asked += 6;
        }
    }
    println!("{asked} requests, each refused as it should be");
}

#[test]
fn a_key_is_asked_for_on_every_method_of_every_route() {
    alone(|| {
        let place = Place::new();
        let env = [("RBEE_API_KEY", KEY)];
        let queen = Daemon::try_start(&place, "queen serve", &[], &env).unwrap();
        let hive = Daemon::try_start(&place, "hive serve", &[], &env).unwrap();
        asks_for_its_key(&queen, rbee::queen::TABLE);
        asks_for_its_key(&hive, rbee::hive::TABLE);
        assert!(!queen.log().contains("open-sesame") && !hive.log().contains("open-sesame"));
    });
}
