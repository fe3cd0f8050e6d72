//! From an endpoint to an open connection: name, TCP, TLS, in one finite time.
//!
//! The name is resolved once and the address that answered is tried first from then on, so that a thousand
//! connections do not ask the resolver a thousand times. Nothing is retried.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::clock::Clock;
use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::error::{Failed, SetupError, chain, redacted};
use crate::limits::Stop;
use crate::record::Failure;
use crate::stamped::{Socket, Stamped, Stamps};
use crate::tls::{TlsOptions, client_config};

/// Opens connections to one endpoint.
pub struct Dialer {
    endpoint: Endpoint,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    clock: Arc<dyn Clock>,
    secrets: Arc<[String]>,
    addresses: Mutex<Vec<SocketAddr>>,
}

impl Dialer {
    /// Reads the certificates, once; connects to nothing.
    pub fn new(endpoint: Endpoint, tls: &TlsOptions, clock: Arc<dyn Clock>) -> Result<Self, SetupError> {
        let tls = if endpoint.is_https() { Some(connector(&endpoint, client_config(tls)?)?) } else { None };
        let secrets = endpoint.secrets().into();
        Ok(Self { endpoint, tls, clock, secrets, addresses: Mutex::new(Vec::new()) })
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn redacted(&self, text: &str) -> String {
        redacted(&self.secrets, text)
    }

    /// Resolves, connects and, for https, shakes hands, all within `limit`.
    pub async fn open(&self, limit: Duration, stop: &Stop) -> Result<Connection, Failed> {
        let base = self.endpoint.base();
        tokio::select! {
            biased;
            () = stop.wait() => Err(Failed::new(Failure::Interrupted, "stopped by the caller")),
            opened = tokio::time::timeout(limit, self.dial()) => opened.unwrap_or_else(|_| {
                let message = format!("not connected to {base} within {limit:?} (connect limit)");
                Err(Failed::new(Failure::Timeout, message))
            }),
        }
    }

    async fn dial(&self) -> Result<Connection, Failed> {
        let tcp = self.tcp().await?;
        let stamps = Arc::new(Stamps::default());
        let stamped = Stamped::new(tcp, self.clock.clone(), stamps.clone());
        let socket: Box<dyn Socket> = match &self.tls {
            None => Box::new(stamped),
            Some((connector, name)) => {
                let shaken = connector.connect(name.clone(), stamped).await;
                Box::new(shaken.map_err(|error| self.refused("no TLS with", &tls_words(&error)))?)
            }
        };
        Ok(Connection::new(socket, stamps, self.clock.clone(), self.secrets.clone()))
    }

    async fn tcp(&self) -> Result<TcpStream, Failed> {
        let addresses = self.addresses().await?;
        let mut last = None;
        for (at, &address) in addresses.iter().enumerate() {
            match TcpStream::connect(address).await {
                Ok(tcp) => {
                    tcp.set_nodelay(true).map_err(|error| self.io_refused(address, &error))?;
                    if at > 0 {
                        self.prefer(address);
                    }
                    return Ok(tcp);
                }
                Err(error) => last = Some(self.io_refused(address, &error)),
            }
        }
        Err(last.unwrap_or_else(|| self.refused("cannot connect to", "the name has no address")))
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, Failed> {
        let known = self.lock().clone();
        if !known.is_empty() {
            return Ok(known);
        }
        let (host, port) = (self.endpoint.host(), self.endpoint.port());
        let found = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => tokio::net::lookup_host((host, port))
                .await
                .map_err(|error| self.refused("cannot resolve the host of", &error.to_string()))?
                .collect(),
        };
        self.lock().clone_from(&found);
        Ok(found)
    }

    /// `localhost` often means `::1` first, where many servers do not listen.
    fn prefer(&self, address: SocketAddr) {
        let mut addresses = self.lock();
        if let Some(at) = addresses.iter().position(|&known| known == address) {
            addresses[..=at].rotate_right(1);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SocketAddr>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn io_refused(&self, address: SocketAddr, error: &io::Error) -> Failed {
        let hint = match error.kind() {
            io::ErrorKind::ConnectionRefused => "; is the server running there?",
            io::ErrorKind::AddrNotAvailable => "; no local port is free: fewer connections, or keep-alive",
            _ if error.raw_os_error() == Some(TOO_MANY_FILES) => {
                "; raise the limit of open files (ulimit -n)"
            }
            _ => "",
        };
        self.refused("cannot connect to", &format!("{address}: {error}{hint}"))
    }

    fn refused(&self, what: &str, why: &str) -> Failed {
        Failed::new(Failure::Connect, format!("{what} {}: {why}", self.endpoint.base()))
    }
}

/// EMFILE, the same number on every Unix.
const TOO_MANY_FILES: i32 = 24;

fn connector(
    endpoint: &Endpoint,
    config: Arc<ClientConfig>,
) -> Result<(TlsConnector, ServerName<'static>), SetupError> {
    let name = ServerName::try_from(endpoint.host().to_owned())
        .map_err(|error| SetupError::Tls(format!("'{}': {error}", endpoint.host())))?;
    Ok((TlsConnector::from(config), name))
}

fn tls_words(error: &io::Error) -> String {
    let words = chain(error);
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            format!("{words}; give the certificate as a CA file, or accept any with insecure")
        }
        Some(rustls::Error::InvalidMessage(_)) => format!("{words}; does the server speak plain http there?"),
        _ => words,
    }
}
