//! What a hub and its CDN do wrong, and what the program makes of it: the right file, or the right word, and never a wrong
//! file under a right name (B31).

use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::{Content, Fault, Plan, Repo, Site, TestHub, When};
use crate::support::node::{alone, said, until};
use crate::support::pull::{Puller, sha256_of};
use rbee::wire::{Code, Failure};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FILE: &str = "m-Q4_K_M.gguf";
const ATTEMPTS_MAX: usize = 6;
/// In the middle of the file.
const HALF: usize = 300_000;

fn model(seed: u64) -> Arc<Content> {
    let bytes = tiny(&Tiny::default());
    let size = bytes.len() as u64 + 50_000;
    Content::padded(bytes, size, seed)
}

/// A model of so many bytes, the most of them noise.
fn large(bytes: u64, seed: u64) -> Arc<Content> {
    Content::padded(tiny(&Tiny::default()), bytes, seed)
}

/// What one repository's requests are answered with, and how it must end.
struct Case {
    name: &'static str,
    rules: Vec<(When, Fault)>,
    end: End,
    /// For the bytes, over all attempts.
    requests_max: usize,
}

enum End {
    Right,
    Refused(Code, &'static str),
}

/// Requests for bytes, one fault each from the first on.
fn in_turn(name: &'static str, faults: &[Fault], end: End) -> Case {
    let rules = faults.iter().enumerate().map(|(number, fault)| (When::bytes().nth(number), fault.clone()));
    Case { name, rules: rules.collect(), end, requests_max: faults.len() + 1 }
}

fn always(name: &'static str, when: When, fault: Fault, end: End, requests_max: usize) -> Case {
    Case { name, rules: vec![(when, fault)], end, requests_max }
}

fn passing() -> Vec<Case> {
    let cut = || Fault::CutAt(HALF);
    let right = |name, faults: &[Fault]| in_turn(name, faults, End::Right);
    let asks_to_wait = |when: &str| Fault::StatusWith(429, format!("retry-after: {when}\r\n"));
    vec![
        right("nothing", &[]),
        right("cut", &[cut(), Fault::CutAt(1), Fault::CutAt(HALF / 2)]),
        right("cut before the first byte", &[Fault::CutAt(0), Fault::CutAt(0)]),
        right("reset", &[Fault::ResetAt(HALF), Fault::ResetAt(1000)]),
        right("whole for a part", &[cut(), Fault::IgnoreRange]),
        right("late part", &[cut(), Fault::LatePart]),
        right("early part", &[cut(), Fault::EarlyPart]),
        right("short part", &[cut(), Fault::ShortPart]),
        right("part of nothing", &[cut(), Fault::NoContentRange]),
        right("416", &[cut(), Fault::Status(416)]),
        right("other tag, same bytes", &[cut(), Fault::NewTag, Fault::OtherTag]),
        right("500, 503, 408", &[Fault::Status(500), Fault::Status(503), Fault::Status(408)]),
        right("429", &[asks_to_wait("1"), asks_to_wait("Wed, 21 Oct 2015 07:28:00 GMT")]),
        right("wrong byte", &[Fault::WrongByte]),
        right("flipped bit", &[Fault::FlipAt(HALF as u64)]),
        right("flipped bit in a part", &[cut(), Fault::FlipAt(HALF as u64 + 7)]),
        right("endless", &[Fault::Endless]),
        right("endless part", &[cut(), Fault::Endless]),
        right("no length", &[Fault::NoLength]),
        right("no HTTP", &[Fault::Gibberish]),
        right("endless head", &[Fault::EndlessHead]),
    ]
}

fn refused() -> Vec<Case> {
    let sum = |says| End::Refused(Code::ChecksumMismatch, says);
    let failed = |says| End::Refused(Code::DownloadFailed, says);
    let bytes = When::bytes;
    vec![
        always("wrong byte", bytes(), Fault::WrongByte, sum("sum"), 2),
        always("flipped bit", bytes(), Fault::FlipAt(HALF as u64), sum("sum"), 2),
        always("other size", bytes(), Fault::OtherSize, sum("bytes"), 1),
        Case {
            name: "other total",
            rules: vec![(bytes().nth(0), Fault::CutAt(HALF)), (bytes(), Fault::OtherTotal)],
            end: sum("bytes"),
            requests_max: 2,
        },
        always("endless", bytes(), Fault::Endless, sum("more than"), ATTEMPTS_MAX),
        always("gzip", bytes(), Fault::Gzip, failed("gzip"), 1),
        always("500", bytes(), Fault::Status(500), failed("after 6 attempts"), ATTEMPTS_MAX),
        always("cut", bytes(), Fault::CutAt(0), failed("after 6 attempts"), ATTEMPTS_MAX),
        always("no HTTP", bytes(), Fault::Gibberish, failed("after 6 attempts"), ATTEMPTS_MAX),
        always("teapot", bytes(), Fault::Status(418), failed("418"), 1),
        always(
            "a day's pause",
            bytes(),
            Fault::StatusWith(429, "retry-after: 86400\r\n".into()),
            failed("wait"),
            1,
        ),
        always("404", When::resolve(), Fault::Status(404), End::Refused(Code::ModelNotFound, "not there"), 0),
        always("401", When::resolve(), Fault::Status(401), End::Refused(Code::Forbidden, "HF_TOKEN"), 0),
        always("403", When::resolve(), Fault::Status(403), End::Refused(Code::Forbidden, "HF_TOKEN"), 0),
        always(
            "a file",
            When::resolve(),
            Fault::RedirectTo("file:///etc/passwd".into()),
            failed("redirect"),
            0,
        ),
        always("ftp", When::resolve(), Fault::RedirectTo("ftp://x/y.gguf".into()), failed("redirect"), 0),
        always("no location", When::resolve(), Fault::Status(302), failed("redirects without"), 0),
    ]
}

/// A repository for each case, all at once on one hive.
fn run(cases: Vec<Case>, with_cdn: bool) {
    let repo = |number: usize| format!("bees/Case{number}x");
    let content = |number: usize| model(number as u64 + 1);
    let repos = (0..cases.len()).map(|number| Repo::new(&repo(number)).with(FILE, &content(number)));
    let plan = TestHub::of(repos.collect::<Vec<_>>());
    let puller = Puller::new(if with_cdn { plan.cdn() } else { plan }.open());
    let only = |when: When, number: usize| when.path(&repo(number)).path(content(number).sha256());
    for (number, case) in cases.iter().enumerate() {
        for (when, fault) in &case.rules {
            puller.hub.fail(only(when.clone(), number), fault.clone());
        }
    }
    let jobs: Vec<String> = (0..cases.len()).map(|number| puller.begin(&repo(number))).collect();
    for (number, (case, id)) in cases.iter().zip(&jobs).enumerate() {
        let job = puller.hive().follow(id);
        let name = case.name;
        let asked = puller.hub.asked();
        let of_bytes = asked.iter().filter(|asked| match with_cdn {
            true => asked.site == Site::Cdn && asked.path.contains(content(number).sha256()),
            false => asked.path.contains(&repo(number)) && asked.path.contains("/resolve/"),
        });
        let of_bytes = of_bytes.count();
        match case.end {
            End::Right => {
                assert_eq!(sha256_of(&puller.path_of(&job)), content(number).sha256(), "{name}");
            }
            End::Refused(code, says) => {
                let error = job.find("error").unwrap_or_else(|| panic!("{name}: {job:?}"));
                let failure: Failure = serde_json::from_value(error.clone()).unwrap();
                assert_eq!(failure.code, code, "{name}: {failure}");
                assert!(failure.message.contains(says), "{name}: {failure}");
                let root = puller.place.path("").display().to_string();
                assert!(
                    !failure.message.contains(&root) && !failure.message.contains("Signature"),
                    "{failure}"
                );
            }
        }
        // Without a CDN, what the hub answers is counted with what it sends.
        let requests_max = case.requests_max.max(usize::from(!with_cdn));
        assert!(of_bytes <= requests_max, "{name}: asked {of_bytes} times");
    }
    let wrong = cases.iter().filter(|case| !matches!(case.end, End::Right)).count();
    assert_eq!(puller.is_sound(), cases.len() - wrong);
    assert_eq!(puller.models().len(), cases.len() - wrong);
    // Nothing of what was refused; only what came before a connection broke.
    let mut kept = puller.kept();
    let is_begun = |case: &&Case| case.rules.iter().any(|(_, fault)| matches!(fault, Fault::CutAt(1..)));
    for (number, _) in cases.iter().enumerate().filter(|(_, case)| is_begun(case)) {
        kept.retain(|path| !path.starts_with(puller.folder(&repo(number))));
    }
    assert_eq!(kept, [] as [PathBuf; 0]);
    for asked in puller.hub.asked_of(Site::Cdn) {
        assert_eq!(asked.header("authorization"), None);
    }
    // And nothing was spoilt for good.
    puller.hub.behave();
    for number in (0..cases.len()).filter(|number| !matches!(cases[*number].end, End::Right)) {
        let job = puller.pull(&repo(number));
        assert_eq!(sha256_of(&puller.path_of(&job)), content(number).sha256(), "{}", cases[number].name);
    }
    assert_eq!(puller.kept(), [] as [PathBuf; 0]);
}

#[test]
fn what_passes_ends_in_the_right_file() {
    alone(|| run(passing(), false));
}

#[test]
fn what_passes_on_the_way_to_a_cdn_ends_in_the_right_file() {
    alone(|| run(passing(), true));
}

#[test]
fn what_does_not_pass_is_refused_in_its_own_words() {
    alone(|| run(refused(), false));
}

#[test]
fn what_does_not_pass_at_a_cdn_is_refused_in_its_own_words() {
    alone(|| run(refused(), true));
}

/// One repository, [`FILE`] in it.
fn hub(content: &Arc<Content>) -> Plan {
    TestHub::of([Repo::new("bees/One").with(FILE, content)])
}

#[test]
fn a_signed_link_that_has_expired_is_asked_for_again() {
    alone(|| {
        let content = model(1);
        let puller = Puller::new(hub(&content).cdn().link_uses(1).open());
        puller.hub.cut_at([100_000, 200_000, 400_000]);
        let job = puller.pull("bees/One");
        assert_eq!(sha256_of(&puller.path_of(&job)), content.sha256());
        assert_eq!(puller.hub.bytes_sent(), content.size());
        let resolved = puller.hub.asked().iter().filter(|asked| asked.path.contains("/resolve/")).count();
        assert!((4..=8).contains(&resolved), "{resolved}");
    });
}

#[test]
fn a_hub_that_says_another_sum_than_it_listed_is_not_believed() {
    alone(|| {
        let puller = Puller::new(hub(&model(1)).cdn().open());
        let other = format!("\"{}\"", model(2).sha256());
        puller.hub.fail(When::resolve(), Fault::Says("x-linked-etag", other));
        let failure = puller.refused("bees/One");
        assert_eq!(failure.code, Code::ChecksumMismatch, "{failure}");
        assert_eq!((puller.is_sound(), puller.kept().len()), (0, 0));
        // Headers that a mirror leaves out are no reason to refuse.
        puller.hub.behave();
        puller.hub.fail(When::resolve().nth(0), Fault::Without("x-linked-etag"));
        puller.pull("bees/One").done();
        assert_eq!(puller.is_sound(), 1);
    });
}

#[test]
fn redirects_are_followed_a_few_times_and_not_round_and_round() {
    alone(|| {
        let content = model(1);
        let end = hub(&content).open();
        let commit = Repo::new("bees/One").newest().id.clone();
        let path = format!("/bees/One/resolve/{commit}/{FILE}");
        let puller = Puller::with(hub(&content).open(), &[("HF_TOKEN", "hf_canary")]);
        // Within the hub by a path alone, then to another origin.
        puller.hub.fail(When::resolve().nth(0), Fault::RedirectTo(format!("{path}?again")));
        puller.hub.fail(When::resolve().nth(1), Fault::RedirectTo(format!("{}{path}", end.endpoint())));
        let job = puller.pull("bees/One");
        assert_eq!(sha256_of(&puller.path_of(&job)), content.sha256());
        assert_eq!((puller.hub.bytes_sent(), end.bytes_sent()), (0, content.size()));
        assert!(end.asked().iter().all(|asked| asked.header("authorization").is_none()));
        assert!(puller.hub.asked().iter().all(|asked| asked.header("authorization").is_some()));
        drop(puller);

        let round = Puller::new(hub(&content).open());
        round.hub.fail(When::resolve(), Fault::RedirectTo(path));
        let failure = round.refused("bees/One");
        assert_eq!(failure.code, Code::DownloadFailed, "{failure}");
        assert!(failure.message.contains("redirects"), "{failure}");
        assert_eq!(round.hub.asked().iter().filter(|asked| asked.path.contains("/resolve/")).count(), 6);
    });
}

#[test]
fn a_cancel_is_heard_at_once_and_what_came_is_gone_on_with() {
    alone(|| {
        let content = large(3 << 20, 1);
        let puller = Puller::new(hub(&content).cdn().send_buffer(64 << 10).open());
        puller.hub.fail(When::bytes().nth(0), Fault::Slow(Duration::from_millis(10)));
        // A byte a second is no stall, and may go on for years.
        puller.hub.fail(When::bytes().nth(1), Fault::Drip(Duration::from_secs(1)));
        for asked_before in [0, 1] {
            let id = puller.begin("bees/One");
            puller.hub.has_sent(1 << 20);
            until("the bytes are asked for", || match puller.hub.asked_of(Site::Cdn).len() {
                asked if asked > asked_before => Ok(()),
                asked => Err(asked.to_string()),
            });
            let asked = Instant::now();
            let (_, told) = said(&puller.rbee(&["job", "cancel", &id]));
            until("the job is cancelled", || {
                let state = puller.hive().get(&format!("/v1/jobs/{id}")).json()["state"].clone();
                if state == "cancelled" { Ok(()) } else { Err(format!("{state}: {told}")) }
            });
            assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
            assert_eq!(puller.is_sound(), 0);
            assert!(!puller.kept().is_empty(), "what came is kept");
        }
        let job = puller.pull("bees/One");
        assert_eq!(sha256_of(&puller.path_of(&job)), content.sha256());
        let again = puller.hub.bytes_sent() - content.size();
        assert!(again <= 1 << 20, "{again} bytes came twice");
        assert_eq!(puller.kept(), [] as [PathBuf; 0]);
    });
}

#[test]
fn a_large_file_comes_over_several_connections_and_every_byte_once() {
    alone(|| {
        let content = large(200 << 20, 1);
        let puller = Puller::new(hub(&content).cdn().bytes_per_second(40 << 20).open());
        let job = puller.pull("bees/One");
        assert_eq!(sha256_of(&puller.path_of(&job)), content.sha256());
        assert!(puller.hub.sending_most() >= 2, "{}", puller.hub.sending_most());
        assert_eq!(puller.hub.bytes_sent(), content.size());
        let mut spans = puller.hub.spans();
        spans.sort_unstable();
        let mut at = 0;
        for span in spans.iter().filter(|span| span.from < span.to) {
            assert_eq!(span.from, at, "{spans:?}");
            at = span.to;
        }
        assert_eq!(at, content.size());
        assert_eq!(puller.is_sound(), 1);
    });
}

#[test]
fn who_asks_for_one_model_by_several_names_shares_one_download() {
    alone(|| {
        let content = model(1);
        let puller = Puller::new(hub(&content).cdn().open());
        puller.hub.fail(When::bytes().nth(0), Fault::Slow(Duration::from_millis(20)));
        let names = ["bees/One", "bees/One:Q4_K_M", "hf.co/bees/One:q4_k_m", "bees/One:m-Q4_K_M.gguf"];
        let jobs: Vec<String> = names.iter().map(|name| puller.begin(name)).collect();
        for (name, id) in names.iter().zip(&jobs) {
            let job = puller.hive().follow(id);
            assert_eq!(sha256_of(&puller.path_of(&job)), content.sha256(), "{name}");
        }
        assert_eq!(puller.hub.bytes_sent(), content.size());
        assert_eq!(puller.is_sound(), 1);
    });
}

#[test]
fn what_is_there_costs_nothing_even_where_no_hub_is() {
    alone(|| {
        let content = model(1);
        let mut puller = Puller::new(hub(&content).cdn().open());
        puller.pull("bees/One").done();
        let asked = puller.hub.asked().len();
        let (code, told) = puller.download("bees/One:Q4_K_M");
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains("already"), "{told}");
        assert_eq!(puller.hub.bytes_sent(), content.size());
        assert!(puller.hub.asked().len() <= asked + 1, "no traffic but the check");
        puller.hub.fail(When::any(), Fault::Status(500));
        let begun = Instant::now();
        let (code, told) = puller.download("bees/One:Q4_K_M");
        assert_eq!(code, Some(0), "{told}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        // A record that is gone is no bytes that are gone.
        puller.hub.behave();
        std::fs::remove_dir_all(puller.place.path("s/models")).unwrap();
        puller.kill9();
        let (code, told) = puller.download("bees/One:Q4_K_M");
        assert_eq!(code, Some(0), "{told}");
        assert_eq!(puller.hub.bytes_sent(), content.size());
    });
}

#[test]
fn offline_nobody_is_asked_and_what_is_there_is_used() {
    alone(|| {
        let content = model(1);
        let mut puller = Puller::with(hub(&content).cdn().open(), &[("HF_HUB_OFFLINE", "1")]);
        let failure = puller.refused("bees/One:Q4_K_M");
        assert!(failure.message.contains("HF_HUB_OFFLINE"), "{failure}");
        assert_eq!(puller.hub.asked().len(), 0);
        puller.set("HF_HUB_OFFLINE", "");
        puller.pull("bees/One:Q4_K_M").done();
        std::fs::remove_dir_all(puller.place.path("s/models")).unwrap();
        puller.set("HF_HUB_OFFLINE", "1");
        let asked = puller.hub.asked().len();
        let job = puller.pull("bees/One:Q4_K_M");
        assert_eq!(sha256_of(&puller.path_of(&job)), content.sha256());
        assert_eq!(puller.hub.asked().len(), asked);
    });
}

#[test]
fn a_disk_too_small_is_told_before_a_byte_comes() {
    alone(|| {
        let puller = Puller::new(hub(&model(1)).cdn().open());
        let commit = Repo::new("bees/One").newest().id.clone();
        let huge = format!(
            r#"{{"id":"bees/One","sha":"{commit}","siblings":[{{"rfilename":"{FILE}","size":{size},
            "lfs":{{"sha256":"{}","size":{size},"pointerSize":135}}}}]}}"#,
            model(1).sha256(),
            size = 1u64 << 41,
        );
        puller.hub.fail(When::listing(), Fault::Body(huge));
        let failure = puller.refused("bees/One");
        assert_eq!(failure.code, Code::InsufficientDisk, "{failure}");
        assert!(failure.details["needed"].as_u64() > failure.details["available"].as_u64(), "{failure:?}");
        assert_eq!((puller.hub.bytes_sent(), puller.kept().len()), (0, 0));
    });
}

