//! Sliding-window attention: which blocks of which architectures use it. llama.cpp knows the patterns by architecture;
//! files may carry their own. What is not known here counts as full attention, which takes more memory, never less.

use super::check::Heads;
use super::metadata::Metadata;
use super::{GgufError, Window};

/// Of `period` blocks one has full attention: the last, or the first where `full_first`.
struct Pattern {
    architecture: &'static str,
    /// The window where the file does not tell.
    tokens: Option<u32>,
    period: u32,
    full_first: bool,
}

const fn pattern(architecture: &'static str, period: u32) -> Pattern {
    Pattern { architecture, tokens: None, period, full_first: false }
}

static PATTERNS: [Pattern; 18] = [
    pattern("afmoe", 4),
    pattern("cohere2", 4),
    Pattern { full_first: true, ..pattern("cohere2moe", 4) },
    Pattern { tokens: Some(4096), ..pattern("exaone4", 4) },
    Pattern { tokens: Some(128), ..pattern("exaone-moe", 4) },
    Pattern { tokens: Some(4096), ..pattern("gemma2", 2) },
    pattern("gemma3", 6),
    pattern("gemma3n", 5),
    pattern("gemma4", 6),
    pattern("gemma-embedding", 6),
    pattern("gpt-oss", 2),
    pattern("llama4", 4),
    pattern("mellum", 4),
    Pattern { full_first: true, ..pattern("modern-bert", 3) },
    pattern("olmo2", 4),
    pattern("plamo3", 8),
    Pattern { full_first: true, ..pattern("smallthinker", 4) },
    pattern("mimo2", 6),
];

pub(super) fn read(
    metadata: &Metadata,
    architecture: &str,
    blocks: u32,
    heads: &Heads,
) -> Result<Option<Window>, GgufError> {
    let key = |suffix: &str| format!("{architecture}.attention.{suffix}");
    let Some(pattern) = PATTERNS.iter().find(|p| p.architecture == architecture) else { return Ok(None) };
    let told = metadata.u32(&key("sliding_window"))?;
    let Some(tokens) = told.or(pattern.tokens).filter(|n| *n > 0) else { return Ok(None) };
    let pattern_key = key("sliding_window_pattern");
    let blocks = if metadata.has_list(&pattern_key) {
        let list = metadata.per_block(&pattern_key, blocks)?;
        list.into_iter().flatten().map(|uses_window| uses_window != 0).collect()
    } else {
        let period = metadata.u32(&pattern_key)?.unwrap_or(pattern.period);
        (0..blocks).map(|block| uses_window(block, period, pattern.full_first)).collect()
    };
    Ok(Some(Window {
        tokens,
        blocks,
        key_length: metadata.u32(&key("key_length_swa"))?.unwrap_or(heads.key_length),
        value_length: metadata.u32(&key("value_length_swa"))?.unwrap_or(heads.value_length),
    }))
}

fn uses_window(block: u32, period: u32, full_first: bool) -> bool {
    match period {
        0 => true,
        _ if full_first => !block.is_multiple_of(period),
        _ => block % period < period - 1,
    }
}
