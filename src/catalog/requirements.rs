//! What a recipe's `makedepends` mean on a machine that is no Arch Linux: which program to look for, and how each package
//! manager brings it.

use crate::pkgbuild::program_folders;
use crate::wire::{Code, Failure};
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// How to tell whether a package is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// A program on the PATH, by any of these names.
    Program(&'static [&'static str]),
    /// The compiler of CUDA, which its installer leaves off the PATH.
    Nvcc,
    /// The library that bindgen loads.
    Libclang,
}

/// A package by Arch's name, and what brings it elsewhere.
#[derive(Debug)]
pub struct Requirement {
    pub name: &'static str,
    pub probe: Probe,
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
    brew: &'static str,
}

const RUSTUP: &str = "install Rust with rustup: https://rustup.rs";
const CUDA: &str = "install the CUDA toolkit (https://developer.nvidia.com/cuda-downloads), \
                    or start the hive with CUDA_HOME set to where it is";
const XCODE: &str = "xcode-select --install";

/// Two names of one package may stand here: `rust` is what Arch calls what brings cargo.
pub static REQUIREMENTS: &[Requirement] = &[
    of("cargo", Probe::Program(&["cargo"]), RUSTUP, RUSTUP, RUSTUP, RUSTUP),
    of("rust", Probe::Program(&["cargo"]), RUSTUP, RUSTUP, RUSTUP, RUSTUP),
    of("gcc", Probe::Program(&["c++"]), "g++", "gcc-c++ glibc-static libstdc++-static", "gcc", XCODE),
    of("make", Probe::Program(&["make"]), "make", "make", "make", XCODE),
    of("cmake", Probe::Program(&["cmake"]), "cmake", "cmake", "cmake", "cmake"),
    of("ninja", Probe::Program(&["ninja", "ninja-build"]), "ninja-build", "ninja-build", "ninja", "ninja"),
    of("clang", Probe::Libclang, "libclang-dev", "clang-devel", "clang", "llvm"),
    of("cuda", Probe::Nvcc, CUDA, CUDA, "cuda", CUDA),
    of("git", Probe::Program(&["git"]), "git", "git", "git", "git"),
    of("python", Probe::Program(&["python3"]), "python3", "python3", "python", "python3"),
    of("python-pip", Probe::Program(&["pip3", "pip"]), "python3-pip", "python3-pip", "python-pip", "python3"),
];

const fn of(
    name: &'static str,
    probe: Probe,
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
    brew: &'static str,
) -> Requirement {
    Requirement { name, probe, apt, dnf, pacman, brew }
}

/// What a build would miss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// As the recipe names it.
    pub name: String,
    /// What to do about it on this machine.
    pub how: String,
}

/// Of a recipe's `makedepends`, what `find` does not find. Names that nobody here knows are left to the build.
pub fn missing(makedepends: &[String], find: impl Fn(Probe) -> bool) -> Vec<Missing> {
    let manager = Manager::ALL.into_iter().find(|manager| find(Probe::Program(manager.program())));
    let known = makedepends.iter().filter_map(|text| requirement(text));
    known
        .filter(|requirement| !find(requirement.probe))
        .map(|requirement| Missing { name: requirement.name.to_owned(), how: how(requirement, manager) })
        .collect()
}

/// Refuses a build for which something is missing, and says what to do about it. `env` is what the build will see.
pub fn check(recipe: &str, makedepends: &[String], env: &[(String, String)]) -> Result<(), Failure> {
    let env = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.into());
    let missing = missing(makedepends, |probe| is_here(probe, env));
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|missing| missing.name.as_str()).collect();
    let how: Vec<&str> = missing.iter().map(|missing| missing.how.as_str()).collect();
    let message =
        format!("{recipe} needs {} to be built, which this node lacks: {}", names.join(", "), how.join("; "));
    Err(Failure::new(Code::MissingDependencies, message).with(json!({"missing": names, "how": how})))
}

/// Of a recipe's `makedepends`, those that nobody here knows how to look for.
pub fn unknown(makedepends: &[String]) -> Vec<&str> {
    makedepends.iter().filter(|text| requirement(text).is_none()).map(String::as_str).collect()
}

