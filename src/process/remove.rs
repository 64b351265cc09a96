//! Removing what a build has left, whatever it did to it: folders without permissions, links to anywhere, a nesting
//! deeper than any path is long, a million files.
//!
//! Every step goes from an open folder to a name in it, and follows no link and crosses no mount, so that nothing outside
//! can be meant. Depth costs neither stack nor descriptors: a bounded window of folders is open, the ones above it are
//! remembered by their inode numbers and found again through `..`, which must lead where it led before.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat, unlinkat};
use rustix::io::Errno;
use std::collections::{HashSet, VecDeque};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Folders open at once, and the names read ahead in each.
const OPEN_MAX: usize = 32;
const NAMES_MAX: usize = 512;
/// What cannot be removed is passed over, so that the rest goes; with so much of it the rest is given up.
const STUCK_MAX: usize = 1024;
/// Somebody who adds faster than this removes is not outrun: so often one folder is emptied, so many steps are made.
const EMPTIED_MAX: u32 = 64;
const STEPS_MAX: u64 = 1 << 28;
/// What `st_blocks` counts in, whatever the file system's own blocks are.
const BLOCK_BYTES: u64 = 512;

const READ_FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a folder (or file, or link) with all below it, and tells how much disk space that gave back; a file with
/// another name elsewhere gives none. What is not there is no error. With an error, what could be removed is.
pub fn remove_tree(path: &Path) -> io::Result<u64> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let mut removal = Removal::of(Open { folder: top, names: vec![CString::new(name.as_bytes())?] });
    removal.run()?;
    match removal.failed {
        Some(error) => Err(error.into()),
        None => Ok(removal.bytes),
    }
}

/// A file or folder, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    device: u64,
    inode: u64,
}

impl Place {
    fn of(stat: &Stat) -> Place {
        Place { device: number(stat.st_dev), inode: number(stat.st_ino) }
    }
}

struct Open {
    folder: OwnedFd,
    /// To be removed; those of a folder that was closed meanwhile are read again.
    names: Vec<CString>,
}

struct Removal {
    /// Where what is to be removed lies. It stays, and stays open.
    top: Open,
    /// All folders from below the top to where we are.
    path: Vec<Place>,
    /// The last of them.
    open: VecDeque<Open>,
    stuck: HashSet<Place>,
    /// The folder that was emptied last, and how often in a row.
    emptied: Option<(Place, u32)>,
    failed: Option<Errno>,
    bytes: u64,
}

enum Step {
    On,
    Down(Open, Place),
    Empty,
}

impl Removal {
    fn of(top: Open) -> Removal {
        Removal {
            top,
            path: Vec::new(),
            open: VecDeque::new(),
            stuck: HashSet::new(),
            emptied: None,
            failed: None,
            bytes: 0,
        }
    }

    fn run(&mut self) -> io::Result<()> {
        for _ in 0..STEPS_MAX {
            match self.step()? {
                Step::On => {}
                Step::Down(open, place) => {
                    if self.open.len() == OPEN_MAX {
                        self.open.pop_front();
                    }
                    self.open.push_back(open);
                    self.path.push(place);
                }
                Step::Empty if self.path.is_empty() => return Ok(()),
                Step::Empty => self.up()?,
            }
        }
        Err(io::Error::other("the folder fills faster than it empties"))
    }

    fn here(&mut self) -> &mut Open {
        self.open.back_mut().unwrap_or(&mut self.top)
    }

