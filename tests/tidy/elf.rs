//! As much of a 64-bit little-endian ELF file as shows whether it is static and which functions it defines.

const PT_INTERP: u32 = 3;
const SHT_SYMTAB: u32 = 2;
const STT_FUNC: u8 = 2;
const SYMBOL_BYTES: usize = 24;

pub struct Program {
    pub has_interpreter: bool,
    /// The functions it defines, by their linker names.
    pub functions: Vec<String>,
}

impl Program {
    /// None: not such a file.
    pub fn read(image: &[u8]) -> Option<Program> {
        if !image.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let programs = table(image, 0x20, 0x36, 0x38)?;
        let has_interpreter = programs.iter().any(|header| u32_at(header, 0) == Some(PT_INTERP));
        let sections = table(image, 0x28, 0x3a, 0x3c)?;
        let mut functions = Vec::new();
        for section in sections.iter().filter(|section| u32_at(section, 4) == Some(SHT_SYMTAB)) {
            let names = content(image, sections.get(u32_at(section, 0x28)? as usize)?)?;
            for symbol in content(image, section)?.chunks_exact(SYMBOL_BYTES) {
                let is_defined = u16_at(symbol, 6)? != 0;
                if symbol[4] & 0xf == STT_FUNC && is_defined {
                    let name = names.get(u32_at(symbol, 0)? as usize..)?.split(|byte| *byte == 0).next()?;
                    functions.push(String::from_utf8_lossy(name).into_owned());
                }
            }
        }
        Some(Program { has_interpreter, functions })
    }
}

/// A table of headers: where its offset, the size of an entry and their number stand in the file's header.
fn table(image: &[u8], offset_at: usize, size_at: usize, count_at: usize) -> Option<Vec<&[u8]>> {
    let offset = usize_at(image, offset_at)?;
    let (size, count) = (u16_at(image, size_at)? as usize, u16_at(image, count_at)? as usize);
    (0..count).map(|index| image.get(offset + index * size..)?.get(..size)).collect()
}

fn content<'a>(image: &'a [u8], section: &[u8]) -> Option<&'a [u8]> {
    image.get(usize_at(section, 0x18)?..)?.get(..usize_at(section, 0x20)?)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?) as usize)
}
