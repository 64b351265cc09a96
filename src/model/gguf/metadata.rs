//! The key-value section. Scalars, strings and short lists of numbers are kept; of longer lists only the length.

use super::reader::Reader;
use super::{GgufError, LAYERS_MAX};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Seek};

const KEYS_MAX: u64 = 16 << 10;
const KEY_BYTES_MAX: u64 = 1 << 10;
/// The longest chat templates have some 30 KB.
const TEXT_BYTES_MAX: u64 = 4 << 20;
/// All keys and values that are kept.
const KEPT_BYTES_MAX: u64 = 16 << 20;
const LIST_ITEMS_MAX: u64 = 16 << 20;
/// Lists up to this length are kept: one number a layer is the longest that matters here.
const LIST_KEPT_ITEMS_MAX: u64 = 2 * LAYERS_MAX;
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
/// The largest vocabularies have some 260,000.
const TOKENS_MAX: u64 = 2 << 20;
const TOKEN_BYTES_MAX: u64 = 1 << 20;
const ALIGNMENT_DEFAULT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 20;

#[derive(Debug)]
pub(super) enum Value {
    Number(Kind, i128),
    Real(f64),
    Text(String),
    Numbers(Vec<i128>),
    /// A list that was not kept.
    Long(u64),
}

#[derive(Debug, Default)]
pub(super) struct Metadata {
    values: HashMap<String, Value>,
}

/// GGUF's value types by their number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl Kind {
    fn of(code: u32) -> Option<Kind> {
        use Kind::*;
        const KINDS: [Kind; 13] = [U8, I8, U16, I16, U32, I32, F32, Bool, Text, List, U64, I64, F64];
        KINDS.get(code as usize).copied()
    }

    /// Bytes a value, for those of fixed length.
    fn width(self) -> Option<u64> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Text | Kind::List => None,
        }
    }
}

pub(super) fn bad(key: &str, problem: impl Into<String>) -> GgufError {
    GgufError::Metadata { key: key.escape_debug().to_string(), problem: problem.into() }
}

impl Metadata {
    pub fn read<S: Read + Seek>(reader: &mut Reader<S>, count: u64) -> Result<Self, GgufError> {
        if count > KEYS_MAX {
            return Err(GgufError::Limit { what: "metadata keys", value: count, max: KEYS_MAX });
        }
        let mut metadata = Metadata::default();
        let mut kept_bytes = 0;
        reader.part("its metadata");
        for _ in 0..count {
            let key = String::from_utf8(reader.string("the length of a metadata key", KEY_BYTES_MAX)?)
                .map_err(|e| bad(&String::from_utf8_lossy(e.as_bytes()), "is not UTF-8"))?;
            if key.is_empty() {
                return Err(bad("", "has no name"));
            }
            let code = reader.u32()?;
            let kind = Kind::of(code).ok_or_else(|| bad(&key, format!("has the unknown type {code}")))?;
            let value = read_value(reader, &key, kind)?;
            kept_bytes += key.len() as u64 + value.kept_bytes();
            if kept_bytes > KEPT_BYTES_MAX {
                return Err(GgufError::Limit {
                    what: "bytes of metadata",
                    value: kept_bytes,
                    max: KEPT_BYTES_MAX,
                });
            }
            if metadata.values.contains_key(&key) {
                return Err(bad(&key, "is there twice"));
            }
            metadata.values.insert(key, value);
        }
        Ok(metadata)
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(bad(key, "should be a string")),
        }
    }

    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Number(_, n)) => number(key, *n).map(Some),
            Some(_) => Err(bad(key, "should be a number")),
        }
    }

    pub fn real(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Real(n)) => Ok(Some(*n)),
            Some(_) => Err(bad(key, "should be a float")),
        }
    }

    /// Whether a key has exactly this type, which llama.cpp asserts of some.
    pub fn is_of(&self, key: &str, kind: Kind) -> bool {
        matches!(self.values.get(key), Some(Value::Number(told, _)) if *told == kind)
    }

    /// A token's id, where -1 may stand for "none" (read as `u32::MAX`).
    pub fn token(&self, key: &str) -> Result<Option<u32>, GgufError> {
        match self.values.get(key) {
            Some(Value::Number(_, -1)) => Ok(Some(u32::MAX)),
            _ => self.u32(key),
        }
    }

    /// A positive number that must be there.
    pub fn positive(&self, key: &str) -> Result<u32, GgufError> {
        match self.u32(key)? {
            None => Err(bad(key, "is missing")),
            Some(0) => Err(bad(key, "is 0")),
            Some(n) => Ok(n),
        }
    }

    /// Either one number for all blocks or a list of one a block, as `count` numbers.
    pub fn per_block(&self, key: &str, count: u32) -> Result<Option<Vec<u32>>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Number(_, n)) => Ok(Some(vec![number(key, *n)?; count as usize])),
            Some(Value::Numbers(list)) if list.len() == count as usize => {
                list.iter().map(|n| number(key, *n)).collect::<Result<_, _>>().map(Some)
            }
            Some(value) => match value.list_length() {
                Some(length) => Err(bad(key, format!("has {length} entries for {count} blocks"))),
                None => Err(bad(key, "should be a number or a list of numbers")),
            },
        }
    }

    pub fn has_list(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|v| v.list_length().is_some())
    }

    /// The length of a list.
    pub fn count(&self, key: &str) -> Result<Option<u64>, GgufError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(value) => match value.list_length() {
                Some(length) => Ok(Some(length)),
                None => Err(bad(key, "should be a list")),
            },
        }
    }

    pub fn alignment(&self) -> Result<u64, GgufError> {
        const KEY: &str = "general.alignment";
        match self.u32(KEY)? {
            None => Ok(ALIGNMENT_DEFAULT),
            Some(n) if n.is_power_of_two() && u64::from(n) <= ALIGNMENT_MAX => Ok(n.into()),
            Some(n) => Err(bad(KEY, format!("is {n}, not a power of two up to {ALIGNMENT_MAX}"))),
        }
    }
}

