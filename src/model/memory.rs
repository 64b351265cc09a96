//! What a model takes in memory, told before anything is started (B11).
//!
//! Every part follows llama.cpp's own allocation, as the worker configures it: weights and KV cache are sums, and the compute
//! buffer is found by replaying ggml's allocator over the graph that llama.cpp reserves it for (`graph`, `allocator`).
//! What the process takes besides is measured, not known. A test holds all of it against what the real worker allocates.

mod allocator;
mod graph;

use super::gguf::{Header, TensorType};

/// llama.cpp rounds contexts up to this.
const CELLS_STEP: u64 = 256;
const F32_BYTES: u64 = 4;
/// llama.cpp's default micro-batch, and the worker's.
const UBATCH_DEFAULT: u32 = 512;
/// The tokenizer's tables, a token.
const TOKEN_BYTES: u64 = 192;
/// Copies of a row of logits that choosing a token takes, a slot.
const LOGITS_COPIES: u64 = 2;
/// The program, its threads, the graph's nodes: 15 to 25 MiB seen, more of it where the program is not optimised.
const FIXED_BYTES: u64 = 32 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    pub weights: u64,
    /// Matrices that a processor's kernels want in another order, and that are therefore there twice: the file's pages of
    /// them are never read again, and the kernel takes them back when anybody needs room. Not part of `total`.
    pub reordered: u64,
    pub kv: u64,
    /// Logits, as they are handed out.
    pub output: u64,
    /// llama.cpp's compute buffer.
    pub compute: u64,
    /// The process itself: program, tokenizer, sampling.
    pub process: u64,
    /// What has to be there at once.
    pub total: u64,
}

impl Memory {
    /// What llama.cpp says it allocates: model, KV, output and compute buffers.
    pub fn allocated(&self) -> u64 {
        let parts = [self.weights, self.reordered, self.kv, self.output, self.compute];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// What the process is seen to hold while nobody else needs room.
    pub fn resident(&self) -> u64 {
        self.total.saturating_add(self.reordered)
    }
}

/// How a model is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub slots: u32,
    pub ctx_per_slot: u32,
    pub kv_type_k: &'static TensorType,
    pub kv_type_v: &'static TensorType,
    pub ubatch: u32,
    /// On wherever the device can do it, which is nearly everywhere.
    pub flash_attention: bool,
    /// Whether the processor computes, and not a GPU.
    pub on_cpu: bool,
}

impl Shape {
    /// The worker's defaults.
    pub fn new(slots: u32, ctx_per_slot: u32) -> Self {
        let kv = TensorType::by_name("f16").expect("the table of types has it");
        Shape {
            slots,
            ctx_per_slot,
            kv_type_k: kv,
            kv_type_v: kv,
            ubatch: UBATCH_DEFAULT,
            flash_attention: true,
            on_cpu: true,
        }
    }

    fn slots(&self) -> u64 {
        self.slots.max(1).into()
    }

    /// Of one slot.
    fn cells(&self) -> u64 {
        u64::from(self.ctx_per_slot.max(1)).next_multiple_of(CELLS_STEP)
    }
}

pub fn estimate(header: &Header, shape: &Shape) -> Memory {
    let row = u64::from(header.vocabulary) * F32_BYTES;
    let output = row.saturating_mul(shape.slots());
    let tables = u64::from(header.vocabulary) * TOKEN_BYTES;
    let parts = Memory {
        weights: header.weights_bytes,
        reordered: if shape.on_cpu { reordered_bytes(header) } else { 0 },
        kv: kv_bytes(header, shape),
        output,
        compute: graph::bytes(header, shape),
        process: output.saturating_mul(LOGITS_COPIES).saturating_add(tables).saturating_add(FIXED_BYTES),
        total: 0,
    };
    let needed = [parts.weights, parts.kv, parts.output, parts.compute, parts.process];
    Memory { total: needed.into_iter().fold(0, u64::saturating_add), ..parts }
}

fn reordered_bytes(header: &Header) -> u64 {
    let wanted = header.matrices.iter().filter(|(kind, _)| is_reordered(kind));
    wanted.map(|(_, bytes)| *bytes).fold(0, u64::saturating_add)
}

/// The types that ggml's kernels for this processor want in another order.
#[cfg(target_arch = "x86_64")]
fn is_reordered(kind: &str) -> bool {
    match kind {
        "Q4_0" | "Q4_K" | "IQ4_NL" | "MXFP4" => std::arch::is_x86_feature_detected!("avx2"),
        _ => false,
    }
}

