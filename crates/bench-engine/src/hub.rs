//! A model of the hub as a local folder: config, tokenizer, and the safetensors that the index names.
//!
//! Stands before `checkpoint` and `config`, which open what lies in the folder afterwards. It never fetches the
//! `original/` and `metal/` copies of the weights that gpt-oss repositories carry too, and it never tries again on
//! its own: what broke off goes on when it is called again. The client is a small one on `ureq`, because the crate
//! `hf-hub` compares neither size nor SHA-256, has no timeouts, and answers every failure with one error.

mod client;
mod options;
mod store;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::checkpoint::index::{INDEX_FILE, Index, MAX_INDEX_BYTES, SINGLE_FILE};
use crate::error::excerpt;
use client::{Client, Head};
pub(crate) use options::cache_dir;
pub use options::{HubOptions, is_repo_name};
use store::Repo;

/// The file that every repository of a model has; its answer tells the commit.
const CONFIG_FILE: &str = "config.json";
/// Fetched where they exist. Not every repository has a chat template of its own or a fast tokenizer.
const SMALL_FILES: [&str; 4] =
    ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// How far one file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileProgress<'a> {
    /// Name in the repository.
    pub file: &'a str,
    /// Bytes that are on disk, those of an earlier run included.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// One file of the snapshot, as the hub describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RemoteFile {
    name: String,
    bytes: u64,
    /// Hexadecimal; the hub gives it for large files only.
    sha256: Option<String>,
}

/// Brings `revision` (a branch, tag or commit) of `repo` (`organization/name`) to this machine, and returns the
/// folder, which is in Hugging Face layout. All files are of the one commit that `revision` means at that moment.
/// When everything is there already, nothing is asked of the network; a branch that has moved on is followed only
/// after the folder was deleted.
///
/// # Errors
/// [`Error::HubName`] for a malformed name, [`Error::HubUnreachable`] without a network, [`Error::HubAccess`] for
/// a missing token or licence, [`Error::HubNotFound`], [`Error::HubAnswer`] for what is not a hub,
/// [`Error::HubSpace`] before anything large is fetched, [`Error::HubInterrupted`] and [`Error::HubHash`] after
/// which the same call goes on, and [`Error::Io`].
pub fn download(
    repo: &str,
    revision: &str,
    options: &HubOptions,
    progress: &mut dyn FnMut(FileProgress),
) -> Result<PathBuf, Error> {
    options::check_repo(repo)?;
    options::check_revision(revision)?;
    let store = Repo::new(&options.cache_dir, repo);
    if let Some(folder) = store.complete(revision) {
        return Ok(folder);
    }
    let client = Client::new(options, repo)?;
    let head = client.head(revision, CONFIG_FILE)?;
    let _lock = store.lock()?;
    let commit = head.commit.clone();
    let mut snapshot = Snapshot { client, store, commit, files: Vec::new(), progress };
    snapshot.fetch_all(head)?;
    snapshot.store.finish(revision, &snapshot.commit, &snapshot.files)
}

/// The folder of `revision` of `repo` if it was downloaded whole; asks nothing of the network.
pub fn cached(repo: &str, revision: &str, options: &HubOptions) -> Option<PathBuf> {
    options::check_repo(repo).and_then(|()| options::check_revision(revision)).ok()?;
    Repo::new(&options.cache_dir, repo).complete(revision)
}

/// The snapshot while it is being fetched.
struct Snapshot<'a> {
    client: Client,
    store: Repo,
    /// What every file is asked for by, so that all are of one version.
    commit: String,
    /// What is there so far.
    files: Vec<RemoteFile>,
    progress: &'a mut dyn FnMut(FileProgress),
}

impl Snapshot<'_> {
    fn fetch_all(&mut self, config: Head) -> Result<(), Error> {
        self.fetch(config.into_file(CONFIG_FILE))?;
        for name in SMALL_FILES {
            if let Some(file) = self.look_up_optional(name)? {
                self.fetch(file)?;
            }
        }
        let weights = self.weight_files()?;
        self.store.check_space(&self.commit, &weights)?;
        weights.into_iter().try_for_each(|file| self.fetch(file))
    }

    /// The safetensors of the model: those of the index, or the single file.
    fn weight_files(&mut self) -> Result<Vec<RemoteFile>, Error> {
        let Some(index) = self.look_up_optional(INDEX_FILE)? else {
            let single = self.look_up_optional(SINGLE_FILE)?;
            let what = || format!("{INDEX_FILE} and no {SINGLE_FILE} in {}", self.client.repo());
            return match single {
                Some(file) => Ok(vec![file]),
                None => Err(Error::HubNotFound { endpoint: self.client.endpoint().to_owned(), what: what() }),
            };
        };
        if index.bytes > MAX_INDEX_BYTES {
            let problem = format!("has {} bytes, an index has at most {MAX_INDEX_BYTES}", index.bytes);
            return Err(self.client.bad_answer(INDEX_FILE, problem));
        }
        self.fetch(index)?;
        let path = self.store.folder(&self.commit).join(INDEX_FILE);
        let text =
            std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let index = Index::parse(&text)
            .map_err(|problem| Error::BadFile { path: path.clone(), problem: excerpt(problem) })?;
        // The copies of the weights in other formats lie in subfolders; those of the index lie beside it.
        if let Some(file) = index.files().into_iter().find(|file| file.contains('/')) {
            let problem = format!("names {file:?}, expected files beside the index");
            return Err(Error::BadFile { path, problem });
        }
        index.files().into_iter().map(|name| self.look_up(name)).collect()
    }

    fn look_up(&self, name: &str) -> Result<RemoteFile, Error> {
        let head = self.client.head(&self.commit, name)?;
        if head.commit != self.commit {
            let problem = format!("is of commit {}, asked for was {}", head.commit, self.commit);
            return Err(self.client.bad_answer(name, problem));
        }
        Ok(head.into_file(name))
    }

    fn look_up_optional(&self, name: &str) -> Result<Option<RemoteFile>, Error> {
        match self.look_up(name) {
            Ok(file) => Ok(Some(file)),
            Err(Error::HubNotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Fetches what is missing of one file, and checks all of it.
    fn fetch(&mut self, file: RemoteFile) -> Result<(), Error> {
        if self.store.is_finished(&self.commit, &file) {
            (self.progress)(FileProgress { file: &file.name, done: file.bytes, total: file.bytes });
        } else {
            let mut part = self.store.part(&self.commit, &file)?;
            (self.progress)(FileProgress { file: &file.name, done: part.done(), total: file.bytes });
            if part.done() < file.bytes {
                self.client.get(&self.commit, &file, &mut part, self.progress)?;
            }
            part.finish()?;
        }
        self.files.push(file);
        Ok(())
    }
}
