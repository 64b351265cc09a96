//! Parts of files: what a `Content-Range` header says.

use http::HeaderMap;
use http::header::CONTENT_RANGE;

/// Where a part begins, and how long the whole is: `bytes FROM-TO/WHOLE`.
pub fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let (range, whole) =
        headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to, whole) = (from.parse().ok()?, to.parse::<u64>().ok()?, whole.parse().ok()?);
    (from <= to && to < whole).then_some((from, whole))
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
        assert_eq!(read("bytes 5-9/10"), Some((5, 10)));
        for bad in
            ["bytes */10", "bytes 5-10/10", "bytes 9-5/10", "items 0-1/2", "bytes 0-1/*", "bytes -1-2/3"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
