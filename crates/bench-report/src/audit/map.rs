//! What the columns of a table are: a TOML file, or one of the built-in ones that a header is recognised by.
//!
//! A map says what columns hold; whether they do is for the rules.

use super::Error;
use super::formula::Formula;
use super::value::Table;
use serde::Deserialize;
use std::collections::BTreeMap;

macro_rules! built_in {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"), "/../../bench-configs/audit/", $name, ".toml"
        )))),+]
    };
}

/// Names and texts of the maps that headers are recognised by.
pub const BUILT_IN: [(&str, &str); 9] = built_in![
    "study-latency",
    "study-memory",
    "study-energy",
    "study-ape",
    "study-ablation-decoding",
    "study-ablation-precision",
    "study-ablation-context",
    "study-ablation-server",
    "ossbench-wide-latency",
];

/// A column map as written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnMap {
    pub name: String,
    #[serde(default)]
    pub about: String,
    /// A file is recognised by exactly these columns, in any order. Without them the map serves where it is
    /// named.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Or by these among others.
    #[serde(default)]
    pub contains: Vec<String>,
    pub columns: Columns,
    /// Unit of each column with a dimension.
    #[serde(default)]
    pub units: BTreeMap<String, String>,
    #[serde(default)]
    pub constants: Constants,
    #[serde(default)]
    pub quantiles: Vec<Quantiles>,
    #[serde(default)]
    pub rates: Vec<Rate>,
    #[serde(default)]
    pub derived: Vec<Derived>,
    /// Name in the table to name of a preset, where they differ.
    #[serde(default)]
    pub models: BTreeMap<String, String>,
    /// What the table cannot show, for the list at the end of an audit.
    #[serde(default)]
    pub not_checkable: Vec<String>,
}

/// Which column holds what.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    pub model: Option<String>,
    pub device: Option<String>,
    pub prompt_tokens: Option<String>,
    pub output_tokens: Option<String>,
    /// Requests or runs behind each row.
    pub n: Option<String>,
    /// Other columns that tell rows apart.
    #[serde(default)]
    pub key: Vec<String>,
    pub ttft: Option<String>,
    /// Bytes that are called KV cache.
    pub kv: Option<String>,
    /// Bytes that stayed allocated after generation, above those before the prompt.
    pub kv_retained: Option<String>,
    pub allocated_before: Option<String>,
    pub peak: Option<String>,
    pub power_avg: Option<String>,
    pub power_baseline: Option<String>,
    pub j_per_1k_tok: Option<String>,
    pub tok_per_j: Option<String>,
    pub params_total: Option<String>,
    pub params_active: Option<String>,
}

/// What every row has in common and no column says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constants {
    pub model: Option<String>,
    pub prompt_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
    pub n: Option<u64>,
    /// Of weights and of keys and values: `bf16` or `f32`.
    pub dtype: Option<String>,
    pub device: Option<String>,
    /// Of the device's memory.
    pub bandwidth_bytes_s: Option<f64>,
}

/// Quantiles of one quantity.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantiles {
    pub of: Quantity,
    pub p50: Option<String>,
    pub p90: Option<String>,
    pub p95: Option<String>,
    pub p99: Option<String>,
}

