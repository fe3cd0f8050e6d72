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
pub enum Scope {
    /// One value per request.
    Request,
    /// Several values per request; intervals resample whole requests.
    Gap,
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
    pub scope: Scope,
    /// For captions and axes, without the unit.
    pub title: &'static str,
    pub definition: &'static str,
}

macro_rules! metrics {
    ($($name:ident $key:literal $unit:literal $better:ident $scope:ident $title:literal $definition:literal;)*) => {
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
                        key: $key, unit: $unit, better: Better::$better, scope: Scope::$scope,
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
            let suffix = match d.unit {
                "ms" => "_ms",
                "tok/s" => "_tok_s",
                "req/s" => "_req_s",
                "B" => "_bytes",
                _ => "",
            };
            assert!(d.key.ends_with(suffix), "{} in {}", d.key, d.unit);
            assert_eq!(Metric::from_key(d.key).unwrap(), *metric);
        }
        assert!(Metric::from_key("tpot").unwrap_err().to_string().contains("tpot_ms"));
    }
}
