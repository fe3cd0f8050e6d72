//! How the engine loads and runs a model: the same flags for every command that runs one.
//!
//! What is not said is left to `bench_core::plan`, where the defaults stand.

use super::keyword;
use bench_core::plan::{Dtypes, usual_activations, usual_matmul_precision};
use bench_core::spec::{
    ActivationDtype, DenseDtype, ExpertDtype, ExpertMode, KvDtype, MatmulPrecision, TargetKind, TargetTable,
};
use clap::Args;

/// How a model is loaded and run.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// Where the model runs: `cpu`, `cuda` or `cuda:N` [default: cpu]
    #[arg(long, value_parser = parse_device, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Compute threads [default: all cores]
    #[arg(short = 't', long, value_name = "N")]
    pub threads: Option<u32>,
    /// Each compute thread stays on a core of its own
    #[arg(long)]
    pub pin: bool,
    /// Activations; the KV cache too, unless --kv-dtype says otherwise [default: f32, bf16 on a GPU]
    #[arg(long, value_parser = parse_activation, value_name = "f32|bf16")]
    pub activation_dtype: Option<ActivationDtype>,
    /// `native` keeps MXFP4 experts, `bf16` dequantizes them [default: native]
    #[arg(long, value_parser = parse_expert, value_name = "native|bf16")]
    pub expert_dtype: Option<ExpertDtype>,
    /// Experts that are computed for a token: `routed`, those that the router chose, or `dense-all`, every one, with
    /// weight 0 where it was not chosen; the second is an ablation, and its figures say so [default: routed]
    #[arg(long, value_parser = parse_expert_mode, value_name = "routed|dense-all")]
    pub expert_mode: Option<ExpertMode>,
    /// Attention, dense MLPs and unembedding: `native` keeps the checkpoint's bf16 (`bf16` is another name for it)
    /// and is exact, `q8_0` and `q6_0` quantize it; if that takes over two seconds, the result is kept in the user's
    /// cache folder for the next start (`OSSBENCH_PACKED_CACHE=off`: never) [default: native]
    #[arg(long, value_parser = parse_dense, value_name = "native|bf16|q8_0|q6_0")]
    pub dense_dtype: Option<DenseDtype>,
    /// Activations in products with quantized weights: `f32` is the exact reference, `int16` all but equal to it,
    /// `int8` fastest for prompts; `ossbench fidelity` measures the distance [default: int16; f32 on a GPU, which has
    /// no other]
    #[arg(long, value_parser = parse_matmul, value_name = "f32|int16|int8")]
    pub matmul_precision: Option<MatmulPrecision>,
    /// KV cache [default: that of the activations]
    #[arg(long, value_parser = parse_kv, value_name = "f32|bf16|q8_0")]
    pub kv_dtype: Option<KvDtype>,
    /// Load the first N layers only
    #[arg(long, value_name = "N")]
    pub layers: Option<u32>,
}

impl EngineArgs {
    /// Where the model runs.
    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap_or("cpu")
    }

    /// The precisions of a run: those given, the usual ones elsewhere.
    pub fn dtypes(&self) -> Dtypes {
        let (exact, engine, device) = (Dtypes::default(), TargetKind::Engine, self.device());
        Dtypes {
            activation: self.activation_dtype.unwrap_or(usual_activations(engine, device)),
            expert: self.expert_dtype.unwrap_or(exact.expert),
            expert_mode: self.expert_mode.unwrap_or(exact.expert_mode),
            dense: self.dense_dtype.unwrap_or(exact.dense),
            matmul: self.matmul_precision.unwrap_or(usual_matmul_precision(engine, device)),
            kv: self.kv_dtype,
        }
    }

    /// What a study's `[target]` says of them.
    pub fn target(&self) -> TargetTable {
        TargetTable {
            device: self.device.clone(),
            activation_dtype: self.activation_dtype,
            expert_dtype: self.expert_dtype,
            expert_mode: self.expert_mode,
            dense_dtype: self.dense_dtype,
            matmul_precision: self.matmul_precision,
            kv_dtype: self.kv_dtype,
            threads: self.threads,
            pin_threads: self.pin.then_some(true),
            ..TargetTable::default()
        }
    }

    /// Flags that were given, with their values; a switch has none. For a process that is to do the same, and to
    /// name what another kind of target refuses.
    pub fn given(&self) -> Vec<(&'static str, Option<String>)> {
        let of = |flag: &'static str, value: Option<String>| value.map(|value| (flag, Some(value)));
        let all = [
            of("--device", self.device.clone()),
            of("--threads", self.threads.map(|n| n.to_string())),
            self.pin.then_some(("--pin", None)),
            of("--activation-dtype", self.activation_dtype.map(|v| word(&ACTIVATIONS, &v))),
            of("--expert-dtype", self.expert_dtype.map(|v| word(&EXPERTS, &v))),
            of("--expert-mode", self.expert_mode.map(|v| word(&MODES, &v))),
            of("--dense-dtype", self.dense_dtype.map(|v| word(&DENSE, &v))),
            of("--matmul-precision", self.matmul_precision.map(|v| word(&MATMUL, &v))),
            of("--kv-dtype", self.kv_dtype.map(|v| word(&KV, &v))),
            of("--layers", self.layers.map(|n| n.to_string())),
        ];
        all.into_iter().flatten().collect()
    }
}

