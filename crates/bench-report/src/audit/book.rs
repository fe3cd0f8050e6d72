//! Tables under their column maps: rows with models, lengths and numbers, and the physics that they are
//! held against.

use super::finding::{CellRef, Finding, Rule};
use super::formula::Interval;
use super::map::ColumnMap;
use super::value::{Number, Table, number};
use super::{Audited, Error};
use std::collections::BTreeMap;

/// What is known of models and devices; the caller knows them.
pub trait Physics {
    /// Sizes of a model by the name of its preset, weights and cache in `dtype` (`bf16`, `f32`).
    fn model(&self, name: &str, dtype: &str) -> Option<ModelSizes>;
    /// Keys and values of one sequence.
    fn kv_bytes(&self, model: &ModelSizes, tokens: u64) -> KvBytes;
    /// Bandwidth of a device's memory by its name, from its data sheet.
    fn bandwidth_bytes_s(&self, device: &str) -> Option<f64>;
}

/// Sizes of a model as a table says that it was run.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSizes {
    /// Of the preset.
    pub name: String,
    pub dtype: String,
    pub parameters: u64,
    pub active_parameters: u64,
    /// All weights, the input embedding too.
    pub weights_bytes: u64,
    /// Weights that one token multiplies with, of the experts only those that it uses.
    pub active_bytes: u64,
    /// The same with the experts as they are published, where that is another precision.
    pub native_active_bytes: Option<u64>,
    /// Experts of a token, and of a layer.
    pub experts: Option<(u32, u32)>,
}

/// Bytes of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvBytes {
    /// Every layer keeps everything.
    pub full: u64,
    /// Layers with a window keep no more than that.
    pub windowed: u64,
}

/// All tables of one audit.
pub struct Book<'a> {
    pub sheets: Vec<Sheet>,
    pub physics: &'a dyn Physics,
}

/// One table under its map.
#[derive(Debug, Clone)]
pub struct Sheet {
    pub(super) table: Table,
    pub(super) map: ColumnMap,
    pub(super) rows: Vec<Row>,
    /// Of each model whose sizes are known.
    pub(super) sizes: BTreeMap<String, ModelSizes>,
}

/// One row of a table.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) line: u64,
    pub(super) model: String,
    pub(super) device: Option<String>,
    pub(super) prompt_tokens: Option<u32>,
    pub(super) output_tokens: Option<u32>,
    pub(super) n: Option<u64>,
    pub(super) key: Vec<String>,
    numbers: BTreeMap<String, Number>,
}

impl Row {
    /// Rows of different tables are of one cell if these are equal.
    pub(super) fn cell(&self) -> (&str, Option<u32>, Option<u32>) {
        (&self.model, self.prompt_tokens, self.output_tokens)
    }

    /// Significant digits as printed.
    pub(super) fn digits(&self, column: &str) -> usize {
        self.numbers.get(column).map_or(0, |number| number.digits)
    }

    pub(super) fn label(&self) -> String {
        let tokens = |n: Option<u32>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        let mut label = short(&self.model).to_owned();
        if self.prompt_tokens.is_some() || self.output_tokens.is_some() {
            label = format!("{label} {}+{}", tokens(self.prompt_tokens), tokens(self.output_tokens));
        }
        for key in self.key.iter().filter(|key| !key.is_empty()) {
            label = format!("{label} {key}");
        }
        label.trim().to_owned()
    }
}

/// The last part of a model's name.
pub(super) fn short(model: &str) -> &str {
    model.rsplit('/').next().unwrap_or(model)
}

impl Sheet {
    /// # Errors
    /// Columns of the map that the table lacks.
    pub fn new(mut table: Table, map: ColumnMap, physics: &dyn Physics) -> Result<Self, Error> {
        map.check(&table)?;
        let mut problems = std::mem::take(&mut table.problems);
        let rows: Vec<Row> = (0..table.records.len()).map(|i| row(&table, &map, i, &mut problems)).collect();
        table.problems = problems;
        let dtype = map.constants.dtype.as_deref().unwrap_or("bf16");
        let mut sizes = BTreeMap::new();
        for row in &rows {
            if !sizes.contains_key(&row.model) {
                let preset = map.models.get(&row.model).cloned().unwrap_or_else(|| preset_name(&row.model));
                if let Some(known) = physics.model(&preset, dtype) {
                    sizes.insert(row.model.clone(), known);
                }
            }
        }
        Ok(Self { table, map, rows, sizes })
    }

    pub(super) fn is_of(&self, file: &str) -> bool {
        self.table.file == file
    }

    pub(super) fn audited(&self) -> Audited {
        Audited {
            file: self.table.file.clone(),
            map: self.map.name.clone(),
            about: self.map.about.clone(),
            rows: self.rows.len(),
            problems: self.table.problems.clone(),
        }
    }

    /// In ms, bytes, W, J, tok/s.
    pub(super) fn value(&self, row: &Row, column: &str) -> Option<f64> {
        Some(row.numbers.get(column)?.value * self.map.factor(column))
    }

