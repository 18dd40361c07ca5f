"""Bring spiking layers to life: measure them, and change the weights that feed them.

Scaling a unit's input weights moves its firing rate and keeps what it is selective for; a unit whose input current is
never positive is negated first. Shifting its bias does so at weights of any size: small ones learn faster. Units that
fire with those below lose nothing in any depth; the identity as a start of plain deep networks goes back to Le, Jaitly
and Hinton (arXiv 1504.00941). The paper normalises random witnesses (arXiv 2605.08022); calibration from data goes back
to LSUV (Mishkin and Matas, 2016) and, for spiking layers, to Rossbroich, Gygax and Zenke (2022).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_cvxsnn.network.activity import LayerActivity, measure_activity
from lightning_cvxsnn.network.dataflow import has_rows, is_spiking
from lightning_cvxsnn.network.isolation import forward_of, reset_neurons
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.neurons import neuron_of
from lightning_cvxsnn.network.writable import why_not_writable

#: How a layer is made to fire. ``scale``: each unit by a factor of its row; ``scale_dead``: only the silent and the
#: saturated ones; ``shift_bias``: each unit by its bias, after one factor for all weights that gives currents a
#: standard deviation of 0.5 (``scale`` where it has no bias); ``copy_below``: each unit fires with one unit of the
#: layer below, since the weight between the two is raised and all others are made small.
Manner = Literal["scale", "scale_dead", "shift_bias", "copy_below"]

_LOG2_SCALES = (-14.0, 14.0)
_LARGEST_SHIFT = 2.0**14
_BISECTIONS = 18
_DEVIATION = 0.5  # of a unit's current where biases make it fire: inside the window of the usual surrogates
_COPY = 1.5  # of the current that makes a unit fire: other weights, drawn at random, do not stop a copy;
_COPY_SOFT = 1.05  # where a reset keeps what is above the threshold: it would add up to further spikes
_KEPT = 0.2  # of the other weights and the bias, times the leak: the longer a voltage is kept, the more they add up
_ADVICE = "Give it weights or thresholds with which it fires, or use witnesses='keep'."
_ROUNDING = 1e-5
_CURRENT_LIMIT = 2**23  # input currents held at once, 32 MiB of float32


class DeadLayerError(ValueError):
    """A layer carries no information, and the weights that feed it cannot change that."""


@dataclass
class CalibratedLayer:
    """A layer whose input weights were changed.

    Attributes:
        name: Dotted name of the neuron module.
        affine_name: Dotted name of the affine layer before it.
        before: The layer's activity before.
        after: The layer's activity after.
        scale: Median of the absolute factors.
        shift: Median of what was added to the biases.
        negated: Units whose weights changed sign.
        copies: Whether each unit now fires with one unit of the layer below, instead of the three above.
        replaced: Whether all weights are new, instead of the above.
    """

    name: str
    affine_name: str
    before: LayerActivity
    after: LayerActivity
    scale: float = 1.0
    shift: float = 0.0
    negated: int = 0
    copies: bool = False
    replaced: bool = False


@torch.no_grad()
def calibrate_layers(
    network: Network,
    *,
    rate: float,
    only_dead: bool,
    skip_last: bool = False,
    also: Callable[[nn.Module, LayerActivity], bool] = lambda affine, layer: False,
    manner: Callable[[nn.Module, LayerActivity], Manner] = lambda affine, layer: "scale",
) -> list[CalibratedLayer]:
    """Change each layer's affine, in place and in the order reached, until its units fire at ``rate``.

    Call it inside ``undisturbed``. Later layers are calibrated on what the earlier ones then send. Where something else
    feeds a layer too, by a sum, only its dead units are changed, through one of the affine layers. A change that leaves
    the layer as it was is undone.

    Args:
        network: The network; its batch norms are estimated anew after each layer's change.
        rate: Target firing rate per unit, spikes per step, in (0, 1).
        only_dead: Leave layers alone that carry information (``LayerActivity.alive``).
        skip_last: Leave the last spiking layer alone.
        also: Whether ``only_dead`` also changes the layer behind an affine layer, though it carries information.
        manner: How an affine layer is changed, see `Manner`. ``copy_below`` is for linear layers and convolutions that
            receive the spikes of another layer no wider; elsewhere, and if half of what it sends is then lost, rows are
            scaled.

    Returns:
        The layers that were changed.

    Raises:
        DeadLayerError: If a layer that must change is fed by no affine layer whose weights it may change, by one that
            is frozen, or carries no more information afterwards. A dead layer that only other spiking layers feed, or
            that receives the same on every row, is left as it is, with a warning.
    """
    changed, module, inputs = [], network.module, network.inputs()
    activities = measure_activity(module, inputs)
    for position in range(len(activities) - skip_last):
        before = activities[position]
        affine = _writable_affine(module, before)
        if affine is None or (only_dead and before.alive and not also(affine, before)):
            continue
        how = manner(affine, before) if before.alone else "scale_dead"
        if how == "copy_below":
            after = _copy_below(network, inputs, position, activities)
            if after is not None:
                activities = after
                changed.append(CalibratedLayer(before.name, before.affine_name, before, after[position], copies=True))
                continue
        found = [(p, p.clone()) for p in affine.parameters(recurse=False)]
        factors, shifts = _factors_and_shifts(module, inputs, before, how, rate)
        for parameter in (affine.weight, affine.bias):
            if parameter is not None:
                parameter.mul_(factors.to(parameter).reshape(-1, *[1] * (parameter.dim() - 1)))
        if bool(shifts.any()):
            affine.bias.add_(shifts.to(affine.bias))
        network.refresh_norms()
        then = measure_activity(module, inputs)
        if not before.healthy and _is_as_dead(then[position], before):
            for parameter, value in found:
                parameter.copy_(value)
            network.refresh_norms()
            if not before.alive:
                _refuse_unless_uninformed(module, inputs, before)
            continue
        activities = then
        changed.append(
            CalibratedLayer(
                name=before.name,
                affine_name=before.affine_name,
                before=before,
                after=activities[position],
                scale=float(factors.abs().median()),
                shift=float(shifts.median()),
                negated=int((factors < 0).sum()),
            )
        )
    return changed


def _factors_and_shifts(
    module: nn.Module, inputs: Sequence[Any], layer: LayerActivity, how: Manner, rate: float
) -> tuple[Tensor, Tensor]:
    """By what the rows of a layer's affine, and its biases, are multiplied, ``[units]``; and what biases gain."""
    currents = _Currents(module, inputs, layer)
    ones = torch.ones(currents.units, device=currents.device)
    factors, shifts = ones, torch.zeros_like(ones)
    if how == "shift_bias" and module.get_submodule(layer.affine_name).bias is not None:
        deviation = currents.deviation()
        factors = ones * (_DEVIATION / deviation if deviation > 0 else 1.0)
        shifts = shifts_for(partial(currents.rates, factors), currents.units, rate, currents.device)
    else:
        factors = factors_for(partial(currents.rates, shifts=shifts), currents.units, rate, currents.device)
        if how == "scale_dead":
            now = currents.rates(ones, shifts)
            factors = torch.where((now == 0) | (now == 1), factors, ones)
    return factors, shifts


