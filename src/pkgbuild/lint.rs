//! The rules that a PKGBUILD's words must keep: makepkg's own, so that what it refuses is refused here, too.

use super::checksum::Kind;
use super::fields::{Fields, Variable};
use super::metadata::{RecipeError, full_version};
use std::collections::BTreeMap;

/// Asked for in `options`: prepare() reaches the network. makepkg has no such option; there every phase does.
pub const NETWORK_IN_PREPARE: &str = "network=prepare";

const ARRAYS: [&str; 16] = [
    "arch",
    "backup",
    "checkdepends",
    "conflicts",
    "depends",
    "groups",
    "license",
    "makedepends",
    "noextract",
    "optdepends",
    "options",
    "provides",
    "replaces",
    "source",
    "validpgpkeys",
    "xdata",
];
const STRINGS: [&str; 8] = ["changelog", "epoch", "install", "pkgbase", "pkgdesc", "pkgrel", "pkgver", "url"];
/// Arrays that may also be declared for one architecture; sums as well.
const ARCH_ARRAYS: [&str; 8] =
    ["checkdepends", "conflicts", "depends", "makedepends", "optdepends", "provides", "replaces", "source"];
/// What a package function may set anew for its package.
const PACKAGE_OVERRIDES: [&str; 14] = [
    "pkgdesc",
    "arch",
    "url",
    "license",
    "groups",
    "depends",
    "optdepends",
    "provides",
    "conflicts",
    "replaces",
    "backup",
    "options",
    "install",
    "changelog",
];
/// Known to makepkg. They tidy packages for a distribution, which nothing here does: files stay as package() left them.
const OPTIONS: [&str; 16] = [
    "strip",
    "docs",
    "libtool",
    "emptydirs",
    "zipman",
    "purge",
    "staticlibs",
    "debug",
    "lto",
    "buildflags",
    "makeflags",
    "ccache",
    "distcc",
    "check",
    "sign",
    "autodeps",
];

fn arrays() -> impl Iterator<Item = String> {
    ARRAYS.iter().map(|name| (*name).to_owned()).chain(sums())
}

fn arch_arrays() -> impl Iterator<Item = String> {
    ARCH_ARRAYS.iter().map(|name| (*name).to_owned()).chain(sums())
}

fn sums() -> impl Iterator<Item = String> {
    Kind::ALL.iter().map(|kind| kind.variable().to_owned())
}

/// Arrays are arrays, strings are strings, and only some of them are an architecture's own.
pub(super) fn schema(fields: &Fields, arch: &[String]) -> Result<(), RecipeError> {
    let is_array = |name: &str| match fields.variables.get(name) {
        None | Some(Variable::Array(_)) => Ok(()),
        Some(Variable::Text(_) | Variable::Map) => Err(RecipeError::NotAnArray(name.to_owned())),
    };
    arrays().try_for_each(|name| is_array(&name))?;
    for name in STRINGS {
        if !matches!(fields.variables.get(name), None | Some(Variable::Text(_))) {
            return Err(RecipeError::NotAString(name.into()));
        }
    }
    for arch in arch {
        let own = arch_arrays().map(|name| format!("{name}_{arch}"));
        if arch == "any" {
            match own.into_iter().find(|name| fields.variables.contains_key(name)) {
                Some(name) => return Err(RecipeError::ArchSpecific(name)),
                None => continue,
            }
        }
        own.into_iter().try_for_each(|name| is_array(&name))?;
        let others = arrays().chain(STRINGS.map(str::to_owned)).chain(["pkgname".to_owned()]);
        let mut others = others.filter(|name| !arch_arrays().any(|allowed| allowed == *name));
        if let Some(name) = others
            .find_map(|name| Some(format!("{name}_{arch}")).filter(|n| fields.variables.contains_key(n)))
        {
            return Err(RecipeError::ArchSpecific(name));
        }
    }
    Ok(())
}

pub(super) fn architectures(pkgbase: &str, arch: &[String], node: &str) -> Result<(), RecipeError> {
    if let Some(other) = arch.iter().find(|arch| *arch != "any").filter(|_| arch.iter().any(|a| a == "any")) {
        return Err(RecipeError::AnyWithOthers(other.clone()));
    }
    let is_word = |arch: &&String| !arch.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if let Some(bad) = arch.iter().find(is_word) {
        return Err(rule("arch", bad, "has other characters than letters, digits and `_`"));
    }
    if arch.iter().any(|arch| arch == "any" || arch == node) {
        return Ok(());
    }
    let arch = if arch.is_empty() { "no architecture".to_owned() } else { arch.join(", ") };
    Err(RecipeError::Architecture { pkgbase: pkgbase.into(), arch, node: node.into() })
}

