//! Pure parsing: from the bytes of a header to checked tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::{Header, MAX_HEADER_BYTES, PREFIX_BYTES, TensorInfo, refuse};
use crate::dtype::Dtype;
use crate::error::{EstimatorError, shortened};

/// Most dimensions of a tensor.
const MAX_RANK: usize = 32;

/// Checks a header. `start` is the file's beginning, at least up to the end of the JSON (more is
/// ignored); `file_len` is the length of the whole file in bytes; `file` names it in errors.
///
/// # Errors
/// [`EstimatorError::Header`] or [`EstimatorError::Tensor`], a sentence about the first thing
/// that is wrong.
pub fn parse_header(file: &Path, start: &[u8], file_len: u64) -> Result<Header, EstimatorError> {
    let length = stated_length(start)
        .ok_or_else(|| refuse(file, format!("the file ends after {} bytes", start.len())))?;
    let data_start = length.checked_add(PREFIX_BYTES).filter(|end| *end <= file_len);
    let data_start = data_start.ok_or_else(|| {
        refuse(file, format!("it promises {length} bytes of header, the file has {file_len} bytes"))
    })?;
    if length > MAX_HEADER_BYTES {
        return Err(refuse(file, format!("{length} bytes exceed the limit of {MAX_HEADER_BYTES}")));
    }
    let json = range_of(start, PREFIX_BYTES..data_start)
        .ok_or_else(|| refuse(file, "the header is cut short"))?;
    let raw: RawHeader = serde_json::from_slice(json).map_err(|e| refuse(file, e.to_string()))?;
    let data_len = file_len.saturating_sub(data_start);
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, entry) in raw.tensors {
        match check(entry, data_start, data_len) {
            Ok(info) => tensors.push((name, info)),
            Err(reason) => {
                let tensor = shortened(&name);
                return Err(EstimatorError::Tensor { file: file.to_owned(), tensor, reason });
            }
        }
    }
    let tensors = by_name(file, tensors)?;
    check_layout(file, &tensors, data_start..file_len)?;
    Ok(Header { tensors, metadata: raw.metadata })
}

/// Sorts before it builds the tree: names are long, alike and almost in order.
fn by_name(
    file: &Path,
    mut tensors: Vec<(String, TensorInfo)>,
) -> Result<BTreeMap<String, TensorInfo>, EstimatorError> {
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let twice = tensors.windows(2).find_map(|pair| match pair {
        [(a, _), (b, _)] if a == b => Some(a),
        _ => None,
    });
    match twice {
        Some(name) => Err(refuse(file, format!("tensor `{}` is given twice", shortened(name)))),
        None => Ok(tensors.into_iter().collect()),
    }
}

/// The header's length in bytes as the first eight bytes state it.
pub(super) fn stated_length(start: &[u8]) -> Option<u64> {
    start.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes))
}

fn range_of(bytes: &[u8], range: Range<u64>) -> Option<&[u8]> {
    bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}

/// Checks one tensor by itself: type, shape and range agree, and the range is in the file.
fn check(entry: RawTensor<'_>, data_start: u64, data_len: u64) -> Result<TensorInfo, String> {
    let dtype = Dtype::from_name(&entry.dtype)
        .ok_or_else(|| format!("unknown element type `{}`", shortened(&entry.dtype)))?;
    if entry.shape.len() > MAX_RANK {
        return Err(format!("{} dimensions are more than any tensor has", entry.shape.len()));
    }
    let (begin, end) = entry.data_offsets;
    if begin > end {
        return Err(format!("its data would end at {end}, before it begins at {begin}"));
    }
    if end > data_len {
        return Err(format!("its data would end at byte {end}, the file holds {data_len}"));
    }
    let elements = entry.shape.iter().try_fold(1_u64, |n, dim| n.checked_mul(*dim));
    let stated = end.saturating_sub(begin);
    match elements.and_then(|n| dtype.bytes_of(n)) {
        Some(needed) if needed == stated => {}
        Some(needed) => {
            return Err(format!(
                "shape {:?} of {dtype} needs {needed} bytes, its range has {stated}",
                entry.shape
            ));
        }
        None => return Err(format!("shape {:?} of {dtype} is not a size in bytes", entry.shape)),
    }
    let start = data_start.checked_add(begin).ok_or("its range exceeds 2^64")?;
    let end = data_start.checked_add(end).ok_or("its range exceeds 2^64")?;
    Ok(TensorInfo { dtype, shape: entry.shape, file_range: start..end })
}

