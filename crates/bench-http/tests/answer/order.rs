//! What holds for every stream: tokens are conserved, stamps never fall, cuts change nothing.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
struct Step {
    tokens: u32,
    /// Tokens of this chunk show no text yet.
    hidden: bool,
    comment_before: bool,
    gap_ns: u64,
}

fn step() -> impl Strategy<Value = Step> {
    (1..5_u32, prop::bool::weighted(0.2), prop::bool::weighted(0.1), 0..3_u64)
        .prop_map(|(tokens, hidden, comment_before, gap_ns)| Step { tokens, hidden, comment_before, gap_ns })
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Usage,
    Ids,
    Logprobs,
}

/// A stream whose chunks say their tokens by one source, and its reads cut anywhere.
fn stream(steps: &[Step], source: Source) -> Vec<u8> {
    let mut text = String::new();
    let mut total = 0;
    for step in steps {
        total += step.tokens;
        let content = if step.hidden { "" } else { "öx" };
        let list = vec!["1"; step.tokens as usize].join(",");
        let (in_choice, in_chunk) = match source {
            Source::Usage => (String::new(), format!(r#","usage":{{"completion_tokens":{total}}}"#)),
            Source::Ids => (format!(r#","token_ids":[{list}]"#), String::new()),
            Source::Logprobs => (format!(r#","logprobs":{{"content":[{list}]}}"#), String::new()),
        };
        if step.comment_before {
            text.push_str(": ping\r\n\r\n");
        }
        write!(
            text,
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{content}\"}}{in_choice}}}]{in_chunk}}}\n\n"
        )
        .unwrap();
    }
    text.push_str("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n");
    text.into_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tokens_are_conserved_and_stamps_never_fall(
        steps in prop::collection::vec(step(), 1..20),
        source in prop::sample::select(vec![Source::Usage, Source::Ids, Source::Logprobs]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = stream(&steps, source);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut at_ns = 100;
        let reads: Vec<Read<'_>> = cuts
            .windows(2)
            .enumerate()
            .map(|(i, cut)| {
                at_ns += steps[i % steps.len()].gap_ns;
                (at_ns, &bytes[cut[0]..cut[1]])
            })
            .collect();
        let exchange = replay(&ReaderOptions::default(), &reads, at_ns + 1, BodyEnd::Clean);

        prop_assert!(exchange.events.is_sorted_by_key(|event| event.at_ns), "{}", told(&exchange));
        let shown = steps.iter().rposition(|step| !step.hidden).map_or(0, |last| last + 1);
        let expected: u32 = steps[..shown].iter().map(|step| step.tokens).sum();
        let counts = exchange.events.iter().filter_map(|event| match event.kind {
            EventKind::Tokens { count, .. } => Some(count.unwrap()),
            _ => None,
        });
        prop_assert_eq!(counts.sum::<u32>(), expected, "{}", told(&exchange));
        let comments = steps.iter().filter(|step| step.comment_before).count();
        prop_assert_eq!(exchange.reads.events as usize, steps.len() + 2);
        let is_chunk = |kind: &EventKind| matches!(kind, EventKind::EmptyChunk | EventKind::Tokens { .. });
        let chunks = exchange.events.iter().filter(|event| is_chunk(&event.kind));
        prop_assert_eq!(chunks.count(), steps.len() + 1 + comments);
        prop_assert_eq!(exchange.reads.bytes as usize, bytes.len());
        let once = replay(&ReaderOptions::default(), &[(1, &bytes)], 2, BodyEnd::Clean);
        prop_assert_eq!(untimed(&once), untimed(&exchange));
    }
}
