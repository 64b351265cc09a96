use super::*;

fn canonical(text: &str) -> String {
    Reference::read(text).map_or_else(|e| format!("{e:?}"), |r| r.to_string())
}

#[test]
fn every_form_has_one_canonical_form() {
    for (written, meant) in [
        (" SmolLM2-135M-instruct ", recipe::DEFAULT),
        ("org/repo", "hf:org/repo"),
        ("org/repo/", "hf:org/repo"),
        ("org/repo:q4_k_m", "hf:org/repo:Q4_K_M"),
        ("org/repo:latest", "hf:org/repo"),
        ("org/repo@main", "hf:org/repo"),
        ("org/repo:Q8_0@v1.0", "hf:org/repo:Q8_0@v1.0"),
        ("org/repo@v1.0:Q8_0", "hf:org/repo:Q8_0@v1.0"),
        ("org/repo@refs/pr/7", "hf:org/repo@refs/pr/7"),
        ("org/repo:sub/M-Q4.gguf", "hf:org/repo:sub/M-Q4.gguf"),
        ("org/repo:a@b.gguf", "hf:org/repo:a@b.gguf"),
        ("org/repo:a@b.gguf@dev", "hf:org/repo:a@b.gguf@dev"),
        ("hf:Org/Repo_1.5-GGUF:UD-Q4_K_XL", "hf:Org/Repo_1.5-GGUF:UD-Q4_K_XL"),
        ("hf://org/repo", "hf:org/repo"),
        ("HF.co/org/repo:Q4_0", "hf:org/repo:Q4_0"),
        ("https://huggingface.co/org/repo", "hf:org/repo"),
        ("https://hf.co/org/repo/tree/dev", "hf:org/repo@dev"),
        ("https://huggingface.co/org/repo/blob/main/m%20x.gguf", "hf:org/repo:m x.gguf"),
        ("https://huggingface.co/org/repo/resolve/abc/d/m.gguf?download=true", "hf:org/repo:d/m.gguf@abc"),
        ("HTTPS://Models.test/m.gguf", "https://models.test/m.gguf"),
        ("http://127.0.0.1:80/m.gguf?key=1", "http://127.0.0.1/m.gguf?key=1"),
        ("file:/a/b.gguf", "file:/a/b.gguf"),
        ("file:///a/b.gguf", "file:/a/b.gguf"),
        ("/a/b", "file:/a/b"),
        ("m.GGUF", "file:m.GGUF"),
        ("sub/m.gguf", "file:sub/m.gguf"),
        ("a.b_c-1", "a.b_c-1"),
    ] {
        assert_eq!(canonical(written), meant, "{written}");
        assert_eq!(canonical(meant), meant, "the canonical form of {written} is its own");
    }
}

#[test]
fn paths_are_settled_where_they_were_written() {
    let here = std::env::current_dir().unwrap().canonicalize().unwrap();
    let parsed = |text: &str| Reference::parse(text).unwrap().to_string();
    assert_eq!(parsed("m.gguf"), format!("file:{}", here.join("m.gguf").display()));
    assert_eq!(parsed("./src/../m.GGUF"), format!("file:{}", here.join("m.GGUF").display()));
    assert_eq!(parsed("/../b.gguf"), "file:/b.gguf");
}

#[test]
fn what_means_nothing_is_refused_with_what_would() {
    for bad in [
        "",
        "  ",
        "file:",
        "a\nb",
        "x\0",
        "llama3:8b",
        "org/",
        "/",
        "org//repo",
        "a/b/c",
        "org/re po",
        "org/re--po",
        "../x:y/z",
        "org/..",
        "-org/repo",
        "org/repo:",
        "org/repo:../x.gguf",
        "org/repo:/x.gguf",
        "org/repo:a\\b.gguf",
        "org/repo:con.gguf",
        "org/repo:Q4 K",
        "org/repo@",
        "org/repo@..",
        "org/repo@-x",
        "org/repo@a b",
        "https://",
        "https://x.test/m.bin",
        "https://u@x.test/m.gguf",
        "ftp://x.test/m.gguf",
        "https://hf.co/org",
        "https://hf.co/org/repo/blob/main/README.md",
        "hf.co/api/models/org/repo",
        "*",
    ] {
        match Reference::read(bad) {
            // A folder is a path, and what is not there is told by the hive.
            Ok(Reference::File(_)) if bad == "/" || bad.starts_with("../") => {}
            Ok(read) => panic!("{bad:?} was read as {read}"),
            Err(error) => assert!(Failure::from(error).message.len() > 20),
        }
    }
}

#[test]
fn who_leaves_something_out_means_what_is_there() {
    let means = |asked: &str, id: &str| Reference::read(asked).unwrap().means(id);
    let id = "hf:Org/Repo:Q4_K_M";
    for asked in ["org/repo", "hf:Org/Repo:q4_k_m", "hf.co/ORG/repo@main"] {
        assert!(means(asked, id), "{asked}");
    }
    for asked in ["org/repo:Q8_0", "org/repo@v1", "org/other", "repo"] {
        assert!(!means(asked, id), "{asked}");
    }
    assert!(means("org/repo@v1", "hf:org/repo:Q4_K_M@v1"));
    assert!(means("https://x.test/m.gguf?sig=2", "https://x.test/m.gguf"));
    assert!(means("/a/m.gguf", "file:/a/m.gguf") && !means("/a/m.gguf", "m"));
}
