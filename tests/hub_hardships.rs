//! Downloads that are cut, killed and lied to again and again: the file is right in the end, little comes twice, nothing
//! hangs. Few and small by default; RBEE_CUTS, RBEE_PULLS, RBEE_PULL_MIB and RBEE_PULL_SEED make them many and large.

use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::content::mixed;
use crate::support::hub::{Content, Fault, Repo, TestHub, When};
use crate::support::node::alone;
use crate::support::pull::{Puller, sha256_of};
use rbee::wire::job::Terminator;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REPO: &str = "bees/Hard";
const FILE: &str = "h-Q4_K_M.gguf";
const MIB: u64 = 1 << 20;
/// Fetched again after a cut or a kill, at most, beside a hundredth of the file.
const AGAIN_BYTES_MAX: u64 = 4 * MIB;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    /// Of this run, said aloud so that it can be run again.
    fn thrown(what: &str) -> Dice {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = number("RBEE_PULL_SEED", u64::from(now.subsec_nanos()));
        println!("{what}: RBEE_PULL_SEED={seed}");
        Dice(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = mixed(self.0.wrapping_add(1));
        self.0 % limit
    }
}

fn content(bytes: u64, seed: u64) -> Arc<Content> {
    Content::padded(tiny(&Tiny::default()), bytes, seed)
}

#[test]
fn a_download_survives_cuts_and_kills_and_little_comes_twice() {
    alone(|| {
        let size = number("RBEE_PULL_MIB", 24) * MIB;
        let cuts = number("RBEE_CUTS", 6);
        let kills = (cuts / 5).max(2);
        let mut dice = Dice::thrown("cuts and kills");
        let content = content(size, dice.below(u64::MAX));
        let repo = Repo::new(REPO).with(FILE, &content);
        // Slow enough that a kill finds it at work, and little is on its way when it does.
        let rate = (size / 8).clamp(16 * MIB, 48 * MIB);
        let hub = TestHub::of([repo]).cdn().bytes_per_second(rate).send_buffer(64 << 10).open();
        hub.cut_at((0..cuts).map(|_| 1 + dice.below(size - 1)));
        let mut puller = Puller::new(hub);
        let begun = Instant::now();
        let mut kills_at: Vec<u64> = (0..kills).map(|_| size / 50 + dice.below(size * 9 / 10)).collect();
        kills_at.sort_unstable();
        for place in kills_at {
            puller.begin(REPO);
            puller.hub.has_sent(place);
            puller.kill9();
            assert!(puller.is_sound() == 0, "not whole yet, and so not there");
        }
        let job = puller.pull(REPO);
        assert_eq!(sha256_of(&puller.path_of(&job)), content.sha256());
        let (sent, left) = (puller.hub.bytes_sent(), puller.hub.cuts_left());
        let again = sent - size;
        println!(
            "{} MiB, {cuts} cuts, {kills} kills: {again} bytes ({:.2} %) came twice, {} per break; {} ranges, {:.1} s",
            size / MIB,
            100.0 * again as f64 / size as f64,
            again / (cuts + kills),
            puller.hub.spans().len(),
            begun.elapsed().as_secs_f32()
        );
        assert_eq!(left, 0, "every cut was made");
        let most = size / 100 + (cuts + kills) * AGAIN_BYTES_MAX;
        assert!(again <= most, "{again} bytes came twice, at most {most} should");
        assert_eq!(puller.is_sound(), 1);
        assert_eq!(puller.kept(), [] as [std::path::PathBuf; 0]);
    });
}

/// What may happen to one request for bytes; each of it passes.
fn trouble(dice: &mut Dice, size: u64) -> Fault {
    let place = dice.below(size) as usize;
    match dice.below(22) {
        0..4 => Fault::CutAt(place),
        4..6 => Fault::ResetAt(place),
        6 => Fault::IgnoreRange,
        7 => Fault::LatePart,
        8 => Fault::EarlyPart,
        9 => Fault::ShortPart,
        10 => Fault::OtherTag,
        11 => Fault::NewTag,
        12 => Fault::NoContentRange,
        13 => Fault::Status(416),
        14 => Fault::Status(503),
        15 => Fault::StatusWith(429, "retry-after: 0\r\n".into()),
        16 => Fault::WrongByte,
        17 => Fault::FlipAt(place as u64),
        18 => Fault::Endless,
        19 => Fault::NoLength,
        20 => Fault::Gibberish,
        _ => Fault::OtherSize,
    }
}

#[test]
fn whatever_happens_on_the_way_no_wrong_file_gets_a_name() {
    alone(|| {
        let runs = number("RBEE_PULLS", 30) as usize;
        let mut dice = Dice::thrown("faults by chance");
        let seed = dice.0;
        let repo = |run: usize| format!("bees/Run{run}x");
        let contents: Vec<Arc<Content>> =
            (0..runs).map(|run| content(600_000 + dice.below(400_000), seed ^ run as u64)).collect();
        let repos =
            contents.iter().enumerate().map(|(run, content)| Repo::new(&repo(run)).with(FILE, content));
        let puller = Puller::new(TestHub::of(repos.collect::<Vec<_>>()).cdn().open());
        let mut scripts = Vec::new();
        for content in &contents {
            let faults: Vec<Fault> = (0..dice.below(5)).map(|_| trouble(&mut dice, content.size())).collect();
            for (nth, fault) in faults.iter().enumerate() {
                puller.hub.fail(When::bytes().path(content.sha256()).nth(nth), fault.clone());
            }
            scripts.push(faults);
        }
        let begun = Instant::now();
        let (mut right, mut refused, mut longest) = (0, Vec::new(), Duration::ZERO);
        // Some at a time, as people would, but more of them.
        for batch in (0..runs).collect::<Vec<_>>().chunks(12) {
            let jobs: Vec<(usize, String)> =
                batch.iter().map(|run| (*run, puller.begin(&repo(*run)))).collect();
            let at = Instant::now();
            for (run, id) in jobs {
                let job = puller.hive().follow(&id);
                longest = longest.max(at.elapsed());
                match &job.terminator {
                    Terminator::Done => {
                        let sum = sha256_of(&puller.path_of(&job));
                        assert_eq!(sum, contents[run].sha256(), "seed {seed}, {:?}", scripts[run]);
                        right += 1;
                    }
                    _ => refused.push((run, job.find("error").cloned().unwrap_or_default())),
                }
            }
        }
        println!(
            "{runs} faulty downloads, seed {seed}: {right} right, {} refused, 0 wrong, 0 hung; longest {:.1} s, all {:.1} s",
            refused.len(),
            longest.as_secs_f32(),
            begun.elapsed().as_secs_f32()
        );
        for (run, error) in &refused {
            println!("{:?}: {}: {}", scripts[*run], error["code"], error["message"]);
            // Twice wrong, or another size: the file on the hub is not the one that was listed.
            assert_eq!(error["code"], "CHECKSUM_MISMATCH", "seed {seed}, {:?}: {error}", scripts[*run]);
        }
        assert_eq!(puller.is_sound(), right);
        assert_eq!(puller.models().len(), right);
        puller.hub.behave();
        for (run, _) in refused {
            let job = puller.pull(&repo(run));
            assert_eq!(sha256_of(&puller.path_of(&job)), contents[run].sha256(), "seed {seed}");
        }
        assert_eq!(puller.kept(), [] as [std::path::PathBuf; 0]);
    });
}
