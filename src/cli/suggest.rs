//! The word somebody probably meant.

/// The candidate nearest to `word`, if it is near enough to be a slip of the fingers: one edit in a short word,
/// about one in three letters in a longer one. A swap of neighbours is one edit.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = (word.chars().count().max(3) + 1) / 3;
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(word, candidate), candidate))
        .filter(|(edits, _)| *edits <= edits_max)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let words = ["run", "serve", "status", "workers", "links"];
        assert_eq!(nearest("stauts", words), Some("status"));
        assert_eq!(nearest("serv", words), Some("serve"));
        assert_eq!(nearest("rnu", words), Some("run"));
        assert_eq!(nearest("frobnicate", words), None);
        assert_eq!(nearest("x", words), None);
    }
}
