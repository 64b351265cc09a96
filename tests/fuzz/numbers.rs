//! Numbers in headers: where a reader of events wants to start, and what part of a file an answer has.

use super::fuzz;
use rbee::http::range::{ContentRange, content_range};
use rbee::http::request::{percent_decode, percent_encode};
use rbee::job::routes::first_wanted;

#[test]
fn a_start_is_a_number_or_refused() {
    let corpus: Vec<Vec<u8>> = ["0\n", "17\n16", "\n18446744073709551615", " 7 \n", "%31\n\u{661}"]
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .collect();
    let mut read = 0;
    fuzz("event numbers", &corpus, &["-", "+", " ", "\t", "0x", "%20", "1_0"], |input, _| {
        let text = String::from_utf8_lossy(input);
        let (from, seen) = text.split_once('\n').unwrap_or((&text, ""));
        let from = percent_decode(from);
        assert_eq!(percent_decode(&percent_encode(&from)), from);
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let by_header = number(seen).map(|seen| seen.saturating_add(1));
        let expected = if seen.trim().is_empty() { number(&from) } else { by_header };
        assert_eq!(first_wanted(Some(&from), Some(seen)).ok(), expected);
        read += usize::from(expected.is_some());
    });
    assert!(read > 1_000, "mutations that still read: {read}");
}

#[test]
fn a_part_lies_within_its_whole_or_is_refused() {
    let corpus: Vec<Vec<u8>> =
        ["bytes 5-9/10", "bytes 0-0/1", "bytes */10", "bytes 0-18446744073709551614/18446744073709551615"]
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .collect();
    let mut read = 0;
    fuzz("parts of files", &corpus, &["bytes ", "-", "/", "*", "+"], |input, _| {
        let Ok(value) = http::HeaderValue::from_bytes(input) else { return };
        let headers = http::HeaderMap::from_iter([(http::header::CONTENT_RANGE, value)]);
        let Some(part) = content_range(&headers) else { return };
        read += 1;
        let ContentRange { from, to, whole } = part;
        assert!(from <= to && to < whole);
        let said = format!("bytes {from}-{to}/{whole}");
        let headers = http::HeaderMap::from_iter([(http::header::CONTENT_RANGE, said.parse().unwrap())]);
        assert_eq!(content_range(&headers), Some(part));
    });
    assert!(read > 100, "mutations that still read: {read}");
}
