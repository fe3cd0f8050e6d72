//! Rows to files: exact text, hostile names, reproducible bytes, odd figures.
#![allow(clippy::unwrap_used)]

use bench_core::SCHEMA_VERSION;
use bench_core::metric::Metric;
use bench_core::row::{COLUMNS, Row, StudyLatencyRow};
use bench_report::{Format, ReportInputs, ReportPaths, RunInput, rebuild, render, unified};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const RUN: &str = "demo-20260102T030405Z-0123abcd";

/// A figure with its interval; an end that n cannot bound is `None`.
type Ends = (f64, Option<f64>, Option<f64>);

fn row(model: &str, prompt: u32, metric: Metric, stat: &str, figure: Option<Ends>) -> Row {
    let def = metric.def();
    Row {
        run_id: RUN.into(),
        target: "mock".into(),
        model: model.into(),
        prompt_tokens: prompt,
        output_tokens: 64,
        batch: 1,
        load: "batch".into(),
        concurrency: None,
        request_rate: None,
        metric: def.key,
        scope: String::new(),
        unit: def.unit,
        stat: stat.into(),
        value: figure.map(|f| f.0),
        ci_low: figure.and_then(|f| f.1),
        ci_high: figure.and_then(|f| f.2),
        instrument_error: None,
        ci_method: figure.map(|_| "order_statistic"),
        n: 10,
        missing: 0,
        missing_reason: String::new(),
        bounded: stat.starts_with('p').then_some(false),
        success_rate: Some(1.0),
        token_source: "token_ids",
        verdict: "VALID",
        verdict_reason: String::new(),
        client_verdict: String::new(),
        schema_version: SCHEMA_VERSION,
    }
}

/// The rows of a cell: medians with intervals, no p99 because n is 10.
fn cell(model: &str, prompt: u32, ttft: f64, tpot: f64) -> Vec<Row> {
    let around = |v: f64, low: f64, high: f64| Some((v, Some(v * low), Some(v * high)));
    vec![
        row(model, prompt, Metric::Ttft, "mean", around(ttft * 1.01, 0.96, 1.04)),
        row(model, prompt, Metric::Ttft, "p50", around(ttft, 0.97, 1.05)),
        row(model, prompt, Metric::Ttft, "p99", None),
        row(model, prompt, Metric::Tpot, "mean", around(tpot, 0.99, 1.01)),
        row(model, prompt, Metric::DecodeRate, "p50", around(1000.0 / tpot, 0.98, 1.02)),
        row(model, prompt, Metric::E2el, "p50", around(ttft + 63.0 * tpot, 0.99, 1.02)),
        row(model, prompt, Metric::SystemTokenRate, "value", Some((900.0 / tpot, None, None))),
    ]
}

fn invalid(mut rows: Vec<Row>, reason: &str) -> Vec<Row> {
    for row in &mut rows {
        row.verdict = "INVALID";
        row.verdict_reason = reason.into();
        row.success_rate = Some(0.9);
    }
    rows
}

fn run(rows: Vec<Row>) -> RunInput {
    RunInput {
        run_id: RUN.into(),
        study_name: "demo".into(),
        machine: "Example CPU, 2 cores, 8 GiB".into(),
        plan_hash: "0123abcd".into(),
        rows,
        study_rows: vec![StudyLatencyRow {
            model_short: "a".into(),
            model: "org/a".into(),
            model_type: "chat_template".into(),
            prompt_tokens: 128,
            gen_tokens: 64,
            ttft_median_ms: Some(35.911_560_058_593_75),
            p50_ms: Some(1611.0),
            p95_ms: None,
            p99_ms: None,
            tpot_tokps: Some(39.724_821_520_717_58),
            context_length: 128,
            ttft_ms: Some(35.911_560_058_593_75),
        }],
        ..RunInput::default()
    }
}

fn small() -> RunInput {
    let mut rows = invalid(cell("dense", 512, 111.6, 37.3), "output length 60.0 instead of 64");
    rows.extend(cell("dense", 128, 46.1, 37.25));
    rows.extend(cell("gpt-oss", 128, 35.911_560_058_593_75, 25.02));
    rows.extend(cell("gpt-oss", 512, 101.2, 25.05));
    run(rows)
}

