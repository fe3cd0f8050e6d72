//! The shapes that servers give to chunks and to whole answers.

use super::*;

const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;

/// One chunk, then a finish; gives what the chunk is told as.
#[track_caller]
fn check_chunk(chunk: &str, expected: &str) {
    let failed = expected.contains("failed");
    let rest = if failed { "" } else { "\n2 empty\n9 done Stop" };
    // A token first, so that a chunk without one is no empty answer.
    let first = r#"{"choices":[{"index":0,"text":"a","token_ids":[1]}]}"#;
    check(
        &[
            (0, &format!("data: {first}\n\n")),
            (1, &format!("data: {chunk}\n\n")),
            (2, &format!("data: {STOP}\n\n")),
        ],
        9,
        &format!("0 final 1\n{expected}{rest}"),
    );
}

#[track_caller]
fn check_delta(delta: &str, expected: &str) {
    check_chunk(&format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#), expected);
}

#[test]
fn channels() {
    check_delta(r#"{"content":"x"}"#, "1 final ?");
    check_delta(r#"{"content":" "}"#, "1 final ?");
    check_delta(r#"{"content":"\n\"\u00fc"}"#, "1 final ?");
    check_delta(r#"{"reasoning":"x"}"#, "1 reasoning ?");
    check_delta(r#"{"reasoning_content":"x"}"#, "1 reasoning ?");
    check_delta(r#"{"reasoning":"x","reasoning_content":"x"}"#, "1 reasoning ?");
    check_delta(r#"{"content":null,"reasoning":"","reasoning_content":"x"}"#, "1 reasoning ?");
    check_delta(r#"{"content":"x","reasoning":"y"}"#, "1 final ?");
    check_chunk(r#"{"choices":[{"index":0,"text":"x","logprobs":null,"finish_reason":null}]}"#, "1 final ?");
}

#[test]
fn chunks_without_text() {
    for delta in [
        r#"{"role":"assistant"}"#,
        r#"{"role":"assistant","content":""}"#,
        r#"{"content":null}"#,
        r#"{"content":[]}"#,
        r#"{"content":[{"type":"text","text":""}, null, 3]}"#,
        "{}",
        "null",
    ] {
        check_delta(delta, "1 empty");
    }
    for chunk in
        ["{}", r#"{"choices":null}"#, r#"{"choices":[]}"#, r#"{"choices":[{}],"usage":null,"error":null}"#]
    {
        check_chunk(chunk, "1 empty");
    }
}

#[test]
fn content_in_parts() {
    check_delta(r#"{"content":[{"type":"text","text":"x"},{"type":"text","text":"y\n"}]}"#, "1 final ?");
}

#[test]
fn half_a_surrogate_pair_is_text() {
    check_delta(r#"{"content":"\ud83d"}"#, "1 final ?");
}

#[test]
fn tool_calls_are_tokens_by_their_arguments() {
    check_delta(
        r#"{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":""}}]}"#,
        "1 empty",
    );
    check_delta(r#"{"tool_calls":[{"index":0,"function":{"name":"f"}}]}"#, "1 empty");
    check_delta(r#"{"tool_calls":[{"index":0,"function":{"arguments":"{\""}}]}"#, "1 tool ?");
    check_delta(
        r#"{"tool_calls":[{"index":0},{"index":1,"function":{"name":"f","arguments":"{"}}]}"#,
        "1 tool ?",
    );
    check_delta(
        r#"{"content":null,"tool_calls":null,"function_call":{"name":"f","arguments":"{}"}}"#,
        "1 tool ?",
    );
}

#[test]
fn several_tokens_in_one_chunk() {
    let chunk = |members: &str, usage: &str| {
        format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"x y z"}}{members}}}]{usage}}}"#)
    };
    let ids = r#","token_ids":[5,6,7]"#;
    let chat = concat!(
        r#","logprobs":{"content":[{"token":"x","logprob":-1,"top_logprobs":[]},"#,
        r#"{"token":"y"}],"refusal":null}"#
    );
    let completions =
        r#","logprobs":{"tokens":["x","y","z","!"],"token_logprobs":[-1,-2,-3,-4],"text_offset":[0]}"#;
    let usage = r#","usage":{"prompt_tokens":9,"completion_tokens":6}"#;
    check_chunk(&chunk(ids, ""), "1 final 3");
    check_chunk(&chunk(chat, ""), "1 final 2");
    check_chunk(&chunk(completions, ""), "1 final 4");
    check_chunk(&chunk(&format!("{chat}{ids}"), ""), "1 final 3");
    // The first chunk of the script brought one of the six.
    check_chunk(&chunk(&format!("{chat}{ids}"), usage), "1 final 5\n1 usage 9 6");
    check_chunk(&chunk(r#","token_ids":null,"logprobs":{"content":null}"#, r#","usage":null"#), "1 final ?");
}

#[test]
fn only_the_first_choice_is_read() {
    check_chunk(
        r#"{"choices":[{"index":1,"text":"x"},{"index":0,"text":"y","token_ids":[1,2]}]}"#,
        "1 final 2",
    );
    check_chunk(r#"{"choices":[{"index":0,"text":""},{"index":1,"text":"y"}]}"#, "1 empty");
    check_chunk(r#"{"choices":[{"index":1,"text":"x","finish_reason":"abort"}]}"#, "1 empty");
}

#[test]
fn counts_of_the_server() {
    check_chunk(
        r#"{"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120,
            "prompt_tokens_details":{"cached_tokens":64},
            "completion_tokens_details":{"reasoning_tokens":5}}}"#
            .replace('\n', "")
            .as_str(),
        "1 empty\n1 usage 100 20 cached 64 reasoning 5",
    );
    check_chunk(
        concat!(
            r#"{"choices":[],"usage":{"prompt_tokens":1.0,"completion_tokens":-3,"#,
            r#""prompt_tokens_details":null,"reasoning_tokens":4}}"#
        ),
        "1 empty\n1 usage 1 ? reasoning 4",
    );
    for nothing in ["{}", "null", "[]", "\"none\"", "7", r#"{"prompt_tokens":"9","completion_tokens":1.5}"#] {
        check_chunk(&format!(r#"{{"choices":[],"usage":{nothing}}}"#), "1 empty");
    }
}

#[test]
fn times_of_the_server() {
    // vLLM counts to the first token from the end of the queue; here it is from the arrival.
    check_chunk(
        concat!(
            r#"{"choices":[],"usage":{"prompt_tokens":42,"completion_tokens":128},"#,
            r#""metrics":{"time_to_first_token_ms":85.25,"generation_time_ms":1240.5,"#,
            r#""queue_time_ms":12.5,"mean_itl_ms":9.1,"tokens_per_second":103.2}}"#
        ),
        "1 empty\n1 usage 42 128\n1 server 12.5 97.75 1240.5 ms ? ? ?",
    );
    check_chunk(
        r#"{"choices":[],"metrics":{"time_to_first_token_ms":85.25,"generation_time_ms":null}}"#,
        "1 empty\n1 server ? 85.25 ? ms ? ? ?",
    );
    check_chunk(
        concat!(
            r#"{"choices":[],"timings":{"cache_n":60,"prompt_n":8,"prompt_ms":43.25,"#,
            r#""predicted_n":25,"predicted_ms":238.5,"predicted_per_second":104.7}}"#
        ),
        "1 empty\n1 server ? 43.25 238.5 ms 8 60 25",
    );
    check_chunk(r#"{"choices":[],"metrics":null,"timings":{}}"#, "1 empty");
}

#[test]
fn running_count_of_llama_cpp_is_in_its_timings() {
    check_chunk(
        r#"{"choices":[{"index":0,"delta":{"content":"x y"}}],"timings":{"prompt_n":8,"predicted_n":3}}"#,
        "1 final 2\n1 server ? ? ? ms 8 ? 3",
    );
}

#[test]
fn whole_answers_are_one_event_at_the_last_read() {
    let end = || (9, BodyEnd::Clean);
    let script = |reads: &[Read<'_>], expected: &str| check_form(AnswerForm::Whole, reads, end(), expected);
    script(
        &[
            (
                3,
                concat!(
                    r#"{"id":"a","object":"chat.completion","choices":[{"index":0,"#,
                    r#""message":{"role":"assistant","content":"Hi"#
                )
                .as_bytes(),
            ),
            (
                5,
                concat!(
                    r#" there","reasoning":"hm"},"finish_reason":"length"}],"usage":{"prompt_tokens":4,"#,
                    r#""completion_tokens":9}}"#
                )
                .as_bytes(),
            ),
        ],
        "5 final 9\n5 usage 4 9\n9 done Length",
    );
    script(
        &[(1, b" \n{\"choices\":[{\"text\":\"Hi\",\"token_ids\":[1,2],\"finish_reason\":\"stop\"}]}\n")],
        "1 final 2\n9 done Stop",
    );
    script(
        &[(
            1,
            concat!(
                r#"{"choices":[{"message":{"content":null,"tool_calls":[{"function":{"name":"f","#,
                r#""arguments":"{}"}}]},"finish_reason":"tool_calls"}]}"#
            )
            .as_bytes(),
        )],
        "1 tool ?\n9 done ToolCalls",
    );
    let truncated = "failed TruncatedStream: the body ended the answer without a finish reason";
    script(&[], &format!("9 {truncated}"));
    script(&[(1, br#"{"choices":[{"message":{"content":"Hi"}"#)], &format!("9 {truncated}"));
    script(&[(1, br#"{"choices":[{"text":"Hi"}]}"#)], &format!("1 final ?\n9 {truncated}"));
    script(
        &[(1, br#"{"choices":[{"text":"","finish_reason":"stop"}]}"#)],
        "1 empty\n9 failed EmptyAnswer: finished (Stop) without a token",
    );
    script(&[(1, br#"{"error":"busy"}"#)], "1 failed ErrorEvent: the server reports an error: busy");
    script(&[(1, b"<html>\x07busy")], "1 failed BadFrame: no JSON object, in <html> busy");
    check_form(
        AnswerForm::Whole,
        &[(1, br#"{"choices":[{"text":"Hi","finish_reason":"stop"}]}"#)],
        (9, BodyEnd::Broken("reset".to_owned())),
        "9 failed TruncatedStream: the connection broke before a finish reason: reset",
    );
}

#[test]
fn whole_answer_has_a_bound() {
    let options = ReaderOptions { form: AnswerForm::Whole, limit_bytes: 10, ..ReaderOptions::default() };
    let exchange = replay(&options, &[(1, b"12345"), (2, b"67890"), (3, b"1")], 4, BodyEnd::Clean);
    assert_eq!(told(&exchange), "3 failed BadFrame: endless answer: more than 10 bytes\n");
}

#[test]
fn text_is_kept_where_it_is_asked_for() {
    let all = [
        r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
        r#"{"choices":[{"delta":{"reasoning":"think ","reasoning_content":"think "}}]}"#,
        r#"{"choices":[{"delta":{"reasoning_content":"ing\n"}}]}"#,
        r#"{"choices":[{"delta":{"content":"Gr\u00fc"}}]}"#,
        r#"{"choices":[{"delta":{"content":[{"text":"ße"},{"text":" \"you\""}]},"finish_reason":"stop"}]}"#,
    ];
    let all: String = all.iter().flat_map(|chunk| ["data: ", chunk, "\n\n"]).collect();
    for size in [1, 3, 1000] {
        let options = ReaderOptions { keep_text: true, ..ReaderOptions::default() };
        let reads: Vec<Read<'_>> = all.as_bytes().chunks(size).map(|bytes| (1, bytes)).collect();
        let text = replay(&options, &reads, 2, BodyEnd::Clean).text.unwrap();
        assert_eq!((text.content.as_str(), text.reasoning.as_str()), ("Grüße \"you\"", "think ing\n"));
    }
}

#[test]
fn messages_of_error_bodies() {
    for (body, expected) in [
        (
            r#"{"error":{"message":"no such model","type":"NotFoundError","param":null,"code":404}}"#,
            Some("no such model, NotFoundError, code 404"),
        ),
        (r#"{"object":"error","message":"no such model"}"#, Some("no such model")),
        (r#"{"detail":"Not Found"}"#, None),
        ("<html>", None),
    ] {
        assert_eq!(bench_http::error_message(body.as_bytes()).as_deref(), expected);
    }
}
