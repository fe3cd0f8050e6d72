// The products of tiles.cu in one plane of many rows, by the products of warpgroups that Hopper has.
//
// Rows of weights are the rows of a product, rows of activations its columns: 2 warpgroups, each with 64 rows of weights,
// or twice 64. Activations stay in shared memory as they were copied, in rows of 64 columns. Quantized weights are
// expanded in registers while the products of the 32 columns before run; those in bf16 are taken from shared memory.
// Which column meets which is fixed within 16 columns: lane t has columns 2t, 2t + 1, 2t + 8 and 2t + 9, one byte of each
// word of 8 codes of MXFP4. q8_0's scales are multiplied with the sums of each 32 columns, so that products are exact.
//
// Limits, for 16 columns of a multiprocessor, whose tensor cores do 2,048 products per clock and whose shared memory
// gives 128 bytes per clock. Of shared memory a product of 64 rows reads its activations, half of the clocks that it
// takes itself, whatever its size; the rest of what is read and written comes to:
//
// |                              | MXFP4, 256 x 128           | bf16, 128 x 256      | q8_0, 128 x 128           |
// | tensor cores                 | 256 clocks                 | 256                  | 128                       |
// | shared memory                | 128 + 32 + 64 + 36: 102 %  | 128 + 64 + 64: 100 % | 64 + 32 + 32 + 26: 120 %  |
// | instructions of a scheduler  | 136 to expand, 20 to copy: 61 % | few             | 134 to expand and scale: 105 % |
// | from the second cache        | 6.3 KB, 25 bytes per clock | 12.3 KB, 48          | 6.3 KB, 49                |
//
// (shared memory: activations read, activations written, weights, their writes and scales.) A lane reads the 16 bytes
// of a block of MXFP4 whole, with three others, and needs four of them. If that shows on a GPU: lanes of four that read
// a row each and exchange words by three shuffles would take 28 clocks for the 64. 128 rows of activations suit the
// experts of a prompt, and are halved where an expert has 64 rows and less; 256 rows of weights make up for it in what
// the second cache gives. One block of 256 threads is on a multiprocessor: 128 registers of sums in each thread, of 211
// (MXFP4), 180 (bf16) and 191 (q8_0) that NVRTC 12.4 gives, none in memory. What a block does at its end no other
// covers: 133 KB of sums go through shared memory, some 4,000 clocks beside 46,000 of products with 2,880 columns.
// Expected, not measured: 65 % of the peak for MXFP4 and bf16, 50 % for q8_0; mma reaches 60 % of it at best.
#pragma once

template <Format F, u32 M, u32 N, u32 S> struct WarpgroupShape {
    static const Format FORMAT = F;
    static const u32 PLANES = 1, BM = M, BN = N, BK = 64, WK = 1, STAGES = S;
    static const u32 THREADS = 256, BLOCKS = BK / 32;
    static const u32 X_PIECES = BK / 8;
    static const u32 W_COLUMNS = F == FORMAT_BF16 ? 8 : F == FORMAT_MXFP4 ? 32 : 16;
    static const u32 W_PIECES = BK / W_COLUMNS;
    static const u32 X_BYTES = BM * BK * 2;
    static const u32 W_BYTES = BN * W_PIECES * 16;
    static const u32 SCALES = F == FORMAT_BF16 ? 0 : BN * BLOCKS;
    static const u32 STAGE = X_BYTES + W_BYTES + SCALES * 4;
    static const u32 X_COPIES = BM * X_PIECES / THREADS;
    static const u32 W_COPIES = BN * W_PIECES / THREADS;
    static const u32 SCALE_COPIES = SCALES / THREADS;
    // So that columns of the result, which neighbouring lanes have, are written to all banks.
    static const u32 PITCH = BN + 4;
    static const bool SWIZZLED = true;
    // Times 64 rows of weights in a warpgroup.
    static const u32 TIMES = BN / 128;
    static_assert(STAGE % 1024 == 0 && X_BYTES % 1024 == 0, "patterns of 8 rows of 128 bytes");
    static_assert(BM * PITCH * 4 <= STAGES * STAGE, "the result fits where the stages were");
    static_assert(STAGES >= 4, "two stages are copied while two are multiplied");
};