#[test]
fn what_is_damaged_in_the_cache_is_no_reason_to_give_it_out() {
    alone(|| {
        let content = model(1);
        let mut puller = Puller::new(hub(&content).cdn().open());
        let path = puller.path_of(&puller.pull("bees/One:Q4_K_M"));
        // Cut short behind everyone's back, and the record gone: found again, it has to be looked at.
        let blob = path.canonicalize().unwrap();
        let mut bytes = content.bytes();
        bytes[HALF] ^= 1;
        std::fs::write(&blob, &bytes).unwrap();
        std::fs::remove_dir_all(puller.place.path("s/models")).unwrap();
        puller.kill9();
        let job = puller.pull("bees/One:Q4_K_M");
        assert_eq!(sha256_of(&puller.path_of(&job)), content.sha256());
        assert_eq!(puller.is_sound(), 1);
    });
}

#[test]
fn a_public_hub_that_leads_into_our_network_is_not_followed() {
    if !in_a_network_of_its_own("a_public_hub_that_leads_into_our_network_is_not_followed") {
        return;
    }
    let content = model(1);
    let inner = hub(&content).open();
    let commit = Repo::new("bees/One").newest().id.clone();
    let path = format!("/bees/One/resolve/{commit}/{FILE}");
    let puller = Puller::new(hub(&content).listen(&format!("{PUBLIC}:0")).open());
    let port = inner.address.port();
    let ways =
        ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1"];
    for host in ways {
        puller.hub.behave();
        puller.hub.fail(When::resolve(), Fault::RedirectTo(format!("http://{host}:{port}{path}")));
        let begun = Instant::now();
        let failure = puller.refused("bees/One");
        assert!([Code::Forbidden, Code::DownloadFailed].contains(&failure.code), "{host}: {failure}");
        assert!(begun.elapsed() < Duration::from_secs(8), "{host}: {:?}", begun.elapsed());
    }
    assert_eq!((inner.asked().len(), puller.is_sound()), (0, 0), "nobody was asked");
}

