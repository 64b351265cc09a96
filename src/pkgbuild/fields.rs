//! What the bridge wrote about a PKGBUILD, read back: a pure function over bytes that a hostile recipe may have written.
//!
//! NUL-terminated words: a version, then records of a kind and its words, then `end`, without which bash did not come
//! to the end of the file.

use super::metadata::{Metadata, RecipeError};
use std::collections::BTreeMap;

/// All fields together; the bridge cannot write more either.
pub const FIELDS_BYTES_MAX: usize = 1024 * 1024;
/// Elements of all arrays together.
const ELEMENTS_MAX: usize = 8192;
/// One value: the longest in use are commented lists of a few kilobytes.
const VALUE_BYTES_MAX: usize = 64 * 1024;
const VERSION: &str = "rbee-fields-1";

/// The metadata that the fields declare, for a node of this architecture.
pub fn read(bytes: &[u8], architecture: &str) -> Result<Metadata, RecipeError> {
    Metadata::declared(&Fields::parse(bytes)?, architecture)
}

/// A variable as bash has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Variable {
    /// Indices and values, in order of the indices.
    Array(Vec<(u64, String)>),
    Map,
    Text(String),
}

/// Everything that was declared, before it means anything.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub variables: BTreeMap<String, Variable>,
    /// Functions of makepkg's by name; the text of those that make packages.
    pub functions: BTreeMap<String, String>,
}

impl Fields {
    pub(super) fn parse(bytes: &[u8]) -> Result<Fields, RecipeError> {
        if bytes.len() > FIELDS_BYTES_MAX {
            return Err(RecipeError::FieldsTooLarge);
        }
        let mut words = Words { rest: bytes };
        if words.next()? != VERSION {
            return Err(RecipeError::Fields("they open with another version"));
        }
        let (mut fields, mut room) = (Fields::default(), ELEMENTS_MAX);
        loop {
            match words.next()?.as_str() {
                "end" => return Ok(fields),
                "array" => {
                    let name = words.next()?;
                    let count = words.number()?;
                    let count = usize::try_from(count).ok().filter(|count| *count <= room);
                    let count = count.ok_or(RecipeError::Fields("there are too many elements"))?;
                    room -= count;
                    let elements = (0..count).map(|_| Ok((words.number()?, words.next()?)));
                    let elements = elements.collect::<Result<Vec<_>, RecipeError>>()?;
                    if !elements.is_sorted_by(|(before, _), (after, _)| before < after) {
                        return Err(RecipeError::Fields("indices are out of order"));
                    }
                    fields.variables.insert(name, Variable::Array(elements));
                }
                "map" => {
                    fields.variables.insert(words.next()?, Variable::Map);
                }
                "string" => {
                    let name = words.next()?;
                    fields.variables.insert(name, Variable::Text(words.next()?));
                }
                "function" => {
                    let name = words.next()?;
                    fields.functions.insert(name, words.next()?);
                }
                _ => return Err(RecipeError::Fields("there is a record of an unknown kind")),
            }
        }
    }
}

struct Words<'a> {
    rest: &'a [u8],
}

impl Words<'_> {
    fn next(&mut self) -> Result<String, RecipeError> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let end = end.ok_or(RecipeError::Fields("they end too early"))?;
        let (word, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        if word.len() > VALUE_BYTES_MAX {
            return Err(RecipeError::Fields("a value is longer than 64 KiB"));
        }
        let text = std::str::from_utf8(word).map_err(|_| RecipeError::Fields("a value is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn number(&mut self) -> Result<u64, RecipeError> {
        self.next()?.parse().map_err(|_| RecipeError::Fields("a number is none"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<u8> {
        words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect()
    }

    #[test]
    fn records_read_back_as_they_were_declared() {
        let bytes = words(&[
            VERSION,
            "array",
            "source",
            "2",
            "0",
            "a b",
            "7",
            "",
            "string",
            "pkgver",
            "1\n2",
            "map",
            "optdepends",
            "function",
            "package",
            "package () \n{ \n}",
            "end",
            "after the end",
        ]);
        let fields = Fields::parse(&bytes).unwrap();
        let source = Variable::Array(vec![(0, "a b".into()), (7, String::new())]);
        assert_eq!(fields.variables["source"], source);
        assert_eq!(fields.variables["pkgver"], Variable::Text("1\n2".into()));
        assert_eq!(fields.variables["optdepends"], Variable::Map);
        assert!(fields.functions["package"].starts_with("package"));
    }

    #[test]
    fn no_cut_and_no_lie_is_believed() {
        let whole = words(&[VERSION, "array", "arch", "1", "0", "any", "string", "pkgrel", "1", "end"]);
        assert!(Fields::parse(&whole).is_ok());
        for cut in 0..whole.len() {
            assert!(Fields::parse(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for lie in [
            &["rbee-fields-9", "end"][..],
            &[VERSION, "array", "arch", "99999999999999999999", "end"],
            &[VERSION, "array", "arch", "100000", "end"],
            &[VERSION, "array", "arch", "2", "1", "a", "0", "b", "end"],
            &[VERSION, "array", "arch", "1", "-1", "a", "end"],
            &[VERSION, "object", "x", "end"],
        ] {
            assert!(Fields::parse(&words(lie)).is_err(), "{lie:?}");
        }
        assert!(Fields::parse(&[words(&[VERSION]), b"string\0x\0\xff\0end\0".to_vec()].concat()).is_err());
        assert!(Fields::parse(&vec![b'x'; FIELDS_BYTES_MAX + 1]).is_err());
    }
}
