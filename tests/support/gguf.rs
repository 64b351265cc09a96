//! Writes a tiny llama model with random weights: 367 tokens (3 special, 256 bytes, the chat markers, ASCII and some
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
    /// Weights in F16 instead of F32.
    pub half: bool,
    /// The tokens that end an answer are never the likeliest: at temperature 0 an answer lasts until its limit.
    pub endless: bool,
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
            half: false,
            endless: false,
        }
    }
}

/// GGUF's numbers for value types.
mod kind {
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

#[derive(Default)]
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

#[derive(Default)]
struct Tensors {
    table: Vec<u8>,
    data: Vec<u8>,
    count: u64,
}

impl Tensors {
    /// `shape` has the innermost dimension first, as the file has it.
    fn add(&mut self, name: &str, shape: &[u32], half: bool, mut element: impl FnMut() -> f32) {
        put_text(&mut self.table, name);
        self.table.extend((shape.len() as u32).to_le_bytes());
        for length in shape {
            self.table.extend(u64::from(*length).to_le_bytes());
        }
        self.table.extend(u32::from(half).to_le_bytes());
        self.table.extend((self.data.len() as u64).to_le_bytes());
        for _ in 0..shape.iter().product::<u32>() {
            match half {
                true => self.data.extend(half_bits(element()).to_le_bytes()),
                false => self.data.extend(element().to_le_bytes()),
            }
        }
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.count += 1;
    }
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
    let tokens = vocabulary();
    assert_eq!(tokens.len() as u32, VOCABULARY);
    let keys = metadata(options, &tokens);
    let tensors = weights(options);
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(tensors.count.to_le_bytes());
    file.extend(keys.count.to_le_bytes());
    file.extend(keys.bytes);
    file.extend(tensors.table);
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.extend(tensors.data);
    file
}

fn metadata(options: &Tiny, tokens: &[(String, f32, i32)]) -> Keys {
    let mut keys = Keys::default();
    keys.text("general.architecture", "llama");
    keys.text("general.name", options.name);
    keys.text("general.description", "random weights, for tests only");
    keys.number("general.file_type", options.half.into());
    keys.number("llama.context_length", options.context);
    keys.number("llama.embedding_length", options.embedding);
    keys.number("llama.block_count", options.blocks);
    keys.number("llama.feed_forward_length", options.feed_forward);
    keys.number("llama.attention.head_count", options.heads);
    keys.number("llama.attention.head_count_kv", options.heads_kv);
    keys.real("llama.attention.layer_norm_rms_epsilon", 1e-5);
    keys.number("llama.rope.dimension_count", options.embedding / options.heads);
    keys.real("llama.rope.freq_base", 10_000.0);
    keys.number("llama.vocab_size", tokens.len() as u32);
    keys.text("tokenizer.ggml.model", "llama");
    keys.text("tokenizer.ggml.pre", "default");
    let (mut names, mut scores, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for (name, score, kind) in tokens {
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
    let Tiny { embedding, heads, heads_kv, feed_forward, half, .. } = *options;
    let head = embedding / heads;
    let mut tensors = Tensors::default();
    let mut noise = Noise(options.seed);
    let mut random = |tensors: &mut Tensors, name: &str, input: u32, output: u32, scale: Option<f32>| {
        let scale = scale.unwrap_or(1.0 / (input as f32).sqrt());
        tensors.add(name, &[input, output], half, || noise.normal() * scale);
    };
    let ones = |tensors: &mut Tensors, name: &str| tensors.add(name, &[embedding], false, || 1.0);
    random(&mut tensors, "token_embd.weight", embedding, VOCABULARY, Some(1.0));
    for block in 0..options.blocks {
        let name = |part: &str| format!("blk.{block}.{part}.weight");
        ones(&mut tensors, &name("attn_norm"));
        ones(&mut tensors, &name("ffn_norm"));
        random(&mut tensors, &name("attn_q"), embedding, heads * head, None);
        random(&mut tensors, &name("attn_k"), embedding, heads_kv * head, None);
        random(&mut tensors, &name("attn_v"), embedding, heads_kv * head, None);
        random(&mut tensors, &name("attn_output"), heads * head, embedding, None);
        random(&mut tensors, &name("ffn_gate"), embedding, feed_forward, None);
        random(&mut tensors, &name("ffn_up"), embedding, feed_forward, None);
        random(&mut tensors, &name("ffn_down"), feed_forward, embedding, None);
    }
    ones(&mut tensors, "output_norm.weight");
    let scale = 1.0 / (embedding as f32).sqrt();
    let mut at = 0;
    tensors.add("output.weight", &[embedding, VOCABULARY], half, || {
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
    /// A name no engine knows; the header is otherwise sound.
    UnknownArchitecture,
}

impl Fault {
    pub const ALL: [Fault; 36] = [
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
