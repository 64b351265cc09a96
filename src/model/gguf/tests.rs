use super::*;
use crate::model::memory::{Shape, estimate};
use std::io::Cursor;

#[path = "../../../tests/support/gguf.rs"]
mod generated;
use generated::{Fault, Kind, Tiny, corrupt, part_name, split, tiny};
use std::path::PathBuf;
use tempfile::TempDir;

fn read_bytes(bytes: &[u8]) -> Result<Header, GgufError> {
    read(Cursor::new(bytes), bytes.len() as u64)
}

#[test]
fn the_header_tells_what_the_model_is() {
    let file = tiny(&Tiny::default());
    let header = read_bytes(&file).unwrap();
    assert_eq!(header.architecture, "llama");
    assert_eq!(header.name.as_deref(), Some("tiny-random-llama"));
    assert_eq!(header.quantization, "F32");
    assert_eq!((header.context_length, header.vocabulary), (2048, generated::VOCABULARY));
    assert_eq!(header.chat_template.as_deref(), Some(generated::CHAT_TEMPLATE));
    assert_eq!((header.block_count, header.embedding_length), (2, 64));
    assert_eq!((header.head_counts, header.head_counts_kv), (vec![4, 4], vec![2, 2]));
    assert_eq!((header.key_length, header.value_length), (16, 16));
    let block = 2 * 64 + 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128;
    assert_eq!(header.parameters, 2 * 64 * 367 + 2 * block + 64);
    assert_eq!(header.weights_bytes, header.parameters * 4);
    assert_eq!(header.file_bytes, file.len() as u64);
    assert_eq!((header.window, header.split), (None, None));
}

#[test]
fn a_half_precision_model_without_a_template_says_so() {
    let header = read_bytes(&tiny(&Tiny { half: true, chat_template: false, ..Tiny::default() })).unwrap();
    assert_eq!(header.quantization, "F16");
    assert_eq!(header.chat_template, None);
}

#[test]
fn every_known_fault_is_refused_with_a_sentence() {
    for fault in Fault::ALL {
        match read_bytes(&corrupt(fault)) {
            Ok(header) => assert!(!fault.is_refused(), "{fault:?} passed as {header:?}"),
            Err(error) => assert!(fault.is_refused(), "{fault:?} refused: {error}"),
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let file = tiny(&Tiny::default());
    let header_end = file.windows(13).rposition(|w| w == b"output.weight").unwrap() + 64;
    for length in (0..header_end).chain((header_end..file.len()).step_by(997)) {
        match read_bytes(&file[..length]) {
            Err(GgufError::Truncated(_)) => {}
            other => panic!("cut at {length}: {other:?}"),
        }
    }
}

#[test]
fn random_damage_never_panics() {
    const ROUNDS: u32 = 100_000;
    let file = tiny(&Tiny { embedding: 8, feed_forward: 8, ..Tiny::default() });
    let header_end = file.windows(13).rposition(|w| w == b"output.weight").unwrap() + 40;
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut damaged = file.clone();
    for _ in 0..ROUNDS {
        let flips: Vec<usize> = (0..1 + random(6)).map(|_| 4 + random(header_end - 4)).collect();
        for at in &flips {
            damaged[*at] = random(256) as u8;
        }
        if let Ok(header) = read_bytes(&damaged) {
            estimate(&header, &Shape::new(4, u32::MAX));
        }
        for at in &flips {
            damaged[*at] = file[*at];
        }
    }
}

#[test]
fn a_fifo_or_directory_is_refused_without_blocking() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(inspect(dir.path()), Err(GgufError::NotAFile(_))));
    let fifo = dir.path().join("model.gguf");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(matches!(inspect(&fifo), Err(GgufError::NotAFile(_))));
    assert!(matches!(inspect(&dir.path().join("absent.gguf")), Err(GgufError::Open { .. })));
}

#[test]
fn a_mixture_says_how_many_of_its_experts_run_and_windows_are_by_block() {
    let mixture = Tiny { kind: Kind::Mixture { experts: 4, used: 2 }, ..Tiny::default() };
    let header = read_bytes(&tiny(&mixture)).unwrap();
    assert_eq!(header.experts, Some(Experts { count: 4, used: 2, feed_forward_length: 128 }));
    let gemma = Tiny { kind: Kind::Gemma3 { window: 512 }, blocks: 7, head: Some(32), ..Tiny::default() };
    let header = read_bytes(&tiny(&gemma)).unwrap();
    assert_eq!((header.architecture.as_str(), header.key_length, header.experts), ("gemma3", 32, None));
    let window = header.window.unwrap();
    assert_eq!((window.tokens, window.blocks), (512, vec![true, true, true, true, true, false, true]));
}