/// Checks all tensors together: the ranges follow each other without overlap or hole, to the end.
fn check_layout(
    file: &Path,
    tensors: &BTreeMap<String, TensorInfo>,
    data: Range<u64>,
) -> Result<(), EstimatorError> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| (tensor.file_range.start, tensor.file_range.end));
    let mut at = data.start;
    for (name, tensor) in order {
        let begins = tensor.file_range.start;
        if begins != at {
            let what = if begins < at { "overlaps" } else { "leaves a hole after" };
            return Err(EstimatorError::Tensor {
                file: file.to_owned(),
                tensor: shortened(name),
                reason: format!("its data at byte {begins} {what} the data that ends at {at}"),
            });
        }
        at = tensor.file_range.end;
    }
    if at == data.end {
        return Ok(());
    }
    let len = data.end;
    Err(refuse(file, format!("its tensors end at byte {at}, the file has {len} bytes")))
}

struct RawHeader<'a> {
    tensors: Vec<(String, RawTensor<'a>)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawTensor<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawHeader<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        let mut metadata = None;
        while let Some(name) = entries.next_key::<String>()? {
            if name != "__metadata__" {
                tensors.push((name, entries.next_value()?));
            } else if metadata.replace(entries.next_value()?).is_some() {
                return Err(A::Error::custom("`__metadata__` is given twice"));
            }
        }
        Ok(RawHeader { tensors, metadata: metadata.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str, data_bytes: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len().saturating_add(data_bytes), 0);
        bytes
    }

    fn check_file(bytes: &[u8], expected: &str) {
        let got = match parse_header(Path::new("m.safetensors"), bytes, bytes.len() as u64) {
            Ok(header) => format!("{:?}", header.tensors),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(expected), "{got}");
        assert!(!got.contains('\n'), "{got}");
    }

    fn check_json(json: &str, data_bytes: usize, expected: &str) {
        check_file(&file(json, data_bytes), expected);
    }

    #[test]
    fn a_good_header() {
        let json = r#"{"__metadata__":{"format":"mlx"},
            "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},
            "a":{"dtype":"U32","shape":[2],"data_offsets":[0,8]}}"#;
        let bytes = file(json, 20);
        let header = parse_header(Path::new("m"), &bytes, bytes.len() as u64).unwrap();
        let start = 8 + json.len() as u64;
        assert_eq!(header.tensors["b"].file_range, start + 8..start + 20);
        assert_eq!(header.tensors["b"].shape, [2, 3]);
        assert_eq!((header.total_bytes(), header.tensors["b"].elements()), (20, 6));
        assert_eq!(header.metadata["format"], "mlx");
    }

    #[test]
    fn lengths_that_lie() {
        check_file(b"\x01\x02", "the file ends after 2 bytes");
        check_file(&[0xff; 16], "promises 18446744073709551615 bytes of header");
        check_file(&100_u64.to_le_bytes(), "promises 100 bytes of header, the file has 8 bytes");
        let long = parse_header(
            Path::new("m"),
            &MAX_HEADER_BYTES.saturating_add(1).to_le_bytes(),
            u64::MAX,
        );
        assert!(long.unwrap_err().to_string().contains("exceed the limit"));
    }

    #[test]
    fn json_that_lies() {
        check_json("{", 0, "EOF while parsing");
        check_json("[]", 0, "expected an object of tensors");
        check_json(r#"{"a":3}"#, 0, "invalid type");
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
                        "a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        check_json(twice, 1, "tensor `a` is given twice");
        check_json(r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1, "invalid value");
        check_json(r#"{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#, 1, "invalid type");
        check_json(
            r#"{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,1]}}"#,
            1,
            "unknown element type `Q4`",
        );
    }

    #[test]
    fn ranges_that_lie() {
        let one = |shape: &str, range: &str| {
            format!(r#"{{"w":{{"dtype":"F32","shape":{shape},"data_offsets":{range}}}}}"#)
        };
        check_json(&one("[2]", "[0,9]"), 9, "needs 8 bytes, its range has 9");
        check_json(&one("[2]", "[0,8]"), 4, "would end at byte 8, the file holds 4");
        check_json(&one("[2]", "[8,0]"), 8, "before it begins");
        check_json(&one("[2]", "[0,8]"), 12, "its tensors end at byte");
        check_json(&one("[4294967296,4294967296,4]", "[0,8]"), 8, "is not a size in bytes");
        check_json(&one("[]", "[0,4]"), 4, "w");
        let two = |second: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},
                    "b":{{"dtype":"U8","shape":[4],"data_offsets":{second}}}}}"#
            )
        };
        check_json(&two("[2,6]"), 6, "tensor `b`: its data at byte");
        check_json(&two("[2,6]"), 6, "overlaps");
        check_json(&two("[6,10]"), 10, "leaves a hole");
        check_json(&two("[0,4]"), 4, "overlaps");
    }
}
