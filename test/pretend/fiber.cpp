/* fiber.cpp - runs a grid: the threads of a block are fibers of the host thread that runs the
 * stream.
 *
 * A block is up to 1024 fibers in warps of 32. A fiber runs until it ends or suspends: in a warp
 * collective until the other lanes of its mask have come, at a barrier until the other threads of
 * the block have. The lane that comes last combines for all and goes on; which lane is resumed next
 * is drawn at random among those of the warp that can run, and when none can, a random warp that
 * can. Blocks run one after another in a random order; none may wait for another.
 *
 * When no fiber can run and some have not ended, lanes wait for others that will never come: the
 * kernel ends with a report of who waits where and the error cudaErrorLaunchFailure. (A GPU hangs.)
 *
 * A fiber's stack is taken when it first runs. A fiber that ends starts the next lane that has not
 * run yet on its own stack, so a kernel without suspension points needs one stack and no switches.
 *
 * Sanitizers: AddressSanitizer is told of every switch. ThreadSanitizer is not: all fibers belong
 * to the host thread of their stream, so what it reports are races between streams, which is what
 * we want of it. Its shadow call stack then mixes the fibers' frames; pushes and pops still pair
 * up.
 */
#include "engine.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <mutex>
#include <vector>

#if PRETEND_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define VALGRIND_STACK_REGISTER(from, to) 0
#endif

/* pretend_switch(&from, to): saves the callee's registers on the stack, its pointer in *from, and
 * continues where `to` was saved. */
extern "C" void pretend_switch(void **from, void *to);
__asm__(".text\n"
        ".globl pretend_switch\n"
        ".type pretend_switch,@function\n"
        "pretend_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    popq %rcx\n" /* not ret: it would be predicted by the other stack's calls */
        "    jmpq *%rcx\n"
        ".size pretend_switch,.-pretend_switch\n");

__thread pretend_thread *pretend_now;

namespace {

const size_t STACK_BYTES = PRETEND_ASAN ? 256 * 1024 : 64 * 1024;
const uint64_t CANARY = 0x5ac3a11e5ac3a11e;
enum { MAX_THREADS = 1024, MAX_WARPS = 32 };

enum wait_kind : unsigned char { FRESH, RUNS, WAITS_WARP, WAITS_BLOCK, ENDED };

struct copy {
    void *dst;
    const void *src;
    bool valid;
};

struct stack {
    char *low; /* STACK_BYTES from here */
};

/* A suspended context: a fiber's or the scheduler's. */
struct context {
    void *sp = nullptr;
    const void *bottom = nullptr; /* of its stack, for AddressSanitizer */
    size_t size = 0;
    void *fake_stack = nullptr;
};

struct fiber {
    pretend_thread now; /* first member */
    unsigned warp, number;
    wait_kind state;
    int stack; /* index, -1 none */
    context at;
    /* the collective or barrier it waits in */
    unsigned mask;
    const char *what, *file;
    int detail, line;
    void *arg;
    pretend_combine combine;
    /* cp.async: copies not yet done; group ends as indices into it */
    std::vector<copy> copies;
    std::vector<size_t> groups;
};

struct warp {
    unsigned lanes;    /* that exist */
    unsigned runnable; /* fresh or resumable */
    unsigned waiting;  /* in a collective */
    unsigned ended;
};

struct engine {
    std::vector<stack> stacks;
    std::vector<int> free_stacks;
    fiber *fibers;
    warp warps[MAX_WARPS];
    context scheduler;
    const pretend_launch_info *launch = nullptr;
    pretend_random random{1};
    unsigned n_threads = 0, n_warps = 0, n_ended = 0, n_at_barrier = 0;
    unsigned warps_runnable = 0;
    int barrier_kind = 0, barrier_sum = 0, barrier_result = 0;
    const char *barrier_file = nullptr;
    int barrier_line = 0;
    uint3 block_index{0, 0, 0};
    cudaError_t error = cudaSuccess;

