//! `ossbench generate`: one prompt, one streamed answer, or a reason why there is none.

use super::model::{self, Opened, PREFILL_CHUNK};
use crate::args::{GenerateArgs, LimitArgs, SamplingArgs};
use crate::{CliError, Io, signal};
use bench_engine::sampling::{Sampler, SamplingParams};
use bench_engine::session::Session;
use bench_engine::text::{Label, StreamText, Turn, harmony::Role};
use bench_engine::{Hooks, Sequence};
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

pub(crate) fn run(args: &GenerateArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let prompt = if args.prompt == "-" { read_stdin()? } else { args.prompt.clone() };
    if prompt.is_empty() {
        return Err(CliError::Usage("the prompt is empty; give some text".to_owned()));
    }
    let opened = model::open(&args.model, &args.engine, &args.limits, io)?;
    let turns = [Turn::new(Role::User, prompt)];
    answer(&opened, &turns, &args.limits, &args.sampling, io).map(|_| ())
}

fn read_stdin() -> Result<String, CliError> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .map_err(|e| CliError::Failed(format!("cannot read the prompt from standard input: {e}")))?;
    Ok(text)
}

/// What the engine's thread says.
enum Said {
    /// The id, and when the engine had it.
    Token(u32, Instant),
    Stopped,
    Failed(String),
}

/// Streams the answer to `turns`; returns its final text.
pub(crate) fn answer(
    opened: &Opened,
    turns: &[Turn],
    limits: &LimitArgs,
    sampling: &SamplingArgs,
    io: &mut Io<'_>,
) -> Result<String, CliError> {
    let session = &opened.session;
    let ids = session.format.render_chat(&session.tokenizer, turns).map_err(bench_engine::Error::from)?;
    let sampler = Sampler::new(SamplingParams {
        temperature: sampling.temperature as f32,
        top_k: sampling.top_k.map(|k| k as usize),
        top_p: sampling.top_p.map_or(1.0, |p| p as f32),
        seed: limits.seed,
    })?;
    let (sender, receiver) = channel();
    let job = Job { session: Arc::clone(session), ids: ids.clone(), sampler, max_tokens: limits.max_tokens };
    // A thread of its own: a step cannot be cut, but nobody has to wait for it.
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || job.run(&sender))
        .map_err(|e| CliError::Failed(format!("cannot start the engine's thread: {e}")))?;
    let mut shown = Shown::new(session);
    let began = Instant::now();
    let end = listen(&receiver, limits, began, &mut shown, io);
    shown.finish(io)?;
    shown.say_rate(ids.len(), began, io)?;
    end.map(|()| shown.final_text)
}

struct Job {
    session: Arc<Session>,
    ids: Vec<u32>,
    sampler: Sampler,
    max_tokens: u32,
}

impl Job {
    fn run(mut self, sender: &Sender<Said>) {
        let end = match self.decode(sender) {
            Ok(()) => Said::Stopped,
            Err(error) => Said::Failed(error.to_string()),
        };
        // The listener may have given up; then nobody is left to tell.
        let _ = sender.send(end);
    }

    fn decode(&mut self, sender: &Sender<Said>) -> Result<(), bench_engine::Error> {
        let model = &self.session.model;
        let mut sequence: Sequence = model.sequence();
        let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
        let prompt: &[&[u32]] = &[&self.ids];
        let mut logits =
            model.prefill_in(&mut workspace, &mut [&mut sequence], prompt, PREFILL_CHUNK, &mut hooks)?;
        for produced in 1..=self.max_tokens {
            let id = logits.sample(0, &mut self.sampler, &[])?;
            let at = Instant::now();
            let stop = self.session.stop_ids.contains(&id);
            if stop || sender.send(Said::Token(id, at)).is_err() || produced == self.max_tokens {
                break;
            }
            logits = model.decode_step_in(&mut workspace, &mut [&mut sequence], &[id], &mut hooks)?;
        }
        Ok(())
    }
}

/// How often Ctrl-C is looked at while a token is awaited.
const LOOK: Duration = Duration::from_millis(50);

