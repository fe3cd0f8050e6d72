//! Properties that hold for any text and any ids.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::harmony::{Harmony, Message, RenderOptions, Role};
use super::{ChatFormat, Label, Piece, StreamText, Tokenizer, Utf8Stream};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::o200k_truncated(2_048).unwrap());

fn harmony() -> Harmony {
    Harmony::new(&TOKENIZER).unwrap()
}

fn format() -> ChatFormat {
    ChatFormat::Harmony {
        reasoning_effort: super::harmony::ReasoningEffort::Low,
        date: "2025-06-28".parse().unwrap(),
    }
}

/// Ids in which structure is frequent; some have no spelling.
fn any_ids() -> impl Strategy<Value = Vec<u32>> {
    let structure =
        ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"];
    let structure: Vec<u32> = structure.iter().map(|name| TOKENIZER.special_id(name).unwrap()).collect();
    prop::collection::vec(prop_oneof![3 => 0..2_200_u32, 1 => prop::sample::select(structure)], 0..200)
}

proptest! {
    #[test]
    fn encoding_loses_nothing(text in any::<String>()) {
        let ids = TOKENIZER.encode(&text).unwrap();
        prop_assert_eq!(TOKENIZER.decode(&ids), text.as_str());
        let mut stream = Utf8Stream::new();
        let mut streamed: String = ids.iter().map(|id| stream.push_token(&TOKENIZER, *id)).collect();
        streamed += &stream.finish();
        prop_assert_eq!(streamed, text);
    }

    #[test]
    fn specials_in_text_stay_text(before in ".{0,20}", after in ".{0,20}") {
        for special in ["<|end|>", "<|start|>", "<|return|>"] {
            let text = format!("{before}{special}{after}");
            let ids = TOKENIZER.encode(&text).unwrap();
            prop_assert!(ids.iter().all(|id| !TOKENIZER.is_special(*id)));
            prop_assert_eq!(TOKENIZER.decode(&ids), text);
        }
    }

    #[test]
    fn utf8_stream_is_lossy_decoding(bytes in any::<Vec<u8>>(), cut in 1..7_usize) {
        let mut stream = Utf8Stream::new();
        let mut streamed: String = bytes.chunks(cut).map(|chunk| stream.push(chunk)).collect();
        streamed += &stream.finish();
        prop_assert_eq!(streamed, String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn parsers_survive_anything(ids in any_ids(), given_role in any::<bool>()) {
        let mut parser = harmony().parser(given_role.then_some(Role::Assistant));
        for id in &ids {
            let _ = parser.process(*id);
        }
        let _ = parser.process_eos();
        for format in [format(), ChatFormat::Plain] {
            let mut stream = StreamText::new(&TOKENIZER, &format);
            let shown: usize = ids.iter().filter_map(|id| stream.push(*id)).map(|piece| piece.text.len()).sum();
            let rest = stream.finish().map_or(0, |piece| piece.text.len());
            // U+FFFD is three bytes long and may stand for one.
            prop_assert!(shown + rest <= 3 * TOKENIZER.decode_bytes(&ids).len());
        }
    }

    #[test]
    fn user_messages_read_back(texts in prop::collection::vec(any::<String>(), 1..4)) {
        let said: Vec<Message> = texts.iter().map(|text| Message::new(Role::User, text.as_str())).collect();
        let ids = harmony().render_conversation(&said, RenderOptions::default()).unwrap();
        prop_assert_eq!(harmony().parse_completion(&ids, None).unwrap(), said);
    }
}

#[track_caller]
fn check_stream(completion: &str, expected: &[(Label, &str)]) {
    let mut stream = StreamText::new(&TOKENIZER, &format());
    let ids = TOKENIZER.encode_with_specials(completion).unwrap();
    let mut shown: Vec<(Label, String)> = Vec::new();
    let mut pieces: Vec<Piece> = ids.iter().filter_map(|id| stream.push(*id)).collect();
    pieces.extend(stream.finish());
    for piece in pieces {
        match shown.last_mut().filter(|(label, _)| *label == piece.label) {
            Some((_, text)) => text.push_str(&piece.text),
            None => shown.push((piece.label, piece.text)),
        }
    }
    let shown: Vec<(Label, &str)> = shown.iter().map(|(label, text)| (*label, text.as_str())).collect();
    assert_eq!(shown, expected);
}

#[test]
fn channels_are_told_apart() {
    check_stream(
        "<|channel|>analysis<|message|>Hm 👋.<|end|><|start|>assistant<|channel|>final<|message|>Hi.<|return|>",
        &[(Label::Analysis, "Hm 👋."), (Label::Final, "Hi.")],
    );
    check_stream(
        " to=functions.now<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        &[(Label::Other, "{}")],
    );
    check_stream("No header at all<|end|> and more", &[(Label::Other, "No header at all and more")]);
    check_stream(
        "<|channel|>final<|message|>One<|channel|>analysis<|message|>two",
        &[(Label::Final, "One"), (Label::Analysis, "two")],
    );
}

#[test]
fn plain_streams_hide_specials() {
    let mut stream = StreamText::new(&TOKENIZER, &ChatFormat::Plain);
    let ids = TOKENIZER.encode_with_specials("a<|end|>é").unwrap();
    let text: String = ids.iter().filter_map(|id| stream.push(*id)).map(|piece| piece.text).collect();
    assert_eq!(text, "aé");
}
