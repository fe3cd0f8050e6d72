//! The framing of a stream, and how it ends.

use super::*;

const ROLE: &str = r#"data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
const HI: &str = r#"data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}"#;
const STOP: &str = r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1}}"#;
const DONE: &str = "data: [DONE]";

fn joined(lines: &[&str], line_end: &str) -> String {
    lines.iter().flat_map(|line| [line, line_end, line_end]).collect()
}

#[test]
fn answer_in_good_order_has_one_stamp_per_read() {
    let ends = format!("{STOP}\n\n{USAGE}\n\n");
    check(
        &[
            (10, &format!("{ROLE}\n\n")),
            (20, &format!("{HI}\n\n")),
            (30, &format!("{HI}\n\n{HI}\n\n")),
            (40, &ends),
            (50, &format!("{DONE}\n\n")),
        ],
        60,
        "10 empty
         20 final ?
         30 final ?
         30 final ?
         40 empty
         40 empty
         40 usage 7 1
         50 done Stop",
    );
}

#[test]
fn reads_and_shared_stamps_are_counted() {
    let mut reader = AnswerReader::new(&ReaderOptions::default());
    reader.sent(5);
    reader.first_byte(10);
    let all = joined(&[ROLE, HI, HI, STOP, DONE], "\n");
    let (one, two) = all.split_at(ROLE.len() + 2 + HI.len() + 20);
    reader.feed(10, &one.as_bytes()[..9]);
    reader.feed(10, &one.as_bytes()[9..]);
    assert!(reader.has_tokens());
    assert_eq!(reader.feed(20, two.as_bytes()), Progress::Complete);
    assert_eq!(reader.feed(30, b"data: more"), Progress::Complete);
    assert_eq!(reader.end(40, BodyEnd::Clean), Progress::Complete);
    let exchange = reader.into_exchange(true);
    assert_eq!(
        told(&exchange),
        "5 sent\n10 first byte\n10 empty\n10 final ?\n20 final ?\n20 empty\n20 done Stop\n"
    );
    let reads = exchange.reads;
    assert_eq!((reads.reads, reads.bytes, reads.events, reads.shared), (2, all.len() as u64, 5, 3));
    assert!(exchange.reusable);
    assert_eq!(exchange.text, None);
}

#[test]
fn line_ends_of_every_kind_also_mixed() {
    let expected = "1 empty\n1 final ?\n1 empty\n1 done Stop";
    for line_end in ["\n", "\r\n", "\r"] {
        check(&[(1, &joined(&[ROLE, HI, STOP, DONE], line_end))], 2, expected);
    }
    check(&[(1, &format!("{ROLE}\r\n\n{HI}\n\r\n{STOP}\r\r{DONE}\n\r"))], 2, expected);
}

#[test]
fn carriage_return_at_the_end_of_a_read_is_half_a_line_end() {
    // The LF that follows is no blank line of its own: the two data lines are one event.
    let (one, two) = HI.split_at(HI.find("{\"index").unwrap());
    check(
        &[
            (1, &format!("{one}\r")),
            (2, &format!("\ndata: {two}\r")),
            (3, "\n\r"),
            (4, &format!("\n{STOP}\r\n\r\n")),
        ],
        5,
        "2 final ?\n4 empty\n5 done Stop",
    );
}

#[test]
fn stamp_is_that_of_the_last_byte_of_data() {
    // The blank line comes later; so does the whole line end; so does everything but the last byte.
    let (most, last) = HI.split_at(HI.len() - 1);
    check(
        &[
            (10, &format!("{HI}\n")),
            (11, "\n"),
            (20, HI),
            (21, "\n\n"),
            (30, most),
            (31, last),
            (32, "\r"),
            (33, "\n"),
            (34, "id: 4\r\n"),
            (35, ": still the same event\n"),
            (36, "\r\n"),
            (40, STOP),
            (41, "\n\n"),
        ],
        50,
        "10 final ?\n20 final ?\n31 final ?\n40 empty\n50 done Stop",
    );
}

#[test]
fn every_event_has_the_stamp_of_its_data_byte_by_byte() {
    let all = joined(&[ROLE, HI, STOP, DONE], "\r\n");
    let reads: Vec<Read<'_>> =
        all.as_bytes().chunks(1).enumerate().map(|(i, byte)| (i as u64, byte)).collect();
    let exchange = replay(&ReaderOptions::default(), &reads, 9999, BodyEnd::Clean);
    let mut end = 0;
    let mut ends = Vec::new();
    for line in [ROLE, HI, STOP, DONE] {
        ends.push(end + line.len() as u64 - 1);
        end += line.len() as u64 + 4;
    }
    assert_eq!(exchange.events.iter().map(|event| event.at_ns).collect::<Vec<_>>(), ends);
    assert_eq!(exchange.reads.shared, 0);
}

