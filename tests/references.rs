//! What people write for a model, from the command line to the right file of the right commit (B30); and what they are told
//! when there is none.

use crate::support::gguf::{Tiny, part_name, split, tiny};
use crate::support::hub::{Content, Fault, Repo, Site, TestHub, When};
use crate::support::node::alone;
use crate::support::pull::{Puller, sha256_of};
use rbee::wire::Code;
use std::sync::Arc;

const REPO: &str = "bees/Tiny-GGUF";
const TOKEN: &str = "hf_canary";

/// A model that is like no other.
fn model(seed: u64) -> Arc<Content> {
    let bytes = tiny(&Tiny { seed, ..Tiny::default() });
    let size = bytes.len() as u64 + 1000;
    Content::padded(bytes, size, seed)
}

/// Four quantisations, the last but one in a folder, and what is beside models in such repositories.
fn repo() -> Repo {
    Repo::new(REPO)
        .with("Tiny-Q8_0.gguf", &model(8))
        .with("Tiny-Q4_K_M.gguf", &model(4))
        .with("sub/Tiny-Q2_K.gguf", &model(2))
        .with("mmproj-Tiny-F16.gguf", &model(16))
        .with_small("README.md", &Content::of(b"# Tiny\n".to_vec()))
        .with_small("config.json", &Content::of(b"{}".to_vec()))
}

#[test]
fn every_way_to_write_a_reference_leads_to_its_file() {
    alone(|| {
        let repo = repo();
        let commit = repo.newest().id.clone();
        let puller = Puller::new(TestHub::of([repo]).cdn().open());
        let at_commit = format!("{REPO}:Q2_K@{commit}");
        let cases = [
            (format!("{REPO}:Q4_K_M"), "Tiny-Q4_K_M.gguf", 4),
            (format!("{REPO}:q4_k_m"), "Tiny-Q4_K_M.gguf", 4),
            (REPO.to_owned(), "Tiny-Q4_K_M.gguf", 4),
            (format!("hf.co/{REPO}:Q8_0"), "Tiny-Q8_0.gguf", 8),
            (format!("hf:{REPO}:Q8_0@main"), "Tiny-Q8_0.gguf", 8),
            (format!("https://huggingface.co/{REPO}/resolve/main/Tiny-Q8_0.gguf"), "Tiny-Q8_0.gguf", 8),
            (format!("https://huggingface.co/{REPO}/blob/main/sub/Tiny-Q2_K.gguf"), "sub/Tiny-Q2_K.gguf", 2),
            (format!("{REPO}:sub/Tiny-Q2_K.gguf"), "sub/Tiny-Q2_K.gguf", 2),
            (at_commit, "sub/Tiny-Q2_K.gguf", 2),
        ];
        for (reference, file, seed) in &cases {
            let job = puller.pull(reference);
            let path = puller.path_of(&job);
            assert_eq!(path, puller.snapshot(REPO, &commit, file), "{reference}");
            assert_eq!(sha256_of(&path), model(*seed).sha256(), "{reference}");
            assert_eq!(job.done()["revision"], commit.as_str(), "{reference}: {job:?}");
        }
        assert_eq!(puller.is_sound(), 3, "one file each, however it was written");
        assert_eq!(puller.hub.bytes_sent(), model(8).size() + model(4).size() + model(2).size());
        let main = std::fs::read_to_string(puller.folder(REPO).join("refs/main")).unwrap();
        assert_eq!(main, commit);
        // The list decides: what was not meant was not asked for.
        let asked = puller.hub.asked();
        assert!(!asked.iter().any(|asked| asked.path.contains("mmproj")), "{asked:?}");
    });
}

#[test]
fn who_names_no_quantisation_is_told_which_is_taken_and_what_else_there_is() {
    alone(|| {
        let nearest = Repo::new("bees/Near").with("N-Q8_0.gguf", &model(1)).with("N-Q5_K_M.gguf", &model(2));
        let puller = Puller::new(TestHub::of([repo(), nearest]).open());
        let (code, told) = puller.download(REPO);
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains("Q4_K_M") && told.contains("Q8_0"), "{told}");
        let (code, told) = puller.download("bees/Near");
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains("Q5_K_M"), "{told}");
        assert_eq!(puller.is_sound(), 2);
    });
}

