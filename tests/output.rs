//! What a tree says and leaves behind: floods and strange bytes through the shim, disks that fill, folders that resist.
//!
//! RBEE_FLOOD=full floods at full size (gigabytes, half a minute) and removes a million files.

use crate::support::node::within;
use crate::support::pidns;
use crate::support::survivors::block_on;
use crate::support::trees::{self, Ground, Holder, Mounted, also_as_nobody, launch, script, to_the_end};
use rbee::process::{self, Confine, Exit, Identity, Output, Spec, remove_tree};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MEBIBYTE: u64 = 1024 * 1024;
/// What a flood may add to the memory of the shim, and to that of the holder.
const GROWTH_BYTES_MAX: u64 = 16 * MEBIBYTE;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
#[ignore = "not a test: the tree holder that others start to kill it"]
fn tree_holder() {
    trees::hold();
}

fn is_full() -> bool {
    std::env::var("RBEE_FLOOD").is_ok_and(|size| size == "full")
}

/// The most memory a process has ever had in RAM.
fn peak_bytes(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn wait_for_end(pid: i32) {
    assert!(Identity::of(pid).is_none_or(|process| process.ends_within(PATIENCE)), "process {pid} ends");
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// In a folder that it may write, behind walls.
fn at_work(ground: &Ground, spec: Spec) -> Spec {
    let read = ["/usr", "/bin", "/lib", "/lib64", "/etc"].map(PathBuf::from).into();
    Spec {
        cwd: Some(ground.work()),
        confine: Some(Confine { read, write: vec![ground.work()], ..Confine::default() }),
        ..spec
    }
}

// ── floods

struct Flood {
    /// The first line and the last; all of them are not kept, or the reader would grow by them.
    first: String,
    last: String,
    told: u64,
    dropped: u64,
}

/// Runs the script with a log that is told, and holds the shim's memory and this process's against the bound.
fn flood(name: &str, script_text: &str, bytes: u64) -> Flood {
    let ground = Ground::new();
    let log = ground.outside().join("flood.log");
    let me = i32::try_from(std::process::id()).unwrap();
    let flood = block_on(async {
        // Stopped at first, so that the shim's memory is read before and after, while it lives.
        let text = format!("kill -STOP $$; {script_text}; echo; echo end; kill -STOP $$");
        let spec = Spec { log: Some(log.clone()), tell: true, ..script(name, &text) };
        let spec = at_work(&ground, spec);
        let tree = launch(&ground.records(), spec).await;
        let (shim, leader) = (tree.shim().pid, tree.pid());
        stopped(leader);
        let (shim_before, own_before) = (peak_bytes(shim), peak_bytes(me));
        let began = Instant::now();
        signal(leader, Signal::CONT);
        let mut output = tree.lines().unwrap();
        let reader = tokio::spawn(async move {
            let (mut first, mut last, mut told, mut dropped) = (None, String::new(), 0, 0);
            while let Some(next) = output.next().await {
                match next {
                    Output::Line(line) => {
                        told += 1;
                        first.get_or_insert_with(|| line.clone());
                        last = line;
                    }
                    Output::Dropped(count) => dropped += count,
                }
            }
            (first.unwrap_or_default(), last, told, dropped)
        });
        let took = tokio::task::spawn_blocking(move || {
            stopped(leader);
            began.elapsed()
        });
        let took = took.await.unwrap();
        let grown = [("shim", peak_bytes(shim) - shim_before), ("holder", peak_bytes(me) - own_before)];
        signal(leader, Signal::CONT);
        assert_eq!(tree.exited().await, Exit::Code(0));
        assert!(tree.ended().await.clean);
        let (first, last, told, dropped) = reader.await.unwrap();
        println!(
            "{name}: {} MiB in {took:?}, {} MB/s; grown by (KiB) {:?}; {told} lines told, {dropped} dropped",
            bytes / MEBIBYTE,
            (bytes as f64 / 1e6 / took.as_secs_f64()).round(),
            grown.map(|(who, bytes)| (who, bytes / 1024)),
        );
        for (who, bytes) in grown {
            assert!(bytes <= GROWTH_BYTES_MAX, "{name}: the {who} grew by {bytes} bytes");
        }
        assert_eq!(tree.tail(1), ["end"]);
        Flood { first, last, told, dropped }
    });
    let logged: u64 = std::fs::read_dir(ground.outside())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(logged <= 32 * MEBIBYTE, "{logged} bytes of log");
    flood
}

/// Until a process has stopped itself.
fn stopped(pid: i32) {
    within(Duration::from_secs(120), "the tree stops itself", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| error.to_string())?;
        if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) { Ok(()) } else { Err(stat) }
    });
}

