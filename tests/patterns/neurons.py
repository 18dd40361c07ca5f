"""Neurons and currents that try to make implementations disagree: ties, infinities, huge and tiny numbers."""

import math
from functools import partial

import torch
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, neuron, surrogate

STEPS, ROWS, COLUMNS = 9, 5, 70  # largest sizes
SURROGATES = [surrogate.Sigmoid(), surrogate.ATan(), surrogate.S2NN()]  # two fused, one not


LEAKY = [neuron.LIFNode, neuron.SLTTLIFNode, neuron.KLIFNode]
KINDS = [neuron.IFNode, neuron.HalfThresholdIFNode, neuron.ParametricLIFNode, *LEAKY]


@st.composite
def modules(draw, kinds=KINDS):
    """A spikingjelly module of one of the ``kinds``."""
    kind = draw(st.sampled_from(kinds))
    if kind is neuron.HalfThresholdIFNode:
        return kind(draw(st.floats(0.1, 4)), draw(st.sampled_from(SURROGATES)))
    voltage = st.one_of(st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.25, 1 / 3, 1.0, 2.0]), st.floats(-4, 4))
    arguments = {
        "v_threshold": draw(voltage),
        "v_reset": draw(st.one_of(st.none(), voltage)),
        "surrogate_function": draw(st.sampled_from(SURROGATES)),
    }
    if kind is neuron.IFNode:
        return kind(**arguments)
    tau = draw(st.one_of(st.sampled_from([2.0, 100.0, 1.1, 3.0, 7.3]), st.floats(1.0, 1e4, exclude_min=True)))
    arguments["decay_input"] = draw(st.booleans())
    if kind not in LEAKY:
        return kind(tau, **arguments)
    module = kind(tau=tau, **arguments)
    if kind is neuron.KLIFNode:
        module.scale_reset = draw(st.booleans())
        k = draw(st.one_of(st.sampled_from([1.0, 0.3, 2.0, -0.7, 0.0]), st.floats(-4, 4, width=32)))
        module.k.data.fill_(k)
    return module


@st.composite
def cases(draw, kinds=KINDS):
    """A module and currents ``[T, N, M]`` for it: normal ones, or a few numbers that meet the threshold."""
    module = draw(modules(kinds))
    sizes = draw(st.tuples(st.integers(1, STEPS), st.integers(1, ROWS), st.integers(1, COLUMNS)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    currents = torch.randn(sizes, generator=generator)
    if draw(st.booleans()):
        threshold = module.v_threshold
        few = [0.0, -0.0, threshold, threshold / 2, 2 * threshold, -threshold, 0.1, 1.5, 1e-45]
        currents = torch.tensor(few, dtype=torch.float32)[torch.randint(len(few), sizes, generator=generator)]
    for value in draw(st.lists(st.sampled_from([math.inf, -math.inf, math.nan, 3e38, -3e38, 1e-40]), max_size=3)):
        currents[torch.rand(sizes, generator=generator) < 0.1] = value
    return module, currents


def klif(decay_input, **arguments):
    module = neuron.KLIFNode(tau=3.0, decay_input=decay_input, **arguments)
    module.k.data.fill_(1.3)
    return module


def ties():
    """Yield modules and currents ``[T, 1, 1]`` whose largest voltage is the threshold: any other rounding breaks it."""
    for v_reset in (None, 0.0, -0.3):
        for make in (
            neuron.IFNode,
            *(partial(neuron.LIFNode, tau, decay_input) for tau in (1.1, 3.0, 100.0) for decay_input in (True, False)),
            *(partial(neuron.ParametricLIFNode, 3.0, decay_input) for decay_input in (True, False)),
            *(partial(klif, decay_input) for decay_input in (True, False)),
        ):
            never = make(v_threshold=3e38, v_reset=v_reset, store_v_seq=True)
            currents = torch.randn(5, 1, 12)
            spikes_of(never, currents)
            for unit, threshold in enumerate(never.v_seq.amax(0)[0].tolist()):
                yield make(v_threshold=threshold, v_reset=v_reset), currents[:, :, unit : unit + 1]


def spikes_of(module, currents, step_mode="m"):
    """What the module itself makes of currents ``[T, N, M]``, from its reset state."""
    functional.reset_net(module)
    functional.set_step_mode(module, step_mode)
    with torch.no_grad():
        return module(currents) if step_mode == "m" else torch.stack([module(x) for x in currents])
