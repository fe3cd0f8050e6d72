// Products of many rows of activations by tensor cores: out[t, n] = sum over k of x[t, k] W[n, k].
//
// A block takes a tile of the output. Pieces of activations and of weights, as they are stored, come to shared memory
// by asynchronous copies some stages ahead; weights are expanded to bf16 in registers. Which column meets which in a
// product of tensor cores is free as long as both sides agree: of each 32 columns lane t takes 8t to 8t + 7, so that
// activations and bf16 weights are read 16 bytes at a time, and no lane needs what another one has.
//
// Limits. Many rows (128 x 128, two blocks on a multiprocessor): tensor cores; 6 reads of 16 bytes and, for MXFP4, 84
// operations of expansion for 32 products of a warp. Few rows: memory; two stages and more under way in each block,
// several blocks on a multiprocessor. Steps of 2 to 64 tokens of gpt-oss-20b have 3.9 MB and more of weights under way
// on 132 multiprocessors in every launch (4.3 TB/s for 0.7 us are 3.0 MB) without K split between blocks; but for the
// router, whose 184 KB are 1 to 4 blocks, and 2.3 MB in the second product of up to 16 tokens that all have the same
// experts.
//
// One plane of many rows on Hopper: tiles_warpgroup.cuh.
#include "device.cuh"

// Flags beyond BF16 = 1 and CLAMPED = 4.
static const u32 ROUND = 1, CLAMPED = 4, PAIR = 8, GATHER = 16, SCATTER = 32;

struct TilesArgs {
    u64 x;          // bf16 [planes][x_rows][cols]
    u64 weights;    // [experts][rows][cols]
    u64 scales;     // for each 32 columns: E8M0 of MXFP4, f16 of Q8
    u64 up_weights; // 0, or a second matrix: then row 2j is row j of `weights` and 2j + 1 is row j of this
    u64 up_scales;
    u64 bias;       // f32 [experts][all rows], or 0
    u64 out;        // f32 [.., columns of the result], or 0
    u64 out_planes; // bf16 [planes][out_rows][columns of the result], or 0
    u64 residual;   // f32 [.., columns of the result], or 0
    u64 order;      // u32: slot of each sorted row
    u64 offsets;    // 0, or u32 [experts + 1]: the sorted rows of each expert
    u32 tokens, x_rows, rows, cols, experts, slots_per_token, out_rows;
    float alpha, limit;
    u32 flags;
};

#ifdef OSSBENCH_EMULATE
#define UNROLL_NOT
#else
#define UNROLL_NOT _Pragma("unroll 1")
#endif

enum Format { FORMAT_BF16, FORMAT_MXFP4, FORMAT_Q8 };

// WM x WN x WK warps; those of one k add up in the end. BK columns in a stage.
template <Format F, u32 P, u32 M, u32 N, u32 K, u32 WM_, u32 WN_, u32 WK_, u32 S> struct Shape {
    static const Format FORMAT = F;
    static const u32 PLANES = P, BM = M, BN = N, BK = K, WM = WM_, WN = WN_, WK = WK_, STAGES = S;
    static const u32 THREADS = 32 * WM * WN * WK;
    static const u32 BLOCKS = BK / 32;
    // Pieces of 16 bytes in a row, and the columns in each.
    static const u32 X_PIECES = BK / 8;
    static const u32 W_COLUMNS = F == FORMAT_BF16 ? 8 : F == FORMAT_MXFP4 ? 32 : 16;
    static const u32 W_PIECES = BK / W_COLUMNS;
    static const u32 X_BYTES = PLANES * BM * BK * 2;
    static const u32 W_BYTES = BN * W_PIECES * 16;
    static const u32 SCALES = F == FORMAT_BF16 ? 0 : BN * BLOCKS;
    static const u32 STAGE = X_BYTES + W_BYTES + SCALES * 4;
    // Copies of each thread in a stage.
    static const u32 X_COPIES = PLANES * BM * X_PIECES / THREADS;
    static const u32 W_COPIES = (BN * W_PIECES + THREADS - 1) / THREADS;
    static const u32 SCALE_COPIES = (SCALES + THREADS - 1) / THREADS;
    static const u32 MT = BM / 16 / WM, NT = BN / 8 / WN;
    static const u32 PITCH = BN + 8;
    static const bool SWIZZLED = false;
    static_assert(BK >= 64 && BLOCKS % WK == 0 && BM % (16 * WM) == 0 && BN % (8 * WN) == 0, "whole fragments");
    static_assert(PLANES * BM * X_PIECES % THREADS == 0 && THREADS % X_PIECES == 0, "equal shares of copies");
    static_assert(THREADS % (2 * W_PIECES) == 0 && THREADS % (2 * BLOCKS) == 0, "one matrix for a thread");
    static_assert(WK * BM * PITCH * 4 <= STAGES * STAGE, "the result fits where the stages were");
};

