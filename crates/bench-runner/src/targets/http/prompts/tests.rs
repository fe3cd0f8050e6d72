//! Lengths, salts, prefixes and blocks, by the tokenizers of the golden checkpoints and of gpt-oss.

use super::super::probe::Capabilities;
use super::*;
use crate::load::complete;
use bench_core::spec::RunSpec;
use bench_engine::text::Tokenizer;
use std::collections::HashSet;
use std::io::Write as _;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/");

fn plan(text: &str) -> Plan {
    let head = "[target]\nkind = \"http\"\n[server]\nbase_url = \"http://h\"\n";
    let mut spec = RunSpec::from_toml("t", &format!("{head}{text}")).unwrap();
    complete(&mut spec).unwrap();
    spec.resolve().unwrap()
}

/// A study of the model whose tokenizer lies in `golden`; `gpt-oss` is the embedded one.
fn study(golden: &str, more: &str) -> Plan {
    let tokenizer = match golden {
        "gpt-oss" => String::new(),
        folder => format!("tokenizer = {:?}\n", format!("{GOLDEN}{folder}")),
    };
    plan(&format!("[[models]]\nid = \"org/{golden}\"\n{tokenizer}{more}"))
}

fn source(plan: &Plan, api: Api, ids: bool) -> PromptSource {
    let capabilities = Capabilities { prompt_ids: ids, ..Capabilities::default() };
    let model = &plan.models[0];
    let vocabulary = Vocabulary::open(plan, model).unwrap().map(Arc::new);
    let served = Served::scripted(&model.id, api, capabilities);
    PromptSource::new(plan, model, &served, vocabulary).unwrap()
}

fn ids(source: &PromptSource, cell: &Cell, index: u64, warmup: bool) -> Vec<u32> {
    match source.request(cell, index, 0, warmup, &[]).unwrap().prompt {
        PromptBody::Tokens(ids) => ids,
        other => panic!("not ids: {other:?}"),
    }
}

fn text(source: &PromptSource, cell: &Cell, index: u64) -> String {
    match source.request(cell, index, 0, false, &[]).unwrap().prompt {
        PromptBody::Text(text) => text,
        other => panic!("not a text: {other:?}"),
    }
}

const PLAIN: &str = "chat = \"plain\"\n";

#[test]
fn ids_are_as_many_as_asked_with_the_format_around_them() {
    for golden in ["gpt-oss", "gpt-oss-tiny", "llama-tiny", "qwen3-tiny"] {
        let plan = study(golden, "[workload]\nprompt_tokens = [250, 273, 1000]\n");
        let source = source(&plan, Api::Completions, true);
        for cell in &plan.cells {
            for index in 0..20 {
                let request = source.request(cell, index, 0, false, &[]).unwrap();
                let PromptBody::Tokens(ids) = &request.prompt else { panic!("not ids") };
                let asked = request.lengths.prompt_tokens;
                assert_eq!((ids.len() as u32, asked), (cell.prompt_tokens, cell.prompt_tokens));
                assert!(request.prompt_is_known && request.said.is_none());
            }
        }
    }
    let plan = study("gpt-oss", "[workload]\nprompt_tokens = [30]\n");
    let error = source(&plan, Api::Completions, true).request(&plan.cells[0], 0, 0, false, &[]).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("30 tokens is too short") && error.contains("harmony"), "{error}");
}

#[test]
fn harmony_is_rendered_around_the_text() {
    let plan = study("gpt-oss", "[workload]\nprompt_tokens = [150]\n");
    let source = source(&plan, Api::Completions, true);
    let tokenizer = Tokenizer::o200k_harmony().unwrap();
    let text = tokenizer.decode(&ids(&source, &plan.cells[0], 3, false));
    assert!(text.starts_with("<|start|>system<|message|>You are ChatGPT"), "{text}");
    assert!(text.ends_with("<|end|><|start|>assistant"), "{text}");
    assert!(source.common_prefix_tokens() > 40);
}

