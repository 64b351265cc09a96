//! What a recipe declares, typed and checked: the schema of PKGBUILDs as makepkg holds it, and ours where it is stricter.

use super::checksum::Kind;
use super::fields::{Fields, Variable};
use super::lint;
use crate::wire::{Code, Failure};
use std::collections::BTreeSet;

/// Sources of one recipe, of all architectures' arrays that count.
const SOURCES_MAX: usize = 1024;

/// Why a recipe is not built.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    #[error("the PKGBUILD has {bytes} bytes; at most {max} are read")]
    TooLarge { bytes: usize, max: usize },
    #[error(
        "the PKGBUILD holds carriage returns (CRLF), which bash takes for a part of words: save it with plain newlines"
    )]
    CarriageReturn,
    #[error("the PKGBUILD holds a NUL byte")]
    Nul,
    #[error("what bash told of the PKGBUILD cannot be read: {0}")]
    Fields(&'static str),
    #[error("the PKGBUILD declares more than 1 MiB of variables")]
    FieldsTooLarge,
    #[error("reading the PKGBUILD takes longer than {seconds} s: it must declare, not work")]
    TooSlow { seconds: u64 },
    #[error("bash could not read the PKGBUILD ({exit}): {tail}")]
    Source { exit: String, tail: String },
    #[error("`{0}` should be an array")]
    NotAnArray(String),
    #[error("`{0}` should not be an array")]
    NotAString(String),
    #[error("`{0}` is sparse: every index from 0 must be there")]
    Sparse(String),
    #[error("`{0}` has an empty element")]
    EmptyElement(String),
    #[error("`{0}` holds a control character")]
    Control(String),
    #[error("`{0}` is missing or empty")]
    Empty(String),
    #[error("{name} `{value}` {rule}")]
    Rule { name: String, value: String, rule: &'static str },
    #[error("`{0}` cannot depend on the architecture")]
    ArchSpecific(String),
    #[error("architecture `any` excludes others, and `{0}`")]
    AnyWithOthers(String),
    #[error("{pkgbase} is for {arch}; this node is {node}")]
    Architecture { pkgbase: String, arch: String, node: String },
    #[error("`{sums}` has {have} elements, `{source_array}` has {want}")]
    SumCount { sums: String, have: usize, source_array: String, want: usize },
    #[error("no sums for `{0}`: add sha256sums (SKIP says that an element has none)")]
    NoSums(String),
    #[error("there are more than {SOURCES_MAX} sources")]
    TooManySources,
    #[error("both package() and package_{0}() are there")]
    TwoPackageFunctions(String),
    #[error("build() without a package() to follow it")]
    NoPackageFunction,
    #[error("package() in a recipe of several packages: each has a package_NAME()")]
    ExtraPackageFunction,
    #[error("package_{0}() is missing")]
    MissingPackageFunction(String),
    #[error("`{0}` cannot be set inside of a package function")]
    SetInPackage(String),
    #[error("unknown option `{0}`")]
    UnknownOption(String),
    #[error("the package `{0}` is named twice")]
    TwiceNamed(String),
}

impl From<RecipeError> for Failure {
    fn from(error: RecipeError) -> Self {
        let code = match error {
            RecipeError::Architecture { .. } => Code::PlatformUnsupported,
            _ => Code::RecipeInvalid,
        };
        Failure::new(code, error.to_string())
    }
}

/// A recipe's declarations for one architecture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    pub pkgbase: String,
    /// More than one for a recipe that makes several packages.
    pub pkgname: Vec<String>,
    pub pkgver: String,
    pub pkgrel: String,
    pub epoch: u64,
    pub pkgdesc: String,
    pub url: String,
    pub arch: Vec<String>,
    pub license: Vec<String>,
    /// With those of this architecture, as are the other dependencies.
    pub depends: Vec<String>,
    pub makedepends: Vec<String>,
    pub checkdepends: Vec<String>,
    pub options: Vec<String>,
    pub noextract: Vec<String>,
    pub validpgpkeys: Vec<String>,
    /// A scriptlet, which is never run.
    pub install: Option<String>,
    /// `source`, then `source_ARCH` if there is one; only those that are not empty.
    pub sources: Vec<SourceArray>,
    /// Of prepare, pkgver, build, check, package, package_NAME.
    pub functions: BTreeSet<String>,
    /// What a person should know and makepkg would not say.
    pub warnings: Vec<String>,
}

/// One array of sources with its sums, element by element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceArray {
    pub variable: String,
    pub sources: Vec<String>,
    /// By kind, each as long as the sources.
    pub sums: Vec<(Kind, Vec<String>)>,
}

impl Metadata {
    /// `[epoch:]pkgver-pkgrel`.
    pub fn version(&self) -> String {
        full_version(self.epoch, &self.pkgver, &self.pkgrel)
    }

    pub fn has(&self, function: &str) -> bool {
        self.functions.contains(function)
    }

    /// Whether prepare() may reach the network: a recipe must ask for it by name.
    pub fn network_in_prepare(&self) -> bool {
        self.options.iter().any(|option| option == lint::NETWORK_IN_PREPARE)
    }

