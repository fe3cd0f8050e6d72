//! Which kernels are measured, at which sizes, and what each reads and computes.

use super::{Arithmetic, Experts, Shapes};
use crate::packed::PackedFormat;
use crate::peaks::PeakKind;
use crate::rows::IntPrecision;

/// Rows of a product: one sequence's decode, a batch, and prompts.
const ROWS: [usize; 4] = [1, 8, 64, 512];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Bf16,
    Packed(PackedFormat),
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Packed(PackedFormat::Mxfp4) => "mxfp4",
            Self::Packed(PackedFormat::Q8_0) => "q8_0",
            Self::Packed(PackedFormat::Q6_0) => "q6_0",
        }
    }

    /// Codes and scales of a matrix.
    pub(super) fn bytes(self, rows: usize, cols: usize) -> (usize, usize) {
        match self {
            Self::Bf16 => (2 * rows * cols, 0),
            Self::Packed(format) => format.bytes(rows, cols),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    F32,
    Bf16,
    Int(IntPrecision),
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int(IntPrecision::Int8) => "int8",
            Self::Int(IntPrecision::Int16) => "int16",
        }
    }

    fn arithmetic(self) -> Arithmetic {
        match self {
            Self::F32 => Arithmetic::F32,
            Self::Bf16 => Arithmetic { kind: PeakKind::Bf16, passes: 1 },
            Self::Int(precision) => Arithmetic::of(precision),
        }
    }
}

/// Which experts tokens go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Routing {
    /// All alike, as models are trained to.
    Even,
    /// The n-th expert with a probability of 1 / n, relative to the first.
    Skewed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One matrix `[rows, cols]` with m rows.
    Product {
        format: Format,
        side: Side,
        rows: usize,
        cols: usize,
        m: usize,
    },
    /// The first product of a layer's experts.
    Moe {
        side: Side,
        tokens: usize,
        routing: Routing,
    },
    Quantize {
        precision: IntPrecision,
        m: usize,
    },
    /// The last `queries` positions of `keys`, over a window or over all.
    Attention {
        queries: usize,
        keys: usize,
        window: Option<usize>,
    },
    Norm {
        m: usize,
    },
    Swiglu {
        m: usize,
    },
    Router {
        m: usize,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// All cases of a model.
pub(super) fn all(shapes: &Shapes) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, kind| cases.push(Case { name, kind });
    let ints = [Side::Int(IntPrecision::Int8), Side::Int(IntPrecision::Int16)];
    let qkv = (shapes.heads + 2 * shapes.kv_heads) * shapes.head_dim;
    for m in ROWS {
        let mut product = |format: Format, side: Side, rows| {
            let name = format!("product/{}/{}/m={m}", format.name(), side.name());
            add(name, Kind::Product { format, side, rows, cols: shapes.hidden, m });
        };
        let packed = |format| [Side::F32, ints[0], ints[1]].map(|side| (Format::Packed(format), side));
        if shapes.experts.is_some() {
            for (format, side) in packed(PackedFormat::Mxfp4) {
                product(format, side, 2 * shapes.intermediate);
            }
        }
        let dense = [Side::F32, Side::Bf16].map(|side| (Format::Bf16, side));
        let quantized = [PackedFormat::Q8_0, PackedFormat::Q6_0].map(packed);
        for (format, side) in dense.into_iter().chain(quantized.into_iter().flatten()) {
            product(format, side, qkv);
        }
    }
    if shapes.experts.is_some() {
        for side in ints {
            for (routing, tokens) in
                ROWS.map(|m| (Routing::Even, m)).into_iter().chain([64, 512].map(|m| (Routing::Skewed, m)))
            {
                let spread = if routing == Routing::Even { "even" } else { "skewed" };
                let name = format!("moe/mxfp4/{}/tokens={tokens}/{spread}", side.name());
                add(name, Kind::Moe { side, tokens, routing });
            }
        }
    }
    if let Some(window) = shapes.window {
        let kind = Kind::Attention { queries: 1, keys: 8192, window: Some(window) };
        add(format!("attention/decode/keys=8192/window={window}"), kind);
    }
    for keys in [128, 8192, 32_768] {
        add(format!("attention/decode/keys={keys}"), Kind::Attention { queries: 1, keys, window: None });
    }
    for keys in [512, 4096] {
        add(format!("attention/prefill/512-of={keys}"), Kind::Attention { queries: 512, keys, window: None });
    }
    for m in [1, 512] {
        add(format!("norm/m={m}"), Kind::Norm { m });
        add(format!("quantize/int8/m={m}"), Kind::Quantize { precision: IntPrecision::Int8, m });
        add(format!("quantize/int16/m={m}"), Kind::Quantize { precision: IntPrecision::Int16, m });
        add(format!("swiglu/m={m}"), Kind::Swiglu { m });
        if shapes.experts.is_some() {
            add(format!("router/m={m}"), Kind::Router { m });
        }
    }
    cases
}

