//! The memory estimate against what llama.cpp says it allocates and what the worker's process then holds, through the real
//! program. The models are generated ones of several kinds, and the real ones that are here (`support::models`).
//!
//! By default each runs in some shapes; with RBEE_ESTIMATE set, in more, and real ones in all. `--nocapture` shows the table.

use crate::support::gguf::{Kind, Tiny, part_name, split, tiny};
use crate::support::models::{GEMMA3, SMOLLM2, real_model};
use crate::support::worker::Worker;
use rbee::model::gguf::{self, TensorType};
use rbee::model::memory::{Memory, Shape, estimate};
use std::path::Path;

const MIB: f64 = (1 << 20) as f64;
/// Of what llama.cpp says.
const ERROR_PERCENT_MAX: f64 = 5.0;
/// Too little is worse than too much.
const UNDER_PERCENT_MAX: f64 = 1.0;
/// Of what the process holds: llama.cpp's own allocations are known, those of the C++ library beside them are not.
const RESIDENT_UNDER_PERCENT_MAX: f64 = 5.0;
/// And above it, beside the error in percent: what is there for long answers and was not touched yet, and the program
/// itself, of which an installed one is smaller.
const RESIDENT_OVER_MIB_MAX: f64 = 64.0;

/// What llama.cpp said it allocated, in MiB, and what the process holds.
#[derive(Debug, Default, Clone, Copy)]
struct Said {
    weights: f64,
    kv: f64,
    output: f64,
    compute: f64,
    resident: f64,
    peak: f64,
}

impl Said {
    fn allocated(&self) -> f64 {
        self.weights + self.kv + self.output + self.compute
    }
}

/// One that says what it allocates.
async fn ready(model: &Path, flags: &[String]) -> Worker {
    let flags: Vec<&str> = ["--threads", "1"].into_iter().chain(flags.iter().map(String::as_str)).collect();
    Worker::start_with(model, &flags, &[("RBEE_LOG", "warn,llama=debug")]).loaded().await
}

impl Worker {
    /// A kilobyte count out of one of the process's files in /proc.
    fn kilobytes(&self, file: &str, name: &str) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
    }

    fn said(&self) -> Said {
        let log = self.log();
        let sum = |what: &str| -> f64 {
            let what = format!("{what} buffer size =");
            let sizes = log.lines().filter_map(|line| line.split_once(&what));
            sizes.map(|(_, size)| size.trim().trim_end_matches("MiB").trim().parse::<f64>().unwrap()).sum()
        };
        Said {
            weights: sum("model"),
            kv: sum("KV") + sum("RS"),
            output: sum("output"),
            compute: sum("compute"),
            resident: self.kilobytes("smaps_rollup", "Rss:"),
            peak: self.kilobytes("status", "VmHWM:"),
        }
    }
}

/// Of [`some`], where the first of a kind had them all.
const CASES_FEW: usize = 3;

/// Slots, context, micro-batch, cache type, flash attention.
type Case = (u32, u32, u32, &'static str, bool);

fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for slots in [1, 4] {
        for ctx in [512, 4096, 8192] {
            for ubatch in [128, 512] {
                cases.extend(["f16", "q8_0", "q4_0", "f32"].map(|kv| (slots, ctx, ubatch, kv, true)));
                cases.push((slots, ctx, ubatch, "f16", false));
            }
        }
    }
    cases
}

fn some() -> Vec<Case> {
    vec![
        (1, 512, 512, "f16", true),
        (4, 4096, 512, "f16", true),
        (4, 512, 128, "q8_0", true),
        (1, 8192, 512, "q4_0", true),
        (1, 4096, 128, "f32", true),
        (1, 4096, 512, "f16", false),
    ]
}

