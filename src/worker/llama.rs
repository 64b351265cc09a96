//! llama.cpp behind [`Engine`]: the only file that names `llama_cpp_sys_2`, and the only unsafe one of the worker.
//!
//! Why our own layer and not llama-cpp-2: that crate offers no abort callback (a client that leaves inside a prompt would
//! cost a whole batch), no persistent threadpool (without one ggml starts its threads anew for every decode, which took up
//! to 3 s on a busy machine), no raw log callback (a failed load gives no reason), and no way to add them, since every
//! pointer of it is private. And its safe calls can still abort the process.
//!
//! What ggml would answer with abort() is checked here first, and answered with an [`EngineError`]:
//! - decode: no rows, more rows than n_batch, token ids outside the vocabulary, sequences ≥ n_seq_max, positions beyond the
//!   context, more rows with logits than were reserved;
//! - logits: a row that did not ask for them;
//! - forget: a sequence ≥ n_seq_max;
//! - load: no tokenizer, no decoder. The header itself is read by `model::gguf` before llama.cpp sees the file.
//!
//! Should ggml abort all the same, [`on_abort`] writes its message before the process dies, and no debugger is started.

use super::engine::{Engine, EngineError, Limits, Markup, Row, Token, Vocabulary};
use super::options::{CacheType, ContextOptions, Device, FlashAttention, ModelOptions};
use llama_cpp_sys_2 as sys;
use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, Once, PoisonError};

/// llama.cpp's own bound on sequences.
pub const SEQUENCES_MAX: u32 = 256;
/// What is kept of llama.cpp's complaints to explain a failed load.
const LOG_LINES_MAX: usize = 8;
const LOG_LINE_BYTES_MAX: usize = 500;
/// The first guess for a piece's bytes; longer ones are asked for again.
const PIECE_BYTES: usize = 64;

fn cache_type(chosen: CacheType) -> sys::ggml_type {
    match chosen {
        CacheType::F32 => sys::GGML_TYPE_F32,
        CacheType::F16 => sys::GGML_TYPE_F16,
        CacheType::Bf16 => sys::GGML_TYPE_BF16,
        CacheType::Q8_0 => sys::GGML_TYPE_Q8_0,
        CacheType::Q5_1 => sys::GGML_TYPE_Q5_1,
        CacheType::Q5_0 => sys::GGML_TYPE_Q5_0,
        CacheType::Q4_1 => sys::GGML_TYPE_Q4_1,
        CacheType::Q4_0 => sys::GGML_TYPE_Q4_0,
        CacheType::Iq4Nl => sys::GGML_TYPE_IQ4_NL,
    }
}

/// Sets llama.cpp up once a process.
fn initialise() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the callbacks are functions of this program and need no user data.
        unsafe {
            sys::ggml_set_abort_callback(Some(on_abort));
            sys::llama_log_set(Some(on_log), std::ptr::null_mut());
            rbee_chat_silence();
            sys::llama_backend_init();
        }
    });
}

/// ggml's last words. Having a callback also keeps it from starting a debugger for a backtrace.
unsafe extern "C" fn on_abort(message: *const c_char) {
    if !message.is_null() {
        // SAFETY: ggml passes a formatted, terminated string.
        let message = unsafe { CStr::from_ptr(message) };
        eprintln!("the engine gave up: {}", message.to_string_lossy());
    }
}

#[derive(Debug, Default)]
struct Log {
    /// Lines come in pieces.
    line: String,
    level: sys::ggml_log_level,
    complaints: VecDeque<String>,
}