const ACTIVATIONS: [(&str, ActivationDtype); 2] =
    [("f32", ActivationDtype::F32), ("bf16", ActivationDtype::Bf16)];
const EXPERTS: [(&str, ExpertDtype); 2] = [("native", ExpertDtype::Native), ("bf16", ExpertDtype::Bf16)];
const MODES: [(&str, ExpertMode); 2] = [("routed", ExpertMode::Routed), ("dense-all", ExpertMode::DenseAll)];
const DENSE: [(&str, DenseDtype); 4] = [
    ("native", DenseDtype::Native),
    ("bf16", DenseDtype::Native),
    ("q8_0", DenseDtype::Q8_0),
    ("q6_0", DenseDtype::Q6_0),
];
const MATMUL: [(&str, MatmulPrecision); 3] =
    [("f32", MatmulPrecision::F32), ("int16", MatmulPrecision::Int16), ("int8", MatmulPrecision::Int8)];
const KV: [(&str, KvDtype); 3] = [("f32", KvDtype::F32), ("bf16", KvDtype::Bf16), ("q8_0", KvDtype::Q8_0)];

/// The first word of a value; every value has one.
fn word<T: PartialEq>(words: &[(&str, T)], value: &T) -> String {
    words.iter().find(|(_, v)| v == value).map_or("?", |(word, _)| word).to_owned()
}

pub(super) fn parse_device(text: &str) -> Result<String, String> {
    bench_engine::place::ordinal(text).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

pub(super) fn parse_activation(text: &str) -> Result<ActivationDtype, String> {
    keyword(text, &ACTIVATIONS)
}

fn parse_expert(text: &str) -> Result<ExpertDtype, String> {
    keyword(text, &EXPERTS)
}

fn parse_expert_mode(text: &str) -> Result<ExpertMode, String> {
    keyword(text, &MODES)
}

fn parse_dense(text: &str) -> Result<DenseDtype, String> {
    keyword(text, &DENSE)
}

fn parse_matmul(text: &str) -> Result<MatmulPrecision, String> {
    keyword(text, &MATMUL)
}

fn parse_kv(text: &str) -> Result<KvDtype, String> {
    keyword(text, &KV)
}

#[cfg(test)]
mod tests {
    use crate::args::{Cli, Command};
    use clap::Parser;

    #[test]
    fn given_flags_make_the_same_arguments_again() {
        let given = |flags: &str| {
            let line = format!("ossbench generate -m a {flags} text");
            let Command::Generate(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command
            else {
                panic!("generate")
            };
            let words = args.engine.given().into_iter();
            let words = words.flat_map(|(flag, value)| [Some(flag.to_owned()), value]);
            (words.flatten().collect::<Vec<_>>().join(" "), args.engine.dtypes())
        };
        let all = "--device cuda:1 --threads 3 --pin --activation-dtype bf16 --expert-dtype bf16 --expert-mode dense-all \
                   --dense-dtype q6_0 --matmul-precision int8 --kv-dtype q8_0 --layers 2";
        assert_eq!(given(all).0, all);
        assert_eq!(given("").0, "");
        assert_eq!(given("--dense-dtype bf16").0, "--dense-dtype native");
        assert_eq!(given("--matmul-precision int16").1, given("").1);
        assert_eq!(given("--expert-mode routed").1, given("").1);
        assert_ne!(given("--expert-mode dense-all").1, given("").1);
        assert_ne!(given("--matmul-precision f32").1, given("").1);
    }
}
