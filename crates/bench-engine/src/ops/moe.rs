//! Mixture of experts: the choice of experts, and their products over the tokens that chose them.
//!
//! Tokens are sorted by expert, so that each expert's weights are read once per forward pass; no padding. All
//! experts of a layer are one product, whose parts go to whichever thread is free.

use bench_kernels::activation::clamped_swiglu;
use bench_kernels::matmul::{Bf16Matrix, Mxfp4Matrix, Weights};
use bench_kernels::packed::{PackedFormat, PackedMatrix};
use bench_kernels::product::{Group, RowMap, grouped_product};
use bench_kernels::route::{Routed, by_expert_into, chosen_softmax_into, combine, top_k_into};
use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::hooks::Site;
use crate::model::Step;
use crate::ops::linear::{Linear, form};
use crate::ops::rows::Rows;
use crate::ops::{kernel_error, tensor};
use crate::weights::HostTensor;

/// One of the two matrices of all experts, `[experts, rows, cols]` = `[experts, out, in]`.
pub(crate) struct ExpertMatrix {
    pub(crate) store: ExpertStore,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

pub(crate) enum ExpertStore {
    Bf16(HostTensor),
    /// Blocks `[experts, rows, cols / 32, 16]` and scales `[experts, rows, cols / 32]`.
    Mxfp4 {
        blocks: HostTensor,
        scales: HostTensor,
    },
    /// The same bytes in panels of 16 rows, expert after expert.
    Packed {
        codes: HostTensor,
        scales: HostTensor,
    },
}

impl ExpertMatrix {
    fn name(&self) -> &str {
        match &self.store {
            ExpertStore::Bf16(t)
            | ExpertStore::Mxfp4 { blocks: t, .. }
            | ExpertStore::Packed { codes: t, .. } => &t.name,
        }
    }

    /// All experts' elements as slices.
    fn view(&self) -> Result<ExpertView<'_>> {
        let data = match &self.store {
            ExpertStore::Bf16(w) => ViewData::Bf16(w.as_bf16()?),
            ExpertStore::Mxfp4 { blocks, scales } => ViewData::Mxfp4(blocks.as_u8()?, scales.as_u8()?),
            ExpertStore::Packed { codes, scales } => ViewData::Packed(codes.as_u8()?, scales.as_u8()?),
        };
        Ok(ExpertView { data, rows: self.rows, cols: self.cols })
    }
}

#[derive(Clone, Copy)]
enum ViewData<'a> {
    Bf16(&'a [half::bf16]),
    Mxfp4(&'a [u8], &'a [u8]),
    Packed(&'a [u8], &'a [u8]),
}

#[derive(Clone, Copy)]
struct ExpertView<'a> {
    data: ViewData<'a>,
    rows: usize,
    cols: usize,
}

impl<'a> ExpertView<'a> {
    fn expert(&self, expert: usize) -> bench_kernels::Result<Weights<'a>> {
        let (rows, cols) = (self.rows, self.cols);
        let n = rows * cols;
        let codes = |b: &'a [u8]| &b[expert * (n / 2)..(expert + 1) * (n / 2)];
        let scales = |s: &'a [u8]| &s[expert * (n / 32)..(expert + 1) * (n / 32)];
        match self.data {
            ViewData::Bf16(w) => {
                Bf16Matrix::new(&w[expert * n..(expert + 1) * n], rows, cols).map(Weights::Bf16)
            }
            ViewData::Mxfp4(b, s) => Mxfp4Matrix::new(codes(b), scales(s), rows, cols).map(Weights::Mxfp4),
            ViewData::Packed(b, s) => {
                PackedMatrix::new(PackedFormat::Mxfp4, codes(b), scales(s), rows, cols).map(Weights::Packed)
            }
        }
    }
}

/// What a layer's experts compute on the way; kept from layer to layer.
#[derive(Debug, Default)]
pub(crate) struct MoeRows {
    /// `[T, experts]`
    logits: Rows,
    /// `[T, k]`, by descending logit.
    chosen: Vec<u32>,
    weights: Vec<f32>,
    routed: Routed,
    /// Token of each slot in the order of `routed`, and the numbers 0, 1, ….
    tokens: Vec<u32>,
    numbers: Vec<u32>,
    /// The experts that any token chose.
    busy: Vec<usize>,
    /// Rows in the order of `routed`.
    gate_up: Rows,
    act: Rows,
    out: Rows,
}

