//! Decode steps: a row for each of a few sequences, through kernels that read each weight once; recorded as a graph.

use crate::cuda::workspace::Size;
use crate::cuda::{DeviceWorkspace, Layer, Mlp, Pass, Transformer, address, gpu_error};
use crate::error::Result;

impl Transformer {
    /// One token of each sequence, and its logits, without hooks. The second step of a size is recorded, later ones
    /// are replayed.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub(crate) fn decode(&self, ws: &mut DeviceWorkspace, pass: &mut Pass<'_, '_, '_>) -> Result<()> {
        let n = pass.ids.len();
        let size = Size { rows: n, sequences: n, kept: n, keys: 0 };
        self.prepare(ws, pass, size)?;
        ws.kept = n;
        let key = Size { keys: ws.keys(), ..size };
        if let Some(graph) = ws.graphs.get(&key) {
            return graph.launch().map_err(gpu_error);
        }
        if !ws.seen.contains(&key) {
            // What a first launch sets up must not be recorded.
            ws.seen.push(key);
            return self.step(ws, pass);
        }
        let mut launched = Ok(());
        let graph = self.device.capture(|| launched = self.step(ws, pass));
        launched?;
        let graph = graph.map_err(gpu_error)?;
        graph.launch().map_err(gpu_error)?;
        ws.graphs.insert(key, graph);
        Ok(())
    }

    /// The launches of a step: whatever changes from step to step is read from device memory.
    fn step(&self, ws: &mut DeviceWorkspace, pass: &mut Pass<'_, '_, '_>) -> Result<()> {
        self.layers(ws, pass)?;
        let (from, n) = (ws.places.x, pass.ids.len());
        self.unembed(ws, from, n, pass)
    }

    /// One layer of a step of few rows.
    pub(super) fn few_rows(
        &self,
        ws: &DeviceWorkspace,
        l: usize,
        layer: &Layer,
        pass: &mut Pass<'_, '_, '_>,
    ) -> Result<()> {
        let (p, a, n) = (&ws.places, &layer.attention, pass.ids.len());
        self.few(&a.qkv, p.x, address(&a.norm), n, address(&a.qkv_bias), 0, p.qkv)?;
        self.attend_step(ws, l, layer, n)?;
        self.few(&a.out, p.attn, 0, n, address(&a.out_bias), p.x, p.x)?;
        let norm = address(&layer.mlp_norm);
        match &layer.mlp {
            Mlp::Dense { gate, up, down } => {
                self.few_pair(gate, up, p.x, norm, n, p.act)?;
                self.few(down, p.act, 0, n, 0, p.x, p.x)
            }
            // Several tokens share experts, and so do all experts a token: their rows are sorted by them.
            Mlp::Experts { .. } if n > 1 || self.shape.computes_all() => self.expert_rows(ws, l, layer, pass),
            Mlp::Experts { router, router_bias, up, up_bias, down, down_bias } => {
                self.few(router, p.x, norm, 1, address(router_bias), 0, p.router)?;
                self.route(p, 1, false)?;
                self.one_up(up, address(up_bias), norm, p)?;
                self.one_down(down, address(down_bias), p)
            }
        }
    }
}
