//! Every command that works today. A long file on purpose: it is the table.

use super::flags::*;
use super::{Action, Command, Group, Positional, Role};

const fn required(name: &'static str, help: &'static str) -> Positional {
    Positional { name, help, required: true, many: false }
}

const fn optional(name: &'static str, help: &'static str) -> Positional {
    Positional { name, help, required: false, many: false }
}

/// What most commands are; entries say only what differs.
const COMMAND: Command = Command {
    action: Action::Help,
    path: &[],
    aliases: &[],
    role: Role::Keeper,
    group: Group::Rest,
    summary: "",
    details: "",
    positionals: &[],
    flags: &[],
    sections: &[],
    hidden: false,
};

const SERVED_MODEL: &[Positional] = &[required("MODEL", "which model")];
const MODEL_REF: &[Positional] = &[required("REF", "which model")];
const WORKER_ID: &[Positional] = &[required("ID", "which one: a recipe's id, or cpu, cuda, metal")];
const PROCESS: &[Positional] = &[required("PID", "the process, by its number")];
const JOB_ID: &[Positional] = &[required("ID", "the job's id")];

pub static COMMANDS: &[Command] = &[
    Command {
        action: Action::Run,
        path: &["run"],
        aliases: &[&["infer"]],
        group: Group::Ask,
        summary: "one answer, streamed to stdout",
        details: "Starts what is missing: with nothing running, a queen and a hive in the background (`rbee serve`), \
                  and a worker for the model. They stay for the next call, unless --ephemeral is given.",
        positionals: &[Positional {
            name: "PROMPT",
            help: "the words of the prompt",
            required: false,
            many: true,
        }],
        flags: RUN_FLAGS,
        sections: &["run"],
        ..COMMAND
    },
    Command {
        action: Action::Chat,
        path: &["chat"],
        group: Group::Ask,
        summary: "the same as a conversation, with history and line editing",
        details: "Ctrl-C stops an answer and not the program, Ctrl-D ends; /help lists what else there is. Starts what is \
                  missing, as `run` does. Off a terminal each line of stdin is a turn; with --json each answer is a line. \
                  What was typed is kept in chat_history in the state directory.",
        flags: &[
            &MODEL,
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
        ],
        sections: &["run"],
        ..COMMAND
    },
    Command {
        action: Action::Status,
        path: &["status"],
        group: Group::Ask,
        summary: "queen, hives, workers, models and running jobs on one screen",
        details: "Exits 1 if the queen is down.",
        ..COMMAND
    },
    Command {
        action: Action::Why,
        path: &["why"],
        group: Group::Ask,
        summary: "where a request for a model would run, and each node's verdict",
        details: "Exits 1 if it would be refused.",
        positionals: SERVED_MODEL,
        flags: &[&DEVICE],
        ..COMMAND
    },
    Command {
        action: Action::HiveList,
        path: &["hive", "list"],
        aliases: &[&["hive", "ls"]],
        group: Group::Fleet,
        summary: "the machines of the fleet",
        ..COMMAND
    },
    Command {
        action: Action::HiveGet,
        path: &["hive", "get"],
        aliases: &[&["hive", "show"]],
        group: Group::Fleet,
        summary: "one machine: devices, workers, models",
        positionals: &[required("NAME", "the hive's name")],
        ..COMMAND
    },
    Command {
        action: Action::HiveInstall,
        path: &["hive", "install"],
        group: Group::Fleet,
        summary: "set up a hive on another machine, over ssh",
        details: "With the system's ssh and its configuration. Copies this program (or builds it there, where the machine is of \
                  another kind), installs it as `rbee install` does, lets the node join by a one-time token and waits until \
                  the queen sees it. `[hives.NAME]` in the configuration may say host, user, port, identity and binary (its path \
                  over there) of a NAME.",
        positionals: &[required("USER@HOST", "which machine: as for ssh, or a NAME of the configuration")],
        flags: &[&NAME, &SYSTEM_WIDE, &INSTALL_LISTEN, &SSH_PORT, &IDENTITY, &BINARY, &DIAL],
        ..COMMAND
    },
    Command {
        action: Action::HiveUpdate,
        path: &["hive", "update"],
        group: Group::Fleet,
        summary: "bring this program to a hive that was installed from here",
        details: "The hive hands its workers over to the next one: models stay loaded.",
        positionals: &[required("NAME", "the hive's name")],
        flags: &[&BINARY],
        ..COMMAND
    },
    Command {
        action: Action::HiveUninstall,
        path: &["hive", "uninstall"],
        group: Group::Fleet,
        summary: "stop such a hive, remove it from its machine, and forget it",
        positionals: &[required("NAME", "the hive's name")],
        flags: &[&KEEP_STATE, &FORGET],
        ..COMMAND
    },
    Command {
        action: Action::HiveDrain,
        path: &["hive", "drain"],
        group: Group::Fleet,
        summary: "take a machine out of service when what runs there is done",
        details: "It takes no new requests, and its workers stop as soon as they have nothing to do. Ends when nothing runs \
                  there any more; Ctrl-C puts it back to work. It stays drained until --undo, or until \
                  its hive is started again. Pinned workers stop, too, and are not started again by --undo.",
        positionals: &[required("NAME", "the hive's name")],
        flags: &[&UNDO],
        ..COMMAND
    },
    Command {
        action: Action::WorkersList,
        path: &["workers", "list"],
        aliases: &[&["workers", "ls"], &["ps"]],
        group: Group::Fleet,
        summary: "running workers and the models they hold",
        ..COMMAND
    },
    Command {
        action: Action::WorkersGet,
        path: &["workers", "get"],
        aliases: &[&["workers", "show"]],
        group: Group::Fleet,
        summary: "one running worker",
        positionals: &[required("ID", "the worker's id")],
        ..COMMAND
    },
    Command {
        action: Action::WorkersHealth,
        path: &["workers", "health"],
        group: Group::Fleet,
        summary: "does each running worker answer; exits 1 if not",
        ..COMMAND
    },
    Command {
        action: Action::WorkersRetire,
        path: &["workers", "retire"],
        group: Group::Fleet,
        summary: "no new requests for a worker; it stops when those at work are done",
        details: "Ctrl-C puts it back to work.",
        positionals: &[required("ID", "the worker's id")],
        ..COMMAND
    },
    Command {
        action: Action::WorkersShutdown,
        path: &["workers", "shutdown"],
        group: Group::Fleet,
        summary: "stop a worker at once, whatever it is at",
        flags: &[&WORKER_TO_END],
        ..COMMAND
    },
    Command {
        action: Action::Stop,
        path: &["stop"],
        group: Group::Fleet,
        summary: "unload a model: retire all workers that hold it",
        positionals: &[required("MODEL", "which model")],
        ..COMMAND
    },
    Command {
        action: Action::WorkersLogs,
        path: &["workers", "logs"],
        group: Group::Fleet,
        summary: "what a worker says, or said before it ended",
        positionals: &[required("ID", "the worker's id")],
        flags: &[&FOLLOW, &TAIL],
        ..COMMAND
    },
    Command {
        action: Action::Logs,
        path: &["logs"],
        group: Group::Fleet,
        summary: "what queen, hives and workers say, each line with its machine",
        details: "With --hive NAME of one machine, with --worker ID of one worker. The files are under logs/ in the state \
                  directory: a daemon's is turned over at 8 MiB and four older ones are kept; a worker's keeps its first 16 MiB \
                  and its last, and stays for 14 days, or until 64 others have ended after it.",
        flags: &[&LOGS_WORKER, &FOLLOW, &TAIL],
        ..COMMAND
    },
    Command {
        action: Action::WorkerSpawn,
        path: &["worker", "spawn"],
        group: Group::Fleet,
        summary: "start a worker for a model, before anybody asks",
        flags: &[&SPAWN_MODEL, &SPAWN_WORKER, &DEVICE, &SLOTS, &CTX, &PIN],
        sections: &["spawn"],
        ..COMMAND
    },
    Command {
        action: Action::WorkerAvailable,
        path: &["worker", "available"],
        aliases: &[&["worker", "catalog"]],
        group: Group::Engines,
        summary: "the workers that can be built and installed",
        details: "From the hive's catalog (its --catalog), or from the recipes that are built in.",
        ..COMMAND
    },
    Command {
        action: Action::WorkerInstalled,
        path: &["worker", "list"],
        aliases: &[&["worker", "ls"], &["worker", "binary", "list"]],
        group: Group::Engines,
        summary: "the workers that a hive has installed",
        ..COMMAND
    },
    Command {
        action: Action::WorkerGet,
        path: &["worker", "get"],
        aliases: &[&["worker", "show"], &["worker", "binary", "get"]],
        group: Group::Engines,
        summary: "one worker: as it is installed, else as the catalog has it",
        positionals: WORKER_ID,
        ..COMMAND
    },
    Command {
        action: Action::WorkerDownload,
        path: &["worker", "download"],
        aliases: &[&["worker", "install"]],
        group: Group::Engines,
        summary: "fetch a worker's recipe and sources, build it, install it",
        details: "What the build needs is looked for first. Ctrl-C stops it and leaves nothing behind; a version that was \
                  installed stays until the new one is in its place.",
        positionals: WORKER_ID,
        ..COMMAND
    },
    Command {
        action: Action::WorkerRemove,
        path: &["worker", "remove"],
        aliases: &[&["worker", "rm"], &["worker", "binary", "delete"]],
        group: Group::Engines,
        summary: "remove an installed worker from the hive's disk",
        positionals: WORKER_ID,
        ..COMMAND
    },
    Command {
        action: Action::WorkerProcessList,
        path: &["worker", "process", "list"],
        aliases: &[&["worker", "process", "ls"]],
        group: Group::Engines,
        summary: "the processes that a hive has started",
        ..COMMAND
    },
    Command {
        action: Action::WorkerProcessGet,
        path: &["worker", "process", "get"],
        aliases: &[&["worker", "process", "show"]],
        group: Group::Engines,
        summary: "one process of a hive: command, memory, processor time",
        positionals: PROCESS,
        ..COMMAND
    },
    Command {
        action: Action::WorkerProcessDelete,
        path: &["worker", "process", "delete"],
        group: Group::Engines,
        summary: "end a process that the hive has started, and no other",
        positionals: PROCESS,
        ..COMMAND
    },
    Command {
        action: Action::ModelDownload,
        path: &["model", "download"],
        aliases: &[&["model", "pull"], &["model", "dl"], &["pull"]],
        group: Group::Models,
        summary: "fetch a model and check it",
        positionals: MODEL_REF,
        ..COMMAND
    },
    Command {
        action: Action::ModelList,
        path: &["model", "list"],
        aliases: &[&["model", "ls"], &["list"]],
        group: Group::Models,
        summary: "the models a hive has",
        ..COMMAND
    },
    Command {
        action: Action::ModelGet,
        path: &["model", "get"],
        aliases: &[&["model", "show"], &["show"]],
        group: Group::Models,
        summary: "one model: architecture, size, context length, sha256, path",
        positionals: MODEL_REF,
        ..COMMAND
    },
    Command {
        action: Action::ModelRemove,
        path: &["model", "remove"],
        aliases: &[&["model", "rm"], &["rm"]],
        group: Group::Models,
        summary: "remove a model from a hive's disk",
        details: "Refuses while a worker uses it. Bytes that another model, or another tool's snapshot in the hub's cache, \
                  needs as well stay; so does a file of one's own, which is only forgotten.",
        positionals: MODEL_REF,
        ..COMMAND
    },
    Command {
        action: Action::ModelVerify,
        path: &["model", "verify"],
        group: Group::Models,
        summary: "read a model's bytes, or those of all, and check their sums",
        details: "Exits 1 if any differ. A file of one's own that has no sum gets one, which the next time is checked.",
        positionals: &[optional("REF", "which model; all without")],
        ..COMMAND
    },
    Command {
        action: Action::ModelPrune,
        path: &["model", "prune"],
        group: Group::Models,
        summary: "show what was left behind, and remove it",
        details: "Downloads that nobody is at, records whose files are gone, unpacked packages that no model needs. Other \
                  tools' files in the hub's cache are not touched. Off a terminal nothing is removed without --yes.",
        flags: &[&YES],
        ..COMMAND
    },
    Command {
        action: Action::ModelAlias,
        path: &["model", "alias"],
        group: Group::Models,
        summary: "give a model another name; without arguments, list them",
        details: "An alias can be used wherever a model is named, in API requests, too. It may stand for a model that is \
                  fetched later. It belongs to the hive it was given to.",
        positionals: &[optional("NAME", "the alias"), optional("REF", "what it stands for")],
        flags: &[&REMOVE_ALIAS],
        ..COMMAND
    },
    Command {
        action: Action::ModelUnalias,
        path: &["model", "unalias"],
        group: Group::Models,
        summary: "take an alias away; the model stays",
        positionals: &[required("NAME", "the alias")],
        ..COMMAND
    },
    Command {
        action: Action::JobList,
        path: &["job", "list"],
        aliases: &[&["job", "ls"]],
        group: Group::Jobs,
        summary: "jobs that run or ran",
        ..COMMAND
    },
    Command {
        action: Action::JobGet,
        path: &["job", "get"],
        aliases: &[&["job", "show"]],
        group: Group::Jobs,
        summary: "one job's state, result or receipt",
        positionals: JOB_ID,
        ..COMMAND
    },
    Command {
        action: Action::JobFollow,
        path: &["job", "follow"],
        group: Group::Jobs,
        summary: "watch a job from its first event on",
        positionals: JOB_ID,
        ..COMMAND
    },
    Command {
        action: Action::JobCancel,
        path: &["job", "cancel"],
        group: Group::Jobs,
        summary: "stop a job and show what was stopped",
        positionals: JOB_ID,
        ..COMMAND
    },
    Command {
        action: Action::KeyCreate,
        path: &["key", "create"],
        group: Group::Keys,
        summary: "make a key for this machine's daemons; prints it, this once",
        details: "Daemons that run accept it at once. As soon as there is a key, every request over TCP needs one; commands of \
                  this user on this machine find theirs by themselves. Only a digest is kept.",
        flags: &[&KEY_NAME],
        ..COMMAND
    },
    Command {
        action: Action::KeyList,
        path: &["key", "list"],
        aliases: &[&["key", "ls"]],
        group: Group::Keys,
        summary: "the keys, and the hives that have joined",
        ..COMMAND
    },
    Command {
        action: Action::KeyRevoke,
        path: &["key", "revoke"],
        aliases: &[&["key", "rm"]],
        group: Group::Keys,
        summary: "take a key back; what it has opened closes within a second",
        details: "Requests that are being answered are; a hive's link is cut.",
        positionals: &[required("NAME", "which key")],
        ..COMMAND
    },
    Command {
        action: Action::Token,
        path: &["token"],
        group: Group::Keys,
        summary: "make a token that lets one hive join the fleet, once",
        details: "Of this machine's queen, or of the one that --queen names. On the node: `rbee hive serve --queen URL --join \
                  TOKEN`. The node gets a key of its own for it, named after the hive, which `rbee key revoke` takes back.",
        flags: &[&TOKEN_TTL],
        ..COMMAND
    },
    Command {
        action: Action::Serve,
        path: &["serve"],
        role: Role::Serve,
        group: Group::Daemons,
        summary: "queen and hive in one process; what `run` starts by itself",
        details: "A bind beyond loopback needs a key: `rbee key create` makes one.",
        flags: SERVE_FLAGS,
        sections: &["queen", "hive"],
        ..COMMAND
    },
    Command {
        action: Action::QueenServe,
        path: &["queen", "serve"],
        role: Role::Queen,
        group: Group::Daemons,
        summary: "the fleet's one address; needs no GPU",
        details: "A bind beyond loopback needs a key: `rbee key create` makes one.",
        flags: QUEEN_FLAGS,
        sections: &["queen"],
        ..COMMAND
    },
    Command {
        action: Action::QueenStart,
        path: &["queen", "start"],
        group: Group::Daemons,
        summary: "start the queen in the background, unless she runs",
        details: "With the flags of `queen serve`. Done when she is ready. What she says goes to a log in the state directory.",
        flags: QUEEN_FLAGS,
        sections: &["queen"],
        ..COMMAND
    },
    Command {
        action: Action::QueenStatus,
        path: &["queen", "status"],
        group: Group::Daemons,
        summary: "is the queen up; exits 1 if not",
        ..COMMAND
    },
    Command {
        action: Action::QueenStop,
        path: &["queen", "stop"],
        group: Group::Daemons,
        summary: "stop the queen of this machine",
        ..COMMAND
    },
    Command {
        action: Action::HiveServe,
        path: &["hive", "serve"],
        role: Role::Hive,
        group: Group::Daemons,
        summary: "this machine's devices, models and workers, for one or more queens",
        details: "The hive dials the queen, so this machine needs no open port. With --join it gets a key of its own \
                  for that queen, and needs no token afterwards. A bind beyond loopback needs a key: `rbee key create` makes one.",
        flags: HIVE_FLAGS,
        sections: &["hive"],
        ..COMMAND
    },
    Command {
        action: Action::HiveStart,
        path: &["hive", "start"],
        group: Group::Daemons,
        summary: "start this machine's hive in the background, unless it runs",
        details: "With the flags of `hive serve`. Done when it is ready. What it says goes to a log in the state directory.",
        flags: HIVE_FLAGS,
        sections: &["hive"],
        ..COMMAND
    },
    Command {
        action: Action::HiveStatus,
        path: &["hive", "status"],
        group: Group::Daemons,
        summary: "is the hive up; exits 1 if not",
        ..COMMAND
    },
    Command {
        action: Action::HiveStop,
        path: &["hive", "stop"],
        group: Group::Daemons,
        summary: "stop the hive of this machine and its workers",
        ..COMMAND
    },
    Command {
        action: Action::WorkerServe,
        path: &["worker", "serve"],
        role: Role::Worker,
        group: Group::Daemons,
        summary: "one model behind an OpenAI-compatible address, without queen or hive",
        details: "The flags have llama-server's names. The hive starts its workers with this command, too.",
        flags: WORKER_FLAGS,
        sections: &["worker"],
        ..COMMAND
    },
    Command {
        action: Action::CatalogServe,
        path: &["catalog", "serve"],
        role: Role::Catalog,
        group: Group::Daemons,
        summary: "recipes of workers for other machines, and the source of this rbee",
        details: "Serves the recipes that are built in and those in --dir, which come first. A bind beyond loopback needs \
                  a key (`rbee key create`, --api-key-file); hives show it with --catalog-key-file.",
        flags: &[&LISTEN_CATALOG, &RECIPES_DIR, &LOG_FORMAT, &DETACH, &NOTIFY_FD, &LEASE_FD],
        sections: &["catalog"],
        ..COMMAND
    },
    Command {
        action: Action::Install,
        path: &["install"],
        group: Group::Daemons,
        summary: "put program, symlinks, configuration and unit in place, and start",
        details: "For this user in ~/.local and ~/.config; as root for the system, in /usr/local, /etc/rbee and /var/lib/rbee. The \
                  unit is systemd's or launchd's; where neither runs, the daemon is started without one. Overwrites nothing \
                  that is not rbee's. A second install replaces the program and keeps the rest; a hive's workers stay.",
        flags: &[
            &SYSTEM_WIDE,
            &ROLE,
            &INSTALL_QUEEN,
            &INSTALL_LISTEN,
            &NAME,
            &JOIN,
            &BIN_DIR,
            &NO_START,
            &LEASH,
        ],
        ..COMMAND
    },
    Command {
        action: Action::Uninstall,
        path: &["uninstall"],
        group: Group::Daemons,
        summary: "stop and take away what `install` has put in place",
        details: "What a person has changed since stays, and is told; so does state that is older than the install. Models in the \
                  hub's cache, which other tools share, stay in any case.",
        flags: &[&SYSTEM_WIDE, &KEEP_STATE],
        ..COMMAND
    },
    Command {
        action: Action::Links,
        path: &["links"],
        summary: "make symlinks that choose a role by their name, such as rbee-hive",
        details: "Overwrites nothing but links that already lead to an rbee; --remove takes away only those that lead \
                  to this one.",
        positionals: &[required("DIR", "where to put them")],
        flags: &[&REMOVE],
        ..COMMAND
    },
    Command {
        action: Action::Completions,
        path: &["completions"],
        summary: "completions for a shell, on stdout",
        details: "bash: add `source <(rbee completions bash)` to ~/.bashrc. zsh: `rbee completions zsh > \"${fpath[1]}/_rbee\"`. \
                  fish: `rbee completions fish > ~/.config/fish/completions/rbee.fish`.",
        positionals: &[required("SHELL", "bash, zsh or fish")],
        ..COMMAND
    },
    Command {
        action: Action::Man,
        path: &["man"],
        summary: "the manual page, on stdout: `rbee man | man -l -`",
        details: "To keep it: `rbee man > ~/.local/share/man/man1/rbee.1`.",
        ..COMMAND
    },
    Command {
        action: Action::Version,
        path: &["version"],
        summary: "version, protocol and kernels of this file",
        ..COMMAND
    },
    Command {
        action: Action::Help,
        path: &["help"],
        summary: "all about a command",
        positionals: &[Positional { name: "COMMAND", help: "its words", required: false, many: true }],
        ..COMMAND
    },
    Command {
        action: Action::Shim,
        path: &["shim"],
        role: Role::Shim,
        summary: "parent of one process tree; started by the hive",
        positionals: &[required("PATH", "the tree's record")],
        hidden: true,
        ..COMMAND
    },
    Command {
        action: Action::Unpack,
        path: &["unpack"],
        role: Role::Unpack,
        summary: "unpack a build's sources; started by the hive",
        positionals: &[required("PATH", "what to unpack, and where")],
        hidden: true,
        ..COMMAND
    },
];
