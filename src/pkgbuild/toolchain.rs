//! Where a build finds its tools: the daemon's PATH, without what a home folder hides behind the walls.
//!
//! cargo and rustc are usually rustup's proxies, which read and write ~/.rustup. A build gets the toolchain behind them
//! instead, to read only.

use super::sandbox::is_of_the_system;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where there is no PATH.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const HOMEBREW: [&str; 2] = ["/opt/homebrew/bin", "/usr/local/bin"];
/// Beside a folder of programs under a home: what the programs in it load.
const BESIDE_PROGRAMS: [&str; 4] = ["lib", "lib64", "libexec", "include"];
/// Beside the compiler of CUDA besides: what it runs, and what it compiles and links against.
const BESIDE_NVCC: [&str; 2] = ["nvvm", "targets"];
/// Programs in such a folder are scripts that ask a version manager, whose folder is the parent.
const SHIMS: &str = "shims";

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Folders {
    /// PATH behind the walls.
    pub path: Vec<PathBuf>,
    /// What must be readable for it.
    pub read: Vec<PathBuf>,
}

/// Where a build's programs are looked for: the PATH, then folders that a person's shell adds to it and a service manager
/// does not: rustup's, and Homebrew's on a Mac.
pub fn program_folders(env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = env("PATH").unwrap_or_else(|| PATH_DEFAULT.into());
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend(env("HOME").map(|home| Path::new(&home).join(".cargo/bin")));
    if cfg!(target_os = "macos") {
        folders.extend(HOMEBREW.map(PathBuf::from));
    }
    folders
}

/// The folders of programs that a build may use, in the order of the daemon's.
pub(super) fn folders(given: &BTreeMap<String, String>) -> Folders {
    let mut folders = Folders::default();
    let toolchain = rust_toolchain(given);
    let cuda = ["CUDA_HOME", "CUDA_PATH"].iter().find_map(|name| given.get(*name)).map(Path::new);
    let listed = program_folders(|name| given.get(name).map(Into::into));
    for folder in listed.into_iter().chain(cuda.map(|home| home.join("bin"))) {
        if !folder.is_absolute() || !folder.is_dir() || folders.path.contains(&folder) {
            continue;
        }
        if folder.join("rustup").exists()
            && let Some(toolchain) = &toolchain
        {
            let programs = toolchain.join("bin");
            if !folders.path.contains(&programs) {
                folders.path.push(programs);
                folders.read.push(toolchain.clone());
            }
        }
        if !is_of_the_system(&folder) {
            folders.read.extend(needed_by(&folder));
        }
        folders.path.push(folder);
    }
    folders
}

fn needed_by(folder: &Path) -> Vec<PathBuf> {
    let mut needed = vec![folder.to_owned()];
    if let Some(parent) = folder.parent() {
        if folder.ends_with(SHIMS) {
            needed.push(parent.to_owned());
        }
        let more: &[&str] = if folder.join("nvcc").exists() { &BESIDE_NVCC } else { &[] };
        let beside = BESIDE_PROGRAMS.iter().chain(more).map(|name| parent.join(name));
        needed.extend(beside.filter(|path| path.is_dir()));
    }
    needed
}

/// The folder of the toolchain that rustup's proxies would run.
fn rust_toolchain(given: &BTreeMap<String, String>) -> Option<PathBuf> {
    let home = given.get("RUSTUP_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(given.get("HOME")?).join(".rustup")))?;
    let name = given.get("RUSTUP_TOOLCHAIN").cloned().or_else(|| {
        let settings = std::fs::read_to_string(home.join("settings.toml")).ok()?;
        let settings: toml::Table = settings.parse().ok()?;
        Some(settings.get("default_toolchain")?.as_str()?.to_owned())
    })?;
    let toolchains = home.join("toolchains");
    let exact = toolchains.join(&name);
    if exact.join("bin").is_dir() {
        return exact.canonicalize().ok();
    }
    // `stable` stands for `stable-x86_64-unknown-linux-gnu`.
    let found = toolchains.read_dir().ok()?.flatten();
    let mut found: Vec<PathBuf> = found
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{name}-")))
        .map(|entry| entry.path())
        .filter(|path| path.join("bin").is_dir())
        .collect();
    found.sort();
    found.first()?.canonicalize().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &Path)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).into(), value.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn the_toolchain_stands_before_its_proxies_and_the_home_stays_hidden() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        let (cargo, rustup) = (home.join(".cargo/bin"), home.join(".rustup"));
        let toolchain = rustup.join("toolchains/stable-x");
        std::fs::create_dir_all(&cargo).unwrap();
        std::fs::create_dir_all(toolchain.join("bin")).unwrap();
        std::fs::write(cargo.join("rustup"), "").unwrap();
        std::fs::write(rustup.join("settings.toml"), "default_toolchain = \"stable\"\n").unwrap();
        let found = folders(&given(&[("HOME", &home), ("PATH", &cargo)]));
        assert_eq!(found.path, [toolchain.join("bin"), cargo.clone()]);
        assert!(found.read.contains(&toolchain) && !found.read.contains(&home));
        // Without a PATH that has it, too.
        assert!(folders(&given(&[("HOME", &home)])).path.contains(&toolchain.join("bin")));
    }

    #[test]
    fn a_version_managers_scripts_may_read_the_version_manager() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        let shims = home.join(".pyenv/shims");
        std::fs::create_dir_all(&shims).unwrap();
        std::fs::create_dir_all(home.join(".local/bin")).unwrap();
        let path = std::env::join_paths([&shims, &home.join(".local/bin")]).unwrap();
        let found = folders(&given(&[("PATH", Path::new(&path)), ("HOME", &home)]));
        assert!(found.read.contains(&home.join(".pyenv")));
        assert!(found.read.contains(&home.join(".local/bin")) && !found.read.contains(&home.join(".local")));
    }

    #[test]
    fn the_compiler_of_cuda_runs_from_wherever_the_path_has_it() {
        let place = tempfile::tempdir().unwrap();
        let toolkit = place.path().canonicalize().unwrap().join("toolkit");
        for name in ["bin", "nvvm", "targets", "include"] {
            std::fs::create_dir_all(toolkit.join(name)).unwrap();
        }
        let read = || folders(&given(&[("PATH", &toolkit.join("bin"))])).read;
        assert!(!read().contains(&toolkit.join("nvvm")), "another program's neighbours are not its own");
        std::fs::write(toolkit.join("bin/nvcc"), "").unwrap();
        let read = read();
        for name in ["bin", "nvvm", "targets", "include"] {
            assert!(read.contains(&toolkit.join(name)), "{name}");
        }
    }
}
