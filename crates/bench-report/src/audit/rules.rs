//! The rules: each a pure function of all tables, `None` where no table has what it looks at.

mod arithmetic;
mod energy;
mod experts;
mod inputs;
mod kv;
mod names;
mod quantiles;
mod rates;
mod times;

use super::book::{Book, Sheet, short};
use super::finding::{Finding, Rule};

type Check = fn(&Book<'_>) -> Option<Vec<Finding>>;

/// Every check with the rules that it applies.
pub(super) const ALL: [(&[&Rule], Check); 14] = [
    (&[&experts::RULE], experts::check),
    (&[&names::RATE_AS_TIME], names::rates_named_as_times),
    (&[&rates::RULE], rates::check),
    (&[&kv::RULE], kv::check),
    (&[&quantiles::EQUAL], quantiles::equal),
    (&[&quantiles::SUPPORT], quantiles::support),
    (&[&quantiles::ORDER], quantiles::order),
    (&[&inputs::RULE], inputs::check),
    (&[&energy::DRIFT], energy::drift),
    (&[&energy::GROSS], energy::gross),
    (&[&arithmetic::DERIVED], arithmetic::derived),
    (&[&arithmetic::DUPLICATE], arithmetic::duplicates),
    (&[&arithmetic::PARAMETERS], arithmetic::parameters),
    (&[&times::OFF_SLOPE, &times::COLD, &names::UNIT], times_and_units),
];

/// Small checks that look at single columns.
fn times_and_units(book: &Book<'_>) -> Option<Vec<Finding>> {
    let parts = [times::off_slope(book), times::cold(book), names::units(book)];
    parts.into_iter().flatten().reduce(|a, b| [a, b].concat())
}

/// One check of each table that has what it needs: `None` if none has.
fn of_each(book: &Book<'_>, check: impl Fn(&Sheet) -> Option<Option<Finding>>) -> Option<Vec<Finding>> {
    let found: Vec<Option<Finding>> = book.sheets.iter().filter_map(check).collect();
    (!found.is_empty()).then(|| found.into_iter().flatten().collect())
}

/// What these tables leave open.
pub(super) fn not_checkable(book: &Book<'_>) -> Vec<String> {
    let mut open: Vec<String> = Vec::new();
    for sheet in &book.sheets {
        open.extend(sheet.map.not_checkable.iter().cloned());
        let mut unknown: Vec<&str> = sheet
            .rows
            .iter()
            .filter(|r| !sheet.sizes.contains_key(&r.model))
            .map(|r| short(&r.model))
            .collect();
        unknown.sort_unstable();
        unknown.dedup();
        if !unknown.is_empty() {
            let names = unknown.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            open.push(format!(
                "physics of {} in {}: sizes unknown; name a preset under [models] of a column map",
                super::map::listed(&names),
                sheet.table.file
            ));
        }
        let quantiles = sheet.map.quantiles.iter().any(|q| q.p95.is_some() || q.p99.is_some());
        if quantiles && sheet.rows.iter().all(|row| row.n.is_none()) {
            open.push(format!(
                "which quantiles n supports in {}: no column has n; --n N states it",
                sheet.table.file
            ));
        }
    }
    open.extend(rates::not_checkable(book));
    open.extend(experts::not_checkable(book));
    open.dedup();
    open
}
