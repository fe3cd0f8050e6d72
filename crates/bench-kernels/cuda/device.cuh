// What every kernel is written in: a few names over CUDA's intrinsics and PTX, without any header of the toolkit, so
// that NVRTC compiles the kernels alone. With OSSBENCH_EMULATE the same kernels are compiled for the host, where
// emulate.h gives each name its meaning; tests run them so.
//
// Rules: a kernel takes one struct by value; warp operations are called by all 32 lanes of a warp; blocks do not wait
// for each other; `dependency_wait()` comes before the first access to anything that an earlier kernel writes, or
// reads and this one overwrites.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef int i32;

#ifdef OSSBENCH_EMULATE
#include "emulate.h"
#else

#define DEVICE static __device__ __forceinline__
// The same for members of a struct.
#define METHOD __device__ __forceinline__
// `KERNEL(threads, blocks, name)(struct Args a) { .. }`: at most `threads` in a block, at least `blocks` on a
// multiprocessor.
#define KERNEL(threads, blocks, name) extern "C" __global__ void __launch_bounds__(threads, blocks) name
// After a kernel: lets the emulator know it.
#define EXPORT(name)
#define SHARED __shared__
// Before a loop: it is to be written out.
#define UNROLL _Pragma("unroll")
// The block's dynamic shared memory, aligned to 128 bytes.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
// Products of warpgroups: code for compute capability 9.0 alone, `sm_90a`.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WARPGROUPS
#endif

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
// Whether `value` is not zero in any thread of the block; synchronizes as sync_block.
DEVICE bool any_in_block(bool value) { return __syncthreads_or(value); }
template <class T> DEVICE T shuffle_xor(T value, u32 mask) { return __shfl_xor_sync(~0u, value, mask); }
template <class T> DEVICE T shuffle(T value, u32 lane) { return __shfl_sync(~0u, value, lane); }
template <class T> DEVICE T shuffle_up(T value, u32 by) { return __shfl_up_sync(~0u, value, by); }
DEVICE u32 ballot(bool predicate) { return __ballot_sync(~0u, predicate); }
DEVICE u32 count_bits(u32 x) { return __popc(x); }

DEVICE u32 atomic_add(u32 *at, u32 by) { return atomicAdd(at, by); }
DEVICE u64 atomic_add(u64 *at, u64 by) { return atomicAdd(at, by); }
DEVICE void fence() { __threadfence(); }

// Programmatic dependent launch (sm_90): waits until all that earlier kernels of the stream wrote is visible.
DEVICE void dependency_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel of the stream start its part before its dependency_wait().
DEVICE void dependency_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Reads of what is read once: no place in the first cache.
DEVICE uint4 load_once(const uint4 *from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}
DEVICE uint2 load_once(const uint2 *from) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(from));
    return v;
}
// Reads that bypass the first cache: for what other blocks of this kernel wrote.
DEVICE float load_shared_by_blocks(const float *from) { return __ldcg(from); }
DEVICE u32 load_shared_by_blocks(const u32 *from) { return __ldcg(from); }
DEVICE u64 load_shared_by_blocks(const u64 *from) { return __ldcg(from); }

DEVICE u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }
// 16 bytes to shared memory, asynchronously; zeros where `valid` is false.
DEVICE void copy_async16(void *to_shared, const void *from, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(from),
                 "r"(bytes)
                 : "memory");
}
// As copy_async16, of the first `bytes` of 16 (0 to 16) and zeros, and says that the neighbourhood is wanted too.
DEVICE void copy_async_part(void *to_shared, const void *from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(from),
                 "r"(bytes)
                 : "memory");
}
// Brings a line to the second cache.
DEVICE void prefetch(const void *at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }
// 4 bytes, aligned to 4, likewise.
DEVICE void copy_async4(void *to_shared, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to_shared)), "l"(from) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of the thread's latest groups are under way; a sync_block must follow.
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// c += a * b for tiles 16x16 and 16x8 (PTX ISA, mma.m16n8k16): with g = lane / 4 and t = lane % 4, a holds rows g, g+8,
// g, g+8 at columns 2t, 2t+1 (first two) and 2t+8, 2t+9 (last two); b column g at rows 2t, 2t+1 and 2t+8, 2t+9; c rows
// g (first two) and g+8 at columns 2t, 2t+1.
DEVICE void mma_bf16(float c[4], const u32 a[4], const u32 b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four 8x8 tiles of 16-bit values: lane l gives the address of row l % 8 of tile l / 8 (16 bytes, aligned); to[i] is
// then row lane / 4, columns 2 (lane % 4) and the next, of tile i; transposed with the second.
DEVICE void load_tiles(u32 to[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_tiles_transposed(u32 to[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 float_to_bits(float x) { return __float_as_uint(x); }
// Two values to bf16, nearest even; `low` in the low half.
DEVICE u32 pack_bf16(float low, float high) {
    u32 v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}
DEVICE u32 mul_bf16x2(u32 a, u32 b) {
    u32 v;
    // a * b - 0: sm_80 has no bf16 product of its own.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(0x80008000u));
    return v;
}
DEVICE u32 add_bf16x2(u32 a, u32 b) {
    u32 v;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return v;
}
// Bytes of x (0 to 3) and y (4 to 7) chosen by the four low nibbles of `selector`.
DEVICE u32 permute_bytes(u32 x, u32 y, u32 selector) { return __byte_perm(x, y, selector); }
DEVICE float half_to_float(u16 h) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(h));
    return v;
}
DEVICE u16 float_to_half(float x) {
    u16 v;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(v) : "f"(x));
    return v;
}
// A product and a sum that the compiler does not fuse: for results that must equal another machine's bit for bit.
DEVICE float exact_mul(float a, float b) { return __fmul_rn(a, b); }
DEVICE float exact_add(float a, float b) { return __fadd_rn(a, b); }
DEVICE double exact_mul(double a, double b) { return __dmul_rn(a, b); }
DEVICE double exact_add(double a, double b) { return __dadd_rn(a, b); }
DEVICE float reciprocal_sqrt(float x) { return 1.0f / sqrtf(x); }
// Within 2 ulp and a little more for large x; expf is exact to 1.
DEVICE float fast_exp(float x) { return __expf(x); }
// Two to the power of x.
DEVICE float fast_exp2(float x) {
    float v;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}
#ifdef HAS_WARPGROUPS
#include "device_warpgroup.cuh"
#endif
#endif

DEVICE float bf16_to_float(u16 x) { return bits_to_float((u32)x << 16); }
// The two halves of a pair.
DEVICE float low_bf16(u32 pair) { return bits_to_float(pair << 16); }
DEVICE float high_bf16(u32 pair) { return bits_to_float(pair & 0xffff0000u); }
DEVICE u16 float_to_bf16(float x) { return (u16)(pack_bf16(x, 0.0f) & 0xffffu); }
DEVICE float round_bf16(float x) { return bf16_to_float(float_to_bf16(x)); }
DEVICE u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }
DEVICE u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 max_u32(u32 a, u32 b) { return a > b ? a : b; }

// Sums and maxima over the lanes of a warp; every lane has the result.
DEVICE float warp_sum(float x) {
    for (u32 mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}
DEVICE float warp_max(float x) {
    for (u32 mask = 16; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
    return x;
}
