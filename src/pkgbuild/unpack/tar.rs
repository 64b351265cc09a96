//! tar, read for a recipe's sources: v7, ustar, GNU's long names, pax. Our own reader, because where two readings of a
//! header are possible (a size in two places, data after a link, a name in three) one of them is an attack, and here it
//! is known which is taken: pax over GNU over ustar, and what stays unclear is refused.

use super::sink::{Refusal, Sink, Time, UnpackError, shown};
use std::io::{self, Read};

const BLOCK: usize = 512;
/// Of a long name or of extended attributes; they are held in memory.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

type Block = [u8; BLOCK];
/// Key and value of an extended header.
type Record<'a> = (&'a [u8], &'a [u8]);

/// Whether this can be the first block of an archive.
pub fn is_tar(block: &[u8]) -> bool {
    block.first_chunk::<BLOCK>().is_some_and(|block| block[0] != 0 && has_right_sum(block))
}

/// What extended headers say of the member that follows.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    time: Option<Time>,
    is_sparse: bool,
    /// From pax, which is stronger than what GNU has.
    pax_name: Option<Vec<u8>>,
    pax_link: Option<Vec<u8>>,
}

pub fn unpack(from: &mut dyn Read, sink: &mut Sink) -> Result<(), UnpackError> {
    let mut extended = Extended::default();
    while let Some(block) = read_block(from).map_err(UnpackError::Damaged)? {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        sink.count()?;
        let header = Header { block: &block };
        if !has_right_sum(&block) {
            return Err(damaged("a header's sum is wrong"));
        }
        let size = number(&block[124..136]).ok_or_else(|| damaged("a size is no number"))?;
        match block[156] {
            b'x' => extended.read(&extension(from, size)?)?,
            b'g' => check_global(&extension(from, size)?)?,
            b'L' => extended.name = Some(until_nul(&extension(from, size)?)),
            b'K' => extended.link = Some(until_nul(&extension(from, size)?)),
            // A volume's label.
            b'V' => skip(from, padded(size)).map_err(UnpackError::Damaged)?,
            kind => member(from, sink, &header, kind, size, std::mem::take(&mut extended))?,
        }
    }
    Ok(())
}

struct Header<'a> {
    block: &'a Block,
}

fn member(
    from: &mut dyn Read,
    sink: &mut Sink,
    header: &Header<'_>,
    kind: u8,
    size: u64,
    extended: Extended,
) -> Result<(), UnpackError> {
    let name = extended.pax_name.or(extended.name).unwrap_or_else(|| header.name());
    let link = extended.pax_link.or(extended.link).unwrap_or_else(|| until_nul(&header.block[157..257]));
    let size = extended.size.unwrap_or(size);
    let refuse = |why| Err(UnpackError::Refused { member: shown(&name), why });
    if extended.is_sparse {
        return refuse(Refusal::Sparse);
    }
    let mode = number(&header.block[100..108]).unwrap_or(0o644) as u32;
    let time = extended.time.unwrap_or_else(|| header.time());
    // Before there was a type for them, folders were files whose name ends in a slash.
    let is_folder = kind == b'5' || matches!(kind, 0 | b'0') && name.ends_with(b"/");
    match kind {
        _ if is_folder && size == 0 => sink.folder(&name, time),
        b'1' if size == 0 => sink.hard_link(&name, &link),
        b'2' if size == 0 => sink.symlink(&name, &link, time),
        _ if is_folder || matches!(kind, b'1' | b'2') => refuse(Refusal::DataWithoutFile),
        0 | b'0' | b'7' => {
            let mut data = Exact { from: &mut *from, left: size };
            sink.file(&name, mode, time, &mut data)?;
            skip(from, padded(size) - size).map_err(UnpackError::Damaged)
        }
        b'3' => refuse(Refusal::Kind("character device")),
        b'4' => refuse(Refusal::Kind("block device")),
        b'6' => refuse(Refusal::Kind("named pipe")),
        b'S' => refuse(Refusal::Sparse),
        b'M' => refuse(Refusal::Kind("part of a file on another volume")),
        other => refuse(Refusal::UnknownKind((other as char).escape_debug().to_string())),
    }
}

impl Header<'_> {
    fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.block[0..100]);
        let prefix = until_nul(&self.block[345..500]);
        // GNU's own header has other things where ustar has a prefix.
        let is_ustar = &self.block[257..263] == b"ustar\0";
        if is_ustar && !prefix.is_empty() { [&prefix, b"/".as_slice(), &name].concat() } else { name }
    }

    fn time(&self) -> Time {
        let seconds = number(&self.block[136..148]).and_then(|seconds| seconds.try_into().ok());
        Time { seconds: seconds.unwrap_or(0), nanoseconds: 0 }
    }
}