#[test]
fn texts_encode_to_as_many_tokens_as_asked() {
    for golden in ["gpt-oss", "gpt-oss-tiny", "llama-tiny", "qwen3-tiny"] {
        for more in ["", "shared_prefix_tokens = 21\n"] {
            let text_of = format!("[workload]\n{PLAIN}prompt_tokens = [64, 99, 700]\n{more}");
            let plan = study(golden, &text_of);
            let source = source(&plan, Api::Completions, false);
            let vocabulary = source.vocabulary.clone().unwrap();
            for cell in &plan.cells {
                let counts: Vec<_> =
                    (0..12).map(|i| vocabulary.count(&text(&source, cell, i)).unwrap()).collect();
                assert!(counts.iter().all(|n| *n == cell.prompt_tokens), "{golden} {more}: {counts:?}");
            }
        }
    }
}

/// The first 8 tokens are 64 bits of salt: 4,000 prompts of two cells, half of them for warm-up, all begin
/// differently.
#[test]
fn no_two_prompts_begin_alike() {
    let plan = study("gpt-oss", &format!("[workload]\n{PLAIN}prompt_tokens = [24, 32]\n"));
    let source = source(&plan, Api::Completions, true);
    let mut heads = HashSet::new();
    for cell in &plan.cells {
        for index in 0..1_000 {
            for warmup in [false, true] {
                assert!(heads.insert(ids(&source, cell, index, warmup)[..8].to_vec()), "{} {index}", cell.id);
            }
        }
    }
    // The same plan makes the same prompts, another seed other ones.
    let again = self::source(&plan, Api::Completions, true);
    assert_eq!(ids(&again, &plan.cells[0], 7, false), ids(&source, &plan.cells[0], 7, false));
    let other = format!("[run]\nseed = 7\n[workload]\n{PLAIN}prompt_tokens = [24, 32]\n");
    let other = self::source(&study("gpt-oss", &other), Api::Completions, true);
    assert!(heads.insert(ids(&other, &plan.cells[0], 7, false)[..8].to_vec()));
}

#[test]
fn a_shared_prefix_is_shared_by_a_cell_and_nothing_more() {
    let more = format!("[workload]\n{PLAIN}prompt_tokens = [128, 200]\nshared_prefix_tokens = 50\n");
    let plan = study("gpt-oss", &more);
    let source = source(&plan, Api::Completions, true);
    let all: Vec<Vec<u32>> = (0..6).map(|i| ids(&source, &plan.cells[0], i, false)).collect();
    assert!(all.iter().all(|ids| ids[..50] == all[0][..50] && ids.len() == 128));
    let rest: HashSet<_> = all.iter().map(|ids| &ids[50..58]).collect();
    assert_eq!(rest.len(), 6);
    assert_eq!(ids(&source, &plan.cells[0], 0, true)[..50], all[0][..50], "warm-up fills the cache");
    assert_ne!(ids(&source, &plan.cells[1], 0, false)[..50], all[0][..50]);
}

#[test]
fn lengths_are_even_in_their_range_and_the_same_for_every_cell() {
    let more = "[workload]\nprompt_tokens = [1000]\noutput_tokens = [100]\nlength_range = 0.3\n\
                [load]\nconcurrency = [1, 4]\n";
    let plan = study("gpt-oss", more);
    let source = source(&plan, Api::Completions, true);
    let lengths = |cell: &Cell| -> Vec<Lengths> {
        let which = |number| Which { cell, number, turn: 0, warmup: false };
        (0..400).map(|number| source.lengths(which(number))).collect()
    };
    let of = lengths(&plan.cells[0]);
    assert_eq!(of, lengths(&plan.cells[1]));
    let least = of.iter().map(|l| l.prompt_tokens).min().unwrap();
    let most = of.iter().map(|l| l.prompt_tokens).max().unwrap();
    assert!((700..720).contains(&least) && (1281..=1300).contains(&most), "{least} {most}");
    let outputs: Vec<u32> = of.iter().map(|l| l.output_tokens).collect();
    let mean = f64::from(outputs.iter().sum::<u32>()) / 400.0;
    // 61 values: standard deviation 17.6, of the mean of 400 0.9.
    assert!(outputs.iter().all(|n| (70..=130).contains(n)) && (mean - 100.0).abs() < 4.0, "{mean}");
    let exact = ids(&source, &plan.cells[0], 5, false);
    assert_eq!(exact.len() as u32, of[5].prompt_tokens);
}

