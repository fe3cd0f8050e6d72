// Products of a warpgroup (four warps, of which the first has a number divisible by 4) on Hopper, compute capability
// 9.0 alone: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions". They run behind the warps that ask for them:
//
//  - `warpgroup_fence()` by all warps comes after registers were written or read and before a product takes them;
//  - what copies wrote to shared memory is seen by products only after an `async_proxy_fence()` of the thread that
//    waited for the copy, and a barrier;
//  - until `warpgroup_wait<N>()` says that a product is done, its registers may not be touched nor its shared memory
//    be written.
#pragma once

// Orders accesses to registers before products that take them.
DEVICE void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of products.
DEVICE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N of the latest groups are under way.
template <int N> DEVICE void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// Makes what this thread wrote to shared memory, copies that it waited for included, visible to products.
DEVICE void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Nothing moves from one side to the other: values are in registers here.
template <u32 COUNT> DEVICE void keep_registers(u32 *values) {
    UNROLL
    for (u32 i = 0; i < COUNT; ++i) asm volatile("" : "+r"(values[i])::"memory");
}
template <u32 COUNT> DEVICE void keep_registers(float *values) {
    UNROLL
    for (u32 i = 0; i < COUNT; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// Rows of 128 bytes (64 columns of bf16) from `at` on, a multiple of 1,024 bytes, in which piece p of 16 bytes of row r
// stands at p ^ (r & 7): K-major, 128-byte swizzle, 1,024 bytes from eight rows to the next eight; the leading offset
// means nothing there. 16 columns further are 32 bytes: 2 more.
DEVICE u64 matrix_descriptor(const void *at) {
    return (u64)(shared_address(at) >> 4 & 0x3fff) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

#define OPERANDS_32                                                                                  \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20," \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OPERANDS_64 OPERANDS_32 ", "                                                                 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50," \
    "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define OPERANDS_128 OPERANDS_64 ", "                                                                  \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82,"   \
    "%83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101," \
    "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117,"  \
    "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_8(d, i)                                                                                            \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define SUMS_32(d, i) SUMS_8(d, i), SUMS_8(d, i + 8), SUMS_8(d, i + 16), SUMS_8(d, i + 24)
#define SUMS_64(d, i) SUMS_32(d, i), SUMS_32(d, i + 32)
#define SUMS_128(d, i) SUMS_64(d, i), SUMS_64(d, i + 64)

// `sums` registers of the sums are the first operands; a0 and on are the numbers of those behind them.
#define PRODUCT_OF_REGISTERS(columns, sums, a0, a1, a2, a3, b, add)                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" OPERANDS_##sums "}, " \
                 "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", %" #add ", 1, 1, 0;"                 \
                 : SUMS_##sums(d, 0)                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows), "n"(ADD)                        \
                 : "memory")
#define PRODUCT_OF_SHARED(columns, sums, a, b, add)                                                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" OPERANDS_##sums "}, " \
                 "%" #a ", %" #b ", %" #add ", 1, 1, 0, 0;"                                               \
                 : SUMS_##sums(d, 0)                                                                      \
                 : "l"(from), "l"(rows), "n"(ADD)                                                         \
                 : "memory")

// d (+)= a b for 64 x 16 and 16 x N. Of each 16 rows of `a` (and of d) warp w of the group has those from 16 w on, as
// mma_bf16 has them. `rows` describes N rows of the other matrix. d[4 i] and the next: row g, columns 8 i + 2 t and the
// next; d[4 i + 2] and the next: row g + 8.
template <u32 N, int ADD> DEVICE void warpgroup_mma(float *d, const u32 *a, u64 rows) {
    static_assert(N == 64 || N == 128, "columns");
    if constexpr (N == 64) PRODUCT_OF_REGISTERS(64, 32, 32, 33, 34, 35, 36, 37);
    else PRODUCT_OF_REGISTERS(128, 64, 64, 65, 66, 67, 68, 69);
}
// The same with 64 rows in shared memory.
template <u32 N, int ADD> DEVICE void warpgroup_mma(float *d, u64 from, u64 rows) {
    static_assert(N == 128 || N == 256, "columns");
    if constexpr (N == 128) PRODUCT_OF_SHARED(128, 64, 64, 65, 66);
    else PRODUCT_OF_SHARED(256, 128, 128, 129, 130);
}
