// Products of weights with few columns of activations: decoding. Limited by the bytes of the weights, so everything
// here serves to have many of them under way all the time: a block's 8 warps take a tile of up to 16 rows, split K, and
// copy weights asynchronously through a ring in shared memory, across the ends of tiles; the ring is filled before
// dependency_wait() where the choice of experts need not be known. 40 KiB under way per block; three blocks fit on a
// multiprocessor, by registers (launch bounds) and by shared memory: two of a kernel, and one of the next, which fills
// its ring while the last of this one end.
//
// Weights are the 16-row operand of the tensor cores, activations (tokens * PLANES <= 8) its columns: column
// token * PLANES + plane. Each block makes its own copy of the activations, normalized if asked. Sums of the warps meet
// in shared memory; a few threads finish a tile.
#include "panel_formats.cuh"

struct PanelArgs {
    u64 weights, scales, up_weights, up_scales, bias, x, norm, out, residual, choice, choice_weights;
    u32 rows, cols, tokens, slots;
    float eps, alpha, limit;
    u32 flags;
    // Outputs of a tile; steps of a stretch of the activations in shared memory, 0 if all of them are there.
    u32 tile_rows, chunk_steps;
};

const u32 BF16 = 1, ROUND_FIRST = 2, CLAMPED = 4;
const u32 STAGES = 6;
// Floats from one column of a tile's sums to the next: columns of a lane's results meet in no bank.
const u32 COLUMN = 20;

// What a kernel computes: rows of one matrix; gate and up of two; gate and up, rows in turn, of the chosen experts; the
// weighted sum of the chosen experts.
enum Mode { PLAIN, PAIR, EXPERTS_PAIR, EXPERTS_DOWN };

template <u32 MODE> DEVICE bool pairs() { return MODE == PAIR || MODE == EXPERTS_PAIR; }
template <u32 MODE> DEVICE bool chooses() { return MODE == EXPERTS_PAIR || MODE == EXPERTS_DOWN; }

DEVICE float settle(float x, u32 flags) { return flags & BF16 ? round_bf16(x) : x; }

// Sizes that follow from the arguments.
struct Shape {
    u32 row_bytes, blocks, units, steps, tiles, tile_rows, columns;
    // Bytes of half a tile's scales with room to align; places for scales in the ring.
    u32 scale_half, scale_places;
    // Bytes of a row of activations in shared memory.
    u32 x_stride;
    u8 *ring, *scales, *x;
    float *sums;
    // Of a slot, in lane `slot`: the chosen expert.
    u32 chosen;
};

template <class F, u32 PLANES, u32 MODE> DEVICE Shape shape(const PanelArgs &a, u8 *memory) {
    Shape s;
    s.blocks = a.cols / 32;
    s.row_bytes = s.blocks * (32 * UNIT / F::COLUMNS);
    s.units = ceil_div(s.row_bytes, UNIT);
    s.steps = ceil_div(s.row_bytes, STEP);
    s.tile_rows = a.tile_rows;
    s.tiles = ceil_div(a.rows, a.tile_rows);
    s.columns = (chooses<MODE>() ? 1 : a.tokens) * PLANES;
    s.scale_half = F::SCALE ? (8 * s.blocks * F::SCALE + 15) / 16 * 16 + 16 : 0;
    s.scale_places = 2 + (STAGES - 1) / s.steps;
    u32 x_bytes = (a.chunk_steps ? a.chunk_steps * WARPS : s.units) * F::COLUMNS * 2;
    s.x_stride = x_bytes + (x_bytes % 128 ? 0 : 64);
    s.ring = memory;
    s.scales = s.ring + STAGES * STAGE;
    s.sums = (float *)(s.scales + 2 * s.scale_half * s.scale_places);
    s.chosen = 0;
    s.x = (u8 *)(s.sums + 2 * WARPS * s.columns * COLUMN);
    return s;
}

// The n-th piece of work of this block: a tile, of one expert if there are experts.
struct Item {
    bool exists;
    u32 tile, slot, expert;
    // Rows of the matrix that the tile has, and the first of them, counted through all experts.
    u32 count, first;
};