#[test]
fn a_name_moves_on_and_a_commit_stays() {
    alone(|| {
        let old = repo().named("v1");
        let first = old.newest().id.clone();
        let new = old.changed().with("Tiny-Q4_K_M.gguf", &model(44));
        let second = new.newest().id.clone();
        let puller = Puller::new(TestHub::of([new]).cdn().open());
        for (revision, commit, seed) in [
            ("", &second, 44),
            ("@v1", &first, 4),
            (&*format!("@{first}"), &first, 4),
            ("@main", &second, 44),
        ] {
            let job = puller.pull(&format!("{REPO}:Q4_K_M{revision}"));
            let path = puller.path_of(&job);
            assert_eq!(path, puller.snapshot(REPO, commit, "Tiny-Q4_K_M.gguf"), "{revision}");
            assert_eq!(sha256_of(&path), model(seed).sha256(), "{revision}");
        }
        assert_eq!(puller.is_sound(), 2);
    });
}

#[test]
fn what_is_not_on_the_hub_is_said_in_its_own_words() {
    alone(|| {
        let plain = Repo::new("bees/Plain").with_small("model.safetensors", &Content::of(vec![1; 100]));
        let eye = Repo::new("bees/Eye").with("mmproj-F16.gguf", &model(16));
        let puller = Puller::new(TestHub::of([repo(), plain, eye]).cdn().open());
        let cases = [
            (format!("{REPO}:Q6_K"), Code::ModelNotFound, ["Q6_K", "Q4_K_M", "Q8_0"]),
            (format!("{REPO}:none.gguf"), Code::ModelNotFound, ["none.gguf", "Q4_K_M", REPO]),
            (format!("{REPO}:Q4_K_M@none"), Code::ModelNotFound, ["none", "revision", REPO]),
            ("bees/Plain".to_owned(), Code::ModelNotFound, ["bees/Plain", "no GGUF", "GGUF"]),
            ("bees/Eye".to_owned(), Code::ModelNotFound, ["bees/Eye", "no GGUF", "GGUF"]),
            (format!("{REPO}:mmproj-Tiny-F16.gguf"), Code::InvalidModel, ["projector", "mmproj", "none"]),
            (format!("{REPO}:../x.gguf"), Code::InvalidRequest, ["../x.gguf", "inside", ""]),
            (format!("{REPO}:/etc/x.gguf"), Code::InvalidRequest, ["/etc/x.gguf", "", ""]),
            (format!("{REPO}:Q4_K_M@../../x"), Code::InvalidRequest, ["../../x", "revision", ""]),
            ("bees/../x".to_owned(), Code::InvalidRequest, ["bees/../x", "", ""]),
            ("llama3:8b".to_owned(), Code::InvalidRequest, ["llama3:8b", "org/repo", ""]),
        ];
        for (reference, code, says) in cases {
            let failure = puller.refused(&reference);
            assert_eq!(failure.code, code, "{reference}: {failure}");
            for part in says {
                assert!(failure.message.contains(part), "{reference}: no {part} in {failure}");
            }
            let home = puller.place.path("");
            assert!(!failure.message.contains(home.to_str().unwrap()), "{failure}");
        }
        let (code, told) = puller.download("bees/None:Q4_K_M");
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("bees/None") && told.contains("HF_TOKEN"), "{told}");
        assert_eq!((puller.is_sound(), puller.kept()), (0, vec![]));
        assert_eq!(puller.hub.bytes_sent(), 0, "nothing is guessed by downloading");
    });
}