fn requirement(text: &str) -> Option<&'static Requirement> {
    let name = text.split(['<', '>', '=']).next().unwrap_or_default();
    REQUIREMENTS.iter().find(|requirement| requirement.name == name)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Apt,
    Dnf,
    Pacman,
    Brew,
}

impl Manager {
    const ALL: [Manager; 4] = [Manager::Apt, Manager::Dnf, Manager::Pacman, Manager::Brew];

    fn program(self) -> &'static [&'static str] {
        match self {
            Manager::Apt => &["apt-get"],
            Manager::Dnf => &["dnf"],
            Manager::Pacman => &["pacman"],
            Manager::Brew => &["brew"],
        }
    }

    fn command(self) -> &'static str {
        match self {
            Manager::Apt => "sudo apt-get install",
            Manager::Dnf => "sudo dnf install",
            Manager::Pacman => "sudo pacman -S",
            Manager::Brew => "brew install",
        }
    }

    fn packages(self, requirement: &Requirement) -> &'static str {
        match self {
            Manager::Apt => requirement.apt,
            Manager::Dnf => requirement.dnf,
            Manager::Pacman => requirement.pacman,
            Manager::Brew => requirement.brew,
        }
    }
}

fn how(requirement: &Requirement, manager: Option<Manager>) -> String {
    let Some(manager) = manager else {
        return match [RUSTUP, CUDA].contains(&requirement.apt) {
            true => requirement.apt.to_owned(),
            false => format!("install {}", requirement.pacman),
        };
    };
    let packages = manager.packages(requirement);
    match [RUSTUP, CUDA, XCODE].contains(&packages) {
        true => packages.to_owned(),
        false => format!("{} {packages}", manager.command()),
    }
}

/// Whether this machine has it. `env` is the environment that the build will see.
pub fn is_here(probe: Probe, env: impl Fn(&str) -> Option<OsString>) -> bool {
    match probe {
        Probe::Program(names) => names.iter().any(|name| on_path(name, &env).is_some()),
        Probe::Nvcc => nvcc(&env).is_some(),
        Probe::Libclang => libclang(&env).is_some(),
    }
}

/// The program of a name, as a build finds it.
pub fn on_path(name: &str, env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    program_folders(env).into_iter().map(|folder| folder.join(name)).find(|path| is_program(path))
}

/// The compiler of CUDA: on the PATH, where the environment says, or where installers put it.
pub fn nvcc(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    const PLACES: [&str; 2] = ["/usr/local/cuda", "/opt/cuda"];
    let told = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| env(name)).map(PathBuf::from);
    let mut below = told.chain(PLACES.map(PathBuf::from)).map(|place| place.join("bin/nvcc"));
    on_path("nvcc", &env).or_else(|| below.find(|path| is_program(path)))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Where bindgen looks for its library: LIBCLANG_PATH, then these folders, `*` standing for any text in a name.
const LIBCLANG_PLACES: &[&str] = &[
    "/usr/lib/llvm*/lib",
    "/usr/lib/*-linux-gnu",
    "/usr/lib64/llvm*/lib",
    "/usr/lib64/llvm*/lib64",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/llvm*/lib",
    "/usr/local/opt/llvm*/lib",
    "/opt/homebrew/opt/llvm*/lib",
    "/Library/Developer/CommandLineTools/usr/lib",
    "/Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib",
];

/// The library that bindgen would load.
pub fn libclang(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let told = env("LIBCLANG_PATH").map(PathBuf::from);
    if let Some(file) = told.as_ref().filter(|path| path.is_file()) {
        return Some(file.clone());
    }
    told.into_iter().chain(LIBCLANG_PLACES.iter().flat_map(|place| folders(place))).find_map(|folder| {
        let mut names: Vec<PathBuf> = folder.read_dir().ok()?.flatten().map(|entry| entry.path()).collect();
        names.sort();
        names.into_iter().find(|path| is_libclang(path))
    })
}

