//! Hooks: named places of a forward pass whose values can be read or replaced.
//!
//! They are data: the model offers each value at its site, and what is registered there happens. With nothing
//! registered a site is one branch.

use std::fmt;

use candle_core::Tensor;

use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// A place in the model; the number is the layer. T counts the tokens of a forward pass over all its sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// `[T, hidden]`, as are the residual streams, norms, `AttnProj`, `MlpOut` and `FinalNorm`.
    Embed,
    /// The residual stream before a layer, between attention and MLP, and after the layer.
    ResidPre(usize),
    ResidMid(usize),
    ResidPost(usize),
    AttnNorm(usize),
    MlpNorm(usize),
    /// `[T, heads or kv heads, head_dim]`; q and k after their norm and rope.
    Q(usize),
    K(usize),
    V(usize),
    /// `[heads, queries, keys (+ 1: the sink)]`, one value per sequence; can be read only.
    AttnProbs(usize),
    /// `[T, heads · head_dim]`, before the output projection.
    AttnOut(usize),
    AttnProj(usize),
    /// Logits of the router `[T, experts]`.
    Router(usize),
    /// Chosen experts `[T, k]`, u32. Replacing them forces the routing; weights are recomputed from the logits.
    ExpertIndex(usize),
    /// `[T, k]`.
    ExpertWeight(usize),
    /// `[T, k, 2 · intermediate]`: what each chosen expert computes; where all experts are computed, instead of k all of
    /// them, the chosen ones first. The three can be read only.
    MoeGateUp(usize),
    /// `[T, k, intermediate]`.
    MoeAct(usize),
    /// `[T, k, hidden]`, before weighting.
    MoeExpertOut(usize),
    MlpOut(usize),
    /// Only of the positions that are unembedded: in `prefill` the last.
    FinalNorm,
    /// `[positions, vocab]`.
    Logits,
}

const MODEL_SITES: [(&str, Site); 3] =
    [("embed", Site::Embed), ("final_norm", Site::FinalNorm), ("logits", Site::Logits)];

type OfLayer = fn(usize) -> Site;

const LAYER_SITES: [(&str, OfLayer); 12] = [
    ("resid_pre", Site::ResidPre),
    ("resid_mid", Site::ResidMid),
    ("resid_post", Site::ResidPost),
    ("attn_norm", Site::AttnNorm),
    ("mlp_norm", Site::MlpNorm),
    ("q", Site::Q),
    ("k", Site::K),
    ("v", Site::V),
    ("attn_probs", Site::AttnProbs),
    ("attn_out", Site::AttnOut),
    ("attn_proj", Site::AttnProj),
    ("mlp_out", Site::MlpOut),
];

const MOE_SITES: [(&str, OfLayer); 6] = [
    ("router", Site::Router),
    ("expert_index", Site::ExpertIndex),
    ("expert_weight", Site::ExpertWeight),
    ("moe_gate_up", Site::MoeGateUp),
    ("moe_act", Site::MoeAct),
    ("moe_expert_out", Site::MoeExpertOut),
];

impl Site {
    /// Parses `resid_post.3`, `embed` and so on; whether the model has the layer is checked when it runs.
    pub fn parse(name: &str) -> Result<Self> {
        let of_model = || MODEL_SITES.iter().find(|(n, _)| *n == name).map(|(_, site)| *site);
        let of_layer = || {
            let (kind, layer) = name.split_once('.')?;
            let (_, make) = LAYER_SITES.iter().chain(&MOE_SITES).find(|(n, _)| *n == kind)?;
            Some(make(layer.parse().ok()?))
        };
        of_model().or_else(of_layer).ok_or_else(|| unknown(name, valid_sites("LAYER", true)))
    }

    /// Whether `config` has this site.
    fn check(self, config: &ModelConfig) -> Result<()> {
        let moe = config.moe.is_some();
        let layers = config.num_hidden_layers;
        let kinds = LAYER_SITES.iter().chain(MOE_SITES.iter().take(if moe { MOE_SITES.len() } else { 0 }));
        let of_layer = || kinds.map(|(_, make)| make).any(|make| (0..layers).any(|l| make(l) == self));
        if MODEL_SITES.iter().any(|(_, site)| *site == self) || of_layer() {
            return Ok(());
        }
        Err(unknown(&self.to_string(), valid_sites(&format!("0 … {}", layers.saturating_sub(1)), moe)))
    }

