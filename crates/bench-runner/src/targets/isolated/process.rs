//! A child process with its three streams, none of which can block the run: each has a thread of its own.
//!
//! It is waited for in every case, and killed if it does not end by itself. What it means is not known here.

use super::COMMAND;
use super::protocol::{FromEngine, ToEngine, line, parse, read_line};
use bench_core::target::StopFlag;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at the stop flag while nothing is told.
const LOOK: Duration = Duration::from_millis(100);
/// A process that has told everything gives its memory back and ends.
const TO_END: Duration = Duration::from_secs(20);
/// What is kept of the error stream: the last of it.
const KEPT_BYTES: usize = 8 << 10;
/// Lines of it that are quoted.
const QUOTED_LINES: usize = 4;
/// Ctrl-C at a terminal reaches all processes; our own flag may be set a moment after the other has ended.
const SAME_SIGNAL: Duration = Duration::from_secs(1);

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
/// How the program ends when it is interrupted twice.
const INTERRUPTED: i32 = 130;

/// Why nothing more is told.
#[derive(Debug)]
pub(super) enum Silence {
    /// The run is to stop.
    Stopped,
    /// The process has ended or was ended, and why.
    Ended(String),
}

/// A running process; dropped, it is killed.
pub(super) struct Process {
    child: Child,
    /// To the thread that writes to the standard input; without it that is closed.
    input: Option<Sender<Vec<u8>>>,
    lines: Receiver<io::Result<Vec<u8>>>,
    errors: Errors,
    /// When it was told to stop.
    stopped: Option<Instant>,
}

impl Process {
    pub(super) fn spawn(program: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        // What `ps` shows, whatever path the program was started by.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::arg0(&mut command, "ossbench");
        command.arg(COMMAND).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (sender, to_write) = mpsc::channel::<Vec<u8>>();
        let (to_run, lines) = mpsc::channel();
        let (ended, errors_ended) = mpsc::channel::<()>();
        let kept = Arc::new(Mutex::new(Vec::new()));
        let process = Self {
            child,
            input: Some(sender),
            lines,
            errors: Errors { kept: kept.clone(), ended: errors_ended },
            stopped: None,
        };
        if let (Some(stdin), Some(stdout), Some(stderr)) = streams {
            on_thread("engine-in", move || write_all(stdin, &to_write))?;
            on_thread("engine-out", move || read_all(stdout, &to_run))?;
            on_thread("engine-err", move || {
                keep_last(stderr, &kept);
                drop(ended);
            })?;
        }
        Ok(process)
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Never waits. A process that has ended is not told; `next` says that it has.
    pub(super) fn tell(&mut self, message: &ToEngine) {
        if let (Some(input), Ok(bytes)) = (&self.input, line(message)) {
            let _ = input.send(bytes);
        }
    }

    /// The next message. When `stop` is set the process is told so, and after `grace` it is killed.
    pub(super) fn next(&mut self, stop: &StopFlag, grace: Duration) -> Result<FromEngine, Silence> {
        loop {
            if stop.is_set() && self.stopped.is_none() {
                self.tell(&ToEngine::Stop);
                self.stopped = Some(Instant::now());
            }
            if self.stopped.is_some_and(|since| since.elapsed() >= grace) {
                self.kill();
                return Err(Silence::Stopped);
            }
            match self.lines.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.silence(stop)),
                Ok(read) => {
                    let message = read.map_err(|e| format!("cannot be read: {e}")).and_then(|l| parse(&l));
                    return message.map_err(|problem| Silence::Ended(self.give_up(&problem)));
                }
            }
        }
    }

    /// Ends a process that does not keep to what was agreed; what to say of it.
    pub(super) fn give_up(&mut self, problem: &str) -> String {
        self.kill();
        format!("the process of this trial {problem}{}", self.errors.quoted())
    }

    /// Waits for a process that has told everything; what the reader of the results should know of it.
    pub(super) fn end(mut self) -> Vec<String> {
        self.input = None;
        let mut notes = Vec::new();
        match self.wait(TO_END) {
            Some(status) if status.success() => {}
            Some(status) => notes.push(format!("the process of the trial {} after its results", how(status))),
            None => notes.push(format!(
                "the process of the trial did not end within {} s of its results and was killed",
                TO_END.as_secs()
            )),
        }
        notes.extend(self.errors.last().map(|text| format!("the process of the trial says: {text}")));
        notes
    }

    /// The process has closed its output.
    fn silence(&mut self, stop: &StopFlag) -> Silence {
        let Some(status) = self.wait(TO_END) else {
            return Silence::Ended(self.give_up("closed its output and went on"));
        };
        if signal(status) == Some(SIGINT) || status.code() == Some(INTERRUPTED) {
            let since = Instant::now();
            while !stop.is_set() && since.elapsed() < SAME_SIGNAL {
                thread::sleep(Duration::from_millis(5));
            }
        }
        if stop.is_set() {
            return Silence::Stopped;
        }
        let how = how(status);
        Silence::Ended(format!(
            "the process of this trial {how} before the trial had ended{}",
            self.errors.quoted()
        ))
    }

    /// How it ended within `limit`; `None`: it did not, and was killed.
    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let since = Instant::now();
        while since.elapsed() < limit {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                Err(_) => break,
            }
        }
        self.kill();
        None
    }

    fn kill(&mut self) {
        // It may have ended by itself; it is waited for either way, so that no zombie stays.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last of what a process wrote to its standard error.
struct Errors {
    kept: Arc<Mutex<Vec<u8>>>,
    /// Closed when there is no more to come.
    ended: Receiver<()>,
}

impl Errors {
    /// The last lines; the process has ended.
    fn last(&self) -> Option<String> {
        // A process of its own that the child left behind may hold the stream open: not waited for.
        let _ = self.ended.recv_timeout(Duration::from_secs(1));
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
        (!last.is_empty()).then(|| last.join(" / "))
    }

    fn quoted(&self) -> String {
        self.last().map_or(String::new(), |text| format!("; its last words: {text}"))
    }
}

fn on_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Until nobody sends any more or the process takes no more.
fn write_all(mut stdin: impl Write, lines: &Receiver<Vec<u8>>) {
    for line in lines {
        if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

/// Until the process closes its output, or nobody listens any more.
fn read_all(stdout: impl Read, lines: &Sender<io::Result<Vec<u8>>>) {
    let mut reader = BufReader::new(stdout);
    while let Some(read) = read_line(&mut reader).transpose() {
        let failed = read.is_err();
        if lines.send(read).is_err() || failed {
            return;
        }
    }
}

fn keep_last(mut stderr: impl Read, kept: &Mutex<Vec<u8>>) {
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut chunk) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&chunk[..read]);
        let surplus = kept.len().saturating_sub(KEPT_BYTES);
        kept.drain(..surplus);
    }
}

fn how(status: ExitStatus) -> String {
    match signal(status) {
        Some(SIGKILL) => "was killed by signal 9 (out of memory?)".to_owned(),
        Some(number) => format!("was ended by signal {number}"),
        None => match status.code() {
            Some(code) => format!("ended with exit status {code}"),
            None => "ended".to_owned(),
        },
    }
}

fn signal(status: ExitStatus) -> Option<i32> {
    #[cfg(unix)]
    return std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    return None;
}