impl Quantiles {
    pub(super) fn each(&self) -> impl Iterator<Item = (f64, &'static str, &str)> {
        let all = [
            (0.5, "p50", &self.p50),
            (0.9, "p90", &self.p90),
            (0.95, "p95", &self.p95),
            (0.99, "p99", &self.p99),
        ];
        all.into_iter().filter_map(|(q, name, column)| Some((q, name, column.as_deref()?)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// From the request to its last token.
    E2el,
    Ttft,
    Tpot,
    Itl,
    /// Tokens per second of single requests.
    Rate,
}

/// A column of tokens per second.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub column: String,
    pub claims: Claim,
    #[serde(default)]
    pub counts: Counts,
}

/// What a rate is said to be by its name or its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// Of the tokens after the first, as TPOT and decode rates are defined.
    Decode,
    /// Of whole requests, prefill included, and called so.
    Request,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counts {
    #[default]
    Output,
    /// Prompt and output tokens.
    All,
}

/// A column that is computed from others.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Derived {
    pub column: String,
    pub formula: String,
    /// Relative difference that is no finding, beyond rounding.
    #[serde(default)]
    pub tolerance: f64,
}

/// Factors to ms, bytes, W, J and 1.
pub(super) const TIME: &[(&str, f64)] = &[("ms", 1.0), ("s", 1e3), ("us", 1e-3), ("ns", 1e-6)];
pub(super) const BYTES: &[(&str, f64)] = &[
    ("B", 1.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
];
const POWER: &[(&str, f64)] = &[("W", 1.0), ("mW", 1e-3), ("kW", 1e3)];
const ENERGY: &[(&str, f64)] = &[("J", 1.0), ("mJ", 1e-3), ("kJ", 1e3), ("Wh", 3600.0)];
const RATE: &[(&str, f64)] = &[("tok/s", 1.0), ("tok/ms", 1e3), ("tok/min", 1.0 / 60.0)];
const PER_ENERGY: &[(&str, f64)] = &[("tok/J", 1.0), ("tok/Wh", 1.0 / 3600.0)];
const COUNT: &[(&str, f64)] = &[("1", 1.0), ("1e3", 1e3), ("1e6", 1e6), ("1e9", 1e9)];

impl ColumnMap {
    /// # Errors
    /// A text that is no column map: what is unknown or missing, and what is valid.
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Map { map: name.to_owned(), reason };
        let map: Self = toml::from_str(text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
        for derived in &map.derived {
            Formula::parse(&derived.formula)
                .map_err(|e| wrong(format!("column \"{}\": {e}", derived.column)))?;
        }
        map.check_units().map_err(wrong)?;
        if map.constants.dtype.as_deref().is_some_and(|d| !["bf16", "f32"].contains(&d)) {
            return Err(wrong("constants.dtype: valid are bf16 and f32".to_owned()));
        }
        if map.constants.bandwidth_bytes_s.is_some_and(|b| !(b.is_finite() && b > 0.0)) {
            return Err(wrong("constants.bandwidth_bytes_s: expected a number above 0".to_owned()));
        }
        Ok(map)
    }

    /// A built-in map.
    ///
    /// # Errors
    /// An unknown name; the valid ones are listed.
    pub fn built_in(name: &str) -> Result<Self, Error> {
        match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((name, text)) => Self::parse(name, text),
            None => Err(Error::UnknownMap {
                given: name.to_owned(),
                valid: BUILT_IN.map(|(name, _)| name).join(", "),
            }),
        }
    }

    /// The built-in map of a table.
    ///
    /// # Errors
    /// A header that none has, with the nearest one.
    pub fn recognise(table: &Table) -> Result<Self, Error> {
        let maps = BUILT_IN.iter().map(|(name, text)| Self::parse(name, text));
        let maps = maps.collect::<Result<Vec<_>, _>>()?;
        if let Some(map) = maps.iter().find(|map| map.fits(&table.header)) {
            return Ok(map.clone());
        }
        let unlike = |map: &Self| {
            let expected = map.expected();
            expected.iter().filter(|c| !table.header.contains(*c)).count()
                + table.header.len().abs_diff(expected.len())
        };
        let nearest = maps.iter().min_by_key(|map| unlike(map)).map(|map| map.difference(&table.header));
        Err(Error::Unrecognised {
            file: table.file.clone(),
            found: listed(&table.header),
            nearest: nearest.unwrap_or_default(),
        })
    }

    fn expected(&self) -> &[String] {
        if self.headers.is_empty() { &self.contains } else { &self.headers }
    }

    fn fits(&self, header: &[String]) -> bool {
        let expected = self.expected();
        let whole = self.headers.is_empty() || header.len() == expected.len();
        !expected.is_empty() && whole && expected.iter().all(|column| header.contains(column))
    }

    fn difference(&self, header: &[String]) -> String {
        let expected = self.expected();
        let missing: Vec<_> = expected.iter().filter(|c| !header.contains(*c)).cloned().collect();
        let more: Vec<_> = header.iter().filter(|c| !expected.contains(*c)).cloned().collect();
        let mut text = format!("\"{}\"", self.name);
        for (what, columns) in [("is missing", missing), ("is too many", more)] {
            if !columns.is_empty() {
                text = format!("{text}, of which {what}: {}", listed(&columns));
            }
        }
        text
    }

    /// # Errors
    /// Columns of the map that the table lacks.
    pub fn check(&self, table: &Table) -> Result<(), Error> {
        let mut missing: Vec<String> =
            self.named().into_iter().filter(|c| table.column(c).is_none()).collect();
        missing.sort();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::Columns {
            file: table.file.clone(),
            map: self.name.clone(),
            missing: listed(&missing),
            found: listed(&table.header),
        })
    }

