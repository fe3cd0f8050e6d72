//! The wire side of the client, from outside: loopback sockets, TLS, scripted streams with scripted time.
#![allow(clippy::unwrap_used)]

mod answers;
mod stamps;
mod support;
mod tls;
