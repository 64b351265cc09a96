//! The walls around a build: the system's programs and the toolchain to read, its own work folder to write, nothing of
//! the person's home.

use super::mirrors::Mirrors;
use super::toolchain;
use super::work::Work;
use crate::process::Confine;
use crate::wire::{Code, Failure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where systems keep programs, libraries and headers. What holds secrets (/etc, /root, /home, /var, /run) is not here.
const SYSTEM: [&str; 17] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/nix/store",
    "/gnu/store",
    "/run/current-system",
    "/home/linuxbrew/.linuxbrew",
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/Library/Developer",
    "/System",
];
/// Of /etc, what loaders, compilers and interpreters look up. The rest may hold keys: rbee's own, when it runs as root.
const ETC: [&str; 26] = [
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "ld.so.preload",
    "alternatives",
    "passwd",
    "group",
    "nsswitch.conf",
    "localtime",
    "timezone",
    "os-release",
    "lsb-release",
    "debian_version",
    "arch-release",
    "redhat-release",
    "python3",
    "perl",
    "java-openjdk",
    "clang",
    "OpenCL",
    "mime.types",
    "magic",
    "terminfo",
    "inputrc",
    "crypto-policies",
    "static",
];
/// Of /etc, what programs that use the network need besides.
const ETC_NETWORK: [&str; 9] = [
    "resolv.conf",
    "hosts",
    "host.conf",
    "gai.conf",
    "services",
    "protocols",
    "ssl/certs",
    "ssl/openssl.cnf",
    "ca-certificates",
];
/// A package index' certificates, on other systems than Debian.
const CERTIFICATES: [&str; 3] = ["/etc/pki/tls", "/etc/pki/ca-trust/extracted", "/etc/ssl/cert.pem"];
/// Passed on in all phases: which tools and where, never a secret.
const NAMES: [&str; 31] = [
    "LANG",
    "LANGUAGE",
    "TZ",
    "CC",
    "CXX",
    "AR",
    "NM",
    "RANLIB",
    "LD",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDACXX",
    "CUDAARCHS",
    "CUDAHOSTCXX",
    "NVCC_PREPEND_FLAGS",
    "LIBCLANG_PATH",
    "LLVM_CONFIG_PATH",
    "BINDGEN_EXTRA_CLANG_ARGS",
    "CMAKE",
    "CMAKE_PREFIX_PATH",
    "PKG_CONFIG_PATH",
    "LD_LIBRARY_PATH",
    "LIBRARY_PATH",
    "CPATH",
    "PYENV_ROOT",
    "PYENV_VERSION",
    "SDKROOT",
    "DEVELOPER_DIR",
    "MACOSX_DEPLOYMENT_TARGET",
    "HOMEBREW_PREFIX",
    "SOURCE_DATE_EPOCH",
];
/// Whose values name folders (lists of them) that tools read.
const FOLDER_NAMES: [&str; 11] = [
    "CUDA_HOME",
    "CUDA_PATH",
    "LIBCLANG_PATH",
    "CMAKE_PREFIX_PATH",
    "PKG_CONFIG_PATH",
    "LD_LIBRARY_PATH",
    "LIBRARY_PATH",
    "CPATH",
    "PYENV_ROOT",
    "SDKROOT",
    "DEVELOPER_DIR",
];

/// What runs behind the walls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Reads the PKGBUILD; writes only its answer.
    Metadata,
    /// Works in the work folder, without a network.
    Offline,
    /// prepare() of a recipe that asked for the network.
    Networked,
    /// package(): as offline, with the ownership of files out of reach.
    Package,
}

/// What the trees of one build share.
#[derive(Debug)]
pub(super) struct Sandbox {
    path: String,
    read: Vec<PathBuf>,
    environment: Vec<(String, String)>,
    mirrors: Mirrors,
    given: BTreeMap<String, String>,
}

impl Sandbox {
    /// From the daemon's environment, of which only what is listed goes further.
    pub(super) fn new(given: &[(String, String)]) -> Sandbox {
        let given: BTreeMap<String, String> = given.iter().cloned().collect();
        let folders = toolchain::folders(&given);
        let path: Vec<String> = folders.path.iter().map(|path| path.to_string_lossy().into_owned()).collect();

        let mut read: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
        read.extend(ETC.iter().map(|name| Path::new("/etc").join(name)));
        read.extend(folders.read);
        let named = FOLDER_NAMES.iter().filter_map(|name| given.get(*name));
        let named = named.flat_map(|value| std::env::split_paths(value).collect::<Vec<_>>());
        read.extend(named.filter(|path| path.is_absolute() && !is_a_home(path, &given)));

        let mut environment: Vec<(String, String)> = Vec::new();
        let wanted = |name: &str| NAMES.contains(&name) || name.starts_with("LC_");
        environment
            .extend(given.iter().filter(|(name, _)| wanted(name)).map(|(n, v)| (n.clone(), v.clone())));
        let mirrors = Mirrors::of(&given);
        Sandbox { path: path.join(":"), read, environment, mirrors, given }
    }

