//! The hub's own client, as people use it from Python: installed once below the build's folder, from the package index that
//! pip is set to.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

/// `None` where there is no Python, or no index to install from; then the tests that need it say so.
static PACKAGES: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hub-client");
    if folder.is_dir() {
        return Some(folder);
    }
    // Whole or not at all, and whoever else is at it may be first.
    let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]);
    pip.arg(fresh.path().join("packages")).arg("huggingface_hub").stdin(Stdio::null());
    pip.args(["--timeout", "10", "--retries", "1"]);
    let said = pip.output();
    match said {
        Ok(output) if output.status.success() => {
            let _ = std::fs::rename(fresh.path().join("packages"), &folder);
            folder.is_dir().then_some(folder)
        }
        other => {
            eprintln!("the hub's Python client cannot be installed: {other:?}");
            None
        }
    }
});

const IMPORTS: &str = "from huggingface_hub import HfApi, hf_hub_download, scan_cache_dir, snapshot_download";

/// Python with the hub's client, told of a hub and a cache.
pub struct HubClient {
    packages: PathBuf,
    home: PathBuf,
    pub endpoint: String,
    pub cache: PathBuf,
}

impl HubClient {
    pub fn new(home: &Path, endpoint: &str, cache: &Path) -> Option<HubClient> {
        let Some(packages) = PACKAGES.clone() else {
            eprintln!("skipped: there is no Python client of the hub here");
            return None;
        };
        Some(HubClient { packages, home: home.into(), endpoint: endpoint.into(), cache: cache.into() })
    }

    /// Runs a program in which the client is imported; `sys.argv[1:]` are the arguments.
    fn output(&self, program: &str, arguments: &[&str]) -> Output {
        let program = format!("import sys\n{IMPORTS}\n{program}");
        println!("python3 {arguments:?} {program}");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut python = Command::new("python3");
        python.arg("-c").arg(program).args(arguments).stdin(Stdio::null()).env_clear();
        python.env("PATH", path).env("HOME", &self.home).env("PYTHONPATH", &self.packages);
        python.env("HF_ENDPOINT", &self.endpoint).env("HF_HUB_CACHE", &self.cache);
        for switch in ["HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"] {
            python.env(switch, "1");
        }
        // Where python3 is a chooser's, it needs to know what to choose.
        for name in ["PYENV_ROOT", "PYENV_VERSION"] {
            if let Some(value) = std::env::var_os(name) {
                python.env(name, value);
            }
        }

        python.output().unwrap()
    }

    /// The lines it prints; it must go well and without a warning.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> Vec<String> {
        let output = self.output(program, arguments);
        let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{told}{said}");
        assert_eq!(told, "", "it warns of nothing");
        said.lines().map(str::to_owned).collect()
    }
}
