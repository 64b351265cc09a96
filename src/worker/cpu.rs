//! The CPU floor. The engine's kernels are compiled for AVX2-class machines; on an older one the first of them would
//! die of SIGILL, so a worker looks first and says what is missing.

/// What the kernels were compiled with (the same list is in .cargo/config.toml).
#[cfg(target_arch = "x86_64")]
fn features() -> [(&'static str, bool); 6] {
    [
        ("sse4.2", std::is_x86_feature_detected!("sse4.2")),
        ("avx", std::is_x86_feature_detected!("avx")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("bmi2", std::is_x86_feature_detected!("bmi2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("f16c", std::is_x86_feature_detected!("f16c")),
    ]
}

/// Other architectures: the baseline of the target is all that is compiled in.
#[cfg(not(target_arch = "x86_64"))]
fn features() -> [(&'static str, bool); 0] {
    []
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "this processor lacks {0}, which the engine of this build needs (any x86-64 since about 2013 has them); run the model on a newer machine of the fleet"
)]
pub struct TooOld(String);

/// Must pass before anything of the engine runs.
pub fn check() -> Result<(), TooOld> {
    floor(&features())
}

fn floor(features: &[(&str, bool)]) -> Result<(), TooOld> {
    let missing: Vec<&str> = features.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(TooOld(missing.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_processor_is_told_what_it_lacks() {
        assert_eq!(floor(&[("avx", true), ("fma", true)]), Ok(()));
        let error = floor(&[("sse4.2", true), ("avx2", false), ("fma", false)]).unwrap_err();
        assert!(error.to_string().contains("lacks avx2, fma,"), "{error}");
    }
}
