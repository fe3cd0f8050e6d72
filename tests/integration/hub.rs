//! Downloads from a stand-in of the hub: what is asked for, what is refused, and what a broken line leaves.

mod stand_in;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bench_engine::checkpoint::Folder;
use bench_engine::config::ModelConfig;
use bench_engine::hub::{FileProgress, HubOptions, download};
use bench_engine::{Error, Result};
use sha2::{Digest, Sha256};

use crate::checkpoint::golden;
use stand_in::{Reply, Request, Server};

const REPO: &str = "openai/gpt-oss-tiny";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secretsecret";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
/// All that is in the repository and ought to be fetched.
const WANTED: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    SHARDS[0],
    SHARDS[1],
];

type Files = BTreeMap<String, Vec<u8>>;
/// Changes an answer of the storage, or of the hub.
type Change = Arc<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

fn unchanged() -> Change {
    Arc::new(|_, reply| reply)
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn tiny() -> Files {
    let read = |name: &str| (name.to_owned(), fs::read(golden("gpt-oss-tiny").join(name)).unwrap());
    let mut files: Files = WANTED.iter().map(|name| read(name)).collect();
    // The copies that are not to be fetched.
    for name in ["original/model.safetensors", "metal/model.bin", "README.md", "pytorch_model.bin"] {
        files.insert(name.to_owned(), b"not for us".to_vec());
    }
    files
}

/// A hub that sends small files itself and large ones through a redirect to a storage on another port.
struct Hub {
    site: Server,
    storage: Server,
    cache: tempfile::TempDir,
    seen: Mutex<Vec<(String, u64, u64)>>,
}

impl Hub {
    fn start(files: Files, hub: Change, storage: Change) -> Self {
        let files = Arc::new(files);
        let stored = Arc::clone(&files);
        let storage = Server::start(move |request| {
            let reply = match stored.get(request.file()) {
                Some(content) => Reply::file(request, content),
                None => Reply::status(404),
            };
            storage(request, reply)
        });
        let storage_url = storage.url();
        let site = Server::start(move |request| hub(request, answer(request, &files, &storage_url)));
        Self { site, storage, cache: tempfile::tempdir().unwrap(), seen: Mutex::default() }
    }

    fn plain() -> Self {
        Self::start(tiny(), unchanged(), unchanged())
    }

    fn options(&self) -> HubOptions {
        HubOptions {
            endpoint: self.site.url(),
            cache_dir: self.cache.path().to_owned(),
            token: Some(TOKEN.to_owned()),
        }
    }

    fn download(&self) -> Result<PathBuf> {
        self.seen.lock().unwrap().clear();
        download(REPO, "main", &self.options(), &mut |p: FileProgress| {
            self.seen.lock().unwrap().push((p.file.to_owned(), p.done, p.total));
        })
    }

    fn error(&self) -> String {
        let error = self.download().unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(TOKEN), "the token is in {shown}");
        assert!(!shown.contains("signature"), "a signed address is in {shown}");
        error.to_string()
    }

    fn folder(&self) -> PathBuf {
        self.cache.path().join("hub/openai--gpt-oss-tiny").join(COMMIT)
    }
}

/// What the hub says to a request, without faults.
fn answer(request: &Request, files: &Files, storage: &str) -> Reply {
    let prefix = format!("/{REPO}/resolve/");
    let Some((revision, file)) = request.path.strip_prefix(&prefix).and_then(|rest| rest.split_once('/'))
    else {
        return Reply::status(404).with("x-error-code", "RepoNotFound");
    };
    if !["main", COMMIT].contains(&revision) {
        return Reply::status(404).with("x-error-code", "RevisionNotFound");
    }
    let Some(content) = files.get(file) else {
        return Reply::status(404).with("x-error-code", "EntryNotFound").with("x-repo-commit", COMMIT);
    };
    if Path::new(file).extension().is_some_and(|e| e == "safetensors") {
        return Reply { body: b"Found".to_vec(), ..Reply::status(302) }
            .with("location", format!("{storage}/blob/{file}?signature=abc"))
            .with("x-linked-size", content.len().to_string())
            .with("x-linked-etag", format!("\"{}\"", sha256(content)))
            .with("x-repo-commit", COMMIT);
    }
    let reply = if request.method == "HEAD" {
        Reply::status(200).with("content-length", content.len().to_string())
    } else {
        Reply::file(request, content)
    };
    reply.with("etag", format!("\"{}\"", "ab".repeat(20))).with("x-repo-commit", COMMIT)
}

