//! Probes against scripted servers: what fails fails before a run, with what to do about it.

use super::super::prompts::PromptSource;
use super::*;
use bench_core::spec::RunSpec;
use bench_http::loopback::{Fault, Loopback, LoopbackHandle, LoopbackOptions, UsagePolicy, faults_in_order};
use bench_http::{Dialer, Endpoint, Stop, SystemClock, Timeouts, TlsOptions};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(feature = "engine")]
impl Served {
    /// A server of which nothing was asked.
    pub(in super::super) fn scripted(model: &str, api: Api, capabilities: Capabilities) -> Self {
        Self {
            model: model.to_owned(),
            api,
            max_context: None,
            capabilities,
            server: "unknown".to_owned(),
            first: Measured::default(),
            notes: Vec::new(),
            counting: Counting::Nobody,
            template: BodyTemplate::new(api, model),
            vocabulary: None,
            fixed_length: true,
        }
    }
}

/// Answers each request by path and body with a status and a body, on a thread of its own.
fn serve(answer: impl Fn(&str, &str) -> (u16, String) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = serve_one(stream, &answer);
        }
    });
    url
}

fn serve_one(stream: TcpStream, answer: &impl Fn(&str, &str) -> (u16, String)) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? <= 2 {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let (status, text) = answer(&path, &String::from_utf8_lossy(&body));
    let kind = if text.starts_with("data:") { "text/event-stream" } else { "application/json" };
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        text.len()
    );
    let mut stream = reader.into_inner();
    stream.write_all(head.as_bytes())?;
    stream.write_all(text.as_bytes())
}

const MODELS: &str = r#"{"object":"list","data":[{"id":"org/m","owned_by":"vllm","max_model_len":4096},
                         {"id":"other"}]}"#;

fn models() -> (u16, String) {
    (200, MODELS.to_owned())
}

fn nothing() -> (u16, String) {
    (404, "{}".to_owned())
}

/// A stream of `tokens` tokens, with usage of a prompt of `prompt` tokens.
fn stream(tokens: u32, prompt: Option<u32>) -> (u16, String) {
    let mut text = String::new();
    for at in 0..tokens {
        let end = if at + 1 == tokens { "\"length\"" } else { "null" };
        let token = r#""index":0,"text":" a","delta":{"content":" a"}"#;
        let _ = write!(text, "data: {{\"choices\":[{{{token},\"finish_reason\":{end}}}]}}\n\n");
    }
    if let Some(prompt) = prompt {
        let usage = format!(r#"{{"prompt_tokens":{prompt},"completion_tokens":{tokens}}}"#);
        let _ = write!(text, "data: {{\"choices\":[],\"usage\":{usage}}}\n\n");
    }
    (200, text + "data: [DONE]\n\n")
}

fn error_body(status: u16, words: &str) -> (u16, String) {
    (status, format!(r#"{{"error":{{"message":"{words}","type":"BadRequestError"}}}}"#))
}

fn refusal(words: &str) -> (u16, String) {
    error_body(400, words)
}

fn plan(url: &str, more: &str) -> Plan {
    let head = "[target]\nkind = \"http\"\n[server]\napi_key_env = \"MY_KEY\"\n";
    let model = if more.contains("[[models]]") { "" } else { "[[models]]\nid = \"org/m\"\n" };
    let text = format!("{head}base_url = \"{url}\"\n{more}{model}");
    RunSpec::from_toml("t", &text).unwrap().resolve().unwrap()
}

/// Probes, and opens the prompts of the one model; the notes of both.
fn found(url: &str, more: &str) -> Result<(Served, PromptSource, Vec<String>), String> {
    let plan = plan(url, more);
    let endpoint = Endpoint::parse(url).unwrap();
    let dialer = Dialer::new(endpoint, &TlsOptions::default(), Arc::new(SystemClock::default())).unwrap();
    let (stop, timeouts) = (Stop::new(), Timeouts::default());
    let questions = Questions { dialer: &dialer, timeouts: &timeouts, stop: &stop };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let model = &plan.models[0];
        let served = probe(&questions, &plan, model, false).await.map_err(|e| e.0)?;
        let opened = PromptSource::open(&questions, &plan, model, &served).await;
        let (source, more) = opened.map_err(|e| e.0)?;
        let notes = served.notes.iter().cloned().chain(more).collect();
        Ok((served, source, notes))
    })
}

fn error(url: &str, more: &str) -> String {
    found(url, more).err().unwrap_or_else(|| "it did not fail".to_owned())
}

#[test]
fn nobody_at_the_address_is_told_with_what_to_try() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = error(&format!("http://{free}"), "");
    assert!(said.starts_with(&format!("no server at http://{free}: ")), "{said}");
    assert!(said.contains("server.base_url") && said.contains("ready_timeout_s"), "{said}");
}

#[test]
fn a_model_that_is_not_served_is_told_with_the_offer() {
    let url = serve(|_, _| models());
    let said = error(&url, "[[models]]\nid = \"m\"\n");
    assert!(said.contains("model \"m\" is not served"), "{said}");
    assert!(said.contains("offers \"org/m\", \"other\"; set models.id"), "{said}");
}