// Where a block's rows are: `count` rows of the sorted order, or of x, from `first`.
struct Part {
    u32 expert, first, count;
};

// The tile of `height` sorted rows with number `tile`, none of which has rows of two experts; false behind the last.
DEVICE bool find_part(const u32 *offsets, u32 experts, u32 tile, u32 height, Part &part) {
    u32 lane = threadIdx.x % 32, before = 0;
    for (u32 base = 0; base < experts; base += 32) {
        u32 start = offsets[min_u32(base + lane, experts)], end = offsets[min_u32(base + lane + 1, experts)];
        u32 tiles = ceil_div(end - start, height), sum = tiles;
        for (u32 by = 1; by < 32; by *= 2) {
            u32 other = shuffle_up(sum, by);
            if (lane >= by) sum += other;
        }
        u32 hits = ballot(before + sum > tile);
        if (hits) {
            u32 owner = count_bits((hits & (0u - hits)) - 1);
            u32 skipped = before + shuffle(sum - tiles, owner);
            start = shuffle(start, owner);
            end = shuffle(end, owner);
            part.expert = base + owner;
            part.first = start + (tile - skipped) * height;
            part.count = min_u32(height, end - part.first);
            return true;
        }
        before += shuffle(sum, 31);
    }
    return false;
}

// Where the codes of 32 columns, number `block` of a stage, of a row are: rows together, so that reads of a fragment's
// eight meet no bank twice, in an order by which writes of all blocks of a row do not either.
template <class S> DEVICE u32 code_place(u32 row, u32 block) {
    const u32 rows = S::FORMAT == FORMAT_MXFP4 ? 8 : 4, step = S::BLOCKS < rows ? rows / S::BLOCKS : 1;
    return block * S::BN + (row ^ (block * step & (rows - 1)));
}

// Where piece `piece` of 16 bytes of a row stands: so that reads of fragments meet few banks twice, or as products of
// warpgroups take rows of 128 bytes.
template <class S> DEVICE u32 row_piece(u32 row, u32 piece) {
    return piece ^ (S::SWIZZLED ? row & 7 : (row & 1) << 2);
}

// Halves of a block of 32 codes of Q8 are exchanged in every other four rows where lanes read two bytes at a time.
template <class S> DEVICE u32 code_half(u32 row, u32 half) { return S::SWIZZLED ? half ^ (row >> 2 & 1) : half; }

