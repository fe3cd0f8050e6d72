//! Traces of a few lines, written here, through every format and option.

use super::*;
use crate::load::Schedule;
use std::fmt::Write as _;

const MOONCAKE: &str = r#"
{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 250, "input_length": 1500, "output_length": 7, "hash_ids": [0, 1, 3]}
{"timestamp": 1000.5, "input_length": 600, "output_length": 9, "hash_ids": [4, 5]}
"#;

const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 18:15:46.6805900,374,44\r
2023-11-16 18:15:50.6805901,396,109\r
2023-11-16 18:16:46.6805900,9,1\r\n";

const BURSTGPT: &str = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
";

fn read(text: &str, options: &ReplayOptions) -> Result<Replay> {
    options.check()?;
    let path = Path::new("trace");
    Replay::read(Lines::new(text.as_bytes(), path, LONGEST_LINE_BYTES), path, options)
}

fn replay(text: &str) -> Replay {
    read(text, &ReplayOptions::default()).unwrap()
}

fn message(text: &str) -> String {
    read(text, &ReplayOptions::default()).unwrap_err().to_string()
}

/// `at_ns prompt→output`, one for each request.
fn shape(replay: &Replay) -> Vec<String> {
    let line = |r: &ReplayRequest| format!("{} {}→{}", r.at_ns, r.prompt_tokens, r.output_tokens);
    replay.requests.iter().map(line).collect()
}

#[test]
fn mooncake_is_read() {
    let replay = replay(MOONCAKE);
    assert_eq!(replay.format, TraceFormat::Mooncake);
    assert_eq!(shape(&replay), ["0 1100→5", "250000000 1500→7", "1000500000 600→9"]);
    assert_eq!(replay.requests[1].blocks, [0, 1, 3]);
    assert_eq!(replay.left_out, LeftOut::default());
    assert_eq!(replay.notes, [""; 0]);
}

#[test]
fn azure_is_read_to_100_ns_from_its_first_request() {
    let replay = replay(AZURE);
    assert_eq!(replay.format, TraceFormat::Azure);
    assert_eq!(shape(&replay), ["0 374→44", "4000000100 396→109", "60000000000 9→1"]);
}

#[test]
fn failures_in_burstgpt_are_counted() {
    let replay = replay(BURSTGPT);
    assert_eq!(replay.format, TraceFormat::Burstgpt);
    assert_eq!(shape(&replay), ["0 472→18", "113000000000 417→276"]);
    assert_eq!(replay.left_out, LeftOut { without_output: 1, ..LeftOut::default() });
    assert_eq!(replay.notes, ["of 3 lines 1 are left out: 1 without an answer in the trace"]);
}

#[test]
fn columns_are_found_by_name() {
    let with_sessions =
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,\"a\",43,GPT-4,906,446,1352,Conversation log
19440111.25,b,2,ChatGPT,36.0,29.0,65,Conversation log
";
    assert_eq!(shape(&replay(with_sessions)), ["0 906→446", "1250000000 36→29"]);
}

#[test]
fn equal_leading_ids_are_equal_leading_pieces() {
    let replay = replay(MOONCAKE);
    let pieces = |i| replay.prompt_pieces(i, 7).unwrap();
    let tokens = |i| pieces(i).iter().map(|piece| piece.tokens).collect::<Vec<_>>();
    assert_eq!([tokens(0), tokens(1), tokens(2)], [vec![512, 512, 76], vec![512, 512, 476], vec![512, 88]]);
    assert_eq!(pieces(0)[..2], pieces(1)[..2]);
    assert_ne!(pieces(0)[2].seed, pieces(1)[2].seed);
    assert_eq!(replay.prompt_pieces(3, 7), None);
}