impl Case {
    pub(super) fn arithmetic(&self) -> Arithmetic {
        match self.kind {
            Kind::Product { side, .. } | Kind::Moe { side, .. } => side.arithmetic(),
            // Attention multiplies in f32 whatever the cache holds.
            _ => Arithmetic::F32,
        }
    }

    /// Products and sums; exponentials and comparisons are not counted.
    pub(super) fn operations(&self, shapes: &Shapes) -> u64 {
        let Experts { count, per_token } = shapes.experts.unwrap_or(Experts { count: 1, per_token: 1 });
        let operations = match self.kind {
            Kind::Product { rows, cols, m, .. } => 2 * m * rows * cols,
            Kind::Moe { tokens, .. } => 2 * tokens * per_token * 2 * shapes.intermediate * shapes.hidden,
            Kind::Attention { queries, keys, window } => {
                let seen = |position: usize| (position + 1).min(window.unwrap_or(usize::MAX));
                let pairs: usize = (keys - queries..keys).map(seen).sum();
                4 * shapes.heads * shapes.head_dim * pairs
            }
            // A square, a sum, two factors.
            Kind::Norm { m } => 4 * m * shapes.hidden,
            // A factor and a rounding, and the sum of codes.
            Kind::Quantize { m, .. } => 3 * m * shapes.hidden,
            // Two products before the exponential, a sum, a quotient, and two products.
            Kind::Swiglu { m } => 6 * m * per_token * shapes.intermediate,
            Kind::Router { m } => 2 * m * count * shapes.hidden,
        };
        operations as u64
    }

    /// Memory of the data, about.
    pub(super) fn bytes(&self, shapes: &Shapes, set_bytes: usize) -> usize {
        let experts = shapes.experts.unwrap_or(Experts { count: 1, per_token: 1 });
        let floats = |m: usize, n: usize| 4 * m * n;
        match self.kind {
            Kind::Product { format, rows, cols, m, .. } => {
                let (codes, scales) = format.bytes(rows, cols);
                set_bytes + codes + scales + floats(m, rows + 2 * cols)
            }
            Kind::Moe { tokens, .. } => {
                let rows = 2 * shapes.intermediate;
                let (codes, scales) = PackedFormat::Mxfp4.bytes(rows, shapes.hidden);
                experts.count * (codes + scales)
                    + floats(tokens * experts.per_token, rows)
                    + floats(tokens, 2 * shapes.hidden)
            }
            Kind::Attention { queries, keys, .. } => {
                set_bytes
                    + 4 * keys * shapes.kv_heads * shapes.head_dim
                    + floats(queries, 4 * shapes.heads * shapes.head_dim)
            }
            Kind::Norm { m } | Kind::Quantize { m, .. } | Kind::Router { m } => floats(m, 4 * shapes.hidden),
            Kind::Swiglu { m } => floats(m * experts.per_token, 3 * shapes.intermediate),
        }
    }
}