// What one thread copies: places in device memory of its pieces at column 0.
template <class S> struct Copies {
    const u8 *x, *weights;
    u64 scales;
    u32 x_from[S::X_COPIES];
    // Of the first copy, and from one to the next.
    u32 w_from, w_step, scale_from, scale_step;
    u32 x_valid, w_valid, scale_valid;

    METHOD void find_weights(const TilesArgs &a, u32 expert, u32 first_row) {
        const u32 tid = threadIdx.x;
        u64 bytes = (u64)a.rows * a.cols * 16 / S::W_COLUMNS;
        u32 row_bytes = a.cols * 16 / S::W_COLUMNS;
        u32 all = a.up_weights ? 2 * a.rows : a.rows;
        u32 row = tid / S::W_PIECES, piece = tid % S::W_PIECES;
        // A thread's rows are all even or all odd: one matrix.
        bool up = a.up_weights && (row & 1);
        weights = (const u8 *)((up ? a.up_weights : a.weights) + expert * bytes);
        u32 halves = a.up_weights ? 2 : 1, step = S::THREADS / S::W_PIECES;
        w_from = (first_row + row) / halves * row_bytes + piece * 16;
        w_step = step / halves * row_bytes;
        w_valid = 0;
        UNROLL
        for (u32 i = 0; i < S::W_COPIES; ++i)
            if (first_row + row + i * step < all && row + i * step < S::BN) w_valid |= 1u << i;
        if constexpr (S::SCALES > 0) {
            const u32 size = S::FORMAT == FORMAT_Q8 ? 2 : 1;
            u32 row_scales = a.cols / 32;
            row = tid / S::BLOCKS;
            up = a.up_weights && (row & 1);
            scales = (up ? a.up_scales : a.scales) + (u64)expert * a.rows * row_scales * size;
            step = S::THREADS / S::BLOCKS;
            scale_from = ((first_row + row) / halves * row_scales + tid % S::BLOCKS) * size;
            scale_step = step / halves * row_scales * size;
            scale_valid = 0;
            UNROLL
            for (u32 i = 0; i < S::SCALE_COPIES; ++i)
                if (first_row + row + i * step < all && row + i * step < S::BN) scale_valid |= 1u << i;
        }
    }

    METHOD void find_x(const TilesArgs &a, const Part &part) {
        const u32 tid = threadIdx.x;
        const u32 *order = (const u32 *)a.order;
        x = (const u8 *)a.x;
        x_valid = 0;
        UNROLL
        for (u32 i = 0; i < S::X_COPIES; ++i) {
            u32 row = tid / S::X_PIECES + i * (S::THREADS / S::X_PIECES), plane = row / S::BM;
            row %= S::BM;
            if (row >= part.count) {
                x_from[i] = 0;
                continue;
            }
            x_valid |= 1u << i;
            u32 from = part.first + row;
            if (a.flags & GATHER) from = order[from] / a.slots_per_token;
            x_from[i] = (plane * a.x_rows + from) * a.cols + tid % S::X_PIECES * 8;
        }
    }

    // The stage with columns from k on, to `to`. What lies outside the matrices is left as it is: no result that is
    // written depends on it.
    METHOD void weights_at(u8 *to, u32 k, u32 cols) const {
        const u32 tid = threadIdx.x;
        to += S::X_BYTES;
        const u32 piece = tid % S::W_PIECES;
        if (k + piece * S::W_COLUMNS < cols) {
            UNROLL
            for (u32 i = 0; i < S::W_COPIES; ++i) {
                u32 row = tid / S::W_PIECES + i * (S::THREADS / S::W_PIECES), at;
                if (S::FORMAT == FORMAT_BF16) at = row * S::W_PIECES + row_piece<S>(row, piece);
                else if (S::FORMAT == FORMAT_MXFP4) at = code_place<S>(row, piece);
                else at = code_place<S>(row, piece / 2) * 2 + code_half<S>(row, piece % 2);
                const u8 *from = weights + (w_from + i * w_step) + (u64)k * 16 / S::W_COLUMNS;
                if (w_valid >> i & 1) copy_async16(to + at * 16, from, true);
            }
        }
        if constexpr (S::SCALES > 0) {
            if (k + tid % S::BLOCKS * 32 >= cols) return;
            const u32 size = S::FORMAT == FORMAT_Q8 ? 2 : 1;
            u32 *words = (u32 *)(to + S::W_BYTES);
            UNROLL
            for (u32 i = 0; i < S::SCALE_COPIES; ++i) {
                u32 row = tid / S::BLOCKS + i * (S::THREADS / S::BLOCKS);
                // The aligned word in which the scale lies.
                u64 from = scales + (scale_from + i * scale_step) + k / 32 * size;
                if (scale_valid >> i & 1)
                    copy_async4(words + row * S::BLOCKS + tid % S::BLOCKS, (const void *)(from & ~(u64)3));
            }
        }
    }

    METHOD void x_at(u8 *to, u32 k, u32 cols) const {
        const u32 tid = threadIdx.x;
        const u32 piece = tid % S::X_PIECES;
        if (k + piece * 8 >= cols) return;
        UNROLL
        for (u32 i = 0; i < S::X_COPIES; ++i) {
            u32 row = tid / S::X_PIECES + i * (S::THREADS / S::X_PIECES);
            u32 at = row * S::X_PIECES + row_piece<S>(row, piece);
            if (x_valid >> i & 1) copy_async16(to + at * 16, x + ((u64)x_from[i] + k) * 2, true);
        }
    }
};

