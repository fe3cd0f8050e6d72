//! The model's operations as launches: which kernel, over which places.

use bench_kernels::cuda::attention::{self, AttentionArgs, CACHE_BF16};
use bench_kernels::cuda::panel::{self, PanelArgs};
use bench_kernels::cuda::route::{self, AllExpertsArgs, CombineArgs, FORCED, RouteArgs, SortArgs};
use bench_kernels::cuda::tiles::{self, GATHER, PAIR, SCATTER, TilesArgs};
use bench_kernels::cuda::{BF16, CLAMPED, ROUND_FIRST, vectors};

use crate::cuda::workspace::Places;
use crate::cuda::{DeviceWorkspace, Layer, Matrix, Shape, Transformer, address, gpu_error};
use crate::error::Result;

/// Spans of several tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spans {
    pub(super) count: usize,
    pub(super) longest: usize,
    /// Whether q, k and v are taken in bf16 copies, by tensor cores.
    pub(super) copies: bool,
}

impl Shape {
    /// Attention of `sequences` sequences over contexts of up to `keys` tokens, without addresses.
    pub(super) fn attention(&self, window: Option<usize>, sequences: usize, keys: usize) -> AttentionArgs {
        let cache = if self.kv_bf16 { CACHE_BF16 } else { 0 };
        let args = AttentionArgs {
            row_stride: self.qkv as u32,
            heads: self.heads as u32,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            window: window.map_or(0, |w| w as u32),
            span_count: sequences as u32,
            max_len: 1,
            flags: (self.norm_flags & (BF16 | ROUND_FIRST)) | cache,
            eps: self.eps,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            ..AttentionArgs::default()
        };
        AttentionArgs { splits: attention::decode_splits(&args, keys, self.multiprocessors), ..args }
    }
}

impl Transformer {
    /// Rows `from` of x to rows `to` of `places.kept`, pair by pair.
    pub(super) fn keep_rows(&self, ws: &DeviceWorkspace, pairs: &[(u32, u32)]) -> Result<()> {
        let (p, hidden) = (&ws.places, self.shape.hidden);
        // Runs of neighbouring places, each with the list of where its rows come from.
        for run in pairs.chunk_by(|a, b| b.1 == a.1 + 1) {
            let from: Vec<u32> = run.iter().map(|(from, _)| *from).collect();
            self.device.upload(p.kept_rows, bytemuck::cast_slice(&from)).map_err(gpu_error)?;
            let args = vectors::GatherArgs {
                x: p.x,
                index: p.kept_rows,
                out: p.kept + (run[0].1 as usize * hidden * size_of::<f32>()) as u64,
                rows: run.len() as u32,
                cols: hidden as u32,
                x_rows: ws.rows() as u32,
                reserved: 0,
            };
            vectors::gather_rows(&self.device, &args).map_err(gpu_error)?;
        }
        Ok(())
    }

    /// Rows of the embedding table for `places.ids`.
    pub(super) fn embed_rows(&self, p: &Places, rows: usize) -> Result<()> {
        let args = vectors::EmbedArgs {
            table: self.embedding.codes(),
            ids: p.ids,
            out: p.x,
            tokens: rows as u32,
            cols: self.shape.hidden as u32,
            vocab: self.shape.vocab as u32,
            reserved: 0,
        };
        vectors::embed(&self.device, &args).map_err(gpu_error)
    }

    /// RMS norm of `rows` rows, to f32 at `out` and planes at `planes`, each unless it is 0.
    pub(super) fn norm(&self, x: u64, norm: u64, rows: usize, out: u64, planes: u64) -> Result<()> {
        let s = &self.shape;
        let args = vectors::NormArgs {
            x,
            weight: norm,
            out,
            planes,
            index: 0,
            plane_stride: (rows * s.hidden) as u64,
            rows: rows as u32,
            cols: s.hidden as u32,
            x_rows: rows as u32,
            plane_count: if planes == 0 { 0 } else { s.planes as u32 },
            flags: s.norm_flags,
            eps: s.eps,
        };
        vectors::rms_norm(&self.device, &args).map_err(gpu_error)
    }