template <u32 MODE> DEVICE Item item_at(const PanelArgs &a, const Shape &s, u32 n) {
    Item item;
    item.slot = 0;
    item.tile = blockIdx.x + n * gridDim.x;
    if (MODE == EXPERTS_PAIR) {
        item.slot = item.tile / s.tiles;
        item.tile %= s.tiles;
    }
    if (MODE == EXPERTS_DOWN) {
        item.slot = n % a.slots;
        item.tile = blockIdx.x + n / a.slots * gridDim.x;
    }
    item.exists = MODE == EXPERTS_PAIR ? item.slot < a.slots : item.tile < s.tiles;
    item.expert = chooses<MODE>() ? shuffle(s.chosen, item.slot % 32) : 0;
    const u32 turns = MODE == EXPERTS_PAIR ? 2 : 1;
    u32 start = item.tile * s.tile_rows;
    item.count = item.exists ? turns * min_u32(s.tile_rows, a.rows - start) : 0;
    item.first = turns * (item.expert * a.rows + start);
    return item;
}

// Which row of a tile stands in row `g` of half `half` of the operand.
template <u32 MODE> DEVICE u32 local_row(u32 g, u32 half) {
    if (MODE == EXPERTS_PAIR) return 2 * g + half;
    return MODE == PAIR ? g : g + 8 * half;
}

// Bytes by which a tile's scales begin behind an address that can be copied from.
template <class F> DEVICE u32 scale_shift(const Shape &s, u32 first_row) {
    return (u32)((u64)first_row * (s.blocks * F::SCALE)) % 16;
}

// What this thread copies next.
struct Stream {
    u32 n, step, slot, scale_place;
    bool exists, valid[2];
    // The lane's first 16 bytes of its two rows.
    const u8 *row[2];
};

template <class F, u32 MODE> DEVICE void copy_scales(const PanelArgs &a, const Shape &s, const Item &item, u8 *to) {
    if (F::SCALE == 0) return;
    u32 shift = scale_shift<F>(s, item.first), bytes = shift + item.count * s.blocks * F::SCALE;
    u64 offset = (u64)item.first * (s.blocks * F::SCALE) - shift;
    for (u32 at = 16 * threadIdx.x; at < bytes; at += 16 * THREADS) {
        u32 part = min_u32(16, bytes - at);
        copy_async_part(to + at, (const u8 *)a.scales + offset + at, part);
        if (MODE == PAIR) copy_async_part(to + s.scale_half + at, (const u8 *)a.up_scales + offset + at, part);
    }
}

template <class F, u32 MODE> DEVICE void begin_item(const PanelArgs &a, const Shape &s, Stream &stream) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Item item = item_at<MODE>(a, s, stream.n);
    stream.exists = item.exists;
    stream.step = 0;
    UNROLL
    for (u32 half = 0; half < 2; ++half) {
        u32 local = local_row<MODE>(lane / 4, half);
        u64 base = MODE == PAIR && half ? a.up_weights : a.weights;
        stream.valid[half] = local < item.count;
        stream.row[half] = (const u8 *)base + (u64)(item.first + local) * s.row_bytes + warp * UNIT + lane % 4 * 16;
    }
    if (item.exists) copy_scales<F, MODE>(a, s, item, s.scales + 2 * s.scale_half * stream.scale_place);
    if (++stream.scale_place == s.scale_places) stream.scale_place = 0;
}

// Copies the thread's part of a step, one group. The scales of a tile come a step before its first, so that the barrier
// at the end of the tile before makes them visible.
template <class F, u32 MODE> DEVICE void issue(const PanelArgs &a, const Shape &s, Stream &stream) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (stream.exists) {
        bool inside = stream.step * STEP + warp * UNIT + lane % 4 * 16 < s.row_bytes;
        u8 *to = s.ring + stream.slot * STAGE + warp * PART + lane_place(F(), lane);
        u64 offset = (u64)stream.step * STEP;
        copy_async_part(to, stream.row[0] + offset, inside && stream.valid[0] ? 16 : 0);
        copy_async_part(to + PART / 2, stream.row[1] + offset, inside && stream.valid[1] ? 16 : 0);
        if (++stream.step == s.steps) {
            ++stream.n;
            begin_item<F, MODE>(a, s, stream);
        }
    }
    if (++stream.slot == STAGES) stream.slot = 0;
    copy_commit();
}