// Eight codes of E2M1 times 2^(scale - 127) to pairs of bf16. A code's three bits at 8 to 6 are its value times 2^-126.
DEVICE void expand_mxfp4(u32 to[4], u32 codes, u32 scale) {
    u32 factor = ((scale + 126) << 7) * 0x10001u, shifted = codes << 4;
    UNROLL
    for (u32 j = 0; j < 4; ++j) {
        // Even codes at 15 to 12, odd ones at 31 to 28.
        u32 pair = permute_bytes(shifted, codes, j << 4 | (4 + j) << 12);
        to[j] = mul_bf16x2((pair & 0x80008000u) | (pair >> 6 & 0x01c001c0u), factor);
    }
}

// Eight signed bytes to pairs of bf16: 128 + the low seven bits, less 128, or 256 for a negative one.
DEVICE void expand_q8(u32 to[4], uint2 codes) {
    UNROLL
    for (u32 j = 0; j < 4; ++j) {
        u32 pair = permute_bytes(j < 2 ? codes.x : codes.y, 0, j % 2 ? 0x4342 : 0x4140);
        to[j] = add_bf16x2((pair & 0x007f007fu) | 0x43004300u, (pair & 0x00800080u) | 0xc300c300u);
    }
}

// A warp's part of a tile.
template <class S> struct Fragment {
    float sums[S::MT][S::NT][4];
    u32 wm, wn, wk;
    // Fragments of 16 rows that have any of the part's rows; those of the warps take turns.
    u32 used;
    // Of a scale's place in its word, at column 0: of row g, or (Q8) of rows 2t and 2t + 1.
    u32 phase[2];

    METHOD void start(const TilesArgs &a, u32 expert, u32 first_row, u32 rows) {
        u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        wn = warp % S::WN;
        wm = warp / S::WN % S::WM;
        wk = warp / S::WN / S::WM;
        u32 tiles = ceil_div(rows, 16);
        used = tiles > wm ? (tiles - wm + S::WM - 1) / S::WM : 0;
        UNROLL
        for (u32 f = 0; f < S::MT; ++f)
            UNROLL
            for (u32 j = 0; j < S::NT; ++j)
                UNROLL
                for (u32 i = 0; i < 4; ++i) sums[f][j][i] = 0.0f;
        if constexpr (S::SCALES > 0) {
            // Eight rows, or four of each of two matrices, are whole words: the phase is the same in all fragments.
            const u32 size = S::FORMAT == FORMAT_Q8 ? 2 : 1;
            u32 row_scales = a.cols / 32;
            UNROLL
            for (u32 i = 0; i < 2; ++i) {
                u32 n = first_row + (S::FORMAT == FORMAT_Q8 ? lane % 4 * 2 + i : lane / 4);
                u64 base = a.up_weights && (n & 1) ? a.up_scales : a.scales;
                u32 place = (a.up_weights ? n / 2 : n) * row_scales;
                phase[i] = (u32)(base + ((u64)expert * a.rows * row_scales + place) * size) & 3;
            }
        }
    }

    // Four pairs of bf16 for each of the warp's fragments of eight rows of weights.
    METHOD void weights(u32 to[S::NT][4], const u8 *stage, u32 block, u32 k) const {
        const u8 *codes = stage + S::X_BYTES;
        const u32 *words = (const u32 *)(codes + S::W_BYTES);
        u32 lane = threadIdx.x % 32, t = lane % 4;
        UNROLL
        for (u32 j = 0; j < S::NT; ++j) {
            u32 row = (wn * S::NT + j) * 8 + lane / 4;
            if (S::FORMAT == FORMAT_BF16) {
                u32 piece = (block * 4 + t) ^ (row & 1) << 2;
                uint4 v = *(const uint4 *)(codes + (row * S::W_PIECES + piece) * 16);
                to[j][0] = v.x, to[j][1] = v.y, to[j][2] = v.z, to[j][3] = v.w;
            } else if (S::FORMAT == FORMAT_MXFP4) {
                u32 word = words[row * S::BLOCKS + block], at = phase[0] + k / 32 + block;
                u32 scale = word >> (at & 3) * 8 & 0xff;
                expand_mxfp4(to[j], *(const u32 *)(codes + code_place<S>(row, block) * 16 + t * 4), scale);
            } else {
                expand_q8(to[j], *(const uint2 *)(codes + code_place<S>(row, block) * 32 + t * 8));
            }
        }
    }

    template <bool FULL> METHOD void multiply(const u8 *stage, u32 k, u32 cols) {
        u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        // Not written out: registers are short in the largest tiles.
        UNROLL_NOT
        for (u32 step = 0; step < S::BLOCKS / S::WK; ++step) {
            u32 block = step * S::WK + wk;
            if (k + block * 32 >= cols) break;
            u32 w[S::NT][4];
            weights(w, stage, block, k);
            float scales[S::NT][2];
            if constexpr (S::FORMAT == FORMAT_Q8) q8_scales(scales, stage, block, k);
            u32 piece = (block * 4 + t) ^ (g & 1) << 2;
            UNROLL
            for (u32 f = 0; f < S::MT; ++f) {
                if (!FULL && f >= used) break;
                u32 row = (f * S::WM + wm) * 16 + g;
                if constexpr (S::FORMAT == FORMAT_Q8) q8_fragment(sums[f], w, scales, stage, row, piece);
                else fragment(sums[f], w, stage, row, piece);
            }
        }
    }

    // 16 rows times 32 columns.
    METHOD void fragment(float to[S::NT][4], const u32 w[S::NT][4], const u8 *stage, u32 row, u32 piece) const {
        UNROLL
        for (u32 p = S::PLANES; p-- > 0;) {
            u32 x[8];
            activations(x, stage, p, row, piece);
            UNROLL
            for (u32 j = 0; j < S::NT; ++j) mma_bf16(to[j], x, w[j]);
            UNROLL
            for (u32 j = 0; j < S::NT; ++j) mma_bf16(to[j], x + 4, w[j] + 2);
        }
    }

    // Rows `row` and `row` + 8 of a plane, as two products take them.
    METHOD void activations(u32 to[8], const u8 *stage, u32 plane, u32 row, u32 piece) const {
        u32 at = (plane * S::BM + row) * S::X_PIECES + piece;
        uint4 u = *(const uint4 *)(stage + at * 16), v = *(const uint4 *)(stage + (at + 8 * S::X_PIECES) * 16);
        to[0] = u.x, to[1] = v.x, to[2] = u.y, to[3] = v.y;
        to[4] = u.z, to[5] = v.z, to[6] = u.w, to[7] = v.w;
    }

    // Scales of a block's codes, of the two rows of weights in each fragment whose sums this lane has.
    METHOD void q8_scales(float to[S::NT][2], const u8 *stage, u32 block, u32 k) const {
        const u32 *words = (const u32 *)(stage + S::X_BYTES + S::W_BYTES) + block;
        UNROLL
        for (u32 j = 0; j < S::NT; ++j) {
            const u32 *pair = words + ((wn * S::NT + j) * 8 + threadIdx.x % 4 * 2) * S::BLOCKS;
            u32 even = pair[0] >> ((phase[0] + (k / 32 + block) * 2) & 2) * 8;
            u32 odd = pair[S::BLOCKS] >> ((phase[1] + (k / 32 + block) * 2) & 2) * 8;
            to[j][0] = half_to_float((u16)even), to[j][1] = half_to_float((u16)odd);
        }
    }

    // 16 rows times 32 columns of codes, then times their scales.
    METHOD void q8_fragment(float to[S::NT][4], const u32 w[S::NT][4], const float scales[S::NT][2], const u8 *stage,
                            u32 row, u32 piece) const {
        u32 x[S::PLANES][8];
        UNROLL
        for (u32 p = 0; p < S::PLANES; ++p) activations(x[p], stage, p, row, piece);
        UNROLL
        for (u32 j = 0; j < S::NT; ++j) {
            float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            UNROLL
            for (u32 p = S::PLANES; p-- > 0;) {
                mma_bf16(part, x[p], w[j]);
                mma_bf16(part, x[p] + 4, w[j] + 2);
            }
            to[j][0] += part[0] * scales[j][0], to[j][1] += part[1] * scales[j][1];
            to[j][2] += part[2] * scales[j][0], to[j][3] += part[3] * scales[j][1];
        }
    }

    // Sums to [WK][BM][PITCH].
    METHOD void store(float *to) const {
        u32 lane = threadIdx.x % 32;
        UNROLL
        for (u32 f = 0; f < S::MT; ++f)
            UNROLL
            for (u32 j = 0; j < S::NT; ++j) {
                u32 row = wk * S::BM + (f * S::WM + wm) * 16 + lane / 4;
                u32 column = (wn * S::NT + j) * 8 + lane % 4 * 2;
                *(float2 *)(to + row * S::PITCH + column) = make_float2(sums[f][j][0], sums[f][j][1]);
                *(float2 *)(to + (row + 8) * S::PITCH + column) = make_float2(sums[f][j][2], sums[f][j][3]);
            }
    }
};

