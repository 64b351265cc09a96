//! The rules that tie metadata, tensors and the file's length together. Those about blocks and heads stand between a
//! hostile file and an abort inside llama.cpp; the others turn its bare "failed to load" into a sentence.

use super::aborts;
use super::metadata::{Metadata, TOKENS, bad};
use super::tensors::Tensors;
use super::window;
use super::{Experts, GgufError, Header, LAYERS_MAX, Split, quantization};

/// Some converters write -1 for "there is none".
const NO_TOKEN: u32 = u32::MAX;
/// llama.cpp counts positions in an i32.
const CONTEXT_MAX: u32 = i32::MAX as u32;
const EMBEDDING_MAX: u32 = 1 << 20;
const HEADS_MAX: u32 = 1 << 16;
/// RWKV's, a block.
const SHIFTED_TOKENS: u64 = 2;

pub(super) const SPLIT_COUNT: &str = "split.count";
pub(super) const SPLIT_NUMBER: &str = "split.no";

/// `general.type` and `general.architecture` of files that go with a model and are none.
const NO_MODELS: [(&str, &str); 6] = [
    ("adapter", "a LoRA adapter, it goes with a model and is none"),
    ("clip", "a vision projector, it goes with a model and is none"),
    ("controlvector", "a control vector, it goes with a model and is none"),
    ("imatrix", "an importance matrix for quantising, no model"),
    ("mmproj", "a vision projector, it goes with a model and is none"),
    ("vocab", "a vocabulary without weights, no model"),
];

/// The rules of a whole model. `parts` and `split` of the answer are the caller's to fill in.
pub(super) fn header(metadata: &Metadata, tensors: &Tensors, file_bytes: u64) -> Result<Header, GgufError> {
    let architecture = match metadata.text("general.architecture")? {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => return Err(bad("general.architecture", "is missing")),
    };
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    let block_count = block_count(metadata, tensors, &key("block_count"))?;
    let embedding_length = at_most(metadata, &key("embedding_length"), EMBEDDING_MAX)?;
    let context_length = at_most(metadata, &key("context_length"), CONTEXT_MAX)?;
    let heads = Heads::read(metadata, tensors, &architecture, block_count, embedding_length)?;
    aborts::check(metadata, &architecture, block_count, &heads)?;
    let window = window::read(metadata, &architecture, block_count, &heads)?;
    Ok(Header {
        name: metadata.text("general.name")?.map(str::to_owned),
        parameters: tensors.elements,
        quantization: quantization::name(metadata.u32("general.file_type")?, tensors),
        context_length,
        vocabulary: vocabulary(metadata, &key("vocab_size"))?,
        chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
        weights_bytes: tensors.bytes,
        file_bytes,
        block_count,
        embedding_length,
        feed_forward_length: widest(metadata, &key("feed_forward_length"), block_count)?,
        experts: experts(metadata, &architecture, block_count)?,
        is_latent: metadata.u32(&key("attention.key_length_mla"))?.is_some_and(|length| length > 0),
        has_fused_qkv: tensors.any_block_has(".attn_qkv."),
        recurrent_bytes: recurrent_bytes(metadata, &architecture, embedding_length, &heads.counts_kv)?,
        recurrent_width: match metadata.u32(&key("wkv.head_size"))? {
            Some(_) => embedding_length,
            None => metadata.u32(&key("ssm.inner_size"))?.unwrap_or(0),
        },
        matrices: tensors.matrices(),
        head_counts: heads.counts,
        head_counts_kv: heads.counts_kv,
        key_length: heads.key_length,
        value_length: heads.value_length,
        window,
        split: None,
        parts: Vec::new(),
        architecture,
    })
}

/// Whether a file is a model, or goes with one.
pub(super) fn is_model(metadata: &Metadata) -> Result<(), GgufError> {
    for key in ["general.type", "general.architecture"] {
        let told = metadata.text(key)?.unwrap_or_default();
        if let Some((_, what)) = NO_MODELS.iter().find(|(name, _)| *name == told) {
            return Err(GgufError::NotAModel { what });
        }
    }
    Ok(())
}

fn at_most(metadata: &Metadata, key: &str, max: u32) -> Result<u32, GgufError> {
    match metadata.positive(key)? {
        n if n > max => Err(bad(key, format!("is {n}, over the limit of {max}"))),
        n => Ok(n),
    }
}

/// Which part of a split model a file is.
pub(super) fn split(metadata: &Metadata) -> Result<Option<Split>, GgufError> {
    let Some(count) = metadata.u32(SPLIT_COUNT)?.filter(|n| *n > 1) else { return Ok(None) };
    match metadata.u32(SPLIT_NUMBER)? {
        Some(number) if number < count => Ok(Some(Split { number, count })),
        Some(number) => Err(bad(SPLIT_NUMBER, format!("is {number} of {count} parts"))),
        None => Err(bad(SPLIT_NUMBER, "is missing")),
    }
}

/// A wrong count here is what aborts llama.cpp, so the tensors must bear it out.
fn block_count(metadata: &Metadata, tensors: &Tensors, key: &str) -> Result<u32, GgufError> {
    let count = at_most(metadata, key, LAYERS_MAX as u32)?;
    let present = tensors.blocks();
    if u64::from(count) < present {
        return Err(bad(key, format!("is {count}, but there are tensors of {present} blocks")));
    }
    if u64::from(count) > tensors.names.len() as u64 {
        return Err(bad(key, format!("is {count}, but there are only {} tensors", tensors.names.len())));
    }
    Ok(count)
}

/// Attention's measures.
pub(super) struct Heads {
    pub counts: Vec<u32>,
    pub counts_kv: Vec<u32>,
    pub key_length: u32,
    pub value_length: u32,
}