static LOG: Mutex<Log> =
    Mutex::new(Log { line: String::new(), level: sys::GGML_LOG_LEVEL_NONE, complaints: VecDeque::new() });

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a terminated string that lives through the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    if level != sys::GGML_LOG_LEVEL_CONT {
        log.level = level;
    }
    for piece in text.split_inclusive('\n') {
        if log.line.len() < LOG_LINE_BYTES_MAX {
            log.line.push_str(piece.trim_end_matches('\n'));
        }
        if piece.ends_with('\n') {
            let line = std::mem::take(&mut log.line);
            match log.level {
                sys::GGML_LOG_LEVEL_ERROR => tracing::warn!(target: "llama", "{line}"),
                sys::GGML_LOG_LEVEL_DEBUG => tracing::trace!(target: "llama", "{line}"),
                _ => tracing::debug!(target: "llama", "{line}"),
            }
            if log.level >= sys::GGML_LOG_LEVEL_ERROR && !line.trim().is_empty() {
                if log.complaints.len() == LOG_LINES_MAX {
                    log.complaints.pop_front();
                }
                log.complaints.push_back(line.trim().to_owned());
            }
        }
    }
}

/// The complaints since the last call.
fn complaints() -> Vec<String> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner).complaints.drain(..).collect()
}

/// The instruction sets that the kernels of this build use, of those that a build may choose, by ggml's names. Constants
/// of the build: asking sets nothing up, and works on a processor that could not run the kernels.
pub fn kernels() -> Vec<&'static str> {
    // SAFETY: these take nothing and return a constant each.
    #[cfg(target_arch = "x86_64")]
    let all = unsafe {
        [
            ("avx", sys::ggml_cpu_has_avx()),
            ("avx2", sys::ggml_cpu_has_avx2()),
            ("bmi2", sys::ggml_cpu_has_bmi2()),
            ("f16c", sys::ggml_cpu_has_f16c()),
            ("fma", sys::ggml_cpu_has_fma()),
            ("avx_vnni", sys::ggml_cpu_has_avx_vnni()),
            ("avx512", sys::ggml_cpu_has_avx512()),
            ("avx512_vbmi", sys::ggml_cpu_has_avx512_vbmi()),
            ("avx512_vnni", sys::ggml_cpu_has_avx512_vnni()),
            ("avx512_bf16", sys::ggml_cpu_has_avx512_bf16()),
        ]
    };
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    let all = unsafe {
        [
            ("neon", sys::ggml_cpu_has_neon()),
            ("fp16_va", sys::ggml_cpu_has_fp16_va()),
            ("dotprod", sys::ggml_cpu_has_dotprod()),
            ("matmul_int8", sys::ggml_cpu_has_matmul_int8()),
            ("sve", sys::ggml_cpu_has_sve()),
        ]
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all: [(&str, std::ffi::c_int); 0] = [];
    all.into_iter().filter(|(_, is_used)| *is_used != 0).map(|(name, _)| name).collect()
}

/// GPUs this build can use. Empty on the portable build.
fn gpus() -> Vec<sys::ggml_backend_dev_t> {
    initialise();
    // SAFETY: indices below the count give devices that live as long as the process.
    unsafe {
        (0..sys::ggml_backend_dev_count())
            .map(|at| sys::ggml_backend_dev_get(at))
            .filter(|device| {
                let kind = sys::ggml_backend_dev_type(*device);
                kind == sys::GGML_BACKEND_DEVICE_TYPE_GPU || kind == sys::GGML_BACKEND_DEVICE_TYPE_IGPU
            })
            .collect()
    }
}

fn gpu_names(gpus: &[sys::ggml_backend_dev_t]) -> String {
    if gpus.is_empty() {
        return match (cfg!(feature = "cuda"), cfg!(target_os = "macos")) {
            (true, _) => "NVIDIA GPUs, of which the driver shows none".into(),
            (_, true) => "Metal, which shows no GPU".into(),
            _ => "the CPU alone".into(),
        };
    }
    // SAFETY: the devices come from `gpus`; their names live as long as they.
    let name = |gpu: &sys::ggml_backend_dev_t| unsafe { CStr::from_ptr(sys::ggml_backend_dev_name(*gpu)) };
    gpus.iter().map(|gpu| name(gpu).to_string_lossy().into_owned()).collect::<Vec<_>>().join(", ")
}