/// For random traces: as many leading pieces are equal as leading ids are, pieces make up the prompt's
/// length, and another salt shares nothing.
#[test]
fn exactly_the_shared_prefix_is_shared() {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
    let mut text = String::new();
    for at in 0..60 {
        let tokens: u32 = rng.random_range(1..6_000);
        let covered = tokens.div_ceil(512) - u32::from(rng.random_bool(0.2));
        let fork = rng.random_range(0..12);
        let ids: Vec<u32> = (0..covered).map(|i| if i < fork { i } else { 1_000 * (at + 1) + i }).collect();
        writeln!(
            text,
            r#"{{"timestamp":{at},"input_length":{tokens},"output_length":1,"hash_ids":{ids:?}}}"#
        )
        .unwrap();
    }
    let replay = replay(&text);
    let common = |a: &[u64], b: &[u64]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    for i in 0..replay.requests.len() {
        let seeds = |i, salt| -> Vec<u64> {
            replay.prompt_pieces(i, salt).unwrap().iter().map(|piece| piece.seed).collect()
        };
        let pieces = replay.prompt_pieces(i, 1).unwrap();
        let total: u32 = pieces.iter().map(|piece| piece.tokens).sum();
        assert_eq!(total, replay.requests[i].prompt_tokens);
        assert!(pieces.iter().rev().skip(1).all(|piece| piece.tokens == 512));
        assert_eq!(common(&seeds(i, 1), &seeds(i, 2)), 0, "another salt");
        for j in 0..i {
            let shared = common(&replay.requests[i].blocks, &replay.requests[j].blocks);
            assert_eq!(common(&seeds(i, 1), &seeds(j, 1)), shared, "{i} and {j}");
        }
    }
    let partly = replay.notes.iter().any(|note| note.contains("prompts are longer than their blocks"));
    assert!(partly, "{:?}", replay.notes);
}

#[test]
fn an_unsorted_trace_is_sorted_and_says_so() {
    let text = BURSTGPT.replace("118,", "2,");
    let replay = replay(&text);
    assert_eq!(shape(&replay), ["0 417→276", "3000000000 472→18"]);
    let order = "the trace is not in order of time (1 lines come after a later one): sorted";
    assert_eq!(replay.notes[0], order);
}

/// A trace of 100 lines, one for each second, with prompts of 1 to 100 tokens.
fn hundred() -> String {
    let lines = (0..100).map(|i| format!("{},m,{},3,0,x\n", i + 50, i + 1));
    let header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n".to_owned();
    std::iter::once(header).chain(lines).collect()
}

#[test]
fn every_line_is_sent_or_counted() {
    let base = ReplayOptions::default();
    let left = |left_out| left_out;
    let cases = [
        (base, 0, 100, left(LeftOut::default())),
        (
            ReplayOptions { limit: Some(30), ..base },
            0,
            30,
            LeftOut { beyond_limit: 70, ..LeftOut::default() },
        ),
        (
            ReplayOptions { start_s: Some(10.0), end_s: Some(20.0), ..base },
            10,
            10,
            LeftOut { outside_window: 90, ..LeftOut::default() },
        ),
        (
            ReplayOptions { max_prompt_tokens: Some(40), ..base },
            0,
            40,
            LeftOut { prompt_too_long: 60, ..LeftOut::default() },
        ),
        (
            ReplayOptions { start_s: Some(20.0), max_prompt_tokens: Some(40), limit: Some(5), ..base },
            20,
            5,
            LeftOut { outside_window: 20, prompt_too_long: 60, beyond_limit: 15, ..LeftOut::default() },
        ),
    ];
    for (options, first, count, left_out) in cases {
        let replay = read(&hundred(), &options).unwrap();
        assert_eq!(replay.requests.len(), count, "{options:?}");
        assert_eq!(replay.requests[0].prompt_tokens, first + 1, "{options:?}");
        assert_eq!(replay.requests[0].at_ns, 0, "{options:?}");
        assert_eq!(replay.left_out, left_out);
        assert_eq!(replay.requests.len() as u64 + replay.left_out.total(), 100);
    }
    let none = read(&hundred(), &ReplayOptions { max_output_tokens: Some(2), ..base }).unwrap_err();
    let why = "trace gives no request to send: every line is left out: 100 with too long an answer";
    assert_eq!(none.to_string(), why);
}

/// The limit keeps the earliest requests, also of a trace in reverse, and holds no more than those.
#[test]
fn a_limit_takes_the_earliest() {
    let reversed: Vec<String> = (0..100).rev().map(|i| format!("{i},m,{},3,0,x", i + 1)).collect();
    let text = format!("{}\n{}", BURSTGPT.lines().next().unwrap(), reversed.join("\n"));
    let replay = read(&text, &ReplayOptions { limit: Some(3), ..ReplayOptions::default() }).unwrap();
    assert_eq!(shape(&replay), ["0 1→3", "1000000000 2→3", "2000000000 3→3"]);
    assert!(replay.notes[0].contains("(99 lines"));
}

