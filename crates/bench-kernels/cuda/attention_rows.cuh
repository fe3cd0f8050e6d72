// What all kernels of attention share: their argument, where a position's key and value stand, norm and rotation of a
// head's row.
//
// A page holds K [kv_heads][rows][head_dim], then V the same, f32 or bf16. A position stands in slot `position`, or
// `position % window` of a ring; slots go through the pages, the first of which has `first_rows` rows.
#pragma once
#include "device.cuh"

struct AttentionArgs {
    // f32 rows [tokens][row_stride]: q, then k, then v.
    u64 qkv;
    // 0, or bf16 rows [tokens][(heads + 2 kv_heads) head_dim] of normalized and rotated q and k, and v.
    u64 copies;
    // f32 [head_dim] or 0.
    u64 q_norm, k_norm;
    // f32 [positions][head_dim / 2].
    u64 cos, sin;
    // f32 [heads] or 0.
    u64 sinks;
    // Span [span_count], Cache [sequences].
    u64 spans, caches;
    // f32 [tokens][heads * head_dim].
    u64 out;
    // Workspace of split keys, see the Rust side.
    u64 partials, counters;
    u32 row_stride, heads, kv_heads, head_dim, window, splits, span_count, max_len, flags;
    float eps, scale;
    u32 seed;
};

// Rows start..start + len of a step belong to a sequence that has seen `past` tokens.
struct Span {
    u32 start, len, past, sequence;
};

struct Cache {
    // Of u64 addresses.
    u64 pages;
    u32 first_rows, page_rows;
};

// Results are rounded to bf16 where the CPU's are.
const u32 ROUNDS = 1;
// The norm rounds before it multiplies by its weight.
const u32 ROUNDS_FIRST = 2;
// The cache holds bf16, not f32.
const u32 CACHE_BF16 = 8;

const u32 NO_KEY = 0xff800000u; // minus infinity

DEVICE float settle(float x, u32 flags) { return flags & ROUNDS ? round_bf16(x) : x; }

// The span may be written by the kernel before: reads behind the first cache.
DEVICE u32 span_word(const AttentionArgs &args, u32 span, u32 word) {
    return float_to_bits(load_shared_by_blocks((const float *)args.spans + 4 * (u64)span + word));
}
DEVICE Span load_span(const AttentionArgs &args, u32 span) {
    return {span_word(args, span, 0), span_word(args, span, 1), span_word(args, span, 2), span_word(args, span, 3)};
}

struct Pages {
    const u64 *pages;
    u64 first;
    u32 first_rows, page_rows, window;
};

DEVICE Pages load_pages(const AttentionArgs &args, u32 sequence) {
    const Cache *cache = (const Cache *)args.caches + sequence;
    const u64 *pages = (const u64 *)cache->pages;
    return {pages, pages[0], cache->first_rows, cache->page_rows, args.window};
}

template <class T> struct Row {
    T *k, *v;
};

// The row of `slot` for a kv head.
template <class T> DEVICE Row<T> row_of(const Pages &p, u32 kv_heads, u32 head_dim, u32 kv_head, u32 slot) {
    u64 page = p.first;
    u32 rows = p.first_rows, row = slot;
    if (slot >= p.first_rows) {
        u32 beyond = slot - p.first_rows, n = beyond / p.page_rows;
        row = beyond - n * p.page_rows;
        // The last page of a ring ends with it.
        rows = p.window ? min_u32(p.page_rows, p.window - p.first_rows - n * p.page_rows) : p.page_rows;
        page = p.pages[1 + n];
    }
    T *k = (T *)page + ((u64)kv_head * rows + row) * head_dim;
    return {k, k + (u64)kv_heads * rows * head_dim};
}

// Slots of the positions from the oldest on that a ring holds, and of the one after them.
struct Slots {
    u32 base, ring;
};
DEVICE Slots slots_from(u32 window, u32 oldest) {
    if (!window) return {0, ~0u};
    return {oldest / window * window, window};
}