    /// f32 `[rows, cols]` to planes.
    pub(super) fn to_planes(&self, x: u64, rows: usize, cols: usize, planes: u64) -> Result<()> {
        let count = (rows * cols) as u64;
        let plane_count = self.shape.planes as u32;
        let args =
            vectors::PlanesArgs { x, out: planes, count, plane_stride: count, plane_count, reserved: 0 };
        vectors::to_planes(&self.device, &args).map_err(gpu_error)
    }

    /// x += y.
    pub(super) fn add(&self, x: u64, y: u64, count: usize) -> Result<()> {
        let flags = self.shape.flags & BF16;
        let args = vectors::AddArgs { x, y, out: x, count: count as u64, flags, reserved: 0 };
        vectors::add(&self.device, &args).map_err(gpu_error)
    }

    fn tiles(&self, matrix: &Matrix, args: TilesArgs) -> Result<()> {
        let args = TilesArgs {
            weights: matrix.codes(),
            scales: matrix.scales(),
            rows: matrix.rows as u32,
            cols: matrix.cols as u32,
            alpha: self.shape.alpha,
            limit: self.shape.limit,
            ..args
        };
        tiles::tiles(&self.device, matrix.format, self.shape.planes as u32, &args).map_err(gpu_error)
    }

    /// Rows in planes times a matrix, plus bias and residual where they are not 0, to f32.
    pub(super) fn product(
        &self,
        matrix: &Matrix,
        planes: u64,
        rows: usize,
        bias: u64,
        residual: u64,
        out: u64,
    ) -> Result<()> {
        let rows = rows as u32;
        let flags = self.shape.flags & BF16;
        self.tiles(
            matrix,
            TilesArgs {
                x: planes,
                bias,
                residual,
                out,
                tokens: rows,
                x_rows: rows,
                flags,
                ..TilesArgs::default()
            },
        )
    }

    /// `silu(gate) · up` of rows in planes, to planes.
    pub(super) fn product_pair(
        &self,
        gate: &Matrix,
        up: &Matrix,
        planes: u64,
        rows: usize,
        act: u64,
    ) -> Result<()> {
        let rows = rows as u32;
        let args = TilesArgs {
            x: planes,
            up_weights: up.codes(),
            up_scales: up.scales(),
            out_planes: act,
            tokens: rows,
            x_rows: rows,
            out_rows: rows,
            flags: (self.shape.flags & BF16) | PAIR,
            ..TilesArgs::default()
        };
        self.tiles(gate, args)
    }

    /// What every token's experts make of it before their second product: planes in the order of `places.order`.
    pub(super) fn experts_up(&self, up: &Matrix, bias: u64, p: &Places, rows: usize) -> Result<()> {
        let args = self.grouped(p, rows);
        let args = TilesArgs {
            x: p.planes,
            x_rows: rows as u32,
            bias,
            out_planes: p.act,
            out_rows: (rows * self.shape.slots) as u32,
            flags: args.flags | (self.shape.flags & CLAMPED) | PAIR | GATHER,
            ..args
        };
        self.tiles(up, args)
    }

    /// Their second product, to rows of slots at `places.rows`.
    pub(super) fn experts_down(&self, down: &Matrix, bias: u64, p: &Places, rows: usize) -> Result<()> {
        let args = self.grouped(p, rows);
        let args = TilesArgs {
            x: p.act,
            x_rows: (rows * self.shape.slots) as u32,
            bias,
            out: p.rows,
            flags: args.flags | SCATTER,
            ..args
        };
        self.tiles(down, args)
    }

