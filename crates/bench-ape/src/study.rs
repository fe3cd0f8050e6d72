//! The efficiency table of the study that this project follows (arXiv 2508.16700), from its own result files.
//!
//! Its formulas on its inputs, to show that the table is understood; and ours on the same inputs, through
//! the same code as any run. The texts of the files come in; none is opened here.

use crate::{Error, Inputs, Result, Routing, estimates};
use bench_core::load::Load;
use bench_core::metric::Metric;
use bench_core::plan::Cell;
use bench_core::row::STUDY_APE_COLUMNS;
use bench_core::sample::{Estimate, Stat};
use bench_core::shape::ModelFacts;
use csv::StringRecord;

pub const LATENCY: &str = "unified_latency.csv";
pub const ENERGY: &str = "unified_energy.csv";
pub const MEMORY: &str = "unified_memory.csv";
pub const APE: &str = "ape_analysis.csv";

/// Bytes per second of the memory of the study's GPU, NVIDIA H100 NVL: 3.9 TB/s in its data sheet.
pub const BANDWIDTH_BYTES_S: f64 = 3.9e12;

/// The texts of the four files.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    pub latency: &'a str,
    pub energy: &'a str,
    pub memory: &'a str,
    pub ape: &'a str,
}

/// A row of the study's table, or the same computed again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub ttft_ms: f64,
    /// `tpot_tokps`: a rate in spite of its name, prefill included.
    pub request_tok_s: f64,
    /// `peak_memory_GB`, which are GiB.
    pub peak_gib: f64,
    pub energy_per_1k_j: f64,
    /// `tokens_per_watt`, which are tokens per joule.
    pub tok_per_j: f64,
    pub throughput_per_b: f64,
    pub inv_ttft_per_b: f64,
    pub tok_per_j_per_b: f64,
    pub tok_s_per_gib: f64,
}

impl Figures {
    /// Columns of figures in the study's table, in its order; those before them say which cell a row is.
    pub const COLUMNS: [&'static str; 9] = match STUDY_APE_COLUMNS.last_chunk() {
        Some(figures) => *figures,
        None => panic!("the study's table has sixteen columns"),
    };

    /// In the order of [`Self::COLUMNS`].
    pub fn values(&self) -> [f64; 9] {
        [
            self.ttft_ms,
            self.request_tok_s,
            self.peak_gib,
            self.energy_per_1k_j,
            self.tok_per_j,
            self.throughput_per_b,
            self.inv_ttft_per_b,
            self.tok_per_j_per_b,
            self.tok_s_per_gib,
        ]
    }
}

/// One model at one context.
#[derive(Debug, Clone, PartialEq)]
pub struct StudyRow {
    /// `model_id`, a name of a preset too.
    pub model: String,
    pub context_tokens: u32,
    pub output_tokens: u32,
    /// In 10⁹, rounded as the study did: 3.6, and all parameters for the dense models.
    pub active_parameters_b: f64,
    /// As the study printed them.
    pub printed: Figures,
    /// Its formulas on its raw columns.
    pub again: Figures,
    /// Median of whole requests in the latency run.
    e2el_ms: f64,
    energy_run: EnergyRun,
}

/// What the study's energy run saw; it had other prompts than the latency run.
#[derive(Debug, Clone, Copy, PartialEq)]
struct EnergyRun {
    ttft_ms: f64,
    /// Output tokens over the whole request.
    request_tok_s: f64,
    avg_w: f64,
}

impl StudyRow {
    /// Largest relative difference between what was printed and the same computed again.
    pub fn largest_difference(&self) -> f64 {
        let pairs = self.printed.values().into_iter().zip(self.again.values());
        pairs.map(|(printed, again)| (again / printed - 1.0).abs()).fold(0.0, f64::max)
    }

    /// Rate of the tokens after the first, without the prefill: the files have a median of each.
    pub fn decode_tok_s(&self) -> f64 {
        f64::from(self.output_tokens - 1) / ((self.e2el_ms - self.again.ttft_ms) / 1000.0)
    }

    /// Tokens after the first per joule, at the average power of the request: there is no other.
    pub fn decode_tok_per_j(&self) -> f64 {
        let run = &self.energy_run;
        let decode_s = f64::from(self.output_tokens) / run.request_tok_s - run.ttft_ms / 1000.0;
        f64::from(self.output_tokens - 1) / (run.avg_w * decode_s)
    }

