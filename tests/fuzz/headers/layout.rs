//! A GGUF header taken apart, so that it can be changed where it hurts and written again with counts and offsets that fit.
//! A reader of its own, written apart from the product's: what both read is what the format says.

use rbee::model::gguf::TensorType;

const ALIGNMENT: usize = 32;
const TEXT: u32 = 8;
const LIST: u32 = 9;

#[derive(Debug, Clone)]
pub struct Key {
    pub name: Vec<u8>,
    /// Type and value.
    pub value: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    pub shape: Vec<u64>,
    pub kind: u32,
}

/// A number in a written header that a reader trusts at its peril.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub at: usize,
    pub width: usize,
}

#[derive(Debug, Clone)]
pub struct Layout {
    pub keys: Vec<Key>,
    pub tensors: Vec<Tensor>,
    /// Where the header ended, alignment included.
    pub end: usize,
    boundaries: Vec<usize>,
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let piece = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(piece)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'b [u8]> {
        let length = self.u64()?;
        self.take(usize::try_from(length).ok()?)
    }

    fn value(&mut self) -> Option<()> {
        match self.u32()? {
            LIST => {
                let kind = self.u32()?;
                let length = usize::try_from(self.u64()?).ok()?;
                match kind {
                    TEXT => (0..length).try_for_each(|_| self.text().map(drop)),
                    kind => self.take(width(kind)?.checked_mul(length)?).map(drop),
                }
            }
            TEXT => self.text().map(drop),
            kind => self.take(width(kind)?).map(drop),
        }
    }
}

/// Bytes of a value of fixed length.
fn width(kind: u32) -> Option<usize> {
    [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8].get(kind as usize).copied().filter(|width| *width > 0)
}

impl Key {
    /// A whole number, or a truth value.
    pub fn is_number(&self) -> bool {
        matches!(self.kind(), 0..=5 | 7 | 10 | 11) && self.value.len() > 4
    }

    fn kind(&self) -> u32 {
        self.value.first_chunk().map_or(u32::MAX, |kind| u32::from_le_bytes(*kind))
    }

    pub fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        let value = &self.value[4..];
        bytes[..value.len()].copy_from_slice(value);
        u64::from_le_bytes(bytes)
    }

    pub fn set_number(&mut self, number: u64) {
        let width = self.value.len() - 4;
        self.value[4..].copy_from_slice(&number.to_le_bytes()[..width]);
    }
}

impl Layout {
    pub fn parse(bytes: &[u8]) -> Option<Layout> {
        let mut reader = Reader { bytes, at: 8 };
        let (tensors, keys) = (reader.u64()?, reader.u64()?);
        let mut layout =
            Layout { keys: Vec::new(), tensors: Vec::new(), end: 0, boundaries: vec![0, 4, 8, 16] };
        for _ in 0..keys {
            layout.boundaries.push(reader.at);
            let name = reader.text()?.to_vec();
            let begin = reader.at;
            layout.boundaries.push(begin);
            reader.value()?;
            layout.keys.push(Key { name, value: bytes[begin..reader.at].to_vec() });
        }
        for _ in 0..tensors {
            layout.boundaries.push(reader.at);
            let name = reader.text()?.to_vec();
            let dimensions = reader.u32()?;
            let shape = (0..dimensions).map(|_| reader.u64()).collect::<Option<_>>()?;
            let kind = reader.u32()?;
            layout.boundaries.push(reader.at);
            reader.u64()?;
            layout.tensors.push(Tensor { name, shape, kind });
        }
        layout.end = reader.at.next_multiple_of(ALIGNMENT).min(bytes.len());
        Some(layout)
    }

    /// Where keys, values and tensors begin.
    pub fn boundaries(&self) -> &[usize] {
        &self.boundaries
    }

    /// The header, the length of the file it belongs to, and the fields that it has.
    pub fn write(&self) -> (Vec<u8>, u64, Vec<Field>) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        let mut fields = Vec::new();
        let number = |bytes: &mut Vec<u8>, fields: &mut Vec<Field>, value: &[u8]| {
            fields.push(Field { at: bytes.len(), width: value.len() });
            bytes.extend(value);
        };
        number(&mut bytes, &mut fields, &(self.tensors.len() as u64).to_le_bytes());
        number(&mut bytes, &mut fields, &(self.keys.len() as u64).to_le_bytes());
        for key in &self.keys {
            number(&mut bytes, &mut fields, &(key.name.len() as u64).to_le_bytes());
            bytes.extend(&key.name);
            let at = bytes.len();
            fields.push(Field { at, width: 4 });
            match key.kind() {
                LIST => fields.extend([Field { at: at + 4, width: 4 }, Field { at: at + 8, width: 8 }]),
                TEXT => fields.push(Field { at: at + 4, width: 8 }),
                _ => fields.push(Field { at: at + 4, width: key.value.len() - 4 }),
            }
            bytes.extend(&key.value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            number(&mut bytes, &mut fields, &(tensor.name.len() as u64).to_le_bytes());
            bytes.extend(&tensor.name);
            number(&mut bytes, &mut fields, &(tensor.shape.len() as u32).to_le_bytes());
            for length in &tensor.shape {
                number(&mut bytes, &mut fields, &length.to_le_bytes());
            }
            number(&mut bytes, &mut fields, &tensor.kind.to_le_bytes());
            number(&mut bytes, &mut fields, &offset.to_le_bytes());
            let elements =
                tensor.shape.iter().fold(1, |product: u64, length| product.saturating_mul(*length));
            let taken = TensorType::by_code(tensor.kind).map_or(0, |kind| kind.bytes_of(elements));
            offset = offset.saturating_add(taken.min(1 << 40).next_multiple_of(ALIGNMENT as u64));
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        let length = (bytes.len() as u64).saturating_add(offset);
        (bytes, length, fields)
    }

    /// Keeps the first tokens only, in every list and tensor that goes by token.
    pub fn shorten_vocabulary(&mut self, count: u64) {
        let mut before = 0;
        for key in &mut self.keys {
            let is_list = key.kind() == LIST && key.name.starts_with(b"tokenizer.");
            if is_list {
                let mut reader = Reader { bytes: &key.value, at: 4 };
                let kind = reader.u32().unwrap();
                let length = reader.u64().unwrap();
                if key.name == b"tokenizer.ggml.tokens" {
                    before = length;
                }
                if length > count {
                    // Merges are of tokens that are gone; a few stay, which the tokenizer passes over.
                    match kind {
                        TEXT => (0..count).try_for_each(|_| reader.text().map(drop)),
                        kind => reader.take(width(kind).unwrap() * count as usize).map(drop),
                    }
                    .unwrap();
                    let end = reader.at;
                    key.value.truncate(end);
                    key.value[8..16].copy_from_slice(&count.to_le_bytes());
                }
            } else if key.is_number() && key.name.ends_with(b".vocab_size") {
                key.set_number(count);
            } else if key.is_number() && key.name.ends_with(b"_token_id") && key.number() >= count {
                key.set_number(0);
            }
        }
        for length in self.tensors.iter_mut().flat_map(|tensor| &mut tensor.shape) {
            if *length == before {
                *length = count;
            }
        }
    }
}