impl Value {
    fn kept_bytes(&self) -> u64 {
        match self {
            Value::Text(text) => text.len() as u64,
            Value::Numbers(list) => list.len() as u64 * 16,
            Value::Number(..) | Value::Real(_) | Value::Long(_) => 16,
        }
    }

    fn list_length(&self) -> Option<u64> {
        match self {
            Value::Numbers(list) => Some(list.len() as u64),
            Value::Long(length) => Some(*length),
            Value::Number(..) | Value::Real(_) | Value::Text(_) => None,
        }
    }
}

fn number(key: &str, n: i128) -> Result<u32, GgufError> {
    u32::try_from(n).map_err(|_| bad(key, format!("is {n}, out of range")))
}

fn read_value<S: Read + Seek>(reader: &mut Reader<S>, key: &str, kind: Kind) -> Result<Value, GgufError> {
    match kind {
        Kind::Text => {
            let text = reader.string("the length of a metadata string", TEXT_BYTES_MAX)?;
            Ok(Value::Text(String::from_utf8_lossy(&text).into_owned()))
        }
        Kind::List => read_list(reader, key),
        Kind::F32 => Ok(Value::Real(f32::from_le_bytes(reader.bytes()?).into())),
        Kind::F64 => Ok(Value::Real(f64::from_le_bytes(reader.bytes()?))),
        integer => read_integer(reader, integer).map(|n| Value::Number(integer, n)),
    }
}

fn read_integer<S: Read + Seek>(reader: &mut Reader<S>, kind: Kind) -> Result<i128, GgufError> {
    Ok(match kind {
        Kind::I8 => i8::from_le_bytes(reader.bytes()?).into(),
        Kind::U16 => u16::from_le_bytes(reader.bytes()?).into(),
        Kind::I16 => i16::from_le_bytes(reader.bytes()?).into(),
        Kind::U32 => reader.u32()?.into(),
        Kind::I32 => i32::from_le_bytes(reader.bytes()?).into(),
        Kind::U64 => reader.u64()?.into(),
        Kind::I64 => i64::from_le_bytes(reader.bytes()?).into(),
        Kind::U8 | Kind::Bool | Kind::F32 | Kind::F64 | Kind::Text | Kind::List => {
            u8::from_le_bytes(reader.bytes()?).into()
        }
    })
}

fn read_list<S: Read + Seek>(reader: &mut Reader<S>, key: &str) -> Result<Value, GgufError> {
    let code = reader.u32()?;
    let kind = Kind::of(code).ok_or_else(|| bad(key, format!("lists the unknown type {code}")))?;
    let length = reader.u64()?;
    if length > LIST_ITEMS_MAX {
        return Err(bad(key, format!("claims {length} entries, over the limit of {LIST_ITEMS_MAX}")));
    }
    match kind {
        Kind::List => return Err(bad(key, "is a list of lists, which GGUF files do not use")),
        Kind::Text if key == TOKENS => read_tokens(reader, length)?,
        Kind::Text => {
            for _ in 0..length {
                reader.skip_string()?;
            }
        }
        Kind::F32 | Kind::F64 => reader.skip(length * kind.width().unwrap_or(8))?,
        _ if length <= LIST_KEPT_ITEMS_MAX => {
            let items = (0..length).map(|_| read_integer(reader, kind));
            return items.collect::<Result<_, _>>().map(Value::Numbers);
        }
        _ => reader.skip(length * kind.width().unwrap_or(8))?,
    }
    Ok(Value::Long(length))
}

/// llama.cpp aborts where two tokens are the same, and gives empty ones a name. Their hashes are kept while they are read.
fn read_tokens<S: Read + Seek>(reader: &mut Reader<S>, count: u64) -> Result<(), GgufError> {
    if count > TOKENS_MAX {
        return Err(GgufError::Limit { what: "tokens", value: count, max: TOKENS_MAX });
    }
    let hash = RandomState::new();
    let mut hashes: Vec<u64> = Vec::new();
    let mut token = Vec::new();
    for number in 0..count {
        reader.string_into(&mut token, "the length of a token", TOKEN_BYTES_MAX)?;
        if token.is_empty() {
            token.extend(format!("[EMPTY_{number}]").bytes());
        }
        hashes.push(hash.hash_one(&token));
    }
    hashes.sort_unstable();
    match hashes.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(bad(TOKENS, "has a token twice")),
        false => Ok(()),
    }
}
