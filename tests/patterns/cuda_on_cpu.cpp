// Runs kernels.cu on the CPU, thread by thread: the 32 threads of a warp are fibres that wait for one another at a
// ballot. Compiled with -ffp-contract=off, so that float operations are rounded one by one as on the GPU.

#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__

struct Dim {
    unsigned x, y;
};
static Dim blockIdx, blockDim, gridDim, threadIdx;

static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fdiv_rn(float a, float b) { return a / b; }

struct Lane {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool done, votes, vote;
};
static Lane lanes[32];
static ucontext_t warp;
static unsigned current, word;

static unsigned __ballot_sync(unsigned, bool vote) {
    lanes[current].vote = vote;
    lanes[current].votes = true;
    swapcontext(&lanes[current].context, &warp);
    return word;
}

#include "kernels.cu"

static void (*body)(void **);
static void **parameters;

static void run_lane() {
    body(parameters);
    lanes[current].done = true;
}

// False if some threads of the warp wait for others that have left: on a GPU that is undefined.
static bool run_warp(Dim first) {
    for (Lane &lane : lanes) {
        lane.done = lane.votes = false;
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = lane.stack.data();
        lane.context.uc_stack.ss_size = lane.stack.size();
        lane.context.uc_link = &warp;
        makecontext(&lane.context, run_lane, 0);
    }
    for (;;) {
        unsigned done = 0, votes = 0, ballot = 0;
        for (current = 0; current < 32; ++current) {
            Lane &lane = lanes[current];
            if (!lane.done) {
                lane.votes = false;
                threadIdx = {first.x + current, first.y};
                swapcontext(&warp, &lane.context);
            }
            done += lane.done;
            votes += !lane.done && lane.votes;
            ballot |= (unsigned)(!lane.done && lane.vote) << current;
        }
        if (done == 32) return true;
        if (votes < 32) return false;
        word = ballot;
    }
}

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A *>(arguments[I])...);
}

template <class... A>
static void call(void (*kernel)(A...), void **arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}

// 0: done; 1: no kernel of this name; 2: a divergent ballot.
extern "C" int launch(const char *name, unsigned blocks_x, unsigned blocks_y, unsigned threads_x, unsigned threads_y,
                      void **arguments) {
    body = nullptr;
#define KERNEL(kernel) \
    if (!std::strcmp(name, #kernel)) body = [](void **a) { call(kernel, a); };
    KERNEL(spike_bits)
    KERNEL(spike_counts_uint8)
    KERNEL(spike_counts_uint16)
    if (!body) return 1;
    parameters = arguments;
    gridDim = {blocks_x, blocks_y};
    blockDim = {threads_x, threads_y};
    for (blockIdx.y = 0; blockIdx.y < blocks_y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < blocks_x; ++blockIdx.x)
            for (unsigned y = 0; y < threads_y; ++y)
                for (unsigned x = 0; x < threads_x; x += 32)
                    if (!run_warp({x, y})) return 2;
    return 0;
}
