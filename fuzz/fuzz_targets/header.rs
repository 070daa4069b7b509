//! Fuzzes the parser of safetensors headers: it never panics, and accepted tensors lie within the file,
//! do not overlap, and have the size of their shape.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mlxcel_estimator::headers::{Header, parse_header};
use std::path::Path;

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    if choice % 2 == 0 {
        // A file whose start was read.
        let file_len = length(rest.len(), usize::from(*choice) << 8);
        check(parse_header(Path::new("fuzz"), rest, file_len), file_len);
    } else {
        // A header with a correct length, so that its content is parsed.
        let mut start = length(rest.len(), 0).to_le_bytes().to_vec();
        start.extend_from_slice(rest);
        let file_len = length(start.len(), usize::from(*choice / 2));
        check(parse_header(Path::new("fuzz"), &start, file_len), file_len);
    }
});

fn length(bytes: usize, more: usize) -> u64 {
    u64::try_from(bytes + more).expect("usize fits")
}

fn check<E: std::fmt::Display>(parsed: Result<Header, E>, file_len: u64) {
    let header = match parsed {
        Ok(header) => header,
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 1000 && !message.contains('\n'), "{message}");
            return;
        }
    };
    let mut ranges: Vec<_> = header.tensors.values().map(|info| info.file_range.clone()).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    for range in &ranges {
        assert!(8 <= range.start && range.start <= range.end && range.end <= file_len);
    }
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    assert!(header.total_bytes() <= file_len);
    for (name, info) in &header.tensors {
        let elements = info.shape.iter().try_fold(1u64, |n, size| n.checked_mul(*size));
        assert_eq!(elements, Some(info.elements()), "{name}");
        assert_eq!(info.dtype.bytes_of(info.elements()), Some(info.size_bytes()), "{name}");
    }
}
