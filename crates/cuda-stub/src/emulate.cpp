// The scheduler behind emulate.h: runs the threads of a block as fibers on one stack each.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef int i32;
#include "emulate.h"

#include "emulate_warpgroup.h"

#include <csetjmp>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

namespace emulate {

thread_local Thread now;

namespace {

const size_t STACK = 128 * 1024;
// Behind the dynamic shared memory: must not be written.
const size_t GUARD = 128;
const u8 GUARD_BYTE = 0xa5;
// Copies that are made and still listed.
const size_t MADE = 256;

enum class State { Ready, InWarp, InBlock, Done };

#if defined(__x86_64__)
// Saves the registers that a call must keep on the stack of one fiber and goes on where another one left.
extern "C" void emulate_switch(void **save, void *to);
asm(R"(
.text
.globl emulate_switch
.type emulate_switch, @function
emulate_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulate_switch, .-emulate_switch
)");

struct Context {
    void *stack_pointer;
    void prepare(char *stack, void (*entry)()) {
        // As if emulate_switch had been called from a frame whose return address is `entry`.
        u64 *top = (u64 *)(stack + STACK);
        *--top = 0;
        *--top = (u64)(uintptr_t)entry;
        for (int i = 0; i < 6; ++i) *--top = 0;
        stack_pointer = top;
    }
    static void go(Context &from, Context &to) { emulate_switch(&from.stack_pointer, to.stack_pointer); }
};
#else
struct Context {
    ucontext_t context;
    void prepare(char *stack, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    static void go(Context &from, Context &to) { swapcontext(&from.context, &to.context); }
};
#endif

struct Fiber {
    Context context;
    State state;
    Thread thread;
    u32 warp;
};

struct Warp {
    // Words of the lanes in this operation and the one before, which a slow lane may still read.
    u32 words[2][LANES * WORDS];
    u32 lanes, waiting, parity, done;
};

// A copy to shared memory that was asked for and not waited for yet.
struct Copy {
    u8 *to;
    const u8 *from;
    u32 bytes, size, group;
};

// Those of a thread, in the order in which it asked for them; the first `made` are made.
struct Copies {
    std::vector<Copy> asked;
    size_t made;
    // Groups committed.
    u32 groups;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Copies> copies;
    std::vector<Warp> warps;
    u32 current, waiting, done;
    bool any, any_before;
    Context scheduler;
    const Kernel *kernel;
    const void *args;
    std::string error;
};

thread_local Block block;
thread_local std::vector<u8> dynamic_shared;
thread_local size_t dynamic_shared_bytes = 0;
thread_local char *stacks = nullptr;
thread_local u32 stack_count = 0;

void back() {
    Fiber &fiber = block.fibers[block.current];
    Context::go(fiber.context, block.scheduler);
}

void entry() {
    const Kernel *kernel = block.kernel;
    kernel->call(kernel->function, block.args);
    warpgroups_end_thread();
    block.fibers[block.current].state = State::Done;
    back();
    __builtin_trap();
}

void resume(u32 index) {
    block.current = index;
    now = block.fibers[index].thread;
    Context::go(block.scheduler, block.fibers[index].context);
}

u64 mix(u64 z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// The order in which `count` things run: as they are for seed 0, else shuffled.
void shuffle_order(std::vector<u32> &order, u32 count, u64 seed) {
    order.resize(count);
    for (u32 i = 0; i < count; ++i) order[i] = i;
    if (!seed) return;
    for (u32 i = count; i > 1; --i) {
        u32 j = (u32)(mix(seed + i) % i);
        std::swap(order[i - 1], order[j]);
    }
}

bool release_warp(Warp &warp, u32 index) {
    if (warp.waiting == 0) return false;
    if (warp.waiting + warp.done < warp.lanes) return false;
    if (warp.done) {
        block.error = "an operation of a warp in which some lanes have ended";
        return false;
    }
    warp.waiting = 0;
    warp.parity ^= 1;
    for (u32 lane = 0; lane < warp.lanes; ++lane) {
        Fiber &fiber = block.fibers[index * LANES + lane];
        if (fiber.state == State::InWarp) fiber.state = State::Ready;
    }
    return true;
}

void run_block(u64 seed) {
    u32 threads = (u32)block.fibers.size(), warps = (u32)block.warps.size();
    std::vector<u32> order, lanes;
    shuffle_order(order, warps, seed);
    shuffle_order(lanes, LANES, seed ? seed * 31 + 7 : 0);
    while (block.done < threads) {
        bool progress = false;
        for (u32 w : order) {
            Warp &warp = block.warps[w];
            bool again = true;
            while (again) {
                again = false;
                for (u32 l : lanes) {
                    if (l >= warp.lanes) continue;
                    Fiber &fiber = block.fibers[w * LANES + l];
                    if (fiber.state != State::Ready) continue;
                    resume(w * LANES + l);
                    progress = true;
                    if (!block.error.empty()) return;
                    if (fiber.state == State::Done) {
                        warp.done++;
                        block.done++;
                    }
                }
                again = release_warp(warp, w);
                if (!block.error.empty()) return;
            }
        }
        if (block.waiting && block.waiting + block.done == threads) {
            if (block.done) {
                block.error = "a barrier of a block in which some threads have ended";
                return;
            }
            block.waiting = 0;
            block.any_before = block.any;
            block.any = false;
            for (Fiber &fiber : block.fibers) fiber.state = State::Ready;
            progress = true;
        }
        if (!progress && block.done < threads) {
            block.error = "threads wait for each other: some at a barrier, some in an operation of their warp";
            return;
        }
    }
}

std::vector<Kernel> &kernels() {
    static std::vector<Kernel> all;
    return all;
}

bool has_stacks(u32 threads) {
    if (stack_count >= threads) return true;
    if (stacks) munmap(stacks, STACK * stack_count);
    stack_count = 0;
    void *memory = mmap(nullptr, STACK * threads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                        -1, 0);
    stacks = memory == MAP_FAILED ? nullptr : (char *)memory;
    if (stacks) stack_count = threads;
    return stacks != nullptr;
}

} // namespace

void add(const Kernel &kernel) { kernels().push_back(kernel); }

unsigned char *shared_memory() {
    uintptr_t start = (uintptr_t)dynamic_shared.data();
    return (unsigned char *)((start + 127) & ~(uintptr_t)127);
}

u32 this_thread() { return block.current; }

size_t shared_bytes() { return dynamic_shared_bytes; }

void fail(const char *what) {
    block.error = what;
    back();
    __builtin_trap();
}

void sync_block() {
    Fiber &fiber = block.fibers[block.current];
    fiber.state = State::InBlock;
    block.waiting++;
    back();
}

bool any_in_block(bool value) {
    block.any = block.any || value;
    sync_block();
    return block.any_before;
}

const u32 *exchange(const u32 *words, u32 count) {
    Fiber &fiber = block.fibers[block.current];
    Warp &warp = block.warps[fiber.warp];
    u32 *slot = warp.words[warp.parity] + fiber.thread.lane * WORDS;
    for (u32 i = 0; i < count; ++i) slot[i] = words[i];
    const u32 *result = warp.words[warp.parity];
    warp.waiting++;
    fiber.state = State::InWarp;
    back();
    return result;
}

void copy_later(void *to, const void *from, u32 bytes, u32 size) {
    // From now on until it is waited for the copy may be made or not: all ones are no number in any float.
    memset(to, 0xff, size);
    Copies &copies = block.copies[block.current];
    copies.asked.push_back({(u8 *)to, (const u8 *)from, bytes, size, copies.groups});
}

void copy_commit() { block.copies[block.current].groups++; }

void copy_wait(u32 newest) {
    Copies &copies = block.copies[block.current];
    for (; copies.made < copies.asked.size(); ++copies.made) {
        const Copy &copy = copies.asked[copies.made];
        if (copy.group + newest >= copies.groups) break;
        if (copy.bytes) memcpy(copy.to, copy.from, copy.bytes);
        memset(copy.to + copy.bytes, 0, copy.size - copy.bytes);
        warpgroups_copied(copy.to, copy.size);
    }
    // Now and then, so that it costs little.
    if (copies.made < MADE && copies.made < copies.asked.size()) return;
    copies.asked.erase(copies.asked.begin(), copies.asked.begin() + (ptrdiff_t)copies.made);
    copies.made = 0;
}

} // namespace emulate

// The number of the kernel `name`, -1 if there is none; its arguments take `bytes`.
extern "C" int emulate_find(const char *name, size_t *bytes, u32 *threads) {
    auto &all = emulate::kernels();
    for (size_t i = 0; i < all.size(); ++i)
        if (!strcmp(all[i].name, name)) {
            *bytes = all[i].bytes;
            *threads = all[i].threads;
            return (int)i;
        }
    return -1;
}

// Runs all blocks; 0, or 1 with a message in `error`. Fibers and blocks run in an order that `seed` chooses.
extern "C" int emulate_launch(int number, const u32 grid[3], const u32 dim[3], size_t shared, const void *args, u64 seed,
                              char *error, size_t error_bytes) {
    using namespace emulate;
    const Kernel &kernel = kernels()[(size_t)number];
    u32 threads = dim[0] * dim[1] * dim[2];
    auto refuse = [&](const std::string &what, u32 at) {
        snprintf(error, error_bytes, "kernel %s, block %u: %s", kernel.name, at, what.c_str());
        return 1;
    };
    if (threads == 0 || threads > kernel.threads) return refuse("more threads than its launch bounds, or none", 0);
    if (threads % LANES) return refuse("threads are not a multiple of 32", 0);
    if (!has_stacks(threads)) return refuse("no memory for stacks", 0);
    u32 blocks = grid[0] * grid[1] * grid[2];
    std::vector<u32> order;
    shuffle_order(order, blocks, seed);
    block.kernel = &kernel;
    block.args = args;
    block.error.clear();
    block.fibers.resize(threads);
    block.copies.resize(threads);
    block.warps.resize(threads / LANES);
    dynamic_shared.resize(128 + shared + GUARD);
    dynamic_shared_bytes = shared;
    for (u32 b : order) {
        // All ones are no number in any float: what reads before it writes shows.
        memset(shared_memory(), 0xff, shared);
        memset(shared_memory() + shared, GUARD_BYTE, GUARD);
        block.waiting = block.done = 0;
        block.any = block.any_before = false;
        warpgroups_begin(threads);
        // What a block asked for and never waited for is not made.
        for (Copies &copies : block.copies) copies.asked.clear(), copies.made = copies.groups = 0;
        for (Warp &warp : block.warps) warp.lanes = LANES, warp.waiting = warp.parity = warp.done = 0;
        for (u32 i = 0; i < threads; ++i) {
            Fiber &fiber = block.fibers[i];
            fiber.state = State::Ready;
            fiber.warp = i / LANES;
            fiber.thread.thread = {i % dim[0], i / dim[0] % dim[1], i / dim[0] / dim[1]};
            fiber.thread.block = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
            fiber.thread.block_dim = {dim[0], dim[1], dim[2]};
            fiber.thread.grid_dim = {grid[0], grid[1], grid[2]};
            fiber.thread.lane = i % LANES;
            fiber.context.prepare(stacks + STACK * i, entry);
        }
        run_block(seed ? seed + b : 0);
        if (!block.error.empty()) return refuse(block.error, b);
        if (const char *wrong = warpgroups_end()) return refuse(wrong, b);
        for (size_t i = 0; i < GUARD; ++i)
            if (shared_memory()[shared + i] != GUARD_BYTE) return refuse("wrote behind its shared memory", b);
    }
    return 0;
}
