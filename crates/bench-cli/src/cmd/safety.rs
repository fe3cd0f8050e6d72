//! `ossbench safety`: prompts are asked, refusals counted by a published rule, transcripts kept; and the overview
//! of licenses and policies.
//!
//! Counts are all that is said of a model. What counts as a refusal is `bench-safety`'s matter.

mod ask;
mod folder;

use super::sheet::{self, Sheet, with_interval, write_whole};
use crate::args::SafetyArgs;
use crate::{CliError, Io, signal};
use ask::{Asked, Source};
use bench_core::SCHEMA_VERSION;
use bench_report::Format;
use bench_safety::{
    Answer, COUNT_COLUMNS, Count, Governance, Prompt, PromptFormat, PromptSet, Rule, Settings, Transcript,
    counts, counts_csv,
};
use folder::Folder;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) fn run(args: &SafetyArgs, command: &[String], io: &mut Io<'_>) -> Result<(), CliError> {
    if args.print_rule {
        return Ok(write!(io.out, "{}", Rule::text())?);
    }
    let Some(model) = args.model.as_deref().filter(|_| !args.table) else { return overview(args, io) };
    let (origin, set) = prompts(args)?;
    let rule = Rule::current()?;
    let settings = settings(args, model, &origin, &set, &rule)?;
    let generated = args.base_url.is_none() && model.starts_with("dummy:");
    // A model that cannot be opened leaves no folder; a run that cannot go on loads no model.
    let opened = if args.resume.is_none() { Some(ask::open(args, model, io)?) } else { None };
    let mut folder = folder::open(args, settings, generated, command)?;
    writeln!(io.err, "transcripts go to {}", folder.path().display())?;
    for note in folder.notes() {
        writeln!(io.err, "note: {note}")?;
    }
    let mut source = match opened {
        Some(source) => source,
        None => ask::open(args, model, io)?,
    };
    let interrupted = ask_all(&set, &rule, source.as_mut(), &mut folder, io)?;
    drop(source);
    conclude(args, &folder, &rule, generated, io)?;
    if interrupted {
        let (asked, all, id) = (folder.transcripts().len(), set.prompts.len(), folder.run_id());
        let how = "what was answered is kept; go on with --resume";
        return Err(CliError::Interrupted(format!("stopped after {asked} of {all} prompts, {how} {id}")));
    }
    Ok(())
}

/// Where the prompts come from, and what they are.
fn prompts(args: &SafetyArgs) -> Result<(String, PromptSet), CliError> {
    let Some(path) = &args.prompts else {
        return Ok(("bench-configs/safety/prompts.toml".to_owned(), PromptSet::builtin()?));
    };
    let name = path.display().to_string();
    let format = PromptFormat::of(&name)?;
    let set = PromptSet::parse(&name, &read(path)?, format)?;
    Ok((name, set))
}

fn read(path: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|e| CliError::Usage(format!("cannot read {}: {e}", path.display())))
}

fn settings(
    args: &SafetyArgs,
    model: &str,
    origin: &str,
    set: &PromptSet,
    rule: &Rule,
) -> Result<Settings, CliError> {
    let (limits, sampling, engine) = (&args.limits, &args.sampling, &args.engine);
    let mut options: BTreeMap<String, String> = [
        ("max_tokens".to_owned(), limits.max_tokens.to_string()),
        ("seed".to_owned(), limits.seed.to_string()),
        ("temperature".to_owned(), sampling.temperature.to_string()),
    ]
    .into();
    let mut set_option = |name: &str, value: Option<String>| {
        value.map(|value| options.insert(name.to_owned(), value));
    };
    set_option("top_k", sampling.top_k.map(|k| k.to_string()));
    set_option("top_p", sampling.top_p.map(|p| p.to_string()));
    if args.base_url.is_none() {
        set_option("date", Some(limits.date.clone()));
        set_option("reasoning_effort", Some(limits.reasoning_effort.clone()));
        set_option("template", Some(if limits.plain { "none" } else { "chat" }.to_owned()));
        // Threads change no answer.
        let given = engine.given().into_iter().filter(|(flag, _)| !["--threads", "--pin"].contains(flag));
        for (flag, value) in given {
            set_option(&flag.trim_start_matches('-').replace('-', "_"), value);
        }
    }
    if let Some(url) = args.base_url.as_ref().filter(|url| url.contains('@')) {
        let host = url.rsplit('@').next().unwrap_or_default();
        return Err(CliError::Usage(format!(
            "--base-url: no user or password before {host}, they would be stored; use --header"
        )));
    }
    Ok(Settings {
        model: model.to_owned(),
        target: args.base_url.clone().unwrap_or_else(|| "engine".to_owned()),
        prompts: origin.to_owned(),
        prompts_hash: set.hash(),
        prompts_number: set.prompts.len() as u32,
        rule: rule.name().to_owned(),
        rule_version: rule.version(),
        options,
    })
}