/// Every file under `folder` with its bytes.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn report(runs: Vec<RunInput>) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let files =
        rebuild(&ReportInputs { runs, ..ReportInputs::default() }, &ReportPaths::under(folder.path()))
            .unwrap();
    let found = contents(folder.path());
    let told =
        files.results.len() + files.figures.len() + files.tables.len() + usize::from(files.page.is_some());
    assert_eq!(found.len(), told, "{:?}", found.keys());
    found
}

#[test]
fn tables_as_text() {
    insta::assert_snapshot!(render(Format::Table, &small()).unwrap(), @r#"
    Model      Prompt  Output  Batch   n  Success                  TTFT                  TPOT        Decode rate      E2EL  System token
                (tok)   (tok)                 (%)              p50 (ms)             mean (ms)        p50 (tok/s)  p50 (ms)  rate (tok/s)
    dense         128      64      1  10      100     46.1 [44.7, 48.4]  37.25 [36.88, 37.62]  26.8 [26.3, 27.4]      2393         24.16
    dense (a)     512      64      1  10     90.0  111.6 [108.3, 117.2]  37.30 [36.93, 37.67]  26.8 [26.3, 27.3]      2461         24.13
    gpt-oss       128      64      1  10      100     35.9 [34.8, 37.7]  25.02 [24.77, 25.27]  40.0 [39.2, 40.8]      1612         35.97
    gpt-oss       512      64      1  10      100   101.2 [98.2, 106.3]  25.05 [24.80, 25.30]  39.9 [39.1, 40.7]      1679         35.93

    (a) INVALID: output length 60.0 instead of 64
    "#);
    insta::assert_snapshot!(render(Format::Md, &small()).unwrap(), @r#"
    | Model | Prompt (tok) | Output (tok) | Batch | n | Success (%) | TTFT p50 (ms) | TPOT mean (ms) | Decode rate p50 (tok/s) | E2EL p50 (ms) | System token rate (tok/s) |
    | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
    | dense | 128 | 64 | 1 | 10 | 100 | 46.1 [44.7, 48.4] | 37.25 [36.88, 37.62] | 26.8 [26.3, 27.4] | 2393 | 24.16 |
    | dense (a) | 512 | 64 | 1 | 10 | 90.0 | 111.6 [108.3, 117.2] | 37.30 [36.93, 37.67] | 26.8 [26.3, 27.3] | 2461 | 24.13 |
    | gpt-oss | 128 | 64 | 1 | 10 | 100 | 35.9 [34.8, 37.7] | 25.02 [24.77, 25.27] | 40.0 [39.2, 40.8] | 1612 | 35.97 |
    | gpt-oss | 512 | 64 | 1 | 10 | 100 | 101.2 [98.2, 106.3] | 25.05 [24.80, 25.30] | 39.9 [39.1, 40.7] | 1679 | 35.93 |

    (a) INVALID: output length 60.0 instead of 64
    "#);
}

#[test]
fn table_as_latex() {
    let latex = render(Format::Latex, &small()).unwrap();
    let tabular = latex.find("\\begin{tabular}").unwrap();
    insta::assert_snapshot!(&latex[tabular..], @r#"
    \begin{tabular}{lrrr@{~}lr@{~}lr@{~}lrr}
    \toprule
    Model & Prompt & Success & \multicolumn{2}{c}{TTFT} & \multicolumn{2}{c}{TPOT} & \multicolumn{2}{c}{Decode rate} & E2EL & System token \\
     & (tok) & (\%) & \multicolumn{2}{c}{p50 (ms)} & \multicolumn{2}{c}{mean (ms)} & \multicolumn{2}{c}{p50 (tok/s)} & p50 (ms) & rate (tok/s) \\
    \midrule
    dense & 128 & 100 & 46.1 & {\tiny{}[44.7, 48.4]} & 37.25 & {\tiny{}[36.88, 37.62]} & 26.8 & {\tiny{}[26.3, 27.4]} & 2393 & 24.16 \\
    dense\textsuperscript{a} & 512 & 90.0 & 111.6 & {\tiny{}[108.3, 117.2]} & 37.30 & {\tiny{}[36.93, 37.67]} & 26.8 & {\tiny{}[26.3, 27.3]} & 2461 & 24.13 \\
    gpt-oss & 128 & 100 & 35.9 & {\tiny{}[34.8, 37.7]} & 25.02 & {\tiny{}[24.77, 25.27]} & 40.0 & {\tiny{}[39.2, 40.8]} & 1612 & 35.97 \\
    gpt-oss & 512 & 100 & 101.2 & {\tiny{}[98.2, 106.3]} & 25.05 & {\tiny{}[24.80, 25.30]} & 39.9 & {\tiny{}[39.1, 40.7]} & 1679 & 35.93 \\
    \bottomrule
    \end{tabular}

    \smallskip
    \parbox{\linewidth}{\scriptsize
    \textsuperscript{a}\,INVALID: output length 60.0 instead of 64.\\
    Run \texttt{demo-20260102T030405Z-0123abcd}, plan \texttt{0123abcd}, Example CPU, 2 cores, 8 GiB.
    TTFT: time to first token; TPOT: time per output token; E2EL: end-to-end latency.
    }
    \end{table*}
    "#);
    assert!(latex.contains("\\label{tab:demo-latency}"));
    assert!(latex.contains(" All rows: output 64~tok, batch 1, n 10. Brackets:"), "{latex}");
    assert!(!latex.contains("ITL"), "a column without any value is left out with its definition");
}

#[test]
fn a_table_wider_than_the_page_stands_in_panels() {
    let name = "a-model-with-a-name-of-some-length";
    let statistics =
        [(Metric::Ttft, "p50"), (Metric::Tpot, "mean"), (Metric::Tpot, "p50"), (Metric::DecodeRate, "p50")];
    let quantiles = ["p95", "p99"].map(|stat| (Metric::Ttft, stat));
    let totals = ["p50", "p95", "p99"].map(|stat| (Metric::E2el, stat));
    let all = statistics.into_iter().chain(quantiles).chain(totals);
    let value = Some((123_456.7, Some(123_400.1), Some(123_500.9)));
    let rows: Vec<Row> = all.map(|(metric, stat)| row(name, 128, metric, stat, value)).collect();
    let latex = render(Format::Latex, &run(rows)).unwrap();
    let panels = latex.matches("\\begin{tabular}").count();
    assert!(panels > 1, "{latex}");
    // Every panel says which model its rows are of, and every figure stands in one of them.
    assert_eq!(latex.matches(name).count(), panels, "{latex}");
    assert_eq!(latex.matches("& 123460").count(), 8, "{latex}");
}

#[test]
fn numbers_are_macros_that_latex_finds_by_their_keys() {
    let files = report(vec![small()]);
    let text = String::from_utf8(files["paper/tables/demo_numbers.tex"].clone()).unwrap();
    for (key, value) in [
        ("cells", "4"),
        ("invalid", "1"),
        ("prompts", "128, 512"),
        ("gpt-oss-p128-n64-b1/ttft-p50-ms", "35.9"),
        ("gpt-oss-p128-n64-b1/ttft-p50-ms-ci", "{[}34.8, 37.7{]}"),
        ("gpt-oss-p128-n64-b1/decode-p50-tok-s-unit", "tok/s"),
    ] {
        let line = format!("\\expandafter\\def\\csname ossb@demo@{key}\\endcsname{{{value}}}\n");
        assert!(text.contains(&line), "{line}{text}");
    }
    assert!(!text.contains("ttft-p99-ms\\endcsname"), "what n does not support has no macro");
}

#[test]
fn tables_as_csv() {
    let files = report(vec![small()]);
    let wide = String::from_utf8(files["results/wide_latency.csv"].clone()).unwrap();
    assert_eq!(wide, render(Format::Csv, &small()).unwrap());
    insta::assert_snapshot!(wide, @r#"
    run_id,target,model,prompt_tokens,output_tokens,batch,load,concurrency,request_rate,n,success_rate,token_source,verdict,verdict_reason,client_verdict,ttft_p50_ms,ttft_p50_ci_low_ms,ttft_p50_ci_high_ms,ttft_p95_ms,ttft_p99_ms,tpot_mean_ms,tpot_mean_ci_low_ms,tpot_mean_ci_high_ms,tpot_p50_ms,tpot_p50_ci_low_ms,tpot_p50_ci_high_ms,itl_p99_ms,decode_p50_tok_s,decode_p50_ci_low_tok_s,decode_p50_ci_high_tok_s,e2el_p50_ms,e2el_p95_ms,e2el_p99_ms,system_tok_s
    demo-20260102T030405Z-0123abcd,mock,dense,128,64,1,batch,,,10,1.0,token_ids,VALID,,,46.1,44.717,48.405,,,37.25,36.8775,37.6225,,,,,26.845637583892618,26.308724832214764,27.38255033557047,2392.85,,,24.161073825503355
    demo-20260102T030405Z-0123abcd,mock,dense,512,64,1,batch,,,10,0.9,token_ids,INVALID,output length 60.0 instead of 64,,111.6,108.252,117.17999999999999,,,37.3,36.927,37.672999999999995,,,,,26.809651474530835,26.273458445040216,27.345844504021454,2461.4999999999995,,,24.128686327077748
    demo-20260102T030405Z-0123abcd,mock,gpt-oss,128,64,1,batch,,,10,1.0,token_ids,VALID,,,35.91156005859375,34.83421325683594,37.70713806152344,,,25.02,24.7698,25.2702,,,,,39.96802557953637,39.168665067945646,40.7673860911271,1612.1715600585937,,,35.97122302158274
    demo-20260102T030405Z-0123abcd,mock,gpt-oss,512,64,1,batch,,,10,1.0,token_ids,VALID,,,101.2,98.164,106.26,,,25.05,24.799500000000002,25.3005,,,,,39.92015968063872,39.12175648702594,40.7185628742515,1679.3500000000001,,,35.92814371257485
    "#);
    let unified = String::from_utf8(files["results/unified.csv"].clone()).unwrap();
    let first_cell = unified.lines().take(8).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(first_cell, @r#"
    run_id,target,model,prompt_tokens,output_tokens,batch,load,concurrency,request_rate,metric,scope,unit,stat,value,ci_low,ci_high,instrument_error,ci_method,n,missing,missing_reason,bounded,success_rate,token_source,verdict,verdict_reason,client_verdict,schema_version
    demo-20260102T030405Z-0123abcd,mock,dense,128,64,1,batch,,,ttft_ms,,ms,mean,46.561,44.69856,48.42344,,order_statistic,10,0,,,1.0,token_ids,VALID,,,3
    demo-20260102T030405Z-0123abcd,mock,dense,128,64,1,batch,,,ttft_ms,,ms,p50,46.1,44.717,48.405,,order_statistic,10,0,,false,1.0,token_ids,VALID,,,3
    demo-20260102T030405Z-0123abcd,mock,dense,128,64,1,batch,,,ttft_ms,,ms,p99,,,,,,10,0,,false,1.0,token_ids,VALID,,,3
    demo-20260102T030405Z-0123abcd,mock,dense,128,64,1,batch,,,tpot_ms,,ms,mean,37.25,36.8775,37.6225,,order_statistic,10,0,,,1.0,token_ids,VALID,,,3
    demo-20260102T030405Z-0123abcd,mock,dense,128,64,1,batch,,,e2el_ms,,ms,p50,2392.85,2368.9215,2440.707,,order_statistic,10,0,,false,1.0,token_ids,VALID,,,3
    demo-20260102T030405Z-0123abcd,mock,dense,128,64,1,batch,,,decode_tok_s,,tok/s,p50,26.845637583892618,26.308724832214764,27.38255033557047,,order_statistic,10,0,,false,1.0,token_ids,VALID,,,3
    demo-20260102T030405Z-0123abcd,mock,dense,128,64,1,batch,,,system_tok_s,,tok/s,value,24.161073825503355,,,,order_statistic,10,0,,,1.0,token_ids,VALID,,,3
    "#);
}

#[test]
fn unified_rows_read_back_and_missing_stays_empty() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/unified.csv");
    let mut rows = small().rows;
    let hostile = "a,\"b\"\n_&%$#{}~^\\ c";
    for (i, value) in [0.1 + 0.2, 1e-300, 1.797e308, -0.0, 5e-324, 128.0].into_iter().enumerate() {
        rows.push(row(hostile, i as u32 + 1, Metric::Itl, "p99.9", Some((value, None, Some(value)))));
    }
    rows.push(row(hostile, 1, Metric::Failures, "timeout", Some((3.0, None, None))));
    rows.push(Row { value: Some(f64::NAN), ..row(hostile, 9, Metric::Ttft, "max", None) });
    rows.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(1));
    unified::write(&path, &rows).unwrap();

    let text = fs::read_to_string(&path).unwrap();
    let header = COLUMNS.iter().map(|c| c.0).collect::<Vec<_>>().join(",");
    assert!(text.starts_with(&format!(
        "{header}\n{RUN},mock,\"a,\"\"b\"\"\n_&%$#{{}}~^\\ c\",1,64,1,batch,,,itl_ms,,ms,p99.9,"
    )));
    assert!(
        text.contains(&format!(
            ",128,64,1,batch,,,ttft_ms,,ms,p99,,,,,,10,0,,false,1.0,token_ids,VALID,,,{SCHEMA_VERSION}\n"
        )),
        "{text}"
    );
    assert!(
        text.contains(&format!(",ttft_ms,,ms,max,,,,,,10,0,,,1.0,token_ids,VALID,,,{SCHEMA_VERSION}\n")),
        "NaN is missing\n{text}"
    );

    let mut back = unified::read(&path).unwrap();
    assert_eq!(back.len(), rows.len());
    let key = |r: &Row| (r.model.clone(), r.prompt_tokens, r.metric, r.stat.clone());
    for row in &mut rows {
        row.value = row.value.filter(|v| v.is_finite());
    }
    rows.sort_by_key(key);
    back.sort_by_key(key);
    assert_eq!(back, rows);
    let bits = |rows: &[Row]| rows.iter().map(|r| r.value.map(f64::to_bits)).collect::<Vec<_>>();
    assert_eq!(bits(&back), bits(&rows));
}

#[test]
fn a_table_that_cannot_be_read_is_told_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unified.csv");
    unified::write(
        &path,
        &[
            row("two\nlines", 1, Metric::Ttft, "p50", Some((1.5, None, None))),
            row("z", 2, Metric::Ttft, "p50", Some((2.5, None, None))),
        ],
    )
    .unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let now = format!(",VALID,,,{SCHEMA_VERSION}\n");
    let other = format!("line 2, column `schema_version`: \"99\" is not {SCHEMA_VERSION}, the version");
    for (from, to, expected) in [
        ("2.5", "2,5", "is not a table"),
        ("2.5", "fast", "unified.csv, line 4, column `value`: \"fast\" is not a finite number"),
        ("2.5", "NaN", "line 4, column `value`: \"NaN\" is not a finite number"),
        ("1.5", "x", "line 2, column `value`: \"x\""),
        (",z,2,", ",z,-2,", "line 4, column `prompt_tokens`: \"-2\" is not a whole number"),
        (",z,2,", ",,2,", "line 4, column `model`: \"\" is not given"),
        (&now, ",VALID,,,99\n", &other),
        (",1,batch,", ",1,,", "line 2, column `load`: \"\" is not given"),
        (",token_ids,", ",guess,", "column `token_source`: \"guess\" is not `usage`, `token_ids`"),
        (",VALID,", ",MAYBE,", "column `verdict`: \"MAYBE\" is not `VALID`, `INVALID`"),
        ("ttft_ms,,ms", "ttft_ms,,s", "column `unit`: \"s\" is not `ms`"),
        ("ttft_ms,,ms", "ttft,,ms", "unknown metric \"ttft\"; valid: schedule_lag_ms"),
        (",p50,", ",p,", "column `stat`: \"p\" is not `mean`"),
        (",success_rate,", ",rate,", "no column `success_rate`, the columns are run_id, target"),
        (good.as_str(), "", "is not a table"),
    ] {
        fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let error = unified::read(&path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("ossbench report"), "{from} {to}: {error}");
    }
    let error = unified::read(&folder.path().join("none.csv")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read") && error.contains("none.csv"), "{error}");
}

#[test]
fn the_same_rows_in_any_order_give_the_same_bytes() {
    let first = report(vec![small()]);
    assert!(first.contains_key("results/report.html") && first.contains_key("figs/demo_ttft.pdf"));
    let mut shuffled = small();
    shuffled.rows.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(7));
    assert_ne!(shuffled.rows, small().rows);
    for again in [report(vec![small()]), report(vec![shuffled])] {
        for (name, bytes) in &first {
            assert!(again[name] == *bytes, "{name} differs");
        }
    }
}

#[test]
fn figures_and_table_show_the_latest_run_and_the_csvs_all() {
    let mut old = small();
    old.run_id = "demo-20251231T235959Z-ffffffff".into();
    for row in &mut old.rows {
        row.run_id.clone_from(&old.run_id);
    }
    let both = report(vec![small(), old.clone()]);
    assert!(both.contains_key("results/report.html") && both.contains_key("figs/demo_ttft.pdf"));
    for (name, bytes) in &both {
        let text = String::from_utf8_lossy(bytes);
        let (new, old) = (text.contains(RUN), text.contains(&old.run_id));
        let expected = match name.as_str() {
            "results/unified.csv" | "results/wide_latency.csv" => (true, true),
            // Of no run.
            "paper/tables/constants.tex" | "paper/tables/definitions.tex" => (false, false),
            name if matches!(name.rsplit_once('.'), Some((_, "svg" | "tex"))) => (true, false),
            _ => continue,
        };
        assert_eq!((new, old), expected, "{name}");
    }
    assert_eq!(report(vec![old, small()]), both);
}

#[test]
fn the_study_table_has_the_headers_of_the_study() {
    let files = report(vec![small()]);
    let text = String::from_utf8(files["results/study_unified_latency.csv"].clone()).unwrap();
    assert_eq!(
        text,
        "model_short,model,model_type,prompt_tokens,gen_tokens,TTFT_ms,p50_ms,p95_ms,p99_ms,TPOT_tokps,\
         context_length,ttft_ms\n\
         a,org/a,chat_template,128,64,35.91156005859375,1611.0,,,39.72482152071758,128,35.91156005859375\n"
    );
}

fn svg(run: RunInput, name: &str) -> String {
    String::from_utf8(report(vec![run])[&format!("figs/demo_{name}.svg")].clone()).unwrap()
}

#[test]
fn a_figure_shows_every_series_and_every_point() {
    for name in ["ttft", "decode_rate"] {
        let svg = svg(small(), name);
        for label in
            ["gpt-oss", "dense", "Prompt tokens", "n = 10 per point", "hollow: INVALID", RUN, "Example CPU"]
        {
            assert!(svg.contains(label), "{name}: {label}");
        }
        // Four points and two entries of the legend, each with its rim; the INVALID one has a hole.
        assert_eq!(svg.matches("<polygon").count(), 2 * (4 + 2) + 1, "{name}");
        assert!(svg.contains("width=\"3.300in\""));
    }
    assert!(svg(small(), "ttft").contains("Time to first token (ms), median"));
    let mut more = small();
    let others: Vec<Row> =
        more.rows.iter().cloned().map(|r| Row { output_tokens: 8, batch: 4, ..r }).collect();
    more.rows.extend(others);
    let svg = svg(more, "ttft");
    for label in ["gpt-oss, 8 out, batch 4", "gpt-oss, 64 out, batch 1", "dense, 8 out, batch 4"] {
        assert!(svg.contains(label), "{label}");
    }
}

/// The rows of `cell` under a closed loop.
fn closed(rows: Vec<Row>, concurrency: u32) -> Vec<Row> {
    let load = |r: Row| Row {
        target: "http".into(),
        load: "closed".into(),
        concurrency: Some(concurrency),
        client_verdict: "client_ok".into(),
        ..r
    };
    rows.into_iter().map(load).collect()
}

fn open(rows: Vec<Row>, kind: &str, rate: f64, most: Option<u32>) -> Vec<Row> {
    let load = |r: Row| Row { load: kind.into(), concurrency: most, request_rate: Some(rate), ..r };
    rows.into_iter().map(load).collect()
}

#[test]
fn levels_of_a_load_are_rows_of_their_own() {
    let mut rows = closed(cell("a", 128, 80.0, 20.0), 64);
    rows.extend(closed(cell("a", 128, 40.0, 10.0), 8));
    rows.extend(open(cell("a", 128, 50.0, 11.0), "poisson", 2.5, None));
    let mut overloaded = open(cell("a", 128, 900.0, 12.0), "constant", 10.0, Some(32));
    for row in &mut overloaded {
        row.verdict_reason = "overloaded".into();
    }
    rows.extend(overloaded);
    insta::assert_snapshot!(render(Format::Table, &run(rows.clone())).unwrap(), @r#"
    Model  Prompt  Output                           Load   n  Success               TTFT                  TPOT          Decode rate      E2EL  System token
            (tok)   (tok)                                         (%)           p50 (ms)             mean (ms)          p50 (tok/s)  p50 (ms)  rate (tok/s)
    a         128      64                            c=8  10      100  40.0 [38.8, 42.0]   10.00 [9.90, 10.10]  100.0 [98.0, 102.0]       670         90.00
    a         128      64                           c=64  10      100  80.0 [77.6, 84.0]  20.00 [19.80, 20.20]    50.0 [49.0, 51.0]      1340         45.00
    a (a)     128      64  10 req/s constant, at most 32  10      100     900 [873, 945]  12.00 [11.88, 12.12]    83.3 [81.7, 85.0]      1656         75.00
    a         128      64                      2.5 req/s  10      100  50.0 [48.5, 52.5]  11.00 [10.89, 11.11]    90.9 [89.1, 92.7]       743         81.82

    (a) Note: overloaded
    "#);
    let csv = render(Format::Csv, &run(rows.clone())).unwrap();
    assert!(
        csv.contains(",mock,a,128,64,1,constant,32,10.0,10,1.0,token_ids,VALID,overloaded,,900.0,"),
        "{csv}"
    );
    assert!(csv.contains(",http,a,128,64,1,closed,8,,10,1.0,token_ids,VALID,,client_ok,40.0,"), "{csv}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unified.csv");
    rows[0].instrument_error = Some(0.125);
    unified::write(&path, &rows).unwrap();
    let back = unified::read(&path).unwrap();
    assert_eq!(back.len(), rows.len());
    assert!(rows.iter().all(|r| back.contains(r)), "{back:?}");
    let mut levels: Vec<_> = back.iter().map(|r| r.concurrency).collect();
    levels.dedup();
    assert_eq!(levels, [Some(8), Some(64), Some(32), None], "closed, constant, poisson; by level");
    rows.extend(closed(cell("a", 128, 41.0, 10.0), 8));
    let error = render(Format::Csv, &run(rows)).unwrap_err().to_string();
    assert!(error.contains("128 prompt and 64 output tokens, c=8 in run"), "{error}");
}

#[test]
fn a_sweep_of_the_load_is_drawn_over_the_load() {
    let sweep = |level: fn(Vec<Row>, u32) -> Vec<Row>| {
        let rows = [1, 8, 64].into_iter().flat_map(|c| level(cell("a", 128, 40.0 + f64::from(c), 10.0), c));
        rows.collect::<Vec<_>>()
    };
    let closed_loop = svg(run(sweep(closed)), "ttft");
    for label in ["Requests in flight", "128 prompt tokens", "64 output tokens", ">\n64\n<", ">\na\n<"] {
        assert!(closed_loop.contains(label), "{label} in {closed_loop}");
    }
    assert_eq!(closed_loop.matches("<polygon").count(), 2 * (3 + 1), "one line of three points");
    let open_loop = svg(run(sweep(|rows, c| open(rows, "poisson", f64::from(c) / 2.0, None))), "ttft");
    for label in ["Request rate (req/s)", "poisson", ">\n0.5\n<"] {
        assert!(open_loop.contains(label), "{label}");
    }
    // With several prompt lengths each level is a line.
    let mut both = sweep(closed);
    both.extend(closed(cell("a", 512, 90.0, 11.0), 8));
    let both = svg(run(both), "ttft");
    for label in ["Prompt tokens", "a, c=1<", "a, c=8", "a, c=64"] {
        assert!(both.contains(label.trim_end_matches('<')), "{label}");
    }
}

#[test]
fn odd_results_give_a_picture_too() {
    let missing = |m| row("only", 128, m, "p50", None);
    let svg_of = |rows| svg(run(rows), "ttft");
    assert!(svg_of(vec![missing(Metric::Ttft), missing(Metric::DecodeRate)]).contains("no valid data"));
    assert!(svg_of(Vec::new()).contains("no valid data"));
    assert_eq!(svg_of(cell("only", 1, 0.5, 1.0)).matches("<polygon").count(), 4);
    svg_of([cell("a", 1, 1e-9, 1e-9), cell("a", u32::MAX, 1e15, 1e15)].concat());
    svg_of(vec![row("zero", 0, Metric::Ttft, "p50", Some((0.0, Some(-1.0), None)))]);
    let many: Vec<Row> =
        (0..40).flat_map(|i| cell(&format!("model-{i:02}"), 100 + i, 10.0, f64::from(i) + 1.0)).collect();
    assert!(svg_of(many).contains("model-39"));
    let odd = svg_of(cell(&format!("<&\"\n{}", "wide ".repeat(60)), 1, 1.0, 1.0));
    assert!(odd.contains("&lt;&amp;&quot;") && !odd.contains("<&"), "{odd}");
}

#[test]
fn a_png_is_wide_enough_to_print() {
    let files = report(vec![small()]);
    let png = &files["figs/demo_ttft.png"];
    assert_eq!(png[..8], *b"\x89PNG\r\n\x1a\n");
    let width = u32::from_be_bytes(png[16..20].try_into().unwrap());
    assert!(width >= 1200 && png.windows(4).any(|w| w == b"pHYs"), "{width}");
}

#[test]
fn two_rows_for_one_figure_are_refused() {
    let mut twice = small();
    twice.rows.push(Row { value: Some(1.0), ..twice.rows[0].clone() });
    let error = render(Format::Csv, &twice).unwrap_err().to_string();
    assert!(error.starts_with("two rows for ttft_ms mean of model dense, 512 prompt"), "{error}");
}

#[test]
fn a_place_that_cannot_be_written_is_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("figs"), "").unwrap();
    let inputs = ReportInputs { runs: vec![small()], ..ReportInputs::default() };
    let error = rebuild(&inputs, &ReportPaths::under(folder.path())).unwrap_err().to_string();
    assert!(error.contains("demo_ttft.svg") && error.contains("a file stands where a folder"), "{error}");
    if Path::new("/dev/full").exists() {
        let full = std::io::Write::write_all(&mut fs::File::create("/dev/full").unwrap(), b"x").unwrap_err();
        let error = bench_report::Error::Write { path: "x.csv".into(), source: full }.to_string();
        assert!(error.contains("disk is full"), "{error}");
    }
}

#[test]
fn json_has_null_for_what_is_missing() {
    let json: serde_json::Value = serde_json::from_str(&render(Format::Json, &small()).unwrap()).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 4);
    let (first, lines) = (&json[0], render(Format::Jsonl, &small()).unwrap());
    assert_eq!((&first["model"], &first["ttft_p50_ms"]), (&"dense".into(), &46.1.into()));
    assert!(first["ttft_p99_ms"].is_null() && first.as_object().unwrap().contains_key("ttft_p99_ms"));
    for (i, line) in lines.lines().enumerate() {
        assert_eq!(serde_json::from_str::<serde_json::Value>(line).unwrap(), json[i]);
    }
}

