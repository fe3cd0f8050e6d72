//! One ablation as a table: ours with intervals and ratios, and the study's columns with its formulas.
//!
//! `tokps` of the study is of prefill and decode together; the decode rate stands beside it in ours.

use super::figures::{Figure, Measured, Of};
use super::variants::{Ablated, Refused};
use crate::args::{AblateArgs, Ablation};
use crate::cmd::sheet::{Sheet, csv_line, figure, with_interval};
use serde_json::{Value, json};

const COLUMNS: [&str; 24] = [
    "ablation",
    "variant",
    "run_id",
    "model",
    "label",
    "prompt_tokens",
    "output_tokens",
    "batch",
    "n",
    "ttft_p50_ms",
    "ttft_p50_ci_low",
    "ttft_p50_ci_high",
    "decode_p50_tok_s",
    "decode_p50_ci_low",
    "decode_p50_ci_high",
    "prefill_decode_mean_tok_s",
    "decode_ratio",
    "decode_ratio_low",
    "decode_ratio_high",
    "prefill_decode_ratio",
    "runs",
    "verdict",
    "reason",
    "first_variant",
];

/// The study's name of the file.
pub(super) fn study_name(ablation: Ablation) -> &'static str {
    match ablation {
        Ablation::Decoding => "decoding_parameters",
        Ablation::Precision => "quantization_effects",
        Ablation::ExpertMode => "expert_mode",
        Ablation::Context => "context_scaling",
        Ablation::Server => "server_comparison",
        Ablation::Batch => "batch_size",
    }
}

/// Figures of the first variant, and those of others over them.
struct Ratio {
    decode: Figure,
    runs: Option<f64>,
}

impl Ratio {
    /// The interval joins the outermost ends of both, so that it is wider than 95 % would need.
    fn of(measured: &Measured, first: &Measured) -> Self {
        let over = |a: Option<f64>, b: Option<f64>| a.zip(b.filter(|b| *b > 0.0)).map(|(a, b)| a / b);
        let (own, base) = (&measured.decode_tok_s, &first.decode_tok_s);
        let same = std::ptr::eq(measured, first);
        Self {
            decode: Figure {
                value: over(own.value, base.value),
                low: over(own.low, base.high).filter(|_| !same),
                high: over(own.high, base.low).filter(|_| !same),
            },
            runs: over(measured.runs.tokps.mean, first.runs.tokps.mean),
        }
    }
}

pub(super) fn sheet(ablated: &Ablated, measured: &[Measured]) -> Sheet {
    let head = [
        "variant",
        "n",
        "TTFT p50 ms",
        "decode p50 tok/s",
        "ratio",
        "prefill+decode mean tok/s",
        "ratio",
        "remark",
    ];
    let mut sheet = Sheet {
        title: ablated.ablation.key().to_owned(),
        head: head.map(str::to_owned).to_vec(),
        columns: COLUMNS.map(str::to_owned).to_vec(),
        notes: notes(ablated, measured),
        ..Sheet::default()
    };
    for one in measured {
        let ratio = Ratio::of(one, &measured[0]);
        sheet.lines.push(line(one, &ratio));
        sheet.values.push(values(ablated.ablation, one, &ratio, &measured[0]));
    }
    for refused in &ablated.refused {
        let mut line = vec!["-".to_owned(); head.len()];
        line[0].clone_from(&refused.name);
        line[head.len() - 1] = format!("not run: {}", refused.reason);
        sheet.lines.push(line);
        sheet.values.push(refused_values(ablated.ablation, refused));
    }
    sheet
}

fn notes(ablated: &Ablated, measured: &[Measured]) -> Vec<String> {
    let mut notes = ablated.notes.clone();
    if measured.len() > 1 {
        notes.push(format!(
            "ratios to {}; brackets are 95 % intervals, those of a ratio join the outermost ends of both; \
             prefill+decode is the study's tok/s: tokens over the time from the call to the last token{}",
            measured[0].variant.name,
            if ablated.ablation == Ablation::Batch { ", of all requests of a batch together" } else { "" }
        ));
    }
    notes
}

fn line(one: &Measured, ratio: &Ratio) -> Vec<String> {
    let with = |f: &Figure| with_interval(f.value, f.low, f.high);
    let remark = match (one.verdict.as_str(), one.reason.as_str()) {
        ("VALID", reason) => reason.to_owned(),
        (verdict, reason) => format!("{verdict}: {reason}"),
    };
    vec![
        one.variant.name.clone(),
        one.n.to_string(),
        with(&one.ttft_ms),
        with(&one.decode_tok_s),
        with(&ratio.decode),
        figure(one.runs.tokps.mean),
        figure(ratio.runs),
        remark,
    ]
}

fn values(ablation: Ablation, one: &Measured, ratio: &Ratio, first: &Measured) -> Vec<Value> {
    let of = |f: &Figure| [f.value, f.low, f.high].map(|v| json!(v));
    let mut values = vec![
        json!(ablation.key()),
        json!(one.variant.name),
        json!(one.run_id),
        json!(one.model_id),
        json!(one.variant.label),
        json!(one.variant.prompt_tokens),
        json!(one.output_tokens),
        json!(one.variant.batch),
        json!(one.n),
    ];
    values.extend(of(&one.ttft_ms));
    values.extend(of(&one.decode_tok_s));
    values.push(json!(one.runs.tokps.mean));
    values.extend(of(&ratio.decode));
    values.extend([
        json!(ratio.runs),
        json!(one.runs.number),
        json!(one.verdict),
        json!(one.reason),
        json!(first.variant.name),
    ]);
    values
}