#[test]
fn a_model_in_parts_comes_whole_or_not_at_all() {
    const COUNT: usize = 3;
    alone(|| {
        let parts: Vec<Arc<Content>> = split(&Tiny::default(), COUNT).into_iter().map(Content::of).collect();
        let name = |number: usize| format!("q4/{}", part_name("P-Q4_K_M", number - 1, COUNT));
        let add = |repo: Repo, number: usize| repo.with(&name(number), &parts[number - 1]);
        let whole = (1..=COUNT).rev().fold(Repo::new("bees/Parts"), add);
        let lacking = [1, 3].into_iter().fold(Repo::new("bees/Lacking"), add);
        let commit = whole.newest().id.clone();
        let puller = Puller::new(TestHub::of([whole, lacking]).cdn().open());
        let failure = puller.refused("bees/Lacking:Q4_K_M");
        assert_eq!(failure.code, Code::ModelNotFound, "{failure}");
        assert!(failure.message.contains("part 2"), "{failure}");
        assert_eq!(puller.hub.bytes_sent(), 0);
        // The second part fails for good: what came before it is kept, and is no model.
        let second = When::bytes().path(parts[1].sha256());
        puller.hub.fail(second, Fault::Status(418));
        puller.refused("bees/Parts");
        assert!(puller.models().is_empty());
        puller.hub.behave();
        let job = puller.pull("bees/Parts:Q4_K_M");
        assert_eq!(puller.path_of(&job), puller.snapshot("bees/Parts", &commit, &name(1)));
        for (number, part) in (1..).zip(&parts) {
            let path = puller.snapshot("bees/Parts", &commit, &name(number));
            assert_eq!(sha256_of(&path), part.sha256(), "{number}");
        }
        let all: u64 = parts.iter().map(|part| part.size()).sum();
        assert_eq!((job.done()["size_bytes"].as_u64(), puller.hub.bytes_sent()), (Some(all), all));
        assert_eq!(puller.is_sound(), COUNT);
    });
}

#[test]
fn a_gate_opens_with_the_key_which_goes_to_the_hub_alone() {
    alone(|| {
        let hub = || {
            let gated = Repo::new("bees/Gated").gated().with("g-Q4_K_M.gguf", &model(1));
            let private = Repo::new("bees/Private").private().with("p-Q4_K_M.gguf", &model(2));
            TestHub::of([gated, private]).cdn().token(TOKEN).open()
        };
        let without = Puller::new(hub());
        for repo in ["bees/Gated", "bees/Private"] {
            let failure = without.refused(repo);
            assert_eq!(failure.code, Code::Forbidden, "{failure}");
            assert!(failure.message.contains("HF_TOKEN"), "{failure}");
        }
        let (code, told) = without.download("bees/Gated");
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("terms"), "{told}");

        let wrong = Puller::with(hub(), &[("HF_TOKEN", "hf_other")]);
        let failure = wrong.refused("bees/Private");
        assert_eq!(failure.code, Code::Forbidden, "{failure}");
        assert!(!failure.message.contains("hf_other"), "{failure}");
        drop(wrong);

        let with = Puller::with(hub(), &[("HF_TOKEN", TOKEN)]);
        for (repo, seed) in [("bees/Gated", 1), ("bees/Private", 2)] {
            let job = with.pull(repo);
            assert_eq!(sha256_of(&with.path_of(&job)), model(seed).sha256());
            assert!(!format!("{job:?}").contains(TOKEN), "{job:?}");
        }
        with.token_stayed_at_home();
        assert!(!with.hive().log().contains(TOKEN));
        for folder in ["s", "hub"] {
            let found =
                std::process::Command::new("grep").args(["-rl", TOKEN]).arg(with.place.path(folder)).output();
            assert_eq!(String::from_utf8(found.unwrap().stdout).unwrap(), "", "the key lies in a file");
        }
        let signed = format!("{:?}", with.models());
        assert!(!signed.contains("Signature"), "{signed}");
    });
}

/// Names that lead somewhere else on one system or another, or that no terminal should be shown.
const HOSTILE: [&str; 16] = [
    "../x.gguf",
    "../../../../../../tmp/x.gguf",
    "/etc/x.gguf",
    "a/../../x.gguf",
    "a/../../../refs/x.gguf",
    "./x.gguf",
    "a//x.gguf",
    "..\\x.gguf",
    "a\\..\\..\\x.gguf",
    "C:\\x.gguf",
    "C:x.gguf",
    "\\\\host\\share\\x.gguf",
    "x\0.gguf",
    "x\u{1b}[2J.gguf",
    "x\n.gguf",
    "x.gguf:stream",
];