    engine() : fibers(new fiber[MAX_THREADS]) {
        scheduler.bottom = nullptr;
    }
};

__thread engine *g_engine;

/* Engines go from launch to launch: there are as many as kernels ever ran at once. Never freed:
 * host threads may run kernels while the process ends. */
std::mutex &engines_lock() {
    static std::mutex *m = new std::mutex;
    return *m;
}
std::vector<engine *> &engines() {
    static std::vector<engine *> *v = new std::vector<engine *>;
    return *v;
}

int take_stack(engine *e) {
    if (e->free_stacks.empty()) {
        /* 32 at a time. Their tops are staggered by cache lines: equal offsets would share cache
         * sets. */
        const int n = 32;
        char *slab = (char *)mmap(nullptr, n * STACK_BYTES, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (slab == MAP_FAILED) {
            fprintf(stderr, "pretend: no memory for the stacks of a block\n");
            abort();
        }
        for (int i = 0; i < n; i++) {
            stack s = {slab + (size_t)i * STACK_BYTES};
            memcpy(s.low, &CANARY, sizeof CANARY);
            (void)VALGRIND_STACK_REGISTER(s.low, s.low + STACK_BYTES);
            e->free_stacks.push_back((int)e->stacks.size());
            e->stacks.push_back(s);
        }
    }
    const int i = e->free_stacks.back();
    e->free_stacks.pop_back();
    return i;
}

/* Leaves `from` (for good when it ends) and continues `to`. */
__attribute__((no_sanitize("address", "thread"))) void switch_context(context *from, context *to,
                                                                      bool from_ends) {
#if PRETEND_ASAN
    __sanitizer_start_switch_fiber(from_ends ? nullptr : &from->fake_stack, to->bottom, to->size);
#endif
    (void)from_ends;
    pretend_switch(&from->sp, to->sp);
#if PRETEND_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(from->fake_stack, &bottom, &size);
#endif
}

[[noreturn]] void fiber_main();

/* Where a fresh stack starts: aligned as at a function's entry. */
void prepare_stack(engine *e, fiber *f) {
    f->stack = take_stack(e);
    char *low = e->stacks[(size_t)f->stack].low;
    char *top = low + STACK_BYTES - 64 - (size_t)(f->stack % 61) * 64;
    top = (char *)((uintptr_t)top & ~(uintptr_t)15);
    void **sp = (void **)top;
    *--sp = nullptr; /* a return address that ends backtraces */
    *--sp = (void *)fiber_main;
    for (int i = 0; i < 6; i++)
        *--sp = nullptr;
    f->at.sp = sp;
    f->at.bottom = low;
    f->at.size = STACK_BYTES;
    f->at.fake_stack = nullptr;
}

std::string describe(const engine *e) {
    char text[160];
    snprintf(text, sizeof text,
             "kernel %s, grid (%u,%u,%u) block (%u,%u,%u) on device %d, block "
             "(%u,%u,%u)",
             e->launch->kernel.name, e->launch->grid.x, e->launch->grid.y, e->launch->grid.z,
             e->launch->block.x, e->launch->block.y, e->launch->block.z, e->launch->device,
             e->block_index.x, e->block_index.y, e->block_index.z);
    return text;
}

fiber *current() {
    return reinterpret_cast<fiber *>(pretend_now);
}

/* A lane of the warp that can run, at random. */
fiber *pick_lane(engine *e, unsigned w) {
    const unsigned runnable = e->warps[w].runnable, turn = e->random.next() & 31;
    const unsigned turned = runnable >> turn | (turn ? runnable << (32 - turn) : 0);
    const unsigned lane = ((unsigned)__builtin_ctz(turned) + turn) & 31;
    return &e->fibers[w * 32 + lane];
}

void set_running(engine *e, fiber *f) {
    warp *w = &e->warps[f->warp];
    w->runnable &= ~(1u << f->now.lane);
    if (!w->runnable)
        e->warps_runnable &= ~(1u << f->warp);
    f->state = RUNS;
    pretend_now = &f->now;
}
void set_runnable(engine *e, unsigned w, unsigned lanes) {
    e->warps[w].runnable |= lanes;
    e->warps_runnable |= 1u << w;
}

/* Who runs next: of this warp while one can and `stay`, else of a random warp that can. NULL: none
 * can, the scheduler decides what that means. */
fiber *pick_next(engine *e, unsigned w, bool stay) {
    if (!stay || !e->warps[w].runnable) {
        const unsigned all = e->warps_runnable;
        if (!all)
            return nullptr;
        const unsigned turn = e->random.next() & 31;
        const unsigned turned = all >> turn | (turn ? all << (32 - turn) : 0);
        w = ((unsigned)__builtin_ctz(turned) + turn) & 31;
    }
    return pick_lane(e, w);
}

void suspend(engine *e, fiber *f, bool stay) {
    fiber *next = pick_next(e, f->warp, stay);
    if (next == f) {
        set_running(e, f);
        return;
    }
    context *to = &e->scheduler;
    if (next) {
        if (next->state == FRESH)
            prepare_stack(e, next);
        set_running(e, next);
        to = &next->at;
    }
    switch_context(&f->at, to, false);
}

/* Completes the collective of these lanes when all of them that have not ended have come: all can
 * run again then, the calling lane too. */
bool try_collective(engine *e, unsigned wi, unsigned mask) {
    warp *w = &e->warps[wi];
    const unsigned lanes = mask & w->lanes & ~w->ended;
    if (!lanes || (w->waiting & lanes) != lanes)
        return false;
    fiber *base = &e->fibers[wi * 32];
    fiber *first = &base[__builtin_ctz(lanes)];
    void *args[32];
    for (int i = 0; i < 32; i++) {
        args[i] = nullptr;
        if (!(lanes >> i & 1))
            continue;
        const fiber *f = &base[i];
        if (f->mask != first->mask || f->what != first->what || f->detail != first->detail ||
            f->line != first->line || f->file != first->file) {
            if (f->mask != first->mask || strcmp(f->what, first->what) ||
                f->detail != first->detail || f->line != first->line ||
                strcmp(f->file ? f->file : "", first->file ? first->file : ""))
                pretend_fault(cudaErrorLaunchFailure,
                              "lanes of warp %u meet in different collectives: lane %u in %s at "
                              "%s:%d with mask %08x, lane %d in %s at %s:%d with mask %08x",
                              wi, first->now.lane, first->what, first->file ? first->file : "?",
                              first->line, first->mask, i, f->what, f->file ? f->file : "?",
                              f->line, f->mask);
        }
        args[i] = f->arg;
    }
    if (first->combine)
        first->combine(args, lanes, first->detail);
    w->waiting &= ~lanes;
    set_runnable(e, wi, lanes);
    return true;
}

/* All that have not ended have come. */
void release_barrier(engine *e) {
    const int n = (int)e->n_at_barrier, sum = e->barrier_sum;
    e->barrier_result = e->barrier_kind == PRETEND_BARRIER_COUNT ? sum
                        : e->barrier_kind == PRETEND_BARRIER_AND ? sum == n
                                                                 : sum != 0;
    e->n_at_barrier = 0;
    for (unsigned w = 0; w < e->n_warps; w++)
        if (e->warps[w].lanes & ~e->warps[w].ended)
            set_runnable(e, w, e->warps[w].lanes & ~e->warps[w].ended);
}

void end_fiber(engine *e, fiber *f) {
    warp *w = &e->warps[f->warp];
    f->state = ENDED;
    f->copies.clear();
    f->groups.clear();
    w->ended |= 1u << f->now.lane;
    e->n_ended++;
    if (memcmp(e->stacks[(size_t)f->stack].low, &CANARY, sizeof CANARY) != 0) {
        fprintf(stderr, "pretend: %s: a thread's stack overflowed\n", describe(e).c_str());
        abort();
    }
    /* Those who waited for this lane only. */
    for (unsigned left = w->waiting; left;) {
        const fiber *other = &e->fibers[f->warp * 32 + (unsigned)__builtin_ctz(left)];
        left &= ~other->mask;
        left &= ~(1u << other->now.lane);
        try_collective(e, f->warp, other->mask);
    }
    if (e->n_at_barrier && e->n_at_barrier + e->n_ended == e->n_threads)
        release_barrier(e);
}

__attribute__((no_sanitize("address", "thread"))) void fiber_main() {
#if PRETEND_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
#endif
    engine *e = g_engine;
    for (;;) {
        fiber *f = current();
        e->launch->kernel.run(e->launch->kernel.arguments);
        end_fiber(e, f);
        fiber *next = e->error == cudaSuccess ? pick_next(e, f->warp, true) : nullptr;
        if (next && next->state == FRESH) {
            next->stack = f->stack;
            next->at = f->at;
            f->stack = -1;
            set_running(e, next);
            continue;
        }
        /* Nobody else uses the stack before we have left it. */
        e->free_stacks.push_back(f->stack);
        f->stack = -1;
        if (next) {
            set_running(e, next);
            switch_context(&f->at, &next->at, true);
        } else {
            switch_context(&f->at, &e->scheduler, true);
        }
    }
}

void report_deadlock(engine *e) {
    std::string text = describe(e) + ": threads wait for others that never come:";
    unsigned listed = 0;
    const char *last_what = nullptr;
    int last_line = -1;
    for (unsigned i = 0; i < e->n_threads && listed < 8; i++) {
        const fiber *f = &e->fibers[i];
        if (f->state == ENDED || (f->what == last_what && f->line == last_line))
            continue;
        char line[200];
        snprintf(line, sizeof line, "\n    thread (%u,%u,%u) (warp %u, lane %u) in %s at %s:%d",
                 f->now.index.x, f->now.index.y, f->now.index.z, f->warp, f->now.lane, f->what,
                 f->file ? f->file : "?", f->line);
        text += line;
        if (f->state == WAITS_WARP) {
            snprintf(line, sizeof line, " with mask %08x", f->mask);
            text += line;
        }
        last_what = f->what;
        last_line = f->line;
        listed++;
    }
    char line[100];
    snprintf(line, sizeof line, "\n    of %u threads %u have ended, %u are at the barrier",
             e->n_threads, e->n_ended, e->n_at_barrier);
    pretend_report(text + line);
    e->error = cudaErrorLaunchFailure;
}

void run_block(engine *e) {
    e->n_ended = e->n_at_barrier = 0;
    e->warps_runnable = 0;
    for (unsigned w = 0; w < e->n_warps; w++) {
        const unsigned n = e->n_threads - w * 32;
        e->warps[w].lanes = n >= 32 ? 0xffffffffu : (1u << n) - 1;
        e->warps[w].waiting = e->warps[w].ended = 0;
        e->warps[w].runnable = 0;
        set_runnable(e, w, e->warps[w].lanes);
    }
    for (unsigned i = 0; i < e->n_threads; i++) {
        e->fibers[i].state = FRESH;
        e->fibers[i].stack = -1;
    }
    while (e->error == cudaSuccess && e->n_ended < e->n_threads) {
        if (!e->warps_runnable) {
            report_deadlock(e);
            break;
        }
        fiber *next = pick_next(e, 0, false);
        if (next->state == FRESH)
            prepare_stack(e, next);
        set_running(e, next);
        switch_context(&e->scheduler, &next->at, false);
    }
    if (e->error != cudaSuccess)
        for (unsigned i = 0; i < e->n_threads; i++) {
            fiber *f = &e->fibers[i];
            if (f->stack < 0)
                continue;
#if PRETEND_ASAN
            __asan_unpoison_memory_region(e->stacks[(size_t)f->stack].low, STACK_BYTES);
#endif
            e->free_stacks.push_back(f->stack);
            f->stack = -1;
            f->copies.clear();
            f->groups.clear();
        }
}

uint64_t gcd(uint64_t a, uint64_t b) {
    while (b) {
        const uint64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

} // namespace

cudaError_t pretend_run_grid(const pretend_launch_info &launch) {
    engine *e = nullptr;
    {
        std::lock_guard<std::mutex> hold(engines_lock());
        if (!engines().empty()) {
            e = engines().back();
            engines().pop_back();
        }
    }
    if (!e)
        e = new engine;
    engine *outer = g_engine;
    pretend_thread *outer_now = pretend_now;
    g_engine = e;
#if PRETEND_ASAN
    pthread_attr_t attributes;
    void *low;
    if (!pthread_getattr_np(pthread_self(), &attributes)) {
        pthread_attr_getstack(&attributes, &low, &e->scheduler.size);
        e->scheduler.bottom = low;
        pthread_attr_destroy(&attributes);
    }
#endif
    const dim3 grid = launch.grid, block = launch.block;
    e->launch = &launch;
    e->error = cudaSuccess;
    e->random = pretend_random(launch.seed);
    e->n_threads = block.x * block.y * block.z;
    e->n_warps = (e->n_threads + 31) / 32;
    void *shared = nullptr;
    if (launch.shared_bytes && posix_memalign(&shared, 128, launch.shared_bytes)) {
        fprintf(stderr, "pretend: no memory for a block's shared memory\n");
        abort();
    }
    for (unsigned i = 0; i < e->n_threads; i++) {
        fiber *f = &e->fibers[i];
        f->now.index = uint3{i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        f->now.lane = i & 31;
        f->now.block_index = &e->block_index;
        f->now.block_dim = &launch.block;
        f->now.grid_dim = &launch.grid;
        f->now.dynamic_shared = static_cast<unsigned char *>(shared);
        f->warp = i / 32;
    }
    /* Every block once, by a random walk i -> a i + b that visits all. */
    const uint64_t n = (uint64_t)grid.x * grid.y * grid.z;
    uint64_t a = 1 + e->random.next() % n;
    while (gcd(a, n) != 1)
        a++;
    uint64_t at = e->random.next() % n;
    for (uint64_t i = 0; i < n && e->error == cudaSuccess; i++, at = (at + a) % n) {
        e->block_index = uint3{(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y),
                               (unsigned)(at / ((uint64_t)grid.x * grid.y))};
        if (shared)
            memset(shared, 0xff, launch.shared_bytes);
        run_block(e);
    }
    free(shared);
    const cudaError_t error = e->error;
    e->launch = nullptr;
    g_engine = outer;
    pretend_now = outer_now;
    std::lock_guard<std::mutex> hold(engines_lock());
    engines().push_back(e);
    return error;
}

void pretend_collective(unsigned mask, const char *what, int detail, const char *file, int line,
                        void *arg, pretend_combine combine) {
    engine *e = g_engine;
    fiber *f = current();
    const unsigned bit = 1u << f->now.lane;
    if (!(mask & bit))
        pretend_fault(cudaErrorLaunchFailure,
                      "%s at %s:%d with mask %08x, which leaves the lane out", what,
                      file ? file : "?", line, mask);
    f->mask = mask;
    f->what = what;
    f->detail = detail;
    f->file = file;
    f->line = line;
    f->arg = arg;
    f->combine = combine;
    warp *w = &e->warps[f->warp];
    w->waiting |= bit;
    f->state = WAITS_WARP;
    if (try_collective(e, f->warp, mask))
        set_running(e, f);
    else
        suspend(e, f, true);
}

int pretend_barrier(int kind, int predicate, const char *file, int line) {
    engine *e = g_engine;
    fiber *f = current();
    if (e->n_at_barrier == 0) {
        e->barrier_kind = kind;
        e->barrier_file = file;
        e->barrier_line = line;
        e->barrier_sum = 0;
    } else if (e->barrier_kind != kind || e->barrier_line != line ||
               (e->barrier_file != file && strcmp(e->barrier_file, file))) {
        pretend_fault(cudaErrorLaunchFailure,
                      "threads of the block meet in different barriers: this one at %s:%d, others "
                      "at %s:%d",
                      file, line, e->barrier_file, e->barrier_line);
    }
    e->barrier_sum += predicate != 0;
    e->n_at_barrier++;
    f->what = "__syncthreads";
    f->file = file;
    f->line = line;
    f->state = WAITS_BLOCK;
    const bool all = e->n_at_barrier + e->n_ended == e->n_threads;
    if (all)
        release_barrier(e);
    suspend(e, f, !all);
    return e->barrier_result;
}

void pretend_fault(cudaError_t error, const char *format, ...) {
    char text[600];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    engine *e = g_engine;
    if (!e || !e->launch) {
        fprintf(stderr, "pretend: outside of a kernel: %s\n", text);
        abort();
    }
    fiber *f = current();
    char place[80];
    snprintf(place, sizeof place, ", thread (%u,%u,%u): ", f->now.index.x, f->now.index.y,
             f->now.index.z);
    pretend_report(describe(e) + place + text);
    e->error = error;
    switch_context(&f->at, &e->scheduler, true);
    abort(); /* an abandoned fiber is not resumed */
}

int pretend_capability() {
    return g_engine->launch->capability;
}
void pretend_need(int capability, const char *what) {
    if (g_engine->launch->capability < capability)
        pretend_fault(cudaErrorLaunchFailure, "%s needs sm_%d, this device is sm_%d", what,
                      capability, g_engine->launch->capability);
}

void pretend_cp_async(void *dst, const void *src, bool valid) {
    fiber *f = current();
    if ((uintptr_t)dst % 16 || (valid && (uintptr_t)src % 16))
        pretend_fault(cudaErrorMisalignedAddress, "cp.async to %p from %p", dst, src);
    f->copies.push_back(copy{dst, src, valid});
    if (g_engine->launch->capability < 80 || g_engine->random.next() & 1) {
        /* At once; the place in the list keeps the groups' counts right. */
        if (valid)
            memcpy(dst, src, 16);
        else
            memset(dst, 0, 16);
        f->copies.back().dst = nullptr;
    }
}
void pretend_cp_async_commit() {
    fiber *f = current();
    f->groups.push_back(f->copies.size());
}
void pretend_cp_async_wait(int n_left) {
    fiber *f = current();
    if ((int)f->groups.size() <= n_left)
        return;
    const size_t n_groups = f->groups.size() - (size_t)n_left, n = f->groups[n_groups - 1];
    for (size_t i = 0; i < n; i++) {
        const copy c = f->copies[i];
        if (!c.dst)
            continue;
        if (c.valid)
            memcpy(c.dst, c.src, 16);
        else
            memset(c.dst, 0, 16);
    }
    f->copies.erase(f->copies.begin(), f->copies.begin() + (ptrdiff_t)n);
    f->groups.erase(f->groups.begin(), f->groups.begin() + (ptrdiff_t)n_groups);
    for (size_t &g : f->groups)
        g -= n;
}