fn refused_values(ablation: Ablation, refused: &Refused) -> Vec<Value> {
    let value = |column: &&str| match *column {
        "ablation" => json!(ablation.key()),
        "variant" => json!(refused.name),
        "prompt_tokens" if ablation == Ablation::Context => json!(refused.level),
        "batch" if ablation == Ablation::Batch => json!(refused.level),
        "verdict" => json!("NOT_RUN"),
        "reason" => json!(refused.reason),
        _ => Value::Null,
    };
    COLUMNS.iter().map(value).collect()
}

/// The study's file: its columns in its order. Only its precision table has a place for what was not run.
pub(super) fn study_csv(args: &AblateArgs, ablated: &Ablated, measured: &[Measured]) -> String {
    let columns: Vec<&str> = study_columns(ablated.ablation);
    let mut text = csv_line(&columns.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>());
    for one in measured {
        let fields: Vec<String> = columns.iter().map(|column| study_field(column, one)).collect();
        text.push_str(&csv_line(&fields));
    }
    let refused = ablated.refused.iter().filter(|_| ablated.ablation == Ablation::Precision);
    for refused in refused {
        let field = |column: &&str| match *column {
            "error" => refused.reason.clone(),
            "max_new_tokens" => args.output_tokens.to_string(),
            "model" => args.model.clone(),
            "precision" => refused.study_name.clone(),
            _ => String::new(),
        };
        text.push_str(&csv_line(&columns.iter().map(field).collect::<Vec<_>>()));
    }
    text
}

/// Headers exactly as in the study's files; those of expert mode and batch, which it does not have, in the same manner.
fn study_columns(ablation: Ablation) -> Vec<&'static str> {
    let text = match ablation {
        Ablation::Decoding => {
            "decoding_method,max_new_tokens,mean_new_tokens,mean_time_s,mean_tokps,model,p50_new_tokens,\
             p50_time_s,p50_tokps,p95_time_s,p95_tokps,runs,throughput_scope"
        }
        Ablation::Precision => {
            "error,max_new_tokens,mean_new_tokens,mean_time_s,mean_tokps,model,p50_new_tokens,p50_time_s,\
             p50_tokps,p95_time_s,p95_tokps,precision,runs,throughput_scope"
        }
        Ablation::ExpertMode => {
            "expert_mode,max_new_tokens,mean_new_tokens,mean_time_s,mean_tokps,model,p50_new_tokens,\
             p50_time_s,p50_tokps,p95_time_s,p95_tokps,runs,throughput_scope"
        }
        Ablation::Context => {
            "max_new_tokens,mean_new_tokens,mean_time_s,mean_tokps,measured_context_tokens,model,\
             p50_new_tokens,p50_time_s,p50_tokps,p95_time_s,p95_tokps,runs,target_context_length,\
             throughput_scope"
        }
        Ablation::Server => {
            "framework,max_new_tokens,mean_new_tokens,mean_time_s,mean_tokps,model,p50_new_tokens,\
             p50_time_s,p50_tokps,p95_time_s,p95_tokps,runs,throughput_scope"
        }
        Ablation::Batch => {
            "batch_size,max_new_tokens,mean_new_tokens,mean_time_s,mean_tokps,model,p50_new_tokens,\
             p50_time_s,p50_tokps,p95_time_s,p95_tokps,runs,throughput_scope"
        }
    };
    text.split(',').collect()
}

fn study_field(column: &str, one: &Measured) -> String {
    // With a decimal point where a number is whole, as the study's files have it.
    let real = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:?}"));
    let whole = |value: Option<f64>| match value {
        Some(v) if v.fract() == 0.0 => format!("{v:.0}"),
        other => real(other),
    };
    let runs = &one.runs;
    let of = |of: &Of, stat: &str| match stat {
        "mean" => of.mean,
        "p50" => of.p50,
        _ => of.p95,
    };
    match column {
        "decoding_method" | "precision" | "expert_mode" | "framework" => one.variant.study_name.clone(),
        "batch_size" => one.variant.batch.to_string(),
        "max_new_tokens" => (u64::from(one.output_tokens) * u64::from(one.variant.batch)).to_string(),
        "measured_context_tokens" => whole(runs.context_tokens),
        "target_context_length" => one.variant.prompt_tokens.to_string(),
        "model" => one.model_id.clone(),
        "runs" => runs.number.to_string(),
        "throughput_scope" => "prefill+decode".to_owned(),
        "mean_new_tokens" => real(runs.new_tokens.mean),
        "p50_new_tokens" => whole(runs.new_tokens.p50),
        _ => match column.split_once('_') {
            Some((stat, "time_s")) => real(of(&runs.time_s, stat)),
            Some((stat, "tokps")) => real(of(&runs.tokps, stat)),
            _ => String::new(),
        },
    }
}
