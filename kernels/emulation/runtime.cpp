// Runs the threads of a block as fibers on one thread of the processor, block after block.
//
// Threads are switched where they wait: at barriers and where a warp meets. Their order is a parameter, since a missing
// barrier shows in one order and not in another, and so is the moment of asynchronous copies: as late as allowed, when
// they are waited for, or at once. Shared memory starts as NaN for every block.
//
// Each access of a kernel to memory is looked at before it is made: g++ puts a call there for -fsanitize=kernel-address,
// which is made for kernels that bring a runtime of their own, as this one is. A thread that reads or writes outside of
// all arrays stops; so does one that comes to an address which is no multiple of what its type asks for, where
// -fsanitize=alignment puts a call.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <vector>

#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include "emulation.h"

namespace {

constexpr size_t STACK = 64 << 10;
constexpr size_t SHARED = 228 << 10;
constexpr int WARP = 32;

enum Order { FORWARD, REVERSE, SHUFFLED, WARP_BY_WARP };

struct Span {
    size_t start, stop;

    bool has(size_t from, size_t to) const { return start <= from && to <= stop; }
};

void look_at(const void* address, size_t bytes, bool writes);

struct Copy {
    void* to;
    const void* from;
    int bytes, valid;

    void make() const {
        look_at(to, std::max(bytes, valid), true);
        if (valid) look_at(from, valid, false);
        std::memcpy(to, from, valid);
        std::memset(static_cast<char*>(to) + valid, 0, bytes - valid);
    }
};

struct Warp {
    int arrived = 0, alive = 0;
    long meeting = 0;
    void* slots[WARP] = {};
};

struct Fiber : EmulatedThread {
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    Warp* warp;
    bool done;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
};

struct Launch {
    void (*kernel)(void*);
    void* arguments;
    Fiber* current;
    int alive, at_barrier;
    long barrier, progress;
    long counted;  // before which barrier of the block
    bool copies_early, misaligned, reads_outside, writes_outside, writes_late;
    Span own[5];  // the threads' stacks, shared memory, the threads, the warps, the arguments
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
};

Launch launch;
alignas(128) char shared_memory[SHARED];
std::mutex mutex;
std::map<size_t, size_t> arrays;  // where each ends, by where it starts

#if defined(__x86_64__)
extern "C" void emulated_switch(void** save, void* to);
asm(".text\n.type emulated_switch,@function\nemulated_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\nmovq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
void leave() { emulated_switch(&launch.current->stack_pointer, launch.stack_pointer); }
void enter(Fiber& fiber) { emulated_switch(&launch.stack_pointer, fiber.stack_pointer); }
#else
void leave() { swapcontext(&launch.current->context, &launch.context); }
void enter(Fiber& fiber) { swapcontext(&launch.context, &fiber.context); }
#endif

Span span_of(const void* start, size_t bytes) {
    const size_t address = reinterpret_cast<size_t>(start);
    return {address, address + bytes};
}

bool is_in_array(const Span& wanted) {
    const auto next = arrays.upper_bound(wanted.start);
    if (next == arrays.begin()) return false;
    const auto& [start, stop] = *std::prev(next);
    return Span{start, stop}.has(wanted.start, wanted.stop);
}

void look_at(const void* address, size_t bytes, bool writes) {
    const Span wanted = span_of(address, bytes);
    if (wanted.start < wanted.stop) {
        for (const Span& span : launch.own)
            if (span.has(wanted.start, wanted.stop)) return;
        if (is_in_array(wanted)) {
            if (writes && launch.barrier == launch.counted) launch.writes_late = true;
            return;
        }
    }
    (writes ? launch.writes_outside : launch.reads_outside) = true;
    for (;;) leave();
}

void body() {
    launch.kernel(launch.arguments);
    Fiber* fiber = launch.current;
    fiber->done = true;
    fiber->warp->alive--;
    launch.alive--;
    launch.progress++;
    leave();
    std::abort();
}

void prepare(Fiber& fiber, char* stack) {
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack + STACK) - 2;
    *top = reinterpret_cast<void*>(&body);
    fiber.stack_pointer = top - 6;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, body, 0);
#endif
}

void step(Fiber& fiber) {
    if (fiber.done) return;
    launch.current = &fiber;
    emulated_thread = &fiber;
    enter(fiber);
}

// Whether all threads of the block came to an end.
bool run_block(std::vector<Fiber>& fibers, std::vector<int>& order, Order how, std::mt19937& random) {
    const int threads = static_cast<int>(fibers.size());
    while (launch.alive) {
        const long before = launch.progress;
        if (how == SHUFFLED) std::shuffle(order.begin(), order.end(), random);
        if (how != WARP_BY_WARP) {
            for (int i : order) step(fibers[i]);
        } else {
            for (int first = 0; first < threads; first += WARP)  // as far as it can before the next one starts
                for (long seen = -1; seen != launch.progress;) {
                    seen = launch.progress;
                    for (int i = first; i < std::min(threads, first + WARP); i++) step(fibers[i]);
                }
        }
        if (launch.alive && launch.at_barrier == launch.alive) {
            launch.at_barrier = 0;
            launch.barrier++;
            launch.progress++;
        }
        if (launch.progress == before) return false;
    }
    return true;
}

}  // namespace

