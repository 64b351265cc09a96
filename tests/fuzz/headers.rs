//! GGUF headers: cut anywhere, mutated field by field, and what our reader accepts handed to llama.cpp.
//!
//! The reader stands between a file from anywhere and C++ that aborts for some wrong counts. So three things are counted of
//! mutated files that the reader accepts: llama.cpp runs them, refuses them, or dies; the last must be none. They are
//! loaded in a child, this very test program, which says before each file which it is.

mod layout;

use super::{Random, Report, SEED, number, peak_bytes};
use crate::support::gguf::{Kind, Tiny, split, tiny};
use crate::support::models::{GEMMA3, SMOLLM2, real_model};
use layout::{Field, Layout};
use rbee::model::gguf::{self, GgufError};
use rbee::model::memory::{Shape, estimate};
use rbee::worker::engine::{Engine, Row};
use rbee::worker::llama::Template;
use rbee::worker::{self, Options};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Mutated headers where the environment asks for no other number.
const RUNS: u64 = 20_000;
/// One header, in time of the processor: the machine does something else besides.
const RUN_MAX: Duration = Duration::from_millis(100);
/// What the process may grow by, where it does nothing but this. A reader keeps 16 MiB of metadata at most.
const GROWTH_BYTES_MAX: u64 = 96 << 20;
/// Of the accepted, so many go to llama.cpp, and with RBEE_FUZZ so many.
const LOADS: usize = 60;
const LOADS_OF_MANY: usize = 1_500;
/// One load takes milliseconds; a child that says nothing for so long hangs.
const LOAD_MAX: Duration = Duration::from_secs(60);
const LOAD_VARIABLE: &str = "RBEE_TEST_LOAD_FOLDER";
/// Tokens that a real model keeps in the corpus: among them the bytes, without which no tokenizer works.
const TOKENS_KEPT: u64 = 512;
/// Every cut of this much, without RBEE_FUZZ of a sixteenth; beyond, one in so many bytes.
const CUTS_ALL_BYTES: usize = 64 << 10;
const CUT_EVERY_BYTES: usize = 65_521;
const CUT_EVERY_BYTES_FAST: usize = 499_979;

/// The header of a file, and its length.
fn header_of(path: &Path) -> (Vec<u8>, u64) {
    const READ_BYTES: u64 = 32 << 20;
    let file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let mut bytes = Vec::new();
    file.take(READ_BYTES).read_to_end(&mut bytes).unwrap();
    let end = Layout::parse(&bytes).unwrap().end;
    bytes.truncate(end);
    (bytes, length)
}

fn real_headers() -> Vec<(&'static str, Vec<u8>, u64)> {
    let header = |name| {
        let (bytes, length) = header_of(&real_model(name)?);
        Some((name, bytes, length))
    };
    [SMOLLM2, GEMMA3].into_iter().filter_map(header).collect()
}

#[test]
fn a_real_header_cut_anywhere_is_refused() {
    let is_thorough = number("RBEE_FUZZ").is_some();
    for (name, bytes, length) in real_headers() {
        gguf::read(Cursor::new(&bytes), length).unwrap();
        let layout = Layout::parse(&bytes).unwrap();
        let boundaries = layout.boundaries();
        let (every, step) = match is_thorough {
            true => (CUTS_ALL_BYTES, CUT_EVERY_BYTES),
            false => (CUTS_ALL_BYTES / 16, CUT_EVERY_BYTES_FAST),
        };
        // Boundaries are the likeliest to be taken for the end; without RBEE_FUZZ only the ones that are near.
        let far = boundaries.iter().copied().filter(|at| is_thorough || *at < (1 << 20));
        let cuts: Vec<usize> = (0..every).chain((every..bytes.len()).step_by(step)).chain(far).collect();
        for cut in &cuts {
            match gguf::read(Cursor::new(&bytes[..*cut]), *cut as u64) {
                Err(GgufError::Truncated(_)) => {}
                other => panic!("{name} cut at {cut}: {other:?}"),
            }
        }
        // The header whole and the file not.
        for missing in [1, 31, 4096, length / 2] {
            let cut = gguf::read(Cursor::new(&bytes), length - missing);
            assert!(matches!(cut, Err(GgufError::Truncated(_))), "{name} without {missing} bytes: {cut:?}");
        }
        println!("{name}: {} cuts of a header of {} bytes, all refused", cuts.len(), bytes.len());
    }
}