#[test]
fn a_line_without_end_costs_no_memory() {
    if !pidns::inside(module_path!(), "a_line_without_end_costs_no_memory") {
        return;
    }
    let bytes = if is_full() { 1024 * MEBIBYTE } else { 96 * MEBIBYTE };
    let flood = flood("a line without end", &format!("head -c {bytes} /dev/zero | tr '\\0' x"), bytes);
    let long = &flood.first;
    assert!(long.ends_with(&format!(" [+{} bytes]", bytes - 16 * 1024)), "{}", &long[16_000..]);
    assert_eq!((flood.last.as_str(), flood.dropped), ("end", 0));
}

#[test]
fn a_flood_of_lines_costs_no_memory_and_is_counted() {
    if !pidns::inside(module_path!(), "a_flood_of_lines_costs_no_memory_and_is_counted") {
        return;
    }
    let line =
        "a line as a compiler in a good mood writes it, a hundred bytes long, and then one more, and again..";
    let bytes = if is_full() { 3000 * 1_000_000 } else { 100 * 1_000_000 };
    let count = bytes / (line.len() as u64 + 1);
    let flood = flood("a flood of lines", &format!("yes '{line}' | head -n {count}"), bytes);
    // And the empty line and the last.
    assert_eq!(flood.told + flood.dropped, count + 2);
}

#[test]
fn a_stopped_holder_stops_nobody_and_is_told_the_end() {
    if !pidns::inside(module_path!(), "a_stopped_holder_stops_nobody_and_is_told_the_end") {
        return;
    }
    let ground = Ground::new();
    let text =
        "echo ready; while [ ! -e go ]; do sleep 0.01; done; yes line | head -n 2000000; touch done; exit 0";
    let spec = at_work(&ground, script("patient", text));
    let holder = Holder::start(&ground, &spec);
    signal(holder.pid(), Signal::STOP);
    std::fs::write(ground.work().join("go"), "").unwrap();
    within(PATIENCE, "the tree goes on", || {
        if ground.work().join("done").exists() { Ok(()) } else { Err("not done".into()) }
    });
    assert!(peak_bytes(holder.shim) < 64 * MEBIBYTE);
    // The shim stays for as long as the holder has not heard.
    signal(holder.pid(), Signal::CONT);
    wait_for_end(holder.shim);
    wait_for_end(holder.pid());
}

// ── what is said

#[test]
fn strange_bytes_are_told_as_text_and_logged_as_they_are() {
    if !pidns::inside(module_path!(), "strange_bytes_are_told_as_text_and_logged_as_they_are") {
        return;
    }
    let ground = Ground::new();
    let log = ground.outside().join("x.log");
    let bytes = "nul\\000 bad\\377 \\033[31mred\\033[0m \\033]0;title\\007.\\nevent: done\\ndata: {}\\n\\n10%%\\r20%%\\n";
    let spec = Spec { log: Some(log.clone()), tell: true, ..script("strange", &format!("printf '{bytes}'")) };
    block_on(async {
        let tree = launch(&ground.records(), at_work(&ground, spec)).await;
        let told = to_the_end(&tree).await;
        assert_eq!(told.exit, Exit::Code(0));
        let expected = ["nul bad\u{fffd} red .", "event: done", "data: {}", "", "10%", "20%"];
        assert_eq!(told.lines, expected);
        assert_eq!(told.dropped, 0);
        assert_eq!(tree.tail(2), ["10%", "20%"]);
    });
    let logged: &[u8] =
        b"nul\0 bad\xff \x1b[31mred\x1b[0m \x1b]0;title\x07.\nevent: done\ndata: {}\n\n10%\r20%\n";
    assert_eq!(std::fs::read(&log).unwrap(), logged);
}

#[test]
fn trees_of_one_build_go_on_in_one_log() {
    if !pidns::inside(module_path!(), "trees_of_one_build_go_on_in_one_log") {
        return;
    }
    let ground = Ground::new();
    let log = ground.outside().join("build.log");
    block_on(async {
        for (phase, append) in [("before", false), ("prepare", false), ("build", true), ("package", true)] {
            let spec = Spec {
                log: Some(log.clone()),
                log_append: append,
                ..script(phase, &format!("echo {phase}"))
            };
            let told = to_the_end(&launch(&ground.records(), spec).await).await;
            assert!(told.receipt.clean && told.lines.is_empty());
        }
    });
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "prepare\nbuild\npackage\n");
}

