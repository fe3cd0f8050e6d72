//! The variants of each ablation as studies, and those that cannot be: with the reason, never as a failed run.
//!
//! A variant is a model entry of the same id with its own label and overrides, or a cell of one entry. What fits
//! is asked of preflight before anything is loaded.

use crate::CliError;
use crate::args::{AblateArgs, Ablation};
use bench_core::plan::Dtypes;
use bench_core::spec::{
    ActivationDtype, ExpertDtype, ExpertMode, LoadTable, ModelTable, RunSpec, RunTable, ServerTable,
    TargetKind, TargetTable, WorkloadTable,
};
use bench_engine::LoadOptions;
use bench_engine::config::ModelConfig;
use bench_engine::place::Place;
use bench_engine::preflight::{self, Gpu, Need, gib};
use bench_engine::source::ModelRef;
use bench_runner::shape::load_options;

/// One ablation, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ablated {
    pub(super) ablation: Ablation,
    /// One study; two where a server has one of its own.
    pub(super) specs: Vec<RunSpec>,
    /// The first is what the others are held against.
    pub(super) variants: Vec<Variant>,
    pub(super) refused: Vec<Refused>,
    pub(super) notes: Vec<String>,
}

/// Where a variant's cell is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Variant {
    /// For people.
    pub(super) name: String,
    /// As the study calls it, where it has it.
    pub(super) study_name: String,
    /// Index into `Ablated::specs`.
    pub(super) spec: usize,
    /// Label of the model.
    pub(super) label: String,
    pub(super) prompt_tokens: u32,
    pub(super) batch: u32,
}

/// A variant that is not run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refused {
    pub(super) name: String,
    pub(super) study_name: String,
    /// Prompt tokens, or the batch, where that is what is varied.
    pub(super) level: Option<u32>,
    pub(super) reason: String,
}

/// # Errors
/// A model that is unknown.
pub(super) fn ablate(args: &AblateArgs, ablation: Ablation) -> Result<Ablated, CliError> {
    let base = Base::new(args)?;
    Ok(match ablation {
        Ablation::Decoding => base.decoding(),
        Ablation::Precision => base.precision(),
        Ablation::ExpertMode => base.expert_mode(),
        Ablation::Context => base.context(),
        Ablation::Server => base.server(),
        Ablation::Batch => base.batch(),
    })
}

/// Slug, name, the study's name, temperature, `top_k`, `top_p`.
type Method = (&'static str, &'static str, &'static str, f64, Option<u32>, Option<f64>);

/// The study's five, then ours. `Sampling` draws from the whole vocabulary at temperature 1, which is what gpt-oss
/// is meant to be run with, and shows the price of softmax and draw alone; `Top-k + top-p` shows whether top-p is
/// cheap once few candidates are left to sort.
const METHODS: [Method; 7] = [
    ("greedy", "greedy", "Greedy", 0.0, None, None),
    ("top-p-0.9", "top-p 0.9, T 0.7", "Top-p (0.9)", 0.7, None, Some(0.9)),
    ("top-k-50", "top-k 50, T 0.7", "Top-k (50)", 0.7, Some(50), None),
    ("high-temp", "top-p 0.95, T 1.0", "High Temp", 1.0, None, Some(0.95)),
    ("low-temp", "top-p 0.8, T 0.3", "Low Temp", 0.3, None, Some(0.8)),
    ("sampling", "full sampling, T 1.0", "Sampling", 1.0, None, None),
    ("top-k-p", "top-k 50, top-p 0.9, T 1.0", "Top-k + top-p", 1.0, Some(50), Some(0.9)),
];

/// Precisions of the study, or of other engines, that this one does not have.
const NOT_THERE: [(&str, &str, &str); 2] = [
    ("fp16", "FP16", "the engine computes in f32 or bf16; there is no f16"),
    (
        "q8",
        "Q8",
        "experts have no 8-bit format; --dense-dtype q8_0 gives it to attention, dense MLPs and unembedding",
    ),
];

#[derive(Clone)]
struct Base<'a> {
    args: &'a AblateArgs,
    label: String,
    /// `None`: not known before it is downloaded, or not the engine's.
    config: Option<ModelConfig>,
    available: Option<u64>,
    gpu: Option<Gpu>,
    mapped: bool,
    dtypes: Dtypes,
}

