// Kernels over rows and flat vectors: what stands between the products. All are bound by memory (each byte is read and
// written once, 16 bytes by thread and access) or, for one token, by the launch itself; so each does as much as it can
// in one launch, and lets the next one start early.
#include "device.cuh"

const u32 FLAG_BF16 = 1, FLAG_ROUND_FIRST = 2;

DEVICE float not_a_number() { return bits_to_float(0x7fc00000u); }

// Four bf16 values of a plane from four values, which become what is left of them.
DEVICE uint2 take_plane(float4 &x) {
    uint2 plane = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
    x.x -= low_bf16(plane.x);
    x.y -= high_bf16(plane.x);
    x.z -= low_bf16(plane.y);
    x.w -= high_bf16(plane.y);
    return plane;
}

DEVICE float4 rounded(float4 x) {
    return make_float4(round_bf16(x.x), round_bf16(x.y), round_bf16(x.z), round_bf16(x.w));
}

// The sum over a block, in a fixed order; once by kernel.
DEVICE float block_sum(float x) {
    SHARED float partial[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    sync_block();
    float sum = 0.0f;
    for (u32 w = 0; w < blockDim.x / 32; ++w) sum += partial[w];
    return sum;
}

// ---- Rows of a bf16 table by ids: grid (tokens, pieces of 2048 columns). ----
struct EmbedArgs {
    u64 table, ids, out;
    u32 tokens, cols, vocab, reserved;
};

KERNEL(256, 4, embed)(EmbedArgs a) {
    dependency_launch();
    dependency_wait();
    u32 token = blockIdx.x, col = (blockIdx.y * 256 + threadIdx.x) * 8;
    if (col >= a.cols) return;
    u32 id = ((const u32 *)a.ids)[token];
    float4 *out = (float4 *)((float *)a.out + (u64)token * a.cols + col);
    if (id >= a.vocab) {
        // No such token: shows in the logits' count of what is not finite.
        float nan = not_a_number();
        out[0] = out[1] = make_float4(nan, nan, nan, nan);
        return;
    }
    uint4 row = load_once((const uint4 *)((const u16 *)a.table + (u64)id * a.cols + col));
    out[0] = make_float4(low_bf16(row.x), high_bf16(row.x), low_bf16(row.y), high_bf16(row.y));
    out[1] = make_float4(low_bf16(row.z), high_bf16(row.z), low_bf16(row.w), high_bf16(row.w));
}
EXPORT(embed);

// ---- RMSNorm of rows (those of `index` if it is given), to f32 and to planes, each if wanted. One block by row: the
// row is read twice, the second time from the first cache. ----
struct NormArgs {
    u64 x, weight, out, planes, index, plane_stride;
    u32 rows, cols, x_rows, plane_count, flags;
    float eps;
};

KERNEL(256, 8, rms_norm)(NormArgs a) {
    dependency_launch();
    dependency_wait();
    u32 row = blockIdx.x;
    u32 from = a.index ? ((const u32 *)a.index)[row] : row;
    bool inside = from < a.x_rows;
    const float4 *x = (const float4 *)((const float *)a.x + (inside ? (u64)from * a.cols : 0));
    const float4 *weight = (const float4 *)a.weight;
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < a.cols / 4; i += 256) {
        float4 v = x[i];
        sum += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
    }
    float inverse = reciprocal_sqrt(block_sum(sum) / (float)a.cols + a.eps);
    if (!inside) inverse = not_a_number();
    bool last = a.flags & FLAG_BF16, first = last && (a.flags & FLAG_ROUND_FIRST);
    u64 at = (u64)row * a.cols;
    for (u32 i = threadIdx.x; i < a.cols / 4; i += 256) {
        float4 v = x[i], w = weight[i];
        v = make_float4(v.x * inverse, v.y * inverse, v.z * inverse, v.w * inverse);
        if (first) v = rounded(v);
        v = make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
        if (last) v = rounded(v);
        if (a.out) ((float4 *)((float *)a.out + at))[i] = v;
        for (u32 p = 0; p < a.plane_count; ++p)
            ((uint2 *)((u16 *)a.planes + p * a.plane_stride + at))[i] = take_plane(v);
    }
}
EXPORT(rms_norm);