#[test]
fn comments_are_empty_chunks() {
    check(
        &[(1, ": keep-alive\n\n"), (2, ":\n"), (3, &format!("{HI}\n\n:ping\n\n{STOP}\n\n"))],
        4,
        "1 empty\n2 empty\n3 final ?\n3 empty\n3 empty\n4 done Stop",
    );
}

#[test]
fn fields_without_space_and_fields_that_say_nothing() {
    let bare = HI.replacen("data: ", "data:", 1);
    check(
        &[(
            1,
            &format!(
                "id: 1\nretry: 10\nevent: message\n{bare}\n\nid\nunknown: x\n\ndata\n\ndata:\n\n\
                 {STOP}\n\ndata:[DONE]\n\n"
            ),
        )],
        2,
        "1 final ?\n1 empty\n1 empty\n1 empty\n1 done Stop",
    );
}

#[test]
fn data_of_several_lines_is_joined() {
    let (one, two) = HI.split_at(HI.find("\"delta").unwrap());
    check(
        &[
            (1, &format!("{one}\nevent: message\n")),
            (2, &format!("data:{two}\n")),
            (3, &format!("\n{STOP}\n\n")),
        ],
        4,
        "2 final ?\n3 empty\n4 done Stop",
    );
}

#[test]
fn byte_order_mark_at_the_start_is_skipped() {
    check(&[(1, &format!("\u{feff}{HI}\n\n{STOP}\n\n"))], 2, "1 final ?\n1 empty\n2 done Stop");
}

#[test]
fn utf8_is_looked_at_whole() {
    let text = HI.replace("Hi", "ü€😀");
    check(&[(1, &format!("{text}\n\n{STOP}\n\n"))], 2, "1 final ?\n1 empty\n2 done Stop");
    let bad: Vec<u8> =
        HI.bytes().map(|byte| if byte == b'H' { 0xff } else { byte }).chain(*b"\n\n").collect();
    let exchange = replay(&ReaderOptions::default(), &[(1, &bad)], 2, BodyEnd::Clean);
    assert!(told(&exchange).starts_with("1 failed BadFrame: no UTF-8: invalid utf-8"), "{}", told(&exchange));
}

#[test]
fn done_may_be_missing_or_without_its_line_end() {
    let answer = format!("{HI}\n\n{STOP}\n\n");
    check(&[(1, &answer)], 9, "1 final ?\n1 empty\n9 done Stop");
    check(&[(1, &answer), (2, DONE)], 9, "1 final ?\n1 empty\n2 done Stop");
    check(&[(1, &answer), (2, "data: [DO")], 9, "1 final ?\n1 empty\n9 done Stop");
    check(&[(1, &format!("{HI}\n\n{STOP}"))], 9, "1 final ?\n1 empty\n9 done Stop");
}

#[test]
fn nothing_after_done_is_read() {
    check(
        &[(1, &format!("{HI}\n\n{STOP}\n\n{DONE}\n\n{HI}\n\ngarbage")), (2, "event: error\ndata: x\n\n")],
        9,
        "1 final ?\n1 empty\n1 done Stop",
    );
}

#[test]
fn usage_after_the_finish_is_waited_for_and_the_last_one_counts() {
    let usage = |n: u32| {
        let chunk =
            r#"{"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":7,"completion_tokens":N}}"#;
        format!("data: {}\n\n", chunk.replace('N', &n.to_string()))
    };
    check(
        &[
            (1, &usage(1)),
            (2, &usage(2)),
            (3, &format!("{STOP}\n\n")),
            (4, &format!("{USAGE}\n\n{DONE}\n\n")),
        ],
        9,
        "1 final 1\n2 final 1\n3 empty\n4 empty\n4 usage 7 1\n4 done Stop",
    );
    // Without one at the end it stands where it came.
    check(
        &[(1, &usage(1)), (2, &usage(2)), (3, &format!("{STOP}\n\n"))],
        9,
        "1 final 1\n2 final 1\n2 usage 7 2\n3 empty\n9 done Stop",
    );
}