    /// As published; token counts are exact.
    pub(super) fn interval(&self, row: &Row, column: &str) -> Option<Interval> {
        let number = row.numbers.get(column)?;
        let c = &self.map.columns;
        let exact = [&c.prompt_tokens, &c.output_tokens, &c.n].iter().any(|c| c.as_deref() == Some(column));
        Some(if exact {
            Interval::exact(number.value)
        } else {
            Interval::around(number.value, number.half_digit)
        })
    }

    /// A cell as published, nothing corrected.
    pub(super) fn cell(&self, row: &Row, column: &str) -> CellRef {
        CellRef {
            line: row.line,
            column: column.to_owned(),
            label: row.label(),
            published: row.numbers.get(column).map(|number| number.value),
            unit: self.map.unit(column),
            corrected: Vec::new(),
        }
    }

    pub(super) fn sizes(&self, row: &Row) -> Option<&ModelSizes> {
        self.sizes.get(&row.model)
    }

    /// The median of whole requests.
    pub(super) fn e2el_p50_ms(&self, row: &Row) -> Option<f64> {
        let quantiles = self.map.quantiles.iter().find(|q| q.of == super::map::Quantity::E2el)?;
        self.value(row, quantiles.p50.as_deref()?)
    }

    pub(super) fn ttft_ms(&self, row: &Row) -> Option<f64> {
        self.value(row, self.map.columns.ttft.as_deref()?)
    }

    /// Mean time between tokens, prefill left out.
    pub(super) fn inter_token_ms(&self, row: &Row) -> Option<f64> {
        let gaps = f64::from(row.output_tokens?.checked_sub(1).filter(|gaps| *gaps > 0)?);
        Some((self.e2el_p50_ms(row)? - self.ttft_ms(row)?) / gaps).filter(|ms| *ms > 0.0)
    }

    /// A finding in this table, unless no cell is concerned.
    pub(super) fn finding(
        &self,
        rule: &'static Rule,
        cells: Vec<CellRef>,
        sentence: String,
    ) -> Option<Finding> {
        let file = self.table.file.clone();
        (!cells.is_empty()).then_some(Finding { rule, file, sentence, cells })
    }
}

impl Book<'_> {
    /// What the tables or their maps say of the device's memory: one table may know what another leaves out.
    pub(super) fn bandwidth_bytes_s(&self, sheet: &Sheet) -> Option<f64> {
        let stated = |sheet: &Sheet| {
            let device = |row: &Row| self.physics.bandwidth_bytes_s(row.device.as_deref()?);
            sheet.map.constants.bandwidth_bytes_s.or_else(|| sheet.rows.iter().find_map(device))
        };
        stated(sheet).or_else(|| self.sheets.iter().find_map(stated))
    }
}

/// `openai/gpt-oss-20b`, `dummy:gpt-oss-20b` and `GPT-OSS-20B` are one.
fn preset_name(model: &str) -> String {
    short(model).rsplit(':').next().unwrap_or(model).to_lowercase()
}

fn row(table: &Table, map: &ColumnMap, index: usize, problems: &mut Vec<String>) -> Row {
    let record = &table.records[index];
    let field = |column: &str| table.column(column).map_or("", |at| record.fields[at].as_str());
    let mut problem = |column: &str, reason: String| {
        problems.push(format!("line {}, column \"{column}\": {reason}", record.line));
    };
    let c = &map.columns;
    let mut whole = |column: &Option<String>| -> Option<u64> {
        let column = column.as_deref()?;
        let value = number(field(column)).map_err(|reason| problem(column, reason)).ok()??.value;
        if value >= 0.0 && value.fract() == 0.0 && value <= 1e15 {
            return Some(value as u64);
        }
        problem(column, format!("{value} is not a whole number of tokens or requests"));
        None
    };
    let tokens = |value: Option<u64>| value.and_then(|n| u32::try_from(n).ok());
    let (prompt, output) = (tokens(whole(&c.prompt_tokens)), tokens(whole(&c.output_tokens)));
    let n = whole(&c.n);
    let mut numbers = BTreeMap::new();
    for column in map.numeric() {
        match number(field(&column)) {
            Ok(Some(number)) if number.value >= 0.0 => {
                numbers.insert(column, number);
            }
            Ok(Some(number)) => problem(&column, format!("{} is below 0", number.value)),
            Ok(None) => {}
            Err(reason) => problem(&column, reason),
        }
    }
    let text = |column: &Option<String>| {
        column.as_deref().map(|c| field(c).to_owned()).filter(|text| !text.is_empty())
    };
    Row {
        line: record.line,
        model: text(&c.model).or_else(|| map.constants.model.clone()).unwrap_or_default(),
        device: text(&c.device).or_else(|| map.constants.device.clone()),
        prompt_tokens: prompt.or(map.constants.prompt_tokens),
        output_tokens: output.or(map.constants.output_tokens),
        n: n.or(map.constants.n),
        key: c.key.iter().map(|column| field(column).to_owned()).collect(),
        numbers,
    }
}
