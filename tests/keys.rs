//! Keys and join tokens: made once, kept as digests, taken back at any time; and a node that joins by one.

use crate::guard::{METHODS, path_of};
use crate::support::node::{Daemon, PATIENCE, Place, Refused, alone, chat, said as said_by, until};
use rbee::http::client;
use rbee::wire::Code;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

/// Runs a command that has to go well, and gives what it printed.
#[track_caller]
fn done(place: &Place, args: &[&str]) -> String {
    let output = place.rbee(args);
    assert!(output.status.success(), "{output:?}");
    said_by(&output).0.trim_end().to_owned()
}

#[track_caller]
fn refused(place: &Place, args: &[&str], words: &str) {
    let output = place.rbee(args);
    let (stdout, stderr) = said_by(&output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{output:?}");
    assert!(stderr.contains(words), "`{words}` is not in {stderr}");
}

/// No file of the place holds a secret but those named, and these are for their owner's eyes only.
fn is_nowhere_but(place: &Place, secret: &str, allowed: &[&str]) {
    let mut waiting = vec![place.path("")];
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() && memory_of(&path).windows(secret.len()).any(|w| w == secret.as_bytes()) {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
            found.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    assert_eq!(found, allowed);
}

fn memory_of(path: &std::path::Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_default()
}

#[test]
fn a_key_is_shown_once_opens_a_running_daemon_at_once_and_can_be_taken_back() {
    alone(|| {
        let place = Place::new();
        // Before any daemon has ever run.
        let key = done(&place, &["key", "create", "--name", "laptop"]);
        assert!(key.starts_with("rbee_") && !key.contains(char::is_whitespace), "{key}");
        refused(&place, &["key", "create", "--name", "laptop"], "already called `laptop`");
        let mut daemon = Daemon::start(&place, "serve", &[]);
        assert_eq!(daemon.get("/v1/info").failure().code, Code::MissingApiKey);
        daemon.use_key("rbee_0123");
        assert_eq!(daemon.get("/v1/info").failure().code, Code::InvalidApiKey);
        daemon.use_key(&key);
        assert_eq!(daemon.get("/v1/info").status, 200);
        let second: Value = serde_json::from_str(&done(&place, &["key", "create", "--json"])).unwrap();
        assert_eq!(second["name"], "key-1");
        let second = second["key"].as_str().unwrap().to_owned();
        daemon.use_key(&second);
        assert_eq!(daemon.get("/v1/info").status, 200, "the first request with a new key");
        let listed = done(&place, &["key", "list"]);
        assert!(listed.contains("laptop") && listed.contains(&key[key.len() - 4..]), "{listed}");
        assert!(!listed.contains(&key), "{listed}");
        done(&place, &["key", "revoke", "key-1"]);
        until("the revoked key is refused", || match daemon.get("/v1/info").status {
            401 => Ok(()),
            status => Err(status.to_string()),
        });
        refused(&place, &["key", "revoke", "key-1"], "no key is called `key-1`");
        is_nowhere_but(&place, &key, &[]);
        is_nowhere_but(&place, &second, &[]);
    });
}

#[test]
fn beyond_loopback_with_a_made_key_the_same_accounts_commands_need_no_flag_and_the_last_revoked_key_closes() {
    alone(|| {
        let place = Place::new();
        let beyond = ["--listen", "0.0.0.0:0"];
        match Daemon::try_start(&place, "serve", &beyond, &[]) {
            Err(Refused { said, .. }) => assert!(said.contains("rbee key create"), "{said}"),
            Ok(daemon) => panic!("listens on {}", daemon.address),
        }
        let key = done(&place, &["key", "create"]);
        let mut daemon = Daemon::start(&place, "serve", &beyond);
        let queen = daemon.url().replace("0.0.0.0", "127.0.0.1");
        let status = done(&place, &["status", "--queen", &queen]);
        assert!(status.contains("queen"), "{status}");
        let stranger = Place::new();
        refused(&stranger, &["status", "--queen", &queen], "MISSING_API_KEY");
        daemon.use_key(&key);
        assert_eq!(daemon.get("/v1/info").status, 200);
        done(&place, &["key", "revoke", "key-1"]);
        // By an address that is not ours, as here, or by one that is.
        until("nobody is let in", || match daemon.get("/v1/info").status {
            401 | 403 => Ok(()),
            status => Err(status.to_string()),
        });
        done(&place, &["status", "--queen", &queen]);
        assert!(place.path("s/queen.local").exists());
        assert!(daemon.terminate().success());
        assert!(!place.path("s/queen.local").exists(), "the key of the moment goes with its daemon");
    });
}

#[test]
fn keys_that_do_not_read_keep_a_daemon_from_starting() {
    alone(|| {
        let place = Place::new();
        done(&place, &["key", "create"]);
        std::fs::write(place.path("s/keys.json"), "{\"keys\": [").unwrap();
        for role in ["serve", "queen serve", "hive serve"] {
            match Daemon::try_start(&place, role, &[], &[]) {
                Err(Refused { said, .. }) => assert!(said.contains("keys.json"), "{said}"),
                Ok(daemon) => panic!("{role} listens on {}", daemon.address),
            }
        }
    });
}

#[test]
fn a_node_joins_by_a_token_once_serves_and_is_known_again_without_one() {
    alone(|| {
        let (place, node, other) = (Place::new(), Place::new(), Place::new());
        let client_key = done(&place, &["key", "create"]);
        let mut queen = Daemon::start(&place, "queen serve", &[]);
        queen.use_key(&client_key);
        let url = queen.url();
        let token = done(&place, &["token"]);
        assert!(token.starts_with("rbee_join_"), "{token}");
        let joins = |name: &'static str, token: &str| {
            ["--name", name, "--queen", &url, "--join", token].map(str::to_owned)
        };
        let start = |node: &Place, args: &[String]| {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            Daemon::try_start(node, "hive serve", &args, &[])
        };
        let hive = start(&node, &joins("one", &token)).unwrap();
        queen.has_hives(1);
        let model = queen.register(&node, Some("one"));
        assert!(queen.stream("/v1/chat/completions", &chat(&model, 3, true)).rest().is_clean());

        let said = start(&other, &joins("two", &token)).err().unwrap();
        assert!(
            said.exit.code() == Some(1) && said.said.contains("used already, by the hive `one`"),
            "{said}"
        );
        let said = start(&other, &joins("two", "rbee_join_made-up")).err().unwrap();
        assert!(said.said.contains("not one of this queen's"), "{said}");
        // From an account with no daemon of its own, by her address: she is asked.
        let ask = |args: &[&str]| {
            let mut command = other.command(&[&["token", "--queen", url.as_str()], args].concat());
            command.env_remove("RBEE_STATE_DIR").output().unwrap()
        };
        let (_, told) = said_by(&ask(&[]));
        assert!(told.contains("MISSING_API_KEY"), "{told}");
        let (made, told) = said_by(&ask(&["--api-key", &client_key]));
        assert!(made.starts_with("rbee_join_") && told.contains("within 60 min"), "{made}{told}");
        let short = done(&place, &["token", "--ttl", "1ms"]);
        let said = start(&other, &joins("two", &short)).err().unwrap();
        assert!(said.said.contains("expired"), "{said}");
        let second = done(&place, &["token"]);
        let said = start(&other, &joins("one", &second)).err().unwrap();
        assert!(
            said.said.contains("already called `one`") || said.said.contains("has joined as `one`"),
            "{said}"
        );

        // Neither the first life's token nor any other key is needed again.
        let log = hive.log();
        assert!(hive.terminate().success());
        let hive = start(&node, &["--name", "one", "--queen", &url].map(str::to_owned)).unwrap();
        queen.has_hives(1);
        let listed: Value = serde_json::from_str(&done(&place, &["key", "list", "--json"])).unwrap();
        let kinds: Vec<_> = listed.as_array().unwrap().iter().map(|k| (&k["name"], &k["kind"])).collect();
        assert_eq!(kinds, [(&json!("key-1"), &json!("client")), (&json!("one"), &json!("hive"))]);

        let nodes = json_of(&node, "s/queens.json");
        let key = nodes[0]["key"].as_str().unwrap();
        for (place, secret, allowed) in [
            (&place, token.as_str(), vec![]),
            (&place, key, vec![]),
            (&node, &token, vec![]),
            (&node, key, vec!["queens.json"]),
        ] {
            is_nowhere_but(place, secret, &allowed);
        }
        assert!(!log.contains(&token) && !log.contains(key), "{log}");

        // What the node's key opens: its link, and that only by its own name.
        let asked = client::get("/v1/hives").unwrap();
        queen.use_key(key);
        assert_eq!(queen.request(asked).failure().code, Code::Forbidden);
        assert_eq!(queen.post("/v1/jobs", &json!({"operation": "status"})).failure().code, Code::Forbidden);
        let said = start(&node, &["--name", "queen-of-hearts", "--queen", &url].map(str::to_owned));
        assert!(said.is_err(), "one hive a state directory");

        // Taken back, it is cut off within a second, and stays out.
        queen.use_key(&client_key);
        done(&place, &["key", "revoke", "one"]);
        queen.has_hives(0);
        until("the hive is told why", || match hive.log() {
            log if log.contains("not one of this daemon's") => Ok(()),
            log => Err(log),
        });
        // A new token lets it in again, by a new key.
        assert!(hive.terminate().success());
        let third = done(&place, &["token"]);
        let _hive = start(&node, &joins("one", &third)).unwrap();
        queen.has_hives(1);
        assert_ne!(json_of(&node, "s/queens.json")[0]["key"], key);
    });
}

#[test]
fn a_command_that_starts_the_daemon_is_let_in_by_it_though_there_are_keys() {
    alone(|| {
        let place = Place::new();
        done(&place, &["key", "create"]);
        let queen = format!("http://{}", place.address(7833));
        let model = place.model();
        let run = ["run", "--ephemeral", "--queen", &queen, "-m", &model, "--max-tokens", "3", "-p", "Hello"];
        done(&place, &run);
    });
}

fn json_of(place: &Place, path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(path)).unwrap()).unwrap()
}