#[test]
fn a_tree_ends_with_its_leader_whatever_it_does_with_its_streams() {
    if !pidns::inside(module_path!(), "a_tree_ends_with_its_leader_whatever_it_does_with_its_streams") {
        return;
    }
    let cases: [(&str, &str, i32, &[&str]); 5] = [
        ("closes them", "exec 0<&- 1>&- 2>&-; exit 7", 7, &[]),
        ("reads its input", "read x && echo got || echo at the end", 0, &["at the end"]),
        (
            "opens a terminal",
            "(: </dev/tty) 2>/dev/null && echo opened || echo no terminal",
            0,
            &["no terminal"],
        ),
        ("leaves a daemon that holds them", "sleep 3600 & echo bye", 0, &["bye"]),
        (
            "leaves a daemon in a session that holds them",
            "{ setsid sh -c 'echo up; exec sleep 3600 >&2' & } | read up; echo bye; exit 3",
            3,
            &["bye"],
        ),
    ];
    for (what, text, code, lines) in cases {
        let ground = Ground::new();
        let began = Instant::now();
        let told = block_on(async {
            to_the_end(&launch(&ground.records(), at_work(&ground, script("streams", text))).await).await
        });
        assert_eq!((told.exit, told.receipt.clean), (Exit::Code(code), true), "{what}");
        assert_eq!(told.lines, lines, "{what}");
        assert!(began.elapsed() < Duration::from_secs(5), "{what}: {:?}", began.elapsed());
    }
}

#[test]
fn a_full_disk_loses_the_log_and_not_the_tree() {
    if !pidns::inside(module_path!(), "a_full_disk_loses_the_log_and_not_the_tree") {
        return;
    }
    let ground = Ground::new();
    let small = "size=1m,mode=777";
    let (Some(_log_disk), Some(_work_disk)) =
        (Mounted::at(&ground.outside(), small), Mounted::at(&ground.work(), small))
    else {
        return eprintln!("skipped: a full disk: no tmpfs can be mounted here");
    };
    let log = ground.outside().join("x.log");
    let text = "head -c 4000000 /dev/zero > fill 2>/dev/null; echo filled: $?; seq 1 400000; echo end";
    let spec = Spec { log: Some(log.clone()), tell: true, ..script("full", text) };
    block_on(async {
        let tree = launch(&ground.records(), at_work(&ground, spec)).await;
        let told = to_the_end(&tree).await;
        assert_eq!((told.exit, told.receipt.clean), (Exit::Code(0), true));
        assert_eq!(told.lines[0], "filled: 1");
        assert_eq!(told.lines.len() as u64 + told.dropped, 400_002);
        assert!(std::fs::metadata(&log).unwrap().len() <= MEBIBYTE);
        // And a folder goes where not a byte is free.
        std::fs::create_dir(ground.work().join("below")).unwrap();
        std::fs::rename(ground.work().join("fill"), ground.work().join("below/fill")).unwrap();
        assert!(remove_tree(&ground.work().join("below")).unwrap() > MEBIBYTE / 2);
    });
}

// ── what is left

/// Everything that resists: no permissions, links out, names that confuse.
const RESIST: &str = "mkdir -p a/b/c closed/in ro; ln -s / a/root; ln -s \"$OUTSIDE\" a/b/out; ln -s .. a/b/c/up; \
     touch a/-rf 'a/ * ' \"a/$(printf 'x\\ny')\" ro/file closed/in/file; mkfifo a/fifo; \
     chmod 000 closed/in; chmod 000 closed; chmod 555 ro; chmod 000 .; echo ready; exec sleep 1000";

fn scratch_spec(ground: &Ground, text: &str) -> Spec {
    let mut spec = script("scratch", text);
    spec.env.push(("OUTSIDE".into(), ground.outside().display().to_string()));
    Spec { scratch: Some(ground.work()), ..at_work(ground, spec) }
}

/// Nothing of the folder, of the records, and all of what is outside.
fn only_outside_is_left(ground: &Ground) {
    assert!(std::fs::symlink_metadata(ground.work()).is_err(), "the folder is gone");
    assert_eq!(std::fs::read_to_string(ground.outside().join("kept")).unwrap(), "kept");
    let records = std::fs::read_dir(ground.records()).unwrap().map(|entry| entry.unwrap().file_name());
    let records: Vec<_> = records.filter(|name| name != "hold.spec").collect();
    assert!(records.is_empty(), "{records:?}");
}

