//! TLS against a server with a certificate of its own making.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bench_http::{Endpoint, Failed, Stop, TlsOptions};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::{Asked, chunked, content, dialer_for, events, read_request, request, words};

/// Serves one connection: one answer per request, until the client goes.
fn serve() -> (SocketAddr, String, JoinHandle<()>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        let session = ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = StreamOwned::new(session, tcp);
        if stream.conn.complete_io(&mut stream.sock).is_err() {
            return;
        }
        for _ in 0..2 {
            read_request(&mut stream, true);
            stream.write_all(chunked(&events(&["a", "b"])).as_bytes()).unwrap();
            stream.flush().unwrap();
        }
        let _ = stream.read(&mut [0; 1]);
    });
    (address, cert.pem(), thread)
}

/// Two exchanges on one connection, or why there was none.
async fn try_with(host: &str, options: impl Fn(&str) -> TlsOptions) -> Result<String, Failed> {
    let (address, pem, server) = serve();
    let base = format!("https://{host}:{}", address.port());
    let dialer = dialer_for(Endpoint::parse(&base).unwrap(), &options(&pem));
    let asked = Asked::stream();
    let said = match dialer.open(Duration::from_secs(5), &Stop::new()).await {
        Err(failed) => Err(failed),
        Ok(mut connection) => {
            let mut said = Vec::new();
            for _ in 0..2 {
                let exchange = connection.exchange(request(&dialer), &asked.terms()).await;
                said.push(format!("{} '{}'; ", words(&exchange), content(&exchange)));
                assert!(exchange.events.is_sorted_by_key(|event| event.at_ns));
            }
            Ok(said.concat())
        }
    };
    server.join().unwrap();
    said
}

const TWICE: &str = "Sent FirstByte Tokens Tokens EmptyChunk Done(Stop) 'ab'; \
                     Sent FirstByte Tokens Tokens EmptyChunk Done(Stop) 'ab'; ";

#[tokio::test]
async fn an_unknown_certificate_is_refused_by_default() {
    let failed = try_with("localhost", |_| TlsOptions::default()).await.unwrap_err();
    let said = format!("{:?}: {failed}", failed.failure);
    assert!(said.starts_with("Connect: no TLS with https://localhost:"), "{said}");
    assert!(said.contains("UnknownIssuer"), "{said}");
    assert!(said.ends_with("give the certificate as a CA file, or accept any with insecure"), "{said}");
}

#[tokio::test]
async fn a_ca_file_makes_the_certificate_known() {
    let file: PathBuf = std::env::temp_dir().join(format!("ossbench-test-ca-{}.pem", std::process::id()));
    let with_file = |pem: &str| {
        std::fs::write(&file, pem).unwrap();
        TlsOptions { ca_file: Some(file.clone()), insecure: false }
    };
    assert_eq!(try_with("localhost", with_file).await.unwrap(), TWICE);
    // Known, but for another name.
    let failed = try_with("127.0.0.1", with_file).await.unwrap_err();
    assert!(failed.message.contains("not valid for name"), "{failed}");
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn insecure_takes_any_certificate() {
    let insecure = |_: &str| TlsOptions { insecure: true, ..TlsOptions::default() };
    assert_eq!(try_with("127.0.0.1", insecure).await.unwrap(), TWICE);
}

#[tokio::test]
async fn a_plain_server_behind_https_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        let _ = tcp.read(&mut [0; 512]);
        let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let endpoint = Endpoint::parse(&format!("https://{address}")).unwrap();
    let dialer = dialer_for(endpoint, &TlsOptions::default());
    let failed = dialer.open(Duration::from_secs(5), &Stop::new()).await.err().unwrap();
    assert!(failed.message.ends_with("does the server speak plain http there?"), "{failed}");
    server.join().unwrap();
}
