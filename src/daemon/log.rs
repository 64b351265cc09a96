//! What a process says: on stderr, and of a daemon also in a file that turns over, and as lines that can be asked for. The
//! file is written here and not by a descriptor that somebody redirected: only the writer can turn it over without losing
//! a line. What the Rust runtime or a library prints by itself is on stderr alone, which a starter keeps.
//!
//! A key is never handed to a log: requests are logged by path, targets without their keys.

use super::lines::Lines;
use crate::config::Settings;
use crate::process;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// One file of a daemon's log; the older ones are `x.log.1` to `x.log.4`.
pub const FILE_BYTES_MAX: u64 = 8 << 20;
pub const OLD_FILES_MAX: u32 = 4;
/// What is longer is cut and says so.
pub const LINE_BYTES_MAX: usize = 16 << 10;
/// Lines of the life before that a daemon still tells.
const EARLIER_LINES: usize = 500;

/// What carries a log to who follows it, and would log that it does, for ever. Heard only if RBEE_LOG names it, and then
/// in the file and on stderr alone: a line told would be the cause of the next.
const CARRIERS: &[&str] =
    &["h2", "hyper", "hyper_util", "mio", "rustls", "tokio_rustls", "tokio_util", "tower", "want"];

static LOG: LazyLock<Log> = LazyLock::new(|| Log {
    lines: Arc::default(),
    out: Mutex::new(Out { to_stderr: true, is_kept: false, file: None }),
});

struct Log {
    lines: Arc<Lines>,
    out: Mutex<Out>,
}

struct Out {
    to_stderr: bool,
    /// Lines are kept; a worker's are its shim's to keep.
    is_kept: bool,
    file: Option<Turning>,
}

impl Log {
    fn out(&self) -> MutexGuard<'_, Out> {
        // A panic is told by way of this log.
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one event, as it was formatted.
    fn take(&self, event: &[u8], is_told: bool) {
        let mut out = self.out();
        if out.to_stderr {
            // Nobody to tell that stderr is closed.
            let _ = io::stderr().lock().write_all(event);
        }
        if !out.is_kept {
            return;
        }
        for line in event.strip_suffix(b"\n").unwrap_or(event).split(|byte| *byte == b'\n') {
            let line = shown(line);
            if let Some(file) = &mut out.file {
                file.write(&line);
            }
            if is_told {
                self.lines.push(line);
            }
        }
    }
}

fn is_carrier(target: &str) -> bool {
    CARRIERS.contains(&target.split("::").next().unwrap_or(target))
}

/// A line as it is kept: printable, and not too long.
fn shown(line: &[u8]) -> String {
    let (kept, cut) = line.split_at(line.len().min(LINE_BYTES_MAX));
    let mut text = process::printable(kept);
    if !cut.is_empty() {
        text.push_str(&format!(" [+{} bytes]", cut.len()));
    }
    text
}

/// Starts logging; RBEE_LOG filters as RUST_LOG does elsewhere. `is_kept`: the lines can be asked for, see [`lines`].
pub fn begin(settings: &Settings, is_kept: bool) {
    LOG.out().is_kept = is_kept;
    let filter = filter(&std::env::var("RBEE_LOG").unwrap_or_default());
    let log = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(Writers);
    if settings.text("log-format") == Some("json") {
        log.json().finish().with(filter).init();
    } else {
        log.with_ansi(false).finish().with(filter).init();
    }
}

/// `info`, `rbee::queen=debug`, several of them between commas; what does not read is passed over.
fn filter(asked: &str) -> Targets {
    let words = asked.split(',').map(str::trim).filter(|word| !word.is_empty());
    let parts = words.filter_map(|word| word.parse::<Targets>().ok());
    let mut filter = Targets::new().with_default(LevelFilter::INFO);
    for carrier in CARRIERS.iter().filter(|carrier| !asked.contains(*carrier)) {
        filter = filter.with_target(*carrier, LevelFilter::INFO);
    }
    for part in parts {
        if let Some(level) = part.default_level() {
            filter = filter.with_default(level);
        }
        filter = filter.with_targets(part.iter().map(|(target, level)| (target.to_owned(), level)));
    }
    filter
}