DEVICE float settled(float x, bool round) { return round ? round_bf16(x) : x; }
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The gated activation, rounded where the engine rounds.
DEVICE float activate(float gate, float up, const TilesArgs &a) {
    bool round = a.flags & ROUND;
    if (!(a.flags & CLAMPED)) return settled(settled(gate * sigmoid(gate), round) * up, round);
    // Comparisons that leave NaN as it is.
    gate = gate > a.limit ? a.limit : gate;
    up = up > a.limit ? a.limit : up;
    up = up < -a.limit ? -a.limit : up;
    float share = settled(sigmoid(settled(gate * a.alpha, round)), round);
    float swish = settled(gate * share, round);
    return settled(settled(up + 1.0f, round) * swish, round);
}

// `n` results (1, 2 or 4) of one row, at an address aligned for so many.
template <u32 PLANES> DEVICE void write(const TilesArgs &a, u32 row, u32 column, u32 columns, float v[4], u32 n) {
    u64 at = (u64)row * columns + column;
    bool round = a.flags & ROUND;
    if (a.residual) {
        const float *residual = (const float *)a.residual + at;
        if (n == 4) {
            float4 r = *(const float4 *)residual;
            v[0] = r.x + v[0], v[1] = r.y + v[1], v[2] = r.z + v[2], v[3] = r.w + v[3];
        } else {
            UNROLL
            for (u32 i = 0; i < 4; ++i)
                if (i < n) v[i] = residual[i] + v[i];
        }
        UNROLL
        for (u32 i = 0; i < 4; ++i) v[i] = settled(v[i], round);
    }
    if (a.out) {
        float *out = (float *)a.out + at;
        if (n == 4) *(float4 *)out = make_float4(v[0], v[1], v[2], v[3]);
        else if (n == 2) *(float2 *)out = make_float2(v[0], v[1]);
        else *out = v[0];
    }
    if (!a.out_planes) return;
    u16 *planes = (u16 *)a.out_planes + at;
    UNROLL
    for (u32 p = 0; p < PLANES; ++p, planes += (u64)a.out_rows * columns) {
        u32 low = pack_bf16(v[0], v[1]), high = pack_bf16(v[2], v[3]);
        if (n == 4) *(uint2 *)planes = make_uint2(low, high);
        else if (n == 2) *(u32 *)planes = low;
        else *planes = (u16)low;
        v[0] -= low_bf16(low), v[1] -= high_bf16(low), v[2] -= low_bf16(high), v[3] -= high_bf16(high);
    }
}