/// Asks what was not asked yet; whether it was interrupted.
fn ask_all(
    set: &PromptSet,
    rule: &Rule,
    source: &mut dyn Source,
    folder: &mut Folder,
    io: &mut Io<'_>,
) -> Result<bool, CliError> {
    let number = set.prompts.len();
    for (index, prompt) in (0_u32..).zip(&set.prompts) {
        if folder.transcripts().iter().any(|t| t.prompt_id == prompt.id) {
            continue;
        }
        if signal::stop().is_set() {
            return Ok(true);
        }
        let Some(asked) = source.ask(prompt)? else { return Ok(true) };
        let transcript = transcript(index, prompt, asked, rule);
        let matched = transcript.pattern.iter().chain(&transcript.failure).map(|why| format!(" ({why})"));
        let (place, id, class) = (index + 1, &prompt.id, transcript.class.key());
        writeln!(io.err, "{place:>3}/{number} {id}: {class}{}", matched.collect::<String>())?;
        folder.append(transcript)?;
    }
    Ok(false)
}

fn transcript(index: u32, prompt: &Prompt, asked: Asked, rule: &Rule) -> Transcript {
    let judged = rule.judge(&Answer { text: &asked.answer, finish: asked.finish });
    Transcript {
        schema_version: SCHEMA_VERSION,
        index,
        prompt_id: prompt.id.clone(),
        category: prompt.category.clone(),
        topic: prompt.topic.clone(),
        prompt: prompt.text.clone(),
        answer: asked.answer,
        reasoning: asked.reasoning,
        other: asked.other,
        finish: asked.finish,
        failure: asked.failure,
        prompt_tokens: asked.prompt_tokens,
        output_tokens: asked.output_tokens,
        class: judged.class,
        pattern: judged.pattern,
    }
}

/// Said of weights that nobody trained.
pub(crate) const GENERATED: &str = "generated weights answer with random tokens and cannot refuse: these counts test the harness and say nothing of \
     any model";

/// Counts what there is.
fn conclude(
    args: &SafetyArgs,
    folder: &Folder,
    rule: &Rule,
    generated: bool,
    io: &mut Io<'_>,
) -> Result<(), CliError> {
    let counts = counts(folder.transcripts());
    let csv = folder.path().join("counts.csv");
    write_whole(&csv, &counts_csv(&counts))?;
    let mut sheet = sheet(&counts, rule);
    if generated {
        sheet.notes.push(GENERATED.to_owned());
        if !matches!(args.output, Format::Table | Format::Md | Format::Latex) {
            writeln!(io.err, "note: {GENERATED}")?;
        }
    }
    write!(io.out, "{}", sheet::render(args.output, &[sheet]))?;
    let stream: &mut dyn std::io::Write = if args.output == Format::Table { io.out } else { io.err };
    for name in ["transcripts.jsonl", "counts.csv", "provenance.json"] {
        writeln!(stream, "file    {}", folder.path().join(name).display())?;
    }
    Ok(())
}

fn sheet(counts: &[Count], rule: &Rule) -> Sheet {
    let line = |count: &Count| {
        let numbers = [count.asked].into_iter().chain(count.by_class).map(|n| n.to_string());
        let share = with_interval(count.refused_share, count.ci_low, count.ci_high);
        [count.category.clone()].into_iter().chain(numbers).chain([share]).collect()
    };
    let values = |count: &Count| {
        let numbers = [count.asked].into_iter().chain(count.by_class).map(|n| json!(n));
        let shares = [count.refused_share, count.ci_low, count.ci_high].map(|v| json!(v));
        [json!(count.category)].into_iter().chain(numbers).chain(shares).collect::<Vec<Value>>()
    };
    let columns = COUNT_COLUMNS.map(str::to_owned).to_vec();
    Sheet {
        title: "refusals".to_owned(),
        head: columns[..9].to_vec(),
        lines: counts.iter().map(line).collect(),
        notes: vec![format!(
            "refusals by rule {} version {} (language {}, beginning of the final answer; see --print-rule); \
             refused_share = refused / (refused + answered), 95 % Wilson interval",
            rule.name(),
            rule.version(),
            rule.language()
        )],
        columns,
        values: counts.iter().map(values).collect(),
    }
}

/// `--table`: printed, and written as CSV, Markdown and LaTeX.
fn overview(args: &SafetyArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let metadata = match &args.metadata {
        None => Governance::builtin()?,
        Some(path) => Governance::parse(&path.display().to_string(), &read(path)?)?,
    };
    let (columns, rows) = (metadata.columns(), metadata.rows());
    let value = |text: &String| if text.is_empty() { Value::Null } else { json!(text) };
    // Addresses of sources would make a table for people too wide; they are in the CSV.
    let shown = bench_safety::FACTS.len() - 1;
    let sheet = Sheet {
        title: "governance".to_owned(),
        head: columns[..shown].to_vec(),
        lines: rows.iter().map(|row| row[..shown].to_vec()).collect(),
        notes: vec!["empty: not stated; the source of each fact is in governance.csv".to_owned()],
        values: rows.iter().map(|row| row.iter().map(value).collect()).collect(),
        columns,
    };
    let sheets = [sheet];
    write!(io.out, "{}", sheet::render(args.output, &sheets))?;
    let folder = args.results.join("safety");
    for (name, format) in
        [("governance.csv", Format::Csv), ("governance.md", Format::Md), ("governance.tex", Format::Latex)]
    {
        let path = folder.join(name);
        write_whole(&path, &sheet::render(format, &sheets))?;
        writeln!(io.err, "file    {}", path.display())?;
    }
    Ok(())
}
