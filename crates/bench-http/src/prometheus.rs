//! The text that `/metrics` answers with, and the names that this project has for what it says.
//!
//! Reads one text to values; when it is asked for, and what the values mean for a run, is the caller's
//! matter. What is malformed is skipped and counted: a server's figures never end a run.

use std::collections::BTreeMap;

/// Lines beyond this are not read: a server with a thousand histograms has some ten thousand.
const MOST_LINES: usize = 200_000;
/// A line longer than this is malformed.
const LONGEST_LINE_BYTES: usize = 16 * 1024;

/// One line of a text: a name, its labels and a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    pub name: &'a str,
    /// In the order of the line; escapes are resolved.
    pub labels: Vec<(&'a str, String)>,
    pub value: f64,
}

/// A text as it was read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Exposition<'a> {
    pub samples: Vec<Sample<'a>>,
    /// Lines that are neither comment nor sample, and those beyond the bound.
    pub malformed: usize,
}

/// How several series of one metric (ranks, engines, modes) become one figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    Sum,
    /// For shares: the fullest.
    Largest,
}

/// A server's name, this project's name, and how series are joined.
struct Known(&'static str, &'static str, Join);

/// vLLM's configuration of its cache stands in the labels of a figure that is always 1. Read as figures of its own:
/// tokens of the longest sequences that the whole cache holds (from May 2026 on), and blocks times their size.
/// Where layers with and without a window share the blocks, the latter is a multiple of the former.
const CACHE_INFO: &str = "vllm:cache_config_info";
const CACHE_INFO_TOKENS: &str = "vllm:cache_config_info{kv_cache_size_tokens}";
const CACHE_INFO_BLOCKS: &str = "vllm:cache_config_info{num_gpu_blocks * block_size}";

/// Names by server. vLLM: its "Production Metrics" page, the names of V1 first and those before; `SGLang`:
/// its "Production Metrics" page; llama.cpp: what its server writes (`tools/server`).
const KNOWN: &[Known] = &[
    Known("vllm:num_requests_running", "requests_running", Join::Sum),
    Known("vllm:num_requests_waiting", "requests_waiting", Join::Sum),
    Known("vllm:kv_cache_usage_perc", "kv_cache_usage", Join::Largest),
    Known("vllm:gpu_cache_usage_perc", "kv_cache_usage", Join::Largest),
    Known(CACHE_INFO_TOKENS, "kv_capacity_tokens", Join::Largest),
    Known(CACHE_INFO_BLOCKS, "kv_block_tokens", Join::Largest),
    Known("vllm:prompt_tokens_total", "prompt_tokens_total", Join::Sum),
    Known("vllm:generation_tokens_total", "generation_tokens_total", Join::Sum),
    Known("vllm:prefix_cache_queries_total", "prefix_cache_queries_total", Join::Sum),
    Known("vllm:prefix_cache_hits_total", "prefix_cache_hits_total", Join::Sum),
    Known("vllm:gpu_prefix_cache_queries_total", "prefix_cache_queries_total", Join::Sum),
    Known("vllm:gpu_prefix_cache_hits_total", "prefix_cache_hits_total", Join::Sum),
    Known("vllm:num_preemptions_total", "preemptions_total", Join::Sum),
    Known("vllm:time_to_first_token_seconds_sum", "ttft_seconds_sum", Join::Sum),
    Known("vllm:time_to_first_token_seconds_count", "ttft_seconds_count", Join::Sum),
    Known("vllm:inter_token_latency_seconds_sum", "itl_seconds_sum", Join::Sum),
    Known("vllm:inter_token_latency_seconds_count", "itl_seconds_count", Join::Sum),
    Known("vllm:time_per_output_token_seconds_sum", "itl_seconds_sum", Join::Sum),
    Known("vllm:time_per_output_token_seconds_count", "itl_seconds_count", Join::Sum),
    Known("vllm:request_queue_time_seconds_sum", "queue_seconds_sum", Join::Sum),
    Known("vllm:request_queue_time_seconds_count", "queue_seconds_count", Join::Sum),
    Known("vllm:e2e_request_latency_seconds_sum", "e2e_seconds_sum", Join::Sum),
    Known("vllm:e2e_request_latency_seconds_count", "e2e_seconds_count", Join::Sum),
    Known("sglang:num_running_reqs", "requests_running", Join::Sum),
    Known("sglang:num_queue_reqs", "requests_waiting", Join::Sum),
    Known("sglang:token_usage", "kv_cache_usage", Join::Largest),
    Known("sglang:max_total_num_tokens", "kv_capacity_tokens", Join::Largest),
    Known("sglang:prompt_tokens_total", "prompt_tokens_total", Join::Sum),
    Known("sglang:generation_tokens_total", "generation_tokens_total", Join::Sum),
    Known("sglang:cached_tokens_total", "prefix_cache_hits_total", Join::Sum),
    Known("sglang:num_retractions_total", "preemptions_total", Join::Sum),
    Known("sglang:time_to_first_token_seconds_sum", "ttft_seconds_sum", Join::Sum),
    Known("sglang:time_to_first_token_seconds_count", "ttft_seconds_count", Join::Sum),
    Known("sglang:inter_token_latency_seconds_sum", "itl_seconds_sum", Join::Sum),
    Known("sglang:inter_token_latency_seconds_count", "itl_seconds_count", Join::Sum),
    Known("sglang:queue_time_seconds_sum", "queue_seconds_sum", Join::Sum),
    Known("sglang:queue_time_seconds_count", "queue_seconds_count", Join::Sum),
    Known("sglang:e2e_request_latency_seconds_sum", "e2e_seconds_sum", Join::Sum),
    Known("sglang:e2e_request_latency_seconds_count", "e2e_seconds_count", Join::Sum),
    Known("llamacpp:requests_processing", "requests_running", Join::Sum),
    Known("llamacpp:requests_deferred", "requests_waiting", Join::Sum),
    Known("llamacpp:kv_cache_usage_ratio", "kv_cache_usage", Join::Largest),
    Known("llamacpp:prompt_tokens_total", "prompt_tokens_total", Join::Sum),
    Known("llamacpp:tokens_predicted_total", "generation_tokens_total", Join::Sum),
    Known("llamacpp:prompt_tokens_cached_total", "prefix_cache_hits_total", Join::Sum),
];

