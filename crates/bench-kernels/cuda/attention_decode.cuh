// Attention of one new token for each sequence: norm and rotation of q and k, append, keys split over blocks, and the
// sum over the splits by the last block that comes to its end.
//
// A block has up to 8 heads that share a kv head and a part of the keys; a warp takes 16 keys at a time. Both products
// are mma with the heads as one operand; a lane loads its part of keys and values straight into the layout of mma, 16
// bytes at a time, since columns of a key and of a value may be permuted at will. Chain of dependent reads: `past` with
// q, k, v; then keys, values and angles together. In flight for one multiprocessor: 64 KiB with a bf16 cache (this tile
// and the next, of 8 warps, of two blocks with 64 columns or one with 128); 23 KiB would be 4.3 TB/s at 0.7 us.
// Values that are not bf16 (the cache's f32, q and weights in f32 mode) go as three bf16 planes, their products with
// less than 2^-24 of the whole left out. The new token's key and value are not read from the cache, but f32.
#pragma once
#include "attention_rows.cuh"

const u32 DECODE_WARPS = 8;
// Heads of a block.
const u32 DECODE_HEADS = 8;
// As many keys are one block's.
const u32 DECODE_ALONE = 256;
// Fewest keys of a split.
const u32 DECODE_LEAST = 128;
const u32 DECODE_MAX_SPLITS = 64;

// What a block works on.
struct DecodeBlock {
    u32 span, kv_head, first_head, heads, split, active, begin, end;
    // Whether it has the new token, and is the one that appends it.
    bool own, appends;
};

template <u32 D, u32 PLANES> struct DecodeShared {
    u16 q[PLANES][DECODE_HEADS][D + 8];
    float o[DECODE_WARPS][DECODE_HEADS][D + 4];
    float max[DECODE_WARPS][DECODE_HEADS], sum[DECODE_WARPS][DECODE_HEADS];
    // Scores of the new key.
    float new_score[DECODE_HEADS];
    // Row of the span, and what the block works on: not kept in registers while keys are taken.
    u32 start;
    DecodeBlock block;
    u32 last;
};

template <u32 PLANES> DEVICE float exponential(float x) { return PLANES == 1 ? fast_exp(x) : expf(x); }

// Two values as PLANES pairs of bf16.
template <u32 PLANES> DEVICE void split_pair(float a, float b, u32 *planes) {
    UNROLL for (u32 i = 0; i < PLANES; ++i) {
        planes[i] = pack_bf16(a, b);
        a -= low_bf16(planes[i]);
        b -= high_bf16(planes[i]);
    }
}

// What a lane loads of 16 keys: of keys g and g + 8 columns 32 c + 8 t.. of each c, and of the values of keys 2 t,
// 2 t + 1, 2 t + 8, 2 t + 9 the columns that `value_column` says.
template <u32 D, class T> struct KeyTile {
    static const u32 PLANES = sizeof(T) == 2 ? 1 : 3;
    // 32-bit words of 8 elements.
    static const u32 EIGHT = 2 * sizeof(T);
    static const u32 KEY = D / 32 * EIGHT, VALUE = D / 8 * sizeof(T) / 4;
    static const u32 WORDS = 2 * KEY + 4 * VALUE;
    u32 k[2][KEY], v[4][VALUE];
};
template <u32 D> DEVICE u32 value_column(u32 g, u32 pair) {
    return D == 32 ? 4 * g + 2 * pair : pair / 4 * 64 + 8 * g + 2 * (pair % 4);
}

template <u32 N> DEVICE void load_words(u32 *to, const void *from) {
    if constexpr (N == 2) {
        uint2 x = load_once((const uint2 *)from);
        to[0] = x.x, to[1] = x.y;
    } else {
        UNROLL for (u32 i = 0; i < N / 4; ++i) {
            uint4 x = load_once((const uint4 *)from + i);
            to[4 * i] = x.x, to[4 * i + 1] = x.y, to[4 * i + 2] = x.z, to[4 * i + 3] = x.w;
        }
    }
}

