// One spiking neuron over all time steps, in one thread: the operations of spikingjelly in their order, each rounded
// once, so that ties at the threshold fall as they do in torch. Compiled by NVRTC, and by g++ in the tests.
// A model is a struct that is made of the `kernel_constants` of its class in neuron.py: `charge` makes the voltage h of
// v and the input x, `after` makes the next v of h and the spike (0 or 1). It has an entry in Kind and in Neuron::run.

enum Kind { INTEGRATE, LEAK_TAU, LEAK_TAU_INPUT, LEAK_DECAY, LEAK_DECAY_INPUT, KLIF, KLIF_INPUT };

struct Integrate {
    float threshold, resting, initial;

    __device__ explicit Integrate(const float *constants)
        : threshold(constants[0]), resting(constants[1]), initial(constants[2]) {}

    __device__ float charge(float v, float x) const { return __fadd_rn(v, x); }

    template <bool hard_reset>
    __device__ float after(float h, float spike) const {
        return reset<hard_reset>(h, spike, threshold);
    }

    // Multiplied out, because spikingjelly does: an infinite voltage leaves NaN behind a hard reset.
    template <bool hard_reset>
    __device__ float reset(float h, float spike, float subtracted) const {
        return hard_reset ? __fadd_rn(__fmul_rn(spike, resting), __fmul_rn(__fsub_rn(1.0f, spike), h))
                          : __fsub_rn(h, __fmul_rn(spike, subtracted));
    }
};

// constant: tau, or what a parametric LIF multiplies by instead of dividing.
template <bool divided, bool with_input>
struct Leaky : Integrate {
    float constant;

    __device__ explicit Leaky(const float *constants) : Integrate(constants), constant(constants[3]) {}

    __device__ float charge(float v, float x) const {
        const float above = __fsub_rn(v, resting);
        const float whole = with_input ? __fsub_rn(x, above) : above;
        const float change = divided ? __fdiv_rn(whole, constant) : __fmul_rn(whole, constant);
        return with_input ? __fadd_rn(v, change) : __fadd_rn(__fsub_rn(v, change), x);
    }
};

template <bool with_input>
struct Klif : Leaky<true, with_input> {
    float k, divisor, subtracted;

    __device__ explicit Klif(const float *constants)
        : Leaky<true, with_input>(constants), k(constants[4]), divisor(constants[5]), subtracted(constants[6]) {}

    __device__ float charge(float v, float x) const {
        const float h = __fmul_rn(Leaky<true, with_input>::charge(v, x), k);
        return h < 0.0f ? 0.0f : h;  // NaN stays NaN, as in torch
    }

    template <bool hard_reset>
    __device__ float after(float h, float spike) const {
        return this->template reset<hard_reset>(__fdiv_rn(h, divisor), spike, subtracted);
    }
};

struct Outcome {
    unsigned spikes;  // over all steps
    bool fires;       // at the last step
    bool membrane;    // whether the voltage is not negative after the last charge
};

template <class Model, bool hard_reset>
struct Unit {
    Model model;
    float v, h;
    Outcome outcome;

    __device__ explicit Unit(const float *constants) : model(constants), v(model.initial), h(0.0f), outcome{} {}

    __device__ void step(float x) {
        h = model.charge(v, x);
        outcome.fires = h >= model.threshold;
        outcome.spikes += outcome.fires;
        v = model.template after<hard_reset>(h, outcome.fires ? 1.0f : 0.0f);
    }

    __device__ Outcome run(const float *currents, long long stride, long long steps) {
        const int AHEAD = 4;  // loads under way together
        long long t = 0;
#pragma unroll 1
        for (; t + AHEAD <= steps; t += AHEAD) {
            float x[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) x[k] = currents[(t + k) * stride];
            asm volatile("" ::: "memory");  // without it each load moves to its use, and the thread waits for it there
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
    long long kind, hard_reset;
    const float *constants;

    // All threads have the same neuron: the branches on it lie outside the loop over time.
    __device__ Outcome run(const float *currents, long long stride, long long steps) const {
        switch (kind) {
            case LEAK_TAU: return run_model<Leaky<true, false>>(currents, stride, steps);
            case LEAK_TAU_INPUT: return run_model<Leaky<true, true>>(currents, stride, steps);
            case LEAK_DECAY: return run_model<Leaky<false, false>>(currents, stride, steps);
            case LEAK_DECAY_INPUT: return run_model<Leaky<false, true>>(currents, stride, steps);
            case KLIF: return run_model<Klif<false>>(currents, stride, steps);
            case KLIF_INPUT: return run_model<Klif<true>>(currents, stride, steps);
            default: return run_model<Integrate>(currents, stride, steps);
        }
    }

    template <class Model>
    __device__ Outcome run_model(const float *currents, long long stride, long long steps) const {
        return hard_reset ? Unit<Model, true>(constants).run(currents, stride, steps)
                          : Unit<Model, false>(constants).run(currents, stride, steps);
    }
};