fn assert_names(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

#[test]
fn only_the_files_of_the_model_are_fetched() {
    let hub = Hub::plain();
    let folder = hub.download().unwrap();
    assert_eq!(folder, hub.folder());
    let config = ModelConfig::from_folder(&folder).unwrap();
    Folder::open(&folder).unwrap().check(&config).unwrap();
    for (name, content) in tiny().iter().filter(|(name, _)| WANTED.contains(&name.as_str())) {
        assert_eq!(&fs::read(folder.join(name)).unwrap(), content, "{name}");
    }
    let asked = hub.site.take_asked();
    let paths: BTreeSet<String> = asked.iter().map(|r| r.path.clone()).collect();
    let at = |revision: &str, file: &str| format!("/{REPO}/resolve/{revision}/{file}");
    let mut expected: BTreeSet<String> = WANTED.iter().map(|file| at(COMMIT, file)).collect();
    // Only the first question is for the branch; the template is asked for, but there is none.
    expected.insert(at("main", "config.json"));
    expected.insert(at(COMMIT, "chat_template.jinja"));
    assert_eq!(paths, expected);
    assert!(asked.iter().all(|r| r.header("authorization") == Some("Bearer hf_secretsecret")));
    let stored = hub.storage.take_asked();
    assert_eq!(stored.iter().map(Request::file).collect::<Vec<_>>(), SHARDS);
    assert!(stored.iter().all(|r| r.method == "GET" && r.header("authorization").is_none()));
}

#[test]
fn progress_adds_up() {
    let hub = Hub::plain();
    hub.download().unwrap();
    let seen = hub.seen.lock().unwrap();
    let files = tiny();
    for name in WANTED {
        let steps: Vec<_> = seen.iter().filter(|(file, ..)| file == name).collect();
        let size = files[name].len() as u64;
        assert!(steps.iter().all(|(_, done, total)| *total == size && *done <= size));
        assert!(steps.is_sorted_by_key(|(_, done, _)| *done), "{name} goes back");
        assert_eq!((steps[0].1, steps[steps.len() - 1].1), (0, size), "{name}");
    }
    assert_eq!(seen.iter().map(|(file, ..)| file.as_str()).collect::<BTreeSet<_>>(), WANTED.into());
}

#[test]
fn what_is_there_is_not_asked_for_again() {
    let hub = Hub::plain();
    let folder = hub.download().unwrap();
    hub.site.take_asked();
    hub.storage.take_asked();
    assert_eq!(hub.download().unwrap(), folder);
    assert!(hub.site.take_asked().is_empty() && hub.storage.take_asked().is_empty());
    // The commit by its own name is the same folder, and needs no network at all.
    let offline = HubOptions { endpoint: closed_port(), ..hub.options() };
    assert_eq!(download(REPO, COMMIT, &offline, &mut |_| ()).unwrap(), folder);
    // One file lost: only that one is fetched.
    fs::remove_file(folder.join(SHARDS[1])).unwrap();
    assert_eq!(hub.download().unwrap(), folder);
    assert_eq!(hub.storage.take_asked().iter().map(Request::file).collect::<Vec<_>>(), [SHARDS[1]]);
    assert!(hub.site.take_asked().iter().filter(|r| r.method == "GET").all(|r| r.file() == SHARDS[1]));
}

/// Kills the first answer with a shard after `cut` bytes.
fn dies_once(cut: usize) -> Change {
    let deaths = AtomicUsize::new(0);
    Arc::new(move |request, reply| {
        let first = request.file() == SHARDS[0] && deaths.fetch_add(1, Ordering::Relaxed) == 0;
        Reply { cut: first.then_some(cut), ..reply }
    })
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let hub = Hub::start(tiny(), unchanged(), dies_once(500_000));
    let error = hub.error();
    assert_names(&error, &[SHARDS[0], "500000 of 783192 bytes", "run the same command again"]);
    let part = hub.folder().join(format!("{}.part", SHARDS[0]));
    assert_eq!(fs::metadata(&part).unwrap().len(), 500_000);
    assert!(!hub.folder().join(SHARDS[0]).exists());
    hub.site.take_asked();
    hub.storage.take_asked();
    let folder = hub.download().unwrap();
    let asked = hub.storage.take_asked();
    assert_eq!(asked[0].header("range"), Some("bytes=500000-"));
    assert_eq!(asked[1].header("range"), None);
    let resumed = hub.seen.lock().unwrap().iter().find(|(f, ..)| f == SHARDS[0]).unwrap().1;
    assert_eq!(resumed, 500_000);
    assert_eq!(fs::read(folder.join(SHARDS[0])).unwrap(), tiny()[SHARDS[0]]);
    assert!(!part.exists());
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let dies = dies_once(300_000);
    let whole = move |request: &Request, reply: Reply| {
        let reply = match reply.status {
            206 => Reply { body: tiny()[request.file()].clone(), ..Reply::status(200) },
            _ => reply,
        };
        dies(request, reply)
    };
    let hub = Hub::start(tiny(), unchanged(), Arc::new(whole));
    hub.error();
    let folder = hub.download().unwrap();
    assert_eq!(fs::read(folder.join(SHARDS[0])).unwrap(), tiny()[SHARDS[0]]);
}

#[test]
fn a_wrong_hash_is_found_and_the_file_deleted() {
    let faults = AtomicUsize::new(0);
    let flip = move |request: &Request, mut reply: Reply| {
        if request.file() == SHARDS[1] && faults.fetch_add(1, Ordering::Relaxed) == 0 {
            reply.body[400_000] ^= 1;
        }
        reply
    };
    let hub = Hub::start(tiny(), unchanged(), Arc::new(flip));
    let expected = sha256(&tiny()[SHARDS[1]]);
    assert_names(&hub.error(), &[SHARDS[1], &expected, "deleted"]);
    assert!(!hub.folder().join(SHARDS[1]).exists());
    assert!(!hub.folder().join(format!("{}.part", SHARDS[1])).exists());
    let folder = hub.download().unwrap();
    assert_eq!(sha256(&fs::read(folder.join(SHARDS[1])).unwrap()), expected);
}

/// The error of a hub whose answers are all changed in one way.
fn refusal(change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> (Hub, String) {
    let hub = Hub::start(tiny(), Arc::new(change), unchanged());
    let error = hub.error();
    (hub, error)
}

#[test]
fn refusals_are_told_apart() {
    let (hub, error) = refusal(|_, _| Reply::status(401));
    assert_names(&error, &["refuses openai/gpt-oss-tiny", "401", "token is not valid"]);
    let no_token = HubOptions { token: None, ..hub.options() };
    let error = download(REPO, "main", &no_token, &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::HubAccess { status: 401, .. }));
    assert_names(&error.to_string(), &["needs a token", "HF_TOKEN"]);
    let (_, error) = refusal(|_, _| Reply::status(403).with("x-error-code", "GatedRepo"));
    assert_names(&error, &["403", "gated", "ask for access"]);
    let (_, error) = refusal(|_, _| Reply::status(404).with("x-error-code", "RepoNotFound"));
    assert_names(&error, &["has no repository openai/gpt-oss-tiny"]);
    let (_, error) = refusal(|_, _| Reply::status(503));
    assert_names(&error, &["status 503", "try again later"]);
    let (_, error) = refusal(|_, reply| Reply { headers: Vec::new(), ..reply });
    assert_names(&error, &["x-repo-commit", "not a hub"]);
    let hub = Hub::plain();
    let error = download(REPO, "v9", &hub.options(), &mut |_| ()).unwrap_err().to_string();
    assert_names(&error, &["has no revision \"v9\""]);
    let error = download("openai/other", "main", &hub.options(), &mut |_| ()).unwrap_err().to_string();
    assert_names(&error, &["has no repository openai/other"]);
    let (_, error) = refusal(|request, reply| {
        let gone = || Reply::status(404).with("x-error-code", "EntryNotFound");
        if request.file() == SHARDS[0] { gone() } else { reply }
    });
    assert_names(&error, &["has no model-00001-of-00002.safetensors in openai/gpt-oss-tiny"]);
}

fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn offline_says_so_and_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let endpoint = closed_port();
    let options = HubOptions { endpoint: endpoint.clone(), cache_dir: cache.path().to_owned(), token: None };
    let error = download(REPO, "main", &options, &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::HubUnreachable { .. }));
    let error = error.to_string();
    assert_names(
        &error,
        &[&format!("cannot reach {endpoint}: "), "give a local folder or dummy:<preset> instead"],
    );
    for endpoint in ["", "hub.example", "ftp://a", "http://user:word@a", "http://a/?b"] {
        let options = HubOptions { endpoint: endpoint.to_owned(), ..options.clone() };
        assert!(matches!(download(REPO, "main", &options, &mut |_| ()), Err(Error::HubName { .. })));
    }
    for (repo, revision) in [("gpt-oss", "main"), ("../a/b", "main"), (REPO, "../main"), (REPO, "")] {
        assert!(matches!(download(repo, revision, &options, &mut |_| ()), Err(Error::HubName { .. })));
    }
}

