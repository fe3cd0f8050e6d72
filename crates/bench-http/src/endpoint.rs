//! Where the server is and how it is addressed: base URL, paths and the headers that every request carries.
//!
//! Nothing is resolved or connected here. Secrets go into headers and never into a text.

use std::fmt;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue,
    TRANSFER_ENCODING, USER_AGENT,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Uri};

use crate::error::SetupError;

/// From how many characters on a header's value is taken for a secret.
const SECRET_CHARS: usize = 6;

/// A secret that is sent as `Authorization: Bearer` and shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What is asked for; the paths of OpenAI-compatible servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Completions,
    ChatCompletions,
    Models,
    Metrics,
    Tokenize,
    Health,
    Version,
    /// llama.cpp: what it runs and with how many slots.
    Props,
    /// `SGLang`: which model.
    ModelInfo,
}

impl Route {
    /// The path below the base URL, which may or may not have been given with `/v1`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Models => "/v1/models",
            Self::Metrics => "/metrics",
            Self::Tokenize => "/tokenize",
            Self::Health => "/health",
            Self::Version => "/version",
            Self::Props => "/props",
            Self::ModelInfo => "/get_model_info",
        }
    }
}

/// A server: address, path prefix and headers.
#[derive(Clone)]
pub struct Endpoint {
    https: bool,
    /// A name or an address, without brackets.
    host: String,
    port: u16,
    /// What stands before `/v1`: empty, or a path that begins with a slash and does not end with one.
    prefix: String,
    headers: HeaderMap,
}

impl fmt::Debug for Endpoint {
    /// Header values are left out: any of them may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.keys().map(HeaderName::as_str).collect();
        f.debug_struct("Endpoint")
            .field("base", &self.base())
            .field("headers", &names)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Parses `http://host:port`, `https://host`, `http://[::1]:8000/v1` or `https://host/some/prefix/v1`.
    pub fn parse(base_url: &str) -> Result<Self, SetupError> {
        let refused =
            |reason: &str| SetupError::BaseUrl { url: without_userinfo(base_url), reason: reason.to_owned() };
        let url = base_url.trim();
        let Some((scheme, _)) = url.split_once("://") else {
            let tried = if url.is_empty() { "localhost:8000" } else { &without_userinfo(url) };
            return Err(refused(&format!("no scheme; try 'http://{tried}'")));
        };
        let https = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            other => return Err(refused(&format!("scheme '{other}' is unknown; expected http or https"))),
        };
        let uri: Uri = url.parse().map_err(|error| refused(&format!("{error}")))?;
        let authority = uri.authority().ok_or_else(|| refused("no host"))?;
        if authority.as_str().contains('@') {
            return Err(refused("holds a user name; give it by --header 'Authorization: Basic …'"));
        }
        if uri.query().is_some() || url.contains('#') {
            return Err(refused("has a query or a fragment; expected scheme, host, port and path only"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(refused("no host"));
        }
        let port = match port_text(authority.as_str()) {
            None => {
                if https {
                    443
                } else {
                    80
                }
            }
            Some(text) => match text.parse::<u16>() {
                Ok(port) if port > 0 => port,
                _ => return Err(refused(&format!("port '{text}' is not within 1 to 65535"))),
            },
        };
        let prefix = prefix(uri.path()).map_err(|reason| refused(&reason))?;
        let host_header = HeaderValue::from_str(authority.as_str()).map_err(|_| refused("bad host"))?;
        Ok(Self { https, host, port, prefix, headers: default_headers(host_header) })
    }

    /// Adds `Name: value`; a name given before, or set by default, is replaced.
    pub fn with_header(mut self, line: &str) -> Result<Self, SetupError> {
        let (name, value) = line.split_once(':').ok_or_else(|| SetupError::Header {
            // The text may be a bare secret.
            name: "***".to_owned(),
            reason: "no colon; expected 'Name: value'".to_owned(),
        })?;
        let name = name.trim();
        let refused = |reason: &str| SetupError::Header { name: name.to_owned(), reason: reason.to_owned() };
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused("is no header name"))?;
        if [CONTENT_LENGTH, TRANSFER_ENCODING, ACCEPT_ENCODING].contains(&parsed) {
            return Err(refused("is set by the client itself"));
        }
        let mut value = HeaderValue::from_str(value.trim())
            .map_err(|_| refused("the value has characters that a header cannot carry"))?;
        value.set_sensitive(true);
        self.headers.insert(parsed, value);
        Ok(self)
    }

    /// Sends the key as `Authorization: Bearer`.
    pub fn with_api_key(mut self, key: &ApiKey) -> Result<Self, SetupError> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.0.trim())).map_err(|_| {
            SetupError::ApiKey("has characters that a header cannot carry; is there a line end in it?".into())
        })?;
        value.set_sensitive(true);
        self.headers.insert(AUTHORIZATION, value);
        Ok(self)
    }

    pub fn is_https(&self) -> bool {
        self.https
    }

    /// A name or an address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The base URL as understood, without `/v1`.
    pub fn base(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{scheme}://{host}:{}{}", self.port, self.prefix)
    }

    /// The whole address of a route, for messages.
    pub fn url(&self, route: Route) -> String {
        format!("{}{}", self.base(), route.path())
    }

    /// What was given in headers and must not appear in a message; short values are no secrets, and would
    /// blot out words.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let values = self.headers.values().filter(|value| value.is_sensitive());
        let texts = values.filter_map(|value| value.to_str().ok());
        texts
            .map(|text| text.strip_prefix("Bearer ").unwrap_or(text).to_owned())
            .filter(|text| text.len() >= SECRET_CHARS)
            .collect()
    }

    /// A request with a JSON body.
    pub fn post(&self, route: Route, body: Bytes) -> Result<Request<Bytes>, SetupError> {
        let mut request = self.request(Method::POST, route, body)?;
        request.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        Ok(request)
    }

    pub fn get(&self, route: Route) -> Result<Request<Bytes>, SetupError> {
        self.request(Method::GET, route, Bytes::new())
    }

    fn request(&self, method: Method, route: Route, body: Bytes) -> Result<Request<Bytes>, SetupError> {
        let path: PathAndQuery =
            format!("{}{}", self.prefix, route.path()).parse().map_err(|error: http::uri::InvalidUri| {
                SetupError::BaseUrl { url: self.base(), reason: error.to_string() }
            })?;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(path);
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

fn default_headers(host: HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ossbench/", env!("CARGO_PKG_VERSION"))));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json, */*"));
    // A compressed stream arrives in blocks of the compressor, not in tokens.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// The digits after the host, where there are any; `Authority::port` is silent about bad ones.
