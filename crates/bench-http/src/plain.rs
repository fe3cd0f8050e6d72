//! Plain requests of a few kilobytes, for probes: models, tokens, metrics, health.
//!
//! Each opens a connection of its own, so that it never disturbs those that are measured. No retry.

use bytes::Bytes;
use serde_json::Value;

use crate::connection::Plain;
use crate::dial::Dialer;
use crate::endpoint::Route;
use crate::error::Failed;
use crate::head::told;
use crate::limits::{Stop, Timeouts};
use crate::record::Failure;

/// Limits of a plain request.
#[derive(Debug, Clone, Copy)]
pub struct PlainTerms<'a> {
    /// The longest body that is taken.
    pub limit_bytes: usize,
    pub timeouts: &'a Timeouts,
    pub stop: &'a Stop,
}

/// GET, whatever the status.
pub async fn get(dialer: &Dialer, route: Route, terms: &PlainTerms<'_>) -> Result<Plain, Failed> {
    send(dialer, route, None, terms).await
}

/// POST of a JSON value, whatever the status.
pub async fn post(
    dialer: &Dialer,
    route: Route,
    body: &Value,
    terms: &PlainTerms<'_>,
) -> Result<Plain, Failed> {
    send(dialer, route, Some(Bytes::from(body.to_string())), terms).await
}

/// The JSON of an answer with status 200; anything else is a failure that says what came.
pub fn json(dialer: &Dialer, route: Route, plain: &Plain) -> Result<Value, Failed> {
    let url = dialer.endpoint().url(route);
    let begin = || told(&dialer.redacted(&String::from_utf8_lossy(&plain.body)));
    if plain.status != http::StatusCode::OK {
        let message = format!("status {} from {url}: {}", plain.status, begin());
        return Err(Failed::new(Failure::Status, message));
    }
    serde_json::from_slice(&plain.body).map_err(|error| {
        let message = format!("no JSON from {url}: {error}; it begins: {}", begin());
        Failed::new(Failure::BadFrame, message)
    })
}

async fn send(
    dialer: &Dialer,
    route: Route,
    body: Option<Bytes>,
    terms: &PlainTerms<'_>,
) -> Result<Plain, Failed> {
    let endpoint = dialer.endpoint();
    let request = match body {
        Some(body) => endpoint.post(route, body),
        None => endpoint.get(route),
    };
    let request = request.map_err(|error| Failed::new(Failure::Connect, error.to_string()))?;
    let mut connection = dialer.open(terms.timeouts.connect, terms.stop).await?;
    connection.plain(request, terms.limit_bytes, terms.timeouts, terms.stop).await
}