    fn folder(&self) -> BorrowedFd<'_> {
        self.open.back().unwrap_or(&self.top).folder.as_fd()
    }

    fn step(&mut self) -> io::Result<Step> {
        if self.here().names.is_empty() {
            // Only the one name was asked for at the top.
            if self.path.is_empty() || !self.read_names()? {
                return Ok(Step::Empty);
            }
        }
        let Some(name) = self.here().names.pop() else { return Ok(Step::On) };
        let folder = self.folder();
        let stat = match statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Step::On),
            Err(error) => return Err(error.into()),
        };
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(folder, &name, flags) {
            Ok(()) => {
                if is_folder || stat.st_nlink <= 1 {
                    self.bytes += number(stat.st_blocks).saturating_mul(BLOCK_BYTES);
                }
                Ok(Step::On)
            }
            Err(Errno::NOENT) => Ok(Step::On),
            Err(error @ (Errno::NOTEMPTY | Errno::EXIST)) if is_folder => {
                let place = Place::of(&stat);
                if self.stuck.contains(&place) {
                    return Ok(Step::On);
                }
                if self.emptied.is_some_and(|(last, times)| last == place && times >= EMPTIED_MAX) {
                    return self.pass_over(place, error);
                }
                match open_folder(folder, &name, &stat) {
                    Ok(folder) => {
                        self.here().names.push(name);
                        Ok(Step::Down(Open { folder, names: Vec::new() }, place))
                    }
                    Err(error) => self.pass_over(place, error),
                }
            }
            Err(error) => self.pass_over(Place::of(&stat), error),
        }
    }

    fn pass_over(&mut self, place: Place, error: Errno) -> io::Result<Step> {
        self.failed.get_or_insert(error);
        self.stuck.insert(place);
        if self.stuck.len() > STUCK_MAX { Err(error.into()) } else { Ok(Step::On) }
    }

    /// The next names of the folder we are in; false when nothing is left there that could be removed.
    fn read_names(&mut self) -> io::Result<bool> {
        let folder = self.folder();
        let mut names = Vec::new();
        let mut passed_over = false;
        let mut entries = Dir::read_from(folder)?;
        while names.len() < NAMES_MAX {
            let Some(entry) = entries.read() else { break };
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            // Asked only when there is anything: not the number that the entry tells, which overlays make up.
            let is_stuck = !self.stuck.is_empty()
                && statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| self.stuck.contains(&Place::of(&stat)));
            if is_stuck {
                passed_over = true;
            } else {
                names.push(name.to_owned());
            }
        }
        let any = !names.is_empty();
        if !any && passed_over {
            // So the folder cannot be removed either.
            self.stuck.extend(self.path.last());
        }
        self.here().names = names;
        Ok(any)
    }

    fn up(&mut self) -> io::Result<()> {
        if let Some(place) = self.path.pop() {
            let times = self.emptied.filter(|(last, _)| *last == place).map_or(0, |(_, times)| times);
            self.emptied = Some((place, times + 1));
        }
        let left = self.open.pop_back().expect("the folder we were in");
        if self.open.is_empty() && !self.path.is_empty() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = openat(&left.folder, c"..", flags, Mode::empty())?;
            if Some(&Place::of(&fstat(&folder)?)) != self.path.last() {
                return Err(io::Error::other("a folder was moved away while it was being removed"));
            }
            self.open.push_back(Open { folder, names: Vec::new() });
        }
        Ok(())
    }
}

