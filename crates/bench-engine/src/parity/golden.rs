//! A file of reference tensors: every value as f32, whatever it is stored as.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result};

/// Named tensors of one safetensors file; integers too are f32, since all of them are small.
#[derive(Debug)]
pub struct Golden {
    path: PathBuf,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Golden {
    /// # Errors
    /// A file that is missing or is no safetensors file, a dtype that no reference has.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let bad = |problem: String| Error::BadFile { path: path.to_owned(), problem };
        let file =
            SafeTensors::deserialize(&bytes).map_err(|e| bad(format!("is not a safetensors file: {e}")))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let values = values(&view).ok_or_else(|| {
                bad(format!("has {name} as {:?}: expected F64, F32, BF16, I64 or U8", view.dtype()))
            })?;
            tensors.insert(name.to_owned(), (view.shape().to_vec(), values));
        }
        Ok(Self { path: path.to_owned(), tensors })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// # Errors
    /// No tensor of this name; so for the other two.
    pub fn get(&self, name: &str) -> Result<&[f32]> {
        Ok(&self.entry(name)?.1)
    }

    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.0)
    }

    /// Token ids, or numbers of experts.
    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        Ok(self.get(name)?.iter().map(|&id| id as u32).collect())
    }

    fn entry(&self, name: &str) -> Result<&(Vec<usize>, Vec<f32>)> {
        self.tensors.get(name).ok_or_else(|| Error::MissingTensor {
            tensor: name.to_owned(),
            file: self.path.display().to_string(),
            hint: String::new(),
        })
    }
}

fn values(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    Some(match view.dtype() {
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::U8 => data.iter().map(|b| f32::from(*b)).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let error = Golden::open(Path::new("no/such.safetensors")).unwrap_err().to_string();
        assert!(error.contains("no/such.safetensors"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        fs::write(&path, "text").unwrap();
        assert!(Golden::open(&path).unwrap_err().to_string().contains("is not a safetensors file"));
        let data: Vec<u8> = [3_i64, 5].iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::I64, vec![2], &data).unwrap();
        fs::write(&path, safetensors::serialize([("ids", view)], None).unwrap()).unwrap();
        let golden = Golden::open(&path).unwrap();
        assert_eq!((golden.ids("ids").unwrap(), golden.shape("ids").unwrap()), (vec![3, 5], &[2][..]));
        let error = golden.get("logits").unwrap_err().to_string();
        assert!(error.contains("\"logits\" is missing") && error.contains("a.safetensors"), "{error}");
    }
}
