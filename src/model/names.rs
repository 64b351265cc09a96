//! Which model a name means among those that are there. The store asks for its own records and the queen for her fleet, by
//! the same rules:
//!
//! 1. the id itself, or an alias, or one of the model's files;
//! 2. else what [`Reference::means`] allows: a repository without a quantisation means the one that is there. Of
//!    several: Q4_K_M, else the one whose numbers are nearest to four bits, else the first by name. So the answer
//!    depends on what is there alone, and is the same on every node that has the same.

use super::reference::{Pick, Reference};
use crate::wire::fleet::ModelNames;

/// What is meant where nothing is said (B30).
const USUAL: &str = "Q4_K_M";
const USUAL_BITS: u32 = 4;

/// A model and its names.
#[derive(Debug, Clone, Copy)]
pub struct Known<'k> {
    pub id: &'k str,
    /// Aliases and files, in their canonical form.
    pub names: &'k [String],
}

impl<'k> Known<'k> {
    pub fn of(model: &'k ModelNames) -> Self {
        Known { id: &model.id, names: &model.names }
    }
}

/// The ids of all that may be meant, the likeliest first.
pub fn meant<'k>(asked: &str, known: impl Iterator<Item = Known<'k>> + Clone) -> Vec<&'k str> {
    let asked = asked.trim();
    let reference = Reference::read(asked).ok();
    let canonical = reference.as_ref().map_or_else(|| asked.to_owned(), Reference::to_string);
    let sorted = |mut ids: Vec<&'k str>| {
        ids.sort_unstable_by_key(|id| (rank(id), *id));
        ids.dedup();
        ids
    };
    // Most requests name an id or an alias, which costs no parsing of what is known.
    if let Some(exact) = known.clone().find(|model| model.id == asked || model.id == canonical) {
        return vec![exact.id];
    }
    let called = known.clone().filter(|model| model.names.contains(&canonical));
    let called = sorted(called.map(|model| model.id).collect());
    if !called.is_empty() {
        return called;
    }
    let Some(reference) = reference else { return Vec::new() };
    let is_meant =
        |model: &Known<'_>| reference.means(model.id) || model.names.iter().any(|name| reference.means(name));
    sorted(known.filter(is_meant).map(|model| model.id).collect())
}

/// How far a quantisation is from the usual one.
fn rank(id: &str) -> u32 {
    let Ok(Reference::Hub(hub)) = Reference::read(id) else { return u32::MAX };
    match hub.pick {
        Pick::Quantization(name) if name == USUAL => 0,
        Pick::Quantization(name) => 1 + bits(&name).map_or(u32::MAX - 2, |bits| bits.abs_diff(USUAL_BITS)),
        Pick::Any | Pick::File(_) => u32::MAX - 1,
    }
}

/// The first number in `Q5_K_S`, `IQ3_XXS`, `BF16`.
fn bits(name: &str) -> Option<u32> {
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, names: &[&str]) -> ModelNames {
        ModelNames { id: id.into(), names: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_name_means_its_model_and_a_repository_the_usual_one_of_those_that_are_there() {
        let known = [
            model("tiny", &[]),
            model("hf:Org/Repo:Q8_0", &["hf:Org/Repo:m-Q8_0.gguf"]),
            model("hf:Org/Repo:Q5_K_M", &["small"]),
            model("hf:Org/Repo:BF16", &[]),
            model("hf:org/other:x.gguf", &[]),
            model("file:/a/m.gguf", &[]),
        ];
        let meant = |asked: &str| super::meant(asked, known.iter().map(Known::of));
        for (asked, id) in [
            ("TINY", "tiny"),
            ("Small", "hf:Org/Repo:Q5_K_M"),
            ("org/repo:q8_0", "hf:Org/Repo:Q8_0"),
            ("hf.co/org/repo:m-Q8_0.gguf", "hf:Org/Repo:Q8_0"),
            ("org/other", "hf:org/other:x.gguf"),
            ("/a/m.gguf", "file:/a/m.gguf"),
        ] {
            assert_eq!(meant(asked), [id], "{asked}");
        }
        assert_eq!(meant("org/repo"), ["hf:Org/Repo:Q5_K_M", "hf:Org/Repo:Q8_0", "hf:Org/Repo:BF16"]);
        for nothing in ["", "large", "org/repo:Q2_K", "org/repo@v1", "gpt-4:latest"] {
            assert_eq!(meant(nothing), [""; 0], "{nothing}");
        }
    }

    #[test]
    fn the_usual_quantisation_comes_first_wherever_it_stands() {
        let known = ["IQ4_XS", "Q2_K", "Q4_K_M", "Q4_0", "WEIRD"].map(|q| model(&format!("hf:o/r:{q}"), &[]));
        let meant = super::meant("o/r", known.iter().map(Known::of));
        assert_eq!(meant, ["hf:o/r:Q4_K_M", "hf:o/r:IQ4_XS", "hf:o/r:Q4_0", "hf:o/r:Q2_K", "hf:o/r:WEIRD"]);
    }
}
