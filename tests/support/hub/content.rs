//! What a file holds. The first bytes are as given, and noise follows up to the size, made while it is sent: a file of
//! gigabytes costs nothing, and no part of it can pass for another.

use sha2::Digest as _;
use std::sync::{Arc, LazyLock, OnceLock};

/// Made and sent at once.
const BLOCK_BYTES: usize = 256 << 10;
/// Each page begins with a word that tells where it is.
const PAGE_BYTES: usize = 4 << 10;

/// SplitMix64's finish: a word that has nothing to do with its neighbours.
pub fn mixed(word: u64) -> u64 {
    let mut z = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

static NOISE: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..BLOCK_BYTES as u64 / 8).flat_map(|word| mixed(word + 1).to_le_bytes()).collect());

#[derive(Debug)]
pub struct Content {
    head: Vec<u8>,
    size: u64,
    seed: u64,
    sha256: OnceLock<String>,
    blob: OnceLock<String>,
}

impl Content {
    pub fn of(bytes: Vec<u8>) -> Arc<Content> {
        let size = bytes.len() as u64;
        Content::padded(bytes, size, 0)
    }

    /// `head`, and the noise of `seed` up to `size`.
    pub fn padded(head: Vec<u8>, size: u64, seed: u64) -> Arc<Content> {
        assert!(head.len() as u64 <= size);
        Arc::new(Content { head, size, seed, sha256: OnceLock::new(), blob: OnceLock::new() })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// What the hub calls a large file.
    pub fn sha256(&self) -> &str {
        self.sha256.get_or_init(|| {
            let mut sum = sha2::Sha256::new();
            self.each_piece(|piece| sum.update(piece));
            hex(&sum.finalize())
        })
    }

    /// What git, and so the hub, calls a small file.
    pub fn blob(&self) -> &str {
        self.blob.get_or_init(|| {
            let mut sum = sha1::Sha1::new();
            sum.update(format!("blob {}\0", self.size));
            self.each_piece(|piece| sum.update(piece));
            hex(&sum.finalize())
        })
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.each_piece(|piece| bytes.extend_from_slice(piece));
        bytes
    }

    fn each_piece(&self, mut take: impl FnMut(&[u8])) {
        let (mut pieces, mut at) = (Pieces::new(), 0);
        while at < self.size {
            let piece = pieces.at(self, at);
            take(piece);
            at += piece.len() as u64;
        }
    }
}

/// Makes a content's bytes, a block at a time.
pub struct Pieces {
    block: Vec<u8>,
    made: Option<u64>,
}

impl Pieces {
    pub fn new() -> Pieces {
        Pieces { block: Vec::new(), made: None }
    }

    /// Some of the bytes from `at` on, which is before the end.
    pub fn at<'a>(&'a mut self, content: &'a Content, at: u64) -> &'a [u8] {
        if let Some(head) = content.head.get(at as usize..).filter(|head| !head.is_empty()) {
            return &head[..head.len().min(BLOCK_BYTES)];
        }
        let number = at / BLOCK_BYTES as u64;
        if self.made != Some(number) {
            self.make(content.seed, number);
        }
        let begin = number * BLOCK_BYTES as u64;
        let end = (content.size - begin).min(BLOCK_BYTES as u64);
        &self.block[(at - begin) as usize..end as usize]
    }

    fn make(&mut self, seed: u64, number: u64) {
        if self.block.is_empty() {
            self.block.clone_from(&NOISE);
        }
        let first = number * (BLOCK_BYTES / PAGE_BYTES) as u64;
        for (page, bytes) in (first..).zip(self.block.chunks_exact_mut(PAGE_BYTES)) {
            bytes[..8].copy_from_slice(&mixed(mixed(seed) ^ page).to_le_bytes());
        }
        self.made = Some(number);
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
