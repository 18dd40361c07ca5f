"""How a readout reduces its inputs over time: found with random spikes, since on silent ones every way looks right."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from lightning_cvxsnn.network.isolation import reset_neurons
from lightning_cvxsnn.network.reduction import Layout, TimeReduction

_SEED = 0
_CANCELS = 1e-3  # weights whose sum is this small beside their sizes
_FLAT: tuple[Layout, ...] = ("flat", "flat samples")


@dataclass
class RandomReadout:
    """What the probe fed the layer and with which weights; ``error`` is the layer's own deviation from linear."""

    inputs: list[Tensor]
    weight: Tensor
    bias: Tensor
    error: float = 0.0


@contextmanager
def random_readout(layer: nn.Linear) -> Iterator[RandomReadout]:
    """Feed ``layer`` random spikes and let it answer with random weights while the context lasts."""
    generator = torch.Generator().manual_seed(_SEED)
    like = layer.weight
    weight = torch.randn(like.shape, generator=generator).to(like) / like.shape[1] ** 0.5
    bias = (
        torch.randn(like.shape[0], generator=generator).to(like)
        if layer.bias is not None
        else like.new_zeros(len(like))
    )
    probe = RandomReadout([], weight, bias)

    def replace_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        probe.inputs.append(torch.randint(0, 2, args[0].shape, generator=generator).to(args[0]))
        return (probe.inputs[-1], *args[1:])

    def replace_output(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        probe.error = max(probe.error, _relative(output, F.linear(args[0], layer.weight, layer.bias)))
        return F.linear(args[0], weight, bias)

    handles = [
        layer.register_forward_pre_hook(replace_input),
        layer.register_forward_hook(replace_output),
    ]
    try:
        yield probe
    finally:
        for handle in handles:
            handle.remove()


def reductions(probe: RandomReadout, output: Tensor) -> list[TimeReduction]:
    """The reductions that give the output's shape."""
    inputs, shape, rank = probe.inputs, probe.inputs[0].shape, output.dim()
    if len(shape) not in (2, 3) or rank > 3:
        return []
    samples = output.shape[0]
    layouts: list[tuple[Layout, int]] = []
    if len(inputs) > 1:
        layouts.append(("calls", len(inputs)))
    elif len(shape) == 3:
        layouts += [("steps", shape[0]), ("samples", shape[1])]
    elif rank == 3:
        layouts += [(layout, steps) for steps in output.shape[:2] for layout in _FLAT]
    elif shape[0] == samples:
        layouts.append(("static", 1))
    elif shape[0] % samples == 0:
        layouts += [(layout, shape[0] // samples) for layout in _FLAT]
    if rank == 3:
        return [
            TimeReduction("all", layout, steps, batch_first)
            for layout, steps in layouts
            for batch_first in (False, True)
            if output.shape[int(batch_first)] == steps
        ]
    if layouts and layouts[0][0] == "static":
        return [TimeReduction("none", "static", 1)]
    found = [TimeReduction(kind, layout, steps) for layout, steps in layouts for kind in ("last", "mean", "sum")]
    return found + [r for layout, steps in layouts if (r := _weighted(layout, steps, probe, output)) is not None]


def has_samples_first(module: nn.Module, x: Any, forward: Callable[[Any], Tensor], spiking: nn.Module) -> bool:
    """Whether what ``forward`` gives, ``[., ., C]``, is ``[N, T, C]``: the neurons ``spiking`` take T steps.

    Where N is T, one sample fewer tells them apart.
    """
    received: list[Tensor] = []
    handle = spiking.register_forward_pre_hook(lambda _module, args: received.append(args[0]))
    try:
        for samples in (slice(None), slice(-1)):
            received.clear()
            reset_neurons(module)
            output = forward(tree_map_only(Tensor, itemgetter(samples), x))
            if output.shape[0] != output.shape[1]:
                single_step = getattr(spiking, "step_mode", "m") == "s"
                return output.shape[1] == (len(received) if single_step else len(received[0]))
    except (RuntimeError, ValueError, IndexError):  # the network takes batches of this size only
        pass
    finally:
        handle.remove()
    return False


def _weighted(layout: Layout, steps: int, probe: RandomReadout, output: Tensor) -> TimeReduction | None:
    """The sum over time that comes closest to ``output``, where it has more numbers than there are weights."""
    by_step = TimeReduction("all", layout, steps).to_steps(probe.inputs).double() @ probe.weight.double().T
    by_step = (by_step + probe.bias.double()).flatten(1)
    if by_step.shape[1] != output.numel() or output.numel() < 2 * steps or not output.isfinite().all():
        return None
    weights = torch.linalg.lstsq(by_step.T.cpu(), output.double().reshape(-1, 1).cpu()).solution[:, 0]
    cancels = abs(float(weights.sum())) <= _CANCELS * float(weights.abs().sum())
    if cancels and bool(probe.bias.any()):  # the bias has no part in the output, so an intercept could not be written
        return None
    return TimeReduction("weighted", layout, steps, weights=tuple(weights.tolist()))


def misfit(reduction: TimeReduction, probe: RandomReadout, output: Tensor) -> float:
    """Largest deviation of the output from what ``reduction`` predicts, relative to the largest prediction."""
    values, scale = reduction.sum_steps(reduction.to_steps(probe.inputs).double())
    predicted = values * scale @ probe.weight.double().T + reduction.bias_count * probe.bias.double()
    try:
        actual = reduction.flatten_rows(output) if reduction.kind == "all" else output
        return _relative(actual.reshape(predicted.shape), predicted)
    except RuntimeError:  # the output does not have the shape that this reduction gives
        return float("inf")


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-12))
