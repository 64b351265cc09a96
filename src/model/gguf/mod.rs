//! The header of a GGUF file, read in safe Rust before any C++ sees the file.
//!
//! llama.cpp trusts its files more than a file from the internet deserves: some wrong counts end its process. So every
//! length, offset and count is checked here against the file's own length, with checked arithmetic and
//! bounded memory (token lists are counted, never kept), and what is known to abort llama.cpp is refused with a sentence.
//!
//! `reader` reads bounded primitives, `metadata` the key-value section, `tensors` the tensor table, `parts` the files of a
//! split model, `check` holds the rules that tie them together. The result is a [`Header`]: the facts people ask for and
//! placement needs.

mod aborts;
mod check;
mod metadata;
mod parts;
mod quantization;
mod reader;
mod tensors;
#[cfg(test)]
mod tests;
mod window;

use metadata::Metadata;
use reader::Reader;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
pub use tensors::TensorType;
use tensors::Tensors;

/// Where the header may end at the latest. The largest seen, with 262k tokens and merges, have about 20 MB.
pub const HEADER_BYTES_MAX: u64 = 256 << 20;
/// llama.cpp's own compiled-in limit.
pub const LAYERS_MAX: u64 = 512;

const MAGIC: &[u8; 4] = b"GGUF";
const READ_BUFFER_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    #[error("opening the model `{path}`")]
    Open { path: PathBuf, source: io::Error },
    #[error("`{0}` is not a regular file; give the path of a .gguf file")]
    NotAFile(PathBuf),
    #[error("reading the model's header")]
    Read(#[source] io::Error),
    #[error("this is not a GGUF file: it starts with `{0}`")]
    Magic(String),
    #[error("the file is GGUF version {0}; versions 2 and 3 are understood")]
    Version(u32),
    #[error("the file ends inside {0}: it is damaged or was not downloaded completely")]
    Truncated(&'static str),
    #[error("{what}: {value} is over the limit of {max}")]
    Limit { what: &'static str, value: u64, max: u64 },
    #[error("metadata `{key}` {problem}")]
    Metadata { key: String, problem: String },
    #[error("tensor `{name}` {problem}")]
    Tensor { name: String, problem: String },
    #[error("this is {what}")]
    NotAModel { what: &'static str },
    #[error("this is part {} of a model split in {count}, and no more than this part was given", .number + 1)]
    PartAlone { number: u32, count: u32 },
    #[error("`{path}` is part {} of a model split in {count}; its name should end in `{ending}`, as the other parts' do", .number + 1)]
    PartName { path: PathBuf, number: u32, count: u32, ending: String },
    #[error("`{path}`, a part of the split model, is missing; all parts belong in one folder")]
    PartMissing { path: PathBuf },
    #[error("`{path}`, a part of the split model")]
    Part { path: PathBuf, source: Box<GgufError> },
}

/// What a GGUF file says about its model, all of it checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Header {
    pub architecture: String,
    pub name: Option<String>,
    /// The elements of all tensors.
    pub parameters: u64,
    /// llama.cpp's name for it: `Q4_K_M`, `F16`, …
    pub quantization: String,
    /// What the model was trained for.
    pub context_length: u32,
    pub vocabulary: u32,
    pub chat_template: Option<String>,
    /// The bytes of all tensors, as they lie in memory.
    pub weights_bytes: u64,
    pub file_bytes: u64,
    pub block_count: u32,
    pub embedding_length: u32,
    /// The widest feed-forward layer that all tokens pass; 0 in a mixture without one.
    pub feed_forward_length: u32,
    pub experts: Option<Experts>,
    /// One entry a block; 0 for blocks without attention.
    pub head_counts: Vec<u32>,
    pub head_counts_kv: Vec<u32>,
    pub key_length: u32,
    pub value_length: u32,
    /// Which blocks see only a window of the past, and how long it is.
    pub window: Option<Window>,
    /// Multi-head latent attention: the cache keeps keys alone.
    pub is_latent: bool,
    /// Queries, keys and values come from one matrix.
    pub has_fused_qkv: bool,
    /// Bytes of recurrent state a sequence, for models that have one.
    pub recurrent_bytes: u64,
    /// The width of that state's inputs.
    pub recurrent_width: u32,
    /// Bytes by type of the matrices that llama.cpp may keep a second time, reordered for the processor.
    pub matrices: BTreeMap<&'static str, u64>,
    /// Which part of a split model was given; the header is that of all.
    pub split: Option<Split>,
    /// All files, in order; llama.cpp wants the first. Empty if the header came from no file.
    pub parts: Vec<PathBuf>,
}

/// A mixture's feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    pub count: u32,
    /// How many of them a token passes.
    pub used: u32,
    pub feed_forward_length: u32,
}

/// Sliding-window attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    pub tokens: u32,
    /// One entry a block: does it use the window?
    pub blocks: Vec<bool>,
    pub key_length: u32,
    pub value_length: u32,
}

/// Which part of a split model this file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// From 0.
    pub number: u32,
    pub count: u32,
}

/// Reads and checks the header of the file at `path`; of a split model, whichever part is given, those of all parts.
pub fn inspect(path: &Path) -> Result<Header, GgufError> {
    let part = Part::open(path)?;
    match check::split(&part.metadata)? {
        None => {
            let header = check::header(&part.metadata, &part.tensors, part.file_bytes)?;
            Ok(Header { parts: vec![path.to_owned()], ..header })
        }
        Some(split) => parts::merge(path, part, split),
    }
}

/// Reads and checks a header from any source of `length` bytes, which must have the whole model.
pub fn read(source: impl Read + Seek, length: u64) -> Result<Header, GgufError> {
    let part = Part::read(source, length)?;
    match check::split(&part.metadata)? {
        None => check::header(&part.metadata, &part.tensors, part.file_bytes),
        Some(Split { number, count }) => Err(GgufError::PartAlone { number, count }),
    }
}

/// What one file says, before the rules that make a model of it.
struct Part {
    metadata: Metadata,
    tensors: Tensors,
    file_bytes: u64,
}

impl Part {
    fn open(path: &Path) -> Result<Part, GgufError> {
        let open = |source| GgufError::Open { path: path.to_owned(), source };
        // Before opening: a FIFO of that name would block.
        if !std::fs::metadata(path).map_err(open)?.is_file() {
            return Err(GgufError::NotAFile(path.to_owned()));
        }
        let file = File::open(path).map_err(open)?;
        let length = file.metadata().map_err(open)?.len();
        Part::read(BufReader::with_capacity(READ_BUFFER_BYTES, file), length)
    }

    fn read(source: impl Read + Seek, file_bytes: u64) -> Result<Part, GgufError> {
        let mut reader = Reader::new(source, file_bytes);
        reader.part("its first bytes");
        let magic = reader.bytes::<4>()?;
        if &magic != MAGIC {
            return Err(GgufError::Magic(magic.escape_ascii().to_string()));
        }
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let tensor_count = reader.u64()?;
        let key_count = reader.u64()?;
        let metadata = Metadata::read(&mut reader, key_count)?;
        // Before the tensors, whose rules are those of models.
        check::is_model(&metadata)?;
        let tensors = Tensors::read(&mut reader, tensor_count, metadata.alignment()?)?;
        if tensors.end > file_bytes {
            return Err(GgufError::Truncated("its tensors"));
        }
        Ok(Part { metadata, tensors, file_bytes })
    }
}
