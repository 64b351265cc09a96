//! A package as it was built, checked before anything of it is installed: plain files, folders, and links that stay inside.

use super::Order;
use super::execute::Stop;
use super::metadata::Metadata;
use super::trees::Trees;
use super::work::Work;
use crate::process::remove_tree;
use crate::wire::{Code, Failure};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, Metadata as Status};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// Files, folders and links of one package.
const ENTRIES_MAX: usize = 200_000;
const DEPTH_MAX: usize = 64;
const SETUID_SETGID: u32 = 0o6000;
const READ_BYTES: usize = 128 * 1024;

/// A built package that waits for its installation; dropped, it is gone with all that the build needed.
#[derive(Debug)]
pub struct Built {
    pub metadata: Box<Metadata>,
    pub(super) package: Package,
    pub(super) work: Box<Work>,
}

/// The folder below which the files lie, and what lies there.
#[derive(Debug)]
pub(super) struct Package {
    /// By the name of each package of the recipe; one for most.
    pub contents: BTreeMap<String, Contents>,
    /// The recipe's id, which says which of several packages is meant.
    pub recipe: String,
}

#[derive(Debug)]
pub(super) struct Contents {
    pub root: PathBuf,
    pub entries: Vec<Entry>,
}

/// One entry of a package, as the manifest tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Entry {
    /// From the package's root.
    pub path: String,
    #[serde(flatten)]
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub(super) enum Kind {
    Folder,
    File { size: u64, mode: u32, sha256: String },
    Link { target: String },
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PackageError {
    #[error("the package folder of `{0}` is not there")]
    NoFolder(String),
    #[error("the package holds `{path}`, {what}")]
    Entry { path: String, what: &'static str },
    #[error(
        "the package's link `{path}` leads out of it, to `{target}`: links must be relative and stay inside"
    )]
    Link { path: String, target: String },
    #[error("the package has more than {ENTRIES_MAX} files")]
    TooMany,
    #[error("the package's folders are nested deeper than {DEPTH_MAX}")]
    TooDeep,
    #[error("reading the package at `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("reading the package was ended")]
    Ended,
}

impl From<PackageError> for Failure {
    fn from(error: PackageError) -> Self {
        let code = match error {
            PackageError::Read { .. } | PackageError::Ended => Code::Internal,
            _ => Code::BuildFailed,
        };
        Failure::new(code, crate::wire::failure::chain(&error))
            .with(serde_json::json!({"phase": "package", "exit_code": null}))
    }
}

/// Checks all packages of the recipe and computes their sums.
pub(super) async fn check(
    work: &Work,
    metadata: &Metadata,
    order: &Order,
    trees: &Trees<'_>,
) -> Result<Package, Stop> {
    let packages = work.packages.clone();
    let others = [work.sources.clone(), work.home.clone(), work.cargo.clone(), work.temporary.clone()];
    let names = metadata.pkgname.clone();
    let token = trees.cancel_token();
    let checked = tokio::task::spawn_blocking(move || -> Result<_, Failure> {
        // First, so that a file with another name there is a file with one name here.
        for folder in others {
            remove_tree(&folder).map_err(|error| super::work::failed("removing", &folder, &error))?;
        }
        let mut contents = BTreeMap::new();
        for name in names {
            let root = packages.join(&name);
            let entries = Walk::over(&root, &name, &token)?;
            contents.insert(name, Contents { root, entries });
        }
        Ok(contents)
    });
    match checked.await {
        Ok(Ok(contents)) => Ok(Package { contents, recipe: order.recipe.clone() }),
        Ok(Err(_)) if trees.is_cancelled() => Err(Stop::Cancelled(Default::default())),
        Ok(Err(failure)) => Err(failure.into()),
        Err(error) => Err(Failure::internal(&error).into()),
    }
}

struct Walk<'a> {
    entries: Vec<Entry>,
    /// How often each file was met that has several names.
    linked: BTreeMap<(u64, u64), (u64, u64, String)>,
    cancel: &'a CancellationToken,
}

