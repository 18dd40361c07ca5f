"""Maximum-margin witnesses: weights with the same spikes whose voltages are as far from the threshold as possible."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_cvxsnn.patterns.neuron import Neuron

_ROUNDS = 40  # four to eight are enough, as a rule
_UNITS = 64  # in one batch of programmes
_BLOCK = 2**22  # voltages held at once, 32 MiB
_TOLERANCE = 1e-3  # of the largest margin, relative


@dataclass(frozen=True, eq=False)
class WideWitnesses:
    """Witnesses of given spike trains, with large margins.

    Attributes:
        weight: ``[M, F]`` float64.
        bias: ``[M]`` float64; zeros without a bias.
        before: ``[M]`` float64, margins of the weights given: the least ``h - v_threshold`` where a unit fires and
            ``v_threshold - h`` where it does not, over all steps and rows.
        after: ``[M]`` float64, margins of the weights found, at least ``before``.
        bound: ``[M]`` float64: no weights of at most the given norm have a larger margin, as accurately as the cone
            solver (Clarabel) goes.
    """

    weight: Tensor
    bias: Tensor
    before: Tensor
    after: Tensor
    bound: Tensor


@torch.no_grad()
def widen(neuron: Neuron, inputs: Tensor, weight: Tensor, bias: Tensor | None, trains: Tensor) -> WideWitnesses:
    """Find the weights whose voltages stay furthest from the threshold, for the same spikes.

    Given a unit's spikes its voltage is linear in its weights, since the reset terms are known numbers. So the largest
    margin over weights and bias of at most their present norm is a second-order cone programme with one constraint for
    each step of each row (arXiv 2605.08022, reconstruction). Few of them bind: they are generated, the most violated
    first, and each round's programmes are one batch of a ``CvxpyLayer`` (Agrawal et al., NeurIPS 2019).

    Args:
        neuron: Constants of the units.
        inputs: ``[T, N, F]``, finite.
        weight: ``[M, F]``.
        bias: ``[M]``; None: the units have none.
        trains: ``[T, N, M]``, the spikes (0 or 1) of these units.

    Returns:
        The witnesses. Where ``trains`` are not quite what ``weight`` gives in exact arithmetic (a tie that rounding
        decided), ``before`` is negative by as much.

    Raises:
        ValueError: If shapes disagree, numbers are not finite, or the neuron has no linear form (KLIF).

    Example:
        >>> from lightning_cvxsnn.patterns import spike_trains
        >>> x = torch.tensor([[[0.2], [0.9]]])  # one step, two rows
        >>> w, b = torch.tensor([[1.2]]), torch.tensor([0.0])
        >>> found = widen(Neuron(), x, w, b, spike_trains(Neuron(), F.linear(x, w, b)))
        >>> [round(float(v), 3) for v in (found.before, found.after, found.bound)]
        [0.08, 0.399, 0.399]
    """
    data, point, fired = _checked(inputs, weight, bias, trains)
    parts = [_widen(neuron, data, point[units], fired[..., units]) for units in _blocks(trains)]
    found, before, after, bound = (torch.cat(values) for values in zip(*parts, strict=True))
    features = weight.shape[1]
    found_bias = found.new_zeros(len(found)) if bias is None else found[:, features]
    return WideWitnesses(found[:, :features], found_bias, before, after, bound)


@torch.no_grad()
def margins(neuron: Neuron, inputs: Tensor, weight: Tensor, bias: Tensor | None, trains: Tensor) -> Tensor:
    """The margin of each unit, ``[M]`` float64, in the voltage's units; arguments and errors as in `widen`.

    Example:
        >>> margins(Neuron(), torch.tensor([[[0.2], [0.9]]]), torch.tensor([[1.2]]), None, torch.tensor([[[0], [1]]]))
        tensor([0.0800], dtype=torch.float64)
    """
    data, point, fired = _checked(inputs, weight, bias, trains)
    return torch.cat([_slacks(neuron, data, point[units], fired[..., units])[0] for units in _blocks(trains)])


def _checked(inputs: Tensor, weight: Tensor, bias: Tensor | None, trains: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs and weights in float64, the bias as the weight of a constant input, and bool trains."""
    steps, rows, features = inputs.shape
    if weight.shape[1:] != (features,) or trains.shape != (steps, rows, len(weight)):
        raise ValueError(
            f"Found inputs {list(inputs.shape)}, weight {list(weight.shape)} and trains {list(trains.shape)}. Expected "
            "[T, N, F], [M, F] and [T, N, M]."
        )
    data, point = inputs.detach().cpu().double(), weight.detach().cpu().double()
    if bias is not None:
        data = torch.cat([data, data.new_ones(steps, rows, 1)], 2)
        point = torch.cat([point, bias.detach().cpu().double()[:, None]], 1)
    if not bool(data.isfinite().all()) or not bool(point.isfinite().all()):
        raise ValueError("Found NaN or infinity in the inputs or the weights. Expected finite numbers.")
    return data, point, trains.detach().cpu() != 0