fn rule(name: &str, value: &str, rule: &'static str) -> RecipeError {
    RecipeError::Rule { name: name.into(), value: value.chars().take(200).collect(), rule }
}

pub(super) fn package_name(kind: &str, name: &str) -> Result<(), RecipeError> {
    if name.is_empty() {
        return Err(RecipeError::Empty(kind.into()));
    }
    if name.starts_with(['-', '.']) {
        return Err(rule(kind, name, "starts with `-` or `.`"));
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || "+_.@-".contains(c)) {
        return Err(rule(kind, name, "has other characters than ASCII letters, digits and `+_.@-`"));
    }
    Ok(())
}

/// Ours beyond makepkg: no leading dot, for a version is the name of a folder.
pub(super) fn version(kind: &str, version: &str) -> Result<(), RecipeError> {
    if version.is_empty() {
        return Err(RecipeError::Empty(kind.into()));
    }
    if version.chars().any(|c| c.is_whitespace() || c.is_control() || "/:-".contains(c) || !c.is_ascii()) {
        return Err(rule(kind, version, "has a colon, slash, hyphen, white space or what is not ASCII"));
    }
    if version.starts_with('.') {
        return Err(rule(kind, version, "starts with a dot"));
    }
    Ok(())
}

pub(super) fn release(kind: &str, release: &str) -> Result<(), RecipeError> {
    if release.is_empty() {
        return Err(RecipeError::Empty(kind.into()));
    }
    let parts: Vec<&str> = release.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    match parts.len() <= 2 && parts.iter().all(is_number) {
        true => Ok(()),
        false => Err(rule(kind, release, "is not of the form `integer[.integer]`")),
    }
}

pub(super) fn epoch(kind: &str, epoch: &str) -> Result<u64, RecipeError> {
    match epoch {
        "" => Ok(0),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().map_err(|_| rule(kind, epoch, "is too large"))
        }
        _ => Err(rule(kind, epoch, "is not an integer")),
    }
}

/// `name`, `name>=1:2-3`, and for optional ones `name: why`.
pub(super) fn dependency(kind: &str, dependency: &str) -> Result<(), RecipeError> {
    let dependency = match kind {
        "optdepends" => dependency.split(": ").next().unwrap_or_default().trim_end_matches(':'),
        _ => dependency,
    };
    let at = dependency.find(['<', '>', '=']).unwrap_or(dependency.len());
    let (name, rest) = dependency.split_at(at);
    package_name(kind, name)?;
    let full = rest.trim_start_matches(['<', '>', '=']);
    if full.is_empty() {
        return Ok(());
    }
    let (epoch_digits, full) = full.split_once(':').unwrap_or(("", full));
    epoch(kind, epoch_digits)?;
    match full.rsplit_once('-') {
        Some((before, after)) if !before.is_empty() => {
            release(kind, after)?;
            version(kind, before)
        }
        _ => version(kind, full),
    }
}

pub(super) fn options(options: &[String]) -> Result<(), RecipeError> {
    let is_known = |option: &&String| {
        let name = option.strip_prefix('!').unwrap_or(option);
        OPTIONS.contains(&name) || option.as_str() == NETWORK_IN_PREPARE
    };
    match options.iter().find(|option| !is_known(option)) {
        Some(unknown) => Err(RecipeError::UnknownOption(unknown.clone())),
        None => Ok(()),
    }
}

pub(super) fn backup(backup: &[String]) -> Result<(), RecipeError> {
    match backup.iter().find(|path| path.starts_with('/')) {
        Some(path) => Err(rule("backup", path, "starts with a slash")),
        None => Ok(()),
    }
}

/// One package has package() or its own function, several have one each; and what they set anew is theirs to set.
pub(super) fn package_functions(
    names: &[String],
    functions: &BTreeMap<String, String>,
    arch: &[String],
) -> Result<(), RecipeError> {
    let own = |name: &str| format!("package_{name}");
    let has = |function: &str| functions.contains_key(function);
    match names {
        [name] => {
            if has("package") && has(&own(name)) {
                return Err(RecipeError::TwoPackageFunctions(name.clone()));
            }
            if has("build") && !has("package") && !has(&own(name)) {
                return Err(RecipeError::NoPackageFunction);
            }
        }
        names => {
            if has("package") {
                return Err(RecipeError::ExtraPackageFunction);
            }
            if let Some(name) = names.iter().find(|name| !has(&own(name))) {
                return Err(RecipeError::MissingPackageFunction(name.clone()));
            }
        }
    }
    let bodies = names.iter().filter_map(|name| functions.get(&own(name))).chain(functions.get("package"));
    bodies.into_iter().try_for_each(|body| settings_in_package(body, arch))
}

