//! Mixture of experts: the choice of experts, and their products over the tokens that chose them.
//!
//! Tokens are sorted by expert, so that each expert's weights are read once per forward pass; no padding. All
//! experts of a layer are one product, whose parts go to whichever thread is free. Where every expert is computed
//! for every token, those that it did not choose weigh nothing.

use bench_kernels::activation::clamped_swiglu;
use bench_kernels::matmul::{Bf16Matrix, Mxfp4Matrix, Weights};
use bench_kernels::packed::{PackedFormat, PackedMatrix};
use bench_kernels::product::{Group, RowMap, grouped_product};
use bench_kernels::route::{
    Routed, all_experts_into, by_expert_into, chosen_softmax_into, combine, top_k_into,
};
use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::hooks::Site;
use crate::model::{ExpertMode, Step};
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
    /// `[T, experts]`, where all are computed: the chosen ones and then the others, which weigh 0.
    all: Vec<u32>,
    all_weights: Vec<f32>,
    routed: Routed,
    /// Token of each slot in the order of `routed`, and the numbers 0, 1, ….
    tokens: Vec<u32>,
    numbers: Vec<u32>,
    /// The experts that any token chose; all where all are computed.
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
    pub(crate) mode: ExpertMode,
}

impl Router {
    /// Chooses experts for x `[T, hidden]` and weighs them; hooks see the choice, whichever are computed, and may
    /// force another.
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
        let MoeRows { chosen, weights, all, all_weights, routed, .. } = moe;
        let (slots, of_token) = match self.mode {
            ExpertMode::Routed => (&*chosen, k),
            ExpertMode::DenseAll => {
                all_experts_into(chosen, weights, k, self.experts, all, all_weights).map_err(&wrong)?;
                (&*all, self.experts)
            }
        };
        by_expert_into(slots, self.experts, routed).map_err(&wrong)?;
        moe.numbers.clear();
        moe.numbers.extend(0..slots.len() as u32);
        moe.tokens.clear();
        moe.tokens.extend(moe.routed.slots.iter().map(|slot| slot / of_token as u32));
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
    pub(crate) mode: ExpertMode,
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
        let slots = moe.routed.slots.len();
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
        let weights = match self.mode {
            ExpertMode::Routed => &moe.weights,
            ExpertMode::DenseAll => &moe.all_weights,
        };
        combine(step.exec, rows, &moe.routed.slots, weights, sum, step.bf16)
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
    use std::sync::Arc;

    use bench_kernels::host::AlignedBytes;
    use candle_core::Tensor;

    use crate::config::ExpertDtype;
    use crate::dummy::Dummy;
    use crate::weights::{HostBytes, HostTensor, TensorDtype, WeightSource};
    use crate::{ActivationDtype, ExpertMode, Hooks, LoadOptions, MatmulPrecision, Model, Routing};