def _refuse_unless_uninformed(module: nn.Module, inputs: Sequence[Any], layer: LayerActivity) -> None:
    """Warn of a dead layer that no factor helps since all rows send it the same; raise where they do not."""
    tried = f"{_dead(layer)} Rescaling '{layer.affine_name}', which feeds it, did not help and was undone"
    if not _Currents(module, inputs, layer).alike():
        raise DeadLayerError(f"{tried}. {_ADVICE}")
    rank_zero_warn(f"{tried}: it receives the same from there on every row. It is left as it is.")


def _is_as_dead(after: LayerActivity, before: LayerActivity) -> bool:
    """Whether a layer that should live is as it was: the same if some units were alive, no better if hardly one was."""
    if before.alive:
        return after == before
    return after.silent + after.saturated >= before.silent + before.saturated


def _copy_below(
    network: Network, inputs: Sequence[Any], position: int, activities: list[LayerActivity]
) -> list[LayerActivity] | None:
    """Let the units of a layer fire with those below, in turn; None, and nothing changed, where they do not.

    A channel of a convolution sends on the map of one below it, by the weight at the middle of its kernel.
    """
    module, layer = network.module, activities[position]
    affine: Any = module.get_submodule(layer.affine_name)
    if not (layer.source and isinstance(affine, (nn.Linear, _ConvNd)) and getattr(affine, "groups", 1) == 1):
        return None
    outputs, fan_in = affine.weight.shape[:2]
    if outputs < fan_in:
        return None
    try:
        neuron = neuron_of(module.get_submodule(layer.name))
    except ValueError:
        return None  # what makes it fire is not known
    found, units = [(p, p.clone()) for p in affine.parameters(recurse=False)], torch.arange(outputs)
    for parameter, _ in found:
        parameter.mul_(_KEPT * (1 - neuron.leak))
    weight: Any = affine.weight
    middle = [size // 2 for size in weight.shape[2:]]
    weight[(units, units % fan_in, *middle)] += neuron.firing_current * (
        _COPY_SOFT if neuron.v_reset is None else _COPY
    )
    network.refresh_norms()
    then = measure_activity(module, inputs)
    below = next(a for a in activities if a.name == layer.source)
    if then[position].alive and then[position].distinct * 2 >= below.distinct:
        return then
    for parameter, value in found:
        parameter.copy_(value)
    network.refresh_norms()
    return None


def _writable_affine(module: nn.Module, layer: LayerActivity) -> Any:
    """The affine whose weights are the layer's to change; None if there is none and the layer need not change."""
    affine: Any = module.get_submodule(layer.affine_name) if layer.affine_name else None
    if affine is not None and has_rows(affine):
        computed = not isinstance(affine._parameters.get("weight"), nn.Parameter)
        if not computed and affine.weight.requires_grad:  # a shared weight may be scaled: all its layers follow
            return affine
    if layer.alive:
        return None
    if layer.feeders and all(is_spiking(module.get_submodule(name)) for name in layer.feeders):
        rank_zero_warn(
            f"{_dead(layer)} It is left as it is: it receives spikes of {_quoted(layer.feeders)} and no layer's "
            "output, so there are no weights to rescale. Give it a lower v_threshold."
        )
        return None
    if not layer.feeders:
        reason = "No Linear, Conv or batch norm feeds it, so nothing can be rescaled; scale its input."
    elif affine is None:
        reason = (
            f"It is fed by {_quoted(layer.feeders)}, none of which feeds it at every step and no spiking layer before "
            f"it, so no weights are its own to rescale. {_ADVICE}"
        )
    elif not has_rows(affine):
        reason = (
            f"It is fed by '{layer.affine_name}' ({type(affine).__name__}), which is no plain Linear, convolution or "
            f"norm, so its weights cannot be rescaled. {_ADVICE}"
        )
    else:
        why = why_not_writable(module, layer.affine_name, f"'{layer.affine_name}'")
        reason = (
            f"It is fed by '{layer.affine_name}'. {why}. Remove the parametrization or unfreeze it, or give it weights "
            "that make the layer fire."
        )
    raise DeadLayerError(f"{_dead(layer)} {reason}")


def _dead(layer: LayerActivity) -> str:
    return (
        f"Spiking layer '{layer.name}' carries no information: {layer.silent} of its {layer.units} units are silent "
        f"and {layer.saturated} saturated."
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


class _Currents:
    """What a spiking layer receives on some rows, call by call: its affine's part, and the rest apart."""

    def __init__(self, module: nn.Module, inputs: Sequence[Any], layer: LayerActivity) -> None:
        self._neuron: Any = module.get_submodule(layer.name)
        affine: Any = module.get_submodule(layer.affine_name)
        self._batches = self._received(module, inputs)
        self._rest: list[list[Tensor]] = []
        if not layer.alone:
            handle = affine.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
            try:
                self._rest = self._received(module, inputs)
            finally:
                handle.remove()
            both = zip(self._batches, self._rest, strict=True)
            self._batches = [[c - r for c, r in zip(currents, rest, strict=True)] for currents, rest in both]
        first = self._batches[0][0]
        self.units, self.device = affine.weight.shape[0], affine.weight.device
        self._axis = -1 if layer.axis is None else layer.axis
        self._per_unit = first.shape[self._axis] == self.units
        self._shape = [1] * first.dim()
        self._shape[self._axis] = self.units if self._per_unit else 1

    def _received(self, module: nn.Module, inputs: Sequence[Any]) -> list[list[Tensor]]:
        batches: list[list[Tensor]] = []
        handle = self._neuron.register_forward_pre_hook(lambda _, args: batches[-1].append(args[0].detach()))
        held = 0
        try:
            for x in inputs:
                batches.append([])
                reset_neurons(module)
                forward_of(module)(x)
                held += sum(c.numel() for c in batches[-1])
                if held > _CURRENT_LIMIT:
                    break
        finally:
            handle.remove()
        if hasattr(self._neuron, "step_mode"):  # says which axis is the samples'
            batches = _merged(batches, 1 if self._neuron.step_mode == "m" else 0)
        return batches

    def _broadcast(self, values: Tensor, like: Tensor) -> Tensor:
        return (values.reshape(self._shape) if self._per_unit else values[0]).to(like)

    def rates(self, factors: Tensor, shifts: Tensor) -> Tensor:
        """Spikes per step of each unit, ``[units]``, whose currents are scaled and shifted."""
        total, count = torch.zeros(self.units, device=self.device), 0
        for index, steps in enumerate(self._batches):
            reset_neurons(self._neuron)
            for step, current in enumerate(steps):
                scaled = current * self._broadcast(factors, current) + self._broadcast(shifts, current)
                if self._rest:
                    scaled = scaled + self._rest[index][step]
                by_unit = self._neuron(scaled).float().movedim(self._axis, -1).flatten(0, -2)
                total += by_unit.sum(0) if self._per_unit else by_unit.sum() / by_unit.shape[1]
                count += by_unit.shape[0]
        return total / count

    def alike(self) -> bool:
        """Whether all samples send the same, but for rounding."""
        axis = 1 if getattr(self._neuron, "step_mode", "m") == "m" else 0
        calls = [c for calls in self._batches for c in calls if c.dim() > axis]
        differences = [float((c - c.narrow(axis, 0, 1)).abs().max()) for c in calls]
        return max(differences, default=1.0) <= _ROUNDING * max((float(c.abs().max()) for c in calls), default=0.0)

    def deviation(self) -> float:
        """Root mean square over units of the standard deviation of a unit's currents."""
        every = torch.cat([c.float().movedim(self._axis, -1).flatten(0, -2) for b in self._batches for c in b])
        return float(every.var(0).mean().sqrt()) if len(every) > 1 else 0.0


def _merged(batches: list[list[Tensor]], axis: int) -> list[list[Tensor]]:
    """Small batches as one, along the axis of the samples: a neuron's calls cost much more than its arithmetic."""

    def alike(calls: list[Tensor]) -> list[list[int]]:
        return [[size for k, size in enumerate(call.shape) if k != axis] for call in calls]

    if min(call.dim() for calls in batches for call in calls) <= axis or any(
        alike(calls) != alike(batches[0]) for calls in batches
    ):
        return batches
    return [[torch.cat(calls, axis) for calls in zip(*batches, strict=True)]]


def factors_for(rates: Callable[[Tensor], Tensor], units: int, rate: float, device: torch.device) -> Tensor:
    """The factors ``[units]`` of the input currents at which ``rates(factors)`` is ``rate``, by bisection.

    A unit that positive factors do not excite gets a negative one, one that nothing excites keeps the factor 1.
    """
    low = torch.full((units,), _LOG2_SCALES[0], device=device)
    high = torch.full_like(low, _LOG2_SCALES[1])
    positive, negative = rates(high.exp2()), rates(-high.exp2())
    sign = torch.where((positive >= 2 * rate) | (positive >= negative), 1.0, -1.0)
    reach = torch.where(sign > 0, positive, negative)
    target = torch.clamp(reach / 2, max=rate)  # rows that rarely excite a unit bound the rate it can have
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fires = rates(sign * middle.exp2()) >= target
        low, high = torch.where(fires, low, middle), torch.where(fires, middle, high)
    return torch.where(reach > 0, sign * high.exp2(), torch.ones_like(high))


def shifts_for(rates: Callable[[Tensor], Tensor], units: int, rate: float, device: torch.device) -> Tensor:
    """The shifts ``[units]`` of the input currents at which ``rates(shifts)`` is ``rate``, by bisection.

    A unit that no shift brings to ``rate`` keeps the shift 0.
    """
    high = torch.ones(units, device=device)
    while high[0] < _LARGEST_SHIFT and bool(((rates(high) < rate) | (rates(-high) >= rate)).any()):
        high = 2 * high
    low, reachable = -high, rates(high) >= rate
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fires = rates(middle) >= rate
        low, high = torch.where(fires, low, middle), torch.where(fires, middle, high)
    return torch.where(reachable, high, torch.zeros_like(high))
