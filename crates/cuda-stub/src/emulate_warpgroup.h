// What the scheduler and the products of warpgroups know of each other.
#pragma once

#include <cstddef>

namespace emulate {

// The number of the thread that runs, in its block.
u32 this_thread();
size_t shared_bytes();

// Before a block of `threads` runs.
void warpgroups_begin(u32 threads);
// When the thread that runs ends.
void warpgroups_end_thread();
// When all threads of a block have ended: what is wrong, or null.
const char *warpgroups_end();
// The thread that runs wrote `bytes` of shared memory by a copy.
void warpgroups_copied(const void *to, size_t bytes);

} // namespace emulate
