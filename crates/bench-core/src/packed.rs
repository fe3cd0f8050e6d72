//! The stored form of a request's events: a run of token arrivals is one object with the gaps between them.
//!
//! `{"at":5,"kind":"stream","channel":"final","gaps":[10,11],"counts":[1,2,1]}` stands for three `tokens` events at 5,
//! 15 and 26 ns; `counts` is left out where each brings one token. What is read back are the events that were
//! written, also from files that have each of them by itself.

use crate::event::{Channel, CountSource, Event, EventKind, FailureKind, FinishReason};
use crate::unit::Nanos;
use serde::de::{SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

#[derive(Serialize)]
struct Stream {
    at: Nanos,
    kind: &'static str,
    channel: Channel,
    gaps: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<Vec<u32>>,
}

/// Writes events, runs of at least two token arrivals of one channel as one object.
pub(crate) fn serialize<S: Serializer>(events: &[Event], serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(None)?;
    for run in events.chunk_by(continues) {
        match stream(run) {
            Some(stream) => list.serialize_element(&stream)?,
            None => run.iter().try_for_each(|event| list.serialize_element(event))?,
        }
    }
    list.end()
}

/// Whether `b` is the next arrival of the stream that `a` is in.
fn continues(a: &Event, b: &Event) -> bool {
    match (&a.kind, &b.kind) {
        (EventKind::Tokens { channel: one, .. }, EventKind::Tokens { channel: other, .. }) => {
            one == other && a.at <= b.at
        }
        _ => false,
    }
}

fn stream(run: &[Event]) -> Option<Stream> {
    let (EventKind::Tokens { channel, .. }, true) = (&run.first()?.kind, run.len() > 1) else { return None };
    let count = |event: &Event| match event.kind {
        EventKind::Tokens { count, .. } => count,
        _ => 0,
    };
    let ones = run.iter().all(|event| count(event) == 1);
    Some(Stream {
        at: run[0].at,
        kind: "stream",
        channel: *channel,
        gaps: run.windows(2).map(|w| w[1].at.0 - w[0].at.0).collect(),
        counts: (!ones).then(|| run.iter().map(count).collect()),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Intended,
    Sent,
    FirstByte,
    EmptyChunk,
    Tokens,
    Stream,
    Counted,
    Done,
    Failed,
}

/// Any element of the list. One flat record is read in half the time of a tagged enumeration, whose fields serde
/// has to set aside until it knows the tag.
#[derive(Deserialize)]
struct Entry {
    at: Nanos,
    kind: Kind,
    count: Option<u32>,
    channel: Option<Channel>,
    gaps: Option<Vec<u64>>,
    counts: Option<Vec<u32>>,
    prompt_tokens: Option<u32>,
    output_tokens: Option<u32>,
    cached_prompt_tokens: Option<u32>,
    source: Option<CountSource>,
    finish: Option<FinishReason>,
    failure: Option<FailureKind>,
    message: Option<String>,
}

/// Reads what `serialize` wrote.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Event>, D::Error> {
    struct Events;

    impl<'de> Visitor<'de> for Events {
        type Value = Vec<Event>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a list of events")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Event>, A::Error> {
            let mut events = Vec::new();
            while let Some(entry) = list.next_element::<Entry>()? {
                entry.unpack(&mut events)?;
            }
            Ok(events)
        }
    }

    deserializer.deserialize_seq(Events)
}

impl Entry {
    fn unpack<E: serde::de::Error>(self, events: &mut Vec<Event>) -> Result<(), E> {
        fn given<T, E: serde::de::Error>(field: &'static str, value: Option<T>) -> Result<T, E> {
            value.ok_or_else(|| E::missing_field(field))
        }
        let kind = match self.kind {
            Kind::Intended => EventKind::Intended,
            Kind::Sent => EventKind::Sent,
            Kind::FirstByte => EventKind::FirstByte,
            Kind::EmptyChunk => EventKind::EmptyChunk,
            Kind::Tokens => EventKind::Tokens {
                count: given("count", self.count)?,
                channel: given("channel", self.channel)?,
            },
            Kind::Stream => {
                let gaps = given("gaps", self.gaps)?;
                let channel = given("channel", self.channel)?;
                return unpack_stream(self.at, channel, &gaps, self.counts.as_deref(), events);
            }
            Kind::Counted => EventKind::Counted {
                prompt_tokens: given("prompt_tokens", self.prompt_tokens)?,
                output_tokens: given("output_tokens", self.output_tokens)?,
                cached_prompt_tokens: self.cached_prompt_tokens,
                source: given("source", self.source)?,
            },
            Kind::Done => EventKind::Done { finish: given("finish", self.finish)? },
            Kind::Failed => EventKind::Failed {
                failure: given("failure", self.failure)?,
                message: given("message", self.message)?,
            },
        };
        events.push(Event { at: self.at, kind });
        Ok(())
    }
}

fn unpack_stream<E: serde::de::Error>(
    first: Nanos,
    channel: Channel,
    gaps: &[u64],
    counts: Option<&[u32]>,
    events: &mut Vec<Event>,
) -> Result<(), E> {
    if let Some(counts) = counts.filter(|c| c.len() != gaps.len() + 1) {
        return Err(E::custom(format!("{} counts for {} arrivals", counts.len(), gaps.len() + 1)));
    }
    let mut at = first;
    for i in 0..=gaps.len() {
        let gap = if i == 0 { 0 } else { gaps[i - 1] };
        let too_late = || E::custom(format!("an arrival {gap} ns after {} is beyond the clock", at.0));
        at = Nanos(at.0.checked_add(gap).ok_or_else(too_late)?);
        let count = counts.map_or(1, |c| c[i]);
        events.push(Event { at, kind: EventKind::Tokens { count, channel } });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::event::{Channel, CountSource, Event, EventKind, FailureKind, FinishReason};
    use crate::trace::RequestTrace;
    use crate::unit::Nanos;
    use proptest::prelude::*;

    fn trace(events: Vec<Event>) -> RequestTrace {
        RequestTrace {
            repeat: 1,
            slot: 2,
            prompt_hash: "ab".to_owned(),
            asked: None,
            server: None,
            kv_allocated_bytes: None,
            events,
        }
    }

    fn tokens(at: u64, count: u32) -> Event {
        Event { at: Nanos(at), kind: EventKind::Tokens { count, channel: Channel::Final } }
    }

    fn read(events: &str) -> Result<Vec<Event>, String> {
        let text = format!("{{\"repeat\":1,\"slot\":2,\"prompt_hash\":\"ab\",\"events\":{events}}}");
        serde_json::from_str::<RequestTrace>(&text).map(|t| t.events).map_err(|e| e.to_string())
    }

    #[test]
    fn arrivals_are_one_object() {
        let sent = Event { at: Nanos(1), kind: EventKind::Sent };
        let of = |events: Vec<Event>| {
            let text = serde_json::to_string(&trace(events)).unwrap();
            text.split_once("\"events\":").unwrap().1.strip_suffix('}').unwrap().to_owned()
        };
        assert_eq!(
            of(vec![sent.clone(), tokens(5, 1), tokens(15, 1), tokens(26, 1)]),
            r#"[{"at":1,"kind":"sent"},{"at":5,"kind":"stream","channel":"final","gaps":[10,11]}]"#
        );
        assert_eq!(
            of(vec![tokens(5, 1), tokens(15, 2)]),
            r#"[{"at":5,"kind":"stream","channel":"final","gaps":[10],"counts":[1,2]}]"#
        );
        assert_eq!(of(vec![tokens(5, 1)]), r#"[{"at":5,"kind":"tokens","count":1,"channel":"final"}]"#);
    }

    #[test]
    fn events_by_themselves_are_read_too() {
        let old = r#"[{"at":5,"kind":"tokens","count":1,"channel":"final"},{"at":15,"kind":"tokens","count":2,"channel":"final"}]"#;
        assert_eq!(read(old).unwrap(), [tokens(5, 1), tokens(15, 2)]);
    }

    #[test]
    fn what_no_stream_can_be_is_refused() {
        for (events, problem) in [
            (r#"[{"at":5,"kind":"stream","channel":"final"}]"#, "missing field `gaps`"),
            (r#"[{"at":5,"kind":"stream","gaps":[1]}]"#, "missing field `channel`"),
            (
                r#"[{"at":5,"kind":"stream","channel":"final","gaps":[1],"counts":[1]}]"#,
                "1 counts for 2 arrivals",
            ),
            (
                r#"[{"at":5,"kind":"stream","channel":"final","gaps":[18446744073709551615]}]"#,
                "beyond the clock",
            ),
            (r#"[{"at":5,"kind":"stream","channel":"final","gaps":[-1]}]"#, "invalid value"),
            (r#"[{"at":5,"kind":"tokens","channel":"final"}]"#, "missing field `count`"),
            (r#"[{"at":5,"kind":"nothing"}]"#, "unknown variant `nothing`"),
        ] {
            let error = read(events).unwrap_err();
            assert!(error.contains(problem), "{events}: {error}");
        }
    }

    /// Adding a kind of event must add it here: the match has no other arm.
    fn known(kind: &EventKind) {
        match kind {
            EventKind::Intended
            | EventKind::Sent
            | EventKind::FirstByte
            | EventKind::EmptyChunk
            | EventKind::Tokens { .. }
            | EventKind::Counted { .. }
            | EventKind::Done { .. }
            | EventKind::Failed { .. } => {}
        }
    }

    fn any_kind() -> impl Strategy<Value = EventKind> {
        let channel = || prop_oneof![Just(Channel::Final), Just(Channel::Reasoning), Just(Channel::Tool)];
        let counted = (any::<u32>(), any::<u32>(), any::<Option<u32>>());
        prop_oneof![
            1 => Just(EventKind::Intended),
            1 => Just(EventKind::Sent),
            1 => Just(EventKind::FirstByte),
            1 => Just(EventKind::EmptyChunk),
            1 => Just(EventKind::Done { finish: FinishReason::ToolCalls }),
            1 => counted.prop_map(|(prompt_tokens, output_tokens, cached_prompt_tokens)| EventKind::Counted {
                prompt_tokens,
                output_tokens,
                cached_prompt_tokens,
                source: CountSource::Tokenizer,
            }),
            1 => ".*".prop_map(|message| EventKind::Failed { failure: FailureKind::BadFrame, message }),
            12 => (0_u32..3, channel()).prop_map(|(count, channel)| EventKind::Tokens { count, channel }),
            12 => Just(EventKind::Tokens { count: 1, channel: Channel::Final }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            events in proptest::collection::vec((prop_oneof![0_u64..50, any::<u64>()], any_kind()), 0..60)
        ) {
            let events: Vec<_> = events.into_iter().map(|(at, kind)| Event { at: Nanos(at), kind }).collect();
            for event in &events {
                known(&event.kind);
            }
            let trace = trace(events);
            let text = serde_json::to_string(&trace).unwrap();
            prop_assert_eq!(serde_json::from_str::<RequestTrace>(&text).unwrap(), trace);
        }
    }
}
