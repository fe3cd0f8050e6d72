//! The JSON header of a safetensors file, checked before anything is believed.
//!
//! Format: 8 bytes of header length, the header, then the data without holes or overlaps. All sizes are claims
//! until compared with the file's own size; nothing is allocated in proportion to a claim.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::weights::checked_elements;

/// Limit of the safetensors format itself.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The largest checkpoints have some 10^5 tensors; each entry costs memory.
const MAX_TENSORS: usize = 1 << 20;
const MAX_RANK: usize = 8;

/// One tensor as the header describes it, in bounds of the file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// As spelled in the file: not every valid dtype is one that the engine reads.
    pub(super) dtype: &'static str,
    pub(super) shape: Vec<usize>,
    /// Bytes from the beginning of the file.
    pub(super) range: Range<usize>,
}

/// Every dtype of the format and its bits per element.
const DTYPES: [(&str, usize); 22] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
];

/// Reads the header of a whole safetensors file.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the file's name.
pub(super) fn parse(file: &[u8]) -> Result<HashMap<String, Entry>, String> {
    let size = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("has {size} bytes, too few for a safetensors file"));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(format!("claims a header of {length} bytes, the format allows {MAX_HEADER_BYTES}"));
    }
    if length > rest.len() as u64 {
        return Err(format!("claims a header of {length} bytes, but has only {size} bytes in all"));
    }
    let (header, data) = rest.split_at(length as usize);
    let raw: RawHeader =
        serde_json::from_slice(header).map_err(|e| format!("header is not what safetensors writes: {e}"))?;
    check(raw, 8 + length as usize, data.len())
}

fn check(raw: RawHeader, data_start: usize, data_len: usize) -> Result<HashMap<String, Entry>, String> {
    let mut ranges = Vec::with_capacity(raw.tensors.len());
    let mut entries = HashMap::with_capacity(raw.tensors.len());
    for (name, tensor) in raw.tensors {
        let (begin, end) = tensor.data_offsets;
        let Some((dtype, bits)) = DTYPES.iter().find(|(known, _)| *known == tensor.dtype) else {
            return Err(format!("tensor {name:?} has the unknown dtype {:?}", tensor.dtype));
        };
        let bytes = checked_elements(&tensor.shape).and_then(|n| n.checked_mul(*bits)).map(|bits| bits / 8);
        if end < begin || bytes != Some(end - begin) {
            let shape = &tensor.shape;
            return Err(format!(
                "tensor {name:?}: shape {shape:?} of {dtype} does not fit bytes {begin}..{end}"
            ));
        }
        if end > data_len {
            let needed = end.saturating_add(data_start);
            let size = data_start + data_len;
            return Err(format!("is truncated: tensor {name:?} ends at byte {needed}, the file has {size}"));
        }
        ranges.push((begin, end));
        let range = data_start + begin..data_start + end;
        if entries.insert(name.clone(), Entry { dtype, shape: tensor.shape, range }).is_some() {
            return Err(format!("tensor {name:?} stands in the header twice"));
        }
    }
    ranges.sort_unstable();
    let mut at = 0;
    for (begin, end) in ranges {
        if begin != at {
            return Err(format!("has a hole or an overlap between the data bytes {at} and {begin}"));
        }
        at = end;
    }
    if at != data_len {
        return Err(format!("has {} bytes after its last tensor", data_len - at));
    }
    Ok(entries)
}

struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    #[serde(deserialize_with = "shape")]
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// A shape, refused while it is read when its rank is absurd.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Shape;
    impl<'de> Visitor<'de> for Shape {
        type Value = Vec<usize>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "a shape of at most {MAX_RANK} dimensions")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut shape = Vec::new();
            while let Some(n) = list.next_element()? {
                if shape.len() == MAX_RANK {
                    return Err(A::Error::custom(format!("a shape has more than {MAX_RANK} dimensions")));
                }
                shape.push(n);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Shape)
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if tensors.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    tensors.push((name, map.next_value()?));
                }
                Ok(RawHeader { tensors })
            }
        }
        deserializer.deserialize_map(Header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn check(header: &str, data: usize, expected: &str) {
        match parse(&file(header, data)) {
            Ok(_) => assert_eq!(expected, "ok"),
            Err(e) => assert!(e.contains(expected), "{e:?} does not contain {expected:?}"),
        }
    }

    #[test]
    fn headers_are_checked_against_the_file() {
        let a = r#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}"#;
        check(&format!("{a}}}"), 12, "ok");
        check(&format!(r#"{a},"__metadata__":{{"format":"pt"}}}}"#), 12, "ok");
        check(&format!("{a}}}"), 11, "is truncated: tensor \"a\"");
        check(&format!("{a}}}"), 13, "1 bytes after");
        let b = |offsets: &str| format!(r#"{a},"b":{{"dtype":"U8","shape":[2],"data_offsets":{offsets}}}}}"#);
        check(&b("[12,14]"), 14, "ok");
        check(&b("[13,15]"), 15, "a hole or an overlap");
        check(&b("[11,13]"), 13, "a hole or an overlap");
        check(&b("[14,12]"), 14, "does not fit");
        check(&b("[12,15]"), 15, "does not fit");
        check(&b("[-1,1]"), 15, "not what safetensors writes");
        check(&b("[18446744073709551614,18446744073709551616]"), 15, "not what safetensors writes");
        check(&b("[18446744073709551613,18446744073709551615]"), 15, "is truncated");
        check(&format!(r"{a},{}", &a[1..]), 12, "EOF");
        check(&format!(r"{a},{}}}", &a[1..]), 12, "twice");
        let c = |dtype: &str, shape: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,4]}}}}"#)
        };
        check(&c("F32", "[]"), 4, "ok");
        check(&c("F33", "[1]"), 4, "unknown dtype");
        check(&c("F32", "[18446744073709551615,18446744073709551615]"), 4, "does not fit");
        check(&c("F32", "[1,1,1,1,1,1,1,1,1]"), 4, "more than 8 dimensions");
        check(&c("F32", &"[".repeat(100_000)), 4, "not what safetensors writes");
    }

    #[test]
    fn header_lengths_are_claims() {
        let mut bytes = file("{}", 0);
        assert!(parse(&bytes).unwrap().is_empty());
        bytes[7] = 0x40;
        assert!(parse(&bytes).unwrap_err().contains("claims a header of 4611686018427387906 bytes"));
        assert!(parse(&file("{}", 0)[..9]).unwrap_err().contains("only 9 bytes"));
        assert!(parse(&[1, 2, 3]).unwrap_err().contains("too few"));
    }
}