#[cfg(target_arch = "aarch64")]
fn is_reordered(kind: &str) -> bool {
    match kind {
        "Q4_0" | "Q4_K" | "Q5_K" | "Q6_K" | "Q8_0" | "IQ4_NL" | "MXFP4" => {
            std::arch::is_aarch64_feature_detected!("dotprod")
        }
        _ => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn is_reordered(_: &str) -> bool {
    false
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
        let values = if header.is_latent { 0 } else { row(value, shape.kv_type_v) };
        row(key, shape.kv_type_k).saturating_add(values).saturating_mul(shape.cells())
    };
    let attention = header.head_counts_kv.iter().enumerate().map(of_block).fold(0, u64::saturating_add);
    attention.saturating_add(header.recurrent_bytes).saturating_mul(shape.slots())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::{Experts, Window};
    use std::collections::BTreeMap;

    const MIB: f64 = (1 << 20) as f64;

    fn header(blocks: u32, embedding: u32, feed_forward: u32, heads: [u32; 2], head: u32) -> Header {
        Header {
            vocabulary: 49_152,
            block_count: blocks,
            embedding_length: embedding,
            feed_forward_length: feed_forward,
            head_counts: vec![heads[0]; blocks as usize],
            head_counts_kv: vec![heads[1]; blocks as usize],
            key_length: head,
            value_length: head,
            ..Header::default()
        }
    }

    fn compute(header: &Header, slots: u32, ctx: u32, change: impl Fn(&mut Shape)) -> f64 {
        let mut shape = Shape::new(slots, ctx);
        change(&mut shape);
        // As llama.cpp prints it.
        (graph::bytes(header, &shape) as f64 / MIB * 100.0).round() / 100.0
    }

    fn kind(name: &str) -> &'static TensorType {
        TensorType::by_name(name).unwrap()
    }

    /// The MiB of KV cache and compute buffer that llama.cpp b11434 said it allocated on a CPU; `tests/estimate.rs` asks it anew.
    #[test]
    fn estimates_are_what_llama_cpp_allocates_for_real_models() {
        let smollm2 = header(30, 576, 1536, [9, 3], 64);
        let mut gemma3 = header(18, 640, 2048, [4, 1], 256);
        gemma3.vocabulary = 262_144;
        let blocks = (0..18).map(|block| block % 6 < 5).collect();
        gemma3.window = Some(Window { tokens: 512, blocks, key_length: 256, value_length: 256 });
        /// Slots, context, micro-batch; cache type, flash attention; what was said.
        type Case<'h> = (&'h Header, [u32; 3], &'h str, bool, f64, f64);
        let measured: [Case<'_>; 14] = [
            (&smollm2, [1, 512, 512], "f16", true, 11.25, 15.14),
            (&smollm2, [4, 4096, 512], "f16", true, 360.0, 18.64),
            (&smollm2, [4, 4096, 128], "f16", true, 360.0, 4.66),
            (&smollm2, [4, 8192, 512], "f16", true, 720.0, 22.64),
            (&smollm2, [4, 4096, 512], "q8_0", true, 191.25, 18.67),
            (&smollm2, [1, 4096, 512], "f32", true, 180.0, 18.64),
            (&smollm2, [4, 4096, 512], "f16", false, 360.0, 87.51),
            (&gemma3, [1, 512, 512], "f16", true, 9.0, 19.28),
            (&gemma3, [4, 4096, 512], "f16", true, 288.0, 26.28),
            (&gemma3, [4, 4096, 128], "f16", true, 288.0, 7.57),
            (&gemma3, [4, 8192, 512], "f16", true, 576.0, 34.28),
            (&gemma3, [4, 4096, 512], "q8_0", true, 153.0, 26.81),
            (&gemma3, [1, 4096, 512], "f32", true, 144.0, 26.28),
            (&gemma3, [4, 4096, 512], "f16", false, 288.0, 60.27),
        ];
        for (header, [slots, ctx, ubatch], kv_type, flash_attention, kv, graph) in measured {
            let change = |shape: &mut Shape| {
                let kv = kind(kv_type);
                *shape = Shape { kv_type_k: kv, kv_type_v: kv, ubatch, flash_attention, ..*shape };
            };
            let ours = compute(header, slots, ctx, change);
            assert!((ours - graph).abs() < 0.011, "{slots} {ctx} {ubatch} {kv_type}: {ours} for {graph}");
            let mut shape = Shape::new(slots, ctx);
            change(&mut shape);
            assert_eq!(estimate(header, &shape).kv as f64 / MIB, kv, "{slots} {ctx} {kv_type}");
        }
    }

    /// Of generated models, whose widths differ as no real model's do: fragmentation makes the sizes jump.
    #[test]
    fn the_compute_buffer_follows_widths_and_experts() {
        let dense = |embedding, feed_forward, kv, head| {
            let mut header = header(2, embedding, feed_forward, [8, kv], head);
            header.vocabulary = 367;
            header
        };
        for (embedding, feed_forward, kv, head, said) in [
            (512, 512, 8, 64, 7.52),
            (512, 1024, 8, 64, 9.52),
            (512, 1536, 8, 64, 14.52),
            (512, 512, 2, 64, 6.52),
            (512, 512, 8, 128, 13.52),
            (512, 2048, 8, 256, 21.52),
            (1024, 512, 8, 128, 16.52),
            (1024, 4096, 8, 128, 34.52),
        ] {
            let ours = compute(&dense(embedding, feed_forward, kv, head), 1, 512, |_| {});
            assert!((ours - said).abs() < 0.011, "{embedding} {feed_forward} {kv} {head}: {ours} for {said}");
        }
        for (count, used, feed_forward_length, said) in
            [(8, 2, 512, 11.52), (8, 4, 1024, 29.52), (8, 1, 1024, 11.52)]
        {
            let mut mixture = dense(512, 0, 8, 64);
            mixture.experts = Some(Experts { count, used, feed_forward_length });
            let ours = compute(&mixture, 1, 512, |_| {});
            assert!((ours - said).abs() < 0.011, "{used} of {count}: {ours} for {said}");
        }
    }

    #[test]
    fn a_recurrent_model_has_a_state_a_slot_and_no_cache() {
        let mut mamba = header(4, 256, 0, [0, 0], 0);
        mamba.vocabulary = 367;
        (mamba.recurrent_width, mamba.recurrent_bytes) = (512, 4 * 4 * (3 * 512 + 16 * 512));
        for (slots, said, state) in [(1, 7.54, 0.148_437_5), (4, 7.66, 0.593_75)] {
            let ours = compute(&mamba, slots, 512, |_| {});
            assert!((ours - said).abs() < 0.021, "{slots}: {ours} for {said}");
            assert_eq!(estimate(&mamba, &Shape::new(slots, 512)).kv as f64 / MIB, state);
        }
    }

    #[test]
    fn what_is_reordered_counts_as_allocated_but_need_not_be_there_twice() {
        let mut header = header(2, 64, 128, [4, 2], 16);
        header.weights_bytes = 100 << 20;
        header.matrices = BTreeMap::from([("F16", 40 << 20), ("Q4_0", 60 << 20)]);
        let on_cpu = estimate(&header, &Shape::new(1, 512));
        let on_gpu = estimate(&header, &Shape { on_cpu: false, ..Shape::new(1, 512) });
        assert_eq!((on_cpu.total, on_gpu.reordered), (on_gpu.total, 0));
        assert_eq!(on_cpu.resident() - on_gpu.resident(), on_cpu.reordered);
        assert_eq!(on_cpu.reordered, if is_reordered("Q4_0") { 60 << 20 } else { 0 });
        assert_eq!(on_cpu.allocated() + on_cpu.process, on_cpu.resident());
    }

    #[test]
    fn a_smaller_cache_type_takes_less_and_absurd_shapes_do_not_overflow() {
        let header = header(512, 1 << 20, u32::MAX, [1 << 16, 1 << 16], 1 << 20);
        let shape = |kv, slots| Shape {
            kv_type_k: kind(kv),
            kv_type_v: kind(kv),
            ubatch: u32::MAX,
            ..Shape::new(slots, u32::MAX)
        };
        assert_eq!(estimate(&header, &shape("f16", u32::MAX)).total, u64::MAX);
        let many = Experts { count: 1_024, used: 1_024, feed_forward_length: u32::MAX };
        let mixture = Header { experts: Some(many), ..header };
        assert_eq!(estimate(&mixture, &shape("q8_0", 256)).total, u64::MAX);
        let modest = super::tests::header(30, 576, 1536, [9, 3], 64);
        let bytes = |kv| kv_bytes(&modest, &Shape { ctx_per_slot: 4096, ..shape(kv, 4) });
        assert!(bytes("q8_0") < bytes("f16") && bytes("f16") < bytes("f32"));
    }
}
