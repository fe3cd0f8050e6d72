// Routing of tokens to experts: the choice and its weights, slots sorted by expert, and the weighted sum of the rows
// that experts give. A slot is token * slots_per_token + choice.
#include "device.cuh"

static const u32 ROUND = 1, FORCED = 64;
static const u32 MAX_EXPERTS = 128, MAX_CHOSEN = 8;

struct RouteArgs {
    u64 logits;   // f32 [tokens][experts]
    u64 choice;   // u32 [tokens][slots_per_token]: written, or with FORCED read
    u64 weights;  // f32 [tokens][slots_per_token]
    u64 counters; // u64 [3], or 0: layer passes, distinct experts, tokens; one token only
    u32 tokens, experts, slots_per_token, flags;
};

// Adds one pass of `tokens` tokens.
DEVICE void count_pass(u64 counters, u32 distinct, u32 tokens) {
    u64 *all = (u64 *)counters;
    all[0] += 1;
    all[1] += distinct;
    all[2] += tokens;
}

// Larger for a larger logit, and for the lower of two experts with equal ones; never 0. NaN is as the lowest.
DEVICE u64 rank_of(float logit, u32 expert) {
    u32 bits = logit != logit ? 0xff800000u : float_to_bits(logit);
    u32 key = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)key << 32 | (0xffffffffu - expert);
}

DEVICE u64 warp_max(u64 x) {
    for (u32 mask = 16; mask > 0; mask /= 2) {
        u64 other = shuffle_xor(x, mask);
        x = other > x ? other : x;
    }
    return x;
}

// A warp for each token: its largest logits, one after the other, and their softmax. Latency is the limit: one read,
// five exchanges for each choice.
KERNEL(128, 1, route)(RouteArgs a) {
    dependency_launch();
    u32 lane = threadIdx.x % 32, k = a.slots_per_token;
    u32 token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    dependency_wait();
    if (token >= a.tokens) return;
    const float *logits = (const float *)a.logits + (u64)token * a.experts;
    u32 *choice = (u32 *)a.choice + (u64)token * k;
    u32 chosen = 0;
    if (a.flags & FORCED) {
        if (lane < k) chosen = choice[lane];
    } else {
        u64 ranks[MAX_EXPERTS / 32];
        UNROLL
        for (u32 i = 0; i < MAX_EXPERTS / 32; ++i) {
            u32 expert = i * 32 + lane;
            ranks[i] = expert < a.experts ? rank_of(logits[expert], expert) : 0;
        }
        for (u32 j = 0; j < k; ++j) {
            u64 best = 0;
            UNROLL
            for (u32 i = 0; i < MAX_EXPERTS / 32; ++i) best = ranks[i] > best ? ranks[i] : best;
            best = warp_max(best);
            if (lane == j) chosen = 0xffffffffu - (u32)best;
            UNROLL
            for (u32 i = 0; i < MAX_EXPERTS / 32; ++i)
                if (ranks[i] == best) ranks[i] = 0;
        }
        if (lane < k) choice[lane] = chosen;
    }
    float logit = lane < k ? logits[chosen] : bits_to_float(0xff800000u);
    float largest = warp_max(logit);
    float share = lane < k ? expf(logit - largest) : 0.0f;
    float sum = 0.0f;
    u32 distinct = 0;
    for (u32 j = 0; j < k; ++j) {
        sum += shuffle(share, j);
        u32 other = shuffle(chosen, j), same = ballot(lane <= j && chosen == other);
        distinct += count_bits(same) == 1;
    }
    share /= sum;
    if (a.flags & ROUND) share = round_bf16(share);
    if (lane < k) ((float *)a.weights)[(u64)token * k + lane] = share;
    if (a.counters && a.tokens == 1 && lane == 0) count_pass(a.counters, distinct, 1);
}
EXPORT(route);

struct AllExpertsArgs {
    u64 choice;      // u32 [tokens][slots_per_token]
    u64 weights;     // f32 [tokens][slots_per_token]
    u64 all;         // u32 [tokens][experts]: written, the chosen ones first, then the others in ascending order
    u64 all_weights; // f32 [tokens][experts]: written, 0 for the others
    u32 tokens, experts, slots_per_token, unused;
};

// A block for each token, a thread for each expert: a few reads that all threads share, one write.
KERNEL(128, 1, all_experts)(AllExpertsArgs a) {
    dependency_launch();
    u32 expert = threadIdx.x, k = a.slots_per_token;
    u64 token = blockIdx.x;
    dependency_wait();
    if (expert >= a.experts) return;
    const u32 *choice = (const u32 *)a.choice + token * k;
    const float *weights = (const float *)a.weights + token * k;
    // An expert may be chosen twice, where a hook did: it has one place, and both weights.
    float weight = 0.0f;
    u32 distinct = 0, below = 0, place = MAX_EXPERTS;
    for (u32 j = 0; j < k; ++j) {
        u32 other = choice[j], again = 0;
        for (u32 i = 0; i < j; ++i) again |= choice[i] == other;
        if (other == expert) {
            weight += weights[j];
            if (!again) place = distinct;
        }
        distinct += !again;
        below += !again && other < expert;
    }
    if (place == MAX_EXPERTS) place = distinct + expert - below;
    ((u32 *)a.all)[token * a.experts + place] = expert;
    ((float *)a.all_weights)[token * a.experts + place] = weight;
}
EXPORT(all_experts);

struct SortArgs {
    u64 choice;   // u32 [slots]
    u64 order;    // u32 [slots]: slots by expert, ascending within each
    u64 offsets;  // u32 [experts + 1]
    u64 counters; // u64 [3], or 0: layer passes, distinct experts, tokens
    u32 slots, experts, tokens, unused;
};