    /// Values that are by-products of a fused computation: later steps do not read them back.
    fn is_read_only(self) -> bool {
        matches!(self, Self::AttnProbs(_) | Self::MoeGateUp(_) | Self::MoeAct(_) | Self::MoeExpertOut(_))
    }
}

fn unknown(site: &str, valid: String) -> Error {
    Error::UnknownSite { site: site.to_owned(), valid }
}

fn valid_sites(layers: &str, moe: bool) -> String {
    let mut names: Vec<String> = MODEL_SITES.iter().map(|(n, _)| (*n).to_owned()).collect();
    let moe_sites = MOE_SITES.iter().take(if moe { MOE_SITES.len() } else { 0 });
    names.extend(LAYER_SITES.iter().chain(moe_sites).map(|(n, _)| format!("{n}.{layers}")));
    names.join(", ")
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) = MODEL_SITES.iter().find(|(_, site)| site == self) {
            return f.write_str(name);
        }
        let layer = self.layer();
        let kind = LAYER_SITES.iter().chain(&MOE_SITES).find(|(_, make)| make(layer) == *self);
        write!(f, "{}.{layer}", kind.map_or("?", |(name, _)| name))
    }
}

impl Site {
    /// The layer, 0 for sites of the whole model.
    fn layer(self) -> usize {
        match self {
            Self::Embed | Self::FinalNorm | Self::Logits => 0,
            Self::ResidPre(l)
            | Self::ResidMid(l)
            | Self::ResidPost(l)
            | Self::AttnNorm(l)
            | Self::MlpNorm(l)
            | Self::Q(l)
            | Self::K(l)
            | Self::V(l)
            | Self::AttnProbs(l)
            | Self::AttnOut(l)
            | Self::AttnProj(l)
            | Self::Router(l)
            | Self::ExpertIndex(l)
            | Self::ExpertWeight(l)
            | Self::MoeGateUp(l)
            | Self::MoeAct(l)
            | Self::MoeExpertOut(l)
            | Self::MlpOut(l) => l,
        }
    }
}

type Replacement<'a> = Box<dyn FnMut(&Tensor) -> Result<Tensor> + Send + 'a>;

/// How many experts forward passes touched, summed over passes and layers with experts; all 0 in dense models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Routing {
    /// Forward passes times layers with experts.
    pub layer_passes: u64,
    /// Distinct experts of each layer and pass.
    pub experts: u64,
    /// Tokens of each layer and pass.
    pub tokens: u64,
}

/// What to read and what to replace in the forward passes that get it.
#[derive(Default)]
pub struct Hooks<'a> {
    reads: Vec<(Site, Vec<Tensor>)>,
    replacements: Vec<(Site, Replacement<'a>)>,
    routing: Routing,
}

impl<'a> Hooks<'a> {
    /// Nothing registered.
    pub fn none() -> Self {
        Self::default()
    }

    /// Captures the values at `sites`; get them with [`Hooks::take`].
    ///
    /// # Errors
    /// [`Error::UnknownSite`] with the list of those that exist; so for `replace`.
    pub fn read(sites: &[&str]) -> Result<Self> {
        Self::none().and_read(sites)
    }

    /// Captures more sites.
    pub fn and_read(mut self, sites: &[&str]) -> Result<Self> {
        for name in sites {
            let site = Site::parse(name)?;
            if !self.reads.iter().any(|(s, _)| *s == site) {
                self.reads.push((site, Vec::new()));
            }
        }
        Ok(self)
    }

    /// Puts what `with` makes of the value at `site` in its place; the shape must stay. Reads see the new value.
    pub fn replace(
        mut self,
        site: &str,
        with: impl FnMut(&Tensor) -> Result<Tensor> + Send + 'a,
    ) -> Result<Self> {
        let parsed = Site::parse(site)?;
        if parsed.is_read_only() {
            return Err(Error::ReadOnlySite { site: site.to_owned() });
        }
        self.replacements.push((parsed, Box::new(with)));
        Ok(self)
    }

    /// The captured values of `site`, one per forward pass (chunk or step) since the last call.
    pub fn take(&mut self, site: &str) -> Vec<Tensor> {
        let site = Site::parse(site).ok();
        let read = self.reads.iter_mut().find(|(s, _)| Some(*s) == site);
        read.map(|(_, values)| std::mem::take(values)).unwrap_or_default()
    }

