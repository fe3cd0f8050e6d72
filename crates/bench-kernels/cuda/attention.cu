// Attention over paged and ring caches: see the headers for each kernel's design.
#include "attention_decode.cuh"
#include "attention_mma.cuh"
#include "attention_prefill.cuh"

#define DECODE(name, blocks, D, T, PLANES)                                                        \
    KERNEL(32 * DECODE_WARPS, blocks, name)(AttentionArgs args) { decode<D, T, PLANES>(args); }   \
    EXPORT(name)

DECODE(attention_decode_bf16_p1_d32, 2, 32, u16, 1);
DECODE(attention_decode_bf16_p1_d64, 2, 64, u16, 1);
DECODE(attention_decode_bf16_p1_d128, 1, 128, u16, 1);
DECODE(attention_decode_bf16_p3_d32, 1, 32, u16, 3);
DECODE(attention_decode_bf16_p3_d64, 1, 64, u16, 3);
DECODE(attention_decode_bf16_p3_d128, 1, 128, u16, 3);
DECODE(attention_decode_f32_p3_d32, 1, 32, float, 3);
DECODE(attention_decode_f32_p3_d64, 1, 64, float, 3);
DECODE(attention_decode_f32_p3_d128, 1, 128, float, 3);

#define OF_WIDTH(name, threads, blocks, D, function)                                   \
    KERNEL(threads, blocks, name)(AttentionArgs args) { function<D>(args); }           \
    EXPORT(name)

OF_WIDTH(attention_prepare_d32, 256, 4, 32, prepare);
OF_WIDTH(attention_prepare_d64, 256, 4, 64, prepare);
OF_WIDTH(attention_prepare_d128, 256, 4, 128, prepare);
OF_WIDTH(attention_prefill_exact_d32, 256, 2, 32, prefill_exact);
OF_WIDTH(attention_prefill_exact_d64, 256, 2, 64, prefill_exact);
OF_WIDTH(attention_prefill_exact_d128, 256, 2, 128, prefill_exact);
OF_WIDTH(attention_prefill_mma_d32, 256, 2, 32, prefill_mma);
OF_WIDTH(attention_prefill_mma_d64, 256, 2, 64, prefill_mma);
OF_WIDTH(attention_prefill_mma_d128, 256, 1, 128, prefill_mma);
OF_WIDTH(cache_append, 256, 4, false, append);
OF_WIDTH(kv_fill, 256, 4, true, append);
