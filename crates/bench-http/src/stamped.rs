//! The socket with a clock at it: every read is stamped before anybody sees its bytes.
//!
//! It lies below TLS, so that a stamp is that of the network and not of decryption. The part above TLS notes
//! which read completed the bytes that went on to HTTP. It parses nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::Clock;
use crate::record::ReadCounts;

/// "Not yet" inside an atomic; never leaves this module.
const NEVER: u64 = u64::MAX;

/// The stamps of one connection, written by its I/O and read by the exchange that drives it.
///
/// Both run in one task: the atomics only make the connection `Send`.
#[derive(Debug)]
pub(crate) struct Stamps {
    sent_ns: AtomicU64,
    first_byte_ns: AtomicU64,
    /// The latest read of the socket.
    read_ns: AtomicU64,
    /// The read that completed the latest bytes handed on to HTTP; under TLS it is not always the latest one.
    data_ns: AtomicU64,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Default for Stamps {
    fn default() -> Self {
        let never = || AtomicU64::new(NEVER);
        Self {
            sent_ns: never(),
            first_byte_ns: never(),
            read_ns: never(),
            data_ns: never(),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }
}

impl Stamps {
    /// A request is about to be written.
    pub(crate) fn begin(&self) {
        for stamp in [&self.sent_ns, &self.first_byte_ns, &self.read_ns, &self.data_ns] {
            stamp.store(NEVER, Relaxed);
        }
        self.reads.store(0, Relaxed);
        self.bytes.store(0, Relaxed);
    }

    /// When the first byte of the request was handed to the socket.
    pub(crate) fn sent_ns(&self) -> Option<u64> {
        known(&self.sent_ns)
    }

    /// When the first byte of the answer was read.
    pub(crate) fn first_byte_ns(&self) -> Option<u64> {
        known(&self.first_byte_ns)
    }

    /// When the bytes that HTTP has now were complete.
    pub(crate) fn data_ns(&self) -> Option<u64> {
        known(&self.data_ns)
    }

    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Relaxed)
    }

    /// Reads and bytes since [`Stamps::begin`], of the socket: under TLS its records.
    pub(crate) fn counts(&self) -> ReadCounts {
        ReadCounts { reads: self.reads(), bytes: self.bytes.load(Relaxed), ..ReadCounts::default() }
    }

    fn on_read(&self, at_ns: u64, bytes: usize) {
        self.read_ns.store(at_ns, Relaxed);
        self.reads.store(self.reads.load(Relaxed) + 1, Relaxed);
        self.bytes.store(self.bytes.load(Relaxed) + bytes as u64, Relaxed);
    }

    /// The bytes of the latest read have passed TLS, where there is any, and go on to HTTP.
    pub(crate) fn on_data(&self) {
        let at_ns = self.read_ns.load(Relaxed);
        self.data_ns.store(at_ns, Relaxed);
        if known(&self.sent_ns).is_some() && known(&self.first_byte_ns).is_none() {
            self.first_byte_ns.store(at_ns, Relaxed);
        }
    }
}

fn known(stamp: &AtomicU64) -> Option<u64> {
    Some(stamp.load(Relaxed)).filter(|&ns| ns != NEVER)
}

/// The socket, stamped at each read that brings bytes.
pub(crate) struct Stamped<S> {
    inner: S,
    clock: Arc<dyn Clock>,
    stamps: Arc<Stamps>,
}

impl<S> Stamped<S> {
    pub(crate) fn new(inner: S, clock: Arc<dyn Clock>, stamps: Arc<Stamps>) -> Self {
        Self { inner, clock, stamps }
    }

    /// The first write of a request is stamped before it is made: what the kernel needs to send belongs to
    /// the server's time as the client sees it, not to the schedule. Returns the stamp if it is still open.
    fn before_write(&self) -> Option<u64> {
        self.stamps.sent_ns().is_none().then(|| self.clock.now_ns())
    }

    fn after_write(&self, opened_ns: Option<u64>, result: &Poll<io::Result<usize>>) {
        if let (Some(at_ns), Poll::Ready(Ok(1..))) = (opened_ns, result) {
            self.stamps.sent_ns.store(at_ns, Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stamped<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        if bytes > 0 && matches!(result, Poll::Ready(Ok(()))) {
            self.stamps.on_read(self.clock.now_ns(), bytes);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stamped<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let opened_ns = self.before_write();
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.after_write(opened_ns, &result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let opened_ns = self.before_write();
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.after_write(opened_ns, &result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A byte stream that HTTP can run over: the stamped socket, or TLS over it.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}