template <class S> DEVICE void finish(const TilesArgs &a, const float *sums, const Part &part, u32 first_row) {
    u32 all = a.up_weights ? 2 * a.rows : a.rows;
    bool round = a.flags & ROUND, pair = a.flags & PAIR;
    u32 columns = pair ? all / 2 : all;
    const float *bias = a.bias ? (const float *)a.bias + (u64)part.expert * all : nullptr;
    for (u32 i = threadIdx.x; i < part.count * (S::BN / 4); i += S::THREADS) {
        u32 row = i / (S::BN / 4), column = i % (S::BN / 4) * 4, n = first_row + column;
        if (n >= all) continue;
        float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        UNROLL
        for (u32 k = 0; k < S::WK; ++k) {
            float4 s = *(const float4 *)(sums + (k * S::BM + row) * S::PITCH + column);
            v[0] += s.x, v[1] += s.y, v[2] += s.z, v[3] += s.w;
        }
        u32 left = min_u32(4, all - n);
        UNROLL
        for (u32 j = 0; j < 4; ++j) {
            if (bias && j < left) v[j] += bias[n + j];
            v[j] = settled(v[j], round);
        }
        u32 to = part.first + row;
        if (a.flags & SCATTER) to = ((const u32 *)a.order)[to];
        if (pair) {
            v[0] = activate(v[0], v[1], a);
            v[1] = activate(v[2], v[3], a);
            v[2] = v[3] = 0.0f;
            n /= 2;
            left /= 2;
        }
        u32 together = pair ? 2 : 4;
        if (columns % together == 0) {
            write<S::PLANES>(a, to, n, columns, v, together);
        } else {
            UNROLL
            for (u32 j = 0; j < 4; ++j) {
                float one[4] = {v[j], 0.0f, 0.0f, 0.0f};
                if (j < left) write<S::PLANES>(a, to, n + j, columns, one, 1);
            }
        }
    }
}

