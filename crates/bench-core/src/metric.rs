//! The one table of metrics: key, unit, better direction, definition.
//!
//! CSV headers, table captions, figure axes and the column reference come from here and from nowhere else.

use crate::Error;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
    /// Neither: a fact about the run.
    Neutral,
}

/// What one sample of the metric belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// One value per request.
    Request,
    /// Several values per request; intervals resample whole requests.
    Gap,
    /// One value per batch, or per window of time in which power was read.
    Window,
    /// One value per cell.
    Cell,
}

/// One row of the table.
#[derive(Debug)]
pub struct MetricDef {
    pub key: &'static str,
    /// As it stands in the `unit` column; `1` for counts and ratios.
    pub unit: &'static str,
    pub better: Better,
    pub per: Per,
    /// For captions and axes, without the unit.
    pub title: &'static str,
    pub definition: &'static str,
}

impl MetricDef {
    /// The key in name and unit: `ttft_ms` in `ttft` and `_ms`; a unit that no name ends in leaves the second empty.
    pub fn split_unit(&self) -> (&'static str, &'static str) {
        let ending = match self.unit {
            "ms" => "_ms",
            "tok/s" => "_tok_s",
            "req/s" => "_req_s",
            "B" => "_bytes",
            "B/s" => "_bytes_s",
            "W" => "_w",
            "J" => "_j",
            "C" => "_c",
            "MHz" => "_mhz",
            "Hz" => "_hz",
            "%" => "_pct",
            _ => "",
        };
        self.key.strip_suffix(ending).map_or((self.key, ""), |name| (name, ending))
    }
}

macro_rules! metrics {
    ($($name:ident $key:literal $unit:literal $better:ident $per:ident $title:literal $definition:literal;)*) => {
        /// Every metric that can be measured.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Metric { $($name,)* }

        impl Metric {
            /// All metrics, in the order of the column reference.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The metric's row of the table.
            pub const fn def(self) -> &'static MetricDef {
                match self {
                    $(Self::$name => &MetricDef {
                        key: $key, unit: $unit, better: Better::$better, per: Per::$per,
                        title: $title, definition: $definition,
                    },)*
                }
            }
        }
    };
}

