//! Numbers that llama.cpp asserts, and of which a wrong one ends its process. Found by reading it, and by giving it mutated
//! files (tests/fuzz/headers.rs). What it merely refuses is left to it.

use super::GgufError;
use super::check::Heads;
use super::metadata::{Metadata, bad};

/// llama.cpp's own compiled-in limit.
const EXPERTS_MAX: u32 = 1_024;
/// What normalisations add; below 0 they abort.
const EPSILONS: [&str; 3] =
    ["attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.group_norm_epsilon"];
const ROPE_SCALINGS: [&str; 4] = ["none", "linear", "yarn", "longrope"];

pub(super) fn check(
    metadata: &Metadata,
    architecture: &str,
    blocks: u32,
    heads: &Heads,
) -> Result<(), GgufError> {
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    experts(metadata, architecture, blocks)?;
    let predicting = key("nextn_predict_layers");
    if let Some(count) = metadata.u32(&predicting)?.filter(|count| *count > blocks) {
        return Err(bad(&predicting, format!("is {count} of {blocks} blocks")));
    }
    let scaling = key("rope.scaling.type");
    if let Some(told) = metadata.text(&scaling)?.filter(|told| !ROPE_SCALINGS.contains(told)) {
        return Err(bad(&scaling, format!("is `{}`, which no engine knows", told.escape_debug())));
    }
    for suffix in EPSILONS {
        let key = key(suffix);
        // Not a number is not positive, either.
        if let Some(told) = metadata.real(&key)?.filter(|told| !(0.0..=1.0).contains(told)) {
            return Err(bad(&key, format!("is {told}, not between 0 and 1")));
        }
    }
    head_lengths(metadata, architecture, heads)
}

fn experts(metadata: &Metadata, architecture: &str, blocks: u32) -> Result<(), GgufError> {
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    let count = metadata.u32(&key("expert_count"))?.unwrap_or(0);
    let used_key = key("expert_used_count");
    let used = metadata.per_block(&used_key, blocks)?.into_iter().flatten().max().unwrap_or(0);
    let groups_key = key("expert_group_count");
    let groups = metadata.u32(&groups_key)?.unwrap_or(0);
    let groups_used = metadata.u32(&key("expert_group_used_count"))?.unwrap_or(0);
    if count > EXPERTS_MAX {
        return Err(bad(&key("expert_count"), format!("is {count}, over the limit of {EXPERTS_MAX}")));
    }
    if used > count || (count > 0 && used == 0) {
        return Err(bad(&used_key, format!("is {used} of {count} experts")));
    }
    let is_divided = groups < 2 || (count.is_multiple_of(groups) && (1..groups).contains(&groups_used));
    if groups > 0 && (groups >= count || !is_divided) {
        return Err(bad(
            &groups_key,
            format!("is {groups}, of which {groups_used} are used, for {count} experts"),
        ));
    }
    Ok(())
}

fn head_lengths(metadata: &Metadata, architecture: &str, heads: &Heads) -> Result<(), GgufError> {
    // Without heads in the first block llama.cpp takes all lengths for 0.
    if heads.counts.first().is_none_or(|count| *count == 0) {
        return Ok(());
    }
    let Heads { key_length, value_length, .. } = *heads;
    let key = format!("{architecture}.attention.value_length");
    if EQUAL_LENGTHS.contains(&architecture) && key_length != value_length {
        return Err(bad(&key, format!("is {value_length}, but keys have {key_length}")));
    }
    let key = format!("{architecture}.rope.dimension_count");
    let Some(rotated) = metadata.u32(&key)? else { return Ok(()) };
    if WHOLLY_ROTATED.contains(&architecture) && rotated != key_length {
        return Err(bad(&key, format!("is {rotated}, should be {key_length}, the length of a head")));
    }
    if !rotated.is_multiple_of(2) || rotated > key_length {
        return Err(bad(&key, format!("is {rotated}, of heads of {key_length}")));
    }
    Ok(())
}

/// Whose keys and values must be as long as each other.
static EQUAL_LENGTHS: [&str; 72] = [
    "afmoe",
    "apertus",
    "arcee",
    "arctic",
    "baichuan",
    "bailingmoe2",
    "bitnet",
    "bloom",
    "chatglm",
    "codeshell",
    "cohere2",
    "cohere2moe",
    "command-r",
    "dbrx",
    "deci",
    "deepseek",
    "dots1",
    "dream",
    "ernie4_5",
    "ernie4_5-moe",
    "exaone",
    "exaone-moe",
    "exaone4",
    "falcon",
    "glm4",
    "glm4moe",
    "gpt2",
    "gptneox",
    "granite",
    "grok",
    "grovemoe",
    "hunyuan-moe",
    "hunyuan_vl",
    "internlm2",
    "jais",
    "jais2",
    "llada",
    "llada-moe",
    "llama",
    "llama4",
    "maincoder",
    "minimax-m2",
    "mistral3",
    "mpt",
    "nemotron",
    "olmo",
    "olmo2",
    "olmoe",
    "openelm",
    "orion",
    "paddleocr",
    "pangu-embedded",
    "phi2",
    "phi3",
    "plamo",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen3moe",
    "qwen3vl",
    "qwen3vlmoe",
    "refact",
    "rnd1",
    "seed_oss",
    "smallthinker",
    "smollm3",
    "stablelm",
    "starcoder",
    "starcoder2",
    "xverse",
];

/// Whose heads must be rotated whole.
static WHOLLY_ROTATED: [&str; 50] = [
    "apertus",
    "arcee",
    "arctic",
    "baichuan",
    "codeshell",
    "cohere2moe",
    "dbrx",
    "deci",
    "deepseek",
    "dots1",
    "dream",
    "ernie4_5",
    "ernie4_5-moe",
    "exaone",
    "exaone-moe",
    "exaone4",
    "falcon",
    "granite",
    "grok",
    "grovemoe",
    "hunyuan-moe",
    "hunyuan_vl",
    "internlm2",
    "jais2",
    "llada",
    "llada-moe",
    "llama",
    "llama4",
    "maincoder",
    "mistral3",
    "olmo",
    "olmo2",
    "olmoe",
    "orion",
    "paddleocr",
    "pangu-embedded",
    "plamo",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen3moe",
    "qwen3vl",
    "qwen3vlmoe",
    "rnd1",
    "seed_oss",
    "smallthinker",
    "smollm3",
    "starcoder2",
    "xverse",
];
