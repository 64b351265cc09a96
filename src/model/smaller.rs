//! Which quantisation of a model would fit where the one that is asked for does not: by the bits that each takes for a weight.

use super::pick::quantization;

/// Bits a weight of whole models, in hundredths, the larger first. Layers differ, so these are averages.
const BITS: &[(&str, u64)] = &[
    ("F32", 3_200),
    ("F16", 1_600),
    ("BF16", 1_600),
    ("Q8_0", 850),
    ("Q6_K", 656),
    ("Q5_1", 600),
    ("Q5_K_M", 570),
    ("Q5_0", 555),
    ("Q5_K_S", 557),
    ("Q4_1", 510),
    ("Q4_K_M", 489),
    ("IQ4_NL", 468),
    ("Q4_K_S", 467),
    ("Q4_0", 466),
    ("IQ4_XS", 446),
    ("MXFP4", 425),
    ("Q3_K_L", 430),
    ("Q3_K_M", 400),
    ("Q3_K_S", 364),
    ("Q2_K", 316),
];
/// Those that most publishers have.
const COMMON: &[&str] = &["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"];

/// The best common quantisation whose weights fit into `room`, and about how many bytes they take. None if the one in hand
/// is not known by `name`, or nothing smaller than it would fit.
pub fn fitting(name: &str, weights_bytes: u64, room: u64) -> Option<(&'static str, u64)> {
    let bits = |label: &str| BITS.iter().find(|(known, _)| *known == label).map(|(_, bits)| *bits);
    let label = quantization(name)?;
    let own = bits(label.strip_prefix("UD-").unwrap_or(&label))?;
    let sized = COMMON.iter().filter_map(|label| {
        let bits = bits(label).filter(|bits| *bits < own)?;
        Some((*label, weights_bytes / own * bits))
    });
    sized.into_iter().find(|(_, bytes)| *bytes <= room)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_best_that_fits_is_named_and_nothing_larger_than_what_is_there() {
        let label =
            |name: &str, weights: u64, room: u64| fitting(name, weights, room).map(|(label, _)| label);
        assert_eq!(label("org/model:F16", 16 * GIB, 9 * GIB), Some("Q8_0"));
        assert_eq!(label("org/model-Q8_0.gguf", 8 * GIB, 5 * GIB), Some("Q4_K_M"));
        assert_eq!(label("org/model:UD-Q4_K_M", 5 * GIB, 4 * GIB), Some("Q2_K"));
        assert_eq!(
            label("org/model:Q4_K_M", 5 * GIB, 6 * GIB),
            Some("Q3_K_M"),
            "it is not the weights alone"
        );
        assert_eq!(label("org/model:Q4_K_M", 5 * GIB, GIB), None);
        assert_eq!(label("tiny", 5 * GIB, 4 * GIB), None, "it is not known what it is");
    }
}
