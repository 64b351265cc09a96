//! Writes a tiny model with random weights: 367 tokens (3 special, 256 bytes, the chat markers, ASCII and some
//! words), two blocks, half a megabyte. The same options give the same bytes on every machine. Its answers
//! are noise, among them invalid UTF-8, which is what tests want; and it can be broken in every way known to hurt.

use std::f32::consts::TAU;

pub const CHAT_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
pub const VOCABULARY: u32 = 367;
const ALIGNMENT: usize = 32;
const BYTE_TOKENS: u32 = 256;
/// `</s>` and `<|im_end|>`.
const ENDS: [u32; 2] = [2, 260];

/// What the model is like.
#[derive(Debug, Clone)]
pub struct Tiny {
    pub name: &'static str,
    pub embedding: u32,
    pub blocks: u32,
    pub heads: u32,
    pub heads_kv: u32,
    pub feed_forward: u32,
    pub context: u32,
    pub seed: u64,
    pub chat_template: bool,
    /// What kind of transformer it is.
    pub kind: Kind,
    /// The length of a head, where it is not the embedding's by the heads.
    pub head: Option<u32>,
    /// Weights in F16 instead of F32.
    pub half: bool,
    /// Weights of the blocks in Q4_0; the embedding and feed-forward lengths must be multiples of 32.
    pub quarter: bool,
    /// The tokens that end an answer are never the likeliest: at temperature 0 an answer lasts until its limit.
    pub endless: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Llama,
    /// Of whose experts each token passes so many.
    Mixture {
        experts: u32,
        used: u32,
    },
    /// With windows of so many tokens in five of six blocks.
    Gemma3 {
        window: u32,
    },
}

impl Kind {
    fn architecture(self) -> &'static str {
        match self {
            Kind::Llama | Kind::Mixture { .. } => "llama",
            Kind::Gemma3 { .. } => "gemma3",
        }
    }
}

impl Default for Tiny {
    fn default() -> Self {
        Tiny {
            name: "tiny-random-llama",
            embedding: 64,
            blocks: 2,
            heads: 4,
            heads_kv: 2,
            feed_forward: 128,
            context: 2048,
            seed: 1,
            chat_template: true,
            kind: Kind::Llama,
            head: None,
            half: false,
            quarter: false,
            endless: false,
        }
    }
}

/// GGUF's numbers for value types.
mod kind {
    pub const U16: u32 = 2;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const TEXT: u32 = 8;
    pub const LIST: u32 = 9;
}

/// llama.cpp's numbers for what a token is.
mod token {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const BYTE: i32 = 6;
}

#[derive(Default, Clone)]
struct Keys {
    bytes: Vec<u8>,
    count: u64,
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

impl Keys {
    fn value(&mut self, key: &str, kind: u32, value: &[u8]) {
        put_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self.count += 1;
    }

    fn short(&mut self, key: &str, n: u16) {
        self.value(key, kind::U16, &n.to_le_bytes());
    }

    fn number(&mut self, key: &str, n: u32) {
        self.value(key, kind::U32, &n.to_le_bytes());
    }

    fn real(&mut self, key: &str, n: f32) {
        self.value(key, kind::F32, &n.to_le_bytes());
    }

    fn flag(&mut self, key: &str, on: bool) {
        self.value(key, kind::BOOL, &[on.into()]);
    }

    fn text(&mut self, key: &str, text: &str) {
        let mut value = Vec::new();
        put_text(&mut value, text);
        self.value(key, kind::TEXT, &value);
    }

    fn list(&mut self, key: &str, kind: u32, count: usize, items: &[u8]) {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend((count as u64).to_le_bytes());
        value.extend(items);
        self.value(key, kind::LIST, &value);
    }
}

/// SplitMix64, and normally distributed numbers from it.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn normal(&mut self) -> f32 {
        let uniform = |bits: u64| ((bits >> 40) as f32 + 0.5) / (1u64 << 24) as f32;
        let (u, v) = (uniform(self.next()), uniform(self.next()));
        (-2.0 * u.ln()).sqrt() * (TAU * v).cos()
    }
}

