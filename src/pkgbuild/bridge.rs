//! Bash as the parser of PKGBUILDs: nothing else can expand what they hold. It runs only when a recipe is built, behind
//! walls, with little time and memory; listing recipes never comes here.

use super::execute::Stop;
use super::fields::{self, FIELDS_BYTES_MAX};
use super::lint;
use super::metadata::{Metadata, RecipeError};
use super::sandbox::{Phase, Sandbox};
use super::trees::Trees;
use super::work::Work;
use crate::process::{Exit, Spec};
use std::time::Duration;

const BRIDGE: &str = include_str!("bridge.sh");
/// A PKGBUILD as text.
const PKGBUILD_BYTES_MAX: usize = 256 * 1024;
/// From start to end of reading one, and its processor time.
const TIME_MAX: Duration = Duration::from_secs(5);
const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// What `ulimit -t` ends a shell with, and a file beyond its limit.
const SIGNAL_CPU: i32 = libc::SIGXCPU;
const SIGNAL_FILE: i32 = libc::SIGXFSZ;

/// Refuses what bash is not shown at all.
pub(super) fn check_text(pkgbuild: &str) -> Result<(), RecipeError> {
    if pkgbuild.len() > PKGBUILD_BYTES_MAX {
        return Err(RecipeError::TooLarge { bytes: pkgbuild.len(), max: PKGBUILD_BYTES_MAX });
    }
    if pkgbuild.contains('\r') {
        return Err(RecipeError::CarriageReturn);
    }
    if pkgbuild.contains('\0') {
        return Err(RecipeError::Nul);
    }
    Ok(())
}

/// Sources the PKGBUILD that lies in the work folder and reads what it declares.
pub(super) async fn metadata(
    work: &Work,
    sandbox: &Sandbox,
    trees: &Trees<'_>,
    pkgbuild: &str,
) -> Result<Metadata, Stop> {
    let script = work.ours.join("bridge.sh");
    let target = work.control.join("fields");
    std::fs::write(&script, BRIDGE).map_err(|e| work.failed("writing the bridge script", &e))?;

    let seconds = TIME_MAX.as_secs().to_string();
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let pkgbuild_path = text(&work.pkgbuild());
    let argv = ["bash", "--norc", "--noprofile", &text(&script), &pkgbuild_path, &text(&target), &seconds];
    let mut spec = Spec::new(trees.name("metadata"), argv);
    spec.program = Some(sandbox.bash()?);
    spec.env = sandbox.environment(Phase::Metadata, work);
    spec.cwd = Some(work.start.clone());
    let mut confine = sandbox.confine(Phase::Metadata, work);
    confine.file_bytes_max = Some(FIELDS_BYTES_MAX as u64);
    confine.memory_bytes_max = Some(MEMORY_BYTES_MAX);
    spec.confine = Some(confine);

    let ended = trees.run_for(spec, TIME_MAX).await?;
    let Some(ended) = ended else {
        return Err(RecipeError::TooSlow { seconds: TIME_MAX.as_secs() }.into());
    };
    match ended.exit {
        Exit::Code(0) => {}
        Exit::Signal(SIGNAL_CPU) => {
            return Err(RecipeError::TooSlow { seconds: TIME_MAX.as_secs() }.into());
        }
        Exit::Signal(SIGNAL_FILE) => return Err(RecipeError::FieldsTooLarge.into()),
        exit => {
            let tail = match ended.tail.is_empty() {
                true => "it said nothing".to_owned(),
                false => ended.tail.join("; ").replace(&pkgbuild_path, "PKGBUILD"),
            };
            return Err(RecipeError::Source { exit: exit.to_string(), tail }.into());
        }
    }
    // Bounded by the limit on files, except where there is none.
    let length = std::fs::symlink_metadata(&target).map(|meta| (meta.is_file(), meta.len()));
    let bytes = match length {
        Ok((true, length)) if length <= FIELDS_BYTES_MAX as u64 => {
            std::fs::read(&target).map_err(|e| work.failed("reading the fields of the PKGBUILD", &e))?
        }
        Ok((true, _)) => return Err(RecipeError::FieldsTooLarge.into()),
        // `exit 0` in the midst of a PKGBUILD.
        _ => return Err(RecipeError::Fields("the PKGBUILD ended the shell").into()),
    };
    let mut metadata = fields::read(&bytes, sandbox.architecture())?;
    metadata.warnings = lint::warnings(pkgbuild);
    Ok(metadata)
}
