//! Forward passes of any number of rows: prompts, batches, and whatever hooks look at.
//!
//! Every operation is a launch of its own, with its input as bf16 planes for the tensor cores.

use bench_kernels::cuda::attention::Span as DeviceSpan;

use crate::cuda::launch::Spans;
use crate::cuda::offer::Part;
use crate::cuda::workspace::{Size, keys};
use crate::cuda::{DeviceCache, DeviceWorkspace, Layer, Mlp, Pass, Transformer, address, gpu_error};
use crate::error::Result;
use crate::hooks::Site;

/// Columns of activations that one product of the few-column kind takes.
const FEW: usize = 8;

/// Whether each sequence has one new token, and nobody looks at what lies between.
fn is_step(pass: &Pass<'_, '_, '_>) -> bool {
    pass.hooks.is_empty() && pass.spans.iter().all(|span| span.len == 1)
}

impl Transformer {
    /// Runs `pass` through all layers; the residual stream of its rows is then in `places.x`.
    ///
    /// # Errors
    /// No memory, a device that fails, sites that a device does not have.
    pub(crate) fn forward(
        &self,
        ws: &mut DeviceWorkspace,
        pass: &mut Pass<'_, '_, '_>,
        size: Size,
    ) -> Result<()> {
        self.check_sites(pass.hooks)?;
        self.prepare(ws, pass, size)?;
        self.layers(ws, pass)
    }

    /// Brings ids, spans and page tables to the device.
    pub(super) fn prepare(
        &self,
        ws: &mut DeviceWorkspace,
        pass: &mut Pass<'_, '_, '_>,
        size: Size,
    ) -> Result<()> {
        let mut longest = 0;
        for span in pass.spans {
            let cache = pass.sequences[span.sequence].device_cache()?;
            cache.grow(span.past + span.len)?;
            longest = longest.max(span.past + span.len).max(cache.reserved());
        }
        let wanted = Size { keys: size.keys.max(keys(longest)), ..size };
        ws.fit(wanted)?;
        let mut caches: Vec<&DeviceCache> = Vec::with_capacity(pass.spans.len());
        for span in pass.spans {
            caches.push(pass.sequences[span.sequence].device_pages()?);
        }
        ws.write_caches(&caches)?;
        let spans: Vec<DeviceSpan> = pass
            .spans
            .iter()
            .enumerate()
            .map(|(i, s)| DeviceSpan {
                start: s.start as u32,
                len: s.len as u32,
                past: s.past as u32,
                sequence: i as u32,
            })
            .collect();
        self.device.upload(ws.places.spans, bytemuck::cast_slice(&spans)).map_err(gpu_error)?;
        self.device.upload(ws.places.ids, bytemuck::cast_slice(pass.ids)).map_err(gpu_error)?;
        ws.forget_logits();
        Ok(())
    }

    /// The launches of all layers.
    pub(super) fn layers(&self, ws: &DeviceWorkspace, pass: &mut Pass<'_, '_, '_>) -> Result<()> {
        let few = is_step(pass) && pass.ids.len() * self.shape.planes <= FEW;
        self.embed(ws, pass)?;
        for (l, layer) in self.layers.iter().enumerate() {
            if few {
                self.few_rows(ws, l, layer, pass)?;
            } else {
                self.many_rows(ws, l, layer, pass)?;
            }
        }
        Ok(())
    }

    fn embed(&self, ws: &DeviceWorkspace, pass: &mut Pass<'_, '_, '_>) -> Result<()> {
        let rows = pass.ids.len();
        self.embed_rows(&ws.places, rows)?;
        self.offer(pass.hooks, Site::Embed, Part::whole(ws.places.x, rows, self.shape.hidden), 0)
    }

    fn many_rows(
        &self,
        ws: &DeviceWorkspace,
        l: usize,
        layer: &Layer,
        pass: &mut Pass<'_, '_, '_>,
    ) -> Result<()> {
        let x = Part::whole(ws.places.x, pass.ids.len(), self.shape.hidden);
        self.offer(pass.hooks, Site::ResidPre(l), x, 0)?;
        self.attention_rows(ws, l, layer, pass)?;
        self.offer(pass.hooks, Site::ResidMid(l), x, 0)?;
        match &layer.mlp {
            Mlp::Dense { .. } => self.dense_rows(ws, l, layer, pass)?,
            Mlp::Experts { .. } => self.expert_rows(ws, l, layer, pass)?,
        }
        self.offer(pass.hooks, Site::ResidPost(l), x, 0)
    }

    /// The norm of x as planes, which hooks may look at.
    fn norm_rows(
        &self,
        ws: &DeviceWorkspace,
        norm: u64,
        site: Site,
        pass: &mut Pass<'_, '_, '_>,
    ) -> Result<()> {
        let (p, rows, hidden) = (&ws.places, pass.ids.len(), self.shape.hidden);
        if !pass.hooks.wants(site) {
            return self.norm(p.x, norm, rows, 0, p.planes);
        }
        self.norm(p.x, norm, rows, p.t, 0)?;
        self.offer(pass.hooks, site, Part::whole(p.t, rows, hidden), 0)?;
        self.to_planes(p.t, rows, hidden, p.planes)
    }