#[test]
fn a_hives_key_links_by_its_own_name_only() {
    alone(|| {
        let (place, node) = (Place::new(), Place::new());
        let queen = Daemon::start(&place, "queen serve", &[]);
        let url = queen.url();
        let token = done(&place, &["token", "--queen", &url]);
        let hive = Daemon::start(&node, "hive serve", &["--name", "one", "--queen", &url, "--join", &token]);
        queen.has_hives(1);
        // A hive's key alone does not close the queen's loopback to this machine's clients.
        assert_eq!(queen.get("/v1/info").status, 200);
        assert!(hive.terminate().success());
        let hive = Daemon::start(&node, "hive serve", &["--name", "two", "--queen", &url]);
        until("the other name is refused", || match hive.log() {
            log if log.contains("was given to the hive `one`") => Ok(()),
            log => Err(log),
        });
        queen.has_hives(0);
        let forgotten =
            queen.request(client::request("DELETE", "/v1/hives/one", rbee::http::reply::empty()).unwrap());
        assert_eq!(forgotten.status, 200, "{forgotten:?}");
        let again =
            queen.request(client::request("DELETE", "/v1/hives/one", rbee::http::reply::empty()).unwrap());
        assert_eq!(again.failure().code, Code::HiveNotFound);
    });
}