    pub(super) fn declared(fields: &Fields, node: &str) -> Result<Metadata, RecipeError> {
        let read = Reader { fields };
        let arch = read.array("arch")?;
        lint::schema(fields, &arch)?;

        let pkgname = read.names()?;
        let pkgbase = read.text("pkgbase")?;
        let pkgbase = if pkgbase.is_empty() { pkgname[0].clone() } else { pkgbase };
        lint::package_name("pkgbase", &pkgbase)?;
        lint::architectures(&pkgbase, &arch, node)?;

        let (pkgver, pkgrel) = (read.text("pkgver")?, read.text("pkgrel")?);
        let epoch = read.text("epoch")?;
        lint::version("pkgver", &pkgver)?;
        lint::release("pkgrel", &pkgrel)?;
        let epoch = lint::epoch("epoch", &epoch)?;

        let both = |name: &str| -> Result<Vec<String>, RecipeError> {
            let mut all = read.array(name)?;
            all.extend(read.array(&format!("{name}_{node}"))?);
            Ok(all)
        };
        let dependencies = |name: &str| -> Result<Vec<String>, RecipeError> {
            let all = both(name)?;
            all.iter().try_for_each(|dependency| lint::dependency(name, dependency))?;
            Ok(all)
        };
        for name in ["provides", "conflicts", "replaces", "optdepends"] {
            both(name)?.iter().try_for_each(|dependency| lint::dependency(name, dependency))?;
        }
        let options = read.array("options")?;
        lint::options(&options)?;
        lint::backup(&read.array("backup")?)?;

        let mut sources = Vec::new();
        for suffix in [String::new(), format!("_{node}")] {
            sources.extend(read.sources(&suffix)?);
        }
        if sources.iter().map(|array| array.sources.len()).sum::<usize>() > SOURCES_MAX {
            return Err(RecipeError::TooManySources);
        }
        lint::package_functions(&pkgname, &fields.functions, &arch)?;

        let install = Some(read.text("install")?).filter(|file| !file.is_empty());
        Ok(Metadata {
            pkgbase,
            pkgname,
            pkgver,
            pkgrel,
            epoch,
            pkgdesc: read.text("pkgdesc")?.split_whitespace().collect::<Vec<_>>().join(" "),
            url: read.text("url")?,
            arch,
            license: read.array("license")?,
            depends: dependencies("depends")?,
            makedepends: dependencies("makedepends")?,
            checkdepends: dependencies("checkdepends")?,
            options,
            noextract: read.array("noextract")?,
            validpgpkeys: read.array("validpgpkeys")?,
            install,
            sources,
            functions: fields.functions.keys().cloned().collect(),
            warnings: Vec::new(),
        })
    }
}

pub(super) fn full_version(epoch: u64, pkgver: &str, pkgrel: &str) -> String {
    match epoch {
        0 => format!("{pkgver}-{pkgrel}"),
        epoch => format!("{epoch}:{pkgver}-{pkgrel}"),
    }
}

struct Reader<'a> {
    fields: &'a Fields,
}

impl Reader<'_> {
    /// Empty if it is not declared.
    fn text(&self, name: &str) -> Result<String, RecipeError> {
        match self.fields.variables.get(name) {
            None => Ok(String::new()),
            Some(Variable::Text(text)) => {
                // A description is folded later; elsewhere a newline would be another line of some file.
                let is_folded = |c: char| name == "pkgdesc" && matches!(c, '\n' | '\t');
                match text.chars().any(|c| c.is_control() && !is_folded(c)) {
                    true => Err(RecipeError::Control(name.into())),
                    false => Ok(text.clone()),
                }
            }
            Some(Variable::Array(_) | Variable::Map) => Err(RecipeError::NotAString(name.into())),
        }
    }

    /// Empty if it is not declared.
    fn array(&self, name: &str) -> Result<Vec<String>, RecipeError> {
        let elements = match self.fields.variables.get(name) {
            None => return Ok(Vec::new()),
            Some(Variable::Array(elements)) => elements,
            Some(Variable::Text(_) | Variable::Map) => return Err(RecipeError::NotAnArray(name.into())),
        };
        if elements.iter().enumerate().any(|(position, (index, _))| *index != position as u64) {
            return Err(RecipeError::Sparse(name.into()));
        }
        for (_, value) in elements {
            if value.is_empty() {
                return Err(RecipeError::EmptyElement(name.into()));
            }
            if value.chars().any(char::is_control) {
                return Err(RecipeError::Control(name.into()));
            }
        }
        Ok(elements.iter().map(|(_, value)| value.clone()).collect())
    }

    /// `pkgname`, which alone may be a string or an array.
    fn names(&self) -> Result<Vec<String>, RecipeError> {
        let names = match self.fields.variables.get("pkgname") {
            Some(Variable::Array(_)) => self.array("pkgname")?,
            _ => vec![self.text("pkgname")?],
        };
        if names.is_empty() {
            return Err(RecipeError::Empty("pkgname".into()));
        }
        let mut seen = BTreeSet::new();
        for name in &names {
            lint::package_name("pkgname", name)?;
            if !seen.insert(name) {
                return Err(RecipeError::TwiceNamed(name.clone()));
            }
        }
        Ok(names)
    }

    /// `source` or `source_ARCH`: each such array has sums of its own.
    fn sources(&self, suffix: &str) -> Result<Option<SourceArray>, RecipeError> {
        let variable = format!("source{suffix}");
        let sources = self.array(&variable)?;
        let mut sums = Vec::new();
        for kind in Kind::ALL {
            let name = format!("{}{suffix}", kind.variable());
            let values = self.array(&name)?;
            match values.len() {
                0 => {}
                have if have == sources.len() => sums.push((kind, values)),
                have => {
                    let want = sources.len();
                    return Err(RecipeError::SumCount { sums: name, have, source_array: variable, want });
                }
            }
        }
        if sources.is_empty() {
            return Ok(None);
        }
        if sums.is_empty() {
            return Err(RecipeError::NoSums(variable));
        }
        Ok(Some(SourceArray { variable, sources, sums }))
    }
}