#[test]
fn the_index_cannot_lead_outside() {
    for name in
        ["../a.safetensors", "/a.safetensors", "original/model.safetensors", "a.bin", "a\\..\\b.safetensors"]
    {
        let mut files = tiny();
        let index = serde_json::json!({"weight_map": {"lm_head.weight": name}}).to_string();
        files.insert("model.safetensors.index.json".to_owned(), index.into_bytes());
        let hub = Hub::start(files, unchanged(), unchanged());
        assert_names(&hub.error(), &["model.safetensors.index.json", &format!("{name:?}")]);
        assert!(hub.storage.take_asked().is_empty());
    }
}

#[test]
fn versions_and_disk_are_checked_before_weights_come() {
    let other = "f".repeat(40);
    let (hub, error) = refusal(move |request, mut reply| {
        if request.file() == SHARDS[1] {
            reply.headers.retain(|(name, _)| *name != "x-repo-commit");
            reply = reply.with("x-repo-commit", other.clone());
        }
        reply
    });
    assert_names(&error, &[SHARDS[1], "is of commit ffff", COMMIT]);
    assert!(hub.storage.take_asked().is_empty());
    let (hub, error) = refusal(|request, mut reply| {
        if request.file() == SHARDS[1] {
            reply.headers.retain(|(name, _)| *name != "x-linked-size");
            reply = reply.with("x-linked-size", "9000000000000000000");
        }
        reply
    });
    assert_names(&error, &["the download needs 9000000000000", "OSSBENCH_CACHE"]);
    assert!(hub.storage.take_asked().is_empty());
}

