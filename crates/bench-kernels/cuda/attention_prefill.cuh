// Attention of several new tokens: norm and rotation of their rows, attention in f32, append to the caches.
//
// attention_prepare moves every row once, 128 bytes a warp and read: bound by bandwidth. attention_prefill_exact is for
// f32 mode and caches of f32: 32 queries of a head by tiles of 32 keys in shared memory, a warp with 4 queries; per key
// and query it takes D products from shared memory, no tensor cores.
#pragma once
#include "attention_rows.cuh"

const u32 EXACT_QUERIES = 32;
const u32 EXACT_KEYS = 32;

// One block for each row, one warp for each head of it at a time.
template <u32 D> DEVICE void prepare(const AttentionArgs &args) {
    dependency_launch();
    dependency_wait();
    Span span = load_span(args, blockIdx.y);
    if (blockIdx.x >= span.len) return;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    u32 row = span.start + blockIdx.x, turned = args.heads + args.kv_heads, all = turned + args.kv_heads;
    float *from = (float *)args.qkv + (u64)row * args.row_stride;
    u16 *copy = (u16 *)args.copies + (u64)row * all * D;
    Angles<D> angles = load_angles<D>(args, span.past + blockIdx.x, lane);
    for (u32 head = warp; head < (args.copies ? all : turned); head += warps) {
        HeadRow<D> x = load_head<D>(from + head * D, lane);
        if (head < turned) {
            u64 norm = head < args.heads ? args.q_norm : args.k_norm;
            if (norm) normalize<D>(x, load_head<D>((const float *)norm, lane), args.eps, args.flags);
            rotate<D>(x, angles, args.flags);
        }
        if (args.copies) store_head<D>(x, copy + head * D, lane);
        else store_head<D>(x, from + head * D, lane);
    }
}

// Near -1 to 1, by what the value is of.
DEVICE float made_up(u32 seed, u32 position, u32 element) {
    // splitmix64 (Steele, Lea and Flood 2014).
    u64 z = ((u64)seed << 32 ^ position) * 0x9e3779b97f4a7c15ull + element * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (float)(u32)((z ^ (z >> 31)) >> 40) * (1.0f / 8388608.0f) - 1.0f;
}

DEVICE void put(float *to, float x) { *to = x; }
DEVICE void put(u16 *to, float x) { *to = float_to_bf16(x); }

// One block for each new token: its key and value, or made-up ones.
template <class T, bool MADE_UP> DEVICE void append_row(const AttentionArgs &args, const Span &span) {
    u32 i = blockIdx.x, d = args.head_dim, width = args.kv_heads * d, turned = args.heads * d + width;
    u32 position = span.past + i, slot = args.window ? position % args.window : position;
    Pages pages = load_pages(args, span.sequence);
    u64 row = span.start + i;
    for (u32 e = threadIdx.x; e < width; e += blockDim.x) {
        float k, v;
        if (MADE_UP) {
            k = made_up(args.seed, position, 2 * e);
            v = made_up(args.seed, position, 2 * e + 1);
        } else if (args.copies) {
            const u16 *from = (const u16 *)args.copies + row * (turned + width) + args.heads * d;
            k = bf16_to_float(from[e]);
            v = bf16_to_float(from[width + e]);
        } else {
            const float *from = (const float *)args.qkv + row * args.row_stride + args.heads * d;
            k = from[e];
            v = from[width + e];
        }
        Row<T> to = row_of<T>(pages, args.kv_heads, d, e / d, slot);
        put(to.k + e % d, k);
        put(to.v + e % d, v);
    }
}

template <bool MADE_UP> DEVICE void append(const AttentionArgs &args) {
    dependency_launch();
    dependency_wait();
    Span span = load_span(args, blockIdx.y);
    // A ring keeps the last of them.
    if (blockIdx.x >= span.len || (args.window && span.len - blockIdx.x > args.window)) return;
    if (args.flags & CACHE_BF16) append_row<u16, MADE_UP>(args, span);
    else append_row<float, MADE_UP>(args, span);
}

template <u32 D> struct ExactShared {
    float q[EXACT_QUERIES][D], k[EXACT_KEYS][D + 1], v[EXACT_KEYS][D];
};