impl Heads {
    fn read(
        metadata: &Metadata,
        tensors: &Tensors,
        architecture: &str,
        blocks: u32,
        embedding: u32,
    ) -> Result<Self, GgufError> {
        let key = |suffix: &str| format!("{architecture}.attention.{suffix}");
        let count_key = key("head_count");
        let counts = metadata.per_block(&count_key, blocks)?.unwrap_or_else(|| vec![0; blocks as usize]);
        let widest = counts.iter().copied().max().unwrap_or(0);
        if widest > HEADS_MAX {
            return Err(bad(&count_key, format!("is {widest}, over the limit of {HEADS_MAX}")));
        }
        if widest == 0 && tensors.has_attention() {
            return Err(bad(&count_key, "is 0 or missing, but there are attention tensors"));
        }
        let kv_key = key("head_count_kv");
        let told_kv = metadata.per_block(&kv_key, blocks)?;
        let counts_kv = told_kv.unwrap_or_else(|| counts.clone());
        for (heads, kv) in counts.iter().zip(&counts_kv) {
            if *kv == 0 && *heads > 0 && !metadata.has_list(&kv_key) {
                return Err(bad(&kv_key, "is 0"));
            }
            if *kv > 0 && !heads.is_multiple_of(*kv) {
                return Err(bad(&kv_key, format!("is {kv}, which does not divide the {heads} heads")));
            }
        }
        let length = |suffix: &str| -> Result<u32, GgufError> {
            match metadata.u32(&key(suffix))? {
                Some(length) if length > EMBEDDING_MAX => {
                    Err(bad(&key(suffix), format!("is {length}, over the limit of {EMBEDDING_MAX}")))
                }
                Some(length) => Ok(length),
                None if widest == 0 => Ok(0),
                // llama.cpp takes the first block's count here.
                None => match counts.first() {
                    Some(first) if *first > 0 && !embedding.is_multiple_of(*first) => Err(bad(
                        &count_key,
                        format!("is {first}, which does not divide the embedding length of {embedding}"),
                    )),
                    Some(first) if *first > 0 => Ok(embedding / first),
                    _ => Ok(embedding / widest),
                },
            }
        };
        let (key_length, value_length) = (length("key_length")?, length("value_length")?);
        Ok(Heads { counts, counts_kv, key_length, value_length })
    }
}

/// The number of tokens, with the lists that run beside the tokens as long as theirs, and the special ones among them.
fn vocabulary(metadata: &Metadata, size_key: &str) -> Result<u32, GgufError> {
    let Some(tokens) = metadata.count(TOKENS)? else {
        return Ok(metadata.u32(size_key)?.unwrap_or(0));
    };
    let tokens = u32::try_from(tokens).map_err(|_| bad(TOKENS, "has too many entries"))?;
    if tokens == 0 {
        return Err(bad(TOKENS, "is empty"));
    }
    for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
        if let Some(count) = metadata.count(key)?.filter(|count| *count != u64::from(tokens)) {
            return Err(bad(key, format!("has {count} entries for {tokens} tokens")));
        }
    }
    for key in ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"] {
        if let Some(id) = metadata.token(key)?.filter(|id| *id != NO_TOKEN && *id >= tokens) {
            return Err(bad(key, format!("is {id}, but there are only {tokens} tokens")));
        }
    }
    Ok(tokens)
}

fn widest(metadata: &Metadata, key: &str, blocks: u32) -> Result<u32, GgufError> {
    Ok(metadata.per_block(key, blocks)?.into_iter().flatten().max().unwrap_or(0))
}

fn experts(metadata: &Metadata, architecture: &str, blocks: u32) -> Result<Option<Experts>, GgufError> {
    let read = |suffix: &str| widest(metadata, &format!("{architecture}.{suffix}"), blocks);
    let count = read("expert_count")?;
    if count == 0 {
        return Ok(None);
    }
    let used = read("expert_used_count")?;
    // Older mixtures have one length for both.
    let length = match read("expert_feed_forward_length")? {
        0 => read("feed_forward_length")?,
        own => own,
    };
    Ok(Some(Experts { count, used, feed_forward_length: length }))
}

/// State-space models: the convolution's and the recurrence's state; RWKV: the shifted tokens and the recurrence's. In
/// f32, for every block without attention.
fn recurrent_bytes(
    metadata: &Metadata,
    architecture: &str,
    embedding: u32,
    kv: &[u32],
) -> Result<u64, GgufError> {
    let read = |suffix: &str| -> Result<u64, GgufError> {
        Ok(metadata.u32(&format!("{architecture}.{suffix}"))?.unwrap_or(0).into())
    };
    let (kernel, inner) = (read("ssm.conv_kernel")?, read("ssm.inner_size")?);
    let (state, groups) = (read("ssm.state_size")?, read("ssm.group_count")?);
    let (head, embedding) = (read("wkv.head_size")?, u64::from(embedding));
    let without_attention = kv.iter().filter(|n| **n == 0).count() as u64;
    // A hybrid that does not say which blocks are which: every one might be.
    let blocks = if without_attention == 0 { kv.len() as u64 } else { without_attention };
    let channels = groups.saturating_mul(state).saturating_mul(2).saturating_add(inner);
    let convolution = kernel.saturating_sub(1).saturating_mul(channels);
    let recurrence = state.saturating_mul(inner);
    let shifted = if head == 0 { 0 } else { SHIFTED_TOKENS * embedding };
    let numbers = [convolution, recurrence, shifted, head.saturating_mul(embedding)];
    Ok(numbers.into_iter().fold(0, u64::saturating_add).saturating_mul(4).saturating_mul(blocks))
}
