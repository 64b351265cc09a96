//! What a recipe may reach from here. Recipes come from strangers: theirs are encrypted addresses of the public network,
//! or bytes that a sum pins. The catalog's own origin is exempt, for whoever runs one at home; tests say what else is.

use super::source::{Git, Place, Remote, Source, SourceError};
use crate::download::Reach;
use crate::http::url::Url;
use std::path::PathBuf;

const FILE_SCHEME: &str = "file://";
/// What may follow the name that a signature signs: it may be of what is inside.
const COMPRESSED: [&str; 7] = ["gz", "bz2", "xz", "lrz", "lzo", "Z", "zst"];

/// Origins and folders that are ours.
#[derive(Debug, Clone, Default)]
pub struct Trusted {
    /// As [`Url::origin`] writes them; `git://HOST:PORT` for that protocol.
    origins: Vec<String>,
    folders: Vec<PathBuf>,
}

impl Trusted {
    /// Reads `scheme://host[:port]` and `file:///folder`. What is neither trusts nothing.
    pub fn new<T: AsRef<str>>(entries: &[T]) -> Self {
        let mut trusted = Trusted::default();
        for entry in entries.iter().map(AsRef::as_ref) {
            if let Some(folder) = entry.strip_prefix(FILE_SCHEME).filter(|folder| folder.starts_with('/')) {
                trusted.folders.push(folder.into());
            } else if let Ok(url) = Url::parse(entry) {
                trusted.origins.push(url.origin().to_owned());
            } else if entry.starts_with("git://") {
                trusted.origins.push(entry.trim_end_matches('/').to_owned());
            } else {
                tracing::warn!(entry, "this is not an origin, so nothing is trusted for it");
            }
        }
        trusted
    }

    pub fn origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|own| own == origin)
    }

    /// Where redirects may lead.
    pub fn reach(&self) -> Reach {
        Reach::Public(self.origins.clone())
    }

    fn file(&self, path: &std::path::Path) -> bool {
        self.folders.iter().any(|folder| path.starts_with(folder))
    }

    /// Whether all of these may be fetched. The result is what a person should be told all the same.
    pub fn check(&self, sources: &[Source]) -> Result<Vec<String>, SourceError> {
        let mut warnings = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            if sources[..index].iter().any(|earlier| earlier.name == source.name) {
                return Err(SourceError::Twice(source.name.clone()));
            }
            self.check_place(source)?;
            warnings.extend(check_signature(source, sources)?);
        }
        Ok(warnings)
    }

    fn check_place(&self, source: &Source) -> Result<(), SourceError> {
        let name = || source.name.clone();
        match &source.place {
            Place::Local => Ok(()),
            Place::Http(url) if url.is_encrypted() || source.is_pinned() => Ok(()),
            // Whoever could change it could as well have changed the recipe; a sum is asked for as makepkg's users would.
            Place::Http(url) if self.origin(url.origin()) && !source.sums.is_empty() => Ok(()),
            Place::Http(_) => Err(SourceError::Unencrypted(name())),
            Place::File(path) | Place::Git(Git { remote: Remote::File(path), .. }) => match self.file(path) {
                true => Ok(()),
                false => Err(SourceError::ForeignFile(name())),
            },
            Place::Git(Git { remote: Remote::Http(url), .. }) => {
                match url.is_encrypted() || source.is_pinned() || self.origin(url.origin()) {
                    true => Ok(()),
                    false => Err(SourceError::UnencryptedGit(name())),
                }
            }
            Place::Git(Git { remote: Remote::Git { host, port, .. }, .. }) => {
                match self.origin(&format!("git://{host}:{port}")) {
                    true => Ok(()),
                    false => Err(SourceError::GitProtocol(name())),
                }
            }
        }
    }
}

/// gpg is not run: a signature tells that whoever holds a key has made the bytes, and a sum in the recipe that names the
/// key tells the same of these very bytes. So where there is no such sum there is nothing that could stand for it.
fn check_signature(source: &Source, sources: &[Source]) -> Result<Option<String>, SourceError> {
    if let Place::Git(Git { signed: true, .. }) = &source.place {
        if !source.is_pinned() {
            return Err(SourceError::SignedGit(source.name.clone()));
        }
        return Ok(Some(format!(
            "the signature of {} is not verified: what the recipe pins stands for it",
            source.name
        )));
    }
    let Some(signed) = source.signed_name() else { return Ok(None) };
    let is_signed = |other: &&Source| {
        let suffix = other.name.strip_prefix(signed);
        suffix.is_some_and(|suffix| {
            suffix.is_empty() || suffix.strip_prefix('.').is_some_and(|suffix| COMPRESSED.contains(&suffix))
        })
    };
    let Some(other) = sources.iter().find(is_signed) else {
        return Err(SourceError::SignsNothing(source.name.clone()));
    };
    // A file beside the PKGBUILD is part of the recipe.
    if !other.is_pinned() && other.place != Place::Local {
        return Err(SourceError::Signed { signature: source.name.clone(), name: other.name.clone() });
    }
    Ok(Some(format!(
        "the signature {} is not verified: the sum of {} stands for it",
        source.name, other.name
    )))
}