/// Opens the folder that `stat` tells of, made accessible first where the build took that away.
fn open_folder(parent: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<OwnedFd, Errno> {
    let all = Mode::RWXU;
    if !Mode::from_raw_mode(stat.st_mode).contains(all) {
        platform::permit(parent, name, all)?;
    }
    platform::open_beneath(parent, name, READ_FOLDER)
}

fn number(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or(0)
}

#[cfg(target_os = "linux")]
mod platform {
    use super::*;
    use rustix::fs::{ResolveFlags, chmod, openat2};
    use std::os::fd::AsRawFd;

    pub(super) fn open_beneath(parent: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        match openat2(parent, name, flags, Mode::empty(), inside) {
            // Before Linux 5.6, or under a filter that does not know it.
            Err(Errno::NOSYS | Errno::PERM) => openat(parent, name, flags, Mode::empty()),
            opened => opened,
        }
    }

    /// By a handle, since a name could become a link between a look at it and `chmod`, which follows.
    pub(super) fn permit(parent: BorrowedFd<'_>, name: &CStr, mode: Mode) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = open_beneath(parent, name, flags)?;
        chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), mode)
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use super::*;
    use rustix::fs::chmodat;

    pub(super) fn open_beneath(parent: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat(parent, name, flags, Mode::empty())
    }

    pub(super) fn permit(parent: BorrowedFd<'_>, name: &CStr, mode: Mode) -> Result<(), Errno> {
        chmodat(parent, name, mode, AtFlags::SYMLINK_NOFOLLOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_is_not_there_is_no_error_and_a_root_is_one() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(remove_tree(&place.path().join("none")).unwrap(), 0);
        assert_eq!(remove_tree(&place.path().join("none/none")).unwrap(), 0);
        for root in ["/", "..", "/tmp/.."] {
            assert_eq!(remove_tree(Path::new(root)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn links_go_and_what_they_lead_to_stays() {
        let place = tempfile::tempdir().unwrap();
        let (work, outside) = (place.path().join("work"), place.path().join("outside"));
        fs::create_dir_all(work.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        for (target, link) in [("/", "a/root"), ("../outside", "up"), ("..", "a/b/parent"), ("loop", "loop")]
        {
            symlink(target, work.join(link)).unwrap();
        }
        symlink(&outside, place.path().join("itself")).unwrap();
        fs::hard_link(outside.join("kept"), work.join("hard")).unwrap();
        remove_tree(&work).unwrap();
        remove_tree(&place.path().join("itself")).unwrap();
        assert!(!work.exists());
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn bytes_are_the_disk_space_given_back_once_for_all_names_of_a_file() {
        let place = tempfile::tempdir().unwrap();
        let work = place.path().join("work");
        fs::create_dir(&work).unwrap();
        fs::write(work.join("one"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(work.join("one"), work.join("two")).unwrap();
        // All hole: a length is no disk space.
        fs::File::create(work.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let bytes = remove_tree(&work).unwrap();
        assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
    }

    #[test]
    fn folders_without_permissions_and_deeper_than_any_path_go() {
        let place = tempfile::tempdir().unwrap();
        let work = place.path().join("work");
        fs::create_dir(&work).unwrap();
        let mut here: OwnedFd = fs::File::open(&work).unwrap().into();
        let depth = OPEN_MAX * 8;
        for _ in 0..depth {
            let name = c"a-name-of-some-length";
            rustix::fs::mkdirat(&here, name, Mode::RWXU).unwrap();
            for other in [c"b", c"c"] {
                rustix::fs::mkdirat(&here, other, Mode::empty()).unwrap();
            }
            let file = openat(&here, c"file", OFlags::CREATE | OFlags::WRONLY, Mode::empty()).unwrap();
            drop(file);
            let below = openat(&here, name, READ_FOLDER, Mode::empty()).unwrap();
            rustix::fs::fchmod(&here, Mode::empty()).unwrap();
            here = below;
        }
        remove_tree(&work).unwrap();
        assert!(!work.exists());
    }

    #[test]
    fn many_names_in_one_folder_go() {
        let place = tempfile::tempdir().unwrap();
        let work = place.path().join("work");
        fs::create_dir(&work).unwrap();
        for number in 0..NAMES_MAX * 3 {
            let path = work.join(number.to_string());
            if number % 2 == 0 { fs::create_dir_all(path.join("below")) } else { fs::write(path, "x") }
                .unwrap();
        }
        fs::set_permissions(&work, Permissions::from_mode(0o000)).unwrap();
        remove_tree(&work).unwrap();
        assert!(!work.exists());
    }

    #[test]
    fn what_cannot_be_removed_is_told_and_the_rest_goes() {
        let place = tempfile::tempdir().unwrap();
        let removal_of = |stuck: &[&str]| {
            let work = place.path().join("work");
            fs::create_dir_all(work.join("a/b")).unwrap();
            fs::create_dir_all(work.join("c")).unwrap();
            for file in ["a/b/x", "a/y", "c/z"] {
                fs::write(work.join(file), "x").unwrap();
            }
            let top =
                Open { folder: fs::File::open(place.path()).unwrap().into(), names: vec![c"work".into()] };
            let mut removal = Removal::of(top);
            for path in stuck {
                let stat = rustix::fs::lstat(work.join(path)).unwrap();
                removal.stuck.insert(Place::of(&stat));
            }
            removal.run().unwrap();
            let exists = |path: &str| work.join(path).exists();
            [exists("a/b/x"), exists("a/b"), exists("a/y"), exists("c"), exists("")]
        };
        assert_eq!(removal_of(&["a/b/x"]), [true, true, false, false, true]);
        assert_eq!(removal_of(&["a/b"]), [true, true, false, false, true]);
        assert_eq!(removal_of(&[]), [false; 5]);
    }
}
