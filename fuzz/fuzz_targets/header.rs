//! The reader of safetensors headers on arbitrary bytes: it never panics, and whatever it
//! accepts lies within the file, does not overlap and has the size that its shape states.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mlxcel_estimator::headers::{Header, parse_header};
use std::path::Path;

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    if choice % 2 == 0 {
        // A file as it may lie on a disk, of which the start was read.
        let file_len = length(rest.len(), usize::from(*choice) << 8);
        check(parse_header(Path::new("fuzz"), rest, file_len), file_len);
    } else {
        // A header whose length is right, so that what it says is looked at.
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
            let sentence = error.to_string();
            assert!(sentence.len() < 1000 && !sentence.contains('\n'), "{sentence}");
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
