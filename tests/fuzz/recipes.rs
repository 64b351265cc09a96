//! What a recipe's bash has told of it, and the elements of its source arrays: both written by strangers.

use super::fuzz;
use rbee::pkgbuild::checksum::Kind;
use rbee::pkgbuild::{fields, source};

fn words(words: &[&str]) -> Vec<u8> {
    words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect()
}

const SUM: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn samples() -> Vec<Vec<u8>> {
    let head = [
        "rbee-fields-1",
        "array",
        "pkgname",
        "1",
        "0",
        "engine",
        "string",
        "pkgver",
        "1.0",
        "string",
        "pkgrel",
        "1",
    ];
    let any = ["array", "arch", "1", "0", "any"];
    let sourced = [
        "array",
        "source",
        "3",
        "0",
        "e-1.0.tar.gz::https://example.org/e.tar.gz",
        "1",
        "fix.patch",
        "2",
        "git+https://example.org/e.git#tag=v1",
        "array",
        "sha256sums",
        "3",
        "0",
        SUM,
        "1",
        SUM,
        "2",
        "SKIP",
    ];
    let of_arch = [
        "array",
        "arch",
        "2",
        "0",
        "x86_64",
        "1",
        "aarch64",
        "array",
        "source_x86_64",
        "1",
        "0",
        "https://example.org/x.zip",
        "array",
        "sha256sums_x86_64",
        "1",
        "0",
        SUM,
        "array",
        "options",
        "1",
        "0",
        "network=prepare",
    ];
    let functions = ["function", "build", "", "function", "package", "package () \n{ \n    true\n}", "end"];
    [
        [&head[..], &any, &functions].concat(),
        [&head[..], &any, &sourced, &functions].concat(),
        [&head[..], &of_arch, &functions].concat(),
    ]
    .iter()
    .map(|sample| words(sample))
    .collect()
}

#[test]
fn what_bash_tells_of_a_recipe_is_read_or_refused() {
    let corpus = samples();
    for sample in &corpus {
        fields::read(sample, "x86_64").unwrap();
    }
    let mixed = [
        "array\0",
        "string\0",
        "map\0xdata\0",
        "end\0",
        "pkgname\0",
        "..\0",
        "source\0",
        "SKIP\0",
        "a/b\0",
        "-x\0",
    ];
    fuzz("recipe fields", &corpus, &mixed, |input, _| {
        let Ok(metadata) = fields::read(input, "x86_64") else { return };
        // Whatever was accepted can be a file's name and a folder's.
        for name in metadata.pkgname.iter().chain([&metadata.pkgbase, &metadata.pkgver]) {
            assert!(
                !name.is_empty() && !name.contains(['/', '\0', '\n']) && !name.starts_with('.'),
                "{name:?}"
            );
        }
        for array in &metadata.sources {
            assert!(array.sums.iter().all(|(_, sums)| sums.len() == array.sources.len()), "{array:?}");
            for source in source::parse(&array.sources, &array.sums).into_iter().flatten() {
                assert!(is_plain(&source.name), "{:?}", source.name);
            }
        }
    });
}

#[test]
fn a_source_is_never_a_way_out_of_its_folder() {
    let corpus: Vec<Vec<u8>> = [
        "e.tar.gz::https://example.org/d/e-1.0.tar.gz?x=1#frag",
        "https://user@example.org:8443/a%2fb.zip",
        "git+https://example.org/e.git?signed#commit=0123456789abcdef0123456789abcdef01234567",
        "../../../../etc/cron.d/x::https://example.org/x",
        "C:\\evil::https://example.org/x",
        "fix.patch",
        "svn+https://example.org/x",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    let mixed =
        ["::", "..", "/", "\\", "git+", "file://", "#tag=", "%2e%2e%2f", "con", "nul.txt", "\u{202e}", "\0"];
    fuzz("recipe sources", &corpus, &mixed, |input, _| {
        let text = String::from_utf8_lossy(input).into_owned();
        let sums = [(Kind::Sha256, vec![SUM.to_owned()])];
        for source in source::parse(&[text], &sums).into_iter().flatten() {
            assert!(is_plain(&source.name), "{:?}", source.name);
        }
    });
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains(['/', '\\', '\0'])
        && !name.contains(char::is_control)
}
