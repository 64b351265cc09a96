//! The tensor table: names, shapes, element types and where each tensor's bytes lie.

use super::GgufError;
use super::reader::Reader;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read, Seek};

const TENSORS_MAX: u64 = 64 << 10;
/// ggml's, with its closing zero.
const NAME_BYTES_MAX: u64 = 63;
const DIMENSIONS_MAX: u32 = 4;
/// Rows that llama.cpp's reordering takes together.
const GROUP_ROWS: u64 = 8;
/// llama.cpp maps tensors where they lie, and aborts if one does not begin at a multiple of this.
const MAPPED_ALIGNMENT: u64 = 32;
const EMBEDDINGS: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";

/// A ggml element type: `block` elements take `bytes` bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct TensorType {
    pub code: u32,
    pub name: &'static str,
    pub block: u64,
    pub bytes: u64,
}

const fn row(code: u32, name: &'static str, block: u64, bytes: u64) -> TensorType {
    TensorType { code, name, block, bytes }
}

/// Every type a file may hold; the gaps are types ggml has removed.
static TYPES: [TensorType; 35] = [
    row(0, "F32", 1, 4),
    row(1, "F16", 1, 2),
    row(2, "Q4_0", 32, 18),
    row(3, "Q4_1", 32, 20),
    row(6, "Q5_0", 32, 22),
    row(7, "Q5_1", 32, 24),
    row(8, "Q8_0", 32, 34),
    row(9, "Q8_1", 32, 36),
    row(10, "Q2_K", 256, 84),
    row(11, "Q3_K", 256, 110),
    row(12, "Q4_K", 256, 144),
    row(13, "Q5_K", 256, 176),
    row(14, "Q6_K", 256, 210),
    row(15, "Q8_K", 256, 292),
    row(16, "IQ2_XXS", 256, 66),
    row(17, "IQ2_XS", 256, 74),
    row(18, "IQ3_XXS", 256, 98),
    row(19, "IQ1_S", 256, 50),
    row(20, "IQ4_NL", 32, 18),
    row(21, "IQ3_S", 256, 110),
    row(22, "IQ2_S", 256, 82),
    row(23, "IQ4_XS", 256, 136),
    row(24, "I8", 1, 1),
    row(25, "I16", 1, 2),
    row(26, "I32", 1, 4),
    row(27, "I64", 1, 8),
    row(28, "F64", 1, 8),
    row(29, "IQ1_M", 256, 56),
    row(30, "BF16", 1, 2),
    row(34, "TQ1_0", 256, 54),
    row(35, "TQ2_0", 256, 66),
    row(39, "MXFP4", 32, 17),
    row(40, "NVFP4", 64, 36),
    row(41, "Q1_0", 128, 18),
    row(42, "Q2_0", 64, 18),
];

/// Types for counts, and those that only intermediate results have.
const WITHOUT_KERNELS: [&str; 7] = ["I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"];

impl TensorType {
    pub fn by_code(code: u32) -> Option<&'static TensorType> {
        TYPES.iter().find(|t| t.code == code)
    }

    /// By ggml's name in either case, as `--cache-type-k` takes it.
    pub fn by_name(name: &str) -> Option<&'static TensorType> {
        TYPES.iter().find(|t| t.name.eq_ignore_ascii_case(name))
    }

    /// The bytes of `elements` elements, rounded up to whole blocks.
    pub fn bytes_of(&self, elements: u64) -> u64 {
        elements.div_ceil(self.block).saturating_mul(self.bytes)
    }
}