#[test]
fn speed_scales_instants_only() {
    let fast = read(MOONCAKE, &ReplayOptions { speed: 4.0, ..ReplayOptions::default() }).unwrap();
    assert_eq!(shape(&fast), ["0 1100→5", "62500000 1500→7", "250125000 600→9"]);
    assert_eq!(fast.notes, ["sent at 4 times the recorded speed"]);
    assert_ne!(fast.hash(), replay(MOONCAKE).hash());
    assert_eq!(Schedule::of_replay(&fast).intended_ns, [0, 62_500_000, 250_125_000]);
}

#[test]
fn the_hash_sees_instants_lengths_and_blocks() {
    let hash = replay(MOONCAKE).hash();
    assert_eq!(hash, replay(MOONCAKE).hash());
    let edits = [("250", "251"), ("1500", "1501"), (": 7", ": 8"), ("[4, 5]", "[4, 6]"), ("[4, 5]", "[4]")];
    for (from, to) in edits {
        assert_ne!(replay(&MOONCAKE.replacen(from, to, 1)).hash(), hash, "{from}");
    }
}

#[test]
fn a_bad_line_is_named_with_what_was_expected() {
    let case = |line: &str| message(&format!("{}\n{line}", MOONCAKE.trim()));
    assert_eq!(
        case(r#"{"timestamp": -1, "input_length": 1, "output_length": 1}"#),
        "trace, line 4: timestamp is \"-1\": expected milliseconds from 0 on"
    );
    assert_eq!(
        case(r#"{"timestamp": 1, "output_length": 1}"#),
        "trace, line 4: missing field `input_length` (column 36): expected an object with timestamp (ms), \
         input_length, output_length and hash_ids (whole numbers from 0 on)"
    );
    assert_eq!(
        case(r#"{"timestamp": 1, "input_length": 600, "output_length": 1, "hash_ids": [1, 2, 3]}"#),
        "trace, line 4: 3 hash_ids for input_length 600: expected at most 2, one for each 512 tokens; \
         set block_tokens if the trace has other blocks"
    );
    assert!(
        case(r#"{"timestamp": 1, "input_length": 1e12, "output_length": 1}"#).contains("input_length is")
    );
    assert!(
        case(r#"{"timestamp": 1, "input_length": 1, "output_length": 1, "chat_id": 5}"#).contains("Bailian")
    );
    assert!(case("{").contains("line 4: EOF while parsing"));
    assert!(case(&"x".repeat(LONGEST_LINE_BYTES + 1)).contains("line 4: expected a line of at most 1048576"));
}

#[test]
fn a_bad_row_is_named_with_what_was_expected() {
    let azure = |row: &str| message(&format!("{AZURE}{row}"));
    assert_eq!(
        azure("16.11.2023,1,1"),
        "trace, line 5: TIMESTAMP is \"16.11.2023\": expected a date and time such as \
         2023-11-16 18:15:46.6805900"
    );
    assert_eq!(
        azure("2023-11-16 18:15:46,1"),
        "trace, line 5: 2 fields: expected 3 as in the header, with TIMESTAMP, ContextTokens, GeneratedTokens"
    );
    assert_eq!(
        azure("2023-11-16 18:15:46,,1"),
        "trace, line 5: ContextTokens is \"\": expected a number of tokens from 0 to 16777216"
    );
    let burst = message(&format!("{BURSTGPT}now,m,1,1,2,x"));
    assert_eq!(burst, "trace, line 5: Timestamp is \"now\": expected seconds from 0 on");
}

#[test]
fn an_unknown_file_is_told_what_is_known() {
    let unknown = message("time,tokens\n1,2\n");
    assert!(
        unknown.starts_with("trace, line 1: not a known trace, it begins with \"time,tokens\""),
        "{unknown}"
    );
    for name in ["Mooncake", "Azure", "BurstGPT"] {
        assert!(unknown.contains(name));
    }
    assert!(message("[{\"conversations\": []}]").contains("not a known trace"));
    assert_eq!(message("\n\n"), "trace gives no request to send: the file is empty");
    let header = AZURE.lines().next().unwrap();
    assert_eq!(message(header), "trace gives no request to send: there is a header and nothing else");
    let forced = ReplayOptions { format: TraceFormat::Azure, ..ReplayOptions::default() };
    let error = read(BURSTGPT, &forced).unwrap_err().to_string();
    assert!(error.starts_with("trace, line 1: no column \"TIMESTAMP\""), "{error}");
}

#[test]
fn impossible_options_are_refused() {
    let base = ReplayOptions::default();
    let message = |options| read(MOONCAKE, &options).unwrap_err().to_string();
    let cases = [
        (ReplayOptions { speed: 0.0, ..base }, "speed is 0: expected a finite factor above 0"),
        (ReplayOptions { speed: f64::NAN, ..base }, "speed is NaN"),
        (ReplayOptions { start_s: Some(-1.0), ..base }, "start_s is -1"),
        (ReplayOptions { start_s: Some(2.0), end_s: Some(2.0), ..base }, "end_s is 2: expected more"),
        (ReplayOptions { limit: Some(0), ..base }, "limit is 0"),
        (ReplayOptions { block_tokens: 0, ..base }, "block_tokens is 0"),
    ];
    for (options, start) in cases {
        let message = message(options);
        assert!(message.starts_with(start), "{message}");
    }
}

#[test]
fn other_block_sizes_can_be_named() {
    let text = r#"{"timestamp": 1, "input_length": 40, "output_length": 1, "hash_ids": [1, 2, 3]}"#;
    let replay = read(text, &ReplayOptions { block_tokens: 16, ..ReplayOptions::default() }).unwrap();
    let tokens: Vec<u32> = replay.prompt_pieces(0, 0).unwrap().iter().map(|piece| piece.tokens).collect();
    assert_eq!(tokens, [16, 16, 8]);
}

#[test]
fn a_file_is_opened_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.csv");
    std::fs::write(&path, AZURE).unwrap();
    assert_eq!(Replay::open(&path, &ReplayOptions::default()).unwrap().requests.len(), 3);
    let missing = Replay::open(&folder.path().join("none"), &ReplayOptions::default()).unwrap_err();
    assert!(missing.to_string().contains("cannot read"), "{missing}");
}

#[test]
fn a_plan_reads_the_trace_it_was_made_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.csv");
    std::fs::write(&path, AZURE).unwrap();
    let mut plan = TracePlan {
        path: path.to_str().unwrap().to_owned(),
        hash: None,
        format: TraceFormat::Auto,
        speed: 2.0,
        limit: Some(2),
    };
    let replay = Replay::open_planned(&plan).unwrap();
    assert_eq!(shape(&replay), ["0 374→44", "2000000050 396→109"]);
    plan.hash = Some(replay.hash());
    assert_eq!(Replay::open_planned(&plan).unwrap(), replay);
    std::fs::write(&path, AZURE.replace("396", "397")).unwrap();
    let changed = Replay::open_planned(&plan).unwrap_err().to_string();
    assert!(changed.contains("is not what the plan was made with"), "{changed}");
}

/// Damaged files end in an error with their name, or in requests that hold what the options promise.
#[test]
fn damaged_traces_do_not_panic() {
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(8);
    let path = Path::new("trace");
    let options = ReplayOptions { limit: Some(2), speed: 1.5, end_s: Some(90.0), ..ReplayOptions::default() };
    let mut errors = 0;
    for round in 0..3_000 {
        let mut bytes = [MOONCAKE, AZURE, BURSTGPT][round % 3].as_bytes().to_vec();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = b"0123456789-+.:,{}[]\"\n \xc3\xff"[rng.random_range(0..24)],
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, bytes[at]),
            }
        }
        match Replay::read(Lines::new(&bytes[..], path, LONGEST_LINE_BYTES), path, &options) {
            Err(error) => {
                assert!(error.to_string().starts_with("trace"), "{error}");
                errors += 1;
            }
            Ok(replay) => {
                assert!((1..=2).contains(&replay.requests.len()) && replay.requests[0].at_ns == 0);
                assert!(replay.requests.is_sorted_by_key(|request| request.at_ns));
                assert!(replay.prompt_pieces(0, 1).is_some());
            }
        }
    }
    assert!((300..2_900).contains(&errors), "both outcomes occur: {errors} errors");
}