impl<'a> Base<'a> {
    fn new(args: &'a AblateArgs) -> Result<Self, CliError> {
        let model =
            if args.target == TargetKind::Engine { Some(ModelRef::parse(&args.model)?) } else { None };
        let layers = args.engine.layers.map(|n| n as usize);
        let config = match &model {
            None => None,
            // Not downloaded yet: what fits is found out when it is loaded.
            Some(ModelRef::Hub(_)) => model.as_ref().and_then(|m| m.config().ok()),
            Some(other) => Some(other.config()?),
        };
        let config = match (config, layers) {
            (Some(config), Some(layers)) => Some(config.with_layers(layers)?),
            (config, _) => config,
        };
        let dtypes = args.engine.dtypes();
        if let Some(config) = &config {
            load_options(dtypes, None).expert_mode.check(config)?;
        }
        // Closed again when its memory is known: what runs later opens it anew.
        let place = match args.target {
            TargetKind::Engine => Place::open(args.engine.device())?,
            _ => Place::Host,
        };
        Ok(Self {
            args,
            label: label(&args.model),
            config,
            available: preflight::available(&place),
            gpu: Need::of(&LoadOptions { place, ..LoadOptions::default() }).gpu,
            mapped: !matches!(model, Some(ModelRef::Dummy(_))),
            dtypes,
        })
    }

    fn ablated(&self, ablation: Ablation) -> Ablated {
        let mut notes = Vec::new();
        if self.config.is_none() && self.args.target == TargetKind::Engine {
            notes.push(format!(
                "{} is not downloaded: what fits is found out when it is loaded",
                self.args.model
            ));
        }
        Ablated { ablation, specs: Vec::new(), variants: Vec::new(), refused: Vec::new(), notes }
    }

    /// The study without its variants.
    fn spec(&self, ablation: Ablation, models: Vec<ModelTable>) -> RunSpec {
        let args = self.args;
        RunSpec {
            run: RunTable {
                name: Some(format!("{}-{}", args.name, ablation.key())),
                seed: Some(args.seed),
                repeats: Some(args.repeats),
                rounds: args.rounds,
                warmup: Some(args.warmup),
                isolate: None,
            },
            target: TargetTable { kind: Some(args.target), ..args.engine.target() },
            models,
            workload: WorkloadTable {
                prompt_tokens: Some(vec![args.prompt_tokens]),
                output_tokens: Some(vec![args.output_tokens]),
                ..WorkloadTable::default()
            },
            ..RunSpec::default()
        }
    }

    fn model(&self, slug: &str) -> ModelTable {
        ModelTable {
            label: Some(self.variant_label(slug)),
            layers: self.args.engine.layers,
            ..ModelTable::new(self.args.model.clone())
        }
    }

    /// Where all experts are computed throughout, the label says so; a slug that does takes its place.
    fn variant_label(&self, slug: &str) -> String {
        let all = match self.dtypes.expert_mode {
            ExpertMode::Routed => "",
            mode @ ExpertMode::DenseAll => mode.key(),
        };
        let parts = [self.label.as_str(), all, slug];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
    }

    /// The same with the experts that the router chose.
    fn routed(&self) -> Self {
        let dtypes = Dtypes { expert_mode: ExpertMode::Routed, ..self.dtypes };
        Self { dtypes, ..self.clone() }
    }

    fn variant(&self, name: &str, study_name: &str, slug: &str) -> Variant {
        Variant {
            name: name.to_owned(),
            study_name: study_name.to_owned(),
            spec: 0,
            label: self.variant_label(slug),
            prompt_tokens: self.args.prompt_tokens,
            batch: 1,
        }
    }

    /// Why a prompt of this length and its output do not run, if they do not.
    fn refusal(&self, prompt_tokens: u32, batch: u32, dtypes: Dtypes) -> Option<String> {
        let config = self.config.as_ref()?;
        let context = prompt_tokens as usize + self.args.output_tokens as usize;
        let limit = config.max_position_embeddings;
        if context > limit {
            return Some(format!("needs {context} positions, max_position_embeddings is {limit}"));
        }
        let options = load_options(dtypes, None);
        let need = Need {
            context_tokens: context,
            batch: batch as usize,
            prefill_chunk: 512,
            mapped: self.mapped,
            gpu: self.gpu,
            ..Need::of(&options)
        };
        let found = preflight::check(config, &need, self.available);
        let available = found.available_bytes.filter(|_| !found.fits)?;
        let way = found.suggestion.map_or_else(String::new, |way| format!(": {way}"));
        Some(format!("needs {}, {} is available{way}", gib(found.required_bytes), gib(available)))
    }

    fn usual_refusal(&self, prompt_tokens: u32, batch: u32) -> Option<String> {
        self.refusal(prompt_tokens, batch, self.dtypes)
    }