// The lanes' parts of the 16 keys from `position`; those from `end` on are the last before it.
template <u32 D, class T>
DEVICE void load_tile(KeyTile<D, T> &tile, const AttentionArgs &args, const Pages &pages, Slots slots, u32 kv_head,
                      u32 position, u32 end, u32 g, u32 t) {
    UNROLL for (u32 n = 0; n < 2; ++n) {
        u32 slot = slot_of(slots, min_u32(position + 8 * n + g, end - 1));
        const T *k = row_of<T>(pages, args.kv_heads, D, kv_head, slot).k + 8 * t;
        UNROLL for (u32 c = 0; c < D / 32; ++c)
            load_words<KeyTile<D, T>::EIGHT>(tile.k[n] + c * KeyTile<D, T>::EIGHT, k + 32 * c);
    }
    const u32 once = D == 32 ? 4 : 8, words = once * sizeof(T) / 4;
    UNROLL for (u32 e = 0; e < 4; ++e) {
        u32 slot = slot_of(slots, min_u32(position + 2 * t + e % 2 + e / 2 * 8, end - 1));
        const T *v = row_of<T>(pages, args.kv_heads, D, kv_head, slot).v;
        UNROLL for (u32 part = 0; part < KeyTile<D, T>::VALUE / words; ++part)
            load_words<words>(tile.v[e] + part * words, v + value_column<D>(g, part * once / 2));
    }
}

// Columns 2 pair and the next of a key.
DEVICE void pair_of(const u16 *, const u32 *words, u32 pair, u32 *planes) { planes[0] = words[pair]; }
DEVICE void pair_of(const float *, const u32 *words, u32 pair, u32 *planes) {
    split_pair<3>(bits_to_float(words[2 * pair]), bits_to_float(words[2 * pair + 1]), planes);
}
// Column 2 pair (+ 1 with `high`) of two values.
DEVICE void column_of(const u16 *, const u32 *one, const u32 *other, u32 pair, bool high, u32 *planes) {
    planes[0] = permute_bytes(one[pair], other[pair], high ? 0x7632u : 0x5410u);
}
DEVICE void column_of(const float *, const u32 *one, const u32 *other, u32 pair, bool high, u32 *planes) {
    split_pair<3>(bits_to_float(one[2 * pair + high]), bits_to_float(other[2 * pair + high]), planes);
}

// The heads as operand of mma: in registers, but read from shared memory each time where that leaves too few of them.
template <u32 D, u32 PLANES> struct Queries {
    static const bool KEPT = D / 32 * PLANES < 12;
    const u16 *row;
    uint4 kept[KEPT ? PLANES : 1][KEPT ? D / 32 : 1];
};
template <u32 D, u32 PLANES> DEVICE uint4 read_query(const u16 *row, u32 plane, u32 c) {
    return *(const uint4 *)(row + plane * (DECODE_HEADS * (D + 8)) + 32 * c);
}
template <u32 D, u32 PLANES> DEVICE uint4 query_of(const Queries<D, PLANES> &queries, u32 plane, u32 c) {
    if constexpr (Queries<D, PLANES>::KEPT) return queries.kept[plane][c];
    else return read_query<D, PLANES>(queries.row, plane, c);
}

// A warp's softmax so far: of head g in the four lanes that have it, `sum` of the lane's own keys only; o holds heads
// 2 t and 2 t + 1, columns value_column(g, w) (first two) and the next.
template <u32 D> struct WarpState {
    float max, sum, o[D / 16][4];
};

// Scores of 16 keys: of head g, keys 8 n + 2 t and the next.
template <u32 D, class T, u32 PLANES>
DEVICE void tile_scores(float scores[2][4], const KeyTile<D, T> &tile, const Queries<D, PLANES> &queries) {
    const u32 KEYS = KeyTile<D, T>::PLANES, EIGHT = KeyTile<D, T>::EIGHT;
    UNROLL for (u32 i = 0; i < 8; ++i) scores[i / 4][i % 4] = 0.0f;
    UNROLL for (u32 c = 0; c < D / 32; ++c)
        UNROLL for (u32 half = 0; half < 2; ++half)
            UNROLL for (u32 n = 0; n < 2; ++n) {
                u32 first[KEYS], second[KEYS];
                pair_of((const T *)0, tile.k[n] + c * EIGHT, 2 * half, first);
                pair_of((const T *)0, tile.k[n] + c * EIGHT, 2 * half + 1, second);
                UNROLL for (u32 i = 0; i < PLANES; ++i)
                    UNROLL for (u32 j = 0; j < KEYS; ++j)
                        if (i + j < 3) {
                            uint4 q = query_of<D, PLANES>(queries, i, c);
                            u32 a[4] = {half ? q.z : q.x, 0, half ? q.w : q.y, 0};
                            u32 b[2] = {first[j], second[j]};
                            mma_bf16(scores[n], a, b);
                        }
            }
}

