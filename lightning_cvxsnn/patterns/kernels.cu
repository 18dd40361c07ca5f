// Spike patterns of many units. Arguments are pointers and long long alone, so that the host converts them by one rule.
// All matrices are row-major. A warp is 32 neighbouring units of one row, so that loads of a step lie side by side;
// blocks are (32, rows) threads, and rows beyond the grid are reached by striding over it.

#include "neuron.h"

extern "C" __global__ void spike_bits(const float *currents, long long steps, long long rows, long long columns,
                                      long long kind, long long hard_reset, const float *constants, long long membrane,
                                      unsigned char *bits) {
    const long long column = blockIdx.x * 32ll + threadIdx.x, bytes = (columns + 7) / 8;
    const Neuron neuron{kind, hard_reset, constants};
    for (long long row = blockIdx.y * (long long)blockDim.y + threadIdx.y; row < rows;
         row += (long long)gridDim.y * blockDim.y) {
        bool one = false;
        if (column < columns) {
            const Outcome outcome = neuron.run(currents + row * columns + column, rows * columns, steps);
            one = membrane ? outcome.membrane : outcome.fires;
        }
        const unsigned word = __ballot_sync(0xffffffffu, one);  // bit k is lane k, as column k of a packed dictionary
        const long long byte = blockIdx.x * 4ll + threadIdx.x;
        if (threadIdx.x < 4 && byte < bytes) bits[row * bytes + byte] = (unsigned char)(word >> 8 * threadIdx.x);
    }
}

template <class Count>
__device__ void count_spikes(const float *currents, long long steps, long long rows, long long columns,
                             const Neuron &neuron, Count *counts) {
    const long long column = blockIdx.x * 32ll + threadIdx.x;
    if (column >= columns) return;
    for (long long row = blockIdx.y * (long long)blockDim.y + threadIdx.y; row < rows;
         row += (long long)gridDim.y * blockDim.y) {
        const long long unit = row * columns + column;
        counts[unit] = (Count)neuron.run(currents + unit, rows * columns, steps).spikes;
    }
}

#define SPIKE_COUNTS(name, Count)                                                                            \
    extern "C" __global__ void spike_counts_##name(const float *currents, long long steps, long long rows,   \
                                                   long long columns, long long kind, long long hard_reset,  \
                                                   const float *constants, Count *counts) {                  \
        count_spikes(currents, steps, rows, columns, Neuron{kind, hard_reset, constants}, counts);           \
    }
SPIKE_COUNTS(uint8, unsigned char)
SPIKE_COUNTS(uint16, unsigned short)