metrics! {
    ScheduleLag "schedule_lag_ms" "ms" Lower Request "Schedule lag"
        "sent - intended; not part of TTFT, it must be near 0 or the generator itself is the bottleneck";
    Ttft "ttft_ms" "ms" Lower Request "Time to first token"
        "token[0] - sent";
    TtftFromSchedule "ttft_from_schedule_ms" "ms" Lower Request "Time to first token from schedule"
        "token[0] - intended: what a user waited, free of coordinated omission";
    Ttfo "ttfo_ms" "ms" Lower Request "Time to first output token"
        "first token of the final channel - sent; missing where channels are not told apart";
    TtftRole "ttft_role_ms" "ms" Lower Request "Time to first chunk"
        "first chunk of any kind - sent; for comparison with tables that count the role chunk as a token";
    Ttfb "ttfb_ms" "ms" Lower Request "Time to first byte"
        "first byte of the response - sent; missing in-process";
    Tpot "tpot_ms" "ms" Lower Request "Time per output token"
        "(token[last] - token[0]) / (n - 1); missing when n < 2 or all came in one chunk";
    Itl "itl_ms" "ms" Lower Gap "Inter-token latency"
        "gaps between token arrivals, one sample per gap; a chunk of k tokens gives k samples of gap / k; missing for a \
         request whose tokens per chunk are not known: counted tokens exceed those seen by more than 10 % and by more than 16";
    Icl "icl_ms" "ms" Lower Gap "Inter-chunk latency"
        "gaps between chunks that carry tokens, as they came";
    E2el "e2el_ms" "ms" Lower Request "End-to-end latency"
        "token[last] - sent";
    E2elFromSchedule "e2el_from_schedule_ms" "ms" Lower Request "End-to-end latency from schedule"
        "token[last] - intended";
    Ntpot "ntpot_ms" "ms" Lower Request "Normalized time per output token"
        "e2el / n";
    DecodeRate "decode_tok_s" "tok/s" Higher Request "Decode rate"
        "(n - 1) / (token[last] - token[0]) of one request; missing when n < 2";
    PrefillRate "prefill_tok_s" "tok/s" Higher Request "Prefill rate"
        "prompt tokens / (token[0] - sent); in-process only";
    RequestRate "request_tok_s" "tok/s" Higher Request "Request token rate"
        "n / (token[last] - sent): prefill included";
    PromptTokens "prompt_tokens_actual" "1" Neutral Request "Prompt tokens"
        "prompt tokens as counted by the target";
    OutputTokens "output_tokens_actual" "1" Neutral Request "Output tokens"
        "output tokens as counted by the target";
    CachedPromptTokens "cached_prompt_tokens" "1" Neutral Request "Cached prompt tokens"
        "prompt tokens that the server took from a prefix cache, where it says so";
    TokensPerChunk "tokens_per_chunk" "1" Neutral Request "Tokens per chunk"
        "output tokens of a request / its chunks that carry tokens; not in-process";
    TokenCountDifference "token_count_difference" "1" Neutral Request "Token count difference"
        "output tokens as counted by the server - tokens seen to arrive; control tokens have no text; not in-process";
    ServerTtft "server_ttft_ms" "ms" Lower Request "Server's time to first token"
        "arrival to first token on the server's own clock, where it says so";
    ServerQueue "server_queue_ms" "ms" Lower Request "Server's queue time"
        "time in the server's queue on its own clock, where it says so";
    ServerDecode "server_decode_ms" "ms" Lower Request "Server's decode time"
        "first token to last on the server's own clock, where it says so";
    ResidualTtft "residual_ttft_ms" "ms" Lower Request "Residual time to first token"
        "ttft_ms - server_ttft_ms of one request: network, client, and what the server leaves out";
    SystemTokenRate "system_tok_s" "tok/s" Higher Cell "System token rate"
        "output tokens of successful requests that arrived inside the steady window / its length";
    SystemRequestRate "system_req_s" "req/s" Higher Cell "System request rate"
        "successful requests that ended inside the steady window / its length";
    Goodput "goodput_req_s" "req/s" Higher Cell "Goodput"
        "successful requests that ended inside the steady window and met every limit of `[slo]` / its length; without \
         `[slo]` there are no rows";
    SteadyWindow "steady_window_ms" "ms" Neutral Cell "Steady window"
        "batches and closed loop: from the first moment at full concurrency to the last (of conversations, where there \
         are turns); open loop: from the first moment of the schedule at which as many are in flight as on average \
         over it, to its last intended start; a ramp: the whole schedule; all at once: the whole run; summed over rounds";
    SteadyWindowShare "steady_window_share" "1" Neutral Cell "Steady window share"
        "steady window / time from the first request sent to the last one ended, summed over rounds; the rest is ramp up and drain, left out of system rates";
    InFlightGrowth "in_flight_growth" "1" Neutral Cell "Growth of requests in flight"
        "open loop: mean number of requests intended and not ended in the last quarter of the schedule / in its second \
         quarter - 1, over all rounds; near 0 when the server keeps up, 1.33 when what it cannot serve piles up";
    PeakConcurrency "peak_concurrency" "1" Neutral Cell "Peak concurrency"
        "largest number of requests in flight";
    MeanConcurrency "mean_concurrency" "1" Neutral Cell "Mean concurrency"
        "requests in flight, averaged over the time in which any was";
    SuccessRate "success_rate" "1" Higher Cell "Success rate"
        "requests that ended with a finish reason and at least one token / requests started";
    Failures "failures" "1" Lower Cell "Failed requests"
        "requests that failed, counted by kind in the stat column; no row where none did";
    KvBytes "kv_allocated_bytes" "B" Lower Request "KV cache allocated"
        "bytes allocated for keys and values at the end of the request, as the engine reports them";
    EventsPerRead "events_per_read" "1" Neutral Cell "Events per read"
        "events of the stream / reads of a socket that returned bytes";
    ClientCpuShare "client_cpu_share" "1" Lower Cell "Client CPU share"
        "processor time of the client's busiest thread / duration, in the worst round";
    ClientStall "client_stall_ms" "ms" Lower Cell "Longest client stall"
        "longest time in which an event loop of the client did not come round";
    ServerRunning "server_running_mean" "1" Neutral Cell "Requests running on the server"
        "mean over the readings of the server's metrics";
    ServerWaiting "server_waiting_max" "1" Lower Cell "Most requests waiting on the server"
        "largest reading of the server's metrics";
    ServerKvUsage "server_kv_usage_max" "1" Neutral Cell "Highest KV cache usage of the server"
        "largest reading of the server's metrics, 1 is full";
    ServerPrefixHitRate "server_prefix_hit_rate" "1" Neutral Cell "Prefix cache hit rate of the server"
        "growth of the server's count of hits / growth of its count of queries";
    ServerTtftMean "server_ttft_mean_ms" "ms" Lower Cell "Server's mean time to first token"
        "growth of the server's sum of times to first token / growth of their count, between first and last reading";
    ServerQueueMean "server_queue_mean_ms" "ms" Lower Cell "Server's mean queue time"
        "growth of the server's sum of queue times / growth of their count, between first and last reading";
    ServerItlMean "server_itl_mean_ms" "ms" Lower Cell "Server's mean inter-token latency"
        "growth of the server's sum of inter-token latencies / growth of their count, between first and last reading";
    ServerGenerationRate "server_generation_tok_s" "tok/s" Higher Cell "Server's generation rate"
        "growth of the server's count of generated tokens / time between first and last reading";
    ServerPreemptions "server_preemptions" "1" Lower Cell "Preemptions on the server"
        "growth of the server's count between first and last reading";
    WeightsBytes "weights_bytes" "B" Neutral Cell "Weights"
        "bytes of parameters resident on the device";
    KvTheory "kv_theory_bytes" "B" Neutral Cell "KV cache in theory"
        "sum over layers of 2 * kv_heads * head_dim * bytes * min(tokens, window of that layer), of all requests of a batch \
         (with a server: of one request); tokens are those fed to the model: prompt + output - 1";
    KvFull "kv_full_bytes" "B" Neutral Cell "KV cache without windows"
        "kv_theory_bytes without the windows: what an engine that ignores them would need";
    KvRetained "kv_retained_bytes" "B" Lower Window "KV cache retained"
        "measured, per batch: bytes allocated after the last token with the cache held - allocated before the prefill; on a \
         GPU those of the cache alone";
    KvPerToken "kv_per_token_bytes" "B" Lower Cell "KV cache per token"
        "slope of kv_retained_bytes over the tokens in the cache, least squares over the mean of each context of this model, \
         batch, load and number of output tokens, of which there must be three; the same on each of their cells; for one \
         sequence of a batch";
    KvPerTokenTheory "kv_per_token_theory_bytes" "B" Neutral Cell "KV cache per token in theory"
        "slope of kv_theory_bytes over the same contexts, by the same least squares; with windows that is less than the \
         bytes of a token, and depends on the contexts";
    ActivationPeak "activation_peak_bytes" "B" Lower Window "Activation peak"
        "measured, per batch: peak of the allocations during the batch - (allocated before + kv_retained_bytes); on a GPU the \
         most bytes that forward passes work in, which are kept from batch to batch";
    PrefillPeak "prefill_peak_bytes" "B" Lower Window "Prefill peak"
        "measured, per batch: most bytes allocated at once from before the prefill to the first token, on the host or, \
         for a model on a GPU, there";
    DecodePeak "decode_peak_bytes" "B" Lower Window "Decode peak"
        "measured, per batch: most bytes allocated at once from the first token to the last, likewise";
    PeakBytes "peak_bytes" "B" Lower Window "Peak memory"
        "measured peak: scope `allocator` of the program's own allocations, `process` of its resident pages since \
         the trial began (of a process that runs one trial only, else missing), `gpu_process` and `gpu_device` of the \
         largest reading of a GPU during a trial, by process and by all that use it; of several GPUs the sum of those; \
         `gpu_allocator` of what the engine itself holds on a GPU, per batch, in parts `gpu_weights`, `gpu_kv_cache`, \
         `gpu_activations` and `gpu_workspace`, whose peaks need not fall together, per trial as `gpu_trial`, and while the \
         model was loaded as `gpu_loading` (of a process that runs one trial only)";
    RssAnon "rss_anon_bytes" "B" Neutral Window "Resident anonymous pages"
        "pages of the process that are its own (heap, stacks), after a batch";
    RssFile "rss_file_bytes" "B" Neutral Window "Resident file pages"
        "pages of files in the memory of the process (mapped weights, code), after a batch; the kernel may drop them";
    KvLogical "kv_logical_bytes" "B" Neutral Cell "KV cache in use on the server"
        "largest reading of the server's KV cache usage * its capacity in tokens * kv bytes of a token, of the fullest engine \
         where a server has several; a model with windows has the mean bytes of a token at its longest context";
    MaxContext "max_context_tokens" "1" Higher Cell "Largest context"
        "tokens of the largest context that fits in a given memory, see `ossbench fit`";
    MaxBatch "max_batch" "1" Higher Cell "Largest batch"
        "largest batch at a given context that fits in a given memory, see `ossbench fit`";
    IdlePower "idle_w" "W" Neutral Cell "Idle power"
        "mean power of the idle machine before the first trial: integral / its length";
    IdleTemp "idle_temp_c" "C" Neutral Cell "Idle temperature"
        "mean temperature of the idle machine before the first trial";
    IdleSmClock "idle_sm_clock_mhz" "MHz" Neutral Cell "Idle SM clock"
        "mean clock of the idle machine before the first trial";
    EnergyCounter "energy_counter_j" "J" Lower Window "Energy by counter"
        "difference of the device's energy counter over a window, edges interpolated between updates; a window is a batch, \
         a trial where batches are shorter than 10 sampling or update periods, or the steady window of a load; missing \
         below 10 update periods of the counter";
    EnergyTrapz "energy_trapz_j" "J" Lower Window "Energy by integral"
        "trapezoid over the power samples in a window, ends interpolated; missing below 10 sampling periods; not there \
         where power is known from a counter alone";
    EnergyDifference "energy_difference" "1" Neutral Window "Counter against integral"
        "energy_counter_j / energy_trapz_j - 1";
    EnergyNet "energy_net_j" "J" Lower Window "Net energy"
        "gross - idle_w * window; gross is the counter, or the integral where there is no counter";
    EnergyPrefill "energy_prefill_j" "J" Lower Window "Prefill energy"
        "from sent to the first token of each request of the batch: by the counter where both parts last 10 update periods, \
         else by integral, scaled to gross; summed over the batches of a window; missing where requests overlap";
    EnergyDecode "energy_decode_j" "J" Lower Window "Decode energy"
        "from there to the last token, likewise; missing where requests overlap";
    JoulesPerToken "j_per_tok" "J/tok" Lower Window "Energy per output token"
        "energy_decode_j / output tokens after the first of each request; where requests overlap, energy of the window / its output tokens";
    WhPer1kTokens "wh_per_1k_tok" "Wh/1k tok" Lower Window "Energy per 1,000 output tokens"
        "j_per_tok / 3.6";
    TokensPerJoule "tok_per_j" "tok/J" Higher Window "Output tokens per joule"
        "1 / j_per_tok";
    JoulesPerTokenE2e "j_per_tok_e2e" "J/tok" Lower Window "Energy per output token, prefill included"
        "gross energy of the window, pauses between its batches included / its output tokens";
    WhPer1kTokensE2e "wh_per_1k_tok_e2e" "Wh/1k tok" Lower Window "Energy per 1,000 output tokens, prefill included"
        "j_per_tok_e2e / 3.6";
    TokensPerJouleE2e "tok_per_j_e2e" "tok/J" Higher Window "Output tokens per joule, prefill included"
        "1 / j_per_tok_e2e";
    AvgPower "avg_w" "W" Neutral Window "Average power"
        "gross energy of the window / its length";
    PeakPower "peak_w" "W" Neutral Window "Peak power"
        "largest power sample in the window; of several devices, of their sum; mean between readings of a counter";
    PowerSampleRate "power_sample_hz" "Hz" Neutral Cell "Power sampling rate"
        "readings that brought a new power value, by the device's own stamp where it gives one, / time between the first \
         and the last, over all rounds; of several devices the mean";
    UtilGpu "util_gpu_pct" "%" Neutral Window "GPU utilisation"
        "mean of the readings in the window: share of time in which a kernel ran";
    UtilMem "util_mem_pct" "%" Neutral Window "GPU memory utilisation"
        "mean of the readings in the window: share of time in which memory was read or written";
    Temp "temp_c" "C" Neutral Window "Temperature"
        "mean of the readings in the window";
    StartTemp "start_temp_c" "C" Neutral Cell "Temperature at the start"
        "first reading of a trial, mean over rounds";
    SmClock "sm_clock_mhz" "MHz" Neutral Window "SM clock"
        "mean of the readings in the window";
    MemClock "mem_clock_mhz" "MHz" Neutral Window "Memory clock"
        "mean of the readings in the window";
    Throttle "throttle" "1" Lower Window "Throttled share"
        "share of the readings in the window with clocks lowered for power, heat or by hardware (NVML's reasons 0x4, 0x8, \
         0x20, 0x40, 0x80); not counted: idle, clocks that were set, the boost group";
    PowerLimit "power_limit_w" "W" Neutral Cell "Power limit"
        "enforced power limit of the device";
    ActiveParameters "active_parameters" "1" Neutral Cell "Active parameters"
        "parameters that one token uses: all but the input embedding, and of the experts only those it is routed to, also \
         where every expert is computed (`expert_mode = \"dense-all\"`, which verdict_reason says)";
    Accuracy "accuracy" "1" Higher Cell "Accuracy"
        "of the given file, not measured here; the task stands in the scope column";
    ApeDecode "ape_decode" "tok/s/B" Higher Cell "Decode rate per active parameter"
        "median decode_tok_s / active parameters in 10^9";
    ApeTtft "ape_ttft" "1/s/B" Higher Cell "Inverse TTFT per active parameter"
        "(1000 / median ttft_ms) / active parameters in 10^9";
    ApeEnergy "ape_energy" "tok/J/B" Higher Cell "Tokens per joule per active parameter"
        "median tok_per_j / active parameters in 10^9, of each scope";
    ApeMemory "ape_memory" "tok/s/GiB" Higher Cell "Decode rate per memory"
        "median decode_tok_s / largest peak_bytes in GiB: of the GPU process, else of the engine's allocator there, else \
         of the device, else of the process, else of the allocator, as the scope column says";
    ApeAccuracy "ape_accuracy" "1/B" Higher Cell "Accuracy per active parameter"
        "accuracy of the given file / active parameters in 10^9; the task stands in the scope column";
    ExpertsTouched "experts_touched" "1" Lower Cell "Experts touched"
        "distinct experts of a layer in a decode step, mean over steps and layers, counted by the router; every one where \
         all are computed";
    ExpertsExpected "experts_expected" "1" Neutral Cell "Experts expected"
        "distinct experts if each token chose its k of E evenly and on its own: E (1 - (1 - k / E)^batch); with a server the \
         batch is mean_concurrency; E where all are computed";
    BytesPerToken "bytes_per_tok" "B/tok" Lower Cell "Bytes per token"
        "bytes that a decode step must move / batch: weights once, all but the input embedding and of the experts those \
         touched (the expected ones where missing_reason says experts_not_counted; every one with scope `all_experts`); for \
         each token one row of the embedding, and keys and values of the positions that it attends to, windows honoured, \
         mean over the steps";
    FlopsPerToken "flops_per_tok" "FLOP/tok" Lower Cell "Operations per token"
        "2 * active parameters (and those of every other expert where all are computed) + 4 * heads * head_dim * attended \
         positions, summed over layers, mean over the decode steps";
    Bandwidth "bandwidth_bytes_s" "B/s" Neutral Cell "Memory bandwidth"
        "of the memory that weights are read from, measured before the first trial by reading it with all compute threads \
         of the processor or with all multiprocessors of the GPU, or as given";
    RooflineLimit "limit_tok_s" "tok/s" Neutral Cell "Roofline limit"
        "bandwidth_bytes_s / bytes_per_tok: the decode rate of all requests of a batch together if nothing but memory took \
         time";
    RooflineRatio "roofline_ratio" "1" Higher Cell "Roofline ratio"
        "median decode_tok_s * batch (mean_concurrency with a server) / limit_tok_s; above 1 where what is read again stays in \
         a cache";
}