// One block; each warp takes a run of slots. It counts them by expert, finds where each of its experts' slots go behind
// those of the experts and warps before, and puts them there in their order. Two passes over the slots, which stay in
// the caches.
KERNEL(1024, 1, sort_slots)(SortArgs a) {
    SHARED u32 places[32][MAX_EXPERTS];
    SHARED u32 sums[4];
    dependency_launch();
    const u32 tid = threadIdx.x, lane = tid % 32, warp = tid / 32, warps = blockDim.x / 32;
    for (u32 i = tid; i < 32 * MAX_EXPERTS; i += blockDim.x) places[i / MAX_EXPERTS][i % MAX_EXPERTS] = 0;
    sync_block();
    dependency_wait();
    const u32 *choice = (const u32 *)a.choice;
    u32 run = ceil_div(a.slots, 32 * warps) * 32, first = warp * run;
    u32 end = min_u32(first + run, a.slots);
    for (u32 slot = first + lane; slot < end; slot += 32) atomic_add(&places[warp][choice[slot]], 1u);
    sync_block();
    // Four warps have an expert in each lane. Blocks have four warps at least.
    u32 total = 0, before = 0;
    if (tid < MAX_EXPERTS) {
        for (u32 w = 0; w < warps; ++w) total += places[w][tid];
        before = total;
        for (u32 by = 1; by < 32; by *= 2) {
            u32 other = shuffle_up(before, by);
            if (lane >= by) before += other;
        }
        if (lane == 31) sums[warp] = before;
        before -= total;
    }
    sync_block();
    if (tid < MAX_EXPERTS) {
        for (u32 w = 0; w < warp; ++w) before += sums[w];
        u32 *offsets = (u32 *)a.offsets;
        if (tid < a.experts) offsets[tid] = before;
        if (tid == 0) offsets[a.experts] = a.slots;
        u32 place = before;
        for (u32 w = 0; w < warps; ++w) {
            u32 count = places[w][tid];
            places[w][tid] = place;
            place += count;
        }
    }
    // All have read the sums of the warps, whose places are used again for the experts that any slot chose.
    sync_block();
    if (tid < MAX_EXPERTS) {
        u32 busy = count_bits(ballot(total > 0));
        if (lane == 0) sums[warp] = busy;
    }
    sync_block();
    if (tid == 0 && a.counters) count_pass(a.counters, sums[0] + sums[1] + sums[2] + sums[3], a.tokens);
    for (u32 base = first; base < end; base += 32) {
        u32 slot = base + lane;
        bool valid = slot < end;
        u32 expert = valid ? choice[slot] : 0;
        u32 same = ballot(valid);
        for (u32 bit = 1; bit < MAX_EXPERTS; bit *= 2) {
            u32 ones = ballot(expert & bit);
            same &= expert & bit ? ones : ~ones;
        }
        u32 earlier = count_bits(same & ((1u << lane) - 1));
        u32 place = places[warp][expert] + earlier;
        if (valid) ((u32 *)a.order)[place] = slot;
        sync_warp();
        // The last of an expert's lanes has counted the others.
        if (valid && same >> lane == 1) places[warp][expert] = place + 1;
        sync_warp();
    }
}
EXPORT(sort_slots);

struct CombineArgs {
    u64 rows;     // f32 [tokens * slots_per_token][cols]
    u64 weights;  // f32 [tokens][slots_per_token]
    u64 residual; // f32 [tokens][cols], or 0
    u64 out;      // f32 [tokens][cols], may be the residual
    u32 tokens, cols, slots_per_token, flags;
};

// A thread for four columns of a token: the reads of eight rows under way before their sum. Memory is the limit. A weight
// of 0 adds nothing, whatever its row holds: an expert that was not chosen must not spoil the sum.
KERNEL(256, 4, combine)(CombineArgs a) {
    dependency_launch();
    dependency_wait();
    u32 k = a.slots_per_token, token = blockIdx.x, column = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
    if (column >= a.cols) return;
    bool round = a.flags & ROUND;
    const float *rows = (const float *)a.rows + (u64)token * k * a.cols + column;
    const float *weights = (const float *)a.weights + (u64)token * k;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (u32 first = 0; first < k; first += MAX_CHOSEN) {
        float4 values[MAX_CHOSEN];
        float shares[MAX_CHOSEN];
        UNROLL
        for (u32 j = 0; j < MAX_CHOSEN; ++j)
            if (first + j < k) {
                values[j] = *(const float4 *)(rows + (u64)(first + j) * a.cols);
                shares[j] = weights[first + j];
            }
        UNROLL
        for (u32 j = 0; j < MAX_CHOSEN; ++j) {
            if (first + j >= k || shares[j] == 0.0f) continue;
            float v[4] = {values[j].x, values[j].y, values[j].z, values[j].w};
            UNROLL
            for (u32 i = 0; i < 4; ++i) {
                float product = shares[j] * v[i];
                sum[i] += round ? round_bf16(product) : product;
            }
        }
    }
    u64 at = (u64)token * a.cols + column;
    if (round) {
        UNROLL
        for (u32 i = 0; i < 4; ++i) sum[i] = round_bf16(sum[i]);
    }
    if (a.residual) {
        float4 r = *(const float4 *)((const float *)a.residual + at);
        sum[0] += r.x, sum[1] += r.y, sum[2] += r.z, sum[3] += r.w;
        UNROLL
        for (u32 i = 0; i < 4; ++i) sum[i] = round ? round_bf16(sum[i]) : sum[i];
    }
    *(float4 *)((float *)a.out + at) = make_float4(sum[0], sum[1], sum[2], sum[3]);
}
EXPORT(combine);
