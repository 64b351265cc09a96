use super::*;
use crate::wire::fleet::{DeviceSpeed, EngineInfo, HiveState, ModelNeeds, ShapeNeeds, WorkerState};

const MIB: u64 = 1 << 20;
/// What the model `m` of these tests needs as its hives wish it, and at least.
const WISHED: u64 = 1_000 * MIB;
const LEAST: u64 = 400 * MIB;

fn worker(id: &str, state: WorkerState, busy: u32) -> WorkerInfo {
    WorkerInfo {
        worker_id: id.into(),
        hive: String::new(),
        state,
        model: "m".into(),
        worker: "cpu".into(),
        device: "CPU-0".into(),
        slots_total: 2,
        slots_busy: busy,
        ctx: 128,
        memory_bytes: 0,
        pid: None,
        started_at: 0,
        last_used: 0,
        pinned: false,
        url: String::new(),
    }
}

/// One of another model, which holds memory.
fn other(id: &str, device: &str, megabytes: u64, busy: u32, last_used: u64) -> WorkerInfo {
    WorkerInfo {
        model: "other".into(),
        device: device.into(),
        memory_bytes: megabytes * MIB,
        last_used,
        ..worker(id, WorkerState::Ready, busy)
    }
}

fn device(id: &str, kind: &str, free: u64) -> Device {
    Device {
        id: id.into(),
        name: String::new(),
        device_type: kind.into(),
        memory_bytes: 8_000 * MIB,
        memory_free_bytes: free * MIB,
        compute_capability: None,
    }
}

fn engine(id: &str, kind: &str) -> EngineInfo {
    EngineInfo { id: id.into(), kind: kind.into(), version: "1".into(), foreign: false }
}

fn needs(id: &str) -> ModelNeeds {
    let shape = |slots, bytes| ShapeNeeds { slots, ctx: 512, bytes };
    ModelNeeds { id: id.into(), weights_bytes: 100 * MIB, shapes: vec![shape(4, WISHED), shape(1, LEAST)] }
}

/// A node with a processor and as many megabytes free for it.
fn hive(name: &str, free: u64, workers: Vec<WorkerInfo>) -> HiveInfo {
    let workers = workers.into_iter().map(|worker| WorkerInfo { hive: name.into(), ..worker }).collect();
    HiveInfo {
        name: name.into(),
        version: String::new(),
        state: HiveState::Online,
        listen: String::new(),
        connected_at: 0,
        last_seen: 0,
        devices: vec![device("CPU-0", "cpu", free)],
        workers,
        models: vec!["m".into()],
        model_names: Vec::new(),
        model_needs: vec![needs("m")],
        engines: vec![engine("built-in", "cpu")],
        speeds: Vec::new(),
        os: String::new(),
        arch: String::new(),
    }
}

/// The same with a graphics processor and an engine for it.
fn with_gpu(mut hive: HiveInfo, free: u64) -> HiveInfo {
    hive.devices.push(device("GPU-0", "cuda", free));
    hive.engines.push(engine("llm-worker-rbee-cuda", "cuda"));
    hive
}

fn want() -> Want {
    Want { model: "m".into(), ..Want::default() }
}

fn on(device: &str) -> Want {
    Want { device: Some(device.into()), ..want() }
}

/// What is decided where nothing is under way.
fn decided(want: &Want, hives: &[HiveInfo]) -> Decision {
    decided_with(want, hives, &InFlight::new(), &[], &[])
}

fn decided_with(
    want: &Want,
    hives: &[HiveInfo],
    in_flight: &InFlight,
    promises: &[Promise],
    claimed: &[String],
) -> Decision {
    let sites = sites(hives);
    let holders = holders(&sites, want);
    decide(want, &View { holders: &holders, in_flight, promises, claimed, refused: &[] })
}

fn sites(hives: &[HiveInfo]) -> Vec<(&HiveInfo, Site)> {
    hives.iter().map(|hive| (hive, Site::of(hive))).collect()
}

fn holders<'v>(sites: &'v [(&HiveInfo, Site)], want: &Want) -> Vec<Holder<'v>> {
    sites.iter().map(|(hive, site)| Holder::of(hive, site, &want.model)).collect()
}