fn port_text(authority: &str) -> Option<&str> {
    let after_host = authority.rfind(']').map_or(authority, |end| &authority[end..]);
    after_host.rsplit_once(':').map(|(_, port)| port)
}

fn prefix(path: &str) -> Result<String, String> {
    let path = path.trim_end_matches('/');
    for route in ["/chat/completions", "/completions", "/models"] {
        if let Some(base) = path.strip_suffix(route) {
            return Err(format!("ends with '{route}'; give what stands before it, '…{base}'"));
        }
    }
    Ok(path.strip_suffix("/v1").unwrap_or(path).trim_end_matches('/').to_owned())
}

fn without_userinfo(url: &str) -> String {
    let Some((user, rest)) = url.rsplit_once('@') else { return url.to_owned() };
    let scheme = user.find("://").map_or("", |end| &user[..end + 3]);
    format!("{scheme}***@{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(url: &str) -> String {
        match Endpoint::parse(url) {
            Ok(endpoint) => endpoint.url(Route::ChatCompletions),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_base_url_is_taken_with_and_without_v1() {
        for (given, expected) in [
            ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
            ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
            ("http://localhost:8000/v1", "http://localhost:8000/v1/chat/completions"),
            (" http://localhost:8000/v1/ ", "http://localhost:8000/v1/chat/completions"),
            ("HTTPS://api.example.com", "https://api.example.com:443/v1/chat/completions"),
            ("http://example.com/openai/v1", "http://example.com:80/openai/v1/chat/completions"),
            ("http://[::1]:8000/v1", "http://[::1]:8000/v1/chat/completions"),
            ("http://[2001:db8::1]", "http://[2001:db8::1]:80/v1/chat/completions"),
        ] {
            assert_eq!(base(given), expected, "{given}");
        }
    }

    #[test]
    fn a_bad_base_url_says_what_to_try() {
        for (given, expected) in [
            ("localhost:8000", "no scheme; try 'http://localhost:8000'"),
            ("", "no scheme; try 'http://localhost:8000'"),
            ("ftp://host", "scheme 'ftp' is unknown; expected http or https"),
            ("http://", "base URL 'http://': "),
            ("http://host:99999", "port '99999' is not within 1 to 65535"),
            ("http://host:0", "port '0' is not within 1 to 65535"),
            ("http://host:", "port '' is not within 1 to 65535"),
            ("http://host:80a", "base URL 'http://host:80a': "),
            ("http://host/v1?x=1", "has a query or a fragment"),
            ("http://host/v1/chat/completions", "give what stands before it, '…/v1'"),
            ("http://me:secret@host", "base URL 'http://***@host'"),
        ] {
            let said = base(given);
            assert!(said.contains(expected), "{given}: {said}");
            assert!(!said.contains("secret") || !given.contains('@'), "{said}");
        }
        assert!(!base("http://me:secret@host").contains("secret"));
        assert!(!base("me:secret@host").contains("secret"));
    }

    #[test]
    fn a_key_is_sent_and_never_shown() {
        let key = ApiKey::new("sk-very-secret");
        let endpoint = Endpoint::parse("http://h").unwrap().with_api_key(&key).unwrap();
        let endpoint = endpoint.with_header("X-Other: also-secret").unwrap();
        let request = endpoint.post(Route::Completions, Bytes::from_static(b"{}")).unwrap();
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer sk-very-secret");
        assert_eq!(request.headers()["x-other"], "also-secret");
        let shown = format!("{key} {key:?} {endpoint:?} {request:?}");
        assert!(!shown.contains("secret"), "{shown}");

        for bad in ["sk-very-secret", "x-key: very-secret\n", "Accept-Encoding: secret"] {
            let endpoint = Endpoint::parse("http://h").unwrap();
            if let Err(error) = endpoint.with_header(bad) {
                let said = error.to_string();
                assert!(!said.contains("secret"), "{said}");
            }
        }
        let error = endpoint.with_api_key(&ApiKey::new("very\nsecret")).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn a_header_of_the_user_replaces_the_default() {
        let endpoint = Endpoint::parse("http://h").unwrap().with_header("user-agent: mine").unwrap();
        let request = endpoint.get(Route::Models).unwrap();
        assert_eq!(request.headers()[USER_AGENT], "mine");
        assert_eq!(request.headers()[ACCEPT_ENCODING], "identity");
        assert_eq!(request.headers()[HOST], "h");
        assert_eq!(request.uri(), "/v1/models");
        assert!(Endpoint::parse("http://h").unwrap().with_header("Content-Length: 5").is_err());
    }
}
