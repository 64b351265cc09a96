//! Parts of files: what a `Content-Range` header says.

use http::HeaderMap;
use http::header::CONTENT_RANGE;

/// A part of a file, its last byte counted, and how long the whole is: `bytes FROM-TO/WHOLE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    pub from: u64,
    pub to: u64,
    pub whole: u64,
}

pub fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let (range, whole) =
        headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to, whole) = (from.parse().ok()?, to.parse().ok()?, whole.parse().ok()?);
    (from <= to && to < whole).then_some(ContentRange { from, to, whole })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_content_range_is_read_strictly() {
        let read = |text: &str| {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, HeaderValue::from_str(text).unwrap())]);
            content_range(&headers)
        };
        assert_eq!(read("bytes 5-9/10"), Some(ContentRange { from: 5, to: 9, whole: 10 }));
        for bad in
            ["bytes */10", "bytes 5-10/10", "bytes 9-5/10", "items 0-1/2", "bytes 0-1/*", "bytes -1-2/3"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