/// A queen with a client's key and a hive's; and the two keys.
fn with_keys(place: &Place, node: &Place) -> (Daemon, String, String) {
    let client_key = done(place, &["key", "create"]);
    let mut queen = Daemon::start(place, "queen serve", &[]);
    queen.use_key(&client_key);
    let token = done(place, &["token"]);
    let args = ["--name", "one", "--queen", &queen.url(), "--join", &token];
    let hive = Daemon::start(node, "hive serve", &args);
    queen.has_hives(1);
    assert!(hive.terminate().success());
    let hives_key = json_of(node, "s/queens.json")[0]["key"].as_str().unwrap().to_owned();
    (queen, client_key, hives_key)
}

#[test]
fn a_hives_key_opens_no_route_but_its_link_by_any_method() {
    alone(|| {
        let (place, node) = (Place::new(), Place::new());
        let (queen, _, key) = with_keys(&place, &node);
        let mut refused = 0;
        for route in rbee::queen::TABLE {
            let path = path_of(route);
            if ["/health", "/v1/health"].contains(&path.as_str()) {
                continue;
            }
            for method in METHODS {
                let head = format!(
                    "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {key}\r\ncontent-length: 0",
                    queen.address
                );
                let status = queen.raw(&head);
                match path.as_str() {
                    // Neither an upgrade nor a token.
                    "/v1/link" | "/v1/join" => assert!((400..500).contains(&status), "{head}: {status}"),
                    _ => assert_eq!(status, 403, "{head}"),
                }
                refused += 1;
            }
        }
        println!("{refused} requests, each refused");
        let link = |name: &str, more: &str| {
            queen.raw(&format!(
                "GET /v1/link HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {key}\r\nupgrade: rbee-link\r\n\
                 rbee-hive: {name}\r\nrbee-node: n\r\nrbee-protocol: {}\r\nrbee-version: {}{more}",
                queen.address,
                rbee::wire::PROTOCOL,
                rbee::wire::VERSION
            ))
        };
        assert_eq!(link("two", ""), 403);
        assert_eq!(link("One", ""), 403, "a name in other letters is another");
        // The first of two names would be looked at, and the second perhaps used.
        assert_eq!(link("one", "\r\nrbee-hive: two"), 400);
    });
}