    /// Our definitions on the study's measurements, for a model of the sizes `facts`.
    pub fn ours(&self, facts: &ModelFacts, bandwidth_bytes_s: f64) -> Ours {
        let value = |metric, stat, value, scope: Option<&str>| Estimate {
            scope: scope.map(str::to_owned),
            stat,
            ..Estimate::of_cell(metric, Some(value), 0)
        };
        let peak_bytes = self.again.peak_gib * f64::from(1_u32 << 30);
        let median = Stat::Quantile(0.5);
        let measured = [
            value(Metric::DecodeRate, median, self.decode_tok_s(), None),
            value(Metric::Ttft, median, self.again.ttft_ms, None),
            value(Metric::TokensPerJoule, Stat::Value, self.decode_tok_per_j(), Some("gpu_board")),
            value(Metric::PeakBytes, Stat::Value, peak_bytes, Some("allocator")),
        ];
        ours(facts, self.context_tokens, self.output_tokens, bandwidth_bytes_s, &measured)
    }
}

/// Our definitions for one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Ours {
    pub bandwidth_bytes_s: f64,
    pub estimates: Vec<Estimate>,
}

impl Ours {
    pub fn value(&self, metric: Metric, scope: Option<&str>) -> Option<f64> {
        let found = self.estimates.iter().find(|e| e.metric == metric && e.scope.as_deref() == scope);
        found.and_then(|e| e.value)
    }

    /// The value of the only scope that the metric has here.
    pub fn any(&self, metric: Metric) -> Option<f64> {
        self.estimates.iter().find(|e| e.metric == metric).and_then(|e| e.value)
    }

    /// Bytes per second that crossed the bus if those of `scope` were moved.
    pub fn moved_bytes_s(&self, scope: Option<&str>) -> Option<f64> {
        Some(self.value(Metric::RooflineRatio, scope)? * self.bandwidth_bytes_s)
    }
}

/// What sizes and bandwidth alone say of a model that nobody measured.
pub fn limits(facts: &ModelFacts, context_tokens: u32, output_tokens: u32, bandwidth_bytes_s: f64) -> Ours {
    ours(facts, context_tokens, output_tokens, bandwidth_bytes_s, &[])
}

fn ours(
    facts: &ModelFacts,
    prompt_tokens: u32,
    output_tokens: u32,
    bandwidth_bytes_s: f64,
    measured: &[Estimate],
) -> Ours {
    let cell = Cell {
        id: String::new(),
        model: String::new(),
        prompt_tokens,
        output_tokens,
        batch: 1,
        load: Load::Batch,
        repeats: 1,
        requests_per_repeat: 1,
    };
    let inputs = Inputs {
        cell: &cell,
        facts,
        routing: Routing::default(),
        bandwidth_bytes_s: Some(bandwidth_bytes_s),
        accuracies: &[],
        estimates: measured,
    };
    Ours { bandwidth_bytes_s, estimates: estimates(&inputs) }
}

/// Every row of the study's table, with its sources joined and its formulas computed again.
///
/// # Errors
/// A file that is empty or lacks a column, a cell that is no number, a row whose source is not there.
pub fn read(files: &Files<'_>) -> Result<Vec<StudyRow>> {
    let latency = Table::parse(LATENCY, files.latency)?;
    let energy = Table::parse(ENERGY, files.energy)?;
    let memory = Table::parse(MEMORY, files.memory)?;
    let ape = Table::parse(APE, files.ape)?;
    ape.rows().map(|row| study_row(row, &latency, &energy, &memory)).collect()
}

fn study_row(printed: Row<'_>, latency: &Table, energy: &Table, memory: &Table) -> Result<StudyRow> {
    let model = printed.text("model_id")?.to_owned();
    let context_tokens = printed.count("context_length")?;
    let key = [("model_short", model.clone()), ("context_length", context_tokens.to_string())];
    let energy = energy.find(&key)?;
    let output_tokens = energy.count("gen_tokens")?;
    if output_tokens < 2 {
        return Err(energy.error("gen_tokens", "below 2: there is no decode"));
    }
    // The latency file has several output lengths, the others one.
    let key = [&key[..], &[("gen_tokens", output_tokens.to_string())]].concat();
    let (latency, memory) = (latency.find(&key)?, memory.find(&key)?);
    let active_parameters_b = printed.number("active_params_B")?;
    let energy_run = EnergyRun {
        ttft_ms: energy.number("ttft_ms")?,
        request_tok_s: energy.number("decode_tokens_per_second")?,
        avg_w: energy.number("avg_gpu_power_watts")?,
    };
    let [ttft_ms, request_tok_s, peak_gib, energy_per_1k_j, tok_per_j, a, b, c, d] =
        Figures::COLUMNS.map(|column| printed.number(column));
    let printed = Figures {
        ttft_ms: ttft_ms?,
        request_tok_s: request_tok_s?,
        peak_gib: peak_gib?,
        energy_per_1k_j: energy_per_1k_j?,
        tok_per_j: tok_per_j?,
        throughput_per_b: a?,
        inv_ttft_per_b: b?,
        tok_per_j_per_b: c?,
        tok_s_per_gib: d?,
    };
    let e2el_ms = latency.number("p50_ms")?;
    let again = again(
        latency.number("TTFT_ms")?,
        // The median of each request's rate, which of an even number is not quite that of the median time.
        latency.number("TPOT_tokps")?,
        memory.number("peak_alloc_mb")?,
        energy_run,
        active_parameters_b,
    );
    Ok(StudyRow {
        model,
        context_tokens,
        output_tokens,
        active_parameters_b,
        printed,
        again,
        e2el_ms,
        energy_run,
    })
}

