use super::*;
use crate::model::memory::{Shape, estimate};
use std::io::Cursor;

#[path = "../../../tests/support/gguf.rs"]
mod generated;
use generated::{Fault, Tiny, corrupt, tiny};

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
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(inspect(&fifo), Err(GgufError::NotAFile(_))));
    assert!(matches!(inspect(&dir.path().join("absent.gguf")), Err(GgufError::Open { .. })));
}
