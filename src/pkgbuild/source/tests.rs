use super::*;

const SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn one(text: &str) -> Result<Source, SourceError> {
    Ok(parse(&[text.to_owned()], &[])?.remove(0))
}

fn with_sum(text: &str) -> Result<Source, SourceError> {
    Ok(parse(&[text.to_owned()], &[(Kind::Sha256, vec![SHA256.to_owned()])])?.remove(0))
}

fn git_of(text: &str) -> Git {
    match one(text).unwrap().place {
        Place::Git(git) => git,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_source_is_called_as_makepkg_calls_it() {
    for (text, name) in [
        ("https://x.test/a/b.tar.gz", "b.tar.gz"),
        ("n.tgz::https://x.test/a/b.tar.gz", "n.tgz"),
        ("https://x.test/b?download=1", "b?download=1"),
        ("fix.patch", "fix.patch"),
        ("git+https://x.test/o/repo.git", "repo"),
        ("git+https://x.test/o/repo/", "repo"),
        ("git+https://x.test/o/repo.git#tag=v1", "repo"),
        ("src::git+https://x.test/o/repo.git?signed#tag=v1", "src"),
        ("git://x.test/repo.git", "repo"),
        ("file:///d/e.zip", "e.zip"),
        ("https://[2606:4700::1]/a.zip", "a.zip"),
        ("n::https://[2606:4700::1]/a.zip", "n"),
    ] {
        assert_eq!(one(text).map(|source| source.name).unwrap(), name, "{text}");
    }
}

#[test]
fn references_come_before_or_after_the_query() {
    let tag = git_of("git+https://x.test/r?signed#tag=v1.0");
    assert_eq!((tag.reference.clone(), tag.signed), (Reference::Tag("v1.0".into()), true));
    assert_eq!(git_of("git+https://x.test/r#tag=v1.0?signed"), tag);
    assert_eq!(git_of("git+https://x.test/r").reference, Reference::Head);
    assert_eq!(git_of("git+https://x.test/r#branch=a/b").reference, Reference::Branch("a/b".into()));
    assert_eq!(git_of(&format!("git+file:///r#commit={COMMIT}")).reference, Reference::Commit(COMMIT.into()));
    assert_eq!(git_of("git+https://x.test/r#tag=v1").remote.address(), "https://x.test/r");
    assert_eq!(git_of("git://x.test/r").remote.address(), "git://x.test:9418/r");
    assert_eq!(git_of("git+git://x.test:1/r").remote.address(), "git://x.test:1/r");
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let short = format!("git+https://x.test/r#commit={}", &COMMIT[1..]);
    for bad in [
        "",
        "../x",
        "a/b.patch",
        "a\\b",
        "n::x.patch",
        "../../etc/cron.d/x::https://x.test/a",
        "https://x.test/",
        "a/b::https://x.test/a",
        "nul::https://x.test/a",
        "https://u:p@x.test/a",
        "https://x.test/a\u{9b}b",
        "https://x.test/a b",
        "https://x.test/..",
        "HTTPS://x.test/a",
        "ftp://x.test/a",
        "scp://x.test/a",
        "svn+https://x.test/a",
        "hg+https://x.test/a",
        "bzr+lp://x",
        "fossil+https://x.test/f",
        "git+ssh://git@x.test/r",
        "git+ext://sh",
        "ext::sh -c x",
        "file://host/a",
        "file:///a/../b",
        "file://",
        "git+https://x.test/r#v1",
        "git+https://x.test/r#tag=",
        "git+https://x.test/r#tag=-x",
        "git+https://x.test/r#tag=a..b",
        "git+https://x.test/r#branch=a b",
        "git+https://x.test/r#tag=x^{}",
        "git+https://x.test/r#revision=1",
        "git+https://x.test/r?depth=1",
        "git+https://u@x.test/r",
        "git+https://x.test/.git",
        &short,
    ] {
        assert!(one(bad).is_err(), "{bad:?} is {:?}", one(bad));
    }
    let other = one("svn+https://x.test/a").unwrap_err().to_string();
    assert!(other.contains("svn is not supported"), "{other}");
}

#[test]
fn sums_belong_to_their_element_and_skip_is_none() {
    let list = ["a".to_owned(), "b".to_owned()];
    let skip = || SKIP.to_owned();
    let sums = [
        (Kind::Sha256, vec![SHA256.to_uppercase(), skip()]),
        (Kind::Ck, vec!["4294967295".to_owned(), skip()]),
    ];
    let sources = parse(&list, &sums).unwrap();
    assert_eq!(sources[0].sums.len(), 2);
    assert_eq!(sources[0].sums[0].to_string(), SHA256);
    assert!(sources[0].is_pinned() && sources[1].sums.is_empty() && !sources[1].is_pinned());
    assert!(matches!(parse(&list, &[(Kind::Md5, vec![skip()])]), Err(SourceError::Lengths { .. })));
    assert!(matches!(parse(&list, &[(Kind::Md5, vec![skip(), "x".into()])]), Err(SourceError::Sum { .. })));
    assert!(matches!(with_sum("git+https://x.test/r#branch=b"), Err(SourceError::BranchSum { .. })));
    assert!(with_sum("git+https://x.test/r#tag=b").unwrap().is_pinned());
}