/// The study's formulas on its raw columns.
fn again(ttft_ms: f64, request_tok_s: f64, peak_mib: f64, run: EnergyRun, active_b: f64) -> Figures {
    let peak_gib = peak_mib / 1024.0;
    let tok_per_j = run.request_tok_s / run.avg_w;
    Figures {
        ttft_ms,
        request_tok_s,
        peak_gib,
        energy_per_1k_j: 1000.0 / tok_per_j,
        tok_per_j,
        throughput_per_b: request_tok_s / active_b,
        inv_ttft_per_b: 1000.0 / ttft_ms / active_b,
        tok_per_j_per_b: tok_per_j / active_b,
        tok_s_per_gib: request_tok_s / peak_gib,
    }
}

/// A file with a header.
struct Table {
    file: &'static str,
    header: StringRecord,
    records: Vec<StringRecord>,
}

impl Table {
    fn parse(file: &'static str, text: &str) -> Result<Self> {
        let wrong = |message: String| Error::Study { file, message };
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().map_err(|e| wrong(e.to_string()))?.clone();
        let records: Vec<_> =
            reader.records().collect::<std::result::Result<_, _>>().map_err(|e| wrong(e.to_string()))?;
        if records.is_empty() {
            let found = if header.is_empty() { "is empty" } else { "has a header and no rows" };
            return Err(wrong(format!("{found}; expected the study's result file of this name")));
        }
        Ok(Self { file, header, records })
    }

    fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.records.iter().map(|record| Row { table: self, record })
    }

    /// The only row with these texts in these columns.
    fn find(&self, key: &[(&'static str, String)]) -> Result<Row<'_>> {
        let mut found = Vec::new();
        for row in self.rows() {
            let texts = key.iter().map(|(column, _)| row.text(column)).collect::<Result<Vec<_>>>()?;
            if texts.iter().zip(key).all(|(text, (_, wanted))| text == wanted) {
                found.push(row);
            }
        }
        let wanted =
            || key.iter().map(|(column, text)| format!("{column} {text}")).collect::<Vec<_>>().join(", ");
        match found[..] {
            [row] => Ok(row),
            _ => Err(Error::Study {
                file: self.file,
                message: format!("{} rows with {}; expected one, as {APE} has it", found.len(), wanted()),
            }),
        }
    }
}

#[derive(Clone, Copy)]
struct Row<'a> {
    table: &'a Table,
    record: &'a StringRecord,
}

impl<'a> Row<'a> {
    fn text(&self, column: &str) -> Result<&'a str> {
        let at = self.table.header.iter().position(|name| name == column);
        at.and_then(|at| self.record.get(at)).ok_or_else(|| {
            let found: Vec<_> = self.table.header.iter().collect();
            let message = format!("no column `{column}` among {}", found.join(", "));
            Error::Study { file: self.table.file, message }
        })
    }

    /// Above 0, as every figure of the study is.
    fn number(&self, column: &str) -> Result<f64> {
        let text = self.text(column)?;
        let valid = text.parse().ok().filter(|v: &f64| v.is_finite() && *v > 0.0);
        valid.ok_or_else(|| self.error(column, &format!("{text:?} is no number above 0")))
    }

    fn count(&self, column: &str) -> Result<u32> {
        let text = self.text(column)?;
        text.parse().map_err(|_| self.error(column, &format!("{text:?} is no count")))
    }

    fn error(&self, column: &str, problem: &str) -> Error {
        let line = self.record.position().map_or(0, csv::Position::line);
        Error::Study { file: self.table.file, message: format!("line {line}, `{column}`: {problem}") }
    }
}

#[cfg(test)]
mod tests;
