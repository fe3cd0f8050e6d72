// A kernel that can be wrong on purpose, in the ways in which kernels of shared memory are: tests of the emulator see
// that it notices each of them.
#include "device.cuh"

// 1 to 16 alone are faults; PLAIN is another way to write.
const u32 NO_WAIT = 1, WAITS_FOR_TOO_FEW = 2, NO_COMMIT = 4, NO_BARRIER_BEFORE_READING = 8,
          NO_BARRIER_BEFORE_WRITING = 16, PLAIN = 32;
const u32 THREADS = 64, WORDS = 4, SLOTS = 2;

// out[i] = the sum over `chunks` of in[chunk][i]. f32 in [chunks][THREADS * WORDS], out [THREADS * WORDS].
struct FaultArgs {
    u64 in, out;
    u32 chunks, faults;
};

DEVICE void bring(const FaultArgs &a, float *ring, u32 chunk) {
    if (chunk < a.chunks) {
        const float *from = (const float *)a.in + (chunk * THREADS + threadIdx.x) * WORDS;
        float *to = ring + (chunk % SLOTS * THREADS + threadIdx.x) * WORDS;
        if (a.faults & PLAIN) *(float4 *)to = *(const float4 *)from;
        else copy_async16(to, from, true);
    }
    if (!(a.faults & NO_COMMIT)) copy_commit();
}

// Chunks come through a ring, one ahead; each thread reads what a thread of the other warp brought.
KERNEL(THREADS, 1, fault_ring)(FaultArgs a) {
    DYNAMIC_SHARED(memory);
    float *ring = (float *)memory, sums[WORDS] = {};
    u32 other = (threadIdx.x + 32) % THREADS;
    bring(a, ring, 0);
    for (u32 chunk = 0; chunk < a.chunks; ++chunk) {
        bring(a, ring, chunk + 1);
        if (a.faults & WAITS_FOR_TOO_FEW) copy_wait<2>();
        else if (!(a.faults & NO_WAIT)) copy_wait<1>();
        if (!(a.faults & NO_BARRIER_BEFORE_READING)) sync_block();
        for (u32 i = 0; i < WORDS; ++i) sums[i] += ring[(chunk % SLOTS * THREADS + other) * WORDS + i];
        if (!(a.faults & NO_BARRIER_BEFORE_WRITING)) sync_block();
    }
    for (u32 i = 0; i < WORDS; ++i) ((float *)a.out)[other * WORDS + i] = sums[i];
}
EXPORT(fault_ring);

// The same for products of warpgroups. 1 to 1,024 alone are faults; SHARED_ROWS is another way to give a matrix.
const u32 NO_FENCE = 1, NO_FENCE_LATER = 2, NO_PRODUCTS_COMMIT = 4, NO_PRODUCTS_WAIT = 8, REGISTERS_TOO_EARLY = 16,
          STAGE_TOO_EARLY = 32, NO_PROXY_FENCE = 64, NO_BARRIER = 128, ONE_WARP_LESS = 256, OTHER_MATRIX = 512,
          NOT_ALIGNED = 1024, SHARED_ROWS = 2048;
const u32 GROUP = 128, SIDE = 64, MATRIX = SIDE * SIDE * 2, COLUMNS = 128;

// out[m][n] = the sum over k of a[m][k] b[n][k]: a and b are bf16 [64 or 128][64 * chunks], out is f32 [64][128].
struct ProductsArgs {
    u64 a, b, out;
    u32 chunks, faults;
};

// 64 columns of `rows` rows.
DEVICE void bring_matrix(const ProductsArgs &p, u8 *to, u64 from, u32 rows, u32 chunk) {
    for (u32 i = threadIdx.x; i < rows * 8; i += GROUP) {
        u32 row = i / 8, piece = i % 8;
        const u16 *at = (const u16 *)from + row * (SIDE * p.chunks) + chunk * SIDE + piece * 8;
        copy_async16(to + row * 128 + (piece ^ (row & 7)) * 16, at, true);
    }
}

DEVICE void bring_stage(const ProductsArgs &p, u8 *ring, u32 stages, u32 chunk) {
    u8 *to = ring + chunk % stages * (3 * MATRIX);
    if (chunk < p.chunks) {
        bring_matrix(p, to, p.a, SIDE, chunk);
        bring_matrix(p, to + MATRIX, p.b, COLUMNS, chunk);
    }
    copy_commit();
}

// This lane's rows of a, from shared memory to registers: four times 16 columns.
DEVICE void take_registers(u32 to[4][4], const u8 *stage) {
    u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    for (u32 k = 0; k < 4; ++k)
        for (u32 i = 0; i < 4; ++i) {
            u32 r = row + i % 2 * 8, piece = 2 * k + i / 2;
            to[k][i] = *(const u32 *)(stage + r * 128 + (piece ^ (r & 7)) * 16 + lane % 4 * 4);
        }
}

// Chunks come through a ring, one ahead of products; the products of one chunk are under way when the next begin.
KERNEL(GROUP, 1, fault_products)(ProductsArgs p) {
    DYNAMIC_SHARED(memory);
    u8 *ring = memory + ((0u - shared_address(memory)) & 1023);
    if (p.faults & NOT_ALIGNED) ring = memory;
    u32 stages = p.faults & STAGE_TOO_EARLY ? 2 : 3;
    float sums[COLUMNS / 2] = {};
    u32 rows[2][4][4] = {};
    bring_stage(p, ring, stages, 0);
    if (!(p.faults & NO_FENCE)) warpgroup_fence();
    for (u32 chunk = 0; chunk < p.chunks; ++chunk) {
        copy_wait<0>();
        if (!(p.faults & NO_PROXY_FENCE)) async_proxy_fence();
        if (!(p.faults & NO_BARRIER)) sync_block();
        bring_stage(p, ring, stages, chunk + 1);
        u8 *stage = ring + chunk % stages * (3 * MATRIX);
        u32(*own)[4] = rows[p.faults & REGISTERS_TOO_EARLY ? 0 : chunk % 2];
        take_registers(own, stage);
        if (!(p.faults & NO_FENCE) && !(p.faults & NO_FENCE_LATER && chunk >= 2)) warpgroup_fence();
        u64 left = matrix_descriptor(stage), right = matrix_descriptor(stage + MATRIX);
        if (p.faults & OTHER_MATRIX && threadIdx.x / 32 == 2) right += 2;
        if (!(p.faults & ONE_WARP_LESS) || threadIdx.x / 32 != 3)
            for (u32 k = 0; k < 4; ++k) {
                if (p.faults & SHARED_ROWS) warpgroup_mma<COLUMNS, 1>(sums, left + 2 * k, right + 2 * k);
                else warpgroup_mma<COLUMNS, 1>(sums, own[k], right + 2 * k);
            }
        if (!(p.faults & NO_PRODUCTS_COMMIT)) warpgroup_commit();
        warpgroup_wait<1>();
    }
    if (!(p.faults & NO_PRODUCTS_WAIT)) warpgroup_wait<0>();
    u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    for (u32 i = 0; i < COLUMNS / 2; ++i)
        ((float *)p.out)[(row + i / 2 % 2 * 8) * COLUMNS + i / 4 * 8 + lane % 4 * 2 + i % 2] = sums[i];
}
EXPORT(fault_products);
