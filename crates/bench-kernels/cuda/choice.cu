// The choice of the next token: the largest logit, or a draw among what top-k and top-p leave.
//
// Weights are whole numbers of 2^-40 of the largest logit's, from operations of which each is one rounding: sums do not
// depend on an order, blocks may add in any, and the host (src/draw.rs) finds the same token. What is left of a row is
// told by a key (the bits of a logit, in its order) and by how many of those that have just this key, the lowest ids
// first. `narrow` finds it digit by digit from the top: it adds counts (top-k) or weights (top-p) of the logits that
// agree with the digits so far by their next digit, 11, 11 and 10 bits; so three launches for each of the two, for all
// rows together. `sample` draws in the order of ids.
//
// Limits: each launch reads a row once, 804 KB for 201,088 logits, which stay in the second cache: a row alone is bound
// by launches (197 blocks of one access by thread), 64 rows by the additions in shared memory of the first digit, where
// the keys of usual logits meet in some dozen places. Later digits add few.
#include "device.cuh"

// Blocks of a row are at most MAX_PARTS. Each looks at one part of it and leaves its result in the row's scratch; the
// last one joins them.
const u32 NOBODY = ~0u, MAX_PARTS = 256, MINUS_INFINITY = 0xff800000u;

// A row's scratch: how many blocks are done, and 16 bytes for each.
struct Part {
    u32 words[4];
};
struct RowScratch {
    u32 done, reserved[3];
    Part parts[MAX_PARTS];
};

// What a row is drawn by: top_k is 0 and top_p is 1 where they are not wanted.
struct Draw {
    double uniform;
    float temperature, top_p;
    u32 top_k, reserved;
};

const u32 DIGITS = 3, BINS = 2048;

// What is left of a row: keys above `key`, and `ties` of those that equal it. On the way there: counts or weights by
// digit, zeros between launches; the digits that are known, and what is to be found below them, 0 for nothing.
struct RowCut {
    u64 bins[BINS];
    u64 left;
    u32 prefix, key, ties, reserved;
};

struct SelectArgs {
    u64 logits, suppressed, ids, best, non_finite, draws, cuts, scratch;
    u32 rows, vocab, stride, suppressed_count, pass, reserved;
};

struct Best {
    float value;
    u32 id;
};

DEVICE Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a; }

DEVICE bool is_suppressed(const SelectArgs &a, u32 id) {
    for (u32 i = 0; i < a.suppressed_count; ++i)
        if (((const u32 *)a.suppressed)[i] == id) return true;
    return false;
}

// Ids from `start` up to `end`.
struct Range {
    u64 start, end;
};

// Those of a part; all but the last have as many, in multiples of 1024.
DEVICE Range part_range(const SelectArgs &a, u32 part) {
    u64 size = (u64)ceil_div(ceil_div(a.vocab, gridDim.x), 1024) * 1024, start = part * size;
    return {start, start + size < a.vocab ? start + size : a.vocab};
}

// Whether any of them is suppressed: few parts have one, the others need not look. Synchronizes the block.
DEVICE bool any_suppressed(const SelectArgs &a, Range ids) {
    bool any = false;
    for (u32 i = threadIdx.x; i < a.suppressed_count; i += 256) {
        u32 id = ((const u32 *)a.suppressed)[i];
        any |= id >= ids.start && id < ids.end;
    }
    return any_in_block(any);
}

// Up to four logits from `id` on; `count` says how many.
DEVICE float4 four_logits(const SelectArgs &a, const float *row, u32 id, u32 &count) {
    count = min_u32(4, a.vocab - id);
    if (count == 4 && a.stride % 4 == 0) return *(const float4 *)(row + id);
    float4 v = make_float4(row[id], 0.0f, 0.0f, 0.0f);
    if (count > 1) v.y = row[id + 1];
    if (count > 2) v.z = row[id + 2];
    if (count > 3) v.w = row[id + 3];
    return v;
}

