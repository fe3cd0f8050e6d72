//! The unified long table: every row of every run, as CSV and as Parquet, through polars.
//!
//! It is the truth that every other table and figure is a view of. Missing is empty; numbers stand in the
//! shortest form that reads back to the same bits.

use crate::file::write_atomic;
use crate::{Error, order};
use bench_core::SCHEMA_VERSION;
use bench_core::metric::Metric;
use bench_core::row::Row;
use bench_core::sample::{IntervalMethod, TokenSource};
use polars::prelude::*;
use polars_io::SerReader;
use polars_io::SerWriter;
use polars_io::csv::read::CsvReadOptions;
use polars_io::csv::write::CsvWriter;
use polars_io::parquet::write::ParquetWriter;
use std::fs::{self, File};
use std::path::Path;

/// Writes the rows as CSV, columns as in `row::COLUMNS`, sorted by run, model, prompt, output, batch, load,
/// metric, scope, statistic.
pub fn write(path: &Path, rows: &[Row]) -> Result<(), Error> {
    write_csv(path, &mut frame(path, &order::sorted(rows)?)?)
}

/// Writes the same table as Parquet.
pub fn write_parquet(path: &Path, rows: &[Row]) -> Result<(), Error> {
    write_parquet_frame(path, &mut frame(path, &order::sorted(rows)?)?)
}

pub(crate) fn write_csv(path: &Path, frame: &mut DataFrame) -> Result<(), Error> {
    write_atomic(path, |file| CsvWriter::new(file).finish(frame).map_err(|e| Error::polars_write(path, &e)))
}

pub(crate) fn write_parquet_frame(path: &Path, frame: &mut DataFrame) -> Result<(), Error> {
    write_atomic(path, |file| {
        ParquetWriter::new(file).finish(frame).map(drop).map_err(|e| Error::polars_write(path, &e))
    })
}

/// The rows as a data frame; `rows` in the order in which they shall stand.
pub(crate) fn frame(path: &Path, rows: &[&Row]) -> Result<DataFrame, Error> {
    let columns = vec![
        text("run_id", rows, |r| &r.run_id),
        text("target", rows, |r| &r.target),
        text("model", rows, |r| &r.model),
        whole("prompt_tokens", rows, |r| r.prompt_tokens.into()),
        whole("output_tokens", rows, |r| r.output_tokens.into()),
        whole("batch", rows, |r| r.batch.into()),
        text("load", rows, |r| &r.load),
        UInt32Chunked::from_iter_options("concurrency".into(), rows.iter().map(|r| r.concurrency))
            .into_column(),
        real("request_rate", rows, |r| r.request_rate),
        text("metric", rows, |r| r.metric),
        text("scope", rows, |r| &r.scope),
        text("unit", rows, |r| r.unit),
        text("stat", rows, |r| &r.stat),
        real("value", rows, |r| r.value),
        real("ci_low", rows, |r| r.ci_low),
        real("ci_high", rows, |r| r.ci_high),
        real("instrument_error", rows, |r| r.instrument_error),
        text("ci_method", rows, |r| r.ci_method.unwrap_or_default()),
        whole("n", rows, |r| r.n),
        whole("missing", rows, |r| r.missing),
        text("missing_reason", rows, |r| &r.missing_reason),
        BooleanChunked::from_iter_options("bounded".into(), rows.iter().map(|r| r.bounded)).into_column(),
        real("success_rate", rows, |r| r.success_rate),
        text("token_source", rows, |r| r.token_source),
        text("verdict", rows, |r| r.verdict),
        text("verdict_reason", rows, |r| &r.verdict_reason),
        text("client_verdict", rows, |r| &r.client_verdict),
        whole("schema_version", rows, |r| r.schema_version.into()),
    ];
    DataFrame::new(rows.len(), columns)
        .map_err(|e| Error::Table { path: path.to_owned(), message: e.to_string() })
}