#[test]
fn end_without_finish_reason_is_a_truncated_stream() {
    let told_done = "failed TruncatedStream: [DONE] ended the answer without a finish reason";
    let told_body = "failed TruncatedStream: the body ended the answer without a finish reason";
    check(&[(1, &format!("{HI}\n\n{DONE}\n\n"))], 9, &format!("1 final ?\n1 {told_done}"));
    check(&[(1, &format!("{HI}\n\n"))], 9, &format!("1 final ?\n9 {told_body}"));
    check(&[(1, &format!("{HI}\n\n{HI}"))], 9, &format!("1 final ?\n1 final ?\n9 {told_body}"));
    check(&[(1, &format!("{HI}\n\n")), (2, &HI[..40])], 9, &format!("1 final ?\n9 {told_body}"));
    check(&[(1, &format!("{USAGE}\n\n"))], 9, &format!("1 empty\n1 usage 7 1\n9 {told_body}"));
    check(&[], 9, &format!("9 {told_body}"));
}

#[test]
fn broken_connection_is_a_truncated_stream_unless_the_answer_was_finished() {
    let broken = || (9, BodyEnd::Broken("reset by peer".to_owned()));
    let told = "failed TruncatedStream: the connection broke before a finish reason: reset by peer";
    let script = |text: &str, expected: &str| {
        check_form(AnswerForm::Stream, &[(1, text.as_bytes())], broken(), expected);
    };
    script(&format!("{HI}\n\n"), &format!("1 final ?\n9 {told}"));
    script(&format!("{HI}\n\n{}", &HI[..30]), &format!("1 final ?\n9 {told}"));
    // What had arrived whole counts, blank line or not.
    script(&format!("{HI}\n"), &format!("1 final ?\n9 {told}"));
    script("", &format!("9 {told}"));
    script("<html>", &format!("9 {told}"));
    script(&format!("{HI}\n\n{STOP}\n\n"), "1 final ?\n1 empty\n9 done Stop");
}

#[test]
fn finish_without_token_is_an_empty_answer() {
    let told = "failed EmptyAnswer: finished (Stop) without a token";
    check(&[(1, &format!("{ROLE}\n\n{STOP}\n\n{DONE}\n\n"))], 9, &format!("1 empty\n1 empty\n1 {told}"));
    check(&[(1, &format!("{STOP}\n\n"))], 9, &format!("1 empty\n9 {told}"));
}

#[test]
fn text_and_finish_in_one_chunk_are_token_and_finish() {
    let last = HI.replace("null", "\"length\"");
    check(&[(1, &format!("{HI}\n\n{last}\n\n"))], 9, "1 final ?\n1 final ?\n9 done Length");
}