DEVICE float element(const float4 &v, u32 i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Whether this block is the last of its row to come here; then what all blocks wrote before is visible.
DEVICE bool is_last(RowScratch *scratch) {
    SHARED u32 last;
    sync_block();
    if (threadIdx.x == 0) {
        fence();
        last = atomic_add(&scratch->done, 1u) == gridDim.x - 1;
        if (last) scratch->done = 0;
        fence();
    }
    sync_block();
    return last;
}

DEVICE Best block_best(Best best) {
    SHARED Best partial[8];
    for (u32 mask = 16; mask > 0; mask /= 2) {
        Best other = {shuffle_xor(best.value, mask), shuffle_xor(best.id, mask)};
        best = better(best, other);
    }
    sync_block();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = best;
    sync_block();
    for (u32 w = 0; w < 8; ++w) best = better(best, partial[w]);
    return best;
}

DEVICE u32 block_count(u32 count) {
    SHARED u32 partial[8];
    for (u32 mask = 16; mask > 0; mask /= 2) count += shuffle_xor(count, mask);
    sync_block();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = count;
    sync_block();
    u32 sum = 0;
    for (u32 w = 0; w < 8; ++w) sum += partial[w];
    return sum;
}

// The sum over the threads before this one; `all` becomes that over all.
DEVICE u64 sum_before(u64 x, u64 &all) {
    SHARED u64 partial[8];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 sum = x;
    for (u32 by = 1; by < 32; by *= 2) {
        u64 other = shuffle_up(sum, by);
        if (lane >= by) sum += other;
    }
    sync_block();
    if (lane == 31) partial[warp] = sum;
    sync_block();
    u64 before = sum - x;
    all = 0;
    for (u32 w = 0; w < 8; ++w) {
        if (w < warp) before += partial[w];
        all += partial[w];
    }
    return before;
}

// The lowest id of the largest logit, its logit, and how many logits are infinite or no number.
KERNEL(256, 4, argmax)(SelectArgs a) {
    dependency_launch();
    dependency_wait();
    u32 row = blockIdx.y;
    const float *logits = (const float *)a.logits + (u64)row * a.stride;
    Range ids = part_range(a, blockIdx.x);
    Best best = {bits_to_float(MINUS_INFINITY), NOBODY};
    u32 wrong = 0;
    for (u64 id = ids.start + threadIdx.x * 4; id < ids.end; id += 1024) {
        u32 count;
        float4 v = four_logits(a, logits, (u32)id, count);
        for (u32 i = 0; i < count; ++i) {
            float logit = element(v, i);
            wrong += (float_to_bits(logit) & 0x7f800000u) == 0x7f800000u;
            if (logit > best.value && !is_suppressed(a, (u32)id + i)) best = {logit, (u32)id + i};
        }
    }
    best = block_best(best);
    wrong = block_count(wrong);
    RowScratch *scratch = (RowScratch *)a.scratch + row;
    if (threadIdx.x == 0) {
        Part *part = &scratch->parts[blockIdx.x];
        part->words[0] = float_to_bits(best.value);
        part->words[1] = best.id;
        part->words[2] = wrong;
    }
    if (!is_last(scratch)) return;
    best = {bits_to_float(MINUS_INFINITY), NOBODY};
    wrong = 0;
    if (threadIdx.x < gridDim.x) {
        const u32 *words = scratch->parts[threadIdx.x].words;
        best = {bits_to_float(load_shared_by_blocks(words)), load_shared_by_blocks(words + 1)};
        wrong = load_shared_by_blocks(words + 2);
    }
    best = block_best(best);
    wrong = block_count(wrong);
    if (threadIdx.x == 0) {
        ((u32 *)a.ids)[row] = best.id;
        if (a.best) ((float *)a.best)[row] = best.value;
        if (a.non_finite) ((u32 *)a.non_finite)[row] = wrong;
    }
}
EXPORT(argmax);

// Larger for a larger logit, never 0; and the logit of a key. -0 is less than 0.
DEVICE u32 key_of(float logit) {
    u32 bits = float_to_bits(logit);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float logit_of(u32 key) { return bits_to_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// A row's largest logit and temperature: what its weights are relative to.
struct Scale {
    float largest, temperature;
};

// exp((logit - largest) / temperature) times 2^40, as src/draw.rs has it operation by operation.
DEVICE u64 weight_of(float logit, Scale scale) {
    double difference = (double)logit - (double)scale.largest;
    // An infinite logit wins outright: its difference to itself is no number.
    if (!(difference == difference)) return 1ull << 40;
    double x = difference / (double)scale.temperature;
    if (!(x > -30.0)) return 0;
    // x is (part - whole) ln 2, with a part from 0 to 1.
    double binary = exact_mul(x, 1.4426950408889634);
    u32 whole = (u32)(1 - (int)binary);
    double part = exact_add(binary, (double)whole);
    double y = exact_mul(exact_add(part, -0.5), 0.6931471805599453);
    const double over_factorial[10] = {1.0,          1.0,           1.0 / 2.0,      1.0 / 6.0,      1.0 / 24.0,
                                       1.0 / 120.0,  1.0 / 720.0,   1.0 / 5040.0,   1.0 / 40320.0,  1.0 / 362880.0};
    double sum = 1.0 / 3628800.0;
    UNROLL
    for (u32 i = 10; i > 0; --i) sum = exact_add(exact_mul(sum, y), over_factorial[i - 1]);
    u64 fixed = (u64)exact_mul(sum, 1.4142135623730951 * 1099511627776.0);
    return (fixed + (1ull << (whole - 1))) >> whole;
}

// The least weight that is this share of all, at least 1.
DEVICE u64 share_of(u64 all, float share) {
    double wanted = exact_mul((double)share, (double)all);
    u64 least = (u64)wanted;
    if ((double)least < wanted) ++least;
    return least < 1 ? 1 : least > all ? all : least;
}

// A digit of keys: its place, and the mask of its values.
struct Digit {
    u32 number, shift, mask;
};
DEVICE Digit digit_of(u32 pass) {
    u32 number = pass % DIGITS;
    return {number, number == 0 ? 21u : number == 1 ? 10u : 0u, number == 2 ? 1023u : 2047u};
}

// Whether the digits before this one are those of `prefix`.
DEVICE bool agrees(u32 key, u32 prefix, Digit digit) {
    return digit.number == 0 || (key ^ prefix) >> (digit.number == 1 ? 21 : 10) == 0;
}

// Adds counts or weights of a part by their digit: those of keys above `above` that agree so far.
DEVICE void add_digits(const SelectArgs &a, u64 *bins, const float *logits, Digit digit, u32 prefix, u32 above,
                       bool by_weight, Scale scale) {
    Range ids = part_range(a, blockIdx.x);
    for (u32 i = threadIdx.x; i < BINS; i += 256) bins[i] = 0;
    bool some = any_suppressed(a, ids);
    for (u64 id = ids.start + threadIdx.x * 4; id < ids.end; id += 1024) {
        u32 count;
        float4 v = four_logits(a, logits, (u32)id, count);
        for (u32 i = 0; i < count; ++i) {
            float logit = element(v, i);
            u32 key = key_of(logit);
            if (!(logit > bits_to_float(MINUS_INFINITY)) || key <= above || !agrees(key, prefix, digit)) continue;
            u64 amount = by_weight ? weight_of(logit, scale) : 1;
            if (amount == 0 || (some && is_suppressed(a, (u32)id + i))) continue;
            atomic_add(&bins[key >> digit.shift & digit.mask], amount);
        }
    }
    sync_block();
}

// One digit of what top-k or top-p leave of each row that has them: passes 0 to 2 are those of the first, or only one;
// 3 to 5 those of top-p within top-k.
KERNEL(256, 4, narrow)(SelectArgs a) {
    dependency_launch();
    dependency_wait();
    SHARED u64 bins[BINS];
    u32 row = blockIdx.y, tid = threadIdx.x;
    Draw draw = ((const Draw *)a.draws)[row];
    bool later = a.pass >= DIGITS, within = later && draw.top_k;
    bool by_count = draw.top_k && !later, by_weight = draw.top_p < 1.0f && (draw.top_k != 0) == later;
    if (!(draw.temperature > 0.0f) || (!by_count && !by_weight)) return;
    Digit digit = digit_of(a.pass);
    RowCut *cut = (RowCut *)a.cuts + row;
    u32 prefix = digit.number ? cut->prefix : 0;
    u64 wanted = digit.number ? cut->left : 1;
    if (wanted == 0) return;
    u32 key = within ? cut->key : 0, ties = within ? cut->ties : 0;
    Scale scale = {((const float *)a.best)[row], draw.temperature};
    add_digits(a, bins, (const float *)a.logits + (u64)row * a.stride, digit, prefix, key, by_weight, scale);
    for (u32 i = tid; i < BINS; i += 256)
        if (bins[i]) atomic_add(&cut->bins[i], bins[i]);
    if (!is_last((RowScratch *)a.scratch + row)) return;

    // Eight bins by thread, from the top.
    u64 own[8], sum = 0;
    UNROLL
    for (u32 i = 0; i < 8; ++i) {
        u32 bin = BINS - 1 - (8 * tid + i);
        own[i] = load_shared_by_blocks(&cut->bins[bin]);
        cut->bins[bin] = 0;
        if (ties && agrees(key, prefix, digit) && bin == (key >> digit.shift & digit.mask))
            own[i] += ties * weight_of(logit_of(key), scale);
        sum += own[i];
    }
    u64 all, before = sum_before(sum, all);
    if (digit.number == 0) {
        wanted = by_count ? draw.top_k : all ? share_of(all, draw.top_p) : 0;
        if (wanted == 0 || (by_count && wanted >= all)) {
            // Nothing more is cut.
            if (tid == 0) {
                cut->left = 0;
                if (!within) cut->key = cut->ties = 0;
            }
            return;
        }
    }
    UNROLL
    for (u32 i = 0; i < 8; ++i) {
        if (before < wanted && wanted <= before + own[i]) {
            u64 left = wanted - before;
            prefix |= (BINS - 1 - (8 * tid + i)) << digit.shift;
            cut->prefix = prefix;
            cut->left = left;
            if (digit.number == DIGITS - 1) {
                u64 each = by_count ? 1 : weight_of(logit_of(prefix), scale);
                cut->key = prefix;
                cut->ties = (u32)((left + each - 1) / each);
            }
        }
        before += own[i];
    }
}
EXPORT(narrow);

// Of some logits: the weight of keys above the cut, and how many have its key.
struct Share {
    u64 above;
    u64 ties;
};

// What up to four logits from `id` on add to it.
DEVICE void add_share(Share &share, const SelectArgs &a, const float *logits, u32 id, u32 cut, Scale scale, bool some) {
    u32 count;
    float4 v = four_logits(a, logits, id, count);
    for (u32 i = 0; i < count; ++i) {
        float logit = element(v, i);
        u32 key = key_of(logit);
        if (!(logit > bits_to_float(MINUS_INFINITY)) || key < cut || (some && is_suppressed(a, id + i))) continue;
        if (key > cut) share.above += weight_of(logit, scale);
        else ++share.ties;
    }
}

// How many of `ties` are among the first `most` of a row, of which `before` come earlier.
DEVICE u64 among(u64 ties, u64 before, u64 most) {
    u64 room = most > before ? most - before : 0;
    return ties < room ? ties : room;
}

// Of four logits from `id` on, the one that holds `rest` of their weight, with room for `most` ties.
DEVICE u32 find_id(const SelectArgs &a, const float *logits, u32 id, u32 cut, Scale scale, bool some, u64 rest,
                   u64 most) {
    u32 count;
    float4 v = four_logits(a, logits, id, count);
    for (u32 i = 0; i < count; ++i) {
        float logit = element(v, i);
        u32 key = key_of(logit);
        if (!(logit > bits_to_float(MINUS_INFINITY)) || key < cut || (some && is_suppressed(a, id + i))) continue;
        if (key == cut) {
            if (most == 0) continue;
            --most;
        }
        u64 weight = weight_of(logit, scale);
        if (rest < weight) return id + i;
        rest -= weight;
    }
    return NOBODY;
}

// A token by its weight among those that are left: the one where the sum of weights, in the order of ids, exceeds the
// row's uniform value times the whole sum. `best` is argmax's, cuts are narrow's; a row whose temperature is 0 keeps
// argmax's token.
KERNEL(256, 4, sample)(SelectArgs a) {
    dependency_launch();
    dependency_wait();
    SHARED u64 found_rest, found_ties;
    SHARED u32 found;
    u32 row = blockIdx.y, tid = threadIdx.x;
    const float *logits = (const float *)a.logits + (u64)row * a.stride;
    Draw draw = ((const Draw *)a.draws)[row];
    if (!(draw.temperature > 0.0f)) return;
    Scale scale = {((const float *)a.best)[row], draw.temperature};
    bool is_cut = draw.top_k || draw.top_p < 1.0f;
    const RowCut *cut = (const RowCut *)a.cuts + row;
    u32 key = is_cut ? cut->key : 0, most = is_cut ? cut->ties : 0;
    Range ids = part_range(a, blockIdx.x);
    bool some = any_suppressed(a, ids);
    Share share = {0, 0};
    for (u64 id = ids.start + tid * 4; id < ids.end; id += 1024)
        add_share(share, a, logits, (u32)id, key, scale, some);
    u64 above, ties;
    sum_before(share.above, above);
    sum_before(share.ties, ties);
    RowScratch *scratch = (RowScratch *)a.scratch + row;
    if (tid == 0) {
        u64 *words = (u64 *)scratch->parts[blockIdx.x].words;
        words[0] = above;
        words[1] = ties;
    }
    if (!is_last(scratch)) return;

    share = {0, 0};
    if (tid < gridDim.x) {
        const u64 *words = (const u64 *)scratch->parts[tid].words;
        share = {load_shared_by_blocks(words), load_shared_by_blocks(words + 1)};
    }
    u64 each = most ? weight_of(logit_of(key), scale) : 0;
    u64 earlier = sum_before(share.ties, ties);
    u64 weight = share.above + among(share.ties, earlier, most) * each;
    u64 all, before = sum_before(weight, all);
    if (all == 0) {
        if (tid == 0) ((u32 *)a.ids)[row] = NOBODY;
        return;
    }
    u64 rest = (u64)exact_mul(draw.uniform, (double)all);
    if (rest >= all) rest = all - 1;
    if (before <= rest && rest < before + weight) {
        found = tid;
        found_rest = rest - before;
        found_ties = most > earlier ? most - earlier : 0;
    }
    sync_block();
    rest = found_rest;
    u64 room = found_ties;
    ids = part_range(a, found);
    some = any_suppressed(a, ids);
    for (u64 id = ids.start; id < ids.end; id += 1024) {
        share = {0, 0};
        u32 mine = (u32)id + tid * 4;
        if (mine < ids.end) add_share(share, a, logits, mine, key, scale, some);
        earlier = sum_before(share.ties, ties);
        weight = share.above + among(share.ties, earlier, room) * each;
        before = sum_before(weight, all);
        if (before <= rest && rest < before + weight) {
            u64 allowed = room > earlier ? room - earlier : 0;
            ((u32 *)a.ids)[row] = find_id(a, logits, mine, key, scale, some, rest - before, allowed);
        }
        if (rest < all) return;
        rest -= all;
        room = room > ties ? room - ties : 0;
    }
}
EXPORT(sample);
