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