/// An address that counts as one of the internet.
const PUBLIC: &str = "203.0.113.7";

/// Runs the named test where nothing but this process has an address; true in there.
fn in_a_network_of_its_own(test: &str) -> bool {
    const INSIDE: &str = "RBEE_TEST_IN_NETWORK";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let setup =
        format!("ulimit -u 2000; ip link set lo up && ip addr add {PUBLIC}/32 dev lo && \"$@\"; exit $?");
    let unshare = |arguments: &[&std::ffi::OsStr]| {
        let mut command = std::process::Command::new("unshare");
        command.args(["-rnmpf", "--kill-child", "--mount-proc", "sh", "-c", &setup, "sh"]);
        command.args(arguments).env(INSIDE, "1").stdin(std::process::Stdio::null());
        command.status()
    };
    if !unshare(&["true".as_ref()]).is_ok_and(|probe| probe.success()) {
        eprintln!("skipped: {test}: this system makes no network namespaces (unshare -rnmpf, ip)");
        return false;
    }
    let this = std::env::current_exe().unwrap();
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let arguments: [&std::ffi::OsStr; 5] = [
        this.as_os_str(),
        "--exact".as_ref(),
        name.as_ref(),
        "--nocapture".as_ref(),
        "--test-threads=1".as_ref(),
    ];
    assert!(unshare(&arguments).unwrap().success(), "{name}");
    false
}

#[test]
fn a_hub_that_is_not_there_is_told_within_seconds() {
    alone(|| {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let puller = Puller::with(hub(&model(1)).open(), &[("HF_ENDPOINT", &format!("http://{nobody}"))]);
        let begun = Instant::now();
        let failure = puller.refused("bees/One");
        assert_eq!(failure.code, Code::DownloadFailed, "{failure}");
        assert!(failure.message.contains(&nobody.to_string()), "{failure}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert_eq!(puller.hive().get("/health").status, 200);
    });
}
