//! Bytes out and bytes in on one socket, in the task of whoever waits for them.
//!
//! A read is handed on before the next is made, from an area on the stack: an open stream holds no buffer,
//! and nothing lies between the socket and its stamp's reader. It knows no HTTP.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use crate::error::Failed;
use crate::limits::Watch;
use crate::stamped::{Socket, Stamps};

/// What one read takes at most; an event of a stream has some hundred bytes.
const READ_BYTES: usize = 16 * 1024;

/// Why bytes stopped coming.
pub(crate) enum Cut {
    /// A limit, or the caller's flag.
    Watch(Failed),
    Broken(io::Error),
}

pub(crate) struct Pump {
    socket: Box<dyn Socket>,
    stamps: Arc<Stamps>,
    head: Bytes,
    body: Bytes,
    /// Written, and not yet flushed; TLS has a buffer of its own.
    unflushed: bool,
    /// The peer takes no more; it may have answered nevertheless.
    deaf: Option<io::Error>,
}

impl Pump {
    pub(crate) fn new(socket: Box<dyn Socket>, stamps: Arc<Stamps>) -> Self {
        Self { socket, stamps, head: Bytes::new(), body: Bytes::new(), unflushed: false, deaf: None }
    }

    /// What goes out from now on, while answers are awaited.
    pub(crate) fn send(&mut self, head: Bytes, body: Bytes) {
        (self.head, self.body) = (head, body);
    }

    /// Whether all has gone out.
    pub(crate) fn is_sent(&self) -> bool {
        self.head.is_empty() && self.body.is_empty() && !self.unflushed && self.deaf.is_none()
    }

    /// Hands each read's stamp and bytes to `sink` until that breaks; no bytes mean that the peer has closed.
    pub(crate) async fn receive<T>(
        &mut self,
        watch: &mut Watch<'_, '_>,
        mut sink: impl FnMut(u64, &[u8], &mut Watch<'_, '_>) -> ControlFlow<T>,
    ) -> Result<T, Cut> {
        poll_fn(|cx| {
            self.poll_send(cx);
            loop {
                let mut area = [MaybeUninit::<u8>::uninit(); READ_BYTES];
                let mut buf = ReadBuf::uninit(&mut area);
                match Pin::new(&mut self.socket).poll_read(cx, &mut buf) {
                    Poll::Pending => return watch.poll(cx).map(|failed| Err(Cut::Watch(failed))),
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(Cut::Broken(self.deaf.take().unwrap_or(error))));
                    }
                    Poll::Ready(Ok(())) => {}
                }
                let bytes = buf.filled();
                if !bytes.is_empty() {
                    self.stamps.on_data();
                }
                let at_ns = self.stamps.data_ns().unwrap_or_default();
                if let ControlFlow::Break(result) = sink(at_ns, bytes, watch) {
                    return Poll::Ready(Ok(result));
                }
            }
        })
        .await
    }

    /// Whether the peer keeps an idle connection silently open. No system call, unless the runtime has heard
    /// of an event on the socket.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut area = [MaybeUninit::<u8>::uninit(); 64];
        let mut buf = ReadBuf::uninit(&mut area);
        let cx = &mut Context::from_waker(Waker::noop());
        Pin::new(&mut self.socket).poll_read(cx, &mut buf).is_pending()
    }

    /// Writes what can be written. An error here is not the end: what the server said before may lie in the
    /// socket, and reading will come to the same error.
    fn poll_send(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(Err(error)) = self.poll_write(cx) {
            (self.head, self.body, self.unflushed) = (Bytes::new(), Bytes::new(), false);
            self.deaf = Some(error);
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.head.is_empty() || !self.body.is_empty() {
            // A long prompt goes out from where it lies.
            let slices = [IoSlice::new(&self.head), IoSlice::new(&self.body)];
            let slices = if self.head.is_empty() { &slices[1..] } else { &slices[..] };
            let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(self.head.len());
            self.head.advance(of_head);
            self.body.advance(written - of_head);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
            self.unflushed = false;
            // The request is out: its bytes need not live as long as the stream.
            (self.head, self.body) = (Bytes::new(), Bytes::new());
        }
        Poll::Ready(Ok(()))
    }
}