template <class S> DEVICE void tiles(const TilesArgs &a) {
    DYNAMIC_SHARED(shared);
    u32 first_row = blockIdx.y * S::BN;
    Copies<S> copies;
    Part part;
    if (!a.offsets) {
        part.expert = 0;
        part.first = blockIdx.x * S::BM;
        part.count = min_u32(S::BM, a.tokens - part.first);
        copies.find_weights(a, 0, first_row);
        UNROLL
        for (u32 s = 0; s < S::STAGES - 1; ++s) copies.weights_at(shared + s * S::STAGE, s * S::BK, a.cols);
        dependency_wait();
        copies.find_x(a, part);
    } else {
        dependency_wait();
        if (!find_part((const u32 *)a.offsets, a.experts, blockIdx.x, S::BM, part)) return;
        copies.find_weights(a, part.expert, first_row);
        UNROLL
        for (u32 s = 0; s < S::STAGES - 1; ++s) copies.weights_at(shared + s * S::STAGE, s * S::BK, a.cols);
        copies.find_x(a, part);
    }
    UNROLL
    for (u32 s = 0; s < S::STAGES - 1; ++s) {
        copies.x_at(shared + s * S::STAGE, s * S::BK, a.cols);
        copy_commit();
    }
    dependency_launch();
    Fragment<S> fragment;
    fragment.start(a, part.expert, first_row, part.count);
    bool full = fragment.used == S::MT;
    u32 now = 0, next = S::STAGES - 1;
    for (u32 k = 0; k < a.cols; k += S::BK) {
        copy_wait<(int)S::STAGES - 2>();
        sync_block();
        u32 ahead = k + (S::STAGES - 1) * S::BK;
        if (ahead < a.cols) {
            copies.weights_at(shared + next * S::STAGE, ahead, a.cols);
            copies.x_at(shared + next * S::STAGE, ahead, a.cols);
        }
        copy_commit();
        if (full) fragment.template multiply<true>(shared + now * S::STAGE, k, a.cols);
        else fragment.template multiply<false>(shared + now * S::STAGE, k, a.cols);
        now = now + 1 == S::STAGES ? 0 : now + 1;
        next = next + 1 == S::STAGES ? 0 : next + 1;
    }
    copy_wait<0>();
    sync_block();
    fragment.store((float *)shared);
    sync_block();
    finish<S>(a, (const float *)shared, part, first_row);
}

