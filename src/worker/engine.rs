//! What the scheduler needs of an engine, and no more: a vocabulary, sequences with positions, decode, logits. llama.cpp
//! is one implementation (`llama`), a scripted one in the tests of `batch` the other.

use std::path::PathBuf;

/// An entry of the vocabulary. Signed because llama.cpp's is.
pub type Token = i32;

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Markup {
    /// Add what the model wants around a prompt: a beginning-of-sequence token, mostly.
    pub framed: bool,
    /// Recognise control tokens. Without it `<|im_end|>` is ten characters.
    pub control: bool,
}

impl Markup {
    /// A rendered template or a raw prompt.
    pub const PROMPT: Markup = Markup { framed: true, control: true };
}

/// The model's vocabulary. Reading it needs no engine thread, so requests tokenize while others decode.
pub trait Vocabulary: Send + Sync {
    fn size(&self) -> usize;
    fn tokenize(&self, text: &str, markup: Markup) -> Result<Vec<Token>, EngineError>;
    /// Appends the token's bytes, which need not be whole characters. Control tokens are written only if `control` says so.
    fn piece(&self, token: Token, control: bool, into: &mut Vec<u8>);
    /// The tokens that end a generation, in ascending order.
    fn ends(&self) -> &[Token];
}

/// One token to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub token: Token,
    pub position: u32,
    pub sequence: u32,
    /// Whether the logits after this token are wanted.
    pub logits: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that can be decoded side by side: the slots.
    pub sequences: u32,
    /// Tokens a sequence can hold.
    pub context: u32,
    /// Rows of one decode.
    pub rows: usize,
}

/// A loaded model with its context. One thread owns it.
pub trait Engine {
    fn vocabulary(&self) -> &dyn Vocabulary;
    fn limits(&self) -> Limits;
    /// Decodes the rows. `abort` is asked often, between the operations of the graph; when it says yes the decode ends with
    /// [`EngineError::Aborted`] and the sequences concerned must be forgotten.
    fn decode(&mut self, rows: &[Row], abort: &(dyn Fn() -> bool + Sync)) -> Result<(), EngineError>;
    /// The logits after a row of the last decode that asked for them. The caller may write into them.
    fn logits(&mut self, row: usize) -> Result<&mut [f32], EngineError>;
    /// Drops what a sequence holds from a position on.
    fn forget(&mut self, sequence: u32, from: u32) -> Result<(), EngineError>;
}

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum EngineError {
    #[error("loading {} failed{}", .path.display(), reasons(.log))]
    Load { path: PathBuf, log: Vec<String> },
    #[error("loading {} was cancelled", .0.display())]
    LoadCancelled(PathBuf),
    #[error("{} is not a model this worker can run: {}", .0.display(), .1)]
    Unsuitable(PathBuf, &'static str),
    #[error("making room for {sequences} slots of {context} tokens failed{}; try a smaller --ctx-size or --parallel", reasons(.log))]
    Context { sequences: u32, context: u32, log: Vec<String> },
    #[error("starting {0} threads for the engine failed; try a smaller --threads")]
    Threads(u32),
    #[error("the chat template can't be used: {0}")]
    Template(String),
    #[error(
        "no {wanted} here: this worker was built for {built}; install a worker for that device or leave out --n-gpu-layers and --device"
    )]
    Backend { wanted: String, built: String },
    #[error("tokenizing failed: the text is too long")]
    Tokenize,
    #[error("a batch that the engine must not see: {0}")]
    Misuse(&'static str),
    #[error("the decode was aborted")]
    Aborted,
    #[error("the context is full")]
    Full,
    #[error("llama.cpp could not decode (status {0})")]
    Decode(i32),
}

fn reasons(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!(": {}", log.join("; ")) }
}
