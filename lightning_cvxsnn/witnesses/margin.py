"""Maximum-margin witnesses: weights with the same spikes whose voltages are as far from the threshold as possible."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cvxsnn.network import undisturbed
from lightning_cvxsnn.network.network import Network
from lightning_cvxsnn.network.rows import rows_of
from lightning_cvxsnn.network.transaction import all_or_nothing
from lightning_cvxsnn.patterns.neuron import Neuron
from lightning_cvxsnn.runtime.rng import isolate_rng
from lightning_cvxsnn.witnesses.find_layer import find_witness_layer

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


@dataclass(frozen=True)
class MarginReport:
    """What `widen_margins` did; margins are distances of a membrane voltage from its threshold.

    Attributes:
        layer: Dotted name of the linear layer.
        units: Its units.
        widened: Units whose weights were replaced.
        kept: Units left alone because float32 rounding of the new weights would have changed a spike.
        smallest_before: Smallest margin of all units, rows and steps, in float64, at the weights found.
        smallest_after: The same at the weights written.
        median_before: Median over units of their smallest margins, at the weights found.
        median_after: The same at the weights written.
    """

    layer: str
    units: int
    widened: int
    kept: int
    smallest_before: float
    smallest_after: float
    median_before: float
    median_after: float


@torch.no_grad()
def widen_margins(
    model: nn.Module, dataloader: Any, *, readout: str | None = None, max_samples: int | None = None, seed: int = 0
) -> MarginReport:
    """Give the last hidden layer the weights of the largest margin that make the same spikes on the training rows.

    Spikes close to their threshold are lost to rounding: of another batch size, of half precision, of a quantised chip.
    Each unit's weights and bias are replaced by those of at most their norm whose voltages stay furthest from the
    threshold (arXiv 2605.08022, reconstruction); the spikes on the training rows, hence the dictionary, the outputs and
    every certificate, stay as they are, bit for bit. On other rows spikes may change. It takes seconds with
    ten inputs a unit, minutes with hundreds.

    Args:
        model: A network whose last hidden layer is an ``nn.Linear`` with IF, LIF or parametric LIF neurons behind it;
            its weights are changed in place.
        dataloader: A ``DataLoader`` (or list) of training batches ``(x, y)``.
        readout: Dotted name of the readout; None: the last linear layer that a batch reaches.
        max_samples: Use this many rows, a random subset; the spikes of the others may change. None: all.
        seed: Seed of the subset.

    Returns:
        Margins before and after.

    Raises:
        MisconfigurationException: If there is no readout to be found, or the data is not as expected.
        ValueError: If the last hidden layer is not of this kind (KLIF neurons are not). Nothing is written.
        RuntimeError: If the spikes that the network itself makes would change. Nothing is written.

    Example:
        >>> from lightning_cvxsnn import DigitsDataModule, LitSNN
        >>> _ = torch.manual_seed(0)
        >>> data = DigitsDataModule()
        >>> data.setup("fit")
        >>> report = widen_margins(LitSNN(hidden=[16]), data.train_dataloader(), max_samples=100)
        >>> report.smallest_after > 10 * report.smallest_before
        True
    """
    network = Network(model, rows_of(model, dataloader, max_samples=max_samples, seed=seed), readout)
    with isolate_rng(), all_or_nothing(model), undisturbed(model):
        model.eval()
        layer = find_witness_layer(model, network.readout, (batch.x for batch in network.rows))
        if not isinstance(layer.affine, nn.Linear):
            raise ValueError(
                f"'{layer.affine_name}' is a convolution, whose channels have a voltage at every place. Expected an "
                "nn.Linear as the last hidden layer."
            )
        if layer.norm is not None:
            raise ValueError(
                f"Between '{layer.affine_name}' and its neurons is the batch norm '{layer.norm_name}', which changes "
                "with every training batch. Expected an nn.Linear that feeds its neurons."
            )
        if layer.constants is None:
            raise ValueError(
                f"The dynamics of '{layer.neuron_name}' ({type(layer.neuron).__name__}) are not known. Expected "
                "spikingjelly's IFNode, LIFNode or ParametricLIFNode, whose voltage is linear in its input weights."
            )
        dictionary = network.capture().dictionary.counts
        weight, bias = layer.affine.weight, layer.affine.bias

        def spikes(weight: Tensor, bias: Tensor | None) -> Tensor:
            return layer.spikes(layer.inputs, weight, weight.new_zeros(len(weight)) if bias is None else bias) != 0

        trains = spikes(weight, bias)
        wide = widen(layer.constants, layer.inputs, weight, bias, trains)
        new_bias = None if bias is None else wide.bias.to(bias)
        same = (spikes(wide.weight.to(weight), new_bias) == trains).flatten(0, 1).all(0)
        wider = (wide.after > wide.before).to(same.device)
        layer.affine.weight[wider & same] = wide.weight.to(weight)[wider & same]
        if new_bias is not None:
            layer.affine.bias[wider & same] = new_bias[wider & same]
        if not torch.equal(network.capture().dictionary.counts, dictionary):
            raise RuntimeError(
                f"With wider margins in '{layer.affine_name}' the network's own spikes changed, so nothing was "
                "written. Does it give the same output for the same input in eval mode?"
            )
        after = margins(layer.constants, layer.inputs, layer.affine.weight, layer.affine.bias, trains)
    return MarginReport(
        layer=layer.affine_name,
        units=len(weight),
        widened=int((wider & same).sum()),
        kept=int((wider & ~same).sum()),
        smallest_before=float(wide.before.min()),
        smallest_after=float(after.min()),
        median_before=float(wide.before.median()),
        median_after=float(after.median()),
    )