/// Element types by GGUF's numbers.
#[derive(Debug, Clone, Copy)]
enum Element {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
}

/// Elements of a Q4_0 block.
const BLOCK: usize = 32;

struct Tensor {
    name: String,
    shape: Vec<u32>,
    element: Element,
    data: Vec<u8>,
}

#[derive(Default)]
struct Tensors(Vec<Tensor>);

impl Tensors {
    /// `shape` has the innermost dimension first, as the file has it.
    fn add(&mut self, name: &str, shape: &[u32], kind: Element, mut element: impl FnMut() -> f32) {
        let elements = shape.iter().product::<u32>() as usize;
        let mut data = Vec::new();
        match kind {
            Element::F32 => (0..elements).for_each(|_| data.extend(element().to_le_bytes())),
            Element::F16 => (0..elements).for_each(|_| data.extend(half_bits(element()).to_le_bytes())),
            Element::Q4_0 => {
                assert_eq!(shape[0] as usize % BLOCK, 0, "{name}: rows of Q4_0 are whole blocks");
                (0..elements / BLOCK).for_each(|_| data.extend(block(&mut element)));
            }
        }
        self.0.push(Tensor { name: name.into(), shape: shape.to_vec(), element: kind, data });
    }
}

/// Q4_0: a scale, and four bits an element.
fn block(element: &mut impl FnMut() -> f32) -> Vec<u8> {
    let elements: Vec<f32> = (0..BLOCK).map(|_| element()).collect();
    let widest = elements.iter().fold(0f32, |widest, x| if x.abs() > widest.abs() { *x } else { widest });
    let scale = widest / -8.0;
    let four_bits = |x: f32| if scale == 0.0 { 8 } else { (x / scale + 8.5).clamp(0.0, 15.0) as u8 };
    let mut bytes = half_bits(scale).to_le_bytes().to_vec();
    let (low, high) = elements.split_at(BLOCK / 2);
    bytes.extend(low.iter().zip(high).map(|(low, high)| four_bits(*low) | four_bits(*high) << 4));
    bytes
}

/// A file of these.
fn file(keys: &Keys, tensors: &[Tensor]) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend(keys.count.to_le_bytes());
    file.extend(&keys.bytes);
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut file, &tensor.name);
        file.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().for_each(|length| file.extend(u64::from(*length).to_le_bytes()));
        file.extend((tensor.element as u32).to_le_bytes());
        file.extend((offset as u64).to_le_bytes());
        offset += tensor.data.len().next_multiple_of(ALIGNMENT);
    }
    for tensor in tensors {
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(&tensor.data);
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file
}

/// IEEE half precision, truncating; fine for noise within ±65504 and not subnormal.
fn half_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    let sign = (bits >> 16) as u16 & 0x8000;
    if exponent <= 0 { sign } else { sign | (exponent as u16) << 10 | (bits >> 13) as u16 & 0x3ff }
}

fn vocabulary() -> Vec<(String, f32, i32)> {
    let mut tokens: Vec<(String, f32, i32)> = vec![
        ("<unk>".into(), 0.0, token::UNKNOWN),
        ("<s>".into(), 0.0, token::CONTROL),
        ("</s>".into(), 0.0, token::CONTROL),
    ];
    tokens.extend((0..BYTE_TOKENS).map(|b| (format!("<0x{b:02X}>"), 0.0, token::BYTE)));
    tokens.push(("<|im_start|>".into(), 0.0, token::CONTROL));
    tokens.push(("<|im_end|>".into(), 0.0, token::CONTROL));
    let words = "▁the ▁a ▁of th he in er an ▁bee ▁hive ▁queen";
    let pieces = std::iter::once("▁".to_owned())
        .chain(('!'..='~').map(String::from))
        .chain(words.split(' ').map(str::to_owned));
    tokens.extend(pieces.enumerate().map(|(i, piece)| (piece, -(i as f32 + 1.0), token::NORMAL)));
    tokens
}

