//! `ossbench audit`: reads tables and column maps, knows the sizes of models, prints what the rules find.

use crate::args::AuditArgs;
use crate::{CliError, Io};
use bench_ape::{Experts, Step};
use bench_core::plan::Dtypes;
use bench_core::shape::ModelFacts;
use bench_core::spec::{ActivationDtype, ExpertDtype};
use bench_memory::{kv_full_bytes, kv_theory_bytes};
use bench_report::audit::{
    self, BUILT_IN, Book, ColumnMap, Error, KvBytes, ModelSizes, Physics, Sheet, Table,
};
use std::path::Path;

/// A table of results is no larger.
const LARGEST_BYTES: u64 = 16 << 20;

pub(crate) fn run(args: &AuditArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    if let Some(name) = &args.print_map {
        let (_, text) = BUILT_IN.iter().find(|(known, _)| known == name).ok_or_else(|| unknown_map(name))?;
        write!(io.out, "{text}")?;
        return Ok(());
    }
    if args.bandwidth_gb_s.is_some_and(|b| !(b.is_finite() && b > 0.0)) {
        return Err(CliError::Usage("--bandwidth-gb-s: expected a number above 0".to_owned()));
    }
    let own = args.map.as_deref().map(own_map).transpose()?;
    let mut book = Book { sheets: Vec::new(), physics: &Known };
    let mut unread = 0;
    for file in &args.files {
        match sheet(file, own.as_ref(), args) {
            Ok(sheet) => book.sheets.push(sheet),
            Err(reason) => {
                unread += 1;
                writeln!(io.err, "ossbench: {reason}")?;
            }
        }
    }
    let audit = audit::audit(&book);
    if !audit.tables.is_empty() {
        write!(io.out, "{}", audit::render(args.output, &audit))?;
    }
    match (unread, audit.findings.len()) {
        (0, 0) => Ok(()),
        (0, found) if args.fail_on_finding => Err(CliError::Gate(format!("{found} findings"))),
        (0, _) => Ok(()),
        (unread, _) => {
            Err(CliError::Failed(format!("{unread} of {} files could not be audited", args.files.len())))
        }
    }
}

fn unknown_map(name: &str) -> CliError {
    let valid = BUILT_IN.map(|(name, _)| name).join(", ");
    CliError::Usage(Error::UnknownMap { given: name.to_owned(), valid }.to_string())
}

fn own_map(path: &Path) -> Result<ColumnMap, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| CliError::Usage(format!("cannot read column map {}: {e}", path.display())))?;
    ColumnMap::parse(&path.display().to_string(), &text).map_err(|e| CliError::Usage(e.to_string()))
}

/// A file under its map: the given one, unless its header is known.
fn sheet(path: &Path, own: Option<&ColumnMap>, args: &AuditArgs) -> Result<Sheet, String> {
    let file = path.display().to_string();
    let bytes = read(path)?;
    let table = Table::parse(&file, &bytes).map_err(|e| e.to_string())?;
    let mut map = match (ColumnMap::recognise(&table), own) {
        (_, Some(own)) if own.check(&table).is_ok() => own.clone(),
        (Ok(known), _) => known,
        (Err(_), Some(own)) => own.clone(),
        (Err(unknown), None) => return Err(unknown.to_string()),
    };
    let constants = &mut map.constants;
    constants.n = args.n.or(constants.n);
    constants.dtype = args.dtype.clone().or_else(|| constants.dtype.clone());
    constants.bandwidth_bytes_s = args.bandwidth_gb_s.map(|gb| gb * 1e9).or(constants.bandwidth_bytes_s);
    Sheet::new(table, map, &Known).map_err(|e| e.to_string())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let size = std::fs::metadata(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
    if size.len() > LARGEST_BYTES {
        return Err(format!("{shown} has {} bytes; a table of at most {LARGEST_BYTES} is read", size.len()));
    }
    std::fs::read(path).map_err(|e| format!("cannot read {shown}: {e}"))
}

/// The presets, and data sheets of accelerators.
struct Known;

/// Bytes per second of memory, by a part of the name that a driver gives; more specific names first.
const DEVICES: [(&str, f64); 9] = [
    ("H100 NVL", 3.9e12),
    ("H100 PCIe", 2.0e12),
    ("H100", 3.35e12),
    ("H200", 4.8e12),
    ("B200", 8.0e12),
    ("A100-SXM4-80GB", 2.039e12),
    ("A100 80GB PCIe", 1.935e12),
    ("L40S", 0.864e12),
    ("MI300X", 5.3e12),
];

impl Physics for Known {
    fn model(&self, name: &str, dtype: &str) -> Option<ModelSizes> {
        let bf16 = facts(name, ExpertDtype::Bf16)?;
        let native = facts(name, ExpertDtype::Native)?;
        let scale = if dtype == "f32" { 2 } else { 1 };
        Some(ModelSizes {
            name: name.to_owned(),
            dtype: dtype.to_owned(),
            parameters: bf16.parameters,
            active_parameters: bf16.active_parameters,
            weights_bytes: bf16.parameters * 2 * scale,
            active_bytes: active_bytes(&bf16) * scale,
            native_active_bytes: (native.expert_dtype != bf16.expert_dtype).then(|| active_bytes(&native)),
            experts: bf16.shape.experts.map(|e| (e.experts_per_token, e.num_experts)),
        })
    }

    fn kv_bytes(&self, model: &ModelSizes, tokens: u64) -> KvBytes {
        let scale = if model.dtype == "f32" { 2 } else { 1 };
        // A model that was found once is found again.
        let shape = facts(&model.name, ExpertDtype::Bf16).map(|facts| facts.shape);
        shape.map_or(KvBytes { full: 0, windowed: 0 }, |shape| KvBytes {
            full: kv_full_bytes(&shape, tokens) * scale,
            windowed: kv_theory_bytes(&shape, tokens) * scale,
        })
    }

    fn bandwidth_bytes_s(&self, device: &str) -> Option<f64> {
        DEVICES.iter().find(|(part, _)| device.contains(part)).map(|(_, bytes_s)| *bytes_s)
    }
}

fn facts(preset: &str, experts: ExpertDtype) -> Option<ModelFacts> {
    let config = bench_engine::preset::config(preset).ok()?;
    let dtypes = Dtypes { activation: ActivationDtype::Bf16, expert: experts, ..Dtypes::default() };
    let options = bench_runner::shape::load_options(dtypes, None);
    Some(bench_runner::shape::facts(&config, &options))
}

/// Weights that a token multiplies with, keys and values left out.
fn active_bytes(facts: &ModelFacts) -> u64 {
    let shape = &facts.shape;
    let used = shape.experts.map_or(Experts::All, |e| Experts::Touched(f64::from(e.experts_per_token)));
    let step = Step { batch: 1.0, prompt_tokens: 0.0, output_tokens: 2.0 };
    let per_position = shape.kv_layer_bytes() as f64 * step.attended(shape);
    (step.bytes_per_token(shape, used) - per_position) as u64
}