/// Empty text is missing: an empty field, not a pair of quotes.
fn text<'a>(name: &str, rows: &[&'a Row], get: impl Fn(&'a Row) -> &'a str) -> Column {
    let values = rows.iter().map(|r| Some(get(r)).filter(|t| !t.is_empty()));
    StringChunked::from_iter_options(name.into(), values).into_column()
}

fn whole(name: &str, rows: &[&Row], get: impl Fn(&Row) -> u64) -> Column {
    UInt64Chunked::from_iter_values(name.into(), rows.iter().map(|r| get(r))).into_column()
}

/// What is not finite is missing.
fn real(name: &str, rows: &[&Row], get: impl Fn(&Row) -> Option<f64>) -> Column {
    let values = rows.iter().map(|r| get(r).filter(|v| v.is_finite()));
    Float64Chunked::from_iter_options(name.into(), values).into_column()
}

/// Reads a table that `write` wrote. Columns may stand in any order; unknown ones are ignored.
pub fn read(path: &Path) -> Result<Vec<Row>, Error> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let frame = CsvReadOptions::default()
        .with_has_header(true)
        // Every column as text: this module parses, so that its errors can name the line.
        .with_infer_schema_length(Some(0))
        .into_reader_with_file_handle(file)
        .finish()
        .map_err(|e| Error::Table { path: path.to_owned(), message: e.to_string() })?;
    let table = Table::new(path, &frame)?;
    (0..frame.height()).map(|record| table.row(record)).collect()
}

/// The text columns of a file that is being read.
struct Table<'a> {
    path: &'a Path,
    columns: Vec<&'a StringChunked>,
}

impl<'a> Table<'a> {
    fn new(path: &'a Path, frame: &'a DataFrame) -> Result<Self, Error> {
        let found =
            || frame.get_column_names().iter().map(|n| n.as_str().to_owned()).collect::<Vec<_>>().join(", ");
        let columns = bench_core::row::COLUMNS
            .iter()
            .map(|&(column, _)| {
                let missing = || Error::Column { path: path.to_owned(), column, found: found() };
                frame.column(column).ok().and_then(|c| c.str().ok()).ok_or_else(missing)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { path, columns })
    }

    fn row(&self, record: usize) -> Result<Row, Error> {
        // First, so that a table of another version is told as such and not as a bad number.
        let schema_version = self.parse(record, "schema_version", "a version number")?;
        if schema_version != SCHEMA_VERSION {
            let expected = format!("{SCHEMA_VERSION}, the version that this program reads");
            return Err(self.error(record, "schema_version", expected));
        }
        let metric = self.text(record, "metric");
        let metric = Metric::from_key(metric).map_err(|e| self.error(record, "metric", e.to_string()))?;
        let stat = self.stat(record, metric)?;
        let metric = metric.def();
        Ok(Row {
            run_id: self.required(record, "run_id")?,
            target: self.required(record, "target")?,
            model: self.required(record, "model")?,
            prompt_tokens: self.parse(record, "prompt_tokens", "a whole number")?,
            output_tokens: self.parse(record, "output_tokens", "a whole number")?,
            batch: self.parse(record, "batch", "a whole number")?,
            load: self.required(record, "load")?,
            concurrency: self.optional(record, "concurrency", "a whole number")?,
            request_rate: self.real(record, "request_rate")?,
            metric: metric.key,
            scope: self.text(record, "scope").to_owned(),
            unit: self.one_of(record, "unit", &[metric.unit])?,
            stat,
            value: self.real(record, "value")?,
            ci_low: self.real(record, "ci_low")?,
            ci_high: self.real(record, "ci_high")?,
            instrument_error: self.real(record, "instrument_error")?,
            ci_method: self.ci_method(record)?,
            n: self.parse(record, "n", "a whole number")?,
            missing: self.parse(record, "missing", "a whole number")?,
            missing_reason: self.text(record, "missing_reason").to_owned(),
            bounded: self.optional(record, "bounded", "`true` or `false`")?,
            success_rate: self.real(record, "success_rate")?,
            token_source: self.optional_of(record, "token_source", &TokenSource::KEYS)?.unwrap_or_default(),
            verdict: self.one_of(record, "verdict", &["VALID", "INVALID"])?,
            verdict_reason: self.text(record, "verdict_reason").to_owned(),
            client_verdict: self.text(record, "client_verdict").to_owned(),
            schema_version,
        })
    }

    fn text(&self, record: usize, column: &str) -> &'a str {
        let index = bench_core::row::COLUMNS.iter().position(|c| c.0 == column);
        index.and_then(|i| self.columns[i].get(record)).unwrap_or_default()
    }

