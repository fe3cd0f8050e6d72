//! A study that names a trace or a dataset, completed from the file before it is resolved.
//!
//! What a plan must know beforehand (how many requests, their mean lengths, which file it was) is written
//! into the study as if the user had; nothing else of the file is kept.

use crate::load::dataset::{Dataset, DatasetPrompt, Pick, SampleOptions, TokenLimits};
use crate::load::replay::Replay;
use crate::{Error, Result};
use bench_core::plan::{Cell, Plan, TracePlan};
use bench_core::spec::{self, ArrivalKind, RunSpec, TraceFormat};
use bench_core::target::TargetError;

/// Requests of a dataset where the study does not say how many; the default of vLLM's benchmark.
const DATASET_REQUESTS: u32 = 1_000;
/// For prompts whose dataset says nothing of their answers; the plan's own default.
const DEFAULT_OUTPUT_TOKENS: u32 = 32;

/// Reads the trace or dataset that `spec` names, and fills in its hash, the number of requests and the mean
/// lengths. What is worth knowing of the file comes back as sentences. Does nothing for any other study, and
/// nothing new for one that is complete.
///
/// # Errors
/// A file that cannot be read, or whose hash is not the one that the study names; lengths that contradict it.
pub fn complete(spec: &mut RunSpec) -> Result<Vec<String>> {
    let replays = spec.load.as_ref().is_some_and(|load| load.arrival == Some(ArrivalKind::Replay));
    if replays {
        return replay(spec);
    }
    match spec.workload.dataset {
        None | Some(spec::Dataset::Random) => Ok(Vec::new()),
        Some(_) => dataset(spec),
    }
}

fn replay(spec: &mut RunSpec) -> Result<Vec<String>> {
    let load = spec.load.get_or_insert_default();
    // Without a path the plan says what is missing.
    let Some(path) = load.trace.clone() else { return Ok(Vec::new()) };
    let trace = TracePlan {
        path,
        hash: load.trace_hash.clone(),
        format: load.trace_format.unwrap_or(TraceFormat::Auto),
        speed: load.trace_speed.unwrap_or(1.0),
        limit: load.trace_limit,
    };
    let replay = Replay::open_planned(&trace)?;
    let requests = u32::try_from(replay.requests.len()).unwrap_or(u32::MAX);
    if let Some(wanted) = load.requests.filter(|wanted| *wanted > requests) {
        return Err(Error::LoadValue {
            name: "load.requests",
            value: wanted.to_string(),
            expected: "at most the requests of the trace",
        });
    }
    let sent = *load.requests.get_or_insert(requests);
    load.trace_hash = Some(replay.hash());
    let prompts = mean(replay.requests.iter().take(sent as usize).map(|r| r.prompt_tokens));
    let outputs = mean(replay.requests.iter().take(sent as usize).map(|r| r.output_tokens));
    the_mean("workload.prompt_tokens", &mut spec.workload.prompt_tokens, prompts)?;
    the_mean("workload.output_tokens", &mut spec.workload.output_tokens, outputs)?;
    let mut notes = replay.notes.clone();
    if let Some(left_out) = replay.left_out.describe() {
        notes.push(format!("left out of the trace: {left_out}"));
    }
    Ok(notes)
}

/// Lengths come from the file: what the study says can only be their mean.
fn the_mean(name: &'static str, written: &mut Option<Vec<u32>>, mean: u32) -> Result<()> {
    match written.as_deref() {
        None => *written = Some(vec![mean]),
        Some([one]) if *one == mean => {}
        Some(other) => {
            return Err(Error::LoadValue {
                name,
                value: format!("{other:?}"),
                expected: "nothing: the trace has the lengths",
            });
        }
    }
    Ok(())
}

