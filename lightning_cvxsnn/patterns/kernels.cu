// Spike patterns of many units, and what is asked of their columns. Arguments are pointers, long long and float alone,
// so that the host converts them by one rule. All matrices are row-major.

#include "neuron.h"

// ---- Patterns. A warp is 32 neighbouring units of one row, so that loads of a step lie side by side; blocks are
// (32, rows) threads, and rows beyond the grid are reached by striding over it.

#define NEURON_ARGUMENTS \
    long long charge, long long hard_reset, float constant, float threshold, float reset, float initial
#define NEURON Neuron{charge, hard_reset, constant, threshold, reset, initial}

extern "C" __global__ void spike_bits(const float *currents, long long steps, long long rows, long long columns,
                                      NEURON_ARGUMENTS, long long membrane, unsigned char *bits) {
    const long long column = blockIdx.x * 32ll + threadIdx.x, bytes = (columns + 7) / 8;
    const Neuron neuron = NEURON;
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

#define SPIKE_COUNTS(name, Count)                                                                               \
    extern "C" __global__ void spike_counts_##name(const float *currents, long long steps, long long rows,      \
                                                   long long columns, NEURON_ARGUMENTS, Count *counts) {        \
        count_spikes(currents, steps, rows, columns, NEURON, counts);                                           \
    }
SPIKE_COUNTS(uint8, unsigned char)
SPIKE_COUNTS(uint16, unsigned short)

// ---- Columns. A thread has eight neighbouring columns and every gridDim.y-th part of the rows.

struct Bits {
    const unsigned char *stored;
    long long columns;
    __device__ void load(long long row, long long group, unsigned *values) const {
        const unsigned byte = stored[row * ((columns + 7) / 8) + group];
        for (int k = 0; k < 8; ++k) values[k] = byte >> k & 1u;
    }
};

template <class Count>
struct Counts {
    const Count *stored;
    long long columns;
    __device__ void load(long long row, long long group, unsigned *values) const {
        for (int k = 0; k < 8; ++k) values[k] = 8 * group + k < columns ? stored[row * columns + 8 * group + k] : 0u;
    }
};

// The part of the rows that a thread looks at: [first, last).
struct Rows {
    long long first, last;
    __device__ explicit Rows(long long rows) {
        const long long size = (rows + gridDim.y - 1) / gridDim.y;
        first = blockIdx.y * size;
        last = first + size < rows ? first + size : rows;
    }
};

__device__ long long group_of_thread() { return blockIdx.x * (long long)blockDim.x + threadIdx.x; }

// A fixed random 64-bit number for each row: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), its state at row + 1.
__device__ unsigned long long row_key(unsigned long long row, unsigned long long seed) {
    unsigned long long z = seed + (row + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

template <class Source>
__device__ void add_columns(const Source &source, long long rows, bool hashed, unsigned long long seed,
                            unsigned long long *totals) {
    const long long group = group_of_thread();
    if (8 * group >= source.columns) return;
    unsigned long long total[8] = {};
    const Rows part(rows);
    for (long long row = part.first; row < part.last; ++row) {
        unsigned values[8];
        source.load(row, group, values);
        const unsigned long long key = hashed ? row_key(row, seed) : 1ull;
        for (int k = 0; k < 8; ++k) total[k] += values[k] * key;
    }
    for (int k = 0; k < 8 && 8 * group + k < source.columns; ++k) atomicAdd(totals + 8 * group + k, total[k]);
}

// partial[part of the rows][column][output]; the host adds the parts, in one order whatever the device does first.
const int OUTPUTS = 4;  // at a time: 8 x 4 totals fit in registers

template <class Source, class Real>
__device__ void score_columns(const Source &source, long long rows, const Real *dual, long long outputs,
                              Real *partial) {
    const long long group = group_of_thread();
    if (8 * group >= source.columns) return;
    const Rows part(rows);
    for (long long output = 0; output < outputs; output += OUTPUTS) {
        Real total[8][OUTPUTS] = {};
        for (long long row = part.first; row < part.last; ++row) {
            unsigned values[8];
            source.load(row, group, values);
            for (int c = 0; c < OUTPUTS; ++c) {
                const Real u = output + c < outputs ? dual[row * outputs + output + c] : Real(0);
                for (int k = 0; k < 8; ++k) total[k][c] = fma((Real)values[k], u, total[k][c]);
            }
        }
        for (int k = 0; k < 8 && 8 * group + k < source.columns; ++k)
            for (int c = 0; c < OUTPUTS && output + c < outputs; ++c)
                partial[(blockIdx.y * source.columns + 8 * group + k) * outputs + output + c] = total[k][c];
    }
}

#define COLUMNS(name, Source, Stored)                                                                              \
    extern "C" __global__ void column_sums_##name(const Stored *stored, long long rows, long long columns,         \
                                                  unsigned long long *sums) {                                      \
        add_columns(Source{stored, columns}, rows, false, 0, sums);                                                \
    }                                                                                                              \
    extern "C" __global__ void column_hashes_##name(const Stored *stored, long long rows, long long columns,       \
                                                    long long seed, unsigned long long *hashes) {                  \
        add_columns(Source{stored, columns}, rows, true, seed, hashes);                                            \
    }                                                                                                              \
    extern "C" __global__ void column_scores_##name##_float32(const Stored *stored, long long rows,                \
                                                              long long columns, const float *dual,                \
                                                              long long outputs, float *partial) {                 \
        score_columns(Source{stored, columns}, rows, dual, outputs, partial);                                      \
    }                                                                                                              \
    extern "C" __global__ void column_scores_##name##_float64(const Stored *stored, long long rows,                \
                                                              long long columns, const double *dual,               \
                                                              long long outputs, double *partial) {                \
        score_columns(Source{stored, columns}, rows, dual, outputs, partial);                                      \
    }
COLUMNS(bits, Bits, unsigned char)
COLUMNS(uint8, Counts<unsigned char>, unsigned char)
COLUMNS(uint16, Counts<unsigned short>, unsigned short)