def _blocks(trains: Tensor) -> tuple[Tensor, ...]:
    """Indices of the units, few enough at a time for their voltages to fit."""
    steps, rows, units = trains.shape
    return torch.arange(units).split(max(min(_BLOCK // (steps * rows), _UNITS), 1))


def _widen(neuron: Neuron, data: Tensor, point: Tensor, fired: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Point ``[M, F]``, margins before and after and bounds ``[M]`` of a few units."""
    size = point.norm(dim=1)
    best = point.clone()
    before, slacks = _slacks(neuron, data, point, fired)
    after, bound = before.clone(), torch.full_like(before, torch.inf)
    normals = levels = None
    open_units = torch.arange(len(point))
    for _ in range(_ROUNDS):
        # About as many constraints bind as there are weights.
        count = min(data.shape[2] if normals is None else data.shape[2] // 2 + 1, len(slacks))
        tightest = slacks.topk(count, dim=0, largest=False).indices
        added = [
            _constraints(neuron, data, fired[..., unit], places)
            for unit, places in zip(open_units, tightest.T, strict=True)
        ]
        more, their_levels = (torch.stack(values) for values in zip(*added, strict=True))
        normals = more if normals is None else torch.cat([normals, more], 1)
        levels = their_levels if levels is None else torch.cat([levels, their_levels], 1)
        found, reached = _restricted(normals, levels, size[open_units])
        bound[open_units] = reached
        margin, slacks = _slacks(neuron, data, found, fired[..., open_units])
        better = margin > after[open_units]
        best[open_units[better]], after[open_units[better]] = found[better], margin[better]
        going = bound[open_units] - after[open_units] > _TOLERANCE * bound[open_units].abs()
        if not bool(going.any()):
            break
        open_units, normals, levels, slacks = open_units[going], normals[going], levels[going], slacks[:, going]
    return best, before, after, bound


def _slacks(neuron: Neuron, data: Tensor, point: Tensor, fired: Tensor) -> tuple[Tensor, Tensor]:
    """Margins ``[M]``, and by how much each voltage is on its side of the threshold, ``[T * N, M]``."""
    form = neuron.linear_form()
    v = torch.full_like(fired[0], neuron.initial_voltage, dtype=torch.float64)
    voltages = []
    for x, fires in zip(F.linear(data, point), fired, strict=True):
        h = form.charge(v, x)
        voltages.append(h)
        v = form.reset(h, fires)
    slacks = (_side(fired) * (torch.stack(voltages) - neuron.v_threshold)).flatten(0, 1)
    return slacks.amin(0), slacks


def _side(fired: Tensor) -> Tensor:
    """1 where the voltage belongs above the threshold, -1 where below."""
    return torch.where(fired, 1.0, -1.0).double()


def _constraints(neuron: Neuron, data: Tensor, fired: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Normals ``[K, F]`` and levels ``[K]`` with ``slack = normal @ w - level`` at ``which`` of the T * N places."""
    form = neuron.linear_form()
    step, row = which // data.shape[1], which % data.shape[1]
    normals = data.new_zeros(len(which), data.shape[2])
    constants = torch.full_like(normals[:, 0], neuron.initial_voltage)
    for t in range(int(step.max()) + 1):
        now = t <= step
        fires = fired[t, row] & (t < step)
        normals[now], constants[now] = form.charge_affine(normals[now], constants[now], data[t, row[now]])
        normals[fires], constants[fires] = form.reset_affine(normals[fires], constants[fires])
    side = _side(fired).flatten()[which]
    return side[:, None] * normals, side * (neuron.v_threshold - constants)


def _restricted(normals: Tensor, levels: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Points ``[M, F]`` of at most norm ``size [M]`` with the largest margins ``[M]`` over the constraints so far."""
    import cvxpy as cp  # slow to import, and seldom needed
    from cvxpylayers.torch import CvxpyLayer

    normal = cp.Parameter(normals.shape[1:])
    level, radius = cp.Parameter(levels.shape[1]), cp.Parameter(nonneg=True)
    weight, margin = cp.Variable(normals.shape[2]), cp.Variable()
    problem = cp.Problem(cp.Maximize(margin), [normal @ weight - level >= margin, cp.norm(weight) <= radius])
    layer = CvxpyLayer(problem, parameters=[normal, level, radius], variables=[weight, margin], solver="DIFFCP")
    found, margins = layer(normals, levels, size, solver_args={"solve_method": "Clarabel", "n_jobs_forward": 1})
    return found * (size / found.norm(dim=1)).clamp_max(1.0)[:, None], margins