/// The model's bytes.
pub fn tiny(options: &Tiny) -> Vec<u8> {
    file(&metadata(options), &weights(options).0)
}

/// The same model in parts, as `llama-gguf-split` writes them: all metadata in the first, tensors in each.
pub fn split(options: &Tiny, count: usize) -> Vec<Vec<u8>> {
    let tensors = weights(options).0;
    let parts = tensors.chunks(tensors.len().div_ceil(count)).enumerate();
    let parts: Vec<Vec<u8>> = parts
        .map(|(number, part)| {
            let mut keys = if number == 0 { metadata(options) } else { Keys::default() };
            keys.short("split.no", number as u16);
            keys.short("split.count", count as u16);
            keys.value("split.tensors.count", kind::I32, &(tensors.len() as i32).to_le_bytes());
            file(&keys, part)
        })
        .collect();
    assert_eq!(parts.len(), count, "{} tensors do not make {count} parts", tensors.len());
    parts
}

/// The name of a part, numbered from 0.
pub fn part_name(model: &str, number: usize, count: usize) -> String {
    format!("{model}-{:05}-of-{count:05}.gguf", number + 1)
}

fn metadata(options: &Tiny) -> Keys {
    let tokens = vocabulary();
    assert_eq!(tokens.len() as u32, VOCABULARY);
    let head = options.head.unwrap_or(options.embedding / options.heads);
    let architecture = options.kind.architecture();
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    let mut keys = Keys::default();
    keys.text("general.architecture", architecture);
    keys.text("general.name", options.name);
    keys.text("general.description", "random weights, for tests only");
    keys.number("general.file_type", if options.quarter { 2 } else { options.half.into() });
    keys.number(&key("context_length"), options.context);
    keys.number(&key("embedding_length"), options.embedding);
    keys.number(&key("block_count"), options.blocks);
    keys.number(&key("feed_forward_length"), options.feed_forward);
    keys.number(&key("attention.head_count"), options.heads);
    keys.number(&key("attention.head_count_kv"), options.heads_kv);
    keys.real(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    keys.number(&key("rope.dimension_count"), head);
    keys.real(&key("rope.freq_base"), 10_000.0);
    keys.number(&key("vocab_size"), tokens.len() as u32);
    if options.head.is_some() {
        keys.number(&key("attention.key_length"), head);
        keys.number(&key("attention.value_length"), head);
    }
    match options.kind {
        Kind::Llama => {}
        Kind::Mixture { experts, used } => {
            keys.number(&key("expert_count"), experts);
            keys.number(&key("expert_used_count"), used);
        }
        Kind::Gemma3 { window } => keys.number(&key("attention.sliding_window"), window),
    }
    keys.text("tokenizer.ggml.model", "llama");
    keys.text("tokenizer.ggml.pre", "default");
    let (mut names, mut scores, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for (name, score, kind) in &tokens {
        put_text(&mut names, name);
        scores.extend(score.to_le_bytes());
        types.extend(kind.to_le_bytes());
    }
    keys.list("tokenizer.ggml.tokens", kind::TEXT, tokens.len(), &names);
    keys.list("tokenizer.ggml.scores", kind::F32, tokens.len(), &scores);
    keys.list("tokenizer.ggml.token_type", kind::I32, tokens.len(), &types);
    keys.number("tokenizer.ggml.bos_token_id", 1);
    keys.number("tokenizer.ggml.eos_token_id", 2);
    keys.number("tokenizer.ggml.unknown_token_id", 0);
    keys.number("tokenizer.ggml.eot_token_id", 260);
    keys.flag("tokenizer.ggml.add_bos_token", true);
    keys.flag("tokenizer.ggml.add_eos_token", false);
    keys.flag("tokenizer.ggml.add_space_prefix", false);
    if options.chat_template {
        keys.text("tokenizer.chat_template", CHAT_TEMPLATE);
    }
    keys
}

fn weights(options: &Tiny) -> Tensors {
    let Tiny { embedding, heads, heads_kv, feed_forward, .. } = *options;
    let head = options.head.unwrap_or(embedding / heads);
    let whole = if options.half { Element::F16 } else { Element::F32 };
    let element = if options.quarter { Element::Q4_0 } else { whole };
    let mut tensors = Tensors::default();
    let mut noise = Noise(options.seed);
    let ones = |tensors: &mut Tensors, name: &str, length: u32| {
        tensors.add(name, &[length], Element::F32, || 1.0);
    };
    tensors.add("token_embd.weight", &[embedding, VOCABULARY], whole, || noise.normal());
    for block in 0..options.blocks {
        let name = |part: &str| format!("blk.{block}.{part}.weight");
        let mut matrix = |tensors: &mut Tensors, part: &str, shape: &[u32]| {
            let scale = 1.0 / (shape[0] as f32).sqrt();
            tensors.add(&name(part), shape, element, || noise.normal() * scale);
        };
        ones(&mut tensors, &name("attn_norm"), embedding);
        ones(&mut tensors, &name("ffn_norm"), embedding);
        matrix(&mut tensors, "attn_q", &[embedding, heads * head]);
        matrix(&mut tensors, "attn_k", &[embedding, heads_kv * head]);
        matrix(&mut tensors, "attn_v", &[embedding, heads_kv * head]);
        matrix(&mut tensors, "attn_output", &[heads * head, embedding]);
        match options.kind {
            Kind::Mixture { experts, .. } => {
                let scale = 1.0 / (embedding as f32).sqrt();
                // Which experts are chosen is told in whole floats.
                matrix(&mut tensors, "ffn_gate_exps", &[embedding, feed_forward, experts]);
                matrix(&mut tensors, "ffn_up_exps", &[embedding, feed_forward, experts]);
                matrix(&mut tensors, "ffn_down_exps", &[feed_forward, embedding, experts]);
                let router = &name("ffn_gate_inp");
                tensors.add(router, &[embedding, experts], Element::F32, || noise.normal() * scale);
            }
            Kind::Llama | Kind::Gemma3 { .. } => {
                matrix(&mut tensors, "ffn_gate", &[embedding, feed_forward]);
                matrix(&mut tensors, "ffn_up", &[embedding, feed_forward]);
                matrix(&mut tensors, "ffn_down", &[feed_forward, embedding]);
            }
        }
        if matches!(options.kind, Kind::Gemma3 { .. }) {
            ones(&mut tensors, &name("attn_q_norm"), head);
            ones(&mut tensors, &name("attn_k_norm"), head);
            ones(&mut tensors, &name("post_attention_norm"), embedding);
            ones(&mut tensors, &name("post_ffw_norm"), embedding);
        }
    }
    ones(&mut tensors, "output_norm.weight", embedding);
    let scale = 1.0 / (embedding as f32).sqrt();
    let mut at = 0;
    tensors.add("output.weight", &[embedding, VOCABULARY], whole, || {
        let token = at / embedding;
        at += 1;
        let weight = noise.normal() * scale;
        if options.endless && ENDS.contains(&token) { 0.0 } else { weight }
    });
    tensors
}

/// The ways a file is broken. `is_refused` says whether the header alone gives it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Empty,
    Text,
    MagicOnly,
    CutInHeader,
    CutInMetadata,
    CutInHalf,
    CutAtTail,
    Version,
    TensorCount,
    KeyCount,
    StringLength,
    /// Aborts llama.cpp.
    NoBlocks,
    /// Aborts llama.cpp.
    HundredThousandBlocks,
    /// Aborts llama.cpp.
    FourBillionBlocks,
    MoreBlocksThanTensors,
    FewerBlocksThanTensors,
    NoEmbedding,
    NoHeads,
    SevenHeads,
    ThreeKvHeads,
    ContextTooLong,
    BosOutOfVocabulary,
    EosOutOfVocabulary,
    ListAbsurd,
    ListShort,
    DimensionsAbsurd,
    DimensionZero,
    DimensionNegative,
    TypeUnknown,
    TypeOfOtherRow,
    OffsetAbsurd,
    OffsetUnaligned,
    OffsetOverlapping,
    TensorTwice,
    KeyTwice,
    /// Aborts llama.cpp.
    TokenTwice,
    /// Aborts llama.cpp.
    RotationOdd,
    /// Aborts llama.cpp.
    RotationTooLong,
    /// Aborts llama.cpp.
    VectorOfIntegers,
    /// Aborts llama.cpp.
    MatrixOfIntegers,
    /// A name no engine knows; the header is otherwise sound.
    UnknownArchitecture,
}

impl Fault {
    pub const ALL: [Fault; 41] = [
        Fault::Empty,
        Fault::Text,
        Fault::MagicOnly,
        Fault::CutInHeader,
        Fault::CutInMetadata,
        Fault::CutInHalf,
        Fault::CutAtTail,
        Fault::Version,
        Fault::TensorCount,
        Fault::KeyCount,
        Fault::StringLength,
        Fault::NoBlocks,
        Fault::HundredThousandBlocks,
        Fault::FourBillionBlocks,
        Fault::MoreBlocksThanTensors,
        Fault::FewerBlocksThanTensors,
        Fault::NoEmbedding,
        Fault::NoHeads,
        Fault::SevenHeads,
        Fault::ThreeKvHeads,
        Fault::ContextTooLong,
        Fault::BosOutOfVocabulary,
        Fault::EosOutOfVocabulary,
        Fault::ListAbsurd,
        Fault::ListShort,
        Fault::DimensionsAbsurd,
        Fault::DimensionZero,
        Fault::DimensionNegative,
        Fault::TypeUnknown,
        Fault::TypeOfOtherRow,
        Fault::OffsetAbsurd,
        Fault::OffsetUnaligned,
        Fault::OffsetOverlapping,
        Fault::TensorTwice,
        Fault::KeyTwice,
        Fault::TokenTwice,
        Fault::RotationOdd,
        Fault::RotationTooLong,
        Fault::VectorOfIntegers,
        Fault::MatrixOfIntegers,
        Fault::UnknownArchitecture,
    ];

    pub fn is_refused(self) -> bool {
        self != Fault::UnknownArchitecture
    }
}

/// Where `text` first begins in `file`.
fn position(file: &[u8], text: &str) -> usize {
    file.windows(text.len()).position(|w| w == text.as_bytes()).expect("the generated file has it")
}

fn patch(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A tiny model, broken.
pub fn corrupt(fault: Fault) -> Vec<u8> {
    let mut file = tiny(&Tiny::default());
    let after = |file: &[u8], text: &str| position(file, text) + text.len();
    // A key is followed by its type (4 bytes) and value.
    let number = |file: &mut Vec<u8>, key: &str, n: u32| {
        let at = after(file, key) + 4;
        patch(file, at, &n.to_le_bytes());
    };
    // A list's type, kind (4 bytes each) and length.
    let length = |file: &mut Vec<u8>, key: &str, n: u64| {
        let at = after(file, key) + 8;
        patch(file, at, &n.to_le_bytes());
    };
    // A matrix's name is followed by: dimensions (4 bytes), two lengths (8 each), type (4), offset (8).
    let matrix = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        let at = after(file, "token_embd.weight") + at;
        patch(file, at, bytes);
    };
    match fault {
        Fault::Empty => file.clear(),
        Fault::Text => file = b"hello, this is not a model\n".repeat(100),
        Fault::MagicOnly => file.truncate(4),
        Fault::CutInHeader => file.truncate(64),
        Fault::CutInMetadata => file.truncate(4000),
        Fault::CutInHalf => file.truncate(file.len() / 2),
        Fault::CutAtTail => file.truncate(file.len() - 100),
        Fault::Version => patch(&mut file, 4, &99u32.to_le_bytes()),
        Fault::TensorCount => patch(&mut file, 8, &(1u64 << 62).to_le_bytes()),
        Fault::KeyCount => patch(&mut file, 16, &(1u64 << 62).to_le_bytes()),
        Fault::StringLength => patch(&mut file, 24, &(1u64 << 60).to_le_bytes()),
        Fault::NoBlocks => number(&mut file, "llama.block_count", 0),
        Fault::HundredThousandBlocks => number(&mut file, "llama.block_count", 100_000),
        Fault::FourBillionBlocks => number(&mut file, "llama.block_count", 4_000_000_000),
        Fault::MoreBlocksThanTensors => number(&mut file, "llama.block_count", 300),
        Fault::FewerBlocksThanTensors => number(&mut file, "llama.block_count", 1),
        Fault::NoEmbedding => number(&mut file, "llama.embedding_length", 0),
        Fault::NoHeads => number(&mut file, "llama.attention.head_count", 0),
        Fault::SevenHeads => number(&mut file, "llama.attention.head_count", 7),
        Fault::ThreeKvHeads => number(&mut file, "llama.attention.head_count_kv", 3),
        Fault::ContextTooLong => number(&mut file, "llama.context_length", u32::MAX),
        Fault::BosOutOfVocabulary => number(&mut file, "tokenizer.ggml.bos_token_id", 99_999),
        Fault::EosOutOfVocabulary => number(&mut file, "tokenizer.ggml.eos_token_id", 99_999),
        Fault::ListAbsurd => length(&mut file, "tokenizer.ggml.token_type", 1 << 61),
        Fault::ListShort => length(&mut file, "tokenizer.ggml.token_type", 5),
        Fault::DimensionsAbsurd => matrix(&mut file, 4, &(1u64 << 62).to_le_bytes()),
        Fault::DimensionZero => matrix(&mut file, 4, &0u64.to_le_bytes()),
        Fault::DimensionNegative => matrix(&mut file, 4, &(-64i64).to_le_bytes()),
        Fault::TypeUnknown => matrix(&mut file, 20, &4242u32.to_le_bytes()),
        Fault::TypeOfOtherRow => matrix(&mut file, 20, &12u32.to_le_bytes()),
        Fault::OffsetAbsurd => matrix(&mut file, 24, &(1u64 << 63).to_le_bytes()),
        Fault::OffsetUnaligned => matrix(&mut file, 24, &3u64.to_le_bytes()),
        Fault::OffsetOverlapping => {
            // A vector: dimensions (4), one length (8), type (4), offset.
            let at = after(&file, "blk.0.attn_norm.weight") + 16;
            patch(&mut file, at, &0u64.to_le_bytes());
        }
        Fault::TensorTwice => {
            let at = position(&file, "blk.0.attn_norm.weight");
            patch(&mut file, at, b"blk.1.attn_norm.weight");
        }
        Fault::KeyTwice => {
            let at = position(&file, "tokenizer.ggml.bos_token_id");
            patch(&mut file, at, b"tokenizer.ggml.eos_token_id");
        }
        Fault::TokenTwice => {
            let at = position(&file, "<0x41>");
            patch(&mut file, at, b"<0x42>");
        }
        Fault::RotationOdd => number(&mut file, "llama.rope.dimension_count", 15),
        Fault::RotationTooLong => number(&mut file, "llama.rope.dimension_count", 18),
        Fault::VectorOfIntegers => {
            let at = after(&file, "blk.0.attn_norm.weight") + 12;
            patch(&mut file, at, &26u32.to_le_bytes());
        }
        Fault::MatrixOfIntegers => matrix(&mut file, 20, &26u32.to_le_bytes()),
        Fault::UnknownArchitecture => {
            // Every key that starts with it changes along.
            while let Some(at) = file.windows(6).position(|w| w == b"llama.") {
                patch(&mut file, at, b"lolla.");
            }
            let at = after(&file, "general.architecture") + 12;
            patch(&mut file, at, b"lolla");
        }
    }
    file
}
