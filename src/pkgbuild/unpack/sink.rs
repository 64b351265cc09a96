//! Where members of an archive are written: one folder, never left.
//!
//! Names are walked component by component from a descriptor of the folder, each opened without following links, so that
//! no link (of this archive, of an earlier one, put there meanwhile) leads a write anywhere. What may not be there at
//! all, and links that would lead out when somebody else follows them, is refused by name.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

const NAME_BYTES_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 4095;
const COPY_BYTES: usize = 128 << 10;
/// What is kept of a mode: no setuid, and makepkg's umask.
const MODE_KEPT: u32 = 0o755;
const NAMES_SHOWN_BYTES: usize = 200;

/// Why a member is not written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("has an absolute name")]
    Absolute,
    #[error("has a name that leads out of its folder")]
    Outside,
    #[error("has a NUL in its name")]
    Nul,
    #[error("has no name")]
    Nameless,
    #[error("has a name of more than {NAME_BYTES_MAX} bytes, or a path of more than {PATH_BYTES_MAX}")]
    Long,
    #[error("lies more than {0} folders deep")]
    Deep(usize),
    #[error("lies below the link `{0}`, and links are not written through")]
    ThroughLink(String),
    #[error("lies below `{0}`, which is a file")]
    BelowFile(String),
    #[error("is a link to `{0}`, which leads out of the folder")]
    LinkOutside(String),
    #[error(
        "is a link to `{0}`, which goes up again after it went down, so where it leads depends on other links"
    )]
    LinkZigzag(String),
    #[error("is a hard link to `{0}`, which is no file that was unpacked")]
    LinkToNothing(String),
    #[error("would replace `{0}`, which is of another kind")]
    Replaces(&'static str),
    #[error("is a {0}, which no source needs")]
    Kind(&'static str),
    #[error("is a sparse file, a form that is not supported")]
    Sparse,
    #[error("is of the unknown type `{0}`")]
    UnknownKind(String),
    #[error("is no file and yet says that it has data")]
    DataWithoutFile,
    #[error("is encrypted")]
    Encrypted,
    #[error("occurs twice in its archive")]
    Twice,
}

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("opening it")]
    Open(#[source] io::Error),
    #[error("it is damaged")]
    Damaged(#[source] io::Error),
    #[error("its member `{member}` {why}")]
    Refused { member: String, why: Refusal },
    #[error("its member `{member}` is damaged")]
    DamagedMember { member: String, source: io::Error },
    #[error("writing its member `{member}`")]
    Write { member: String, source: io::Error },
    #[error("it has more than {0} members")]
    TooMany(u64),
    #[error("it is {0}, which is not unpacked here: list it in noextract and unpack it in prepare()")]
    Foreign(&'static str),
}

/// A point in time, as archives have it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

type Parts = Vec<Vec<u8>>;

/// The folder that is unpacked into.
pub struct Sink {
    root: OwnedFd,
    depth_max: usize,
    members_left: u64,
    members_max: u64,
    /// The folder that was written to last: archives go folder by folder.
    last: Option<(Parts, OwnedFd)>,
    /// Folders get their times at the end, when nothing is written into them any more.
    folders: Vec<(Parts, Time)>,
}

/// A name as it is shown: one line, nothing that a terminal obeys.
pub fn shown(name: &[u8]) -> String {
    let cut = &name[..name.len().min(NAMES_SHOWN_BYTES)];
    String::from_utf8_lossy(cut).escape_debug().to_string()
}

fn refused(member: &[u8], why: Refusal) -> UnpackError {
    UnpackError::Refused { member: shown(member), why }
}

fn write_error(member: &[u8], error: impl Into<io::Error>) -> UnpackError {
    UnpackError::Write { member: shown(member), source: error.into() }
}

impl Sink {
    pub fn open(folder: &Path, depth_max: usize, members_max: u64) -> io::Result<Sink> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty())?;
        let (last, folders) = (None, Vec::new());
        Ok(Sink { root, depth_max, members_left: members_max, members_max, last, folders })
    }

    /// Every header of an archive counts, also one that makes no file.
    pub fn count(&mut self) -> Result<(), UnpackError> {
        self.members_left = self.members_left.checked_sub(1).ok_or(UnpackError::TooMany(self.members_max))?;
        Ok(())
    }

    pub fn folder(&mut self, name: &[u8], time: Time) -> Result<(), UnpackError> {
        let parts = self.parts(name)?;
        if parts.is_empty() {
            return Ok(());
        }
        self.walk(name, &parts, true)?;
        self.folders.push((parts, time));
        Ok(())
    }

    /// Writes what `from` has, to its end.
    pub fn file(
        &mut self,
        name: &[u8],
        mode: u32,
        time: Time,
        from: &mut dyn Read,
    ) -> Result<(), UnpackError> {
        let (parts, last) = self.split(name)?;
        let parent = self.walk(name, &parts, true)?;
        clear_for_file(parent, name, &last)?;
        let file = create(parent, &last).map_err(|error| write_error(name, error))?;
        copy(from, &file, name)?;
        finish(&file, mode, time).map_err(|error| write_error(name, error))
    }

    /// The file at `path` under this name. The kernel copies, and shares the bytes where the file system can.
    pub fn place(&mut self, name: &[u8], path: &Path) -> Result<(), UnpackError> {
        let mut from = File::open(path).map_err(UnpackError::Open)?;
        let stat = rustix::fs::fstat(&from).map_err(|error| UnpackError::Open(error.into()))?;
        let (parts, last) = self.split(name)?;
        let parent = self.walk(name, &parts, true)?;
        clear_for_file(parent, name, &last)?;
        let mut written = || -> io::Result<()> {
            let mut file = create(parent, &last)?;
            io::copy(&mut from, &mut file)?;
            let time = Time { seconds: stat.st_mtime as i64, nanoseconds: stat.st_mtime_nsec as u32 };
            finish(&file, stat.st_mode as u32, time)
        };
        written().map_err(|error| write_error(name, error))
    }

    pub fn symlink(&mut self, name: &[u8], target: &[u8], time: Time) -> Result<(), UnpackError> {
        let (parts, last) = self.split(name)?;
        check_target(target, parts.len()).map_err(|why| refused(name, why))?;
        let parent = self.walk(name, &parts, true)?;
        match kind_of(parent, &last).map_err(|error| write_error(name, error))? {
            None => {}
            Some(FileType::Symlink) => {
                let there = rustix::fs::readlinkat(parent, last.as_slice(), Vec::new());
                let there = there.map_err(|error| write_error(name, error))?;
                return match there.as_bytes() == target {
                    true => Ok(()),
                    false => Err(refused(name, Refusal::Replaces("a link"))),
                };
            }
            Some(FileType::Directory) => return Err(refused(name, Refusal::Replaces("a folder"))),
            Some(_) => return Err(refused(name, Refusal::Replaces("a file"))),
        }
        rustix::fs::symlinkat(target, parent, last.as_slice()).map_err(|error| write_error(name, error))?;
        // A link's own time is of no consequence where it cannot be set.
        let _ = rustix::fs::utimensat(parent, last.as_slice(), &times(time), AtFlags::SYMLINK_NOFOLLOW);
        Ok(())
    }

    /// Another name for a file that was unpacked before.
    pub fn hard_link(&mut self, name: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        let nothing = || refused(name, Refusal::LinkToNothing(shown(target)));
        let (target_parts, target_last) = self.split(target).map_err(|error| match error {
            UnpackError::Refused { .. } => refused(name, Refusal::LinkOutside(shown(target))),
            other => other,
        })?;
        let from = self.walk(target, &target_parts, false).map_err(|_| nothing())?;
        let from = from.try_clone_to_owned().map_err(|error| write_error(name, error))?;
        let stat = rustix::fs::statat(&from, target_last.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.ok().filter(is_file).ok_or_else(nothing)?;
        let (parts, last) = self.split(name)?;
        let parent = self.walk(name, &parts, true)?;
        let there = rustix::fs::statat(parent, last.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|there| there.st_ino == stat.st_ino && there.st_dev == stat.st_dev) {
            return Ok(());
        }
        clear_for_file(parent, name, &last)?;
        rustix::fs::linkat(&from, target_last.as_slice(), parent, last.as_slice(), AtFlags::empty())
            .map_err(|error| write_error(name, error))
    }

    /// Gives folders their times.
    pub fn finish(mut self) {
        for (parts, time) in std::mem::take(&mut self.folders) {
            let Ok(folder) = self.walk(b"", &parts, false) else { continue };
            // A time is of no consequence where it cannot be set.
            let _ = rustix::fs::futimens(folder, &times(time));
        }
    }

    fn split(&self, name: &[u8]) -> Result<(Parts, Vec<u8>), UnpackError> {
        let mut parts = self.parts(name)?;
        let last = parts.pop().ok_or_else(|| refused(name, Refusal::Nameless))?;
        Ok((parts, last))
    }

    /// The components of a name, none of which leads anywhere but down, on any system.
    fn parts(&self, name: &[u8]) -> Result<Parts, UnpackError> {
        let parts = components(name).map_err(|why| refused(name, why))?;
        match parts.len() > self.depth_max {
            true => Err(refused(name, Refusal::Deep(self.depth_max))),
            false => Ok(parts),
        }
    }

    /// The folder of these names, made where it is not there.
    fn walk(&mut self, member: &[u8], parts: &Parts, make: bool) -> Result<BorrowedFd<'_>, UnpackError> {
        if parts.is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.last.as_ref().is_none_or(|(last, _)| last != parts) {
            let mut here: Option<OwnedFd> = None;
            for part in parts {
                let parent = here.as_ref().unwrap_or(&self.root).as_fd();
                here = Some(step(parent, member, part, make)?);
            }
            let here = here.ok_or_else(|| refused(member, Refusal::Nameless))?;
            self.last = Some((parts.clone(), here));
        }
        let (_, folder) = self.last.as_ref().ok_or_else(|| refused(member, Refusal::Nameless))?;
        Ok(folder.as_fd())
    }
}

