//! The few HTTP requests that a download needs: what a file is, and its bytes from some position on.
//!
//! Redirects are followed here and not by the library, because only the first answer tells commit, size and hash,
//! and because the token must stay with the endpoint. A redirect's address can be signed: it is never shown.

use std::fmt::Write as _;
use std::io::Read;
use std::time::Duration;

use ureq::http::{HeaderMap, Uri, header};

use super::options::is_commit;
use super::store::Part;
use super::{FileProgress, HubOptions, RemoteFile};
use crate::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two pieces of an answer; a whole file may take hours.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// The hub uses two at most: a renamed repository, and the storage behind.
const MAX_REDIRECTS: usize = 6;
const PIECE: usize = 1 << 18;

type Response = ureq::http::Response<ureq::Body>;

/// What the hub says of one file.
pub(super) struct Head {
    pub(super) commit: String,
    bytes: u64,
    sha256: Option<String>,
}

impl Head {
    pub(super) fn into_file(self, name: &str) -> RemoteFile {
        RemoteFile { name: name.to_owned(), bytes: self.bytes, sha256: self.sha256 }
    }
}

/// Asks one repository of one hub.
pub(super) struct Client {
    agent: ureq::Agent,
    endpoint: String,
    origin: String,
    repo: String,
    token: Option<String>,
}

enum Method {
    Head,
    /// From this byte on.
    Get(u64),
}

/// One answer of a chain of redirects.
struct Hop {
    response: Response,
    /// Whether it came from the endpoint's own host, whose headers are believed.
    own: bool,
    host: String,
}

impl Client {
    pub(super) fn new(options: &HubOptions, repo: &str) -> Result<Self, Error> {
        let endpoint = options.endpoint.trim_end_matches('/').to_owned();
        let origin = origin(&endpoint).filter(|_| !endpoint.contains(['@', '?', '#']));
        let Some(origin) = origin else {
            let expected = "http:// or https://, a host, and perhaps a port and a path";
            return Err(Error::HubName { what: "hub endpoint", name: endpoint, expected });
        };
        if options.token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            let (name, expected) = ("(hidden)".to_owned(), "letters and digits without spaces");
            return Err(Error::HubName { what: "hub token", name, expected });
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_send_request(Some(IDLE_TIMEOUT))
            .timeout_recv_response(Some(IDLE_TIMEOUT))
            .timeout_per_read(Some(IDLE_TIMEOUT))
            .user_agent(concat!("ossbench/", env!("CARGO_PKG_VERSION")))
            // Sizes and ranges are those of the file itself.
            .accept_encoding("identity");
        // A proxy from the environment is for what lies outside of this machine.
        let config = if is_loopback(&origin) { config.proxy(None) } else { config };
        Ok(Self {
            agent: config.build().into(),
            endpoint,
            origin,
            repo: repo.to_owned(),
            token: options.token.clone(),
        })
    }

