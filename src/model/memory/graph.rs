//! The graph that llama.cpp reserves its compute buffer for: one micro-batch of a prompt through every block of a transformer.
//! Normalisations, biases and activations that work in place are left out where they take nothing.

use super::Shape;
use super::allocator::{Graph, Tensor};
use crate::model::gguf::{Experts, Header};
use std::collections::HashMap;

const F16_BYTES: u128 = 2;
const F32_BYTES: u128 = 4;
/// Token ids and positions.
const I32_BYTES: u128 = 4;
/// Places in the cache.
const I64_BYTES: u128 = 8;
/// Quantised caches are rotated by blocks of this, where the heads are a multiple of it.
const ROTATION: u32 = 64;

/// The bytes of llama.cpp's compute buffer.
pub(super) fn bytes(header: &Header, shape: &Shape) -> u64 {
    let slots = u128::from(shape.slots());
    let cells = u128::from(shape.cells());
    let tokens = u128::from(shape.ubatch.max(1)).min(cells * slots).next_multiple_of(slots);
    let builder = Builder {
        header,
        shape,
        tokens,
        cells,
        outputs: tokens.min(slots),
        graph: Graph::default(),
        inputs: HashMap::new(),
    };
    builder.build().bytes()
}

/// What is handed to the graph once and read by many blocks; `bool` tells the two caches of a model with windows apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Input {
    Positions,
    KeyPlaces(bool),
    ValuePlaces(bool),
    KeyRotation(bool),
    ValueRotation(bool),
    Mask(bool),
    Outputs,
}

/// A block's attention.
#[derive(Debug, Clone, Copy)]
struct Attention {
    heads: u32,
    heads_kv: u32,
    key_length: u32,
    value_length: u32,
    in_window: bool,
}

struct Builder<'m> {
    header: &'m Header,
    shape: &'m Shape,
    tokens: u128,
    /// Of one slot's cache.
    cells: u128,
    /// Rows whose logits are computed.
    outputs: u128,
    graph: Graph,
    inputs: HashMap<Input, Tensor>,
}