/// Headers to begin with: every kind the generator makes, and the real ones with a short vocabulary.
fn corpus() -> Vec<Layout> {
    let small = Tiny { embedding: 32, feed_forward: 32, ..Tiny::default() };
    let kinds = [
        small.clone(),
        Tiny { half: true, chat_template: false, ..small.clone() },
        Tiny { quarter: true, ..small.clone() },
        Tiny { kind: Kind::Mixture { experts: 4, used: 2 }, ..small.clone() },
        Tiny { kind: Kind::Gemma3 { window: 256 }, blocks: 6, head: Some(16), ..small.clone() },
    ];
    let mut corpus: Vec<Layout> = kinds.iter().map(|kind| Layout::parse(&tiny(kind)).unwrap()).collect();
    corpus.push(Layout::parse(&split(&small, 2)[0]).unwrap());
    for (_, bytes, _) in real_headers() {
        let mut layout = Layout::parse(&bytes).unwrap();
        layout.shorten_vocabulary(TOKENS_KEPT);
        corpus.push(layout);
    }
    corpus
}

/// Numbers that readers get wrong.
const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    3,
    7,
    31,
    33,
    64,
    255,
    513,
    1 << 16,
    (1 << 20) + 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 48,
    1 << 61,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 31,
    u64::MAX,
];

fn a_number(random: &mut Random, before: u64) -> u64 {
    match random.below(4) {
        0 => before.wrapping_add(1),
        1 => before.wrapping_sub(1),
        2 => random.next() >> random.below(64),
        _ => *random.pick(&NUMBERS),
    }
}

/// Changes in the structure: what is written is still a header, with the counts and offsets that belong to it.
fn rearrange(layout: &mut Layout, random: &mut Random, corpus: &[Layout]) {
    let other = random.pick(corpus);
    let (keys, tensors) = (layout.keys.len(), layout.tensors.len());
    match random.below(12) {
        0 if keys > 0 => {
            let twice = random.pick(&layout.keys).clone();
            layout.keys.insert(random.below(keys), twice);
        }
        1 if keys > 0 => drop(layout.keys.remove(random.below(keys))),
        2 if keys > 1 => layout.keys.swap(random.below(keys), random.below(keys)),
        3 if !other.keys.is_empty() => {
            // What another file says of the same, or of something else.
            let key = random.pick(&other.keys).clone();
            match layout.keys.iter_mut().find(|own| own.name == key.name) {
                Some(own) => *own = key,
                None => layout.keys.push(key),
            }
        }
        4 if keys > 1 => {
            let value = random.pick(&layout.keys).value.clone();
            layout.keys[random.below(keys)].value = value;
        }
        5 if tensors > 0 => drop(layout.tensors.remove(random.below(tensors))),
        6 if tensors > 1 => layout.tensors.swap(random.below(tensors), random.below(tensors)),
        7 if !other.tensors.is_empty() => layout.tensors.push(random.pick(&other.tensors).clone()),
        8 if tensors > 0 => {
            let tensor = &mut layout.tensors[random.below(tensors)];
            match random.below(3) {
                0 => tensor.kind = random.below(44) as u32,
                1 => {
                    let count = tensor.shape.len();
                    if count > 0 {
                        let length = &mut tensor.shape[random.below(count)];
                        *length = a_number(random, *length) % 4_096;
                    }
                }
                _ => tensor.shape.reverse(),
            }
        }
        9 if tensors > 1 => {
            let name = random.pick(&layout.tensors).name.clone();
            layout.tensors[random.below(tensors)].name = name;
        }
        10 if tensors > 0 => {
            let twice = random.pick(&layout.tensors).shape.clone();
            layout.tensors[random.below(tensors)].shape = twice;
        }
        _ => {
            // A number in the metadata becomes another: the mutation that most often still makes a header.
            let numbers: Vec<usize> = (0..keys).filter(|at| layout.keys[*at].is_number()).collect();
            if let Some(at) = numbers.get(random.below(numbers.len())) {
                let key = &mut layout.keys[*at];
                let number = a_number(random, key.number());
                key.set_number(number);
            }
        }
    }
}

/// Changes in the bytes.
fn damage(bytes: &mut Vec<u8>, fields: &[Field], random: &mut Random, corpus: &[Vec<u8>]) {
    let length = bytes.len();
    match random.below(8) {
        0 if length > 4 => {
            let at = 4 + random.below(length - 4);
            bytes[at] ^= 1 << random.below(8);
        }
        1 => bytes.truncate(random.below(length + 1)),
        2 => {
            let other = random.pick(corpus);
            let piece = other[random.range(other.len())].to_vec();
            bytes.splice(random.range(length), piece);
        }
        3 => drop(bytes.drain(random.range(length))),
        _ => {
            // A count, length, type, dimension, or offset.
            let field = random.pick(fields);
            let Some(place) = bytes.get_mut(field.at..field.at + field.width) else { return };
            let mut before = [0; 8];
            before[..place.len()].copy_from_slice(place);
            let number = a_number(random, u64::from_le_bytes(before));
            place.copy_from_slice(&number.to_le_bytes()[..field.width]);
        }
    }
}

