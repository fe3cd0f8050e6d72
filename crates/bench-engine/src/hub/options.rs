//! Where the hub is, where its files go, and how one is let in; and which names are names.
//!
//! Reads the environment and the token file, never the network.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::Error;

const ENDPOINT: &str = "https://huggingface.co";
/// Longest name that the hub gives out.
const MAX_NAME: usize = 96;

/// How to reach the hub.
#[derive(Clone)]
pub struct HubOptions {
    /// `http://` or `https://`, host, and perhaps a path; no slash at the end.
    pub endpoint: String,
    /// Downloads lie in `hub/` under it.
    pub cache_dir: PathBuf,
    /// Sent to the endpoint's host alone. Never shown.
    pub token: Option<String>,
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "(hidden)");
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &token)
            .finish()
    }
}

impl HubOptions {
    /// From `HF_ENDPOINT`; `HF_TOKEN`, or the token file that `hf auth login` writes; `OSSBENCH_CACHE`, or
    /// `ossbench` in the user's cache folder.
    ///
    /// # Errors
    /// [`Error::HubName`] when there is neither `OSSBENCH_CACHE` nor a home folder.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`Self::from_env`], with any source of variables. An empty variable counts as absent.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let variable = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let cache_dir = cache_dir(&variable)?;
        let hub_home = path("HF_HOME").or_else(|| Some(user_cache(&variable)?.join("huggingface")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(hub_home?.join("token")));
        let token = variable("HF_TOKEN").or_else(|| read_token(&token_file?));
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Ok(Self { endpoint: endpoint.trim_end_matches('/').to_owned(), cache_dir, token })
    }
}

/// Where this program keeps what it can bring or make again: `OSSBENCH_CACHE`, or `ossbench` in the user's cache
/// folder. An empty variable counts as absent.
///
/// # Errors
/// [`Error::HubName`] when there is neither `OSSBENCH_CACHE` nor a home folder.
pub(crate) fn cache_dir(variable: &impl Fn(&str) -> Option<String>) -> Result<PathBuf, Error> {
    let own = given(variable, "OSSBENCH_CACHE");
    own.or_else(|| Some(user_cache(variable)?.join("ossbench"))).ok_or(Error::HubName {
        what: "cache folder",
        name: String::new(),
        expected: "a path in OSSBENCH_CACHE, XDG_CACHE_HOME or HOME",
    })
}

fn user_cache(variable: &impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    given(variable, "XDG_CACHE_HOME").or_else(|| Some(given(variable, "HOME")?.join(".cache")))
}

fn given(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Option<PathBuf> {
    variable(name).map(|path| path.trim().to_owned()).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// An absent or unreadable token file is no token: public repositories need none, others will say so.
fn read_token(path: &Path) -> Option<String> {
    let token = std::fs::read_to_string(path).ok()?.trim().to_owned();
    (!token.is_empty()).then_some(token)
}

/// Whether `name` can be that of a repository: `organization/name`.
pub fn is_repo_name(name: &str) -> bool {
    // "--" is refused by the hub too; here it separates the two parts in the folder's name.
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && !part.contains("--")
            && !part.contains("..")
    };
    name.len() <= MAX_NAME && name.split_once('/').is_some_and(|(org, model)| part(org) && part(model))
}

pub(super) fn check_repo(name: &str) -> Result<(), Error> {
    if is_repo_name(name) {
        return Ok(());
    }
    let expected = "organization/name, in letters, digits, '.', '_' and '-'";
    Err(Error::HubName { what: "repository name", name: name.to_owned(), expected })
}

/// A revision becomes a file name and a part of a URL.
pub(super) fn check_revision(name: &str) -> Result<(), Error> {
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
            && !part.starts_with(['.', '-'])
            && !part.contains("..")
    };
    if name.len() <= MAX_NAME && name.split('/').all(part) {
        return Ok(());
    }
    let expected = "a branch, a tag or a commit";
    Err(Error::HubName { what: "revision", name: name.to_owned(), expected })
}

/// Whether `name` is a full commit id.
pub(super) fn is_commit(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> Result<HubOptions, Error> {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        HubOptions::from_variables(find)
    }

    #[test]
    fn names_are_checked() {
        for good in ["openai/gpt-oss-20b", "Qwen/Qwen3-32B", "01-ai/Yi-34B", "a/b_c.d"] {
            assert!(is_repo_name(good), "{good}");
        }
        let long = format!("a/{}", "b".repeat(95));
        for bad in [
            "", "gpt-oss", "/b", "a/", "a/b/c", "../b", "a/..", "a/.b", "a/b--c", "a b/c", "a/b?x=1",
            "a/b#c", "a\\b/c", "a/b\n", "ä/b", &long,
        ] {
            assert!(!is_repo_name(bad) && check_repo(bad).is_err(), "{bad}");
        }
        for good in ["main", "v1.0", "refs/pr/1", "0123456789abcdef0123456789abcdef01234567"] {
            assert!(check_revision(good).is_ok(), "{good}");
        }
        for bad in ["", "a//b", "../x", "a/../b", ".", "a b", "a%2fb", "/a", "-a", "a?b"] {
            assert!(check_revision(bad).is_err(), "{bad}");
        }
        assert!(is_commit(&"0a".repeat(20)) && !is_commit("main") && !is_commit(&"0A".repeat(20)));
    }

    #[test]
    fn options_come_from_variables_and_the_token_file() {
        let home = tempfile::tempdir().unwrap();
        let home_text = home.path().to_str().unwrap();
        let default = options(&[("HOME", home_text)]).unwrap();
        assert_eq!(default.endpoint, "https://huggingface.co");
        assert_eq!(default.cache_dir, home.path().join(".cache/ossbench"));
        assert_eq!(default.token, None);

        let hub = home.path().join(".cache/huggingface");
        std::fs::create_dir_all(&hub).unwrap();
        std::fs::write(hub.join("token"), "hf_fromfile\n").unwrap();
        assert_eq!(options(&[("HOME", home_text)]).unwrap().token.unwrap(), "hf_fromfile");
        let hf_home = hub.to_str().unwrap();
        let set =
            [("HF_HOME", hf_home), ("OSSBENCH_CACHE", "c"), ("HF_ENDPOINT", "http://a:1/"), ("HF_TOKEN", "")];
        let set = options(&set).unwrap();
        assert_eq!((set.endpoint.as_str(), set.cache_dir.as_path()), ("http://a:1", Path::new("c")));
        assert_eq!(set.token.as_deref(), Some("hf_fromfile"));
        let both = options(&[("HOME", home_text), ("HF_TOKEN", " hf_fromvariable ")]).unwrap();
        assert_eq!(both.token.as_deref(), Some("hf_fromvariable"));
        let shown = format!("{both:?}");
        assert!(shown.contains("hidden") && !shown.contains("hf_from"), "{shown}");
        assert!(options(&[]).unwrap_err().to_string().contains("OSSBENCH_CACHE"));
    }
}