/// What is remembered of the table.
#[derive(Debug, Default)]
pub(super) struct Tensors {
    pub names: HashSet<String>,
    pub elements: u64,
    pub bytes: u64,
    /// Elements by type, to name a file that does not say what it is.
    pub elements_by_type: HashMap<&'static str, u64>,
    /// Bytes by type of the matrices whose rows come in whole groups, which llama.cpp may keep a second time, reordered
    /// for the processor.
    pub grouped: BTreeMap<&'static str, u64>,
    /// The same of the token embeddings, which are multiplied with only where they are the output, too.
    pub embeddings: Option<(&'static str, u64)>,
    /// Where the last tensor ends in the file.
    pub end: u64,
}

fn bad(name: &str, problem: impl Into<String>) -> GgufError {
    GgufError::Tensor { name: name.escape_debug().to_string(), problem: problem.into() }
}

impl Tensors {
    pub fn read<S: Read + Seek>(
        reader: &mut Reader<S>,
        count: u64,
        alignment: u64,
    ) -> Result<Self, GgufError> {
        if count > TENSORS_MAX {
            return Err(GgufError::Limit { what: "tensors", value: count, max: TENSORS_MAX });
        }
        let mut tensors = Tensors::default();
        let mut data_end = 0u64;
        let mut last_end = 0u64;
        let mut unaligned = None;
        reader.part("its tensor table");
        for _ in 0..count {
            let name = String::from_utf8(reader.string("the length of a tensor's name", NAME_BYTES_MAX)?)
                .map_err(|e| bad(&String::from_utf8_lossy(e.as_bytes()), "has a name that is not UTF-8"))?;
            let Shape { elements, row, rows, dimensions } = Shape::read(reader, &name)?;
            let code = reader.u32()?;
            let kind = TensorType::by_code(code).ok_or_else(|| {
                bad(&name, format!("has the unknown type {code}; a newer rbee may know it"))
            })?;
            if !row.is_multiple_of(kind.block) {
                return Err(bad(
                    &name,
                    format!("has rows of {row}, not a multiple of {}'s {}", kind.name, kind.block),
                ));
            }
            suits(&name, kind, dimensions, rows)?;
            let bytes = (elements / kind.block)
                .checked_mul(kind.bytes)
                .ok_or_else(|| bad(&name, "is too large to be real"))?;
            let offset = reader.u64()?;
            // Gapless and in order is what llama.cpp demands; it rules out unaligned and overlapping tensors, too.
            if offset != data_end {
                return Err(bad(&name, format!("lies at offset {offset}, should be at {data_end}")));
            }
            if !offset.is_multiple_of(MAPPED_ALIGNMENT) && unaligned.is_none() {
                unaligned = Some(name.clone());
            }
            let too_large = || bad(&name, "is too large to be real");
            last_end = data_end.checked_add(bytes).ok_or_else(too_large)?;
            data_end = last_end.checked_next_multiple_of(alignment).ok_or_else(too_large)?;
            tensors.elements = tensors.elements.checked_add(elements).ok_or_else(too_large)?;
            tensors.bytes = tensors.bytes.checked_add(bytes).ok_or_else(too_large)?;
            *tensors.elements_by_type.entry(kind.name).or_default() += elements;
            if dimensions > 1 && rows.is_multiple_of(GROUP_ROWS) {
                match name == EMBEDDINGS {
                    true => tensors.embeddings = Some((kind.name, bytes)),
                    false => *tensors.grouped.entry(kind.name).or_default() += bytes,
                }
            }
            if tensors.names.contains(&name) {
                return Err(bad(&name, "is there twice"));
            }
            tensors.names.insert(name);
        }
        let data_start = reader.position().next_multiple_of(alignment);
        let first_unaligned =
            tensors.names.iter().next().filter(|_| !data_start.is_multiple_of(MAPPED_ALIGNMENT));
        if let Some(name) = unaligned.as_ref().or(first_unaligned) {
            return Err(bad(
                name,
                format!("does not begin at a multiple of {MAPPED_ALIGNMENT} bytes in the file"),
            ));
        }
        if count == 0 {
            // The first part of a split model may have none, and then nothing follows the header.
            tensors.end = reader.position();
            return Ok(tensors);
        }
        tensors.end = data_start.checked_add(last_end).ok_or(GgufError::Limit {
            what: "bytes of tensors",
            value: last_end,
            max: u64::MAX,
        })?;
        Ok(tensors)
    }