#[test]
fn the_folder_of_a_tree_goes_with_its_killed_holder_whatever_is_in_it() {
    if !pidns::inside(module_path!(), "the_folder_of_a_tree_goes_with_its_killed_holder_whatever_is_in_it") {
        return;
    }
    also_as_nobody("output::the_folder_of_a_tree_goes_with_its_killed_holder_whatever_is_in_it", || {
        for shim_too in [false, true] {
            let ground = Ground::new();
            std::fs::write(ground.outside().join("kept"), "kept").unwrap();
            let mut holder = Holder::start(&ground, &scratch_spec(&ground, RESIST));
            if shim_too {
                // The shim cannot, so the next hive does.
                signal(holder.shim, Signal::STOP);
            }
            holder.kill_9();
            if shim_too {
                signal(holder.shim, Signal::KILL);
                assert!(block_on(process::adopt(&ground.records())).is_empty());
            }
            wait_for_end(holder.shim);
            only_outside_is_left(&ground);
        }
    });
}

#[test]
fn the_folder_of_a_held_tree_is_its_holders() {
    if !pidns::inside(module_path!(), "the_folder_of_a_held_tree_is_its_holders") {
        return;
    }
    let ground = Ground::new();
    std::fs::write(ground.outside().join("kept"), "kept").unwrap();
    block_on(async {
        for (text, stop) in [("exit 0", false), ("echo ready; exec sleep 1000", true)] {
            let tree = launch(&ground.records(), scratch_spec(&ground, text)).await;
            assert_eq!(tree.scratch(), Some(ground.work().as_path()));
            let receipt = if stop { tree.stop(Duration::ZERO).await } else { tree.ended().await };
            let shim = tree.shim().pid;
            drop(tree);
            tokio::task::spawn_blocking(move || wait_for_end(shim)).await.unwrap();
            assert!(ground.work().exists() && receipt.bytes_removed == 0);
        }
        // Handed over: the next one holds it, and it stays, until nobody does.
        let text = "echo ready; echo x > made; exec sleep 1000";
        let spec = Spec { orphan_ttl_ms: 60_000, ..scratch_spec(&ground, text) };
        let mut holder = Holder::start(&ground, &spec);
        holder.kill_9();
        let tree = process::adopt(&ground.records()).await.remove(0);
        assert_eq!(tree.scratch(), Some(ground.work().as_path()));
        assert!(ground.work().exists());
        let shim = tree.shim().pid;
        tree.detach().await;
        signal(shim, Signal::TERM);
        tokio::task::spawn_blocking(move || wait_for_end(shim)).await.unwrap();
    });
    only_outside_is_left(&ground);
}

#[test]
fn many_files_go_in_reasonable_time() {
    if !pidns::inside(module_path!(), "many_files_go_in_reasonable_time") {
        return;
    }
    // A busy disk would be what is measured.
    let ground = Ground::in_memory();
    std::fs::write(ground.outside().join("kept"), "kept").unwrap();
    let count = if is_full() { 1_000_000 } else { 20_000 };
    let text = format!(
        "mkdir one many; (cd one && seq 1 {half} | xargs touch); (cd many && seq 1 {half} | xargs mkdir); \
         echo ready; exec sleep 1000",
        half = count / 2
    );
    let mut holder = Holder::start(&ground, &scratch_spec(&ground, &text));
    let began = Instant::now();
    holder.kill_9();
    wait_for_end(holder.shim);
    println!("{count} files and folders removed in {:?}", began.elapsed());
    only_outside_is_left(&ground);
}

/// A removal never leaves the folder, also where somebody swaps a folder for a link while it runs.
#[test]
fn a_removal_stays_inside_while_folders_are_swapped_for_links() {
    let place = tempfile::tempdir().unwrap();
    let (work, outside) = (place.path().join("work"), place.path().join("outside"));
    std::fs::create_dir_all(outside.join("deep")).unwrap();
    for number in 0..200 {
        std::fs::write(outside.join("deep").join(number.to_string()), "kept").unwrap();
    }
    for _ in 0..20 {
        std::fs::create_dir_all(&work).unwrap();
        for number in 0..50 {
            std::fs::create_dir_all(work.join(format!("{number}/deep"))).unwrap();
            std::fs::write(work.join(format!("{number}/deep/file")), "x").unwrap();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..50 {
                    let (folder, aside) =
                        (work.join(number.to_string()), work.join(format!("aside-{number}")));
                    // Either may come too late.
                    let _ = std::fs::rename(&folder, &aside).and_then(|()| symlink(&outside, &folder));
                }
            });
            // It may meet what is being moved, and say so.
            let _ = remove_tree(&work);
        });
        remove_tree(&work).unwrap();
        assert_eq!(std::fs::read_dir(outside.join("deep")).unwrap().count(), 200);
    }
}