    fn grouped(&self, p: &Places, rows: usize) -> TilesArgs {
        TilesArgs {
            order: p.order,
            offsets: p.offsets,
            tokens: rows as u32,
            experts: self.shape.experts as u32,
            slots_per_token: self.shape.slots as u32,
            flags: self.shape.flags & BF16,
            ..TilesArgs::default()
        }
    }

    /// Chosen experts and their weights from the router's logits; with `given`, weights of those that are there. One
    /// token's are counted here, unless all experts are computed.
    pub(super) fn route(&self, p: &Places, rows: usize, given: bool) -> Result<()> {
        let s = &self.shape;
        let args = RouteArgs {
            logits: p.router,
            choice: p.choice,
            weights: p.weights,
            counters: if self.counts_choice(rows) && !given { p.routing } else { 0 },
            tokens: rows as u32,
            experts: s.experts as u32,
            slots_per_token: s.chosen as u32,
            flags: (s.flags & BF16) | if given { FORCED } else { 0 },
        };
        route::route(&self.device, &args).map_err(gpu_error)
    }

    /// Whether what is touched is counted where it is chosen: nothing is sorted for one token, unless all experts
    /// are computed.
    fn counts_choice(&self, rows: usize) -> bool {
        rows == 1 && !self.shape.computes_all()
    }

    /// Slots of all experts from those that were chosen.
    pub(super) fn all_experts(&self, p: &Places, rows: usize) -> Result<()> {
        let s = &self.shape;
        let args = AllExpertsArgs {
            choice: p.choice,
            weights: p.weights,
            all: p.slots,
            all_weights: p.slot_weights,
            tokens: rows as u32,
            experts: s.experts as u32,
            slots_per_token: s.chosen as u32,
            unused: 0,
        };
        route::all_experts(&self.device, &args).map_err(gpu_error)
    }

    /// Sorts slots by expert and counts what was touched.
    pub(super) fn sort(&self, p: &Places, rows: usize) -> Result<()> {
        let s = &self.shape;
        let args = SortArgs {
            choice: p.slots,
            order: p.order,
            offsets: p.offsets,
            counters: if self.counts_choice(rows) { 0 } else { p.routing },
            slots: (rows * s.slots) as u32,
            experts: s.experts as u32,
            tokens: rows as u32,
            unused: 0,
        };
        route::sort_slots(&self.device, &args).map_err(gpu_error)
    }

    /// The weighted sum of each token's slots, plus a residual where it is not 0.
    pub(super) fn combine(&self, p: &Places, rows: usize, residual: u64, out: u64) -> Result<()> {
        let s = &self.shape;
        let args = CombineArgs {
            rows: p.rows,
            weights: p.slot_weights,
            residual,
            out,
            tokens: rows as u32,
            cols: s.hidden as u32,
            slots_per_token: s.slots as u32,
            flags: s.flags & BF16,
        };
        route::combine(&self.device, &args).map_err(gpu_error)
    }

    fn attention(&self, ws: &DeviceWorkspace, l: usize, layer: &Layer, sequences: usize) -> AttentionArgs {
        let (p, a) = (&ws.places, &layer.attention);
        AttentionArgs {
            qkv: p.qkv,
            q_norm: address(&a.q_norm),
            k_norm: address(&a.k_norm),
            cos: self.cos.address(),
            sin: self.sin.address(),
            sinks: address(&a.sinks),
            spans: p.spans,
            caches: ws.layer_caches(l, sequences),
            out: p.attn,
            partials: p.partials,
            counters: p.counters,
            ..self.shape.attention(a.window, sequences, ws.keys())
        }
    }

    /// Attention of one new token of each sequence, which it appends.
    pub(super) fn attend_step(
        &self,
        ws: &DeviceWorkspace,
        l: usize,
        layer: &Layer,
        sequences: usize,
    ) -> Result<()> {
        attention::decode(&self.device, &self.attention(ws, l, layer, sequences)).map_err(gpu_error)
    }

