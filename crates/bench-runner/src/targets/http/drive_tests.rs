//! Loads in the runtime's scripted time: every instant is exact and nothing waits.

use super::super::convert::Asked;
use super::*;
use bench_http::{AnswerText, Finish};
use std::cell::RefCell;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::Instant;

/// The runtime's own time as a clock.
struct Virtual(Instant);

impl Clock for Virtual {
    fn now(&self) -> Nanos {
        Nanos(self.0.elapsed().as_nanos() as u64)
    }
}

/// Answers after as many milliseconds as the body says; `x` cannot be reached, `s` hangs until stopped.
struct Scripted {
    clock: Arc<dyn Clock>,
    stop: bench_http::Stop,
}

impl Wire for Scripted {
    async fn exchange(&self, _id: &str, body: Bytes) -> Exchange {
        let text = String::from_utf8(body.to_vec()).unwrap();
        let sent = self.clock.now().0;
        let failed = |failure| EventKind::Failed { failure, message: "x".to_owned() };
        let kind = match text.as_str() {
            "x" => failed(Failure::Connect),
            "s" => {
                self.stop.wait().await;
                failed(Failure::Interrupted)
            }
            ms => {
                tokio::time::sleep(Duration::from_millis(ms.parse().unwrap())).await;
                EventKind::Done { finish: Finish::Length }
            }
        };
        let event = |at_ns, kind| Event { at_ns, kind };
        let text = Some(AnswerText { content: text, reasoning: String::new() });
        let events = vec![event(sent, EventKind::Sent), event(self.clock.now().0, kind)];
        Exchange { events, text, ..Exchange::default() }
    }
}

fn turn(repeat: u32, slot: u32, body: &str) -> Turn {
    let prompt_hash = String::new();
    let asked = Asked { repeat, slot, id: String::new(), prompt_hash, lengths: None, prompt_is_known: true };
    Turn { asked, body: Bytes::from(body.to_owned()) }
}

/// `30` is one request; `30+20+x` a conversation.
fn job(repeat: u32, script: &str) -> Job {
    let mut turns = script.split('+').zip(0..);
    let (first, _) = turns.next().unwrap();
    let later = turns.map(|(body, slot)| {
        let made = turn(repeat, slot, body);
        let next: NextTurn = Box::new(move |before| {
            assert!(before.text.is_some(), "the answer before is handed over");
            Ok(made)
        });
        (turn(repeat, slot, "").asked, next)
    });
    Job { later: later.collect(), first: turn(repeat, 0, first) }
}

enum Shape {
    Closed(u32),
    /// Due in milliseconds; most in flight.
    Open(&'static [u64], Option<usize>),
}

/// Runs the jobs; each line is `repeat.slot intended sent end failure?`, in milliseconds, in order of their end.
fn run(shape: &Shape, jobs: &[&str], give_up_after: u32, stop_after_ms: Option<u64>) -> Vec<String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let lines = Rc::new(RefCell::new(Vec::new()));
    LocalSet::new().block_on(&runtime, async {
        let clock: Arc<dyn Clock> = Arc::new(Virtual(Instant::now()));
        let stop = bench_http::Stop::new();
        let common = Arc::new(Common {
            clock: clock.clone(),
            in_flight: AtomicU32::new(0),
            unreachable: AtomicU32::new(0),
            give_up_after,
            think: Duration::from_millis(5),
        });
        let (send, receive) = mpsc::channel(jobs.len());
        for (repeat, script) in (0..).zip(jobs) {
            send.try_send(job(repeat, script)).map_err(|_| ()).unwrap();
        }
        drop(send);
        let told = lines.clone();
        let done = move |done: Done| told.borrow_mut().push(line(&done));
        let driver = Rc::new(Driver {
            common,
            wire: Scripted { clock, stop: stop.clone() },
            jobs: Mutex::new(receive),
            done: Box::new(done),
            stop: stop.clone(),
        });
        if let Some(ms) = stop_after_ms {
            tokio::task::spawn_local(async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                stop.stop();
            });
        }
        match shape {
            Shape::Closed(slots) => driver.closed(*slots).await,
            Shape::Open(due, most) => {
                let due = *due;
                let (tick, ticks) = mpsc::unbounded_channel();
                tokio::task::spawn_local(async move {
                    let begin = Instant::now();
                    for ms in due {
                        tokio::time::sleep_until(begin + Duration::from_millis(*ms)).await;
                        let _ = tick.send(Nanos::from_millis(*ms));
                    }
                });
                driver.open(ticks, most.map(|most| Arc::new(Semaphore::new(most)))).await;
            }
        }
    });
    lines.take()
}

