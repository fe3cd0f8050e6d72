//! Mixture of experts: the choice of experts, and their products over the tokens that chose them.
//!
//! Tokens are gathered by expert, so that each expert's weights are read once per forward pass; no padding.

use bench_kernels::activation::clamped_swiglu;
use bench_kernels::matmul::{Bf16Matrix, Mxfp4Matrix, Weights, matmul};
use bench_kernels::route::{by_expert, chosen_softmax, top_k};
use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::hooks::{Hooks, Site};
use crate::ops::{from_f32, kernel_error, round_bf16, with_f32};
use crate::weights::HostTensor;

/// The `k` experts of each token by descending logit: logits `[T, experts]` to u32 `[T, k]`.
pub(crate) fn choose(logits: &Tensor, k: usize) -> Result<Tensor> {
    let (tokens, experts) = logits.dims2()?;
    let chosen = with_f32("router", logits, |l| top_k(l, experts, k).map_err(kernel_error("router")))?;
    Ok(Tensor::from_vec(chosen, (tokens, k), &Device::Cpu)?)
}

/// Softmax over the logits of the chosen experts only: `[T, k]`.
pub(crate) fn weigh(logits: &Tensor, chosen: &Tensor) -> Result<Tensor> {
    let (experts, k) = (logits.dim(1)?, chosen.dim(1)?);
    let index = chosen.flatten_all()?.to_vec1::<u32>()?;
    let weights = with_f32("router", logits, |l| {
        chosen_softmax(l, experts, &index, k).map_err(kernel_error("expert choice"))
    })?;
    from_f32(weights, chosen.dims(), logits.dtype())
}

/// One of the two matrices of all experts, `[experts, rows, cols]` = `[experts, out, in]`.
pub(crate) enum ExpertMatrix {
    Bf16(HostTensor),
    /// Blocks `[experts, rows, cols / 32, 16]` and scales `[experts, rows, cols / 32]`.
    Mxfp4 {
        blocks: HostTensor,
        scales: HostTensor,
    },
}

impl ExpertMatrix {
    fn expert(&self, expert: usize, rows: usize, cols: usize) -> Result<Weights<'_>> {
        let part = |n: usize| expert * n..(expert + 1) * n;
        let (name, view) = match self {
            Self::Bf16(w) => {
                (&w.name, Bf16Matrix::new(&w.as_bf16()?[part(rows * cols)], rows, cols).map(Weights::Bf16))
            }
            Self::Mxfp4 { blocks, scales } => {
                let (b, s) =
                    (&blocks.as_u8()?[part(rows * cols / 2)], &scales.as_u8()?[part(rows * cols / 32)]);
                (&blocks.name, Mxfp4Matrix::new(b, s, rows, cols).map(Weights::Mxfp4))
            }
        };
        view.map_err(kernel_error(name))
    }
}

pub(crate) struct Experts {
    pub(crate) layer: usize,
    pub(crate) count: usize,
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

/// What the hooks may ask for: values of each slot = token · k + choice.
struct Trace {
    gate_up: Vec<f32>,
    act: Vec<f32>,
    out: Vec<f32>,
}

/// The intermediate values of one expert, a row per slot.
struct ExpertRows {
    gate_up: Vec<f32>,
    act: Vec<f32>,
    out: Vec<f32>,
}

impl Experts {
    /// x `[T, hidden]`, chosen `[T, k]`, weights `[T, k]` to `[T, hidden]`: the weighted sum of the chosen experts.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        chosen: &Tensor,
        weights: &Tensor,
        hooks: &mut Hooks<'_>,
    ) -> Result<Tensor> {
        let (tokens, k) = chosen.dims2()?;
        let index = chosen.flatten_all()?.to_vec1::<u32>()?;
        if let Some(bad) = index.iter().find(|&&e| e as usize >= self.count) {
            let problem = format!("expert {bad} chosen, expected below {}", self.count);
            return Err(Error::InvalidModel { what: format!("router.{}", self.layer), problem });
        }
        let groups = by_expert(&index, self.count);
        hooks.count_routing(tokens, groups.len());
        let mut trace = self.is_traced(hooks).then(|| self.empty_trace(index.len()));
        let mut out = vec![0.0; tokens * self.hidden];
        let bf16 = x.dtype() == DType::BF16;
        let round = if bf16 { round_bf16 } else { |v| v };
        with_f32("experts", x, |x| {
            with_f32("experts", weights, |weights| {
                for (expert, slots) in groups {
                    let rows = self.expert(expert, x, &slots, k, bf16)?;
                    for (i, &slot) in slots.iter().enumerate() {
                        let from = &rows.out[i * self.hidden..][..self.hidden];
                        for (out, value) in out[slot / k * self.hidden..].iter_mut().zip(from) {
                            *out += round(weights[slot] * value);
                        }
                    }
                    if let Some(trace) = &mut trace {
                        self.record(trace, &slots, &rows);
                    }
                }
                Ok(())
            })
        })?;
        self.offer(trace, tokens, k, x.dtype(), hooks)?;
        from_f32(out, x.dims(), x.dtype())
    }

