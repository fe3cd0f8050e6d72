// How weights of each format become operands of the tensor cores. A warp takes 64 bytes of each of 16 rows at a time;
// lane 4g + t copies 16 bytes of rows g and g + 8 (the halves of the tile) to shared memory, and later multiplies.
// Which column meets which place of an mma is free, as long as activations stand in the same order:
//
// - bf16: lane t has columns 8t to 8t + 7 of 32.
// - q8: the same, of each of two blocks of 32; a block is summed alone and then scaled, so that all lanes must work on
//   one block at a time. Lanes read what others of their warp copied.
// - mxfp4: lane t has block t of four; words of 8 codes come out as pairs 0 4, 1 5, 2 6, 3 7.
//
// Activations are kept so that the lane's 8 values are 16 bytes and the four lanes' are 64.
#pragma once
#include "device.cuh"

const u32 THREADS = 256, WARPS = THREADS / 32;
// Bytes of a row: of a warp, of the block in a step.
const u32 UNIT = 64, STEP = WARPS * UNIT;
// Bytes of a step, and of a warp in it.
const u32 STAGE = 16 * STEP, PART = 16 * UNIT;

// COLUMNS of a unit; SCALE bytes for a block of 32 columns.
struct Bf16Weights { static const u32 COLUMNS = 32, SCALE = 0; };
struct Q8Weights { static const u32 COLUMNS = 64, SCALE = 2; };
struct Mxfp4Weights { static const u32 COLUMNS = 128, SCALE = 1; };

// What a lane needs for one unit: its warp's part of the stage, its activations (at its t, of its column), its rows'
// scales and where the unit starts among their blocks.
struct Operands {
    const u8 *codes;
    const u8 *x;
    const u8 *scales[2];
    u32 block, blocks;
    u32 lane;
};

DEVICE void mma_rows(float c[4], u32 upper0, u32 lower0, u32 upper1, u32 lower1, u32 x0, u32 x1) {
    u32 rows[4] = {upper0, lower0, upper1, lower1}, columns[2] = {x0, x1};
    mma_bf16(c, rows, columns);
}

// Where a lane puts the 16 bytes of its upper row; those of the lower one stand PART / 2 behind.
DEVICE u32 lane_place(Bf16Weights, u32 lane) { return 16 * lane; }
DEVICE u32 lane_place(Mxfp4Weights, u32 lane) { return 16 * lane; }
// Blocks apart, and turned so that neither copies nor reads meet in a bank.
DEVICE u32 q8_place(u32 row, u32 block) { return 256 * block + 32 * (row ^ (2 * block)); }
DEVICE u32 lane_place(Q8Weights, u32 lane) { return q8_place(lane / 4, lane % 4 / 2) + 16 * (lane % 2); }

// Place of 8 columns among the activations of a row.
DEVICE u32 octet_place(Bf16Weights, u32 octet) { return octet; }
DEVICE u32 octet_place(Q8Weights, u32 octet) { return octet; }
DEVICE u32 octet_place(Mxfp4Weights, u32 octet) { return octet / 16 * 16 + octet % 4 * 4 + octet / 4 % 4; }

// Which of 8 columns stand in half `half` of pair `pair`.
DEVICE u32 octet_column(Bf16Weights, u32 pair, u32 half) { return 2 * pair + half; }
DEVICE u32 octet_column(Q8Weights, u32 pair, u32 half) { return 2 * pair + half; }
DEVICE u32 octet_column(Mxfp4Weights, u32 pair, u32 half) { return pair + 4 * half; }

DEVICE void multiply(Bf16Weights, float sums[2][4], const Operands &o) {
    uint4 upper = ((const uint4 *)o.codes)[o.lane], lower = ((const uint4 *)o.codes)[32 + o.lane];
    uint4 x = *(const uint4 *)o.x;
    mma_rows(sums[0], upper.x, lower.x, upper.y, lower.y, x.x, x.y);
    mma_rows(sums[1], upper.z, lower.z, upper.w, lower.w, x.z, x.w);
}