    /// x += y, which hooks may look at: `product` is told where to write, and what to add (0 for nothing).
    fn add_rows(
        &self,
        ws: &DeviceWorkspace,
        site: Site,
        pass: &mut Pass<'_, '_, '_>,
        product: impl FnOnce(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let (p, rows, hidden) = (&ws.places, pass.ids.len(), self.shape.hidden);
        if !pass.hooks.wants(site) {
            return product(p.x, p.x);
        }
        product(p.y, 0)?;
        self.offer(pass.hooks, site, Part::whole(p.y, rows, hidden), 0)?;
        self.add(p.x, p.y, rows * hidden)
    }

    fn attention_rows(
        &self,
        ws: &DeviceWorkspace,
        l: usize,
        layer: &Layer,
        pass: &mut Pass<'_, '_, '_>,
    ) -> Result<()> {
        let (p, s, rows, a) = (&ws.places, &self.shape, pass.ids.len(), &layer.attention);
        self.norm_rows(ws, address(&a.norm), Site::AttnNorm(l), pass)?;
        self.product(&a.qkv, p.planes, rows, address(&a.qkv_bias), 0, p.qkv)?;
        if is_step(pass) {
            self.attend_step(ws, l, layer, rows)?;
        } else {
            let looked_at = [Site::Q(l), Site::K(l), Site::V(l)].iter().any(|site| pass.hooks.wants(*site));
            let spans = Spans {
                count: pass.spans.len(),
                longest: pass.spans.iter().map(|span| span.len).max().unwrap_or(0),
                copies: s.on_tensor_cores() && !looked_at,
            };
            self.rotate(ws, l, layer, spans)?;
            let kv = s.kv_heads * s.head_dim;
            let part = |first, cols| Part { address: p.qkv, rows, width: s.qkv, first, cols };
            self.offer(pass.hooks, Site::Q(l), part(0, s.q), s.heads)?;
            self.offer(pass.hooks, Site::K(l), part(s.q, kv), s.kv_heads)?;
            self.offer(pass.hooks, Site::V(l), part(s.q + kv, kv), s.kv_heads)?;
            self.attend_rows(ws, l, layer, spans)?;
        }
        self.offer(pass.hooks, Site::AttnOut(l), Part::whole(p.attn, rows, s.q), 0)?;
        self.to_planes(p.attn, rows, s.q, p.planes)?;
        self.add_rows(ws, Site::AttnProj(l), pass, |out, residual| {
            self.product(&a.out, p.planes, rows, address(&a.out_bias), residual, out)
        })
    }

    fn dense_rows(
        &self,
        ws: &DeviceWorkspace,
        l: usize,
        layer: &Layer,
        pass: &mut Pass<'_, '_, '_>,
    ) -> Result<()> {
        let Mlp::Dense { gate, up, down } = &layer.mlp else { return Ok(()) };
        let (p, rows) = (&ws.places, pass.ids.len());
        self.norm_rows(ws, address(&layer.mlp_norm), Site::MlpNorm(l), pass)?;
        self.product_pair(gate, up, p.planes, rows, p.act)?;
        self.add_rows(ws, Site::MlpOut(l), pass, |out, residual| {
            self.product(down, p.act, rows, 0, residual, out)
        })
    }

    pub(super) fn expert_rows(
        &self,
        ws: &DeviceWorkspace,
        l: usize,
        layer: &Layer,
        pass: &mut Pass<'_, '_, '_>,
    ) -> Result<()> {
        let Mlp::Experts { router, router_bias, up, up_bias, down, down_bias } = &layer.mlp else {
            return Ok(());
        };
        let (p, s, rows) = (&ws.places, &self.shape, pass.ids.len());
        self.norm_rows(ws, address(&layer.mlp_norm), Site::MlpNorm(l), pass)?;
        self.product(router, p.planes, rows, address(router_bias), 0, p.router)?;
        self.offer(pass.hooks, Site::Router(l), Part::whole(p.router, rows, s.experts), 0)?;
        self.route(p, rows, false)?;
        if self.offer_choice(pass.hooks, p.choice, l, rows)? {
            self.route(p, rows, true)?;
        }
        self.offer(pass.hooks, Site::ExpertWeight(l), Part::whole(p.weights, rows, s.chosen), 0)?;
        if s.computes_all() {
            self.all_experts(p, rows)?;
        }
        self.sort(p, rows)?;
        self.experts_up(up, address(up_bias), p, rows)?;
        self.experts_down(down, address(down_bias), p, rows)?;
        if pass.hooks.wants(Site::MoeExpertOut(l)) {
            let part = Part::whole(p.rows, rows, s.slots * s.hidden);
            self.offer(pass.hooks, Site::MoeExpertOut(l), part, s.slots)?;
        }
        self.add_rows(ws, Site::MlpOut(l), pass, |out, residual| self.combine(p, rows, residual, out))
    }

    /// Logits of `kept` rows of a residual stream at `from`.
    pub(super) fn unembed(
        &self,
        ws: &mut DeviceWorkspace,
        from: u64,
        kept: usize,
        pass: &mut Pass<'_, '_, '_>,
    ) -> Result<()> {
        let (p, s) = (ws.places, &self.shape);
        ws.kept = kept;
        if kept * s.planes <= FEW && pass.hooks.is_empty() {
            self.few(&self.unembedding, from, address(&self.norm), kept, 0, 0, p.logits)?;
        } else if pass.hooks.wants(Site::FinalNorm) {
            self.norm(from, address(&self.norm), kept, p.t, 0)?;
            self.offer(pass.hooks, Site::FinalNorm, Part::whole(p.t, kept, s.hidden), 0)?;
            self.to_planes(p.t, kept, s.hidden, p.planes)?;
            self.product(&self.unembedding, p.planes, kept, 0, 0, p.logits)?;
        } else {
            self.norm(from, address(&self.norm), kept, 0, p.planes)?;
            self.product(&self.unembedding, p.planes, kept, 0, 0, p.logits)?;
        }
        self.offer(pass.hooks, Site::Logits, Part::whole(p.logits, kept, s.vocab), 0)
    }
}