/// This project's names of the figures.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = KNOWN.iter().map(|known| known.1).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The figures of `text` under this project's names; `model` chooses among several served models. Also how
/// many lines were malformed. A figure that is no number (`NaN`) is left out.
pub fn figures(text: &str, model: &str) -> (BTreeMap<String, f64>, usize) {
    let Exposition { samples, malformed } = parse(text);
    let of = |sample: &Sample| {
        let label = sample.labels.iter().find(|(name, _)| matches!(*name, "model_name" | "model"));
        label.map(|(_, value)| value.clone())
    };
    // A server that names its model in another way than the API does has one model only.
    let filter = samples.iter().any(|s| of(s).as_deref() == Some(model));
    // Per of our names: the server's name that it was read from, and the value.
    let mut found: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    let readings = samples.iter().flat_map(|sample| readings(sample).map(move |reading| (sample, reading)));
    for (sample, (name, reading)) in readings {
        let Some(row) = KNOWN.iter().position(|known| known.0 == name) else { continue };
        let other = filter && of(sample).is_some_and(|name| name != model);
        if other || !reading.is_finite() {
            continue;
        }
        let Known(_, name, join) = &KNOWN[row];
        match found.get_mut(name) {
            // An older name of the same figure stands lower in the table and gives way.
            Some((before, _)) if *before < row => {}
            Some((before, value)) if *before == row => {
                *value = match join {
                    Join::Sum => *value + reading,
                    Join::Largest => value.max(reading),
                };
            }
            _ => _ = found.insert(name, (row, reading)),
        }
    }
    (found.into_iter().map(|(name, (_, value))| (name.to_owned(), value)).collect(), malformed)
}

