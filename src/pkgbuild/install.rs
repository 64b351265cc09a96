//! From a checked package to `workers/<id>/<version>/`: by rename, `current` switched last, the version before removed
//! after. Whenever this is cut short, `current` names a whole version or there was none.

use super::lint;
use super::package::{Built, Contents, Entry, Kind};
use super::work::failed;
use crate::process::remove_tree;
use crate::wire::{Code, Failure};
use serde::Serialize;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Packages have no hidden files at their top, so this is never one of theirs.
pub const MANIFEST: &str = ".manifest.json";
const CURRENT: &str = "current";
/// What is being made and is nobody's yet.
const FRESH: &str = ".new-";
/// What has made way and is about to go.
const STALE: &str = ".old-";

/// What a recipe's entry says of its binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// The folder below the package's, or the file itself.
    pub install_path: String,
    pub binary_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// `[epoch:]pkgver-pkgrel`.
    pub version: String,
    /// `workers/<id>/<version>`.
    pub path: PathBuf,
    /// The program, below `workers/<id>/current`.
    pub binary: PathBuf,
    pub size_bytes: u64,
    pub files: usize,
}

/// What lies beside the installed files, for a person and for later versions.
#[derive(Serialize)]
struct Manifest<'a, T: Serialize> {
    #[serde(flatten)]
    told: T,
    pkgbase: &'a str,
    package_version: &'a str,
    binary: &'a str,
    size_bytes: u64,
    files: &'a [Entry],
}

impl Declared {
    /// The binary's path in the package.
    fn file(&self) -> String {
        let path = self.install_path.trim_matches('/');
        let is_file = path == self.binary_name || path.ends_with(&format!("/{}", self.binary_name));
        match (path.is_empty(), is_file) {
            (true, _) => self.binary_name.clone(),
            (false, true) => path.to_owned(),
            (false, false) => format!("{path}/{}", self.binary_name),
        }
    }
}

impl Built {
    /// Installs the package that holds the declared binary. `manifest` is told with the files in a JSON file beside them.
    pub async fn install(
        self,
        into: &Path,
        declared: &Declared,
        manifest: impl Serialize,
    ) -> Result<Installed, Failure> {
        let told = serde_json::to_value(&manifest).map_err(|error| Failure::internal(&error))?;
        let Built { metadata, package, work } = self;
        let (into, file) = (into.to_owned(), declared.file());
        let placed = tokio::task::spawn_blocking(move || {
            let folder = lint::version_folder(metadata.epoch, &metadata.pkgver, &metadata.pkgrel);
            let contents = package.holding(&file).ok_or_else(|| missing(&file))?;
            let place = Place { into, folder };
            let installed = place.install(contents, &file, |size_bytes| {
                serde_json::to_vec_pretty(&Manifest {
                    told,
                    pkgbase: &metadata.pkgbase,
                    package_version: &metadata.version(),
                    binary: &file,
                    size_bytes,
                    files: &contents.entries,
                })
            })?;
            Ok(Installed { version: metadata.version(), ..installed })
        });
        let outcome = placed.await.map_err(|error| Failure::internal(&error));
        work.remove().await;
        outcome?
    }
}

fn missing(file: &str) -> Failure {
    Failure::new(Code::BuildFailed, format!("the package does not hold `{file}`, which the recipe declares"))
        .with(serde_json::json!({"phase": "package", "exit_code": null}))
}

struct Place {
    into: PathBuf,
    folder: String,
}

impl Place {
    fn install(
        &self,
        contents: &Contents,
        file: &str,
        manifest: impl FnOnce(u64) -> serde_json::Result<Vec<u8>>,
    ) -> Result<Installed, Failure> {
        let is_program = contents.entries.iter().any(|entry| {
            entry.path == file && matches!(entry.kind, Kind::File { mode, .. } if mode & 0o111 != 0)
        });
        // A link to a program inside is one as well.
        let is_program = is_program
            || contents
                .root
                .join(file)
                .metadata()
                .is_ok_and(|status| status.is_file() && status.permissions().mode() & 0o111 != 0);
        if !is_program {
            let sentence = format!("`{file}` of the package, which the recipe declares, is not a program");
            return Err(Failure::new(Code::BuildFailed, sentence)
                .with(serde_json::json!({"phase": "package", "exit_code": null})));
        }
        let sizes = contents.entries.iter().map(|entry| match entry.kind {
            Kind::File { size, .. } => size,
            Kind::Folder | Kind::Link { .. } => 0,
        });
        let size_bytes: u64 = sizes.sum();
        let manifest = manifest(size_bytes).map_err(|error| Failure::internal(&error))?;

        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create(&self.into)
            .map_err(|e| failed("making", &self.into, &e))?;
        self.sweep();
        let fresh = self.into.join(format!("{FRESH}{}", crate::wire::id::fresh()));
        let placed = self.place(contents, &fresh, &manifest);
        if let Err(error) = placed {
            // What stays is swept by the next installation.
            let _ = remove_tree(&fresh);
            return Err(failed("installing into", &self.into, &error));
        }
        let path = self.into.join(&self.folder);
        self.sweep_others();
        let files = contents.entries.iter().filter(|entry| matches!(entry.kind, Kind::File { .. })).count();
        let binary = self.into.join(CURRENT).join(file);
        Ok(Installed { version: String::new(), path, binary, size_bytes, files })
    }