    fn required(&self, record: usize, column: &'static str) -> Result<String, Error> {
        match self.text(record, column) {
            "" => Err(self.error(record, column, "given".to_owned())),
            text => Ok(text.to_owned()),
        }
    }

    fn parse<T: std::str::FromStr>(
        &self,
        record: usize,
        column: &'static str,
        expected: &str,
    ) -> Result<T, Error> {
        self.text(record, column).parse().map_err(|_| self.error(record, column, expected.to_owned()))
    }

    fn optional<T: std::str::FromStr>(
        &self,
        record: usize,
        column: &'static str,
        expected: &str,
    ) -> Result<Option<T>, Error> {
        if self.text(record, column).is_empty() {
            return Ok(None);
        }
        self.parse(record, column, expected).map(Some)
    }

    fn real(&self, record: usize, column: &'static str) -> Result<Option<f64>, Error> {
        match self.optional::<f64>(record, column, "a finite number")? {
            Some(v) if !v.is_finite() => Err(self.error(record, column, "a finite number".to_owned())),
            value => Ok(value),
        }
    }

    fn stat(&self, record: usize, metric: Metric) -> Result<String, Error> {
        let stat = self.text(record, "stat");
        // Failures are counted by kind; the kinds are words of their own.
        let kind = metric == Metric::Failures && is_word(stat);
        if order::is_stat(stat) || kind {
            return Ok(stat.to_owned());
        }
        let expected = "`mean`, `stddev`, `min`, `max`, `value` or a quantile such as `p50`".to_owned();
        Err(self.error(record, "stat", expected))
    }

    fn ci_method(&self, record: usize) -> Result<Option<&'static str>, Error> {
        use IntervalMethod::{
            ClusterBootstrap, LeastSquares, OrderStatistic, StandardError, StudentT, Wilson,
        };
        let methods = [OrderStatistic, StudentT, ClusterBootstrap, Wilson, LeastSquares, StandardError];
        let methods = methods.map(IntervalMethod::key);
        self.optional_of(record, "ci_method", &methods)
    }

    fn optional_of(
        &self,
        record: usize,
        column: &'static str,
        valid: &[&'static str],
    ) -> Result<Option<&'static str>, Error> {
        if self.text(record, column).is_empty() {
            return Ok(None);
        }
        self.one_of(record, column, valid).map(Some)
    }

    fn one_of(
        &self,
        record: usize,
        column: &'static str,
        valid: &[&'static str],
    ) -> Result<&'static str, Error> {
        let text = self.text(record, column);
        let known = valid.iter().copied().find(|v| *v == text);
        known.ok_or_else(|| self.error(record, column, format!("`{}`", valid.join("`, `"))))
    }

    fn error(&self, record: usize, column: &'static str, expected: String) -> Error {
        Error::Value {
            path: self.path.to_owned(),
            line: fs::read(self.path).map_or(record + 2, |bytes| line_of(&bytes, record)),
            column,
            value: self.text(record, column).to_owned(),
            expected,
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// Line (from 1) on which data record `record` (from 0) begins: quoted fields may hold line breaks.
fn line_of(csv: &[u8], record: usize) -> usize {
    let (mut line, mut records, mut quoted) = (1, 0, false);
    for &byte in csv {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' => {
                line += 1;
                records += usize::from(!quoted);
                if records == record + 1 {
                    break;
                }
            }
            _ => {}
        }
    }
    line
}