fn components(name: &[u8]) -> Result<Parts, Refusal> {
    if name.contains(&0) {
        return Err(Refusal::Nul);
    }
    if name.len() > PATH_BYTES_MAX {
        return Err(Refusal::Long);
    }
    let is_drive = matches!(name, [letter, b':', rest @ ..]
        if letter.is_ascii_alphabetic() && matches!(rest, [] | [b'/' | b'\\', ..]));
    if name.first().is_some_and(|first| matches!(first, b'/' | b'\\')) || is_drive {
        return Err(Refusal::Absolute);
    }
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")) {
        // A backslash is an ordinary character here (systemd's units have it), but who reads it otherwise must not
        // be led out either.
        if part.split(|byte| *byte == b'\\').any(|piece| piece == b"..") {
            return Err(Refusal::Outside);
        }
        if part.len() > NAME_BYTES_MAX {
            return Err(Refusal::Long);
        }
        parts.push(part.to_vec());
    }
    Ok(parts)
}

/// Whether a link that lies `depth` folders deep leads to somewhere inside. The folders above it are real, so steps up
/// at the beginning are what they seem; after a step down they are not, because that may have been through another link.
fn check_target(target: &[u8], depth: usize) -> Result<(), Refusal> {
    let outside = || Refusal::LinkOutside(shown(target));
    if target.is_empty() || target.contains(&0) || target.len() > PATH_BYTES_MAX {
        return Err(outside());
    }
    if matches!(target[0], b'/' | b'\\') {
        return Err(outside());
    }
    let mut up = 0;
    let mut went_down = false;
    for part in target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")) {
        match part {
            b".." if went_down => return Err(Refusal::LinkZigzag(shown(target))),
            b".." => up += 1,
            _ if part.split(|byte| *byte == b'\\').any(|piece| piece == b"..") => return Err(outside()),
            _ => went_down = true,
        }
    }
    if up > depth { Err(outside()) } else { Ok(()) }
}