DEVICE u32 slot_of(Slots slots, u32 position) {
    u32 slot = position - slots.base;
    return slot >= slots.ring ? slot - slots.ring : slot;
}

// The first position that the query at `position` sees.
DEVICE u32 first_seen(u32 window, u32 position) { return window && position >= window ? position + 1 - window : 0; }

// A head's row in a warp: the lane has elements lane + 32 i, and those half a row behind them.
template <u32 D> struct HeadRow {
    static const u32 PAIRS = (D + 63) / 64;
    float first[PAIRS], second[PAIRS];
};
template <u32 D> DEVICE bool has_pair(u32 lane, u32 i) { return lane + 32 * i < D / 2; }

template <u32 D> DEVICE HeadRow<D> load_head(const float *from, u32 lane) {
    HeadRow<D> row;
    UNROLL for (u32 i = 0; i < HeadRow<D>::PAIRS; ++i) {
        bool has = has_pair<D>(lane, i);
        row.first[i] = has ? from[lane + 32 * i] : 0.0f;
        row.second[i] = has ? from[lane + 32 * i + D / 2] : 0.0f;
    }
    return row;
}
// Halves of rows of D / 2, for cosines and sines.
template <u32 D> struct Angles {
    float cos[HeadRow<D>::PAIRS], sin[HeadRow<D>::PAIRS];
};
template <u32 D> DEVICE Angles<D> load_angles(const AttentionArgs &args, u32 position, u32 lane) {
    Angles<D> angles;
    UNROLL for (u32 i = 0; i < HeadRow<D>::PAIRS; ++i) {
        u64 at = (u64)position * (D / 2) + lane + 32 * i;
        bool has = has_pair<D>(lane, i);
        angles.cos[i] = has ? ((const float *)args.cos)[at] : 0.0f;
        angles.sin[i] = has ? ((const float *)args.sin)[at] : 0.0f;
    }
    return angles;
}

template <u32 D> DEVICE void normalize(HeadRow<D> &row, const HeadRow<D> &weight, float eps, u32 flags) {
    float squares = 0.0f;
    UNROLL for (u32 i = 0; i < HeadRow<D>::PAIRS; ++i)
        squares += row.first[i] * row.first[i] + row.second[i] * row.second[i];
    float inverse = reciprocal_sqrt(warp_sum(squares) / (float)D + eps);
    bool first = (flags & ROUNDS) && (flags & ROUNDS_FIRST);
    UNROLL for (u32 i = 0; i < HeadRow<D>::PAIRS; ++i) {
        float a = row.first[i] * inverse, b = row.second[i] * inverse;
        row.first[i] = settle((first ? round_bf16(a) : a) * weight.first[i], flags);
        row.second[i] = settle((first ? round_bf16(b) : b) * weight.second[i], flags);
    }
}

template <u32 D> DEVICE void rotate(HeadRow<D> &row, const Angles<D> &by, u32 flags) {
    UNROLL for (u32 i = 0; i < HeadRow<D>::PAIRS; ++i) {
        float a = row.first[i], b = row.second[i];
        row.first[i] = settle(settle(a * by.cos[i], flags) - settle(b * by.sin[i], flags), flags);
        row.second[i] = settle(settle(b * by.cos[i], flags) + settle(a * by.sin[i], flags), flags);
    }
}

template <u32 D> DEVICE void store_head(const HeadRow<D> &row, float *to, u32 lane) {
    UNROLL for (u32 i = 0; i < HeadRow<D>::PAIRS; ++i)
        if (has_pair<D>(lane, i)) {
            to[lane + 32 * i] = row.first[i];
            to[lane + 32 * i + D / 2] = row.second[i];
        }
}
template <u32 D> DEVICE void store_head(const HeadRow<D> &row, u16 *to, u32 lane) {
    UNROLL for (u32 i = 0; i < HeadRow<D>::PAIRS; ++i)
        if (has_pair<D>(lane, i)) {
            to[lane + 32 * i] = float_to_bf16(row.first[i]);
            to[lane + 32 * i + D / 2] = float_to_bf16(row.second[i]);
        }
}