pub(crate) struct Router {
    pub(crate) layer: usize,
    pub(crate) linear: Linear,
    pub(crate) experts: usize,
    pub(crate) experts_per_token: usize,
}

impl Router {
    /// Chooses experts for x `[T, hidden]` and weighs them; hooks may force another choice.
    pub(crate) fn forward(&self, step: &mut Step<'_, '_, '_>, x: &mut Rows, moe: &mut MoeRows) -> Result<()> {
        let (l, k, tokens) = (self.layer, self.experts_per_token, x.rows());
        let wrong = kernel_error("router");
        // Near ties decide between experts: the router's product is exact whatever the others are.
        self.linear.exact(step, x, &mut moe.logits)?;
        step.at(Site::Router(l), &mut moe.logits)?;
        top_k_into(moe.logits.values(), self.experts, k, &mut moe.chosen).map_err(&wrong)?;
        self.offer_choice(step, &mut moe.chosen, tokens)?;
        chosen_softmax_into(moe.logits.values(), self.experts, &moe.chosen, k, &mut moe.weights)
            .map_err(&wrong)?;
        step.settle(&mut moe.weights);
        step.offer(Site::ExpertWeight(l), &mut moe.weights, &[tokens, k])?;
        by_expert_into(&moe.chosen, self.experts, &mut moe.routed).map_err(&wrong)?;
        moe.tokens.clear();
        moe.tokens.extend(moe.routed.slots.iter().map(|slot| slot / k as u32));
        moe.numbers.clear();
        moe.numbers.extend(0..moe.chosen.len() as u32);
        moe.busy.clear();
        moe.busy.extend((0..self.experts).filter(|&e| !moe.routed.range(e).is_empty()));
        step.hooks.count_routing(tokens, moe.busy.len());
        Ok(())
    }

    fn offer_choice(&self, step: &mut Step<'_, '_, '_>, chosen: &mut [u32], tokens: usize) -> Result<()> {
        let site = Site::ExpertIndex(self.layer);
        if !step.hooks.wants(site) {
            return Ok(());
        }
        let value = Tensor::from_slice(chosen, (tokens, self.experts_per_token), &Device::Cpu)?;
        let value = step.hooks.at(site, value)?.flatten_all()?.to_vec1::<u32>()?;
        check_experts(&value, self.experts, self.layer)?;
        chosen.copy_from_slice(&value);
        Ok(())
    }
}

/// Refuses experts that a hook chose and that `layer` does not have.
pub(crate) fn check_experts(chosen: &[u32], experts: usize, layer: usize) -> Result<()> {
    match chosen.iter().find(|&&e| e as usize >= experts) {
        None => Ok(()),
        Some(bad) => Err(Error::InvalidModel {
            what: format!("router.{layer}"),
            problem: format!("expert {bad} chosen, expected below {experts}"),
        }),
    }
}

pub(crate) struct Experts {
    pub(crate) layer: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    /// Row 2j is gate j, row 2j + 1 is up j.
    pub(crate) gate_up: ExpertMatrix,
    pub(crate) gate_up_bias: Vec<f32>,
    pub(crate) down: ExpertMatrix,
    pub(crate) down_bias: Vec<f32>,
    pub(crate) alpha: f32,
    pub(crate) limit: f32,
}

impl Experts {
    /// x `[T, hidden]`, routed by `moe`, to `[T, hidden]`: the weighted sum of the chosen experts.
    pub(crate) fn forward(
        &self,
        step: &mut Step<'_, '_, '_>,
        x: &mut Rows,
        moe: &mut MoeRows,
        out: &mut Rows,
    ) -> Result<()> {
        let slots = moe.chosen.len();
        let map = |tokens| Inputs { tokens, routed: &moe.routed, busy: &moe.busy };
        let width = 2 * self.intermediate;
        let gate_up = moe.gate_up.reshape(slots, width);
        grouped(step, &self.gate_up, &self.gate_up_bias, x, &map(&moe.tokens), gate_up)?;
        step.settle(gate_up);
        let act = moe.act.reshape(slots, self.intermediate);
        clamped_swiglu(step.exec, gate_up, self.alpha, self.limit, act, step.bf16)
            .map_err(kernel_error("swiglu"))?;
        let rows = moe.out.reshape(slots, self.hidden);
        grouped(step, &self.down, &self.down_bias, &mut moe.act, &map(&moe.numbers), rows)?;
        step.settle(rows);
        let sum = out.reshape(x.rows(), self.hidden);
        combine(step.exec, rows, &moe.routed.slots, &moe.weights, sum, step.bf16)
            .map_err(kernel_error("experts"))?;
        step.settle(sum);
        self.offer(step, x.rows(), moe)
    }

