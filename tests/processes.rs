//! Nothing outlives its lease: real trees under the real binary's shim, ended in every way there is.

use crate::support::pidns;
use crate::support::survivors::{END_MAX, HOLD, Holder, block_on, launch, left_after, rbee, ready, spec};
use rbee::process::{self, Exit, Output, Spec};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::Duration;

#[test]
#[ignore = "not a test: the lease holder that others start to kill it"]
fn lease_holder() {
    let Ok(request) = std::env::var(HOLD) else { return };
    let spec: Spec = serde_json::from_slice(&std::fs::read(&request).unwrap()).unwrap();
    block_on(async {
        let tree = launch(Path::new(&request).parent().unwrap(), spec).await;
        ready(&tree).await;
        println!("holding {} {}", tree.pid(), tree.shim().pid);
        std::future::pending::<()>().await;
    });
}

#[test]
fn a_tree_is_adopted_by_the_next_holder_and_lives_on() {
    if !pidns::inside(module_path!(), "a_tree_is_adopted_by_the_next_holder_and_lives_on") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let spec =
        Spec { note: serde_json::json!({"model": "m"}), ..spec("worker-1", "echo ready; exec sleep 1000") };
    let mut holder = Holder::start(directory.path(), &spec);
    let (leader, shim) = holder.ready();
    holder.kill_9();
    block_on(async {
        let mut trees = process::adopt(directory.path()).await;
        assert_eq!(trees.len(), 1);
        let tree = trees.remove(0);
        assert_eq!((tree.id(), tree.pid(), tree.shim().pid), ("worker-1", leader, shim));
        assert_eq!(tree.note(), &serde_json::json!({"model": "m"}));
        let again = process::launch_by(rbee(), directory.path(), self::spec("worker-1", "true"), None).await;
        assert!(again.unwrap_err().to_string().contains("running already"));
        // Handed over once more: the lease back, and taken again.
        tree.detach().await;
        let tree = process::adopt(directory.path()).await.remove(0);
        assert!(tree.identity().still_lives());
        let receipt = tree.stop(Duration::from_secs(5)).await;
        assert!(receipt.clean && receipt.processes_reaped == 1, "{receipt:?}");
        assert!(receipt.memory_returned_bytes > 0);
        assert_eq!(tree.exited().await, Exit::Signal(15));
        assert_eq!(tree.stop(Duration::ZERO).await, receipt);
        assert!(process::adopt(directory.path()).await.is_empty());
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_second_stop_without_grace_cuts_the_first_short() {
    if !pidns::inside(module_path!(), "a_second_stop_without_grace_cuts_the_first_short") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let script = "trap 'echo asked' TERM; echo ready; while :; do sleep 1000 & wait; done";
        let tree = launch(directory.path(), spec("stubborn", script)).await;
        let mut lines = tree.lines().unwrap();
        assert_eq!(lines.next().await, Some(Output::Line("ready".into())));
        let first = tree.stop(Duration::from_secs(3600));
        let second = async {
            assert_eq!(lines.next().await, Some(Output::Line("asked".into())));
            tree.stop(Duration::ZERO).await
        };
        let (first, second) =
            tokio::time::timeout(END_MAX, async { tokio::join!(first, second) }).await.unwrap();
        assert_eq!(first, second);
        assert_eq!(tree.exited().await, Exit::Signal(9));
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_deaf_shim_is_killed_and_its_tree_swept() {
    if !pidns::inside(module_path!(), "a_deaf_shim_is_killed_and_its_tree_swept") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let tree = launch(directory.path(), spec("deaf", "sleep 1000 & echo ready; wait")).await;
        ready(&tree).await;
        kill_process(Pid::from_raw(tree.shim().pid).unwrap(), Signal::STOP).unwrap();
        let receipt = tree.stop(Duration::ZERO).await;
        assert!(receipt.clean, "{receipt:?}");
        assert_eq!(tree.exited().await, Exit::Lost);
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_terminal_signal_to_the_shim_is_ignored_and_term_stops_its_tree() {
    if !pidns::inside(module_path!(), "a_terminal_signal_to_the_shim_is_ignored_and_term_stops_its_tree") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let tree = launch(
            directory.path(),
            spec("t", "trap 'echo asked; exit 3' TERM; echo ready; sleep 1000 & wait"),
        )
        .await;
        let mut lines = tree.lines().unwrap();
        assert_eq!(lines.next().await, Some(Output::Line("ready".into())));
        let shim = Pid::from_raw(tree.shim().pid).unwrap();
        for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
            kill_process(shim, signal).unwrap();
        }
        assert_eq!(lines.next().await, Some(Output::Line("asked".into())));
        assert_eq!(tree.exited().await, Exit::Code(3));
        assert!(tree.ended().await.clean);
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_child_has_its_listener_its_watch_on_the_shim_and_no_other_descriptor() {
    if !pidns::inside(
        module_path!(),
        "a_child_has_its_listener_its_watch_on_the_shim_and_no_other_descriptor",
    ) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("child.log");
    // Held open by this process without close-on-exec, as a careless parent of ours might.
    let stray = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&stray, rustix::io::FdFlags::empty()).unwrap();
    block_on(async {
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("worker")).unwrap();
        let script =
            "for fd in 0 1 2 3 4 5 6 7 8 9; do printf \"$fd \"; readlink /proc/$$/fd/$fd || echo; done; env";
        let spec = Spec { log: Some(log), env: vec![("ONLY".into(), "this".into())], ..spec("fds", script) };
        let tree = process::launch_by(rbee(), directory.path(), spec, Some(listener)).await.unwrap();
        assert_eq!(tree.exited().await, Exit::Code(0));
        assert!(tree.ended().await.clean);
        assert_eq!(tree.lines().unwrap().next().await, None);
        let told = tree.tail(100);
        let fds = told.iter().filter(|line| line.starts_with(char::is_numeric));
        let kinds: Vec<&str> = fds.map(|fd| fd.split([':', '[']).next().unwrap()).collect();
        let expected =
            ["0 /dev/null", "1 pipe", "2 pipe", "3 socket", "4 pipe", "5 ", "6 ", "7 ", "8 ", "9 "];
        assert_eq!(kinds, expected, "{told:?}");
        assert!(told.contains(&"ONLY=this".to_owned()) && !told.iter().any(|line| line.starts_with("HOME=")));
    });
    assert!(left_after(END_MAX).is_empty());
}

#[test]
fn a_program_that_is_not_there_is_a_sentence() {
    if !pidns::inside(module_path!(), "a_program_that_is_not_there_is_a_sentence") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let absent = process::launch_by(rbee(), directory.path(), Spec::new("a", ["/nowhere/x"]), None).await;
        let told = absent.unwrap_err().to_string();
        assert_eq!(told, "starting `/nowhere/x`: No such file or directory (os error 2)");
    });
    assert!(left_after(END_MAX).is_empty());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_flood_reaches_a_slow_reader_bounded_and_counted() {
    if !pidns::inside(module_path!(), "a_flood_reaches_a_slow_reader_bounded_and_counted") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let tree = launch(directory.path(), spec("flood", "i=0; seq 1 300000; echo end")).await;
        // The reader starts when everything has been said.
        assert_eq!(tree.exited().await, Exit::Code(0));
        assert!(tree.ended().await.clean);
        let (mut lines, mut dropped, mut output) = (0, 0, tree.lines().unwrap());
        while let Some(next) = output.next().await {
            match next {
                Output::Line(_) => lines += 1,
                Output::Dropped(count) => dropped += count,
            }
        }
        assert_eq!(lines + dropped, 300_001);
        assert!(dropped > 0);
    });
    assert!(left_after(END_MAX).is_empty());
}
