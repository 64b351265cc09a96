//! A model split into several files, as `llama-gguf-split` does it: `NAME-00001-of-00003.gguf` and so on in one folder.
//!
//! llama.cpp opens the other parts by the first one's name, and what it finds there is as untrusted as the first: so each
//! part's header is read here, each tensor table against its own file's length, and then all hold the rules together.
//!
//! In the hub's cache the names are links to blobs that have other names: the parts lie beside the link, not its target.

use super::metadata::{Kind, bad};
use super::{GgufError, Header, Part, Split, check};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The largest models have some hundred.
const PARTS_MAX: u32 = 1_000;
const TENSOR_COUNT: &str = "split.tensors.count";

/// The header of the model whose part `given` is at `path`.
pub(super) fn merge(path: &Path, given: Part, split: Split) -> Result<Header, GgufError> {
    let paths = paths(path, split)?;
    let mut given = Some(given);
    let mut whole: Option<Part> = None;
    for (number, path) in (0u32..).zip(&paths) {
        let part = match given.take_if(|_| number == split.number) {
            Some(part) => part,
            None => open(path)?,
        };
        let named = |source: GgufError| GgufError::Part { path: path.clone(), source: Box::new(source) };
        belongs(&part, number, split.count).map_err(named)?;
        match &mut whole {
            None => whole = Some(part),
            Some(whole) => {
                whole.tensors.absorb(part.tensors).map_err(named)?;
                whole.file_bytes = whole.file_bytes.saturating_add(part.file_bytes);
            }
        }
    }
    let whole = whole.expect("a split model has at least two parts");
    let present = whole.tensors.names.len();
    match whole.metadata.u32(TENSOR_COUNT)? {
        Some(told) if told as usize == present => {}
        Some(told) => {
            return Err(bad(TENSOR_COUNT, format!("is {told}, but the parts have {present} tensors")));
        }
        None => return Err(bad(TENSOR_COUNT, "is missing")),
    }
    let header = check::header(&whole.metadata, &whole.tensors, whole.file_bytes)?;
    Ok(Header { split: Some(split), parts: paths, ..header })
}

fn open(path: &Path) -> Result<Part, GgufError> {
    Part::open(path).map_err(|error| match error {
        GgufError::Open { path, source } if source.kind() == io::ErrorKind::NotFound => {
            GgufError::PartMissing { path }
        }
        // These name the file themselves.
        error @ (GgufError::Open { .. } | GgufError::NotAFile(_)) => error,
        error => GgufError::Part { path: path.to_owned(), source: Box::new(error) },
    })
}

/// Whether the part is the one that its name says.
fn belongs(part: &Part, number: u32, count: u32) -> Result<(), GgufError> {
    // Asserted by llama.cpp of every part but the first, which it reads more carefully.
    if !part.metadata.is_of(check::SPLIT_NUMBER, Kind::U16) {
        return Err(bad(check::SPLIT_NUMBER, "is missing or no 16-bit number"));
    }
    match part.metadata.u32(check::SPLIT_NUMBER)? {
        Some(told) if told == number => {}
        told => {
            let told = told.unwrap_or_default();
            return Err(bad(check::SPLIT_NUMBER, format!("is {told}, should be {number}, as the name says")));
        }
    }
    match part.metadata.u32(check::SPLIT_COUNT)?.filter(|told| *told != count) {
        Some(told) => {
            Err(bad(check::SPLIT_COUNT, format!("is {told}, but {count} in the part that was given")))
        }
        None => Ok(()),
    }
}

/// All parts' paths, by llama.cpp's rule.
fn paths(given: &Path, split: Split) -> Result<Vec<PathBuf>, GgufError> {
    let Split { number, count } = split;
    if count > PARTS_MAX {
        return Err(GgufError::Limit { what: "parts", value: count.into(), max: PARTS_MAX.into() });
    }
    let ending = |number: u32| format!("-{:05}-of-{count:05}.gguf", number + 1);
    let name = given.file_name().unwrap_or_default().as_bytes();
    let Some(prefix) = name.strip_suffix(ending(number).as_bytes()).filter(|prefix| !prefix.is_empty())
    else {
        return Err(GgufError::PartName { path: given.to_owned(), number, count, ending: ending(number) });
    };
    let path = |number: u32| {
        let name = [prefix, ending(number).as_bytes()].concat();
        given.with_file_name(OsString::from_vec(name))
    };
    Ok((0..count).map(path).collect())
}
