//! `/metrics`: real counts of what was served, under vLLM's names.
//!
//! Gauges and counters only; the exact stamps are in the log.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::pacer::Progress;

/// Upper edges of vLLM's buckets of time to first token, in seconds.
const TTFT_EDGES_S: [f64; 21] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0,
];

#[derive(Debug, Default)]
pub(super) struct Counters {
    running: AtomicU64,
    /// Prompt and asked-for output of the running requests.
    held_tokens: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    successes: AtomicU64,
    /// Per bucket, not cumulative; the last is beyond all edges.
    ttft: [AtomicU64; TTFT_EDGES_S.len() + 1],
    ttft_sum_ns: AtomicU64,
}

impl Progress for Counters {
    fn wrote(&self, tokens: u32) {
        self.generation_tokens.fetch_add(u64::from(tokens), Relaxed);
    }
}

/// Counts a request as running until it is dropped.
pub(super) struct Running<'a> {
    counters: &'a Counters,
    tokens: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.counters.running.fetch_sub(1, Relaxed);
        self.counters.held_tokens.fetch_sub(self.tokens, Relaxed);
    }
}

impl Counters {
    pub(super) fn begin(&self, prompt_tokens: u32, cached_tokens: u32, output_tokens: u32) -> Running<'_> {
        let tokens = u64::from(prompt_tokens) + u64::from(output_tokens);
        self.running.fetch_add(1, Relaxed);
        self.held_tokens.fetch_add(tokens, Relaxed);
        self.prompt_tokens.fetch_add(u64::from(prompt_tokens), Relaxed);
        self.cached_tokens.fetch_add(u64::from(cached_tokens), Relaxed);
        Running { counters: self, tokens }
    }

    pub(super) fn end(&self, ttft_ns: Option<u64>, success: bool) {
        if let Some(ttft_ns) = ttft_ns {
            let seconds = ttft_ns as f64 / 1e9;
            self.ttft[TTFT_EDGES_S.partition_point(|edge| *edge < seconds)].fetch_add(1, Relaxed);
            self.ttft_sum_ns.fetch_add(ttft_ns, Relaxed);
        }
        self.successes.fetch_add(u64::from(success), Relaxed);
    }

    /// Prometheus text, format 0.0.4.
    pub(super) fn render(&self, model: &str, kv_capacity_tokens: u64) -> String {
        let model = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels = format!(r#"engine="0",model_name="{model}""#);
        let mut out = String::new();
        let mut single = |name: &str, kind: &str, help: &str, value: f64| {
            let _ = writeln!(
                out,
                "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\nvllm:{name}{{{labels}}} {value:?}"
            );
        };
        let read = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        let kv = (read(&self.held_tokens) / kv_capacity_tokens.max(1) as f64).min(1.0);
        single("num_requests_running", "gauge", "Requests being answered.", read(&self.running));
        single("num_requests_waiting", "gauge", "Requests waiting; none ever does here.", 0.0);
        single("kv_cache_usage_perc", "gauge", "Held tokens over capacity, 1 is full.", kv);
        single("prompt_tokens_total", "counter", "Prompt tokens.", read(&self.prompt_tokens));
        single("generation_tokens_total", "counter", "Tokens written.", read(&self.generation_tokens));
        single("prefix_cache_queries_total", "counter", "Tokens looked up.", read(&self.prompt_tokens));
        single("prefix_cache_hits_total", "counter", "Tokens found.", read(&self.cached_tokens));
        single("request_success_total", "counter", "Answers sent whole.", read(&self.successes));
        // In the labels, as vLLM has it.
        let name = "vllm:cache_config_info";
        let info = format!(r#"block_size="1",engine="0",num_gpu_blocks="{kv_capacity_tokens}""#);
        let _ = writeln!(out, "# HELP {name} The cache.\n# TYPE {name} gauge\n{name}{{{info}}} 1.0");
        self.render_ttft(&labels, &mut out);
        out
    }

    fn render_ttft(&self, labels: &str, out: &mut String) {
        let name = "vllm:time_to_first_token_seconds";
        let _ = writeln!(out, "# HELP {name} Arrival to first write.\n# TYPE {name} histogram");
        let mut seen = 0;
        for (edge, count) in TTFT_EDGES_S.iter().zip(&self.ttft) {
            seen += count.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{edge:?}\"}} {seen}");
        }
        seen += self.ttft[TTFT_EDGES_S.len()].load(Relaxed);
        let sum_s = self.ttft_sum_ns.load(Relaxed) as f64 / 1e9;
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {seen}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum_s:?}\n{name}_count{{{labels}}} {seen}");
    }
}

#[cfg(test)]
mod tests {
    use super::Counters;
    use crate::loopback::pacer::Progress;

    #[test]
    fn counts_are_those_of_the_requests() {
        let counters = Counters::default();
        let first = counters.begin(10, 4, 5);
        let second = counters.begin(20, 0, 15);
        counters.wrote(5);
        drop(first);
        counters.end(Some(20_000_000), true);
        counters.end(Some(700_000_000_000), false);
        let text = counters.render("m\"x", 70);
        for line in [
            r#"vllm:num_requests_running{engine="0",model_name="m\"x"} 1.0"#,
            r#"vllm:num_requests_waiting{engine="0",model_name="m\"x"} 0.0"#,
            r#"vllm:kv_cache_usage_perc{engine="0",model_name="m\"x"} 0.5"#,
            r#"vllm:cache_config_info{block_size="1",engine="0",num_gpu_blocks="70"} 1.0"#,
            r#"vllm:prompt_tokens_total{engine="0",model_name="m\"x"} 30.0"#,
            r#"vllm:generation_tokens_total{engine="0",model_name="m\"x"} 5.0"#,
            r#"vllm:prefix_cache_queries_total{engine="0",model_name="m\"x"} 30.0"#,
            r#"vllm:prefix_cache_hits_total{engine="0",model_name="m\"x"} 4.0"#,
            r#"vllm:request_success_total{engine="0",model_name="m\"x"} 1.0"#,
            r#"vllm:time_to_first_token_seconds_bucket{engine="0",model_name="m\"x",le="0.01"} 0"#,
            r#"vllm:time_to_first_token_seconds_bucket{engine="0",model_name="m\"x",le="0.02"} 1"#,
            r#"vllm:time_to_first_token_seconds_bucket{engine="0",model_name="m\"x",le="640.0"} 1"#,
            r#"vllm:time_to_first_token_seconds_bucket{engine="0",model_name="m\"x",le="+Inf"} 2"#,
            r#"vllm:time_to_first_token_seconds_sum{engine="0",model_name="m\"x"} 700.02"#,
            r#"vllm:time_to_first_token_seconds_count{engine="0",model_name="m\"x"} 2"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        drop(second);
        assert!(counters.render("m", 70).contains("kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.0"));
    }
}