/// A loaded model. Read-only, so any thread may look at its vocabulary.
#[derive(Debug)]
pub struct Model {
    raw: NonNull<sys::llama_model>,
    vocabulary: NonNull<sys::llama_vocab>,
    size: usize,
    ends: Vec<Token>,
}

// SAFETY: llama.cpp never writes to a loaded model; its getters, tokenizer and detokenizer are const.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: ours alone, and every context holds an Arc of this, so none is left.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) }
    }
}

/// Told how far loading is (0 to 1); false cancels it.
pub type Progress<'a> = &'a mut dyn FnMut(f32) -> bool;

impl Model {
    /// Loads a GGUF file whose header has been checked.
    pub fn load(path: &Path, options: &ModelOptions, progress: Progress<'_>) -> Result<Model, EngineError> {
        initialise();
        let mut devices = chosen_devices(options)?;
        // SAFETY: returns a plain struct by value.
        let mut params = unsafe { sys::llama_model_default_params() };
        if options.device == Device::Cpu {
            params.n_gpu_layers = 0;
        } else if let Some(layers) = options.gpu_layers {
            params.n_gpu_layers = i32::try_from(layers).unwrap_or(i32::MAX);
        }
        if !devices.is_empty() {
            params.devices = devices.as_mut_ptr();
        }
        let mut watch = ProgressWatch { tell: progress, cancelled: false };
        params.progress_callback = Some(on_progress);
        params.progress_callback_user_data = (&raw mut watch).cast();
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| EngineError::Unsuitable(path.to_owned(), "its path holds a zero byte"))?;
        complaints();
        // SAFETY: the path is terminated; `devices` and `watch` outlive the call, which is the only one to use them.
        let raw = unsafe { sys::llama_model_load_from_file(c_path.as_ptr(), params) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(if watch.cancelled {
                EngineError::LoadCancelled(path.to_owned())
            } else {
                EngineError::Load { path: path.to_owned(), log: complaints() }
            });
        };
        // From here on the drop of `model` frees it.
        // SAFETY: a loaded model has a vocabulary that lives as long as it.
        let vocabulary = unsafe { sys::llama_model_get_vocab(raw.as_ptr()) };
        let mut model = Model {
            raw,
            vocabulary: NonNull::new(vocabulary.cast_mut()).expect("llama.cpp returns a reference's address"),
            size: 0,
            ends: Vec::new(),
        };
        model.read_vocabulary(path)?;
        Ok(model)
    }

    fn read_vocabulary(&mut self, path: &Path) -> Result<(), EngineError> {
        let unsuitable = |why| Err(EngineError::Unsuitable(path.to_owned(), why));
        let vocabulary = self.vocabulary.as_ptr();
        // SAFETY: getters on a living vocabulary and model; token ids are below the count.
        unsafe {
            if sys::llama_vocab_type(vocabulary) == sys::LLAMA_VOCAB_TYPE_NONE {
                return unsuitable("it has no tokenizer");
            }
            if sys::llama_model_has_encoder(self.raw.as_ptr())
                || !sys::llama_model_has_decoder(self.raw.as_ptr())
            {
                return unsuitable("only decoder models generate text here");
            }
            let size = sys::llama_vocab_n_tokens(vocabulary);
            self.size = usize::try_from(size).unwrap_or(0);
            if self.size == 0 {
                return unsuitable("its vocabulary is empty");
            }
            self.ends = (0..size).filter(|token| sys::llama_vocab_is_eog(vocabulary, *token)).collect();
        }
        Ok(())
    }

    /// Tokens it was trained to hold.
    pub fn context_trained(&self) -> u32 {
        // SAFETY: a getter on a living model.
        u32::try_from(unsafe { sys::llama_model_n_ctx_train(self.raw.as_ptr()) }).unwrap_or(0)
    }

    pub fn parameters(&self) -> u64 {
        // SAFETY: a getter on a living model.
        unsafe { sys::llama_model_n_params(self.raw.as_ptr()) }
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        // SAFETY: a getter on a living model.
        unsafe { sys::llama_model_size(self.raw.as_ptr()) }
    }
}