#[test]
fn a_name_that_leads_out_of_the_cache_is_never_followed() {
    alone(|| {
        let mut repos = Vec::new();
        for (number, name) in HOSTILE.iter().enumerate() {
            repos.push(Repo::new(&format!("bees/Only{number}")).with(name, &model(1)));
            let beside = Repo::new(&format!("bees/Beside{number}")).with(name, &model(1));
            repos.push(beside.with("good-Q4_K_M.gguf", &model(2)));
        }
        let puller = Puller::new(TestHub::of(repos).cdn().open());
        for (number, name) in HOSTILE.iter().enumerate() {
            let failure = puller.refused(&format!("bees/Only{number}"));
            assert!(!failure.message.contains(char::is_control), "{name:?}: {failure}");
            assert_eq!(puller.is_sound(), number, "{name:?}");
            let job = puller.pull(&format!("bees/Beside{number}"));
            assert!(puller.path_of(&job).ends_with("good-Q4_K_M.gguf"), "{name:?}");
        }
        assert_eq!(puller.hub.bytes_sent(), model(2).size() * HOSTILE.len() as u64);
        let resolved = puller.hub.asked().into_iter().filter(|asked| asked.path.contains("/resolve/"));
        assert!(resolved.into_iter().all(|asked| asked.path.ends_with("good-Q4_K_M.gguf")));
        assert_eq!(puller.kept(), [] as [std::path::PathBuf; 0]);
        let find = |root: &str| {
            let found =
                std::process::Command::new("find").args([root, "-name", "x*.gguf*"]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&found.stdout), "");
        };
        find(puller.place.path("").to_str().unwrap());
        find("/etc");
    });
}

#[test]
fn a_list_that_is_none_is_told_and_nothing_is_fetched() {
    alone(|| {
        let puller = Puller::new(TestHub::of([repo()]).open());
        let commit = repo().newest().id.clone();
        let odd = |sha: &str, name: &str| {
            format!(r#"{{"id":"{REPO}","sha":"{sha}","siblings":[{{"rfilename":"{name}","size":10}}]}}"#)
        };
        let faults = [
            Fault::Body("<html>welcome to the hotel's network</html>".into()),
            Fault::Body("{".into()),
            Fault::Body("[]".into()),
            Fault::Body(r#"{"id":"x","sha":"y"}"#.into()),
            Fault::Body(odd("../../../x", "a-Q4_K_M.gguf")),
            Fault::Body(odd("main", "a-Q4_K_M.gguf")),
            Fault::Body(odd(&commit[..20], "a-Q4_K_M.gguf")),
            Fault::Body("[".repeat(1 << 20)),
            Fault::Endless,
            Fault::Gibberish,
            Fault::EndlessHead,
            Fault::RedirectTo("file:///etc/passwd".into()),
            Fault::RedirectTo("ftp://x/y".into()),
            Fault::Status(400),
        ];
        for fault in faults {
            puller.hub.behave();
            puller.hub.fail(When::listing(), fault.clone());
            let failure = puller.refused(REPO);
            let described: String = format!("{fault:?}").chars().take(100).collect();
            let codes = [Code::DownloadFailed, Code::InvalidRequest];
            assert!(codes.contains(&failure.code), "{described}: {failure}");
            assert!(failure.message.len() < 1000, "{described}: {failure}");
        }
        assert_eq!(puller.hub.bytes_sent(), 0);
        // A hub that is tired for a while is asked again.
        puller.hub.behave();
        puller.hub.fail(When::listing().nth(0), Fault::Status(503));
        puller.hub.fail(When::listing().nth(1), Fault::CutAt(100));
        puller.hub.fail(When::listing().nth(2), Fault::StatusWith(429, "retry-after: 0\r\n".into()));
        puller.pull(REPO).done();
        assert_eq!(puller.is_sound(), 1);
    });
}

#[test]
fn a_repository_is_found_under_the_name_it_had_before() {
    alone(|| {
        let puller = Puller::new(TestHub::of([repo().formerly("bees/Old")]).cdn().open());
        let job = puller.pull("bees/Old:Q4_K_M");
        assert_eq!(sha256_of(&puller.path_of(&job)), model(4).sha256());
        assert_eq!(puller.is_sound(), 1);
        let cdn = puller.hub.asked_of(Site::Cdn);
        assert!(cdn.iter().all(|asked| asked.header("authorization").is_none()));
    });
}
