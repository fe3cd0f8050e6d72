//! The study's own formulas, from its base columns to those that it derived from them.
//!
//! They were found from its published files, and a test computes those again. What a base column lacks,
//! every column that needs it lacks too. Nothing here knows where a base figure comes from.

/// Allocated, and reserved by the allocator, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Mib {
    pub(super) alloc: Option<f64>,
    pub(super) reserved: Option<f64>,
}

/// Readings of one request.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Memory {
    pub(super) context_length: u32,
    pub(super) gen_tokens: u32,
    /// Before the prompt was tokenized.
    pub(super) baseline: Mib,
    pub(super) after_tokenize: Mib,
    pub(super) after_generate: Mib,
    pub(super) peak: Mib,
    pub(super) total_gpu_mb: Option<f64>,
}

impl Memory {
    /// The numbers of a row, from `context_length` on.
    pub(super) fn values(&self) -> [Option<f64>; 24] {
        let Self { baseline, after_tokenize, after_generate, peak, total_gpu_mb, .. } = *self;
        let total_tokens = f64::from(self.context_length) + f64::from(self.gen_tokens);
        // The peak is mostly activations of the prefill, whatever the column is called.
        let kv = Mib {
            alloc: less(peak.alloc, after_tokenize.alloc),
            reserved: less(peak.reserved, after_tokenize.reserved),
        };
        let percent = |part: Option<f64>| over(part, total_gpu_mb).map(|share| share * 100.0);
        [
            Some(f64::from(self.context_length)),
            Some(f64::from(self.gen_tokens)),
            Some(total_tokens),
            baseline.alloc,
            baseline.reserved,
            after_tokenize.alloc,
            after_tokenize.reserved,
            after_generate.alloc,
            after_generate.reserved,
            peak.alloc,
            peak.reserved,
            less(after_tokenize.alloc, baseline.alloc),
            less(after_generate.alloc, after_tokenize.alloc),
            less(after_generate.alloc, baseline.alloc),
            kv.alloc,
            kv.reserved,
            over(kv.alloc, Some(total_tokens)),
            over(kv.reserved, Some(total_tokens)),
            percent(after_generate.alloc),
            percent(peak.alloc),
            percent(peak.reserved),
            total_gpu_mb,
            peak.alloc,
            over(Some(total_tokens), peak.alloc),
        ]
    }
}

/// Readings of one request and of the board while it ran.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Energy {
    pub(super) context_length: u32,
    pub(super) gen_tokens: u32,
    pub(super) ttft_ms: Option<f64>,
    pub(super) ttft_j: Option<f64>,
    /// Tokens over the whole request's time, prefill included: the study's "decode" rate.
    pub(super) request_tok_s: Option<f64>,
    pub(super) avg_w: Option<f64>,
    pub(super) baseline_w: Option<f64>,
    pub(super) util_gpu_pct: Option<f64>,
    pub(super) util_mem_pct: Option<f64>,
}

impl Energy {
    /// Joules at the average power for each output token, times 1,000.
    pub(super) fn per_1k_j(&self) -> Option<f64> {
        over(self.avg_w, self.request_tok_s).map(|joules| joules * 1000.0)
    }

    /// `tokens_per_watt`: a rate over a power, so tokens per joule.
    pub(super) fn tok_per_j(&self) -> Option<f64> {
        over(self.request_tok_s, self.avg_w)
    }

    /// The numbers of a row, from `context_length` on.
    pub(super) fn values(&self) -> [Option<f64>; 16] {
        let (context, output) = (f64::from(self.context_length), f64::from(self.gen_tokens));
        let seconds = over(Some(output), self.request_tok_s);
        let total_tok_s = over(Some(context + output), seconds);
        [
            Some(context),
            Some(output),
            self.ttft_ms,
            self.ttft_j,
            self.request_tok_s,
            total_tok_s,
            self.avg_w,
            self.baseline_w,
            self.util_gpu_pct,
            self.util_mem_pct,
            over(self.avg_w, self.request_tok_s),
            self.per_1k_j(),
            over(self.avg_w, total_tok_s),
            self.tok_per_j(),
            self.per_1k_j(),
            self.request_tok_s,
        ]
    }
}

/// What the efficiency table divides.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Ape {
    pub(super) context_length: u32,
    pub(super) total_b: Option<f64>,
    pub(super) active_b: Option<f64>,
    pub(super) ttft_ms: Option<f64>,
    /// `tpot_tokps`: a rate, prefill included.
    pub(super) request_tok_s: Option<f64>,
    pub(super) peak_mb: Option<f64>,
    pub(super) per_1k_j: Option<f64>,
    pub(super) tok_per_j: Option<f64>,
}

impl Ape {
    /// The numbers of a row, from `context_length` on.
    pub(super) fn values(&self) -> [Option<f64>; 12] {
        let peak_gib = self.peak_mb.map(|mib| mib / 1024.0);
        [
            Some(f64::from(self.context_length)),
            self.total_b,
            self.active_b,
            self.ttft_ms,
            self.request_tok_s,
            peak_gib,
            self.per_1k_j,
            self.tok_per_j,
            over(self.request_tok_s, self.active_b),
            over(over(Some(1000.0), self.ttft_ms), self.active_b),
            over(self.tok_per_j, self.active_b),
            over(self.request_tok_s, peak_gib),
        ]
    }
}

fn less(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? - b?)
}

