//! From a cell to the files that its figures come from, as links relative to the page.

use super::words::url_path;
use crate::RunInput;
use bench_core::plan::Cell;
use bench_core::row::Row;
use std::collections::BTreeMap;

/// What tells the cells of a run apart, in rows and in plans alike.
type Key = (String, [u32; 3], String, Option<u32>, Option<u64>);

/// A cell's files.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Raw {
    /// Its one file, or the folder of several.
    pub href: String,
    pub files: Vec<String>,
}

/// The files of a run's cells.
pub(super) struct RawFiles {
    by_key: BTreeMap<Key, Raw>,
    /// Keys by `Cell::id`.
    by_id: BTreeMap<String, Key>,
}

impl RawFiles {
    pub(super) fn of(run: &RunInput) -> Self {
        let mut files = Self { by_key: BTreeMap::new(), by_id: BTreeMap::new() };
        for detail in &run.cells {
            let key = key_of_cell(&detail.cell);
            files.by_id.insert(detail.cell.id.clone(), key.clone());
            if !detail.raw.is_empty() {
                files.by_key.insert(key, raw(&run.run_id, &detail.raw));
            }
        }
        files
    }

    pub(super) fn of_row(&self, row: &Row) -> Option<&Raw> {
        self.by_key.get(&key_of_row(row))
    }

    pub(super) fn of_id(&self, id: &str) -> Option<&Raw> {
        self.by_key.get(self.by_id.get(id)?)
    }
}

fn raw(run_id: &str, files: &[String]) -> Raw {
    let link = |file: &str| url_path(&format!("raw/{run_id}/{file}"));
    let folder = |file: &str| file.rsplit_once('/').map(|(folder, _)| format!("{folder}/"));
    let first = folder(&files[0]);
    let together = files.len() > 1 && files.iter().all(|f| folder(f) == first);
    let href = match first.filter(|_| together) {
        Some(folder) => link(&folder),
        None => link(&files[0]),
    };
    Raw { href, files: files.iter().map(|f| link(f)).collect() }
}

fn key_of_cell(cell: &Cell) -> Key {
    let load = &cell.load;
    let sizes = [cell.prompt_tokens, cell.output_tokens, cell.batch];
    (cell.model.clone(), sizes, load.key(), load.concurrency(), load.rate().map(f64::to_bits))
}

fn key_of_row(row: &Row) -> Key {
    let sizes = [row.prompt_tokens, row.output_tokens, row.batch];
    (row.model.clone(), sizes, row.load.clone(), row.concurrency, row.request_rate.map(f64::to_bits))
}
