//! A build's own folder: made at its start, gone at its end, however that comes.
//!
//! ```text
//! builds/<job>/
//!   ours/             our scripts, and chown and its like without effect for package(); the recipe cannot write here
//!   start/            $startdir: the PKGBUILD, links to the sources
//!     src/            $srcdir
//!   pkg/              $pkgdir below it; written by package() alone
//!   home/  cargo/  tmp/
//!   control/          what our scripts tell us
//! ```
//!
//! What runs behind the walls may write in these folders and not beside them, so that none of them is ever replaced by a
//! link. Whatever we write after a recipe's code has run lies where that code could not: a link put there would have us
//! write to a file of the person's. What is read from where it could is looked at first.

use crate::process::remove_tree;
use crate::wire::job::Receipt;
use crate::wire::{Code, Failure};
use std::error::Error;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Without fakeroot, a person's build cannot give files away, and root's has no capability to. What a package is owned
/// by is not kept anyway: its files belong to whom the node's daemon runs as.
const NO_OWNERS: &str = "#!/bin/sh\nexit 0\n";
/// `install` with its owner and group left out.
const INSTALL: &str = r#"#!/usr/bin/env bash
words=()
while (($#)); do
    case $1 in
        --) words+=("$@"); break ;;
        -o | -g | --owner | --group) shift ;;
        --owner=* | --group=* | -o?* | -g?*) ;;
        -m | -t | -S | --mode | --target-directory | --suffix) words+=("$1" "$2"); shift ;;
        -[!-]*[og]) words+=("${1%?}"); shift ;;
        *) words+=("$1") ;;
    esac
    shift
done
exec "@INSTALL@" "${words[@]}"
"#;

#[derive(Debug)]
pub(super) struct Work {
    pub root: PathBuf,
    pub start: PathBuf,
    pub sources: PathBuf,
    pub packages: PathBuf,
    pub home: PathBuf,
    pub cargo: PathBuf,
    pub temporary: PathBuf,
    pub control: PathBuf,
    pub ours: PathBuf,
    pub owners: PathBuf,
    /// When this began, which dates what is built unless the daemon's environment says otherwise.
    pub epoch_seconds: u64,
    is_removed: bool,
}

impl Work {
    /// Makes the folders; what an earlier build of the same name left is removed first.
    pub(super) fn make(root: &Path) -> Result<Work, Failure> {
        let absolute = std::path::absolute(root).map_err(|error| failed("finding", root, &error))?;
        let start = absolute.join("start");
        let work = Work {
            sources: start.join("src"),
            packages: absolute.join("pkg"),
            start,
            home: absolute.join("home"),
            cargo: absolute.join("cargo"),
            temporary: absolute.join("tmp"),
            control: absolute.join("control"),
            ours: absolute.join("ours"),
            owners: absolute.join("ours/owners"),
            root: absolute,
            epoch_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            is_removed: false,
        };
        remove_tree(&work.root).map_err(|error| failed("removing the old", &work.root, &error))?;
        let folder = |path: &Path, mode: u32| {
            let made = DirBuilder::new().recursive(true).mode(mode).create(path);
            made.map_err(|error| failed("making", path, &error))
        };
        folder(&work.root, 0o700)?;
        let folders = [
            &work.start,
            &work.sources,
            &work.packages,
            &work.home,
            &work.cargo,
            &work.temporary,
            &work.control,
            &work.owners,
        ];
        for path in folders {
            folder(path, 0o755)?;
        }
        Ok(work)
    }

    pub(super) fn pkgbuild(&self) -> PathBuf {
        self.start.join("PKGBUILD")
    }

    /// What a package's own `chown`, `chgrp` and `install` are in package().
    pub(super) fn write_owners(&self, install: Option<&Path>) -> Result<(), Failure> {
        let install = install.map(|program| INSTALL.replace("@INSTALL@", &program.to_string_lossy()));
        let owners = [("chown", NO_OWNERS.to_owned()), ("chgrp", NO_OWNERS.to_owned())];
        for (name, text) in owners.into_iter().chain(install.map(|text| ("install", text))) {
            let path = self.owners.join(name);
            let mut options = std::fs::OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o755).open(&path);
            file.and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
                .map_err(|error| failed("writing", &path, &error))?;
        }
        Ok(())
    }

    pub(super) fn failed(&self, attempt: &str, error: &(dyn Error + 'static)) -> Failure {
        failed(attempt, &self.root, error)
    }

    /// Removes it all; what that gave back.
    pub(super) async fn remove(mut self) -> Receipt {
        self.is_removed = true;
        let root = self.root.clone();
        let removed = tokio::task::spawn_blocking(move || remove_tree(&root)).await;
        match removed {
            Ok(Ok(bytes_removed)) => Receipt { bytes_removed, ..Receipt::default() },
            Ok(Err(error)) => {
                tracing::warn!(folder = %self.root.display(), %error, "a build's folder could not be removed");
                Receipt { clean: false, ..Receipt::default() }
            }
            Err(_) => Receipt { clean: false, ..Receipt::default() },
        }
    }
}

impl Drop for Work {
    /// For a build whose future was dropped, and a package that nobody installed.
    fn drop(&mut self) {
        if !self.is_removed
            && let Err(error) = remove_tree(&self.root)
        {
            tracing::warn!(folder = %self.root.display(), %error, "a build's folder could not be removed");
        }
    }
}

/// A folder's name and cause; a full disk has its own code.
pub(super) fn failed(attempt: &str, path: &Path, error: &(dyn Error + 'static)) -> Failure {
    let is_full = error.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    });
    let code = if is_full { Code::InsufficientDisk } else { Code::Internal };
    Failure::new(code, format!("{attempt} `{}`: {}", path.display(), crate::wire::failure::chain(error)))
}

/// Removes what builds of a hive that was killed have left; for a hive's start, before it builds.
pub fn sweep_work(builds: &Path) -> u64 {
    let left = builds.read_dir().into_iter().flatten().flatten();
    left.map(|entry| match remove_tree(&entry.path()) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::warn!(folder = %entry.path().display(), %error, "what a build left could not be removed");
            0
        }
    })
    .sum()
}