#[test]
fn error_events_fail_after_a_200() {
    let told = "failed ErrorEvent: the server reports an error";
    let script = |text: &str, said: &str| {
        let all = format!("{HI}\n\n{text}\n\n{HI}\n\n{STOP}\n\n");
        check(&[(1, &all)], 9, &format!("1 final ?\n1 {told}: {said}"));
    };
    script("event: error\ndata: {\"message\":\"out of memory\"}", "out of memory");
    script("event: error\ndata: out of memory", "out of memory");
    script("event:error", "without words");
    script(
        r#"data: {"error":{"message":"too long","type":"bad_request","code":400}}"#,
        "too long, bad_request, code 400",
    );
    script(r#"data: {"error":{"message":{"a":1},"code":"x"}}"#, "code x");
    script(r#"data: {"error":{}}"#, "without words");
    script(r#"data: {"error":"overloaded","error_type":"overloaded"}"#, "overloaded");
    script(r#"data: {"error":true}"#, "without words");
    script(r#"data: {"object":"error","message":"no such model","code":404}"#, "no such model");
    // llama.cpp until September 2025.
    script(r#"error: {"code":400,"message":"context is full"}"#, "context is full");
    // No error at all.
    let none = HI.replacen("{\"choices\"", "{\"error\":null,\"choices\"", 1);
    check(&[(1, &format!("{none}\n\n{STOP}\n\n"))], 9, "1 final ?\n1 empty\n9 done Stop");
}

#[test]
fn reasons_of_every_kind() {
    let script = |reason: &str, expected: &str| {
        let last = STOP.replace("\"stop\"", reason);
        check(&[(1, &format!("{HI}\n\n{last}\n\n"))], 9, &format!("1 final ?\n1 empty\n{expected}"));
    };
    for (word, finish) in [
        ("stop", "Stop"),
        ("eos_token", "Stop"),
        ("length", "Length"),
        ("tool_calls", "ToolCalls"),
        ("function_call", "ToolCalls"),
        ("content_filter", "ContentFilter"),
    ] {
        script(&format!("\"{word}\""), &format!("9 done {finish}"));
    }
    let truncated = "9 failed TruncatedStream: the body ended the answer without a finish reason";
    script("null", truncated);
    script("\"\"", truncated);
    script("\"abort\"", "1 failed ErrorEvent: the server gave the answer up with finish reason \"abort\"");
    script(
        "\"tired\"",
        "1 failed BadFrame: unknown finish reason \"tired\"; known are stop, length, tool_calls, \
         function_call, content_filter, eos, eos_token, stop_sequence, end_turn, max_tokens, \
         model_length, tool_use, abort, aborted, cancelled, canceled, error",
    );
}

#[test]
fn what_is_no_chunk_is_a_bad_frame() {
    let script = |text: &str, expected: &str| {
        check(
            &[(1, &format!("{HI}\n\ndata: {text}\n\n{STOP}\n\n"))],
            9,
            &format!("1 final ?\n1 failed BadFrame: {expected}"),
        );
    };
    script("{oops}", "no JSON of an answer: key must be a string at line 1 column 2, in {oops}");
    script(
        "{\"choices\":[",
        "no JSON of an answer: EOF while parsing a list at line 1 column 12, in {\"choices\":[",
    );
    script("[1, 2]", "no JSON object, in [1, 2]");
    script("hello", "no JSON object, in hello");
    script(
        r#"{"choices":[null]}"#,
        "no JSON of an answer: invalid type: null, expected a choice at line 1 column 16, in \
         {\"choices\":[null]}",
    );
    script(
        r#"{"choices":[{"text":5}]}"#,
        "no JSON of an answer: invalid type: integer `5`, expected text, or a list of parts with text at \
         line 1 column 21, in {\"choices\":[{\"text\":5}]}",
    );
}

#[test]
fn body_that_is_no_stream_is_a_bad_frame_with_its_beginning() {
    let told = "failed BadFrame: no server-sent events in the answer; it begins with";
    check(&[(1, "<html>\n<body>busy</body>\n")], 9, &format!("9 {told} <html>"));
    check(&[(1, r#"{"detail":"busy"}"#)], 9, &format!("9 {told} {{\"detail\":\"busy\"}}"));
}

#[test]
fn endless_lines_and_events_end() {
    let options = ReaderOptions { limit_bytes: 1000, ..ReaderOptions::default() };
    let told = "failed BadFrame: endless line: more than 1000 bytes without the end of an event";
    let mut line = b"data: ".to_vec();
    line.resize(1000, b'x');
    for (bytes, fails) in
        [(&line, false), (&[&line[..], b"x"].concat(), true), (&[&line[..], b"\nx"].concat(), false)]
    {
        for size in [1, 7, 1000, 5000] {
            let reads: Vec<Read<'_>> = bytes.chunks(size).map(|bytes| (1, bytes)).collect();
            let exchange = replay(&options, &reads, 2, BodyEnd::Clean);
            assert_eq!(untimed(&exchange).contains(told), fails, "{}", untimed(&exchange));
        }
    }
    let mut reader = AnswerReader::new(&options);
    let mut reads = 0;
    while reads < 1000 && reader.feed(reads, b"data: short\n") == Progress::Reading {
        reads += 1;
    }
    // 5 bytes of text and the LF that joins it to the next.
    assert_eq!(reads, 166);
    assert_eq!(untimed(&reader.into_exchange(true)), format!("{told}\n"));
}

#[test]
fn endless_empty_chunks_end() {
    let options = ReaderOptions { limit_events: 100, ..ReaderOptions::default() };
    let mut reader = AnswerReader::new(&options);
    for _ in 0..100 {
        reader.feed(1, b":\n:\n:\n");
    }
    let exchange = reader.into_exchange(true);
    assert_eq!(exchange.events.len(), 101);
    assert!(untimed(&exchange).ends_with("failed BadFrame: endless stream: more than 100 events\n"));
    assert!(!exchange.reusable);
}

#[test]
fn caller_gives_up() {
    use bench_http::Failure;
    let give_up = |text: &str| {
        let mut reader = AnswerReader::new(&ReaderOptions::default());
        reader.feed(1, text.as_bytes());
        reader.fail(5, Failure::Timeout, "between tokens".to_owned());
        assert_ne!(reader.progress(), Progress::Reading);
        told(&reader.into_exchange(true))
    };
    assert_eq!(give_up(&format!("{HI}\n\n{}", &HI[..20])), "1 final ?\n5 failed Timeout: between tokens\n");
    assert_eq!(give_up(&format!("{HI}\n")), "1 final ?\n5 failed Timeout: between tokens\n");
    assert_eq!(give_up(&format!("{HI}\n\n{STOP}\n\n{DONE}\n\n")), "1 final ?\n1 empty\n1 done Stop\n");
    let left = AnswerReader::new(&ReaderOptions::default()).into_exchange(true);
    assert_eq!(told(&left), "0 failed TruncatedStream: the answer was left before its end\n");
}