// Takes 16 keys, of which `count` are some, into the warp's softmax.
template <u32 D, class T, u32 PLANES>
DEVICE void take_tile(WarpState<D> &state, const KeyTile<D, T> &tile, const Queries<D, PLANES> &queries, float scale,
                      u32 count, u32 t) {
    const u32 KEYS = KeyTile<D, T>::PLANES;
    float scores[2][4];
    tile_scores<D, T, PLANES>(scores, tile, queries);
    float max = state.max;
    UNROLL for (u32 n = 0; n < 2; ++n)
        UNROLL for (u32 e = 0; e < 2; ++e) {
            scores[n][e] = 8 * n + 2 * t + e < count ? scores[n][e] * scale : bits_to_float(NO_KEY);
            max = fmaxf(max, scores[n][e]);
        }
    max = fmaxf(max, shuffle_xor(max, 1));
    max = fmaxf(max, shuffle_xor(max, 2));
    float shrink = exponential<PLANES>(state.max - max);
    state.max = max;
    state.sum *= shrink;
    u32 p[2][PLANES];
    UNROLL for (u32 n = 0; n < 2; ++n) {
        float a = exponential<PLANES>(scores[n][0] - max), b = exponential<PLANES>(scores[n][1] - max);
        state.sum += a + b;
        split_pair<PLANES>(a, b, p[n]);
    }
    float shrinks[2] = {shuffle(shrink, 8 * t), shuffle(shrink, 8 * t + 4)};
    UNROLL for (u32 w = 0; w < D / 16; ++w) {
        UNROLL for (u32 i = 0; i < 4; ++i) state.o[w][i] *= shrinks[i % 2];
        u32 a[4][KEYS];
        UNROLL for (u32 i = 0; i < 4; ++i)
            column_of((const T *)0, tile.v[i / 2 * 2], tile.v[i / 2 * 2 + 1], w, i % 2 != 0, a[i]);
        UNROLL for (u32 i = 0; i < KEYS; ++i)
            UNROLL for (u32 j = 0; j < PLANES; ++j)
                if (i + j < 3) {
                    u32 values[4] = {a[0][i], a[1][i], a[2][i], a[3][i]}, weights[2] = {p[0][j], p[1][j]};
                    mma_bf16(state.o[w], values, weights);
                }
    }
}

DEVICE DecodeBlock decode_block(const AttentionArgs &args) {
    u32 group = args.heads / args.kv_heads, parts = ceil_div(group, DECODE_HEADS);
    u32 kv_head = blockIdx.y / parts, first = blockIdx.y % parts * DECODE_HEADS;
    DecodeBlock block;
    block.span = blockIdx.z;
    block.kv_head = kv_head;
    block.first_head = kv_head * group + first;
    block.heads = min_u32(DECODE_HEADS, group - first);
    block.split = blockIdx.x;
    block.own = block.split == 0;
    block.appends = block.own && first == 0;
    return block;
}

// The block's keys among those from `oldest` to `past`; false where it has none.
DEVICE bool cut_keys(DecodeBlock &block, u32 splits, u32 oldest, u32 past) {
    u32 keys = past - oldest, part = keys;
    if (keys > DECODE_ALONE) part = max_u32(DECODE_LEAST, ceil_div(ceil_div(keys, splits), 16) * 16);
    block.active = keys ? ceil_div(keys, part) : 1;
    block.begin = oldest + block.split * part;
    block.end = min_u32(block.begin + part, past);
    return block.split < block.active;
}