    fn decoding(&self) -> Ablated {
        let mut ablated = self.ablated(Ablation::Decoding);
        let refusal = self.usual_refusal(self.args.prompt_tokens, 1);
        let mut models = Vec::new();
        for (slug, name, study_name, temperature, top_k, top_p) in METHODS {
            if let Some(reason) = &refusal {
                ablated.refuse(name, study_name, None, reason.clone());
                continue;
            }
            let temperature = Some(temperature);
            models.push(ModelTable { temperature, top_k, top_p, ..self.model(slug) });
            ablated.variants.push(self.variant(name, study_name, slug));
        }
        ablated.add(self.spec(Ablation::Decoding, models));
        ablated
    }

    fn precision(&self) -> Ablated {
        let mut ablated = self.ablated(Ablation::Precision);
        let config = self.config.as_ref();
        let unknown = config.is_none() && self.args.target == TargetKind::Engine;
        let (experts, mxfp4) = config.map_or((true, !unknown), |c| (c.moe.is_some(), c.mxfp4));
        let mut models = Vec::new();
        for (expert, activation) in [
            (ExpertDtype::Native, ActivationDtype::F32),
            (ExpertDtype::Native, ActivationDtype::Bf16),
            (ExpertDtype::Bf16, ActivationDtype::F32),
            (ExpertDtype::Bf16, ActivationDtype::Bf16),
        ] {
            let native = expert == ExpertDtype::Native;
            let dtype = if activation == ActivationDtype::F32 { "f32" } else { "bf16" };
            let weights = match (native, mxfp4) {
                (true, _) if unknown => "native",
                (true, true) => "mxfp4",
                _ => "bf16",
            };
            let what = if experts { "experts" } else { "weights" };
            let name = format!("{weights} {what}, {dtype} activations");
            let study_name = format!("{}/{}", weights.to_uppercase(), dtype.to_uppercase());
            if !native && !mxfp4 {
                let reason = if unknown {
                    "whether it has MXFP4 experts is not known before it is downloaded"
                } else if experts {
                    "the checkpoint's experts are bf16 already"
                } else {
                    "the model has no experts to dequantize"
                };
                let name = format!("dequantized experts, {dtype} activations");
                ablated.refuse(
                    &name,
                    &format!("DEQUANTIZED/{}", dtype.to_uppercase()),
                    None,
                    reason.to_owned(),
                );
                continue;
            }
            let dtypes = Dtypes { activation, expert, ..self.dtypes };
            if let Some(reason) = self.refusal(self.args.prompt_tokens, 1, dtypes) {
                ablated.refuse(&name, &study_name, None, reason);
                continue;
            }
            let slug = format!("{weights}-{dtype}");
            models.push(ModelTable {
                activation_dtype: Some(activation),
                expert_dtype: Some(expert),
                ..self.model(&slug)
            });
            ablated.variants.push(self.variant(&name, &study_name, &slug));
        }
        for (name, study_name, reason) in NOT_THERE {
            ablated.refuse(name, study_name, None, reason.to_owned());
        }
        let mut spec = self.spec(Ablation::Precision, models);
        // Every model entry says its own.
        (spec.target.activation_dtype, spec.target.expert_dtype) = (None, None);
        ablated.add(spec);
        ablated
    }

    fn expert_mode(&self) -> Ablated {
        let mut ablated = self.ablated(Ablation::ExpertMode);
        let base = self.routed();
        let has_experts = self.config.as_ref().is_none_or(|c| c.moe.is_some());
        let mut models = Vec::new();
        for (mode, name) in
            [(ExpertMode::Routed, "routed"), (ExpertMode::DenseAll, "dense-all: every expert computed")]
        {
            let dtypes = Dtypes { expert_mode: mode, ..self.dtypes };
            let refusal = if has_experts {
                self.refusal(self.args.prompt_tokens, 1, dtypes)
            } else {
                Some("the model has no experts".to_owned())
            };
            if let Some(reason) = refusal {
                ablated.refuse(name, mode.key(), None, reason);
                continue;
            }
            models.push(ModelTable { expert_mode: Some(mode), ..base.model(mode.key()) });
            ablated.variants.push(base.variant(name, mode.key(), mode.key()));
        }
        let mut spec = self.spec(Ablation::ExpertMode, models);
        // Every model entry says its own.
        spec.target.expert_mode = None;
        ablated.add(spec);
        ablated
    }