fn dataset(spec: &mut RunSpec) -> Result<Vec<String>> {
    // Resolved with what is there, for everything that a plan derives; lengths and number follow.
    let draft = resolved(spec)?;
    let Some(server) = &draft.server else { return Ok(Vec::new()) };
    let Some(dataset) = Dataset::open_planned(&server.prompts)? else { return Ok(Vec::new()) };
    let mut notes = dataset.notes.clone();
    spec.workload.dataset_hash = Some(dataset.hash());
    let load = spec.load.get_or_insert_default();
    if load.requests.is_none() && load.duration_s.is_none() {
        load.requests = Some(u32::try_from(dataset.prompts.len()).unwrap_or(u32::MAX).min(DATASET_REQUESTS));
    }
    let most = resolved(spec)?.cells.iter().map(Cell::requests).max().unwrap_or(1);
    let count = counter(&draft)?;
    let options = sample_options(server.prompts.dataset, most, draft.seed);
    let sample = dataset.sample(&options, |text| count(text))?;
    notes.extend(sample.notes.clone());
    let estimated = sample.picks.iter().any(|pick| pick.prompt_tokens.is_none());
    if estimated {
        notes.push(
            "no tokenizer is there (models.tokenizer): lengths of the dataset are estimated at four \
             characters a token"
                .to_owned(),
        );
    }
    let prompts = mean(
        sample
            .picks
            .iter()
            .map(|pick| pick.prompt_tokens.unwrap_or_else(|| estimate(&dataset.prompts[pick.prompt].text))),
    );
    let outputs = mean(sample.picks.iter().map(|pick| output_tokens(&dataset.prompts[pick.prompt], pick)));
    spec.workload.prompt_tokens = Some(vec![prompts]);
    // A length that the study names holds for every answer; the mean stands for the dataset's own lengths.
    spec.workload.output_tokens.get_or_insert_with(|| vec![outputs]);
    Ok(notes)
}

fn resolved(spec: &RunSpec) -> Result<Plan> {
    spec.resolve().map_err(|error| TargetError(error.to_string()).into())
}

type Count = Box<dyn Fn(&str) -> Result<Option<u32>>>;

/// Tokens of a text by the first model's tokenizer.
#[cfg(feature = "http")]
fn counter(plan: &Plan) -> Result<Count> {
    let first = plan.models.first();
    let vocabulary = first
        .map(|model| crate::targets::http::prompts::Vocabulary::open(plan, model))
        .transpose()?
        .flatten();
    Ok(Box::new(move |text| Ok(vocabulary.as_ref().map(|v| v.count(text)).transpose()?)))
}

#[cfg(not(feature = "http"))]
fn counter(_plan: &Plan) -> Result<Count> {
    Ok(Box::new(|_| Ok(None)))
}

/// How the requests of a dataset are chosen, before a run and in it.
pub(crate) fn sample_options(dataset: spec::Dataset, requests: u32, seed: u64) -> SampleOptions {
    SampleOptions {
        requests: requests.max(1) as usize,
        seed,
        shuffle: true,
        oversample: true,
        output_tokens: None,
        limits: (dataset == spec::Dataset::Sharegpt).then_some(TokenLimits::SHAREGPT),
    }
}

/// Length of an answer of a dataset: as it says, as the tokenizer counts it, or by its characters.
pub(crate) fn output_tokens(prompt: &DatasetPrompt, pick: &Pick) -> u32 {
    let answer = || prompt.answer.as_deref().map(estimate);
    pick.output_tokens.or_else(answer).unwrap_or(DEFAULT_OUTPUT_TOKENS).max(1)
}

/// Tokens of English text without a tokenizer: four characters each.
pub(crate) fn estimate(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX).div_ceil(4).max(1)
}

