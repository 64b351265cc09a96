//! Names of source files. A recipe chooses them and paths are made of them, so what is no plain name on every system is
//! refused; makepkg takes `../../x::https://…` as it comes.

/// Room is left for what a cache puts before and after it: a file's name has 255 bytes.
pub const NAME_BYTES_MAX: usize = 200;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("there is no file name in it: write NAME:: before it")]
    Empty,
    #[error("`{0}` names a folder, not a file")]
    Dots(String),
    #[error("`{0}` has a slash in it: a source is one file beside the PKGBUILD")]
    Slash(String),
    #[error("`{0}` has a backslash or a control character in it")]
    Character(String),
    #[error("`{0}` begins with a dash, which programs take for an option")]
    Dash(String),
    #[error("`{0}` is no file name on Windows")]
    Windows(String),
    #[error("`{0}…` has more than {NAME_BYTES_MAX} bytes")]
    Long(String),
}

/// Whether `name` is one component of a path, and a file's, wherever it is used.
pub fn check(name: &str) -> Result<(), NameError> {
    let shown = || name.escape_debug().take(NAME_BYTES_MAX).collect::<String>();
    match name {
        "" => Err(NameError::Empty),
        "." | ".." => Err(NameError::Dots(shown())),
        _ if name.len() > NAME_BYTES_MAX => Err(NameError::Long(shown())),
        _ if name.contains('/') => Err(NameError::Slash(shown())),
        _ if name.contains('\\') || name.contains(char::is_control) => Err(NameError::Character(shown())),
        _ if name.starts_with('-') => Err(NameError::Dash(shown())),
        _ if is_taken_on_windows(name) => Err(NameError::Windows(shown())),
        _ => Ok(()),
    }
}

/// `C:…`, devices with any extension, names that lose their last character.
fn is_taken_on_windows(name: &str) -> bool {
    const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];
    const PORTS: [&str; 2] = ["com", "lpt"];
    let bytes = name.as_bytes();
    let drive = bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':';
    let stem = name.split(['.', ':']).next().unwrap_or(name).trim_end().to_ascii_lowercase();
    let port = PORTS
        .iter()
        .any(|port| stem.strip_prefix(port).is_some_and(|number| matches!(number.as_bytes(), [b'0'..=b'9'])));
    drive || port || DEVICES.contains(&stem.as_str()) || name.ends_with(['.', ' '])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_pass() {
        for good in [
            "a",
            "llama.cpp-b1.tar.gz",
            "a b",
            "x.tar.gz?download=1",
            ".config",
            "ü",
            "aa:1.0",
            "console",
            "com10",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "../x",
            "/etc/passwd",
            "a\\b",
            "..\\x",
            "a\0",
            "a\nb",
            "\u{1b}[0m",
            "\u{9b}x",
            "-rf",
            "C:x",
            "c:",
            "nul",
            "NUL.txt",
            "aux:x",
            "com1",
            "LPT9.tar.gz",
            "con .x",
            "a.",
            "a ",
            &long,
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
