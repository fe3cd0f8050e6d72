//! A streaming client for OpenAI-compatible servers whose stamps are those of the socket.
//!
//! Bytes are stamped when they are read, before anything is parsed. No retries, no hidden buffering, finite
//! timeouts. It knows nothing of benchmarks: the caller hands in the clock and the load.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answer;
mod body;
mod clock;
mod connection;
mod dial;
pub mod discover;
mod endpoint;
mod error;
mod h1;
mod head;
mod limits;
pub mod loopback;
mod openai;
pub mod plain;
mod pool;
pub mod prometheus;
mod pump;
mod record;
mod sse;
mod stamped;
mod tls;

pub use answer::{AnswerForm, AnswerReader, BodyEnd, Progress, ReaderOptions};
pub use body::{Api, BodyTemplate, MaxTokensField, Message, Prompt, Variable};
pub use clock::{Clock, SystemClock};
pub use connection::{Connection, Plain, Terms};
pub use dial::Dialer;
pub use endpoint::{ApiKey, Endpoint, Route};
pub use error::{Failed, SetupError};
pub use limits::{Stop, Timeouts};
pub use openai::error_message;
pub use pool::{Ahead, Opened, Pool, PoolCounts};
pub use record::{
    AnswerText, Channel, Event, EventKind, Exchange, Failure, Finish, ReadCounts, ServerTimings, Usage,
};
pub use tls::TlsOptions;
