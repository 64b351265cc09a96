//! What a model takes in memory, told before anything is started (B11).
//!
//! Weights and KV cache are exact sums over the header: they follow llama.cpp's own allocation. The compute buffer
//! is a stated bound on its largest graph, one micro-batch of prompt with logits for every row: the logits, a
//! handful of activations as wide as the model and its feed-forward layer, the attention mask over the
//! whole context, and a fixed remainder for the graph itself.

use super::gguf::{Header, TensorType, Window};

/// llama.cpp rounds contexts and window caches up to this.
const CELLS_STEP: u64 = 256;
/// Activations alive at once: residual, normed input, Q, K, V, attention output.
const EMBEDDING_WIDE_BUFFERS: u64 = 6;
/// Gate, up and their product.
const FEED_FORWARD_WIDE_BUFFERS: u64 = 3;
const F32_BYTES: u64 = 4;
/// Graph nodes, the allocator, sampling's copies of one row of logits a slot, and the process itself.
const FIXED_BYTES: u64 = 32 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    pub weights: u64,
    pub kv: u64,
    pub compute: u64,
    pub total: u64,
}

/// How a model is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub slots: u32,
    pub ctx_per_slot: u32,
    pub kv_type_k: &'static TensorType,
    pub kv_type_v: &'static TensorType,
    pub ubatch: u32,
}

pub fn estimate(header: &Header, shape: &Shape) -> Memory {
    let weights = header.weights_bytes;
    let kv = kv_bytes(header, shape);
    let compute = compute_bytes(header, shape);
    Memory { weights, kv, compute, total: weights.saturating_add(kv).saturating_add(compute) }
}

fn padded(cells: u64) -> u64 {
    cells.next_multiple_of(CELLS_STEP)
}

fn kv_bytes(header: &Header, shape: &Shape) -> u64 {
    let slots = u64::from(shape.slots.max(1));
    let full_cells = padded(shape.ctx_per_slot.into());
    let cells_in = |w: &Window| padded(full_cells.min(u64::from(w.tokens) + u64::from(shape.ubatch)));
    let of_block = |(block, heads): (usize, &u32)| {
        let window = header.window.as_ref().filter(|w| w.blocks.get(block) == Some(&true));
        let (key, value, cells) = match window {
            Some(w) => (w.key_length, w.value_length, cells_in(w)),
            None => (header.key_length, header.value_length, full_cells),
        };
        let row = |length: u32, kind: &TensorType| kind.bytes_of(u64::from(length) * u64::from(*heads));
        let cell = row(key, shape.kv_type_k) + row(value, shape.kv_type_v);
        cell.saturating_mul(cells).saturating_mul(slots)
    };
    let attention = header.head_counts_kv.iter().enumerate().map(of_block).fold(0, u64::saturating_add);
    attention.saturating_add(header.recurrent_bytes.saturating_mul(slots))
}

fn compute_bytes(header: &Header, shape: &Shape) -> u64 {
    let widest_heads = header.head_counts.iter().copied().max().unwrap_or(0);
    let attention_width = u64::from(widest_heads) * u64::from(header.key_length.max(header.value_length));
    let wide = u64::from(header.embedding_length).max(attention_width);
    let context = padded(shape.ctx_per_slot.into()) * u64::from(shape.slots.max(1));
    let row = u64::from(header.vocabulary)
        + EMBEDDING_WIDE_BUFFERS * wide
        + FEED_FORWARD_WIDE_BUFFERS * u64::from(header.feed_forward_length)
        + context;
    row.saturating_mul(F32_BYTES).saturating_mul(shape.ubatch.into()).saturating_add(FIXED_BYTES)
}
