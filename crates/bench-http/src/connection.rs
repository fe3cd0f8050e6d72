//! One kept-alive connection and the exchanges on it: request out, answer in, each piece with its stamp.
//!
//! Every way to fail ends in an event of its own kind. No retry, no redirect, no decompression.

use std::io;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;

use crate::answer::{AnswerForm, AnswerReader, BodyEnd, Progress, ReaderOptions};
use crate::clock::Clock;
use crate::error::{Failed, chain, redacted};
use crate::h1::{self, Decoder, Head};
use crate::head;
use crate::limits::{Stop, Timeouts, Watch};
use crate::openai::error_message;
use crate::pump::{Cut, Pump};
use crate::record::{Event, EventKind, Exchange, Failure, ReadCounts};
use crate::stamped::{Socket, Stamped, Stamps};

/// How much of a refusal's body is read, so that the connection can be used again.
const REFUSAL_BYTES: usize = 64 * 1024;

/// How long the end of the body is awaited once the answer is complete.
const END_GRACE: Duration = Duration::from_millis(250);

/// How one request is to be answered.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Whether server-sent events were asked for; a server that answers in the other form is read as it does.
    pub streamed: bool,
    /// Whether the answer's text is kept.
    pub keep_text: bool,
    /// Tokens of the answer, as far as known: room for their events is made at once.
    pub expected_tokens: u32,
    pub timeouts: &'a Timeouts,
    pub stop: &'a Stop,
}

impl Terms<'_> {
    fn asked(&self) -> AnswerForm {
        if self.streamed { AnswerForm::Stream } else { AnswerForm::Whole }
    }

    fn reader(&self, form: AnswerForm) -> ReaderOptions {
        ReaderOptions {
            form,
            keep_text: self.keep_text,
            expected_tokens: self.expected_tokens as usize,
            ..ReaderOptions::default()
        }
    }
}

/// The answer of a plain request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    pub status: StatusCode,
    pub body: Bytes,
}

/// An open connection; one exchange at a time. Dropping it closes the socket, in the middle of a stream too.
pub struct Connection {
    /// `None` once it can carry nothing more.
    pump: Option<Pump>,
    stamps: Arc<Stamps>,
    clock: Arc<dyn Clock>,
    /// What must not appear in a message, should the server repeat it.
    secrets: Arc<[String]>,
    exchanges: u64,
}

/// The head of an answer, and what came with it.
struct Opening {
    head: Head,
    /// Bytes of the body that came in the head's last read.
    rest: Vec<u8>,
    at_ns: u64,
}

/// What the receiver of a body wants next.
enum Want {
    More,
    /// The answer is complete; only the end of the body is awaited, for the connection's sake.
    End,
    Nothing,
}