/// Assignments in the text that bash prints of a function. As makepkg does it, by the look of lines: one in a string over
/// several lines is taken for one, which a recipe can mend by an indent less.
fn settings_in_package(body: &str, arch: &[String]) -> Result<(), RecipeError> {
    for line in body.lines().filter(|line| line.starts_with([' ', '\t'])) {
        let line = line.trim_start();
        let Some((name, value)) = line.split_once('=') else { continue };
        let name = name.strip_suffix('+').unwrap_or(name);
        let plain = arch.iter().find_map(|arch| name.strip_suffix(arch)?.strip_suffix('_')).unwrap_or(name);
        let is_array = arrays().any(|array| array == plain);
        let is_string = STRINGS.contains(&plain);
        if !is_array && !is_string || value.is_empty() {
            continue;
        }
        if plain != name && !arch_arrays().any(|array| array == plain) {
            return Err(RecipeError::ArchSpecific(name.into()));
        }
        if !PACKAGE_OVERRIDES.contains(&plain) {
            return Err(RecipeError::SetInPackage(name.into()));
        }
        match (is_array, value.starts_with('(')) {
            (true, false) => return Err(RecipeError::NotAnArray(name.into())),
            (false, true) => return Err(RecipeError::NotAString(name.into())),
            _ => {}
        }
    }
    Ok(())
}

/// Traps that bash keeps and makepkg does not see: compatible, so they stay, but a person is told.
pub(super) fn warnings(pkgbuild: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    for (number, line) in pkgbuild.lines().enumerate().map(|(index, line)| (index + 1, line.trim_start())) {
        if line.starts_with('#') {
            continue;
        }
        let declares =
            ["local ", "declare ", "export ", "readonly "].iter().any(|word| line.starts_with(word));
        if declares && (line.contains("=$(") || line.contains("=\"$(") || line.contains("=`")) {
            let text = "a failure inside of `$( )` is not seen in a declaration: declare first, then assign";
            warnings.push(format!("line {number}: {text}"));
        }
    }
    warnings.truncate(WARNINGS_MAX);
    warnings
}

const WARNINGS_MAX: usize = 20;

/// A version as a folder's name: a colon would split lists of paths.
pub(super) fn version_folder(epoch: u64, pkgver: &str, pkgrel: &str) -> String {
    full_version(epoch, pkgver, pkgrel).replace(':', "~")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_versions_and_releases_keep_the_rules() {
        for good in ["a", "gtk+", "x-1.2@y_z"] {
            assert_eq!(package_name("pkgname", good), Ok(()), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ü", "a\n"] {
            assert!(package_name("pkgname", bad).is_err(), "{bad}");
        }
        for bad in ["", "1-2", "1:2", "1/2", "1 2", "..", "1\u{e9}", "1\n"] {
            assert!(version("pkgver", bad).is_err(), "{bad}");
        }
        for (text, is_good) in
            [("1", true), ("1.2", true), ("", false), ("1.2.3", false), ("1.", false), ("a", false)]
        {
            assert_eq!(release("pkgrel", text).is_ok(), is_good, "{text}");
        }
        assert_eq!(epoch("epoch", "12"), Ok(12));
        assert!(epoch("epoch", "-1").is_err() && epoch("epoch", "99999999999999999999999").is_err());
        assert_eq!(version_folder(2, "1.0", "3"), "2~1.0-3");
    }

    #[test]
    fn dependencies_have_a_name_and_perhaps_a_version() {
        for good in ["cmake", "gcc>=12", "lib.so=1-64", "a<1:2.0-1", "glibc>="] {
            assert_eq!(dependency("depends", good), Ok(()), "{good}");
        }
        for bad in ["", ">=1", "a b", "a>=1-x", "-a", "a=1:"] {
            assert!(dependency("depends", bad).is_err(), "{bad}");
        }
        assert_eq!(dependency("optdepends", "python: for the scripts"), Ok(()));
    }

    #[test]
    fn a_package_function_sets_only_what_is_a_packages_own() {
        let one = |line: &str| {
            settings_in_package(&format!("package () \n{{ \n    {line}\n}}"), &["x86_64".into()])
        };
        assert_eq!(one("depends+=(a b)"), Ok(()));
        assert_eq!(one("local pkgver=3"), Ok(()));
        assert_eq!(one("pkgdesc=\"x\""), Ok(()));
        assert!(one("pkgver=3").is_err() && one("depends=a").is_err() && one("pkgdesc=(a)").is_err());
        assert!(one("source_x86_64=(a)").is_err());
    }

    #[test]
    fn a_declaration_that_hides_a_failure_is_told() {
        let text = "a() {\n  local v=$(false)\n  v=$(false)\n  # local w=$(false)\n}\n";
        assert_eq!(warnings(text).len(), 1);
        assert!(warnings(text)[0].starts_with("line 2:"));
    }
}