    fn context(&self) -> Ablated {
        let mut ablated = self.ablated(Ablation::Context);
        let mut lengths = Vec::new();
        for &tokens in &unique(&self.args.context_lengths) {
            let name = format!("{tokens} tokens");
            if let Some(reason) = self.usual_refusal(tokens, 1) {
                ablated.refuse(&name, &name, Some(tokens), reason);
                continue;
            }
            ablated.variants.push(Variant { prompt_tokens: tokens, ..self.variant(&name, &name, "") });
            lengths.push(tokens);
        }
        let mut spec = self.spec(Ablation::Context, vec![self.model("")]);
        spec.workload.prompt_tokens = Some(lengths);
        ablated.add(spec);
        ablated
    }

    fn batch(&self) -> Ablated {
        let mut ablated = self.ablated(Ablation::Batch);
        let mut batches = Vec::new();
        for &batch in &unique(&self.args.batch) {
            let name = format!("batch {batch}");
            if let Some(reason) = self.usual_refusal(self.args.prompt_tokens, batch) {
                ablated.refuse(&name, &name, Some(batch), reason);
                continue;
            }
            ablated.variants.push(Variant { batch, ..self.variant(&name, &name, "") });
            batches.push(batch);
        }
        let mut spec = self.spec(Ablation::Batch, vec![self.model("")]);
        spec.workload.batch = Some(batches);
        ablated.add(spec);
        ablated
    }

    fn server(&self) -> Ablated {
        let mut ablated = self.ablated(Ablation::Server);
        if self.args.base_url.is_empty() {
            ablated.notes.push(
                "server: nothing to compare; pass the address of a server that serves the same model, \
                 --base-url http://127.0.0.1:8000, several with commas, and --served-model-name if it has \
                 another name there"
                    .to_owned(),
            );
            return ablated;
        }
        if let Some(reason) = self.usual_refusal(self.args.prompt_tokens, 1) {
            ablated.refuse("ossbench engine", "ossbench engine", None, reason);
        } else {
            ablated.variants.push(self.variant("ossbench engine", "ossbench engine", ""));
            ablated.add(self.spec(Ablation::Server, vec![self.model("")]));
        }
        let spec = ablated.specs.len();
        let mut models: Vec<ModelTable> = Vec::new();
        // Servers compute the experts that they compute.
        let base = self.routed();
        for url in &self.args.base_url {
            let slug = address_slug(url);
            // Two servers on one host may differ by what no label can hold.
            let again = models.iter().filter(|m| m.base_url.as_ref() == Some(url)).count();
            if again > 0 {
                continue;
            }
            let taken = models.iter().any(|m| m.label.as_deref() == Some(&base.variant_label(&slug)));
            let slug = if taken { format!("{slug}-{}", models.len() + 1) } else { slug };
            models.push(base.served(url, &slug));
            ablated.variants.push(Variant { spec, ..base.variant(url, url, &slug) });
        }
        let mut served = self.spec(Ablation::Server, models);
        served.run.name = Some(format!("{}-server-http", self.args.name));
        served.target = TargetTable { kind: Some(TargetKind::Http), ..TargetTable::default() };
        served.load = Some(LoadTable { requests: Some(self.args.repeats), ..LoadTable::default() });
        served.server = Some(ServerTable::default());
        ablated.add(served);
        ablated
    }

    fn served(&self, url: &str, slug: &str) -> ModelTable {
        let args = self.args;
        let name = args.served_model_name.clone().unwrap_or_else(|| args.model.clone());
        let own = (!args.skip_tokenizer_init && args.target == TargetKind::Engine)
            .then(|| args.tokenizer.clone().unwrap_or_else(|| args.model.clone()));
        ModelTable {
            label: Some(self.variant_label(slug)),
            base_url: Some(url.to_owned()),
            tokenizer: own,
            ..ModelTable::new(name)
        }
    }
}

impl Ablated {
    fn refuse(&mut self, name: &str, study_name: &str, level: Option<u32>, reason: String) {
        self.refused.push(Refused {
            name: name.to_owned(),
            study_name: study_name.to_owned(),
            level,
            reason,
        });
    }

    /// A study without a variant is none.
    fn add(&mut self, spec: RunSpec) {
        let index = self.specs.len();
        if self.variants.iter().any(|v| v.spec == index) {
            self.specs.push(spec);
        }
    }
}

fn unique(numbers: &[u32]) -> Vec<u32> {
    let mut seen = Vec::new();
    for number in numbers {
        if !seen.contains(number) {
            seen.push(*number);
        }
    }
    seen
}

/// The last part of a model's name, short enough that a variant's name fits behind it.
fn label(model: &str) -> String {
    let last = model.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or(model);
    sanitized(last).trim_start_matches('.').chars().take(32).collect()
}

/// Host and port, as part of a label.
fn address_slug(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let short: Vec<char> = sanitized(host).chars().rev().take(28).collect();
    short.into_iter().rev().collect()
}

fn sanitized(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}
