// Attention of several new tokens on tensor cores: bf16 mode over a bf16 cache and the bf16 copies of
// attention_prepare.
//
// A block has 128 rows, as many queries as that is with the heads of a kv head that it takes together (the largest
// power of two that divides them, up to 8), and goes through their keys 64 at a time: the next tile comes by cp.async
// while this one is multiplied. A warp has 16 rows; scores, weights and sums stay in its registers. For 128 x 64 rows
// and keys of 64 columns: 2.1 Mflop on 16 KiB from the second cache, that is 2.3 TB/s at 300 Tflop/s. Tiles that no
// row of a warp sees are passed over; those without an edge are not masked. Late queries, which have most keys, first.
#pragma once
#include "attention_rows.cuh"

const u32 MMA_ROWS = 128;
const u32 MMA_KEYS = 64;

// Where 16-byte part `part` of a row stands: eight rows of a tile then lie in different banks.
template <u32 D> DEVICE u16 *swizzled(u16 *rows, u32 row, u32 part) {
    u32 mixed = D == 32 ? part ^ (row / 2 % 4) : part ^ (row % 8);
    return rows + row * D + 8 * mixed;
}

struct MmaBlock {
    Span span;
    Pages pages;
    Slots slots;
    u32 kv_head, first_head, heads, first_query;
    // Elements of a row of copies.
    u32 stride;
    u32 end;
};

template <u32 D>
DEVICE void load_queries(u16 *to, const AttentionArgs &args, const MmaBlock &block) {
    const u16 *copies = (const u16 *)args.copies;
    UNROLL for (u32 i = 0; i < MMA_ROWS * D / 8 / 256; ++i) {
        u32 at = threadIdx.x + 256 * i, row = at / (D / 8), part = at % (D / 8);
        u32 query = block.first_query + row / block.heads, head = block.first_head + row % block.heads;
        bool valid = query < block.span.len;
        u64 from = block.span.start + (valid ? query : 0);
        copy_async16(swizzled<D>(to, row, part), copies + from * block.stride + head * D + 8 * part, valid);
    }
}

// 64 keys, then their values; zeros from the block's end on.
template <u32 D> DEVICE void load_keys(u16 *to, const AttentionArgs &args, const MmaBlock &block, u32 key) {
    const u16 *copies = (const u16 *)args.copies;
    UNROLL for (u32 i = 0; i < (MMA_KEYS * D / 8 + 255) / 256; ++i) {
        u32 at = threadIdx.x + 256 * i, row = at / (D / 8), part = at % (D / 8);
        bool valid = key + row < block.end;
        u32 position = valid ? key + row : block.end - 1;
        Row<const u16> from;
        if (position < block.span.past) {
            from = row_of<const u16>(block.pages, args.kv_heads, D, block.kv_head, slot_of(block.slots, position));
        } else {
            u64 token = block.span.start + position - block.span.past;
            from.k = copies + token * block.stride + (args.heads + block.kv_head) * D;
            from.v = from.k + args.kv_heads * D;
        }
        copy_async16(swizzled<D>(to, row, part), from.k + 8 * part, valid);
        copy_async16(swizzled<D>(to + MMA_KEYS * D, row, part), from.v + 8 * part, valid);
    }
}

// A warp's rows: first two of four are row g, last two row g + 8; `sum` of the lane's keys.
template <u32 D> struct MmaState {
    u32 q[D / 16][4];
    float max[2], sum[2], o[D / 8][4];
};