impl Extended {
    fn read(&mut self, records: &[u8]) -> Result<(), UnpackError> {
        for (key, value) in pax(records)? {
            match key {
                b"path" => self.pax_name = Some(value.to_vec()).filter(|name| !name.is_empty()),
                b"linkpath" => self.pax_link = Some(value.to_vec()).filter(|link| !link.is_empty()),
                b"size" => self.size = Some(decimal(value).ok_or_else(|| damaged("a size is no number"))?),
                b"mtime" => self.time = time(value),
                _ if key.starts_with(b"GNU.sparse.") || key == b"SCHILY.realsize" => self.is_sparse = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// For all members: nothing there may say what they are called or how long they are.
fn check_global(records: &[u8]) -> Result<(), UnpackError> {
    let forbidden: [&[u8]; 3] = [b"path", b"linkpath", b"size"];
    for (key, _) in pax(records)? {
        if forbidden.contains(&key) || key.starts_with(b"GNU.sparse.") {
            return Err(damaged("one name or size is given for all members"));
        }
    }
    Ok(())
}

/// Records of `LENGTH KEY=VALUE\n`.
fn pax(mut records: &[u8]) -> Result<Vec<Record<'_>>, UnpackError> {
    let bad = || damaged("an extended header is no list of records");
    let mut all = Vec::new();
    while !records.is_empty() && records[0] != 0 {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length =
            decimal(&records[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(bad)?;
        let record =
            records.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        all.push((&record[..equals], &record[equals + 1..]));
        records = &records[length..];
    }
    Ok(all)
}

fn damaged(what: &'static str) -> UnpackError {
    UnpackError::Damaged(io::Error::new(io::ErrorKind::InvalidData, what))
}

fn extension(from: &mut dyn Read, size: u64) -> Result<Vec<u8>, UnpackError> {
    if size > EXTENSION_BYTES_MAX {
        return Err(damaged("an extended header has more than a megabyte"));
    }
    let mut bytes = vec![0; padded(size) as usize];
    from.read_exact(&mut bytes).map_err(UnpackError::Damaged)?;
    bytes.truncate(size as usize);
    Ok(bytes)
}

/// The next block; `None` where the data ends between two.
fn read_block(from: &mut dyn Read) -> io::Result<Option<Block>> {
    let mut block = [0; BLOCK];
    let mut have = 0;
    while have < BLOCK {
        match from.read(&mut block[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(block))
}

fn skip(from: &mut dyn Read, bytes: u64) -> io::Result<()> {
    match io::copy(&mut Exact { from, left: bytes }, &mut io::sink())? {
        count if count == bytes => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// So many bytes, no fewer.
struct Exact<'a> {
    from: &'a mut dyn Read,
    left: u64,
}

impl Read for Exact<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        match self.from.read(&mut buffer[..most])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
    }
}

/// Sizes come from strangers: the last block of one near the end of numbers has no end.
fn padded(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK as u64).unwrap_or(size)
}

/// The header's bytes added up, its own field as spaces; some old programs took the bytes as signed.
fn has_right_sum(block: &Block) -> bool {
    let Some(told) = number(&block[148..156]) else { return false };
    let byte = |index: usize| if (148..156).contains(&index) { b' ' } else { block[index] };
    let unsigned: u64 = (0..BLOCK).map(|index| u64::from(byte(index))).sum();
    let signed: i64 = (0..BLOCK).map(|index| i64::from(byte(index).cast_signed())).sum();
    told == unsigned || i64::try_from(told) == Ok(signed)
}

/// Octal digits between spaces and NULs, or big-endian bytes after a set highest bit. No negative ones.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let bytes = [&[field[0] & 0x7f], &field[1..]].concat();
        return bytes.iter().try_fold(0u64, |value, byte| Some(value.checked_mul(256)? + u64::from(*byte)));
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let digits: Vec<u8> = field[start..].iter().copied().take_while(|byte| !is_blank(byte)).collect();
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// `SECONDS.FRACTION`.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Time { seconds: seconds.parse().ok()?, nanoseconds: digits.parse().ok()? })
}

fn until_nul(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|byte| *byte != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_bytes() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\x02"), Some(258));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(padded(u64::MAX), u64::MAX);
    }

    #[test]
    fn records_are_read_strictly() {
        let read = |text: &[u8]| pax(text).map(|all| all.len()).ok();
        assert_eq!(read(b"9 path=a\n"), Some(1));
        assert_eq!(read(b"9 path=a\n11 size=12\n"), Some(2));
        for bad in [
            b"8 path=a\n".as_slice(),
            b"x path=a\n",
            b"99 path=a\n",
            b"0 path=a\n",
            b"9 pathea\n",
            b"1 ",
            b"-9 path=a\n",
        ] {
            assert_eq!(read(bad), None, "{}", String::from_utf8_lossy(bad));
        }
        assert_eq!(time(b"12.5"), Some(Time { seconds: 12, nanoseconds: 500_000_000 }));
    }
}
