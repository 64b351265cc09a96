//! What a model takes in memory, told before anything is started (B11).
//!
//! Weights and KV cache are exact: they follow llama.cpp's own allocation, as the worker configures it. The compute
//! buffer is a bound on its largest graph, one micro-batch of a prompt with flash attention: a handful of
//! activations as wide as the model and its feed-forward layer, the attention mask over one slot's context, and logits
//! for one row a slot. The tests hold it against what llama.cpp said it allocated.

use super::gguf::{Header, TensorType};

/// llama.cpp rounds contexts up to this.
const CELLS_STEP: u64 = 256;
/// Activations alive at once: residual, normed input, Q, K, V, attention output.
const EMBEDDING_WIDE_BUFFERS: u64 = 6;
/// Gate, up and their product.
const FEED_FORWARD_WIDE_BUFFERS: u64 = 3;
const F32_BYTES: u64 = 4;
const F16_BYTES: u64 = 2;
/// The row that the graph computes, the copy that is read, and the sampler's.
const LOGITS_COPIES: u64 = 3;
/// The tokenizer's tables, a token.
const TOKEN_BYTES: u64 = 192;
/// The process, its threads, the graph's nodes.
const FIXED_BYTES: u64 = 24 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    pub weights: u64,
    pub kv: u64,
    /// Compute buffers and all else.
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

impl Shape {
    fn slots(&self) -> u64 {
        self.slots.max(1).into()
    }

    /// Of one slot.
    fn cells(&self) -> u64 {
        u64::from(self.ctx_per_slot).next_multiple_of(CELLS_STEP)
    }
}

pub fn estimate(header: &Header, shape: &Shape) -> Memory {
    let weights = header.weights_bytes;
    let kv = kv_bytes(header, shape);
    let compute = graph_bytes(header, shape).saturating_add(standing_bytes(header, shape));
    Memory { weights, kv, compute, total: weights.saturating_add(kv).saturating_add(compute) }
}

/// Blocks with a sliding window get full caches, too: only from those can a prefix be used again (`swa_full`, which is
/// llama.cpp's default and the worker's).
fn kv_bytes(header: &Header, shape: &Shape) -> u64 {
    let of_block = |(block, heads): (usize, &u32)| {
        let window = header.window.as_ref().filter(|w| w.blocks.get(block) == Some(&true));
        let (key, value) = match window {
            Some(w) => (w.key_length, w.value_length),
            None => (header.key_length, header.value_length),
        };
        let row = |length: u32, kind: &TensorType| kind.bytes_of(u64::from(length) * u64::from(*heads));
        row(key, shape.kv_type_k).saturating_add(row(value, shape.kv_type_v)).saturating_mul(shape.cells())
    };
    let attention = header.head_counts_kv.iter().enumerate().map(of_block).fold(0, u64::saturating_add);
    attention.saturating_add(header.recurrent_bytes).saturating_mul(shape.slots())
}

/// llama.cpp's compute buffer.
fn graph_bytes(header: &Header, shape: &Shape) -> u64 {
    let heads = u64::from(header.head_counts.iter().copied().max().unwrap_or(0));
    let attention_width = heads * u64::from(header.key_length.max(header.value_length));
    let width = u64::from(header.embedding_length).max(attention_width);
    let activations =
        EMBEDDING_WIDE_BUFFERS * width + FEED_FORWARD_WIDE_BUFFERS * u64::from(header.feed_forward_length);
    let masks = if header.window.is_some() { 2 } else { 1 };
    let row = activations * F32_BYTES + masks * shape.cells() * F16_BYTES;
    row.saturating_mul(shape.ubatch.into())
}

/// What is there whatever runs.
fn standing_bytes(header: &Header, shape: &Shape) -> u64 {
    let vocabulary = u64::from(header.vocabulary);
    let logits = vocabulary.saturating_mul(LOGITS_COPIES * F32_BYTES).saturating_mul(shape.slots());
    logits.saturating_add(vocabulary * TOKEN_BYTES).saturating_add(FIXED_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::Window;

    const MIB: f64 = (1 << 20) as f64;

    fn header(blocks: u32, embedding: u32, feed_forward: u32, heads: [u32; 2], head: u32) -> Header {
        Header {
            architecture: "llama".into(),
            name: None,
            parameters: 0,
            quantization: "F16".into(),
            context_length: 8192,
            vocabulary: 49_152,
            chat_template: None,
            weights_bytes: 0,
            file_bytes: 0,
            block_count: blocks,
            embedding_length: embedding,
            feed_forward_length: feed_forward,
            head_counts: vec![heads[0]; blocks as usize],
            head_counts_kv: vec![heads[1]; blocks as usize],
            key_length: head,
            value_length: head,
            window: None,
            recurrent_bytes: 0,
            split: None,
        }
    }

    /// `[slots, ctx, ubatch]` to the MiB of KV cache and compute buffer that llama.cpp b11434 said it allocated on a CPU.
    #[test]
    fn estimates_stand_beside_what_llama_cpp_allocates() {
        let tiny = header(2, 64, 128, [4, 2], 16);
        let smollm2 = header(30, 576, 1536, [9, 3], 64);
        let mut gemma3 = header(18, 640, 2048, [4, 1], 256);
        let blocks = (0..18).map(|block| block % 6 < 5).collect();
        gemma3.window = Some(Window { tokens: 512, blocks, key_length: 256, value_length: 256 });
        let measured = [
            (&tiny, [4, 4096, 512], 4.0, 5.14),
            (&tiny, [4, 8192, 512], 8.0, 9.14),
            (&tiny, [1, 512, 512], 0.125, 1.64),
            (&smollm2, [4, 4096, 512], 360.0, 18.64),
            (&smollm2, [1, 4096, 512], 90.0, 18.64),
            (&smollm2, [4, 4096, 128], 360.0, 4.66),
            (&smollm2, [1, 512, 512], 11.25, 15.14),
            (&gemma3, [4, 4096, 512], 288.0, 26.28),
            (&gemma3, [4, 8192, 512], 576.0, 34.28),
            (&gemma3, [1, 512, 512], 9.0, 19.28),
        ];
        let f16 = TensorType::by_name("f16").unwrap();
        for (header, [slots, ctx_per_slot, ubatch], kv, graph) in measured {
            let shape = Shape { slots, ctx_per_slot, kv_type_k: f16, kv_type_v: f16, ubatch };
            assert_eq!(estimate(header, &shape).kv as f64 / MIB, kv, "{shape:?}");
            let ours = graph_bytes(header, &shape) as f64 / MIB;
            assert!((graph..graph * 1.4).contains(&ours), "{shape:?}: {ours} for {graph}");
        }
    }

    #[test]
    fn a_smaller_cache_type_takes_less_and_absurd_shapes_do_not_overflow() {
        let header = header(512, 1 << 20, u32::MAX, [1 << 16, 1 << 16], 1 << 20);
        let kind = |name| TensorType::by_name(name).unwrap();
        let shape = |kv, slots| Shape {
            slots,
            ctx_per_slot: u32::MAX,
            kv_type_k: kind(kv),
            kv_type_v: kind(kv),
            ubatch: u32::MAX,
        };
        assert_eq!(estimate(&header, &shape("f16", u32::MAX)).total, u64::MAX);
        let modest = super::tests::header(30, 576, 1536, [9, 3], 64);
        let bytes = |kv| kv_bytes(&modest, &Shape { ctx_per_slot: 4096, ..shape(kv, 4) });
        assert!(bytes("q8_0") < bytes("f16") && bytes("f16") < bytes("f32"));
    }
}
