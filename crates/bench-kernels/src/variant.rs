//! The instruction set that the kernels use, chosen once at run time.
//!
//! A kernel is one generic body over `Lanes`; `dispatch!` instantiates it for every variant. A new instruction
//! set is a `Lanes` implementation, a variant and an arm of the macro.

use std::sync::OnceLock;

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Plain Rust, for any processor.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// NEON of 64-bit ARM.
    Neon,
}

impl Variant {
    const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Neon];

    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// Those that this processor runs, slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|v| v.is_supported())
    }

    /// The fastest available, or the one that the environment variable `OSSBENCH_CPU` names.
    pub fn active() -> Self {
        static ACTIVE: OnceLock<Variant> = OnceLock::new();
        *ACTIVE.get_or_init(|| Self::requested().unwrap_or_else(|_| Self::fastest()))
    }

    /// Reads `OSSBENCH_CPU`; front ends call this once so that a typing error is told, not ignored.
    pub fn requested() -> Result<Self> {
        match std::env::var("OSSBENCH_CPU") {
            Ok(name) if !name.is_empty() => Self::parse(&name),
            _ => Ok(Self::fastest()),
        }
    }

    fn parse(name: &str) -> Result<Self> {
        Self::available().find(|v| v.name() == name).ok_or_else(|| {
            let available: Vec<_> = Self::available().map(Self::name).collect();
            Error::UnknownVariant { name: name.to_owned(), available: available.join(", ") }
        })
    }

    fn fastest() -> Self {
        Self::available().last().unwrap_or(Self::Scalar)
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn is_supported(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("f16c")
            }
            Self::Neon => false,
        }
    }

    #[cfg(target_arch = "aarch64")]
    pub(crate) fn is_supported(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub(crate) fn is_supported(self) -> bool {
        self == Self::Scalar
    }

    /// Whether this variant multiplies bf16 by `vdpbf16ps`, which AVX-512 processors have from Zen 4 and Cooper
    /// Lake on.
    #[cfg(target_arch = "x86_64")]
    pub fn has_bf16(self) -> bool {
        self == Self::Avx512 && self.is_supported() && is_x86_feature_detected!("avx512bf16")
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn has_bf16(self) -> bool {
        false
    }

    /// Whether this variant sums products of bytes by `sdot`, which most ARM processors have from 2018 on.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn has_dot_product(self) -> bool {
        self == Self::Neon && self.is_supported() && std::arch::is_aarch64_feature_detected!("dotprod")
    }
}

/// Makes `$name(variant, args…)`, which runs `$body::<L, …>(args…)` with the lanes of the variant.
macro_rules! dispatch {
    ($vis:vis fn $name:ident $(<$g:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $vis fn $name $(<$g: $bound>)? (variant: $crate::Variant, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            fn avx512 $(<$g: $bound>)? ($($arg: $ty),*) {
                // SAFETY: the instructions of these lanes are enabled in this function.
                unsafe { $body::<$crate::lanes::F32x16 $(, $g)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$g: $bound>)? ($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { $body::<$crate::lanes::F32x8 $(, $g)?>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            fn neon $(<$g: $bound>)? ($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { $body::<$crate::lanes::F32x4x2 $(, $g)?>($($arg),*) }
            }
            match variant {
                // SAFETY: the guard asks the processor (the answer is cached).
                #[cfg(target_arch = "x86_64")]
                $crate::Variant::Avx512 if variant.is_supported() => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::Variant::Avx2 if variant.is_supported() => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                $crate::Variant::Neon if variant.is_supported() => unsafe { neon($($arg),*) },
                // SAFETY: portable lanes need no feature.
                _ => unsafe { $body::<$crate::lanes::Portable $(, $g)?>($($arg),*) },
            }
        }
    };
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_variant_lists_the_available_ones() {
        let error = Variant::parse("sse9").unwrap_err().to_string();
        assert!(error.contains("\"sse9\"") && error.contains("scalar"), "{error}");
        assert_eq!(Variant::parse("scalar"), Ok(Variant::Scalar));
        assert_eq!(Variant::parse("neon").is_ok(), cfg!(target_arch = "aarch64"));
        assert_eq!(Variant::parse("avx2").is_ok(), Variant::Avx2.is_supported());
    }
}