// The values of a head from parts with their maxima, sums and weights; `lane_max` and `lane_sum` are one part's.
struct Merged {
    float max, total, weight;
};
template <u32 PLANES> DEVICE Merged merge_lanes(float lane_max, float lane_sum) {
    Merged merged;
    merged.max = warp_max(lane_max);
    merged.weight = exponential<PLANES>(lane_max - merged.max);
    merged.total = warp_sum(merged.weight * lane_sum);
    return merged;
}

// Partial results of a split: o [heads][D], then maxima and sums [heads].
template <u32 D> DEVICE float *partial_of(const AttentionArgs &args, u32 group, u32 split) {
    return (float *)args.partials + ((u64)group * args.splits + split) * (DECODE_HEADS * (D + 2));
}

// Warp `head` sums that head over the splits.
template <u32 D, u32 PLANES>
DEVICE void merge_splits(const AttentionArgs &args, const DecodeBlock &block, u32 group, float *out, u32 head, u32 lane) {
    const u32 PAIRS = HeadRow<D>::PAIRS;
    float max[2], sum[2], largest = bits_to_float(NO_KEY);
    UNROLL for (u32 i = 0; i < 2; ++i) {
        u32 split = lane + 32 * i;
        bool has = split < block.active;
        const float *part = partial_of<D>(args, group, has ? split : 0) + DECODE_HEADS * D + head;
        float part_max = load_shared_by_blocks(part), part_sum = load_shared_by_blocks(part + DECODE_HEADS);
        max[i] = has ? part_max : bits_to_float(NO_KEY);
        sum[i] = has ? part_sum : 0.0f;
        largest = fmaxf(largest, max[i]);
    }
    largest = warp_max(largest);
    float weights[2], total = 0.0f;
    UNROLL for (u32 i = 0; i < 2; ++i) {
        weights[i] = exponential<PLANES>(max[i] - largest);
        total += weights[i] * sum[i];
    }
    total = warp_sum(total);
    HeadRow<D> row;
    UNROLL for (u32 i = 0; i < PAIRS; ++i) row.first[i] = row.second[i] = 0.0f;
    for (u32 first = 0; first < block.active; first += 8) {
        // Eight splits' reads are under way together.
        float a[8][PAIRS], b[8][PAIRS];
        UNROLL for (u32 s = 0; s < 8; ++s) {
            const float *part = partial_of<D>(args, group, min_u32(first + s, block.active - 1)) + head * D;
            UNROLL for (u32 i = 0; i < PAIRS; ++i) {
                bool has = has_pair<D>(lane, i);
                a[s][i] = has ? load_shared_by_blocks(part + lane + 32 * i) : 0.0f;
                b[s][i] = has ? load_shared_by_blocks(part + lane + 32 * i + D / 2) : 0.0f;
            }
        }
        UNROLL for (u32 s = 0; s < 8; ++s) {
            float low = shuffle(weights[0], first + s), high = shuffle(weights[1], first + s);
            float weight = first + s >= block.active ? 0.0f : first + s < 32 ? low : high;
            UNROLL for (u32 i = 0; i < PAIRS; ++i) {
                row.first[i] += weight * a[s][i];
                row.second[i] += weight * b[s][i];
            }
        }
    }
    UNROLL for (u32 i = 0; i < PAIRS; ++i) {
        row.first[i] = settle(row.first[i] / total, args.flags);
        row.second[i] = settle(row.second[i] / total, args.flags);
    }
    store_head<D>(row, out, lane);
}

// The new token's value. It is read again where it is needed, as what is in DecodeShared is: registers are short.
template <u32 D> DEVICE HeadRow<D> new_value(const AttentionArgs &args, u32 start, u32 kv_head, u32 lane) {
    const float *row = (const float *)args.qkv + (u64)start * args.row_stride;
    return load_head<D>(row + (u64)(args.heads + args.kv_heads + kv_head) * D, lane);
}

