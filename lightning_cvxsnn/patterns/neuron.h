// One spiking neuron over all time steps, in one thread: the operations of spikingjelly in their order, each rounded
// once, so that ties at the threshold fall as they do in torch. Compiled by NVRTC, and by g++ in the tests.

enum Charge { INTEGRATE, LEAK_TAU, LEAK_TAU_INPUT, LEAK_DECAY, LEAK_DECAY_INPUT };

struct Outcome {
    unsigned spikes;  // over all steps
    bool fires;       // at the last step
    bool membrane;    // whether the voltage is not negative after the last charge
};

// constant: tau, or what a parametric LIF multiplies by instead of dividing; reset: 0 where it is soft.
template <int charge, bool hard_reset>
struct Unit {
    float constant, threshold, reset, v, h;
    Outcome outcome;

    __device__ void step(float x) {
        if (charge == INTEGRATE) {
            h = __fadd_rn(v, x);
        } else {
            const bool with_input = charge == LEAK_TAU_INPUT || charge == LEAK_DECAY_INPUT;
            const bool divided = charge == LEAK_TAU || charge == LEAK_TAU_INPUT;
            const float above = __fsub_rn(v, reset);
            const float whole = with_input ? __fsub_rn(x, above) : above;
            const float change = divided ? __fdiv_rn(whole, constant) : __fmul_rn(whole, constant);
            h = with_input ? __fadd_rn(v, change) : __fadd_rn(__fsub_rn(v, change), x);
        }
        outcome.fires = h >= threshold;
        outcome.spikes += outcome.fires;
        // Multiplied out, because spikingjelly does: an infinite voltage leaves NaN behind a hard reset.
        const float spike = outcome.fires ? 1.0f : 0.0f;
        v = hard_reset ? __fadd_rn(__fmul_rn(spike, reset), __fmul_rn(__fsub_rn(1.0f, spike), h))
                       : __fsub_rn(h, __fmul_rn(spike, threshold));
    }

    __device__ Outcome run(const float *currents, long long stride, long long steps) {
        const int AHEAD = 4;  // loads under way together
        long long t = 0;
#pragma unroll 1
        for (; t + AHEAD <= steps; t += AHEAD) {
            float x[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) x[k] = currents[(t + k) * stride];
            asm volatile("" ::: "memory");  // or each load sinks to its use, and its latency is waited for
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) step(x[k]);
        }
#pragma unroll 1
        for (; t < steps; ++t) step(currents[t * stride]);
        outcome.membrane = h >= 0.0f;
        return outcome;
    }
};

struct Neuron {
    long long charge, hard_reset;
    float constant, threshold, reset, initial;

    // Branches on what all threads have in common once, outside the loop over time.
    __device__ Outcome run(const float *currents, long long stride, long long steps) const {
#define RUN(charge)                                                                                              \
    case charge:                                                                                                 \
        return hard_reset ? Unit<charge, true>{constant, threshold, reset, initial}.run(currents, stride, steps) \
                          : Unit<charge, false>{constant, threshold, reset, initial}.run(currents, stride, steps)
        switch (this->charge) {
            RUN(LEAK_TAU);
            RUN(LEAK_TAU_INPUT);
            RUN(LEAK_DECAY);
            RUN(LEAK_DECAY_INPUT);
            default: RUN(INTEGRATE);
        }
#undef RUN
    }
};