    /// As PKGBUILDs name this node's architecture.
    pub(super) fn architecture(&self) -> &'static str {
        match std::env::consts::ARCH {
            "x86" => "i686",
            "arm" => "armv7h",
            other => other,
        }
    }

    /// The shell, which also makepkg needs.
    pub(super) fn bash(&self) -> Result<PathBuf, Failure> {
        const MISSING: &str = if cfg!(target_os = "macos") {
            "a bash that reads and runs recipes is missing, and the one of macOS is too old: `brew install bash`"
        } else {
            "bash is missing, which reads and runs recipes: install the package `bash`"
        };
        // A Mac's own is of 2007.
        let is_too_old = |path: &PathBuf| cfg!(target_os = "macos") && path.starts_with("/bin");
        let found = self.tools("bash").find(|path| !is_too_old(path));
        found.ok_or_else(|| Failure::new(Code::MissingDependencies, MISSING))
    }

    pub(super) fn tool(&self, name: &str) -> Option<PathBuf> {
        self.tools(name).next()
    }

    fn tools(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        std::env::split_paths(&self.path).map(move |folder| folder.join(name)).filter(|path| path.is_file())
    }

    /// What a person should know of what was left out.
    pub(super) fn warnings(&self) -> &[String] {
        &self.mirrors.warnings
    }

    /// What cargo is told of registries, without their keys.
    pub(super) fn cargo_config(&self) -> Option<&str> {
        self.mirrors.cargo_config.as_deref()
    }

    pub(super) fn confine(&self, phase: Phase, work: &Work) -> Confine {
        let mut read = self.read.clone();
        read.push(work.root.clone());
        let mut write = vec![work.control.clone(), work.temporary.clone()];
        if phase != Phase::Metadata {
            write.extend([work.start.clone(), work.home.clone(), work.cargo.clone()]);
        }
        if phase == Phase::Package {
            write.push(work.packages.clone());
        }
        if phase == Phase::Networked {
            read.extend(ETC_NETWORK.iter().map(|name| Path::new("/etc").join(name)));
            read.extend(CERTIFICATES.iter().map(PathBuf::from));
            read.extend(self.mirrors.read.iter().cloned());
        }
        let network = phase == Phase::Networked;
        Confine { read, write, network, ..Confine::default() }
    }

    pub(super) fn environment(&self, phase: Phase, work: &Work) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut all = self.environment.clone();
        let mut set = |name: &str, value: String| {
            all.retain(|(known, _)| known != name);
            all.push((name.to_owned(), value));
        };
        let path = match phase {
            Phase::Package => format!("{}:{}", text(&work.owners), self.path),
            _ => self.path.clone(),
        };
        set("PATH", path);
        set("HOME", text(&work.home));
        set("TMPDIR", text(&work.temporary));
        set("CARCH", self.architecture().to_owned());
        set("CHOST", host());
        set("MAKEFLAGS", format!("-j{}", parallelism()));
        if !self.given.contains_key("SOURCE_DATE_EPOCH") {
            set("SOURCE_DATE_EPOCH", work.epoch_seconds.to_string());
        }
        if phase != Phase::Metadata {
            set("CARGO_HOME", text(&work.cargo));
            set("PIP_CONFIG_FILE", "/dev/null".to_owned());
            set("GIT_CONFIG_NOSYSTEM", "1".to_owned());
        }
        if phase == Phase::Networked {
            all.extend(self.mirrors.environment.iter().cloned());
        }
        all
    }
}

/// A home folder, whole, is never what a tool needs.
fn is_a_home(path: &Path, given: &BTreeMap<String, String>) -> bool {
    let home = given.get("HOME").map(Path::new);
    home.is_some_and(|home| home.starts_with(path)) || path.parent().is_none()
}

/// Whether a program there can be read behind the walls without more being allowed.
pub(super) fn is_of_the_system(path: &Path) -> bool {
    SYSTEM.iter().any(|folder| path.starts_with(folder))
}

fn host() -> String {
    let system = if cfg!(target_os = "macos") { "apple-darwin" } else { "pc-linux-gnu" };
    format!("{}-{system}", std::env::consts::ARCH)
}

fn parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