/// One folder down, never through a link.
fn step(parent: BorrowedFd<'_>, member: &[u8], part: &[u8], make: bool) -> Result<OwnedFd, UnpackError> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, part, flags, Mode::empty());
    match open() {
        Ok(folder) => Ok(folder),
        Err(Errno::NOENT) if make => {
            let made = rustix::fs::mkdirat(parent, part, Mode::from_raw_mode(MODE_KEPT as _));
            made.and_then(|()| open()).map_err(|error| write_error(member, error))
        }
        Err(error) => match kind_of(parent, part) {
            Ok(Some(FileType::Symlink)) => Err(refused(member, Refusal::ThroughLink(shown(part)))),
            Ok(Some(kind)) if kind != FileType::Directory => {
                Err(refused(member, Refusal::BelowFile(shown(part))))
            }
            _ => Err(write_error(member, error)),
        },
    }
}

fn kind_of(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// A file gives way to a file, and nothing else does to anything. It is unlinked, not emptied: it may have other names.
fn clear_for_file(parent: BorrowedFd<'_>, member: &[u8], name: &[u8]) -> Result<(), UnpackError> {
    match kind_of(parent, name).map_err(|error| write_error(member, error))? {
        None => Ok(()),
        Some(FileType::RegularFile) => {
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(|error| write_error(member, error))
        }
        Some(FileType::Symlink) => Err(refused(member, Refusal::Replaces("a link"))),
        Some(_) => Err(refused(member, Refusal::Replaces("a folder"))),
    }
}

fn create(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?))
}

