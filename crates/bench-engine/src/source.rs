//! From what a user calls a model to its config and weights: `dummy:<preset>`, a folder, a hub name.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::checkpoint::Folder;
use crate::config::ModelConfig;
use crate::dummy::Dummy;
use crate::hub::{self, HubOptions};
use crate::model::Progress;
use crate::preset;
use crate::weights::WeightSource;

/// The branch of a hub model.
const REVISION: &str = "main";

/// A model by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// Generated weights in the shapes of a preset.
    Dummy(String),
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// `org/name` on the hub.
    Hub(String),
}

/// A model whose weights can be asked for.
pub struct Source {
    pub config: ModelConfig,
    pub weights: Box<dyn WeightSource>,
    /// Where tokenizer and template lie; `None` for generated models.
    pub folder: Option<PathBuf>,
}

impl ModelRef {
    /// Reads a model's name. A folder that exists is a folder, whatever its name looks like.
    ///
    /// # Errors
    /// [`Error::UnknownPreset`] and [`Error::UnknownModel`] say what is valid.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if let Some(name) = text.strip_prefix("dummy:") {
            preset::config(name)?;
            return Ok(Self::Dummy(name.to_owned()));
        }
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        if text.starts_with(['.', '/', '~']) {
            let problem = "does not exist, or is a file: give the folder that holds config.json".to_owned();
            return Err(Error::NotACheckpoint { folder: path.to_owned(), problem });
        }
        if !hub::is_repo_name(text) {
            let presets = preset::names().join(", ");
            return Err(Error::UnknownModel { name: text.to_owned(), presets, hint: preset_hint(text) });
        }
        Ok(Self::Hub(text.to_owned()))
    }

    /// The model's config, without its weights: what preflight needs.
    ///
    /// # Errors
    /// A folder without a readable config, a hub name that is not downloaded.
    pub fn config(&self) -> Result<ModelConfig, Error> {
        if let Self::Dummy(preset) = self {
            return preset::config(preset);
        }
        let folder = self.folder()?.ok_or_else(|| not_downloaded(&self.to_string()))?;
        ModelConfig::from_folder(&folder)
    }

    /// Where its files lie; `None` for generated models.
    ///
    /// # Errors
    /// [`Error::NotDownloaded`] for a hub name whose files are not here.
    pub fn folder(&self) -> Result<Option<PathBuf>, Error> {
        match self {
            Self::Dummy(_) => Ok(None),
            Self::Folder(path) => Ok(Some(path.clone())),
            Self::Hub(repo) => hub::cached(repo, REVISION, &HubOptions::from_env()?)
                .map(Some)
                .ok_or_else(|| not_downloaded(repo)),
        }
    }

    /// Opens the checkpoint; a hub name is downloaded first if it is not there. `seed` makes generated weights.
    ///
    /// # Errors
    /// Whatever is wrong with the files, the network or the number of layers.
    pub fn open(
        &self,
        seed: u64,
        layers: Option<usize>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Source, Error> {
        let folder = match self {
            Self::Dummy(preset) => {
                let dummy = Dummy::new(preset, seed, layers)?;
                let config = dummy.config().clone();
                return Ok(Source { config, weights: Box::new(dummy), folder: None });
            }
            Self::Folder(path) => path.clone(),
            Self::Hub(repo) => hub::download(repo, REVISION, &HubOptions::from_env()?, &mut |file| {
                progress(Progress { done: file.done, total: file.total, unit: "B" });
            })?,
        };
        let mut config = ModelConfig::from_folder(&folder)?;
        if let Some(layers) = layers {
            config = config.with_layers(layers)?;
        }
        let weights = Folder::open(&folder)?;
        weights.check(&config)?;
        Ok(Source { config, weights: Box::new(weights), folder: Some(folder) })
    }
}

fn not_downloaded(repo: &str) -> Error {
    Error::NotDownloaded { repo: repo.to_owned(), hint: preset_hint(repo) }
}

/// What has the shapes of a model that is not here, for the end of an error.
fn preset_hint(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    match preset::names().into_iter().find(|preset| *preset == last) {
        Some(preset) => format!("; dummy:{preset} has its shapes, with generated weights"),
        None => String::new(),
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dummy(name) => write!(f, "dummy:{name}"),
            Self::Folder(path) => path.display().fmt(f),
            Self::Hub(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_is_not_here_is_told_with_what_has_its_shapes() {
        let hint = "; dummy:gpt-oss-20b has its shapes, with generated weights";
        let unknown = ModelRef::parse("gpt-oss-20b").unwrap_err().to_string();
        assert!(unknown.contains("org/name of the hub") && unknown.ends_with(hint), "{unknown}");
        assert!(not_downloaded("openai/GPT-OSS-20b").to_string().ends_with(hint));
        assert!(not_downloaded("openai/other").to_string().ends_with("brings it"));
    }
}