    /// Norms and rope of q and k: where they stand, or with `copies` into bf16 copies.
    pub(super) fn rotate(&self, ws: &DeviceWorkspace, l: usize, layer: &Layer, spans: Spans) -> Result<()> {
        let args = self.rows(ws, l, layer, spans);
        attention::prepare(&self.device, &args).map_err(gpu_error)
    }

    fn rows(&self, ws: &DeviceWorkspace, l: usize, layer: &Layer, spans: Spans) -> AttentionArgs {
        AttentionArgs {
            copies: if spans.copies { ws.places.copies } else { 0 },
            max_len: spans.longest as u32,
            ..self.attention(ws, l, layer, spans.count)
        }
    }

    /// Attention of the spans' rows, which are then appended.
    pub(super) fn attend_rows(
        &self,
        ws: &DeviceWorkspace,
        l: usize,
        layer: &Layer,
        spans: Spans,
    ) -> Result<()> {
        let args = self.rows(ws, l, layer, spans);
        attention::prefill(&self.device, &args).map_err(gpu_error)?;
        attention::append(&self.device, &args).map_err(gpu_error)
    }

    fn panel_args(&self, matrix: &Matrix, x: u64, norm: u64, rows: usize, out: u64) -> PanelArgs {
        let s = &self.shape;
        PanelArgs {
            weights: matrix.codes(),
            scales: matrix.scales(),
            x,
            norm,
            out,
            rows: matrix.rows as u32,
            cols: matrix.cols as u32,
            tokens: rows as u32,
            eps: s.eps,
            alpha: s.alpha,
            limit: s.limit,
            flags: s.norm_flags,
            ..PanelArgs::default()
        }
    }

    /// As `product` for a few f32 rows, of which the norm is taken first where there is one.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn few(
        &self,
        matrix: &Matrix,
        x: u64,
        norm: u64,
        rows: usize,
        bias: u64,
        residual: u64,
        out: u64,
    ) -> Result<()> {
        let args = PanelArgs { bias, residual, ..self.panel_args(matrix, x, norm, rows, out) };
        panel::panel(&self.device, matrix.format, self.shape.planes as u32, &args).map_err(gpu_error)
    }

    /// `silu(gate) · up` of a few rows and their norm, to f32.
    pub(super) fn few_pair(
        &self,
        gate: &Matrix,
        up: &Matrix,
        x: u64,
        norm: u64,
        rows: usize,
        act: u64,
    ) -> Result<()> {
        let args = PanelArgs {
            up_weights: up.codes(),
            up_scales: up.scales(),
            ..self.panel_args(gate, x, norm, rows, act)
        };
        panel::panel_pair(&self.device, gate.format, self.shape.planes as u32, &args).map_err(gpu_error)
    }

    /// What the chosen experts of one token make of it before their second product, f32 `[slots, intermediate]`.
    pub(super) fn one_up(&self, up: &Matrix, bias: u64, norm: u64, p: &Places) -> Result<()> {
        let args = self.panel_args(up, p.x, norm, 1, p.act);
        let args = PanelArgs {
            bias,
            choice: p.choice,
            slots: self.shape.slots as u32,
            flags: args.flags | (self.shape.flags & CLAMPED),
            ..args
        };
        panel::panel_pair(&self.device, up.format, self.shape.planes as u32, &args).map_err(gpu_error)
    }

    /// Their second product, weighted and added to x.
    pub(super) fn one_down(&self, down: &Matrix, bias: u64, p: &Places) -> Result<()> {
        let args = PanelArgs {
            bias,
            residual: p.x,
            choice: p.choice,
            choice_weights: p.weights,
            slots: self.shape.slots as u32,
            ..self.panel_args(down, p.act, 0, 1, p.x)
        };
        panel::panel_experts_down(&self.device, down.format, self.shape.planes as u32, &args)
            .map_err(gpu_error)
    }
}