fn file(content: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

const TRACE: &str = "{\"timestamp\": 0, \"input_length\": 1200, \
     \"output_length\": 10, \"hash_ids\": [1, 2, 3]}\n\
     {\"timestamp\": 1, \"input_length\": 1536, \"output_length\": 21, \"hash_ids\": [1, 2, 9]}\n\
     {\"timestamp\": 2, \"input_length\": 100, \"output_length\": 3, \"hash_ids\": [5]}\n";

#[test]
fn replayed_prompts_share_the_blocks_that_the_trace_shares() {
    let trace = file(TRACE);
    let path = trace.path().to_str().unwrap();
    let more = format!("[workload]\n{PLAIN}[load]\narrival = \"replay\"\ntrace = {path:?}\n");
    for golden in ["gpt-oss", "llama-tiny"] {
        let plan = study(golden, &more);
        let source = source(&plan, Api::Completions, true);
        let cell = &plan.cells[0];
        let all: Vec<_> = (0..3).map(|i| source.request(cell, i, 0, false, &[]).unwrap()).collect();
        let lengths: Vec<_> =
            all.iter().map(|r| (r.lengths.prompt_tokens, r.lengths.output_tokens)).collect();
        assert_eq!(lengths, [(1200, 10), (1536, 21), (100, 3)]);
        let of: Vec<_> = (0..3).map(|i| ids(&source, cell, i, false)).collect();
        assert_eq!(of.iter().map(Vec::len).collect::<Vec<_>>(), [1200, 1536, 100]);
        assert_eq!(of[0][..1024], of[1][..1024]);
        assert_ne!(of[0][1024..1040], of[1][1024..1040]);
        assert_ne!(of[0][..16], of[2][..16]);
        assert_ne!(ids(&source, cell, 0, true)[..16], of[0][..16], "warm-up fills no block");
    }
}

#[test]
fn replayed_words_share_blocks_too() {
    let trace = file(TRACE);
    let path = trace.path().to_str().unwrap();
    let plan = plan(&format!("[[models]]\nid = \"m\"\n[load]\narrival = \"replay\"\ntrace = {path:?}\n"));
    let source = source(&plan, Api::Completions, false);
    let words = |i| -> Vec<String> {
        text(&source, &plan.cells[0], i).split_whitespace().map(str::to_owned).collect()
    };
    let (one, two) = (words(0), words(1));
    assert_eq!((one.len(), two.len()), (1200, 1536));
    assert_eq!(one[..1024], two[..1024]);
    assert_ne!(one[1024..1040], two[1024..1040]);
}

#[test]
fn a_dataset_is_sent_with_its_own_lengths_unless_told_otherwise() {
    let data = file(
        "{\"prompt\": \"How long is the river?\", \"output_tokens\": 5}\n\
         {\"prompt\": \"Say <|end|> twice.\", \"output_tokens\": 9}\n",
    );
    let text = |more: &str| {
        let path = data.path().to_str().unwrap();
        format!("[workload]\n{PLAIN}dataset = \"custom\"\ndataset_path = {path:?}\n{more}")
    };
    let plan = study("gpt-oss", &text(""));
    let source = source(&plan, Api::Chat, false);
    let cell = &plan.cells[0];
    let mut said = HashSet::new();
    for index in 0..2 {
        let request = source.request(cell, index, 0, false, &[]).unwrap();
        let PromptBody::Text(prompt) = &request.prompt else { panic!("not a text") };
        let own = source.vocabulary.as_ref().unwrap().count(prompt).unwrap();
        assert_eq!(request.lengths.prompt_tokens, own);
        said.insert((prompt.clone(), request.lengths.output_tokens));
    }
    let expected = [("How long is the river?".to_owned(), 5), ("Say <|end|> twice.".to_owned(), 9)];
    assert_eq!(said, HashSet::from(expected));
    let warm = source.request(cell, 0, 0, true, &[]).unwrap();
    assert!(!matches!(&warm.prompt, PromptBody::Text(t) if t.contains("river")));
    let plan = study("gpt-oss", &text("output_tokens = [64]\n"));
    let source = self::source(&plan, Api::Chat, false);
    let lengths = |i| source.request(&plan.cells[0], i, 0, false, &[]).unwrap().lengths.output_tokens;
    assert_eq!([lengths(0), lengths(1)], [64, 64]);
}

#[test]
fn a_conversation_carries_what_was_said() {
    let plan = study("gpt-oss", &format!("[workload]\n{PLAIN}prompt_tokens = [40]\nturns = 3\n"));
    let cell = &plan.cells[0];
    let chat = source(&plan, Api::Chat, false);
    let first = chat.request(cell, 4, 0, false, &[]).unwrap();
    let said = first.said.clone().unwrap();
    let turn = Turn { said: said.clone(), answer: "Yes.".into(), total_tokens: Some(52) };
    let second = chat.request(cell, 4, 1, false, std::slice::from_ref(&turn)).unwrap();
    let PromptBody::Messages(messages) = &second.prompt else { panic!("no messages") };
    let roles: Vec<_> = messages.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "user"]);
    assert_eq!((messages[0].content.as_str(), messages[1].content.as_str()), (&*said, "Yes."));
    assert_ne!(messages[2].content, messages[0].content);
    assert_eq!((second.lengths.prompt_tokens, second.prompt_is_known), (92, false));
    // Other conversations say other things, in every turn.
    let other = chat.request(cell, 5, 1, false, &[turn]).unwrap();
    assert_ne!(other.said, second.said);

    let plan = study("gpt-oss", "[workload]\nprompt_tokens = [140]\nturns = 2\n");
    let completions = source(&plan, Api::Completions, true);
    let first = completions.request(&plan.cells[0], 0, 0, false, &[]).unwrap();
    let turn = Turn { said: first.said.unwrap(), answer: "Yes.".into(), total_tokens: None };
    let second = completions.request(&plan.cells[0], 0, 1, false, &[turn]).unwrap();
    let PromptBody::Tokens(ids) = &second.prompt else { panic!("not ids") };
    let text = Tokenizer::o200k_harmony().unwrap().decode(ids);
    assert!(text.contains("<|channel|>final<|message|>Yes.<|end|><|start|>user<|message|>"), "{text}");
}

