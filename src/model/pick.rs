//! Which files of a repository are the model that was asked for. Pure: the repository's list decides, and nothing is
//! guessed by downloading.

use super::reference::{Pick, has_extension, is_plain};
use crate::download::Sum;
use crate::wire::{Code, Failure};
use std::collections::BTreeMap;

/// What is taken when no quantisation is named, the first that is there. Four bits that kept what matters most come
/// first, then what is nearest to them: a little larger before a little smaller.
const ORDER: &[&str] = &[
    "Q4_K_M", "Q4_K_XL", "Q4_K_L", "Q4_K", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0", "MXFP4", "NVFP4",
    "Q5_K_M", "Q5_K_XL", "Q5_K_L", "Q5_K", "Q5_K_S", "Q5_1", "Q5_0", "Q6_K", "Q6_K_L", "Q6_K_XL", "Q8_0",
    "Q8_K_XL", "Q3_K_L", "Q3_K_XL", "Q3_K_M", "Q3_K", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS",
    "Q2_K_XL", "Q2_K_L", "Q2_K", "IQ2_M", "Q2_K_S", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0",
    "TQ1_0", "BF16", "F16", "FP16", "F32",
];
/// Some publishers' mark for quantisations that treat layers differently.
const DYNAMIC: &str = "UD-";
/// Other things than models that come as GGUF files: by what their names hold.
const PROJECTOR: &str = "mmproj";
const IMPORTANCE: &str = "imatrix";
/// Parts of one model; llama.cpp has no more either.
pub const PARTS_MAX: usize = 1_000;

/// A file as the hub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoFile {
    /// Inside the repository.
    pub path: String,
    pub size: Option<u64>,
    pub sum: Option<Sum>,
}

/// One model of a repository: a file, or the parts of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The quantisation if that tells it from the others, else the file.
    pub pick: Pick,
    /// In order.
    pub files: Vec<RepoFile>,
}

impl Choice {
    pub fn name(&self) -> String {
        match &self.pick {
            Pick::Any => self.files[0].path.clone(),
            Pick::Quantization(text) | Pick::File(text) => text.clone(),
        }
    }