// A warpgroup's part of a tile of which N rows of activations are used.
template <class S, u32 N> struct Warpgroup {
    float sums[S::TIMES][N / 2];
    // Of weights, for 32 columns: those that are multiplied, and the next.
    u32 rows[2][S::TIMES][2][4];
    // q8_0: sums of the last 32 columns and the scales of their two rows.
    float part[S::FORMAT == FORMAT_Q8 ? N / 2 : 4], scales[2];
    // Of this lane: the first of its rows, its bytes in words of codes, and the place of its rows' scales in their
    // words at column 0.
    u32 first, bytes, phase;

    METHOD void start(const TilesArgs &a, u32 expert, u32 first_row) {
        u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        first = warp / 4 * (64 * S::TIMES) + warp % 4 * 16 + lane / 4;
        bytes = lane % 4 | (4 + lane % 4) << 4;
        UNROLL
        for (u32 m = 0; m < S::TIMES; ++m)
            UNROLL
            for (u32 i = 0; i < N / 2; ++i) sums[m][i] = 0.0f;
        if constexpr (S::FORMAT == FORMAT_Q8) {
            UNROLL
            for (u32 i = 0; i < N / 2; ++i) part[i] = 0.0f;
            scales[0] = scales[1] = 0.0f;
        }
        phase = 0;
        if constexpr (S::SCALES > 0) {
            // Eight rows, or four of each of two matrices, are whole words: the phase is the same in all of them.
            const u32 size = S::FORMAT == FORMAT_Q8 ? 2 : 1;
            u32 n = first_row + lane / 4, row_scales = a.cols / 32;
            u64 base = a.up_weights && (n & 1) ? a.up_scales : a.scales;
            u32 place = (a.up_weights ? n / 2 : n) * row_scales;
            phase = (u32)(base + ((u64)expert * a.rows * row_scales + place) * size) & 3;
        }
    }

    // 64 columns, or the last 32, of a stage.
    template <u32 COLUMNS> METHOD void multiply(const u8 *stage, u32 k) {
        if constexpr (S::FORMAT == FORMAT_BF16) {
            u64 x = matrix_descriptor(stage);
            u64 w = matrix_descriptor(stage + S::X_BYTES + threadIdx.x / 128 * (64 * S::BK * 2));
            warpgroup_fence();
            UNROLL
            for (u32 i = 0; i < COLUMNS / 16; ++i) warpgroup_mma<N, 1>(sums[0], w + 2 * i, x + 2 * i);
            warpgroup_commit();
            // Those of the stage before are done.
            warpgroup_wait<1>();
        } else {
            block<0>(stage, k);
            if constexpr (COLUMNS > 32) block<1>(stage, k);
        }
    }

    // 32 columns of quantized weights.
    template <u32 BLOCK> METHOD void block(const u8 *stage, u32 k) {
        u64 x = matrix_descriptor(stage) + 4 * BLOCK;
        if constexpr (S::FORMAT == FORMAT_MXFP4) {
            // Those that took these registers are done.
            warpgroup_wait<1>();
            expand(rows[BLOCK], stage, BLOCK, k);
            keep_registers<S::TIMES * 8>((u32 *)rows[BLOCK]);
            warpgroup_fence();
            UNROLL
            for (u32 h = 0; h < 2; ++h)
                UNROLL
                for (u32 m = 0; m < S::TIMES; ++m) warpgroup_mma<N, 1>(sums[m], rows[BLOCK][m][h], x + 2 * h);
        } else {
            float next[2];
            expand(rows[BLOCK], stage, BLOCK, k);
            read_scales(next, stage, BLOCK, k);
            keep_registers<8>((u32 *)rows[BLOCK]);
            add_part();
            scales[0] = next[0], scales[1] = next[1];
            warpgroup_fence();
            warpgroup_mma<N, 0>(part, rows[BLOCK][0][0], x);
            warpgroup_mma<N, 1>(part, rows[BLOCK][0][1], x + 2);
        }
        warpgroup_commit();
    }

    // q8_0: waits for the last 32 columns and adds them.
    METHOD void add_part() {
        warpgroup_wait<0>();
        keep_registers<N / 2>(part);
        UNROLL
        for (u32 i = 0; i < N / 2; ++i) sums[0][i] += part[i] * scales[i / 2 % 2];
        // They were read before the next products write them.
        keep_registers<N / 2>(part);
    }

    METHOD void end() {
        if constexpr (S::FORMAT == FORMAT_Q8) {
            add_part();
        } else {
            warpgroup_wait<0>();
            UNROLL
            for (u32 m = 0; m < S::TIMES; ++m) keep_registers<N / 2>(sums[m]);
        }
    }

    // Rows g and g + 8 of the warp's 16, of 32 columns, as two products take them.
    METHOD void expand(u32 to[S::TIMES][2][4], const u8 *stage, u32 block, u32 k) const {
        const u8 *codes = stage + S::X_BYTES;
        UNROLL
        for (u32 m = 0; m < S::TIMES; ++m)
            UNROLL
            for (u32 h = 0; h < 2; ++h) {
                u32 row = first + m * 64 + h * 8, pairs[4];
                const u8 *at = codes + code_place<S>(row, block) * (S::FORMAT == FORMAT_Q8 ? 32 : 16);
                if constexpr (S::FORMAT == FORMAT_MXFP4) {
                    uint4 v = *(const uint4 *)at;
                    u32 low = permute_bytes(v.x, v.y, bytes), high = permute_bytes(v.z, v.w, bytes);
                    expand_mxfp4(pairs, permute_bytes(low, high, 0x5410), scale_bits(stage, row, block, k) & 0xff);
                } else {
                    // Two codes of each eight.
                    at += threadIdx.x % 4 * 2;
                    const u8 *first_half = at + code_half<S>(row, 0) * 16, *second = at + code_half<S>(row, 1) * 16;
                    u32 a = *(const u16 *)first_half, b = *(const u16 *)(first_half + 8);
                    u32 c = *(const u16 *)second, d = *(const u16 *)(second + 8);
                    expand_q8(pairs, make_uint2(a | b << 16, c | d << 16));
                }
                to[m][0][h] = pairs[0], to[m][0][2 + h] = pairs[1];
                to[m][1][h] = pairs[2], to[m][1][2 + h] = pairs[3];
            }
    }

    METHOD void read_scales(float to[2], const u8 *stage, u32 block, u32 k) const {
        UNROLL
        for (u32 h = 0; h < 2; ++h) to[h] = half_to_float((u16)scale_bits(stage, first + h * 8, block, k));
    }

    // A row's scale of a block, in the low bits.
    METHOD u32 scale_bits(const u8 *stage, u32 row, u32 block, u32 k) const {
        const u32 size = S::FORMAT == FORMAT_Q8 ? 2 : 1;
        u32 word = ((const u32 *)(stage + S::X_BYTES + S::W_BYTES))[row * S::BLOCKS + block];
        return word >> ((phase + (k / 32 + block) * size) & 3) * 8;
    }

    // Sums to [BM][PITCH]: rows of activations.
    METHOD void store(float *to) const {
        UNROLL
        for (u32 m = 0; m < S::TIMES; ++m)
            UNROLL
            for (u32 i = 0; i < N / 2; ++i) {
                u32 row = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
                to[row * S::PITCH + first + m * 64 + i / 2 % 2 * 8] = sums[m][i];
            }
    }
};

