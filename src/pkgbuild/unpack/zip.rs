//! zip, by its list of contents alone, so that there is one reading of it.

use super::budget::{Budget, Metered};
use super::sink::{Refusal, Sink, Time, UnpackError, shown};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use zip::ZipArchive;
use zip::result::ZipError;

const KIND: u32 = 0o170_000;
const LINK: u32 = 0o120_000;
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK_BYTES_MAX: u64 = 4096;
const MODE_DEFAULT: u32 = 0o644;

pub fn unpack(path: &Path, budget: &Budget, sink: &mut Sink) -> Result<(), UnpackError> {
    let file = File::open(path).map_err(UnpackError::Open)?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
    if archive.has_overlapping_entries().map_err(damaged)? {
        let overlap =
            io::Error::new(io::ErrorKind::InvalidData, "members share their bytes, as a bomb has it");
        return Err(UnpackError::Damaged(overlap));
    }
    let has_twins = archive.has_duplicate_names();
    for index in 0..archive.len() {
        sink.count()?;
        let entry = archive.by_index_data(index).map_err(damaged)?;
        let name = entry.name_raw().to_vec();
        let refuse = |why| Err(UnpackError::Refused { member: shown(&name), why });
        if has_twins {
            return refuse(Refusal::Twice);
        }
        if entry.encrypted() {
            return refuse(Refusal::Encrypted);
        }
        // Some programs for Windows write backslashes for slashes: what is meant cannot be known.
        if name.contains(&b'\\') {
            return refuse(Refusal::Outside);
        }
        let mode = entry.unix_mode().unwrap_or(MODE_DEFAULT);
        let (kind, is_folder) = (mode & KIND, entry.is_dir() || name.ends_with(b"/"));
        let time = entry.last_modified().map(time).unwrap_or_default();
        if is_folder || kind == FOLDER {
            sink.folder(&name, time)?;
            continue;
        }
        if !matches!(kind, 0 | FILE | LINK) {
            return refuse(Refusal::Kind("device or pipe"));
        }
        let mut member = archive
            .by_index(index)
            .map_err(|error| UnpackError::DamagedMember { member: shown(&name), source: into_io(error) })?;
        let mut data = Metered::new(&mut member, budget);
        if kind != LINK {
            sink.file(&name, mode, time, &mut data)?;
            continue;
        }
        let mut target = Vec::new();
        data.take(LINK_BYTES_MAX)
            .read_to_end(&mut target)
            .map_err(|source| UnpackError::DamagedMember { member: shown(&name), source })?;
        sink.symlink(&name, &target, time)?;
    }
    Ok(())
}

fn damaged(error: ZipError) -> UnpackError {
    UnpackError::Damaged(into_io(error))
}

fn into_io(error: ZipError) -> io::Error {
    match error {
        ZipError::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// The clock of the machine that packed it is unknown: taken as UTC.
fn time(at: zip::DateTime) -> Time {
    let days = days_from_epoch(at.year().into(), at.month().into(), at.day().into());
    let seconds = i64::from(at.hour()) * 3600 + i64::from(at.minute()) * 60 + i64::from(at.second());
    Time { seconds: days * 86_400 + seconds, nanoseconds: 0 }
}

/// Of the Gregorian calendar; years are counted from March, so that a leap day is a year's last.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_1970() {
        for (date, days) in
            [((1970, 1, 1), 0), ((2000, 3, 1), 11_017), ((2024, 2, 29), 19_782), ((1980, 1, 1), 3_652)]
        {
            assert_eq!(days_from_epoch(date.0, date.1, date.2), days);
        }
    }
}
