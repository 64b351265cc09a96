//! Which kernels: the instruction sets that the engine's kernels were compiled with, against those of this processor.
//!
//! What was compiled in and is not here would end the worker by SIGILL at the first token, so a worker looks before and
//! says what is missing. What is here and was not compiled in costs speed, up to 28 times, and nothing else tells it.

use super::llama;

/// What a build may use, by ggml's names, and whether this processor has it.
#[cfg(target_arch = "x86_64")]
fn processor() -> Vec<(&'static str, bool)> {
    vec![
        ("avx", std::is_x86_feature_detected!("avx")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("bmi2", std::is_x86_feature_detected!("bmi2")),
        ("f16c", std::is_x86_feature_detected!("f16c")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx_vnni", std::is_x86_feature_detected!("avxvnni")),
        ("avx512", std::is_x86_feature_detected!("avx512f")),
        ("avx512_vbmi", std::is_x86_feature_detected!("avx512vbmi")),
        ("avx512_vnni", std::is_x86_feature_detected!("avx512vnni")),
        ("avx512_bf16", std::is_x86_feature_detected!("avx512bf16")),
    ]
}

#[cfg(target_arch = "aarch64")]
fn processor() -> Vec<(&'static str, bool)> {
    vec![
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16_va", std::arch::is_aarch64_feature_detected!("fp16")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("matmul_int8", std::arch::is_aarch64_feature_detected!("i8mm")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ]
}

/// Elsewhere the target's baseline is all that is compiled in.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn processor() -> Vec<(&'static str, bool)> {
    Vec::new()
}

/// Instruction sets by ggml's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernels {
    /// Compiled in.
    pub used: Vec<&'static str>,
    /// Not compiled in, though this processor has them.
    pub unused: Vec<&'static str>,
}

/// Of this build, on this processor.
pub fn kernels() -> Kernels {
    let used = llama::kernels();
    let here = processor().into_iter().filter(|(_, has)| *has).map(|(name, _)| name);
    let unused = here.filter(|name| !used.contains(name)).collect();
    Kernels { used, unused }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "this processor lacks {0}, which the engine of this build needs; run the model on a newer machine of the fleet, or build an engine for this one: `rbee worker install cpu`"
)]
pub struct TooOld(String);

/// Must pass before anything of the engine runs.
pub fn check() -> Result<(), TooOld> {
    floor(&llama::kernels(), &processor())
}

fn floor(used: &[&str], processor: &[(&str, bool)]) -> Result<(), TooOld> {
    let is_missing = |name: &&str| processor.iter().any(|(known, has)| known == name && !has);
    let missing: Vec<&str> = used.iter().copied().filter(is_missing).collect();
    if missing.is_empty() { Ok(()) } else { Err(TooOld(missing.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_processor_is_told_what_it_lacks_of_what_was_compiled_in() {
        let old = [("avx", true), ("avx2", false), ("fma", false), ("avx512", false)];
        assert_eq!(floor(&["avx"], &old), Ok(()));
        let error = floor(&["avx", "avx2", "fma"], &old).unwrap_err();
        assert!(error.to_string().contains("lacks avx2, fma,"), "{error}");
    }

    #[test]
    fn what_is_compiled_in_is_known_by_name_here_and_what_is_unused_is_not_among_it() {
        let names: Vec<&str> = processor().into_iter().map(|(name, _)| name).collect();
        let kernels = kernels();
        assert!(kernels.used.iter().all(|name| names.contains(name)), "{kernels:?} and {names:?}");
        assert!(kernels.unused.iter().all(|name| !kernels.used.contains(name)), "{kernels:?}");
    }
}