    /// What the hooks ask for, in the order of tokens and choices.
    fn offer(&self, step: &mut Step<'_, '_, '_>, tokens: usize, moe: &MoeRows) -> Result<()> {
        let dtype = if step.bf16 { DType::BF16 } else { DType::F32 };
        let values = [
            (Site::MoeGateUp(self.layer), &moe.gate_up),
            (Site::MoeAct(self.layer), &moe.act),
            (Site::MoeExpertOut(self.layer), &moe.out),
        ];
        for (site, rows) in values {
            if !step.hooks.wants(site) {
                continue;
            }
            let width = rows.values().len() / rows.rows();
            let mut sorted = vec![0.0; rows.values().len()];
            for (i, &slot) in moe.routed.slots.iter().enumerate() {
                sorted[slot as usize * width..][..width].copy_from_slice(rows.row(i));
            }
            step.hooks.at(site, tensor(&sorted, &[tokens, rows.rows() / tokens, width], dtype)?)?;
        }
        Ok(())
    }
}

/// Which rows each busy expert takes.
struct Inputs<'a> {
    tokens: &'a [u32],
    routed: &'a Routed,
    busy: &'a [usize],
}

/// The product of every busy expert over its rows.
fn grouped(
    step: &Step<'_, '_, '_>,
    matrix: &ExpertMatrix,
    bias: &[f32],
    x: &mut Rows,
    inputs: &Inputs<'_>,
    out: &mut [f32],
) -> Result<()> {
    let wrong = kernel_error(matrix.name());
    let view = matrix.view()?;
    // All experts have one shape and format: what the first is refused for, all are.
    let first = view.expert(0).map_err(&wrong)?;
    let mean = inputs.tokens.len() / inputs.busy.len().max(1);
    let x = x.input(step.exec, form(&first, mean, step.precision))?;
    let group = |g: usize| {
        let expert = inputs.busy[g];
        let range = inputs.routed.range(expert);
        Group {
            w: view.expert(expert).unwrap_or(first),
            bias: Some(&bias[expert * matrix.rows..(expert + 1) * matrix.rows]),
            rows: RowMap::These(&inputs.tokens[range.clone()]),
            first: range.start,
        }
    };
    grouped_product(step.exec, x, inputs.busy.len(), group, out).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crate::dummy::Dummy;
    use crate::{Hooks, LoadOptions, Model, Routing};

    #[test]
    fn touched_experts_are_those_that_the_router_chose() {
        let dummy = Dummy::new("gpt-oss-tiny", 3, None).unwrap();
        let config = dummy.config().clone();
        let model = Model::build(config, &dummy, &LoadOptions::default(), &mut |_| ()).unwrap();
        let layers = model.config().num_hidden_layers;
        let names: Vec<String> = (0..layers).map(|l| format!("expert_index.{l}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut hooks = Hooks::read(&names).unwrap();
        let (mut a, mut b) = (model.sequence(), model.sequence());
        let ids: [&[u32]; 2] = [&[1, 5, 9, 13, 40, 41, 42], &[7, 8, 9]];
        model.prefill(&mut [&mut a, &mut b], &ids, 4, &mut hooks).unwrap();
        model.decode_step(&mut [&mut a, &mut b], &[3, 4], &mut hooks).unwrap();

        let mut expected = Routing::default();
        for name in names {
            for chosen in hooks.take(name) {
                let distinct: BTreeSet<u32> =
                    chosen.flatten_all().unwrap().to_vec1().unwrap().into_iter().collect();
                expected.layer_passes += 1;
                expected.experts += distinct.len() as u64;
                expected.tokens += chosen.dim(0).unwrap() as u64;
            }
        }
        // Two chunks and one step; seven, three and two tokens.
        assert_eq!((expected.layer_passes, expected.tokens), (3 * layers as u64, 12 * layers as u64));
        assert_eq!(hooks.routing(), expected);
    }

    #[test]
    fn dense_models_route_nothing() {
        let dummy = Dummy::new("dense-tiny", 3, Some(1)).unwrap();
        let config = dummy.config().clone();
        let model = Model::build(config, &dummy, &LoadOptions::default(), &mut |_| ()).unwrap();
        let mut hooks = Hooks::none();
        model.prefill(&mut [&mut model.sequence()], &[&[1, 2]], 4, &mut hooks).unwrap();
        assert_eq!(hooks.routing(), Routing::default());
    }
}