// Warp `head` merges the warps' parts of that head, the new token and the sink, and writes the result, or with more
// splits this one's part.
template <u32 D, u32 PLANES>
DEVICE void merge_warps(const AttentionArgs &args, const DecodeBlock &block, const DecodeShared<D, PLANES> &shared,
                        u32 group, u32 start, float *out, u32 head, u32 lane) {
    const u32 PAIRS = HeadRow<D>::PAIRS;
    HeadRow<D> v;
    if (block.own) v = new_value<D>(args, start, block.kv_head, lane);
    float max = bits_to_float(NO_KEY), sum = 0.0f;
    if (lane < DECODE_WARPS) {
        max = shared.max[lane][head];
        sum = shared.sum[lane][head];
    } else if (block.own && lane == DECODE_WARPS) {
        max = shared.new_score[head];
        sum = 1.0f;
    } else if (block.own && lane == DECODE_WARPS + 1 && args.sinks) {
        max = ((const float *)args.sinks)[block.first_head + head];
        sum = 1.0f;
    }
    Merged merged = merge_lanes<PLANES>(max, sum);
    float new_weight = shuffle(merged.weight, DECODE_WARPS);
    HeadRow<D> row;
    UNROLL for (u32 i = 0; i < PAIRS; ++i) {
        row.first[i] = block.own ? new_weight * v.first[i] : 0.0f;
        row.second[i] = block.own ? new_weight * v.second[i] : 0.0f;
    }
    UNROLL for (u32 warp = 0; warp < DECODE_WARPS; ++warp) {
        float weight = shuffle(merged.weight, warp);
        UNROLL for (u32 i = 0; i < PAIRS; ++i)
            if (has_pair<D>(lane, i)) {
                row.first[i] += weight * shared.o[warp][head][lane + 32 * i];
                row.second[i] += weight * shared.o[warp][head][lane + 32 * i + D / 2];
            }
    }
    if (block.active > 1) {
        float *part = partial_of<D>(args, group, block.split);
        store_head<D>(row, part + head * D, lane);
        if (lane == 0) {
            part[DECODE_HEADS * D + head] = merged.max;
            part[DECODE_HEADS * D + DECODE_HEADS + head] = merged.total;
        }
        return;
    }
    UNROLL for (u32 i = 0; i < PAIRS; ++i) {
        row.first[i] = settle(row.first[i] / merged.total, args.flags);
        row.second[i] = settle(row.second[i] / merged.total, args.flags);
    }
    store_head<D>(row, out, lane);
}