#[test]
fn redirects_end_and_stay_safe() {
    let (_, error) = refusal(|request, _| Reply::status(302).with("location", request.path.clone()));
    assert_names(&error, &["redirected more than 6 times"]);
    let (_, error) = refusal(|_, _| Reply::status(302).with("location", "file:///signature"));
    assert_names(&error, &["nowhere safe"]);
    let (_, error) = refusal(|_, reply| match reply.status {
        302 => {
            let mut reply = reply;
            reply.headers.retain(|(name, _)| *name != "location");
            reply.with("location", format!("{}/x?signature=abc", closed_port()))
        }
        _ => reply,
    });
    assert_names(&error, &["cannot reach http://127.0.0.1:"]);
    // A renamed repository answers with a path on the same host: there the token belongs.
    let moved = |request: &Request, reply: Reply| match request.path.strip_prefix("/old") {
        Some(rest) => Reply::status(307).with("location", rest),
        None => reply,
    };
    let hub = Hub::start(tiny(), Arc::new(moved), unchanged());
    let options = HubOptions { endpoint: format!("{}/old", hub.site.url()), ..hub.options() };
    download(REPO, "main", &options, &mut |_| ()).unwrap();
    assert!(hub.site.take_asked().iter().all(|r| r.header("authorization").is_some()));
    assert!(hub.storage.take_asked().iter().all(|r| r.header("authorization").is_none()));
}

#[test]
fn a_single_file_needs_no_index() {
    let mut files = Files::new();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        files.insert(name.to_owned(), fs::read(golden("qwen3-tiny").join(name)).unwrap());
    }
    let hub = Hub::start(files.clone(), unchanged(), unchanged());
    let folder = hub.download().unwrap();
    Folder::open(&folder).unwrap().check(&ModelConfig::from_folder(&folder).unwrap()).unwrap();
    files.remove("model.safetensors");
    let hub = Hub::start(files, unchanged(), unchanged());
    assert_names(&hub.error(), &["no model.safetensors.index.json and no model.safetensors in openai/"]);
}