    pub(super) fn repo(&self) -> &str {
        &self.repo
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// An answer that a hub does not give.
    pub(super) fn bad_answer(&self, file: &str, problem: String) -> Error {
        Error::HubAnswer { url: format!("{}/{}, file {file:?},", self.endpoint, self.repo), problem }
    }

    /// Asks for commit, size and hash of a file.
    pub(super) fn head(&self, revision: &str, file: &str) -> Result<Head, Error> {
        let mut found = Found::default();
        let last = self.follow(revision, file, &Method::Head, &mut found)?;
        let status = last.response.status().as_u16();
        if !found.is_known() && status != 200 {
            return Err(self.refused(&last, revision, file));
        }
        found.into_head().map_err(|missing| {
            let problem =
                format!("does not tell {missing}: this is not a hub, or not a file of a repository");
            self.bad_answer(file, problem)
        })
    }

    /// Appends what is missing to `part`.
    pub(super) fn get(
        &self,
        commit: &str,
        file: &RemoteFile,
        part: &mut Part,
        progress: &mut dyn FnMut(FileProgress),
    ) -> Result<(), Error> {
        let mut hop = self.follow(commit, &file.name, &Method::Get(part.done()), &mut Found::default())?;
        let headers = hop.response.headers();
        let other_size = |status: u16| {
            let problem = format!("has another size now (status {status}); run the same command again");
            Err(self.bad_answer(&file.name, problem))
        };
        match hop.response.status().as_u16() {
            206 if content_range(headers) == Some((part.done(), file.bytes)) => {}
            // A server may ignore the range and send everything.
            200 if number(headers, "content-length").is_none_or(|n| n == file.bytes) => part.restart()?,
            status @ (200 | 206 | 416) => {
                part.restart()?;
                return other_size(status);
            }
            _ => return Err(self.refused(&hop, commit, &file.name)),
        }
        let mut reader = hop.response.body_mut().as_reader();
        let mut piece = vec![0; PIECE];
        while part.done() < file.bytes {
            let wanted = usize::try_from(file.bytes - part.done()).map_or(PIECE, |left| left.min(PIECE));
            let broken = |reason: String| {
                let (done, total) = (part.done(), file.bytes);
                Err(Error::HubInterrupted { file: file.name.clone(), done, total, reason })
            };
            match reader.read(&mut piece[..wanted]) {
                Ok(0) => return broken("the answer ended".to_owned()),
                Ok(n) => part.write(&piece[..n])?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return broken(reason(&ureq::Error::from(e))),
            }
            progress(FileProgress { file: &file.name, done: part.done(), total: file.bytes });
        }
        Ok(())
    }

    /// Follows redirects to the last answer; notes on the way what the hub says of the file.
    fn follow(&self, revision: &str, file: &str, method: &Method, found: &mut Found) -> Result<Hop, Error> {
        let (revision, path) = (escaped(revision), escaped(file));
        let mut url = format!("{}/{}/resolve/{revision}/{path}", self.endpoint, self.repo);
        for _ in 0..=MAX_REDIRECTS {
            let hop = self.ask(&url, file, method)?;
            found.note(&hop);
            let status = hop.response.status().as_u16();
            let redirected = matches!(status, 301 | 302 | 303 | 307 | 308);
            if !redirected || (matches!(method, Method::Head) && found.is_known()) {
                return Ok(hop);
            }
            let location = hop.response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
            let next = location.and_then(|location| target(&url, location));
            // From https to http would show the file, and let anyone on the way change it.
            url = next.filter(|next| !url.starts_with("https:") || next.starts_with("https:")).ok_or_else(
                || self.bad_answer(file, format!("is redirected by {} to nowhere safe", hop.host)),
            )?;
        }
        Err(self.bad_answer(file, format!("is redirected more than {MAX_REDIRECTS} times")))
    }

    fn ask(&self, url: &str, file: &str, method: &Method) -> Result<Hop, Error> {
        let Some(host) = origin(url) else {
            return Err(self.bad_answer(file, "has an address that cannot be read".to_owned()));
        };
        let own = host == self.origin;
        let mut request = match method {
            Method::Head => self.agent.head(url),
            Method::Get(_) => self.agent.get(url),
        };
        if let Some(token) = self.token.as_ref().filter(|_| own) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Method::Get(from @ 1..) = method {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        match request.call() {
            Ok(response) => Ok(Hop { response, own, host }),
            Err(e) => {
                let host = if own { self.endpoint.clone() } else { host };
                Err(Error::HubUnreachable { host, reason: reason(&e) })
            }
        }
    }

    /// The error behind an answer without a file.
    fn refused(&self, hop: &Hop, revision: &str, file: &str) -> Error {
        let status = hop.response.status().as_u16();
        let code = hop.response.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or("");
        let (endpoint, repo) = (self.endpoint.clone(), self.repo.clone());
        if !hop.own {
            let problem = format!("was refused by {}, status {status}; run the same command again", hop.host);
            return self.bad_answer(file, problem);
        }
        match (status, code) {
            (401 | 403, _) => {
                let advice = self.advice(status, code);
                Error::HubAccess { endpoint, repo, status, advice }
            }
            (404, "RepoNotFound") => Error::HubNotFound { endpoint, what: format!("repository {repo}") },
            (404, "RevisionNotFound") => {
                Error::HubNotFound { endpoint, what: format!("revision {revision:?} of {repo}") }
            }
            (404, _) => {
                Error::HubNotFound { endpoint, what: format!("{file} in {repo} at revision {revision:?}") }
            }
            _ => self.bad_answer(file, format!("was answered with status {status}; try again later")),
        }
    }

    fn advice(&self, status: u16, code: &str) -> String {
        let page = format!("{}/{}", self.endpoint, self.repo);
        if status == 403 || code == "GatedRepo" {
            let token =
                if self.token.is_some() { "of your token" } else { ", and set HF_TOKEN to its token" };
            return format!("the model is gated; ask for access at {page} with the account {token}");
        }
        if self.token.is_some() {
            return "your token is not valid there, or there is no such repository; check HF_TOKEN"
                .to_owned();
        }
        "it needs a token, or there is no such repository; set HF_TOKEN or run `hf auth login`".to_owned()
    }
}

/// What the answers for one file said so far.
#[derive(Default)]
struct Found {
    commit: Option<String>,
    bytes: Option<u64>,
    sha256: Option<String>,
}

impl Found {
    fn note(&mut self, hop: &Hop) {
        let headers = hop.response.headers();
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
        if hop.own {
            self.commit = self.commit.take().or_else(|| text("x-repo-commit").map(str::to_owned));
            self.bytes = self.bytes.or_else(|| number(headers, "x-linked-size"));
            // The tag of a large file is its SHA-256, that of a small one its git object.
            let tag = text("x-linked-etag").or_else(|| text("etag"));
            self.sha256 = self.sha256.take().or_else(|| tag.and_then(sha256));
        }
        if hop.response.status().as_u16() == 200 {
            self.bytes = self.bytes.or_else(|| number(headers, "content-length"));
        }
    }

    fn is_known(&self) -> bool {
        self.commit.is_some() && self.bytes.is_some()
    }

    /// # Errors
    /// What is missing.
    fn into_head(self) -> Result<Head, &'static str> {
        let commit = self.commit.filter(|commit| is_commit(commit)).ok_or("the commit (x-repo-commit)")?;
        let bytes = self.bytes.ok_or("the size (content-length)")?;
        Ok(Head { commit, bytes, sha256: self.sha256 })
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// The hash in an entity tag, if it is one.
fn sha256(tag: &str) -> Option<String> {
    let tag = tag.trim_start_matches("W/").trim_matches('"');
    (tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit())).then(|| tag.to_ascii_lowercase())
}

/// First byte and size of the whole file, from `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

/// Scheme, host and port of a URL, in one spelling.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = match scheme.as_str() {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
    Some(format!("{scheme}://{host}:{}", uri.port_u16().unwrap_or(port)))
}

fn is_loopback(origin: &str) -> bool {
    let host = origin.split_once("://").map_or(origin, |(_, rest)| rest);
    ["localhost:", "127.", "[::1]:"].iter().any(|loopback| host.starts_with(loopback))
}

/// Where a redirect leads, from an absolute address or a path on the same host.
fn target(from: &str, location: &str) -> Option<String> {
    let absolute = if location.starts_with("//") {
        format!("{}:{location}", from.split_once(':')?.0)
    } else if location.starts_with('/') {
        format!("{}{location}", origin(from)?)
    } else {
        location.to_owned()
    };
    origin(&absolute).map(|_| absolute)
}

/// A path segment with everything but unreserved characters in percent form.
fn escaped(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The library's error without any address in it: addresses can be signed.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(e) => e.to_string(),
        ureq::Error::HostNotFound => "the name of the host is not known".to_owned(),
        ureq::Error::Timeout(kind) => format!("no answer in time ({kind})"),
        ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => "the address is malformed".to_owned(),
        ureq::Error::ConnectProxyFailed(_) => "the proxy refuses".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_tell_hosts_apart() {
        assert_eq!(origin("https://Hub.example/a").as_deref(), Some("https://hub.example:443"));
        assert_eq!(origin("http://127.0.0.1:81/").as_deref(), Some("http://127.0.0.1:81"));
        assert_eq!(origin("https://hub.example@evil.example/").as_deref(), Some("https://evil.example:443"));
        for bad in ["ftp://a/", "hub.example/a", "https://", "/a", "", "http://a b/"] {
            assert_eq!(origin(bad), None, "{bad}");
        }
        assert!(is_loopback("http://127.0.0.1:81") && is_loopback("http://localhost:80"));
        assert!(!is_loopback("https://localhost.example:443"));
    }

    #[test]
    fn redirects_are_resolved() {
        let target = |location| target("https://a.example/x/y", location);
        assert_eq!(target("/z?q=1").as_deref(), Some("https://a.example:443/z?q=1"));
        assert_eq!(target("//b.example/z").as_deref(), Some("https://b.example/z"));
        assert_eq!(target("http://b.example/z").as_deref(), Some("http://b.example/z"));
        assert_eq!(target("z"), None);
        assert_eq!(target("file:///etc/passwd"), None);
    }

    #[test]
    fn headers_are_read() {
        let hash = "ab".repeat(32);
        assert_eq!(sha256(&format!("\"{hash}\"")), Some(hash.clone()));
        assert_eq!(sha256(&format!("W/\"{}\"", hash.to_uppercase())), Some(hash));
        assert_eq!(sha256(&"ab".repeat(20)), None);
        let range = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, text.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(range("bytes 5-9/10"), Some((5, 10)));
        for bad in ["bytes */10", "bytes 5-9/*", "5-9/10", ""] {
            assert_eq!(range(bad), None, "{bad}");
        }
        assert_eq!(escaped("refs/pr/1 ä.x"), "refs%2Fpr%2F1%20%C3%A4.x");
    }
}
