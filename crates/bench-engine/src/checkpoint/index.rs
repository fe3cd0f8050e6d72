//! `model.safetensors.index.json`: which file has which tensor.
//!
//! The index is followed to the letter: shards may have any name and number, and layers any order.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// The index of a checkpoint of 100,000 tensors has about 10 MB.
pub(crate) const MAX_INDEX_BYTES: u64 = 64 << 20;

/// What file systems allow.
const MAX_FILE_NAME: usize = 255;

/// Tensor name to file name, sorted so that errors come in a fixed order.
#[derive(Deserialize)]
pub(crate) struct Index {
    pub(crate) weight_map: BTreeMap<String, String>,
}

impl Index {
    /// # Errors
    /// What is wrong, as the end of a sentence that begins with the file's name.
    pub(crate) fn parse(json: &str) -> Result<Self, String> {
        let index: Self = serde_json::from_str(json).map_err(|e| format!("not a safetensors index: {e}"))?;
        if index.weight_map.is_empty() {
            return Err("\"weight_map\" is empty".to_owned());
        }
        for (tensor, file) in &index.weight_map {
            if !is_inside(file) {
                return Err(format!(
                    "tensor {tensor:?} is said to be in {file:?}, expected the name of a .safetensors file \
                     inside of the folder"
                ));
            }
        }
        Ok(index)
    }

    /// The distinct files, sorted.
    pub(crate) fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        files.sort_unstable();
        files.dedup();
        files
    }
}

/// A relative path that cannot leave its folder.
pub(crate) fn is_inside(file: &str) -> bool {
    let path = Path::new(file);
    // Backslashes and colons would be separators and drives on another system.
    file.len() <= MAX_FILE_NAME
        && !file.contains(['\\', ':', '\0'])
        && path.extension().is_some_and(|e| e == "safetensors")
        && path.components().all(|c| matches!(c, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_folder() {
        for good in ["model-00000-of-00002.safetensors", "a/b.safetensors"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in [
            "../a.safetensors",
            "/etc/a.safetensors",
            "a/../../b.safetensors",
            "passwd",
            "",
            "..",
            "C:\\a.safetensors",
        ] {
            assert!(!is_inside(bad), "{bad}");
        }
    }

    #[test]
    fn files_are_distinct() {
        let json = r#"{"metadata":{"total_size":3},"weight_map":{
            "a":"y.safetensors","b":"x.safetensors","c":"y.safetensors"}}"#;
        assert_eq!(Index::parse(json).unwrap().files(), ["x.safetensors", "y.safetensors"]);
        for bad in ["{}", "[]", r#"{"weight_map":{}}"#, r#"{"weight_map":{"a":1}}"#] {
            assert!(Index::parse(bad).is_err(), "{bad}");
        }
    }
}
