//! Names and sizes of the dtypes that a load may choose, and which tensors they concern.
//!
//! Arithmetic over shapes: how a format is packed is known to the kernels.

use bench_kernels::packed::{PackedFormat, is_packable};

use crate::config::ExpertDtype;
use crate::layout::{Role, TensorSpec};
use crate::model::{ActivationDtype, DenseDtype, KvDtype, LoadOptions, MatmulPrecision};

impl DenseDtype {
    /// `bf16` for the checkpoint's own, which it is for every preset.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q6_0 => "q6_0",
        }
    }

    /// The kernels' format; `None` where the checkpoint's bytes stay.
    pub fn packed(self) -> Option<PackedFormat> {
        match self {
            Self::Native => None,
            Self::Q8_0 => Some(PackedFormat::Q8_0),
            Self::Q6_0 => Some(PackedFormat::Q6_0),
        }
    }
}

impl MatmulPrecision {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Int16 => "int16",
            Self::Int8 => "int8",
        }
    }
}

impl From<ActivationDtype> for KvDtype {
    fn from(dtype: ActivationDtype) -> Self {
        match dtype {
            ActivationDtype::F32 => Self::F32,
            ActivationDtype::Bf16 => Self::Bf16,
        }
    }
}

impl LoadOptions {
    /// What the KV cache holds: that of the activations unless it is said.
    pub fn kv(&self) -> KvDtype {
        self.kv_dtype.unwrap_or(self.activation_dtype.into())
    }

    pub fn stored(&self) -> Stored {
        Stored { experts: self.expert_dtype, dense: self.dense_dtype }
    }
}

/// In which form weights are in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored {
    pub experts: ExpertDtype,
    pub dense: DenseDtype,
}

/// Dense matrices as the checkpoint has them.
impl From<ExpertDtype> for Stored {
    fn from(experts: ExpertDtype) -> Self {
        Self { experts, dense: DenseDtype::Native }
    }
}

impl Stored {
    /// The format that one tensor is packed in when it is loaded; `None` where its bytes stay or are widened.
    /// Matrices that do not divide into panels and blocks stay as they are.
    pub fn packed(self, spec: &TensorSpec) -> Option<PackedFormat> {
        match (spec.role, spec.shape.as_slice()) {
            (Role::Attention | Role::Mlp | Role::LmHead, [rows, cols]) => {
                self.dense.packed().filter(|_| is_packable(*rows, *cols))
            }
            (Role::ExpertBlocks, [_, rows, groups, _]) => {
                let native = self.experts == ExpertDtype::Native;
                (native && is_packable(*rows, 32 * groups)).then_some(PackedFormat::Mxfp4)
            }
            _ => None,
        }
    }

    /// Bytes of a `[rows, cols]` matrix that is quantized from the checkpoint's.
    pub(crate) fn dense_bytes(self, rows: usize, cols: usize) -> Option<u64> {
        let format = self.dense.packed().filter(|_| is_packable(rows, cols))?;
        let (codes, scales) = format.bytes(rows, cols);
        Some((codes + scales) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_like_the_activations_unless_it_is_said() {
        let bf16 = LoadOptions { activation_dtype: ActivationDtype::Bf16, ..LoadOptions::default() };
        assert_eq!((LoadOptions::default().kv(), bf16.kv()), (KvDtype::F32, KvDtype::Bf16));
        assert_eq!(LoadOptions { kv_dtype: Some(KvDtype::Q8_0), ..bf16 }.kv(), KvDtype::Q8_0);
    }
}