impl Metric {
    pub fn from_key(key: &str) -> Result<Self, Error> {
        Self::ALL.iter().copied().find(|m| m.def().key == key).ok_or_else(|| Error::UnknownMetric {
            key: key.to_owned(),
            valid: Self::ALL.iter().map(|m| m.def().key).collect::<Vec<_>>().join(", "),
        })
    }

    /// Title and unit for an axis: `Time to first token (ms)`.
    pub fn axis(self) -> String {
        match self.def().unit {
            "1" => self.def().title.to_owned(),
            unit => format!("{} ({unit})", self.def().title),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_end_in_their_unit() {
        let mut keys: Vec<_> = Metric::ALL.iter().map(|m| m.def().key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), Metric::ALL.len());
        for metric in Metric::ALL {
            let d = metric.def();
            let has_ending = !matches!(d.unit, "1" | "tok/J" | "J/tok" | "Wh/1k tok" | "B/tok" | "FLOP/tok")
                && !d.key.starts_with("ape_");
            assert_eq!(!d.split_unit().1.is_empty(), has_ending, "{} in {}", d.key, d.unit);
            assert_eq!(Metric::from_key(d.key).unwrap(), *metric);
        }
        assert!(Metric::from_key("tpot").unwrap_err().to_string().contains("tpot_ms"));
    }
}