#[test]
fn a_path_that_is_only_like_an_open_one_needs_a_key() {
    alone(|| {
        let place = Place::new();
        done(&place, &["key", "create"]);
        let queen = Daemon::start(&place, "queen serve", &[]);
        let ask = |method: &str, target: &str, more: &str| {
            queen.raw(&format!("{method} {target} HTTP/1.1\r\nhost: {}{more}", queen.address))
        };
        assert_eq!(ask("GET", "/health?x=/v1/info", ""), 200);
        for target in [
            "/%68ealth",
            "/v1/%68ealth",
            "/health/",
            "//health",
            "/health/../v1/hives",
            "/health%2f..%2fv1/hives",
            "/v1/health;/../info",
            "/HEALTH",
            "/./health",
            "/v1/hives?/health",
            "/v1/join/../hives",
            "/v1/%6aoin",
            "/v1/hives/%2e%2e/health",
            "/openai/v1/models",
            "/openai/../health",
            "/openai/v1/health",
            "*",
        ] {
            for method in METHODS {
                let status = ask(method, target, "");
                assert!(status == 401 || status == 400, "{method} {target}: {status}");
            }
        }
        // What a proxy says of who asks counts for nothing, and nobody is a peer by a header.
        for more in [
            "x-forwarded-for: 127.0.0.1",
            "forwarded: for=127.0.0.1;host=localhost",
            "x-original-url: /health",
            "x-rewrite-url: /health",
            "x-http-method-override: GET",
            "rbee-hive: one\r\nrbee-node: n",
            "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA",
            "cookie: authorization=Bearer x",
            "authorization: Basic cmJlZTpyYmVl",
            "authorization: Bearer",
            "proxy-authorization: Bearer x",
        ] {
            assert_eq!(ask("GET", "/v1/hives", &format!("\r\n{more}")), 401, "{more}");
        }
    });
}

#[test]
fn a_request_that_can_be_read_in_two_ways_is_refused() {
    alone(|| {
        let (place, node) = (Place::new(), Place::new());
        let open = Daemon::start(&node, "hive serve", &[]);
        let ours = &open.address;
        let port = ours.rsplit_once(':').unwrap().1;
        let ask = |line: &str, headers: &str| {
            let (head, after) = (format!("GET {line}"), if headers.is_empty() { "" } else { "\r\n" });
            open.raw(&format!("{head}{after}{headers}"))
        };
        let info = "/v1/info HTTP/1.1";
        let absolute = |host: &str| format!("http://{host}/v1/info HTTP/1.1");
        // One that goes to a proxy is answered where every name in it is ours.
        assert_eq!(ask(&absolute(ours), &format!("host: {ours}")), 200);
        assert_eq!(ask(&absolute("evil.example"), &format!("host: {ours}")), 403);
        assert_eq!(ask(&absolute(ours), "host: evil.example"), 403);
        for (headers, status) in [
            (format!("host: {ours}\r\nhost: evil.example"), 400),
            (format!("host: evil.example\r\nhost: {ours}"), 400),
            (format!("host: {ours}\r\nhost: {ours}"), 400),
            (format!("host: {ours}\r\norigin: http://{ours}\r\norigin: https://evil.example"), 400),
            ("host: ".into(), 403),
            (String::new(), 403),
            (format!("host: {ours}@evil.example"), 403),
            (format!("host: evil.example@{ours}"), 403),
            (format!("host: [::1].evil.example:{port}"), 403),
            (format!("host: evil.example\r\nx-forwarded-host: {ours}"), 403),
            (format!("host: evil.example\r\nforwarded: host={ours}"), 403),
            (format!("host: {ours}, evil.example"), 403),
            (format!("host: {ours}\r\norigin: http://{ours}.evil.example"), 403),
            (format!("host: {ours}\r\norigin: http://evil.example@{ours}"), 403),
            (format!("host: {ours}\r\norigin: file://{ours}"), 403),
            (format!("host: {ours}\r\nsec-fetch-site: same-site"), 403),
        ] {
            assert_eq!(ask(info, &headers), status, "{headers}");
        }
        for line in [format!("http://{ours}@evil.example/v1/info HTTP/1.1"), "/v1/info HTTP/1.0".into()] {
            let status = ask(&line, "");
            assert!(status == 400 || status == 403, "{line}: {status}");
        }
        let status = open.raw("CONNECT evil.example:80 HTTP/1.1\r\nhost: localhost");
        assert!((400..500).contains(&status), "{status}");

        let (queen, client, hives) = with_keys(&place, &Place::new());
        for (one, other) in [(&client, &hives), (&hives, &client), (&client, &client)] {
            let head = format!(
                "GET /v1/info HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {one}\r\nauthorization: Bearer {other}",
                queen.address
            );
            assert_eq!(queen.raw(&head), 400);
        }
    });
}

