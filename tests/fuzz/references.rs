//! What people write for a model, and what a hub lists.

use super::fuzz;
use rbee::model::{Pick, Reference};

#[test]
fn a_reference_is_refused_or_has_one_canonical_form_and_leads_nowhere_else() {
    let corpus: Vec<Vec<u8>> = [
        "org/repo",
        "org/repo:Q4_K_M@v1.0",
        "hf:Org/Repo-GGUF:UD-Q4_K_XL",
        "hf.co/org/repo@refs/pr/1:sub/file-00001-of-00002.gguf",
        "https://huggingface.co/org/repo/blob/main/a%2Fb%20c.gguf?download=true#x",
        "https://host.test:8443/m.gguf?signature=1",
        "file:///a/../b.gguf",
        "./m.gguf",
        "smollm2-135m-instruct",
        "llama3:8b",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    let words =
        ["../", "..", "/", "\\", ":", "@", "%2e%2e", "%00", "hf:", "file:", ".gguf", "con", "-", "--", "?"];
    let mut read = 0;
    fuzz("references", &corpus, &words, |input, _| {
        let text = String::from_utf8_lossy(input);
        let Ok(reference) = Reference::read(&text) else { return };
        read += 1;
        let canonical = reference.to_string();
        let again = Reference::read(&canonical).unwrap_or_else(|error| panic!("{canonical}: {error}"));
        assert_eq!(again, reference, "{canonical}");
        assert!(reference.means(&canonical), "{canonical}");
        assert!(!reference.label().contains('/'), "{canonical}");
        if let Reference::Hub(hub) = reference {
            let (org, name) = hub.repo.as_str().split_once('/').unwrap();
            let file = match &hub.pick {
                Pick::File(file) => file.as_str(),
                Pick::Any | Pick::Quantization(_) => "m.gguf",
            };
            let is_inside =
                |part: &str| !["", ".", ".."].contains(&part) && !part.contains(['\\', '\0', ':']);
            assert!([org, name].into_iter().chain(file.split('/')).all(is_inside), "{canonical}");
            assert!(
                !hub.revision_or_main().split('/').any(|part| part.starts_with(['.', '-'])),
                "{canonical}"
            );
        }
    });
    assert!(read > 1_000, "mutations that still read: {read}");
}