/// What this thread has had of the processor; the clock's time where the system does not tell.
fn cpu_time() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.and_then(|told| told.split(' ').next()?.parse().ok());
    nanoseconds.map_or_else(|| START.elapsed(), Duration::from_nanos)
}

/// A file that our reader accepted: a header, and how long the file is.
struct Accepted {
    header: Vec<u8>,
    length: u64,
}

#[test]
fn mutated_headers_are_read_soon_in_little_memory_and_llama_cpp_dies_of_none_that_we_accept() {
    let runs = number("RBEE_FUZZ").unwrap_or(RUNS);
    let seed = number("RBEE_FUZZ_SEED").unwrap_or(SEED);
    let mut random = Random(seed);
    let corpus = corpus();
    let written: Vec<(Vec<u8>, u64, Vec<Field>)> = corpus.iter().map(Layout::write).collect();
    let bytes_of_all: Vec<Vec<u8>> = written.iter().map(|(bytes, ..)| bytes.clone()).collect();
    let mut accepted: Vec<Accepted> = Vec::new();
    for (header, length, _) in &written {
        match gguf::read(Cursor::new(header), *length) {
            Ok(_) => accepted.push(Accepted { header: header.clone(), length: *length }),
            Err(GgufError::PartAlone { .. }) => {}
            Err(error) => panic!("a corpus that is not read tests nothing: {error}"),
        }
    }
    let samples = accepted.len();
    let loads = if number("RBEE_FUZZ").is_some() { LOADS_OF_MANY } else { LOADS };
    // From here on: what was read of the corpus would hide what a header takes. Where this file is not, the bound is weaker.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let (begun, before) = (Instant::now(), peak_bytes());
    let (mut slowest, mut passed) = (Duration::ZERO, 0usize);
    let mut report = Report { name: "GGUF headers", seed, run: 0, input: Vec::new() };
    for run in 0..runs {
        report.run = run;
        let at = random.below(corpus.len());
        let mut length = written[at].1;
        if random.below(2) == 0 {
            let mut layout = corpus[at].clone();
            for _ in 0..1 + random.below(2) {
                rearrange(&mut layout, &mut random, &corpus);
            }
            (report.input, length, _) = layout.write();
        } else {
            report.input.clone_from(&written[at].0);
            for _ in 0..1 + random.below(3) {
                damage(&mut report.input, &written[at].2, &mut random, &bytes_of_all);
            }
        }
        let started = cpu_time();
        let header = gguf::read(Cursor::new(&report.input), length);
        if let Ok(header) = &header {
            estimate(header, &Shape::new(4, u32::MAX));
        }
        let took = cpu_time().saturating_sub(started);
        assert!(took <= RUN_MAX, "one header took {took:?}");
        slowest = slowest.max(took);
        if header.is_ok() {
            passed += 1;
            // Each has the same chance to be among those that are loaded.
            let new = Accepted { header: report.input.clone(), length };
            if accepted.len() < samples + loads {
                accepted.push(new);
            } else {
                let place = random.below(passed);
                if place < loads {
                    accepted[samples + place] = new;
                }
            }
        }
    }
    let grown = peak_bytes().saturating_sub(before);
    println!(
        "GGUF headers: seed {seed}, {runs} runs in {:?}, the slowest {slowest:?}, {} KiB more at the peak; {passed} accepted",
        begun.elapsed(),
        grown >> 10
    );
    if number("RBEE_FUZZ").is_some() && std::env::args().any(|argument| argument.contains("headers")) {
        assert!(grown < GROWTH_BYTES_MAX, "it grew by {grown} bytes");
    }
    drop(report);
    assert!(passed as u64 * 100 > runs, "mutations that are still accepted: {passed}");
    let outcomes = load_all(&accepted, seed);
    let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count();
    println!(
        "of {} accepted, llama.cpp ran {}, refused {}, died of {}",
        outcomes.len(),
        count(|outcome| matches!(outcome, Outcome::Ran)),
        count(|outcome| matches!(outcome, Outcome::Refused(_))),
        count(|outcome| matches!(outcome, Outcome::Died(_)))
    );
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in &outcomes {
        if let Outcome::Refused(why) = outcome {
            // Alike but for numbers and names.
            let kind: String = why.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
            *reasons.entry(kind.chars().take(150).collect()).or_default() += 1;
        }
    }
    let mut reasons: Vec<(String, usize)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    reasons.iter().take(40).for_each(|(why, count)| println!("  {count:4} {why}"));
    for (at, outcome) in outcomes.iter().enumerate().take(samples) {
        assert!(matches!(outcome, Outcome::Ran), "sample {at}: {outcome:?}");
    }
    let died: Vec<&Outcome> = outcomes.iter().filter(|o| matches!(o, Outcome::Died(_))).collect();
    assert!(died.is_empty(), "{} of them: {died:#?}", died.len());
}