#[test]
fn matrices_in_groups_of_rows_are_counted_by_type() {
    let header = read_bytes(&tiny(&Tiny { quarter: true, ..Tiny::default() })).unwrap();
    let block = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128;
    // 367 rows of embeddings and of output are no whole groups.
    assert_eq!(header.matrices, BTreeMap::from([("Q4_0", 2 * block / 32 * 18)]));
    assert_eq!(header.quantization, "Q4_0");
}

const PARTS: usize = 3;

/// A split model on disk.
fn parts() -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let path = |number| folder.path().join(part_name("tiny", number, PARTS));
    let paths: Vec<PathBuf> = (0..PARTS).map(path).collect();
    for (path, bytes) in paths.iter().zip(split(&Tiny::default(), PARTS)) {
        std::fs::write(path, bytes).unwrap();
    }
    (folder, paths)
}

/// Changes what follows a key in a file: its type and value.
fn patch(path: &Path, key: &str, value: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len();
    bytes[at..at + value.len()].copy_from_slice(value);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_split_model_has_one_header_whichever_part_is_given() {
    let (_folder, paths) = parts();
    let whole = read_bytes(&tiny(&Tiny::default())).unwrap();
    let bytes: u64 = paths.iter().map(|path| path.metadata().unwrap().len()).sum();
    for (number, path) in paths.iter().enumerate() {
        let header = inspect(path).unwrap();
        assert_eq!(header.split, Some(Split { number: number as u32, count: PARTS as u32 }));
        assert_eq!((&header.parts, header.file_bytes), (&paths, bytes));
        let as_whole = Header { split: None, parts: Vec::new(), file_bytes: whole.file_bytes, ..header };
        assert_eq!(as_whole, whole);
    }
    let first = std::fs::read(&paths[0]).unwrap();
    assert!(matches!(read_bytes(&first), Err(GgufError::PartAlone { number: 0, count: 3 })));
}

#[test]
fn parts_are_looked_for_beside_the_link_and_not_beside_what_it_shows() {
    let (folder, paths) = parts();
    let cache = folder.path().join("snapshot");
    std::fs::create_dir(&cache).unwrap();
    let links: Vec<PathBuf> = paths.iter().map(|path| cache.join(path.file_name().unwrap())).collect();
    for (number, (path, link)) in paths.iter().zip(&links).enumerate() {
        let blob = folder.path().join(format!("{number:064x}"));
        std::fs::rename(path, &blob).unwrap();
        std::os::unix::fs::symlink(&blob, link).unwrap();
    }
    assert_eq!(inspect(&links[1]).unwrap().parts, links);
    std::fs::remove_file(&links[2]).unwrap();
    match inspect(&links[0]) {
        Err(GgufError::PartMissing { path }) => assert_eq!(path, links[2]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_part_that_is_not_the_one_its_name_says_is_refused() {
    let number = "split.no";
    type Break<'b> = &'b dyn Fn(&Path);
    let broken: [(&str, usize, Break<'_>); 7] = [
        ("another number", 1, &|path| patch(path, number, &[2, 0, 0, 0, 2, 0])),
        ("a number that llama.cpp aborts for", 2, &|path| patch(path, number, &[3, 0, 0, 0])),
        ("another count", 1, &|path| patch(path, "split.count", &[2, 0, 0, 0, 4, 0])),
        ("too few tensors", 0, &|path| patch(path, "split.tensors.count", &[5, 0, 0, 0, 20, 0, 0, 0])),
        ("cut short", 2, &|path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 200).unwrap();
        }),
        ("a part twice", 2, &|path| {
            std::fs::copy(path.with_file_name(part_name("tiny", 1, PARTS)), path).unwrap();
            patch(path, number, &[2, 0, 0, 0, 2, 0]);
        }),
        ("no model at all", 1, &|path| std::fs::write(path, "hello").unwrap()),
    ];
    for (what, part, break_it) in broken {
        let (_folder, paths) = parts();
        break_it(&paths[part]);
        let error = inspect(&paths[0]).expect_err(what);
        let source = std::error::Error::source(&error).map_or(String::new(), ToString::to_string);
        assert!(error.to_string().contains("part") || source.contains("part"), "{what}: {error}: {source}");
    }
    let (folder, paths) = parts();
    let renamed = folder.path().join("model.gguf");
    std::fs::rename(&paths[0], &renamed).unwrap();
    let told = inspect(&renamed).unwrap_err().to_string();
    assert!(told.contains("-00001-of-00003.gguf"), "{told}");
}

/// A file with nothing but these texts.
fn file_of(keys: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(0u64.to_le_bytes());
    file.extend((keys.len() as u64).to_le_bytes());
    for (key, value) in keys {
        file.extend([text(key), 8u32.to_le_bytes().to_vec(), text(value)].concat());
    }
    file
}

#[test]
fn what_goes_with_a_model_and_is_none_says_what_it_is() {
    for (keys, word) in [
        (&[("general.architecture", "clip")][..], "vision projector"),
        (&[("general.type", "mmproj"), ("general.architecture", "clip")], "vision projector"),
        (&[("general.architecture", "llama"), ("general.type", "adapter")], "LoRA adapter"),
        (&[("general.type", "imatrix")], "importance matrix"),
        (&[("general.architecture", "controlvector")], "control vector"),
    ] {
        match read_bytes(&file_of(keys)) {
            Err(error @ GgufError::NotAModel { .. }) => assert!(error.to_string().contains(word), "{error}"),
            other => panic!("{keys:?}: {other:?}"),
        }
    }
    let model = [("general.type", "model"), ("general.architecture", "llama")];
    assert!(matches!(read_bytes(&file_of(&model)), Err(GgufError::Metadata { .. })));
}

#[test]
fn tensors_that_begin_where_nothing_can_be_mapped_are_refused() {
    let file = tiny(&Tiny::default());
    let name = b"output.weight";
    // Behind the last name: dimensions (4), two lengths (8 each), type (4), offset (8).
    let header_end = file.windows(name.len()).rposition(|w| w == name).unwrap() + name.len() + 32;
    let data = &file[header_end.next_multiple_of(32)..];
    let key =
        |name: &str, value: &[u8]| [&(name.len() as u64).to_le_bytes()[..], name.as_bytes(), value].concat();
    let mut refused = 0;
    for padding in [0, 8, 16, 24] {
        let mut bytes = file[..header_end].to_vec();
        let count = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + 2;
        bytes[16..24].copy_from_slice(&count.to_le_bytes());
        let text = [&8u32.to_le_bytes()[..], &(padding as u64).to_le_bytes(), &b"x".repeat(padding)].concat();
        let keys = [key("general.alignment", &[4, 0, 0, 0, 8, 0, 0, 0]), key("padding", &text)].concat();
        bytes.splice(24..24, keys);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let is_aligned = bytes.len().is_multiple_of(32);
        bytes.extend(data);
        match read_bytes(&bytes) {
            Ok(_) => assert!(is_aligned, "{padding}"),
            Err(error) => {
                assert!(!is_aligned && error.to_string().contains("multiple of 32"), "{padding}: {error}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 3);
}

#[test]
fn counts_of_experts_that_do_not_belong_together_are_refused() {
    let mixture = tiny(&Tiny { kind: Kind::Mixture { experts: 4, used: 2 }, ..Tiny::default() });
    for (key, count) in [
        ("expert_count", 0),
        ("expert_count", 1),
        ("expert_count", 5_000),
        ("expert_used_count", 0),
        ("expert_used_count", 5),
    ] {
        let mut bytes = mixture.clone();
        let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() + 4;
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(count));
        assert!(matches!(read_bytes(&bytes), Err(GgufError::Metadata { .. })), "{key} = {count}");
    }
}

#[test]
fn an_epsilon_that_is_negative_or_no_number_is_refused() {
    const KEY: &[u8] = b"llama.attention.layer_norm_rms_epsilon";
    let file = tiny(&Tiny::default());
    let at = file.windows(KEY.len()).position(|w| w == KEY).unwrap() + KEY.len() + 4;
    for (epsilon, is_refused) in
        [(1e-5f32, false), (0.0, false), (-1e-6, true), (f32::NAN, true), (f32::INFINITY, true)]
    {
        let mut bytes = file.clone();
        bytes[at..at + 4].copy_from_slice(&epsilon.to_le_bytes());
        assert_eq!(read_bytes(&bytes).is_err(), is_refused, "{epsilon}");
    }
}
