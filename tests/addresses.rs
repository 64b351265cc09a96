//! Models from an address of their own: no list says what they are, so only a tag tells whether what comes later is of the
//! same file.

use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::{Content, Fault, TestHub, When};
use crate::support::node::alone;
use crate::support::pull::{Puller, entries, sha256_of};
use rbee::wire::Code;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PATH: &str = "/files/some-model.gguf";
const HALF: usize = 300_000;

fn model(seed: u64) -> Arc<Content> {
    let bytes = tiny(&Tiny { seed, ..Tiny::default() });
    let size = bytes.len() as u64 + 100_000;
    Content::padded(bytes, size, seed)
}

/// A server of that file, and a hive that trusts it.
fn trusting(content: &Arc<Content>) -> (Puller, String) {
    let hub = TestHub::of([]).file(PATH, content).open();
    let (origin, address) = (hub.endpoint(), format!("{}{PATH}", hub.endpoint()));
    (Puller::with(hub, &[("RBEE_TRUST", &origin)]), address)
}

/// Files of models in the hive's own folder, whole or begun.
fn kept(puller: &Puller) -> Vec<PathBuf> {
    let mut found = entries(&puller.place.path("s/models"));
    found.retain(|path| path.to_str().unwrap().contains("some-model"));
    found
}

#[test]
fn an_address_is_fetched_and_its_sum_is_shown_as_ours() {
    alone(|| {
        let content = model(1);
        let (puller, address) = trusting(&content);
        let job = puller.pull(&format!("{address}?signature=secret"));
        let path = puller.path_of(&job);
        assert!(path.ends_with(Path::new("some-model.gguf")), "{}", path.display());
        assert_eq!(sha256_of(&path), content.sha256());
        assert_eq!(job.done()["files"][0]["sha256"], content.sha256());
        assert!(format!("{:?}", job.events).contains("nobody has published"), "{job:?}");
        let told = format!("{:?}", puller.models());
        assert!(!told.contains("signature=secret"), "the signature is no part of the name: {told}");
        let sent = puller.hub.bytes_sent();
        puller.pull(&format!("{address}?signature=secret")).done();
        assert_eq!(puller.hub.bytes_sent(), sent);
    });
}

#[test]
fn an_address_of_our_network_is_refused_unless_it_is_trusted() {
    alone(|| {
        let hub = TestHub::of([]).file(PATH, &model(1)).open();
        let address = format!("{}{PATH}", hub.endpoint());
        let puller = Puller::new(hub);
        for address in
            [address.clone(), address.replace("http:", "https:"), address.replace("127.0.0.1", "localhost")]
        {
            let failure = puller.refused(&address);
            assert!([Code::Forbidden, Code::InvalidRequest].contains(&failure.code), "{address}: {failure}");
        }
        assert_eq!((puller.hub.asked().len(), kept(&puller)), (0, vec![]));
        let (trusting, address) = trusting(&model(1));
        let inside = format!("http://localhost:{}/x.gguf", puller.hub.address.port());
        trusting.hub.fail(When::any(), Fault::RedirectTo(inside));
        let failure = trusting.refused(&address);
        assert!([Code::Forbidden, Code::DownloadFailed].contains(&failure.code), "{failure}");
        assert_eq!(puller.hub.asked().len(), 0, "nobody was asked");
    });
}

#[test]
fn two_files_are_never_made_into_one() {
    alone(|| {
        let (first, second) = (model(1), model(2));
        // As long as the first, so that no length tells them apart.
        assert_eq!(first.size(), second.size());
        let later: [fn(Arc<Content>) -> Fault; 2] = [Fault::Replaced, Fault::Mixed];
        for (number, later) in later.into_iter().enumerate() {
            for is_restarted in [false, true] {
                let (mut puller, address) = trusting(&first);
                match is_restarted {
                    false => puller.hub.cut_at([HALF as u64]),
                    true => {
                        puller.hub.fail(When::bytes().nth(0), Fault::StallAt(HALF));
                        puller.begin(&address);
                        puller.hub.has_sent(HALF as u64);
                        puller.kill9();
                    }
                }
                let from = usize::from(!is_restarted);
                for nth in from..12 {
                    puller.hub.fail(When::bytes().nth(nth), later(second.clone()));
                }
                let job = puller.pull(&address);
                let sum = sha256_of(&puller.path_of(&job));
                assert_eq!(sum, second.sha256(), "{number}, {is_restarted}");
            }
        }
    });
}

#[test]
fn what_is_no_model_is_refused_and_not_kept() {
    alone(|| {
        let page = Content::of(b"<html>not found, but very politely</html>".repeat(1000));
        let (puller, address) = trusting(&page);
        let failure = puller.refused(&address);
        assert_eq!(failure.code, Code::InvalidModel, "{failure}");
        puller.hub.fail(When::any(), Fault::Status(404));
        assert_eq!(puller.refused(&address).code, Code::ModelNotFound);
        assert_eq!((kept(&puller), puller.models().len()), (vec![], 0));
    });
}

#[test]
fn faults_on_the_way_to_an_address_end_in_the_whole_file_or_in_none() {
    alone(|| {
        let cut = || Fault::CutAt(HALF);
        let scripts: [&[Fault]; 8] = [
            &[cut(), Fault::CutAt(1)],
            &[cut(), Fault::IgnoreRange],
            &[cut(), Fault::LatePart],
            &[cut(), Fault::ShortPart],
            &[cut(), Fault::Status(416)],
            &[cut(), Fault::NewTag],
            &[cut(), Fault::OtherTag],
            &[Fault::Status(503), Fault::NoLength],
        ];
        for script in scripts {
            let content = model(1);
            let (puller, address) = trusting(&content);
            for (nth, fault) in script.iter().enumerate() {
                puller.hub.fail(When::bytes().nth(nth), fault.clone());
            }
            let job = puller.pull(&address);
            assert_eq!(sha256_of(&puller.path_of(&job)), content.sha256(), "{script:?}");
            assert_eq!(kept(&puller).len(), 1, "{script:?}");
        }
    });
}