template <u32 D, class T, u32 PLANES> DEVICE void decode(const AttentionArgs &args) {
    DYNAMIC_SHARED(memory);
    auto &shared = *(DecodeShared<D, PLANES> *)memory;
    static_assert(sizeof(shared) <= PLANES * 8 * (D + 8) * 2 + 8 * 8 * (D + 4) * 4 + 2 * 8 * 8 * 4 + 8 * 4 + 48,
                  "what the launch asks for");
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    DecodeBlock block = decode_block(args);
    u32 head = min_u32(warp, block.heads - 1);
    // Constants of the model, and what only the host writes: the place of the row, the sequence, its pages.
    u32 start = span_word(args, block.span, 0);
    Pages pages = load_pages(args, span_word(args, block.span, 3));
    HeadRow<D> q_norm, k_norm;
    if (args.q_norm) q_norm = load_head<D>((const float *)args.q_norm, lane);
    if (args.k_norm) k_norm = load_head<D>((const float *)args.k_norm, lane);
    dependency_launch();
    dependency_wait();
    u32 past = span_word(args, block.span, 2);
    const float *from = (const float *)args.qkv + (u64)start * args.row_stride;
    HeadRow<D> q = load_head<D>(from + (u64)(block.first_head + head) * D, lane), k, v;
    if (block.own) {
        k = load_head<D>(from + (u64)(args.heads + block.kv_head) * D, lane);
        v = new_value<D>(args, start, block.kv_head, lane);
    }
    u32 oldest = first_seen(args.window, past);
    Slots slots = slots_from(args.window, oldest);
    if (!cut_keys(block, args.splits, oldest, past)) return;
    KeyTile<D, T> tile, next;
    u32 position = block.begin + 16 * warp;
    if (position < block.end) load_tile<D, T>(tile, args, pages, slots, block.kv_head, position, block.end, g, t);

    Angles<D> angles = load_angles<D>(args, past, lane);
    if (args.q_norm) normalize<D>(q, q_norm, args.eps, args.flags);
    rotate<D>(q, angles, args.flags);
    if (block.own) {
        if (args.k_norm) normalize<D>(k, k_norm, args.eps, args.flags);
        rotate<D>(k, angles, args.flags);
        float score = 0.0f;
        UNROLL for (u32 i = 0; i < HeadRow<D>::PAIRS; ++i)
            score += q.first[i] * k.first[i] + q.second[i] * k.second[i];
        score = warp_sum(score) * args.scale;
        if (lane == 0) shared.new_score[warp] = score;
        if (block.appends && warp < 2) {
            Row<T> to = row_of<T>(pages, args.kv_heads, D, block.kv_head, slot_of(slots, past));
            if (warp == 0) store_head<D>(k, to.k, lane);
            else store_head<D>(v, to.v, lane);
        }
    }
    UNROLL for (u32 plane = 0; plane < PLANES; ++plane) {
        store_head<D>(q, shared.q[plane][warp], lane);
        UNROLL for (u32 i = 0; i < HeadRow<D>::PAIRS; ++i) {
            q.first[i] -= round_bf16(q.first[i]);
            q.second[i] -= round_bf16(q.second[i]);
        }
    }
    if (threadIdx.x == 0) {
        shared.start = start;
        shared.block = block;
    }
    sync_block();
    Queries<D, PLANES> queries;
    queries.row = shared.q[0][g] + 8 * t;
    if constexpr (Queries<D, PLANES>::KEPT) {
        UNROLL for (u32 plane = 0; plane < PLANES; ++plane)
            UNROLL for (u32 c = 0; c < D / 32; ++c)
                queries.kept[plane][c] = read_query<D, PLANES>(queries.row, plane, c);
    }
    // Whether there are registers for the next tile too.
    const bool TWO = KeyTile<D, T>::WORDS <= (PLANES == 1 ? 64 : 32);

    WarpState<D> state;
    state.max = bits_to_float(NO_KEY);
    state.sum = 0.0f;
    UNROLL for (u32 i = 0; i < D / 4; ++i) state.o[i / 4][i % 4] = 0.0f;
    while (position < block.end) {
        u32 after = position + 16 * DECODE_WARPS;
        if (TWO && after < block.end)
            load_tile<D, T>(next, args, pages, slots, block.kv_head, after, block.end, g, t);
        take_tile<D, T, PLANES>(state, tile, queries, args.scale, block.end - position, t);
        if (TWO) tile = next;
        else if (after < block.end)
            load_tile<D, T>(tile, args, pages, slots, block.kv_head, after, block.end, g, t);
        position = after;
    }
    state.sum += shuffle_xor(state.sum, 1);
    state.sum += shuffle_xor(state.sum, 2);
    if (t == 0) {
        shared.max[warp][g] = state.max;
        shared.sum[warp][g] = state.sum;
    }
    UNROLL for (u32 w = 0; w < D / 16; ++w)
        UNROLL for (u32 i = 0; i < 2; ++i)
            *(float2 *)(shared.o[warp][2 * t + i] + value_column<D>(g, w)) =
                make_float2(state.o[w][i], state.o[w][i + 2]);
    sync_block();

    start = shared.start;
    block = shared.block;
    head = min_u32(warp, block.heads - 1);
    u32 group = block.span * gridDim.y + blockIdx.y;
    float *out = (float *)args.out + ((u64)start * args.heads + block.first_head + head) * D;
    if (warp < block.heads)
        merge_warps<D, PLANES>(args, block, shared, group, start, out, head, lane);
    if (block.active == 1) return;
    fence();
    sync_block();
    u32 *counter = (u32 *)args.counters + group;
    if (threadIdx.x == 0) shared.last = atomic_add(counter, 1) + 1 == block.active;
    sync_block();
    if (!shared.last) return;
    fence();
    if (threadIdx.x == 0) *counter = 0;
    if (warp < block.heads) merge_splits<D, PLANES>(args, block, group, out, head, lane);
}