    /// Every column that the map speaks of.
    fn named(&self) -> Vec<String> {
        let c = &self.columns;
        let text = [&c.model, &c.device, &c.prompt_tokens, &c.output_tokens, &c.n];
        let mut named: Vec<String> = text.into_iter().flatten().chain(&c.key).cloned().collect();
        named.extend(self.numeric());
        named
    }

    /// Every column whose fields are numbers.
    pub(super) fn numeric(&self) -> Vec<String> {
        let mut numeric: Vec<String> = self.dimensions().into_iter().map(|(c, _)| c.to_owned()).collect();
        for derived in &self.derived {
            numeric.push(derived.column.clone());
            // A formula that is none was refused when the map was read.
            let formula = Formula::parse(&derived.formula);
            numeric.extend(formula.iter().flat_map(Formula::columns).map(str::to_owned));
        }
        numeric.sort();
        numeric.dedup();
        numeric
    }

    /// Each column with a dimension, and its units.
    fn dimensions(&self) -> Vec<(&str, &'static [(&'static str, f64)])> {
        let c = &self.columns;
        let single = [
            (&c.ttft, TIME),
            (&c.kv, BYTES),
            (&c.kv_retained, BYTES),
            (&c.allocated_before, BYTES),
            (&c.peak, BYTES),
            (&c.power_avg, POWER),
            (&c.power_baseline, POWER),
            (&c.j_per_1k_tok, ENERGY),
            (&c.tok_per_j, PER_ENERGY),
            (&c.params_total, COUNT),
            (&c.params_active, COUNT),
        ];
        let mut all: Vec<_> =
            single.into_iter().filter_map(|(c, units)| Some((c.as_deref()?, units))).collect();
        for quantiles in &self.quantiles {
            let units = if quantiles.of == Quantity::Rate { RATE } else { TIME };
            all.extend(quantiles.each().map(|(_, _, column)| (column, units)));
        }
        all.extend(self.rates.iter().map(|rate| (rate.column.as_str(), RATE)));
        all
    }

    fn check_units(&self) -> Result<(), String> {
        let dimensions = self.dimensions();
        for (column, units) in &dimensions {
            let valid = || units.iter().map(|u| u.0).collect::<Vec<_>>().join(", ");
            match self.units.get(*column) {
                Some(unit) if units.iter().any(|(name, _)| name == unit) => {}
                Some(unit) => {
                    return Err(format!("units.{column} = \"{unit}\": expected one of {}", valid()));
                }
                None => return Err(format!("column \"{column}\" needs a unit under [units]: {}", valid())),
            }
        }
        match self.units.keys().find(|column| dimensions.iter().all(|(known, _)| known != column)) {
            Some(unused) => Err(format!("units.{unused}: no role, quantile or rate is this column")),
            None => Ok(()),
        }
    }

    /// The unit of a column as the map says it.
    pub(super) fn unit(&self, column: &str) -> &'static str {
        let unit = self.units.get(column).map_or("", String::as_str);
        let units = self.dimensions().into_iter().find(|(known, _)| *known == column);
        units
            .and_then(|(_, units)| units.iter().find(|(name, _)| *name == unit))
            .map_or("", |(name, _)| *name)
    }

    /// What a number in this column is multiplied with to be ms, bytes, W, J, tok/s.
    pub(super) fn factor(&self, column: &str) -> f64 {
        let units =
            self.dimensions().into_iter().find(|(known, _)| *known == column).map_or(COUNT, |(_, u)| u);
        let unit = self.units.get(column).map_or("", String::as_str);
        units.iter().find(|(name, _)| *name == unit).map_or(1.0, |(_, factor)| *factor)
    }
}

pub(super) fn listed(columns: &[String]) -> String {
    let shown: Vec<String> =
        columns.iter().take(40).map(|c| super::text::one_line(c).chars().take(60).collect()).collect();
    let more = columns.len().saturating_sub(shown.len());
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