/// A sample's value under its name, or the figures that stand in its labels.
fn readings<'a>(sample: &Sample<'a>) -> impl Iterator<Item = (&'a str, f64)> + use<'a> {
    let label = |name: &str| {
        let value = sample.labels.iter().find(|label| label.0 == name)?.1.parse::<u64>().ok()?;
        Some(value as f64).filter(|value| *value > 0.0)
    };
    let of_labels = if sample.name == CACHE_INFO {
        let blocks = label("num_gpu_blocks").zip(label("block_size")).map(|(blocks, size)| blocks * size);
        [(CACHE_INFO_TOKENS, label("kv_cache_size_tokens")), (CACHE_INFO_BLOCKS, blocks)]
    } else {
        [(sample.name, Some(sample.value)), (sample.name, None)]
    };
    of_labels.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

/// Reads the text format 0.0.4 and the parts of `OpenMetrics` that servers mix into it: exemplars,
/// timestamps.
pub fn parse(text: &str) -> Exposition<'_> {
    let mut exposition = Exposition::default();
    let mut lines = text.lines();
    for line in lines.by_ref().take(MOST_LINES) {
        let line = line.trim_matches([' ', '\t', '\r']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match (line.len() <= LONGEST_LINE_BYTES).then(|| sample(line)).flatten() {
            Some(sample) => exposition.samples.push(sample),
            None => exposition.malformed += 1,
        }
    }
    exposition.malformed += lines.count();
    exposition
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let end = line.find(|c: char| c == '{' || c.is_ascii_whitespace())?;
    let (name, rest) = line.split_at(end);
    if !is_name(name, true) {
        return None;
    }
    let (labels, rest) = match rest.trim_start().strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    // After a `#` stands an exemplar.
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let mut words = rest.split_ascii_whitespace();
    let value = number(words.next()?)?;
    let timestamp = words.next();
    let whole = timestamp.is_none_or(|t| t.parse::<f64>().is_ok()) && words.next().is_none();
    whole.then_some(Sample { name, labels, value })
}

/// Labels and what follows the closing brace.
type Labelled<'a> = (Vec<(&'a str, String)>, &'a str);

fn labels(mut rest: &str) -> Option<Labelled<'_>> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once('=')?;
        let name = name.trim();
        let (value, after) = quoted(after.trim_start())?;
        if !is_name(name, false) {
            return None;
        }
        labels.push((name, value));
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return None,
        }
    }
}

/// A value in quotes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                c @ ('"' | '\\') => value.push(c),
                // Not an escape: both characters stand.
                c => value.extend(['\\', c]),
            },
            c => value.push(c),
        }
    }
    None
}