extern "C" {

EmulatedThread* emulated_thread;
dim3 emulated_block, emulated_block_size, emulated_grid_size;

char* emulated_shared_memory() { return shared_memory; }

void emulated_block_barrier() {
    const long here = launch.barrier;
    launch.at_barrier++;
    launch.progress++;
    while (launch.barrier == here) leave();
}

void emulated_warp_meeting(void* mine, void (*work)(void**)) {
    Warp& warp = *launch.current->warp;
    const long here = warp.meeting;
    launch.progress++;
    warp.slots[launch.current->lane] = mine;
    if (++warp.arrived == warp.alive) {
        work(warp.slots);
        warp.arrived = 0;
        warp.meeting++;
        std::fill(warp.slots, warp.slots + WARP, nullptr);
        return;
    }
    while (warp.meeting == here) leave();
}

void emulated_counted() { launch.counted = launch.barrier; }

void emulated_aligned(const void* address, int bytes) {
    if (reinterpret_cast<size_t>(address) % bytes) launch.misaligned = true;
}

void emulated_copy(void* to, const void* from, int bytes, int valid) {
    emulated_aligned(to, bytes);
    emulated_aligned(from, bytes);
    const Copy copy{to, from, bytes, valid};
    if (launch.copies_early)
        copy.make();
    else
        launch.current->open.push_back(copy);
}

void emulated_copy_commit() {
    launch.current->groups.push_back(std::move(launch.current->open));
    launch.current->open.clear();
}

void emulated_copy_wait(int groups_left) {
    auto& groups = launch.current->groups;
    while (static_cast<int>(groups.size()) > groups_left) {
        for (const Copy& copy : groups.front()) copy.make();
        groups.erase(groups.begin());
    }
}

#define EMULATED_ACCESS(bytes)                                                                               \
    void __asan_load##bytes##_noabort(const void* address) { look_at(address, bytes, false); }               \
    void __asan_store##bytes##_noabort(const void* address) { look_at(address, bytes, true); }
EMULATED_ACCESS(1)
EMULATED_ACCESS(2)
EMULATED_ACCESS(4)
EMULATED_ACCESS(8)
EMULATED_ACCESS(16)
void __asan_loadN_noabort(const void* address, size_t bytes) { look_at(address, bytes, false); }
void __asan_storeN_noabort(const void* address, size_t bytes) { look_at(address, bytes, true); }
void __asan_handle_no_return() {}
void __ubsan_handle_type_mismatch_v1(const void*, const void*) {
    launch.misaligned = true;
    for (;;) leave();
}

// From now on kernels may read and write these bytes; with none, no longer.
void emulated_array(const void* start, size_t bytes) {
    const std::lock_guard lock(mutex);
    const Span span = span_of(start, bytes);
    if (bytes)
        arrays[span.start] = span.stop;
    else
        arrays.erase(span.start);
}

// Runs a grid; 0, or 1 for threads that wait for ever, 2 for copies that nobody waited for, 3 for addresses that an
// instruction does not take, 4 and 5 for reads and writes outside of all arrays and of the `shared` bytes of a block, 6
// for writes to arrays between the moment when a block is counted as done and its next barrier. `failed` gets the block.
int emulated_launch(void (*kernel)(void*), const unsigned* grid, const unsigned* block, size_t shared, void* arguments,
                    size_t arguments_bytes, int order, int copies_early, unsigned* failed) {
    const std::lock_guard lock(mutex);
    const int threads = static_cast<int>(block[0] * block[1] * block[2]);
    const size_t bytes = STACK * threads;
    char* stacks = static_cast<char*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    std::vector<Fiber> fibers(threads);
    std::vector<int> turns(threads);
    std::mt19937 random(1);
    for (int i = 0; i < threads; i++) turns[i] = order == REVERSE ? threads - 1 - i : i;
    launch = {};
    launch.kernel = kernel;
    launch.arguments = arguments;
    launch.copies_early = copies_early != 0;
    std::vector<Warp> warps((threads + WARP - 1) / WARP);
    launch.own[0] = span_of(stacks, bytes);
    launch.own[1] = span_of(shared_memory, shared);
    launch.own[2] = span_of(fibers.data(), threads * sizeof(Fiber));
    launch.own[3] = span_of(warps.data(), warps.size() * sizeof(Warp));
    launch.own[4] = span_of(arguments, arguments_bytes);
    emulated_block_size = {block[0], block[1], block[2]};
    emulated_grid_size = {grid[0], grid[1], grid[2]};
    int status = 0;
    const unsigned long blocks = 1ul * grid[0] * grid[1] * grid[2];
    for (unsigned long turn = 0; turn < blocks && !status; turn++) {
        const unsigned long number = order == REVERSE ? blocks - 1 - turn : turn;
        emulated_block = {static_cast<unsigned>(number % grid[0]), static_cast<unsigned>(number / grid[0] % grid[1]),
                          static_cast<unsigned>(number / grid[0] / grid[1])};
        std::memset(shared_memory, 0xff, SHARED);
        std::fill(warps.begin(), warps.end(), Warp{});
        launch.alive = threads;
        launch.at_barrier = 0;
        launch.counted = -1;
        for (int i = 0; i < threads; i++) {
            Fiber& fiber = fibers[i];
            const unsigned u = static_cast<unsigned>(i);
            fiber.index = {u % block[0], u / block[0] % block[1], u / block[0] / block[1]};
            fiber.lane = i % WARP;
            fiber.warp = &warps[i / WARP];
            fiber.warp->alive++;
            fiber.done = false;
            fiber.open.clear();
            fiber.groups.clear();
            prepare(fiber, stacks + STACK * i);
        }
        if (!run_block(fibers, turns, static_cast<Order>(order), random)) status = 1;
        for (const Fiber& fiber : fibers)
            if (!status && (!fiber.open.empty() || !fiber.groups.empty())) status = 2;
        if (launch.misaligned) status = 3;
        if (launch.reads_outside) status = 4;
        if (launch.writes_outside) status = 5;
        if (!status && launch.writes_late) status = 6;
        failed[0] = emulated_block.x;
        failed[1] = emulated_block.y;
        failed[2] = emulated_block.z;
    }
    munmap(stacks, bytes);
    return status;
}
}