    /// What the routers chose in the forward passes that got these hooks; always counted.
    pub fn routing(&self) -> Routing {
        self.routing
    }

    /// As [`Self::routing`], which then begins anew.
    pub(crate) fn take_routing(&mut self) -> Routing {
        std::mem::take(&mut self.routing)
    }

    /// Counts a layer's choice for `tokens` tokens.
    pub(crate) fn count_routing(&mut self, tokens: usize, distinct_experts: usize) {
        self.routing.layer_passes += 1;
        self.routing.experts += distinct_experts as u64;
        self.routing.tokens += tokens as u64;
    }

    pub fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.replacements.is_empty()
    }

    /// Whether all registered sites exist in the model.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<()> {
        let sites = self.reads.iter().map(|(s, _)| s).chain(self.replacements.iter().map(|(s, _)| s));
        sites.into_iter().try_for_each(|site| site.check(config))
    }

    /// Whether `site` is read, for values that are not computed otherwise.
    pub(crate) fn reads(&self, site: Site) -> bool {
        self.reads.iter().any(|(s, _)| *s == site)
    }

    /// Whether anything is registered at `site`: a value that nobody wants is not made into a tensor.
    pub(crate) fn wants(&self, site: Site) -> bool {
        !self.is_empty() && (self.reads(site) || self.replaces(site))
    }

    pub(crate) fn replaces(&self, site: Site) -> bool {
        self.replacements.iter().any(|(s, _)| *s == site)
    }

    /// Offers the value at `site`; returns what the model goes on with.
    pub(crate) fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor> {
        if self.is_empty() {
            return Ok(value);
        }
        self.visit(site, value)
    }

    #[cold]
    fn visit(&mut self, site: Site, mut value: Tensor) -> Result<Tensor> {
        for (_, with) in self.replacements.iter_mut().filter(|(s, _)| *s == site) {
            let new = with(&value)?;
            if new.dims() != value.dims() {
                let (expected, found) = (value.dims().to_vec(), new.dims().to_vec());
                return Err(Error::ReplacementShape { site: site.to_string(), expected, found });
            }
            value = new.to_dtype(value.dtype())?.to_device(value.device())?.contiguous()?;
        }
        if let Some((_, values)) = self.reads.iter_mut().find(|(s, _)| *s == site) {
            values.push(value.clone());
        }
        Ok(value)
    }
}

impl fmt::Debug for Hooks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |sites: Vec<Site>| sites.iter().map(Site::to_string).collect::<Vec<_>>();
        f.debug_struct("Hooks")
            .field("reads", &names(self.reads.iter().map(|(s, _)| *s).collect()))
            .field("replacements", &names(self.replacements.iter().map(|(s, _)| *s).collect()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_site_parses_back_from_its_name() {
        for (name, site) in MODEL_SITES {
            assert_eq!((Site::parse(name).unwrap(), site.to_string().as_str()), (site, name));
        }
        for (name, make) in LAYER_SITES.iter().chain(&MOE_SITES) {
            let name = format!("{name}.17");
            assert_eq!((Site::parse(&name).unwrap(), make(17).to_string()), (make(17), name));
        }
    }

    #[test]
    fn an_unknown_site_lists_the_valid_ones() {
        for name in ["resid", "resid_post", "resid_post.x", "embed.1", ""] {
            let error = Site::parse(name).unwrap_err().to_string();
            assert!(error.contains("resid_post.LAYER") && error.contains("final_norm"), "{error}");
        }
        assert!(Hooks::none().replace("attn_probs.0", |t| Ok(t.clone())).is_err());
    }

    #[test]
    fn replacing_keeps_shape_and_dtype_and_comes_before_reading() {
        let x = Tensor::new(&[1.0_f32, 2.0], &candle_core::Device::Cpu).unwrap();
        let mut hooks = Hooks::read(&["embed"]).unwrap().replace("embed", |t| Ok((t * 2.0)?)).unwrap();
        let y = hooks.at(Site::Embed, x.clone()).unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), [2.0, 4.0]);
        assert_eq!(hooks.take("embed")[0].to_vec1::<f32>().unwrap(), [2.0, 4.0]);
        assert!(hooks.take("embed").is_empty());
        let mut wrong = Hooks::none().replace("embed", |t| Ok(t.narrow(0, 0, 1)?)).unwrap();
        assert!(matches!(wrong.at(Site::Embed, x), Err(Error::ReplacementShape { .. })));
    }
}