fn is_libclang(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let versioned =
        name.strip_prefix("libclang-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    (name == "libclang.dylib" || name.starts_with("libclang.so") || versioned && name.contains(".so"))
        && path.is_file()
}

/// The folders that a pattern stands for; it has at most one `*`.
fn folders(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![pattern.into()] };
    let (parent, start) = before.rsplit_once('/').unwrap_or(("", before));
    let (end, rest) = after.split_once('/').unwrap_or((after, ""));
    let mut found: Vec<PathBuf> = Path::new(parent)
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.starts_with(start) && name.ends_with(end))
        })
        .map(|entry| entry.path().join(rest))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(makedepends: &[&str], there: &[&str]) -> Vec<String> {
        let makedepends: Vec<String> = makedepends.iter().map(|name| (*name).to_owned()).collect();
        let find = |probe| match probe {
            Probe::Program(names) => names.iter().any(|name| there.contains(name)),
            Probe::Nvcc => there.contains(&"nvcc"),
            Probe::Libclang => there.contains(&"libclang"),
        };
        missing(&makedepends, find).into_iter().map(|m| format!("{}: {}", m.name, m.how)).collect()
    }

    #[test]
    fn what_is_missing_is_told_in_the_words_of_the_machines_package_manager() {
        let needs = ["cargo", "gcc", "cmake>=3.18", "clang", "ninja"];
        assert_eq!(told(&needs, &["cargo", "c++", "cmake", "libclang", "ninja-build"]), Vec::<String>::new());
        assert_eq!(
            told(&needs, &["apt-get", "cargo", "ninja"]),
            [
                "gcc: sudo apt-get install g++",
                "cmake: sudo apt-get install cmake",
                "clang: sudo apt-get install libclang-dev"
            ]
        );
        assert_eq!(
            told(&["gcc", "clang"], &["brew"]),
            ["gcc: xcode-select --install", "clang: brew install llvm"]
        );
        assert_eq!(told(&["cuda"], &["pacman"]), ["cuda: sudo pacman -S cuda"]);
        assert!(told(&["cargo"], &["dnf"])[0].contains("rustup.rs"));
        assert_eq!(told(&["cmake"], &[]), ["cmake: install cmake"], "no package manager that we know");
        assert_eq!(told(&["gtest"], &[]), Vec::<String>::new());
        assert_eq!(unknown(&["gtest".into(), "cmake>=3".into()]), ["gtest"]);
    }

    #[test]
    fn a_library_is_found_by_pattern_and_a_program_only_if_it_can_be_run() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("llvm-18/lib/libclang-18.so.1");
        std::fs::create_dir_all(library.parent().unwrap()).unwrap();
        std::fs::write(&library, "").unwrap();
        let pattern = format!("{}/llvm*/lib", dir.path().display());
        assert_eq!(folders(&pattern), [library.parent().unwrap()]);
        let env = |name: &str| (name == "LIBCLANG_PATH").then(|| library.parent().unwrap().into());
        assert_eq!(libclang(env), Some(library.clone()));
        assert!(!is_libclang(&dir.path().join("libclang-cpp.so")));

        let program = dir.path().join("cmake");
        std::fs::write(&program, "").unwrap();
        let env = |name: &str| (name == "PATH").then(|| dir.path().into());
        assert_eq!(on_path("cmake", env), None);
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(on_path("cmake", env), Some(program));
    }

    #[test]
    fn what_rustup_brought_is_found_though_a_service_manager_gives_no_path_to_it() {
        let home = tempfile::tempdir().unwrap();
        let cargo = home.path().join(".cargo/bin/cargo");
        std::fs::create_dir_all(cargo.parent().unwrap()).unwrap();
        std::fs::write(&cargo, "").unwrap();
        std::fs::set_permissions(&cargo, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let env = |name: &str, path: &str| match name {
            "HOME" => Some(home.path().into()),
            "PATH" => Some(path.into()),
            _ => None,
        };
        assert_eq!(on_path("cargo", |name| env(name, "/nowhere")), Some(cargo));
    }

    #[test]
    fn every_requirement_of_the_recipes_in_the_tree_can_be_looked_for() {
        for entry in crate::catalog::built_in::entries() {
            assert_eq!(unknown(&entry.makedepends), Vec::<&str>::new(), "{}", entry.id);
        }
    }
}