    /// Takes in the tensors of a split model's next part. `end` stays that of the first.
    pub fn absorb(&mut self, part: Tensors) -> Result<(), GgufError> {
        let count = (self.names.len() + part.names.len()) as u64;
        if count > TENSORS_MAX {
            return Err(GgufError::Limit { what: "tensors", value: count, max: TENSORS_MAX });
        }
        if let Some(name) = part.names.iter().find(|name| self.names.contains(*name)) {
            return Err(bad(name, "is in two parts"));
        }
        self.names.extend(part.names);
        self.elements = self.elements.saturating_add(part.elements);
        self.bytes = self.bytes.saturating_add(part.bytes);
        for (kind, elements) in part.elements_by_type {
            let all = self.elements_by_type.entry(kind).or_default();
            *all = all.saturating_add(elements);
        }
        for (kind, bytes) in part.grouped {
            let all = self.grouped.entry(kind).or_default();
            *all = all.saturating_add(bytes);
        }
        self.embeddings = self.embeddings.or(part.embeddings);
        Ok(())
    }

    /// The matrices that are multiplied with, by type; see [`Tensors::grouped`].
    pub fn matrices(&self) -> BTreeMap<&'static str, u64> {
        let mut matrices = self.grouped.clone();
        if let Some((kind, bytes)) = self.embeddings.filter(|_| !self.names.contains(OUTPUT)) {
            let all = matrices.entry(kind).or_default();
            *all = all.saturating_add(bytes);
        }
        matrices
    }

    /// Whether any block has a tensor of that name.
    pub fn any_block_has(&self, part: &str) -> bool {
        self.names.iter().any(|name| name.strip_prefix("blk.").is_some_and(|rest| rest.contains(part)))
    }

    /// The blocks the tensors' names speak of: one more than the highest `blk.N.`.
    pub fn blocks(&self) -> u64 {
        let index = |name: &String| name.split_once("blk.")?.1.split('.').next()?.parse::<u32>().ok();
        self.names.iter().filter_map(index).max().map_or(0, |highest| u64::from(highest) + 1)
    }

    pub fn has_attention(&self) -> bool {
        self.names.iter().any(|n| n.contains(".attn_q"))
    }
}

/// Whether there are kernels for it: llama.cpp finds out in the middle of a decode, and dies. Vectors are added to or
/// multiplied with whole floats; for some types nothing is multiplied.
fn suits(name: &str, kind: &TensorType, dimensions: u32, rows: u64) -> Result<(), GgufError> {
    let is_vector = dimensions < 2 || (dimensions == 2 && rows == 1);
    if (is_vector || name.ends_with("_norm.weight") || name.ends_with(".bias")) && kind.name != "F32" {
        return Err(bad(name, format!("is a vector of {}, for which there are no kernels", kind.name)));
    }
    // A table, not a matrix.
    let is_table = kind.name == "I32" && name.contains("tid2eid");
    if WITHOUT_KERNELS.contains(&kind.name) && !is_table {
        return Err(bad(name, format!("is a matrix of {}, for which there are no kernels", kind.name)));
    }
    Ok(())
}

struct Shape {
    dimensions: u32,
    elements: u64,
    /// The first dimension.
    row: u64,
    /// The second.
    rows: u64,
}

impl Shape {
    fn read<S: Read + Seek>(reader: &mut Reader<S>, name: &str) -> Result<Self, GgufError> {
        let dimensions = reader.u32()?;
        if dimensions > DIMENSIONS_MAX {
            return Err(bad(
                name,
                format!("has {dimensions} dimensions, over the limit of {DIMENSIONS_MAX}"),
            ));
        }
        let mut shape = Shape { dimensions, elements: 1, row: 1, rows: 1 };
        for i in 0..dimensions {
            let length = reader.u64()?;
            match i {
                0 => shape.row = length,
                1 => shape.rows = length,
                _ => {}
            }
            shape.elements = match shape.elements.checked_mul(length) {
                Some(0) => return Err(bad(name, "has an empty dimension")),
                Some(product) if i64::try_from(product).is_ok() => product,
                _ => return Err(bad(name, "has dimensions too large to be real")),
            };
        }
        Ok(shape)
    }
}
