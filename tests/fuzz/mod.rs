//! What comes from elsewhere, mutated at random: every reader of foreign bytes must end, soon, without a panic, with no more
//! memory than its input explains, and what it did read must be said and read again as the same.
//!
//! A run is repeatable: the seed is printed, and with it everything follows. RBEE_FUZZ says how many runs each reader has,
//! RBEE_FUZZ_SEED where they begin. A new reader is one more file here: a corpus of real samples, and what must hold.

mod events;
mod frames;
mod headers;
mod journals;
mod numbers;
mod recipes;
mod references;

use std::time::{Duration, Instant};

/// Runs of each reader where the environment asks for no other number.
const RUNS: u64 = 20_000;
const SEED: u64 = 0x5262_6565;
/// The longest input.
const INPUT_BYTES_MAX: usize = 16 << 10;
/// One run, on a machine that does something else besides.
const RUN_MAX: Duration = Duration::from_secs(2);
/// What the process may grow by, where it does nothing but this.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which may be 0: then 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.below(from.len())]
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(64) + 1)
    }
}

/// Numbers that readers get wrong.
const NUMBERS: &[&str] = &[
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "4294967295",
    "9007199254740992",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e999",
    "-0.0",
    "0.1",
];

/// One small change.
fn mutate(input: &mut Vec<u8>, random: &mut Random, corpus: &[Vec<u8>], words: &[&str]) {
    let length = input.len();
    match random.below(10) {
        0 if length > 0 => {
            let at = random.below(length);
            input[at] ^= 1 << random.below(8);
        }
        1 if length > 0 => {
            let at = random.below(length);
            input[at] =
                *random.pick(&[0, 0xff, 0x80, b'\n', b'\r', b'"', b'{', b'}', b'[', b':', b' ', b'0', b'9']);
        }
        2 => drop(input.drain(random.range(length))),
        3 => {
            let piece = input[random.range(length)].to_vec();
            input.splice(random.range(length), piece);
        }
        4 => input.truncate(random.below(length + 1)),
        5 => {
            let bytes: Vec<u8> = (0..random.below(9)).map(|_| random.next() as u8).collect();
            let at = random.below(length + 1);
            input.splice(at..at, bytes);
        }
        6 => {
            let other = random.pick(corpus);
            let piece = other[random.range(other.len())].to_vec();
            input.splice(random.range(length), piece);
        }
        7 if !words.is_empty() => {
            let word = random.pick(words).as_bytes().to_vec();
            let at = random.below(length + 1);
            input.splice(at..at, word);
        }
        8 => {
            // A number becomes another number.
            let Some(start) = input.iter().skip(random.below(length)).position(u8::is_ascii_digit) else {
                return;
            };
            let end = input[start..]
                .iter()
                .position(|byte| !byte.is_ascii_digit())
                .map_or(length, |end| start + end);
            input.splice(start..end, random.pick(NUMBERS).bytes());
        }
        _ => {
            let piece = input[random.range(length)].to_vec();
            let at = random.below(length + 1);
            let repeated = piece.repeat(1 + random.below(8));
            input.splice(at..at, repeated);
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

/// What failed, told on the way out of a panic.
struct Report<'r> {
    name: &'r str,
    seed: u64,
    run: u64,
    input: Vec<u8>,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "{}: run {} of RBEE_FUZZ_SEED={}, on b\"{}\"",
                self.name,
                self.run,
                self.seed,
                self.input.escape_ascii()
            );
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Holds `check` against mutations of the corpus. It gets the random numbers, too, to cut the input where it likes.
fn fuzz(name: &str, corpus: &[Vec<u8>], words: &[&str], mut check: impl FnMut(&[u8], &mut Random)) {
    let runs = number("RBEE_FUZZ").unwrap_or(RUNS);
    let seed = number("RBEE_FUZZ_SEED").unwrap_or(SEED);
    let mut random = Random(seed);
    let mut report = Report { name, seed, run: 0, input: Vec::new() };
    for sample in corpus {
        // Real samples are read as they are first: a corpus that nothing reads tests nothing.
        report.input.clone_from(sample);
        check(sample, &mut random);
    }
    let (begun, before) = (Instant::now(), peak_bytes());
    let mut slowest = Duration::ZERO;
    for run in 0..runs {
        report.run = run;
        report.input.clone_from(random.pick(corpus));
        for _ in 0..1 + random.below(6) {
            mutate(&mut report.input, &mut random, corpus, words);
        }
        let started = Instant::now();
        check(&report.input, &mut random);
        slowest = slowest.max(started.elapsed());
        assert!(slowest < RUN_MAX, "one run took {slowest:?}");
    }
    let grown = peak_bytes() - before;
    println!(
        "{name}: seed {seed}, {runs} runs in {:?}, the slowest {slowest:?}, {} KiB more at the peak",
        begun.elapsed(),
        grown >> 10
    );
    if number("RBEE_FUZZ").is_some() && std::env::args().any(|argument| argument.contains("fuzz")) {
        assert!(grown < GROWTH_BYTES_MAX, "{name} grew by {grown} bytes");
    }
}

/// Cuts an input into pieces.
fn pieces<'i>(input: &'i [u8], random: &mut Random) -> Vec<&'i [u8]> {
    let mut pieces = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        let at = if random.below(4) == 0 { 1 } else { 1 + random.below(rest.len()) };
        let (piece, after) = rest.split_at(at);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

#[test]
fn the_same_seed_gives_the_same_runs() {
    let inputs = || {
        let mut random = Random(7);
        let corpus = [b"one 1 two 2".to_vec(), b"three".to_vec()];
        let mut input = corpus[0].clone();
        (0..200)
            .map(|_| (mutate(&mut input, &mut random, &corpus, &["word"]), input.clone()).1)
            .collect::<Vec<_>>()
    };
    let first = inputs();
    assert_eq!(first, inputs());
    assert!(
        first.windows(2).filter(|pair| pair[0] != pair[1]).count() > 100,
        "and they differ from run to run"
    );
}