#[test]
fn formats_are_known_by_name() {
    for (format, name) in Format::ALL {
        assert_eq!(name.parse::<Format>().unwrap(), format);
    }
    let error = "xml".parse::<Format>().unwrap_err().to_string();
    assert_eq!(error, "unknown format \"xml\"; valid: table, md, csv, json, jsonl, latex");
}

#[test]
fn hostile_names_stay_text_in_latex_and_markdown() {
    let name = "a_b & 50% $x$ #1 {y} ~^\\ [z] -- <w>|\n*é漢";
    let hostile = run(invalid(cell(name, 1, 1.0, 1.0), "50 % & more"));
    let latex = render(Format::Latex, &hostile).unwrap();
    let expected = r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{} {[}z{]} -{-} \textless{}w\textgreater{}\textbar{} {*}é\texttt{U+6F22}\textsuperscript{a} & 1 &";
    assert!(latex.contains(expected), "{latex}");
    assert!(latex.contains(r"INVALID: 50 \% \& more."), "{latex}");
    let markdown = render(Format::Md, &hostile).unwrap();
    assert_eq!(markdown.lines().take_while(|l| l.starts_with('|')).count(), 3, "{markdown}");
    assert!(markdown.contains(r"a\_b \& 50% $x$ \#1 {y} \~^\\ \[z\] -- \<w\>\| \*é漢 (a) |"), "{markdown}");
}