fn spawned(decision: Decision) -> (String, String, Vec<String>) {
    match decision {
        Decision::Spawn(Spawn { hive, device: Some(device), evict, .. }) => (hive, device, evict),
        other => panic!("{other:?}"),
    }
}

fn used(decision: Decision) -> String {
    match decision {
        Decision::Use { worker_id, .. } => worker_id,
        other => panic!("{other:?}"),
    }
}

fn refused(decision: Decision) -> Failure {
    match decision {
        Decision::Refuse(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn at(hive: &str, device: &str, evict: &[&str]) -> (String, String, Vec<String>) {
    (hive.into(), device.into(), evict.iter().map(|id| (*id).to_owned()).collect())
}

#[test]
fn the_least_busy_ready_worker_is_used_counting_what_is_on_its_way() {
    let hives = [hive("a", 9, vec![worker("w1", WorkerState::Ready, 0), worker("w2", WorkerState::Busy, 1)])];
    assert_eq!(used(decided(&want(), &hives)), "w1");
    let in_flight = InFlight::from([("w1".into(), 2)]);
    assert_eq!(used(decided_with(&want(), &hives, &in_flight, &[], &[])), "w2");
}

#[test]
fn a_faster_device_is_used_before_a_slower_one_until_others_share_it() {
    let fast = WorkerInfo { slots_total: 8, ..worker("fast", WorkerState::Ready, 0) };
    let mut measured = hive("a", 9, vec![fast]);
    measured.speeds = vec![DeviceSpeed { device: "CPU-0".into(), bytes_per_second: 40_000_000_000 }];
    let unmeasured = hive("b", 9, vec![worker("slow", WorkerState::Ready, 0)]);
    let hives = [measured, unmeasured];
    assert_eq!(used(decided(&want(), &hives)), "fast");
    let with = |busy| decided_with(&want(), &hives, &InFlight::from([("fast".into(), busy)]), &[], &[]);
    assert_eq!(used(with(1)), "fast", "half as fast again beats an idle one of half its speed");
    assert_eq!(used(with(3)), "slow");
}

#[test]
fn a_kind_of_device_is_that_of_the_workers_device_whatever_its_engine_is_called() {
    let on_engine = WorkerInfo { worker: "another-server".into(), ..worker("w", WorkerState::Ready, 0) };
    let hives = [hive("a", 9, vec![on_engine])];
    for device in ["cpu", "CPU", "cpu-0", "another-server"] {
        assert_eq!(used(decided(&on(device), &hives)), "w", "{device}");
    }
    assert_eq!(refused(decided(&on("cuda"), &hives)).code, Code::BackendUnavailable);
}

#[test]
fn an_engine_that_is_named_gets_its_own_worker_beside_another_engines() {
    let mut both = hive("a", 9_000, vec![worker("w", WorkerState::Ready, 0)]);
    both.engines.push(engine("another-server", "cpu"));
    assert_eq!(spawned(decided(&on("another-server"), &[both.clone()])), at("a", "CPU-0", &[]));
    both.workers.push(WorkerInfo { worker: "another-server".into(), ..worker("v", WorkerState::Loading, 0) });
    let loading = decided(&on("another-server"), &[both.clone()]);
    assert!(matches!(loading, Decision::Loading { .. }), "{loading:?}");
    assert_eq!(used(decided(&on("cpu"), &[both])), "w");
}

#[test]
fn a_loading_worker_is_waited_for_and_a_full_one_told() {
    let loading = [hive("a", 9, vec![worker("w", WorkerState::Loading, 0)])];
    assert_eq!(decided(&want(), &loading), Decision::Loading { slots_total: 0, slots_busy: 0 });
    let full = [hive("a", 9, vec![worker("w", WorkerState::Busy, 2)])];
    assert_eq!(decided(&want(), &full), Decision::Full { slots_total: 2, slots_busy: 2, grow: None });
}

#[test]
fn a_full_model_may_get_another_worker_where_there_is_room_and_only_there() {
    let full = || hive("a", 9_000, vec![worker("w", WorkerState::Busy, 2)]);
    let grown = |elsewhere: HiveInfo| match decided(&want(), &[full(), elsewhere]) {
        Decision::Full { grow, .. } => grow.map(|spawn| spawn.hive),
        other => panic!("{other:?}"),
    };
    assert_eq!(grown(hive("b", 9_000, vec![])), Some("b".into()));
    assert_eq!(grown(hive("b", 9, vec![])), None);
    let idle_there = hive("b", 9, vec![other("idle", "CPU-0", 5_000, 0, 0)]);
    assert_eq!(grown(idle_there), None, "nobody has to go for a second worker");
    let named = Want { worker_id: Some("w".into()), ..want() };
    let waits = decided(&named, &[full(), hive("b", 9_000, vec![])]);
    assert!(
        matches!(&waits, Decision::Full { grow: None, .. }),
        "another is not the one that was named: {waits:?}"
    );
}

#[test]
fn a_spawn_goes_where_it_fits_by_speed_and_then_by_room() {
    let hives = [hive("a", 1_100, vec![]), hive("b", 5_000, vec![]), hive("c", 300, vec![])];
    assert_eq!(spawned(decided(&want(), &hives)), at("b", "CPU-0", &[]));
    let on_a = Want { hive: Some("a".into()), ..want() };
    assert_eq!(spawned(decided(&on_a, &hives)), at("a", "CPU-0", &[]));
    let mut fast = hive("d", 1_100, vec![]);
    fast.speeds = vec![DeviceSpeed { device: "CPU-0".into(), bytes_per_second: 90_000_000_000 }];
    let [a, b, c] = hives;
    assert_eq!(spawned(decided(&want(), &[a, b, c, fast])), at("d", "CPU-0", &[]));
}

#[test]
fn a_margin_stays_free_and_less_is_taken_where_all_does_not_fit() {
    let exactly = WISHED / MIB;
    let lowered = |free| match decided(&want(), &[hive("a", free, vec![])]) {
        Decision::Spawn(spawn) => spawn.bytes == LEAST,
        other => panic!("{other:?}"),
    };
    assert!(lowered(exactly), "without the margin it does not fit");
    assert!(!lowered(exactly * (100 + MEMORY_MARGIN_PERCENT) / 100 + 1));
}

#[test]
fn what_is_promised_to_others_is_not_free() {
    let hives = [hive("a", 1_500, vec![]), hive("b", 1_200, vec![])];
    assert_eq!(spawned(decided(&want(), &hives)), at("a", "CPU-0", &[]));
    let promise = Promise { hive: "a".into(), device: "CPU-0".into(), bytes: 1_000 * MIB };
    let next = decided_with(&want(), &hives, &InFlight::new(), &[promise], &[]);
    assert_eq!(spawned(next), at("b", "CPU-0", &[]));
}

#[test]
fn what_is_promised_to_others_is_waited_for_and_never_a_refusal() {
    let promise = |bytes| Promise { hive: "a".into(), device: "CPU-0".into(), bytes };
    let blocked = |workers: Vec<WorkerInfo>, promised: u64| {
        let hives = [hive("a", 1_500, workers)];
        match decided_with(&want(), &hives, &InFlight::new(), &[promise(promised * MIB)], &[]) {
            Decision::Blocked { by, .. } => by,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(blocked(vec![], 1_400), Vec::<String>::new());
    assert_eq!(blocked(vec![other("busy", "CPU-0", 100, 1, 0)], 9_000), Vec::<String>::new());
    assert_eq!(blocked(vec![other("busy", "CPU-0", 500, 1, 0)], 1_300), ["busy"]);
    let pinned = WorkerInfo { pinned: true, ..other("pinned", "CPU-0", 5_000, 0, 0) };
    let full = refused(decided(&want(), &[hive("a", 100, vec![pinned])]));
    assert!(full.message.contains("stop what is pinned"), "{}", full.message);
    let small = refused(decided(&want(), &[hive("a", 100, vec![])]));
    assert!(!small.message.contains("pinned"), "{}", small.message);
}

#[test]
fn a_claim_takes_of_what_is_free_only_what_its_workers_do_not_give() {
    let workers = [other("busy", "CPU-0", 700, 1, 0), other("another", "CPU-0", 900, 1, 0)];
    let promise =
        |bytes: u64| Promise::of_claim("a", "CPU-0", bytes * MIB, &["busy".to_owned()], &workers).bytes / MIB;
    assert_eq!([promise(1_000), promise(600)], [300, 0]);
}

#[test]
fn idle_workers_make_room_the_longest_unused_first_and_no_more_than_it_takes() {
    let crowd = || {
        vec![
            other("new", "CPU-0", 600, 0, 30),
            other("old", "CPU-0", 600, 0, 10),
            other("middle", "CPU-0", 600, 0, 20),
        ]
    };
    assert_eq!(spawned(decided(&want(), &[hive("a", 100, crowd())])), at("a", "CPU-0", &["old", "middle"]));
    let elsewhere = [hive("a", 100, crowd()), hive("b", 2_000, vec![])];
    assert_eq!(spawned(decided(&want(), &elsewhere)), at("b", "CPU-0", &[]), "better nobody has to go");
}

#[test]
fn a_busy_or_pinned_worker_is_never_evicted() {
    let busy = || other("busy", "CPU-0", 3_000, 1, 0);
    let pinned = WorkerInfo { pinned: true, ..other("pinned", "CPU-0", 3_000, 0, 0) };
    let waits =
        Decision::Blocked { hive: "a".into(), device: "CPU-0".into(), bytes: LEAST, by: vec!["busy".into()] };
    assert_eq!(decided(&want(), &[hive("a", 100, vec![busy()])]), waits);
    let idle_but_used = [hive("a", 100, vec![other("busy", "CPU-0", 3_000, 0, 0)])];
    let in_flight = InFlight::from([("busy".into(), 1)]);
    assert_eq!(decided_with(&want(), &idle_but_used, &in_flight, &[], &[]), waits);
    let failure = refused(decided(&want(), &[hive("a", 100, vec![pinned])]));
    assert_eq!(failure.code, Code::InsufficientMemory);
    assert_eq!(failure.details["needed_bytes"], LEAST);
    assert_eq!(failure.details["available_bytes"], 100 * MIB);
    assert!(failure.message.contains("smaller"), "{}", failure.message);
}

#[test]
fn gpu_work_never_falls_to_a_processor_unasked() {
    let gaming = |free| with_gpu(hive("gaming", 9_000, vec![]), free);
    let server = || hive("server", 9_000, vec![]);
    assert_eq!(spawned(decided(&want(), &[gaming(2_000), server()])), at("gaming", "GPU-0", &[]));
    // Its memory is taken by somebody else: it is waited for, or refused, and no processor used.
    let mut taken = gaming(0);
    taken.workers = vec![other("game", "GPU-0", 7_000, 1, 0)];
    assert!(matches!(decided(&want(), &[taken, server()]), Decision::Blocked { .. }));
    assert_eq!(refused(decided(&want(), &[gaming(0), server()])).code, Code::InsufficientMemory);
    assert_eq!(spawned(decided(&on("cpu"), &[gaming(0), server()])).1, "CPU-0");
    // A model that no GPU here could ever hold is the processor's.
    let mut small = gaming(0);
    small.devices[1].memory_bytes = LEAST / 2;
    assert_eq!(spawned(decided(&want(), &[small, server()])), at("server", "CPU-0", &[]));
    // And a GPU without an engine is none.
    let mut without = gaming(2_000);
    without.engines.pop();
    assert_eq!(spawned(decided(&want(), &[without.clone()])), at("gaming", "CPU-0", &[]));
    let asked = refused(decided(&on("cuda"), &[without]));
    assert_eq!(asked.code, Code::BackendUnavailable);
    assert!(asked.message.contains("rbee worker install llm-worker-rbee-cuda"), "{}", asked.message);
    let only_on_cpu = [with_gpu(hive("a", 9, vec![worker("w", WorkerState::Ready, 0)]), 0)];
    assert!(!matches!(decided(&on("cuda"), &only_on_cpu), Decision::Use { .. }));
}

#[test]
fn a_number_names_a_device_among_the_best_kind_of_its_node() {
    let mut two = with_gpu(hive("a", 9_000, vec![]), 2_000);
    two.devices.push(device("GPU-1", "cuda", 2_000));
    for (word, id) in [("0", "GPU-0"), ("1", "GPU-1"), ("GPU-1", "GPU-1"), ("cpu", "CPU-0")] {
        assert_eq!(spawned(decided(&on(word), &[two.clone()])).1, id, "{word}");
    }
    assert_eq!(refused(decided(&on("2"), &[two.clone()])).code, Code::BackendUnavailable);
    // And the worker that is there is used, as by any other word.
    let there = WorkerInfo { device: "GPU-1".into(), ..worker("w", WorkerState::Ready, 0) };
    let served = HiveInfo { workers: vec![there], ..two };
    assert_eq!(used(decided(&on("1"), std::slice::from_ref(&served))), "w");
    assert_eq!(spawned(decided(&on("0"), &[served])).1, "GPU-0");
}

#[test]
fn a_claimed_worker_lets_nobody_in_and_is_not_evicted_for_a_third() {
    let hives = [hive("a", 100, vec![worker("w", WorkerState::Ready, 0)])];
    let claimed = ["w".to_owned()];
    let full = decided_with(&want(), &hives, &InFlight::new(), &[], &claimed);
    assert!(matches!(full, Decision::Full { .. }), "{full:?}");
    let idle = [hive("a", 100, vec![other("idle", "CPU-0", 3_000, 0, 0)])];
    let claimed = ["idle".to_owned()];
    let third = decided_with(&want(), &idle, &InFlight::new(), &[], &claimed);
    assert!(matches!(third, Decision::Blocked { .. }), "{third:?}");
}

#[test]
fn a_hive_of_the_version_before_decides_for_itself_and_comes_last() {
    let mut older = hive("older", 9_000, vec![]);
    older.model_needs[0].shapes.clear();
    older.engines.clear();
    let decision = decided(&want(), &[older.clone()]);
    assert!(matches!(&decision, Decision::Spawn(Spawn { device: None, .. })), "{decision:?}");
    assert_eq!(spawned(decided(&want(), &[older, hive("b", 1_100, vec![])])), at("b", "CPU-0", &[]));
}

#[test]
fn refusals_say_what_is_missing() {
    assert_eq!(nowhere(&want(), &[]).code, Code::BackendUnavailable);
    let a = HiveInfo { models: vec!["another".into()], model_needs: vec![], ..hive("a", 1, vec![]) };
    let failure = nowhere(&want(), &[&a]);
    assert_eq!(failure.code, Code::ModelNotFound);
    assert!(failure.message.contains("another") && failure.message.contains("rbee model download"));
    let elsewhere = Want { hive: Some("z".into()), ..want() };
    assert_eq!(nowhere(&elsewhere, &[&a]).code, Code::HiveNotFound);
    let gone = Want { worker_id: Some("w9".into()), ..want() };
    assert_eq!(refused(decided(&gone, &[hive("a", 9_000, vec![])])).code, Code::WorkerNotFound);
    let draining = HiveInfo { state: HiveState::Draining, ..hive("a", 9_000, vec![]) };
    assert_eq!(refused(decided(&want(), &[draining])).code, Code::ShuttingDown);
}

#[test]
fn every_node_has_a_verdict_in_words() {
    let draining = HiveInfo { state: HiveState::Draining, ..hive("c", 9_000, vec![]) };
    let hives = [hive("a", 2_000, vec![]), hive("b", 9, vec![worker("w", WorkerState::Busy, 2)]), draining];
    let sites = sites(&hives);
    let holders = holders(&sites, &want());
    let want = want();
    let in_flight = InFlight::new();
    let view = View { holders: &holders, in_flight: &in_flight, promises: &[], claimed: &[], refused: &[] };
    let told: Vec<(String, &str)> =
        verdicts(&want, &view).iter().map(|verdict| (verdict.hive().to_owned(), verdict.word())).collect();
    let expected = [("a", "room"), ("b", "full"), ("b", "taken"), ("c", "no")];
    assert_eq!(told, expected.map(|(hive, word)| (hive.to_owned(), word)));
    for verdict in verdicts(&want, &view) {
        let json = verdict.json();
        assert!(json["reason"].as_str().is_some_and(|reason| reason.contains(verdict.hive())), "{json}");
    }
}