/// Runs the model so, fills a micro-batch of every slot, and holds the estimate against it.
async fn compare(name: &str, model: &Path, case: Case) -> (Memory, Said) {
    let (slots, ctx, ubatch, kv, flash_attention) = case;
    let kind = TensorType::by_name(kv).unwrap();
    let shape = Shape { kv_type_k: kind, kv_type_v: kind, ubatch, flash_attention, ..Shape::new(slots, ctx) };
    let ours = estimate(&gguf::inspect(model).unwrap(), &shape);
    let flags = [
        ("--parallel", slots.to_string()),
        ("--ctx-size", (slots * ctx).to_string()),
        ("--ubatch-size", ubatch.to_string()),
        ("--cache-type-k", kv.into()),
        ("--cache-type-v", kv.into()),
        ("--flash-attn", if flash_attention { "auto" } else { "off" }.into()),
    ];
    let flags: Vec<String> = flags.into_iter().flat_map(|(flag, value)| [flag.into(), value]).collect();
    let worker = ready(model, &flags).await;
    // Words of a token each, as near as no matter, and never more than a slot holds.
    let prompt = "the ".repeat(ubatch.min(ctx / 2) as usize / 2);
    let all: Vec<_> = (0..slots).map(|slot| format!("{slot} {prompt}")).collect();
    let mut answers = all.iter().map(|prompt| worker.complete(prompt, 2)).collect::<Vec<_>>().into_iter();
    match (answers.next(), answers.next(), answers.next(), answers.next()) {
        (Some(a), Some(b), Some(c), Some(d)) => drop(tokio::join!(a, b, c, d)),
        (Some(a), ..) => drop(a.await),
        _ => unreachable!("there is at least a slot"),
    }
    let said = worker.said();
    let mib = |bytes: u64| bytes as f64 / MIB;
    let percent = |ours: f64, said: f64| (ours - said) / said * 100.0;
    let error = percent(mib(ours.allocated()), said.allocated());
    println!(
        "{name:12} {slots} {ctx:5} {ubatch:4} {kv:5} {:3} | {:7.2} {:7.2} | {:7.2} {:7.2} | {:5.2} {:5.2} | {:6.2} {:6.2} | {:8.2} {:8.2} {error:+6.2} % | {:7.1} {:7.1} {:7.1} {:+6.1} %",
        if flash_attention { "fa" } else { "-" },
        mib(ours.weights + ours.reordered),
        said.weights,
        mib(ours.kv),
        said.kv,
        mib(ours.output),
        said.output,
        mib(ours.compute),
        said.compute,
        mib(ours.allocated()),
        said.allocated(),
        mib(ours.resident()),
        said.resident,
        said.peak,
        percent(mib(ours.resident()), said.resident),
    );
    assert!(error < ERROR_PERCENT_MAX, "{name} {case:?}: {error:+.2} %: {ours:?} for {said:?}");
    assert!(error > -UNDER_PERCENT_MAX, "{name} {case:?}: {error:+.2} %: {ours:?} for {said:?}");
    let (resident, peak) = (mib(ours.resident()), said.peak.max(said.resident));
    let least = peak * (1.0 - RESIDENT_UNDER_PERCENT_MAX / 100.0);
    assert!(resident > least, "{name} {case:?}: the process holds {peak:.0} MiB: {ours:?}");
    // Without flash attention the buffer holds scores over the whole context, of which a short prompt needs few.
    let untouched = if flash_attention { 0.0 } else { said.compute };
    let most = said.resident * (1.0 + ERROR_PERCENT_MAX / 100.0) + RESIDENT_OVER_MIB_MAX + untouched;
    assert!(resident < most, "{name} {case:?}: the process holds {:.0} MiB: {ours:?}", said.resident);
    (ours, said)
}

fn print_head() {
    println!(
        "model        slots ctx ubatch kv | weights: ours, said | kv | output | compute | allocated, error | process: ours, RSS, peak, error (MiB)"
    );
}

#[tokio::test]
async fn the_estimate_is_what_llama_cpp_allocates_for_generated_models() {
    let folder = tempfile::tempdir().unwrap();
    print_head();
    let wide = Tiny { embedding: 256, feed_forward: 512, ..Tiny::default() };
    let models = [
        // Heads of 32, because quantised caches have blocks of that.
        ("llama", Tiny { head: Some(32), ..Tiny::default() }),
        ("wide heads", Tiny { head: Some(128), heads_kv: 4, ..wide.clone() }),
        ("mixture", Tiny { kind: Kind::Mixture { experts: 8, used: 2 }, ..wide.clone() }),
        ("gemma3", Tiny { kind: Kind::Gemma3 { window: 256 }, blocks: 7, head: Some(128), ..wide.clone() }),
        ("reordered", Tiny { quarter: true, ..wide }),
    ];
    for (name, options) in models {
        let path = folder.path().join(format!("{name}.gguf"));
        std::fs::write(&path, tiny(&options)).unwrap();
        let is_first = name == "llama";
        let cases = if is_first && std::env::var_os("RBEE_ESTIMATE").is_some() { all() } else { some() };
        let many =
            if is_first || std::env::var_os("RBEE_ESTIMATE").is_some() { cases.len() } else { CASES_FEW };
        for case in cases.into_iter().take(many) {
            compare(name, &path, case).await;
        }
    }
}

#[tokio::test]
async fn the_estimate_is_what_llama_cpp_allocates_for_real_models() {
    print_head();
    let is_thorough = std::env::var_os("RBEE_ESTIMATE").is_some();
    let cases = if is_thorough { all() } else { some().into_iter().take(CASES_FEW).collect() };
    for (name, file) in [("SmolLM2-135M", SMOLLM2), ("gemma3-270m", GEMMA3)] {
        let Some(path) = real_model(file) else { continue };
        for case in cases.iter().copied() {
            compare(name, &path, case).await;
        }
    }
}

#[tokio::test]
async fn a_split_model_answers_as_the_whole_one_whichever_part_is_given() {
    const PARTS: usize = 3;
    const PROMPT: &str = "the queen and the bee";
    let folder = tempfile::tempdir().unwrap();
    let options = Tiny { endless: true, ..Tiny::default() };
    let whole = folder.path().join("whole.gguf");
    std::fs::write(&whole, tiny(&options)).unwrap();
    for (number, bytes) in split(&options, PARTS).into_iter().enumerate() {
        std::fs::write(folder.path().join(part_name("tiny", number, PARTS)), bytes).unwrap();
    }
    let answer = async |path: &Path| {
        let worker = ready(path, &[]).await;
        let answer = worker.complete(PROMPT, 32).await;
        let tokens = answer["choices"][0]["rbee"]["tokens"].clone();
        (answer["choices"][0]["text"].clone(), tokens, worker.said().weights)
    };
    let (text, tokens, weights) = answer(&whole).await;
    assert!(text.as_str().is_some_and(|text| !text.is_empty()));
    for number in 0..PARTS {
        let part = folder.path().join(part_name("tiny", number, PARTS));
        let (part_text, part_tokens, part_weights) = answer(&part).await;
        assert_eq!((&part_text, &part_tokens), (&text, &tokens), "part {number}");
        assert!((part_weights - weights).abs() < 0.05, "{part_weights} MiB for {weights}");
    }
}