impl Connection {
    /// A connection over a byte stream that is open already.
    pub fn over<S>(stream: S, clock: Arc<dyn Clock>) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let stamps = Arc::new(Stamps::default());
        let stamped = Stamped::new(stream, clock.clone(), stamps.clone());
        Self::new(Box::new(stamped), stamps, clock, Arc::new([]))
    }

    pub(crate) fn new(
        socket: Box<dyn Socket>,
        stamps: Arc<Stamps>,
        clock: Arc<dyn Clock>,
        secrets: Arc<[String]>,
    ) -> Self {
        let pump = Some(Pump::new(socket, stamps.clone()));
        Self { pump, stamps, clock, secrets, exchanges: 0 }
    }

    /// Whether the peer still keeps the connection, as far as the runtime knows; no system call.
    pub fn is_open(&mut self) -> bool {
        if !self.pump.as_mut().is_some_and(Pump::is_quiet) {
            self.pump = None;
        }
        self.pump.is_some()
    }

    /// Whether it has carried a request before.
    pub fn has_served(&self) -> bool {
        self.exchanges > 0
    }

    /// Sends the request and reads its answer to the end, or to whatever ends it before.
    pub async fn exchange(&mut self, request: Request<Bytes>, terms: &Terms<'_>) -> Exchange {
        let stamps = self.begin();
        if terms.stop.is_stopped() {
            let failed = Failed::new(Failure::Interrupted, "stopped by the caller before it was sent");
            return self.refused(terms, failed, true);
        }
        let timer = pin!(sleep(Duration::ZERO));
        let notified = pin!(terms.stop.notified());
        let mut watch = Watch::new(terms.timeouts, terms.stop, &stamps, timer, notified);
        let opening = match self.head(request, &mut watch).await {
            Ok(opening) => opening,
            Err(failed) => return self.refused(terms, failed, false),
        };
        match head::form(&opening.head, terms.asked()) {
            Ok(form) => self.answer(opening, form, terms, &mut watch).await,
            Err(failed) => {
                let (failed, drained) = self.refusal(opening, failed, &mut watch).await;
                self.refused(terms, failed, drained)
            }
        }
    }

    /// Sends the request and takes the whole body, of at most `limit_bytes`, whatever the status.
    pub async fn plain(
        &mut self,
        request: Request<Bytes>,
        limit_bytes: usize,
        timeouts: &Timeouts,
        stop: &Stop,
    ) -> Result<Plain, Failed> {
        let stamps = self.begin();
        let timer = pin!(sleep(Duration::ZERO));
        let notified = pin!(stop.notified());
        let mut watch = Watch::new(timeouts, stop, &stamps, timer, notified);
        let got = self.plain_body(request, limit_bytes, &mut watch).await;
        if !matches!(got, Ok((_, true))) {
            self.pump = None;
        }
        got.map(|(plain, _)| plain)
    }

    async fn plain_body(
        &mut self,
        request: Request<Bytes>,
        limit_bytes: usize,
        watch: &mut Watch<'_, '_>,
    ) -> Result<(Plain, bool), Failed> {
        let opening = self.head(request, watch).await?;
        head::identity(&opening.head.headers)?;
        let status = opening.head.status;
        let (mut body, mut too_long) = (Vec::new(), false);
        let drained = self.body(opening, watch, |_, piece| {
            too_long = body.len() + piece.len() > limit_bytes;
            if too_long {
                return Want::Nothing;
            }
            body.extend_from_slice(piece);
            Want::More
        });
        let drained = drained.await?;
        if too_long {
            let message = format!("the body is longer than {limit_bytes} bytes");
            return Err(Failed::new(Failure::BadFrame, message));
        }
        Ok((Plain { status, body: body.into() }, drained))
    }

    fn begin(&mut self) -> Arc<Stamps> {
        self.stamps.begin();
        self.stamps.clone()
    }

    async fn head(&mut self, request: Request<Bytes>, watch: &mut Watch<'_, '_>) -> Result<Opening, Failed> {
        let Some(pump) = &mut self.pump else {
            return Err(Failed::new(Failure::Connect, "the connection is closed"));
        };
        self.exchanges += 1;
        pump.send(h1::encode(&request).into(), request.into_body());
        let mut bytes = Vec::new();
        let received = pump.receive(watch, |at_ns, arrived, _| {
            if arrived.is_empty() {
                return ControlFlow::Break(Ok(None));
            }
            bytes.extend_from_slice(arrived);
            match h1::parse(&bytes) {
                Ok(None) => ControlFlow::Continue(()),
                Ok(Some((head, length))) => {
                    ControlFlow::Break(Ok(Some(Opening { head, rest: bytes.split_off(length), at_ns })))
                }
                Err(why) => ControlFlow::Break(Err(why)),
            }
        });
        match received.await {
            Ok(Ok(Some(opening))) => Ok(opening),
            Ok(Ok(None)) => Err(self.no_head("closed by the server")),
            Ok(Err(why)) => Err(Failed::new(Failure::BadFrame, format!("the answer is not HTTP/1.1: {why}"))),
            Err(Cut::Watch(failed)) => Err(failed),
            Err(Cut::Broken(error)) => Err(self.no_head(&chain(&error))),
        }
    }

    /// Hands the body's pieces with their stamps to `take`. Returns whether the connection can carry another
    /// request: the body came to its end, and nothing followed it.
    async fn body(
        &mut self,
        opening: Opening,
        watch: &mut Watch<'_, '_>,
        mut take: impl FnMut(u64, &[u8]) -> Want,
    ) -> Result<bool, Failed> {
        let Some(pump) = &mut self.pump else { return Ok(false) };
        let Opening { head, rest, at_ns } = opening;
        let mut decoder = Decoder::new(head.framing);
        let mut step = |at_ns: u64, mut bytes: &[u8], watch: &mut Watch<'_, '_>| {
            loop {
                match decoder.next(&mut bytes) {
                    Ok(Some(piece)) => match take(at_ns, piece) {
                        Want::More => {}
                        Want::End => watch.grace(END_GRACE),
                        Want::Nothing => return ControlFlow::Break(Ok(false)),
                    },
                    Ok(None) if decoder.is_end() => return ControlFlow::Break(Ok(bytes.is_empty())),
                    Ok(None) => return ControlFlow::Continue(()),
                    Err(why) => {
                        let message = format!("the body is not HTTP/1.1: {why}");
                        return ControlFlow::Break(Err(Failed::new(Failure::BadFrame, message)));
                    }
                }
            }
        };
        let ended = match step(at_ns, &rest, watch) {
            ControlFlow::Break(ended) => ended,
            ControlFlow::Continue(()) => {
                drop(rest);
                let received = pump.receive(watch, |at_ns, bytes, watch| {
                    // Closed: whether that was the end is judged below.
                    if bytes.is_empty() { ControlFlow::Break(Ok(false)) } else { step(at_ns, bytes, watch) }
                });
                match received.await {
                    Ok(Ok(false)) if !decoder.may_close() => Err(broken("closed by the server")),
                    Ok(ended) => ended,
                    Err(Cut::Watch(failed)) => Err(failed),
                    Err(Cut::Broken(error)) => Err(broken_by(&error)),
                }
            }
        };
        Ok(ended? && head.keep_alive && pump.is_sent())
    }

    async fn answer(
        &mut self,
        opening: Opening,
        form: AnswerForm,
        terms: &Terms<'_>,
        watch: &mut Watch<'_, '_>,
    ) -> Exchange {
        let mut reader = self.reader(&terms.reader(form));
        let ended = self.body(opening, watch, |at_ns, piece| match reader.feed(at_ns, piece) {
            Progress::Reading => Want::More,
            Progress::Complete => Want::End,
            Progress::Failed => Want::Nothing,
        });
        let ended = ended.await;
        let now_ns = self.clock.now_ns();
        match ended {
            Ok(drained) => {
                reader.end(now_ns, BodyEnd::Clean);
                return self.concluded(reader, drained);
            }
            Err(Failed { failure: Failure::TruncatedStream, message }) => {
                reader.end(now_ns, BodyEnd::Broken(message))
            }
            Err(Failed { failure, message }) => reader.fail(now_ns, failure, message),
        };
        self.concluded(reader, false)
    }

    /// The answer is none that can be read: its body is told and drained, so that a server that refuses ten
    /// thousand requests does not also cost ten thousand connections. Returns whether that succeeded.
    async fn refusal(
        &mut self,
        opening: Opening,
        mut failed: Failed,
        watch: &mut Watch<'_, '_>,
    ) -> (Failed, bool) {
        watch.grace(END_GRACE);
        let mut said = Vec::new();
        let drained = self.body(opening, watch, |_, piece| {
            if said.len() + piece.len() > REFUSAL_BYTES {
                return Want::Nothing;
            }
            said.extend_from_slice(piece);
            Want::More
        });
        let drained = drained.await.unwrap_or(false);
        let words = error_message(&said).unwrap_or_else(|| String::from_utf8_lossy(&said).into_owned());
        // The secrets before the cut: half a key is a key too many.
        let told = head::told(&redacted(&self.secrets, &words));
        if !told.is_empty() {
            failed.message.push_str(": ");
            failed.message.push_str(&told);
        }
        (failed, drained)
    }

    /// An exchange whose answer was never read.
    fn refused(&mut self, terms: &Terms<'_>, failed: Failed, reusable: bool) -> Exchange {
        let mut reader = self.reader(&terms.reader(terms.asked()));
        reader.fail(self.clock.now_ns(), failed.failure, failed.message);
        let exchange = self.concluded(reader, reusable);
        Exchange { reusable: self.pump.is_some(), ..exchange }
    }

    /// A reader that knows what has happened so far.
    fn reader(&self, options: &ReaderOptions) -> AnswerReader {
        let mut reader = AnswerReader::new(options);
        if let Some(at_ns) = self.stamps.sent_ns() {
            reader.sent(at_ns);
        }
        if let Some(at_ns) = self.stamps.first_byte_ns() {
            reader.first_byte(at_ns);
        }
        reader
    }

    fn concluded(&mut self, reader: AnswerReader, reusable: bool) -> Exchange {
        if !reusable {
            self.pump = None;
        }
        let reusable = self.is_open();
        let mut exchange = reader.into_exchange(reusable);
        let ReadCounts { reads, bytes, .. } = self.stamps.counts();
        exchange.reads = ReadCounts { reads, bytes, ..exchange.reads };
        if let Some(Event { kind: EventKind::Failed { message, .. }, .. }) = exchange.events.last_mut() {
            *message = redacted(&self.secrets, message);
        }
        exchange
    }

    /// Why there was no head of an answer.
    fn no_head(&self, why: &str) -> Failed {
        if self.stamps.first_byte_ns().is_some() {
            return Failed::new(Failure::TruncatedStream, format!("broken within the header: {why}"));
        }
        let message = if self.exchanges > 1 {
            format!("the server closed a kept-alive connection before it answered: {why}")
        } else {
            format!("the connection broke before the first byte of the answer: {why}")
        };
        Failed::new(Failure::Connect, message)
    }
}

fn broken(why: &str) -> Failed {
    Failed::new(Failure::TruncatedStream, format!("the connection broke within the answer: {why}"))
}

fn broken_by(error: &io::Error) -> Failed {
    // TLS calls bytes that it cannot read so.
    if error.kind() == io::ErrorKind::InvalidData {
        return Failed::new(Failure::BadFrame, chain(error));
    }
    broken(&chain(error))
}