// Finds a block's part and asks for its first stages, in as many groups; false if there is no such part. In a function
// with `tiles` the largest of its kernels would spill.
template <class S>
DEVICE bool begin(const TilesArgs &a, Copies<S> &copies, Part &part, u8 *shared, u32 first_row) {
    const u32 stages = S::STAGES - 2;
    if (!a.offsets) {
        part.expert = 0;
        part.first = blockIdx.x * S::BM;
        part.count = min_u32(S::BM, a.tokens - part.first);
    } else {
        dependency_wait();
        if (!find_part((const u32 *)a.offsets, a.experts, blockIdx.x, S::BM, part)) return false;
    }
    copies.find_weights(a, part.expert, first_row);
    UNROLL
    for (u32 s = 0; s < stages; ++s) copies.weights_at(shared + s * S::STAGE, s * S::BK, a.cols);
    if (!a.offsets) dependency_wait();
    copies.find_x(a, part);
    UNROLL
    for (u32 s = 0; s < stages; ++s) {
        copies.x_at(shared + s * S::STAGE, s * S::BK, a.cols);
        copy_commit();
    }
    return true;
}

template <class S, u32 N>
DEVICE void multiply_part(const TilesArgs &a, const Copies<S> &copies, const Part &part, u8 *shared, u32 first_row) {
    Warpgroup<S, N> group;
    group.start(a, part.expert, first_row);
    // A stage is written again when the products of two stages later have begun: those of one stage may be under way.
    u32 now = 0, next = S::STAGES - 2, k = 0;
    for (; k + S::BK <= a.cols; k += S::BK) {
        copy_wait<(int)S::STAGES - 3>();
        async_proxy_fence();
        sync_block();
        u32 ahead = k + (S::STAGES - 2) * S::BK;
        if (ahead < a.cols) {
            copies.weights_at(shared + next * S::STAGE, ahead, a.cols);
            copies.x_at(shared + next * S::STAGE, ahead, a.cols);
        }
        copy_commit();
        group.template multiply<64>(shared + now * S::STAGE, k);
        now = now + 1 == S::STAGES ? 0 : now + 1;
        next = next + 1 == S::STAGES ? 0 : next + 1;
    }
    copy_wait<0>();
    if (k < a.cols) {
        async_proxy_fence();
        sync_block();
        group.template multiply<32>(shared + now * S::STAGE, k);
    }
    group.end();
    sync_block();
    group.store((float *)shared);
    sync_block();
    finish<S>(a, (const float *)shared, part, first_row);
}

template <class S> DEVICE void warpgroup_tiles(const TilesArgs &a) {
    DYNAMIC_SHARED(memory);
    u8 *shared = memory + ((0u - shared_address(memory)) & 1023);
    u32 first_row = blockIdx.y * S::BN;
    Copies<S> copies;
    Part part;
    if (!begin(a, copies, part, shared, first_row)) return;
    dependency_launch();
    if (part.count * 2 <= S::BM) multiply_part<S, S::BM / 2>(a, copies, part, shared, first_row);
    else multiply_part<S, S::BM>(a, copies, part, shared, first_row);
}

#define WARPGROUP_TILES(name, ...)                                                                        \
    KERNEL(256, 1, name)(TilesArgs a) { warpgroup_tiles<WarpgroupShape<__VA_ARGS__>>(a); }                \
    EXPORT(name);

// Format, BM, BN, stages: as in tiles/hopper.rs.
WARPGROUP_TILES(tiles_bf16_wgmma, FORMAT_BF16, 256, 128, 4)
WARPGROUP_TILES(tiles_mxfp4_wgmma, FORMAT_MXFP4, 128, 256, 6)
WARPGROUP_TILES(tiles_q8_wgmma, FORMAT_Q8, 128, 128, 5)