#[test]
fn without_a_tokenizer_prompts_are_words_of_one_count() {
    let workload = "[workload]\nprompt_tokens = [20, 100]\nshared_prefix_tokens = 5\n";
    let plan = plan(&format!("[[models]]\nid = \"m\"\n{workload}"));
    let mut source = source(&plan, Api::Completions, true);
    assert!(!source.as_ids);
    source.lines.insert(100, Line { fixed: 4.0, per_word: 1.2 });
    let cell = plan.cells.iter().find(|c| c.prompt_tokens == 100).unwrap();
    let texts: Vec<String> = (0..200).map(|i| text(&source, cell, i)).collect();
    assert!(texts.iter().all(|t| t.split_whitespace().count() == 80));
    let words = |text: &str, range: std::ops::Range<usize>| -> Vec<String> {
        text.split_whitespace().skip(range.start).take(range.len()).map(str::to_owned).collect()
    };
    assert!(texts.iter().all(|t| words(t, 0..5) == words(&texts[0], 0..5)));
    let rest: HashSet<_> = texts.iter().map(|t| words(t, 5..17)).collect();
    assert_eq!(rest.len(), 200);
    let known = source.request(cell, 0, 0, false, &[]).unwrap().prompt_is_known;
    assert!(!known, "no count of the server was seen");
    // Short prompts are told apart by words that stand for their number.
    let short = plan.cells.iter().find(|c| c.prompt_tokens == 20).unwrap();
    source.lines = BTreeMap::from([(20, Line { fixed: 0.0, per_word: 1.0 })]);
    let texts: HashSet<String> = (0..500).map(|i| text(&source, short, i)).collect();
    assert_eq!(texts.len(), 500);
    assert!(texts.iter().all(|t| t.split_whitespace().count() == 20));
}