// ---- f32 to bf16 planes; 8 values by thread and round. ----
struct PlanesArgs {
    u64 x, out, count, plane_stride;
    u32 plane_count, reserved;
};

KERNEL(256, 8, to_planes)(PlanesArgs a) {
    dependency_launch();
    dependency_wait();
    u64 step = (u64)gridDim.x * 256;
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < a.count / 8; i += step) {
        float4 low = ((const float4 *)a.x)[2 * i], high = ((const float4 *)a.x)[2 * i + 1];
        for (u32 p = 0; p < a.plane_count; ++p) {
            uint2 first = take_plane(low), second = take_plane(high);
            uint4 *to = (uint4 *)((u16 *)a.out + p * a.plane_stride);
            to[i] = make_uint4(first.x, first.y, second.x, second.y);
        }
    }
}
EXPORT(to_planes);

// ---- Rows by index: grid (rows, pieces of 1024 columns). ----
struct GatherArgs {
    u64 x, index, out;
    u32 rows, cols, x_rows, reserved;
};

KERNEL(256, 8, gather_rows)(GatherArgs a) {
    dependency_launch();
    dependency_wait();
    u32 row = blockIdx.x, col = (blockIdx.y * 256 + threadIdx.x) * 4;
    if (col >= a.cols) return;
    u32 from = ((const u32 *)a.index)[row];
    float nan = not_a_number();
    float4 v = make_float4(nan, nan, nan, nan);
    if (from < a.x_rows) v = *(const float4 *)((const float *)a.x + (u64)from * a.cols + col);
    *(float4 *)((float *)a.out + (u64)row * a.cols + col) = v;
}
EXPORT(gather_rows);

// ---- x + y, which may be `out`. ----
struct AddArgs {
    u64 x, y, out, count;
    u32 flags, reserved;
};

KERNEL(256, 8, add)(AddArgs a) {
    dependency_launch();
    dependency_wait();
    u64 step = (u64)gridDim.x * 256;
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < a.count / 4; i += step) {
        float4 x = ((const float4 *)a.x)[i], y = ((const float4 *)a.y)[i];
        float4 sum = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
        ((float4 *)a.out)[i] = a.flags & FLAG_BF16 ? rounded(sum) : sum;
    }
}
EXPORT(add);

// ---- After a step: the chosen tokens become the next ids, every sequence is longer by its rows, and the tokens are
// noted for the host, which need not look before the graph runs again. One block. ----
struct Span {
    u32 start, len, past, sequence;
};
struct AdvanceArgs {
    u64 spans, chosen, ids, history, steps;
    u32 sequences, history_steps;
};

KERNEL(256, 1, advance)(AdvanceArgs a) {
    dependency_launch();
    dependency_wait();
    u32 step = a.steps ? *(const u32 *)a.steps : 0;
    Span *spans = (Span *)a.spans;
    for (u32 i = threadIdx.x; i < a.sequences; i += 256) {
        u32 id = ((const u32 *)a.chosen)[i];
        ((u32 *)a.ids)[i] = id;
        spans[i].past += spans[i].len;
        if (a.history && step < a.history_steps) ((u32 *)a.history)[(u64)step * a.sequences + i] = id;
    }
    sync_block();
    if (a.steps && threadIdx.x == 0) *(u32 *)a.steps = step + 1;
}
EXPORT(advance);

// ---- Generated weights, bit for bit those of the host: words of splitmix64, of which each 16 bits become a bf16, or
// each byte an exponent. 16 bytes by thread and round; about 40 integer instructions for 8 bytes. ----
struct FillArgs {
    u64 out, key, first, bytes;
    u32 kind, low, high;
    float mean, scale;
    u32 reserved;
};
const u32 FILL_UNIFORM = 0, FILL_CODES = 1;