    pub fn size(&self) -> Option<u64> {
        self.files.iter().map(|file| file.size).sum()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub choice: Choice,
    /// What else there is.
    pub others: Vec<String>,
    /// Vision projectors beside the models.
    pub projectors: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    #[error("{repo} has no GGUF file: look for a repository of the same model whose name ends in GGUF")]
    NoModels { repo: String },
    #[error("{repo} has no {wanted}; it has {there}")]
    NotThere { repo: String, wanted: String, there: String },
    #[error("{repo} has several models of {wanted}: name one of the files {there}")]
    Several { repo: String, wanted: String, there: String },
    #[error("{0} is a vision projector: it goes with a model, and is none")]
    Projector(String),
    #[error("{0} holds statistics for quantising, and is no model")]
    Importance(String),
    #[error("{repo} lacks part {missing} of {name}, which has {count}")]
    MissingPart { repo: String, name: String, missing: usize, count: usize },
}

impl From<PickError> for Failure {
    fn from(error: PickError) -> Self {
        let code = match error {
            PickError::Several { .. } => Code::InvalidRequest,
            PickError::Projector(_) | PickError::Importance(_) => Code::InvalidModel,
            _ => Code::ModelNotFound,
        };
        Failure::new(code, error.to_string())
    }
}

/// The one of a repository's models that `pick` means.
pub fn choose(repo: &str, files: &[RepoFile], pick: &Pick) -> Result<Chosen, PickError> {
    let is_model = |path: &str| path.split('/').all(is_plain) && has_extension(path);
    let (models, rest): (Vec<&RepoFile>, Vec<&RepoFile>) =
        files.iter().filter(|file| is_model(&file.path)).partition(|file| kind_of(&file.path).is_none());
    if let Pick::File(wanted) = pick
        && let Some(other) = rest.iter().find(|file| file.path.eq_ignore_ascii_case(wanted))
        && let Some(error) = kind_of(&other.path)
    {
        return Err(error(other.path.clone()));
    }
    let projectors = rest.iter().filter(|file| has(&file.path, PROJECTOR)).map(|f| f.path.clone()).collect();
    let mut choices = choices(repo, &models)?;
    if choices.is_empty() {
        return Err(PickError::NoModels { repo: repo.to_owned() });
    }
    let at = find(repo, &choices, pick)?;
    let choice = choices.remove(at);
    let mut others: Vec<String> = choices.iter().map(Choice::name).collect();
    others.sort_by_key(|name| (rank(name), name.clone()));
    Ok(Chosen { choice, others, projectors })
}

fn find(repo: &str, choices: &[Choice], pick: &Pick) -> Result<usize, PickError> {
    let there = || listed(choices.iter().map(Choice::name));
    let missing = |wanted: &str| PickError::NotThere {
        repo: repo.to_owned(),
        wanted: wanted.to_owned(),
        there: there(),
    };
    match pick {
        Pick::Any => {
            let best = (0..choices.len()).min_by_key(|at| (rank(&label(&choices[*at])), choices[*at].name()));
            best.ok_or_else(|| PickError::NoModels { repo: repo.to_owned() })
        }
        Pick::File(wanted) => {
            let is_it = |choice: &Choice| choice.files.iter().any(|f| f.path.eq_ignore_ascii_case(wanted));
            choices.iter().position(is_it).ok_or_else(|| missing(wanted))
        }
        Pick::Quantization(wanted) => {
            // `UD-Q4_K_M` stands for itself; `Q4_K_M` stands for it, too, where there is no other.
            let exact = matching(choices, |label| label == wanted);
            let loose = matching(choices, |label| label.strip_prefix(DYNAMIC) == Some(wanted));
            match (exact.as_slice(), loose.as_slice()) {
                ([at], _) | ([], [at]) => Ok(*at),
                ([], []) => Err(missing(wanted)),
                ([], several) | (several, _) => Err(PickError::Several {
                    repo: repo.to_owned(),
                    wanted: wanted.clone(),
                    there: listed(several.iter().map(|at| choices[*at].files[0].path.clone())),
                }),
            }
        }
    }
}

fn matching(choices: &[Choice], is_it: impl Fn(&str) -> bool) -> Vec<usize> {
    (0..choices.len()).filter(|at| is_it(&label(&choices[*at]))).collect()
}

/// Files that are parts of one model, together.
fn choices(repo: &str, models: &[&RepoFile]) -> Result<Vec<Choice>, PickError> {
    let mut whole: BTreeMap<String, BTreeMap<usize, RepoFile>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for file in models {
        let (name, number, count) = match part_of(&file.path) {
            Some((name, number, count)) => (format!("{name}{EXTENSION}"), number, count),
            None => (file.path.clone(), 1, 1),
        };
        counts.insert(name.clone(), count);
        whole.entry(name).or_default().insert(number, (*file).clone());
    }
    let mut choices = Vec::new();
    for (name, parts) in whole {
        let count = counts[&name];
        if let Some(missing) = (1..=count).find(|number| !parts.contains_key(number)) {
            // Others may be whole.
            if models.len() == parts.len() {
                return Err(PickError::MissingPart { repo: repo.to_owned(), name, missing, count });
            }
            continue;
        }
        choices.push(Choice { pick: Pick::Any, files: parts.into_values().collect() });
    }
    let labels: Vec<String> = choices.iter().map(label).collect();
    for (choice, own) in choices.iter_mut().zip(&labels) {
        let is_own = !own.is_empty() && labels.iter().filter(|other| *other == own).count() == 1;
        choice.pick = match is_own {
            true => Pick::Quantization(own.clone()),
            false => Pick::File(choice.files[0].path.clone()),
        };
    }
    Ok(choices)
}

const EXTENSION: &str = ".gguf";

/// `name-00001-of-00003.gguf`: the name, the number and the count.
fn part_of(path: &str) -> Option<(&str, usize, usize)> {
    let stem = path.get(..path.len().checked_sub(EXTENSION.len())?)?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let read = |text: &str| text.parse::<usize>().ok().filter(|_| text.len() == 5);
    let (number, count) = (read(number)?, read(count)?);
    (!name.is_empty() && (1..=count).contains(&number) && count <= PARTS_MAX).then_some((name, number, count))
}

fn label(choice: &Choice) -> String {
    quantization(&choice.files[0].path).unwrap_or_default()
}

/// The quantisation that a file's name tells, in upper case: the last word that is one.
pub fn quantization(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    let name = part_of(name).map_or(name, |(name, _, _)| name).to_ascii_uppercase();
    let is_edge = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric());
    let mut best: Option<(usize, &str)> = None;
    for word in ORDER {
        for (at, _) in name.match_indices(word) {
            let (before, after) = (name[..at].chars().next_back(), name[at + word.len()..].chars().next());
            let is_longer = best.is_none_or(|(end, known)| {
                let (own, other) = (at + word.len(), end + known.len());
                own > other || own == other && word.len() > known.len()
            });
            // `_` goes on with a word: `Q4_K` is not what `Q4_K_M` says.
            if is_edge(before) && is_edge(after) && after != Some('_') && is_longer {
                best = Some((at, word));
            }
        }
    }
    let (at, word) = best?;
    let dynamic = if name[..at].ends_with(DYNAMIC) { DYNAMIC } else { "" };
    Some(format!("{dynamic}{word}"))
}

/// Its place in the order; what is not in it comes last.
pub fn rank(label: &str) -> usize {
    let plain = label.strip_prefix(DYNAMIC);
    let at = ORDER.iter().position(|word| *word == plain.unwrap_or(label)).unwrap_or(ORDER.len());
    2 * at + usize::from(plain.is_some())
}

fn has(path: &str, word: &str) -> bool {
    path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase().contains(word)
}

/// What a GGUF file is that is no model.
fn kind_of(path: &str) -> Option<fn(String) -> PickError> {
    match (has(path, PROJECTOR), has(path, IMPORTANCE)) {
        (true, _) => Some(PickError::Projector),
        (_, true) => Some(PickError::Importance),
        _ => None,
    }
}