// Keys and values of the positions from `key`, zeros from `end` on.
template <u32 D>
DEVICE void load_exact(ExactShared<D> &shared, const AttentionArgs &args, const Span &span, const Pages &pages,
                       Slots slots, u32 kv_head, u32 key, u32 end) {
    for (u32 e = threadIdx.x; e < EXACT_KEYS * D; e += blockDim.x) {
        u32 j = e / D, c = e % D, position = key + j;
        float k = 0.0f, v = 0.0f;
        if (position < end && position >= span.past) {
            const float *row = (const float *)args.qkv + (u64)(span.start + position - span.past) * args.row_stride;
            k = row[(args.heads + kv_head) * D + c];
            v = row[(args.heads + args.kv_heads + kv_head) * D + c];
        } else if (position < end && (args.flags & CACHE_BF16)) {
            Row<const u16> row = row_of<const u16>(pages, args.kv_heads, D, kv_head, slot_of(slots, position));
            k = bf16_to_float(row.k[c]);
            v = bf16_to_float(row.v[c]);
        } else if (position < end) {
            Row<const float> row = row_of<const float>(pages, args.kv_heads, D, kv_head, slot_of(slots, position));
            k = row.k[c];
            v = row.v[c];
        }
        shared.k[j][c] = k;
        shared.v[j][c] = v;
    }
}

// A warp's four queries: o of columns lane + 32 i, `sum` of the lane's keys.
template <u32 D> struct ExactState {
    float max[4], sum[4], o[4][D / 32];
};

template <u32 D>
DEVICE void take_exact(ExactState<D> &state, const ExactShared<D> &shared, const AttentionArgs &args, u32 position,
                       u32 key, u32 warp, u32 lane) {
    float p[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 c = 0; c < D; ++c)
        UNROLL for (u32 i = 0; i < 4; ++i) p[i] += shared.q[4 * warp + i][c] * shared.k[lane][c];
    UNROLL for (u32 i = 0; i < 4; ++i) {
        u32 at = position + i;
        bool visible = key + lane <= at && key + lane >= first_seen(args.window, at);
        float score = visible ? p[i] * args.scale : bits_to_float(NO_KEY);
        float max = fmaxf(state.max[i], warp_max(score));
        bool any = max != bits_to_float(NO_KEY);
        float shrink = any ? expf(state.max[i] - max) : 0.0f;
        p[i] = visible ? expf(score - max) : 0.0f;
        state.max[i] = max;
        state.sum[i] = state.sum[i] * shrink + p[i];
        UNROLL for (u32 x = 0; x < D / 32; ++x) state.o[i][x] *= shrink;
    }
    for (u32 j = 0; j < EXACT_KEYS; ++j)
        UNROLL for (u32 i = 0; i < 4; ++i) {
            float weight = shuffle(p[i], j);
            UNROLL for (u32 x = 0; x < D / 32; ++x) state.o[i][x] += weight * shared.v[j][lane + 32 * x];
        }
}

template <u32 D> DEVICE void prefill_exact(const AttentionArgs &args) {
    DYNAMIC_SHARED(memory);
    auto &shared = *(ExactShared<D> *)memory;
    dependency_launch();
    dependency_wait();
    Span span = load_span(args, blockIdx.z);
    u32 first = blockIdx.x * EXACT_QUERIES;
    if (first >= span.len) return;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y;
    u32 kv_head = head / (args.heads / args.kv_heads), queries = min_u32(EXACT_QUERIES, span.len - first);
    for (u32 e = threadIdx.x; e < EXACT_QUERIES * D; e += blockDim.x) {
        // Queries behind the last are the last once more.
        u64 row = span.start + first + min_u32(e / D, queries - 1);
        shared.q[e / D][e % D] = ((const float *)args.qkv)[row * args.row_stride + head * D + e % D];
    }
    Pages pages = load_pages(args, span.sequence);
    Slots slots = slots_from(args.window, first_seen(args.window, span.past));
    u32 position = span.past + first, end = position + queries;
    ExactState<D> state;
    UNROLL for (u32 i = 0; i < 4; ++i) {
        state.max[i] = bits_to_float(NO_KEY);
        state.sum[i] = 0.0f;
        UNROLL for (u32 x = 0; x < D / 32; ++x) state.o[i][x] = 0.0f;
    }
    for (u32 key = first_seen(args.window, position); key < end; key += EXACT_KEYS) {
        sync_block();
        load_exact<D>(shared, args, span, pages, slots, kv_head, key, end);
        sync_block();
        take_exact<D>(state, shared, args, position + 4 * warp, key, warp, lane);
    }
    UNROLL for (u32 i = 0; i < 4; ++i) {
        float total = warp_sum(state.sum[i]), keep = 1.0f;
        if (args.sinks) {
            float sink = ((const float *)args.sinks)[head], max = fmaxf(state.max[i], sink);
            keep = expf(state.max[i] - max);
            total = total * keep + expf(sink - max);
        }
        if (4 * warp + i >= queries) continue;
        float *out = (float *)args.out + ((u64)(span.start + first + 4 * warp + i) * args.heads + head) * D;
        UNROLL for (u32 x = 0; x < D / 32; ++x)
            out[lane + 32 * x] = settle(state.o[i][x] * keep / total, args.flags);
    }
}