    /// Logits of two prompts in chunks and of steps of both with the tokens that are most likely, which come too.
    fn logits_and_tokens(model: &Model, hooks: &mut Hooks<'_>) -> (Vec<f32>, Vec<u32>) {
        let (mut a, mut b) = (model.sequence(), model.sequence());
        let ids: [&[u32]; 2] = [&[1, 5, 9, 13, 40, 41, 42], &[7, 8, 9]];
        let mut logits = model.prefill(&mut [&mut a, &mut b], &ids, 4, hooks).unwrap();
        let (mut all, mut tokens) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            let rows = logits.to_vec2::<f32>().unwrap();
            let best = |row: &Vec<f32>| {
                let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
                best.0 as u32
            };
            let next: Vec<u32> = rows.iter().map(best).collect();
            all.extend(rows.concat());
            tokens.extend(&next);
            logits = model.decode_step(&mut [&mut a, &mut b], &next, hooks).unwrap();
        }
        (all, tokens)
    }

    fn tiny(weights: &dyn WeightSource, options: &LoadOptions) -> Model {
        let config = Dummy::new("gpt-oss-tiny", 3, None).unwrap().config().clone();
        Model::build(config, weights, options, &mut |_| ()).unwrap()
    }

    #[test]
    fn all_experts_give_the_results_of_the_chosen_ones_and_all_are_touched() {
        let dummy = Dummy::new("gpt-oss-tiny", 3, None).unwrap();
        for activation_dtype in [ActivationDtype::F32, ActivationDtype::Bf16] {
            for matmul_precision in [MatmulPrecision::F32, MatmulPrecision::Int16] {
                for expert_dtype in [ExpertDtype::Native, ExpertDtype::Bf16] {
                    let routed = LoadOptions {
                        activation_dtype,
                        expert_dtype,
                        matmul_precision,
                        ..LoadOptions::default()
                    };
                    let all = LoadOptions { expert_mode: ExpertMode::DenseAll, ..routed.clone() };
                    let [mut few, mut many] = [Hooks::none(), Hooks::none()];
                    let expected = logits_and_tokens(&tiny(&dummy, &routed), &mut few);
                    let found = logits_and_tokens(&tiny(&dummy, &all), &mut many);
                    let off = |(f, e): (&f32, &f32)| (f - e).abs() / (1.0 + e.abs());
                    let largest = found.0.iter().zip(&expected.0).map(off).fold(0.0, f32::max);
                    assert!(largest <= 1e-6, "{routed:?}: {largest}");
                    assert_eq!(found.1, expected.1, "{routed:?}");
                    let (few, many) = (few.routing(), many.routing());
                    let model = tiny(&dummy, &all);
                    let experts = model.config().moe.as_ref().unwrap().num_local_experts as u64;
                    assert_eq!((many.layer_passes, many.tokens), (few.layer_passes, few.tokens));
                    assert_eq!(many.experts, many.layer_passes * experts);
                    assert!(few.experts < many.experts, "{few:?}");
                }
            }
        }
    }

    /// The weights of a model, with an expert of the first layer whose results are no numbers.
    struct Broken<'a> {
        model: &'a Dummy,
        expert: usize,
    }

    const BROKEN_BIAS: &str = "model.layers.0.mlp.experts.down_proj_bias";

    impl WeightSource for Broken<'_> {
        fn tensor(&self, name: &str, shape: &[usize]) -> crate::Result<HostTensor> {
            let tensor = self.model.tensor(name, shape)?;
            if name != BROKEN_BIAS {
                return Ok(tensor);
            }
            let mut values = tensor.to_f32_vec()?;
            values[self.expert * shape[1]..][..shape[1]].fill(f32::INFINITY);
            let mut buffer = AlignedBytes::zeroed(4 * values.len())?;
            buffer.as_bytes_mut().copy_from_slice(bytemuck::cast_slice(&values));
            let bytes = HostBytes::Owned { buffer: Arc::new(buffer), start: 0, end: 4 * values.len() };
            HostTensor::new(tensor.name, tensor.origin, TensorDtype::F32, shape.to_vec(), bytes)
        }

        fn contains(&self, name: &str) -> bool {
            self.model.contains(name)
        }
    }

    /// Hooks that make every token of the first layer choose experts 3 and 0 first.
    fn forced(site: &str, k: usize) -> Hooks<'static> {
        let choice: Vec<u32> = [3, 0, 1, 2].into_iter().take(k).collect();
        let replaced = Hooks::none().replace(site, move |value| {
            Ok(Tensor::new(choice.as_slice(), value.device())?.broadcast_as(value.dims())?)
        });
        replaced.unwrap()
    }

    #[test]
    fn an_expert_that_was_not_chosen_cannot_spoil_the_sum() {
        let dummy = Dummy::new("gpt-oss-tiny", 3, None).unwrap();
        let options = LoadOptions { expert_mode: ExpertMode::DenseAll, ..LoadOptions::default() };
        let k = dummy.config().moe.as_ref().unwrap().num_experts_per_tok;
        let run = |expert| {
            let model = tiny(&Broken { model: &dummy, expert }, &options);
            let mut hooks = forced("expert_index.0", k);
            model.prefill(&mut [&mut model.sequence()], &[&[1, 2, 3]], 2, &mut hooks)
        };
        let logits = |result: crate::Result<Tensor>| result.unwrap().to_vec2::<f32>().unwrap();
        let whole = tiny(&dummy, &options);
        let mut hooks = forced("expert_index.0", k);
        let expected = whole.prefill(&mut [&mut whole.sequence()], &[&[1, 2, 3]], 2, &mut hooks);
        assert_eq!(logits(run(6)), logits(expected));
        // As where the router is followed: what it chose does.
        assert!(run(3).is_err());
    }

    #[test]
    fn all_experts_of_a_dense_model_are_refused_before_anything_is_loaded() {
        let dummy = Dummy::new("dense-tiny", 3, Some(1)).unwrap();
        let options = LoadOptions { expert_mode: ExpertMode::DenseAll, ..LoadOptions::default() };
        let built = Model::build(dummy.config().clone(), &dummy, &options, &mut |_| panic!("loaded"));
        let error = built.err().unwrap().to_string();
        assert!(error.contains("dense-all") && error.contains("--expert-mode routed"), "{error}");
    }

    #[test]
    fn hooks_see_and_force_the_routers_choice_where_all_are_computed() {
        let dummy = Dummy::new("gpt-oss-tiny", 3, None).unwrap();
        let all = LoadOptions { expert_mode: ExpertMode::DenseAll, ..LoadOptions::default() };
        let (routed, all) = (tiny(&dummy, &LoadOptions::default()), tiny(&dummy, &all));
        let moe = routed.config().moe.clone().unwrap();
        let (experts, k) = (moe.num_local_experts, moe.num_experts_per_tok);
        let read = |model: &Model| {
            let mut hooks = Hooks::read(&["expert_index.1", "expert_weight.1", "moe_expert_out.1"]).unwrap();
            logits_and_tokens(model, &mut hooks);
            ["expert_index.1", "expert_weight.1", "moe_expert_out.1"].map(|site| hooks.take(site).remove(0))
        };
        let ([index, weight, out], [all_index, all_weight, all_out]) = (read(&routed), read(&all));
        let ids = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<u32>().unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(ids(&index), ids(&all_index));
        assert_eq!((values(&weight), weight.dims()), (values(&all_weight), &[7, k][..]));
        assert_eq!(all_out.dims(), [7, experts, routed.config().hidden_size]);
        // The chosen ones stand first.
        assert_eq!(values(&all_out.narrow(1, 0, k).unwrap()), values(&out));

        let run = |model: &Model| logits_and_tokens(model, &mut forced("expert_index.0", k)).0;
        let (few, many) = (run(&routed), run(&all));
        let off = few.iter().zip(&many).map(|(f, m)| (f - m).abs()).fold(0.0, f32::max);
        assert!(off <= 1e-6 && few != logits_and_tokens(&routed, &mut Hooks::none()).0, "{off}");
    }

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