fn line(done: &Done) -> String {
    let ms = |ns: u64| ns / 1_000_000;
    let events = &done.exchange.events;
    let sent =
        events.iter().find(|e| e.kind == EventKind::Sent).map_or("-".to_owned(), |e| ms(e.at_ns).to_string());
    let end = events.last().unwrap();
    let failure = match &end.kind {
        EventKind::Failed { failure, message } => format!(" {failure:?}: {message}"),
        _ => String::new(),
    };
    let Asked { repeat, slot, .. } = done.asked;
    format!("{repeat}.{slot} {} {sent} {}{failure}", ms(done.intended.0), ms(end.at_ns))
}

#[test]
fn a_closed_loop_keeps_its_slots_full() {
    let lines = run(&Shape::Closed(2), &["30", "10", "10", "10", "5"], 9, None);
    assert_eq!(lines, ["1.0 0 0 10", "2.0 10 10 20", "0.0 0 0 30", "3.0 20 20 30", "4.0 30 30 35"]);
}

#[test]
fn an_open_loop_waits_for_nobody() {
    let lines = run(&Shape::Open(&[0, 10, 12, 40], None), &["30", "30", "1", "1"], 9, None);
    assert_eq!(lines, ["2.0 12 12 13", "0.0 0 0 30", "1.0 10 10 40", "3.0 40 40 41"]);
}

#[test]
fn what_the_cap_holds_back_keeps_its_intended_instant() {
    let lines = run(&Shape::Open(&[0, 0, 0], Some(1)), &["10", "10", "10"], 9, None);
    assert_eq!(lines, ["0.0 0 0 10", "1.0 0 10 20", "2.0 0 20 30"]);
}

#[test]
fn turns_follow_one_another_after_a_pause() {
    let lines = run(&Shape::Closed(1), &["10+20", "7"], 9, None);
    assert_eq!(lines, ["0.0 0 0 10", "0.1 15 15 35", "1.0 35 35 42"]);
}

#[test]
fn turns_after_one_that_failed_are_failures_too() {
    let lines = run(&Shape::Closed(1), &["10+x+20", "7"], 9, None);
    let lost = "0.2 15 - 15 Connect: not sent: a turn before it failed: x";
    assert_eq!(lines, ["0.0 0 0 10", "0.1 15 15 15 Connect: x", lost, "1.0 15 15 22"]);
}

#[test]
fn a_server_that_is_gone_is_not_asked_to_the_end() {
    let lines = run(&Shape::Closed(1), &["x", "x", "1", "x", "x", "x", "1", "1"], 3, None);
    let refused = |repeat: u32| format!("{repeat}.0 1 1 1 Connect: x");
    let given_up = |repeat: u32| {
        format!("{repeat}.0 1 - 1 Connect: not sent: the server could not be reached 3 times in a row")
    };
    let first =
        ["0.0 0 0 0 Connect: x".to_owned(), "1.0 0 0 0 Connect: x".to_owned(), "2.0 0 0 1".to_owned()];
    let rest = [refused(3), refused(4), refused(5), given_up(6), given_up(7)];
    assert_eq!(lines, first.into_iter().chain(rest).collect::<Vec<_>>());
}

#[test]
fn a_stop_ends_what_is_in_flight_and_sends_no_more() {
    let lines = run(&Shape::Closed(2), &["s", "10", "s", "1"], 9, Some(50));
    assert_eq!(lines, ["1.0 0 0 10", "0.0 0 0 50 Interrupted: x", "2.0 10 10 50 Interrupted: x"]);
    let lines = run(&Shape::Open(&[0, 0, 80], Some(1)), &["s", "1", "1"], 9, Some(50));
    assert_eq!(lines, ["0.0 0 0 50 Interrupted: x"], "what was held back was never sent");
}