fn listen(
    receiver: &Receiver<Said>,
    limits: &LimitArgs,
    began: Instant,
    shown: &mut Shown,
    io: &mut Io<'_>,
) -> Result<(), CliError> {
    let mut last = began;
    loop {
        if signal::stop().is_set() {
            return Err(CliError::Interrupted("stopped by Ctrl-C".to_owned()));
        }
        if began.elapsed() >= Duration::from_secs(limits.timeout) {
            let hint = "raise --timeout, lower --max-tokens, or take a smaller model";
            return Err(CliError::Failed(format!("no end after {} s; {hint}", limits.timeout)));
        }
        if last.elapsed() >= Duration::from_secs(limits.token_timeout) {
            let hint = "raise --token-timeout, shorten the prompt, or take a smaller model";
            return Err(CliError::Failed(format!("no token for {} s; {hint}", limits.token_timeout)));
        }
        match receiver.recv_timeout(LOOK) {
            Ok(Said::Token(id, at)) => {
                last = at;
                shown.token(id, at, io)?;
            }
            Ok(Said::Stopped) => return Ok(()),
            Ok(Said::Failed(why)) => return Err(CliError::Failed(why)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(CliError::Failed("the engine's thread ended without a word".to_owned()));
            }
        }
    }
}

/// Text as it comes: the answer on standard output, thoughts on standard error.
struct Shown {
    stream: StreamText,
    label: Option<Label>,
    final_text: String,
    tokens: u32,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Shown {
    fn new(session: &Session) -> Self {
        let stream = StreamText::new(&session.tokenizer, &session.format);
        Self { stream, label: None, final_text: String::new(), tokens: 0, first: None, last: None }
    }

    fn token(&mut self, id: u32, at: Instant, io: &mut Io<'_>) -> Result<(), CliError> {
        self.tokens += 1;
        self.first.get_or_insert(at);
        self.last = Some(at);
        match self.stream.push(id) {
            Some(piece) => self.show(piece.label, &piece.text, io),
            None => Ok(()),
        }
    }

    fn show(&mut self, label: Label, text: &str, io: &mut Io<'_>) -> Result<(), CliError> {
        if self.label != Some(label) {
            self.enter(label, io)?;
        }
        if label == Label::Final {
            self.final_text.push_str(text);
            io.out.write_all(text.as_bytes())?;
            io.out.flush()?;
        } else {
            io.err.write_all(text.as_bytes())?;
            io.err.flush()?;
        }
        Ok(())
    }

    fn enter(&mut self, label: Label, io: &mut Io<'_>) -> Result<(), CliError> {
        if self.label.is_some_and(|l| l != Label::Final) {
            writeln!(io.err)?;
        }
        match label {
            Label::Analysis => write!(io.err, "[analysis] ")?,
            Label::Other => write!(io.err, "[other] ")?,
            Label::Final => {}
        }
        self.label = Some(label);
        Ok(())
    }

    fn finish(&mut self, io: &mut Io<'_>) -> Result<(), CliError> {
        if let Some(piece) = self.stream.finish() {
            self.show(piece.label, &piece.text, io)?;
        }
        match self.label {
            Some(Label::Final) => writeln!(io.out)?,
            Some(_) => writeln!(io.err)?,
            None => {}
        }
        Ok(())
    }

    fn say_rate(&self, prompt_tokens: usize, began: Instant, io: &mut Io<'_>) -> Result<(), CliError> {
        let (Some(first), Some(last)) = (self.first, self.last) else { return Ok(()) };
        let ttft = first - began;
        write!(io.err, "{prompt_tokens} prompt tokens, first token after {:.2} s", ttft.as_secs_f64())?;
        let decode = (last - first).as_secs_f64();
        if self.tokens > 1 && decode > 0.0 {
            write!(io.err, ", {} tokens at {:.1} tok/s", self.tokens, f64::from(self.tokens - 1) / decode)?;
        }
        writeln!(io.err)?;
        Ok(())
    }
}