impl Walk<'_> {
    fn over(root: &Path, name: &str, cancel: &CancellationToken) -> Result<Vec<Entry>, PackageError> {
        if !root.symlink_metadata().is_ok_and(|status| status.is_dir()) {
            return Err(PackageError::NoFolder(name.into()));
        }
        let mut walk = Walk { entries: Vec::new(), linked: BTreeMap::new(), cancel };
        walk.folder(root, "", 0)?;
        for (names, met, path) in walk.linked.values() {
            if names != met {
                return Err(entry(path, "which is a hard link to a file outside of it"));
            }
        }
        walk.entries.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(walk.entries)
    }

    fn folder(&mut self, folder: &Path, below: &str, depth: usize) -> Result<(), PackageError> {
        if depth > DEPTH_MAX {
            return Err(PackageError::TooDeep);
        }
        let failed = |source| PackageError::Read { path: folder.to_owned(), source };
        // A folder that its own build cannot read would be one that nobody could remove.
        let mode = folder.symlink_metadata().map_err(failed)?.permissions().mode();
        if mode & 0o700 != 0o700 {
            let mode = std::fs::Permissions::from_mode(mode & 0o777 | 0o700);
            std::fs::set_permissions(folder, mode).map_err(failed)?;
        }
        for found in folder.read_dir().map_err(failed)? {
            if self.cancel.is_cancelled() {
                return Err(PackageError::Ended);
            }
            let found = found.map_err(failed)?;
            let name = found.file_name();
            let Some(name) = name.to_str().filter(|name| !name.chars().any(char::is_control)) else {
                let shown = format!("{below}{}", name.to_string_lossy().escape_debug());
                return Err(entry(&shown, "whose name has control characters or is not UTF-8"));
            };
            if depth == 0 && name.starts_with('.') {
                return Err(entry(name, "a hidden file at its top, which packages have no place for"));
            }
            let path = format!("{below}{name}");
            let status = found.path().symlink_metadata().map_err(failed)?;
            let kind = self.kind(&found.path(), &path, &status, depth)?;
            let is_folder = kind == Kind::Folder;
            self.entries.push(Entry { path: path.clone(), kind });
            if self.entries.len() > ENTRIES_MAX {
                return Err(PackageError::TooMany);
            }
            if is_folder {
                self.folder(&found.path(), &format!("{path}/"), depth + 1)?;
            }
        }
        Ok(())
    }

    fn kind(&mut self, at: &Path, path: &str, status: &Status, depth: usize) -> Result<Kind, PackageError> {
        let failed = |source| PackageError::Read { path: at.to_owned(), source };
        let mode = status.permissions().mode();
        if status.is_symlink() {
            let target = std::fs::read_link(at).map_err(failed)?;
            let shown = target.to_string_lossy().into_owned();
            return match stays_inside(&target, depth) && target.to_str().is_some() {
                true => Ok(Kind::Link { target: shown }),
                false => Err(PackageError::Link { path: path.into(), target: shown }),
            };
        }
        if mode & SETUID_SETGID != 0 {
            // On a folder, setgid is inherited from a parent and means nothing here.
            if status.is_dir() {
                let mode = std::fs::Permissions::from_mode(mode & 0o777);
                std::fs::set_permissions(at, mode).map_err(failed)?;
            } else {
                return Err(entry(path, "which would run as somebody else (setuid, setgid)"));
            }
        }
        if status.is_dir() {
            return Ok(Kind::Folder);
        }
        if !status.is_file() {
            return Err(entry(path, "which is neither a file, a folder nor a link"));
        }
        if status.nlink() > 1 {
            let met = self.linked.entry((status.dev(), status.ino()));
            met.or_insert((status.nlink(), 0, path.to_owned())).1 += 1;
        }
        if mode & 0o400 == 0 {
            let mode = std::fs::Permissions::from_mode(mode & 0o777 | 0o400);
            std::fs::set_permissions(at, mode).map_err(failed)?;
        }
        let (size, sha256) = self.sum(at).map_err(failed)?;
        Ok(Kind::File { size, mode: mode & 0o777 | 0o400, sha256 })
    }

    fn sum(&self, at: &Path) -> io::Result<(u64, String)> {
        let (mut file, mut digest, mut size) = (File::open(at)?, Sha256::new(), 0);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => {
                    digest.update(&buffer[..count]);
                    size += count as u64;
                }
            }
            if self.cancel.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok((size, digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

fn entry(path: &str, what: &'static str) -> PackageError {
    PackageError::Entry { path: path.into(), what }
}

/// Whether a link `depth` folders below the root stays below the root. `..` only in front: after a name, which may be
/// another link, nobody can say where it leads without following it.
fn stays_inside(target: &Path, depth: usize) -> bool {
    let (mut up, mut named) = (0, false);
    for part in target.components() {
        match part {
            Component::ParentDir if named => return false,
            Component::ParentDir => up += 1,
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    up <= depth && !target.as_os_str().is_empty()
}

impl Package {
    /// The package that is meant: the recipe's namesake, the one that holds the file, or the only one.
    pub(super) fn holding(&self, file: &str) -> Option<&Contents> {
        let holds = |contents: &&Contents| contents.entries.iter().any(|entry| entry.path == file);
        let namesake = self.contents.get(&self.recipe).filter(holds);
        namesake.or_else(|| self.contents.values().find(holds))
    }
}

impl Built {
    /// Paths and sizes of the files of every package, for who compares.
    pub fn files(&self) -> Vec<(String, u64)> {
        let contents = self.package.contents.iter();
        contents
            .flat_map(|(name, contents)| {
                contents.entries.iter().filter_map(move |entry| match entry.kind {
                    Kind::File { size, .. } => Some((format!("{name}/{}", entry.path), size)),
                    Kind::Folder | Kind::Link { .. } => None,
                })
            })
            .collect()
    }

    /// Moves one file of the package to `target`, a new name on whatever disk, and tells its size and SHA-256 sum. All
    /// else that was built is gone then.
    pub async fn take(self, path: &str, target: &Path) -> Result<(u64, String), Failure> {
        let Built { package, work, .. } = self;
        let (path, target) = (path.to_owned(), target.to_owned());
        let taken = tokio::task::spawn_blocking(move || {
            let found = package.contents.values().find_map(|contents| {
                let entry = contents.entries.iter().find(|entry| entry.path == path)?;
                match &entry.kind {
                    Kind::File { size, sha256, .. } => {
                        Some((contents.root.join(&path), *size, sha256.clone()))
                    }
                    Kind::Folder | Kind::Link { .. } => None,
                }
            });
            let missing = || {
                Failure::new(
                    Code::BuildFailed,
                    format!("the recipe ran to its end, but its package has no file `{path}`"),
                )
            };
            let (file, size, sha256) = found.ok_or_else(missing)?;
            let moved =
                std::fs::rename(&file, &target).or_else(|_| std::fs::copy(&file, &target).map(|_| ()));
            moved.map_err(|error| super::work::failed("writing", &target, &error))?;
            Ok((size, sha256))
        });
        let taken = taken.await.map_err(|error| Failure::internal(&error));
        work.remove().await;
        taken?
    }

    /// Where the files of all packages lie, each below its package's name.
    pub fn folder(&self) -> &Path {
        &self.work.packages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn walk(prepare: impl FnOnce(&Path)) -> Result<Vec<Entry>, PackageError> {
        let work = tempfile::tempdir().unwrap();
        let root = work.path().join("p");
        std::fs::create_dir_all(root.join("usr/bin")).unwrap();
        prepare(&root);
        Walk::over(&root, "p", &CancellationToken::new())
    }

    #[test]
    fn files_folders_and_links_that_stay_inside_are_told() {
        let entries = walk(|root| {
            std::fs::write(root.join("usr/bin/a"), "abc").unwrap();
            std::fs::hard_link(root.join("usr/bin/a"), root.join("usr/bin/b")).unwrap();
            symlink("../bin/a", root.join("usr/bin/c")).unwrap();
            symlink("../../usr", root.join("usr/bin/d")).unwrap();
        });
        let entries = entries.unwrap();
        let paths: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["usr", "usr/bin", "usr/bin/a", "usr/bin/b", "usr/bin/c", "usr/bin/d"]);
        let Kind::File { size: 3, sha256, .. } = &entries[2].kind else { panic!("{:?}", entries[2]) };
        assert!(sha256.starts_with("ba7816bf"));
    }

    #[test]
    fn what_could_reach_out_of_a_package_is_refused() {
        type Prepare = fn(&Path);
        let cases: [(&str, Prepare); 8] = [
            ("absolute link", |root| symlink("/etc/passwd", root.join("a")).unwrap()),
            ("link up and out", |root| symlink("../../../x", root.join("usr/bin/a")).unwrap()),
            ("link through a link", |root| symlink("usr/..", root.join("a")).unwrap()),
            ("hidden", |root| std::fs::write(root.join(".PKGINFO"), "").unwrap()),
            ("newline", |root| std::fs::write(root.join("usr/a\nb"), "").unwrap()),
            ("setuid", |root| {
                std::fs::write(root.join("usr/s"), "").unwrap();
                std::fs::set_permissions(root.join("usr/s"), std::fs::Permissions::from_mode(0o4755))
                    .unwrap();
            }),
            ("socket", |root| drop(std::os::unix::net::UnixListener::bind(root.join("usr/s")).unwrap())),
            ("hard link out", |root| {
                std::fs::write(root.parent().unwrap().join("out"), "").unwrap();
                std::fs::hard_link(root.parent().unwrap().join("out"), root.join("usr/in")).unwrap();
            }),
        ];
        for (name, prepare) in cases {
            assert!(walk(prepare).is_err(), "{name}");
        }
        let work = tempfile::tempdir().unwrap();
        assert!(Walk::over(&work.path().join("none"), "none", &CancellationToken::new()).is_err());
    }
}