struct ProgressWatch<'a> {
    tell: Progress<'a>,
    cancelled: bool,
}

unsafe extern "C" fn on_progress(progress: f32, user_data: *mut c_void) -> bool {
    // SAFETY: `load` passes its ProgressWatch and outlives the calls, which come one after another on its own thread.
    let watch = unsafe { &mut *user_data.cast::<ProgressWatch<'_>>() };
    let go_on = (watch.tell)(progress);
    watch.cancelled |= !go_on;
    go_on
}

/// The device list for llama.cpp, ended by a null; empty means its own choice. A GPU that was asked for and is not here is an error:
/// nothing falls back to the CPU unasked.
fn chosen_devices(options: &ModelOptions) -> Result<Vec<sys::ggml_backend_dev_t>, EngineError> {
    let gpus = gpus();
    let missing = |wanted: String| EngineError::Backend { wanted, built: gpu_names(&gpus) };
    if gpus.is_empty() && options.gpu_layers.is_some_and(|layers| layers > 0) {
        return Err(missing("GPU".into()));
    }
    match options.device {
        Device::Auto => Ok(Vec::new()),
        Device::Cpu => Ok(vec![std::ptr::null_mut()]),
        Device::Gpu(n) => {
            let gpu = gpus.get(n as usize).ok_or_else(|| missing(format!("GPU-{n}")))?;
            Ok(vec![*gpu, std::ptr::null_mut()])
        }
    }
}

impl Vocabulary for Model {
    fn size(&self) -> usize {
        self.size
    }

    fn tokenize(&self, text: &str, markup: Markup) -> Result<Vec<Token>, EngineError> {
        let bytes = i32::try_from(text.len()).map_err(|_| EngineError::Tokenize)?;
        // A token has at least a byte; two more for what the vocabulary adds around a prompt.
        let mut tokens: Vec<Token> = vec![0; text.len() + 2];
        for _ in 0..2 {
            let room = i32::try_from(tokens.len()).map_err(|_| EngineError::Tokenize)?;
            // SAFETY: text and tokens are as long as said; valid UTF-8 is guaranteed by &str.
            let count = unsafe {
                sys::llama_tokenize(
                    self.vocabulary.as_ptr(),
                    text.as_ptr().cast(),
                    bytes,
                    tokens.as_mut_ptr(),
                    room,
                    markup.framed,
                    markup.control,
                )
            };
            match usize::try_from(count) {
                Ok(count) => {
                    tokens.truncate(count);
                    return Ok(tokens);
                }
                // The negative count is what it needs. i32::MIN stands for an overflow and has no absolute value.
                Err(_) => {
                    let needed = count.checked_neg().and_then(|n| usize::try_from(n).ok());
                    tokens.resize(needed.ok_or(EngineError::Tokenize)?, 0);
                }
            }
        }
        Err(EngineError::Tokenize)
    }

    fn piece(&self, token: Token, control: bool, into: &mut Vec<u8>) {
        if usize::try_from(token).map_or(true, |at| at >= self.size) {
            return;
        }
        let mut room = PIECE_BYTES;
        loop {
            let mut piece = vec![0u8; room];
            // SAFETY: the token is in the vocabulary and the buffer as long as said.
            let written = unsafe {
                sys::llama_token_to_piece(
                    self.vocabulary.as_ptr(),
                    token,
                    piece.as_mut_ptr().cast(),
                    room as i32,
                    0,
                    control,
                )
            };
            match usize::try_from(written) {
                Ok(written) => return into.extend_from_slice(&piece[..written]),
                Err(_) => {
                    let needed = written.unsigned_abs() as usize;
                    if needed <= room {
                        return;
                    }
                    room = needed;
                }
            }
        }
    }

    fn ends(&self) -> &[Token] {
        &self.ends
    }
}

/// A thread pool of ggml's that lives as long as the context, so that a decode does not start threads.
#[derive(Debug)]
struct Threads(NonNull<sys::ggml_threadpool>);

impl Threads {
    fn start(count: u32) -> Result<Self, EngineError> {
        let failed = || EngineError::Threads(count);
        let threads = i32::try_from(count).ok().filter(|n| (1..=512).contains(n)).ok_or_else(failed)?;
        // SAFETY: the parameters are ggml's defaults and only read by the call.
        let raw = unsafe {
            let mut params = sys::ggml_threadpool_params_default(threads);
            sys::ggml_threadpool_new(&raw mut params)
        };
        NonNull::new(raw).map(Threads).ok_or_else(failed)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // SAFETY: ours alone; the context that used it is freed before (field order of Llama).
        unsafe { sys::ggml_threadpool_free(self.0.as_ptr()) }
    }
}

/// What the abort callback asks while a decode runs.
type Abort<'a> = &'a (dyn Fn() -> bool + Sync);

/// Where the callback finds it. Boxed, because llama.cpp keeps the address.
struct AbortCell(Mutex<Option<Abort<'static>>>);

unsafe extern "C" fn on_abort_asked(cell: *mut c_void) -> bool {
    // SAFETY: the cell is a field of the Llama whose context calls this.
    let cell = unsafe { &*cell.cast::<AbortCell>() };
    cell.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|abort| abort())
}

struct RawContext(NonNull<sys::llama_context>);

impl Drop for RawContext {
    fn drop(&mut self) {
        // SAFETY: ours alone.
        unsafe { sys::llama_free(self.0.as_ptr()) }
    }
}

struct RawBatch(sys::llama_batch);

impl Drop for RawBatch {
    fn drop(&mut self) {
        // SAFETY: made by llama_batch_init, whose pointers are never replaced.
        unsafe { sys::llama_batch_free(self.0) }
    }
}

/// A model with a context, ready to decode. The fields are dropped in this order: the context before what it uses.
pub struct Llama {
    context: RawContext,
    batch: RawBatch,
    _threads: Threads,
    _threads_batch: Option<Threads>,
    abort: Box<AbortCell>,
    limits: Limits,
    /// Which rows of the last decode have logits.
    with_logits: Vec<bool>,
    model: Arc<Model>,
}

// SAFETY: a context may be used from any thread, one at a time; `Llama` is not Sync and not Clone.
unsafe impl Send for Llama {}

impl Llama {
    pub fn new(model: Arc<Model>, options: &ContextOptions) -> Result<Llama, EngineError> {
        let sequences = options.sequences.clamp(1, SEQUENCES_MAX);
        let refused = |log| EngineError::Context { sequences, context: options.context, log };
        let total = sequences.checked_mul(options.context).filter(|n| *n > 0 && *n <= i32::MAX as u32);
        let abort = Box::new(AbortCell(Mutex::new(None)));
        // SAFETY: returns a plain struct by value.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = total.ok_or_else(|| refused(vec!["the total is too large".into()]))?;
        params.n_batch = options.batch.max(sequences);
        params.n_ubatch = options.ubatch.clamp(1, params.n_batch);
        params.n_seq_max = sequences;
        // One row a slot chooses a token. Without this, buffers for the logits of a whole ubatch are reserved: half a gigabyte
        // at a vocabulary of 262,144.
        params.n_outputs_max = sequences;
        params.n_threads = options.threads as i32;
        params.n_threads_batch = options.threads_batch as i32;
        params.type_k = cache_type(options.cache_k);
        params.type_v = cache_type(options.cache_v);
        params.flash_attn_type = match options.flash_attention {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        params.abort_callback = Some(on_abort_asked);
        params.abort_callback_data = (&raw const *abort).cast_mut().cast();
        params.no_perf = true;
        complaints();
        // SAFETY: the model lives (Arc), the abort cell is boxed and dropped after the context.
        let raw = unsafe { sys::llama_init_from_model(model.raw.as_ptr(), params) };
        let context = RawContext(NonNull::new(raw).ok_or_else(|| refused(complaints()))?);
        let threads = Threads::start(options.threads)?;
        let threads_batch = match options.threads_batch == options.threads {
            true => None,
            false => Some(Threads::start(options.threads_batch)?),
        };
        let batch_pool = threads_batch.as_ref().unwrap_or(&threads).0.as_ptr();
        // SAFETY: both pools outlive the context; a context may use one pool for both.
        unsafe { sys::llama_attach_threadpool(context.0.as_ptr(), threads.0.as_ptr(), batch_pool) };
        // SAFETY: getters on a living context; the batch's arrays have room for n_batch rows of one sequence each.
        let (held, batch) = unsafe {
            (
                sys::llama_n_ctx_seq(context.0.as_ptr()),
                RawBatch(sys::llama_batch_init(params.n_batch as i32, 0, 1)),
            )
        };
        let limits = Limits { sequences, context: held.min(options.context), rows: params.n_batch as usize };
        Ok(Llama {
            context,
            batch,
            _threads: threads,
            _threads_batch: threads_batch,
            abort,
            limits,
            with_logits: Vec::new(),
            model,
        })
    }

    fn check(&self, rows: &[Row]) -> Result<(), EngineError> {
        let misuse = |what| Err(EngineError::Misuse(what));
        if rows.is_empty() {
            return misuse("it is empty");
        }
        if rows.len() > self.limits.rows {
            return misuse("it has more rows than n_batch");
        }
        for row in rows {
            if usize::try_from(row.token).map_or(true, |token| token >= self.model.size) {
                return misuse("a token is not in the vocabulary");
            }
            if row.sequence >= self.limits.sequences {
                return misuse("a sequence does not exist");
            }
            if row.position >= self.limits.context {
                return misuse("a position is beyond the context");
            }
        }
        if rows.iter().filter(|row| row.logits).count() > self.limits.sequences as usize {
            return misuse("it wants more logits than there are slots");
        }
        Ok(())
    }
}

impl Engine for Llama {
    fn vocabulary(&self) -> &dyn Vocabulary {
        self.model.as_ref()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn decode(&mut self, rows: &[Row], abort: Abort<'_>) -> Result<(), EngineError> {
        self.with_logits.clear();
        self.check(rows)?;
        let batch = &mut self.batch.0;
        batch.n_tokens = rows.len() as i32;
        for (at, row) in rows.iter().enumerate() {
            // SAFETY: the arrays have n_batch entries, and check() bounded the rows by that.
            unsafe {
                *batch.token.add(at) = row.token;
                *batch.pos.add(at) = row.position as i32;
                *batch.n_seq_id.add(at) = 1;
                **batch.seq_id.add(at) = row.sequence as i32;
                *batch.logits.add(at) = i8::from(row.logits);
            }
        }
        // SAFETY: only the lifetime changes; the cell is emptied again below, before `abort` can end.
        let lasting = unsafe { std::mem::transmute::<Abort<'_>, Abort<'static>>(abort) };
        *self.abort.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(lasting);
        // SAFETY: the batch has been checked against everything llama.cpp would abort for. It does not unwind.
        let status = unsafe { sys::llama_decode(self.context.0.as_ptr(), *batch) };
        *self.abort.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        match status {
            0 => {
                self.with_logits.extend(rows.iter().map(|row| row.logits));
                Ok(())
            }
            1 => Err(EngineError::Full),
            2 => Err(EngineError::Aborted),
            other => Err(EngineError::Decode(other)),
        }
    }

    fn logits(&mut self, row: usize) -> Result<&mut [f32], EngineError> {
        if !self.with_logits.get(row).is_some_and(|has| *has) {
            return Err(EngineError::Misuse("a row without logits was asked for them"));
        }
        // SAFETY: the row has logits. They are `size` floats in a buffer of the context that stays until the next decode,
        // which needs `&mut self`, as this borrow does.
        unsafe {
            let logits = sys::llama_get_logits_ith(self.context.0.as_ptr(), row as i32);
            match logits.is_null() {
                true => Err(EngineError::Misuse("the engine has no logits for a row")),
                false => Ok(std::slice::from_raw_parts_mut(logits, self.model.size)),
            }
        }
    }

    fn forget(&mut self, sequence: u32, from: u32) -> Result<(), EngineError> {
        if sequence >= self.limits.sequences {
            return Err(EngineError::Misuse("a sequence does not exist"));
        }
        let from =
            i32::try_from(from).map_err(|_| EngineError::Misuse("a position is beyond the context"))?;
        // SAFETY: the sequence exists; -1 means to its end.
        let whole = unsafe {
            let memory = sys::llama_get_memory(self.context.0.as_ptr());
            sys::llama_memory_seq_rm(memory, sequence as i32, from, -1)
        };
        if whole { Ok(()) } else { Err(EngineError::Misuse("this model can't forget a part of a sequence")) }
    }
}

unsafe extern "C" {
    fn rbee_chat_silence();
    fn rbee_chat_open(
        model: *const sys::llama_model,
        source: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut c_void;
    fn rbee_chat_close(template: *mut c_void);
    fn rbee_chat_render(
        template: *const c_void,
        request: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut c_char;
    fn rbee_chat_source(template: *const c_void) -> *mut c_char;
    fn rbee_chat_free(text: *mut c_char);
}

/// A chat template compiled by llama.cpp's `common` (chat_shim.cpp).
#[derive(Debug)]
pub struct Template {
    raw: NonNull<c_void>,
    /// Its special tokens were read from this.
    _model: Arc<Model>,
}

// SAFETY: a compiled template is only read by rendering, and each call has its own state; the owner still locks it (chat.rs).
unsafe impl Send for Template {}

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: made by rbee_chat_open, ours alone.
        unsafe { rbee_chat_close(self.raw.as_ptr()) }
    }
}

impl Template {
    /// Compiles `source`, or the model's own template, or ChatML if it has none.
    pub fn open(model: Arc<Model>, source: Option<&str>) -> Result<Self, EngineError> {
        let source = CString::new(source.unwrap_or_default())
            .map_err(|_| EngineError::Template("it holds a zero byte".into()))?;
        let mut error = std::ptr::null_mut();
        // SAFETY: the strings are terminated; the model lives. The shim catches every exception.
        let raw = unsafe { rbee_chat_open(model.raw.as_ptr(), source.as_ptr(), &raw mut error) };
        match NonNull::new(raw) {
            Some(raw) => Ok(Template { raw, _model: model }),
            None => Err(EngineError::Template(taken(error).unwrap_or_default())),
        }
    }

    /// Renders a request as JSON into an answer as JSON; chat.rs knows both.
    pub fn render(&self, request: &str) -> Result<String, EngineError> {
        let request =
            CString::new(request).map_err(|_| EngineError::Template("a message holds a zero byte".into()))?;
        let mut error = std::ptr::null_mut();
        // SAFETY: the template lives, the request is terminated, the shim catches every exception.
        let answer = unsafe { rbee_chat_render(self.raw.as_ptr(), request.as_ptr(), &raw mut error) };
        taken(answer).ok_or_else(|| EngineError::Template(taken(error).unwrap_or_default()))
    }

    pub fn source(&self) -> String {
        // SAFETY: the template lives.
        taken(unsafe { rbee_chat_source(self.raw.as_ptr()) }).unwrap_or_default()
    }
}

/// Copies a string of the shim's and frees it.
fn taken(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the shim returns terminated strings of its own making, freed once, here.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        rbee_chat_free(text);
        Some(copy)
    }
}