    /// One expert over the tokens of `slots`.
    fn expert(&self, expert: usize, x: &[f32], slots: &[usize], k: usize, bf16: bool) -> Result<ExpertRows> {
        let (n, hidden, width) = (slots.len(), self.hidden, self.intermediate);
        let mut gathered = Vec::with_capacity(n * hidden);
        for slot in slots {
            gathered.extend_from_slice(&x[slot / k * hidden..][..hidden]);
        }

        let mut gate_up = vec![0.0; n * 2 * width];
        let bias = &self.gate_up_bias[expert * 2 * width..][..2 * width];
        let weights = self.gate_up.expert(expert, 2 * width, hidden)?;
        matmul(&gathered, n, &weights, Some(bias), &mut gate_up).map_err(kernel_error("gate_up_proj"))?;
        round_all(&mut gate_up, bf16);

        let mut act = vec![0.0; n * width];
        let activated = if bf16 {
            clamped_swiglu(&gate_up, self.alpha, self.limit, &mut act, round_bf16)
        } else {
            clamped_swiglu(&gate_up, self.alpha, self.limit, &mut act, |v| v)
        };
        activated.map_err(kernel_error("swiglu"))?;

        let mut out = vec![0.0; n * hidden];
        let bias = &self.down_bias[expert * hidden..][..hidden];
        let weights = self.down.expert(expert, hidden, width)?;
        matmul(&act, n, &weights, Some(bias), &mut out).map_err(kernel_error("down_proj"))?;
        round_all(&mut out, bf16);
        Ok(ExpertRows { gate_up, act, out })
    }

    fn is_traced(&self, hooks: &Hooks<'_>) -> bool {
        [Site::MoeGateUp(self.layer), Site::MoeAct(self.layer), Site::MoeExpertOut(self.layer)]
            .into_iter()
            .any(|site| hooks.reads(site))
    }

    fn empty_trace(&self, slots: usize) -> Trace {
        Trace {
            gate_up: vec![0.0; slots * 2 * self.intermediate],
            act: vec![0.0; slots * self.intermediate],
            out: vec![0.0; slots * self.hidden],
        }
    }

    fn record(&self, trace: &mut Trace, slots: &[usize], rows: &ExpertRows) {
        let copy = |to: &mut [f32], from: &[f32], width: usize| {
            for (i, slot) in slots.iter().enumerate() {
                to[slot * width..][..width].copy_from_slice(&from[i * width..][..width]);
            }
        };
        copy(&mut trace.gate_up, &rows.gate_up, 2 * self.intermediate);
        copy(&mut trace.act, &rows.act, self.intermediate);
        copy(&mut trace.out, &rows.out, self.hidden);
    }

    fn offer(
        &self,
        trace: Option<Trace>,
        tokens: usize,
        k: usize,
        dtype: DType,
        hooks: &mut Hooks<'_>,
    ) -> Result<()> {
        let Some(trace) = trace else { return Ok(()) };
        let values = [
            (Site::MoeGateUp(self.layer), trace.gate_up),
            (Site::MoeAct(self.layer), trace.act),
            (Site::MoeExpertOut(self.layer), trace.out),
        ];
        for (site, values) in values {
            let width = values.len() / (tokens * k);
            hooks.at(site, from_f32(values, &[tokens, k, width], dtype)?)?;
        }
        Ok(())
    }
}

fn round_all(values: &mut [f32], bf16: bool) {
    if bf16 {
        for value in values {
            *value = round_bf16(*value);
        }
    }
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