#[derive(Debug)]
enum Outcome {
    Ran,
    Refused(String),
    Died(String),
}

/// Writes the files and has them loaded by children, the next going on where one died.
fn load_all(accepted: &[Accepted], seed: u64) -> Vec<Outcome> {
    let folder = tempfile::tempdir().unwrap();
    for (at, Accepted { header, length }) in accepted.iter().enumerate() {
        let mut file = File::create(folder.path().join(format!("{at:05}.gguf"))).unwrap();
        file.write_all(header).unwrap();
        // Weights of zeros take no room on the disk.
        file.set_len(*length).unwrap();
    }
    let mut outcomes = Vec::new();
    while outcomes.len() < accepted.len() {
        let before = outcomes.len();
        load_from(folder.path(), &mut outcomes);
        assert!(outcomes.len() > before, "the child that loads has loaded nothing");
        if let Some(Outcome::Died(why)) = outcomes.last() {
            let path = folder.path().join(format!("{:05}.gguf", outcomes.len() - 1));
            let kept = std::env::temp_dir().join(format!("rbee-died-{seed}-{}.gguf", outcomes.len() - 1));
            println!("died: {why}; kept as {}", kept.display());
            std::fs::copy(path, kept).unwrap();
        }
    }
    outcomes
}

/// Adds what becomes of the files from the one after the last that has an outcome, up to the first that a child dies of.
fn load_from(folder: &Path, outcomes: &mut Vec<Outcome>) {
    let (_, module) = module_path!().split_once("::").unwrap();
    let errors = folder.join("stderr");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::what_a_child_loads"), "--nocapture", "--test-threads=1"])
        .env(LOAD_VARIABLE, format!("{}:{}", outcomes.len(), folder.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reading =
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(tell.send(line))));
    let mut is_loading = false;
    let mut is_hanging = false;
    loop {
        let line = match told.recv_timeout(LOAD_MAX) {
            Ok(line) => line,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                is_hanging = true;
                child.kill().unwrap();
                break;
            }
        };
        if line.ends_with("load-begins") {
            is_loading = true;
        } else if let Some(("", what)) = line.split_once("load-ends ") {
            is_loading = false;
            outcomes.push(if what == "ran" { Outcome::Ran } else { Outcome::Refused(what.into()) });
        }
    }
    let status = child.wait().unwrap();
    drop(told);
    reading.join().unwrap();
    if is_loading {
        let said = std::fs::read_to_string(errors).unwrap();
        let last: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
        let what = if is_hanging { "hangs".into() } else { status.to_string() };
        outcomes.push(Outcome::Died(format!("{what}: {:?}", last.last().unwrap_or(&""))));
    } else {
        assert!(status.success(), "the child that loads: {status}");
    }
}

/// Nothing, unless it is the child of `load_from`.
#[test]
fn what_a_child_loads() {
    let Ok(told) = std::env::var(LOAD_VARIABLE) else { return };
    let (first, folder) = told.split_once(':').unwrap();
    let paths = (first.parse::<usize>().unwrap()..).map(|at| Path::new(folder).join(format!("{at:05}.gguf")));
    for path in paths.take_while(|path| path.exists()) {
        println!("\nload-begins");
        println!("load-ends {}", load(path).map_or_else(|why| why.replace('\n', " "), |()| "ran".into()));
    }
}

/// What a worker does with a model, and one decode.
fn load(path: PathBuf) -> Result<(), String> {
    gguf::inspect(&path).map_err(|error| format!("our own reader: {error}"))?;
    let options = Options {
        ctx_size: Some(256),
        parallel: 2,
        threads: 1,
        threads_batch: 1,
        ..Options::for_model(path)
    };
    let (model, mut llama) = worker::engine(&options, &mut |_| true).map_err(|error| error.to_string())?;
    let row = |position| Row { token: 1, position, sequence: 0, logits: true };
    let rows: Vec<Row> = (0..2).map(|position| Row { logits: position == 1, ..row(position) }).collect();
    llama.decode(&rows, &|| false).map_err(|error| format!("decode: {error}"))?;
    llama.logits(1).map_err(|error| format!("logits: {error}"))?;
    Template::open(model, None).map_err(|error| format!("template: {error}"))?;
    Ok(())
}