template <u32 D> DEVICE void mma_scores(float scores[MMA_KEYS / 8][4], const MmaState<D> &state, u16 *keys, u32 lane) {
    UNROLL for (u32 n = 0; n < MMA_KEYS / 16; ++n) {
        UNROLL for (u32 i = 0; i < 8; ++i) scores[2 * n + i / 4][i % 4] = 0.0f;
        UNROLL for (u32 k = 0; k < D / 16; ++k) {
            u32 b[4];
            load_tiles(b, swizzled<D>(keys, 16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
            mma_bf16(scores[2 * n], state.q[k], b);
            mma_bf16(scores[2 * n + 1], state.q[k], b + 2);
        }
    }
}

template <u32 D>
DEVICE void mma_values(MmaState<D> &state, const float p[MMA_KEYS / 8][4], u16 *values, u32 lane) {
    UNROLL for (u32 k = 0; k < MMA_KEYS / 16; ++k) {
        u32 a[4] = {pack_bf16(p[2 * k][0], p[2 * k][1]), pack_bf16(p[2 * k][2], p[2 * k][3]),
                    pack_bf16(p[2 * k + 1][0], p[2 * k + 1][1]), pack_bf16(p[2 * k + 1][2], p[2 * k + 1][3])};
        UNROLL for (u32 n = 0; n < D / 16; ++n) {
            u32 b[4];
            load_tiles_transposed(b, swizzled<D>(values, 16 * k + lane % 16, 2 * n + lane / 16));
            mma_bf16(state.o[2 * n], a, b);
            mma_bf16(state.o[2 * n + 1], a, b + 2);
        }
    }
}

// Scores become weights; `factor` is the scale over ln 2. Maxima are of scores without their scale.
template <u32 D>
DEVICE void mma_softmax(MmaState<D> &state, float scores[MMA_KEYS / 8][4], float factor, const u32 position[2],
                        u32 window, u32 key, bool edge, u32 t) {
    UNROLL for (u32 half = 0; half < 2; ++half) {
        float max = state.max[half];
        u32 first = first_seen(window, position[half]);
        UNROLL for (u32 n = 0; n < MMA_KEYS / 8; ++n)
            UNROLL for (u32 e = 0; e < 2; ++e) {
                u32 at = key + 8 * n + 2 * t + e;
                float &score = scores[n][2 * half + e];
                if (edge && (at > position[half] || at < first)) score = bits_to_float(NO_KEY);
                max = fmaxf(max, score);
            }
        max = fmaxf(max, shuffle_xor(max, 1));
        max = fmaxf(max, shuffle_xor(max, 2));
        // A row that sees none of the keys so far.
        float base = max == bits_to_float(NO_KEY) ? 0.0f : max * factor;
        float shrink = fast_exp2(state.max[half] * factor - base), sum = 0.0f;
        state.max[half] = max;
        UNROLL for (u32 n = 0; n < MMA_KEYS / 8; ++n)
            UNROLL for (u32 e = 0; e < 2; ++e) {
                float &p = scores[n][2 * half + e];
                p = fast_exp2(p * factor - base);
                sum += p;
            }
        state.sum[half] = state.sum[half] * shrink + sum;
        UNROLL for (u32 n = 0; n < D / 8; ++n)
            UNROLL for (u32 e = 0; e < 2; ++e) state.o[n][2 * half + e] *= shrink;
    }
}

template <u32 D>
DEVICE void mma_store(const AttentionArgs &args, const MmaBlock &block, const MmaState<D> &state, u32 warp, u32 g, u32 t) {
    UNROLL for (u32 half = 0; half < 2; ++half) {
        float total = state.sum[half], keep = 1.0f;
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        u32 row = 16 * warp + 8 * half + g;
        u32 query = block.first_query + row / block.heads, head = block.first_head + row % block.heads;
        if (args.sinks) {
            float sink = ((const float *)args.sinks)[head], own = state.max[half] * args.scale;
            float max = fmaxf(own, sink);
            keep = fast_exp(own - max);
            total = total * keep + fast_exp(sink - max);
        }
        keep /= total;
        if (query >= block.span.len) continue;
        float *out = (float *)args.out + ((u64)(block.span.start + query) * args.heads + head) * D;
        UNROLL for (u32 n = 0; n < D / 8; ++n)
            *(float2 *)(out + 8 * n + 2 * t) = make_float2(settle(state.o[n][2 * half] * keep, args.flags),
                                                           settle(state.o[n][2 * half + 1] * keep, args.flags));
    }
}

template <u32 D> DEVICE void prefill_mma(const AttentionArgs &args) {
    DYNAMIC_SHARED(memory);
    u16 *stages = (u16 *)memory;
    const u32 stage = 2 * MMA_KEYS * D;
    dependency_launch();
    dependency_wait();
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u32 group = args.heads / args.kv_heads;
    MmaBlock block;
    block.span = load_span(args, blockIdx.z);
    block.heads = min_u32(8, group & (0u - group));
    u32 queries = MMA_ROWS / block.heads, tiles = ceil_div(block.span.len, queries);
    if (blockIdx.x >= tiles) return;
    block.first_query = (tiles - 1 - blockIdx.x) * queries;
    block.first_head = blockIdx.y * block.heads;
    block.kv_head = block.first_head / group;
    block.stride = (args.heads + 2 * args.kv_heads) * D;
    u32 past = block.span.past;
    block.pages = load_pages(args, block.span.sequence);
    block.slots = slots_from(args.window, first_seen(args.window, past));
    block.end = past + min_u32(block.first_query + queries, block.span.len);
    u32 key = first_seen(args.window, past + block.first_query);

    // The place of the second tile is that of the queries first.
    load_queries<D>(stages + stage, args, block);
    copy_commit();
    load_keys<D>(stages, args, block, key);
    copy_commit();
    copy_wait<1>();
    sync_block();
    MmaState<D> state;
    UNROLL for (u32 k = 0; k < D / 16; ++k)
        load_tiles(state.q[k], swizzled<D>(stages + stage, 16 * warp + lane % 16, 2 * k + lane / 16));
    UNROLL for (u32 i = 0; i < D / 2; ++i) state.o[i / 4][i % 4] = 0.0f;
    state.max[0] = state.max[1] = bits_to_float(NO_KEY);
    state.sum[0] = state.sum[1] = 0.0f;
    sync_block();

    // First and last position of the warp's queries. Heads are a power of two: 16 rows are whole queries, or one's.
    u32 shift = count_bits(block.heads - 1), low = past + block.first_query + ((16 * warp) >> shift);
    u32 high = low + (15 >> shift);
    float factor = args.scale * 1.44269504f;
    for (u32 at = 0; key < block.end; key += MMA_KEYS, at ^= 1) {
        if (key + MMA_KEYS < block.end) load_keys<D>(stages + (at ^ 1) * stage, args, block, key + MMA_KEYS);
        copy_commit();
        copy_wait<1>();
        sync_block();
        u16 *keys = stages + at * stage;
        if (key <= high && key + MMA_KEYS > first_seen(args.window, low)) {
            bool edge = key + MMA_KEYS - 1 > low || key < first_seen(args.window, high);
            float scores[MMA_KEYS / 8][4];
            mma_scores<D>(scores, state, keys, lane);
            u32 position[2] = {low + (g >> shift), low + ((g + 8) >> shift)};
            mma_softmax<D>(state, scores, factor, position, args.window, key, edge, t);
            mma_values<D>(state, scores, keys + MMA_KEYS * D, lane);
        }
        sync_block();
    }
    mma_store<D>(args, block, state, warp, g, t);
}