fn finish(file: &File, mode: u32, time: Time) -> io::Result<()> {
    let mode = (mode & MODE_KEPT) | 0o400;
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode as _))?;
    // A time is of no consequence where it cannot be set.
    let _ = rustix::fs::futimens(file, &times(time));
    Ok(())
}

fn times(time: Time) -> Timestamps {
    let at = Timespec { tv_sec: time.seconds as _, tv_nsec: time.nanoseconds.min(999_999_999) as _ };
    Timestamps { last_access: at, last_modification: at }
}

fn copy(from: &mut dyn Read, mut to: &File, member: &[u8]) -> Result<(), UnpackError> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                io::Write::write_all(&mut to, &buffer[..count])
                    .map_err(|error| write_error(member, error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(UnpackError::DamagedMember { member: shown(member), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_down_on_every_system() {
        let read = |name: &str| components(name.as_bytes()).map(|parts| parts.len());
        for (name, count) in [
            ("a/b", 2),
            ("./a//b/./c/", 3),
            (".", 0),
            ("", 0),
            ("system-a\\x2db.slice", 1),
            ("a..b", 1),
            ("ab:c", 1),
        ] {
            assert_eq!(read(name), Ok(count), "{name}");
        }
        let long = format!("{}/x", "a".repeat(256));
        for bad in [
            "/a",
            "..",
            "a/../b",
            "../a",
            "a/..",
            "\\a",
            "a\\..\\b",
            "..\\a",
            "C:\\a",
            "c:/a",
            "c:",
            "a\0b",
            &long,
            &"a/".repeat(2048),
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn links_lead_to_somewhere_inside() {
        for (target, depth) in
            [("x", 0), ("../x", 1), ("../../x/y", 2), ("./x", 0), ("..", 1), ("a\\x2db", 0)]
        {
            assert_eq!(check_target(target.as_bytes(), depth), Ok(()), "{target}");
        }
        for (target, depth) in [
            ("/etc", 3),
            ("..", 0),
            ("../../x", 1),
            ("./../x", 0),
            ("a/../../x", 5),
            ("a/../b", 1),
            ("", 1),
            ("\\x", 1),
            ("..\\x", 1),
            ("a\0", 1),
        ] {
            assert!(check_target(target.as_bytes(), depth).is_err(), "{target}");
        }
    }
}