/// `None` where there is nothing to divide by.
fn over(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a? / b?).filter(|ratio| ratio.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_core::row::{STUDY_APE_COLUMNS, STUDY_ENERGY_COLUMNS, STUDY_MEMORY_COLUMNS};
    use std::collections::BTreeMap;

    type Record = BTreeMap<String, String>;

    fn published(text: &str, columns: &[&str]) -> Vec<Record> {
        assert_eq!(text.lines().next().unwrap(), columns.join(","));
        csv::Reader::from_reader(text.as_bytes()).deserialize().map(Result::unwrap).collect()
    }

    fn number(row: &Record, column: &str) -> Option<f64> {
        row[column].parse().ok()
    }

    fn tokens(row: &Record, column: &str) -> u32 {
        row[column].parse().unwrap()
    }

    /// Holds what was computed against the published row, from `context_length` on.
    fn same(row: &Record, columns: &[&str], values: &[Option<f64>]) {
        let first = columns.iter().position(|c| *c == "context_length").unwrap();
        assert_eq!(columns[first..].len(), values.len());
        for (column, value) in columns[first..].iter().zip(values) {
            let (printed, value) = (number(row, column).unwrap(), value.unwrap());
            let off = (value - printed).abs() / printed.abs().max(1e-9);
            assert!(off < 1e-12, "{column}: {value} instead of {printed}");
        }
    }

    #[test]
    fn the_published_memory_table_comes_out_again() {
        let rows = published(
            include_str!("../../../../tests/golden/study/unified_memory.csv"),
            STUDY_MEMORY_COLUMNS,
        );
        assert_eq!(rows.len(), 12);
        for row in &rows {
            let mib = |stage: &str| Mib {
                alloc: number(row, &format!("{stage}_alloc_mb")),
                reserved: number(row, &format!("{stage}_reserved_mb")),
            };
            let memory = Memory {
                context_length: tokens(row, "context_length"),
                gen_tokens: tokens(row, "gen_tokens"),
                baseline: mib("baseline"),
                after_tokenize: mib("after_tokenize"),
                after_generate: mib("after_generate"),
                peak: mib("peak"),
                total_gpu_mb: number(row, "total_gpu_memory_mb"),
            };
            same(row, STUDY_MEMORY_COLUMNS, &memory.values());
        }
    }

    #[test]
    fn the_published_energy_table_comes_out_again() {
        let rows = published(
            include_str!("../../../../tests/golden/study/unified_energy.csv"),
            STUDY_ENERGY_COLUMNS,
        );
        assert_eq!(rows.len(), 12);
        for row in &rows {
            let energy = Energy {
                context_length: tokens(row, "context_length"),
                gen_tokens: tokens(row, "gen_tokens"),
                ttft_ms: number(row, "ttft_ms"),
                ttft_j: number(row, "ttft_joules"),
                request_tok_s: number(row, "TPOT_tokps"),
                avg_w: number(row, "avg_gpu_power_watts"),
                baseline_w: number(row, "baseline_gpu_power_watts"),
                util_gpu_pct: number(row, "avg_gpu_utilization_percent"),
                util_mem_pct: number(row, "avg_memory_utilization_percent"),
            };
            same(row, STUDY_ENERGY_COLUMNS, &energy.values());
        }
    }

    #[test]
    fn the_published_efficiency_table_comes_out_again_from_the_other_two() {
        let rows =
            published(include_str!("../../../../tests/golden/study/ape_analysis.csv"), STUDY_APE_COLUMNS);
        let memory = published(
            include_str!("../../../../tests/golden/study/unified_memory.csv"),
            STUDY_MEMORY_COLUMNS,
        );
        let energy = published(
            include_str!("../../../../tests/golden/study/unified_energy.csv"),
            STUDY_ENERGY_COLUMNS,
        );
        assert_eq!(rows.len(), 12);
        for row in &rows {
            let of = |other: &[Record], column: &str| {
                let same = |r: &&Record| {
                    r["model_short"] == row["model_id"] && r["context_length"] == row["context_length"]
                };
                number(other.iter().find(same).unwrap(), column)
            };
            let board = Energy {
                request_tok_s: of(&energy, "TPOT_tokps"),
                avg_w: of(&energy, "avg_gpu_power_watts"),
                ..Energy::default()
            };
            let ape = Ape {
                context_length: tokens(row, "context_length"),
                total_b: number(row, "total_params_B"),
                active_b: number(row, "active_params_B"),
                ttft_ms: number(row, "ttft_ms"),
                request_tok_s: number(row, "tpot_tokps"),
                peak_mb: of(&memory, "peak_alloc_mb"),
                per_1k_j: board.per_1k_j(),
                tok_per_j: board.tok_per_j(),
            };
            same(row, STUDY_APE_COLUMNS, &ape.values());
        }
    }

    #[test]
    fn what_is_missing_stays_missing_and_nothing_is_divided_by_zero() {
        let memory = Memory { context_length: 128, gen_tokens: 64, ..Memory::default() };
        assert_eq!(memory.values().iter().flatten().count(), 3, "tokens alone");
        let energy = Energy { request_tok_s: Some(0.0), avg_w: Some(100.0), ..Energy::default() };
        assert_eq!((energy.per_1k_j(), energy.tok_per_j()), (None, Some(0.0)));
        let ape = Ape { ttft_ms: Some(0.0), active_b: Some(3.6), ..Ape::default() };
        assert_eq!(ape.values()[9], None);
    }
}
