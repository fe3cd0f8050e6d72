// What device.cuh says, for the host: every thread of a block is a fiber with a stack of its own, and one block runs at
// a time. A fiber runs until it comes to a barrier or an operation of its warp; the order in which fibers run is chosen
// by a seed, so that results which depend on it (races) differ between seeds. Asynchronous copies are made as late as a
// GPU may make them, when their thread waits for them; until then their destination holds no numbers. So are products
// of warpgroups: see emulate_warpgroup.cpp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#define DEVICE static inline
#define METHOD inline
#define UNROLL
#define KERNEL(threads, blocks, name)        \
    static const u32 name##_threads = threads; \
    extern "C" void name
#define EXPORT(name) static const emulate::Registered name##_registered(#name, &name, name##_threads)
#define SHARED static thread_local
#define DYNAMIC_SHARED(name) unsigned char *name = emulate::shared_memory()
#define __restrict__ __restrict

struct uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint3 { u32 x, y, z; };
static inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulate {

const u32 LANES = 32;
// Words that a lane can give to an operation of its warp.
const u32 WORDS = 6;

// What the fiber that runs now sees.
struct Thread {
    uint3 thread, block, block_dim, grid_dim;
    u32 lane;
};
extern thread_local Thread now;

unsigned char *shared_memory();
void sync_block();
bool any_in_block(bool value);
// Gives `words` and waits for the other lanes; then the words of lane l are at result[l * WORDS].
const u32 *exchange(const u32 *words, u32 count);
// Asks for `bytes` of `from` and zeros up to `size` at `to`, in the group that the thread commits next.
void copy_later(void *to, const void *from, u32 bytes, u32 size);
void copy_commit();
// Makes the thread's copies, but those of its `newest` latest groups.
void copy_wait(u32 newest);
// Ends the launch with an error.
[[noreturn]] void fail(const char *what);
// The number of a byte of shared memory.
u32 shared_address(const void *at);
// Products of warpgroups: see emulate_warpgroup.cpp.
void warpgroup_fence();
void warpgroup_commit();
void warpgroup_wait(u32 newest);
void async_proxy_fence();
// d (+)= a b with `columns` columns; a in registers, or described where `a` is null.
void warpgroup_mma(u32 columns, bool add, float *d, const u32 *a, u64 from, u64 rows);

typedef void (*Run)(const void *args);
struct Kernel {
    const char *name;
    void (*call)(void (*)(), const void *);
    void (*function)();
    size_t bytes;
    u32 threads;
};
void add(const Kernel &kernel);

template <class A> void call(void (*function)(), const void *args) {
    A copy;
    memcpy((void *)&copy, args, sizeof(A));
    ((void (*)(A))function)(copy);
}
struct Registered {
    template <class A> Registered(const char *name, void (*function)(A), u32 threads) {
        add({name, &call<A>, (void (*)())function, sizeof(A), threads});
    }
};
} // namespace emulate

#define threadIdx (emulate::now.thread)
#define blockIdx (emulate::now.block)
#define blockDim (emulate::now.block_dim)
#define gridDim (emulate::now.grid_dim)

static inline void sync_block() { emulate::sync_block(); }
static inline void sync_warp() { u32 none = 0; emulate::exchange(&none, 1); }
static inline bool any_in_block(bool value) { return emulate::any_in_block(value); }
template <class T> static inline T shuffle(T value, u32 lane) {
    static_assert(sizeof(T) % 4 == 0 && sizeof(T) <= 4 * emulate::WORDS, "a few words");
    u32 words[sizeof(T) / 4];
    memcpy(words, &value, sizeof(T));
    const u32 *all = emulate::exchange(words, sizeof(T) / 4);
    T result;
    memcpy((void *)&result, all + (lane % emulate::LANES) * emulate::WORDS, sizeof(T));
    return result;
}
template <class T> static inline T shuffle_xor(T value, u32 mask) { return shuffle(value, emulate::now.lane ^ mask); }
template <class T> static inline T shuffle_up(T value, u32 by) {
    u32 lane = emulate::now.lane;
    return shuffle(value, lane >= by ? lane - by : lane);
}
static inline u32 ballot(bool predicate) {
    u32 word = predicate;
    const u32 *all = emulate::exchange(&word, 1);
    u32 bits = 0;
    for (u32 lane = 0; lane < emulate::LANES; ++lane) bits |= all[lane * emulate::WORDS] << lane;
    return bits;
}
static inline u32 count_bits(u32 x) { return (u32)__builtin_popcount(x); }
static inline u32 atomic_add(u32 *at, u32 by) { u32 old = *at; *at = old + by; return old; }
static inline u64 atomic_add(u64 *at, u64 by) { u64 old = *at; *at = old + by; return old; }
static inline void fence() {}
static inline void dependency_wait() {}
static inline void dependency_launch() {}

