//! Every flag, once. Two flags of one name in different commands share the variable and differ in what they mean there.

use super::Flag;
use super::Kind::{Address, Choice, Duration, Endpoint, Float, Number, Path, Switch, Text, Url};

const COUNT: super::Kind = Number { min: 1, max: 1_000_000 };
const THREADS: super::Kind = Number { min: 1, max: 1024 };
const FD: super::Kind = Number { min: 0, max: 65_535 };
const CACHE_TYPES: super::Kind =
    Choice(&["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]);

/// Flags that every command takes, in any place.
pub static GLOBAL: &[&Flag] =
    &[&QUEEN, &HIVE, &JSON, &QUIET, &VERBOSE, &NO_COLOR, &TIMEOUT, &API_KEY, &API_KEY_FILE, &STATE_DIR];

static QUEEN: Flag =
    Flag::new("queen", Url, "URL", "the queen to ask").key_is("queen_url").default("http://127.0.0.1:7833");
static HIVE: Flag =
    Flag::new("hive", Text, "NAME|URL", "the hive to use: its name, or its address to ask it directly")
        .key_is("hive_name")
        .aliases(&["node"]);
static JSON: Flag =
    Flag::new("json", Switch, "", "print one JSON value, or JSON lines for a stream, on stdout");
static QUIET: Flag = Flag::new("quiet", Switch, "", "no narration on stderr, errors only").short('q');
static VERBOSE: Flag = Flag::new("verbose", Switch, "", "more narration on stderr").short('v');
static NO_COLOR: Flag =
    Flag::new("no-color", Switch, "", "no colours on a terminal either").also_env("NO_COLOR");
static TIMEOUT: Flag = Flag::new("timeout", Duration, "DURATION", "give up after this long").says("no limit");
static API_KEY: Flag =
    Flag::new("api-key", Text, "KEY", "the key a daemon asks of its clients, and the one this command shows");
static API_KEY_FILE: Flag =
    Flag::new("api-key-file", Path, "FILE", "a file that holds the key, so that `ps` does not show it");
static STATE_DIR: Flag = Flag::new("state-dir", Path, "DIR", "keep state, sockets and logs under DIR")
    .says("~/.cache/rbee, as root /var/lib/rbee");

// Asking.
pub static MODEL: Flag = Flag::new(
    "model",
    Text,
    "MODEL",
    "the model: a name, org/repo[:QUANT], https://… or the path of a GGUF file",
)
.short('m')
.says("a small one that is fetched at first use");
pub static PROMPT: Flag =
    Flag::new("prompt", Text, "TEXT", "the prompt; otherwise the words given, otherwise stdin").short('p');
pub static MAX_TOKENS: Flag = Flag::new("max-tokens", COUNT, "N", "stop after this many tokens");
pub static TEMPERATURE: Flag =
    Flag::new("temperature", Float { min: 0.0, max: 5.0 }, "T", "0 always takes the likeliest token");
pub static TOP_P: Flag =
    Flag::new("top-p", Float { min: 0.0, max: 1.0 }, "P", "sample from the likeliest tokens that make up P");
pub static TOP_K: Flag =
    Flag::new("top-k", Number { min: 0, max: 1_000_000 }, "K", "sample from the K likeliest; 0: all");
pub static MIN_P: Flag = Flag::new(
    "min-p",
    Float { min: 0.0, max: 1.0 },
    "P",
    "drop tokens less likely than P times the likeliest",
);
pub static SEED: Flag =
    Flag::new("seed", Number { min: 0, max: i64::MAX }, "S", "the same seed gives the same answer")
        .says("random");
pub static STOP: Flag = Flag::new("stop", Text, "TEXT", "stop before this text").many();
pub static SYSTEM: Flag = Flag::new("system", Text, "TEXT", "the system message");
pub static ON_WORKER: Flag = Flag::new("worker", Text, "ID", "this worker and no other");
pub static DEVICE: Flag =
    Flag::new("device", Text, "DEVICE", "where to compute: cpu, or a device's id or number");
pub static EPHEMERAL: Flag =
    Flag::new("ephemeral", Switch, "", "leave nothing running: what this call starts ends with it");

// Daemons.
pub static LISTEN_QUEEN: Flag =
    Flag::new("listen", Address, "HOST:PORT", "where to listen").many().default("127.0.0.1:7833");
pub static LISTEN_HIVE: Flag =
    Flag::new("listen", Address, "HOST:PORT", "where to listen").many().default("127.0.0.1:7835");
pub static NAME: Flag =
    Flag::new("name", Text, "NAME", "what this machine is called in the fleet").says("its host name");
pub static LOG_FORMAT: Flag =
    Flag::new("log-format", Choice(&["text", "json"]), "FORMAT", "how log lines look: text or json")
        .default("text");
pub static QUEENS: Flag =
    Flag::new("queen", Url, "URL", "a queen to dial").many().default("http://127.0.0.1:7833");
pub static MORE_QUEENS: Flag =
    Flag::new("queen", Url, "URL", "a further queen to dial, besides the one in this process").many();
pub static JOIN: Flag = Flag::new(
    "join",
    Text,
    "TOKEN",
    "join the fleet of the first --queen with a token from her `rbee token`; `-` reads it from stdin",
);
pub static ORPHAN_TTL: Flag =
    Flag::new("orphan-ttl", Duration, "DURATION", "how long workers outlive a hive that died").default("60s");
pub static CONTAINMENT: Flag = Flag::new(
    "containment",
    Choice(&["cgroup", "pid-namespace", "pinned-group", "group"]),
    "RUNG",
    "the strongest means to hold builds and workers together",
)
.says("the best that this machine has");
pub static MODELS_DIR: Flag =
    Flag::new("models-dir", Path, "DIR", "where model records lie").says("models/ in the state directory");
pub static MEMORY: Flag = Flag::new(
    "memory",
    Number { min: 1, max: 1 << 40 },
    "MIB",
    "the most of this machine's memory that workers may take",
)
.says("what is free");
pub static CATALOG: Flag =
    Flag::new("catalog", Url, "URL", "the catalog of recipes to ask").says("the recipes that are built in");
pub static CATALOG_KEY_FILE: Flag =
    Flag::new("catalog-key-file", Path, "FILE", "a file that holds the key which that catalog asks for");
pub static TRUST: Flag = Flag::new(
    "trust",
    Url,
    "URL",
    "a server of a private network, or without encryption, that models may come from",
)
.many();
pub static LISTEN_CATALOG: Flag =
    Flag::new("listen", Address, "HOST:PORT", "where to listen").many().default("127.0.0.1:8787");
pub static RECIPES_DIR: Flag =
    Flag::new("dir", Path, "DIR", "a folder of recipes of one's own: DIR/<id>/{PKGBUILD,worker.toml}");
pub static QUEUE: Flag =
    Flag::new("queue", Number { min: 0, max: 1_000_000 }, "N", "how many requests may wait for a slot")
        .default("512");
pub static QUEUE_WAIT: Flag = Flag::new(
    "queue-wait",
    Duration,
    "DURATION",
    "how long one may wait, the loading of a model not counted",
)
.default("60s");
pub static IDLE_TTL: Flag =
    Flag::new("idle-ttl", Duration, "DURATION", "stop a worker that was idle this long, unless it is pinned")
        .default("5m");
pub static RESTART_PAUSE: Flag =
    Flag::new("restart-pause", Duration, "DURATION", "before a pinned worker's first restart").hidden();
pub static LOADING_SILENCE: Flag =
    Flag::new("loading-silence", Duration, "DURATION", "how long a load may show no progress").hidden();
pub static WORKER_SILENCE: Flag =
    Flag::new("worker-silence", Duration, "DURATION", "how long a worker at work may not say that it lives")
        .hidden();
pub static DOWNLOAD_SILENCE: Flag =
    Flag::new("download-silence", Duration, "DURATION", "how long a download may bring no byte").hidden();
pub static DRAIN_MAX: Flag =
    Flag::new("drain-max", Duration, "DURATION", "how long what runs may take to finish at the end").hidden();
pub static DETACH: Flag = Flag::new("detach", Switch, "", "leave the terminal's session").hidden();
pub static NOTIFY_FD: Flag = Flag::new("notify-fd", FD, "N", "say here when ready").hidden();
pub static LEASE_FD: Flag = Flag::new("lease-fd", FD, "N", "end when this closes").hidden();

// The fleet.
pub static FOLLOW: Flag = Flag::new("follow", Switch, "", "go on with the lines to come").short('f');
pub static TAIL: Flag =
    Flag::new("tail", Number { min: 0, max: 1_000 }, "N", "how many of each log's last lines").default("100");
pub static LOGS_WORKER: Flag = Flag::new("worker", Text, "ID", "the lines of this worker alone");
pub static UNDO: Flag = Flag::new("undo", Switch, "", "put it back to work");
pub static WORKER_TO_END: Flag = Flag::new("id", Text, "ID", "the worker's id").required();

// Spawning a worker.
pub static SPAWN_MODEL: Flag = Flag::new(
    "model",
    Text,
    "MODEL",
    "the model: a name, org/repo[:QUANT], https://… or the path of a GGUF file",
)
.short('m')
.required();
pub static SPAWN_WORKER: Flag =
    Flag::new("worker", Text, "ID", "which engine: cpu, cuda, metal, built-in or an installed worker's id")
        .says("the best there is");
pub static SLOTS: Flag = Flag::new("slots", Number { min: 1, max: 256 }, "N", "how many requests at once")
    .says("4, fewer where memory is short");
pub static CTX: Flag = Flag::new("ctx", COUNT, "N", "context length of a slot, in tokens")
    .aliases(&["ctx-size"])
    .says("4096, less where memory is short");
pub static PIN: Flag = Flag::new("pin", Switch, "", "keep it when idle, restart it when it crashes");

// The worker itself, in llama-server's words.
pub static MODEL_FILE: Flag = Flag::new("model", Path, "FILE", "the GGUF file").short('m').required();
pub static LISTEN_WORKER: Flag =
    Flag::new("listen", Endpoint, "ENDPOINT", "where to listen: unix:PATH, fd:N or HOST:PORT").many();
pub static HOST: Flag = Flag::new("host", Text, "HOST", "address to listen on").default("127.0.0.1");
pub static PORT: Flag =
    Flag::new("port", Number { min: 0, max: 65_535 }, "PORT", "port to listen on").default("8080");
pub static ALIAS: Flag =
    Flag::new("alias", Text, "NAME", "what clients call the model").says("the file's name");
pub static CTX_SIZE: Flag = Flag::new("ctx-size", COUNT, "N", "context length in tokens, all slots together")
    .short('c')
    .aliases(&["ctx"])
    .says("4096 a slot");
pub static PARALLEL: Flag =
    Flag::new("parallel", Number { min: 1, max: 256 }, "N", "slots: requests at once")
        .aliases(&["slots"])
        .default("4");
pub static THREADS_N: Flag = Flag::new("threads", THREADS, "N", "threads for one token after another")
    .short('t')
    .says("the machine's cores");
pub static THREADS_BATCH: Flag =
    Flag::new("threads-batch", THREADS, "N", "threads for prompts").says("as --threads");
pub static BATCH_SIZE: Flag =
    Flag::new("batch-size", Number { min: 32, max: 65_536 }, "N", "tokens decoded in one step")
        .short('b')
        .default("2048");
pub static UBATCH_SIZE: Flag =
    Flag::new("ubatch-size", Number { min: 32, max: 65_536 }, "N", "tokens computed at once").default("512");
pub static N_GPU_LAYERS: Flag = Flag::new(
    "n-gpu-layers",
    Number { min: 0, max: 100_000 },
    "N",
    "layers on the GPU; the rest stay on the CPU",
)
.aliases(&["gpu-layers"])
.says("all of them");
pub static CACHE_TYPE_K: Flag =
    Flag::new("cache-type-k", CACHE_TYPES, "TYPE", "number format of the keys in the KV cache")
        .default("f16");
pub static CACHE_TYPE_V: Flag =
    Flag::new("cache-type-v", CACHE_TYPES, "TYPE", "number format of the values in the KV cache")
        .default("f16");
pub static FLASH_ATTN: Flag =
    Flag::new("flash-attn", Choice(&["auto", "on", "off"]), "WHEN", "flash attention: auto, on or off")
        .default("auto");
pub static CHAT_TEMPLATE: Flag =
    Flag::new("chat-template", Text, "TEMPLATE", "a chat template in place of the model's own")
        .says("the model's own");
pub static CHAT_TEMPLATE_FILE: Flag =
    Flag::new("chat-template-file", Path, "FILE", "the same, read from a file");

// Keys.
pub static KEY_NAME: Flag = Flag::new("name", Text, "NAME", "what the key is called").says("key-1, key-2, …");
pub static TOKEN_TTL: Flag =
    Flag::new("ttl", Duration, "DURATION", "how long the token can be used; at most 7d").default("1h");

// Installing.
pub static SYSTEM_WIDE: Flag =
    Flag::new("system", Switch, "", "for the whole machine; needs root").variable_is("RBEE_SYSTEM_WIDE");
pub static LEASH: Flag = Flag::new("leash", Switch, "", "joining ends with what is read on stdin").hidden();
pub static ROLE: Flag = Flag::new(
    "role",
    Choice(&["serve", "queen", "hive"]),
    "ROLE",
    "what runs here: serve (queen and hive), queen or hive",
)
.default("serve");
pub static BIN_DIR: Flag = Flag::new("bin-dir", Path, "DIR", "where the program and the symlinks go")
    .says("~/.local/bin, as root /usr/local/bin");
pub static INSTALL_LISTEN: Flag =
    Flag::new("listen", Address, "HOST:PORT", "where it is to listen, for its configuration").many();
pub static INSTALL_QUEEN: Flag =
    Flag::new("queen", Url, "URL", "a queen for its hive to dial, for its configuration").many();
pub static NO_START: Flag = Flag::new("no-start", Switch, "", "put everything in its place, start nothing");
pub static KEEP_STATE: Flag =
    Flag::new("keep-state", Switch, "", "leave models' records, installed workers, keys and logs");

pub static SSH_PORT: Flag =
    Flag::new("port", Number { min: 1, max: 65_535 }, "PORT", "sshd's port").says("as ssh is configured");
pub static IDENTITY: Flag =
    Flag::new("identity", Path, "FILE", "the key that ssh shows").says("as ssh is configured");
pub static BINARY: Flag = Flag::new("binary", Path, "FILE", "an rbee for that machine")
    .says("this one, or one built there where the machine is of another kind");
pub static DIAL: Flag = Flag::new("dial", Url, "URL", "the queen's address, as that machine reaches her")
    .says("where she listens");
pub static FORGET: Flag =
    Flag::new("forget", Switch, "", "do not ask the machine: it is gone, or cannot be reached any more");

// The rest.
pub static REMOVE: Flag = Flag::new("remove", Switch, "", "take the links away again");
pub static REMOVE_ALIAS: Flag = Flag::new("remove", Switch, "", "take the name away; the model stays");
pub static YES: Flag = Flag::new("yes", Switch, "", "do it without asking").short('y');

// What the commands with many flags take.
pub static RUN_FLAGS: &[&Flag] = &[
    &MODEL,
    &PROMPT,
    &SYSTEM,
    &MAX_TOKENS,
    &TEMPERATURE,
    &TOP_P,
    &TOP_K,
    &MIN_P,
    &SEED,
    &STOP,
    &ON_WORKER,
    &DEVICE,
    &EPHEMERAL,
];
pub static SERVE_FLAGS: &[&Flag] = &[
    &LISTEN_QUEEN,
    &MORE_QUEENS,
    &NAME,
    &QUEUE,
    &QUEUE_WAIT,
    &IDLE_TTL,
    &ORPHAN_TTL,
    &RESTART_PAUSE,
    &LOADING_SILENCE,
    &WORKER_SILENCE,
    &DOWNLOAD_SILENCE,
    &DRAIN_MAX,
    &CONTAINMENT,
    &MODELS_DIR,
    &MEMORY,
    &CATALOG,
    &CATALOG_KEY_FILE,
    &TRUST,
    &LOG_FORMAT,
    &DETACH,
    &NOTIFY_FD,
    &LEASE_FD,
];

/// Of `queen serve`, and of `queen start`, which passes them on.
pub static QUEEN_FLAGS: &[&Flag] = &[
    &LISTEN_QUEEN,
    &NAME,
    &QUEUE,
    &QUEUE_WAIT,
    &IDLE_TTL,
    &DRAIN_MAX,
    &LOG_FORMAT,
    &DETACH,
    &NOTIFY_FD,
    &LEASE_FD,
];

pub static HIVE_FLAGS: &[&Flag] = &[
    &LISTEN_HIVE,
    &QUEENS,
    &NAME,
    &JOIN,
    &IDLE_TTL,
    &ORPHAN_TTL,
    &RESTART_PAUSE,
    &LOADING_SILENCE,
    &WORKER_SILENCE,
    &DOWNLOAD_SILENCE,
    &DRAIN_MAX,
    &CONTAINMENT,
    &MODELS_DIR,
    &MEMORY,
    &CATALOG,
    &CATALOG_KEY_FILE,
    &TRUST,
    &LOG_FORMAT,
    &DETACH,
    &NOTIFY_FD,
    &LEASE_FD,
];
pub static WORKER_FLAGS: &[&Flag] = &[
    &MODEL_FILE,
    &LISTEN_WORKER,
    &HOST,
    &PORT,
    &ALIAS,
    &CTX_SIZE,
    &PARALLEL,
    &THREADS_N,
    &THREADS_BATCH,
    &BATCH_SIZE,
    &UBATCH_SIZE,
    &DEVICE,
    &N_GPU_LAYERS,
    &CACHE_TYPE_K,
    &CACHE_TYPE_V,
    &FLASH_ATTN,
    &CHAT_TEMPLATE,
    &CHAT_TEMPLATE_FILE,
    &LOG_FORMAT,
    &LEASE_FD,
];
