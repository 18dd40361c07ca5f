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
__device__ Outcome run_as(float constant, float threshold, float reset, float initial, const float *currents,
                          long long stride, long long steps) {
    float v = initial, h = initial;
    Outcome outcome = {0u, false, false};
#pragma unroll 4
    for (long long t = 0; t < steps; ++t) {
        const float x = currents[t * stride];
        if (charge == INTEGRATE) {
            h = __fadd_rn(v, x);
        } else {
            const bool with_input = charge == LEAK_TAU_INPUT || charge == LEAK_DECAY_INPUT;
            const float above = __fsub_rn(v, reset);
            float change = with_input ? __fsub_rn(x, above) : above;
            change = charge == LEAK_TAU || charge == LEAK_TAU_INPUT ? __fdiv_rn(change, constant)
                                                                    : __fmul_rn(change, constant);
            h = with_input ? __fadd_rn(v, change) : __fadd_rn(__fsub_rn(v, change), x);
        }
        outcome.fires = h >= threshold;
        outcome.spikes += outcome.fires;
        // Multiplied out, because spikingjelly does: an infinite voltage leaves NaN behind a hard reset.
        const float spike = outcome.fires ? 1.0f : 0.0f;
        v = hard_reset ? __fadd_rn(__fmul_rn(spike, reset), __fmul_rn(__fsub_rn(1.0f, spike), h))
                       : __fsub_rn(h, __fmul_rn(spike, threshold));
    }
    outcome.membrane = h >= 0.0f;
    return outcome;
}

struct Neuron {
    long long charge, hard_reset;
    float constant, threshold, reset, initial;

    // Branches on what all threads have in common once, outside the loop over time.
    __device__ Outcome run(const float *currents, long long stride, long long steps) const {
#define RUN(charge)                                                                                            \
    case charge:                                                                                               \
        return hard_reset ? run_as<charge, true>(constant, threshold, reset, initial, currents, stride, steps) \
                          : run_as<charge, false>(constant, threshold, reset, initial, currents, stride, steps)
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