fn is_name(name: &str, colon: bool) -> bool {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colon && c == ':');
    !name.is_empty() && name.chars().all(valid) && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn number(word: &str) -> Option<f64> {
    match word {
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        word => word.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> String {
        let exposition = parse(line);
        match exposition.samples.as_slice() {
            [] => format!("{} malformed", exposition.malformed),
            [one] => format!("{} {:?} {:?}", one.name, one.labels, one.value),
            more => format!("{} samples", more.len()),
        }
    }

    #[test]
    fn lines_are_read_as_the_format_has_them() {
        for (line, expected) in [
            ("a 1", "a [] 1.0"),
            ("a:b_total 1.5e3 1700000000000", "a:b_total [] 1500.0"),
            ("a{} 2", "a [] 2.0"),
            (r#"a{x="1",y="2",} 3"#, r#"a [("x", "1"), ("y", "2")] 3.0"#),
            (r#"a {x = "1"} 3"#, r#"a [("x", "1")] 3.0"#),
            (r#"a{x="q\"b\\s\nn}{#,="} 3"#, r#"a [("x", "q\"b\\s\nn}{#,=")] 3.0"#),
            (r#"a{x="ä\d"} 3"#, r#"a [("x", "ä\\d")] 3.0"#),
            ("a +Inf", "a [] inf"),
            ("a -Inf", "a [] -inf"),
            ("a NaN", "a [] NaN"),
            (r#"a_bucket{le="1"} 3 # {trace="x"} 0.5 1.2"#, r#"a_bucket [("le", "1")] 3.0"#),
            ("# HELP a b", "0 malformed"),
            ("", "0 malformed"),
            ("  \r", "0 malformed"),
            ("a", "1 malformed"),
            ("a b", "1 malformed"),
            ("a 1 2 3", "1 malformed"),
            ("a 1 later", "1 malformed"),
            ("1a 1", "1 malformed"),
            ("a{x=1} 1", "1 malformed"),
            (r#"a{x="1 1"#, "1 malformed"),
            (r#"a{x="1"y="2"} 1"#, "1 malformed"),
            (r#"a{x="1\"#, "1 malformed"),
            ("<html>", "1 malformed"),
        ] {
            assert_eq!(told(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_too_long_is_counted_and_not_read() {
        let long = format!("a{{x=\"{}\"}} 1", "y".repeat(LONGEST_LINE_BYTES));
        assert_eq!(told(&long), "1 malformed");
        let many = "a 1\n".repeat(MOST_LINES + 7);
        let exposition = parse(&many);
        assert_eq!((exposition.samples.len(), exposition.malformed), (MOST_LINES, 7));
    }

    fn figures_of(text: &str, model: &str) -> String {
        let (figures, _) = figures(text, model);
        figures.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_model_is_chosen_and_its_ranks_are_joined() {
        let text = "vllm:num_requests_running{engine=\"0\",model_name=\"a\"} 3\n\
                    vllm:num_requests_running{engine=\"1\",model_name=\"a\"} 4\n\
                    vllm:num_requests_running{engine=\"0\",model_name=\"b\"} 100\n\
                    vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"a\"} 0.25\n\
                    vllm:kv_cache_usage_perc{engine=\"1\",model_name=\"a\"} 0.5\n\
                    vllm:num_preemptions_total{model_name=\"a\"} NaN\n\
                    python_gc_objects_collected_total{generation=\"0\"} 1\n";
        assert_eq!(figures_of(text, "a"), "kv_cache_usage=0.5 requests_running=7");
        assert_eq!(figures_of(text, "b"), "requests_running=100");
        // The name of the API is not the one of the labels: nothing is filtered.
        assert_eq!(figures_of(text, "c"), "kv_cache_usage=0.5 requests_running=107");
    }

    #[test]
    fn old_names_give_way_and_are_read_where_they_stand_alone() {
        let old = "vllm:time_per_output_token_seconds_sum 9\n";
        let new = "vllm:inter_token_latency_seconds_sum 5\n";
        assert_eq!(figures_of(old, ""), "itl_seconds_sum=9");
        assert_eq!(figures_of(&format!("{old}{new}"), ""), "itl_seconds_sum=5");
        assert_eq!(figures_of(&format!("{new}{old}"), ""), "itl_seconds_sum=5");
    }

    #[test]
    fn the_capacity_stands_in_labels_or_is_a_figure() {
        let old = "vllm:cache_config_info{block_size=\"16\",cache_dtype=\"auto\",engine=\"0\",num_gpu_blocks=\"573\",\
                   sliding_window=\"None\"} 1.0\n";
        assert_eq!(figures_of(old, "m"), "kv_block_tokens=9168");
        let new = "vllm:cache_config_info{block_size=\"16\",engine=\"0\",kv_cache_size_tokens=\"8000\",num_gpu_blocks=\"1000\"} 1\n\
                   vllm:cache_config_info{block_size=\"16\",engine=\"1\",kv_cache_size_tokens=\"7000\",num_gpu_blocks=\"900\"} 1\n\
                   vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.25\n";
        // As with the usage: of the fullest, or largest, engine.
        assert_eq!(figures_of(new, "m"), "kv_block_tokens=16000 kv_cache_usage=0.25 kv_capacity_tokens=8000");
        for unknown in [
            "num_gpu_blocks=\"None\",block_size=\"16\"",
            "num_gpu_blocks=\"-1\",block_size=\"16\"",
            "num_gpu_blocks=\"0\",block_size=\"16\"",
            "block_size=\"16\"",
            "kv_cache_size_tokens=\"many\"",
            "",
        ] {
            assert_eq!(figures_of(&format!("vllm:cache_config_info{{{unknown}}} 1\n"), "m"), "", "{unknown}");
        }
        let sglang = "sglang:max_total_num_tokens{model_name=\"m\",tp_rank=\"0\"} 471258.0\n\
                      sglang:max_total_num_tokens{model_name=\"m\",tp_rank=\"1\"} 471258.0\n";
        assert_eq!(figures_of(sglang, "m"), "kv_capacity_tokens=471258");
    }

    #[test]
    fn other_servers_have_the_same_figures() {
        let sglang = "sglang:num_running_reqs{model_name=\"m\",tp_rank=\"0\"} 2.0\n\
                      sglang:token_usage{model_name=\"m\"} 0.28\n\
                      sglang:time_to_first_token_seconds_sum{model_name=\"m\"} 2.5e+06\n";
        assert_eq!(
            figures_of(sglang, "m"),
            "kv_cache_usage=0.28 requests_running=2 ttft_seconds_sum=2500000"
        );
        let llama = "llamacpp:prompt_tokens_total 1040\nllamacpp:tokens_predicted_total 94\n\
                     llamacpp:requests_processing 1\nllamacpp:requests_deferred 0\n\
                     llamacpp:prompt_tokens_cached_total 1065\n";
        assert_eq!(
            figures_of(llama, "tiny"),
            "generation_tokens_total=94 prefix_cache_hits_total=1065 prompt_tokens_total=1040 \
             requests_running=1 requests_waiting=0"
        );
    }

    #[test]
    fn no_text_is_too_strange() {
        // Every prefix and every one-byte change of a good text.
        let text = "a{x=\"1\\n\",y=\"é\"} 1 2 # {z=\"\"} 3\nb 2\n";
        for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
            parse(&text[..at]);
            for c in ["\"", "\\", "{", "}", "\n", "#", "\0"] {
                let changed = format!("{}{c}{}", &text[..at], &text[at..]);
                assert!(parse(&changed).samples.len() <= 3);
            }
        }
    }
}