/// The commonest choices first.
pub fn listed(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.collect();
    names.sort_by_key(|name| (rank(name), name.clone()));
    crate::wire::failure::listed(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> Vec<RepoFile> {
        paths.iter().map(|path| RepoFile { path: (*path).into(), size: Some(1), sum: None }).collect()
    }

    fn chosen(paths: &[&str], pick: &Pick) -> Result<(String, Vec<String>), PickError> {
        let chosen = choose("org/repo", &files(paths), pick)?;
        Ok((chosen.choice.name(), chosen.choice.files.into_iter().map(|file| file.path).collect()))
    }

    fn quant(text: &str) -> Pick {
        Pick::Quantization(text.into())
    }

    #[test]
    fn names_tell_the_quantisation() {
        for (path, expected) in [
            ("M-Q4_K_M.gguf", Some("Q4_K_M")),
            ("SmolLM2-135M-Instruct.Q4_1.gguf", Some("Q4_1")),
            ("gemma-3-270m-q4_k_m.gguf", Some("Q4_K_M")),
            ("model_f16.gguf", Some("F16")),
            ("a/b/M-UD-Q4_K_XL-00001-of-00002.gguf", Some("UD-Q4_K_XL")),
            ("M-IQ2_XXS.gguf", Some("IQ2_XXS")),
            ("Q8_0-base-Q4_0.gguf", Some("Q4_0")),
            ("M-BF16.gguf", Some("BF16")),
            ("M-Q4_K_MIX.gguf", None),
            ("M-Q4_K_M_custom.gguf", None),
            ("model.gguf", None),
        ] {
            assert_eq!(quantization(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn who_names_none_gets_the_usual_or_the_nearest() {
        let any = |paths: &[&str]| chosen(paths, &Pick::Any).unwrap().0;
        assert_eq!(any(&["M-Q8_0.gguf", "M-Q4_K_M.gguf", "M-F16.gguf", "README.md"]), "Q4_K_M");
        assert_eq!(any(&["M-Q8_0.gguf", "M-Q5_K_M.gguf", "M-Q2_K.gguf"]), "Q5_K_M");
        assert_eq!(any(&["M-UD-Q4_K_M.gguf", "M-Q4_K_M.gguf"]), "Q4_K_M");
        assert_eq!(any(&["mmproj-F16.gguf", "M-F32.gguf", "M.imatrix.gguf"]), "F32");
        assert_eq!(any(&["weights.gguf"]), "weights.gguf");
    }

    #[test]
    fn a_quantisation_or_a_file_means_itself() {
        let paths = ["A-Q4_K_M.gguf", "A-UD-Q2_K.gguf", "sub/A-Q8_0.gguf", "mmproj-A.gguf"];
        assert_eq!(chosen(&paths, &quant("Q8_0")).unwrap().1, ["sub/A-Q8_0.gguf"]);
        assert_eq!(chosen(&paths, &quant("Q2_K")).unwrap().0, "UD-Q2_K");
        assert_eq!(chosen(&paths, &quant("UD-Q2_K")).unwrap().0, "UD-Q2_K");
        assert_eq!(chosen(&paths, &Pick::File("SUB/a-q8_0.gguf".into())).unwrap().0, "Q8_0");
        let error = chosen(&paths, &quant("Q6_K")).unwrap_err();
        assert_eq!(error.to_string(), "org/repo has no Q6_K; it has Q4_K_M, Q8_0, UD-Q2_K");
        assert!(matches!(chosen(&paths, &Pick::File("mmproj-A.gguf".into())), Err(PickError::Projector(_))));
        let two = ["A-Q4_0.gguf", "B-Q4_0.gguf"];
        assert!(matches!(chosen(&two, &quant("Q4_0")), Err(PickError::Several { .. })));
        assert_eq!(chosen(&two, &Pick::Any).unwrap().0, "A-Q4_0.gguf");
        assert!(matches!(
            chosen(&["x.bin", "../y.gguf", "C:\\z.gguf"], &Pick::Any),
            Err(PickError::NoModels { .. })
        ));
    }

    #[test]
    fn all_parts_of_a_split_model_are_one() {
        let parts = ["d/M-Q8_0-00002-of-00002.gguf", "d/M-Q8_0-00001-of-00002.gguf", "M-Q6_K.gguf"];
        let (name, files) = chosen(&parts, &quant("Q8_0")).unwrap();
        assert_eq!(
            (name.as_str(), files.as_slice()),
            ("Q8_0", &[parts[1].to_owned(), parts[0].to_owned()][..])
        );
        assert_eq!(chosen(&parts, &Pick::File(parts[0].into())).unwrap().1.len(), 2);
        let error = chosen(&parts[..1], &Pick::Any).unwrap_err();
        assert!(matches!(error, PickError::MissingPart { missing: 1, count: 2, .. }));
        assert_eq!(part_of("M-00003-of-00002.gguf"), None);
        assert_eq!(part_of("M-1-of-2.gguf"), None);
    }
}
