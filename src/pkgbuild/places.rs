//! Where builds happen on this machine, and what each may have of it.

use super::{Order, Origin};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Logs of builds kept on a node; the oldest go first.
pub const BUILD_LOGS_MAX: usize = 20;
const LOG_PREFIX: &str = "build-";

#[derive(Debug, Clone)]
pub struct Places {
    /// A folder a build, gone with it.
    pub work: PathBuf,
    /// Downloads, kept between builds.
    pub sources: PathBuf,
    pub logs: PathBuf,
    /// Records of the trees that builds run in.
    pub trees: PathBuf,
    /// This process's environment; a build gets what it may have of it.
    pub env: Vec<(String, String)>,
    pub rung_max: Option<String>,
    /// The program to run as shim; this one without.
    pub shim: Option<PathBuf>,
}

impl Places {
    /// A build of a recipe, called `run` among others of it. Makes room for its log.
    pub fn order(
        &self,
        recipe: &str,
        pkgbuild: String,
        origin: Arc<dyn Origin>,
        run: &str,
        trusted: Vec<String>,
    ) -> Order {
        forget_logs(&self.logs);
        Order {
            recipe: recipe.to_owned(),
            pkgbuild,
            origin,
            work: self.work.join(run),
            sources: self.sources.clone(),
            log: self.logs.join(format!("{LOG_PREFIX}{recipe}-{run}.log")),
            processes: self.trees.clone(),
            shim: self.shim.clone(),
            env: self.env.clone(),
            trusted,
            rung_max: self.rung_max.clone(),
        }
    }
}

/// Room for one more log.
fn forget_logs(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_builds =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LOG_PREFIX));
    let age =
        |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut logs: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_builds).collect();
    logs.sort_by_key(|path| std::cmp::Reverse(age(path)));
    for old in logs.iter().skip(BUILD_LOGS_MAX - 1) {
        // One that cannot be removed now is tried again with the next build.
        let _ = std::fs::remove_file(old);
    }
}