template <class T> static inline T aligned_load(const T *from, size_t alignment) {
    if ((uintptr_t)from % alignment) emulate::fail("a read that is not aligned");
    return *from;
}
static inline uint4 load_once(const uint4 *from) { return aligned_load(from, 16); }
static inline uint2 load_once(const uint2 *from) { return aligned_load(from, 8); }
static inline float load_shared_by_blocks(const float *from) { return aligned_load(from, 4); }
static inline u32 load_shared_by_blocks(const u32 *from) { return aligned_load(from, 4); }
static inline u64 load_shared_by_blocks(const u64 *from) { return aligned_load(from, 8); }
static inline void copy_async16(void *to_shared, const void *from, bool valid) {
    if ((uintptr_t)to_shared % 16 || (valid && (uintptr_t)from % 16)) emulate::fail("a copy that is not aligned");
    emulate::copy_later(to_shared, from, valid ? 16 : 0, 16);
}
static inline void copy_async_part(void *to_shared, const void *from, u32 bytes) {
    if ((uintptr_t)to_shared % 16 || (bytes && (uintptr_t)from % 16)) emulate::fail("a copy that is not aligned");
    if (bytes > 16) emulate::fail("a copy of more than 16 bytes");
    emulate::copy_later(to_shared, from, bytes, 16);
}
static inline void prefetch(const void *) {}
static inline void copy_async4(void *to_shared, const void *from) {
    if ((uintptr_t)to_shared % 4 || (uintptr_t)from % 4) emulate::fail("a copy that is not aligned");
    emulate::copy_later(to_shared, from, 4, 4);
}
static inline void copy_commit() { emulate::copy_commit(); }
template <int N> static inline void copy_wait() { emulate::copy_wait(N); }