#[test]
fn a_missing_key_is_told_with_its_variable() {
    for status in [401, 403] {
        let url = serve(move |_, _| error_body(status, "who are you?"));
        let said = error(&url, "");
        let expected = format!("status {status}");
        assert!(said.contains(&expected) && said.contains("environment variable MY_KEY"), "{said}");
    }
    // Some servers show their models to everyone.
    let url = serve(|path, _| if path == "/v1/models" { models() } else { error_body(401, "no") });
    let said = error(&url, "");
    assert!(said.contains("/v1/completions") && said.contains("MY_KEY"), "{said}");
}

#[test]
fn what_is_no_such_server_is_told() {
    let url = serve(|_, _| (200, "<html>hello</html>".to_owned()));
    assert!(error(&url, "").contains("brought no list of models"));
    let url = serve(|_, _| nothing());
    let said = error(&url, "");
    assert!(said.contains("neither API answers") && said.contains("status 404"), "{said}");
}

#[test]
fn a_server_without_a_list_is_used_with_a_note() {
    let url = serve(|path, _| if path == "/v1/completions" { stream(8, Some(128)) } else { nothing() });
    let (served, _, notes) = found(&url, "").unwrap();
    assert_eq!((served.api, served.counting), (Api::Completions, Counting::Usage));
    assert!(notes[0].contains("/v1/models does not exist"), "{notes:?}");
}