DEVICE u64 random_word(u64 key, u64 number) {
    u64 z = key + (number + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

DEVICE float uniform_value(const FillArgs &a, u32 bits) {
    float number = (float)(int)(short)(bits & 0xffffu) + 0.5f;
    return exact_add(a.mean, exact_mul(number, a.scale));
}

// Four bytes of values from four random ones.
DEVICE u32 fill_value(const FillArgs &a, u32 bits) {
    if (a.kind == FILL_CODES) return bits;
    if (a.kind == FILL_UNIFORM) return pack_bf16(uniform_value(a, bits), uniform_value(a, bits >> 16));
    u32 value = 0;
    for (u32 i = 0; i < 4; ++i) value |= (a.low + ((bits >> (8 * i) & 0xffu) < a.high ? 1u : 0u)) << (8 * i);
    return value;
}

KERNEL(256, 8, fill)(FillArgs a) {
    dependency_launch();
    dependency_wait();
    u64 step = (u64)gridDim.x * 256;
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i * 16 < a.bytes; i += step) {
        u64 words[2] = {random_word(a.key, a.first + 2 * i), random_word(a.key, a.first + 2 * i + 1)};
        uint4 v = make_uint4(fill_value(a, (u32)words[0]), fill_value(a, (u32)(words[0] >> 32)),
                             fill_value(a, (u32)words[1]), fill_value(a, (u32)(words[1] >> 32)));
        u64 at = i * 16;
        if (at + 16 <= a.bytes) {
            *(uint4 *)(a.out + at) = v;
        } else {
            for (u64 b = 0; b < a.bytes - at; ++b) {
                u32 word = b < 4 ? v.x : b < 8 ? v.y : b < 12 ? v.z : v.w;
                *(u8 *)(a.out + at + b) = (u8)(word >> (8 * (b % 4)));
            }
        }
    }
}
EXPORT(fill);

// ---- bf16 to codes of 8 bits with an f16 scale for 32 columns, the largest magnitude / 127. Four lanes by block of
// 32, 8 values by lane. ----
struct QuantizeArgs {
    u64 weights, codes, scales, blocks;
};

DEVICE u32 code_of(float w, float inverse) {
    // Adding 1.5 * 2^23 rounds to the nearest whole number, which is then in the low bits.
    float shifted = fminf(fmaxf(w * inverse, -127.0f), 127.0f) + 12582912.0f;
    return float_to_bits(shifted) & 0xffu;
}

DEVICE u32 codes_of(u32 low, u32 high, float inverse) {
    return code_of(low_bf16(low), inverse) | code_of(high_bf16(low), inverse) << 8 |
           code_of(low_bf16(high), inverse) << 16 | code_of(high_bf16(high), inverse) << 24;
}

DEVICE u32 largest_of(u32 pair) { return max_u32(pair << 16 & 0x7fffffffu, pair & 0x7fff0000u); }

KERNEL(256, 8, quantize_q8)(QuantizeArgs a) {
    dependency_launch();
    dependency_wait();
    u64 step = (u64)gridDim.x * 256, all = a.blocks * 4;
    // All lanes of a warp stay until none has work.
    for (u64 first = (u64)blockIdx.x * 256; first < all; first += step) {
        u64 i = first + threadIdx.x;
        bool valid = i < all;
        uint4 w = make_uint4(0, 0, 0, 0);
        if (valid) w = load_once((const uint4 *)a.weights + i);
        u32 largest = max_u32(max_u32(largest_of(w.x), largest_of(w.y)), max_u32(largest_of(w.z), largest_of(w.w)));
        largest = max_u32(largest, shuffle_xor(largest, 1));
        largest = max_u32(largest, shuffle_xor(largest, 2));
        u16 bits = float_to_half(bits_to_float(largest) / 127.0f);
        float scale = half_to_float(bits), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
        if (!valid) continue;
        ((uint2 *)a.codes)[i] = make_uint2(codes_of(w.x, w.y, inverse), codes_of(w.z, w.w, inverse));
        if (i % 4 == 0) ((u16 *)a.scales)[i / 4] = bits;
    }
}
EXPORT(quantize_q8);

// ---- MXFP4 as in the checkpoint to bf16, exact for scales up to 128: 8 values by thread. ----
struct ExpandArgs {
    u64 codes, scales, out, blocks;
};

// Two values from the two low nibbles that lie at bits 0 and 16.
DEVICE u32 expand_pair(u32 nibbles, u32 factor) {
    return mul_bf16x2((nibbles & 0x00070007u) << 6 | (nibbles & 0x00080008u) << 12, factor);
}

KERNEL(256, 8, expand_mxfp4)(ExpandArgs a) {
    dependency_launch();
    dependency_wait();
    u64 step = (u64)gridDim.x * 256;
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < a.blocks * 4; i += step) {
        u32 codes = ((const u32 *)a.codes)[i], scale = ((const u8 *)a.scales)[i / 4];
        // 2^(scale - 1) as bf16: the bits below are values times 2^-126.
        u32 factor = (scale + 126) << 7;
        factor |= factor << 16;
        u32 pairs[4];
        for (u32 k = 0; k < 4; ++k) {
            u32 byte = codes >> (8 * k);
            pairs[k] = expand_pair((byte & 15u) | (byte & 0xf0u) << 12, factor);
        }
        ((uint4 *)a.out)[i] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
}
EXPORT(expand_mxfp4);

// ---- Upper bounds of a device, measured. ----
struct CopyArgs {
    u64 from, to, count;
};

// 16 bytes `count` times; 64 bytes under way by thread, 16 MB on 132 multiprocessors.
KERNEL(256, 8, copy_bandwidth)(CopyArgs a) {
    dependency_launch();
    dependency_wait();
    u64 step = (u64)gridDim.x * 256, i = (u64)blockIdx.x * 256 + threadIdx.x;
    const uint4 *from = (const uint4 *)a.from;
    uint4 *to = (uint4 *)a.to;
    for (; i + 3 * step < a.count; i += 4 * step) {
        uint4 v0 = load_once(from + i), v1 = load_once(from + i + step);
        uint4 v2 = load_once(from + i + 2 * step), v3 = load_once(from + i + 3 * step);
        to[i] = v0;
        to[i + step] = v1;
        to[i + 2 * step] = v2;
        to[i + 3 * step] = v3;
    }
    for (; i < a.count; i += step) to[i] = load_once(from + i);
}
EXPORT(copy_bandwidth);

struct ReadArgs {
    u64 from, out, count;
};

// Sums the words of 16 bytes `count` times, so that nothing can be left out; each block adds to its own u32 of out. As many
// bytes under way as in copy_bandwidth.
KERNEL(256, 8, read_bandwidth)(ReadArgs a) {
    dependency_launch();
    dependency_wait();
    u64 step = (u64)gridDim.x * 256, i = (u64)blockIdx.x * 256 + threadIdx.x;
    const uint4 *from = (const uint4 *)a.from;
    u32 sum = 0;
    for (; i + 3 * step < a.count; i += 4 * step) {
        uint4 v0 = load_once(from + i), v1 = load_once(from + i + step);
        uint4 v2 = load_once(from + i + 2 * step), v3 = load_once(from + i + 3 * step);
        sum += v0.x + v0.y + v0.z + v0.w + v1.x + v1.y + v1.z + v1.w;
        sum += v2.x + v2.y + v2.z + v2.w + v3.x + v3.y + v3.z + v3.w;
    }
    for (; i < a.count; i += step) {
        uint4 v = load_once(from + i);
        sum += v.x + v.y + v.z + v.w;
    }
    for (u32 mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    if (threadIdx.x % 32 == 0) atomic_add((u32 *)a.out + blockIdx.x, sum);
}
EXPORT(read_bandwidth);

struct PeakArgs {
    u64 out;
    u32 rounds, reserved;
};

// Eight products 16x8x16 of ones by warp and round, each on a sum of its own; out: one sum by warp.
KERNEL(256, 2, matrix_peak)(PeakArgs a) {
    dependency_launch();
    dependency_wait();
    const u32 ONES = 0x3f803f80u;
    u32 left[4] = {ONES, ONES, ONES, ONES}, right[2] = {ONES, ONES};
    float sums[8][4];
    for (u32 i = 0; i < 8; ++i)
        for (u32 j = 0; j < 4; ++j) sums[i][j] = 0.0f;
    for (u32 round = 0; round < a.rounds; ++round)
#pragma unroll
        for (u32 i = 0; i < 8; ++i) mma_bf16(sums[i], left, right);
    float sum = 0.0f;
    for (u32 i = 0; i < 8; ++i)
        for (u32 j = 0; j < 4; ++j) sum += sums[i][j];
    if (threadIdx.x % 32 == 0) ((float *)a.out)[blockIdx.x * 8 + threadIdx.x / 32] = sum;
}
EXPORT(matrix_peak);