#[cfg(test)]
mod tests {
    use super::super::checksum::Kind;
    use super::super::source::parse;
    use super::*;

    const SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn check(trusted: &[&str], list: &[&str], kind: Kind, sums: &[&str]) -> Result<Vec<String>, SourceError> {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let sources = parse(&own(list), &[(kind, own(sums))])?;
        Trusted::new(trusted).check(&sources)
    }

    #[test]
    fn what_is_not_encrypted_is_pinned_or_our_own() {
        let one =
            |trusted: &[&str], text: &str, kind, sum: &str| check(trusted, &[text], kind, &[sum]).is_ok();
        assert!(one(&[], "https://x.test/a", Kind::Md5, "SKIP"));
        assert!(one(&[], "http://x.test/a", Kind::Sha256, SHA256));
        assert!(!one(&[], "http://x.test/a", Kind::Sha256, "SKIP"));
        assert!(!one(&[], "http://x.test/a", Kind::Md5, MD5));
        assert!(one(&["http://x.test"], "http://x.test:80/a", Kind::Md5, MD5));
        assert!(!one(&["http://x.test"], "http://x.test/a", Kind::Md5, "SKIP"));
        assert!(!one(&["http://x.test"], "http://y.test/a", Kind::Md5, MD5));
        assert!(!one(&["http://x.test"], "http://x.test:81/a", Kind::Md5, MD5));
        assert!(!one(&[], "git+http://x.test/r#tag=v1", Kind::Md5, "SKIP"));
        assert!(one(&[], &format!("git+http://x.test/r#commit={COMMIT}"), Kind::Md5, "SKIP"));
        assert!(!one(&[], &format!("git://x.test/r#commit={COMMIT}"), Kind::Md5, "SKIP"));
        assert!(one(&["git://127.0.0.1:9"], "git://127.0.0.1:9/r", Kind::Md5, "SKIP"));
    }

    #[test]
    fn files_of_the_machine_are_no_sources_but_of_a_trusted_folder() {
        let one = |trusted: &[&str], text: &str| check(trusted, &[text], Kind::Md5, &["SKIP"]).is_ok();
        for text in ["file:///home/u/.ssh/id", "git+file:///home/u/r"] {
            assert!(!one(&[], text));
            assert!(one(&["file:///home/u"], text));
            assert!(!one(&["file:///home/us", "file://"], text));
        }
    }

    #[test]
    fn a_signature_needs_a_sum_that_stands_for_it() {
        let two = ["https://x.test/a.tar.gz", "https://x.test/a.tar.gz.sig"];
        assert_eq!(check(&[], &two, Kind::Sha256, &[SHA256, "SKIP"]).unwrap().len(), 1);
        assert!(matches!(check(&[], &two, Kind::Sha256, &["SKIP", "SKIP"]), Err(SourceError::Signed { .. })));
        assert!(matches!(check(&[], &two, Kind::Md5, &[MD5, "SKIP"]), Err(SourceError::Signed { .. })));
        let inside = ["https://x.test/a.tar.gz", "https://x.test/a.tar.sign"];
        assert_eq!(check(&[], &inside, Kind::Sha256, &[SHA256, "SKIP"]).unwrap().len(), 1);
        let alone = check(&[], &["https://x.test/b.asc"], Kind::Sha256, &[SHA256]);
        assert_eq!(alone, Err(SourceError::SignsNothing("b.asc".into())));
        let signed = |text: &str| check(&[], &[text], Kind::Sha256, &["SKIP"]);
        assert!(signed("git+https://x.test/r?signed#tag=v1").is_err());
        assert_eq!(signed(&format!("git+https://x.test/r?signed#commit={COMMIT}")).unwrap().len(), 1);
    }

    #[test]
    fn a_name_is_one_sources() {
        let twice = check(&[], &["x::https://x.test/a", "x::https://x.test/b"], Kind::Md5, &["SKIP", "SKIP"]);
        assert_eq!(twice, Err(SourceError::Twice("x".into())));
    }
}