// inverse[token] = 1 / sqrt(mean of squares + eps); a token has 8, 4, 2 or 1 warps. All threads call it.
DEVICE void mean_squares(const PanelArgs &a, u32 tokens, float *parts, float *inverse) {
    u32 share = tokens > 4 ? 1 : tokens > 2 ? 2 : tokens > 1 ? 4 : 8;
    u32 token = threadIdx.x / 32 / share, quads = a.cols / 4;
    float sum = 0.0f;
    if (token < tokens) {
        const float4 *x = (const float4 *)a.x + (u64)token * quads;
#pragma unroll 4
        for (u32 i = threadIdx.x % (32 * share); i < quads; i += 32 * share) {
            float4 v = x[i];
            sum += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
        }
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    sync_block();
    if (threadIdx.x < tokens) {
        float all = 0.0f;
        for (u32 i = 0; i < share; ++i) all += parts[threadIdx.x * share + i];
        inverse[threadIdx.x] = reciprocal_sqrt(all / (float)a.cols + a.eps);
    }
    sync_block();
}

struct Octet { float v[8]; };

DEVICE Octet load_octet(u64 address, u64 octet) {
    const float4 *from = (const float4 *)address + 2 * octet;
    float4 low = from[0], high = from[1];
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

DEVICE Octet normalize(Octet x, const Octet &weight, float inverse, u32 flags) {
    UNROLL
    for (u32 i = 0; i < 8; ++i) {
        float v = x.v[i] * inverse;
        if ((flags & (BF16 | ROUND_FIRST)) == (BF16 | ROUND_FIRST)) v = round_bf16(v);
        x.v[i] = settle(v * weight.v[i], flags);
    }
    return x;
}

// Writes PLANES rows of bf16 whose sum is x.
template <class F, u32 PLANES> DEVICE void put_octet(u8 *to, u32 stride, Octet x) {
    UNROLL
    for (u32 plane = 0; plane < PLANES; ++plane) {
        u32 words[4];
        UNROLL
        for (u32 pair = 0; pair < 4; ++pair) {
            float &low = x.v[octet_column(F(), pair, 0)], &high = x.v[octet_column(F(), pair, 1)];
            words[pair] = pack_bf16(low, high);
            low -= low_bf16(words[pair]);
            high -= high_bf16(words[pair]);
        }
        *(uint4 *)(to + plane * stride) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

// Octets of a stretch of the activations: of rows `first` to `first + count`, columns from 8 * begin on.
struct Stretch { u32 first, count, begin, octets; };

// Norm weights of the octets that the thread handles first.
struct Early { Octet weight[2]; };

DEVICE Octet norm_weight(const PanelArgs &a, const Stretch &r, u32 i) {
    u32 octet = r.begin + i % r.octets;
    return a.norm && 8 * octet < a.cols && i < r.count * r.octets ? load_octet(a.norm, octet) : Octet{};
}

DEVICE Early early_weights(const PanelArgs &a, const Stretch &r) {
    return {{norm_weight(a, r, threadIdx.x), norm_weight(a, r, threadIdx.x + THREADS)}};
}

// Two octets of each thread at a time, so that their loads overlap.
template <class F, u32 PLANES>
DEVICE void stage_x(const PanelArgs &a, const Shape &s, const Stretch &r, const float *inverse, Early early) {
    u32 all = r.count * r.octets;
    for (u32 i = threadIdx.x; i < all; i += 2 * THREADS) {
        Octet x[2];
        UNROLL
        for (u32 k = 0; k < 2; ++k) {
            u32 at = i + k * THREADS, row = at / r.octets, octet = r.begin + at % r.octets;
            bool inside = at < all && 8 * octet < a.cols;
            x[k] = inside ? load_octet(a.x, (u64)(r.first + row) * (a.cols / 8) + octet) : Octet{};
            if (i != threadIdx.x) early.weight[k] = norm_weight(a, r, at);
        }
        UNROLL
        for (u32 k = 0; k < 2; ++k) {
            u32 at = i + k * THREADS, row = at / r.octets;
            if (at >= all) continue;
            if (a.norm) x[k] = normalize(x[k], early.weight[k], inverse[row], a.flags);
            u8 *to = s.x + row * PLANES * s.x_stride + octet_place(F(), at % r.octets) * 16;
            put_octet<F, PLANES>(to, s.x_stride, x[k]);
        }
    }
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

DEVICE float gated(float gate, float up, const PanelArgs &a) {
    u32 flags = a.flags;
    if (!(flags & CLAMPED)) return settle(settle(gate * sigmoid(gate), flags) * up, flags);
    // Comparisons that leave NaN as it is.
    gate = gate > a.limit ? a.limit : gate;
    up = up > a.limit ? a.limit : up;
    up = up < -a.limit ? -a.limit : up;
    float swish = settle(gate * settle(sigmoid(settle(gate * a.alpha, flags)), flags), flags);
    return settle(settle(up + 1.0f, flags) * swish, flags);
}

// What the thread that finishes an output needs besides the sums; asked for when the tile begins.
struct Side {
    bool mine;
    u32 local, token;
    float bias[2], residual, weight;
};

// Threads of other warps finish the next tile, so that none is behind all the time.
template <u32 MODE> DEVICE Side side_of(const PanelArgs &a, const Item &item, u32 turn) {
    const u32 height = pairs<MODE>() ? 8 : 16;
    u32 index = (threadIdx.x - 32 * turn) % THREADS, outputs = MODE == EXPERTS_PAIR ? item.count / 2 : item.count;
    Side side = {false, index % height, index / height, {0.0f, 0.0f}, 0.0f, 0.0f};
    side.mine = side.local < outputs && side.token < (chooses<MODE>() ? 1 : a.tokens);
    if (!side.mine) return side;
    const float *bias = (const float *)a.bias;
    if (bias && MODE == EXPERTS_PAIR)
        for (u32 i = 0; i < 2; ++i) side.bias[i] = bias[item.first + 2 * side.local + i];
    else if (bias) side.bias[0] = bias[item.first + side.local];
    u64 out = (u64)side.token * a.rows + item.tile * a.tile_rows + side.local;
    if (a.residual && !pairs<MODE>()) side.residual = ((const float *)a.residual)[out];
    if (MODE == EXPERTS_DOWN) side.weight = ((const float *)a.choice_weights)[item.slot];
    return side;
}

// The sum of all warps and planes.
template <u32 PLANES> DEVICE float total(const float *sums, u32 columns, u32 row, u32 token) {
    float parts[PLANES] = {};
    UNROLL
    for (u32 warp = 0; warp < WARPS; ++warp)
        UNROLL
        for (u32 p = 0; p < PLANES; ++p) parts[p] += sums[(warp * columns + token * PLANES + p) * COLUMN + row];
    float sum = parts[PLANES - 1];
    UNROLL
    for (u32 p = PLANES - 1; p > 0; --p) sum += parts[p - 1];
    return sum;
}

template <u32 PLANES, u32 MODE>
DEVICE void finish(const PanelArgs &a, const Shape &s, const Item &item, const Side &side, const float *sums,
                   float &weighted) {
    u32 flags = a.flags, row = item.tile * s.tile_rows + side.local;
    float v = settle(total<PLANES>(sums, s.columns, side.local, side.token) + side.bias[0], flags);
    if (pairs<MODE>()) {
        float up = settle(total<PLANES>(sums, s.columns, side.local + 8, side.token) + side.bias[1], flags);
        v = gated(v, up, a);
    }
    if (MODE == EXPERTS_DOWN) {
        weighted = (item.slot ? weighted : 0.0f) + settle(side.weight * v, flags);
        if (item.slot + 1 < a.slots) return;
        v = settle(weighted, flags);
    }
    if (!pairs<MODE>() && a.residual) v = settle(v + side.residual, flags);
    u64 place = (u64)(MODE == EXPERTS_PAIR ? item.slot : side.token) * a.rows + row;
    ((float *)a.out)[place] = v;
}

// Where this lane finds the scales of its rows.
template <class F, u32 MODE>
DEVICE void scale_rows(const u8 *at[2], const Shape &s, const Item &item, u32 place, u32 g) {
    u32 shift = scale_shift<F>(s, item.first);
    UNROLL
    for (u32 half = 0; half < 2; ++half)
        at[half] = s.scales + (2 * place + (MODE == PAIR ? half : 0)) * s.scale_half + shift +
                   local_row<MODE>(g, half) * s.blocks * F::SCALE;
}

// Rows of the activations that an item needs, when not all are in shared memory.
template <class F, u32 MODE>
DEVICE Stretch stretch_of(const PanelArgs &a, const Shape &s, u32 slot, u32 step) {
    u32 octets = F::COLUMNS / 8 * WARPS;
    u32 units = min_u32(a.chunk_steps * WARPS, s.units - step * WARPS);
    return {MODE == EXPERTS_DOWN ? slot : 0, chooses<MODE>() ? 1 : a.tokens, step * octets, units * (F::COLUMNS / 8)};
}

template <class F, u32 PLANES, u32 MODE> DEVICE void panel_block(const PanelArgs &a) {
    DYNAMIC_SHARED(memory);
    SHARED float parts[WARPS], inverse[8];
    Shape s = shape<F, PLANES, MODE>(a, memory);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
    Stream stream = {};
    Stretch whole = {0, MODE == EXPERTS_DOWN ? a.slots : MODE == EXPERTS_PAIR ? 1 : a.tokens, 0,
                     s.units * (F::COLUMNS / 8)};
    if (!chooses<MODE>()) {
        begin_item<F, MODE>(a, s, stream);
        UNROLL
        for (u32 i = 0; i + 1 < STAGES; ++i) issue<F, MODE>(a, s, stream);
    }
    dependency_launch();
    Early early = {};
    if (a.chunk_steps == 0) early = early_weights(a, whole);
    if (a.bias && !chooses<MODE>() && threadIdx.x == 0) prefetch((const float *)a.bias + blockIdx.x * a.tile_rows);
    dependency_wait();
    if (chooses<MODE>()) {
        s.chosen = ((const u32 *)a.choice)[min_u32(lane, a.slots - 1)];
        begin_item<F, MODE>(a, s, stream);
        UNROLL
        for (u32 i = 0; i + 1 < STAGES; ++i) issue<F, MODE>(a, s, stream);
    }
    if (a.norm) mean_squares(a, whole.count, parts, inverse);
    if (a.chunk_steps == 0) stage_x<F, PLANES>(a, s, whole, inverse, early);
    // The first scales; later ones are there when a tile's first step is.
    copy_wait<STAGES - 2>();
    sync_block();

    u32 slot = 0, place = 0, turn = 0;
    float weighted = 0.0f;
    for (u32 n = 0;; ++n) {
        Item item = item_at<MODE>(a, s, n);
        if (!item.exists) break;
        Side side = side_of<MODE>(a, item, turn);
        Operands o;
        scale_rows<F, MODE>(o.scales, s, item, place, g);
        o.blocks = s.blocks;
        o.lane = lane;
        u32 column = min_u32(g, s.columns - 1);
        if (MODE == EXPERTS_DOWN && a.chunk_steps == 0) column += item.slot * PLANES;
        const u8 *x = s.x + column * s.x_stride + lane % 4 * 16;
        float sums[2][4] = {};
        u32 chunk = 0;
        for (u32 step = 0; step < s.steps; ++step) {
            if (a.chunk_steps && step % a.chunk_steps == 0) {
                Stretch r = stretch_of<F, MODE>(a, s, item.slot, step);
                sync_block();
                stage_x<F, PLANES>(a, s, r, inverse, early_weights(a, r));
                sync_block();
                chunk = step;
            }
            copy_wait<STAGES - 2>();
            // What other lanes copied is visible, and they have read what is overwritten next.
            sync_warp();
            issue<F, MODE>(a, s, stream);
            u32 unit = step * WARPS + warp;
            if (unit < s.units) {
                o.codes = s.ring + slot * STAGE + warp * PART;
                o.x = x + (unit - chunk * WARPS) * (F::COLUMNS * 2);
                o.block = unit * (F::COLUMNS / 32);
                multiply(F(), sums, o);
            }
            if (++slot == STAGES) slot = 0;
        }
        // Two places for sums in turn: one barrier a tile is enough.
        float *to = s.sums + (n % 2) * WARPS * s.columns * COLUMN + warp * s.columns * COLUMN;
        UNROLL
        for (u32 i = 0; i < 4; ++i) {
            u32 c = lane % 4 * 2 + i % 2;
            if (c < s.columns) to[c * COLUMN + g + i / 2 * 8] = sums[0][i] + sums[1][i];
        }
        sync_block();
        const float *from = s.sums + (n % 2) * WARPS * s.columns * COLUMN;
        if (side.mine) finish<PLANES, MODE>(a, s, item, side, from, weighted);
        if (++place == s.scale_places) place = 0;
        if (MODE != EXPERTS_DOWN || item.slot + 1 == a.slots) turn = (turn + 1) % WARPS;
    }
    copy_wait<0>();
}

#define PANEL_KERNEL(name, format, planes, mode)                                          \
    KERNEL(THREADS, 3, name)(PanelArgs a) { panel_block<format, planes, mode>(a); } \
    EXPORT(name)

PANEL_KERNEL(panel_bf16_p1, Bf16Weights, 1, PLAIN);
PANEL_KERNEL(panel_bf16_p3, Bf16Weights, 3, PLAIN);
PANEL_KERNEL(panel_q8_p1, Q8Weights, 1, PLAIN);
PANEL_KERNEL(panel_q8_p3, Q8Weights, 3, PLAIN);
PANEL_KERNEL(panel_mxfp4_p1, Mxfp4Weights, 1, PLAIN);
PANEL_KERNEL(panel_mxfp4_p3, Mxfp4Weights, 3, PLAIN);
PANEL_KERNEL(panel_pair_bf16_p1, Bf16Weights, 1, PAIR);
PANEL_KERNEL(panel_pair_bf16_p3, Bf16Weights, 3, PAIR);
PANEL_KERNEL(panel_pair_q8_p1, Q8Weights, 1, PAIR);
PANEL_KERNEL(panel_pair_q8_p3, Q8Weights, 3, PAIR);
PANEL_KERNEL(panel_experts_pair_bf16_p1, Bf16Weights, 1, EXPERTS_PAIR);
PANEL_KERNEL(panel_experts_pair_bf16_p3, Bf16Weights, 3, EXPERTS_PAIR);
PANEL_KERNEL(panel_experts_pair_mxfp4_p1, Mxfp4Weights, 1, EXPERTS_PAIR);
PANEL_KERNEL(panel_experts_pair_mxfp4_p3, Mxfp4Weights, 3, EXPERTS_PAIR);
PANEL_KERNEL(panel_experts_down_bf16_p1, Bf16Weights, 1, EXPERTS_DOWN);
PANEL_KERNEL(panel_experts_down_bf16_p3, Bf16Weights, 3, EXPERTS_DOWN);
PANEL_KERNEL(panel_experts_down_mxfp4_p1, Mxfp4Weights, 1, EXPERTS_DOWN);
PANEL_KERNEL(panel_experts_down_mxfp4_p3, Mxfp4Weights, 3, EXPERTS_DOWN);