static inline float bits_to_float(u32 bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline u32 float_to_bits(float x) { u32 bits; memcpy(&bits, &x, 4); return bits; }
static inline u16 emulate_bf16(float x) {
    u32 bits = float_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
static inline float emulate_bf16_value(u32 half) { return bits_to_float(half << 16); }
static inline u32 pack_bf16(float low, float high) { return emulate_bf16(low) | (u32)emulate_bf16(high) << 16; }
static inline u32 mul_bf16x2(u32 a, u32 b) {
    return pack_bf16(emulate_bf16_value(a & 0xffffu) * emulate_bf16_value(b & 0xffffu),
                     emulate_bf16_value(a >> 16) * emulate_bf16_value(b >> 16));
}
static inline u32 add_bf16x2(u32 a, u32 b) {
    return pack_bf16(emulate_bf16_value(a & 0xffffu) + emulate_bf16_value(b & 0xffffu),
                     emulate_bf16_value(a >> 16) + emulate_bf16_value(b >> 16));
}
static inline u32 permute_bytes(u32 x, u32 y, u32 selector) {
    u64 bytes = (u64)y << 32 | x;
    u32 result = 0;
    for (u32 i = 0; i < 4; ++i) result |= (u32)(bytes >> (8 * (selector >> (4 * i) & 7u)) & 0xffu) << (8 * i);
    return result;
}
static inline float half_to_float(u16 h) {
    u32 sign = (u32)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 1023u;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
    float size = exponent ? ldexpf((float)(1024 + mantissa), (int)exponent - 25) : ldexpf((float)mantissa, -24);
    return bits_to_float(float_to_bits(size) | sign);
}
static inline u16 float_to_half(float x) {
    u32 bits = float_to_bits(x), sign = bits >> 16 & 0x8000u;
    float size = fabsf(x);
    if (std::isnan(x)) return 0x7fff;
    if (size >= 65520.0f) return (u16)(sign | 0x7c00u);
    // The step of half precision at this size; the sum below is rounded to it, ties to even.
    int exponent = size > 0.0f ? std::ilogb(size) : -14;
    if (exponent < -14) exponent = -14;
    u32 steps = (u32)std::nearbyintf(ldexpf(size, 10 - exponent));
    return (u16)(sign | ((exponent + 14) * 1024 + (int)steps));
}
static inline float exact_mul(float a, float b) { return a * b; }
static inline float exact_add(float a, float b) { return a + b; }
static inline double exact_mul(double a, double b) { return a * b; }
static inline double exact_add(double a, double b) { return a + b; }
static inline float reciprocal_sqrt(float x) { return 1.0f / sqrtf(x); }
static inline float fast_exp(float x) { return expf(x); }
static inline float fast_exp2(float x) { return exp2f(x); }

static inline void mma_bf16(float c[4], const u32 a[4], const u32 b[2]) {
    u32 words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const u32 *all = emulate::exchange(words, 6);
    u32 g = emulate::now.lane / 4, t = emulate::now.lane % 4;
    for (u32 i = 0; i < 4; ++i) {
        u32 upper = i / 2, column = 2 * t + i % 2;
        float sum = c[i];
        for (u32 half = 0; half < 2; ++half)
            for (u32 k = 0; k < 4; ++k) {
                u32 x = all[(g * 4 + k) * emulate::WORDS + 2 * half + upper];
                u32 w = all[(column * 4 + k) * emulate::WORDS + 4 + half];
                sum += emulate_bf16_value(x & 0xffffu) * emulate_bf16_value(w & 0xffffu);
                sum += emulate_bf16_value(x >> 16) * emulate_bf16_value(w >> 16);
            }
        c[i] = sum;
    }
}
static inline const u16 *emulate_row(const u32 *all, u32 tile, u32 row) {
    u64 address;
    memcpy(&address, all + (tile * 8 + row) * emulate::WORDS, 8);
    if (address % 16) emulate::fail("a row of a tile that is not aligned");
    return (const u16 *)(uintptr_t)address;
}
static inline void load_tiles(u32 to[4], const void *row) {
    u64 address = (u64)(uintptr_t)row;
    u32 words[2];
    memcpy(words, &address, 8);
    const u32 *all = emulate::exchange(words, 2);
    u32 g = emulate::now.lane / 4, t = emulate::now.lane % 4;
    for (u32 i = 0; i < 4; ++i) memcpy(&to[i], emulate_row(all, i, g) + 2 * t, 4);
}
static inline void load_tiles_transposed(u32 to[4], const void *row) {
    u64 address = (u64)(uintptr_t)row;
    u32 words[2];
    memcpy(words, &address, 8);
    const u32 *all = emulate::exchange(words, 2);
    u32 g = emulate::now.lane / 4, t = emulate::now.lane % 4;
    for (u32 i = 0; i < 4; ++i)
        to[i] = emulate_row(all, i, 2 * t)[g] | (u32)emulate_row(all, i, 2 * t + 1)[g] << 16;
}

// Products of warpgroups, as device_warpgroup.cuh has them.
#define HAS_WARPGROUPS
static inline u32 shared_address(const void *at) { return emulate::shared_address(at); }
static inline void warpgroup_fence() { emulate::warpgroup_fence(); }
static inline void warpgroup_commit() { emulate::warpgroup_commit(); }
template <int N> static inline void warpgroup_wait() { emulate::warpgroup_wait(N); }
static inline void async_proxy_fence() { emulate::async_proxy_fence(); }
template <u32 COUNT, class T> static inline void keep_registers(T *) {}
static inline u64 matrix_descriptor(const void *at) {
    u32 address = shared_address(at);
    if (address % 16) emulate::fail("a matrix in shared memory that is not aligned");
    return (u64)(address >> 4 & 0x3fff) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
template <u32 N, int ADD> static inline void warpgroup_mma(float *d, const u32 *a, u64 rows) {
    static_assert(N % 8 == 0 && N <= 256, "columns");
    emulate::warpgroup_mma(N, ADD != 0, d, a, 0, rows);
}
template <u32 N, int ADD> static inline void warpgroup_mma(float *d, u64 from, u64 rows) {
    static_assert(N % 8 == 0 && N <= 256, "columns");
    emulate::warpgroup_mma(N, ADD != 0, d, nullptr, from, rows);
}