impl Builder<'_> {
    fn build(mut self) -> Graph {
        let mut stream = self.embed();
        let blocks = self.header.head_counts_kv.len();
        for block in 0..blocks {
            stream = self.block(block, stream, block + 1 == blocks);
        }
        let normed = self.norm(stream);
        let logits = self.rows(self.header.vocabulary, self.outputs);
        self.graph.node(logits, &[normed]);
        self.graph
    }

    /// The bytes of `count` rows of that many floats.
    fn rows(&self, width: impl Into<u128>, count: u128) -> u128 {
        width.into() * count * F32_BYTES
    }

    fn input(&mut self, input: Input, bytes: u128) -> Tensor {
        *self.inputs.entry(input).or_insert_with(|| self.graph.leaf(bytes))
    }

    /// Embeddings come from tokens, from outside, or mixed, and llama.cpp keeps room for all three ways.
    fn embed(&mut self) -> Tensor {
        let stream = self.rows(self.header.embedding_length, self.tokens);
        let tokens = self.graph.leaf(self.tokens * I32_BYTES);
        let embedded = self.graph.node(stream, &[tokens]);
        self.graph.leaf(stream);
        let mixed_tokens = self.graph.leaf(self.tokens * I32_BYTES);
        let mixed = self.graph.node(stream, &[mixed_tokens]);
        let places = self.graph.leaf(self.tokens * I64_BYTES);
        let outside = self.graph.leaf(stream);
        let copied = self.graph.node(stream, &[outside]);
        self.graph.write(&[mixed, places], copied);
        embedded
    }

    fn norm(&mut self, of: Tensor) -> Tensor {
        let normed = self.graph.in_place(&[of], &[]);
        self.graph.in_place(&[normed], &[])
    }

    fn block(&mut self, block: usize, stream: Tensor, is_last: bool) -> Tensor {
        let normed = self.norm(stream);
        let mixed = match self.attention_of(block) {
            Some(attention) => self.attention(attention, normed),
            None => self.recurrence(normed),
        };
        // The last block's feed-forward is computed only where logits are wanted.
        let (rows, mixed, residual) = match is_last {
            false => (self.tokens, mixed, stream),
            true => {
                let wanted = self.input(Input::Outputs, self.outputs * I32_BYTES);
                let some = self.rows(self.header.embedding_length, self.outputs);
                let mixed = self.graph.node(some, &[mixed, wanted]);
                (self.outputs, mixed, self.graph.node(some, &[stream, wanted]))
            }
        };
        let residual = self.graph.in_place(&[mixed, residual], &[]);
        if self.header.feed_forward_length == 0 && self.header.experts.is_none() {
            return residual;
        }
        let normed = self.norm(residual);
        let out = match self.header.experts {
            Some(experts) => self.experts(experts, normed, rows),
            None => self.feed_forward(normed, rows),
        };
        self.graph.in_place(&[out, residual], &[])
    }

    fn attention_of(&self, block: usize) -> Option<Attention> {
        let header = self.header;
        let heads = header.head_counts.get(block).copied().filter(|heads| *heads > 0)?;
        let window = header.window.as_ref().filter(|window| window.blocks.get(block) == Some(&true));
        Some(Attention {
            heads,
            heads_kv: header.head_counts_kv.get(block).copied().unwrap_or(heads),
            key_length: window.map_or(header.key_length, |window| window.key_length),
            value_length: window.map_or(header.value_length, |window| window.value_length),
            in_window: window.is_some(),
        })
    }

    fn attention(&mut self, attention: Attention, normed: Tensor) -> Tensor {
        let Attention { heads, heads_kv, key_length, value_length, in_window } = attention;
        let width = |heads: u32, length: u32| u128::from(heads) * u128::from(length);
        let (query_width, key_width) = (width(heads, key_length), width(heads_kv, key_length));
        let value_width = width(heads_kv, value_length);
        let by_keys = rotation(self.shape.kv_type_k.block, key_length, true);
        let by_values = rotation(self.shape.kv_type_v.block, value_length, false);
        let key_rotation = (Input::KeyRotation(in_window), by_keys);
        let value_rotation = (Input::ValueRotation(in_window), by_values);
        let fused = self.header.has_fused_qkv.then(|| {
            let bytes = self.rows(query_width + key_width + value_width, self.tokens);
            self.graph.node(bytes, &[normed])
        });
        let query = self.projection(fused, normed, query_width, true);
        let query = self.rotated(query, key_rotation);
        let values = |builder: &mut Self| {
            let value = builder.projection(fused, normed, value_width, false);
            builder.rotated(value, value_rotation)
        };
        // The order of the two is llama.cpp's, and differs where there are windows.
        let has_values = !self.header.is_latent;
        let early = (has_values && self.header.window.is_none()).then(|| values(self));
        let key = self.projection(fused, normed, key_width, true);
        let key = self.rotated(key, key_rotation);
        let value = early.or_else(|| has_values.then(|| values(self)));
        self.store(key, Input::KeyPlaces(in_window), 1);
        if let Some(value) = value {
            let places_a_token = if self.shape.flash_attention { 1 } else { value_width };
            self.store(value, Input::ValuePlaces(in_window), places_a_token);
        }
        let attended = self.attend(attention, query, [key_width, value_width]);
        let attended = self.rotated(attended, value_rotation);
        let out = self.rows(self.header.embedding_length, self.tokens);
        self.graph.node(out, &[attended])
    }

    /// Queries, keys or values, from their own matrix or the fused one.
    fn projection(
        &mut self,
        fused: Option<Tensor>,
        normed: Tensor,
        width: u128,
        has_position: bool,
    ) -> Tensor {
        let bytes = self.rows(width, self.tokens);
        let projected = fused.unwrap_or_else(|| self.graph.node(bytes, &[normed]));
        let by_head = self.graph.view(projected);
        if !has_position {
            return by_head;
        }
        let positions = self.input(Input::Positions, self.tokens * I32_BYTES);
        self.graph.node(bytes, &[by_head, positions])
    }

    fn rotated(&mut self, tensor: Tensor, (input, length): (Input, Option<u32>)) -> Tensor {
        let Some(length) = length else { return tensor };
        let matrix = self.input(input, u128::from(length) * u128::from(length) * F32_BYTES);
        let by_block = self.graph.view(tensor);
        let bytes = self.graph.bytes_of(tensor);
        let rotated = self.graph.node(bytes, &[matrix, by_block]);
        self.graph.view(rotated)
    }

    fn store(&mut self, tensor: Tensor, places: Input, places_a_token: u128) {
        let by_token = self.graph.view(tensor);
        let places = self.input(places, self.tokens * places_a_token * I64_BYTES);
        self.graph.sink(&[by_token, places]);
    }

    /// The queries over the cache, whose rows are `widths` wide.
    fn attend(&mut self, attention: Attention, query: Tensor, widths: [u128; 2]) -> Tensor {
        let by_slot = self.graph.view(query);
        let by_head = self.graph.view(by_slot);
        let scores = self.cells * self.tokens;
        let out = self.rows(u128::from(attention.heads) * u128::from(attention.value_length), self.tokens);
        let mask = Input::Mask(attention.in_window);
        if self.shape.flash_attention {
            let mut sources = vec![by_head];
            // There are no kernels for whole floats: the cache is converted, every time.
            for (kind, width) in [self.shape.kv_type_k, self.shape.kv_type_v].into_iter().zip(widths) {
                if kind.name == "F32" {
                    let cached = self.cells * u128::from(self.shape.slots()) * width;
                    sources.push(self.graph.node(cached * F16_BYTES, &[]));
                }
            }
            sources.push(self.input(mask, scores * F16_BYTES));
            let attended = self.graph.node(out, &sources);
            return self.graph.view(attended);
        }
        let products = self.graph.node(scores * u128::from(attention.heads) * F32_BYTES, &[by_head]);
        let mask = self.input(mask, scores * F32_BYTES);
        let weights = self.graph.in_place(&[products], &[mask]);
        let attended = self.graph.node(out, &[weights]);
        let by_token = self.graph.view(attended);
        self.graph.node(out, &[by_token])
    }

    /// A block with a recurrent state instead, as Mamba has it; other kinds are like it, roughly.
    fn recurrence(&mut self, normed: Tensor) -> Tensor {
        let wide = self.rows(self.header.recurrent_width, self.tokens);
        let blocks = self.header.head_counts_kv.len().max(1) as u128;
        let states = u128::from(self.header.recurrent_bytes) / blocks * u128::from(self.shape.slots());
        let both = self.graph.node(2 * wide, &[normed]);
        let shifted = self.graph.node(wide, &[both]);
        let convolved = self.graph.node(wide, &[shifted]);
        let steps = self.graph.node(wide, &[convolved]);
        let scanned = self.graph.node(wide + states, &[convolved, steps]);
        let summed = self.graph.node(wide, &[convolved, scanned]);
        let gate = self.graph.node(wide, &[both]);
        let product = self.graph.node(wide, &[summed, gate]);
        let out = self.rows(self.header.embedding_length, self.tokens);
        self.graph.node(out, &[product])
    }

    fn feed_forward(&mut self, normed: Tensor, rows: u128) -> Tensor {
        let wide = self.rows(self.header.feed_forward_length, rows);
        let gate = self.graph.node(wide, &[normed]);
        let up = self.graph.node(wide, &[normed]);
        let product = self.graph.node(wide, &[gate, up]);
        self.graph.node(self.rows(self.header.embedding_length, rows), &[product])
    }

    fn experts(&mut self, experts: Experts, normed: Tensor, rows: u128) -> Tensor {
        let used = u128::from(experts.used);
        let all = self.rows(experts.count, rows);
        let scores = self.graph.node(all, &[normed]);
        let odds = self.graph.in_place(&[scores], &[]);
        let odds_by_one = self.graph.view(odds);
        let sorted = self.graph.node(all, &[odds]);
        let chosen = self.graph.view(sorted);
        let weights = self.graph.node(self.rows(used, rows), &[odds_by_one, chosen]);
        let weights = self.graph.view(weights);
        let sum = self.graph.node(self.rows(1u32, rows), &[weights]);
        let sum = self.graph.in_place(&[sum], &[]);
        let weights = self.graph.in_place(&[weights], &[sum]);
        let weights = self.graph.view(weights);
        let tokens = self.graph.view(normed);
        let wide = used * self.rows(experts.feed_forward_length, rows);
        let gate = self.graph.node(wide, &[tokens, chosen]);
        let up = self.graph.node(wide, &[tokens, chosen]);
        let product = self.graph.node(wide, &[gate, up]);
        let out = self.rows(self.header.embedding_length, rows);
        let down = self.graph.node(used * out, &[product, chosen]);
        let weighted = self.graph.in_place(&[down], &[weights]);
        let first = self.graph.view(weighted);
        if experts.used == 1 {
            return self.graph.node(out, &[first]);
        }
        // The sum of two has a place of its own; the others are added to it and take nothing.
        let second = self.graph.view(weighted);
        self.graph.node(out, &[first, second])
    }
}

/// The length of the blocks that a quantised cache is rotated by: for keys the longest that divides a head.
fn rotation(block: u64, head: u32, is_longest: bool) -> Option<u32> {
    if block == 1 || head == 0 || !head.is_multiple_of(ROTATION) {
        return None;
    }
    Some(if is_longest { ROTATION << (head / ROTATION).trailing_zeros() } else { ROTATION })
}
