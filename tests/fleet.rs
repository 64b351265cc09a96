//! A fleet of real processes: queens, hives and workers that find each other over the link, lose each other and come back.

use crate::support::node::{Daemon, Place, chat};
use crate::support::pidns;

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_request_to_the_queen_is_answered_by_a_worker_of_a_linked_hive_and_the_second_one_finds_it_warm() {
    if !pidns::inside(
        module_path!(),
        "a_request_to_the_queen_is_answered_by_a_worker_of_a_linked_hive_and_the_second_one_finds_it_warm",
    ) {
        return;
    }
    let place = Place::new();
    let queen = Daemon::start(&place, "queen serve", &[]);
    let hive = Daemon::start(&place, "hive serve", &["--name", "one", "--queen", &queen.url()]);
    queen.has_hives(1);
    let model = queen.register(&place, None);
    let first = queen.stream(CHAT, &chat(&model, 5, true)).rest();
    assert!(first.is_clean(), "{first:?}");
    let workers = queen.workers();
    assert_eq!(workers.len(), 1, "{workers:?}");
    let second = queen.stream(CHAT, &chat(&model, 5, true)).rest();
    assert!(second.is_clean(), "{second:?}");
    assert_eq!(queen.workers()[0]["worker_id"], workers[0]["worker_id"]);
    assert!(hive.terminate().success());
    assert!(queen.terminate().success());
}
