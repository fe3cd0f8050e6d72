// Products of warpgroups, as late and as intolerant as they may be on a GPU (PTX ISA, "Asynchronous Warpgroup Level
// Matrix Instructions"). A product is made when its warp waits for its group; until then its sums hold no numbers. What
// it was asked for with (registers, shared memory) must then be what it was when it was asked for.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef int i32;
#include "emulate.h"

#include "emulate_warpgroup.h"

#include <vector>

namespace emulate {

namespace {

const u32 ROWS = 16, DEPTH = 16, MOST_COLUMNS = 256, WARPS = 4;
// No number: what reads sums before they are there shows, and what writes them is noticed.
const u32 UNDER_WAY = 0x7fc0beefu;
// Where dynamic shared memory begins: behind what the system keeps, and at no multiple of 1,024.
const u32 SHARED_START = 1024 + 128;
const size_t GRANULE = 16;

// Registers that products write, known by their place.
struct Sums {
    float *at;
    u32 columns, under_way;
    // Since the last fence, or while products are under way what those that are made came to.
    std::vector<float> values;
};

// Registers that products read.
struct Rows {
    const u32 *at;
    u32 fenced[4];
};

struct Product {
    u32 columns, group;
    bool add;
    size_t sums;
    const u32 *a;
    u32 values[4];
    u64 from, rows;
    // Of its shared memory when it was asked for; known by lane 0.
    u64 sum_of_bytes;
};

// What a thread asked for.
struct Asked {
    std::vector<Sums> sums;
    std::vector<Rows> rows;
    std::vector<Product> products;
    // Groups committed, products made, fences of the proxy.
    u32 groups, made, proxy_fences;
    bool fenced;
    // Products since the last fence are in the group that is open.
    bool fenced_in_group;
};

// The products of a warpgroup, each by what must be the same in all its warps.
struct Order {
    u64 from, rows;
    u32 columns;
    bool add, registers;
};
struct Warpgroup {
    std::vector<Order> order;
    u32 asked[WARPS];
};

// Who copied a granule of shared memory, from 1 on, and how many fences of the proxy it had made before.
struct Writer {
    u32 thread, fences;
};

thread_local std::vector<Asked> asked;
thread_local std::vector<Warpgroup> warpgroups;
thread_local std::vector<Writer> writers;
thread_local bool wrong = false;
// Of the product that a warp makes: every row of its 16, and the other matrix transposed.
thread_local float tile[ROWS][MOST_COLUMNS], left[ROWS][DEPTH], right[DEPTH][MOST_COLUMNS];

u32 bits_of(const float *at) {
    u32 bits;
    memcpy(&bits, at, 4);
    return bits;
}

// The 16 bytes with columns 8 `half` and on of row `row` of a matrix of 16 columns (K-major).
const u8 *piece(u64 descriptor, u32 row, u32 half) {
    const u64 reserved = ~(0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62);
    if (descriptor & reserved) fail("a matrix descriptor with bits that mean nothing");
    u32 start = (u32)(descriptor & 0x3fff) << 4, leading = (u32)(descriptor >> 16 & 0x3fff) << 4;
    u32 stride = (u32)(descriptor >> 32 & 0x3fff) << 4, base = (u32)(descriptor >> 49 & 7);
    u32 mode = (u32)(descriptor >> 62);
    u32 address;
    if (mode == 0) {
        address = start + row / 8 * stride + row % 8 * 16 + half * leading;
    } else {
        // Rows of 128, 64 or 32 bytes; bits 4 and on of an address change with those from 7 on, 3, 2 or 1 of them.
        u32 bits = 4 - mode;
        address = start + row / 8 * stride + row % 8 * (16u << bits) + half * 16;
        address ^= (((address >> 7) - base) & ((1u << bits) - 1)) << 4;
    }
    if (address < SHARED_START || address + 16 > SHARED_START + shared_bytes())
        fail("a matrix outside of shared memory");
    return shared_memory() + (address - SHARED_START);
}

// A sum over the bytes of rows `first` to `last`; none of them may be a copy that no fence followed.
u64 look_at(u64 descriptor, u32 first, u32 last, u64 sum) {
    for (u32 row = first; row < last; ++row)
        for (u32 half = 0; half < 2; ++half) {
            const u8 *at = piece(descriptor, row, half);
            const Writer &writer = writers[(size_t)(at - shared_memory()) / GRANULE];
            if (writer.thread && asked[writer.thread - 1].proxy_fences == writer.fences)
                fail("a product of shared memory that was copied without an async_proxy_fence after it");
            u64 words[2];
            memcpy(words, at, 16);
            for (u64 word : words) sum = (sum ^ word) * 0x9e3779b97f4a7c15ull, sum ^= sum >> 29;
        }
    return sum;
}

// Of a product's shared memory, as far as this warp's product reads it.
u64 sum_of_bytes(const Product &p) {
    u64 sum = look_at(p.rows, 0, p.columns, 1);
    u32 first = this_thread() / LANES % WARPS * ROWS;
    return p.a ? sum : look_at(p.from, first, first + ROWS, sum);
}

size_t find_sums(Asked &own, float *d, u32 columns) {
    for (size_t i = 0; i < own.sums.size(); ++i)
        if (own.sums[i].at == d) return i;
    own.sums.push_back({d, columns, 0, std::vector<float>(d, d + columns / 2)});
    return own.sums.size() - 1;
}

// Takes the sums away until the product is made.
size_t take_sums(Asked &own, float *d, u32 columns, bool add) {
    size_t known = own.sums.size(), at = find_sums(own, d, columns);
    Sums &sums = own.sums[at];
    if (sums.under_way) {
        if (sums.columns != columns) fail("a product on sums that products of another shape write");
    } else {
        if (at == known && !own.fenced_in_group) fail("a product on sums without a warpgroup_fence");
        sums.columns = columns;
        sums.values.resize(columns / 2);
        if (add && memcmp(sums.values.data(), d, columns / 2 * 4))
            fail("a product on sums that were written after the last warpgroup_fence");
    }
    sums.under_way++;
    for (u32 i = 0; i < columns / 2; ++i) memcpy(d + i, &UNDER_WAY, 4);
    return at;
}

void take_rows(Asked &own, const u32 *a) {
    for (const Rows &rows : own.rows) {
        if (rows.at != a) continue;
        if (memcmp(rows.fenced, a, 16)) fail("a product of registers that were written after the last warpgroup_fence");
        return;
    }
    if (!own.fenced_in_group) fail("a product of registers without a warpgroup_fence");
    Rows rows = {a, {}};
    memcpy(rows.fenced, a, 16);
    own.rows.push_back(rows);
}

// All warps of a warpgroup ask for the same products.
void keep_order(const Product &p) {
    u32 warp = this_thread() / LANES;
    Warpgroup &group = warpgroups[warp / WARPS];
    u32 number = group.asked[warp % WARPS]++;
    Order order = {p.from, p.rows, p.columns, p.add, p.a != nullptr};
    if (number == group.order.size()) group.order.push_back(order);
    const Order &first = group.order[number];
    if (first.from != order.from || first.rows != order.rows || first.columns != order.columns ||
        first.add != order.add || first.registers != order.registers)
        fail("warps of a warpgroup ask for different products");
}

// Makes the warp's part of its product number `index`; lane l gave four registers at words[l * WORDS].
void make(u32 warp, size_t index, const u32 *words) {
    const Product &p = asked[warp * LANES].products[index];
    if (sum_of_bytes(p) != p.sum_of_bytes) fail("shared memory of a product was written while it was under way");
    for (u32 n = 0; n < p.columns; ++n)
        for (u32 half = 0; half < 2; ++half) {
            u16 values[8];
            memcpy(values, piece(p.rows, n, half), 16);
            for (u32 k = 0; k < 8; ++k) right[half * 8 + k][n] = emulate_bf16_value(values[k]);
        }
    for (u32 row = 0; row < ROWS; ++row)
        for (u32 k = 0; k < DEPTH; ++k) {
            if (p.a) {
                u32 word = words[(row % 8 * 4 + k % 8 / 2) * WORDS + k / 8 * 2 + row / 8];
                left[row][k] = emulate_bf16_value(word >> k % 2 * 16 & 0xffffu);
            } else {
                u16 value;
                memcpy(&value, piece(p.from, warp % WARPS * ROWS + row, k / 8) + k % 8 * 2, 2);
                left[row][k] = emulate_bf16_value(value);
            }
        }
    auto each = [&](auto &&pass) {
        for (u32 lane = 0; lane < LANES; ++lane) {
            Asked &own = asked[warp * LANES + lane];
            float *values = own.sums[own.products[index].sums].values.data();
            for (u32 i = 0; i < p.columns / 2; ++i)
                pass(values[i], tile[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2]);
        }
    };
    each([&](float &value, float &place) { place = p.add ? value : 0.0f; });
    for (u32 row = 0; row < ROWS; ++row)
        for (u32 k = 0; k < DEPTH; ++k)
            for (u32 n = 0; n < p.columns; n += 8)
                for (u32 j = 0; j < 8; ++j) tile[row][n + j] += left[row][k] * right[k][n + j];
    if (wrong) tile[0][0] += 1.0f;
    each([&](float &value, float &place) { value = place; });
    for (u32 lane = 0; lane < LANES; ++lane) asked[warp * LANES + lane].made++;
}

} // namespace

void warpgroups_begin(u32 threads) {
    asked.resize(threads);
    for (Asked &own : asked) {
        own.sums.clear(), own.rows.clear(), own.products.clear();
        own.groups = own.made = own.proxy_fences = 0;
        own.fenced = own.fenced_in_group = false;
    }
    warpgroups.resize((threads + WARPS * LANES - 1) / (WARPS * LANES));
    for (Warpgroup &group : warpgroups) {
        group.order.clear();
        for (u32 &count : group.asked) count = 0;
    }
    writers.assign((shared_bytes() + GRANULE - 1) / GRANULE, Writer{0, 0});
}

void warpgroups_end_thread() {
    if (!asked[this_thread()].products.empty()) fail("a thread ended while its products are under way");
}

const char *warpgroups_end() {
    for (const Warpgroup &group : warpgroups)
        for (u32 count : group.asked)
            if (count != group.order.size()) return "a product that not all warps of a warpgroup asked for";
    return nullptr;
}

void warpgroups_copied(const void *to, size_t bytes) {
    ptrdiff_t offset = (const u8 *)to - shared_memory();
    if (offset < 0 || (size_t)offset + bytes > shared_bytes()) return;
    writers[(size_t)offset / GRANULE] = {this_thread() + 1, asked[this_thread()].proxy_fences};
}

u32 shared_address(const void *at) { return SHARED_START + (u32)((const u8 *)at - shared_memory()); }

void async_proxy_fence() { asked[this_thread()].proxy_fences++; }

void warpgroup_fence() {
    Asked &own = asked[this_thread()];
    own.fenced = own.fenced_in_group = true;
    for (Sums &sums : own.sums)
        if (!sums.under_way) memcpy(sums.values.data(), sums.at, sums.columns / 2 * 4);
    for (Rows &rows : own.rows) memcpy(rows.fenced, rows.at, 16);
    u32 none = 0;
    exchange(&none, 1);
}

void warpgroup_mma(u32 columns, bool add, float *d, const u32 *a, u64 from, u64 rows) {
    u32 thread = this_thread();
    Asked &own = asked[thread];
    if (asked.size() % (WARPS * LANES)) fail("a product of a warpgroup in a block without whole warpgroups");
    if (!own.fenced) fail("a product of a warpgroup without a warpgroup_fence before it");
    u32 words[6] = {(u32)from, (u32)(from >> 32), (u32)rows, (u32)(rows >> 32), columns * 2 + add, a != nullptr};
    const u32 *all = exchange(words, 6);
    for (u32 lane = 0; lane < LANES; ++lane)
        if (memcmp(all + lane * WORDS, words, sizeof words)) fail("lanes of a warp ask for different products");
    if (a) take_rows(own, a);
    Product product = {columns, own.groups, add, take_sums(own, d, columns, add), a, {0, 0, 0, 0}, from, rows, 0};
    if (a) memcpy(product.values, a, 16);
    if (thread % LANES == 0) {
        product.sum_of_bytes = sum_of_bytes(product);
        keep_order(product);
    }
    own.products.push_back(product);
}

void warpgroup_commit() {
    Asked &own = asked[this_thread()];
    own.groups++;
    own.fenced_in_group = false;
    u32 none = 0;
    exchange(&none, 1);
}

void warpgroup_wait(u32 newest) {
    u32 thread = this_thread(), warp = thread / LANES;
    Asked &own = asked[thread];
    size_t done = 0;
    own.made = 0;
    while (done < own.products.size() && own.products[done].group + newest < own.groups) {
        Product &p = own.products[done];
        if (p.a && memcmp(p.values, p.a, 16)) fail("registers of a product were written while it was under way");
        Sums &sums = own.sums[p.sums];
        for (u32 i = 0; i < p.columns / 2; ++i)
            if (bits_of(sums.at + i) != UNDER_WAY) fail("sums of a product were written while it was under way");
        const u32 *all = exchange(p.values, 4);
        // The first of the warp's lanes makes it for all.
        if (own.made == done) make(warp, done, all);
        if (--sums.under_way == 0) memcpy(sums.at, sums.values.data(), p.columns / 2 * 4);
        ++done;
    }
    // Nobody forgets what others have yet to make.
    u32 count = (u32)done;
    const u32 *all = exchange(&count, 1);
    for (u32 lane = 0; lane < LANES; ++lane)
        if (all[lane * WORDS] != count) fail("lanes of a warp wait for different products");
    own.products.erase(own.products.begin(), own.products.begin() + (ptrdiff_t)done);
}

} // namespace emulate

// Whether products of warpgroups of this thread's launches come out wrong, in one place each.
extern "C" void emulate_wrong_products(int yes) { emulate::wrong = yes != 0; }