#define TILES(name, blocks, ...)                                                                       \
    KERNEL((Shape<__VA_ARGS__>::THREADS), blocks, name)(TilesArgs a) { tiles<Shape<__VA_ARGS__>>(a); } \
    EXPORT(name);

// Format, planes, BM, BN, BK, warps over m, n and k, stages: as in tiles.rs.
TILES(tiles_bf16_p1_m16, 2, FORMAT_BF16, 1, 16, 32, 256, 1, 1, 4, 4)
TILES(tiles_bf16_p1_m32, 2, FORMAT_BF16, 1, 32, 64, 128, 1, 2, 2, 4)
TILES(tiles_bf16_p1_m64, 2, FORMAT_BF16, 1, 64, 128, 64, 1, 4, 1, 4)
TILES(tiles_bf16_p1_m128, 2, FORMAT_BF16, 1, 128, 128, 64, 2, 2, 1, 3)
TILES(tiles_bf16_p3_m16, 1, FORMAT_BF16, 3, 16, 32, 256, 1, 1, 4, 3)
TILES(tiles_bf16_p3_m64, 2, FORMAT_BF16, 3, 64, 64, 64, 1, 2, 2, 3)
TILES(tiles_mxfp4_p1_m16, 4, FORMAT_MXFP4, 1, 16, 128, 128, 1, 4, 1, 4)
TILES(tiles_mxfp4_p1_m32, 3, FORMAT_MXFP4, 1, 32, 128, 128, 1, 4, 1, 4)
TILES(tiles_mxfp4_p1_m64, 3, FORMAT_MXFP4, 1, 64, 128, 64, 1, 4, 1, 4)
TILES(tiles_mxfp4_p1_m128, 2, FORMAT_MXFP4, 1, 128, 128, 64, 1, 4, 1, 4)
TILES(tiles_mxfp4_p3_m16, 2, FORMAT_MXFP4, 3, 16, 64, 128, 1, 2, 2, 3)
TILES(tiles_mxfp4_p3_m64, 2, FORMAT_MXFP4, 3, 64, 64, 64, 1, 2, 2, 3)
TILES(tiles_q8_p1_m16, 2, FORMAT_Q8, 1, 16, 64, 256, 1, 2, 2, 3)
TILES(tiles_q8_p1_m32, 3, FORMAT_Q8, 1, 32, 64, 128, 1, 2, 2, 4)
TILES(tiles_q8_p1_m64, 2, FORMAT_Q8, 1, 64, 128, 64, 1, 4, 1, 4)
TILES(tiles_q8_p1_m128, 2, FORMAT_Q8, 1, 128, 128, 64, 1, 4, 1, 4)
TILES(tiles_q8_p3_m16, 2, FORMAT_Q8, 3, 16, 64, 128, 1, 2, 2, 3)
TILES(tiles_q8_p3_m64, 2, FORMAT_Q8, 3, 64, 64, 64, 1, 2, 2, 3)

#ifdef HAS_WARPGROUPS
#include "tiles_warpgroup.cuh"
#endif