/// From now on in a file, too, and detached in that alone: a starter's stderr is no log. Called with the daemon's lock
/// held, so that nobody else writes there.
pub fn keep(path: &Path, detached: bool) {
    let earlier = process::log_tail(path, EARLIER_LINES);
    match Turning::open(path) {
        Ok(mut file) => {
            LOG.lines.all().iter().for_each(|line| file.write(line));
            let mut out = LOG.out();
            out.file = Some(file);
            out.to_stderr = !detached;
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the log cannot be kept in a file");
        }
    }
    LOG.lines.precede(earlier);
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!("{panic}");
        told(panic);
    }));
}

/// This daemon's lines.
pub fn lines() -> Arc<Lines> {
    LOG.lines.clone()
}

struct Writers;

impl<'w> MakeWriter<'w> for Writers {
    type Writer = Writer;

    fn make_writer(&'w self) -> Writer {
        Writer { is_told: true }
    }

    fn make_writer_for(&'w self, of: &tracing::Metadata<'_>) -> Writer {
        Writer { is_told: !is_carrier(of.target()) }
    }
}

/// Of one event.
struct Writer {
    /// To who follows, beside being kept.
    is_told: bool,
}

impl Write for Writer {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        LOG.take(event, self.is_told);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that makes way for a fresh one when it is full.
#[derive(Debug)]
struct Turning {
    path: PathBuf,
    file: File,
    room: u64,
}

impl Turning {
    fn open(path: &Path) -> io::Result<Turning> {
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        let room = FILE_BYTES_MAX.saturating_sub(file.metadata()?.len());
        Ok(Turning { path: path.to_owned(), file, room })
    }

    /// An error (a full disk) loses the line and nothing else: a daemon does not stop for its log.
    fn write(&mut self, line: &str) {
        let bytes = line.len() as u64 + 1;
        if bytes > self.room
            && let Ok(next) = self.turn()
        {
            *self = next;
        }
        self.room = self.room.saturating_sub(bytes);
        let _ = self.file.write_all(format!("{line}\n").as_bytes());
    }

    fn turn(&self) -> io::Result<Turning> {
        let old = |number: u32| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..OLD_FILES_MAX).rev() {
            match std::fs::rename(old(number), old(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(&self.path, old(1))?;
        Turning::open(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_reads_as_elsewhere_and_what_carries_a_log_is_quiet_unless_named() {
        use tracing::Level;
        let hears = |asked: &str, target: &str, level: Level| filter(asked).would_enable(target, &level);
        assert!(hears("", "rbee::queen", Level::INFO) && !hears("", "rbee::queen", Level::DEBUG));
        assert!(hears("debug", "rbee", Level::DEBUG) && !hears("debug", "h2::proto", Level::DEBUG));
        assert!(hears("h2=debug", "h2::proto", Level::DEBUG) && !hears("h2=debug", "rbee", Level::DEBUG));
        let both = "warn, rbee::queen=trace, what=is-that";
        assert!(hears(both, "rbee::queen", Level::TRACE) && !hears(both, "rbee::hive", Level::INFO));
        assert!(is_carrier("h2") && is_carrier("hyper_util::client::legacy") && !is_carrier("h2o::x"));
        assert!(!is_carrier("rbee::http::server"));
    }

    #[test]
    fn a_full_log_turns_over_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hive.log");
        let mut log = Turning::open(&path).unwrap();
        let line = "x".repeat(1 << 20);
        for number in 0..60 {
            if number % 7 == 0 {
                log = Turning::open(&path).unwrap();
            }
            log.write(&format!("{number} {line}"));
        }
        log.write("last");
        let files: Vec<u64> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(files.len() as u32, 1 + OLD_FILES_MAX);
        assert!(files.iter().all(|bytes| *bytes <= FILE_BYTES_MAX), "{files:?}");
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("\nlast\n"));
        // No line is lost on the way from one file to the next.
        let older = std::fs::read_to_string(directory.path().join("hive.log.1")).unwrap();
        let number = |line: &str| line.split(' ').next().unwrap().parse::<u32>().unwrap();
        let first = number(std::fs::read_to_string(&path).unwrap().lines().next().unwrap());
        assert_eq!(number(older.lines().last().unwrap()) + 1, first);
    }

    #[test]
    fn a_kept_line_is_printable_and_cut() {
        assert_eq!(shown(b"plain \x1b[31mred\x1b[0m \xff"), "plain red \u{fffd}");
        let long = shown(&[b'x'; LINE_BYTES_MAX + 5]);
        assert!(long.ends_with("x [+5 bytes]"), "{}", long.len());
    }
}