// Signed bytes 0 and 1 (selector 0x4140) or 2 and 3 (0x4342) of a word as bf16, exactly: with the sign bit masked a
// byte is the mantissa of a number from 128 to 255; 128 is taken off, and 128 more if the sign was set.
DEVICE u32 expand_q8(u32 word, u32 selector) {
    u32 bytes = permute_bytes(word, 0, selector);
    return add_bf16x2((bytes & 0x007f007fu) | 0x43004300u, (bytes & 0x00800080u) | 0xc300c300u);
}

DEVICE void multiply(Q8Weights, float sums[2][4], const Operands &o) {
    u32 g = o.lane / 4, t = o.lane % 4;
    UNROLL
    for (u32 b = 0; b < 2; ++b) {
        const u8 *at = o.codes + q8_place(g, b) + 8 * t;
        uint2 upper = *(const uint2 *)at, lower = *(const uint2 *)(at + PART / 2);
        uint4 x = *(const uint4 *)(o.x + 64 * b);
        // The second block of the last unit may not exist: its codes are 0, its scale must be a number.
        u32 block = min_u32(o.block + b, o.blocks - 1);
        float upper_scale = half_to_float(((const u16 *)o.scales[0])[block]);
        float lower_scale = half_to_float(((const u16 *)o.scales[1])[block]);
        float c[4] = {};
        mma_rows(c, expand_q8(upper.x, 0x4140), expand_q8(lower.x, 0x4140), expand_q8(upper.x, 0x4342),
                 expand_q8(lower.x, 0x4342), x.x, x.y);
        mma_rows(c, expand_q8(upper.y, 0x4140), expand_q8(lower.y, 0x4140), expand_q8(upper.y, 0x4342),
                 expand_q8(lower.y, 0x4342), x.z, x.w);
        sums[b][0] += upper_scale * c[0];
        sums[b][1] += upper_scale * c[1];
        sums[b][2] += lower_scale * c[2];
        sums[b][3] += lower_scale * c[3];
    }
}

// Codes 0 and 4, 1 and 5, 2 and 6, 3 and 7 of a word as pairs of bf16. The product brings a code's sign to bit 15 and
// its three bits to 8 to 6 at once, without carries: the value times 2^-126, which `factor` = 2^(scale - 1) corrects.
DEVICE void expand_mxfp4(u32 pairs[4], u32 word, u32 factor) {
    u32 next = word >> 8;
    pairs[0] = mul_bf16x2(((word & 0x000f000fu) * 0x1040u) & 0x81c081c0u, factor);
    pairs[1] = mul_bf16x2(((word & 0x00f000f0u) * 0x0104u) & 0x81c081c0u, factor);
    pairs[2] = mul_bf16x2(((next & 0x000f000fu) * 0x1040u) & 0x81c081c0u, factor);
    pairs[3] = mul_bf16x2(((next & 0x00f000f0u) * 0x0104u) & 0x81c081c0u, factor);
}

DEVICE void multiply(Mxfp4Weights, float sums[2][4], const Operands &o) {
    uint4 upper = ((const uint4 *)o.codes)[o.lane], lower = ((const uint4 *)o.codes)[32 + o.lane];
    // Blocks of the last unit may not exist: their codes are 0, their factor must be a number.
    u32 block = min_u32(o.block + o.lane % 4, o.blocks - 1);
    u32 upper_factor = (o.scales[0][block] + 126u) * 0x00800080u;
    u32 lower_factor = (o.scales[1][block] + 126u) * 0x00800080u;
    u32 upper_words[4] = {upper.x, upper.y, upper.z, upper.w}, lower_words[4] = {lower.x, lower.y, lower.z, lower.w};
    UNROLL
    for (u32 i = 0; i < 4; ++i) {
        uint4 x = *(const uint4 *)(o.x + 64 * i);
        u32 u[4], l[4];
        expand_mxfp4(u, upper_words[i], upper_factor);
        expand_mxfp4(l, lower_words[i], lower_factor);
        mma_rows(sums[0], u[0], l[0], u[1], l[1], x.x, x.y);
        mma_rows(sums[1], u[2], l[2], u[3], l[3], x.z, x.w);
    }
}