/// The mean, rounded; at least 1.
pub(crate) fn mean(numbers: impl Iterator<Item = u32>) -> u32 {
    let (mut sum, mut count) = (0_u64, 0_u64);
    for number in numbers {
        (sum, count) = (sum + u64::from(number), count + 1);
    }
    u32::try_from((sum + count / 2) / count.max(1)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file(lines: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        file
    }

    fn spec(text: &str) -> RunSpec {
        let head = "[[models]]\nid = \"m\"\n[target]\nkind = \"http\"\n[server]\nbase_url = \"http://h\"\n";
        RunSpec::from_toml("t", &format!("{head}{text}")).unwrap()
    }

    fn filled(spec: &RunSpec) -> (Option<u32>, Option<Vec<u32>>, Option<Vec<u32>>) {
        let load = spec.load.clone().unwrap_or_default();
        (load.requests, spec.workload.prompt_tokens.clone(), spec.workload.output_tokens.clone())
    }

    const TRACE: &str = "{\"timestamp\": 0, \"input_length\": 600, \
                          \"output_length\": 10, \"hash_ids\": [1, 2]}\n\
                         {\"timestamp\": 500, \"input_length\": 1000, \
                          \"output_length\": 21, \"hash_ids\": [1, 3]}\n";

    #[test]
    fn a_trace_fills_in_what_the_plan_needs() {
        let trace = file(TRACE);
        let path = trace.path().to_str().unwrap();
        let text = format!("[load]\narrival = \"replay\"\ntrace = {path:?}\n");
        let mut study = spec(&text);
        complete(&mut study).unwrap();
        assert_eq!(filled(&study), (Some(2), Some(vec![800]), Some(vec![16])));
        let plan = study.resolve().unwrap();
        assert_eq!(plan.cells[0].requests(), 2);
        // A complete study stays what it is, and another file is refused.
        let again = study.clone();
        complete(&mut study).unwrap();
        assert_eq!(study, again);
        std::fs::write(trace.path(), TRACE.replace("21", "22")).unwrap();
        assert!(matches!(complete(&mut study), Err(Error::DataChanged { .. })));
    }

    #[test]
    fn lengths_beside_a_trace_are_refused() {
        let trace = file(TRACE);
        let path = trace.path().to_str().unwrap();
        let text = format!("[load]\narrival = \"replay\"\ntrace = {path:?}\n");
        let error = complete(&mut spec(&format!("{text}[workload]\nprompt_tokens = [5]\n"))).unwrap_err();
        assert!(error.to_string().contains("workload.prompt_tokens"), "{error}");
        let error = complete(&mut spec(&format!("{text}requests = 3\n"))).unwrap_err();
        assert!(error.to_string().contains("load.requests"), "{error}");
    }

    #[test]
    fn a_dataset_without_a_tokenizer_is_estimated_and_says_so() {
        let data = file(
            "{\"prompt\": \"12345678\", \"output_tokens\": 5}\n\
             {\"prompt\": \"1234567890123456\", \"output_tokens\": 8}\n",
        );
        let path = data.path().to_str().unwrap();
        let text = format!("[workload]\ndataset = \"custom\"\ndataset_path = {path:?}\n");
        let mut study = spec(&text);
        let notes = complete(&mut study).unwrap();
        assert_eq!(filled(&study), (Some(2), Some(vec![3]), Some(vec![7])));
        assert!(notes.iter().any(|note| note.contains("four characters")), "{notes:?}");
        let hash = study.workload.dataset_hash.clone().unwrap();
        // A length of the study's own holds for every answer; six requests repeat the prompts.
        let mut study = spec(&format!("{text}output_tokens = [40]\n[load]\nrequests = 6\n"));
        let notes = complete(&mut study).unwrap();
        assert_eq!(filled(&study), (Some(6), Some(vec![3]), Some(vec![40])));
        assert!(notes.iter().any(|note| note.contains("repeats")), "{notes:?}");
        study.workload.dataset_hash = Some(hash.replace(|c: char| c != '0', "0"));
        assert!(matches!(complete(&mut study), Err(Error::DataChanged { .. })));
    }

    #[test]
    fn a_study_without_files_is_left_alone() {
        let mut study = spec("[load]\nconcurrency = [4]\n");
        let before = study.clone();
        assert_eq!((complete(&mut study).unwrap(), study), (vec![], before));
    }
}