    /// Everything up to the switch; each step leaves what is current whole.
    fn place(&self, contents: &Contents, fresh: &Path, manifest: &[u8]) -> io::Result<()> {
        match std::fs::rename(&contents.root, fresh) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy(&contents.root, fresh)?,
            other => other?,
        }
        std::fs::set_permissions(fresh, std::fs::Permissions::from_mode(0o755))?;
        let mut file = File::create_new(fresh.join(MANIFEST))?;
        file.write_all(manifest)?;
        sync(fresh)?;

        let path = self.into.join(&self.folder);
        if path.symlink_metadata().is_ok() {
            // The same version once more. Exchanged in one step where the system can; `current` is never without.
            let stale = self.into.join(format!("{STALE}{}", crate::wire::id::fresh()));
            if !exchange(fresh, &path)? {
                std::fs::rename(&path, &stale)?;
                std::fs::rename(fresh, &path)?;
            }
        } else {
            std::fs::rename(fresh, &path)?;
        }
        let link = self.into.join(format!("{FRESH}{}", crate::wire::id::fresh()));
        symlink(&self.folder, &link)?;
        std::fs::rename(&link, self.into.join(CURRENT))?;
        File::open(&self.into)?.sync_all()
    }

    /// What earlier installations left half done.
    fn sweep(&self) {
        self.remove_where(|name| name.starts_with(FRESH) || name.starts_with(STALE));
    }

    fn sweep_others(&self) {
        self.remove_where(|name| name != CURRENT && name != self.folder);
    }

    fn remove_where(&self, goes: impl Fn(&str) -> bool) {
        for entry in self.into.read_dir().into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !goes(&name) {
                continue;
            }
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = match is_folder {
                true => remove_tree(&entry.path()).map(|_| ()),
                false => std::fs::remove_file(entry.path()),
            };
            if let Err(error) = removed {
                tracing::warn!(path = %entry.path().display(), %error, "an older version could not be removed");
            }
        }
    }
}

/// Two folders change names in one step; false where the system or its file system cannot.
#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_one: &Path, _other: &Path) -> io::Result<bool> {
    Ok(false)
}

/// To another file system. What was checked is copied and nothing else: no owners, no special bits.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in from.read_dir()? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(std::fs::read_link(&source)?, &target)?;
        } else {
            std::fs::copy(&source, &target)?;
        }
    }
    std::fs::set_permissions(to, from.metadata()?.permissions())
}

/// All below to the disk, files before the folders that name them.
fn sync(folder: &Path) -> io::Result<()> {
    for entry in folder.read_dir()? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binarys_place_may_be_its_folder_or_itself() {
        let file =
            |path: &str| Declared { install_path: path.into(), binary_name: "llama-server".into() }.file();
        assert_eq!(file("bin"), "bin/llama-server");
        assert_eq!(file("/usr/local/bin/"), "usr/local/bin/llama-server");
        assert_eq!(file("bin/llama-server"), "bin/llama-server");
        assert_eq!(file("llama-server"), "llama-server");
        assert_eq!(file(""), "llama-server");
    }

    #[test]
    fn a_version_replaces_the_one_before_and_the_same_replaces_itself() {
        let state = tempfile::tempdir().unwrap();
        let into = state.path().join("workers/w");
        let install = |folder: &str, text: &str| {
            let root = state.path().join("pkg");
            std::fs::create_dir_all(root.join("bin")).unwrap();
            std::fs::write(root.join("bin/w"), text).unwrap();
            let mode = 0o755;
            std::fs::set_permissions(root.join("bin/w"), std::fs::Permissions::from_mode(mode)).unwrap();
            let kind = Kind::File { size: text.len() as u64, mode, sha256: String::new() };
            let contents = Contents { root, entries: vec![Entry { path: "bin/w".into(), kind }] };
            let place = Place { into: into.clone(), folder: folder.into() };
            place.install(&contents, "bin/w", |_| Ok(b"{}".to_vec())).unwrap()
        };
        let names = || {
            let mut names: Vec<_> =
                into.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let installed = install("1-1", "one");
        assert_eq!(installed.binary, into.join("current/bin/w"));
        assert_eq!((installed.size_bytes, installed.files), (3, 1));
        install("1-1", "again");
        assert_eq!(std::fs::read_to_string(into.join("current/bin/w")).unwrap(), "again");
        std::fs::create_dir(into.join(".new-left")).unwrap();
        install("2-1", "two");
        assert_eq!(std::fs::read_to_string(into.join("current/bin/w")).unwrap(), "two");
        assert_eq!(names(), ["2-1", "current"]);
    }

    #[test]
    fn what_is_no_program_is_not_installed() {
        let state = tempfile::tempdir().unwrap();
        let root = state.path().join("pkg");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("w"), "x").unwrap();
        let kind = Kind::File { size: 1, mode: 0o644, sha256: String::new() };
        let contents = Contents { root, entries: vec![Entry { path: "w".into(), kind }] };
        let place = Place { into: state.path().join("workers"), folder: "1-1".into() };
        let refused = place.install(&contents, "w", |_| Ok(Vec::new())).unwrap_err();
        assert_eq!(refused.code, Code::BuildFailed);
        assert!(!state.path().join("workers").exists());
    }
}
