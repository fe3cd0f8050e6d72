//! By which instructions of tensor cores products of many rows are made on a device.
//!
//! Hopper's own were written where there was no Hopper: before they serve, a device must have made a few products of
//! theirs right. Nothing here is measured.

use super::{check, wrong};
use crate::cuda::{Gpu, GpuError};

/// The variable that forces one: `mma` or `wgmma`.
pub const VARIABLE: &str = "OSSBENCH_CUDA_PRODUCTS";
/// Hopper: later devices have other instructions.
const HOPPER: (u32, u32) = (9, 0);
/// Relative to the sum of a product's terms without their signs. Rounding comes to less than a hundredth of it, one term
/// of some hundred that is lost to several times as much.
const ALLOWED: f64 = 1e-4;

/// Instructions of tensor cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// Of a warp: every device has them.
    #[default]
    Mma,
    /// Of four warps, for many rows in one plane; the rest is [`Products::Mma`]'s.
    Wgmma,
}

impl Products {
    pub fn name(self) -> &'static str {
        match self {
            Self::Mma => "mma",
            Self::Wgmma => "wgmma",
        }
    }
}

/// What a device multiplies with, and why it is not what it could be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub products: Products,
    pub note: Option<String>,
}

/// What the value of [`VARIABLE`] asks for; nothing if it is empty.
///
/// # Errors
/// A name that is none.
pub fn forced(value: Option<&str>) -> Result<Option<Products>, GpuError> {
    match value {
        None | Some("") => Ok(None),
        Some("mma") => Ok(Some(Products::Mma)),
        Some("wgmma") => Ok(Some(Products::Wgmma)),
        Some(other) => Err(wrong(format!("{VARIABLE}={other}: expected mma or wgmma"))),
    }
}

/// Whether a device can have [`Products::Wgmma`].
pub fn can_have(gpu: &dyn Gpu) -> bool {
    gpu.capability() == HOPPER
}

/// Chooses for a device: on Hopper some products are made and held against plain arithmetic.
///
/// # Errors
/// What was asked for is not there, or fails.
pub fn decide(gpu: &dyn Gpu, forced: Option<Products>) -> Result<Choice, GpuError> {
    let mma = |note| Ok(Choice { products: Products::Mma, note });
    let asked = forced == Some(Products::Wgmma);
    if !can_have(gpu) && asked {
        let (major, minor) = gpu.capability();
        let problem = format!("{VARIABLE}=wgmma: compute capability {major}.{minor}, expected 9.0; take mma");
        return Err(wrong(problem));
    }
    if !can_have(gpu) || forced == Some(Products::Mma) {
        return mma(None);
    }
    let rows = match check::hopper(gpu) {
        Ok(rows) => rows,
        // An image without these kernels, no memory to try them; a device that is lost says so again.
        Err(error) if !asked => {
            return mma(Some(format!(
                "products are made by mma, since those by wgmma cannot be tried: {error}"
            )));
        }
        Err(error) => return Err(error),
    };
    let differences = rows.iter().map(|row| (row.difference, row.kernel.as_str()));
    let (difference, kernel) = differences.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, ""));
    if difference <= ALLOWED {
        return Ok(Choice { products: Products::Wgmma, note: None });
    }
    let found = format!(
        "products by wgmma are wrong on this device: {kernel} is off by {difference:.1e} of the terms' sum, \
         expected at most {ALLOWED:.0e}"
    );
    if asked {
        let note = format!("{found}; they are made all the same, as {VARIABLE} asks");
        return Ok(Choice { products: Products::Wgmma, note: Some(note) });
    }
    mma(Some(format!("{found}; they are made by mma, more slowly")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_names_one_or_nothing() {
        assert_eq!(forced(None).unwrap(), None);
        assert_eq!(forced(Some("")).unwrap(), None);
        for products in [Products::Mma, Products::Wgmma] {
            assert_eq!(forced(Some(products.name())).unwrap(), Some(products));
        }
        let error = forced(Some("tensor")).unwrap_err().to_string();
        assert!(error.contains("OSSBENCH_CUDA_PRODUCTS=tensor") && error.contains("wgmma"), "{error}");
    }
}