#[test]
fn refused_parameters_are_dropped_one_by_one() {
    let url = serve(|path, body| match path {
        "/v1/models" => models(),
        "/version" => (200, r#"{"version":"0.11.0"}"#.to_owned()),
        "/v1/completions" if body.contains("ignore_eos") => refusal("Unknown parameter: 'ignore_eos'."),
        "/v1/completions" if body.contains("min_tokens") => refusal("extra_forbidden: min_tokens"),
        "/v1/completions" if body.contains("\"max_tokens\"") => {
            refusal("'max_tokens' is not supported. Use 'max_completion_tokens' instead.")
        }
        "/v1/completions" => stream(3, Some(128)),
        _ => nothing(),
    });
    let (served, _, notes) = found(&url, "").unwrap();
    assert_eq!((served.server.as_str(), served.max_context), ("vLLM 0.11.0", Some(4096)));
    let expected = Capabilities { max_completion_tokens: true, ..Capabilities::default() };
    assert_eq!(served.capabilities, expected);
    let notes = notes.join("\n");
    assert!(notes.contains("refuses `ignore_eos`: output lengths are not fixed"), "{notes}");
    assert!(notes.contains("refuses `min_tokens`") && notes.contains("refuses `max_tokens`"), "{notes}");
    assert!(notes.contains("asked for 8 tokens the server produced 3"), "{notes}");
    let prompt = Prompt::Text("x".to_owned());
    assert_eq!(served.variable(&prompt, 9, None).min_tokens, None);
}

#[test]
fn a_refusal_without_a_name_drops_what_is_not_standard() {
    let url = serve(|path, body| match path {
        "/v1/models" => models(),
        "/v1/completions" if body.contains("ignore_eos") || body.contains("min_tokens") => refusal("bad"),
        "/v1/completions" => stream(8, Some(128)),
        _ => nothing(),
    });
    let (served, _, notes) = found(&url, "").unwrap();
    assert!(!served.capabilities.ignore_eos && served.counting == Counting::Usage);
    assert!(notes.iter().any(|n| n.contains("without saying which")), "{notes:?}");
    // What nothing helps against is an error with the server's words.
    let url = serve(|path, _| if path == "/v1/models" { models() } else { refusal("the moon is full") });
    let said = error(&url, "");
    assert!(said.contains("the moon is full") && said.contains("org/m"), "{said}");
}

#[test]
fn the_harmony_parser_that_breaks_is_found_before_the_run() {
    let url = serve(|path, body| match path {
        "/v1/models" => (200, r#"{"data":[{"id":"openai/gpt-oss-20b"}]}"#.to_owned()),
        "/v1/chat/completions" if body.contains("ignore_eos") && body.contains("256") => {
            error_body(500, "Unexpected token 200002 while expecting start token 200006")
        }
        "/v1/chat/completions" | "/v1/completions" => stream(8, Some(128)),
        _ => nothing(),
    });
    let model = "[[models]]\nid = \"openai/gpt-oss-20b\"\n";
    let said = error(&url, &format!("endpoint = \"chat\"\n{model}"));
    assert!(said.contains("200002") && said.contains("endpoint = \"completions\""), "{said}");
    let said = error(&url, &format!("{model}[workload]\nturns = 2\n"));
    assert!(said.contains("fixed_length = false"), "{said}");
    // By itself random prompts go to completions, as rendered ids.
    let (served, source, _) = found(&url, model).unwrap();
    assert_eq!(served.api, Api::Completions);
    let rendered = served.capabilities.prompt_ids && source.common_prefix_tokens() > 40;
    assert_eq!(rendered, cfg!(feature = "engine"));
    // Without forced lengths nothing breaks.
    let more = format!("endpoint = \"chat\"\nfixed_length = false\n{model}");
    assert_eq!(found(&url, &more).unwrap().0.api, Api::Chat);
}

#[test]
fn a_server_with_chat_only_is_used_by_itself() {
    let url = serve(|path, _| match path {
        "/v1/models" => models(),
        "/v1/chat/completions" => stream(8, Some(128)),
        "/v1/completions" => {
            error_body(404, "This is a chat model and not supported in the v1/completions endpoint")
        }
        _ => nothing(),
    });
    let (served, _, notes) = found(&url, "").unwrap();
    assert_eq!(served.api, Api::Chat);
    assert!(notes.iter().any(|n| n.contains("/v1/chat/completions is used")), "{notes:?}");
    assert!(error(&url, "endpoint = \"completions\"\n").contains("server.endpoint"));
}

fn loopback(change: impl FnOnce(&mut LoopbackOptions)) -> LoopbackHandle {
    let mut options = LoopbackOptions { model: "org/m".to_owned(), ..LoopbackOptions::default() };
    change(&mut options);
    Loopback::start(options, Arc::new(SystemClock::default())).unwrap()
}

/// The loopback server counts words, and four tokens around a chat.
#[test]
fn lengths_are_corrected_once_and_verified() {
    let server = loopback(|_| {});
    let url = server.base_url();
    let (served, source, notes) = found(&url, "endpoint = \"chat\"\n").unwrap();
    assert_eq!((served.api, served.counting), (Api::Chat, Counting::Usage));
    assert!(served.capabilities.ignore_eos && served.capabilities.continuous_usage);
    let told = "prompts of 128 tokens: the server counted 132 at first, 128 after the correction";
    assert!(notes.iter().any(|n| n == told), "{notes:?}");
    let plan = plan(&url, "endpoint = \"chat\"\n");
    let request = source.request(&plan.cells[0], 0, 0, false, &[]).unwrap();
    let Prompt::Text(text) = &request.prompt else { panic!("no text") };
    assert_eq!(text.split_whitespace().count(), 124);
    assert!(request.prompt_is_known);
    // Completions have nothing around them: the first count is right and nothing is said.
    let (_, _, notes) = found(&url, "").unwrap();
    assert!(!notes.iter().any(|n| n.contains("prompts of")), "{notes:?}");
}

#[test]
fn without_usage_the_tokenizer_of_the_server_counts() {
    let server = loopback(|options| options.usage = UsagePolicy::Never);
    let (served, _, notes) = found(&server.base_url(), "endpoint = \"chat\"\n").unwrap();
    assert!(matches!(served.counting, Counting::Tokenize(_)), "{:?}", served.counting);
    assert!(notes.iter().any(|n| n.contains("states no usage")), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("132 at first, 128 after")), "{notes:?}");
    // And where there is neither, lengths are not known.
    let url = serve(|path, _| match path {
        "/v1/models" => models(),
        "/v1/completions" => stream(8, None),
        _ => nothing(),
    });
    let (served, source, notes) = found(&url, "").unwrap();
    assert_eq!(served.counting, Counting::Nobody);
    assert!(notes.iter().any(|n| n.contains("lengths are not known")), "{notes:?}");
    let plan = plan(&url, "");
    assert!(!source.request(&plan.cells[0], 0, 0, false, &[]).unwrap().prompt_is_known);
}

#[test]
fn what_does_not_fit_into_the_context_is_refused() {
    let server = loopback(|options| options.max_model_len = 150);
    let said = error(&server.base_url(), "");
    assert!(said.contains("needs 160 tokens of context") && said.contains("allows 150"), "{said}");
}

#[test]
fn a_seed_that_the_server_has_seen_is_told() {
    let server = loopback(|options| options.cached_prompt_tokens = 300);
    let more = "[workload]\nprompt_tokens = [400]\n";
    let (_, _, notes) = found(&server.base_url(), more).unwrap();
    assert!(notes.iter().any(|n| n.contains("run.seed") && n.contains("42")), "{notes:?}");
}

#[test]
fn a_server_that_starts_is_waited_for() {
    let asked = AtomicU32::new(0);
    let url = serve(move |path, _| match path {
        "/v1/models" if asked.fetch_add(1, Ordering::SeqCst) == 0 => (503, "loading".to_owned()),
        "/v1/models" => models(),
        "/v1/completions" => stream(8, Some(128)),
        _ => nothing(),
    });
    assert!(found(&url, "ready_timeout_s = 30.0\n").is_ok());
    let url = serve(|_, _| (503, "loading".to_owned()));
    let said = error(&url, "");
    assert!(said.contains("status 503: loading") && said.contains("ready_timeout_s"), "{said}");
}

#[test]
fn a_probe_that_breaks_off_is_an_error() {
    let faults = faults_in_order(vec![Some(Fault::DropAfterTokens(2))]);
    let server = loopback(|options| options.faults = Some(faults));
    let said = error(&server.base_url(), "");
    assert!(said.starts_with("a probe of model \"org/m\" at "), "{said}");
}