/// Asks several times over one connection; what came back.
fn over_one_connection(daemon: &Daemon, bytes: &str) -> String {
    let mut stream = TcpStream::connect(&daemon.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // Cut off in the middle of what it takes for nonsense, which is an answer, too.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn each_request_of_a_connection_shows_its_own_key_and_no_other_protocol_is_spoken() {
    alone(|| {
        let place = Place::new();
        let key = done(&place, &["key", "create"]);
        let queen = Daemon::start(&place, "queen serve", &[]);
        let ours = &queen.address;
        let statuses = |answer: &str| -> Vec<String> {
            let lines = answer.lines().filter_map(|line| line.split_once("HTTP/1.1 "));
            lines.map(|(_, status)| status[..3].to_owned()).collect()
        };
        let last = format!("GET /v1/info HTTP/1.1\r\nhost: {ours}\r\nconnection: close\r\n\r\n");
        let keyed = format!("GET /v1/info HTTP/1.1\r\nhost: {ours}\r\nauthorization: Bearer {key}\r\n\r\n");
        let open = format!("GET /health HTTP/1.1\r\nhost: {ours}\r\n\r\n");
        assert_eq!(
            statuses(&over_one_connection(&queen, &format!("{keyed}{open}{last}"))),
            ["200", "200", "401"]
        );
        // A body that ends in two ways hides no request.
        let hidden = format!(
            "POST /health HTTP/1.1\r\nhost: {ours}\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{last}",
            5 + last.len()
        );
        let told = over_one_connection(&queen, &hidden);
        assert!(statuses(&told).iter().all(|status| status != "200"), "{told}");
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
        let told = over_one_connection(&queen, preface);
        assert!(!told.contains(" 200") && !told.contains("\0\0"), "{told:?}");
    });
}

#[test]
fn who_joins_may_know_the_queen_by_any_name_but_needs_a_token_and_is_no_page() {
    alone(|| {
        let place = Place::new();
        done(&place, &["key", "create"]);
        let queen = Daemon::start(&place, "queen serve", &[]);
        let body = json!({"hive": "one", "node": "n"}).to_string();
        let join = |method: &str, headers: &str| {
            let length = body.len();
            let answer = over_one_connection(
                &queen,
                &format!(
                    "{method} /v1/join HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
                     connection: close\r\n{headers}\r\n\r\n{body}"
                ),
            );
            answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()).unwrap()
        };
        let (ours, token) = (queen.address.clone(), done(&place, &["token"]));
        let by_alias = "host: queen.lan:7833";
        assert_eq!(join("POST", &format!("host: {ours}")), 401);
        assert_eq!(join("POST", by_alias), 403);
        assert_eq!(join("POST", &format!("{by_alias}\r\nauthorization: Bearer rbee_join_0")), 401);
        assert_eq!(join("GET", &format!("{by_alias}\r\nauthorization: Bearer {token}")), 405);
        for page in ["origin: https://evil.example", "origin: null", "sec-fetch-site: cross-site"] {
            let headers = format!("host: {ours}\r\nauthorization: Bearer {token}\r\n{page}");
            assert_eq!(join("POST", &headers), 403, "{page}");
        }
        let listed = done(&place, &["key", "list", "--json"]);
        assert!(!listed.contains("\"hive\""), "nobody has joined: {listed}");
        assert_eq!(join("POST", &format!("{by_alias}\r\nauthorization: Bearer {token}")), 200);
        assert_eq!(join("POST", &format!("{by_alias}\r\nauthorization: Bearer {token}")), 401, "once");
    });
}
